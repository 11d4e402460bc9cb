"""The rehearsal: the weights stay, the memory and the time are measured, too little memory is one line."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.train.dry import Dry, dry_pass, free_bytes, longest, out_of_memory, slower_in_bfloat16
from tutelage.train.examples import Example, build_examples
from tutelage.train.settings import Lora, Optimiser, Progress

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def too_much() -> BaseException:
    """What torch really says when the machine has no such memory."""
    try:
        torch.empty(1 << 46, dtype=torch.float32)
    except RuntimeError as error:
        return error
    raise AssertionError("256 TiB were allocated")


def steps(student: Student, optimiser: Optimiser, progress: Progress) -> None:
    """A small loop in place of a stage's trainer: the same calls, nothing of TRL."""
    step = torch.optim.AdamW(
        student.model.parameters(), lr=optimiser.learning_rate, weight_decay=optimiser.weight_decay
    )
    for number in range(optimiser.steps):
        ids = torch.randint(200, (optimiser.batch, 24))
        student.model(input_ids=ids, labels=ids).loss.backward()
        step.step()
        progress(number + 1, optimiser.steps, "")


def state(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_and_the_random_numbers_stay(dtype: torch.dtype) -> None:
    student = tiny_student()
    student.model.to(dtype)
    student.model.get_input_embeddings().weight.requires_grad_(False)
    before, draws = state(student), torch.random.get_rng_state()
    found = dry_pass(student, Optimiser(steps=500, batch=8, accumulate=2, learning_rate=1.0), steps)
    assert all(torch.equal(value, before[name]) for name, value in student.model.state_dict().items())
    assert torch.equal(draws, torch.random.get_rng_state())
    assert not student.model.training and all(each.grad is None for each in student.model.parameters())
    assert [each.requires_grad for each in student.model.parameters()].count(False) == 1
    assert found.device == "cpu" and found.seconds > 0


@pytest.mark.slow
def test_one_micro_batch_is_rehearsed_whatever_the_batch() -> None:
    heard: list[Optimiser] = []

    def run(student: Student, optimiser: Optimiser, progress: Progress) -> None:
        heard.append(optimiser)
        steps(student, optimiser, progress)

    lora = Lora(rank=4)
    dry_pass(tiny_student(), Optimiser(steps=9, batch=12, accumulate=3, checkpointing=True, lora=lora), run)
    (one,) = heard
    assert (one.batch, one.accumulate, one.steps) == (4, 1, 2)
    assert one.checkpointing and one.lora == lora and one.learning_rate == one.weight_decay == 0


@pytest.mark.slow
def test_the_peak_is_what_was_held_at_once() -> None:
    held = 64 * 2**20

    def run(student: Student, optimiser: Optimiser, progress: Progress) -> None:
        kept = torch.ones(held // 4)
        progress(1, 2, "")
        progress(2, 2, str(kept[0]))

    found: Dry = dry_pass(tiny_student(), Optimiser(steps=1), run)
    assert 0.9 * held < found.peak_bytes < 1.5 * held
    assert found.room_bytes is not None and found.room_bytes > held
    free = free_bytes(torch.device("cpu"))
    assert free is not None and free <= found.room_bytes


@pytest.mark.slow
def test_too_little_memory_is_one_line_that_says_what_to_lower() -> None:
    student = tiny_student()
    before = state(student)

    def run(student: Student, optimiser: Optimiser, progress: Progress) -> None:
        steps(student, replace(optimiser, steps=1), progress)
        raise too_much()

    with pytest.raises(UsageError) as caught:
        dry_pass(student, Optimiser(steps=9, batch=12, accumulate=2), run)
    message = str(caught.value)
    assert message.startswith("the memory does not suffice for 6 rows at a time") and "\n" not in message
    assert "accumulate: 3 (the same training, 4 rows at a time)" in message
    assert all(torch.equal(value, before[name]) for name, value in student.model.state_dict().items())


@given(st.integers(1, 24), st.integers(1, 24), st.booleans(), st.booleans(), st.booleans())
def test_only_what_can_still_be_lowered_is_named(
    rows: int, accumulate: int, checkpointing: bool, bf16: bool, lora: bool
) -> None:
    optimiser = Optimiser(
        steps=1, batch=rows * accumulate, accumulate=accumulate, checkpointing=checkpointing, bf16=bf16,
        lora=Lora() if lora else None,
    )  # fmt: skip
    said = str(out_of_memory(GPU, optimiser))
    assert said.startswith("the GPU's memory does not suffice for ") and "a lower max_length" in said
    assert ("accumulate: " in said) == (rows > 1)
    assert ("checkpointing: true" in said) == (not checkpointing)
    assert ("bf16: true" in said) == (not bf16) and ("lora: {rank: 16}" in said) == (not lora)
    if rows > 1:
        parts = int(said.split("accumulate: ")[1].split(" ")[0])
        assert parts > accumulate and optimiser.batch % parts == 0


def test_errors_for_want_of_memory_are_known_and_no_others() -> None:
    optimiser = Optimiser(steps=1)
    for error in (GPU, too_much(), MemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")):
        assert isinstance(out_of_memory(error, optimiser), UsageError), error
    for other in (RuntimeError("shape mismatch"), ValueError("memory"), OSError(28, "No space left")):
        assert out_of_memory(other, optimiser) is None


def test_another_error_stays_itself() -> None:
    def run(student: Student, optimiser: Optimiser, progress: Progress) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        dry_pass(tiny_student(), Optimiser(steps=1), run)


def examples(count: int) -> list[Example]:
    student = tiny_student()
    problems = {f"p{n}": Problem(f"p{n}", f"{n}?") for n in range(count)}
    traces = [Trace(f"t{n}", f"p{n}", 0, "m", "!" * (60 + n)) for n in range(count)]
    return build_examples(student.tokenizer, student.template, problems, traces).examples


def train(student: Student, optimiser: Optimiser, progress: Progress) -> Any:
    from tutelage.train.sft import train_sft

    return train_sft(student, examples(optimiser.batch), optimiser, progress=progress)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_the_stage_itself_is_rehearsed(lora: Lora | None) -> None:
    student = tiny_student()
    before = state(student)
    found = dry_pass(student, Optimiser(steps=9, batch=4, accumulate=2, learning_rate=1.0, lora=lora), train)
    assert found.seconds > 0
    assert list(student.model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in student.model.state_dict().items())
    assert all(each.requires_grad for each in student.model.parameters())


@pytest.mark.slow
def test_weights_that_give_no_loss_are_refused_before_any_step() -> None:
    student = tiny_student()
    with torch.no_grad():
        next(student.model.parameters()).fill_(math.nan)
    with pytest.raises(
        UsageError, match=r"tiny-0: the loss is not a number on the longest samples \(traces t"
    ):
        dry_pass(student, Optimiser(steps=9, batch=2), train)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 8), st.integers(50, 120))
def test_the_longest_batch_is_of_the_longest_samples(lengths: list[int], rows: int, room: int) -> None:
    given_ones = [Example([0] * length, [0] * length, "p", str(n)) for n, length in enumerate(lengths)]
    ordered = sorted(lengths, reverse=True)
    chosen = [len(each.input_ids) for each in longest(given_ones, rows)]
    assert chosen == ordered[:rows]
    filled = [len(each.input_ids) for each in longest(given_ones, rows, room)]
    assert filled == ordered[: len(filled)] and sum(filled) <= rows * room
    assert len(filled) == len(lengths) or sum(filled) + ordered[len(filled)] > rows * room


def test_both_precisions_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {torch.float32: 1.0, torch.bfloat16: 3.0}
    clock = [0.0]

    def linear(left: torch.Tensor, right: torch.Tensor) -> None:
        assert left.dtype == right.dtype
        clock[0] += ticks[left.dtype]

    monkeypatch.setattr("torch.nn.functional.linear", linear)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert slower_in_bfloat16() == 3.0
