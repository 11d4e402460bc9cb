"""Buy chosen traces again: the truncated ones with a larger token limit, say.

Promises: only the attempts that a filter chose are asked for; the new trace names the old one in
`supersedes`, the old one stays a record. The same retry again chooses nothing: a trace that is superseded is
not chosen, and a request equal to the trace's own is not sent.
Does not: read or write files of traces, or decide which of the two is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tutelage.errors import UsageError
from tutelage.ledger import Ledger, Settled
from tutelage.records import Problem, Trace, by_id, stable_hash
from tutelage.teachers.collect import CollectResult, Source
from tutelage.teachers.orders import Bought, Order, chunks
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.replies import Parsed
from tutelage.teachers.teacher import Teacher
from tutelage.teachers.watch import Watch

FIELDS = ("finish_reason", "closed_by", "maker", "problem_id", "id")
# States of replies that are here; what failed or is owed is bought by collecting, without a retry.
STATES = ("done", "truncated", "refused", "empty")
# Trace ids that the ledger is asked about together.
CHUNK = 500

Collect = Callable[[Sequence[Problem], Teacher], CollectResult]
"""`collect` with one sample per problem, and all else decided."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which traces: all `terms` (field, value) are equal, and the ledger's state is `state` ("": any)."""

    terms: tuple[tuple[str, str], ...]
    state: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A trace that a filter chose, without its texts."""

    trace_id: str
    problem_id: str
    sample: int
    request_key: str


@dataclass(frozen=True, slots=True)
class Retried:
    """`traces` are the new ones, each with `supersedes`, as often as you iterate. `chosen` traces matched;
    `same` of them would ask what was asked before, `unknown` belong to a problem that was not given; the rest
    is in `found`, the result of collecting them."""

    chosen: int
    same: int
    unknown: int
    found: CollectResult
    traces: Iterable[Trace]


def parse_filter(text: str) -> Filter:
    """`finish_reason=length`, or several with commas, all of which must hold.

    Raises UsageError for an unknown field or state, and for what is not field=value."""
    terms: list[tuple[str, str]] = []
    state = ""
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not name or not value:
            raise UsageError(f"--retry {text!r}: write it as field=value, such as finish_reason=length")
        if name == "state":
            if value not in STATES:
                raise UsageError(f"--retry {text!r}: no state {value!r}; states are {', '.join(STATES)}")
            if state not in ("", value):
                raise UsageError(f"--retry {text!r}: a trace has one state")
            state = value
        elif name in FIELDS:
            terms.append((name, value))
        else:
            known = ", ".join(("state", *FIELDS))
            raise UsageError(
                f"--retry {text!r}: traces have no field {name!r} to choose by; there is: {known}"
            )
    return Filter(tuple(terms), state)


def choose(
    traces: Iterable[Trace], wanted: Filter, states: Callable[[Sequence[str]], Mapping[str, Any]]
) -> list[Attempt]:
    """The traces that `wanted` names and no other one of `traces` supersedes, in their order.

    `states` gives the (state, answered) of request keys, as `Ledger.states` does."""
    superseded: set[str] = set()
    found: list[Attempt] = []
    for group in chunks(traces, CHUNK):
        superseded.update(trace.supersedes for trace in group if trace.supersedes is not None)
        fits = [each for each in group if all(getattr(each, name) == value for name, value in wanted.terms)]
        if wanted.state:
            known = states([trace.request_key for trace in fits if trace.request_key])
            fits = [each for each in fits if known.get(each.request_key, ("",))[0] == wanted.state]
        found += [Attempt(each.id, each.problem_id, each.sample, each.request_key) for each in fits]
    return [each for each in found if each.trace_id not in superseded]


def retry(
    attempts: Sequence[Attempt], problems: Sequence[Problem], teacher: Source, collect: Collect
) -> Retried:
    """Ask `teacher` again for each of `attempts`: the same problem and sample, with the settings it has now.

    Raises what `collect` raises, and UsageError for a replay, which can ask nothing."""
    if isinstance(teacher, ReplayTeacher):
        raise UsageError(
            "--retry: recorded traces cannot be asked for again; give the teacher to ask instead"
        )
    teacher.check()
    known = by_id(problems)
    asked = {
        each.trace_id: (known[each.problem_id], each.sample) for each in attempts if each.problem_id in known
    }
    same = [
        each.trace_id
        for each in attempts
        if each.trace_id in asked and teacher.order(*asked[each.trace_id]).debt.key == each.request_key
    ]
    for trace_id in same:
        del asked[trace_id]
    single = Single(teacher, asked)
    found = collect(single.problems(), single)
    unknown = sum(each.problem_id not in known for each in attempts)
    return Retried(len(attempts), len(same), unknown, found, NewTraces(single, found.traces))


@dataclass(frozen=True, slots=True)
class Single:
    """`teacher`, asked for chosen attempts only: each of `attempts` (by the id of the trace to supersede) is
    given out as a problem with that id and one sample, so that one call collects them all at once."""

    teacher: Teacher
    attempts: Mapping[str, tuple[Problem, int]]

    def problems(self) -> list[Problem]:
        """One problem per attempt."""
        return [replace(problem, id=name) for name, (problem, _) in self.attempts.items()]

    @property
    def maker(self) -> str:
        return self.teacher.maker

    def check(self) -> None:
        """See Teacher."""
        self.teacher.check()

    def order(self, problem: Problem, sample: int) -> Order:
        """The teacher's own order for the attempt that `problem` stands for."""
        return self.teacher.order(*self.attempts[problem.id])

    def read(self, raw: bytes) -> Parsed:
        """See Teacher."""
        return self.teacher.read(raw)

    def settled(self, found: Parsed) -> Settled:
        """See Teacher."""
        return self.teacher.settled(found)

    def trace_settings(self, sample: int) -> dict[str, Any]:
        """See Teacher."""
        return self.teacher.trace_settings(sample)

    def buy(self, wanted: Iterator[Order], ledger: Ledger, watch: Watch) -> Bought:
        """Buy them; what another process is buying is told as the problems that were given out."""
        held = self.teacher.buy(wanted, ledger, watch).held
        if not held:
            return Bought()
        names = {(problem.id, sample): name for name, (problem, sample) in self.attempts.items()}
        given = [(names[problem.id, sample], problem) for problem, sample in held]
        return Bought(tuple((replace(problem, id=name), 0) for name, problem in given))


@dataclass(frozen=True, slots=True)
class NewTraces:
    """The traces that collecting found, under their real problem and sample."""

    single: Single
    found: Iterable[Trace]

    def __iter__(self) -> Iterator[Trace]:
        settings: dict[int, dict[str, Any]] = {}
        for trace in self.found:
            problem, sample = self.single.attempts[trace.problem_id]
            if sample not in settings:
                settings[sample] = self.single.trace_settings(sample)
            yield replace(
                trace,
                id=stable_hash(problem.id, trace.request_key, sample),
                problem_id=problem.id,
                sample=sample,
                settings=settings[sample],
                supersedes=trace.problem_id,
            )


def with_retries(traces: Iterable[Trace], earlier: Iterable[Trace]) -> Iterator[Trace]:
    """`traces`, then those of the `earlier` ones that supersede one of them, also one after the other.

    Collecting anew gives the traces of the plain requests; what was bought for them again stays with them."""
    ids: set[str] = set()
    for trace in traces:
        ids.add(trace.id)
        yield trace
    for trace in earlier:
        if trace.supersedes in ids and trace.id not in ids:
            ids.add(trace.id)
            yield trace


def with_new(old: Iterable[Trace], new: Iterable[Trace]) -> Iterator[Trace]:
    """The `old` traces, then the `new` ones that are not among them."""
    ids: set[str] = set()
    for trace in chain(old, new):
        if trace.id not in ids:
            ids.add(trace.id)
            yield trace
