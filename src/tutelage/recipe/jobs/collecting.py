"""The job that collects traces, and the teachers that settings describe.

Promises: outputs are whole or absent; the metrics hold every count that the report shows.
Does not: hold a room's logic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from tutelage.errors import PartialError
from tutelage.lab.oracles import Oracle, reply
from tutelage.recipe import stages, teachers
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, read_records, write_records
from tutelage.teachers import money
from tutelage.teachers.collect import Source, collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.scripted import ScriptedTeacher


@dataclass(frozen=True, slots=True)
class _Counted:
    """A lab reply with the token counts of the lab's own tokenizer."""

    thinking: str
    answer: str
    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int


def _lab_teacher(settings: teachers.LabTeacher, name: str) -> ScriptedTeacher:
    from tutelage.lab.tokenizer import build_tokenizer
    from tutelage.tokens import encode_text

    tokenizer = build_tokenizer()
    plain = settings.model_dump(exclude={"kind", "price"})
    oracle = Oracle(**plain)

    def count(text: str) -> int:
        return len(encode_text(tokenizer, text)) if text else 0

    def answer(problem: Problem, sample: int) -> _Counted:
        said = reply(oracle, problem, sample)
        # The answer's count holds the end of the turn, which is generated as well.
        return _Counted(
            said.thinking, said.answer, count(problem.question), count(said.thinking), count(said.answer) + 1
        )

    return ScriptedTeacher(name, answer, plain, _price(settings.price))


def _price(price: teachers.Price) -> money.Price:
    return money.price(price.prompt, price.completion)


def build_teacher(settings: teachers.Teacher, name: str) -> Source:
    """The teacher that the settings describe; `name` is its default maker name.

    Raises UsageError for settings that cannot work."""
    match settings:
        case teachers.LabTeacher():
            return _lab_teacher(settings, name)
        case teachers.HumanTeacher():
            return ReplayTeacher(name="human", layout="human", answer_template=settings.answer)
        case teachers.ReplayTeacher():
            return ReplayTeacher(
                name=settings.name,
                path=Path(settings.path),
                layout=settings.layout,
                columns=settings.columns,
            )
        case teachers.EndpointTeacher():
            fields = settings.model_dump(exclude={"kind", "price", "budget"})
            budget = None if settings.budget is None else money.dollars(settings.budget, "budget")
            return EndpointTeacher(**fields, price=_price(settings.price), budget=budget)


def collect_traces(ctx: JobContext[stages.Collect]) -> dict[str, Any]:
    """Traces of every problem from one teacher.

    Raises PartialError when nothing could be had; single failures are counted and reported."""
    config = ctx.config
    problems = read_records(ctx.path("problems"), Problem)
    teacher = build_teacher(config.teacher, ctx.stage)
    found = collect(
        problems, teacher, samples=config.samples, ledger_path=ctx.ledger_path, progress=ctx.progress
    )
    if found.error and not found.traces:
        raise found.error
    if not found.traces:
        reason = found.failed[0][1] if found.failed else "no problem"
        raise PartialError(f"no reply could be had ({reason}); {len(found.failed)} requests failed")
    write_records(ctx.outputs["traces"], found.traces, Trace)
    if found.error:
        raise found.error
    failures = Counter(reason for _, reason in found.failed)
    return {
        "teacher": ctx.stage,
        "kind": config.teacher.kind,
        "problems": len(problems),
        "samples": config.samples,
        "traces": len(found.traces),
        "requests": 0 if isinstance(teacher, ReplayTeacher) else found.bought + found.reused,
        "bought": found.bought,
        "reused": found.reused,
        "failed": len(found.failed),
        "failures": dict(failures.most_common(10)),
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "dollars": _text(found.cost),
    }


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else format(amount.normalize(), "f")
