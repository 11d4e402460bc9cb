"""The sweep of a recurrent student: loops, exits and continuous thought as points, FLOPs as an axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tinymodel import byte_tokenizer, tiny_student
from tutelage.errors import UsageError
from tutelage.measure.flops import Part, arithmetic, cost_rows, spent
from tutelage.measure.grid import Grid
from tutelage.measure.lines import analyse
from tutelage.measure.replies import Judged
from tutelage.measure.sweep import sweep
from tutelage.records import Problem, Verdict
from tutelage.students.pretrained import Student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.template import Template, render_prompt
from tutelage.teachers.local import LocalTeacher, decode
from tutelage.think.control import Depth
from tutelage.think.engine import Engine
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.request import Request

PROBLEMS = [Problem(f"p{i}", "sum? " + "y" * (i % 3) + str(i), "7", "exact") for i in range(5)]
POLICY = ThinkingPolicy(max_tokens=8, answer_reserve=4)


def loops_student() -> Student:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = RecurrentDepthConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=len(tokenizer),
        num_core_layers=1,
        mean_recurrence=3,
        max_recurrence=12,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Student(RecurrentDepthForCausalLM(config).eval(), tokenizer, Template(), "tiny-loops")


STUDENT = loops_student()


def check(problems, traces):
    """Right where the thinking's last letter is odd: an arbitrary rule that gives answers of both kinds."""
    odd = [sum(map(ord, t.thinking[-1:])) % 2 == 1 for t in traces]
    return [
        Verdict(t.id, t.problem_id, "correct" if right else "incorrect", "", "exact", t.answer or None)
        for t, right in zip(traces, odd, strict=True)
    ]


def swept(grid, student=STUDENT):
    engine = Engine(student)
    return sweep("arm", engine, Judged(student, "arm", check), PROBLEMS, grid, seed=3, max_answer=4)


GRID = Grid(
    POLICY,
    budgets=(2, 5),
    num_steps=(4, 1, 2),
    exits=("kl:5e-4", "kl:0.5", "state:0.5,min=2"),
    continuous=True,
)
POINTS = swept(GRID)


def of(method, continuous=False):
    return [p for p in POINTS if p.row["method"] == method and p.row["continuous"] is continuous]


def test_loops_and_exits_are_points_from_shallow_to_deep():
    assert [p.row["setting"] for p in of("loops")] == ["1 loop", "2 loops", "4 loops"]
    assert [p.row["setting"] for p in of("exit")] == [
        *("exit kl:0.5", "exit kl:0.0005", "exit state:0.5,min=2")
    ]
    assert {p.row["part"] for p in [*of("loops"), *of("exit")]} == {"loops"}
    assert [p.line for p in of("exit", True)] == [
        *("exit by kl, continuous", "exit by kl, continuous", "exit by state, continuous")
    ]
    assert len({p.row["setting"] for p in POINTS}) == len(POINTS) == 3 + 2 * 6
    assert POINTS[0].row["num_steps"] is None and of("loops")[1].row["num_steps"] == 2


def test_every_point_says_its_loops_and_flops():
    for point in POINTS:
        row = point.row
        assert row["flops_ci95"][0] <= row["flops"] <= row["flops_ci95"][1]
        assert row["loops_ci95"][0] <= row["loops"] <= row["loops_ci95"][1]
        assert point.flops.shape == point.loops.shape == (len(PROBLEMS),)
        assert row["flops"] == pytest.approx(point.flops.mean())
    assert [p.row["loops"] for p in of("loops")] == [1, 2, 4]
    assert {p.row["loops"] for p in POINTS if p.row["method"] in ("natural", "budget")} == {3}
    exits = [p.row["loops"] for p in of("exit")]
    assert 1 <= exits[0] < exits[1] <= 12 and exits[2] >= 2
    flops = [p.row["flops"] for p in of("loops")]
    assert flops == sorted(flops) and flops[0] < flops[2]


def test_a_point_equals_an_evaluation_at_that_depth():
    teacher = LocalTeacher(STUDENT, "arm", seed=3, max_answer=4)
    prompts = [len(render_prompt(STUDENT.tokenizer, STUDENT.template, p.question)) for p in PROBLEMS]
    for point in (of("loops")[2], of("exit")[0], of("exit", True)[1]):
        row = point.row
        policy = replace(
            POLICY, num_steps=row["num_steps"], exit=row["exit"], continuous=bool(row["continuous"])
        )
        replies = decode(teacher, PROBLEMS, policy)
        alone = cost_rows(STUDENT.model, prompts, replies, policy.effort, 1)
        assert {name: row[name] for name in alone} == alone


def test_a_model_of_fixed_depth_has_flops_and_no_loops():
    student = tiny_student(closes=2.0)
    points = swept(Grid(POLICY, budgets=(0, 4), votes=(1, 3), vote_samples=3, vote_temperature=0.9), student)
    assert all(p.row["loops"] is None and p.loops is None for p in points)
    flops = [p.row["flops"] for p in points if p.row["method"] == "budget"]
    assert flops[0] < flops[1] <= points[0].row["flops"]
    one, three = [p for p in points if p.row["method"] == "vote"]
    assert three.row["flops"] == pytest.approx(3 * one.row["flops"])
    assert three.flops == pytest.approx(3 * one.flops)


def test_lines_of_loops_lie_on_an_axis_of_loops_and_all_lines_on_one_of_flops():
    found = analyse(POINTS, [p.id for p in PROBLEMS], 0, [0.2])
    units = {line["line"]: (line["unit"], line["axis"]) for line in found["lines"]}
    assert units["loops"] == ("loops", "log2 of the mean passes of the core per token")
    assert units["cut short"] == ("tokens", "log2 of the mean thinking tokens per problem")
    line = next(line for line in found["lines"] if line["line"] == "loops")
    assert (line["area"]["from"], line["area"]["to"]) == (1, 4)
    assert set(line["targets"][0]) == {"target", "loops", "ci95", "resamples_reached"}
    assert [line["line"] for line in found["flops"]] == [line["line"] for line in found["lines"]]
    assert {(line["unit"], line["control"]) for line in found["flops"]} == {("flops", None)}
    spans = {line["line"]: line["area"] for line in found["flops"]}
    assert spans["loops"]["from"] == pytest.approx(of("loops")[0].row["flops"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": (0, 1)}, "num_steps"),
        ({"num_steps": (2, 2)}, "num_steps"),
        ({"exits": ("kl", "kl:0.0005")}, "write each rule once"),
        ({"exits": ("entropy:1",)}, "there is no 'entropy'"),
        ({"continuous": True}, "continuous: it goes with num_steps or exits"),
    ],
)
def test_a_grid_of_loops_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Grid(POLICY, **settings)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(POLICY, num_steps=(2,)), "num_steps: tiny-0 has no loop"),
        (Grid(POLICY, exits=("kl",)), "exit: tiny-0 has no loop"),
    ],
)
def test_loops_of_a_model_without_them_are_refused_before_anything_is_decoded(grid, message, monkeypatch):
    monkeypatch.setattr(Engine, "generate", None)
    with pytest.raises(UsageError, match=message):
        swept(grid, tiny_student())


def test_more_loops_than_the_model_has_are_refused(monkeypatch):
    monkeypatch.setattr(Engine, "generate", None)
    with pytest.raises(UsageError, match="num_steps is 13"):
        swept(Grid(POLICY, num_steps=(2, 13)))


def test_a_depth_that_asks_for_nothing_is_refused():
    with pytest.raises(UsageError, match="nothing to change"):
        Depth()


class Products(TorchDispatchMode):
    """FLOPs of all products with weights, as they reach the library."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = str(function)
        if "linear" in name and "reorder" not in name:
            self.flops += 2 * args[0].numel() * out.shape[-1]
        return out


@pytest.mark.parametrize(
    "effort",
    [
        {"num_steps": 3},
        {"num_steps": 12, "exit": "state:0.2"},
        {"num_steps": 12, "exit": "kl:5e-3"},
        {"num_steps": 2, "exit": "kl:1e-9"},
        {"num_steps": 12, "exit": "kl:5e-3", "continuous": True},
    ],
)
def test_the_engine_does_the_arithmetic_that_is_told(effort):
    """What was counted while the engine decoded a reply alone, without attention, which it pads."""
    policy = replace(POLICY, **effort)
    with Products() as products:
        (reply,) = Engine(STUDENT, max_batch=1).generate(
            [Request(tuple(range(40, 52)), policy=policy, max_answer=4)]
        )
    cost = arithmetic(STUDENT.model)
    parts = {name: Part(getattr(cost, name).weights, 0.0) for name in ("before", "core", "after")}
    assert products.flops == spent(replace(cost, **parts), 12, reply, policy.effort).flops
    assert np.std(reply.steps) > 0 or "exit" not in effort or effort["num_steps"] == 2
