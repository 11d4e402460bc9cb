"""Sequential ways to spend compute: one chain of thought, made shorter or longer, or drawn again.

Promises: budget forcing is s1's to the token (a cap, N refused closes, a close text); what asks for a length
in words (`TokenConditional`, `ClassConditional`) changes nothing but the prompt, unless its end is forced;
rejection sampling counts every try.
Does not: teach a model to obey (what it has to be trained on: see `power_of_two`, `steps.counted_down`), or
vote.

Source: Muennighoff et al. 2025, "s1: Simple test-time scaling", section 3 and appendix D. Differences:
budgets hold for the whole turn, forced text included, where s1 gives each continuation the full budget
again; no line break is put before s1's closing marker, which begins with a control token; a wait string is
written only where at least one token of thinking fits behind it; a rejected try stops at the first token
beyond the limit and still writes its answer, which is thrown away and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.think.methods import Method, Play, Single, Solver
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.request import Request

S1_OPEN, S1_CLOSE = "<|im_start|>think", "<|im_start|>answer"
"""The markers of s1's models; those of most others are `<think>` and `</think>`."""
FINAL_ANSWER = "Final Answer:"
"""What s1 writes after a close that it forces."""


@dataclass(frozen=True, slots=True)
class Natural(Single):
    """The model as it is, under the solver's own policy."""

    @property
    def name(self) -> str:
        """`natural`."""
        return "natural"

    def row(self) -> dict[str, Any]:
        """Nothing was set."""
        return {}

    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The plain question."""
        return solver.request(problem, attempt, **more)


@dataclass(frozen=True, slots=True)
class BudgetForcing(Single):
    """Thinking kept above a minimum and below a maximum by force. What is None is left as the solver has
    it.

    `refuse_closes` is s1's N: so many closes by the model become the `wait` string, or are masked where
    `wait` is None. `choose_wait` picks among several wait strings, or lets the model close (see `strings`);
    without it they take turns."""

    max_tokens: int | None = None
    min_tokens: int = 0
    refuse_closes: int = 0
    wait: str | tuple[str, ...] | None = None
    max_waits: int | None = None
    close_text: str | None = None
    choose_wait: Callable[[Tensor, int], int | None] | None = None

    @property
    def name(self) -> str:
        """`budget` for a maximum alone; where thinking is prolonged `wait`, or `suppress` (masked closes)."""
        if not (self.min_tokens or self.refuse_closes):
            return "budget"
        return "suppress" if self.wait is None else "wait"

    def row(self) -> dict[str, Any]:
        """`budget`, `waits` (refused closes) and `wait`, where they are set."""
        row: dict[str, Any] = {}
        if self.max_tokens is not None:
            row["budget"] = self.max_tokens
        if self.min_tokens:
            row["min_tokens"] = self.min_tokens
        if self.refuse_closes:
            row["waits"] = self.refuse_closes
        if self.wait is not None:
            row["wait"] = self.wait if isinstance(self.wait, str) else list(self.wait)
            row["chosen"] = "fixed" if isinstance(self.wait, str) else "rotation"
        if self.choose_wait is not None:
            row["chosen"] = "picked"
        return row

    def policy(self, solver: Solver) -> ThinkingPolicy:
        """The solver's policy with this in it. Raises UsageError when that cannot be kept."""
        changes: dict[str, Any] = {}
        if self.max_tokens is not None:
            changes["max_tokens"] = self.max_tokens
        if self.close_text is not None:
            changes["close_text"] = self.close_text
        if self.min_tokens or self.refuse_closes:
            changes |= {"min_tokens": self.min_tokens, "refuse_closes": self.refuse_closes}
            changes |= {"wait": self.wait, "max_waits": self.max_waits}
        return replace(solver.policy, **changes)

    def check(self, solver: Solver) -> None:
        """Raises UsageError when the policy cannot be kept, or a chooser has nothing to choose from."""
        if self.choose_wait is not None and self.wait is None:
            raise UsageError("budget forcing: choose_wait picks among wait strings; give them as `wait`")
        self.policy(solver)

    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The plain question under the forced policy."""
        return solver.request(problem, attempt, self.policy(solver), choose_wait=self.choose_wait, **more)


@dataclass(frozen=True, slots=True)
class Depth(Single):
    """The plain question with another depth of the loop of a recurrent-depth model: `num_steps` passes of its
    core, or an `exit` (spelled as in `think.effort`) with `num_steps` as its bound; None leaves the solver's
    own. `continuous`: each token's loop starts from the state of the token before."""

    num_steps: int | None = None
    exit: str | None = None
    continuous: bool = False

    def __post_init__(self) -> None:
        if not (self.policy_of(ThinkingPolicy()).effort.asked):
            raise UsageError("depth: give num_steps, an exit or continuous; there is nothing to change")

    @property
    def name(self) -> str:
        """`loops` for a number of passes, `exit` where tokens stop by themselves."""
        return "loops" if self.exit is None else "exit"

    def row(self) -> dict[str, Any]:
        """What was asked for."""
        return {"num_steps": self.num_steps, "exit": self.exit, "continuous": self.continuous}

    def policy_of(self, policy: ThinkingPolicy) -> ThinkingPolicy:
        """`policy` with this depth in it. Raises UsageError for one that makes no sense."""
        return replace(
            policy,
            num_steps=policy.num_steps if self.num_steps is None else self.num_steps,
            exit=policy.exit if self.exit is None else self.exit,
            continuous=policy.continuous or self.continuous,
        )

    def check(self, solver: Solver) -> None:
        """Raises UsageError for a model without loops, or that has not so many."""
        solver.engine.check(Request((0,), self.policy_of(solver.policy)))

    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The plain question at this depth."""
        return solver.request(problem, attempt, self.policy_of(solver.policy), **more)


def power_of_two(tokens: int) -> int:
    """The bucket of a trace of `tokens` tokens: the next power of two, itself included. Training data for
    `TokenConditional` ask for the bucket of their trace."""
    if tokens < 1:
        raise UsageError(f"power_of_two: {tokens} tokens fall into no bucket; there must be at least 1")
    return 1 << (tokens - 1).bit_length()


@dataclass(frozen=True, slots=True)
class TokenConditional(Single):
    """The question with a line that asks for at most so many tokens of thinking, a power of two, as in the
    training data. `forced_end`: they are also a maximum; otherwise the model may ignore them.

    `line` holds `{tokens}`. Raises UsageError for a number that the model has never seen."""

    tokens: int
    forced_end: bool = False
    line: str = "Think for up to {tokens} tokens."

    def __post_init__(self) -> None:
        if power_of_two(self.tokens) != self.tokens:
            raise UsageError(
                f"token-conditional: {self.tokens} is not a power of two; ask for {power_of_two(self.tokens)}"
            )
        if "{tokens}" not in self.line:
            raise UsageError("token-conditional: the line does not say {tokens}")

    @property
    def name(self) -> str:
        """`token-conditional`."""
        return "token-conditional"

    def row(self) -> dict[str, Any]:
        """The tokens asked for, and whether the end was forced."""
        return {"asked": self.tokens, "forced_end": self.forced_end}

    def check(self, solver: Solver) -> None:
        """Raises UsageError when the solver's policy does not allow so short a thought."""
        self._policy(solver)

    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The question and the line."""
        line = self.line.format(tokens=self.tokens)
        return solver.request(problem, attempt, self._policy(solver), line, **more)

    def _policy(self, solver: Solver) -> ThinkingPolicy:
        return _capped(solver.policy, self.tokens) if self.forced_end else solver.policy


@dataclass(frozen=True, slots=True)
class ClassConditional(Single):
    """The question with one of two lines: think shortly, or at length."""

    length: Literal["short", "long"]
    short: str = "Think only briefly before you answer."
    long: str = "Think for a long time before you answer."

    @property
    def name(self) -> str:
        """`class-conditional`."""
        return "class-conditional"

    def row(self) -> dict[str, Any]:
        """The class asked for."""
        return {"asked": self.length}

    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The question and the line."""
        line = self.short if self.length == "short" else self.long
        return solver.request(problem, attempt, None, line, **more)


@dataclass(frozen=True, slots=True)
class RejectionSampling(Method):
    """Draw again until the thinking is at most `limit` tokens long, `tries` times at most; after that there
    is no answer.

    A try is cut at `limit` + 1 tokens, which tells that it is too long. All tries count."""

    limit: int
    tries: int = 16

    def __post_init__(self) -> None:
        if self.limit < 0 or self.tries < 1:
            raise UsageError(
                f"rejection sampling: limit {self.limit} and tries {self.tries}; the limit must be at least "
                "0, the tries at least 1"
            )

    @property
    def name(self) -> str:
        """`rejection`."""
        return "rejection"

    def row(self) -> dict[str, Any]:
        """The limit, and how often it may be tried."""
        return {"asked": self.limit, "tries": self.tries}

    def check(self, solver: Solver) -> None:
        """Raises UsageError for greedy decoding, where every try is the same."""
        if solver.sampling.greedy and self.tries > 1:
            raise UsageError("rejection sampling: greedy tries are all the same; set a temperature above 0")
        _capped(solver.policy, self.limit + 1)

    def play(self, solver: Solver, problem: Problem, sample: int) -> Play:
        """One request per round."""
        policy = _capped(solver.policy, self.limit + 1)
        for number in range(self.tries):
            # The first try of a sample is the sample itself; later ones are replies that no sample is.
            attempts = yield [solver.request(problem, sample + number * solver.samples, policy)]
            if sum(attempts[0].completion.count("thinking")) <= self.limit:
                return number
        return None


def _capped(policy: ThinkingPolicy, tokens: int) -> ThinkingPolicy:
    """`policy` with a maximum of `tokens`, or its own where that is smaller."""
    most = policy.max_tokens
    return replace(policy, max_tokens=tokens if most is None else min(tokens, most))
