"""ledger: nothing paid for is lost or bought twice, whatever happens to process, disk or clock."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from threading import Barrier, Timer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage import ledger as ledger_module
from tutelage.errors import StorageError, UsageError
from tutelage.ledger import Debt, Ledger, Settled, request_key

DOLLAR = Decimal(1)


def debt(key: str, reserve: Decimal | None = None, teacher: str = "t") -> Debt:
    return Debt(key, teacher, 0, "{}", reserve)


def pay(ledger: Ledger, key: str, cost: Decimal | None = None, state: Any = "done") -> None:
    ledger.owe([debt(key)])
    ledger.store(key, b"raw " + key.encode())
    ledger.settle(key, Settled(state, "", 3, 5, cost))


# --- the key ---

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
bodies = st.dictionaries(
    st.text(), st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=6), max_size=5
)


@given(bodies, st.randoms())
def test_the_order_of_body_keys_does_not_matter(body: dict[str, Any], random: Any) -> None:
    items = list(body.items())
    random.shuffle(items)
    assert request_key("u", "m", body, 0) == request_key("u", "m", dict(items), 0)


def spelled(value: Any) -> str:
    """Equality that tells 1, 1.0 and True apart, as JSON does."""
    if isinstance(value, dict):
        return repr(sorted((key, spelled(inner)) for key, inner in value.items()))
    return f"{type(value).__name__} {value!r}"


@given(bodies, bodies, st.integers(0, 3), st.integers(0, 3), st.sampled_from("ab"), st.sampled_from("ab"))
def test_any_change_changes_the_key(
    one: dict[str, Any], two: dict[str, Any], sample: int, other: int, url: str, model: str
) -> None:
    same = (spelled(one), sample, url, model) == (spelled(two), other, "a", "a")
    assert (request_key(url, model, one, sample) == request_key("a", "a", two, other)) == same


def test_the_key_does_not_move_between_versions() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "é 2+2?"}], "temperature": 0.7}
    assert request_key("http://h/v1", "m", body, 1) == "e731a1cf4fc17bfb357db1111db3746e"


def test_what_json_cannot_say_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        request_key("u", "m", {"temperature": float("nan")}, 0)


# --- rows ---


def test_a_reply_is_kept_raw_and_settled(tmp_path: Path) -> None:
    with Ledger(tmp_path / "new" / "l.sqlite") as ledger:
        assert ledger.get("k") is None
        assert ledger.owe([debt("k")]) == {"k": "yours"}
        ledger.store("k", b"\x00\xff torn?")
        row = ledger.get("k")
        assert row is not None
        assert (row.state, row.raw, row.paid) == ("owed", b"\x00\xff torn?", True)
        ledger.settle("k", Settled("truncated", "cut", 3, 5, Decimal("0.1400000000007")))
    with Ledger(tmp_path / "new" / "l.sqlite") as ledger:
        row = ledger.get("k")
        assert row is not None
        assert (row.state, row.reason, row.cost) == ("truncated", "cut", Decimal("0.140000000001"))
        assert ledger.owe([debt("k")]) == {"k": "stored"}


@pytest.mark.parametrize("state", ["done", "truncated", "refused", "empty"])
def test_a_paid_reply_is_never_owed_again(tmp_path: Path, state: str) -> None:
    with Ledger(tmp_path / "l") as ledger:
        pay(ledger, "k", state=state)
        assert ledger.owe([debt("k")]) == {"k": "stored"}


def test_a_failed_request_is_asked_again(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        ledger.owe([debt("k")])
        ledger.settle("k", Settled("failed", "HTTP 500"))
        row = ledger.get("k")
        assert row is not None
        assert (row.reason, row.paid) == ("HTTP 500", False)
        assert ledger.owe([debt("k")]) == {"k": "yours"}


def test_totals_count_replies_tokens_and_known_costs(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        pay(ledger, "a", Decimal("0.1"))
        pay(ledger, "b", Decimal("0.2"), "truncated")
        pay(ledger, "c", None)
        ledger.owe([debt("d"), debt("e", teacher="other")])
        ledger.settle("d", Settled("failed", "x"))
        totals = ledger.totals()
        assert (totals.replies, totals.prompt_tokens, totals.completion_tokens) == (3, 9, 15)
        assert (totals.cost, totals.unpriced) == (Decimal("0.3"), 1)
        assert totals.states == {"owed": 1, "done": 2, "truncated": 1, "failed": 1}
        assert ledger.totals("other").replies == 0


def test_many_keys_at_once(tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(1234)]
    with Ledger(tmp_path / "l") as ledger:
        ledger.owe([debt(key) for key in keys])
        ledger.record((key, key.encode(), Settled("done")) for key in keys)
        assert {row.key: row.raw for row in ledger.get_many(keys)} == {key: key.encode() for key in keys}
        assert ledger.states([*keys, "no"]) == dict.fromkeys(keys, ("done", True))


# --- claims ---


def test_two_ledgers_never_hold_the_same_request(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as one, Ledger(tmp_path / "l") as two:
        assert one.owe([debt("k")]) == {"k": "yours"}
        assert two.owe([debt("k"), debt("j")]) == {"k": "held", "j": "yours"}
        one.release(["k"])
        assert two.owe([debt("k")]) == {"k": "yours"}


def test_leaving_gives_unused_claims_back(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as one:
        with pytest.raises(KeyboardInterrupt), Ledger(tmp_path / "l") as two:
            two.owe([debt("k")])
            raise KeyboardInterrupt
        assert one.owe([debt("k")]) == {"k": "yours"}


CLAIMER = """
import sys, time
from pathlib import Path
from threading import Barrier
from tutelage.ledger import Debt, Ledger
ledger = Ledger(Path(sys.argv[1]))
ledger.owe([Debt("claimed", "t", 0, "{}"), Debt("answered", "t", 0, "{}")])
ledger.store("answered", b"paid for")
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_process_loses_its_claims_but_no_reply(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger(path) as before:
        child = subprocess.Popen([sys.executable, "-c", CLAIMER, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert before.owe([debt("claimed")]) == {"claimed": "held"}
        child.send_signal(signal.SIGKILL)
        # Not reaped on purpose: a zombie is dead too.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert before.owe([debt("claimed"), debt("answered")]) == {"claimed": "yours", "answered": "stored"}
        row = before.get("answered")
        assert row is not None
        assert row.raw == b"paid for"
    child.wait()
    child.stdout.close()


def test_a_reused_process_id_is_not_the_old_owner(tmp_path: Path) -> None:
    path = tmp_path / "l"
    gone = Ledger(path)
    gone.owe([debt("k")])
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE holders SET started='long ago'")
    with Ledger(path) as ledger:
        assert ledger.owe([debt("k")]) == {"k": "yours"}


def test_a_holder_on_another_machine_is_dead_after_a_silence(tmp_path: Path) -> None:
    path = tmp_path / "l"
    far = Ledger(path)
    far.owe([debt("k")])
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE holders SET space='another host', pid=1")
    with Ledger(path) as ledger:
        assert ledger.owe([debt("k")]) == {"k": "held"}
        with sqlite3.connect(path) as raw:
            raw.execute(
                "UPDATE holders SET beat = beat - ? WHERE space='another host'",
                (ledger_module.LEASE_SECONDS,),
            )
        assert ledger.owe([debt("k")]) == {"k": "yours"}


def test_the_reply_of_a_claim_that_was_taken_over_does_not_replace_another(tmp_path: Path) -> None:
    path = tmp_path / "l"
    slow = Ledger(path)
    slow.owe([debt("k")])
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE holders SET started='long ago'")
    with Ledger(path) as ledger:
        pay(ledger, "k", DOLLAR)
        slow.store("k", b"late")
        slow.settle("k", Settled("done", "", 1, 1, DOLLAR))
        row = ledger.get("k")
        assert row is not None
        assert row.raw == b"raw k"
        assert ledger.totals().cost == DOLLAR


# --- money ---


def test_reservations_of_all_processes_count_against_the_budget(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as one, Ledger(tmp_path / "l") as two:
        assert one.owe([debt("a", DOLLAR), debt("b", DOLLAR)], budget=DOLLAR * 3)["b"] == "yours"
        assert two.owe([debt("c", DOLLAR), debt("d", DOLLAR)], DOLLAR * 3) == {"c": "yours", "d": "over"}
        assert two.owe([debt("x", DOLLAR, teacher="other")], DOLLAR * 3) == {"x": "yours"}
        one.store("a", b"")
        one.settle("a", Settled("done", "", 1, 1, Decimal("0.25")))
        assert two.owe([debt("d", Decimal("0.75"))], DOLLAR * 3) == {"d": "yours"}
        assert one.spent("t") == Decimal("0.25")


def test_a_reply_of_unknown_cost_counts_with_its_reservation(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        ledger.owe([debt("a", DOLLAR)], DOLLAR)
        ledger.store("a", b"no usage in it")
        ledger.settle("a", Settled("done"))
        assert ledger.spent("t") == DOLLAR
        assert ledger.totals().unpriced == 1
        assert ledger.owe([debt("b", Decimal("0.01"))], DOLLAR) == {"b": "over"}


def test_a_failure_gives_its_reservation_back(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        ledger.owe([debt("a", DOLLAR)], DOLLAR)
        ledger.settle("a", Settled("failed", "x"))
        assert ledger.spent("t") == 0
        assert ledger.owe([debt("b", DOLLAR)], DOLLAR) == {"b": "yours"}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["done", "failed", "release", "unknown"]),
            st.decimals(0, 2, places=6),
        ),
        max_size=12,
    )
)
def test_spent_is_the_sum_of_the_rows(tmp_path_factory: Any, steps: list[Any]) -> None:
    path = tmp_path_factory.mktemp("spent") / "l"
    with Ledger(path) as ledger:
        for number, what, cost in steps:
            key = f"k{number}"
            if ledger.owe([debt(key, Decimal(2))], Decimal(5))[key] != "yours":
                continue
            if what == "release":
                ledger.release([key])
                continue
            if what != "failed":
                ledger.store(key, b"r")
            state: Any = "failed" if what == "failed" else "done"
            ledger.settle(key, Settled(state, "", 1, 1, cost if what == "done" else None))
        rows = sqlite3.connect(path).execute(
            "SELECT sum(coalesce(cost, reserved)) FROM replies WHERE state='done'"
        )
        assert ledger.spent("t") == Decimal(rows.fetchone()[0] or 0).scaleb(-12)
        assert ledger.spent("t") <= 5


# --- files that cannot be ledgers, disks that refuse ---


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary " * 100)
    with pytest.raises(UsageError, match=r"notes\.txt: not a readable ledger"):
        Ledger(path)
    assert path.read_text() == "dear diary " * 100


def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE orders (id)")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="a database, but not a ledger"):
        Ledger(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["shop.sqlite"]


def test_many_can_make_the_same_ledger_at_once(tmp_path: Path) -> None:
    def work(number: int, path: Path, gate: Barrier) -> str:
        gate.wait()
        with Ledger(path) as ledger:
            return ledger.owe([debt(f"k{number}")])[f"k{number}"]

    with ThreadPoolExecutor(6) as pool:
        for attempt in range(8):
            gate = Barrier(6)
            path = tmp_path / f"l{attempt}"
            assert set(pool.map(lambda number, p=path, g=gate: work(number, p, g), range(6))) == {"yours"}


def test_opening_waits_for_a_writer_that_sqlite_would_not_wait_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"), sqlite3.connect(path, timeout=60) as plain:
        plain.execute("SELECT count(*) FROM sqlite_master").fetchone()
        plain.execute("PRAGMA journal_mode=WAL")
    plain.close()
    later = Timer(0.2, lambda: other.execute("COMMIT"))
    later.start()
    with Ledger(path) as ledger:
        assert ledger.owe([debt("k")])["k"] == "yours"
    later.join()
    other.close()


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l"
    Ledger(path).__exit__(None, None, None)
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version=99")
    with pytest.raises(UsageError, match="version 99, this program reads 2"):
        Ledger(path)


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make the ledger"):
        Ledger(tmp_path / "file" / "l.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder"):
        Ledger(tmp_path / "folder")


FILLER = """
import resource, signal, sys
from pathlib import Path
from threading import Barrier
from tutelage.errors import StorageError
from tutelage.ledger import Debt, Ledger, Settled
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
kept = 0
try:
    with Ledger(Path(sys.argv[1])) as ledger:
        while True:
            ledger.owe([Debt(f"k{kept}", "t", 0, "{}")])
            ledger.store(f"k{kept}", b"x" * 10_000)
            kept += 1
except StorageError as error:
    print(kept, error)
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "l"
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(path)], capture_output=True, text=True, check=True
    )
    kept, _, line = done.stdout.partition(" ")
    assert int(kept) > 5
    assert line.count("\n") == 1
    assert line.startswith(f"{path}: cannot use the ledger")
    with Ledger(path) as ledger:
        rows = list(ledger.get_many([f"k{number}" for number in range(int(kept))]))
        assert len(rows) == int(kept)
        assert all(row.raw == b"x" * 10_000 for row in rows)
