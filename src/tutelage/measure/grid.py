"""Which points a sweep measures: budgets, waits, minima, votes, loops and other methods, and their lines.

Promises: settings that contradict each other are refused here; every point of a line differs from its
neighbour in one setting.
Does not: decode or measure (see `sweep`), or know whether a model can keep a policy (its methods check that
before anything is decoded).

Methods by name: `natural` (unforced), `budget` (s1's maximum with a forced close), `wait` (s1's minimum: the
first N closes become a wait string, or as many as it takes to reach a minimum), `suppress` (the same with the
close masked and nothing written: the control for the string itself), `vote` (majority of k, see `sweep`),
`loops` and `exit` (passes of the core of a recurrent-depth model: so many, or until a token has settled), and
those of `think.control` and `think.vote` that are given as `methods`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.errors import UsageError
from tutelage.measure.scaling import Bound
from tutelage.think.control import BudgetForcing, Depth, Natural
from tutelage.think.effort import Exit
from tutelage.think.methods import Method
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

Part = Literal["natural", "capped", "extended", "loops"]
FREE: Bound = (None, None)
# What a step may take before it counts as not obeyed: s1's stand-in (appendix D.1).
_STEP = 100


@dataclass(frozen=True, slots=True)
class Planned:
    """One point: how it is made, what it is called, its line ("" for a point of its own), and the least and
    most thinking tokens that it asks for."""

    method: Method
    setting: str
    part: Part
    line: str
    bound: Bound = FREE


@dataclass(frozen=True, slots=True)
class Grid:
    """What to measure. `policy` is the natural one; its maximum bounds everything.

    `samples` replies per problem at `temperature` (0: greedy, one reply) make every point. `budgets` are
    maxima in tokens. `waits` numbers of refused closes (0 is the natural point, which is always there) and
    `minimums` of tokens, each with each of `strings` (None: closes are masked). `votes` are sizes of majority
    votes, out of `vote_samples` unforced replies at `vote_temperature` (None: those of the points); where
    they are the points' own, the largest vote is also taken at every budget. `num_steps` are depths of a
    recurrent-depth model and `exits` (see `think.effort`) its rules to stop, with the policy's number of
    steps as their bound; `continuous`: each of both a second time, with every token's loop started from the
    last state. `methods` are further ones.

    Raises UsageError for points that cannot be measured."""

    policy: ThinkingPolicy
    budgets: tuple[int, ...] = ()
    waits: tuple[int, ...] = ()
    minimums: tuple[int, ...] = ()
    strings: tuple[str | None, ...] = ("Wait",)
    samples: int = 1
    temperature: float = 0.0
    votes: tuple[int, ...] = ()
    vote_samples: int | None = None
    vote_temperature: float | None = None
    num_steps: tuple[int, ...] = ()
    exits: tuple[str, ...] = ()
    continuous: bool = False
    methods: tuple[Method, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("budgets", "waits", "minimums", "votes", "num_steps"):
            values = getattr(self, name)
            least = name in ("votes", "num_steps")
            if len(set(values)) < len(values) or any(value < least for value in values):
                raise UsageError(f"{name}: {list(values)}; write different whole numbers, none negative")
        spelled = [str(Exit.parse(text)) for text in self.exits]
        if len(set(spelled)) < len(spelled):
            raise UsageError(f"exits: {', '.join(spelled)}: write each rule once")
        if self.continuous and not (self.num_steps or self.exits):
            raise UsageError("continuous: it goes with num_steps or exits; give at least one of them")
        named = {None if string is None else string.strip() for string in self.strings}
        if len(named) < len(self.strings) or not self.strings:
            raise UsageError(
                "wait strings: write at least one, and each once; those that differ in white space alone "
                "share a name, so sweep them apart"
            )
        if self.samples < 1 or (self.samples > 1 and self.temperature <= 0):
            raise UsageError(
                f"samples: {self.samples} greedy replies to a question are all the same; set a temperature"
            )
        if self.votes and self.ballot[0].greedy:
            raise UsageError("votes: greedy replies are all the same; set a temperature")
        if self.votes and max(self.votes) > self.ballot[1]:
            raise UsageError(f"votes: {max(self.votes)} is more than the {self.ballot[1]} samples")
        most = self.policy.max_tokens
        if most is not None and self.budgets and max(self.budgets) > most:
            raise UsageError(
                f"budgets: {max(self.budgets)} is more than the unforced model may think, {most}"
            )

    @property
    def sampling(self) -> Sampling:
        """How the points' replies are drawn."""
        return Sampling(temperature=self.temperature)

    @property
    def ballot(self) -> tuple[Sampling, int]:
        """How the votes' replies are drawn, and how many there are."""
        warmth = self.temperature if self.vote_temperature is None else self.vote_temperature
        return Sampling(temperature=warmth), self.samples if self.vote_samples is None else self.vote_samples

    @property
    def own_votes(self) -> bool:
        """Whether the votes are among the points' own replies."""
        return bool(self.votes) and self.ballot == (self.sampling, self.samples)

    def planned(self) -> list[Planned]:
        """The points in order, the natural one first, without the votes."""
        points = [Planned(Natural(), drawn(self.sampling), "natural", "")]
        for budget in sorted(self.budgets):
            points.append(
                Planned(
                    BudgetForcing(max_tokens=budget),
                    f"at most {budget} tokens",
                    "capped",
                    "cut short",
                    (None, float(budget)),
                )
            )
        for string in self.strings:
            line = "end suppressed" if string is None else f"wait {quoted(string)}"
            for count in sorted(set(self.waits) - {0}):
                told = f"{count} closes masked" if string is None else f"{count} × {quoted(string)}"
                method = BudgetForcing(refuse_closes=count, wait=string)
                points.append(Planned(method, told, "extended", line))
            for least in sorted(set(self.minimums) - {0}):
                told = f"at least {least} tokens, {'masked' if string is None else quoted(string)}"
                method = BudgetForcing(min_tokens=least, wait=string)
                points.append(Planned(method, told, "extended", f"{line}, at least", (float(least), None)))
        return points + self._depths() + [_other(method) for method in self.methods]

    @property
    def thinks(self) -> bool:
        """Whether a point asks for more or fewer tokens of thinking."""
        return bool(self.budgets or self.waits or self.minimums or self.methods)

    def _depths(self) -> list[Planned]:
        """Points in the loop of a recurrent-depth model: fixed depths, then exits from loose to strict."""
        points = []
        exits = sorted(map(Exit.parse, self.exits), key=_strictness)
        for continuous in (False, True)[: 1 + self.continuous]:
            also = ", continuous" if continuous else ""
            for steps in sorted(self.num_steps):
                told = f"{steps} loop{'s' if steps > 1 else ''}{also}"
                points.append(Planned(Depth(steps, None, continuous), told, "loops", f"loops{also}"))
            for rule in exits:
                line = f"exit by {rule.criterion}{also}"
                points.append(
                    Planned(Depth(None, str(rule), continuous), f"exit {rule}{also}", "loops", line)
                )
        return points


def _other(method: Method) -> Planned:
    """A further method as a point. Several settings of it share a line."""
    row = method.row()
    line = ", ".join([method.name, *(["forced end"] if row.get("forced_end") else [])])
    if "score" in row:
        line += f" by {row['score']}"
    asked = row.get("asked")
    size = row.get("votes") if asked is None else asked
    bound = FREE
    if isinstance(asked, int):
        bound = (None, float(asked * (_STEP if method.name == "step-conditional" else 1)))
    setting = line if size is None else f"{line}: {size}"
    return Planned(method, setting, "extended" if "votes" in row else "capped", line, bound)


def _strictness(rule: Exit) -> tuple[str, float, int, int]:
    """Exits of one criterion from few passes to many: a smaller threshold is stricter, except of "argmax",
    which counts steps."""
    threshold = rule.threshold if rule.criterion == "argmax" else -rule.threshold
    return rule.criterion, threshold, rule.min_steps, rule.every


def drawn(sampling: Sampling) -> str:
    """How replies are drawn, in words: the `sampling` of a row."""
    return "greedy" if sampling.greedy else f"T = {sampling.temperature:g}"


def quoted(string: str) -> str:
    """A wait string for people."""
    return f"“{string.strip()}”"


def fields(planned: Planned) -> dict[str, Any]:
    """The fields of a row that say which point it is."""
    base: dict[str, Any] = {"budget": None, "waits": None, "wait": None, "votes": None}
    base |= {"num_steps": None, "exit": None, "continuous": None}
    row = planned.method.row()
    return {
        "method": planned.method.name,
        "part": planned.part,
        "setting": planned.setting,
        "line": planned.line,
        **base,
        **row,
    }
