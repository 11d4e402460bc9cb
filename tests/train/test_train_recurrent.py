"""A recurrent student in every trainer: one depth a step however it is divided, still where texts compare."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from loopstudent import loop_examples, loop_student

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.recurrent.depth import NumSteps, sample_steps
from tutelage.students.recurrent.model import RecurrentDepthModel
from tutelage.think.effort import Effort, Exit
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.decoding import Decoding
from tutelage.train.distillation import Distillation, distill
from tutelage.train.drawing import Grouping
from tutelage.train.grading import Grader
from tutelage.train.grpo import train_grpo
from tutelage.train.grpo_rows import GrpoLoss
from tutelage.train.logprobs import ScoreFile
from tutelage.train.pairs import Pair
from tutelage.train.ppo import PpoSettings, train_ppo
from tutelage.train.preferences import Preference, train_dpo
from tutelage.train.recurrent import Pace, backbone, comparing, paced
from tutelage.train.scoring import score
from tutelage.train.settings import Depth, Keep, Lora, Optimiser, Ramp, Validation
from tutelage.train.sft import SftResult, train_sft

START = loop_student()
ROWS = loop_examples(START, 8)
FAST: dict[str, Any] = {"steps": 3, "batch": 8, "warmup_steps": 0, "learning_rate": 1e-3}
PAIRS = [
    Pair(f"p{n}", (65 + n, 66), (70, 71, 72), (80, 81), (True,) * 3, (True,) * 2, "rollout") for n in range(4)
]
DRAWS = Decoding(ThinkingPolicy(max_tokens=4), Sampling(temperature=1.0), max_answer=4, max_batch=16)


def student() -> Student:
    return Student(copy.deepcopy(START.model), START.tokenizer, START.template, START.name)


def trained(
    packed: int | None = None, keep: Keep | None = None, progress: Any = None, **told: Any
) -> tuple[Student, SftResult]:
    begun = student()
    optimiser = Optimiser(**{**FAST, **told})
    return begun, train_sft(begun, ROWS, optimiser, packed=packed, keep=keep, progress=progress)


def losses(result: SftResult) -> list[float]:
    return [loss for _, loss in result.losses]


def weights(of: Student) -> list[torch.Tensor]:
    return list(of.model.state_dict().values())


def same(a: Student, b: Student) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.mark.slow
def test_a_step_is_the_same_in_parts_packed_and_in_one() -> None:
    """Depth and initial states do not depend on how the batch is divided."""
    whole, one = trained()
    parts, two = trained(accumulate=4)
    packed, three = trained(packed=2 * max(len(row.input_ids) for row in ROWS), batch=4)
    for result in (two, three):
        assert losses(result) == pytest.approx(losses(one), abs=1e-5)
    for other in (parts, packed):
        for x, y in zip(weights(whole), weights(other), strict=True):
            assert torch.allclose(x, y, atol=1e-4)


def test_each_step_has_the_depth_of_its_number_and_the_clock_is_the_models_own_again() -> None:
    begun, seen = student(), []
    core = backbone(begun.model)
    assert core is not None
    core.register_forward_hook(lambda module, args, out: seen.append(out.steps) if module.training else None)
    train_sft(begun, ROWS, Optimiser(**{**FAST, "steps": 4, "accumulate": 2, "seed": 5}))
    expected = [sample_steps(step, 4, 2, 5) for step in range(4)]
    assert seen == [each for each in expected for _ in range(2)]
    assert len(set(expected)) > 1 and core.clock.mode == "free" and core.clock.step == 0


def test_a_ramp_raises_the_mean_and_clamps_what_carries_a_gradient() -> None:
    core = backbone(START.model)
    assert core is not None
    pace = Pace(core, Optimiser(**{**FAST, "steps": 20}, depth=Depth(ramp=Ramp(1, 0.5))))
    assert [pace.mean(step) for step in (0, 3, 7, 9, 10, 19)] == [1, 2, 3, 4, 4, 4]
    slow = Pace(core, Optimiser(**{**FAST, "steps": 20}, depth=Depth(ramp=Ramp(1, 0.5, "1-sqrt"))))
    assert all(slow.mean(step) <= pace.mean(step) for step in range(20)) and slow.mean(10) == 4
    kept = core.clock
    with paced(START.model, pace.optimiser, "x"):
        assert (core.clock.mean, core.clock.backprop) == (1, 1)
    assert core.clock is kept


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_stopped_run_goes_on_to_the_same_losses_and_weights(tmp_path: Path, kind: str) -> None:
    told: dict[str, Any] = {"steps": 12, "batch": 4, "kind": kind, "depth": Depth(ramp=Ramp(1, 0.5))}
    whole, undisturbed = trained(**told, lengths=Ramp(1, 0.5))
    keep = Keep(tmp_path / "work", "mark", 4)

    def stop(done: int, total: int, note: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(keep=keep, progress=stop, **told, lengths=Ramp(1, 0.5))
    steps: list[int] = []
    again, resumed = trained(
        keep=keep, progress=lambda done, *_: steps.append(done), **told, lengths=Ramp(1, 0.5)
    )
    assert steps[0] == 5 and same(again, whole)
    assert resumed.fitted.log == undisturbed.fitted.log and len(losses(resumed)) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    "told",
    [
        {"lora": Lora(4, 8)},
        {"checkpointing": True},
        {"bf16": True},
        {"kind": "muon", "muon_learning_rate": 0.02},
        {"depth": Depth(drawn=False)},
    ],
)
def test_it_learns_in_every_way_that_others_do(told: dict[str, Any], tmp_path: Path) -> None:
    begun, result = trained(**{"steps": 8, "learning_rate": 3e-3, **told})
    assert losses(result)[-1] < losses(result)[0] - 0.05
    moved = [not torch.equal(x, y) for x, y in zip(weights(begun), weights(START), strict=True)]
    names = list(begun.model.state_dict())
    core = [change for name, change in zip(names, moved, strict=True) if ".core." in name and "proj" in name]
    assert core and all(core)
    again = load_student(save_student(begun, tmp_path / "saved"), device="cpu")
    assert same(again, begun)


def test_recomputing_activations_changes_no_weight() -> None:
    assert same(trained(steps=2)[0], trained(steps=2, checkpointing=True)[0])


def test_a_validation_sees_the_mean_depth_and_changes_nothing() -> None:
    depths: list[Any] = []

    def evaluate(held: Student) -> float:
        with torch.no_grad():
            depths.append(held.model(torch.tensor([[5, 6, 7]])).steps)
        return 0.5

    looked = student()
    train_sft(looked, ROWS, Optimiser(**FAST), validation=Validation(evaluate, 1))
    assert depths == [(0, 4)] * 3 and same(looked, trained()[0])


@pytest.mark.slow
def test_a_recurrent_teacher_scores_and_a_recurrent_student_distils(tmp_path: Path) -> None:
    teacher = loop_student(seed=3)
    score(teacher, ROWS, tmp_path / "scores.parquet", top_k=8)
    score(teacher, ROWS, tmp_path / "again.parquet", top_k=8)
    first, second = (ScoreFile(tmp_path / f"{name}.parquet") for name in ("scores", "again"))
    assert all((a.top_logprobs == b.top_logprobs).all() for a, b in zip(first, second, strict=True))
    for source in (first, teacher):
        told = {**FAST, "steps": 8, "learning_rate": 3e-3}
        found = distill(student(), ROWS, source, Distillation(), Optimiser(**told))
        curve = [row["loss"] for row in found.fitted.log if "loss" in row]
        assert curve[-1] < curve[0] and all(math.isfinite(loss) for loss in curve)


@pytest.mark.parametrize("lora", [None, Lora(4, 8)])
def test_preferences_begin_at_no_difference_from_the_start(lora: Lora | None) -> None:
    """The policy in training and the reference have one depth: -log sigmoid(0), exactly."""
    found = train_dpo(student(), PAIRS, Preference(), Optimiser(**{**FAST, "batch": 2, "lora": lora}))
    (first, *_, last) = [row["loss"] for row in found.fitted.log if "loss" in row]
    assert first == pytest.approx(math.log(2), abs=1e-6) and last < first - 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(2, 4)])
def test_grpo_compares_the_policy_with_its_start_at_one_depth(lora: Lora | None) -> None:
    def reward(problem: Problem, trace: Trace) -> float:
        return float(len(trace.answer.encode()) % 3 - 1)

    with Grader(reward) as grader:
        found = train_grpo(
            student(),
            [Problem(f"p{n}", f"{n}?", "1") for n in range(4)],
            grader,
            Optimiser(steps=2, batch=8, warmup_steps=0, learning_rate=1e-3, schedule="constant", lora=lora),
            grouping=Grouping(4, 4, balance=False, drop_above=1.0),
            loss=GrpoLoss(kl=0.5, reuse=2),
            decoding=DRAWS,
        )
    first, second = [row for row in found.fitted.log if "kl" in row]
    # The second step learns again from the first one's replies: one update away from the start, not a draw.
    assert abs(first["kl"]) < 1e-6 and 0 < second["kl"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_ppo_sees_the_policy_that_drew_the_replies(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, inner = [], RecurrentDepthModel.steps

    def steps(core: RecurrentDepthModel, wanted: NumSteps) -> tuple[int, int]:
        found = inner(core, wanted)
        if core.training:
            seen.append(found)
        return found

    monkeypatch.setattr(RecurrentDepthModel, "steps", steps)
    begun = student()
    with Grader(lambda problem, trace: float(len(trace.answer) % 2)) as grader:
        found = train_ppo(
            begun,
            [Problem(f"p{n}", f"{n}?") for n in range(4)],
            grader,
            Optimiser(steps=1, batch=8, warmup_steps=0, learning_rate=1e-3, checkpointing=checkpointing),
            settings=PpoSettings(group=4, minibatch=8, epochs=1, kl=0.1),
            decoding=DRAWS,
        )
    (row,) = [row for row in found.fitted.log if "ppo/moved" in row]
    assert row["ppo/moved"] == pytest.approx(0.0, abs=1e-6) and abs(row["ppo/kl"]) < 1e-5
    assert set(seen) == {(2, 2)}  # the mean of four, the last two with gradient


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: comparing(Optimiser(**FAST, depth=Depth(ramp=Ramp(1))), START.model), "one depth is needed"),
        (lambda: comparing(Optimiser(**FAST), START.model, Effort(7)), "the model's 4; leave num_steps"),
        (lambda: comparing(Optimiser(**FAST), START.model, Effort(exit=Exit.parse("kl"))), "leave num_steps"),
        (lambda: trained(depth=Depth(ramp=Ramp(9))), "above the model's mean_recurrence 4"),
        (lambda: trained(kind="muon", lora=Lora()), "with lora use adamw"),
        (lambda: trained(packed=200, lengths=Ramp(1)), "packed rows mix"),
        (
            lambda: train_dpo(student(), PAIRS, Preference(), Optimiser(**FAST, lengths=Ramp(1))),
            "does not choose",
        ),
        (lambda: Depth(ramp=Ramp(0.5)), "runs at least once"),
        (lambda: Ramp(1, over=0.0), "share of the steps"),
        (lambda: Ramp(0.0), "start is 0; it must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_depth_is_refused_for_a_student_without_loops_and_nothing_else_changes_for_it() -> None:
    plain = tiny_student()
    rows = loop_examples(plain, 4)
    with pytest.raises(UsageError, match="has no loops; leave depth out"):
        train_sft(plain, rows, Optimiser(**FAST, depth=Depth(drawn=False)))
    optimiser = Optimiser(**FAST)
    assert comparing(optimiser, plain.model, Effort()) is optimiser
    found = train_sft(plain, rows, optimiser)
    assert "state_cosine" not in found.fitted.log[0] and found.fitted.alarms == []
