"""Problems from reasoning-gym: `gym:TASK`, or `gym:TASK@max_terms=4,seed=3` with the task's own settings.

Promises: the same name gives the same problems; the train and the test items of one task and seed are never
drawn from the same place: an item's random numbers come from its data set's seed plus its index, so the two
start 2^24 apart (`first_seed`), and no data set may be longer than that; each problem is judged by the task's
own scorer (`gym:TASK`), for which the item's metadata is kept.
Does not: judge; drop an item that repeats another (decontamination does); load the package unless it is used.
"""

from __future__ import annotations

import contextlib
import decimal
import io
import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, clean_text, stable_hash

PREFIX = "gym:"
SPLITS = ("train", "test")
FAR = 2**24
"""The most items of one split, and the distance between the seeds of two splits."""


def first_seed(seed: int, split: str) -> int:
    """The seed of the first item of a split; item i has this plus i. No two (seed, split) overlap."""
    return (2 * seed + SPLITS.index(split)) * FAR


def gym_problems(name: str, *, size: int, split: str = "train", licence: str = "") -> list[Problem]:
    """`size` problems of the task that `name` gives.

    Raises UsageError for a package that is missing, an unknown task, and settings that the task refuses."""
    task, settings = _settings(name)
    if split not in SPLITS:
        raise UsageError(f"{name}: split {split!r}; reasoning-gym has {' and '.join(SPLITS)}")
    if not 1 <= size <= FAR:
        raise UsageError(f"{name}: limit is {size}; it must be 1 to {FAR:,}")
    seed = settings.pop("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"{name}: seed={seed!r}: must be a whole number from 0")
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ModuleNotFoundError as error:
        raise UsageError(f"{name}: needs reasoning-gym: pip install 'tutelage[gym]'") from error
    if task not in DATASETS:
        near = get_close_matches(task, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"{name}: reasoning-gym has no task {task!r}{hint}")
    try:
        # Some tasks print while they draw; one sets the precision of decimals, which our money is.
        with contextlib.redirect_stdout(io.StringIO()), decimal.localcontext():
            data = create_dataset(task, seed=first_seed(seed, split), size=size, **settings)
            return [_problem(name, task, f"{split}{index}", data[index], licence) for index in range(size)]
    except (TypeError, ValueError, AssertionError, ArithmeticError, LookupError) as error:
        # The package raises these for settings that it does not know or that do not fit each other.
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UsageError(f"{name}: reasoning-gym refuses these settings: {said}") from error


def _settings(name: str) -> tuple[str, dict[str, Any]]:
    """The task and the settings of `gym:TASK@key=value,...`; values are JSON, or text."""
    task, _, given = name.removeprefix(PREFIX).partition("@")
    settings: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier() or key == "size":
            raise UsageError(
                f"{name}: {part!r}: write settings as key=value (the number of items is the limit)"
            )
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return task, settings


def _problem(name: str, task: str, place: str, item: Mapping[str, Any], licence: str) -> Problem:
    metadata = json.loads(json.dumps(item["metadata"], default=str))
    gold = item["answer"]
    return Problem(
        id=f"{task}-{stable_hash(name, place)}",
        question=clean_text(item["question"]),
        gold=None if gold is None else clean_text(str(gold)),
        checker=f"{PREFIX}{task}",
        domain=task,
        source=name,
        licence=licence,
        metadata=metadata,
    )
