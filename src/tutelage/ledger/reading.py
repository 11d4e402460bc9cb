"""What the ledger knows: rows, outcomes, sums.

Promises: a reply is read only where it is asked for; long lists are read in pieces, so that memory stays flat
and no read transaction is held open.
Does not: write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from tutelage.ledger.holders import Holders
from tutelage.ledger.rows import STATES, Outcome, Row, State, Totals, from_pico

_COLUMNS = (
    "key, teacher, sample, request, state, reason, prompt_tokens, completion_tokens, cost, raw IS NOT NULL"
)
PIECE = 500


class Reading(Holders):
    """An open ledger that can be asked."""

    def get(self, key: str) -> Row | None:
        """The row of `key` with its reply, or None."""
        return next(self.get_many([key]), None)

    def get_many(self, keys: Sequence[str]) -> Iterator[Row]:
        """The rows of those `keys` that exist, with their replies, in no particular order."""
        for row in self._select(f"{_COLUMNS}, raw", keys):
            yield _row(row[:-1], row[-1])

    def of_teacher(self, teacher: str) -> Iterator[Row]:
        """All rows of a teacher in the order they were first asked for, without the replies.

        `teacher` is "BASE_URL MODEL", as in `Debt`."""
        last = -1
        while True:
            with self._guard():
                rows = self._db.execute(
                    f"SELECT rowid, {_COLUMNS} FROM replies WHERE teacher=? AND rowid > ?"
                    " ORDER BY rowid LIMIT ?",
                    (teacher, last, PIECE),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from (_row(row[1:]) for row in rows)

    def teachers(self) -> list[str]:
        """All teachers that were asked anything, "BASE_URL MODEL" each."""
        with self._guard():
            rows = self._db.execute("SELECT DISTINCT teacher FROM replies ORDER BY teacher").fetchall()
        return [teacher for (teacher,) in rows]

    def states(self, keys: Sequence[str]) -> dict[str, tuple[State, bool]]:
        """State of those `keys` that exist, and whether a raw reply is here; cheaper than the rows."""
        rows = self._select("key, state, raw IS NOT NULL", keys)
        return {key: (state, bool(here)) for key, state, here in rows}

    def outcomes(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """What is known of those `keys` that exist, all but the texts."""
        columns = "key, state, raw IS NOT NULL, reason, prompt_tokens, completion_tokens, cost"
        rows = self._select(columns, keys)
        return {
            key: Outcome(state, bool(here), reason, prompt, completion, from_pico(cost))
            for key, state, here, reason, prompt, completion, cost in rows
        }

    def _select(self, columns: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(keys), PIECE):
            with self._guard():
                rows = self._rows(columns, keys[start : start + PIECE])
            yield from rows

    def _rows(self, columns: str, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows of those `keys` that exist, for use within a transaction."""
        rows: list[tuple[Any, ...]] = []
        for start in range(0, len(keys), PIECE):
            part = keys[start : start + PIECE]
            sql = f"SELECT {columns} FROM replies WHERE key IN ({','.join('?' * len(part))})"
            rows += self._db.execute(sql, part).fetchall()
        return rows

    def spent(self, teacher: str) -> Decimal:
        """US dollars that count against the budget of `teacher`: known costs; for replies without a known
        cost what was reserved for them; and what is `lost`."""
        return self._amount("spent + lost", teacher)

    def lost(self, teacher: str) -> Decimal:
        """US dollars reserved for requests whose reply never came, and that may have been charged."""
        return self._amount("lost", teacher)

    def _amount(self, what: str, teacher: str) -> Decimal:
        with self._guard():
            row = self._db.execute(f"SELECT sum({what}) FROM accounts WHERE teacher=?", (teacher,)).fetchone()
        return from_pico(row[0]) or Decimal(0)

    def totals(self, teacher: str | None = None) -> Totals:
        """Sums over all stored replies, or over those of one teacher."""
        where, args = ("", ()) if teacher is None else (" WHERE teacher=?", (teacher,))
        paid = f"(SELECT *, raw IS NOT NULL AND state != 'failed' AS paid FROM replies{where})"
        with self._guard():
            rows = self._db.execute(
                "SELECT state, count(*), sum(paid), sum(paid * coalesce(prompt_tokens, 0)),"
                " sum(paid * coalesce(completion_tokens, 0)), sum(coalesce(cost, 0)),"
                f" sum(paid AND cost IS NULL) FROM {paid} GROUP BY state",
                args,
            ).fetchall()
        counts = {row[0]: row[1] for row in rows}
        return Totals(
            replies=sum(row[2] for row in rows),
            prompt_tokens=sum(row[3] for row in rows),
            completion_tokens=sum(row[4] for row in rows),
            cost=from_pico(sum(row[5] for row in rows)) or Decimal(0),
            unpriced=sum(row[6] for row in rows),
            states={state: counts[state] for state in STATES if state in counts},
        )


def _row(told: tuple[Any, ...], raw: bytes | None = None) -> Row:
    key, teacher, sample, request, state, reason, prompt, completion, cost, answered = told
    return Row(
        key, teacher, sample, request, state, reason, prompt, completion, from_pico(cost), bool(answered), raw
    )
