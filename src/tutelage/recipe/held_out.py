"""A recipe that would measure a model on the problems that it was chosen on is refused before it runs.

Promises: the stage that chose and the stage that measures are both named; nothing has run, nothing was paid.
Does not: look into the problems. Other sets that share questions are found when the model is measured (see
`measure.selection`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tutelage.errors import UsageError
from tutelage.recipe.load import FILE_PREFIX, Recipe


def refuse_chosen_on(recipe: Recipe) -> None:
    """Raise UsageError for a stage that measures on the problems that a checkpoint, or the moment to stop, of
    its model was chosen on, unless the stage allows it (`allow_chosen_on`)."""
    for stage, config in recipe.stages.items():
        if getattr(config, "allow_chosen_on", True):
            continue
        measured = _target(recipe, str(getattr(config, "problems", "")))
        for above, chosen in _choices(recipe, str(getattr(config, "model", ""))):
            if _target(recipe, chosen) == measured:
                where = recipe.document.where(("stages", stage, "problems"))
                raise UsageError(
                    f"{where}: stage {above!r} chooses its checkpoint, or when to stop, on these problems, "
                    "so an accuracy on them is too good; measure on others, or set allow_chosen_on: true, "
                    "and the report says so beside the number"
                )


def _choices(recipe: Recipe, model: str) -> Iterator[tuple[str, str]]:
    """Stages behind `model` that choose on problems, each with those."""
    seen: set[str] = set()
    while (stage := model.partition(".")[0]) in recipe.stages and stage not in seen:
        seen.add(stage)
        config: Any = recipe.stages[stage]
        look = getattr(config, "validate_on", None)
        if look is not None and (look.patience is not None or look.choose == "best"):
            yield stage, look.problems
        model = str(getattr(config, "model", None) or "")


def _target(recipe: Recipe, reference: str) -> tuple[str, str]:
    """What a reference means: the stage and the output (the first one where none is named), or a file."""
    stage, _, output = reference.partition(".")
    if reference.startswith(FILE_PREFIX) or stage not in recipe.stages:
        return "", reference
    found = recipe.kind(stage).output(output)
    return stage, found.name if found else output
