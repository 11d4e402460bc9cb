"""Jobs that make models: the student to start from, and fine-tuned arms.

Promises: a folder of safetensors with the template it was trained with; the metrics say what it saw and what
that cost: traces, teacher calls, tokens, steps.
Does not: hold a room's logic.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import tutelage
from tutelage.curate.funnel import funnel
from tutelage.curate.rejection import reject
from tutelage.errors import UsageError
from tutelage.recipe import stages
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, Verdict, by_id, read_records, stable_hash
from tutelage.students.card import write_start
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.template import Template
from tutelage.train.examples import build_examples, gold_traces
from tutelage.train.sft import Lora, SftSettings, train_sft

LAB_BASE = Path(tutelage.__file__).parent / "lab" / "base"


def student(ctx: JobContext[stages.Student]) -> dict[str, Any]:
    """The student to start from, as a folder of safetensors."""
    config = ctx.config
    torch.set_num_threads(ctx.threads)
    template = Template(**config.template.model_dump()) if config.template else None
    if config.source == "tiny":
        found = _fresh(config.seed, template or Template())
    else:
        source = str(LAB_BASE) if config.source == "lab-base" else config.source
        found = load_student(source, device="cpu", template=template)
    save_student(found, ctx.outputs["model"])
    write_start(ctx.outputs["model"], config.source)
    return {"source": config.source, "parameters": sum(p.numel() for p in found.model.parameters())}


def _fresh(seed: int, template: Template) -> Student:
    from tutelage.lab.tokenizer import build_tokenizer
    from tutelage.students.tiny import TinyConfig, build_tiny

    tokenizer = build_tokenizer()
    model = build_tiny(
        TinyConfig(),
        vocabulary=len(tokenizer),
        pad=tokenizer.pad_token_id,
        end=tokenizer.eos_token_id,
        seed=seed,
    )
    return Student(model, tokenizer, template, "tiny")


def train(ctx: JobContext[stages.Train]) -> dict[str, Any]:
    """One fine-tuned arm for one seed."""
    config = ctx.config
    torch.set_num_threads(ctx.threads)
    # The same problem may come from two sources; two problems under one id are refused by `by_id`.
    read = (p for source in ctx.inputs["problems"] for p in read_records(source.path, Problem))
    problems = list({stable_hash(asdict(p)): p for p in read}.values())
    chosen, numbers = _choose(ctx, problems)
    begun = load_student(str(ctx.path("model")))
    made = build_examples(
        begun.tokenizer,
        begun.template,
        by_id(problems),
        chosen,
        target=config.target,
        max_length=config.max_length,
        too_long=config.too_long,
    )
    settings = SftSettings(
        **config.model_dump(
            include={
                "steps", "batch", "accumulate", "learning_rate", "schedule", "warmup_steps", "weight_decay",
                "beta2", "bf16", "checkpointing",
            }
        ),
        lora=Lora(**config.lora.model_dump()) if config.lora else None,
        seed=ctx.seed or 0,
    )  # fmt: skip
    result = train_sft(begun, made.examples, settings, ctx.progress)
    save_student(begun, ctx.outputs["model"])
    return {
        **numbers,
        "examples": len(made.examples),
        "too_long": len(made.too_long),
        "steps": result.steps,
        "tokens_seen": result.tokens_seen,
        "tokens_learned": result.tokens_learned,
        "epochs": result.epochs,
        "train_seconds": result.seconds,
        "losses": result.losses,
        "target": config.target,
    }


def _choose(ctx: JobContext[stages.Train], problems: list[Problem]) -> tuple[list[Trace], dict[str, Any]]:
    """The traces to learn from, and how they came about."""
    config = ctx.config
    if not config.traces:
        if config.verdicts or config.keep != "all":
            raise UsageError(f"stage {ctx.stage}: verdicts and keep choose among traces, but there are none")
        return gold_traces(problems, config.answer), {"teacher_calls": 0, "funnel": []}
    traces = [t for source in ctx.inputs["traces"] for t in read_records(source.path, Trace)]
    verdicts = [v for source in ctx.inputs.get("verdicts", ()) for v in read_records(source.path, Verdict)]
    calls = [t for t in traces if config.calls is None or t.sample < config.calls]
    used = {t.id for t in calls}
    kept, drops = reject(
        calls,
        [v for v in verdicts if v.trace_id in used],
        keep=config.keep,
        per_problem=config.per_problem,
    )
    learnable = [t for t in kept if t.answer.strip()]
    rows = funnel([(ctx.stage, len(kept), drops)])
    return learnable, {
        "teacher_calls": sum(1 for t in calls if t.request_key),
        "without_answer": len(kept) - len(learnable),
        "funnel": rows,
    }
