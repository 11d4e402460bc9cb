"""PPO on a random model: it learns what is rewarded, is a function of its seed, and survives a kill."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.decoding import Decoding
from tutelage.train.grading import Grader
from tutelage.train.ppo import Ppo, PpoSettings, train_ppo
from tutelage.train.rewards import Unrewarded
from tutelage.train.settings import Keep, Lora, Optimiser

pytestmark = pytest.mark.slow

START = tiny_student(closes=1.5)
PROBLEMS = [Problem(f"p{n}", f"{n}?") for n in range(6)]
DECODING = Decoding(
    policy=ThinkingPolicy(max_tokens=4), sampling=Sampling(temperature=1.0), max_answer=6, max_batch=32
)
QUICK: dict[str, Any] = {"batch": 16, "warmup_steps": 0, "learning_rate": 1e-2, "weight_decay": 0.0}


def plain(problem: Problem, trace: Trace) -> float:
    """From -1 to 1: the share of characters that are ASCII (half of all bytes are)."""
    text = trace.thinking + trace.answer
    return 2.0 * sum(map(str.isascii, text)) / max(1, len(text)) - 1.0


def run(
    reward: Any = plain, settings: PpoSettings | None = None, keep: Keep | None = None, **optimiser: Any
) -> tuple[Student, Ppo]:
    student = Student(copy.deepcopy(START.model), START.tokenizer, START.template, START.name)
    with Grader(reward) as grader:
        found = train_ppo(
            student,
            PROBLEMS,
            grader,
            Optimiser(**{"steps": 3, **QUICK, **optimiser}),
            settings=settings or PpoSettings(group=4, minibatch=8, value_learning_rate=1e-2),
            decoding=DECODING,
            keep=keep,
        )
    return student, found


def column(found: Ppo, name: str) -> list[float]:
    return [row[name] for row in found.fitted.log if name in row]


def same(a: Student, b: Student) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_it_learns_what_is_rewarded_and_the_value_follows() -> None:
    student, found = run(steps=16, batch=32)
    rewards = column(found, "drawn/reward")
    assert len(rewards) == 16 and sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.3
    assert abs(column(found, "ppo/value")[0]) < 1e-6 and column(found, "ppo/value")[-1] > 0.1
    assert found.totals["replies"] == 16 * 32 and found.totals["unrewarded"] == 0
    assert type(student.model).__name__ == "LlamaForCausalLM" and not student.model.training
    assert not hasattr(student.model, "value_head")
    for name in ("entropy", "clipped", "moved", "policy_loss", "value_loss", "explained"):
        assert len(column(found, f"ppo/{name}")) == 16


def test_the_first_update_sees_the_policy_that_drew_the_replies() -> None:
    one = PpoSettings(group=4, minibatch=16, epochs=1)
    _, found = run(settings=one, steps=1)
    (row,) = [row for row in found.fitted.log if "ppo/moved" in row]
    assert row["ppo/moved"] == pytest.approx(0.0, abs=1e-6) and row["ppo/clipped"] == 0
    # At ratio 1 the surrogate is minus the mean of the whitened advantages: 0.
    assert row["ppo/policy_loss"] == pytest.approx(0.0, abs=1e-5)


def test_parts_of_a_minibatch_add_up_to_it() -> None:
    one = PpoSettings(group=4, minibatch=16, epochs=1)
    whole, parts = (run(settings=one, steps=1, accumulate=count)[1] for count in (1, 8))
    for name in ("loss", "grad_norm", "ppo/value_loss", "ppo/entropy"):
        assert column(parts, name) == pytest.approx(column(whole, name), rel=1e-4, abs=1e-6)
    assert column(whole, "grad_norm")[0] > 0.1


def test_the_same_seed_gives_the_same_weights_and_another_seed_other_ones() -> None:
    first, one = run(steps=2)
    torch.manual_seed(99)  # whatever ran before must not matter
    second, two = run(steps=2)
    assert same(first, second) and one.fitted.log == two.fitted.log
    assert not same(first, run(steps=2, seed=5)[0])


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)])
def test_the_divergence_is_from_the_start_and_an_adapter_leaves_the_rest_alone(lora: Lora | None) -> None:
    settings = PpoSettings(group=4, minibatch=8, kl=0.1)
    student, found = run(settings=settings, steps=2, lora=lora)
    away = column(found, "ppo/kl_k3")
    assert away[0] == pytest.approx(0.0, abs=1e-6) and away[1] > 1e-5
    norm, before = student.model.model.norm.weight, START.model.model.norm.weight
    assert torch.equal(norm, before) == (lora is not None)
    assert not same(student, START)


def test_replies_without_a_reward_are_left_out_and_counted() -> None:
    def some(problem: Problem, trace: Trace) -> float:
        if trace.sample == 0:
            raise Unrewarded("undecided")
        return plain(problem, trace)

    _, found = run(some, steps=2)
    assert found.totals["unrewarded"] == 2 * 4 and column(found, "drawn/unrewarded") == [0.25, 0.25]

    def none(problem: Problem, trace: Trace) -> float:
        raise Unrewarded("the judge is away")

    with pytest.raises(UsageError, match="no reply of step 1 could be rewarded: the judge is away"):
        run(none)


def test_a_loss_that_is_not_a_number_names_the_problems() -> None:
    wild = PpoSettings(group=4, minibatch=8, value_learning_rate=1e30)
    with pytest.raises(UsageError, match=r"not a number at step 1 \(problems p\d, p\d, p\d, p\d\): lower"):
        run(settings=wild, steps=2)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch": 10}, "batch 10 does not divide into groups of 4"),
        ({"lora": Lora(dropout=0.1)}, "set lora.dropout 0"),
        ({"settings": {"epochs": 0}}, "epochs is 0"),
        ({"decoding": Decoding(sampling=Sampling(1.0, top_p=0.9))}, "leave top_k, top_p and min_p out"),
        ({"problems": []}, "no problem to train on"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], line: str) -> None:
    given = {"problems": PROBLEMS, "decoding": DECODING, "settings": {}, **options}
    optimiser = {name: value for name, value in options.items() if name in ("batch", "lora")}
    with pytest.raises(UsageError, match=line), Grader(plain) as grader:
        train_ppo(
            START,
            given["problems"],
            grader,
            Optimiser(**{"steps": 1, **QUICK, **optimiser}),
            settings=PpoSettings(**{"group": 4, **given["settings"]}),
            decoding=given["decoding"],
        )


_KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
import test_train_ppo as mine
from tutelage.train.settings import Keep

calls = 0

def reward(problem, trace):
    global calls
    calls += 1
    if {after} and calls > {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return mine.plain(problem, trace)

mine.run(reward, keep=Keep(folder=Path({folder!r}), mark="m", every=2), steps=5)
"""


def killed(folder: Path, after: int) -> None:
    """A run in a process of its own that ends by a kill at its reward number `after`."""
    here = Path(__file__).parent
    code = _KILLED.format(tests=str(here.parent), here=str(here), after=after, folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == -signal.SIGKILL


def stopped(folder: Path, after: int, **options: Any) -> None:
    """A run that its reward ends at call number `after`."""
    calls = 0

    def failing(problem: Problem, trace: Trace) -> float:
        nonlocal calls
        calls += 1
        if calls > after:
            raise UsageError("the judge is away")
        return plain(problem, trace)

    with pytest.raises(UsageError, match="the judge is away"):
        run(failing, keep=Keep(folder=folder, mark="m", every=2), steps=5, **options)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)])
def test_a_killed_run_goes_on_to_the_same_curve_and_weights(tmp_path: Path, lora: Lora | None) -> None:
    undisturbed, whole = run(keep=Keep(folder=tmp_path / "a", mark="m", every=2), steps=5, lora=lora)
    if lora is None:
        killed(tmp_path / "b", 3 * 16 + 3)
    else:
        stopped(tmp_path / "b", 3 * 16 + 3, lora=lora)
    assert (tmp_path / "b" / "checkpoint-2" / "value_head.safetensors").is_file()
    calls = 0

    def counted(problem: Problem, trace: Trace) -> float:
        nonlocal calls
        calls += 1
        return plain(problem, trace)

    resumed, rest = run(counted, keep=Keep(folder=tmp_path / "b", mark="m", every=2), steps=5, lora=lora)
    assert calls == 3 * 16  # from step 2 on
    assert rest.totals == whole.totals
    assert len(rest.fitted.log) == len(whole.fitted.log)
    for one, other in zip(rest.fitted.log, whole.fitted.log, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    for x, y in zip(resumed.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-5)
