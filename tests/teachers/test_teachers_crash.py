"""The benchmark of crashes, in small: kills at random moments cost what was in flight and nothing else."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_moments_lose_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    crash = runpy.run_path(str(BENCHMARKS / "crash.py"))
    crash["main"](["--kills", "5", "--requests", "200", "--at-once", "16", "--seed", str(seed)])
    assert "answered once in the traces: 200" in capsys.readouterr().out
