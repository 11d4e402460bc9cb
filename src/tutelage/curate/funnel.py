"""The funnel: from all traces of a pool to those that are learned from, one stage after another.

    superseded → quality → decontamination → duplicates → difficulty → rubric → traces → selection

Promises: every trace of the pool is either chosen or has exactly one drop, with stage, rule and evidence;
what is chosen depends on the records, the settings and the seed, not on the engine or the number of workers
(the order of rows decides only which of two duplicates stays, after the stated order of sources); fewer
records than the target are all kept, and that is said.
Does not: read texts (see `looks`), write files, or buy anything: what a language model must say comes as
functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.curate import difficulty as solving
from tutelage.curate import diversity
from tutelage.curate.decontaminate import drop_for, partly
from tutelage.curate.difficulty import Rate
from tutelage.curate.diversity import Candidates, PreRule
from tutelage.curate.drops import Drop, funnel_row
from tutelage.curate.duplicates import Sketches, repeated
from tutelage.curate.looks import ProblemLook, TraceLook
from tutelage.curate.rejection import Keep, Prefer, choose
from tutelage.errors import UsageError
from tutelage.plain import some
from tutelage.records import Verdict

Method = Literal["s1", "s1-code", "random", "diverse", "longest", "full", "facility", "long-short"]
METHODS: tuple[Method, ...] = (
    "s1",
    "s1-code",
    "random",
    "diverse",
    "longest",
    "full",
    "facility",
    "long-short",
)
BY_DIFFICULTY: tuple[Method, ...] = ("s1", "s1-code")
"""The methods that take solvers into account; the others are what those are compared with."""
BY_DOMAIN: tuple[Method, ...] = (*BY_DIFFICULTY, "diverse")
"""The methods that go by domains; to the others labels are for the page only."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How the funnel decides. `order` names sources, of which the earlier win over the later where two
    questions are alike (others come after them, in the order of the file). `near` is the Jaccard similarity
    of near-duplicates (None: equal ones only). `solved` and the bands are those of `curate.difficulty`,
    `keep`, `prefer`, `per_problem` those of `curate.rejection`. `target` counts problems (None: all).
    `first` are rules of pre-selection, `weights` those of `s1-code` (domain: weight)."""

    method: Method = "s1"
    target: int | None = None
    seed: int = 0
    order: tuple[str, ...] = ()
    near: float | None = 0.8
    solved: solving.Keep = "unsolved"
    low: float = 0.0
    high: float = 1.0
    bands: Mapping[str, tuple[float, float]] | None = None
    missing: solving.Missing = "refuse"
    hopeless: solving.Hopeless = "refuse"
    keep: Keep = "all"
    prefer: Prefer = "first"
    per_problem: int = 1
    first: tuple[PreRule, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    long: int = 1
    short: int = 4
    border: int | None = None


@dataclass(frozen=True, slots=True)
class Helpers:
    """What is asked of others, for problems by id: `domains` gives labels (problem id → label), `hard` drops
    those that a rubric finds too easy, `questions` the texts of some, `vectors` of some (for `facility`)."""

    domains: Callable[[Sequence[str]], Mapping[str, str]]
    questions: Callable[[Sequence[str]], Sequence[str]]
    vectors: Callable[[Sequence[str]], NDArray[np.float32]]
    easy: Callable[[Sequence[str]], Sequence[Drop]] | None = None


@dataclass(slots=True)
class Chosen:
    """What came of it: ids of the chosen traces and problems in the order of their choice, the drops in the
    order of the traces, rows of the funnel, the domain of each candidate of the selection, lengths of
    thinking before and after (in `unit`), and notes for people."""

    traces: list[str]
    problems: list[str]
    drops: list[Drop]
    rows: list[dict[str, Any]]
    domains: dict[str, str]
    unit: str
    before: list[int]
    after: list[int]
    notes: list[str]


def run_funnel(
    problems: Sequence[ProblemLook],
    traces: Iterable[TraceLook],
    sketches: Sketches | None,
    verdicts: Mapping[str, Verdict],
    solvers: Mapping[str, Mapping[str, Rate]],
    rules: Rules,
    helpers: Helpers,
) -> Chosen:
    """Choose. `problems` and `traces` are looks at all records, `sketches` those of the problems' questions,
    `verdicts` by trace, `solvers` the pass rates of each by problem.

    Raises UsageError where the settings do not fit the data: a solver that always fails, a trace without the
    verdict that `keep: correct` needs, two records under one id, a funnel in which nothing is left."""
    run = _Run(list(problems), list(traces), rules, helpers)
    run.superseded()
    run.quality()
    run.decontamination()
    run.duplicates(sketches)
    run.difficulty(solvers)
    run.rubric()
    run.choice(verdicts)
    return run.selection(verdicts)


class _Run:
    """The state on the way down: which traces are still there, and why the others are not."""

    def __init__(
        self, problems: list[ProblemLook], traces: list[TraceLook], rules: Rules, helpers: Helpers
    ) -> None:
        if not traces:
            raise UsageError("the pool holds no traces")
        self.rules, self.helpers = rules, helpers
        self.problems = {look.id: look for look in problems}
        self.place = {look.id: at for at, look in enumerate(problems)}
        self.all = traces
        if len(self.problems) != len(problems) or len({look.id for look in traces}) != len(traces):
            twice = next(
                name
                for looks in (problems, traces)
                for name, count in Counter(look.id for look in looks).items()
                if count > 1
            )
            raise UsageError(f"two records of the pool share the id {twice!r}; ids must differ")
        self.alive = list(traces)
        self.dropped: dict[str, Drop] = {}
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def take_out(self, stage: str, found: Mapping[str, Drop]) -> None:
        """Drop those traces (by id), and write the row of the stage."""
        self.dropped.update(found)
        self.alive = [look for look in self.alive if look.id not in found]
        self.rows.append(funnel_row(stage, len(self.alive), Counter(drop.rule for drop in found.values())))

    def take_out_problems(self, stage: str, found: Mapping[str, Drop]) -> None:
        """Drop all traces of those problems."""
        self.take_out(
            stage,
            {
                look.id: replace(found[look.problem_id], record_id=look.id)
                for look in self.alive
                if look.problem_id in found
            },
        )

    def left(self) -> list[str]:
        """Ids of the problems that still have a trace, in the stated order of sources, then of the file."""
        rank = {source: at for at, source in enumerate(self.rules.order)}
        ids = {look.problem_id for look in self.alive}
        return sorted(
            ids, key=lambda name: (rank.get(self.problems[name].source, len(rank)), self.place[name])
        )

    def superseded(self) -> None:
        """A trace that was bought again is replaced by the newer one."""
        newer = {look.supersedes: look.id for look in self.all if look.supersedes is not None}
        if gone := [look for look in self.alive if look.id in newer]:
            self.take_out(
                "superseded",
                {
                    look.id: Drop(
                        look.id,
                        look.problem_id,
                        "superseded",
                        "superseded",
                        f"superseded by {newer[look.id]}",
                    )
                    for look in gone
                },
            )

    def quality(self) -> None:
        """The first rule that each trace breaks."""
        self.take_out(
            "quality",
            {
                look.id: Drop(
                    look.id, look.problem_id, "quality", look.fault.rule, look.fault.reason, look.fault.score
                )
                for look in self.alive
                if look.fault is not None
            },
        )

    def decontamination(self) -> None:
        """Questions that are in a benchmark, then traces that quote one."""
        found: dict[str, Drop] = {}
        for look in self.alive:
            hits = [hit for hit in self.problems[look.problem_id].hits if not hit.partial]
            if hits:
                found[look.id] = drop_for(look.id, look.problem_id, hits[0])
            elif look.hit is not None:
                field_ = "answer" if look.in_answer else "thinking"
                found[look.id] = drop_for(look.id, look.problem_id, look.hit, field_)
        self.take_out("decontamination", found)
        self.notes += partly(
            {
                look.problem_id
                for look in self.alive
                if any(
                    hit.partial and hit.detector == "overlap" for hit in self.problems[look.problem_id].hits
                )
            }
        )

    def duplicates(self, sketches: Sketches | None) -> None:
        """Of questions that are alike the first stays."""
        ids = self.left()
        if unknown := [
            each for each in self.rules.order if each not in {look.source for look in self.problems.values()}
        ]:
            there = sorted({look.source for look in self.problems.values()})
            raise UsageError(f"order: no record is of {unknown[0]!r}; sources there: {some(there, 8)}")
        at = np.array([self.place[name] for name in ids], np.int64)
        own = Sketches(sketches.whole[at], sketches.minima[at]) if sketches is not None else None
        drops = repeated(ids, self.helpers.questions(ids), own, near=self.rules.near)
        self.take_out_problems("duplicates", {drop.problem_id: drop for drop in drops})

    def difficulty(self, solvers: Mapping[str, Mapping[str, Rate]]) -> None:
        """What solvers find too easy (or too hard)."""
        if not solvers:
            return
        if self.rules.method not in BY_DIFFICULTY:
            self.notes.append(
                f"the method {self.rules.method} takes no account of solvers; they dropped nothing"
            )
            return
        _, drops = solving.difficulty(
            self.left(),
            solvers,
            keep=self.rules.solved,
            low=self.rules.low,
            high=self.rules.high,
            bands=self.rules.bands,
            missing=self.rules.missing,
            hopeless=self.rules.hopeless,
        )
        self.take_out_problems("difficulty", {drop.problem_id: drop for drop in drops})

    def rubric(self) -> None:
        """What a grader finds too easy."""
        if self.helpers.easy is not None and self.alive:
            drops = self.helpers.easy(self.left())
            self.take_out_problems("rubric", {drop.problem_id: drop for drop in drops})

    def choice(self, verdicts: Mapping[str, Verdict]) -> None:
        """Which traces of each problem."""
        rules = self.rules
        _, drops = choose(
            self.alive, verdicts, keep=rules.keep, per_problem=rules.per_problem, prefer=rules.prefer
        )
        self.take_out("traces", {drop.record_id: drop for drop in drops})

    def selection(self, verdicts: Mapping[str, Verdict]) -> Chosen:
        """The target number of problems, by the method."""
        rules = self.rules
        if not self.alive:
            last = next((row for row in reversed(self.rows) if row["dropped"]), None)
            where = (
                f" after {last['stage']} ({some([f'{k} {v}' for k, v in last['reasons'].items()])})"
                if last
                else ""
            )
            raise UsageError(f"nothing is left{where}; loosen that stage")
        ids = self.left()
        known = all(look.tokens is not None for look in self.alive)
        size = {look.id: (look.tokens if known else look.words) or 0 for look in self.alive}
        of: dict[str, list[TraceLook]] = {}
        for look in self.alive:
            of.setdefault(look.problem_id, []).append(look)
        if rules.first and not verdicts:
            raise UsageError("first: takes correct records only, and there are no verdicts; give some")
        domains = dict(self.helpers.domains(ids))
        candidates = Candidates(
            ids,
            [domains[name] for name in ids],
            np.array([max(size[look.id] for look in of[name]) for name in ids], np.int64),
            [self.problems[name].source for name in ids],
            [any(_right(verdicts, look.id) for look in of[name]) for name in ids],
        )
        chosen = [ids[at] for at in self._sampled(candidates)]
        taken = set(chosen)
        before = [size[look.id] for look in self.alive]
        why = f"{len(chosen)} others were chosen of {len(ids)} (method {rules.method}, seed {rules.seed})"
        self.take_out(
            "selection",
            {
                look.id: Drop(look.id, look.problem_id, "selection", "not-chosen", why, float(size[look.id]))
                for look in self.alive
                if look.problem_id not in taken
            },
        )
        traces = [look.id for name in chosen for look in of[name]]
        drops = [self.dropped[look.id] for look in self.all if look.id in self.dropped]
        after = [size[name] for name in traces]
        unit = "tokens" if known else "words"
        return Chosen(traces, chosen, drops, self.rows, domains, unit, before, after, self.notes)

    def _sampled(self, found: Candidates) -> list[int]:
        rules, count = self.rules, len(found.ids)
        if rules.method == "full" and rules.target is not None and rules.target < count:
            self.notes.append(f"the method full keeps all {count} records, whatever the target")
        target = count if rules.target is None or rules.method == "full" else rules.target
        if target > count:
            self.notes.append(
                f"{count} records are left, fewer than the target {target}: all of them were kept"
            )
            target = count
        first = diversity.preselected(found, rules.first)
        match rules.method:
            case "s1":
                return diversity.s1(found, target, rules.seed, first=first)
            case "s1-code":
                return diversity.s1_code(found, target, rules.seed, rules.weights, first=first)
            case "random":
                return diversity.at_random(found, target, rules.seed)
            case "diverse":
                return diversity.uniform_domains(found, target, rules.seed)
            case "longest":
                return diversity.longest(found, target)
            case "full":
                return diversity.everything(found)
            case "long-short":
                return diversity.long_short(
                    found, target, rules.seed, long=rules.long, short=rules.short, border=rules.border
                )
            case "facility":
                from tutelage.curate.facility import facility_location

                order = sorted(range(count), key=lambda at: found.ids[at])  # ties go by row
                vectors = self.helpers.vectors([found.ids[at] for at in order])
                return [order[at] for at in facility_location(vectors, target, rules.seed)]


def _right(verdicts: Mapping[str, Verdict], trace_id: str) -> bool:
    verdict = verdicts.get(trace_id)
    return verdict is not None and verdict.status == "correct"
