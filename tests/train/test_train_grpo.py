"""GRPO on a random model of a few thousand weights: its gradient worked out by hand, and what is promised
about masks, temperatures, resuming and the start model."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from tutelage.train import grpo, grpo_rows
from tutelage.train.decoding import Decoding
from tutelage.train.drawing import Grouping
from tutelage.train.grading import Grader
from tutelage.train.grpo import Reinforced, train_grpo
from tutelage.train.grpo_rows import GrpoLoss
from tutelage.train.rollouts import Rollout
from tutelage.train.settings import Keep, Lora, Optimiser

START = tiny_student(closes=1.5)
PROBLEMS = [Problem(f"p{n}", f"{n}?", "1") for n in range(6)]
# Some thoughts are closed by force: those ids must not be learned.
POLICY = ThinkingPolicy(max_tokens=6, answer_reserve=4, close_text="A")
SIZE = 4


def reward(problem: Problem, trace: Trace) -> float:
    """Something that differs between replies."""
    return float(len(trace.answer.encode()) % 3 - 1)


def student() -> Student:
    return Student(copy.deepcopy(START.model), START.tokenizer, START.template, START.name)


def decoding(start: float = 1.0, end: float | None = None) -> Decoding:
    return Decoding(POLICY, Sampling(temperature=start), max_answer=5, anneal_to=end)


def reinforce(begun: Student, steps: int = 1, **given: Any) -> Reinforced:
    names = ("lora", "accumulate", "bf16", "batch", "learning_rate")
    told = {name: given.pop(name) for name in names if name in given}
    optimiser = Optimiser(
        **{
            "steps": steps,
            "batch": 2 * SIZE,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "schedule": "constant",
            "max_grad_norm": 1e9,
            **told,
        }
    )
    given.setdefault("grouping", Grouping(SIZE, SIZE, balance=False, drop_above=1.0))
    given.setdefault("decoding", decoding())
    with Grader(given.pop("reward", reward)) as grader:
        return train_grpo(begun, PROBLEMS, grader, optimiser, **given)


@dataclass
class Spy:
    """What each step drew, and a copy of the model that it drew from."""

    models: list[Any] = field(default_factory=list)
    drawn: list[list[Rollout]] = field(default_factory=list)

    def sample(self, begun: Student, problems: Sequence[Problem], **settings: Any) -> list[Rollout]:
        from tutelage.train.rollouts import sample

        self.models.append(copy.deepcopy(begun.model))
        self.drawn.append(sample(begun, problems, **settings))
        return self.drawn[-1]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found = Spy()
    for module in (grpo, grpo_rows):
        monkeypatch.setattr(module, "sample", found.sample)
    return found


def gradient(model: Any, drawn: list[Rollout], temperature: float, kind: str) -> float:
    """The norm of the loss's gradient, reply by reply without padding, the ratio to the sampler being 1."""
    vars(model).pop("forward", None)  # copied with the model, it would still compute with the other one
    model.zero_grad()
    rewards = torch.tensor([reward(PROBLEMS[0], each.trace) for each in drawn]).view(-1, SIZE)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = centred if kind == "dr_grpo" else centred / (rewards.std(dim=1, keepdim=True) + 1e-4)
    learned = torch.tensor(sum(sum(each.free) for each in drawn))
    loss = torch.tensor(0.0)
    for each, advantage in zip(drawn, advantages.flatten(), strict=True):
        ids = torch.tensor([[*each.prompt_ids, *each.ids]])
        scores = model(ids).logits[0, len(each.prompt_ids) - 1 : -1] / temperature
        told = scores.log_softmax(-1).gather(1, torch.tensor(each.ids)[:, None])[:, 0]
        total = -advantage * (told * torch.tensor(each.free)).sum()
        if kind == "dapo":
            loss = loss + total / learned
        elif kind == "grpo":
            loss = loss + total / sum(each.free) / len(drawn)
        else:  # the longest reply that there may be: six of thinking, five of answer
            loss = loss + total / (11 * len(drawn))
    loss.backward()
    parts = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return float(torch.cat(parts).norm())


def weights(of: Student) -> dict[str, torch.Tensor]:
    return dict(of.model.state_dict())


def same(a: Student, b: Student) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo"])
def test_the_gradient_is_the_one_worked_out_by_hand_at_each_temperature(kind: Any, spy: Spy) -> None:
    begun = student()
    found = reinforce(begun, 2, loss=GrpoLoss(kind), decoding=decoding(1.0, 0.5))
    rows = found.fitted.log
    assert [row["temperature"] for row in rows] == [1.0, 0.5]
    assert not all(free for drawn in spy.drawn for each in drawn for free in each.free)  # some were forced
    for row, model, drawn, temperature in zip(rows, spy.models, spy.drawn, (1.0, 0.5), strict=True):
        assert row["drawn/missing_groups"] == 0
        assert row["grad_norm"] == pytest.approx(gradient(model, drawn, temperature, kind), rel=2e-3)
    assert not same(begun, START) and "forward" not in vars(begun.model)


@pytest.mark.slow
def test_accumulating_is_the_same_training_in_less_memory(spy: Spy) -> None:
    whole = reinforce(student()).fitted.log[0]
    parts = reinforce(student(), accumulate=2).fitted.log[0]
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_an_adapter_decodes_with_merged_weights_and_is_merged_at_the_end(spy: Spy) -> None:
    begun = student()
    found = reinforce(begun, 2, lora=Lora(rank=4, alpha=8), learning_rate=1e-2, loss=GrpoLoss(kl=0.1))
    first, second = (dict(spy.models[number].state_dict()) for number in (0, -1))
    assert list(first) == list(weights(START))
    assert all(map(torch.equal, first.values(), weights(START).values()))
    changed = {name for name, value in second.items() if not torch.equal(value, first[name])}
    assert changed == {name for name in first if "proj" in name}
    assert type(begun.model) is type(START.model) and "forward" not in vars(begun.model)
    # The reference is the model without its adapter.
    assert found.fitted.log[0]["kl"] == pytest.approx(0.0, abs=1e-6) and found.fitted.log[1]["kl"] > 1e-5


@pytest.mark.slow
def test_the_reference_of_the_divergence_is_the_student_as_it_was_handed_in() -> None:
    """It was never saved: there is no place where TRL could load one from."""
    begun = student()
    with torch.no_grad():
        begun.model.lm_head.weight.mul_(1.1)
    rows = reinforce(
        begun, 2, learning_rate=1e-2, loss=GrpoLoss(kl=0.1), decoding=decoding(1.0, 0.5)
    ).fitted.log
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6) and rows[1]["kl"] > 1e-5


@pytest.mark.slow
def test_nothing_is_learned_where_all_rewards_are_the_same() -> None:
    begun = student()
    found = reinforce(begun, reward=lambda problem, trace: 1.0)
    assert found.totals["missing_groups"] == 2 and found.totals["discarded"] == found.totals["problems"] == 6
    assert found.fitted.log[0]["drawn/dropped/no spread"] == 1.0
    assert same(begun, START)


@pytest.mark.slow
def test_nothing_is_learned_from_truncated_replies_where_they_are_masked() -> None:
    begun = student()
    short = Decoding(ThinkingPolicy(max_tokens=2, answer_reserve=1), Sampling(temperature=1.0), max_answer=1)

    def odd(problem: Problem, trace: Trace) -> float:
        return float(trace.sample % 2)

    found = reinforce(begun, decoding=short, loss=GrpoLoss(mask_truncated=True), reward=odd)
    assert found.fitted.log[0]["drawn/unfinished"] == 1.0 and found.totals["missing_groups"] == 0
    assert same(begun, START)
    reinforce(begun, decoding=short, reward=odd)
    assert not same(begun, START)


@pytest.mark.slow
def test_replies_are_used_as_often_as_asked(spy: Spy) -> None:
    reinforce(student(), 4, loss=GrpoLoss(reuse=2))
    assert len(spy.drawn) == 2


@pytest.mark.slow
def test_mixed_precision_changes_figures_a_little() -> None:
    full, half = (
        reinforce(student(), bf16=bf16, decoding=decoding(0.9, 0.8)).fitted.log[0] for bf16 in (0, 1)
    )
    assert half["entropy"] == pytest.approx(full["entropy"], rel=0.02)
    assert half["entropy"] != full["entropy"]


@pytest.mark.slow
def test_problems_of_uniform_length_are_kept(spy: Spy) -> None:
    found = reinforce(student(), uniform=0.5)
    assert found.problems == 3
    assert len(spy.drawn[0]) == len(spy.drawn[1]) == SIZE * len(PROBLEMS)  # two rounds before the first step
    seen = {each.trace.problem_id for each in spy.drawn[2]}
    assert len(seen) == 2


@pytest.mark.slow
def test_progress_tells_how_many_replies_are_right() -> None:
    heard: list[tuple[int, int, str]] = []
    reinforce(student(), 2, progress=lambda done, total, note: heard.append((done, total, note)))
    assert [(done, total) for done, total, _ in heard] == [(1, 2), (2, 2)]
    assert all(note.endswith("% right") for _, _, note in heard)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 6}, "batch 6 does not divide into groups of 4"),
        ({"batch": 32}, "a step takes 8 problems, but there are 6"),
    ],
)
def test_batches_that_cannot_work_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reinforce(student(), **given)


def test_greedy_decoding_and_impossible_temperatures_are_refused() -> None:
    with pytest.raises(UsageError, match="temperature 0 draws the same"):
        decoding(0.0)
    with pytest.raises(UsageError, match="anneal_to is 0"):
        decoding(1.0, 0.0)


@pytest.mark.parametrize("given", [{"kl": -0.1}, {"clip_low": 0.0}, {"clip_high": 0.0}, {"reuse": 0}])
def test_losses_that_cannot_work_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must not be negative"):
        GrpoLoss(**given)


def resumable(folder: Path, kill_at: int | None = None) -> Reinforced:
    """Four steps that keep what they need; with `kill_at` the process kills itself after that step."""

    def progress(done: int, total: int, note: str) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    begun = student()
    keep = Keep(folder, "mark", every=2)
    grouping = Grouping(SIZE, 2 * SIZE, balance=True, drop_above=1.0)
    found = reinforce(begun, 4, keep=keep, grouping=grouping, decoding=decoding(1.0, 0.6), progress=progress)
    torch.save(weights(begun), folder / "end.pt")
    return found


@pytest.mark.slow
def test_a_run_that_was_killed_repeats_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    undisturbed = resumable(whole)
    code = (
        f"from pathlib import Path; import test_train_grpo as t; t.resumable(Path({str(cut)!r}), kill_at=3)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *(each for each in sys.path if each)])
    killed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert killed.returncode == -signal.SIGKILL and not (cut / "end.pt").exists()
    resumed = resumable(cut)
    assert resumed.fitted.log == undisturbed.fitted.log
    assert resumed.totals == undisturbed.totals
    ends = [torch.load(folder / "end.pt", weights_only=True) for folder in (whole, cut)]
    assert all(map(torch.equal, ends[0].values(), ends[1].values()))
    lines = [json.loads(line) for line in (cut / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if "loss" in row] == [1, 2, 3, 4]


def one_of_two(folder: Path) -> None:
    """What each of two processes does: two steps of four groups, two in each."""
    begun = student()
    found = reinforce(begun, 2, batch=4 * SIZE)
    place = folder / os.environ["RANK"]
    torch.save({"weights": weights(begun), "totals": found.totals, "log": found.fitted.log}, place)


@pytest.mark.slow
def test_two_processes_draw_groups_of_their_own_and_learn_the_same(tmp_path: Path) -> None:
    code = f"from pathlib import Path; import test_train_grpo as t; t.one_of_two(Path({str(tmp_path)!r}))"
    paths = os.pathsep.join([str(Path(__file__).parent), *(each for each in sys.path if each)])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"PYTHONPATH": paths, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    ]
    assert [each.wait() for each in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / rank, weights_only=True) for rank in "01")
    assert first["totals"] == second["totals"]
    assert first["totals"]["replies"] >= 2 * 4 * SIZE  # of both
    same = map(torch.equal, first["weights"].values(), second["weights"].values())
    assert all(same) and not torch.equal(first["weights"]["lm_head.weight"], START.model.lm_head.weight)
