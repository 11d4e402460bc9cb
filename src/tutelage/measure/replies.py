"""Decoded replies as traces with their verdicts, and the solver that methods are played by.

Promises: each distinct reply to a problem is judged once, however many points share it; what a vote counts
does not depend on the gold answer; seeds are those of `teachers.local`, so that a point and an evaluation
under the same policy hold the same replies.
Does not: decode (see `think.engine`), or sum up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tutelage.measure.evaluate import Check
from tutelage.records import Problem, Trace, Verdict, stable_hash
from tutelage.students.pretrained import Student
from tutelage.students.template import render_prompt
from tutelage.teachers.marked import reply_texts, trace_fields
from tutelage.think.engine import Completion
from tutelage.think.methods import Decoder, Solver
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.verify.canonical import canonical

_Key = tuple[str, tuple[int, ...], str, str, str, str]


@dataclass(slots=True)
class Judged:
    """What `check` says of the replies of `student`, which the traces name `maker`."""

    student: Student
    maker: str
    check: Check
    _known: dict[_Key, tuple[Trace, Verdict]] = field(default_factory=dict)

    def look(self, problems: Sequence[Problem], replies: Sequence[Completion]) -> list[tuple[Trace, Verdict]]:
        """Trace and verdict of each reply, in order; `problems[i]` is what reply i answers."""
        keys = [_key(problem, reply) for problem, reply in zip(problems, replies, strict=True)]
        new = {
            key: (problem, self._trace(problem, reply, key))
            for key, problem, reply in zip(keys, problems, replies, strict=True)
            if key not in self._known
        }
        asked = list({problem.id: problem for problem, _ in new.values()}.values())
        traces = [trace for _, trace in new.values()]
        verdicts = {verdict.trace_id: verdict for verdict in self.check(asked, traces)} if new else {}
        for key, (_, trace) in new.items():
            self._known[key] = (trace, verdicts[trace.id])
        return [self._known[key] for key in keys]

    def read(self, problems: Sequence[Problem], replies: Sequence[Completion]) -> list[str | None]:
        """The answers as votes count them, without a look at the gold answer; None where there is none."""
        texts = [reply_texts(self.student.tokenizer, reply)[1] for reply in replies]
        return [canonical(problem, text) for problem, text in zip(problems, texts, strict=True)]

    def verify(self, problems: Sequence[Problem], replies: Sequence[Completion]) -> list[bool]:
        """Which replies are right."""
        return [verdict.status == "correct" for _, verdict in self.look(problems, replies)]

    def _trace(self, problem: Problem, reply: Completion, key: _Key) -> Trace:
        return Trace(
            id=stable_hash(self.maker, *key),
            problem_id=problem.id,
            sample=0,
            maker=self.maker,
            **trace_fields(self.student.tokenizer, reply),
        )


def solver_of(
    engine: Decoder,
    judged: Judged,
    policy: ThinkingPolicy,
    *,
    sampling: Sampling,
    samples: int,
    seed: int,
    max_answer: int,
) -> Solver:
    """The student of `judged` as a solver. A line is put below the question, as a user would write it."""
    student = judged.student
    prompts: dict[tuple[str, str], tuple[int, ...]] = {}  # rendering is slow, and every point asks for it

    def prompt(problem: Problem, line: str) -> tuple[int, ...]:
        if (problem.id, line) not in prompts:
            text = f"{problem.question}\n{line}" if line else problem.question
            prompts[problem.id, line] = tuple(render_prompt(student.tokenizer, student.template, text))
        return prompts[problem.id, line]

    return Solver(engine, prompt, judged.read, judged.verify, policy, sampling, seed, samples, max_answer)


def _key(problem: Problem, reply: Completion) -> _Key:
    """All that a trace tells of a reply."""
    marks = (bytes(reply.forced).hex(), bytes(reply.phases).hex())
    return (problem.id, reply.ids, *marks, reply.closed_by, reply.finish_reason)
