"""Do the judges agree? The rule, a second parser and perhaps a language model on the same traces.

The second parser is chosen to fail in other ways than the rule: math-verify where the rule reads numbers or
text, a bare comparison of the last number where the rule is math-verify.
Promises: pure counting over verdicts in the same order; agreement is counted over the traces that both judges
decided, with their number; every trace on which two judges contradict each other is listed.
Does not: change a verdict, or say who is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.decision import Decision, before_judging
from tutelage.verify.numbers import last_number, only_number
from tutelage.verify.workers import WorkerPool

RULE = "rule"
SECOND = "second parser"
JUDGE = "judge"
SHOWN = 20
Interval = Callable[[int, int], tuple[float, float]]
_LIMIT = 4000
_LOAD = {"op": "load-math"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two judges: `agree` of the `n` traces that both decided."""

    a: str
    b: str
    n: int
    agree: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A trace that one judge calls correct and another incorrect; verdicts in the order of the judges."""

    trace_id: str
    problem_id: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """`table` counts the traces by what each of `names` said of them, most frequent first."""

    names: tuple[str, ...]
    n: int
    table: Mapping[tuple[str, ...], int]
    pairs: tuple[Pair, ...]
    disagreements: tuple[Disagreement, ...]


def compare(opinions: Mapping[str, Sequence[Verdict]]) -> Agreement:
    """The agreement of judges (by name) whose verdicts are on the same traces, in the same order.

    Raises UsageError when they are not."""
    names = tuple(opinions)
    rows = list(zip(*opinions.values(), strict=True)) if opinions else []
    for row in rows:
        if len({verdict.trace_id for verdict in row}) > 1:
            raise UsageError(f"agreement: verdicts on different traces, {row[0].trace_id!r} is the first")
    table = Counter(tuple(str(verdict.status) for verdict in row) for row in rows)
    return Agreement(
        names=names,
        n=len(rows),
        table=dict(sorted(table.items(), key=lambda item: (-item[1], item[0]))),
        pairs=tuple(_pair(table, names, a, b) for a, b in combinations(range(len(names)), 2)),
        disagreements=tuple(
            Disagreement(row[0].trace_id, row[0].problem_id, tuple(row))
            for row in rows
            if {"correct", "incorrect"} <= {verdict.status for verdict in row}
        ),
    )


def _pair(table: Mapping[tuple[str, ...], int], names: Sequence[str], a: int, b: int) -> Pair:
    both = [(key, count) for key, count in table.items() if "undecided" not in (key[a], key[b])]
    return Pair(
        names[a],
        names[b],
        sum(count for _, count in both),
        sum(count for key, count in both if key[a] == key[b]),
    )


def second_opinions(
    problems: Mapping[str, Problem], traces: Sequence[Trace], pool: WorkerPool
) -> Iterator[Verdict]:
    """What the second parser says of each trace, in their order."""
    for trace in traces:
        problem = problems[trace.problem_id]
        status, reason, method, extracted = second_parser(problem, trace.answer, pool)
        yield Verdict(trace.id, problem.id, status, reason, method, extracted and extracted[:1000])


def second_parser(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    """The decision of another parser than the checker's own. Never raises."""
    if problem.checker not in ("number", "exact", "math"):
        return "undecided", "this checker has no second parser", SECOND, None
    if (early := before_judging(problem, answer, SECOND)) is not None:
        return early
    gold = problem.gold or ""
    marked_gold = marked_answer(gold)
    wanted = marked_gold.text if marked_gold is not None else gold.strip()
    return _by_last_number(wanted, answer) if problem.checker == "math" else _by_math(wanted, answer, pool)


def _by_last_number(wanted: str, answer: str) -> Decision:
    value = only_number(wanted).value
    if value is None:
        return "undecided", "the gold answer is not one number", "last number", None
    found = last_number(answer)
    if found is None or found.value is None:
        problem = "no number" if found is None else found.problem
        return "undecided", f"last number: {problem}", "last number", None if found is None else found.text
    if found.value == value:
        return "correct", "last number: equal", "last number", found.text
    return "incorrect", "last number: not equal", "last number", found.text


def _by_math(wanted: str, answer: str, pool: WorkerPool) -> Decision:
    marked = marked_answer(answer)
    # math-verify reads no number that a period follows.
    line = (marked.text if marked is not None else last_line(answer, _LIMIT)[0])[-_LIMIT:].removesuffix(".")
    reply = pool.ask({"op": "math", "gold": wanted[:_LIMIT], "answer": line}, _LOAD)
    if "failed" in reply:
        return "undecided", reply["failed"], "math-verify", line
    return reply["status"], reply["reason"], "math-verify", line


def as_json(found: Agreement, interval: Interval, shown: int | None = None) -> dict[str, Any]:
    """The agreement as JSON-serialisable data, with the first `shown` disagreements (None: all).
    `interval(successes, n)` gives the two ends of a 95 % interval of a share."""
    pairs = [
        {
            "judges": [pair.a, pair.b],
            "decided_by_both": pair.n,
            "agree": pair.agree,
            "interval": list(interval(pair.agree, pair.n)) if pair.n else None,
        }
        for pair in found.pairs
    ]
    listed = [
        {
            "trace": each.trace_id,
            "problem": each.problem_id,
            "verdicts": [
                {"status": v.status, "extracted": _short(v.extracted), "reason": _short(v.reason)}
                for v in each.verdicts
            ],
        }
        for each in islice(found.disagreements, shown)
    ]
    return {
        "judges": list(found.names),
        "traces": found.n,
        "table": [{"statuses": list(key), "traces": count} for key, count in found.table.items()],
        "pairs": pairs,
        "disagreements": len(found.disagreements),
        "listed": listed,
    }


def as_text(document: Mapping[str, Any], shown: int = SHOWN) -> str:
    """What `as_json` gave, for people."""
    names = document["judges"]
    widths = [max(len(name), len("undecided")) for name in names]

    def line(cells: Sequence[str], last: str) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"  {'  '.join(padded)}  {last:>8}"

    lines = [f"agreement on {document['traces']:,} traces", line(names, "traces")]
    lines += [line(row["statuses"], f"{row['traces']:,}") for row in document["table"]]
    for pair in document["pairs"]:
        both, n, agree = " and ".join(pair["judges"]), pair["decided_by_both"], pair["agree"]
        if not n:
            lines.append(f"{both}: no trace that both decided")
            continue
        low, high = pair["interval"]
        share = f"{agree / n:.1%}; 95 % interval {low:.1%} to {high:.1%}"
        lines.append(f"{both}: agree on {agree:,} of {n:,} that both decided ({share})")
    if document["listed"]:
        count = min(shown, len(document["listed"]))
        lines.append(f"disagreements, {count:,} of {document['disagreements']:,}:")
    for each in document["listed"][:shown]:
        said = "; ".join(
            f"{name}: {v['status']} ({_short(v['extracted'], 60)!r}, {_short(v['reason'], 80)})"
            for name, v in zip(names, each["verdicts"], strict=True)
        )
        lines.append(f"  {each['trace']} of {each['problem']}: {said}")
    return "\n".join(lines)


def _short(text: str | None, limit: int = 200) -> str | None:
    """One line of text for a table, without control characters."""
    if text is None:
        return None
    plain = "".join(each if each.isprintable() else " " for each in text[: 2 * limit])
    plain = " ".join(plain.split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
