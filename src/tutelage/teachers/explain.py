"""Why a request is in the ledger or is not: what would be sent, and how it differs from what was asked.

Promises: nothing is bought, and a ledger that is not there is not made; every order is counted once, under
one reason; settings that differ are named with the stored and the new value, those of the stored request with
the fewest differences.
Does not: load replies (requests are streamed), or look for questions whose text itself was changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tutelage.ledger import Ledger, Outcome, State
from tutelage.records import Problem
from tutelage.teachers.asked import Asked, Template, differences, digest, new_templates, read_request
from tutelage.teachers.orders import Order, chunks

Why = Literal["never asked", "other settings", "another teacher", "failed", "no reply came"]
EXAMPLES = 5
CHUNK = 500
# Stored texts that fit no known prompt, kept of each teacher to find out what its prompt was.
STRANGERS = 20
_NO_REPLY = "it was in flight when its process ended, or another process is buying it"
_OTHER_SAMPLES = "other samples of the question were"


@dataclass(slots=True)
class Miss:
    """Orders that are missing for one reason; `detail` says more, `examples` are (problem id, sample)."""

    why: Why
    detail: str
    count: int = 0
    examples: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Explanation:
    """`hits` counts orders whose reply is stored, by state (`owed`: stored, not read yet); `misses` are the
    others, the most frequent reason first. `compared` requests of the ledger were looked at."""

    hits: Mapping[State, int]
    misses: Sequence[Miss]
    compared: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        here, missing = sum(self.hits.values()), sum(miss.count for miss in self.misses)
        return {
            "requests": here + missing,
            "requests_from_ledger": here,
            "would_be_sent": missing,
            "states": dict(self.hits),
            "misses": [
                {
                    "why": miss.why,
                    "detail": miss.detail,
                    "count": miss.count,
                    "examples": [{"problem_id": name, "sample": sample} for name, sample in miss.examples],
                }
                for miss in self.misses
            ],
        }


@dataclass(slots=True)
class _Missing:
    """An order without a row, and how the nearest stored request differs (None: there is none yet)."""

    problem: Problem
    sample: int
    asked: Asked
    nearest: tuple[str, ...] | None = None
    other_sample: bool = False

    def compare(self, stored: Asked, sample: int) -> None:
        """Take a stored request of the same question into account."""
        if sample != self.sample:
            self.other_sample = True
            return
        differ = differences(stored, self.asked)
        if self.nearest is None or len(differ) < len(self.nearest):
            self.nearest = differ

    def why(self) -> tuple[Why, str]:
        """The reason."""
        if self.nearest is None:
            return "never asked", _OTHER_SAMPLES if self.other_sample else ""
        teacher = any(each.startswith(("base_url:", "model:")) for each in self.nearest)
        return "another teacher" if teacher else "other settings", ", ".join(self.nearest)


def explain(orders: Iterable[Order], ledger_path: Path) -> Explanation:
    """Look every order up in the ledger at `ledger_path`. Raises UsageError for a file that is no ledger."""
    hits: dict[State, int] = {}
    misses: dict[tuple[Why, str], Miss] = {}

    def count(problem: Problem, sample: int, why: Why, detail: str) -> None:
        miss = misses.setdefault((why, detail), Miss(why, detail))
        miss.count += 1
        if len(miss.examples) < EXAMPLES:
            miss.examples.append((problem.id, sample))

    compared = 0
    if not ledger_path.exists():
        for order in orders:
            count(order.problem, order.sample, "never asked", "")
    else:
        with Ledger(ledger_path) as ledger:
            missing = []
            for group in chunks(orders, CHUNK):
                rows = ledger.outcomes([order.debt.key for order in group])
                for order in group:
                    row = rows.get(order.debt.key)
                    if row is None:
                        missing.append(order)
                    elif row.answered and row.state != "failed":
                        hits[row.state] = hits.get(row.state, 0) + 1
                    else:
                        count(order.problem, order.sample, *_unpaid(row))
            found, compared = _nearest(ledger, missing)
            for each in found:
                count(each.problem, each.sample, *each.why())
    ranked = sorted(misses.values(), key=lambda miss: -miss.count)
    return Explanation(hits, ranked, compared)


def _unpaid(row: Outcome) -> tuple[Why, str]:
    return ("failed", row.reason) if row.state == "failed" else ("no reply came", _NO_REPLY)


def _nearest(ledger: Ledger, orders: Sequence[Order]) -> tuple[list[_Missing], int]:
    """What is stored about the questions of `orders`, and the number of requests looked at."""
    known: dict[str, Asked] = {}  # equal settings are one object: an order costs some 100 bytes
    found: list[_Missing] = []
    questions: dict[bytes, list[_Missing]] = {}
    for order in orders:
        read = read_request(order.debt.teacher, order.debt.request, order.sample)
        template = Template.of(read.text, order.problem.question)
        asked = Asked(read.rest, template.text)
        asked = known.setdefault(repr(asked), asked)
        each = _Missing(order.problem, order.sample, asked)
        found.append(each)
        questions.setdefault(digest(template.question(read.text) or read.text), []).append(each)
    templates = list(dict.fromkeys(Template.parse(asked.prompt) for asked in known.values()))
    compared, strangers = _compare(ledger, templates, questions)
    lost = [each.problem.question for each in found if each.nearest is None]
    if more := [each for each in new_templates(strangers, lost) if each not in templates]:
        _compare(ledger, more, questions)
    return found, compared


def _compare(
    ledger: Ledger, templates: Sequence[Template], questions: Mapping[bytes, Sequence[_Missing]]
) -> tuple[int, list[str]]:
    """Compare every stored request that fits one of `templates`; gives their number, and some texts that fit
    none."""
    compared = 0
    strangers: list[str] = []
    for teacher in ledger.teachers() if questions else ():
        strange = 0
        for row in ledger.of_teacher(teacher):
            compared += 1
            read = read_request(teacher, row.request, row.sample)
            inner = [(each, question) for each in templates if (question := each.question(read.text))]
            met = False
            for template, question in inner:
                for missing in questions.get(digest(question), ()):
                    met = True
                    missing.compare(Asked(read.rest, template.text), row.sample)
            if not met and strange < STRANGERS:
                strange += 1
                strangers.append(read.text)
    return compared, strangers
