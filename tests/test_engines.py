"""The local engine, and what the seam promises without a cluster."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tutelage import engines
from tutelage.engines import spread
from tutelage.errors import PartialError, UsageError

opened: list[str] = []


@contextmanager
def doubling() -> Iterator[Callable[[int], int]]:
    opened.append("open")
    yield lambda number: 2 * number
    opened.append("closed")


def test_local_results_come_in_the_order_of_the_pieces() -> None:
    opened.clear()
    assert list(spread(doubling, [3, 1, 2], engine="local", workers=2)) == [6, 2, 4]
    assert opened == ["open", "closed"]


def test_nothing_to_do_needs_no_ray() -> None:
    code = (
        "import sys, contextlib; from tutelage.engines import spread\n"
        "assert list(spread(contextlib.nullcontext, [], engine='ray', workers=2)) == []\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_missing_ray_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'tutelage\[ray\]'"):
        list(spread(doubling, [1], engine="ray", workers=1))


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line() -> None:
    code = (
        "import contextlib; from tutelage.engines import spread; from tutelage.errors import UsageError\n"
        "try: list(spread(contextlib.nullcontext, [1], engine='ray', workers=1))\n"
        "except UsageError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=True)
    assert done.stdout.startswith("no Ray cluster at 127.0.0.1:9: ")
    assert "refused" in done.stdout and done.stdout.count("\n") == 1


class Worker(engines._Worker):
    """A worker whose piece was begun so many times."""

    begun = 1

    def _begun(self, number: int) -> int:
        return self.begun


@contextmanager
def refusing() -> Iterator[Callable[[int], int]]:
    def refuse(number: int) -> int:
        raise UsageError(f"field {number}: bad")

    yield refuse


def worked(worker: engines._Worker, piece: Any) -> tuple[Any, Any]:
    pickled = pa.array([pickle.dumps(piece)], pa.large_binary())
    found: tuple[Any, Any] = pickle.loads(
        worker(pa.table({"number": [7], "piece": pickled}))["result"][0].as_py()
    )
    return found


def test_a_worker_gives_back_results_and_errors_that_people_can_act_on() -> None:
    pytest.importorskip("ray")
    assert worked(Worker(doubling, None), 21) == (None, 42)
    error, nothing = worked(Worker(refusing, None), 3)
    assert isinstance(error, UsageError) and str(error) == "field 3: bad" and nothing is None


def test_a_piece_that_takes_every_worker_down_ends_the_run() -> None:
    pytest.importorskip("ray")
    worker = Worker(doubling, None)
    worker.begun = engines.TRIES
    assert worked(worker, 1) == (None, 2)
    worker.begun += 1
    error, _ = worked(worker, 1)
    assert isinstance(error, PartialError) and "died 4 times" in str(error)


def test_a_cluster_that_was_killed_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert not engines._forgotten()
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        note.write_text(f"127.0.0.1:{listening.getsockname()[1]}\n")
        assert not engines._forgotten()
    assert engines._forgotten()
