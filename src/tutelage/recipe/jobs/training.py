"""Jobs that make models from traces: the student to start from, mid-training and supervised fine-tuning.

Promises: a folder of safetensors with the template it was trained with; the metrics say what it saw and what
that cost: traces, teacher calls, tokens, steps.
Does not: hold a room's logic.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import tutelage
from tutelage.curate.drops import funnel
from tutelage.curate.rejection import reject
from tutelage.errors import UsageError
from tutelage.recipe import starts
from tutelage.recipe.jobs import fitting
from tutelage.recipe.stage import JobContext
from tutelage.recipe.training import MidTrain, Sft, TraceChoice
from tutelage.records import Problem, Trace, Verdict, by_id, read_records, stable_hash
from tutelage.students.card import write_start
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.reserved import padding, with_markers
from tutelage.students.template import REASONING_SYSTEM, Template
from tutelage.tokens import encode_text
from tutelage.train import ranks
from tutelage.train.check import Samples, changed, refuse_traps
from tutelage.train.check import packed as packed_batch
from tutelage.train.check import padded as padded_batch
from tutelage.train.dry import dry_pass, longest
from tutelage.train.examples import ExampleSet, LossOn, build_examples, gold_traces, sized
from tutelage.train.mixing import mix
from tutelage.train.sft import SftResult, train_sft

LAB_BASE = Path(tutelage.__file__).parent / "lab" / "base"


def student(ctx: JobContext[starts.Student]) -> dict[str, Any]:
    """The student to start from, as a folder of safetensors."""
    config = ctx.config
    torch.set_num_threads(ctx.threads)
    template = Template(**config.template.model_dump()) if config.template else None
    if config.source == "tiny":
        found = _fresh(config, template or Template())
    else:
        source = str(LAB_BASE) if config.source == "lab-base" else config.source
        found = load_student(source, device="cpu", template=template)
    if config.markers == "tokens":
        found = with_markers(found, found.template.think_open, found.template.think_close)
    save_student(found, ctx.outputs["model"])
    write_start(ctx.outputs["model"], config.source)
    return {"source": config.source, "parameters": sum(p.numel() for p in found.model.parameters())}


def _fresh(config: starts.Student, template: Template) -> Student:
    from tutelage.lab.products import phrases
    from tutelage.lab.tokenizer import build_tokenizer
    from tutelage.students.tiny import Loops, TinyConfig, build_tiny

    tokenizer = build_tokenizer(phrases() if config.world == "products" else None)
    size = replace(
        TinyConfig(),
        rope_base=config.rope_base,
        loops=Loops(**config.recurrent.model_dump()) if config.recurrent else None,
    )
    if config.width:  # heads of 32, as the usual size has them
        wide = size.feed_forward * config.width // size.width
        size = replace(size, width=config.width, heads=config.width // 32, feed_forward=wide)
    model = build_tiny(
        replace(size, layers=config.layers or size.layers),
        vocabulary=len(tokenizer),
        pad=tokenizer.pad_token_id,
        end=tokenizer.eos_token_id,
        seed=config.seed,
    )
    return Student(model, tokenizer, template, "tiny")


def sft(ctx: JobContext[Sft]) -> dict[str, Any]:
    """One model fine-tuned on traces, for one seed."""
    learned = lessons(ctx, fitting.start(ctx), ctx.config.loss_on)
    admit(ctx, learned)
    result = train_sft(
        learned.student,
        learned.made.examples,
        fitting.optimiser(ctx),
        keep=fitting.keep(ctx),
        validation=fitting.validation(ctx),
        progress=ctx.progress,
    )
    return _finish(ctx, learned, result)


def mid_train(ctx: JobContext[MidTrain]) -> dict[str, Any]:
    """One model trained on packed traces, for one seed."""
    learned = lessons(ctx, fitting.start(ctx), ctx.config.loss_on)
    admit(ctx, learned, packed=ctx.config.max_length)
    result = train_sft(
        learned.student,
        learned.made.examples,
        fitting.optimiser(ctx),
        packed=ctx.config.max_length,
        keep=fitting.keep(ctx),
        validation=fitting.validation(ctx),
        progress=ctx.progress,
    )
    return _finish(ctx, learned, result)


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a stage learns from: the student as it is spoken to in training, the examples, the traces and
    problems that they are made of, and the numbers that say how they came about."""

    student: Student
    made: ExampleSet
    traces: list[Trace]
    problems: list[Problem]
    numbers: dict[str, Any]


def lessons(ctx: JobContext[TraceChoice], begun: Student, loss_on: LossOn = "reply") -> Lessons:
    """The examples of a stage that trains `begun` on traces.

    Raises UsageError for settings and data that do not go together."""
    config = ctx.config
    # The same problem may come from two sources; two problems under one id are refused by `by_id`.
    read = (p for source in ctx.inputs["problems"] for p in read_records(source.path, Problem))
    problems = list({stable_hash(asdict(p)): p for p in read}.values())[: config.first]
    student = speaking(begun, config.system)
    chosen, numbers = _choose(ctx, problems)
    if config.mix is not None:
        lengths = [len(encode_text(student.tokenizer, trace.thinking)) for trace in chosen]
        mixed = mix(chosen, lengths, **config.mix.model_dump(), seed=ctx.seed or 0)
        chosen, numbers["mix"] = mixed.traces, mixed.to_dict()
    made = build_examples(
        student.tokenizer,
        student.template,
        by_id(problems),
        chosen,
        target=config.target,
        max_length=config.max_length,
        too_long=config.too_long,
        loss_on=loss_on,
    )
    if config.keep == "faithful":
        known = {trace.id: trace for trace in chosen}
        left_out = changed(Samples(student, by_id(problems), known, made.examples, config.target))
        made = replace(made, examples=[each for each in made.examples if each.trace_id not in left_out])
        numbers["changed"] = len(left_out)
        if not made.examples:
            raise UsageError("every trace is changed by the student's tokenizer; use another one")
    grown = getattr(config, "lengths", None)
    if grown is not None:
        made = replace(made, examples=sized(made.examples, by_id(problems), grown.by))
    used = {example.problem_id for example in made.examples}
    numbers |= {"problems": len(used), "examples": len(made.examples), "too_long": len(made.too_long)}
    return Lessons(student, made, chosen, [each for each in problems if each.id in used], numbers)


def admit(ctx: JobContext[Any], learned: Lessons, *, packed: int | None = None) -> None:
    """What `--check` would refuse is refused here too, before the first step. On a GPU the longest batch goes
    through the model once, so that it fails now where it is too large (a CPU would only swap).

    Raises UsageError with the first reason."""
    config, student, examples = ctx.config, learned.student, learned.made.examples
    pad = padding(student.tokenizer).id
    refuse_traps(
        student,
        by_id(learned.problems),
        learned.traces,
        examples,
        target=config.target,
        faithful=config.chat_template == "faithful",
        collate=packed_batch(pad) if packed else padded_batch(pad),
    )
    if next(student.model.parameters()).device.type == "cuda":
        dry_pass(
            student,
            fitting.optimiser(ctx),
            lambda begun, optimiser, progress: train_sft(
                begun, longest(examples, optimiser.batch, packed), optimiser, packed=packed, progress=progress
            ),
        )


def speaking(student: Student, system: str) -> Student:
    """`student` with the system message that `system` names: `reasoning`, `own` (as it is), `none` (nothing
    but what its chat template says by itself), or the text itself.

    Raises UsageError where there is no chat template to put a system message into."""
    if system == "own":
        return student
    text = {"reasoning": REASONING_SYSTEM, "none": None}.get(system, system)
    if text is not None and not getattr(student.tokenizer, "chat_template", None):
        raise UsageError(
            f"{student.name}: its tokenizer has no chat template, so there is no place for a system message; "
            "set system: own"
        )
    return replace(student, template=replace(student.template, system=text))


def _finish(ctx: JobContext[Any], learned: Lessons, result: SftResult) -> dict[str, Any]:
    numbers = {
        **learned.numbers,
        "tokens_seen": result.tokens_seen,
        "tokens_learned": result.tokens_learned,
        "padding": round(1 - result.tokens_seen / result.positions, 4),
        "epochs": result.epochs,
        "packing": asdict(result.packing) if result.packing else None,
        "target": ctx.config.target,
        "processes": ranks.processes(),
    }
    return fitting.finish(ctx, learned.student, result.fitted, numbers, learned.problems)


def _choose(ctx: JobContext[TraceChoice], problems: list[Problem]) -> tuple[list[Trace], dict[str, Any]]:
    """The traces to learn from, and how they came about."""
    config = ctx.config
    if not config.traces:
        if config.verdicts or config.keep != "all" or config.prefer != "first" or config.mix is not None:
            raise UsageError(
                f"stage {ctx.stage}: prefer, verdicts, keep and mix choose among traces, but there are none"
            )
        return gold_traces(problems, config.answer), {"teacher_calls": 0, "funnel": []}
    traces = [t for source in ctx.inputs["traces"] for t in read_records(source.path, Trace)]
    if config.first is not None:
        known = {problem.id for problem in problems}
        traces = [trace for trace in traces if trace.problem_id in known]
    verdicts = [v for source in ctx.inputs.get("verdicts", ()) for v in read_records(source.path, Verdict)]
    calls = [t for t in traces if config.calls is None or t.sample < config.calls]
    used = {t.id for t in calls}
    kept, drops = reject(
        calls,
        [v for v in verdicts if v.trace_id in used],
        keep="all" if config.keep == "all" else "correct",
        per_problem=config.per_problem,
        prefer=config.prefer,
    )
    learnable = [t for t in kept if t.answer.strip()]
    rows = funnel([(ctx.stage, len(kept), drops)])
    return learnable, {
        "teacher_calls": sum(1 for t in calls if t.request_key),
        "without_answer": len(kept) - len(learnable),
        "funnel": rows,
    }
