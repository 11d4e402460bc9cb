"""Jobs that measure: arms, and comparisons of arms. Sweeps over thinking: see `sweeping`.

Promises: an evaluation is a folder with its numbers, traces and verdicts, and says how many of the questions
the model learned from, or was chosen on (which is refused unless asked for); comparisons pair the same
problems.
Does not: hold a room's logic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import UsageError
from tutelage.measure.compare import compare, with_holm
from tutelage.measure.evaluate import scores_by_problem, summed_up
from tutelage.measure.flops import cost_rows
from tutelage.measure.selection import Seen, allow, judged
from tutelage.recipe import stages
from tutelage.recipe.files import replace_folder, write_text
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, Verdict, read_records, write_records
from tutelage.students.lineage import read_training
from tutelage.students.pretrained import Student, load_student
from tutelage.teachers.local import LocalTeacher, decode, to_traces
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

EVALUATION, TRACES, VERDICTS = "evaluation.json", "traces.parquet", "verdicts.parquet"


def load(path: Path, bf16: bool, threads: int) -> Student:
    """The student at `path`, with torch at `threads` threads."""
    torch.set_num_threads(threads)
    return load_student(str(path), dtype="bfloat16" if bf16 else "float32")


def allowed(ctx: JobContext[Any], problems: Sequence[Problem], forced: bool) -> Seen:
    """What the model has seen of `problems`; raises UsageError where it must not be measured on them."""
    return allow(problems, read_training(ctx.path("model")), forced=forced, what=f"stage {ctx.stage}")


def evaluate_arm(ctx: JobContext[stages.Evaluate]) -> dict[str, Any]:
    """Accuracy of one arm for one seed."""
    config = ctx.config
    problems = read_records(ctx.path("problems"), Problem)
    known = allowed(ctx, problems, config.allow_chosen_on)
    student = load(ctx.path("model"), config.bf16, ctx.threads)
    if not config.thinking or config.system is not None:
        template = replace(student.template, thinking=config.thinking and student.template.thinking)
        if config.system is not None:
            template = replace(template, system=config.system)
        student = replace(student, template=template)
    teacher = LocalTeacher(
        student,
        maker=config.arm,
        sampling=Sampling(**config.sampling.model_dump()),
        samples=config.samples,
        seed=ctx.seed or 0,
        max_answer=config.max_answer_tokens,
        max_batch=config.max_batch,
    )
    policy = ThinkingPolicy(**config.policy.model_dump())
    if not problems:
        raise UsageError("there is no problem to evaluate on")
    replies = decode(teacher, problems, policy, ctx.progress)
    traces = list(to_traces(teacher, problems, policy, replies))
    found = summed_up(problems, traces, judged(problems, traces))
    prompts = [trace.prompt_tokens or 0 for trace in traces]
    costs = cost_rows(student.model, prompts, replies, policy.effort, config.samples)
    told = {
        "arm": config.arm,
        "device": device_of(student),
        **found.to_json(),
        **costs,
        **known.to_json(),
    }
    with replace_folder(ctx.outputs["evaluation"]) as folder:
        write_text(folder / EVALUATION, json.dumps(told, indent=1))
        write_records(folder / TRACES, found.traces, Trace)
        write_records(folder / VERDICTS, found.verdicts, Verdict)
    return told


def device_of(student: Student) -> str:
    """What it ran on, for people."""
    device = student.model.device
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {os.cpu_count()} cores"


def compare_arms(ctx: JobContext[stages.Compare]) -> dict[str, Any]:
    """Paired differences between arms, seed by seed."""
    config = ctx.config
    scores: dict[tuple[str, int | None], dict[str, list[float]]] = {}
    for source in ctx.inputs["evaluations"]:
        traces = read_records(source.path / TRACES, Trace)
        verdicts = read_records(source.path / VERDICTS, Verdict)
        scores[source.key, source.seed] = scores_by_problem(traces, verdicts)
    unknown = sorted({arm for pair in config.pairs for arm in pair} - {arm for arm, _ in scores})
    if unknown:
        raise UsageError(f"stage {ctx.stage}: pairs name {unknown[0]!r}, which is not among its evaluations")
    rows = [
        compare(a, b, scores[a, seed], scores[b, seed], seed if seed is not None else 0)
        for a, b in config.pairs
        for arm, seed in scores
        if arm == a and (b, seed) in scores
    ]
    write_text(ctx.outputs["comparisons"], json.dumps(with_holm(rows), indent=1))
    return {"comparisons": len(rows)}
