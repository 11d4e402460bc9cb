"""The agreement of rule, second parser and judge."""

from __future__ import annotations

import json

import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem, Status, Trace, Verdict
from tutelage.verify.agreement import as_json, as_text, compare, second_opinions, second_parser
from tutelage.verify.workers import WorkerPool


def verdicts(*statuses: Status, reason: str = "because") -> list[Verdict]:
    return [Verdict(f"t{n}", f"p{n}", status, reason, "m", "5") for n, status in enumerate(statuses)]


def interval(successes: int, n: int) -> tuple[float, float]:
    return successes / n - 0.1, successes / n + 0.1


OPINIONS = {
    "rule": verdicts("correct", "incorrect", "undecided", "correct", "correct"),
    "second parser": verdicts("correct", "correct", "undecided", "undecided", "correct"),
    "judge": verdicts("correct", "incorrect", "correct", "undecided", "correct"),
}


def test_the_table_counts_every_trace_once() -> None:
    found = compare(OPINIONS)
    assert found.table == {
        ("correct", "correct", "correct"): 2,
        ("correct", "undecided", "undecided"): 1,
        ("incorrect", "correct", "incorrect"): 1,
        ("undecided", "undecided", "correct"): 1,
    }
    assert next(iter(found.table.values())) == 2 and sum(found.table.values()) == found.n == 5


def test_pairs_count_what_both_decided() -> None:
    pairs = {(pair.a, pair.b): (pair.agree, pair.n) for pair in compare(OPINIONS).pairs}
    assert pairs == {
        ("rule", "second parser"): (2, 3),
        ("rule", "judge"): (3, 3),
        ("second parser", "judge"): (2, 3),
    }


def test_contradictions_are_listed_and_undecided_is_none() -> None:
    ((only,),) = (compare(OPINIONS).disagreements,)
    assert (only.trace_id, [v.status for v in only.verdicts]) == ("t1", ["incorrect", "correct", "incorrect"])


def test_different_traces_and_nothing_at_all() -> None:
    with pytest.raises(UsageError, match="different traces"):
        compare({"a": verdicts("correct"), "b": [Verdict("other", "p", "correct", "", "")]})
    with pytest.raises(ValueError, match="zip"):
        compare({"a": verdicts("correct"), "b": []})
    assert compare({}).n == 0 and "0 traces" in as_text(as_json(compare({"rule": []}), interval))


def test_the_text_and_the_document() -> None:
    found = compare({**OPINIONS, "judge": verdicts(*(["correct"] * 5), reason="\x1b[31m\n<b>" + "x" * 5000)})
    document = json.loads(json.dumps(as_json(found, interval, 10)))
    assert document["disagreements"] == 1 and len(document["table"]) == 4
    text = as_text(document, shown=1)
    assert "agreement on 5 traces" in text
    assert "rule and second parser: agree on 2 of 3 that both decided (66.7%; 95 % interval" in text
    assert "disagreements, 1 of 1:" in text and "\x1b" not in text and len(text) < 2000
    nothing = compare({"a": verdicts("undecided"), "b": verdicts("correct")})
    assert "no trace that both decided" in as_text(as_json(nothing, interval))


def test_second_parsers() -> None:
    with WorkerPool(seconds=60) as pool:

        def said(kind: str, gold: str | None, answer: str) -> tuple[str, str]:
            status, _, method, _ = second_parser(Problem("p", "q", gold, kind), answer, pool)
            return status, method

        assert said("number", "0.5", r"So \boxed{\frac{1}{2}}") == ("correct", "math-verify")
        assert said("number", "#### 12", "It is 13.") == ("incorrect", "math-verify")
        assert said("exact", "x+1", "$1+x$") == ("correct", "math-verify")
        assert said("math", "12", "first 13, then 12") == ("correct", "last number")
        assert said("math", "12", r"\boxed{12}, not 13") == ("incorrect", "last number")
        assert said("math", r"\frac{x}{2}", "x/2") == ("undecided", "last number")
        assert said("math", "12", "no number") == ("undecided", "last number")
        assert said("number", None, "12")[0] == "undecided"
        assert said("number", "12", " ")[0] == "incorrect"
        assert said("choice", "A", "A") == ("undecided", "second parser")
        problem = Problem("p", "q", "7", "math")
        traces = [Trace(f"t{n}", "p", n, "m", str(n)) for n in (6, 7)]
        found = list(second_opinions({"p": problem}, traces, pool))
        assert [(v.trace_id, v.status) for v in found] == [("t6", "incorrect"), ("t7", "correct")]
