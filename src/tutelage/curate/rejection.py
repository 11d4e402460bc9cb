"""Rejection sampling: which traces to learn from.

Promises: deterministic (problems in the order of their first trace, samples by their number); with `correct`
only traces with the verdict `correct` stay, and a trace without a verdict is an error, not a guess; every
trace that does not stay has a drop with its reason; a trace that another one supersedes never stays; what is
taken of one problem does not depend on the others.
Does not: judge. It prefers neither short nor long traces unless told to: `first` leaves the teacher's
distribution given "correct" as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, get_args

from tutelage.curate.drops import Drop
from tutelage.curate.limo import Features, features, scores
from tutelage.errors import UsageError
from tutelage.records import Trace, Verdict

Keep = Literal["all", "correct"]
Prefer = Literal["first", "longest", "shortest", "limo"]
TraceRule = Literal["incorrect", "undecided", "superseded", "surplus"]

STAGE = "traces"
_AHEAD = {"longest": "as long", "shortest": "as short", "limo": "as high in LIMO's score"}


class Attempt(Protocol):
    """What is known of a trace: `tokens` (None: not told) and `words` of thinking, and the `counts` that
    LIMO's score takes (asked for with `prefer="limo"` only)."""

    @property
    def id(self) -> str: ...
    @property
    def problem_id(self) -> str: ...
    @property
    def sample(self) -> int: ...
    @property
    def supersedes(self) -> str | None: ...
    @property
    def tokens(self) -> int | None: ...
    @property
    def words(self) -> int: ...
    @property
    def counts(self) -> Features | None: ...


Some = TypeVar("Some", bound=Attempt)


@dataclass(frozen=True, slots=True)
class _Text:
    """A trace whose words are counted when they are asked for."""

    trace: Trace

    @property
    def id(self) -> str:
        return self.trace.id

    @property
    def problem_id(self) -> str:
        return self.trace.problem_id

    @property
    def sample(self) -> int:
        return self.trace.sample

    @property
    def supersedes(self) -> str | None:
        return self.trace.supersedes

    @property
    def tokens(self) -> int | None:
        return self.trace.thinking_tokens

    @property
    def words(self) -> int:
        return self.counts.words

    @property
    def counts(self) -> Features:
        return features(self.trace.thinking)


def reject(
    traces: Sequence[Trace],
    verdicts: Iterable[Verdict],
    *,
    keep: Keep,
    per_problem: int = 1,
    prefer: Prefer = "first",
) -> tuple[list[Trace], list[Drop]]:
    """`choose` among traces.

    Raises UsageError as it does, and for two verdicts on one trace."""
    kept, drops = choose(
        [_Text(trace) for trace in traces],
        judged(verdicts),
        keep=keep,
        per_problem=per_problem,
        prefer=prefer,
    )
    return [each.trace for each in kept], drops


def judged(verdicts: Iterable[Verdict]) -> dict[str, Verdict]:
    """Verdicts by trace. Raises UsageError where a trace has two."""
    found: dict[str, Verdict] = {}
    for verdict in verdicts:
        if verdict.trace_id in found:
            raise UsageError(f"trace {verdict.trace_id!r} has two verdicts")
        found[verdict.trace_id] = verdict
    return found


def choose(
    attempts: Sequence[Some],
    verdicts: Mapping[str, Verdict],
    *,
    keep: Keep,
    per_problem: int = 1,
    prefer: Prefer = "first",
) -> tuple[list[Some], list[Drop]]:
    """`per_problem` attempts at each problem that pass, and a drop (stage `traces`) for every other one: its
    verdict (`incorrect`, `undecided`), `superseded` by a retry, or `surplus` (its problem has enough).

    With `keep="all"` right and wrong pass alike (verdicts are not looked at). Of those that pass are taken
    the `first`, the `longest` or `shortest` (by tokens of thinking where all that pass tell them, else by
    words), or those with the highest score of LIMO (`curate.limo`, compared within the problem); of equal
    ones that with the lower sample number. With `keep="all"` the longest are often those that were cut off.
    The `score` of a surplus drop is its length or score, None with `first`.
    Raises UsageError for an unknown `keep` or `prefer`, `per_problem` below 1, and, with `correct`, an
    attempt without a verdict."""
    for name, value, known in (("keep", keep, Keep), ("prefer", prefer, Prefer)):
        if value not in get_args(known):
            raise UsageError(f"{name} is {value!r}; use {' or '.join(get_args(known))}")
    if per_problem < 1:
        raise UsageError(f"per_problem is {per_problem}; it must be at least 1")
    superseded = {each.supersedes: each.id for each in attempts if each.supersedes is not None}
    by_problem: dict[str, list[Some]] = {}
    for each in attempts:
        by_problem.setdefault(each.problem_id, []).append(each)

    kept: list[Some] = []
    drops: list[Drop] = []
    for problem_id, own in by_problem.items():
        own.sort(key=lambda each: each.sample)
        why = [_why_not(each, verdicts, superseded, keep) for each in own]
        passed = [place for place, found in enumerate(why) if found is None]
        surplus = _surplus([own[place] for place in passed], per_problem, prefer)
        left_out = {passed[place]: found for place, found in surplus.items()}
        for place, each in enumerate(own):
            if (found := why[place]) is not None:
                drops.append(Drop(each.id, problem_id, STAGE, *found))
            elif place in left_out:
                drops.append(Drop(each.id, problem_id, STAGE, "surplus", *left_out[place]))
            else:
                kept.append(each)
    return kept, drops


def _why_not(
    attempt: Attempt, verdicts: Mapping[str, Verdict], superseded: Mapping[str, str], keep: Keep
) -> tuple[TraceRule, str] | None:
    if attempt.id in superseded:
        return "superseded", f"superseded by {superseded[attempt.id]}"
    if keep == "all":
        return None
    verdict = verdicts.get(attempt.id)
    if verdict is None:
        raise UsageError(f"trace {attempt.id!r} has no verdict; verify the traces first")
    if verdict.status == "correct":
        return None
    return verdict.status, verdict.reason


def _surplus(
    passed: Sequence[Attempt], per_problem: int, prefer: Prefer
) -> dict[int, tuple[str, float | None]]:
    """The places in `passed` (one problem's, by sample number) beyond the `per_problem` preferred ones, with
    the reason and what was measured."""
    if len(passed) <= per_problem:
        return {}
    if prefer == "first":
        reason = f"the problem has {per_problem} already"
        return dict.fromkeys(range(per_problem, len(passed)), (reason, None))
    measured, unit = _measured(passed, prefer)
    sign = 1 if prefer == "shortest" else -1
    order = sorted(range(len(passed)), key=lambda place: sign * measured[place])  # stable: by sample number
    said = f"{per_problem} at least {_AHEAD[prefer]} {'was' if per_problem == 1 else 'were'} taken"
    return {
        place: (f"{said} (this one: {measured[place]:,}{unit})", float(measured[place]))
        for place in order[per_problem:]
    }


def _measured(passed: Sequence[Attempt], prefer: Prefer) -> tuple[Sequence[float], str]:
    if prefer == "limo":
        counts = [each.counts for each in passed]
        # Rounded, so that scores that differ by the rounding of their sums alone are equal.
        return [round(score, 6) for score in scores([each for each in counts if each is not None])], ""
    told = [each.tokens for each in passed if each.tokens is not None]
    if len(told) == len(passed):
        return told, " tokens of thinking"
    return [each.words for each in passed], " words of thinking"
