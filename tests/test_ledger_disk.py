"""ledger: disks that are full or read-only stop a run with one line, and what was stored is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tutelage.ledger import Debt, Ledger

SERVER = str(Path(__file__).parent / "teachers")

# Buys from a real server into a ledger; prints what the command line would say and the exit code.
COLLECT = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
from endpoint_server import Say, completion, problems, serving
from tutelage.errors import TutelageError
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
with serving(lambda number, body: Say(completion("x" * 20_000))) as server:
    try:
        teacher = EndpointTeacher(server.url, "m", concurrency=8)
        found = collect(problems(400), teacher, samples=1, ledger_path=Path(sys.argv[1]))
        print(json.dumps(["", 0, found.bought]))
    except TutelageError as error:
        print(json.dumps([str(error), error.exit_code, 0]))
"""


def collect(path: Path) -> tuple[str, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, str(path), SERVER], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    line, code, bought = json.loads(done.stdout)
    return line, code, bought


def run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    if os.geteuid() != 0 or not run("mount", *options, str(folder)):
        pytest.skip("only root may mount")
    try:
        yield
    finally:
        assert run("umount", "-l", str(folder))


def stored(path: Path) -> list[bytes | None]:
    with Ledger(path) as ledger:
        [teacher] = ledger.teachers()
        keys = [row.key for row in ledger.of_teacher(teacher) if row.answered]
        return [row.raw for row in ledger.get_many(keys)]


@pytest.mark.slow
def test_a_full_disk_ends_a_run_and_keeps_what_was_stored(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    path = small / "l.sqlite"
    with mounted(small, "-t", "tmpfs", "-o", "size=3m", "tmpfs"):
        line, code, _ = collect(path)
        assert (code, "\n" in line) == (3, False)
        assert line.startswith(f"{path}: cannot use the ledger (")
        assert "full" in line
        assert run("mount", "-o", "remount,size=60m", str(small))
        kept = stored(path)
        assert len(kept) > 20
        assert all(json.loads(raw or b"")["choices"][0]["message"]["content"] == "x" * 20_000 for raw in kept)
        # With room again the ledger takes more.
        assert collect(path) == ("", 0, 400)


def test_a_read_only_disk_is_one_line_and_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    path = disk / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.owe([Debt("k", "t", 0, "{}")])
        ledger.store("k", b"paid for")
    before = path.read_bytes()
    with mounted(disk, "--bind", str(disk)):
        assert run("mount", "-o", "remount,bind,ro", str(disk))
        line, code, _ = collect(path)
    assert (code, "\n" in line) == (3, False)
    assert line.startswith(f"{path}: cannot use the ledger (")
    assert path.read_bytes() == before
    with Ledger(path) as ledger:
        row = ledger.get("k")
        assert row is not None
        assert row.raw == b"paid for"


def test_a_ledger_on_a_read_only_disk_cannot_be_made(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "--bind", str(disk)):
        assert run("mount", "-o", "remount,bind,ro", str(disk))
        line, code, _ = collect(disk / "new.sqlite")
    assert (code, "\n" in line) == (3, False)
    assert "new.sqlite: cannot" in line
