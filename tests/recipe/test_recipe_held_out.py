"""A recipe that measures a model on what it was chosen on is refused before it runs."""

from __future__ import annotations

from typing import Any

import pytest

from tutelage.errors import UsageError
from tutelage.recipe.load import build_recipe
from tutelage.recipe.plan import plan_jobs


def recipe(look: dict[str, Any], problems: str, **measure: Any) -> Any:
    """Base -> sft, which looks at held-out problems -> dpo -> a measurement on `problems`."""
    return build_recipe(
        {
            "name": "r",
            "stages": {
                "world": {"kind": "lab-problems", "train": 10, "test": 5},
                "held": {"kind": "lab-problems", "train": 10, "test": 5, "seed": 7},
                "base": {"kind": "student", "source": "tiny"},
                "fine": {
                    **{"kind": "sft", "model": "base", "problems": ["world.train"], "steps": 4},
                    "validate_on": {"every": 2, **look},
                },
                "rollouts": {"kind": "rollouts", "model": "fine", "problems": "world.train"},
                "pairs": {"kind": "pairs", "problems": "world.train", "rollouts": "rollouts"},
                "prefer": {"kind": "dpo", "model": "fine", "pairs": ["pairs"], "steps": 4},
                "measure": {"model": "prefer", "problems": problems, "arm": "a", **measure},
            },
        }
    )


KINDS = pytest.mark.parametrize("kind", ["evaluate", "sweep"])
CHOICES = pytest.mark.parametrize("choice", [{"patience": 2}, {"choose": "best"}], ids=str)


@KINDS
@CHOICES
def test_measuring_on_what_a_stage_before_chose_on_is_refused(kind: str, choice: dict[str, Any]) -> None:
    made = recipe({"problems": "held.test", **choice}, "held.test", kind=kind)
    with pytest.raises(
        UsageError, match=r"stages\.measure\.problems.*stage 'fine' chooses.*allow_chosen_on: true"
    ):
        plan_jobs(made)


@KINDS
def test_the_first_output_by_its_stage_alone_is_the_same_set(kind: str) -> None:
    made = recipe({"problems": "held", "patience": 1}, "held.train", kind=kind)
    with pytest.raises(UsageError, match="chooses its checkpoint"):
        plan_jobs(made)


@CHOICES
def test_another_set_is_measured(choice: dict[str, Any]) -> None:
    assert plan_jobs(recipe({"problems": "held.test", **choice}, "world.test", kind="evaluate"))


def test_looking_without_choosing_is_no_choice() -> None:
    assert plan_jobs(recipe({"problems": "held.test"}, "held.test", kind="evaluate"))


def test_what_is_allowed_is_measured() -> None:
    made = recipe(
        {"problems": "held.test", "patience": 2}, "held.test", kind="evaluate", allow_chosen_on=True
    )
    assert plan_jobs(made)
