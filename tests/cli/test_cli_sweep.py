"""`tutelage sweep` from the command line with the lab's model: what it prints and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage.lab.world import make_problems

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    rows = [
        json.dumps({"question": problem.question, "answer": problem.gold})
        for problem in make_problems(12, min_steps=2, max_steps=3, seed=5)
    ]
    (place / "q.jsonl").write_text("\n".join(rows))
    return place


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tutelage", "sweep", "lab-base", "--problems", "q.jsonl", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


COMMON = ("--max-thinking", "40", "--max-answer", "8", "--close-text", "Answer")


def test_a_curve_with_its_controls_comes_out_of_one_command(folder: Path) -> None:
    done = call(
        *(folder, "--out", "curve", "--json", "--budgets", "0,4,8", "--waits", "0,1,2", *COMMON),
        *("--wait-strings", ". Wait,none", "--samples", "2", "--temperature", "0.7", "--votes", "1,2"),
        *("--methods", "rejection:8:2,best-of:2", "--target", "0.5,0.9"),
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    settings = [point["setting"] for point in document["points"]]
    assert settings == [
        *("T = 0.7", "at most 0 tokens", "at most 4 tokens", "at most 8 tokens"),
        *("1 × “. Wait”", "2 × “. Wait”", "1 closes masked", "2 closes masked"),
        *("rejection: 8", "best-of by mean log-prob: 2", "majority of 1, T = 0.7"),
        *("majority of 2, T = 0.7", *(f"majority of 2, at most {b} tokens" for b in (0, 4, 8))),
    ]
    fields = {"arm", "method", "budget", "waits", "wait", "accuracy", "ci95", "n", "samples", "closed_by"}
    for point in document["points"]:
        assert fields <= set(point) and point["n"] == 12 and point["samples"] == 2
        assert 0 <= point["ci95"][0] <= point["accuracy"] <= point["ci95"][1] <= 1
    by_line = {line["line"]: line for line in document["analysis"]["lines"]}
    assert [reach["target"] for reach in by_line["cut short"]["targets"]] == [0.5, 0.9]
    left = {path.name for path in (folder / "curve").iterdir()}
    files = {"curve.json", "analysis.json", "points.parquet", "replies.parquet", "page.html", "shown"}
    assert left == files and document["outputs"]["curve"] == str(folder / "curve")


def test_without_json_it_says_one_line_and_where(folder: Path) -> None:
    done = call(folder, "--out", "short", "--budgets", "4", *COMMON)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("2 points over 12 problems; unforced ") and "; highest " in first
    assert second == f"wrote {folder / 'short'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budgets", "60"), "budgets: 60 is more than the unforced model may think, 40"),
        (("--votes", "2"), "votes: greedy replies are all the same"),
        (("--samples", "3"), "samples: 3 greedy replies"),
        (("--methods", "magic"), "methods: there is no 'magic'; there is: token-conditional"),
        (("--waits", "-1"), "--waits"),
    ],
)
def test_what_cannot_be_measured_is_one_line(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    done = call(folder, "--out", "no", *arguments, *COMMON)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and done.stdout == "" and message in last, done.stderr
    assert "Traceback" not in done.stderr
