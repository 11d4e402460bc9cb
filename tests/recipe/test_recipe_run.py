"""Runs of small recipes with real workers: order, resume, failures, kills."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_stages
import pytest
from rich.console import Console

from tutelage.errors import PartialError, StorageError, UsageError
from tutelage.recipe.load import build_recipe, load_recipe
from tutelage.recipe.lock import run_lock
from tutelage.recipe.run import run_recipe

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _workers_find_the_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def recipe(*overrides: str, **stages: Any) -> Any:
    data = copy.deepcopy(fake_stages.RECIPE)
    data["stages"].update(stages)
    return build_recipe(data, overrides=overrides, kinds=fake_stages.KINDS)


def ran(tmp_path: Path) -> list[str]:
    """Jobs that ran since the last call."""
    file = tmp_path / "ran.txt"
    names = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(names)


ALL = [
    "all",
    "arm-seed0",
    "arm-seed1",
    "next-seed0",
    "next-seed1",
    "other-seed0",
    "other-seed1",
    "page",
    "world",
]


def test_a_recipe_runs_then_runs_nothing_then_only_what_changed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = run_recipe(recipe(), run_dir)
    assert [job.state for job in first.jobs] == ["done"] * 9
    assert ran(tmp_path) == ALL
    total = json.loads((run_dir / "metrics/all.json").read_text())
    # per-seed to per-seed means the same seed; a plain stage gets every seed
    assert total == {
        "0:next.numbers@0": 10 + 2,
        "0:next.numbers@1": 10 + 4 + 4 + 6,
        "1:world.numbers@None": 6,
        "x:arm.numbers@0": 10,
        "x:arm.numbers@1": 14,
    }
    assert first.jobs[-1].metrics["saw"] == [name for name in ALL if name != "page"]
    before = (run_dir / "report.json").read_bytes()

    second = run_recipe(recipe(), run_dir)
    assert {job.state for job in second.jobs} == {"kept"}
    assert ran(tmp_path) == []
    assert second.wall_s > first.wall_s

    run_recipe(recipe("stages.other.plus=5"), run_dir)
    assert ran(tmp_path) == ["all", "next-seed0", "next-seed1", "other-seed0", "other-seed1", "page"]

    run_recipe(recipe(), run_dir)
    assert (run_dir / "report.json").read_bytes() == before


def test_a_change_that_ends_in_the_same_content_stops_there(tmp_path: Path) -> None:
    run_recipe(recipe(), tmp_path / "run")
    ran(tmp_path)
    run_recipe(recipe("stages.world.factor=1.0001"), tmp_path / "run")
    # the page sees the whole run, settings included
    assert ran(tmp_path) == ["page", "world"]


@pytest.mark.parametrize("damage", ["removed", "edited"])
def test_an_output_that_was_removed_or_edited_is_made_again(tmp_path: Path, damage: str) -> None:
    run_dir = tmp_path / "run"
    run_recipe(recipe(), run_dir)
    ran(tmp_path)
    target = run_dir / "data/arm-seed1-numbers.json"
    whole = target.read_text()
    target.unlink() if damage == "removed" else target.write_text("[99]")
    run_recipe(recipe(), run_dir)
    assert ran(tmp_path) == ["arm-seed1"]
    assert target.read_text() == whole


def test_a_users_file_is_an_input_and_its_place_is_not(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_text("[100]")
    run_dir = tmp_path / "run"
    run_recipe(recipe(f"world.source={source}"), run_dir)
    ran(tmp_path)
    (tmp_path / "moved").mkdir()
    source = source.rename(tmp_path / "moved/a.json")
    run_recipe(recipe(f"world.source={source}"), run_dir)
    assert ran(tmp_path) == []
    source.write_text("[200]")
    run_recipe(recipe(f"world.source={source}"), run_dir)
    assert "world" in ran(tmp_path)


def test_the_resolved_recipe_continues_the_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_recipe(recipe("arm.plus=7"), run_dir)
    ran(tmp_path)
    again = load_recipe(run_dir / "recipe.yaml", kinds=fake_stages.KINDS)
    assert {job.state for job in run_recipe(again, run_dir).jobs} == {"kept"}


def test_workers_and_order_do_not_change_results(tmp_path: Path) -> None:
    for workers in (1, 3):
        run_recipe(recipe(f"workers={workers}"), tmp_path / str(workers) / "run")
    one, three = (tmp_path / str(workers) / "run/report.json" for workers in (1, 3))
    assert one.read_bytes() == three.read_bytes()
    assert (tmp_path / "1/run/recipe.yaml").exists()


def test_a_dry_run_touches_nothing_and_tells_what_would_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    plan = run_recipe(recipe(), run_dir, dry_run=True)
    assert {job.state for job in plan.jobs} == {"to run"} and not run_dir.exists()
    run_recipe(recipe(), run_dir)
    listing = sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("*"))
    plan = run_recipe(recipe("next.plus=3"), run_dir, dry_run=True)
    states = {job.id: job.state for job in plan.jobs}
    assert states["arm-seed0"] == "kept" and states["next-seed0"] == states["all"] == "to run"
    assert sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("*")) == listing
    json.dumps(plan.to_json())


def test_only_runs_a_stage_with_what_it_needs_and_again_repeats_it(tmp_path: Path) -> None:
    run_recipe(recipe(), tmp_path / "run", only=["arm"])
    assert ran(tmp_path) == ["arm-seed0", "arm-seed1", "world"]
    run_recipe(recipe(), tmp_path / "run", only=["arm"], again=["arm"])
    assert ran(tmp_path) == ["arm-seed0", "arm-seed1"]


def test_what_libraries_print_goes_to_the_log(tmp_path: Path) -> None:
    run_recipe(recipe(), tmp_path / "run", only=["world"])
    log = (tmp_path / "run/log.txt").read_text()
    assert "a library prints to stdout" in log and "a child prints to stdout" in log


def test_the_manifest_ties_outputs_to_inputs_settings_seed_versions_and_time(tmp_path: Path) -> None:
    run_recipe(recipe(), tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    entry = manifest["jobs"]["next-seed1"]
    world = manifest["jobs"]["arm-seed1"]
    assert entry["inputs"]["numbers:arm.numbers@1"] == world["outputs"]["numbers"]["sha256"]
    assert entry["settings"]["inner"] == {"numbers": "other", "gain": 1.0}
    assert entry["seed"] == 1 and entry["seconds"] >= 0 and entry["versions"]["tutelage"]
    assert entry["metrics"]["threads"] == "1"
    assert manifest["format"] == 1 and [each["ended"] for each in manifest["attempts"]] == ["done"]


FAILURES = [
    ("usage", PartialError, "bad: data.jsonl:17: not JSON; fix the line"),
    ("partial", PartialError, "bad: 3 of 9 requests failed"),
    ("defect", PartialError, "bad: ValueError: the oven is cold (details in "),
    ("full", StorageError, "bad: cannot write (No space left on device)"),
    ("signal", PartialError, "bad: its worker was killed by signal SIGSEGV (details in "),
    ("exit", PartialError, "bad: its worker ended with status 7"),
    ("nothing", PartialError, "bad: RuntimeError: the stage did not write its output 'numbers'"),
    ("nan", PartialError, "bad: ValueError: Out of range float values are not JSON compliant"),
]


@pytest.mark.parametrize(("what", "kind", "message"), FAILURES, ids=[each[0] for each in FAILURES])
def test_a_failure_is_one_line_and_keeps_the_rest(
    tmp_path: Path, what: str, kind: type[Exception], message: str
) -> None:
    data = {
        "name": "bad",
        "stages": {
            "world": {"kind": "make"},
            "bad": {"kind": "mischief", "numbers": "world", "what": what},
            "hangs": {"kind": "add", "numbers": "bad"},
        },
    }
    with pytest.raises(kind) as caught:
        run_recipe(build_recipe(data, kinds=fake_stages.KINDS), tmp_path / "run")
    assert type(caught.value) is kind
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert "1 that need it did not run" in str(caught.value)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert list(manifest["jobs"]) == ["world"] and manifest["attempts"][-1]["ended"] == "failed"
    assert ("Traceback" in (tmp_path / "run/log.txt").read_text()) == (what not in ("signal", "exit"))


def test_bad_input_with_nothing_saved_is_a_usage_error(tmp_path: Path) -> None:
    data = {"name": "bad", "stages": {"bad": {"kind": "mischief", "what": "usage"}}}
    with pytest.raises(UsageError) as caught:
        run_recipe(build_recipe(data, kinds=fake_stages.KINDS), tmp_path / "run")
    assert caught.value.exit_code == 2


def test_jobs_that_do_not_need_the_failed_one_go_on(tmp_path: Path) -> None:
    bad = {"kind": "mischief", "what": "defect"}
    with pytest.raises(PartialError, match="1 that need it did not run"):
        run_recipe(recipe("workers=1", bad=bad), tmp_path / "run")
    # all but the page, which sees every job
    assert ran(tmp_path) == sorted({*ALL, "bad"} - {"page"})


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = _start(tmp_path, {"kind": "add", "numbers": "world", "sleep_s": 20}, wait_for="slow-seed0")
    try:
        with pytest.raises(UsageError, match=rf"pid {first.pid}, since \d{{4}}-\d\d-\d\dT"):
            run_recipe(recipe("name=slow"), run_dir)
    finally:
        first.kill()
        first.wait()


def test_ctrl_c_keeps_finished_work_and_says_how_to_continue(tmp_path: Path) -> None:
    process = _start(tmp_path, {"kind": "add", "numbers": "world", "sleep_s": 20}, wait_for="slow-seed0")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "1 of 3 jobs are finished and kept" in errors and "run the same command again" in errors
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["attempts"][-1]["ended"] == "interrupted"


@pytest.mark.slow
def test_kill_9_leaves_no_orphan_and_the_same_command_continues(tmp_path: Path) -> None:
    process = _start(tmp_path, {"kind": "mischief", "what": "orphans"}, wait_for="slow")
    pids = tmp_path / "pids.txt"
    _until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    worker, child = map(int, pids.read_text().split())
    time.sleep(1.1)  # a heartbeat
    process.kill()
    process.wait()
    _until(lambda: not _alive(worker))
    os.kill(child, signal.SIGKILL)  # a stage's own child is the stage's to guard (stdin, or a timeout)
    data = copy.deepcopy(fake_stages.RECIPE) | {"name": "slow"}
    run_recipe(build_recipe(data, kinds=fake_stages.KINDS), tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert [each["ended"] for each in manifest["attempts"]] == ["killed", "done"]
    assert manifest["attempts"][0]["seconds"] > 0.5
    assert manifest["wall_s"] == pytest.approx(
        sum(each["seconds"] for each in manifest["attempts"]), abs=0.01
    )


def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the log, the manifest and outputs hit it."""
    slow = {"kind": "make", "count": 2000}
    process = _start(tmp_path, slow, wait_for="world", before="resource.setrlimit(1, (6000, 6000))\n")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "slow-numbers.json: cannot write (File too large)" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    data = {"name": "slow", "seeds": [0, 1], "stages": {"world": {"kind": "make"}, "slow": slow}}
    again = run_recipe(build_recipe(data, kinds=fake_stages.KINDS), tmp_path / "run")
    assert [job.state for job in again.jobs] == ["kept", "done"]


@pytest.mark.slow
def test_kill_9_at_random_moments_ends_in_the_same_results(tmp_path: Path) -> None:
    stages = {**fake_stages.RECIPE["stages"]}
    for name in ("arm", "other", "next"):
        stages[name] = {**stages[name], "sleep_s": 0.3}
    data = {**fake_stages.RECIPE, "stages": stages}
    recipe = build_recipe(data, kinds=fake_stages.KINDS)
    run_recipe(recipe, tmp_path / "whole/run")
    (tmp_path / "killed").mkdir()
    moments = random.Random(7)
    kills = 0
    while kills < 10:
        process = _spawn(data, tmp_path / "killed/run")
        time.sleep(moments.uniform(0.2, 1.2))
        kills += process.poll() is None
        process.kill()
        process.communicate()
        if kills % 3 == 0 and (tmp_path / "killed/run").exists():
            with run_lock(tmp_path / "killed/run", wait_s=30):  # its workers, too, have ended
                shutil.rmtree(tmp_path / "killed/run")
    run_recipe(recipe, tmp_path / "killed/run")
    for path in ("report.json", "metrics/all.json", "data/next-seed1-numbers.json"):
        assert (tmp_path / "killed/run" / path).read_bytes() == (tmp_path / "whole/run" / path).read_bytes()


@pytest.mark.slow
def test_a_terminal_gets_no_control_codes_from_a_job(tmp_path: Path) -> None:
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=100)
        run_recipe(recipe("arm.sleep_s=0.6"), tmp_path / str(terminal) / "run", console=console)
        assert "\x1b[31m" not in text.getvalue()
        assert "arm-seed0 done in" in text.getvalue() and "(9/9" in text.getvalue()
        assert ("[bold]" in text.getvalue()) == terminal


def _spawn(data: dict[str, Any], run_dir: Path, before: str = "") -> subprocess.Popen[str]:
    script = (
        "import json, resource, sys, fake_stages\n"
        "from pathlib import Path\n"
        "from tutelage.errors import TutelageError\n"
        "from tutelage.recipe.load import build_recipe\n"
        "from tutelage.recipe.run import run_recipe\n"
        f"{before}"
        "try:\n"
        "    run_recipe(build_recipe(json.loads(sys.argv[1]), kinds=fake_stages.KINDS), Path(sys.argv[2]))\n"
        "except TutelageError as error:\n"
        "    print(error, file=sys.stderr)\n"
        "    sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", script, json.dumps(data), str(run_dir)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _start(tmp_path: Path, slow: dict[str, Any], wait_for: str, before: str = "") -> subprocess.Popen[str]:
    """A run in a process of its own, returned when the job `wait_for` has started."""
    data = {"name": "slow", "seeds": [0, 1], "stages": {"world": {"kind": "make"}, "slow": slow}}
    process = _spawn(data, tmp_path / "run", before)

    def started() -> bool:
        ran_file = tmp_path / "ran.txt"
        return ran_file.exists() and wait_for in ran_file.read_text().split()

    _until(lambda: started() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def _until(condition: Any, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
