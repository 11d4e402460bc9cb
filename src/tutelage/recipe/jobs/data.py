"""Jobs that make data: problems, traces, verdicts.

Promises: outputs are whole or absent; the metrics hold every count that the report shows.
Does not: hold a room's logic.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.curate.decontaminate import Drop, decontaminate
from tutelage.curate.funnel import funnel
from tutelage.errors import PartialError, UsageError
from tutelage.lab.oracles import Oracle, reply
from tutelage.lab.world import make_problems
from tutelage.problems.files import read_problems
from tutelage.recipe import stages
from tutelage.recipe.files import write_text
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, Verdict, by_id, read_records, stable_hash, write_records
from tutelage.teachers import money
from tutelage.teachers.collect import Teacher, collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.scripted import ScriptedTeacher
from tutelage.verify.cascade import judge


def lab_problems(ctx: JobContext[stages.LabProblems]) -> dict[str, Any]:
    """Train and test problems of the lab world."""
    config = ctx.config
    draw = partial(
        make_problems, min_steps=config.min_steps, max_steps=config.max_steps, onlookers=config.onlookers
    )
    test = draw(config.test, seed=2 * config.seed + 1)
    # The pool is drawn on its own and then decontaminated, as data from anywhere else would be; what the
    # test set costs it is drawn again.
    pool = draw(config.train + config.test, seed=2 * config.seed)
    kept, drops = decontaminate(pool, test, ngram=None)
    if len(kept) < config.train:
        raise UsageError(
            f"stage {ctx.stage}: only {len(kept)} training problems are left beside the test set; "
            "lower train, or raise max_steps"
        )
    return _write_problems(ctx, kept[: config.train], test, drops)


def file_problems(ctx: JobContext[stages.FileProblems]) -> dict[str, Any]:
    """Train and test problems from the user's files or the Hub."""
    config = ctx.config
    common: dict[str, Any] = {
        "columns": config.columns,
        "checker": config.checker,
        "source": config.source,
        "licence": config.licence,
    }
    train = read_problems(
        config.train, split=_split(config.train, config.train_split), limit=config.train_limit, **common
    )
    if (config.test is None) == (config.hold_out is None):
        raise UsageError(
            f"stage {ctx.stage}: give either test (a source) or hold_out (how many to set aside)"
        )
    if config.test is not None:
        split = _split(config.test, config.test_split)
        test = read_problems(config.test, split=split, limit=config.test_limit, **common)
    else:
        train, test = _set_aside(train, config.hold_out or 0, config.seed, ctx.stage)
    kept, drops = decontaminate(train, test, ngram=config.ngram)
    if not kept:
        raise UsageError(f"{config.train}: every training problem is in the test set as well")
    return _write_problems(ctx, kept, test, drops)


def _set_aside(
    problems: list[Problem], count: int, seed: int, stage: str
) -> tuple[list[Problem], list[Problem]]:
    """Training problems, and `count` test problems; which ones depends on their ids and the seed alone."""
    if count >= len(problems):
        raise UsageError(f"stage {stage}: hold_out {count} leaves no training problem of {len(problems)}")
    order = sorted(problems, key=lambda problem: stable_hash(seed, problem.id))
    chosen = {problem.id for problem in order[:count]}
    return [p for p in problems if p.id not in chosen], [p for p in problems if p.id in chosen]


def _split(source: str, split: str) -> str | None:
    """Only data sets on the Hub have splits; a file is one."""
    return split if source.startswith("hub:") else None


def _write_problems(
    ctx: JobContext[Any], train: Sequence[Problem], test: Sequence[Problem], drops: Sequence[Drop]
) -> dict[str, Any]:
    write_text(ctx.outputs["drops"], json.dumps([asdict(drop) for drop in drops], indent=1))
    write_records(ctx.outputs["test"], test, Problem)
    write_records(ctx.outputs["train"], train, Problem)
    rows = funnel([("training problems after decontamination and deduplication", len(train), drops)])
    return {"train": len(train), "test": len(test), "funnel": rows}


@dataclass(frozen=True, slots=True)
class _Counted:
    """A lab reply with the token counts of the lab's own tokenizer."""

    thinking: str
    answer: str
    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int


def _lab_teacher(settings: stages.LabTeacher, name: str) -> ScriptedTeacher:
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


def _price(price: stages.Price) -> money.Price:
    return money.price(price.prompt, price.completion)


def build_teacher(settings: stages.Teacher, name: str) -> Teacher:
    """The teacher that the settings describe; `name` is its default maker name.

    Raises UsageError for settings that cannot work."""
    match settings:
        case stages.LabTeacher():
            return _lab_teacher(settings, name)
        case stages.HumanTeacher():
            return ReplayTeacher(name="human", layout="human", answer_template=settings.answer)
        case stages.ReplayTeacher():
            return ReplayTeacher(
                name=settings.name,
                path=Path(settings.path),
                layout=settings.layout,
                columns=settings.columns,
            )
        case stages.EndpointTeacher():
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
    if not found.traces:
        reason = found.failed[0][1] if found.failed else "no problem"
        raise PartialError(f"no reply could be had ({reason}); {len(found.failed)} requests failed")
    write_records(ctx.outputs["traces"], found.traces, Trace)
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


def verify_traces(ctx: JobContext[stages.Verify]) -> dict[str, Any]:
    """A verdict on every trace."""
    problems = by_id(read_records(ctx.path("problems"), Problem))
    traces = read_records(ctx.path("traces"), Trace)
    verdicts = list(
        judge(problems, traces, seconds=ctx.config.seconds, workers=ctx.threads, progress=ctx.progress)
    )
    write_records(ctx.outputs["verdicts"], verdicts, Verdict)
    statuses = Counter(verdict.status for verdict in verdicts)
    methods = Counter(verdict.method for verdict in verdicts)
    return {
        "traces": len(traces),
        **{status: statuses.get(status, 0) for status in ("correct", "incorrect", "undecided")},
        "methods": dict(sorted(methods.items())),
    }
