"""The lab's recipe in miniature, through the command line: what it leaves, what a rerun costs, and kills."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tutelage.recipe.load import load_recipe

# One worker: what they look at is one run of the demo, and makes half a minute of work once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("end-to-end")]
SMALL: dict[str, dict[str, Any]] = {
    "lab-problems": {"train": 60, "test": 40},
    "student": {"source": "tiny"},
    "sft": {"steps": 8, "warmup_steps": 2, "batch": 16},
    "sweep": {
        **{"budgets": [0, 4], "waits": [1], "wait_strings": [". Wait", None], "votes": [1, 2]},
        **{"vote_samples": 2, "max_thinking": 24},
    },
    "report": {"show": 5},
}


def miniature(folder: Path) -> Path:
    """The shipped recipe with small numbers. The student is new, so that it needs no shipped weights."""
    data = load_recipe("lab").resolved()
    for stage in data["stages"].values():
        stage.update(SMALL.get(stage["kind"], {}))
        if stage["kind"] == "evaluate":
            stage["policy"]["max_tokens"] = 24
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump({**data, "seeds": [0, 1]}, sort_keys=False))
    return path


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tutelage", "run", "mini.yaml", "--run-dir", "run", "--json"]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def run(folder: Path) -> dict[str, Any]:
    process = start(folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "run/metrics/summary.json").read_text())
    assert isinstance(found, dict) and found.pop("wall_s") > 0
    return found


def bought(folder: Path) -> int:
    """Replies in the run's ledger."""
    with closing(sqlite3.connect(folder / "run/ledger.sqlite")) as ledger:
        (count,) = ledger.execute("SELECT count(*) FROM replies WHERE raw IS NOT NULL").fetchone()
    return int(count)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    miniature(folder)
    run(folder)
    return folder


def is_interval(ci95: Any) -> bool:
    return isinstance(ci95, list) and len(ci95) == 2 and ci95[0] <= ci95[1]


def test_the_summary_has_what_others_build_on(whole: Path) -> None:
    found = summary(whole)
    names = {"base", "answer-only", "human-terse", "teacher", "careless-unfiltered", "careless-filtered"}
    expected = {(name, seed) for name in (*names, "drafting") for seed in (0, 1)}
    assert {(arm["name"], arm["seed"]) for arm in found["arms"]} == expected
    assert len(found["arms"]) == len(expected)
    for arm in found["arms"]:
        assert is_interval(arm["ci95"]) and arm["ci95"][0] <= arm["accuracy"] <= arm["ci95"][1]
        assert (arm["n"], arm["samples"]) == (40, 1) and arm["thinking_tokens_mean"] >= 0
        assert (arm["tokens_seen"] > 0) == (arm["name"] != "base")
    for row in found["comparisons"]:
        assert row["a"] != row["b"] and row["seed"] in (0, 1) and row["n"] == 40 and is_interval(row["ci95"])
        assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
    pairs = {(row["a"], row["b"]) for row in found["comparisons"]}
    assert len(found["comparisons"]) == 2 * len(pairs)
    assert pairs >= {
        ("teacher", "human-terse"),
        ("human-terse", "answer-only"),
        ("careless-filtered", "careless-unfiltered"),
    }
    keys = {"arm", "method", "budget", "waits", "wait", "seed", "accuracy", "ci95", "n", "samples"}
    for point in found["curve"]:
        assert keys | {"thinking_tokens_mean", "closed_by"} <= set(point) and is_interval(point["ci95"])
    assert {point["arm"] for point in found["curve"]} == {"drafting", "teacher"}
    assert {point["method"] for point in found["curve"]} == {"natural", "budget", "wait", "suppress", "vote"}
    assert {point["seed"] for point in found["curve"]} == {0, 1}
    assert all({"stage", "kept", "dropped", "reasons"} <= set(row) for row in found["funnel"])


def test_the_bill_is_what_the_ledger_holds(whole: Path) -> None:
    cost = summary(whole)["cost"]
    assert cost["requests"] == bought(whole) == sum(row["requests"] for row in cost["by_teacher"])
    assert float(cost["dollars"]) > 0 and cost["completion_tokens"] > 0


def test_the_page_is_there_and_whole(whole: Path) -> None:
    page = (whole / "run/report.html").read_text()
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "careless-filtered" in page and "What does the counter show?" in page


def test_the_log_is_free_of_the_trainers_prints_and_of_tracebacks(whole: Path) -> None:
    log = (whole / "run/log.txt").read_text()
    assert "'grad_norm'" not in log and "Traceback" not in log


def test_a_rerun_keeps_everything_and_buys_nothing(whole: Path) -> None:
    before, rows = (whole / "run/metrics/summary.json").read_bytes(), bought(whole)
    document = run(whole)
    assert {job["state"] for job in document["jobs"]} == {"kept"}
    assert (whole / "run/metrics/summary.json").read_bytes() == before and bought(whole) == rows


def test_kill_9_at_random_moments_ends_in_the_same_summary(whole: Path, tmp_path: Path) -> None:
    miniature(tmp_path)
    attempts = json.loads((whole / "run/manifest.json").read_text())["attempts"]
    length, moments, kills = attempts[0]["seconds"], random.Random(11), 0
    for _ in range(3):
        process = start(tmp_path)
        time.sleep(moments.uniform(0.5, 0.6 * length))
        if process.poll() is None:  # after two attempts the third may be done already
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    run(tmp_path)
    assert kills > 0
    ended = [each["ended"] for each in json.loads((tmp_path / "run/manifest.json").read_text())["attempts"]]
    assert ended[-1] == "done" and "killed" in ended
    assert summary(tmp_path) == summary(whole)
    assert bought(tmp_path) == bought(whole)
