"""The command line as a person meets it: exit codes, one-line errors, one JSON document."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FAKES = Path(__file__).parent.parent / "recipe"
RECIPE = """\
name: numbers
seeds: [0, 1]
stages:
  world: {kind: make, count: 4}
  arm: {kind: add, numbers: world, plus: 1, sleep_s: 0}
"""
# The command line with the fake stages in place of the real ones.
START = (
    "import sys, types, fake_stages\n"
    "stages = types.ModuleType('tutelage.recipe.stages'); stages.KINDS = fake_stages.KINDS\n"
    "sys.modules['tutelage.recipe.stages'] = stages\n"
    "from tutelage.cli import main\n"
    "main()\n"
)


def call(*arguments: str, folder: Path) -> tuple[int, str, str]:
    process = start(*arguments, folder=folder)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(FAKES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def test_run_prints_progress_on_stderr_and_one_document_on_stdout(folder: Path) -> None:
    code, out, err = call("run", "r.yaml", "--json", folder=folder)
    assert code == 0
    document = json.loads(out)
    assert [job["state"] for job in document["jobs"]] == ["done"] * 3
    assert "arm-seed1 done in" in err and "left" in err
    assert (folder / "runs/numbers/manifest.json").exists()
    code, out, _ = call("run", "r.yaml", folder=folder)
    assert code == 0 and out.startswith("3 jobs finished (3 kept)")


def test_dry_run_prints_the_resolved_plan(folder: Path) -> None:
    code, out, _ = call("run", "r.yaml", "--dry-run", "--set", "arm.plus=9", folder=folder)
    assert code == 0 and "plus: 9" in out and "arm-seed1" in out and "to run" in out
    assert not (folder / "runs").exists()
    code, out, _ = call("run", "r.yaml", "--dry-run", "--json", folder=folder)
    assert json.loads(out)["recipe"]["stages"]["arm"]["plus"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "tutelage run: Missing argument"),
        (["run", "gone.yaml"], "gone.yaml: no such recipe file"),
        (["run", "r.yaml", "--sett", "x"], "tutelage run: No such option: --sett"),
        (["run", "r.yaml", "--set", "arm.pluss=1"], "--set stages.arm.pluss: unknown key; did you mean"),
        (["run", "r.yaml", "--only", "arms"], "r.yaml: no stage 'arms'; did you mean 'arm'?"),
        (["rnu"], "tutelage: No such command 'rnu'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments, "--json", folder=folder)
    assert code == 2 and json.loads(out)["error"]["message"].startswith(message)
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert json.loads(out)["error"]["exit_code"] == 2


def test_without_json_an_error_leaves_stdout_empty(folder: Path) -> None:
    code, out, err = call("run", "gone.yaml", folder=folder)
    assert code == 2 and out == "" and err.count("\n") == 1


def test_a_failed_job_is_exit_code_3_and_a_lone_bad_input_2(folder: Path) -> None:
    text = RECIPE + "  bad: {kind: mischief, what: usage}\n"
    (folder / "bad.yaml").write_text(text)
    code, out, err = call("run", "bad.yaml", "--json", folder=folder)
    assert code == 3 and "data.jsonl:17" in json.loads(out)["error"]["message"]
    assert "Traceback" not in err
    code, *_ = call("run", "bad.yaml", "--only", "bad", "--run-dir", "other", folder=folder)
    assert code == 2


def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(folder: Path) -> None:
    process = start("run", "r.yaml", "--set", "arm.sleep_s=30", "--json", folder=folder)
    deadline = time.monotonic() + 20
    while not (folder / "runs/ran.txt").exists() or "arm" not in (folder / "runs/ran.txt").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(out)["error"]["exit_code"] == 130
    assert "run the same command again" in err and "Traceback" not in err


def test_no_verb_prints_help_and_version_prints_one_line(folder: Path) -> None:
    code, out, _ = call(folder=folder)
    assert code == 2 and "doctor" in out
    code, out, _ = call("--version", folder=folder)
    assert code == 0 and out.startswith("tutelage 0.")


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    process = start("run", "--help", folder=folder)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert "Traceback" not in err


def test_doctor_is_honest(folder: Path) -> None:
    code, out, _ = call("doctor", "--json", folder=folder)
    document = json.loads(out)
    checks = {check["name"]: check for check in document["checks"]}
    assert code == 0 and {"cores", "memory", "gpu", "sandbox", "training", "models", "data"} <= set(checks)
    assert checks["data"]["state"] == "no"
    (folder / "mine.jsonl").write_text("{}")
    text = call("doctor", folder=folder)[1]
    assert "mine.jsonl" in text and "What to type next" in text
