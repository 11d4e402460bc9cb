"""Bad input through the whole program, real stages included: one clear line, the right code, nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RECIPE = """\
name: r
workers: 1
stages:
  questions: {kind: problems, train: q.jsonl, hold_out: 3}
  solutions:
    kind: collect
    problems: questions.train
    teacher: {kind: human}
  judged: {kind: verify, problems: questions.train, traces: solutions}
"""
LAB = """\
name: lab
workers: 1
stages:
  world: {kind: lab-problems, train: 1500, test: 40}
  detailed: {kind: collect, problems: world.train, samples: 2, teacher: {kind: lab, style: detailed}}
"""


def start(*arguments: str, folder: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tutelage", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        preexec_fn=before,
    )


def call(
    *arguments: str, folder: Path, before: Callable[[], None] | None = None
) -> tuple[int, list[str], str]:
    """Exit code, lines on stderr, and stdout."""
    process = start(*arguments, folder=folder, before=before)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, err.splitlines(), out


def refused(folder: Path, *arguments: str, code: int = 2) -> str:
    """The one line of a command that fails."""
    ended, lines, out = call(*arguments, folder=folder)
    errors = [line for line in lines if line.startswith("error: ")]
    assert ended == code and out == "", lines
    assert len(errors) == 1 and lines[-1] == errors[0]
    return errors[0]


def rows(count: int) -> list[str]:
    return [
        json.dumps({"question": f"{n} + {n}?", "answer": str(2 * n), "solution": "Twice."})
        for n in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "q.jsonl").write_text("\n".join(rows(30)) + "\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


@pytest.mark.slow
def test_the_recipe_without_a_mistake_runs(folder: Path) -> None:
    code, _, out = call("run", "r.yaml", folder=folder)
    assert code == 0 and out.startswith("3 jobs finished")


RECIPE_MISTAKES = {
    "an unknown key": ("hold_out: 3", "hold_outs: 3", "r.yaml:4: stages.questions.hold_outs: unknown key"),
    "a wrong type": ("hold_out: 3", "hold_out: many", "r.yaml:4: stages.questions.hold_out: "),
    "an unknown kind": ("kind: verify", "kind: verifi", "r.yaml:9: stages.judged.kind: unknown stage kind"),
    "a missing input": ("traces: solutions", "traces: sol", "r.yaml:9: stages.judged.traces: no stage 'sol'"),
    "an input of another type": (
        "traces: solutions",
        "traces: questions.train",
        "r.yaml:9: stages.judged.traces: questions.train gives problems",
    ),
    "a missing file": ("train: q.jsonl", "train: ./gone.jsonl", "r.yaml:4: stages.questions.train: no such"),
    "a missing checker": (
        "hold_out: 3",
        "hold_out: 3, checker: gone.py:check",
        "r.yaml:4: stages.questions.checker: no such file",
    ),
    "a key of a teacher": ("kind: human", "kind: human, slip: 1", "r.yaml:8: stages.solutions.teacher.slip"),
    "broken YAML": ("name: r", "name: [r", "r.yaml:"),
}


@pytest.mark.parametrize("mistake", RECIPE_MISTAKES)
def test_a_mistake_in_a_recipe_names_file_line_and_field(folder: Path, mistake: str) -> None:
    right, wrong, message = RECIPE_MISTAKES[mistake]
    assert right in RECIPE
    (folder / "r.yaml").write_text(RECIPE.replace(right, wrong))
    assert refused(folder, "run", "r.yaml").startswith(f"error: {message}")
    assert not (folder / "runs").exists()


def damaged(number: int, text: str) -> list[str]:
    lines = rows(30)
    lines[number - 1] = text
    return lines


DATA_MISTAKES = {
    "a broken line 17": (damaged(17, '{"question": "17 + 17?", "ans'), "q.jsonl line 17: not JSON"),
    "a question that is no text": (damaged(17, '{"question": 5, "answer": "5"}'), "q.jsonl line 17"),
    "no question column": (['{"frage": "1?", "answer": "1"}'] * 5, "q.jsonl: no question column"),
    "no answer column": (['{"question": "1?", "antwort": "1"}'] * 5, "q.jsonl: no answer column"),
    "an empty data set": ([], "q.jsonl: the data set is empty"),
    "too little to hold out": (rows(3), "hold_out 3 leaves no training problem of 3"),
}


@pytest.mark.parametrize("mistake", DATA_MISTAKES)
def test_a_mistake_in_the_data_names_file_and_line(folder: Path, mistake: str) -> None:
    lines, message = DATA_MISTAKES[mistake]
    (folder / "q.jsonl").write_text("".join(line + "\n" for line in lines))
    line = refused(folder, "run", "r.yaml")
    assert line.startswith("error: questions: ") and message in line


@pytest.mark.slow
def test_once_mended_the_same_command_goes_on(folder: Path) -> None:
    (folder / "q.jsonl").write_text("\n".join(damaged(17, "{")))
    assert "q.jsonl line 17" in refused(folder, "run", "r.yaml")
    (folder / "q.jsonl").write_text("\n".join(rows(30)))
    assert call("run", "r.yaml", folder=folder)[0] == 0


def test_a_named_column_that_is_missing_lists_those_that_are_there(folder: Path) -> None:
    line = refused(folder, "run", "r.yaml", "--set", "questions.columns.question=frage")
    assert "no column 'frage' for question; columns there: question, answer, solution" in line


@pytest.mark.slow
def test_bad_data_after_finished_work_is_exit_code_3_and_keeps_it(folder: Path) -> None:
    (folder / "r.yaml").write_text(RECIPE + '  bare: {kind: student, source: "models/none/x"}\n')
    line = refused(folder, "run", "r.yaml", code=3)
    assert "bare: models/none/x: no such model folder" in line
    (folder / "r.yaml").write_text(RECIPE)
    code, _, out = call("run", "r.yaml", folder=folder)
    assert code == 0 and out.startswith("3 jobs finished (3 kept)")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./models/none", "r.yaml:3: stages.s.source: no such file or folder: ./models/none"),
        pytest.param("./q.jsonl", "q.jsonl: no such model folder", marks=pytest.mark.slow),
        pytest.param("gguf:nothing", "not a packaged model; known: gguf:llm", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_is_not_there_is_named(folder: Path, source: str, message: str) -> None:
    (folder / "r.yaml").write_text(f'name: r\nstages: {{s: {{kind: student,\n  source: "{source}"}}}}\n')
    assert message in refused(folder, "run", "r.yaml")


@pytest.mark.slow
def test_a_run_folder_of_an_older_version_is_refused_and_left_as_it_is(folder: Path) -> None:
    assert call("run", "r.yaml", "--run-dir", "out", folder=folder)[0] == 0
    manifest = folder / "out/manifest.json"
    content = {**json.loads(manifest.read_text()), "format": 0, "versions": {"tutelage": "0.0.1"}}
    manifest.write_text(json.dumps(content))
    before = sorted((path, path.stat().st_mtime_ns) for path in (folder / "out").rglob("*"))
    line = refused(folder, "run", "r.yaml", "--run-dir", "out")
    assert "format 0, written by tutelage 0.0.1" in line and "--run-dir" in line
    assert sorted((path, path.stat().st_mtime_ns) for path in (folder / "out").rglob("*")) == before


@pytest.mark.slow
def test_the_second_process_on_a_run_folder_says_who_holds_it(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a teacher that never replies
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        teacher = f'{{kind: endpoint, base_url: "{url}", model: m}}'
        (folder / "r.yaml").write_text(RECIPE.replace("{kind: human}", teacher))
        first = start("run", "r.yaml", folder=folder)
        try:
            silent.settimeout(60)
            silent.accept()[0].close()
            line = refused(folder, "run", "r.yaml")
            assert f"another tutelage process holds this run folder (pid {first.pid}, since 20" in line
        finally:
            first.kill()
            first.communicate()
    (folder / "r.yaml").write_text(RECIPE)
    assert call("run", "r.yaml", folder=folder)[0] == 0  # the lock went with its holder


@contextlib.contextmanager
def small_disk(at: Path) -> Iterator[tuple[Callable[[], None] | None, Callable[[], None]]]:
    """A disk at `at` with room for little: a small file system where we may mount one, else a limit on the
    size of files. Gives what the program does first, and a function that makes room."""
    at.mkdir()
    ballast = at / "ballast"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(at)], capture_output=True, check=False
    )
    if mounted.returncode:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)), lambda: None
        return
    try:
        ballast.write_bytes(b"\0" * (24 * 2**20 - 500_000))
        yield None, ballast.unlink
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as (before, make_room):
        (tmp_path / "r.yaml").write_text(LAB)
        arguments = ("run", "r.yaml", "--run-dir", "disk/run")
        code, lines, out = call(*arguments, folder=tmp_path, before=before)
        assert code == 3 and out == "", lines
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert "cannot write" in lines[-1] or "full" in lines[-1], lines
        make_room()
        done = json.loads(call(*arguments, "--json", folder=tmp_path)[2])
        states = {job["id"]: job["state"] for job in done["jobs"]}
        assert states == {"world": "kept", "detailed": "done"}
        assert done["jobs"][1]["metrics"]["traces"] == 3000
        assert done["jobs"][1]["metrics"]["reused"] + done["jobs"][1]["metrics"]["bought"] == 3000
