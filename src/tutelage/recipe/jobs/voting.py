"""The job that gives questions gold answers by plurality.

Promises: outputs are whole or absent; every question left out has its reason.
Does not: count votes (see `curate.plurality`).
"""

from __future__ import annotations

from typing import Any

from tutelage.curate.drops import funnel
from tutelage.curate.evidence import write_drops
from tutelage.curate.plurality import plurality
from tutelage.errors import UsageError
from tutelage.recipe import curation
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, read_records, write_records


def vote_for_gold(ctx: JobContext[curation.Plurality]) -> dict[str, Any]:
    """Gold answers by plurality."""
    config = ctx.config
    traces = [t for source in ctx.inputs["traces"] for t in read_records(source.path, Trace)]
    kept, drops = plurality(
        read_records(ctx.path("problems"), Problem),
        traces,
        least_votes=config.least_votes,
        least_share=config.least_share,
        most_share=config.most_share,
        replace=config.replace,
    )
    if not kept:
        reasons = funnel([("", 0, drops)])[0]["reasons"]
        raise UsageError(
            f"stage {ctx.stage}: no question is left ({reasons}); loosen the shares, or draw more answers"
        )
    write_records(ctx.outputs["problems"], kept, Problem)
    write_drops(ctx.outputs["drops"], drops)
    return {
        "problems": len(kept),
        "funnel": funnel([(f"{ctx.stage}: a majority is right", len(kept), drops)]),
    }
