"""Parallel ways to spend compute: several replies to one question, and one answer out of them.

Promises: votes are counted on canonical answers; no answer never wins; ties go to the answer that came first,
so that only ties depend on the order of the replies; the tokens of all replies count; what looks at the gold
answer is labelled `oracle`.
Does not: estimate what a vote of k is worth from n > k replies (see `measure.at_k`, which works out the
expectation under the same tie rule), or bring canonical forms about.

Any method of one reply can be voted over, budget forcing too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.think.control import Natural
from tutelage.think.methods import Attempt, Method, Play, Single, Solver
from tutelage.think.request import Completion


def vote(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> int | None:
    """The index of the first reply that gives the winning answer, None when no reply gives any.

    The winner has the largest sum of `weights` (None: one each); of equal sums that whose answer came first
    wins. Sums are exact up to one rounding (`math.fsum`), so that the order of the replies decides ties only.
    Source: self-consistency, Wang et al., arXiv:2203.11171, section 2. Raises UsageError for weights that do
    not fit the answers, are negative, or are not finite."""
    heavy = [1.0] * len(answers) if weights is None else list(weights)
    if len(heavy) != len(answers):
        raise UsageError(f"vote: {len(answers)} answers but {len(heavy)} weights")
    if bad := [weight for weight in heavy if not (math.isfinite(weight) and weight >= 0)]:
        raise UsageError(f"vote: a weight is {bad[0]}; weights must be finite and not negative")
    cast: dict[str, list[float]] = {}
    for answer, weight in zip(answers, heavy, strict=True):
        if answer is not None:
            cast.setdefault(answer, []).append(weight)
    if not cast:
        return None
    # A dict keeps the order of first appearance, and `max` takes the first of equals.
    winner = max(cast, key=lambda answer: math.fsum(cast[answer]))
    return list(answers).index(winner)


@dataclass(frozen=True, slots=True)
class Score:
    """How good replies look: `rate(problem, attempts)` gives one number each, larger is better. `logprobs`:
    it needs the log-probabilities of the replies. `oracle`: it needs to know which are right."""

    name: str
    rate: Callable[[Problem, Sequence[Attempt]], Sequence[float]]
    logprobs: bool = False
    oracle: bool = False


def mean_logprob(reply: Completion) -> float:
    """The mean log-probability of the ids that the model chose by itself, forced ones left out; minus
    infinity where it chose none. Raises UsageError when log-probabilities were not asked for."""
    if len(reply.logprobs) != len(reply.ids):
        raise UsageError("mean log-probability: this reply was decoded without; ask for logprobs")
    own = [one.logprob for one, by_force in zip(reply.logprobs, reply.forced, strict=True) if not by_force]
    return math.fsum(own) / len(own) if own else -math.inf


LOGPROB = Score(
    "mean log-prob", lambda _, tried: [mean_logprob(one.completion) for one in tried], logprobs=True
)
"""The mean log-probability of a reply: a score, but no weight (it is negative)."""
PROBABILITY = Score(
    "mean probability",
    lambda _, tried: [math.exp(mean_logprob(one.completion)) for one in tried],
    logprobs=True,
)
"""The geometric mean of the probabilities of a reply's ids, in [0, 1]: a weight."""
RIGHT = Score("gold answer", lambda _, tried: [float(bool(one.right)) for one in tried], oracle=True)
"""The oracle: 1 for a right reply. Best of n under it is pass@n."""


@dataclass(frozen=True, slots=True)
class _Parallel(Method):
    """`n` replies by the method `of`, and one of them to stand by."""

    n: int
    of: Single = field(default_factory=Natural)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"{self.name}: {self.n} replies; there must be at least 1")

    @property
    @abstractmethod
    def score(self) -> Score | None:
        """What replies are rated by (None: nothing)."""

    @abstractmethod
    def pick(self, attempts: Sequence[Attempt], scores: Sequence[float] | None) -> int | None:
        """The index of the reply to stand by, None for no answer."""

    @property
    def oracle(self) -> bool:
        """Whether its score looks at the gold answer."""
        return self.score is not None and self.score.oracle

    def row(self) -> dict[str, Any]:
        """What each reply was made by, their number, and what rated them."""
        row = {**self.of.row(), "of": self.of.name, "votes": self.n}
        return row if self.score is None else {**row, "score": self.score.name, "oracle": self.oracle}

    def check(self, solver: Solver) -> None:
        """Raises UsageError when one reply cannot be made, all are the same, or a verifier is missing."""
        Method.check(self, solver)
        self.of.check(solver)
        if self.n > 1 and solver.sampling.greedy:
            raise UsageError(f"{self.name}: greedy replies are all the same; set a temperature above 0")

    def play(self, solver: Solver, problem: Problem, sample: int) -> Play:
        """One round of `n` requests."""
        score = self.score
        more = {"logprobs": 0} if score is not None and score.logprobs else {}
        first = sample * self.n  # so that the first sample of every size begins with the same replies
        attempts = yield [
            self.of.request(solver, problem, number, **more) for number in range(first, first + self.n)
        ]
        if score is None:
            return self.pick(attempts, None)
        scores = list(score.rate(problem, attempts))
        if len(scores) != len(attempts):
            raise UsageError(f"{score.name}: {len(scores)} scores for {len(attempts)} replies")
        return self.pick(attempts, scores)


@dataclass(frozen=True, slots=True)
class Vote(_Parallel):
    """The answer that most of `n` replies give, or the one whose replies weigh most by `weight`."""

    weight: Score | None = None

    @property
    def name(self) -> str:
        """`vote`, or `weighted-vote`."""
        return "vote" if self.weight is None else "weighted-vote"

    @property
    def score(self) -> Score | None:
        """The weight."""
        return self.weight

    def pick(self, attempts: Sequence[Attempt], scores: Sequence[float] | None) -> int | None:
        """The first reply with the winning answer."""
        return vote([attempt.answer for attempt in attempts], scores)


@dataclass(frozen=True, slots=True)
class BestOf(_Parallel):
    """The reply among `n` that `by` rates highest; of equals the first. A reply without an answer is taken
    never."""

    by: Score = LOGPROB

    @property
    def name(self) -> str:
        """`best-of`."""
        return "best-of"

    @property
    def score(self) -> Score:
        """What rates the replies."""
        return self.by

    def pick(self, attempts: Sequence[Attempt], scores: Sequence[float] | None) -> int | None:
        """The best one with an answer. Raises UsageError for a score that is not a number."""
        assert scores is not None
        if any(math.isnan(score) for score in scores):
            raise UsageError(f"best-of: the score {self.by.name!r} gave NaN; give every reply a number")
        answered = [i for i, attempt in enumerate(attempts) if attempt.answer is not None]
        return max(answered, key=lambda i: scores[i], default=None)


@dataclass(frozen=True, slots=True)
class ShortestOfCorrect(_Parallel):
    """The right one of `n` replies that thought least; of equals the first. An oracle: it tells how short a
    thought could have been, and is what shorter training data are made of; it is no way to answer."""

    @property
    def name(self) -> str:
        """`shortest-of-correct`."""
        return "shortest-of-correct"

    @property
    def score(self) -> Score:
        """The gold answer."""
        return RIGHT

    def pick(self, attempts: Sequence[Attempt], scores: Sequence[float] | None) -> int | None:
        """The shortest right one; None where none is right."""
        right = [i for i, attempt in enumerate(attempts) if attempt.right]
        return min(right, key=lambda i: sum(attempts[i].completion.count("thinking")), default=None)
