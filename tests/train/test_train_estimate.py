"""Estimates against sums worked out by hand, against draws, and against a measured step."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loopstudent import loop_examples, loop_student

from tinymodel import tiny_llama
from tutelage.students.pretrained import Student
from tutelage.train.dry import dry_pass
from tutelage.train.estimate import (
    Memory,
    Shape,
    estimate,
    expected_longest,
    memory,
    shape_of,
    trained_weights,
)
from tutelage.train.settings import Lora, Optimiser, Progress, Ramp
from tutelage.train.sft import train_sft

SHAPE = Shape(parameters=1000, layers=2, width=10, feed_forward=20, key_value=5, vocabulary=100, adapted=50)
LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


def test_the_sizes_of_a_model() -> None:
    found = shape_of(tiny_llama(300, layers=2, width=32))
    # Embedding and head 300·32 each; a layer: q, o 32·32, k, v 32·16, three of 32·64, two norms; a last norm.
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert found.parameters == 2 * 300 * 32 + 2 * layer + 32
    assert (found.layers, found.width, found.feed_forward, found.key_value) == (2, 32, 64, 16)
    assert (found.vocabulary, found.weight_bytes) == (300, 4)
    assert found.adapted == 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))


@pytest.mark.slow
def test_the_size_of_an_adapter_is_what_peft_makes() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_llama(300)
    expected = trained_weights(shape_of(model), Optimiser(steps=1, lora=Lora(rank=4)))
    made = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sum(each.numel() for each in made.parameters() if each.requires_grad) == expected


def test_a_recurrent_core_counts_once_for_each_loop_with_gradient() -> None:
    begun = loop_student(mean_recurrence=6, mean_backprop_depth=2)
    shape = shape_of(begun.model)
    assert (shape.layers, shape.loops) == (1 + 2 + 1, 6)
    assert shape_of(loop_student(mean_recurrence=1, mean_backprop_depth=5).model).layers == 3
    assert shape_of(tiny_llama(300)).loops is None
    adamw, muon = (memory(shape, Optimiser(steps=1, kind=kind), 4, 10) for kind in ("adamw", "muon"))
    assert adamw.optimiser - muon.optimiser == 4 * shape.matrices > 0
    found = estimate(shape, Optimiser(steps=2, batch=2), [5, 6], 7)
    assert any("loops: 6 on average" in each for each in found.assumptions)


@pytest.mark.slow
def test_a_rehearsal_of_a_recurrent_student_is_at_its_mean_and_leaves_its_weights() -> None:
    begun = loop_student()
    before = [each.detach().clone() for each in begun.model.parameters()]
    rows, modes = loop_examples(begun, 4), []

    def run(student: Student, optimiser: Optimiser, progress: Progress) -> None:
        def hear(done: int, total: int, note: str) -> None:
            modes.append(student.model.model.clock.mode)
            progress(done, total, note)

        train_sft(student, rows, optimiser, progress=hear)

    told = Optimiser(steps=9, batch=4, kind="muon", lengths=Ramp(1))
    assert dry_pass(begun, told, run).seconds > 0
    assert modes == ["still", "still"]
    assert all(torch.equal(a, b) for a, b in zip(before, begun.model.parameters(), strict=True))


def test_memory_by_hand() -> None:
    # One row of three tokens. A block: 6·10 + 3·10 + 2·5 + 4·20 = 180 numbers of 4 bytes.
    assert memory(SHAPE, Optimiser(steps=1), 1, 3) == Memory(
        weights=4000, gradients=4000, optimiser=8000, activations=3 * (2 * 180 * 4 + 3 * 100 * 4)
    )
    recomputed = memory(SHAPE, Optimiser(steps=1, checkpointing=True), 1, 3)
    assert recomputed.activations == 3 * (2 * 10 * 4 + 180 * 4 + 3 * 100 * 4)
    adapter = memory(SHAPE, Optimiser(steps=1, lora=Lora(rank=2)), 1, 3)
    assert (adapter.weights, adapter.gradients, adapter.optimiser) == (4400, 400, 800)


@given(st.integers(1, 64), st.integers(1, 4096), st.booleans())
def test_more_rows_or_tokens_take_more_and_recomputation_less(rows: int, length: int, lora: bool) -> None:
    plain = Optimiser(steps=1, lora=Lora() if lora else None)
    sparing = Optimiser(steps=1, lora=plain.lora, checkpointing=True)
    here = memory(SHAPE, plain, rows, length).total
    assert memory(SHAPE, plain, rows + 1, length).total > here < memory(SHAPE, plain, rows, length + 1).total
    assert memory(SHAPE, sparing, rows, length).total < here


@given(LENGTHS, st.integers(1, 70))
def test_the_expected_longest_lies_between_mean_and_maximum(lengths: list[int], rows: int) -> None:
    found = expected_longest(lengths, rows)
    assert sum(lengths) / len(lengths) - 1e-9 <= found <= max(lengths) + 1e-9
    assert found <= expected_longest(lengths, rows + 1) + 1e-9


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_the_expected_longest_is_the_mean_over_draws(rows: int) -> None:
    lengths = [3, 3, 5, 8, 13, 21, 34]
    draw = random.Random(0)
    drawn = sum(max(draw.sample(lengths, rows)) for _ in range(20000)) / 20000
    assert expected_longest(lengths, rows) == pytest.approx(drawn, rel=0.02)


def test_a_run_by_hand() -> None:
    """Ten rows of 20 tokens, a quarter of them learned; 30 steps of 4 rows in 2 parts of 2."""
    found = estimate(
        SHAPE, Optimiser(steps=30, batch=4, accumulate=2), [20] * 10, 50, step_seconds=0.5, step_positions=80
    )
    assert (found.rows, found.steps, found.epochs) == (10, 30, 12.0)
    assert (found.tokens, found.learned, found.padding) == (2400, 600, 0.0)
    # 60 micro-batches of 40 positions, each half of what was measured.
    assert found.seconds == pytest.approx(60 * 0.25)
    assert any("one measured step" in each for each in found.assumptions)


def test_without_a_measured_step_there_is_no_time() -> None:
    found = estimate(SHAPE, Optimiser(steps=3, batch=2), [10, 30], 8)
    assert found.seconds is None and not any("time" in each for each in found.assumptions)
    assert found.padding == pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.slow
def test_the_memory_is_near_what_a_step_really_takes() -> None:
    """On a model whose activations are most of it: within a factor of two either way."""
    import torch

    from tutelage.students.pretrained import Student
    from tutelage.students.template import Template
    from tutelage.train.dry import dry_pass

    model = tiny_llama(2000, layers=6, width=128, room=1024)
    student = Student(model, None, Template(), "tiny")

    def run(student: Student, optimiser: Optimiser, progress: object) -> None:
        student.model.train()
        step = torch.optim.AdamW(student.model.parameters(), lr=0.0)
        for number in range(2):
            ids = torch.randint(2000, (8, 512))
            student.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            step.step()
            progress(number + 1, 2, "")  # type: ignore[operator]

    optimiser = Optimiser(steps=1, batch=8)
    measured = dry_pass(student, optimiser, run).peak_bytes
    expected = memory(shape_of(model), optimiser, 8, 512)
    ratio = (expected.total - expected.weights) / measured
    assert 0.5 < ratio < 2.0, ratio
