"""Jobs of distribution distillation: a teacher's scores of traces, and a student that learns a distribution.

Promises: a file of scores is there whole or not at all, and a job that was killed goes on after the last part
of it; the metrics say what the teacher was, how sure it is of the traces, and what the student learned from
how many tokens.
Does not: hold a room's logic.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage.recipe.jobs import fitting
from tutelage.recipe.jobs.training import Lessons, admit, lessons
from tutelage.recipe.stage import JobContext
from tutelage.recipe.training import Distill
from tutelage.recipe.training import Score as ScoreConfig
from tutelage.students.pretrained import Student, load_student
from tutelage.train.digits import compare_digits
from tutelage.train.distillation import Distillation, Distilled
from tutelage.train.distillation import distill as train_distill
from tutelage.train.logprobs import ScoreFile
from tutelage.train.scoring import score as write_score


def score(ctx: JobContext[ScoreConfig]) -> dict[str, Any]:
    """A teacher's scores of the traces, as a file."""
    config = ctx.config
    torch.set_num_threads(ctx.threads)
    teacher = load_student(str(ctx.path("model")), dtype="bfloat16" if config.bf16 else "float32")
    given = lessons(ctx, teacher)
    path = ctx.outputs["scores"]
    header = write_score(
        given.student,
        given.made.examples,
        path,
        top_k=config.top_k,
        batch=config.batch,
        progress=ctx.progress,
    )
    return {
        **given.numbers,
        "teacher": header.teacher,
        "top_k": header.top_k,
        "dtype": header.dtype,
        "tokenizer": header.tokenizer,
        "megabytes": round(path.stat().st_size / 1e6, 3),
        **_certainty(path),
    }


def _certainty(path: Path) -> dict[str, float | int]:
    """How much of the teacher's probability the kept ids hold, and how often its best id is the one
    written."""
    places, tail, agreed = 0, 0.0, 0
    for row in ScoreFile(path):
        places += len(row.tail)
        tail += float(np.exp(row.tail).sum())
        agreed += int((row.top_ids[:, 0] == row.ids[row.start :]).sum())
    return {
        "places": places,
        "mean_tail": round(tail / places, 6),
        "best_id_written": round(agreed / places, 4),
    }


def distill(ctx: JobContext[Distill]) -> dict[str, Any]:
    """One student that learns a teacher's distribution, for one seed."""
    config = ctx.config
    learned = lessons(ctx, fitting.start(ctx))
    admit(ctx, learned)
    settings = Distillation(
        beta=config.beta,
        temperature=config.temperature,
        on_policy=config.on_policy,
        max_new_tokens=config.max_new_tokens,
    )
    common: dict[str, Any] = {
        "keep": fitting.keep(ctx),
        "validation": fitting.validation(ctx),
        "progress": ctx.progress,
    }
    more: dict[str, Any] = {}
    if config.scores is not None:
        scores = ScoreFile(ctx.path("scores"))
        more = {"teacher": scores.header.teacher, "top_k": scores.header.top_k}
        done = _distilled(ctx, learned, scores, settings, common)
    else:
        teacher = load_student(str(ctx.path("teacher")), dtype="bfloat16" if config.bf16 else "float32")
        if config.aligned:
            found = compare_digits(learned.student.tokenizer, teacher.tokenizer)
            more["numbers_split_differently"] = round(found.share, 4)
            done = _aligned(ctx, learned, teacher, settings, common)
        else:
            done = _distilled(ctx, learned, teacher, settings, common)
    numbers = {
        **learned.numbers,
        **more,
        "tokens_seen": done.tokens_seen,
        "tokens_learned": done.tokens_learned,
        "written_by_student": done.written,
        "epochs": round(done.fitted.steps * config.batch / len(learned.made.examples), 3),
        "target": config.target,
    }
    return fitting.finish(ctx, learned.student, done.fitted, numbers, learned.problems)


def _distilled(
    ctx: JobContext[Distill],
    learned: Lessons,
    source: Student | ScoreFile,
    settings: Distillation,
    common: dict[str, Any],
) -> Distilled:
    return train_distill(
        learned.student, learned.made.examples, source, settings, fitting.optimiser(ctx), **common
    )


def _aligned(
    ctx: JobContext[Distill],
    learned: Lessons,
    teacher: Student,
    settings: Distillation,
    common: dict[str, Any],
) -> Distilled:
    with warnings.catch_warnings():  # TRL says that GOLD is experimental; its version is pinned
        warnings.simplefilter("ignore")
        from tutelage.train.aligned import distill_aligned

    return distill_aligned(
        learned.student,
        teacher,
        learned.made.examples,
        {problem.id: problem.question for problem in learned.problems},
        settings,
        fitting.optimiser(ctx),
        any_numbers=ctx.config.numbers == "any",
        **common,
    )
