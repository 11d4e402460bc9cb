"""The real stage kinds: shipped recipes fit them, and every setting is read by the stage that has it."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from dataclasses import asdict, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tinymodel import tiny_student
from tutelage.lab.oracles import Oracle
from tutelage.recipe import stages, starts, teachers
from tutelage.recipe.jobs.collecting import build_teacher
from tutelage.recipe.load import build_recipe, load_recipe, shipped_recipes
from tutelage.recipe.plan import plan_jobs
from tutelage.recipe.stages import KINDS
from tutelage.recipe.training import Sft
from tutelage.students.pretrained import save_student
from tutelage.students.template import Template
from tutelage.students.tiny import Loops
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.local import LocalTeacher
from tutelage.teachers.money import UNKNOWN
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.scripted import ScriptedTeacher
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

OWN_TASK = Path(__file__).parents[2] / "examples" / "own-task" / "recipe.yaml"
RECIPES = [*shipped_recipes(), str(OWN_TASK)]


@pytest.mark.parametrize("name", RECIPES, ids=[Path(name).parent.name or name for name in RECIPES])
def test_a_shipped_recipe_loads_plans_and_says_the_same_when_resolved(name: str) -> None:
    recipe = load_recipe(name)
    jobs = plan_jobs(recipe)
    assert len(jobs) >= len(recipe.stages)
    again = build_recipe(recipe.resolved())
    assert again.resolved() == recipe.resolved()
    assert [job.id for job in plan_jobs(again)] == [job.id for job in jobs]


def test_the_lab_has_the_arms_seeds_and_comparisons_that_it_names() -> None:
    recipe = load_recipe("lab")
    evaluated = recipe.stages["report"].evaluations  # type: ignore[attr-defined]
    assert set(evaluated) == {
        *("base", "answer-only", "human-terse", "teacher"),
        *("careless-unfiltered", "careless-filtered", "drafting"),
    }
    for arm, stage in evaluated.items():
        assert recipe.stages[stage].arm == arm  # type: ignore[attr-defined]
    assert len(recipe.seeds) >= 2
    assert recipe.stages["world"].test >= 400  # type: ignore[attr-defined]
    trained = [each for each in recipe.stages.values() if isinstance(each, Sft)]
    # The same pool, the same steps, and the same everything of the optimiser.
    same = {(each.problems, each.steps, each.batch, each.learning_rate, each.model) for each in trained}
    assert len(trained) == 6 and len(same) == 1


CONFIGS = ("config", "ctx.config", "self.config")


def read_by(function: Any) -> set[str]:
    """Settings and inputs that a job's function reads, or the functions and classes of the rooms of recipes
    that it uses."""
    found: set[str] = set()
    todo, visited = [function], set()
    while todo:
        here = todo.pop()
        if here in visited:
            continue
        visited.add(here)
        if inspect.isclass(here):
            own = [each for each in vars(here).values() if inspect.isfunction(each)]
            # What `dataclass` writes has no source.
            todo += [each for each in own if not inspect.unwrap(each).__code__.co_filename.startswith("<")]
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(here)))
        names = here.__globals__ | _imported_within(tree)
        for node in ast.walk(tree):
            called = _function_of_recipes(node, names)
            if called is not None:
                todo.append(called)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in CONFIGS:
                found.add(node.attr)
            elif isinstance(node, ast.Attribute) and node.attr == "__dataclass_fields__":
                # A whole record is filled from the settings of the same names.
                found |= set(names[ast.unparse(node.value)].__dataclass_fields__)
            elif isinstance(node, ast.Call):
                # ctx.path("problems"), and the fields that model_dump(include={...}) hands on.
                name = ast.unparse(node.func)
                if name in ("ctx.path", "ctx.maybe", "ctx.inputs.get", "config.model_dump", "_sources"):
                    found |= _texts(node)
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "ctx.inputs":
                found |= _texts(node)
    return found


def _imported_within(tree: ast.AST) -> dict[str, Any]:
    """What a function imports from the package itself, by name."""
    return {
        each.asname or each.name: getattr(importlib.import_module(node.module), each.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tutelage.")
        for each in node.names
    }


def _function_of_recipes(node: ast.AST, names: dict[str, Any]) -> Any:
    """The function that a name or `module.name` stands for, if it is one of the package's recipes."""
    thing = None
    if isinstance(node, ast.Name):
        thing = names.get(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = names.get(node.value.id)
        thing = getattr(owner, node.attr, None) if inspect.ismodule(owner) else None
    known = inspect.isfunction(thing) or inspect.isclass(thing)
    return thing if known and thing.__module__.startswith("tutelage.recipe.jobs") else None


def _texts(node: ast.AST) -> set[str]:
    return {
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_a_stage_is_read_by_its_job(kind: str) -> None:
    entry = KINDS[kind]
    module, _, name = entry.run.partition(":")
    # `launch` is read where the job is started (see recipe.launched).
    used = read_by(getattr(importlib.import_module(module), name)) | {"kind", "launch"}
    if callable(entry.expected_s):
        used.add("expected_s")
    assert set(entry.config.model_fields) - used == set()


def test_the_check_above_finds_what_is_read_and_no_more() -> None:
    measuring = importlib.import_module("tutelage.recipe.jobs.measuring")
    assert read_by(measuring.compare_arms) == {"evaluations", "pairs"}


@pytest.mark.parametrize(
    ("block", "target", "renamed"),
    [
        (starts.Template, Template, set()),
        (starts.Recurrent, Loops, set()),
        (stages.Policy, ThinkingPolicy, set()),
        (stages.Sampling, Sampling, set()),
        (teachers.LabTeacher, Oracle, {"kind", "price"}),
        (teachers.EndpointTeacher, EndpointTeacher, {"kind", "prices"}),
        (teachers.LocalTeacher, LocalTeacher, {"kind", "bf16", "name"}),
    ],
)
def test_a_block_of_settings_has_the_fields_of_what_it_sets(
    block: type[BaseModel], target: Any, renamed: set[str]
) -> None:
    assert set(block.model_fields) - renamed <= {field.name for field in fields(target)}


@pytest.mark.parametrize(
    ("block", "target"),
    [
        (starts.Template, Template),
        (starts.Recurrent, Loops),
        (stages.Policy, ThinkingPolicy),
        (stages.Sampling, Sampling),
    ],
)
def test_a_block_has_the_defaults_of_what_it_sets(block: type[BaseModel], target: Any) -> None:
    set_by_default = asdict(target())
    assert all(set_by_default[name] == value for name, value in block().model_dump().items())


PRICES = Path(__file__).with_name("prices.yaml")
TEACHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lab": (
        {"kind": "lab", "style": "human"},
        {"style": "careless", "seed": 1, "slip": 0.5, "stop": 0.1, "skip": 3, "repeats": 3}
        | {"price": {"prompt": "1", "completion": "2"}},
    ),
    "endpoint": (
        {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "m"},
        {"base_url": "http://127.0.0.1:2/v1", "model": "n", "key_env": "K", "api": "completions"}
        | {"stream": True, "reasoning": True, "reasoning_within": 3, "requests_per_s": 2.0}
        | {"tokens_per_min": 1000, "prices": str(PRICES)}
        | {"system": "s", "prompt": "Q: {question}", "sampling": {"top_p": 0.5}, "extra": {"x": 1}}
        | {"max_tokens": 9, "max_tokens_field": "max_completion_tokens", "seed": 4, "concurrency": 2}
        | {"price": {"prompt": "1", "completion": "2"}, "timeout_s": 1.0, "deadline_s": 2.0}
        | {"retries": 1, "name": "other"},
    ),
    "local": (
        {"kind": "local", "model": "lab-base"},
        {"model": "MODEL", "policy": {"max_tokens": 3}, "sampling": {"temperature": 0.5}, "max_answer": 9}
        | {"max_batch": 3, "seed": 7, "bf16": True, "price": {"prompt": "1", "completion": "2"}}
        | {"name": "other"},
    ),
    "human": ({"kind": "human"}, {"answer": "{gold}"}),
    "replay": (
        {"kind": "replay", "path": "t.jsonl"},
        {"path": "u.jsonl", "name": "mine", "layout": "plain", "columns": {"answer": "reply"}},
    ),
}


def made(settings: dict[str, Any]) -> Any:
    """What tells one teacher from another."""
    config = stages.Collect.model_validate({"kind": "collect", "problems": "p.train", "teacher": settings})
    teacher = build_teacher(config.teacher, "stage")
    if isinstance(teacher, ScriptedTeacher):
        return teacher.name, teacher.settings, teacher.price
    if isinstance(teacher, LocalTeacher):
        return {each.name: getattr(teacher, each.name) for each in fields(teacher) if each.name != "student"}
    assert isinstance(teacher, EndpointTeacher | ReplayTeacher)
    return asdict(teacher)


@pytest.mark.parametrize(
    ("kind", "setting"), [(kind, name) for kind, (_, others) in TEACHERS.items() for name in others]
)
def test_every_setting_of_a_teacher_reaches_it(kind: str, setting: str, tmp_path: Path) -> None:
    plain, others = TEACHERS[kind]
    value = others[setting]
    if value == "MODEL":
        value = str(save_student(tiny_student(), tmp_path / "model"))
    assert made({**plain, setting: value}) != made(plain)


def test_a_price_of_ones_own_wins_over_a_list() -> None:
    plain, others = TEACHERS["endpoint"]
    listed = made({**plain, "prices": others["prices"]})["price"]
    assert listed == {**asdict(UNKNOWN), "prompt": Decimal("0.14"), "completion": Decimal("0.28")}
    both = made({**plain, "prices": others["prices"], "price": others["price"]})["price"]
    assert both["prompt"] == Decimal(1)


def test_every_teacher_setting_is_tried_above() -> None:
    blocks = get_args(get_args(teachers.Teacher)[0])
    for block, (_, others) in zip(blocks, TEACHERS.values(), strict=True):
        # The budget needs a price and a maximum; its own test is with the endpoint teacher.
        assert set(block.model_fields) == {"kind", *others} | ({"budget"} & set(block.model_fields))


def test_a_budget_reaches_the_endpoint_teacher() -> None:
    plain, others = TEACHERS["endpoint"]
    settings = {**plain, "price": others["price"], "max_tokens": 9}
    assert str(made({**settings, "budget": "1.50"})["budget"]) == "1.50"
    assert made(settings)["budget"] is None


def test_an_adapter_learns_faster_and_a_short_run_warms_up_in_half_of_it_unless_told() -> None:
    few = {"kind": "sft", "model": "m", "problems": ["p"], "steps": 20}
    plain, adapter = Sft(**few), Sft(**few, lora={"rank": 8})  # type: ignore[arg-type]
    assert (plain.learning_rate, plain.warmup_steps) == (1e-5, 10)
    assert (adapter.learning_rate, Sft(**{**few, "steps": 300}).warmup_steps) == (1e-4, 50)  # type: ignore[arg-type]
    told = Sft(**few, lora={"rank": 8}, learning_rate=3e-4, warmup_steps=0)  # type: ignore[arg-type]
    assert (told.learning_rate, told.warmup_steps) == (3e-4, 0)
