"""What passes are worth: right is what greedy decoding writes, tables are paired by problem, paths are told
apart, perplexity is that of the model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinymodel import byte_tokenizer, tiny_student
from tutelage.errors import UsageError
from tutelage.measure.depths import Asked, answers, ask, by_depth, measure_depths
from tutelage.measure.paths import apart, kinds_of_paths, principal
from tutelage.measure.perplexity import perplexity_by_steps
from tutelage.measure.settling import chosen, heat, paths, restarts
from tutelage.records import Problem
from tutelage.students.pretrained import Student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.template import Template, render_prompt
from tutelage.think.effort import Effort, Exit
from tutelage.think.loops import Loops


def looping(seed: int = 0, thinking: bool = False, **shape: Any) -> Student:
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = RecurrentDepthConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=len(tokenizer),
        mean_recurrence=4,
        **({"num_core_layers": 1, "norm_after_core": "every", "adapter_init": "identity"} | shape),
    )
    model = RecurrentDepthForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.5)
    return Student(model, tokenizer, Template(thinking=thinking), f"looping-{seed}")


def greedy(student: Student, question: str, steps: int, count: int) -> list[int]:
    """What the backend that decodes writes."""
    backend = Loops(student.model)
    prompt = render_prompt(student.tokenizer, student.template, question)
    (row,), scores = backend.prefill([prompt], [Effort(steps)])
    found = []
    for _ in range(count):
        found.append(int(scores.logits[0].argmax()))
        scores = backend.decode({row: found[-1]}, [row])
    return found


def problems(count: int = 24) -> list[Problem]:
    return [
        Problem(
            f"p{i}",
            f"{'ab' * (i % 3 + 1)}{i}",
            gold="x",
            metadata={"difficulty": i % 3 + 1, "examples": i % 2},
        )
        for i in range(count)
    ]


def test_right_is_what_greedy_decoding_writes_at_that_depth() -> None:
    student = looping()
    for steps in (1, 3):
        written = greedy(student, "ab7", steps, 3)
        prompt = render_prompt(student.tokenizer, student.template, "ab7")
        for reply, right in (
            (written, 1.0),
            ([*written[:2], written[2] ^ 1], 0.0),
            ([written[0] ^ 1, *written[1:]], 0.0),
        ):
            asked = Asked("p", (*prompt, *reply), len(prompt), None, None)
            assert answers(student, [asked], [steps]).right.tolist() == [[right]]


def test_a_model_without_loops_is_right_where_it_decodes_so() -> None:
    student = tiny_student(thinking=False)
    prompt = render_prompt(student.tokenizer, student.template, "12")
    ids = torch.tensor([prompt])
    written = student.model.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)[
        0, len(prompt) :
    ].tolist()
    short = Asked("q", (*prompt[:3], written[0]), 3, None, None)
    asked = [Asked("p", (*prompt, *written), len(prompt), None, None), short]
    found = answers(student, asked, [1, 2])
    assert found.right.shape == (1, 2) and found.right[0, 0] == 1.0
    assert np.isnan(found.passes).all()


def test_thinking_is_closed_at_once_and_only_the_answer_is_read() -> None:
    student = looping(thinking=True)
    (asked,) = ask(student, problems(1))
    close = student.tokenizer.convert_tokens_to_ids("</think>")
    assert asked.ids[asked.start - 1] == close and len(asked.ids) == asked.start + 2
    assert (asked.depth, asked.examples) == (1, 0)


def test_tables_are_over_the_problems_of_each_depth_and_paired() -> None:
    student, other, plain = looping(), looping(1), tiny_student(thinking=False)
    exits = [Exit.parse("kl:0.05"), Exit.parse("state:0.2")]
    told = measure_depths(
        "loops",
        student,
        {"other": other, "plain": plain},
        problems(),
        steps=[4, 1, 2],
        at=2,
        exits=exits,
    )
    assert told["steps"] == [1, 2, 4] and told["n"] == 24 and told["trained_mean"] == 4
    assert [(row["depth"], row["steps"], row["n"]) for row in told["accuracy"]] == [
        *((depth, steps, 8) for depth in (1, 2, 3) for steps in (1, 2, 4)),
        *((None, steps, 24) for steps in (1, 2, 4)),
    ]
    assert sum(row["enough"] for row in told["accuracy"]) == 4, "one of each depth"
    assert {(row["examples"], row["n"]) for row in told["examples"]} == {(0, 12), (1, 12)}
    assert [(row["name"], row["depth"]) for row in told["baselines"]] == [
        (name, depth) for name in ("other", "plain") for depth in (1, 2, 3, None)
    ]
    for row, gap in zip(told["baselines"], told["differences"], strict=True):
        (mine,) = [each for each in told["accuracy"] if (each["depth"], each["steps"]) == (row["depth"], 2)]
        assert gap["difference"] == pytest.approx(mine["accuracy"] - row["accuracy"])
        assert gap["difference_ci95"][0] <= gap["difference"] <= gap["difference_ci95"][1]
    assert [(row["exit"], row["depth"]) for row in told["exits"]] == [
        (str(exit), depth) for exit in exits for depth in (1, 2, 3, None)
    ]
    assert all(1 <= row["passes"] <= 2 and row["bound"] == 2 for row in told["exits"])
    assert {row["exit"] for row in told["positions"]} == {"kl:0.05"}
    assert told["positions"][0]["n"] == 24 and told["positions"][-1]["n"] >= 10


def test_what_cannot_be_measured_is_refused() -> None:
    student = looping()
    with pytest.raises(UsageError, match="at is 3, which is not among steps"):
        measure_depths("a", student, {}, problems(), steps=[1, 2], at=3)
    with pytest.raises(UsageError, match="mine: a LlamaForCausalLM has no loop"):
        measure_depths("mine", tiny_student(), {}, problems(), steps=[1], at=1)
    with pytest.raises(UsageError, match="p has no reference answer"):
        ask(student, [Problem("p", "1", gold=None)])
    with pytest.raises(UsageError, match="no problem to measure"):
        ask(student, [])


def test_examples_are_chosen_over_all_depths_and_shown_with_the_passes_of_the_exit() -> None:
    student = looping()
    asked = ask(student, problems())
    shown = chosen(asked, 4)
    assert [each.problem_id for each in shown] == ["p0", "p3", "p1", "p2"]
    assert [each.depth for each in chosen(asked, 2)] == [1, 3] and chosen(asked, 0) == []
    exit = Exit.parse("kl:0.05")
    rows = heat(student, shown, [exit], 8)
    found = answers(student, shown, [8], exit)
    for row, each, run in zip(rows, shown, found.traced, strict=True):
        assert [passes for _, passes, _ in row["tokens"]] == run.steps.tolist()
        assert row["tokens"][each.start][0] == "x" and row["start"] == each.start
        assert row["tokens"][0][0] == "<|user|>"


def test_paths_and_restarts_have_a_row_for_every_kind_and_depth() -> None:
    student = looping()
    asked = ask(student, problems())
    told = paths(student, asked, asked[:2], 12)
    assert sum(row["share"] for row in told["kinds"]) == pytest.approx(1)
    assert {row["n"] for row in told["kinds"]} == {sum(len(each.ids) for each in asked)}
    assert all(len(token["at"]) == 13 for token in told["tokens"]) and 0 < len(told["tokens"]) <= 24
    assert paths(student, asked, asked[:2], 4) == {} and paths(student, asked, [], 12) == {}
    first, last = restarts(student, asked, [1, 16])
    assert first["steps"] == 1 and last["steps"] == 16 and last["n"] == 24
    assert last["distance"] < first["distance"] and last["same"] >= first["same"]


def walk(kind: str, passes: int = 24) -> np.ndarray[Any, Any]:
    """One token's path of a kind, in ten dimensions."""
    at = np.arange(passes + 1)
    found = np.zeros((passes + 1, 10))
    found[:, 2] = 5.0
    if kind == "settles":
        found[:, 0] = 3 * 0.6**at
    elif kind == "orbits":
        found[:, 0], found[:, 1] = np.cos(1.3 * at), np.sin(1.3 * at)
    else:
        found[:, 0] = 0.5 * at
    return found


def test_kinds_of_paths_are_told_apart() -> None:
    states = np.stack([walk(kind) for kind in ("settles", "orbits", "drifts")], axis=1)
    assert kinds_of_paths(states) == ["settles", "orbits", "drifts"]
    with pytest.raises(UsageError, match="4 passes are too few"):
        kinds_of_paths(states[:5])


@given(st.integers(0, 2**31))
def test_components_are_orthonormal_and_find_the_plane_that_points_lie_in(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    points = rng.normal(size=(40, 2)) * [5.0, 1.0] @ plane + rng.normal(size=6)
    found = principal(points, 2)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(2), atol=1e-9)
    assert found.shares.sum() == pytest.approx(1) and found.shares[0] > found.shares[1]
    back = found.project(points) @ found.axes + found.centre
    np.testing.assert_allclose(back, points, atol=1e-9)


def test_components_of_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="too little for 2"):
        principal(np.zeros((1, 5)))
    with pytest.raises(UsageError, match="NaN or infinite"):
        principal(np.full((4, 5), np.nan))


def test_runs_that_end_at_one_place_are_not_apart() -> None:
    one = [np.ones((3, 4)), 2 * np.ones((2, 4))]
    assert apart(one, one)["distance"] == 0
    told = apart(one, [-each for each in one])
    assert told["distance"] == pytest.approx(2) and told["n"] == 2 and told["tokens"] == 5


TEXTS = ["the cat sat on the mat", "one two three four five six seven", "a", "la la la la la la"]


def test_perplexity_is_that_of_the_model_at_each_depth() -> None:
    student = looping()
    rows = perplexity_by_steps(student, TEXTS, [4, 1], window=9)
    assert [row["steps"] for row in rows] == [1, 4]
    for row in rows:
        cost = count = 0.0
        for text in TEXTS:
            ids = student.tokenizer(text)["input_ids"]
            for start in range(0, len(ids), 9):
                piece = torch.tensor([ids[start : start + 9]])
                if piece.shape[1] > 1:
                    with torch.no_grad():
                        out = student.model(piece, num_steps=row["steps"], labels=piece)
                    cost += out.loss.item() * (piece.shape[1] - 1)
                    count += piece.shape[1] - 1
        assert row["tokens"] == count and row["n"] == 3
        assert row["perplexity"] == pytest.approx(math.exp(cost / count), rel=1e-4)
        assert row["ci95"][0] < row["perplexity"] < row["ci95"][1]
    assert rows[1]["ratio"] == 1 and rows[1]["ratio_ci95"] == [1, 1]
    assert rows[0]["ratio"] == pytest.approx(rows[0]["perplexity"] / rows[1]["perplexity"])


def test_perplexity_of_a_model_without_loops_is_one_row() -> None:
    (row,) = perplexity_by_steps(tiny_student(), TEXTS, [1, 2])
    assert row["steps"] is None and row["ratio"] == 1 and row["n"] == 3
    with pytest.raises(UsageError, match="no text has two tokens"):
        perplexity_by_steps(tiny_student(), ["a", ""], [1])


def test_depths_group_problems_in_order() -> None:
    asked = [Asked("p", (1, 2), 1, depth, None) for depth in (5, None, 2, 5)]
    assert by_depth(asked) == {2: [2], 5: [0, 3], None: [0, 1, 2, 3]}
