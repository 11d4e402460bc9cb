"""A collecting process is killed or interrupted; what it had paid for is not bought again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Say, completion, problems, serving

from tutelage.ledger import Ledger
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher

COLLECT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
from tutelage.records import Problem
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
problems = [Problem(id=f"p{n}", question=f"What is {n}?", gold=str(n)) for n in range(int(sys.argv[3]))]
teacher = EndpointTeacher(sys.argv[1], "m", concurrency=8)
result = collect(problems, teacher, samples=2, ledger_path=Path(sys.argv[2]))
print(result.bought, flush=True)
"""
COUNT = 30


def slowly(number: int, body: dict[str, Any]) -> Say:
    return Say(completion(body["messages"][0]["content"]), seconds=0.02)


def start(url: str, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", COLLECT, url, str(path), str(COUNT)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stored(path: Path) -> Counter[str]:
    """How often each request body has a stored reply."""
    with Ledger(path) as ledger:
        assert ledger.totals().states.keys() <= {"done", "owed"}
        raw = ledger._db.execute("SELECT request FROM replies WHERE raw IS NOT NULL").fetchall()
    return Counter(request for (request,) in raw)


@pytest.mark.parametrize(("how", "after"), [(signal.SIGKILL, 15), (signal.SIGINT, 40)])
def test_no_stored_reply_is_bought_again(tmp_path: Path, how: signal.Signals, after: int) -> None:
    path = tmp_path / "l.sqlite"
    with serving(slowly) as server:
        child = start(server.url, path)
        deadline = time.monotonic() + 30
        while len(server.bodies) < after and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(how)
        _, errors = child.communicate(timeout=10)
        assert child.returncode == (-9 if how == signal.SIGKILL else -2), errors
        time.sleep(0.1)  # what was in flight has reached the server by now
        asked = [json.dumps(body) for body in server.bodies]
        kept = stored(path)
        assert sum(kept.values()) >= after - 8
        assert len(asked) < COUNT * 2

        teacher = EndpointTeacher(server.url, "m", concurrency=8)
        result = collect(problems(COUNT), teacher, samples=2, ledger_path=path)
        again = Counter(json.dumps(body) for body in server.bodies[len(asked) :])
    assert len(result.traces) == COUNT * 2
    assert result.reused == sum(kept.values())
    assert result.bought == COUNT * 2 - sum(kept.values())
    # Two samples of a problem have the same body, so each body may be asked twice in all, less what was kept.
    assert all(again[body] == 2 - kept[body] for body in set(again) | set(kept))
    # Only what was in flight at the kill was asked twice.
    assert len(server.bodies) - COUNT * 2 <= 8


def test_two_processes_share_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with serving(slowly) as server:
        children = [start(server.url, path) for _ in range(2)]
        outputs = [child.communicate(timeout=60) for child in children]
        assert [child.returncode for child in children] == [0, 0], outputs
        assert len(server.bodies) == COUNT * 2
    assert sum(int(out) for out, _ in outputs) == COUNT * 2
