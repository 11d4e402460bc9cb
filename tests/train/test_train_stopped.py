"""A stage that is killed with -9, or whose disk is full, goes on to the same losses and weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tutelage.train.journal import read_log

# Trains a student of a few thousand weights; says each step; the last line is what a person would read, or a
# fingerprint of the weights. From step argv[4] on no file may grow over argv[5] bytes: a full disk.
TRAIN = """
import hashlib, json, resource, sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/train"]
from loopstudent import loop_student
from tinymodel import tiny_student
from tutelage.errors import TutelageError
from tutelage.records import Problem, Trace
from tutelage.train.examples import build_examples, sized
from tutelage.train.settings import Depth, Keep, Lora, Optimiser, Ramp
from tutelage.train.sft import train_sft
folder, way, full_at, room = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
student = loop_student() if way == "loops" else tiny_student()
problems = {f"p{n}": Problem(f"p{n}", f"{n}?") for n in range(14)}
traces = [Trace(f"t{n}", f"p{n}", 0, "m", f"{n}" + "!" * (n % 5)) for n in range(14)]
rows = build_examples(student.tokenizer, student.template, problems, traces).examples
def heard(done, total, note):
    print(done, flush=True)
    if done == full_at:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
lora = Lora(rank=4, dropout=0.2) if way == "lora" else None
settings = Optimiser(30, batch=4, warmup_steps=3, accumulate=2, lora=lora)
if way == "loops":
    settings = replace(settings, kind="muon", depth=Depth(ramp=Ramp(1, 0.5)), lengths=Ramp(20, 0.5))
    rows = sized(rows, {}, "tokens")
try:
    result = train_sft(student, rows, settings, keep=Keep(folder, "m", every=10), progress=heard,
                       packed=60 if way == "packed" else None)
    weights = b"".join(each.numpy().tobytes() for each in student.model.state_dict().values())
    print(json.dumps([hashlib.sha256(weights).hexdigest(), result.tokens_seen, result.tokens_learned]))
except TutelageError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def start(folder: Path, way: str, full_at: int = 0, room: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            TRAIN,
            str(Path(__file__).parents[1]),
            str(folder),
            way,
            str(full_at),
            str(room),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def run(folder: Path, way: str, full_at: int = 0, room: int = 0) -> tuple[list[int], list[object]]:
    """The steps that were taken, and the last line."""
    out, err = start(folder, way, full_at, room).communicate(timeout=300)
    *steps, last = out.splitlines()
    assert last.startswith("["), err[-3000:]
    return [int(step) for step in steps], json.loads(last)


def kill_after(folder: Path, way: str, step: int) -> None:
    process = start(folder, way)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(step):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[object]]]:
    """The folder and the last line of an undisturbed run of one way."""

    @cache
    def undisturbed(way: str) -> tuple[Path, list[object]]:
        folder = tmp_path_factory.mktemp(way) / "work"
        return folder, run(folder, way)[1]

    return undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("way", "step"), [("full", 13), ("lora", 17), ("packed", 20), ("loops", 14)])
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(
    tmp_path: Path, undisturbed: Callable[[str], tuple[Path, list[object]]], way: str, step: int
) -> None:
    folder, whole = undisturbed(way)
    kill_after(tmp_path / "killed", way, step)
    steps, again = run(tmp_path / "killed", way)
    # Step 20 writes a checkpoint when it is done: the kill comes before it is whole, or just after.
    assert steps[0] in (11, 21) and steps[-1] == 30
    assert again == whole
    assert read_log(tmp_path / "killed/log.jsonl") == read_log(folder / "log.jsonl")
    assert len(read_log(folder / "log.jsonl")) == 30


@pytest.mark.slow
def test_a_full_disk_ends_a_stage_in_one_line_and_the_last_whole_checkpoint_stays(
    tmp_path: Path, undisturbed: Callable[[str], tuple[Path, list[object]]]
) -> None:
    folder, whole = undisturbed("full")
    # Room for the log, not for the weights of the second checkpoint.
    steps, (kind, line) = run(tmp_path / "full", "full", full_at=15, room=20_000)
    assert steps[-1] == 20 and kind == "StorageError"
    assert isinstance(line, str) and "\n" not in line
    assert line.startswith(f"{tmp_path / 'full'}: a checkpoint cannot be written")
    assert "free some space and run the same command again" in line
    steps, again = run(tmp_path / "full", "full")
    assert steps[0] == 11 and again == whole
    assert read_log(tmp_path / "full/log.jsonl") == read_log(folder / "log.jsonl")
