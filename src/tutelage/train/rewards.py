"""Rewards: what a reply earns, as plain functions of a problem and a trace, like a user's checker.

Promises: lengths are counts of tokens, n-grams are over token ids; each reward is within the bounds that it
names; a reward that cannot be told raises `Unrewarded` with the reason and is never guessed.
Does not: run rewards beside decoding, or bound their time (see `desk`); group replies (see `groups`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.teachers.replies import is_truncated
from tutelage.tokens import encode_text
from tutelage.train.repetition import repetition
from tutelage.verify import user
from tutelage.verify.workers import WorkerPool

Reward = Callable[[Problem, Trace], float]
Check = Callable[[Problem, Trace], Verdict]
Ids = Callable[[Trace], Sequence[int]]
ACCURACY, REPETITION = 8 / 13, 1 / 13
"""The weights of Phi-4-reasoning-plus, 8:1."""


class Unrewarded(Exception):
    """The reward of this reply cannot be told; the text says why. The reply is left out of its group."""


def reply_tokens(trace: Trace) -> int:
    """Tokens of thinking and answer, sampled and forced, without markers. Raises Unrewarded when the trace
    does not tell."""
    counts = (trace.thinking_sampled, trace.thinking_forced, trace.answer_sampled, trace.answer_forced)
    if trace.thinking_sampled is None or trace.answer_sampled is None:
        raise Unrewarded("the trace does not say how many tokens it has")
    return sum(count or 0 for count in counts)


def reply_ids(tokenizer: Any, trace: Trace) -> list[int]:
    """Ids of thinking and answer, without markers."""
    return [*encode_text(tokenizer, trace.thinking), *encode_text(tokenizer, trace.answer)]


def finished(trace: Trace) -> bool:
    """Whether the reply ended by itself: a limit cut nothing off."""
    return not is_truncated(trace.finish_reason)


def closed_itself(trace: Trace) -> bool:
    """Whether the model closed its thinking: not a budget, not the end of the room, not an end of text for
    which the marker was written. A trace that does not know counts as closed where it has an answer."""
    return trace.closed_by == "model" or (trace.closed_by == "unknown" and bool(trace.answer.strip()))


def right(verdict: Verdict, trace: Trace) -> bool | None:
    """Whether the reply counts as right (correct, and finished), as wrong, or (None) as undecided."""
    if verdict.status == "undecided":
        return None
    return verdict.status == "correct" and finished(trace)


def correctness(check: Check) -> Reward:
    """+1 for a right reply, -1 for a wrong one or one that a limit cut off (arXiv 2504.21233 §3.3).

    An undecided verdict raises Unrewarded: whatever number stood for it would reward or punish."""

    def reward(problem: Problem, trace: Trace) -> float:
        return 1.0 if _right(check, problem, trace) else -1.0

    return reward


def _right(check: Check, problem: Problem, trace: Trace) -> bool:
    verdict = check(problem, trace)
    found = right(verdict, trace)
    if found is None:
        raise Unrewarded(f"undecided: {verdict.reason}")
    return found


@dataclass(frozen=True, slots=True)
class Plus:
    """Constants of the Phi-4-reasoning-plus reward, in tokens: right replies lose from `free_right` up to
    `longest`, wrong ones gain up to `free_wrong`. Raises UsageError unless 0 < free_wrong and
    0 <= free_right < longest."""

    longest: int = 31_744
    free_right: int = 25_600
    free_wrong: int = 3_702

    def __post_init__(self) -> None:
        if not (0 <= self.free_right < self.longest and self.free_wrong > 0):
            raise UsageError(
                f"reward plus: needs 0 <= free_right < longest and free_wrong > 0, not {self.free_right}, "
                f"{self.longest} and {self.free_wrong}"
            )

    def within(self, longest: int) -> Plus:
        """The same proportions for replies of at most `longest` tokens."""
        share = longest / self.longest
        free = min(round(self.free_right * share), longest - 1)
        return Plus(longest, free, max(1, round(self.free_wrong * share)))

    def accuracy(self, is_right: bool, tokens: int) -> float:
        """R_acc of a finished, well-formed reply: in [0.5, 1] when right, in [-1, -0.5] when wrong."""
        if is_right:
            rho = min(1.0, max(tokens - self.free_right, 0) / (self.longest - self.free_right))
            return 0.5 + 0.25 * (1 + math.cos(math.pi * rho))
        rho = min(1.0, tokens / self.free_wrong)
        return -0.5 - 0.25 * (1 + math.cos(math.pi * rho))


def plus(check: Check, ids: Ids, constants: Plus | None = None, *, thinks: bool = True) -> Reward:
    """The reward of Phi-4-reasoning-plus (arXiv 2504.21318 §4.2): 8/13 of the length-aware accuracy and 1/13
    of the repetition, in [-9/13, 8/13].

    A reply whose thinking the model did not close has accuracy -1, whatever follows; else one that is not
    finished has -0.5 (the paper leaves the order open; this is its code's). `thinks` False: the template has
    no thinking to close."""
    chosen = constants or Plus()

    def reward(problem: Problem, trace: Trace) -> float:
        if thinks and not closed_itself(trace):
            accuracy = -1.0
        elif not finished(trace):
            accuracy = -0.5
        else:
            accuracy = chosen.accuracy(_right(check, problem, trace), reply_tokens(trace))
        return ACCURACY * accuracy + REPETITION * repetition(ids(trace))

    return reward


def well_formed(*, thinks: bool = True) -> Reward:
    """1 for a reply that closed its thinking itself, is finished and has an answer; else 0."""

    def reward(problem: Problem, trace: Trace) -> float:
        whole = finished(trace) and bool(trace.answer.strip()) and (not thinks or closed_itself(trace))
        return 1.0 if whole else 0.0

    return reward


def overlong(longest: int, cache: int) -> Reward:
    """0 down to -1, linearly over the last `cache` tokens before `longest`, and -1 beyond: soft overlong
    punishment (DAPO, arXiv 2503.14476, equation 13). Raises UsageError unless 0 < cache <= longest."""
    if not 0 < cache <= longest:
        raise UsageError(
            f"reward overlong: overlong_cache {cache} must be between 1 and max_tokens {longest}"
        )

    def reward(problem: Problem, trace: Trace) -> float:
        return min(0.0, max(-1.0, (longest - cache - reply_tokens(trace)) / cache))

    return reward


def by_user(function: str, pool: WorkerPool) -> Reward:
    """A user's `file.py:function` as a reward, run in a worker process as a user's checker is: what it
    returns is the reward (a Verdict: 1 correct, 0 incorrect).

    A call that fails, returns no finite number, or takes longer than the pool's seconds raises Unrewarded.
    Raises UsageError when the function cannot be loaded."""
    pool.load(user.load_request(function))

    def reward(problem: Problem, trace: Trace) -> float:
        found = user.score(function, problem, trace, pool)
        if isinstance(found, str):
            raise Unrewarded(found)
        return found

    return reward


@dataclass(frozen=True, slots=True)
class Weighted:
    """A weighted sum of named rewards; a reward itself. Each part is clamped to [-`bound`, `bound`] before it
    is weighed, so that one part of a user's cannot drown the rest."""

    parts: Mapping[str, tuple[float, Reward]]
    bound: float = 10.0

    def __call__(self, problem: Problem, trace: Trace) -> float:
        return self.total(self.each(problem, trace))

    def each(self, problem: Problem, trace: Trace) -> dict[str, float]:
        """The parts by name, before they are weighed."""
        return {
            name: max(-self.bound, min(self.bound, reward(problem, trace)))
            for name, (_, reward) in self.parts.items()
        }

    def total(self, parts: Mapping[str, float]) -> float:
        """The weighted sum of `parts`."""
        return sum(weight * parts[name] for name, (weight, _) in self.parts.items())
