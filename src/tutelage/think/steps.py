"""Step-conditional thinking: the model is told how many steps it has left, and counts down.

Promises: "k steps left" is written at the start and after every paragraph (a blank line), with k going down
to 1, as forced text that counts as thinking and against the maximum; with `forced_end` the thinking is closed
when no step is left; nothing is decoded or prefilled twice for it, for it is played by the machine that plays
every policy.
Does not: make a model obey: one that was not trained on such traces (`counted_down` writes them) takes the
markers for text.

Source: Muennighoff et al. 2025, "s1: Simple test-time scaling", appendix D.1: counting down is obeyed better
than counting up, because the last step always looks the same. There the model writes the markers itself and
miscounts; with `markers="model"` it does so here too, and the end is forced when it writes that 0 are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.think.machine import Machine, State, Step
from tutelage.think.methods import Single, Solver
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.request import Request
from tutelage.think.segments import cap, interrupt
from tutelage.tokens import decode_ids

if TYPE_CHECKING:
    from tutelage.students.template import Template
    from tutelage.tokens import Tokenizer

BREAK = "\n\n"
"""What ends a step."""
MARKER = "{left} steps left\n"


def counted_down(thinking: str, marker: str = MARKER) -> str:
    """`thinking` with a marker before each of its paragraphs, the last one being introduced by 1: what a
    model is trained on, so that it knows them."""
    steps = [step for step in thinking.split(BREAK) if step.strip()]
    return BREAK.join(f"{marker.format(left=len(steps) - i)}{step}" for i, step in enumerate(steps))


@dataclass(frozen=True, slots=True)
class StepPolicy(ThinkingPolicy):
    """A thinking policy that counts `steps` down. Its wait strings are the markers, the largest first; closes
    by the model are taken as they come."""

    steps: int = 8
    forced_end: bool = True
    marker: str = MARKER
    markers: Literal["ours", "model"] = "ours"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"step-conditional: {self.steps} steps; there must be at least 1")
        if "{left}" not in self.marker or not self.marker.endswith("\n"):
            raise UsageError("step-conditional: the marker must say {left} and end its line")
        if self.refuses or self.close != "hard":
            raise UsageError(
                "step-conditional: steps cannot be counted down while closes are refused, or the cut is "
                'graceful; leave min_tokens and refuse_closes 0 and close "hard"'
            )
        count = self.steps if self.markers == "ours" else 1
        object.__setattr__(self, "wait", tuple(self.marker.format(left=self.steps - i) for i in range(count)))
        ThinkingPolicy.__post_init__(self)

    def compile(self, tokenizer: Tokenizer, template: Template | None = None) -> Machine:
        """As `ThinkingPolicy.compile`. Raises UsageError also for a template without thinking."""
        machine = ThinkingPolicy.compile(self, tokenizer, template)
        if not machine.close:
            raise UsageError(
                "step-conditional: there are no steps where this template has thinking switched off"
            )
        return _StepMachine(
            machine.script, machine.end, machine.breaks_line, lambda ids: decode_ids(tokenizer, ids)
        )


@dataclass(frozen=True, slots=True)
class _StepMachine(Machine):
    """A machine whose replies count down. `decode` gives the text of ids."""

    decode: Callable[[list[int]], str] = field(compare=False)

    def start(
        self, room: int, last_prompt_id: int, max_answer: int | None = None, append_only: bool = False
    ) -> State:
        """As `Machine.start`; the first marker belongs to the opening."""
        return _StepState(self, room, last_prompt_id, max_answer, append_only)


class _StepState(State):
    """One reply that counts down. `left` steps are to come, the present one included; what it consists of
    begins at id number `since`."""

    __slots__ = ("decode", "left", "policy", "since")

    def __init__(
        self, machine: _StepMachine, room: int, last_prompt_id: int, max_answer: int | None, append_only: bool
    ) -> None:
        super().__init__(machine, room, last_prompt_id, max_answer, append_only)
        policy = machine.policy
        assert isinstance(policy, StepPolicy)
        self.policy, self.decode = policy, machine.decode
        self.left = policy.steps
        self.since = len(self.ids)
        if not self._answering:
            self.opening += self._put_in(0)

    def step(self, token: int, scores: Any = None) -> Step:
        """As `State.step`, and where that ends a step, what follows from it."""
        step = super().step(token, scores)
        # Only where the machine took the token as a thought, and wrote nothing itself.
        if step.feed != (token,) or step.back or self._answering or not self.machine.breaks_line(token):
            return step
        written = self.decode(self.ids[self.since :])
        if self.policy.markers == "model":
            last = written.rstrip().rpartition("\n")[2]
            over = last.strip() == self.policy.marker.format(left=0).strip()
            return Step((token, *self._close_now())) if over and self.policy.forced_end else step
        if not (written.endswith(BREAK) and written.strip()):
            return step
        self.left -= 1
        if self.left > 0:
            return Step((token, *self._put_in(self.policy.steps - self.left)))
        return Step((token, *self._close_now())) if self.left == 0 and self.policy.forced_end else step

    def _put_in(self, index: int) -> tuple[int, ...]:
        """The marker number `index`, where at least one token of thinking fits behind it."""
        script = self.machine.script
        thought = self.progress.thinking + self._count
        if thought + script.waits[index].tokens >= cap(script, self.progress):
            return ()
        forced = self._settle(interrupt(script, self.progress, self._count, index))
        self.since = len(self.ids)
        return forced

    def _close_now(self) -> tuple[int, ...]:
        return self._settle(interrupt(self.machine.script, self.progress, self._count, None))


@dataclass(frozen=True, slots=True)
class StepConditional(Single):
    """So many steps (a power of two in s1's data), counted down. Without `forced_end` the model may go on
    when none is left."""

    steps: int
    forced_end: bool = False
    marker: str = MARKER
    markers: Literal["ours", "model"] = "ours"

    @property
    def name(self) -> str:
        """`step-conditional`."""
        return "step-conditional"

    def row(self) -> dict[str, Any]:
        """The steps asked for, whether the end was forced, and who counted."""
        return {"asked": self.steps, "forced_end": self.forced_end, "counted_by": self.markers}

    def check(self, solver: Solver) -> None:
        """Raises UsageError when the solver's policy cannot be counted down."""
        self._policy(solver)

    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The plain question; the first marker opens the thinking."""
        return solver.request(problem, attempt, self._policy(solver), **more)

    def _policy(self, solver: Solver) -> StepPolicy:
        own = {each.name: getattr(solver.policy, each.name) for each in fields(ThinkingPolicy)}
        return StepPolicy(
            **own, steps=self.steps, forced_end=self.forced_end, marker=self.marker, markers=self.markers
        )
