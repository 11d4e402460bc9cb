"""A local model as a solver: what every method of thinking is run with.

Promises: prompts are those of training and serving; votes are counted without a look at the gold answer;
seeds are those of a local teacher, so that its samples are the solver's.
Does not: load models, or put intervals around anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tutelage.measure.evaluate import Check
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.students.template import render_prompt
from tutelage.teachers.marked import reply_texts
from tutelage.think.engine import Completion
from tutelage.think.methods import Decoder, Solver
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.verify.canonical import canonical


def local_solver(
    student: Student,
    engine: Decoder,
    check: Check | None = None,
    *,
    policy: ThinkingPolicy | None = None,
    sampling: Sampling | None = None,
    samples: int = 1,
    seed: int = 0,
    max_answer: int | None = 64,
) -> Solver:
    """`student`, which `engine` runs, as a solver; `check` is what methods that look at the gold answer ask.
    A line that a method adds to the question stands below it."""
    tokenizer, template = student.tokenizer, student.template

    # The methods of a sweep ask for the same prompts, problem by problem.
    @lru_cache(maxsize=1024)
    def render(question: str) -> tuple[int, ...]:
        return tuple(render_prompt(tokenizer, template, question))

    def prompt(problem: Problem, line: str) -> tuple[int, ...]:
        return render(f"{problem.question}\n{line}" if line else problem.question)

    def answer(reply: Completion) -> str:
        return reply_texts(tokenizer, reply)[1]

    def read(problems: Sequence[Problem], replies: Sequence[Completion]) -> list[str | None]:
        return [canonical(one, answer(reply)) for one, reply in zip(problems, replies, strict=True)]

    def verify(problems: Sequence[Problem], replies: Sequence[Completion]) -> list[bool]:
        assert check is not None
        traces = [
            Trace(str(number), problem.id, 0, student.name, answer(reply))
            for number, (problem, reply) in enumerate(zip(problems, replies, strict=True))
        ]
        asked = list({problem.id: problem for problem in problems}.values())
        return [verdict.status == "correct" for verdict in check(asked, traces)]

    return Solver(
        engine=engine,
        prompt=prompt,
        read=read,
        verify=None if check is None else verify,
        policy=policy or ThinkingPolicy(),
        sampling=sampling or Sampling(),
        seed=seed,
        samples=samples,
        max_answer=max_answer,
    )
