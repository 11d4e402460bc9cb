"""Jobs that make problems: from the lab world, from files, from the Hub.

Promises: outputs are whole or absent; the metrics hold every count that the report shows.
Does not: hold a room's logic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from tutelage.curate.decontaminate import decontaminate
from tutelage.curate.drops import Drop, funnel
from tutelage.errors import UsageError
from tutelage.lab import products, world
from tutelage.problems.files import read_problems
from tutelage.recipe import starts
from tutelage.recipe.files import write_text
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, read_records, stable_hash, write_records


def lab_problems(ctx: JobContext[starts.LabProblems]) -> dict[str, Any]:
    """Train, test and validation problems of the lab world."""
    config = ctx.config
    return _drawn(
        ctx,
        partial(
            world.make_problems,
            min_steps=config.min_steps,
            max_steps=config.max_steps,
            onlookers=config.onlookers,
        ),
    )


def lab_products(ctx: JobContext[starts.LabProducts]) -> dict[str, Any]:
    """Train, test and validation problems of the product world."""
    config = ctx.config
    return _drawn(
        ctx,
        partial(
            products.make_problems,
            min_steps=config.min_steps,
            max_steps=config.max_steps,
            stride=config.stride,
            exclude={problem.question for problem in _apart_from(ctx)},
        ),
    )


def _apart_from(ctx: JobContext[starts.LabProducts]) -> Iterator[Problem]:
    for source in ctx.inputs.get("apart_from", ()):
        yield from read_records(source.path, Problem)


def _drawn(
    ctx: JobContext[starts.LabProblems] | JobContext[starts.LabProducts], draw: Callable[..., list[Problem]]
) -> dict[str, Any]:
    """Problems of a world that `draw` makes: so many, from a seed."""
    config = ctx.config
    test = draw(config.test, seed=2 * config.seed + 1)
    # The pool is drawn on its own and then decontaminated, as data from anywhere else would be; what the
    # test set costs it is drawn again.
    wanted = config.train + config.validation
    pool = draw(wanted + config.test, seed=2 * config.seed)
    kept, drops = decontaminate(pool, test, detectors=("exact",))
    if len(kept) < wanted:
        raise UsageError(
            f"stage {ctx.stage}: only {len(kept)} of {wanted} problems are left beside the test set; "
            "lower train, or raise max_steps"
        )
    return _write_problems(ctx, kept[: config.train], test, kept[config.train : wanted], drops)


def file_problems(ctx: JobContext[starts.FileProblems]) -> dict[str, Any]:
    """Train, test and validation problems from the user's files or the Hub."""
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
        train, test = _set_aside(train, config.hold_out or 0, config.seed, ctx.stage, "hold_out")
    held: list[Problem] = []
    if config.validation:
        train, held = _set_aside(train, config.validation, config.seed, ctx.stage, "validation")
        # What is chosen on must not be reported on either.
        held, _ = decontaminate(held, test, detectors=config.detectors)
    kept, drops = decontaminate(train, [*test, *held], detectors=config.detectors)
    if not kept:
        raise UsageError(f"{config.train}: every training problem is in the test set as well")
    return _write_problems(ctx, kept, test, held, drops)


def _set_aside(
    problems: list[Problem], count: int, seed: int, stage: str, setting: str
) -> tuple[list[Problem], list[Problem]]:
    """Training problems, and `count` others; which ones depends on their ids and the seed alone."""
    if count >= len(problems):
        raise UsageError(f"stage {stage}: {setting} {count} leaves no training problem of {len(problems)}")
    order = sorted(problems, key=lambda problem: stable_hash(seed, problem.id))
    chosen = {problem.id for problem in order[:count]}
    return [p for p in problems if p.id not in chosen], [p for p in problems if p.id in chosen]


def _split(source: str, split: str) -> str | None:
    """Data sets on the Hub and of reasoning-gym have splits; a file is one."""
    return split if source.startswith(("hub:", "gym:")) else None


def _write_problems(
    ctx: JobContext[Any],
    train: Sequence[Problem],
    test: Sequence[Problem],
    held: Sequence[Problem],
    drops: Sequence[Drop],
) -> dict[str, Any]:
    write_text(ctx.outputs["drops"], json.dumps([asdict(drop) for drop in drops], indent=1))
    write_records(ctx.outputs["test"], test, Problem)
    write_records(ctx.outputs["validation"], held, Problem)
    write_records(ctx.outputs["train"], train, Problem)
    rows = funnel([("training problems after decontamination and deduplication", len(train), drops)])
    return {"train": len(train), "test": len(test), "validation": len(held), "funnel": rows}
