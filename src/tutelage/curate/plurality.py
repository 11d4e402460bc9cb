"""The answer that most of several independent replies give, as the reference answer.

Promises: a new reference answer is one that the problem's checker accepts for every reply that gives it; the
share and the counts of the votes are kept beside it; every problem that is dropped says how the votes fell;
a reply without an answer agrees with none (three equal ones beside five that were cut are not agreement); a
trace that another one supersedes does not vote; a problem keeps the reference answer it came with unless
`replace` says otherwise, and says whether the votes agree with it.
Does not: collect replies, or make an answer true: a model that is wrong with confidence is wrong here too,
which is what the share is kept for. Programs and puzzles have no one answer to vote on and are refused.

Source: Phi-4, arXiv 2412.08905, section 2.2: several answers to each question; it is dropped when all agree
(too easy) or when they are entirely inconsistent (too hard, or ambiguous), and the majority answer stands in
for the truth. How many answers, and what counts as inconsistent, is not disclosed: the numbers here are our
own choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace as changed
from typing import Any

from tutelage.curate.drops import Drop
from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.records import Problem, Trace, by_id, clean_text
from tutelage.think.vote import vote
from tutelage.verify import WorkerPool, check_trace, require_checkers
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.canonical import canonical

STAGE = "plurality"
GOLD_FROM = "plurality"
TOP = 5
"""So many different answers are kept with their counts."""
_LONGEST_GOLD = 1000
_SHOWN = 80
_NO_VOTE = ("code", "gym:")


def plurality(
    problems: Sequence[Problem],
    traces: Iterable[Trace],
    *,
    least_votes: int = 3,
    least_share: float = 0.5,
    most_share: float = 1.0,
    replace: bool = False,
    pool: WorkerPool | None = None,
) -> tuple[list[Problem], list[Drop]]:
    """The problems whose votes are neither too clear nor too scattered, and a drop for each other one.

    Rules, the first that holds decides: `too-few-answers` (less than `least_votes` replies have one);
    `all-agree` (the share of the leading answer among all replies is `most_share` or more); `none-agree`
    (that share is below `least_share`, or no two replies agree); `tie` (another answer has as many votes);
    `not-checkable` (the checker does not accept the leading answer, as gold, for the replies that give it).

    A problem that is kept gains in its metadata `vote_share`, `votes` (for the leading answer) and `answers`
    (the `TOP` most frequent with their counts); with a new gold answer `gold_from`; with one from before
    `gold_agrees` (True, False, or None where the checker is undecided), and `gold_before` where it was
    replaced. The leading answer's text is taken from the first reply that gives it. Answers are counted in
    their canonical form (`verify.canonical`). Traces of problems that are not here are passed over. `pool`
    serves checkers that need worker processes.

    Raises UsageError for bounds outside their range, two problems of one id, a checker that is unknown or
    whose answers cannot be voted on."""
    _check(least_votes, least_share, most_share)
    if pool is None:
        with WorkerPool() as own:
            return plurality(
                problems,
                traces,
                least_votes=least_votes,
                least_share=least_share,
                most_share=most_share,
                replace=replace,
                pool=own,
            )
    replies: dict[str, list[Trace]] = {problem_id: [] for problem_id in by_id(problems)}
    for problem in problems:
        if problem.checker.startswith(_NO_VOTE):
            raise UsageError(
                f"problem {problem.id!r}: answers for the checker {problem.checker!r} cannot be voted on;"
                " leave such problems out of plurality"
            )
    require_checkers(problems, pool)
    for trace in _standing(traces):
        if trace.problem_id in replies:
            replies[trace.problem_id].append(trace)
    kept: list[Problem] = []
    drops: list[Drop] = []
    for problem in problems:
        attempts = replies[problem.id]
        answers = [canonical(problem, trace.answer) for trace in attempts]
        counts = Counter(answer for answer in answers if answer is not None)
        why = _why_not(counts, len(attempts), least_votes, least_share, most_share)
        if why is None:
            first = vote(answers)
            assert first is not None  # two replies agree
            leaders = [
                trace for trace, answer in zip(attempts, answers, strict=True) if answer == answers[first]
            ]
            new = _with_plurality(problem, leaders, counts, len(attempts), replace, pool)
            if new is not None:
                kept.append(new)
                continue
            leading = visible(counts.most_common(1)[0][0][:_SHOWN])
            why = ("not-checkable", f"the checker does not read the leading answer {leading!r}", None)
        drops.append(Drop(problem.id, problem.id, STAGE, *why))
    return kept, drops


def _standing(traces: Iterable[Trace]) -> list[Trace]:
    listed = list(traces)
    superseded = {trace.supersedes for trace in listed}
    return [trace for trace in listed if trace.id not in superseded]


def _why_not(
    counts: Counter[str], replies: int, least_votes: int, least_share: float, most_share: float
) -> tuple[str, str, float | None] | None:
    """The rule that drops, its evidence, and the share of the leading answer."""
    given = counts.total()
    if given < least_votes:
        return (
            "too-few-answers",
            f"{given} of {replies} replies have an answer, less than {least_votes}",
            None,
        )
    (_, most), *others = counts.most_common(2)
    share = most / replies
    said = f"{most} of {replies} replies agree, on one of {len(counts)} answers"
    if share >= most_share:
        return "all-agree", f"{said}; {most_share:g} or more is too easy", share
    if share < least_share or most < 2:
        return "none-agree", f"{said}; less than {max(least_share, 2 / replies):g} is too scattered", share
    if others and others[0][1] == most:
        return "tie", f"{said}, and as many on another", share
    return None


def _with_plurality(
    problem: Problem,
    leaders: Sequence[Trace],
    counts: Counter[str],
    replies: int,
    replace: bool,
    pool: WorkerPool,
) -> Problem | None:
    """The problem with what the votes say; None when a gold answer is needed and cannot be had."""
    leading = counts.most_common(1)[0]
    found: dict[str, Any] = {
        "vote_share": leading[1] / replies,
        "votes": leading[1],
        "answers": [[clean_text(answer[:_SHOWN]), count] for answer, count in counts.most_common(TOP)],
    }
    before = problem.gold if (problem.gold or "").strip() else None
    if before is not None:
        status = check_trace(problem, leaders[0], pool).status
        found["gold_agrees"] = None if status == "undecided" else status == "correct"
        if not replace:
            return changed(problem, metadata={**problem.metadata, **found})
        found["gold_before"] = before
    for gold in _written(leaders[0].answer, leading[0]):
        new = changed(problem, gold=gold)
        if all(check_trace(new, trace, pool).status == "correct" for trace in leaders):
            return changed(new, metadata={**problem.metadata, **found, "gold_from": GOLD_FROM})
    return None


def _written(answer: str, leading: str) -> list[str]:
    """How the leading answer may be written as a gold answer, best first: in canonical form, then as its
    reply has it (a canonical form may have lost what a checker needs: "5 feet 3 inches" counts as inches)."""
    marked = marked_answer(answer)
    written = [leading, last_line(answer)[0] if marked is None else marked.text]
    return [
        text
        for each in dict.fromkeys(written)
        if (text := clean_text(each).strip()) and len(text) < _LONGEST_GOLD
    ]


def _check(least_votes: int, least_share: float, most_share: float) -> None:
    if least_votes < 2:
        raise UsageError(f"plurality: least_votes is {least_votes}; it must be at least 2")
    if not 0 <= least_share <= 1:
        raise UsageError(f"plurality: least_share is {least_share:g}; it is a share from 0 to 1")
    if not least_share <= most_share:
        raise UsageError(
            f"plurality: most_share is {most_share:g}, below least_share {least_share:g}; nothing is kept"
        )
