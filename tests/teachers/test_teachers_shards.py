"""Shards of a ledger: dealt, bought, merged, by workers in this process; see the cluster tests too."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Say, completion, problems, serving
from hypothesis import given
from hypothesis import strategies as st

from tutelage import engines
from tutelage.errors import BudgetError, PartialError, UsageError
from tutelage.ledger import Ledger
from tutelage.records import Problem, read_records
from tutelage.teachers import money, shard_files, shards
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.shard_counts import Counts, read_counts, write_counts
from tutelage.teachers.shard_files import Shard, open_merged, shard_folder, sole_use
from tutelage.teachers.shards import collect_sharded
from tutelage.teachers.stored import Orders


def echo(number: int, body: dict[str, Any]) -> Say:
    return Say(completion(f"you asked {body['messages'][-1]['content']}"))


def asked(bodies: list[dict[str, Any]]) -> Counter[str]:
    return Counter(json.dumps(body, sort_keys=True) for body in bodies)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Workers one after the other in this process; gives how many there were in each round."""
    rounds: list[int] = []

    def spread(make: Any, pieces: Any, *, engine: str, workers: int) -> Iterator[Any]:
        rounds.append(workers)
        return engines.spread(make, pieces, engine="local", workers=1)

    monkeypatch.setattr(shards, "spread", spread)
    yield rounds


def test_the_traces_are_those_of_collect(tmp_path: Path, in_process: list[int]) -> None:
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m", seed=1)
        one = collect(problems(40), teacher, samples=2, ledger_path=tmp_path / "one.sqlite")
        told: list[tuple[int, int]] = []
        many = collect_sharded(
            problems(40),
            teacher,
            samples=2,
            ledger_path=tmp_path / "many.sqlite",
            workers=3,
            progress=lambda done, total, note: told.append((done, total)),
        )
        assert asked(server.bodies[80:]) == asked(server.bodies[:80])
    assert list(many.traces) == list(one.traces)
    assert (many.bought, many.sent, many.reused, many.states) == (80, 80, 0, {"done": 80})
    assert many.error is None and many.spent is None and not many.failed
    assert in_process == [3] and told[-1] == (80, 80)
    assert [path.name for path in tmp_path.glob("many*")] == ["many.sqlite"]


def test_what_the_ledger_holds_is_not_dealt(tmp_path: Path, in_process: list[int]) -> None:
    path = tmp_path / "l.sqlite"
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m")
        collect(problems(10), teacher, samples=1, ledger_path=path)
        more = collect_sharded(problems(25), teacher, samples=1, ledger_path=path, workers=2)
        assert (more.bought, more.reused, len(server.bodies)) == (15, 10, 25)
        again = collect_sharded(problems(25), teacher, samples=1, ledger_path=path, workers=2)
    assert (again.bought, again.sent, again.reused) == (0, 0, 25)
    assert in_process == [2]


def test_equal_texts_are_bought_once(tmp_path: Path, in_process: list[int]) -> None:
    same = [Problem(id=f"p{n}", question="What is 1 + 1?", gold="2") for n in range(300)]
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m")
        found = collect_sharded(same, teacher, samples=2, ledger_path=tmp_path / "l.sqlite", workers=2)
        assert len(server.bodies) == 2
    assert len(found.traces) == 600 and found.bought == 2


@pytest.mark.parametrize("samples", [1, 3, 7])
def test_each_request_is_in_one_shard_once_and_its_problem_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    monkeypatch.setattr(shard_files, "PILE", 10)
    teacher = EndpointTeacher("http://localhost/v1", "m")
    orders = Orders(teacher, problems(50), samples)
    dealt = shard_files.deal((orders.order(number) for number in range(len(orders))), tmp_path, 3)
    keys: list[str] = []
    for shard, count in zip(dealt.shards, dealt.counts, strict=True):
        with Ledger(shard.ledger, exclusive=True) as ledger:
            found = [row.key for row in ledger.of_teacher(orders.order(0).debt.teacher)]
        ids = [problem.id for problem in read_records(shard.problems, Problem)]
        assert len(found) == count and len(set(ids)) == len(ids)
        mine = Orders(teacher, read_records(shard.problems, Problem), samples)
        assert set(found) <= {mine.key(number) for number in range(len(mine))}
        keys += found
    assert sorted(keys) == sorted(orders.key(number) for number in range(len(orders)))


def test_one_bad_row_does_not_stop_the_others(tmp_path: Path, in_process: list[int]) -> None:
    def script(number: int, body: dict[str, Any]) -> Say:
        bad = "What is 7?" in body["messages"][-1]["content"]
        return Say({"error": {"message": "too odd"}}, status=400) if bad else echo(number, body)

    with serving(script) as server:
        teacher = EndpointTeacher(server.url, "m")
        found = collect_sharded(
            problems(20), teacher, samples=1, ledger_path=tmp_path / "l.sqlite", workers=2
        )
        assert len(server.bodies) == 20
    assert found.failed == [("p7", "HTTP 400: too odd")] and len(found.traces) == 19
    assert found.error is None


def test_a_refused_key_is_one_error_and_nothing_is_left(tmp_path: Path, in_process: list[int]) -> None:
    path = tmp_path / "l.sqlite"
    with serving(lambda number, body: Say({}, status=401)) as server:
        teacher = EndpointTeacher(server.url, "m", concurrency=2)
        with pytest.raises(UsageError, match=r"the server refuses the key .*\(worker on "):
            collect_sharded(problems(20), teacher, samples=1, ledger_path=path, workers=2)
        assert len(server.bodies) <= 2
    assert not shard_folder(path).exists()


PRICE = money.price(1, 1)


def test_all_workers_together_keep_the_budget_and_use_it_up(tmp_path: Path, in_process: list[int]) -> None:
    path = tmp_path / "l.sqlite"
    with serving(echo) as server:  # 30 tokens each: $0.00003, and at most some $0.0003 reserved
        teacher = EndpointTeacher(server.url, "m", max_tokens=100, price=PRICE, budget=Decimal("0.0015"))
        found = collect_sharded(problems(100), teacher, samples=1, ledger_path=path, workers=4)
        reserve = teacher.order(problems(100)[99], 0).debt.reserve
        assert isinstance(found.error, BudgetError) and reserve is not None
        assert found.spent is not None and found.spent == found.cost == 30 * found.bought / Decimal(1_000_000)
        assert Decimal("0.0015") - reserve < found.spent <= Decimal("0.0015")
        assert in_process[0] == 4 and in_process[-1] == 1 and len(in_process) <= 3
        assert len(found.traces) == found.bought == len(server.bodies)
        rest = dataclasses.replace(teacher, budget=Decimal(1))
        done = collect_sharded(problems(100), rest, samples=1, ledger_path=path, workers=4)
        assert done.error is None and len(done.traces) == 100
        assert set(asked(server.bodies).values()) == {1}


@given(
    st.integers(1, 200),
    st.floats(0.1, 1000),
    st.integers(1, 10**9),
    st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any),
    st.decimals(0, 1000, places=6),
)
def test_parts_add_up_to_no_more_than_the_whole(
    concurrency: int, rate: float, tokens: int, counts: list[int], left: Decimal
) -> None:
    counts = counts[:concurrency]
    if not any(counts):
        return
    teacher = EndpointTeacher(
        "http://x/v1", "m", concurrency=concurrency, requests_per_s=rate, tokens_per_min=tokens, budget=left
    )
    parts = [
        shards._part(teacher, number, mine, len(counts), sum(counts), left)
        for number, mine in enumerate(counts)
    ]
    assert sum(part.concurrency for part in parts) == concurrency
    assert all(part.concurrency >= 1 for part in parts)
    assert sum(part.requests_per_s or 0 for part in parts) <= rate * 1.000001
    assert sum(part.tokens_per_min or 0 for part in parts) <= max(tokens, len(parts))
    assert sum(part.budget or Decimal(0) for part in parts) <= left


# --- killed ---

RUN = """
import sys
from pathlib import Path
from tutelage import engines
from tutelage.records import Problem
from tutelage.teachers import shards
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.shards import collect_sharded
shards.spread = lambda make, pieces, **how: engines.spread(make, pieces, engine="local", workers=1)
problems = [Problem(id=f"p{n}", question=f"What is {n}?", gold=str(n)) for n in range(60)]
teacher = EndpointTeacher(sys.argv[1], "m", concurrency=8)
collect_sharded(problems, teacher, samples=1, ledger_path=Path(sys.argv[2]), workers=2)
"""


def slowly(number: int, body: dict[str, Any]) -> Say:
    return dataclasses.replace(echo(number, body), seconds=0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_killed_run_left_in_shards_is_not_bought_again(
    tmp_path: Path, in_process: list[int], workers: int
) -> None:
    path = tmp_path / "l.sqlite"
    with serving(slowly) as server:
        child = subprocess.Popen([sys.executable, "-c", RUN, server.url, str(path)])
        deadline = time.monotonic() + 30
        while len(server.bodies) < 45 and time.monotonic() < deadline:  # in the second shard
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        time.sleep(0.1)
        left = list(shard_folder(path).glob("*.sqlite"))
        assert len(left) == 2
        first = len(server.bodies)
        teacher = EndpointTeacher(server.url, "m", concurrency=8)
        result = collect_sharded(problems(60), teacher, samples=1, ledger_path=path, workers=workers)
        assert len(server.bodies) - 60 <= 4  # in flight: half of 8 in each shard
        assert len(server.bodies) - first == result.bought
    assert len(result.traces) == 60 and result.reused == 60 - result.bought >= 35
    assert not shard_folder(path).exists()


def test_reading_what_is_stored_finds_the_shards_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l.sqlite"

    def interrupted(make: Any, pieces: Any, **how: Any) -> Iterator[Any]:
        with make() as buy:
            yield buy(pieces[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "spread", interrupted)
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m")
        with pytest.raises(KeyboardInterrupt):
            collect_sharded(problems(40), teacher, samples=1, ledger_path=path, workers=2)
        stored = collect(problems(40), teacher, samples=1, ledger_path=path, buy=False)
        assert len(stored.traces) == len(server.bodies) > 5
    assert not shard_folder(path).exists()


# --- one run at a time ---


def test_others_wait_while_a_run_with_workers_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    waited = threading.Event()
    order: list[str] = []

    def other() -> None:
        with open_merged(path, lambda why: waited.set()):
            order.append("other")

    with sole_use(path, lambda why: None):
        thread = threading.Thread(target=other)
        thread.start()
        assert waited.wait(10)
        with open_merged(path, lambda why: None, patient=False):
            order.append("reader")  # what is stored can be read meanwhile
        order.append("run")
    thread.join(10)
    assert order == ["reader", "run", "other"]
    assert not shard_folder(path).exists()


def test_a_run_with_workers_waits_for_processes_that_use_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    code = (
        "import sys; from pathlib import Path; from tutelage.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])): print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"open\n"
        stdin = child.stdin
        why: list[str] = []

        def waiting(text: str) -> None:
            why.append(text)
            stdin.close()

        with sole_use(path, waiting), Ledger(path) as ledger:
            assert ledger.others() == 0
    assert why and "another process" in why[0]


# --- what is refused, and what is not shared out ---


class Other:
    """A teacher of a kind that lives in this process."""

    maker = "other"


def test_a_teacher_that_lives_in_this_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"engine: ray shares out endpoint and scripted"):
        collect_sharded(problems(2), Other(), samples=1, ledger_path=tmp_path / "l.sqlite", workers=2)  # type: ignore[arg-type]


def test_a_replay_and_a_single_request_at_a_time_need_no_engine(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    human = ReplayTeacher(name="human", layout="human")
    kept = [Problem(id="p0", question="?", gold="1", metadata={"solution": "x"})]
    replayed = collect_sharded(kept, human, samples=1, ledger_path=path, workers=2)
    assert [trace.thinking for trace in replayed.traces] == ["x"]
    with serving(echo) as server:
        narrow = EndpointTeacher(server.url, "m", concurrency=1)
        assert collect_sharded(problems(3), narrow, samples=1, ledger_path=path, workers=4).bought == 3


def test_workers_below_one_are_refused(tmp_path: Path) -> None:
    teacher = EndpointTeacher("http://localhost/v1", "m")
    with pytest.raises(UsageError, match="workers: 0"):
        collect_sharded(problems(1), teacher, samples=1, ledger_path=tmp_path / "l.sqlite", workers=0)


def test_a_worker_without_the_folder_says_so(tmp_path: Path) -> None:
    work = shards._Work(Shard(tmp_path / "gone"), EndpointTeacher("http://localhost/v1", "m"), 1)
    with pytest.raises(UsageError, match="all machines must see this folder"):
        shards._buy_shard(work)
    assert not list(tmp_path.iterdir())


def test_a_missing_key_names_the_machine(
    tmp_path: Path, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    teacher = EndpointTeacher("http://localhost/v1", "m", key_env="NO_SUCH_KEY")
    with pytest.raises(UsageError, match=r"NO_SUCH_KEY is not set.*\(worker on "):
        collect_sharded(problems(9), teacher, samples=1, ledger_path=tmp_path / "l.sqlite", workers=2)


def test_workers_that_kept_dying_end_the_run_with_what_was_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(make: Any, pieces: Any, **how: Any) -> Iterator[Any]:
        with make() as buy:
            yield buy(pieces[0])
        raise PartialError("piece 1: its worker process died 4 times")

    monkeypatch.setattr(shards, "spread", dying)
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m")
        found = collect_sharded(
            problems(40), teacher, samples=1, ledger_path=tmp_path / "l.sqlite", workers=2
        )
        assert len(found.traces) == found.bought == len(server.bodies) > 5
    assert isinstance(found.error, PartialError)


def test_counts_are_read_as_they_were_written(tmp_path: Path) -> None:
    counts = Counts(Counter(done=3, sent=5), Decimal("0.25"), Counter({"429": 2}))
    write_counts(tmp_path / "a.json", counts)
    assert read_counts(tmp_path / "a.json") == counts
    assert read_counts(tmp_path / "none.json") == Counts()
    assert counts.plus(counts) == Counts(Counter(done=6, sent=10), Decimal("0.5"), Counter({"429": 4}))
