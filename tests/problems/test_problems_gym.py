"""Problems from reasoning-gym: the same every time, train and test far apart, judged by their own scorer."""

from __future__ import annotations

import decimal
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.problems import read_problems
from tutelage.problems.gym import FAR, SPLITS, first_seed
from tutelage.records import Problem, read_records, write_records
from tutelage.verify.gold import check_gold


def test_the_same_name_gives_the_same_problems(tmp_path: Path) -> None:
    first = read_problems("gym:leg_counting", limit=5)
    assert (
        first == read_problems("gym:leg_counting", limit=5) == read_problems("gym:leg_counting", limit=9)[:5]
    )
    assert first[0].checker == "gym:leg_counting" and first[0].domain == "leg_counting"
    assert first[0].metadata["source_dataset"] == "leg_counting" and len({p.id for p in first}) == 5
    write_records(tmp_path / "p.parquet", first, Problem)
    assert read_records(tmp_path / "p.parquet", Problem) == first


def test_drawing_leaves_the_precision_of_decimals_alone() -> None:
    before = decimal.getcontext().prec
    assert len(read_problems("gym:decimal_arithmetic", limit=3)) == 3
    assert decimal.getcontext().prec == before


def test_other_seeds_settings_and_splits_give_other_problems() -> None:
    names = ["gym:leg_counting", "gym:leg_counting@seed=1", "gym:leg_counting@min_animals=7,max_animals=8"]
    found = [read_problems(name, limit=20) for name in names] + [
        read_problems(names[0], limit=20, split="test")
    ]
    questions = {problem.question for each in (found[0], found[1], found[3]) for problem in each}
    assert len(questions) == 60  # other settings of the same seed may draw the same item
    assert len({problem.id for each in found for problem in each}) == 80
    assert all(problem.metadata["num_animals"] in (7, 8) for problem in found[2])


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_seeds_of_splits_are_far_apart(one: int, other: int) -> None:
    starts = {first_seed(seed, split) for seed in {one, other} for split in SPLITS}
    assert len(starts) == 2 * len({one, other})
    ordered = sorted(starts)
    assert all(b - a >= FAR for a, b in pairwise(ordered))


def test_the_gold_answers_pass_their_own_scorer() -> None:
    names = ["gym:countdown", "gym:rearc", "gym:sudoku", "gym:rush_hour", "gym:simple_integration"]
    problems = [problem for name in names for problem in read_problems(name, limit=2)]
    assert check_gold(problems) == []
    assert problems[6].gold is None  # rush_hour scores by the metadata alone


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gym:leg_countin", {"limit": 3}, "no task 'leg_countin'; did you mean 'leg_counting'"),
        ("gym:leg_counting", {}, "say how many problems to make"),
        ("gym:leg_counting", {"limit": FAR + 1}, "it must be 1 to"),
        ("gym:leg_counting", {"limit": 3, "split": "dev"}, "split 'dev'"),
        ("gym:leg_counting", {"limit": 3, "columns": {"gold": "x"}}, "takes no column mapping"),
        ("gym:leg_counting@seed=-1", {"limit": 3}, "must be a whole number from 0"),
        ("gym:leg_counting@seed", {"limit": 3}, "write settings as key=value"),
        ("gym:leg_counting@size=4", {"limit": 3}, "the number of items is the limit"),
        ("gym:leg_counting@no_such=4", {"limit": 3}, "refuses these settings: .*no_such"),
        ("gym:leg_counting@max_animals=0", {"limit": 3}, "refuses these settings"),
        ("gym:composite", {"limit": 3}, "refuses these settings: Must specify at least one"),
    ],
)
def test_bad_names_and_settings(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_problems(name, **settings)  # type: ignore[arg-type]
    assert str(caught.value).startswith(name) and "\n" not in str(caught.value)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UsageError, match=r"pip install 'tutelage\[gym\]'"):
        read_problems("gym:leg_counting", limit=1)


@pytest.mark.slow
def test_every_task_can_be_drawn_and_passes_the_gold_check() -> None:
    from reasoning_gym.factory import DATASETS

    problems = [
        p
        for task in sorted(set(DATASETS) - {"composite"})
        for p in read_problems(f"gym:{task}@seed=5", limit=2)
    ]
    assert len(problems) == 2 * (len(DATASETS) - 1)
    assert check_gold(problems) == []
