"""The job that looks at what the loops of a recurrent-depth student do.

Promises: one folder with one JSON file, every table of it with intervals and n.
Does not: hold a room's logic (see `measure.depths` and `measure.settling`).
"""

from __future__ import annotations

import json
from typing import Any

from tutelage.measure.depths import ask, measure_depths
from tutelage.measure.settling import chosen, heat, paths, restarts
from tutelage.recipe.depths import Depths
from tutelage.recipe.files import replace_folder, write_text
from tutelage.recipe.jobs.measuring import allowed, device_of, load
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, read_records
from tutelage.think.effort import Exit

DEPTHS = "depths.json"


def depths_of_arm(ctx: JobContext[Depths]) -> dict[str, Any]:
    """Tables of one student for one seed."""
    config, seed = ctx.config, ctx.seed or 0
    problems = read_records(ctx.path("problems"), Problem)
    known = allowed(ctx, problems, config.allow_chosen_on)
    student = load(ctx.path("model"), config.bf16, ctx.threads)
    baselines = {
        source.key: load(source.path, config.bf16, ctx.threads) for source in ctx.inputs.get("baselines", ())
    }
    steps = sorted(set(config.steps))
    at, exits = config.at or steps[-1], [Exit.parse(text) for text in config.exits]
    told = measure_depths(
        config.arm, student, baselines, problems, steps=steps, at=at, exits=exits, seed=seed
    )
    asked = ask(student, problems)
    shown = chosen(asked, config.shown)
    told |= {
        "device": device_of(student),
        **known.to_json(),
        "heat": heat(student, shown, exits, at),
        "paths": paths(student, asked, shown, steps[-1]),
        "restarts": restarts(student, asked, steps, seed),
    }
    with replace_folder(ctx.outputs["depths"]) as folder:
        write_text(folder / DEPTHS, json.dumps(told, indent=1))
    whole = [row for row in told["accuracy"] if row["depth"] is None]
    return {
        "arm": config.arm,
        "problems": told["n"],
        "by_passes": {str(row["steps"]): row["accuracy"] for row in whole},
    }
