"""Loading and planning: what is refused, in which words, and in which order jobs come."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import fake_stages
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.recipe.estimate import ranks, remaining, scale, time_left
from tutelage.recipe.load import build_recipe, load_recipe
from tutelage.recipe.plan import plan_jobs

TEXT = """\
name: numbers
seeds: [0, 1]
stages:
  world:
    kind: make
    count: 4
  arm: {kind: add, numbers: world, plus: 1}
  total:
    kind: sum
    parts: [arm, world.spare]
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count: 4", "coutn: 4", ":6: stages.world.coutn: unknown key; did you mean 'count'?"),
        ("count: 4", "count: four", ':6: stages.world.count: input should be a valid integer, got "four"'),
        ("count: 4", "count: '4'", ':6: stages.world.count: input should be a valid integer, got "4"'),
        ("count: 4", "count: true", ":6: stages.world.count: input should be a valid integer, got true"),
        (
            "count: 4",
            "count: -1",
            ":6: stages.world.count: input should be greater than or equal to 0",
        ),
        ("count: 4", "source: gone.json", ":6: stages.world.source: no such file or folder: gone.json"),
        (
            "kind: make",
            "kind: mkae",
            "stages.world.kind: unknown stage kind 'mkae'; did you mean 'make'?",
        ),
        ("kind: make", "count: 1", ":6: the key 'count' is given twice"),
        ("    kind: make\n", "", ":4: stages.world: the key `kind` is missing; there is: make, add, sum"),
        ("seeds: [0, 1]", "seeds: [0, 0]", ":2: seeds: give at least one seed, each once"),
        ("seeds: [0, 1]", "seeds: []", ":2: seeds: give at least one seed, each once"),
        ("seeds: [0, 1]", "sedes: [0]", ":2: sedes: unknown key; did you mean 'seeds'?"),
        ("seeds: [0, 1]", "workers: 0", "workers: input should be greater than or equal to 1, got 0"),
        ("name: numbers\n", "", "r.yaml: name: this key is missing"),
        (
            "numbers: world,",
            "numbers: wrold,",
            "stages.arm.numbers: no stage 'wrold'; did you mean 'world'?",
        ),
        (
            "numbers: world,",
            "numbers: world.spar,",
            "has no output 'spar'; did you mean 'spare'?",
        ),
        (
            "numbers: world,",
            "numbers: arm,",
            "stages need each other in a circle: arm -> arm",
        ),
        ("numbers: world,", "numbers: total,", "total gives total, this key wants numbers"),
        ("numbers: world, ", "", ":7: stages.arm.numbers: this key is missing"),
        ("plus: 1", "inner: {gian: 2}", ":7: stages.arm.inner.gian: unknown key; did you mean 'gain'?"),
        ("world.spare]", "nothing]", ":10: stages.total.parts.1: no stage 'nothing'"),
        ("world.spare]", "file:x.json]", ":10: stages.total.parts.1: no such file or folder: x.json"),
        ("  total:", "  to.tal:", ":8: stages.to.tal: a stage name is letters"),
        ("  total:", "  arm-seed1: {kind: make}\n  total:", "another stage already has the name 'arm-seed1'"),
        ("  world:", "  world: 3\n  w:", ":4: stages.world: a stage is a mapping"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert TEXT.count(old) == 1
    file = write(tmp_path, TEXT.replace(old, new))
    with pytest.raises(UsageError) as caught:
        plan_jobs(load_recipe(file, kinds=fake_stages.KINDS))
    assert message in str(caught.value), str(caught.value)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_wrong_override_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, TEXT), overrides=["world.count=x"], kinds=fake_stages.KINDS)
    assert str(caught.value).startswith("--set stages.world.count: input should be a valid integer")


def test_jobs_come_after_what_they_need_and_otherwise_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    swapped = TEXT.replace("  world:\n    kind: make\n    count: 4\n", "") + "  world: {kind: make}\n"
    jobs = plan_jobs(load_recipe(write(tmp_path, swapped), kinds=fake_stages.KINDS))
    assert [job.id for job in jobs] == ["world", "arm-seed0", "arm-seed1", "total"]
    assert jobs[3].after == {"world", "arm-seed0", "arm-seed1"}
    assert [(need.key, need.seed) for need in jobs[3].needs] == [("0", 0), ("0", 1), ("1", None)]
    assert jobs[1].after == {"world"} and jobs[1].seed == 0


def test_what_sees_the_run_comes_last_and_is_no_input() -> None:
    data = copy.deepcopy(fake_stages.RECIPE)
    data["stages"] = {"page": data["stages"].pop("page"), **data["stages"]}
    jobs = plan_jobs(build_recipe(data, kinds=fake_stages.KINDS))
    assert jobs[-1].id == "page" and jobs[-1].after == {job.id for job in jobs[:-1]}


def test_paths_are_looked_up_beside_the_recipe_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = write(tmp_path, TEXT.replace("count: 4", "source: n.json\n    model: local"))
    (tmp_path / "here/n.json").write_text("[]")
    (tmp_path / "here/local").mkdir()

    def world() -> Any:
        return load_recipe(file, kinds=fake_stages.KINDS).stages["world"]

    assert world().source == str(tmp_path / "here/n.json")
    (tmp_path / "n.json").write_text("[]")
    assert world().source == str(tmp_path / "n.json")
    assert world().model == str(tmp_path / "here/local")
    (tmp_path / "here/local").rmdir()
    assert world().model == "local"  # a name, not a path


def test_a_users_function_counts_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "n.py").write_text("")
    file = write(tmp_path, TEXT.replace("count: 4", "source: n.py:check"))
    (job, *_) = plan_jobs(load_recipe(file, kinds=fake_stages.KINDS))
    assert job.files == ((("source",), tmp_path / "n.py"),)


def test_an_unknown_recipe_names_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"^nowhere: no such recipe file"):
        load_recipe("nowhere", kinds=fake_stages.KINDS)


@given(
    text=st.text(max_size=20),
    number=st.floats(allow_nan=False, allow_infinity=False),
)
@example(text="a\x85b\u2028", number=0.0)
def test_the_resolved_recipe_says_the_same(text: str, number: float) -> None:
    data = copy.deepcopy(fake_stages.RECIPE) | {"about": text, "title": "1e-3"}
    data["stages"]["world"]["factor"] = number
    data["stages"]["world"]["model"] = text.replace("/", "").replace("~", "").replace("\0", "") or "x"
    recipe = build_recipe(data, kinds=fake_stages.KINDS)
    from tutelage.recipe.document import parse_document

    assert parse_document(recipe.to_yaml(), "again").data == recipe.resolved()


def test_the_longest_chain_goes_first_and_time_left_plays_the_plan_through() -> None:
    data = {
        "name": "x",
        "stages": {
            "world": {"kind": "make"},
            "short": {"kind": "add", "numbers": "world", "sleep_s": 0.99},
            "long": {"kind": "add", "numbers": "world", "sleep_s": 1.99},
            "after": {"kind": "add", "numbers": "short", "sleep_s": 2.99},
        },
    }
    jobs = plan_jobs(build_recipe(data, kinds=fake_stages.KINDS))
    rank = ranks(jobs)
    assert rank["short-seed0"] == pytest.approx(4) and rank["long-seed0"] == pytest.approx(2)
    seconds = scale(jobs, {})
    assert time_left(jobs, seconds, {}, 1) == pytest.approx(6.1)
    assert time_left(jobs, seconds, {}, 2) == pytest.approx(4.1)
    running = {"short-seed0": 0.5}
    left = {name: each for name, each in seconds.items() if name != "world"}
    assert time_left(jobs, left, running, 2) == pytest.approx(3.5)
    slow = scale(jobs, {"world": 0.2, "short-seed0": 3.0})
    assert slow["after-seed0"] == pytest.approx(9.0)
    assert remaining(10, 4, 0.5) == 4 and remaining(10, 4, 0.0) == 6 and remaining(10, 40, 0.0) == 1
