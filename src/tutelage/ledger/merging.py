"""Merging ledgers: the rows and amounts of a shard go into the ledger that keeps them.

Promises: one durable transaction, so a kill in the middle leaves this ledger as it was; again changes
nothing; an answered row here is never replaced, an unanswered one is replaced by an answered one; amounts are
kept per ledger that they were bought through and are replaced, not added.
Does not: change the other file, beyond giving back the claims of its dead holders.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import UsageError

if TYPE_CHECKING:
    from tutelage.ledger.book import Ledger

_ANSWERED = "({0}.raw IS NOT NULL AND {0}.state != 'failed')"
_KEPT = (
    "teacher, sample, request, state, reason, prompt_tokens, completion_tokens, cost, reserved, updated, raw"
)


def absorb(ledger: Ledger, path: Path) -> int:
    """See `Ledger.absorb`."""
    if not path.is_file():
        raise UsageError(f"{path}: no such ledger")
    if path.resolve() == ledger.path.resolve():
        raise UsageError(f"{path}: a ledger cannot absorb itself")
    with type(ledger)(path):
        pass  # is it a ledger of this version? Claims of the dead are given back, older versions are upgraded
    with ledger._guard():
        ledger._db.execute("ATTACH DATABASE ? AS other", (str(path),))
    try:
        with ledger._write(durable=True):
            copied = _copy_rows(ledger)
            ledger._db.execute(
                "INSERT INTO accounts SELECT * FROM other.accounts WHERE source != ?1"
                " ON CONFLICT (teacher, source) DO UPDATE SET"
                " spent=max(spent, excluded.spent), lost=max(lost, excluded.lost)",
                (ledger.source,),
            )
    finally:
        with ledger._guard():
            ledger._db.execute("DETACH DATABASE other")
    return copied


def _copy_rows(ledger: Ledger) -> int:
    # A failure there tells more than nothing here, and a later one more than an earlier one.
    failure = (
        "excluded.state = 'failed' AND replies.holder IS NULL"
        " AND (replies.state = 'owed' OR excluded.updated > replies.updated)"
    )
    better = f"({_ANSWERED.format('excluded')} OR {failure})"
    changes = f"{better} AND NOT {_ANSWERED.format('replies')}"
    update = ", ".join(f"{name}=excluded.{name}" for name in _KEPT.split(", "))
    # A row that is not answered reserves nothing any more; nobody holds it here.
    picked = _KEPT.replace(
        "reserved", f"CASE WHEN {_ANSWERED.format('theirs')} THEN theirs.reserved ELSE 0 END"
    )
    cursor = ledger._db.execute(
        f"INSERT INTO replies (key, {_KEPT}) SELECT key, {picked} FROM other.replies AS theirs WHERE true"
        f" ON CONFLICT (key) DO UPDATE SET {update}, holder=NULL WHERE {changes}"
    )
    return int(cursor.rowcount)
