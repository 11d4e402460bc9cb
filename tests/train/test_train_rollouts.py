"""Rollouts: ids as they were drawn, marked, continued from exact prefixes, and kept in a file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tinymodel import tiny_student
from tutelage.errors import StorageError, UsageError
from tutelage.records import Problem, Trace, write_records
from tutelage.students.pretrained import Student
from tutelage.students.template import render_prompt
from tutelage.teachers.local import LocalTeacher, local_sampler
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.merged import merged
from tutelage.train.rollouts import Rollout, continue_, read_rollouts, sample, write_rollouts

STUDENT = tiny_student(closes=1.5)
PROBLEMS = [Problem(f"p{n}", f"{n}?") for n in range(3)]
POLICY = ThinkingPolicy(max_tokens=6, close_text="so")
HOT = Sampling(1.0)


def drawn(
    student: Student = STUDENT, samples: int = 2, logprobs: bool = False, seed: int = 1
) -> list[Rollout]:
    return sample(
        student,
        PROBLEMS,
        samples=samples,
        policy=POLICY,
        sampling=HOT,
        seed=seed,
        max_answer=5,
        logprobs=logprobs,
    )


def test_they_are_the_replies_of_the_engine_problem_by_problem_with_what_was_forced_marked() -> None:
    found = drawn()
    assert [(each.trace.problem_id, each.trace.sample) for each in found] == [
        (f"p{n}", k) for n in range(3) for k in range(2)
    ]
    teacher = LocalTeacher(STUDENT, "student", HOT, samples=2, seed=1, max_answer=5)
    assert [each.trace for each in found] == list(local_sampler(teacher, POLICY)(PROBLEMS))
    for each in found:
        question = PROBLEMS[int(each.trace.problem_id[1:])].question
        assert list(each.prompt_ids) == render_prompt(STUDENT.tokenizer, STUDENT.template, question)
        forced = len(each.free) - sum(each.free)
        trace = each.trace
        assert len(each.ids) == len(each.free) and trace.answer_forced == 2
        closes = 0 if trace.closed_by == "model" else 1
        assert forced == (trace.thinking_forced or 0) + 2 + closes


def test_a_rollout_depends_on_seed_problem_and_sample_alone() -> None:
    two, three = drawn(samples=2), drawn(samples=3)
    assert [each for each in three if each.trace.sample < 2] == two
    assert [each.ids for each in drawn(seed=2)] != [each.ids for each in two]


def test_logprobs_are_those_of_the_model_at_temperature_1() -> None:
    for each in drawn(logprobs=True):
        ids = torch.tensor([each.prompt_ids + each.ids])
        with torch.no_grad():
            told = STUDENT.model(ids).logits[0].log_softmax(-1)  # (tokens, vocabulary)
        at = len(each.prompt_ids)
        expected = [float(told[at + k - 1, token]) for k, token in enumerate(each.ids)]
        assert each.logprobs == pytest.approx(expected, abs=1e-4)


def test_each_rollout_is_told_with_its_number_while_others_are_decoded() -> None:
    told: dict[int, Rollout] = {}
    left: list[int] = []
    found = sample(
        STUDENT,
        PROBLEMS,
        samples=4,
        policy=POLICY,
        sampling=HOT,
        seed=1,
        max_answer=5,
        max_batch=2,
        progress=lambda done, total, note: left.append(len(told) - done),
        each=told.__setitem__,
    )
    assert told == dict(enumerate(found)) == dict(enumerate(drawn(samples=4)))
    assert len(left) > 1 and set(left) == {0}


def test_the_weights_are_read_at_each_call() -> None:
    student = Student(copy.deepcopy(STUDENT.model), STUDENT.tokenizer, STUDENT.template, "copy")
    before = drawn(student)
    with torch.no_grad():
        student.model.lm_head.weight.mul_(-1.0)
    assert [each.ids for each in drawn(student)] != [each.ids for each in before]


def test_within_a_trainer_the_adapter_is_part_of_the_model_and_stays_as_it_is() -> None:
    model = get_peft_model(copy.deepcopy(STUDENT.model), LoraConfig(target_modules="all-linear", r=2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with merged(model) as plain:
        inside = drawn(Student(plain, STUDENT.tokenizer, STUDENT.template, "lora"))
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    whole = copy.deepcopy(model).merge_and_unload().eval()
    assert inside == drawn(Student(whole, STUDENT.tokenizer, STUDENT.template, "whole"))
    assert [each.ids for each in inside] != [each.ids for each in drawn()]


def test_continuations_begin_with_the_prefix_and_differ_after_it() -> None:
    first = drawn()[0]
    problem = PROBLEMS[0]
    starts = [(problem, first.ids[:cut]) for cut in (0, 3, 7)]
    found = continue_(STUDENT, starts, n=8, policy=POLICY, sampling=HOT, seed=5, max_answer=5)
    for (_, prefix), replies in zip(starts, found, strict=True):
        assert len(replies) == 8 and len({each.ids for each in replies}) > 1
        for each in replies:
            assert each.ids[: len(prefix)] == prefix
            assert each.prompt_ids == first.prompt_ids
            assert (each.trace.thinking_tokens or 0) <= 6 and each.trace.answer_sampled <= 5  # type: ignore[operator]
    traces = [each.trace.id for replies in found for each in replies]
    assert len(set(traces)) == len(traces)
    # The random numbers belong to the prefix: nobody else decides.
    (alone,) = continue_(STUDENT, starts[1:2], n=3, policy=POLICY, sampling=HOT, seed=5, max_answer=5)
    assert alone == found[1][:3]


def test_a_whole_reply_is_continued_by_nothing() -> None:
    first = next(each for each in drawn(samples=4))
    (found,) = continue_(
        STUDENT, [(PROBLEMS[0], first.ids)], n=2, policy=POLICY, sampling=HOT, seed=5, max_answer=5
    )
    assert [each.ids for each in found] == [first.ids, first.ids]
    assert found[0].trace.answer == first.trace.answer


def test_a_file_gives_back_the_same_ids(tmp_path: Path) -> None:
    for number, found in enumerate((drawn(), drawn(logprobs=True), [])):
        found = [Rollout(e.trace, e.prompt_ids, e.ids, e.free, e.logprobs, "correct") for e in found]
        path = tmp_path / f"{number}.parquet"
        write_rollouts(path, found)
        again = read_rollouts(path)
        assert [(e.trace, e.prompt_ids, e.ids, e.free, e.status) for e in again] == [
            (e.trace, e.prompt_ids, e.ids, e.free, e.status) for e in found
        ]
        for one, other in zip(again, found, strict=True):
            assert one.logprobs == (other.logprobs and pytest.approx(other.logprobs, rel=1e-6))


def test_files_that_hold_something_else_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_rollouts(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        read_rollouts(tmp_path / "text.parquet")
    write_records(tmp_path / "traces.parquet", [each.trace for each in drawn()], Trace)
    with pytest.raises(UsageError, match="not a table of rollouts \\(no column 'prompt_ids'\\)"):
        read_rollouts(tmp_path / "traces.parquet")
    (tmp_path / "folder").write_text("a file where a folder is needed")
    with pytest.raises(StorageError, match="cannot write"):
        write_rollouts(tmp_path / "folder" / "r.parquet", drawn())
