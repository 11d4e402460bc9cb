"""The local engine, and what the seam promises without a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tutelage.engines import spread
from tutelage.errors import UsageError

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
