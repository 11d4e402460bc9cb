"""`tutelage train STAGE --check`: everything that can be known about a training job before its first step.

Promises: the data and the settings are those of the job; nothing is written; every check is told, those that
would refuse the job first; the loss mask of a few samples, token by token; lengths against both limits; what
the run will take, and a rehearsal of its longest batch.
Does not: hold the checks (see the room `train`: `check`, `conversation`, `mask`, `dry`, `estimate`), or the
words for people (see `recipe.checked`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tutelage.errors import UsageError
from tutelage.recipe.checked import lines as lines
from tutelage.recipe.healing import Pretrain
from tutelage.recipe.jobs import checkable
from tutelage.recipe.stage import JobContext
from tutelage.recipe.training import Dpo, Rl, TraceData, Training
from tutelage.students.pretrained import Student
from tutelage.students.reserved import reserved_tokens
from tutelage.students.template import markers
from tutelage.train import check as traps
from tutelage.train.check import Finding
from tutelage.train.dry import Dry, dry_pass, free_bytes, slower_in_bfloat16
from tutelage.train.estimate import Estimate, estimate, shape_of
from tutelage.train.examples import IGNORE, Example
from tutelage.train.mask import pieces
from tutelage.train.settings import Optimiser, Progress


def check(ctx: JobContext[Training]) -> dict[str, Any]:
    """The report on the job: `refused` (the first reason, or None), `findings`, `numbers` (of the data),
    `lengths`, `samples` (their tokens as [text, learned, control]), `estimate` and `dry` (None with
    `not_rehearsed` saying why).

    Raises UsageError for a stage that trains nothing, and for data or settings that cannot be read at all."""
    config = ctx.config
    ctx.progress(0, 3, "reading")
    if isinstance(config, TraceData):
        job = checkable.of_traces(ctx, config)
    elif isinstance(config, Pretrain):
        job = checkable.of_documents(ctx, config)
    elif isinstance(config, Dpo):
        job = checkable.of_pairs(ctx, config)
    elif isinstance(config, Rl):
        job = checkable.of_prompts(ctx, config)
    else:
        raise UsageError(f"stage {ctx.stage}: only a stage that trains a model can be checked beforehand")
    ctx.progress(1, 3, "rehearsing the longest batch")
    micro = job.optimiser.batch // job.optimiser.accumulate
    sizes = shape_of(job.student.model)
    expected = estimate(sizes, job.optimiser, job.lengths, job.learned)
    findings = [*job.findings, _markers(job), _memory(job, expected), *_precision(job)]
    refused = next((each.text for each in findings if each.refused), None)
    rehearsed, why = _rehearsal(ctx, job, expected, refused)
    if rehearsed is not None:
        positions = min(micro, len(job.lengths)) * max(job.lengths)
        expected = estimate(
            sizes,
            job.optimiser,
            job.lengths,
            job.learned,
            step_seconds=rehearsed.seconds,
            step_positions=positions,
        )
    ctx.progress(3, 3, "")
    return {
        "stage": ctx.config.kind,
        "model": job.student.name,
        "refused": refused,
        "findings": [asdict(each) for each in sorted(findings, key=lambda each: not each.refused)],
        "numbers": job.numbers,
        "lengths": _lengths(job),
        "samples": [_sample(job.student.tokenizer, each) for each in job.shown],
        "estimate": _plain(expected, job.left_out),
        "dry": asdict(rehearsed) if rehearsed else None,
        "not_rehearsed": why,
    }


def _markers(job: checkable.Job) -> Finding:
    """How the think markers are written, and what they could be."""
    tokenizer, template = job.student.tokenizer, job.student.template
    if not template.thinking:
        return Finding("think markers", False, "none: thinking is off")
    marks = markers(tokenizer, template)
    if len(marks.open) == len(marks.close) == 1:
        frozen = "; an adapter does not train what they mean" if job.optimiser.lora else ""
        return Finding("think markers", False, f"one token each{frozen}")
    free = len(reserved_tokens(tokenizer))
    where = f"{free} reserved ones are free" if free >= 2 else "two would be added"
    text = (
        f"text of {len(marks.open)} and {len(marks.close)} tokens; a student made with markers: tokens has "
        f"one token for each ({where})"
    )
    return Finding("think markers", False, text)


def _memory(job: checkable.Job, expected: Estimate) -> Finding:
    """Whether what is needed for certain is there. Activations are estimated, so they refuse nothing."""
    device = next(job.student.model.parameters()).device
    free, needs = free_bytes(device), expected.memory
    certain = needs.gradients + needs.optimiser
    text = f"about {_gb(needs.total)} in all on {device}"
    if free is None:
        return Finding("memory", False, text)
    if certain > free:
        text = (
            f"gradients and Adam's moments alone take {_gb(certain)} on {device}, {_gb(free)} are free; "
            "train a LoRA adapter (lora: {rank: 16}), or a smaller model"
        )
        return Finding("memory", True, text)
    return Finding("memory", False, f"{text}, {_gb(free)} are free beside the weights")


def _precision(job: checkable.Job) -> list[Finding]:
    """Whether bfloat16 costs time instead of saving it."""
    device = next(job.student.model.parameters()).device
    if not job.optimiser.bf16 or device.type != "cpu" or (factor := slower_in_bfloat16()) < 1.5:
        return []
    text = f"bfloat16 takes this processor {factor:.1f} times as long as float32; bf16: false is faster here"
    return [Finding("precision", False, text)]


def _rehearsal(
    ctx: JobContext[Any], job: checkable.Job, expected: Estimate, refused: str | None
) -> tuple[Dry | None, str | None]:
    if refused is not None:
        return None, "the job is refused"
    device = next(job.student.model.parameters()).device
    free = free_bytes(device)
    needs = expected.memory.total - expected.memory.weights
    if device.type == "cpu" and free is not None and needs > free:
        # The system would kill the process, without a word: a GPU says no, a CPU does not.
        return None, f"it would take about {_gb(needs)} more, where {_gb(free)} are free"

    def hear(done: int, total: int, note: str) -> None:
        ctx.progress(1 + done, 3, "rehearsing the longest batch")

    def rehearse(student: Student, optimiser: Optimiser, progress: Progress) -> object:
        def both(done: int, total: int, note: str) -> None:
            progress(done, total, note)
            hear(done, total, note)

        return job.rehearse(student, optimiser, both)

    return dry_pass(job.student, job.optimiser, rehearse), None


def _lengths(job: checkable.Job) -> dict[str, Any]:
    """Tokens of the rows that pass through the model, and what it was made for."""
    middle, most = np.percentile(job.lengths, (50, 95))
    return {
        "rows": len(job.lengths),
        "p50": float(middle),
        "p95": float(most),
        "max": max(job.lengths),
        "context": traps.context_of(job.student.model),
    }


def _sample(tokenizer: Any, example: Example) -> dict[str, Any]:
    return {
        "problem": example.problem_id,
        "trace": example.trace_id,
        "tokens": len(example.input_ids),
        "learned": sum(label != IGNORE for label in example.labels),
        "pieces": [[each.text, each.learned, each.control] for each in pieces(tokenizer, example)],
    }


def _plain(expected: Estimate, left_out: Sequence[str]) -> dict[str, Any]:
    found = asdict(expected)
    found["memory"]["total"] = expected.memory.total
    found["assumptions"] = [*expected.assumptions, *left_out]
    return found


def _gb(size: float) -> str:
    return f"{size / 2**30:.2f} GB"
