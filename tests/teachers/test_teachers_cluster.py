"""Collect and verify on a Ray cluster of two nodes, with workers killed in the middle."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Say, Server, completion, problems, serving

from tutelage.records import Trace, Verdict, by_id, read_records, write_records
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.shard_files import shard_folder
from tutelage.teachers.shards import collect_sharded
from tutelage.verify.batches import judge_sharded
from tutelage.verify.cascade import judge

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


def holder(path: Path) -> int | None:
    """The process that has the shard open: the one that holds a lock on its file."""
    node = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "POSIX" and fields[5].rpartition(":")[2] == str(node):
            return int(fields[4])
    return None


def slowly(number: int, body: dict[str, Any]) -> Say:
    reply = completion(body["messages"][-1]["content"], reasoning_content="hm")
    return Say(reply, seconds=0.05)


def question(body: dict[str, Any]) -> str:
    text: str = body["messages"][-1]["content"]
    return text


def kill_one(server: Server, path: Path, after: int, killed: list[tuple[int, int]]) -> None:
    """Kill the owner of a shard once the server was asked `after` times; notes who and when."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = sorted(shard_folder(path).glob("*.sqlite")) if len(server.bodies) >= after else []
        pids = [pid for each in found if (pid := holder(each)) not in (None, os.getpid())]
        if pids and pids[0] is not None:
            os.kill(pids[0], signal.SIGKILL)
            killed.append((pids[0], len(server.bodies)))
            return
        time.sleep(0.01)


def test_a_killed_worker_loses_nothing_and_buys_nothing_twice(
    ray_cluster: Path, tmp_path: Path, capfd: Any
) -> None:
    path = tmp_path / "l.sqlite"
    told: list[tuple[int, int, str]] = []
    with serving(slowly) as server:
        teacher = EndpointTeacher(server.url, "m", concurrency=8, key_env="CLUSTER_TEST_KEY")
        killed: list[tuple[int, int]] = []
        thread = threading.Thread(target=kill_one, args=(server, path, 60, killed))
        thread.start()
        result = collect_sharded(
            problems(300),
            teacher,
            samples=1,
            ledger_path=path,
            workers=2,
            progress=lambda done, total, note: told.append((done, total, note)),
        )
        thread.join()
        asked = Counter(map(question, server.bodies))
        assert killed, "no worker was killed in the middle"
        assert {header["Authorization"] for header in server.headers} == {
            f"Bearer {os.environ['CLUSTER_TEST_KEY']}"
        }
    assert result.error is None and not result.failed and result.states == {"done": 300}
    assert result.bought == 300 and len(list(result.traces)) == 300
    # Each prompt once, and again only what the killed worker had in flight: its half of the concurrency.
    assert set(asked) == {f"What is {n}?" for n in range(300)}
    assert sum(asked.values()) - 300 <= 4 and max(asked.values()) <= 2
    assert not shard_folder(path).exists()
    assert any(0 < done < total for done, total, _ in told) and told[-1][0] == 300
    assert capfd.readouterr().out == ""
    # The key is nowhere but in the environment: not in the ledger, not in what Ray wrote down.
    kept = [each for root in (tmp_path, ray_cluster) for each in root.rglob("*") if each.is_file()]
    assert not [str(each) for each in kept if os.environ["CLUSTER_TEST_KEY"].encode() in each.read_bytes()]


DRIVER = """
import sys
from pathlib import Path
from tutelage.records import Problem
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.shards import collect_sharded
problems = [Problem(id=f"p{n}", question=f"What is {n}?", gold=str(n)) for n in range(300)]
teacher = EndpointTeacher(sys.argv[1], "m", concurrency=8)
collect_sharded(problems, teacher, samples=1, ledger_path=Path(sys.argv[2]), workers=2)
"""


def test_a_killed_caller_leaves_shards_that_a_local_collect_takes_up(
    ray_cluster: Path, tmp_path: Path
) -> None:
    path = tmp_path / "l.sqlite"
    with serving(slowly) as server:
        child = subprocess.Popen([sys.executable, "-c", DRIVER, server.url, str(path)])
        deadline = time.monotonic() + 60
        while len(server.bodies) < 60 and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        assert list(shard_folder(path).glob("*.sqlite"))
        # At once: its workers may still be buying, until Ray notices.
        teacher = EndpointTeacher(server.url, "m", concurrency=8)
        result = collect(problems(300), teacher, samples=1, ledger_path=path)
        asked = Counter(map(question, server.bodies))
    assert len(result.traces) == 300 and result.reused >= 50
    assert len(asked) == 300 and sum(asked.values()) - 300 <= 8
    assert not shard_folder(path).exists()


def traces_file(path: Path, count: int) -> list[Trace]:
    """Traces in several row groups, some right, some wrong, some odd."""
    answers = (
        "The answer is {}.",
        r"so \boxed{{{}}}",
        "{}1",
        "no idea {} or 3",
        r"\boxed{{\frac{{{}}}{{1}}}}",
    )
    found = [
        Trace(f"t{n}", f"p{n % 50}", n // 50, "m", answers[n % len(answers)].format(n % 50))
        for n in range(count)
    ]
    write_records(path, iter(found), Trace)
    return found


def plain(verdicts: Any) -> list[Verdict]:
    return [dataclasses.replace(each, seconds=0.0) for each in verdicts]


CHECKER = """
import os, time
from pathlib import Path
def check(problem, trace):
    here = Path(__file__).parent
    if trace.id == "t1202":
        with open(here / "parents", "a") as file:
            print(os.getppid(), file=file)
        if not (here / "killed").exists():
            (here / "wait").touch()
            time.sleep(30)
    return trace.answer.strip().endswith(problem.gold)
"""


def test_verdicts_are_those_of_one_process_also_when_a_worker_is_killed(
    ray_cluster: Path, tmp_path: Path
) -> None:
    (tmp_path / "checker.py").write_text(CHECKER)
    (tmp_path / "killed").touch()
    some = [
        dataclasses.replace(each, checker=("number", "math", f"{tmp_path}/checker.py:check")[number % 3])
        for number, each in enumerate(problems(50))
    ]
    traces = traces_file(tmp_path / "traces.parquet", 2400)
    local = plain(judge(by_id(some), traces))
    assert {each.status for each in local} >= {"correct", "incorrect"}
    (tmp_path / "killed").unlink()
    (tmp_path / "parents").unlink()
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (tmp_path / "wait").exists():
            time.sleep(0.01)
        worker = int((tmp_path / "parents").read_text().split()[0])
        (tmp_path / "killed").touch()
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)

    thread = threading.Thread(target=kill)
    thread.start()
    out = tmp_path / "verdicts.parquet"
    write_records(
        out, judge_sharded(by_id(some), tmp_path / "traces.parquet", workers=2, seconds=60), Verdict
    )
    thread.join()
    assert killed and plain(read_records(out, Verdict)) == local
    parents = (tmp_path / "parents").read_text().split()
    assert len(parents) >= 2 and parents[0] != parents[-1]
