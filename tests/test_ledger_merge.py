"""ledger: shards with one owner each are merged, and nothing is lost or counted twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import StorageError, UsageError
from tutelage.ledger import Debt, Ledger, Settled, Turn
from tutelage.ledger import file as ledger_file

DOLLAR = Decimal(1)


def debt(key: str, reserve: Decimal | None = None, teacher: str = "t") -> Debt:
    return Debt(key, teacher, 0, "{}", reserve)


def pay(
    ledger: Ledger, key: str, cost: Decimal | None = None, state: Any = "done", raw: bytes = b"r"
) -> None:
    ledger.owe([debt(key, DOLLAR)])
    ledger.store(key, raw)
    ledger.settle(key, Settled(state, "", 3, 5, cost))


# --- merging ---


def test_rows_and_amounts_are_copied_once_however_often(tmp_path: Path) -> None:
    with Ledger(tmp_path / "shard") as shard:
        pay(shard, "a", Decimal("0.1"))
        pay(shard, "b", None, "truncated")
        shard.owe([debt("c")])
        shard.settle("c", Settled("failed", "HTTP 500"))
    with Ledger(tmp_path / "main") as main:
        pay(main, "z", Decimal("0.5"))
        assert [main.absorb(tmp_path / "shard") for _ in range(3)] == [3, 0, 0]
        assert main.totals().states == {"done": 2, "truncated": 1, "failed": 1}
        # A reply of unknown cost counts with its reserve, here as there.
        assert main.spent("t") == Decimal("1.6")
        row = main.get("b")
        assert row is not None
        assert (row.raw, row.state, row.prompt_tokens) == (b"r", "truncated", 3)
        assert main.owe([debt("a"), debt("c")]) == {"a": "stored", "c": "yours"}


def test_what_is_answered_here_stays_and_what_is_not_is_replaced(tmp_path: Path) -> None:
    with Ledger(tmp_path / "shard") as shard:
        for key in "abc":
            pay(shard, key, DOLLAR, raw=b"theirs")
        shard.owe([debt("d")])
    with Ledger(tmp_path / "main") as main:
        pay(main, "a", DOLLAR, raw=b"ours")
        main.owe([debt("b"), debt("d")])
        main.settle("b", Settled("failed", "x"))
        main.owe([debt("c")])  # being bought here right now
        pay(main, "d", DOLLAR, raw=b"ours")
        assert main.absorb(tmp_path / "shard") == 2
        raws = {row.key: row.raw for row in main.get_many(list("abcd"))}
        assert raws == {"a": b"ours", "b": b"theirs", "c": b"theirs", "d": b"ours"}
        main.store("c", b"late")  # the reply that was under way here comes too late
        main.settle("c", Settled("done", "", 1, 1, DOLLAR))
        row = main.get("c")
        assert row is not None
        assert row.raw == b"theirs"


def test_a_ledger_that_was_merged_into_another_shard_counts_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with Ledger(tmp_path / name) as shard:
            pay(shard, name, DOLLAR)
    with Ledger(tmp_path / "two") as two:
        two.absorb(tmp_path / "one")
    with Ledger(tmp_path / "main") as main:
        main.absorb(tmp_path / "one")
        main.absorb(tmp_path / "two")
        assert main.spent("t") == 2 * DOLLAR


rows = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.sampled_from(["done", "failed", "owed"]), st.integers(0, 9))
)


@settings(max_examples=25, deadline=None)
@given(rows, rows)
def test_merging_never_loses_an_answer(tmp_path_factory: Any, ours: Any, theirs: Any) -> None:
    folder = tmp_path_factory.mktemp("merge")
    for name, what in (("main", ours), ("shard", theirs)):
        with Ledger(folder / name) as ledger:
            for key, (state, cents) in what.items():
                ledger.owe([debt(key)])
                if state == "done":
                    pay(ledger, key, Decimal(cents) / 100, raw=name.encode())
                elif state == "failed":
                    ledger.settle(key, Settled("failed", name))
    with Ledger(folder / "main") as main:
        main.absorb(folder / "shard")
        found = {row.key: row for row in main.get_many(list("abcdef"))}
        assert found.keys() == ours.keys() | theirs.keys()
        for key, row in found.items():
            answered = [what.get(key, ("", 0))[0] == "done" for what in (ours, theirs)]
            assert row.paid == any(answered)
            assert row.raw == (b"main" if answered[0] else b"shard" if answered[1] else None)
        paid = [cents for what in (ours, theirs) for state, cents in what.values() if state == "done"]
        assert main.spent("t") == Decimal(sum(paid)) / 100


def test_only_a_ledger_can_be_absorbed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "main") as main:
        with pytest.raises(UsageError, match="no such ledger"):
            main.absorb(tmp_path / "none")
        with pytest.raises(UsageError, match="cannot absorb itself"):
            main.absorb(tmp_path / "main")
        (tmp_path / "notes").write_text("dear diary " * 100)
        with pytest.raises(UsageError, match="notes: not a readable ledger"):
            main.absorb(tmp_path / "notes")


# --- one owner ---

OWNER = """
import sys, time
from pathlib import Path
from tutelage.ledger import Debt, Ledger
ledger = Ledger(Path(sys.argv[1]), exclusive=True)
ledger.owe([Debt("claimed", "t", 0, "{}"), Debt("answered", "t", 0, "{}")])
ledger.store("answered", b"paid for")
print("ready", flush=True)
time.sleep(60)
"""


def owner(path: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", OWNER, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.stdout.close()
    return child


def test_an_exclusive_ledger_has_one_owner_and_no_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard"
    child = owner(path)
    assert [file.name for file in tmp_path.glob("*-shm")] == []
    monkeypatch.setattr(ledger_file, "BUSY_SECONDS", 0.2)
    for exclusive in (True, False):
        with pytest.raises(StorageError, match=r"shard: cannot use the ledger .*locked"):
            Ledger(path, exclusive=exclusive)
    child.kill()
    child.wait()


def test_the_next_owner_gets_what_a_killed_one_had_claimed(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    child = owner(path)
    with sqlite3.connect(":memory:"):
        child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with Ledger(path, exclusive=True) as ledger:
        assert ledger.owe([debt("claimed"), debt("answered")]) == {"claimed": "yours", "answered": "stored"}
    child.wait()
    with Ledger(path) as ledger:  # and it is an ordinary ledger again
        assert ledger.owe([debt("claimed")]) == {"claimed": "yours"}


def test_the_next_owner_does_not_wait_for_the_lease_of_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    gone = Ledger(path)
    gone.owe([debt("k")])
    gone._db.execute("UPDATE holders SET space='another host', pid=1")
    gone._db.close()
    with Ledger(path, exclusive=True) as ledger:
        assert ledger.owe([debt("k")]) == {"k": "yours"}


# --- what may have been charged ---


def test_a_dead_process_leaves_its_reserves_as_lost(tmp_path: Path) -> None:
    gone = Ledger(tmp_path / "l")
    gone.owe([debt("a", DOLLAR), debt("b", DOLLAR)], 3 * DOLLAR)
    gone.release(["b"])  # was never sent
    gone._db.execute("UPDATE holders SET started='long ago'")
    with Ledger(tmp_path / "l") as ledger:
        assert (ledger.lost("t"), ledger.spent("t")) == (DOLLAR, DOLLAR)
        assert ledger.owe([debt("a", DOLLAR), debt("c", 2 * DOLLAR)], 3 * DOLLAR) == {
            "a": "yours",
            "c": "over",
        }


def test_a_lost_try_and_its_answer_both_count(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        ledger.owe([debt("a", DOLLAR)], 2 * DOLLAR)
        again = Turn(lost=["a"], debts=[debt("a", DOLLAR)])
        assert ledger.turn(again, 2 * DOLLAR) == {"a": "yours"}
        assert ledger.turn(again, 2 * DOLLAR) == {"a": "over"}
        assert ledger.spent("t") == 2 * DOLLAR


# --- reading many, older files ---


def test_the_rows_of_a_teacher_come_in_order_and_without_replies(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        for number in range(1203):
            ledger.owe([debt(f"k{number}", teacher="t" if number % 2 else "u")])
        pay(ledger, "k1")
        rows = list(ledger.of_teacher("t"))
        assert [row.key for row in rows] == [f"k{number}" for number in range(1, 1203, 2)]
        assert (rows[0].state, rows[0].answered, rows[0].paid, rows[0].raw) == ("done", True, True, None)
        assert not rows[1].answered
        assert ledger.teachers() == ["t", "u"]
        assert list(ledger.of_teacher("nobody")) == []


def test_a_ledger_of_version_1_is_upgraded_with_its_amounts(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger(path) as ledger:
        pay(ledger, "a", DOLLAR)
    with sqlite3.connect(path) as raw:
        raw.executescript(
            "DROP TABLE accounts; DROP TABLE identity; PRAGMA user_version=1;"
            "CREATE TABLE spent (teacher TEXT PRIMARY KEY, amount INTEGER NOT NULL);"
            "INSERT INTO spent VALUES ('t', 1000000000000);"
        )
    raw.close()
    for _ in range(2):
        with Ledger(path) as ledger:
            assert ledger.spent("t") == DOLLAR
            row = ledger.get("a")
            assert row is not None
            assert row.raw == b"r"
