"""What all training jobs share: their settings as the room `train` wants them, what survives a kill, the
validation, and the folder at the end.

Promises: a job that was killed goes on at its last checkpoint, unless its settings or the content of its
inputs changed; the finished folder holds the model, its template and its card, and nothing that depends on
the clock.
Does not: train.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tutelage.measure.selection import evaluator
from tutelage.recipe.files import content_hash, remove
from tutelage.recipe.healing import Pretrain
from tutelage.recipe.load import FILE_PREFIX
from tutelage.recipe.manifest import versions
from tutelage.recipe.stage import InputPath, JobContext, marked
from tutelage.recipe.training import Depth as DepthConfig
from tutelage.recipe.training import Distill, Sft, TraceData, Training
from tutelage.records import Problem, read_records, stable_hash
from tutelage.students.card import write_training
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.train import ranks
from tutelage.train.fit import Fitted
from tutelage.train.journal import write_log
from tutelage.train.settings import Depth, Keep, Lora, Optimiser, Ramp, Validation

WORK = ".work"
# Settings that do not change what is trained.
_BESIDE = {"expected_s", "save_every", "trackers", "launch"}


def start(ctx: JobContext[Training]) -> Student:
    """The student that the job starts from, with torch at the job's threads."""
    torch.set_num_threads(ctx.threads)
    return load_student(str(ctx.path("model")), device=ranks.device())


def optimiser(ctx: JobContext[Training]) -> Optimiser:
    """The stage's optimiser settings."""
    config = ctx.config
    names = set(Optimiser.__dataclass_fields__) - {"seed", "lora", "kind", "depth", "lengths"}
    depth = config.depth if isinstance(config, TraceData | Pretrain) else None
    lengths = config.lengths if isinstance(config, Sft | Distill) else None
    return Optimiser(
        **config.model_dump(include=names),
        kind=config.optimiser,
        lora=Lora(**config.lora.model_dump()) if config.lora else None,
        depth=_depth(depth) if depth else Depth(),
        lengths=Ramp(lengths.start, lengths.over, lengths.shape) if lengths else None,
        seed=ctx.seed or 0,
    )


def _depth(wanted: DepthConfig) -> Depth:
    ramp = None if wanted.start is None else Ramp(wanted.start, wanted.over, wanted.shape)
    return Depth(wanted.drawn, ramp)


def keep(ctx: JobContext[Training]) -> Keep:
    """Where the job keeps its checkpoints: beside its model, while it runs."""
    model = ctx.outputs["model"]
    return Keep(
        folder=model.with_name(model.name + WORK),
        mark=stable_hash(plain_settings(ctx.config), _inputs(ctx), ctx.seed),
        every=ctx.config.save_every,
        trackers=ctx.config.trackers,
    )


def _inputs(ctx: JobContext[Training]) -> dict[str, str | None]:
    """The content of everything that the job reads."""
    return {
        f"{name}.{source.key}": content_hash(source.path)
        for name, sources in sorted(ctx.inputs.items())
        for source in sources
    }


def validation(ctx: JobContext[Training]) -> Validation | None:
    """The stage's look at held-out problems, if it has one."""
    wanted = ctx.config.validate_on
    if wanted is None:
        return None
    evaluate = evaluator(
        validation_problems(ctx),
        policy=wanted.policy.model_dump(),
        sampling=wanted.sampling.model_dump(),
        max_answer=wanted.max_answer_tokens,
        max_batch=wanted.max_batch,
        seed=ctx.seed or 0,
    )
    return Validation(evaluate, wanted.every, wanted.patience, wanted.choose)


def validation_problems(ctx: JobContext[Training]) -> list[Problem]:
    """The problems that the stage validates on."""
    wanted = ctx.config.validate_on
    if wanted is None:
        return []
    return read_records(ctx.path("validate_on.problems"), Problem)[: wanted.limit]


def plain_settings(config: Training) -> dict[str, Any]:
    """The settings that decide what is trained, without the folders that files lie in."""
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=_BESIDE | {"model"})
    for found in marked(config):
        if found.place[0] == "model" or not (
            found.value.startswith(FILE_PREFIX) or isinstance(found.marker, InputPath)
        ):
            continue
        target: Any = settings
        for part in found.place[:-1]:
            target = target[part]
        target[found.place[-1]] = Path(found.value).name
    return settings


def data_hash(ctx: JobContext[Training]) -> str:
    """The content of everything that the stage learned from. Verdicts are left out: they hold the seconds
    that judging took, and what they chose is in the counts."""
    learned = {
        name: each
        for name, each in _inputs(ctx).items()
        if name.rpartition(".")[0] not in {"model", "verdicts"}
    }
    return stable_hash(learned)


def finish(
    ctx: JobContext[Training],
    student: Student,
    fitted: Fitted,
    numbers: Mapping[str, Any],
    problems: list[Problem],
) -> dict[str, Any]:
    """Write the model, its card and the log; gives the job's metrics. `numbers` are what the stage counted,
    `problems` what was trained on."""
    config, folder = ctx.config, ctx.outputs["model"]
    chosen = config.validate_on is not None and (
        config.validate_on.patience is not None or config.validate_on.choose == "best"
    )
    if ranks.is_first():
        save_student(student, folder, weights=fitted.weights)
        write_training(
            folder,
            {
                "stage": ctx.stage,
                "kind": config.kind,
                "settings": plain_settings(config),
                "data": data_hash(ctx),
                "versions": versions(),
                "seed": ctx.seed or 0,
                "steps": fitted.steps,
                "validations": fitted.validations,
                "stopped": fitted.stopped,
                "chosen_step": fitted.chosen_step,
                "numbers": dict(numbers),
            },
            before=ctx.path("model"),
            trained_on=problems,
            selected_on=validation_problems(ctx) if chosen else [],
        )
        write_log(ctx.outputs["log"], fitted.log)
        remove(folder.with_name(folder.name + WORK))
    ranks.wait()  # no process looks for the outputs before they are there
    return {
        **numbers,
        "steps": fitted.steps,
        "train_seconds": fitted.seconds,
        "losses": [(row["step"], row["loss"]) for row in fitted.log if "loss" in row],
        "validations": fitted.validations,
        "validation_problems": len(validation_problems(ctx)),
        "stopped": fitted.stopped,
        "chosen_step": fitted.chosen_step,
        "alarms": fitted.alarms,
    }
