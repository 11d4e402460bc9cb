"""The job that collects traces, and the teachers that settings describe.

Promises: outputs are whole or absent; the metrics hold every count that the report shows.
Does not: hold a room's logic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import tutelage
from tutelage.errors import PartialError, TutelageError, UsageError
from tutelage.lab.oracles import Oracle, reply
from tutelage.ledger import STATES, Ledger
from tutelage.recipe import stages, teachers
from tutelage.recipe.jobs.pilots import run_pilot
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, by_id, iter_records, read_records, write_records
from tutelage.teachers import money
from tutelage.teachers.collect import CollectResult, Source, collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.explain import explain
from tutelage.teachers.orders import Order
from tutelage.teachers.prices import find_price
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.retry import Filter, Retried, choose, parse_filter, retry, with_new, with_retries
from tutelage.teachers.scripted import ScriptedTeacher

LAB_BASE = Path(tutelage.__file__).parent / "lab" / "base"


@dataclass(frozen=True, slots=True)
class _Counted:
    """A lab reply with the token counts of the lab's own tokenizer."""

    thinking: str
    answer: str
    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int


def _lab_teacher(settings: teachers.LabTeacher, name: str) -> ScriptedTeacher:
    from tutelage.lab.products import DOMAIN, phrases
    from tutelage.lab.tokenizer import build_tokenizer
    from tutelage.tokens import encode_text

    own = {DOMAIN: build_tokenizer(phrases())}
    usual = build_tokenizer()
    plain = settings.model_dump(exclude={"kind", "price"})
    oracle = Oracle(**plain)

    def answer(problem: Problem, sample: int) -> _Counted:
        said = reply(oracle, problem, sample)
        tokenizer = own.get(problem.domain, usual)
        asked, thought, answered = (
            len(encode_text(tokenizer, text)) if text else 0
            for text in (problem.question, said.thinking, said.answer)
        )
        # The answer's count holds the end of the turn, which is generated as well.
        return _Counted(said.thinking, said.answer, asked, thought, answered + 1)

    return ScriptedTeacher(name, answer, plain, _price(settings.price))


def _local_teacher(settings: teachers.LocalTeacher, name: str) -> Source:
    # Here and not above: only this teacher needs torch.
    from tutelage.students.pretrained import load_student
    from tutelage.teachers.local import LocalTeacher
    from tutelage.teachers.weights import fingerprint
    from tutelage.think.policy import ThinkingPolicy
    from tutelage.think.sampling import Sampling

    source = str(LAB_BASE) if settings.model == "lab-base" else settings.model
    student = load_student(source, dtype="bfloat16" if settings.bf16 else "float32")
    return LocalTeacher(
        student,
        maker=settings.name or name,
        sampling=Sampling(**settings.sampling.model_dump()),
        seed=settings.seed,
        max_answer=settings.max_answer,
        max_batch=settings.max_batch,
        policy=ThinkingPolicy(**settings.policy.model_dump()),
        model=fingerprint(student),
        price=_price(settings.price),
    )


def _price(price: teachers.Price) -> money.Price:
    return money.price(price.prompt, price.completion, price.cached)


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
                path=settings.path,
                layout=settings.layout,
                columns=settings.columns,
            )
        case teachers.EndpointTeacher():
            fields = settings.model_dump(exclude={"kind", "price", "prices", "budget"})
            budget = None if settings.budget is None else money.dollars(settings.budget, "budget")
            price = _price(settings.price)
            if price == money.UNKNOWN and settings.prices is not None:
                price = find_price(settings.prices, settings.model, settings.base_url)
            return EndpointTeacher(**fields, price=price, budget=budget)
        case teachers.LocalTeacher():
            return _local_teacher(settings, name)


def collect_traces(ctx: JobContext[stages.Collect]) -> dict[str, Any]:
    """Traces of every problem from one teacher, and those that are bought again.

    Single failures are counted. Raises PartialError, with the metrics in `done`, when buying ended early or
    nothing could be had; what there is has been written before."""
    config, out = ctx.config, ctx.outputs["traces"]
    wanted = parse_filter(config.retry.where) if config.retry else None
    problems = read_records(ctx.path("problems"), Problem)
    metrics: dict[str, Any] = {"teacher": ctx.stage, "kind": config.teacher.kind, "problems": len(problems)}
    source = ctx.maybe("earlier")
    calls: list[CollectResult] = []
    pilot: CollectResult | None = None  # its replies are among those of the call after it
    if wanted is None or source is None:
        pilot, found = _collected(ctx, problems, metrics)
        calls.append(found)
        if len(found.traces):
            write_records(out, with_retries(found.traces, _retries(source)), Trace)
        source = out if len(found.traces) else None
    if wanted and source and not config.pilot_only and not any(call.error for call in calls):
        again = _retried(ctx, problems, source, wanted)
        write_records(out, with_new(iter_records(source, Trace), again.traces), Trace)
        calls.append(again.found)
        metrics["retry"] = {
            "chosen": again.chosen,
            "same_settings": again.same,
            "unknown_problem": again.unknown,
            "new": len(again.found.traces),
        }
    metrics |= {"samples": config.samples, "traces": 0, "dollars_of_traces": "0"}
    if source:
        metrics |= _written(out)
    metrics |= _numbers(calls, pilot, free=config.teacher.kind in ("human", "replay"))
    if error := next((call.error for call in calls if call.error), None):
        raise _with(error, metrics)
    if source is None:
        reason = calls[0].failed[0][1] if calls[0].failed else "no problem"
        raise PartialError(
            f"no reply could be had ({reason}); {len(calls[0].failed)} requests failed", metrics
        )
    return metrics


def _with(error: TutelageError, metrics: dict[str, Any]) -> PartialError:
    """`error`, which came when something was stored already, with the metrics of what is stored."""
    if not isinstance(error, PartialError):
        return PartialError(str(error), metrics)
    error.done = metrics
    return error


def _here(ctx: JobContext[stages.Collect]) -> Callable[..., CollectResult]:
    """`collect` in this process, with the ledger of the run."""
    return partial(collect, ledger_path=ctx.ledger_path, progress=ctx.progress)


def _anywhere(ctx: JobContext[stages.Collect]) -> Callable[..., CollectResult]:
    """`collect` on the engine that the settings name."""
    if ctx.config.engine == "local":
        return _here(ctx)
    from tutelage.teachers.shards import collect_sharded

    shared = partial(collect_sharded, workers=ctx.config.workers, engine=ctx.config.engine)
    return partial(shared, ledger_path=ctx.ledger_path, progress=ctx.progress)


def _collected(
    ctx: JobContext[stages.Collect], problems: Sequence[Problem], metrics: dict[str, Any]
) -> tuple[CollectResult | None, CollectResult]:
    """The pilot, if one was made, and then all of it."""
    config = ctx.config
    teacher = build_teacher(config.teacher, ctx.stage)
    stored = partial(_here(ctx), problems, teacher, samples=config.samples, progress=None, buy=False)
    made = None
    if config.pilot and not isinstance(teacher, ReplayTeacher):
        states = stored().states
        made = run_pilot(
            problems,
            teacher,
            rows=config.pilot,
            missing=states.get("owed", 0) + states.get("failed", 0),
            gather=partial(_here(ctx), samples=1),
            workers=ctx.threads,
        )
    pilot = None
    if made is not None:
        metrics["pilot"], pilot = made[0].to_json(), made[1]
    if pilot and (pilot.error or config.pilot_only):
        return pilot, replace(stored(), error=pilot.error)
    return pilot, _anywhere(ctx)(problems, teacher, samples=config.samples)


def _retried(
    ctx: JobContext[stages.Collect], problems: Sequence[Problem], source: Path, wanted: Filter
) -> Retried:
    """The traces of `source` that `wanted` names, bought again."""
    with Ledger(ctx.ledger_path) as ledger:
        attempts = choose(iter_records(source, Trace), wanted, ledger.states)
    teacher = build_teacher(ctx.config.again(), ctx.stage)
    return retry(attempts, problems, teacher, partial(_here(ctx), samples=1))


def _retries(source: Path | None) -> Iterator[Trace]:
    """The traces of a file; none where nothing in it was bought again, so that its texts are not read."""
    if source is None:
        return iter(())
    superseded = pq.read_table(source, columns=["supersedes"])["supersedes"]
    return iter_records(source, Trace) if superseded.null_count < len(superseded) else iter(())


def _numbers(calls: Sequence[CollectResult], pilot: CollectResult | None, free: bool) -> dict[str, Any]:
    """The counts of `calls` together. `requests` are those whose reply is here; `failures` leaves out what
    was not tried."""
    every = [*calls, *([pilot] if pilot else [])]
    traces = sum(len(call.traces) for call in calls)
    bought = sum(call.bought for call in every)
    failures = sum((Counter(call.failures) for call in calls), Counter[str]())
    del failures["not bought"]
    return {
        "states": {state: sum(call.states.get(state, 0) for call in calls) for state in STATES},
        "requests": 0 if free else traces,
        "sent": sum(call.sent for call in every),
        "bought": bought,
        "reused": traces - bought,
        "failed": failures.total(),
        "failures": dict(failures.most_common(10)),
        "prompt_tokens": _sum([call.prompt_tokens for call in calls]),
        "completion_tokens": _sum([call.completion_tokens for call in calls]),
        "dollars": _text(_sum([call.cost for call in calls])),
        "spent": _text(_sum([call.spent for call in every])),
    }


def _written(path: Path) -> dict[str, Any]:
    """The number of traces in a file and what they cost together, each reply once. Where some of them are
    those of another stage, that is more than the `dollars` of this one."""
    table = pq.read_table(path, columns=["id", "request_key", "cost"])
    columns = (table[name].to_pylist() for name in ("request_key", "id", "cost"))
    costs = {key or name: cost for key, name, cost in zip(*columns, strict=True)}
    return {"traces": len(table), "dollars_of_traces": _text(_sum(list(costs.values())))}


def _sum(amounts: Sequence[Any]) -> Any:
    return None if None in amounts else sum(amounts)


def _text(amount: Decimal | int | None) -> str | None:
    return None if amount is None else format(Decimal(amount).normalize(), "f")


def explain_orders(ctx: JobContext[stages.Collect]) -> dict[str, Any]:
    """What collecting would find in the ledger, and why not. Buys and writes nothing."""
    config = ctx.config
    problems = read_records(ctx.path("problems"), Problem)
    source = ctx.maybe("earlier")
    teacher = build_teacher(config.again() if config.retry and source else config.teacher, ctx.stage)
    if isinstance(teacher, ReplayTeacher):
        raise UsageError("--explain: recorded traces are not in a ledger, there is nothing to explain")
    teacher.check()
    orders: Iterable[Order] = (
        teacher.order(problem, sample) for problem in problems for sample in range(config.samples)
    )
    if config.retry and source:
        wanted = parse_filter(config.retry.where)
        with Ledger(ctx.ledger_path) as ledger:
            attempts = choose(iter_records(source, Trace), wanted, ledger.states)
        known = by_id(problems)
        orders = (
            teacher.order(known[each.problem_id], each.sample)
            for each in attempts
            if each.problem_id in known
        )
    return explain(orders, ctx.ledger_path).to_json()
