"""The answer of most replies as the reference answer."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate.drops import Drop
from tutelage.curate.plurality import plurality
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, read_records, write_records
from tutelage.verify import WorkerPool, check_trace


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool() as pool:
        yield pool


def replies(answers: Sequence[str], problem: str = "p") -> list[Trace]:
    return [Trace(f"{problem}{n}", problem, n, "m", answer) for n, answer in enumerate(answers)]


def one(answers: Sequence[str], *, gold: str | None = None, checker: str = "number", **more: Any) -> Any:
    """The one problem that is kept, or the one drop."""
    kept, drops = plurality([Problem("p", "?", gold, checker)], replies(answers), **more)
    (found,) = [*kept, *drops]
    return found


def test_the_answer_of_most_replies_becomes_the_gold_answer() -> None:
    found = one(["I get 7", "so it is $1,200", "#### 1200", r"\boxed{1200.0}", ""], least_share=0.4)
    assert found.gold == "1200"
    assert found.metadata == {
        "gold_from": "plurality",
        "vote_share": 0.4,
        "votes": 2,
        "answers": [["1200", 2], ["7", 1], ["1200 $", 1]],
    }


@pytest.mark.parametrize(
    ("answers", "rule", "reason", "score"),
    [
        ([], "too-few-answers", "0 of 0 replies have an answer, less than 3", None),
        (["5", "5", "", "?"], "too-few-answers", "2 of 4 replies have an answer, less than 3", None),
        (["5"] * 4, "all-agree", "4 of 4 replies agree, on one of 1 answers; 1 or more is too easy", 1.0),
        (list("1234"), "none-agree", "1 of 4 replies agree, on one of 4 answers; less than 0.5", 0.25),
        (list("5512"), "", "", None),
        (list("55123"), "none-agree", "2 of 5 replies agree, on one of 4 answers; less than 0.5", 0.4),
        (list("5566"), "tie", "2 of 4 replies agree, on one of 2 answers, and as many on another", 0.5),
        (["5"] * 3 + [""] * 5, "none-agree", "3 of 8 replies agree, on one of 1 answers; less than", 0.375),
        (["5"] * 3 + [""], "", "", None),
    ],
)
def test_the_rules(answers: list[str], rule: str, reason: str, score: float | None) -> None:
    found = one(answers)
    if not rule:
        assert isinstance(found, Problem) and found.gold == "5"
        return
    assert isinstance(found, Drop)
    assert (found.record_id, found.stage, found.rule, found.score) == ("p", "plurality", rule, score)
    assert found.reason.startswith(reason)


def test_the_bounds_can_be_set() -> None:
    assert one(list("55123"), least_share=0.4).gold == "5"
    assert one(list("5551"), most_share=0.75).rule == "all-agree"
    assert one(["5"] * 4, most_share=1.01).gold == "5"
    assert one(list("12"), least_votes=2, least_share=0.0).rule == "none-agree"
    assert one(list("551"), least_votes=4).rule == "too-few-answers"


def test_a_gold_answer_from_before_stays_and_says_whether_the_votes_agree() -> None:
    for gold, agrees in (("5", True), ("5.0 km", True), ("6", False), ("what", None)):
        found = one(list("5551"), gold=gold)
        assert found.gold == gold and found.metadata["gold_agrees"] is agrees
        assert "gold_from" not in found.metadata and found.metadata["vote_share"] == 0.75
        new = one(list("5551"), gold=gold, replace=True)
        assert new.gold == "5" and new.metadata["gold_before"] == gold
        assert new.metadata["gold_agrees"] is agrees and new.metadata["gold_from"] == "plurality"
    assert one(list("5551"), gold=" ").metadata["gold_from"] == "plurality"


def test_a_superseded_trace_does_not_vote() -> None:
    traces = replies(["5", "5", "6", "6", "6"])
    traces.append(Trace("again", "p", 4, "m", "5", supersedes="p4"))
    (kept,), _ = plurality([Problem("p", "?")], traces)
    assert kept.gold == "5" and kept.metadata["answers"] == [["5", 3], ["6", 2]]


def test_order_of_problems_other_traces_and_other_metadata(tmp_path: Any) -> None:
    problems = [Problem(name, "?", metadata={"tolerance": 0.01}) for name in "cab"]
    traces = [*replies(list("5551"), "a"), *replies(list("9"), "z"), *replies(list("7772"), "c")]
    kept, drops = plurality(problems, traces)
    assert [(problem.id, problem.gold) for problem in kept] == [("c", "7"), ("a", "5")]
    assert [(drop.problem_id, drop.rule) for drop in drops] == [("b", "too-few-answers")]
    assert kept[0].metadata["tolerance"] == 0.01 and problems[0].metadata == {"tolerance": 0.01}
    write_records(tmp_path / "p.parquet", kept, Problem)
    assert read_records(tmp_path / "p.parquet", Problem) == kept


ANSWERS = {
    "number": [
        "The answer is 5 feet 3 inches",
        "so 50%",
        "It costs $1,234.50.",
        r"\boxed{\frac{1}{2}}",
        "3 km",
    ],
    "choice": ["The answer is (B).", r"\boxed{C}", "**A**"],
    "exact": ["The answer is **Paris**.", r"\boxed{\text{Rome}}", "a b\nc d"],
    "math": [r"so $\boxed{x^2+1}$", r"\boxed{\frac{1}{2}}", r"The answer is $\sqrt{2}$"],
}


@pytest.mark.parametrize("checker", list(ANSWERS))
def test_the_checker_accepts_the_new_gold_answer_for_each_reply_that_gives_it(
    checker: str, pool: WorkerPool
) -> None:
    other = {"choice": "(D)", "number": "77", "exact": "Bern", "math": r"\boxed{77}"}[checker]
    for answer in ANSWERS[checker]:
        found = one([other, answer, answer, answer], checker=checker, pool=pool)
        assert isinstance(found, Problem), found
        for trace in replies([answer] * 2):
            assert check_trace(found, trace, pool).status == "correct", (answer, found.gold)
        assert check_trace(found, replies([other])[0], pool).status != "correct", (answer, found.gold)


def test_quantities_of_several_units_vote_apart_and_can_be_gold(pool: WorkerPool) -> None:
    """Read by their first number, both would count as "5 feet"."""
    three, four = "The answer is 5 feet 3 inches", "The answer is 5 feet 4 inches"
    found = one([three, three, three, four, "2 feet"], pool=pool)
    assert isinstance(found, Problem) and found.gold == "5 feet 3 inches"
    assert found.metadata["answers"][0] == ["63 inches or 5 feet", 3]
    statuses = [check_trace(found, trace, pool).status for trace in replies([three, "63 inches", four])]
    assert statuses == ["correct", "correct", "incorrect"]


def test_hostile_answers() -> None:
    huge = "\ud800\x1b[31m<b>" + "9" * 10_000_000
    found = one([huge, huge, huge, "x"], checker="exact")
    assert isinstance(found, Drop) and found.rule == "not-checkable"
    found.reason.encode()
    assert "\x1b" not in found.reason and len(found.reason) < 300
    short = one(["\ud800<b>", "\ud800<b>", "x"], checker="exact")
    assert isinstance(short, Drop) or short.gold.encode()


@given(st.lists(st.sampled_from(["1", "2", "3", ""]), max_size=9), st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_kept_answer_is_the_only_leader(pool: WorkerPool, answers: list[str], gold: bool) -> None:
    found = one(answers, gold="2" if gold else None, pool=pool)
    counts = Counter(answer for answer in answers if answer).most_common()
    if isinstance(found, Problem):
        leading, votes = counts[0]
        assert len(counts) < 2 or counts[1][1] < votes
        assert found.gold == ("2" if gold else leading)
        assert found.metadata["votes"] == votes and 0.5 <= found.metadata["vote_share"] < 1
    elif found.rule == "tie":
        assert counts[0][1] == counts[1][1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"least_votes": 1}, "least_votes is 1"),
        ({"least_share": 1.5}, "least_share is 1.5"),
        ({"least_share": float("nan")}, "least_share is nan"),
        ({"most_share": 0.4}, "most_share is 0.4, below least_share 0.5"),
        ({"checker": "code"}, "'p': answers for the checker 'code' cannot be voted on"),
        ({"checker": "gym:sudoku"}, "cannot be voted on"),
        ({"checker": "nummer"}, "unknown checker 'nummer'"),
    ],
)
def test_what_cannot_be_meant_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        one(["5"], **more)
    with pytest.raises(UsageError, match="share the id"):
        plurality([Problem("p", "?")] * 2, [])
