"""The local engine, and what the seam promises without a cluster."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage import engines
from tutelage.engines import spread
from tutelage.errors import PartialError, UsageError

opened: list[str] = []


@contextmanager
def doubling() -> Iterator[Callable[[int], int]]:
    opened.append("open")
    yield lambda number: 2 * number
    opened.append("closed")


@pytest.mark.parametrize(("pieces", "workers"), [([3, 1, 2], 1), ([3], 5), ([3, 1], 0)])
def test_one_worker_works_in_the_caller_s_thread(pieces: list[int], workers: int) -> None:
    opened.clear()
    assert list(spread(in_thread, pieces, engine="local", workers=workers)) == ["MainThread"] * len(pieces)
    assert opened == ["open", "closed"]


@contextmanager
def in_thread() -> Iterator[Callable[[int], str]]:
    opened.append("open")
    yield lambda number: threading.current_thread().name
    opened.append("closed")


def test_threads_give_results_in_the_order_of_the_pieces_and_each_opens_once() -> None:
    opened.clear()
    barrier = threading.Barrier(3, timeout=10)

    @contextmanager
    def late() -> Iterator[Callable[[int], tuple[int, str]]]:
        opened.append("open")

        def work(number: int) -> tuple[int, str]:
            if number < 3:
                barrier.wait()  # three at once, or none comes through
                time.sleep(0.02 * (3 - number))  # the first is the last to be done
            return number, threading.current_thread().name

        yield work
        opened.append("closed")

    found = list(spread(late, range(40), engine="local", workers=3))
    assert [number for number, _ in found] == list(range(40))
    assert len({name for _, name in found}) == 3
    assert opened == ["open"] * 3 + ["closed"] * 3


def test_no_more_threads_than_pieces_and_no_piece_far_ahead() -> None:
    begun: list[int] = []

    @contextmanager
    def noting() -> Iterator[Callable[[int], int]]:
        def work(number: int) -> int:
            begun.append(number)
            return number

        yield work

    results = spread(noting, range(100), engine="local", workers=2)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(begun) <= 5  # twice the workers, and the one that was taken
    assert list(results) == list(range(1, 100)) and sorted(begun) == list(range(100))
    assert len(set(spread(in_thread, [1, 2], engine="local", workers=9))) <= 2


@contextmanager
def seven_is_bad() -> Iterator[Callable[[int], int]]:
    def work(number: int) -> int:
        if number == 7:
            raise UsageError("row 7: bad")
        return number

    opened.append("open")
    try:
        yield work
    finally:
        opened.append("closed")


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_arrives_as_it_was_raised_and_everything_is_closed(workers: int) -> None:
    opened.clear()
    results = spread(seven_is_bad, range(100), engine="local", workers=workers)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(UsageError, match=r"^row 7: bad$"):
        next(results)
    assert 1 <= opened.count("open") == opened.count("closed") <= workers
    assert not [each for each in threading.enumerate() if each.name.startswith("tutelage")]


def test_a_caller_that_stops_early_ends_the_threads() -> None:
    opened.clear()
    results = spread(seven_is_bad, range(1000), engine="local", workers=3)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert 1 <= opened.count("open") == opened.count("closed") <= 3
    assert not [each for each in threading.enumerate() if each.name.startswith("tutelage")]


def test_what_cannot_be_opened_in_a_thread_is_said() -> None:
    @contextmanager
    def closed() -> Iterator[Callable[[int], int]]:
        raise UsageError("the file is gone")
        yield lambda number: number

    with pytest.raises(UsageError, match="the file is gone"):
        list(spread(closed, [1, 2, 3], engine="local", workers=2))


@given(st.lists(st.integers()), st.integers(1, 5))
def test_any_number_of_threads_gives_what_one_gives(pieces: list[int], workers: int) -> None:
    expected = [2 * piece for piece in pieces]
    assert list(spread(doubling, pieces, engine="local", workers=workers)) == expected


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


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_worker_that_dies_is_replaced(ray_cluster: Path, tmp_path: Path) -> None:
    """One piece kills its worker at the first try, another one at every try."""
    note = str(tmp_path / "died")

    @contextmanager
    def deadly() -> Iterator[Callable[[int], tuple[int, int]]]:
        def work(number: int) -> tuple[int, int]:
            if number == 99 or (number == 3 and not Path(note).exists()):
                Path(note).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return number, os.getpid()

        yield work

    found = list(spread(deadly, range(8), engine="ray", workers=2))
    assert [number for number, _ in found] == list(range(8))
    assert dict(found)[3] != int(Path(note).read_text())
    with pytest.raises(PartialError, match=r"piece 1: its worker process died 4 times"):
        list(spread(deadly, [1, 99, 2], engine="ray", workers=2))
