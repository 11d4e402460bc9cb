"""DPO on a random model of a few thousand weights: its loss by hand, its reference, its resume."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.train import preferences
from tutelage.train.continuations import logprobs
from tutelage.train.pairs import Pair
from tutelage.train.preferences import DpoResult, Preference, summary, train_dpo, within
from tutelage.train.settings import Keep, Lora, Optimiser

FAST: dict[str, Any] = {"batch": 2, "warmup_steps": 0, "learning_rate": 1e-3}
START = tiny_student()


def student() -> Student:
    """A fresh copy of the same student."""
    return Student(copy.deepcopy(START.model), START.tokenizer, START.template, START.name)


def pair(number: int, chosen: tuple[int, ...] = (70, 71, 72), rejected: tuple[int, ...] = (80, 81)) -> Pair:
    free = (True,) * len(chosen), (True,) * len(rejected)
    return Pair(f"p{number}", (65 + number, 66), chosen, rejected, *free, "rollout")


def trained(pairs: list[Pair], **settings: Any) -> tuple[Student, DpoResult]:
    preference = settings.pop("preference", Preference())
    keep = settings.pop("keep", None)
    begun = student()
    return begun, train_dpo(begun, pairs, preference, Optimiser(**{**FAST, **settings}), keep=keep)


def side(of: Student, one: Pair, ids: tuple[int, ...], free: tuple[bool, ...]) -> float:
    """The log-probability of a side, of what the model drew alone."""
    each = logprobs(of, one.prompt_ids, ids)
    return sum(p for p, own in zip(each, free, strict=True) if own)


def margin(of: Student, one: Pair) -> float:
    """How much more than at the start the chosen side is preferred, in nats."""
    (chosen, rejected), (chosen0, rejected0) = (
        (
            side(model, one, one.chosen_ids, one.chosen_free),
            side(model, one, one.rejected_ids, one.rejected_free),
        )
        for model in (of, START)
    )
    return (chosen - chosen0) - (rejected - rejected0)


@pytest.mark.slow
def test_the_loss_and_the_rewards_are_those_of_the_paper() -> None:
    """-log sigmoid(beta × margin), the margin against the student as it was handed in."""
    pairs = [pair(0), pair(1, (90,), (91, 92, 93, 94))]
    preference = Preference(beta=0.3)
    after_one, _ = trained(pairs, steps=1, preference=preference, schedule="constant")
    _, result = trained(pairs, steps=2, preference=preference, schedule="constant")
    first, second = result.fitted.log
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-4) and first["rewards/margins"] == 0
    margins = [0.3 * margin(after_one, one) for one in pairs]
    expected = sum(math.log1p(math.exp(-each)) for each in margins) / 2
    assert second["loss"] == pytest.approx(expected, rel=1e-3)
    assert second["rewards/margins"] == pytest.approx(sum(margins) / 2, rel=1e-3) and expected < 0.69
    assert second["rewards/accuracies"] == 1


@pytest.mark.slow
def test_the_weight_of_the_chosen_side_adds_its_cross_entropy() -> None:
    one = pair(0)
    _, result = trained([one], steps=1, batch=1, preference=Preference(sft_weight=0.5))
    entropy = -side(START, one, one.chosen_ids, one.chosen_free) / 3
    assert result.fitted.log[0]["loss"] == pytest.approx(math.log(2) + 0.5 * entropy, rel=1e-4)


@pytest.mark.slow
def test_ids_that_the_policy_wrote_carry_no_loss() -> None:
    """Whatever they are, they only stand in the context: here the last id of each side."""
    own = replace(pair(0), chosen_free=(True, True, False), rejected_free=(True, False))
    other = replace(own, chosen_ids=(70, 71, 5), rejected_ids=(80, 6))
    one, two = (trained([each], steps=3, batch=1)[0] for each in (own, other))
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert margin(one, own) > 0


@pytest.mark.slow
def test_single_tokens_can_be_preferred() -> None:
    """A pivotal pair: one token against another, after the same ids."""
    one = replace(pair(0, (70,), (80,)), prompt_ids=(65, 66, 67, 68), method="pivotal")
    begun, result = trained([one], steps=10, batch=1, learning_rate=3e-3)
    assert margin(begun, one) > 1 and result.fitted.log[-1]["rewards/accuracies"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)])
def test_the_reference_is_the_start_and_the_model_stays_plain(lora: Lora | None) -> None:
    pairs = [pair(n) for n in range(4)]
    begun, result = trained(pairs, steps=6, lora=lora, learning_rate=5e-3)
    assert list(begun.model.state_dict()) == list(START.model.state_dict())
    assert "forward" not in vars(begun.model) and not begun.model.training
    told = result.fitted.log[-1]["rewards/margins"]
    again = [0.1 * margin(begun, one) for one in pairs]
    assert told > 0 and min(again) > 0
    # Two epochs of two batches, and one more: each row of the log is of other pairs, so only roughly equal.
    assert told == pytest.approx(sum(again) / 4, rel=0.5)
    assert (result.pairs, result.epochs) == (4, 3.0)
    assert result.tokens_seen == 6 * 2 * (2 * 2 + 3 + 2)
    assert summary(result.fitted)["margin"] == told


class _Killed(Exception):
    pass


class _Kill(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise _Killed


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)])
def test_a_killed_run_goes_on_to_the_same_log_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora | None
) -> None:
    """The reference too is that of the start, not of the checkpoint."""
    pairs = [pair(n) for n in range(6)]
    whole, expected = trained(pairs, steps=8, lora=lora)
    keep = Keep(tmp_path / "work", "m", 2)
    real = preferences._Trainer
    with monkeypatch.context() as patched:
        patched.setattr(
            preferences,
            "_Trainer",
            lambda *a, callbacks, **k: real(*a, callbacks=[*callbacks, _Kill()], **k),
        )
        with pytest.raises(_Killed):
            trained(pairs, steps=8, lora=lora, keep=keep)
    assert (tmp_path / "work/checkpoint-4").is_dir()
    resumed, result = trained(pairs, steps=8, lora=lora, keep=keep)
    clock = {"grad_norm"}  # rounding of a sum
    plain = [
        [{k: v for k, v in row.items() if k not in clock} for row in each.fitted.log]
        for each in (expected, result)
    ]
    assert [list(row) for row in plain[0]] == [list(row) for row in plain[1]]
    for row, other in zip(*plain, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    assert result.tokens_seen == expected.tokens_seen
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_a_second_set_of_pairs_has_a_reference_of_its_own() -> None:
    """Sets of equally many pairs look alike as tables of numbers; nothing may be taken from the other."""
    for one in (pair(0), pair(1, (90,), (91,))):
        _, result = trained([one], steps=1, batch=1)
        assert result.fitted.log[0]["rewards/chosen"] == 0 == result.fitted.log[0]["rewards/rejected"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_problems() -> None:
    begun = student()
    with torch.no_grad():
        next(begun.model.parameters()).fill_(math.nan)
    with pytest.raises(
        UsageError, match=r"not a number at step 1 \(pairs of problems p0, p1\): lower learning"
    ):
        train_dpo(begun, [pair(0), pair(1)], Preference(), Optimiser(steps=2, **FAST))


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no pair to train on"):
        trained([], steps=1)
    with pytest.raises(UsageError, match="a pair of problem p0 has 5 tokens, more than max_length 4"):
        train_dpo(START, [pair(0)], Preference(), Optimiser(steps=1), max_length=4)
    with pytest.raises(UsageError, match="a side that the model drew nothing of"):
        trained([replace(pair(0), chosen_free=(False,) * 3)], steps=1)
    with pytest.raises(UsageError, match=r"lora\.dropout must be 0"):
        trained([pair(0)], steps=1, lora=Lora(dropout=0.1))
    assert within([pair(0), pair(1, (1,), (2,))], 3) == ([pair(1, (1,), (2,))], 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beta": 0.0}, "beta is 0"),
        ({"sft_weight": -1.0}, "sft_weight is -1"),
        ({"loss": "robust"}, "robust needs one above 0"),
        ({"loss": "robust", "label_smoothing": 0.5}, "below 0.5"),
        ({"label_smoothing": 0.1}, "no other loss has any"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Preference(**settings)
