"""The two silent failures of recurrent students, on models that are made to fail, and silence on others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loopstudent import loop_examples, loop_student

from tinymodel import tiny_student
from tutelage.students.pretrained import Student
from tutelage.train.alarms import EARLY, alarms, cosine, look
from tutelage.train.recurrent import backbone
from tutelage.train.settings import Depth, Optimiser, Ramp
from tutelage.train.sft import SftResult, train_sft

FAST: dict[str, Any] = {"steps": 6, "batch": 8, "warmup_steps": 2, "learning_rate": 1e-3}


def rows(cosines: list[float], pairs: list[tuple[float, float]], every: int = 10) -> list[dict[str, Any]]:
    return [
        {"step": every * (n + 1), "state_cosine": c, "loss_r1": one, "loss_mean": many}
        for n, (c, (one, many)) in enumerate(zip(cosines, pairs, strict=True))
    ]


GOOD, SAME = (2.0, 1.5), (2.0, 1.999)


@pytest.mark.parametrize(
    ("cosines", "pairs", "after", "found"),
    [
        ([0.1, 0.3, 0.2], [GOOD] * 3, 0, []),
        ([0.96, 0.97, 0.98], [GOOD] * 3, 0, ["collapse"]),
        ([0.99, 0.97, 0.955], [GOOD] * 3, 0, []),  # above, but coming back
        ([0.97, 0.98], [GOOD] * 2, 0, []),  # two looks are not enough
        ([0.2] * 3, [SAME] * 3, 0, ["ignores its state"]),
        ([0.2] * 3, [SAME] * 3, 10, []),  # the first one was in the warm-up
        ([0.2] * 4, [SAME] * 3 + [GOOD], 0, []),
        ([1.0] * 3, [SAME] * 3, 0, ["collapse", "ignores its state"]),
        ([], [], 0, []),
    ],
)
def test_alarms_are_a_function_of_the_log(
    cosines: list[float], pairs: list[tuple[float, float]], after: int, found: list[str]
) -> None:
    told = alarms(rows(cosines, pairs), after=after)
    assert [each.partition(":")[0] for each in told] == found
    for each in told:
        for word in ("adapter_init", "state_std", "lengths", "learning rate"):
            assert word in each
        assert "\n" not in each


@given(st.integers(2, 20), st.integers(0, 100))
def test_the_cosine_is_the_mean_over_pairs(count: int, seed: int) -> None:
    states = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize(states, dim=-1)
    pairs = [float(unit[a] @ unit[b]) for a in range(count) for b in range(count) if a != b]
    assert cosine(states) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert cosine(states[:1].expand(count, 5) * 3) == pytest.approx(1, abs=1e-5)
    assert cosine(states[:1]) == 0.0


def trained(begun: Student, **told: Any) -> SftResult:
    return train_sft(begun, loop_examples(begun, 8), Optimiser(**{**FAST, **told}))


def test_a_healthy_student_is_quiet_and_its_numbers_are_in_every_row() -> None:
    found = trained(loop_student(adapter_init="identity", state_std=0.2))
    assert found.fitted.alarms == [] and len(found.losses) == 6
    for row in found.fitted.log:
        assert row["loss_r4"] == row["loss_mean"] != row["loss_r1"] and row["mean_depth"] == 4
        assert -1 <= row["state_cosine"] < 0.95


def test_a_student_that_cannot_read_its_state_is_told() -> None:
    begun = loop_student()
    core = backbone(begun.model)
    assert core is not None and core.adapter.linear is not None
    with torch.no_grad():
        core.adapter.linear.weight[:, :32] = 0  # what reads the state
    core.adapter.linear.weight.register_hook(lambda g: torch.cat([torch.zeros(32, 32), g[:, 32:]], dim=1))
    heard: list[str] = []
    examples = loop_examples(begun, 8)
    found = train_sft(begun, examples, Optimiser(**FAST), progress=lambda *told: heard.append(told[2]))
    assert [each.partition(":")[0] for each in found.fitted.alarms] == ["ignores its state"]
    assert "identity" in found.fitted.alarms[0]
    # Two steps of warm-up, three looks: the note of the sixth step is that of the fifth row.
    assert heard[-1].endswith("; ignores its state") and "ignores" not in heard[3]


def test_a_student_whose_states_are_one_is_told() -> None:
    begun = loop_student(state_std=0.0)
    with torch.no_grad():
        begun.model.model.embed_tokens.weight[:] = begun.model.model.embed_tokens.weight[5]
    found = trained(begun, learning_rate=1e-6)
    assert found.fitted.alarms[0].startswith("collapse: the states of different tokens are alike (cosine 1.0")


@pytest.mark.slow
def test_a_ramp_of_the_mean_keeps_the_second_alarm_quiet_until_its_end() -> None:
    begun = loop_student(mean_recurrence=1, mean_backprop_depth=1)  # one loop is the mean: always the same
    assert [each.partition(":")[0] for each in trained(begun).fitted.alarms] == ["ignores its state"]
    quiet = trained(loop_student(mean_recurrence=1, mean_backprop_depth=1), depth=Depth(ramp=Ramp(1, 1.0)))
    assert quiet.fitted.alarms == []


@pytest.mark.slow
def test_a_long_run_is_looked_at_early_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Optimiser, "log_every", property(lambda told: 20))  # as of a run of 2,000 steps
    found = trained(loop_student(), steps=60, batch=1)
    looked = [row["step"] for row in found.fitted.log if "state_cosine" in row]
    assert looked == [10, 20, 25, 40, 50, 60] and set(looked) - {20, 40, 60} < set(EARLY)


def test_a_look_touches_nothing_and_leaves_out_what_it_cannot_judge() -> None:
    begun = loop_student()
    batch = {"input_ids": torch.randint(0, 200, (6, 9)), "labels": torch.randint(0, 200, (6, 9))}
    begun.model.train()
    state = torch.get_rng_state()
    found = look(begun.model, batch)
    assert begun.model.training and torch.equal(state, torch.get_rng_state())
    assert all(weight.grad is None for weight in begun.model.parameters())
    few = {name: each[:4] for name, each in batch.items()}
    with torch.no_grad():
        loss = begun.model.eval()(**few, num_steps=4).loss
    assert found["loss_mean"] == pytest.approx(float(loss), abs=1e-6)
    # Padding behind the last learned token does not count as tokens that are alike.
    longer = {
        "input_ids": torch.cat([few["input_ids"], torch.full((4, 40), 7)], dim=1),
        "labels": torch.cat([few["labels"], torch.full((4, 40), -100)], dim=1),
    }
    same = look(begun.model, longer)["state_cosine"]
    assert same == pytest.approx(look(begun.model, few)["state_cosine"], abs=1e-5)
    assert look(begun.model, {"input_ids": batch["input_ids"]}) == {}
    assert look(begun.model, {**few, "labels": torch.full((4, 9), -100)}) == {}
    assert look(tiny_student().model, batch) == {}
