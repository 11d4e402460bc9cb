"""Fine-tuning on a random model of a few thousand weights: what is promised about steps, seeds and counts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.train.examples import IGNORE, Example, build_examples
from tutelage.train.settings import Lora, Optimiser
from tutelage.train.sft import SftResult, train_sft

FAST: dict[str, Any] = {"batch": 2, "warmup_steps": 0, "learning_rate": 1e-2}
START = tiny_student()


def student() -> Student:
    """A fresh copy of the same student."""
    return Student(copy.deepcopy(START.model), START.tokenizer, START.template, START.name)


def examples(count: int) -> list[Example]:
    """Replies of different lengths, so that a wrong count shows."""
    problems = {f"p{n}": Problem(f"p{n}", f"{n}?") for n in range(count)}
    traces = [Trace(f"t{n}", f"p{n}", 0, "m", f"{n}" + "!" * (n % 5)) for n in range(count)]
    return build_examples(START.tokenizer, START.template, problems, traces).examples


def learned(rows: list[Example]) -> int:
    return sum(label != IGNORE for row in rows for label in row.labels)


def seen(rows: list[Example]) -> int:
    return sum(len(row.input_ids) for row in rows)


def trained(rows: list[Example], **settings: Any) -> tuple[Student, SftResult]:
    begun = student()
    result = train_sft(begun, rows, Optimiser(**{**FAST, **settings}))
    return begun, result


def weights(of: Student) -> dict[str, torch.Tensor]:
    return dict(of.model.state_dict())


def same(a: Student, b: Student) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def test_the_loss_falls_on_a_fixed_batch_and_the_student_is_trained_in_place() -> None:
    begun, result = trained(examples(2), steps=20, schedule="constant")
    assert result.fitted.steps == 20 and [step for step, _ in result.losses] == list(range(1, 21))
    assert result.losses[-1][1] < 0.5 * result.losses[0][1]
    assert not same(begun, START) and not begun.model.training


def test_the_first_loss_is_the_cross_entropy_of_the_reply_alone() -> None:
    (row,) = examples(1)
    _, result = trained([row], steps=1)
    with torch.no_grad():
        logits = START.model(torch.tensor([row.input_ids])).logits[0]  # (tokens, vocabulary)
    # The token at place i is predicted from the logits at place i - 1.
    places = [place for place, label in enumerate(row.labels) if label != IGNORE]
    expected = torch.nn.functional.cross_entropy(
        logits[[place - 1 for place in places]], torch.tensor([row.labels[place] for place in places])
    )
    assert result.losses[0][1] == pytest.approx(float(expected), rel=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_seed_other_ones() -> None:
    rows = examples(8)
    first, one = trained(rows, steps=3, seed=1)
    torch.manual_seed(99)  # whatever ran before must not matter
    torch.rand(7)
    second, two = trained(rows, steps=3, seed=1)
    other, _ = trained(rows, steps=3, seed=2)
    assert same(first, second) and one.losses == two.losses
    assert not same(first, other)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_tokens_are_counted_as_they_are_fed(accumulate: int) -> None:
    """An epoch of ten rows is five steps of two."""
    rows = examples(10)
    _, whole = trained(rows, steps=5, accumulate=accumulate)
    assert (whole.tokens_seen, whole.tokens_learned) == (seen(rows), learned(rows))
    assert whole.epochs == 1.0
    _, twice = trained(rows, steps=10, accumulate=accumulate)
    assert (twice.tokens_seen, twice.tokens_learned) == (2 * seen(rows), 2 * learned(rows))


def test_a_run_that_stops_within_an_epoch_counts_only_what_was_fed() -> None:
    rows = [examples(1)[0]] * 12
    for accumulate in (1, 2):
        _, result = trained(rows, steps=2, batch=4, accumulate=accumulate)
        assert (result.tokens_seen, result.tokens_learned) == (8 * seen(rows[:1]), 8 * learned(rows[:1]))
        assert result.epochs == pytest.approx(2 / 3, abs=1e-3)


def test_rows_are_drawn_without_replacement() -> None:
    """Only one row differs in length: it is fed exactly once per epoch."""
    rows = [examples(1)[0]] * 5 + [examples(5)[4]]
    long = seen(rows[-1:])
    for epochs in (1, 2, 3):
        _, result = trained(rows, steps=3 * epochs)
        assert result.tokens_seen == epochs * (5 * seen(rows[:1]) + long)


def test_accumulating_is_the_same_training_in_less_memory() -> None:
    rows = examples(8)
    whole, one = trained(rows, steps=2, batch=4, seed=3, learning_rate=1e-3)
    parts, two = trained(rows, steps=2, batch=4, seed=3, learning_rate=1e-3, accumulate=2)
    assert one.tokens_seen == two.tokens_seen
    for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True):
        # Adam divides by the gradient's size, so that rounding errors of tiny gradients show.
        assert torch.allclose(a, b, atol=1e-4)
    assert [loss for _, loss in one.losses] == pytest.approx([loss for _, loss in two.losses], rel=1e-3)


def test_packed_rows_train_as_the_same_rows_alone() -> None:
    """All rows in one step: packed, in parts, and one by one are the same training."""
    rows = examples(8)
    room = 2 * max(len(row.input_ids) for row in rows)
    alone, one = trained(rows, steps=2, batch=8, learning_rate=1e-3)
    begun = student()
    packed = train_sft(
        begun, rows, Optimiser(**{**FAST, "learning_rate": 1e-3, "steps": 2, "batch": 4}), packed=room
    )
    assert packed.packing is not None and packed.packing.rows == 4
    assert packed.packing.filled == seen(rows) / (4 * room)
    assert (packed.tokens_seen, packed.tokens_learned) == (2 * seen(rows), 2 * learned(rows))
    assert [loss for _, loss in packed.losses] == pytest.approx([loss for _, loss in one.losses], abs=1e-5)
    apart, parts = trained(rows, steps=2, batch=8, learning_rate=1e-3, accumulate=4)
    assert [loss for _, loss in parts.losses] == pytest.approx([loss for _, loss in one.losses], abs=1e-5)
    for x, y, z in zip(*(weights(each).values() for each in (alone, begun, apart)), strict=True):
        assert torch.allclose(x, y, atol=1e-4) and torch.allclose(x, z, atol=1e-4)


def test_a_trained_student_computes_by_its_own_weights() -> None:
    """TRL leaves a forward pass that is bound to the model it was given; a copy would still run that one."""
    begun, _ = trained(examples(2), steps=1)
    other = copy.deepcopy(begun.model)
    ids = torch.tensor([examples(1)[0].input_ids])
    with torch.no_grad():
        before = begun.model(ids).logits
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(begun.model(ids).logits, before)
        assert float(other(ids).logits.abs().max()) == 0
    assert "forward" not in vars(begun.model)


def test_checkpointing_changes_memory_not_results() -> None:
    rows = examples(4)
    assert same(trained(rows, steps=2)[0], trained(rows, steps=2, checkpointing=True)[0])


def test_an_adapter_is_merged_into_a_plain_model() -> None:
    rows = examples(4)
    lora = Lora(rank=4, alpha=8)
    begun, result = trained(rows, steps=4, lora=lora)
    assert result.fitted.steps == 4 and result.losses[-1][1] < result.losses[0][1]
    assert list(weights(begun)) == list(weights(START))
    assert type(begun.model) is type(START.model)
    changed = {name for name, value in weights(begun).items() if not torch.equal(value, weights(START)[name])}
    # Every linear layer but the head; embeddings and norms stay.
    linear = {name for name in weights(START) if "proj" in name}
    assert changed == linear
    again, _ = trained(rows, steps=4, lora=lora)
    assert same(begun, again)


def test_progress_tells_every_step() -> None:
    heard: list[tuple[int, int, str]] = []
    settings = Optimiser(steps=3, **FAST)

    def progress(done: int, total: int, note: str) -> None:
        heard.append((done, total, note))

    train_sft(student(), examples(2), settings, progress=progress)
    assert [(done, total) for done, total, _ in heard] == [(1, 3), (2, 3), (3, 3)]
    assert heard[-1][2].startswith("loss ")


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    trained(examples(2), steps=2)
    out, err = capfd.readouterr()
    assert out == "" and "Warning" not in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1, "accumulate": 0}, "batch 2 does not divide into accumulate 0 parts"),
        ({"steps": 1, "batch": 3, "accumulate": 2}, "batch 3 does not divide into accumulate 2 parts"),
        ({"steps": 1, "batch": 0}, "batch 0 does not divide"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trained(examples(2), **settings)


def test_no_example_is_refused() -> None:
    with pytest.raises(UsageError, match="no example to train on"):
        trained([], steps=1)


def test_a_loss_that_is_no_number_stops_and_names_the_samples() -> None:
    begun = student()
    with torch.no_grad():
        next(begun.model.parameters()).fill_(math.nan)
    with pytest.raises(
        UsageError, match=r"not a number at step 1 \(traces t[01], t[01]\): lower learning_rate"
    ):
        train_sft(begun, examples(2), Optimiser(steps=5, **FAST))
