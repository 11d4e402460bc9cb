"""The recipe `lab-curation`: what its choices have in common, what each chooses, and a small run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import UsageError
from tutelage.lab.world import make_problems
from tutelage.recipe.curation import Curate
from tutelage.recipe.jobs.funnel_rules import by_field
from tutelage.recipe.load import build_recipe, load_recipe
from tutelage.recipe.run import run_recipe
from tutelage.recipe.stages import Evaluate
from tutelage.recipe.training import Sft
from tutelage.records import Problem, Trace, Verdict, read_records


def test_the_choices_differ_in_nothing_but_how_they_choose() -> None:
    recipe = load_recipe("lab-curation")
    assert len(recipe.seeds) >= 3
    choices = {name: each for name, each in recipe.stages.items() if isinstance(each, Curate)}
    assert {"random", "diverse", "longest", "full", "s1"} == {each.method for each in choices.values()}
    assert len({(each.problems, each.traces, each.verdicts, each.target) for each in choices.values()}) == 1
    for each in choices.values():
        assert each.benchmarks == ("world.test", "hard.test"), "nothing that is measured on is learned from"
    trained = {name: each for name, each in recipe.stages.items() if isinstance(each, Sft)}
    same = {(each.model, each.batch, each.learning_rate, each.keep) for each in trained.values()}
    assert len(trained) == len(choices) + 1 and len(same) == 1
    steps = Counter(each.steps for each in trained.values())
    assert list(steps.values()) == [len(choices), 1], "one arm alone takes more steps: a pass of the pool"
    one_pass = trained["train-full-pass"]
    pool = sum(recipe.stages[part].train for part in ("short", "middle", "long"))  # type: ignore[attr-defined]
    assert one_pass.steps * one_pass.batch == pool
    for name, each in trained.items():
        chosen = "pick-full" if name == "train-full-pass" else name.replace("train-", "pick-")
        assert (each.problems, each.traces) == ((f"{chosen}.problems",), (f"{chosen}.traces",))


def test_every_arm_is_measured_by_its_own_name() -> None:
    recipe = load_recipe("lab-curation")
    evaluated = recipe.stages["report"].evaluations  # type: ignore[attr-defined]
    measured = {name: each for name, each in recipe.stages.items() if isinstance(each, Evaluate)}
    assert {name: each.arm for name, each in measured.items()} == {at: arm for arm, at in evaluated.items()}
    for each in measured.values():
        assert each.problems == ("hard.test" if each.arm.startswith("hard: ") else "world.test")
        choice = recipe.stages.get(each.model.replace("train-", "pick-"))
        if isinstance(choice, Curate):
            assert each.arm.endswith(", right") == (choice.keep == "correct")


def test_the_domain_of_a_problem_is_a_field_of_its_metadata() -> None:
    problems = make_problems(6, seed=3, min_steps=2, max_steps=4)
    found = by_field(problems, "difficulty")
    assert [found[problem.id] for problem in problems] == ["2", "3", "4", "2", "3", "4"]


def test_a_problem_without_the_field_is_named_with_what_it_has() -> None:
    problems = make_problems(3, seed=3, min_steps=2, max_steps=2)
    with pytest.raises(UsageError, match=r"problem 'lab-\w+' has no 'level' .*\(difficulty, start, steps\)"):
        by_field(problems, "level")
    with pytest.raises(UsageError, match=f"{problems[1].id!r} has no 'level'.*no field at all"):
        by_field([replace(problems[0], metadata={"level": 1}), replace(problems[1], metadata={})], "level")
    hostile = replace(problems[0], metadata={"\u202eevil\n" + "x" * 500: 1})
    with pytest.raises(UsageError) as raised:
        by_field([hostile], "level")
    assert len(str(raised.value)) < 300 and "\u202e" not in str(raised.value)


@pytest.mark.parametrize("domains", ["metadata:", "steps", "llms"])
def test_other_sources_of_domains_are_refused(domains: str) -> None:
    stages = {
        "world": {"kind": "lab-problems"},
        "texts": {
            "kind": "collect",
            "problems": "world.train",
            "teacher": {"kind": "lab", "style": "human"},
        },
        "pick": {"kind": "curate", "problems": ["world.train"], "traces": ["texts"], "domains": domains},
    }
    with pytest.raises(UsageError, match=r"stages\.pick.*domains"):
        build_recipe({"name": "r", "stages": stages})


@pytest.mark.slow
def test_a_small_pool_from_end_to_end(tmp_path: Path) -> None:
    small: dict[str, Any] = {"seeds": [0], "workers": 2, "world.test": 27, "hard.test": 9}
    small |= {"short.train": 80, "middle.train": 40, "long.train": 40}
    recipe = load_recipe("lab-curation")
    for name, each in recipe.stages.items():
        if isinstance(each, Curate):
            small[f"{name}.target"] = 24
        elif isinstance(each, Sft):
            small |= {f"{name}.steps": 2, f"{name}.batch": 4}
        elif isinstance(each, Evaluate):
            small |= {f"{name}.policy.max_tokens": 16}
    overrides = [
        f"{key if key in ('seeds', 'workers') else 'stages.' + key}={value}" for key, value in small.items()
    ]
    run_recipe(load_recipe("lab-curation", overrides=overrides), tmp_path, console=None)

    def read(name: str, kind: type[Any]) -> list[Any]:
        return read_records(tmp_path / f"data/{name}.parquet", kind)

    pool: dict[str, Problem] = {}
    right, solved = set(), set()
    for part in ("short", "middle", "long"):
        pool |= {each.id: each for each in read(f"{part}.train", Problem)}
        verdicts: list[Verdict] = read(f"{part}-judged.verdicts", Verdict)
        right |= {each.trace_id for each in verdicts if each.status == "correct"}
        tried: list[Verdict] = read(f"{part}-solved.verdicts", Verdict)
        solved |= {each.problem_id for each in tried if each.status == "correct"}

    def chosen(name: str) -> list[Trace]:
        found: list[Trace] = read(f"pick-{name}-seed0.traces", Trace)
        return found

    def steps(traces: list[Trace]) -> Counter[int]:
        return Counter(pool[each.problem_id].metadata["difficulty"] for each in traces)

    assert len(chosen("full")) == len(pool) == 160
    for name in ("random", "diverse", "longest", "curated", "curated-right", "words-right"):
        assert len(chosen(name)) == 24
    for name in ("random-right", "full-right", "curated-right", "words-right"):
        assert {each.id for each in chosen(name)} <= right
    assert not {each.id for each in chosen("random")} <= right, "this teacher is wrong often enough to matter"
    for name in ("curated", "curated-right", "words-right"):
        assert not {each.problem_id for each in chosen(name)} & solved
    assert steps(chosen("random"))[2] + steps(chosen("random"))[3] >= 8, "the pool is mostly short"
    assert set(steps(chosen("diverse"))) == set(range(2, 11))
    assert min(steps(chosen("longest"))) >= 6
    summary = json.loads((tmp_path / "metrics/summary.json").read_text())
    rows = {row["stage"]: row for row in summary["funnel"]}
    solver = rows["pick-curated-right: difficulty"]
    assert solver["reasons"] == {"solved": len(solved)} and solver["dropped"] == len(solved) >= 80 * 0.9
    assert rows["pick-curated-right: selection"]["kept"] == 24
    assert {arm["n"] for arm in summary["arms"]} == {27, 9}
