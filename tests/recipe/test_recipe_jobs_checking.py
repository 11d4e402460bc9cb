"""The report before training, on the lab's tiny student and on students with other chat templates."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tinymodel import CHAT, tiny_student
from tutelage.errors import UsageError
from tutelage.recipe.checked import lines
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, write_records
from tutelage.students.pretrained import load_student, save_student
from tutelage.students.template import render_prompt
from tutelage.train.dry import dry_pass
from tutelage.train.pairs import Pair, write_pairs

LOOK = "tutelage.recipe.jobs.checking:check"
R1_LIKE = CHAT.replace("m['content'] }}", "m['content'].split('</think>')[-1] }}")
PROBLEMS = [Problem(f"p{n}", f"What is {n} + {n}?", str(2 * n)) for n in range(6)]
TRACES = [
    Trace(f"t{n}", f"p{n}", 0, "m", f"It is {2 * n}.", thinking=f"{n} and {n}" + ", again" * n)
    for n in range(6)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with problems, traces, and a student that speaks bytes."""
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "problems.parquet", PROBLEMS, Problem)
    write_records(folder / "traces.parquet", TRACES, Trace)
    save_student(tiny_student(), folder / "model")
    return folder


def with_template(folder: Path, chat: str | None) -> Path:
    """The same student with another chat template."""
    student = tiny_student()
    student.tokenizer.chat_template = chat
    return save_student(replace(student, name="other"), folder / "other")


def report(data: Path, kind: str = "sft", *, model: Path | None = None, **settings: Any) -> dict[str, Any]:
    place = data / "nothing"
    inputs: dict[str, Any] = {
        "model": str(model or data / "model"),
        "problems": [str(data / "problems.parquet")],
    }
    if kind in ("grpo", "ppo"):
        inputs["problems"] = str(data / "problems.parquet")
    elif kind == "dpo":
        del inputs["problems"]
        inputs["pairs"] = [str(data / "pairs.parquet")]
    else:
        inputs["traces"] = [str(settings.pop("traces", data / "traces.parquet"))]
        settings = {"system": "none", "max_length": 240, **settings}
    settings = {"steps": 30, "batch": 4, "warmup_steps": 0, **settings}
    before = sorted(data.rglob("*"))
    found = run_single(kind, settings, place, inputs=inputs, look=LOOK)["metrics"]
    assert sorted(data.rglob("*")) == before, "a check writes nothing"
    assert json.loads(json.dumps(found)) == found
    assert isinstance(found, dict)
    return found


def finding(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["findings"] if each["name"] == name)


@pytest.mark.slow
def test_the_report_of_a_job_that_may_begin(data: Path) -> None:
    found = report(data, accumulate=2)
    assert found["refused"] is None and not any(each["refused"] for each in found["findings"])
    assert found["numbers"]["samples"] == 6 and found["numbers"]["too_long"] == 0
    expected = found["estimate"]
    assert (expected["steps"], expected["epochs"]) == (30, 20.0)
    assert found["dry"]["seconds"] > 0 and expected["seconds"] > 0
    assert expected["memory"]["total"] == sum(v for k, v in expected["memory"].items() if k != "total")
    # The shortest, one in the middle, the longest.
    assert [sample["trace"] for sample in found["samples"]] == ["t0", "t3", "t5"]
    shortest = found["samples"][0]
    assert (
        "".join(text for text, learned, _ in shortest["pieces"] if learned)
        == "0 and 0</think>It is 0.<|end|>"
    )
    text = "\n".join(lines(found, colour=False))
    assert "✓ padding: <|pad|>, the tokenizer's own" in text and "30 steps, 20.0 epochs" in text
    assert "nothing found that would refuse this job" in text and "\x1b" not in text
    assert "\x1b[32m" in "\n".join(lines(found, colour=True))


@pytest.mark.slow
def test_the_rehearsal_leaves_the_weights(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def watched(student: Any, optimiser: Any, run: Any) -> Any:
        before = {name: value.clone() for name, value in student.model.state_dict().items()}
        found = dry_pass(student, optimiser, run)
        now = student.model.state_dict()
        seen.append(now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now))
        return found

    monkeypatch.setattr("tutelage.recipe.jobs.checking.dry_pass", watched)
    report(data, lora={"rank": 4})
    assert seen == [True]


def test_samples_over_the_limit_are_refused_or_left_out_and_counted(data: Path) -> None:
    found = report(data, max_length=52)
    over = found["numbers"]["too_long"]
    assert 0 < over < 6 and found["numbers"]["share_too_long"] == over / 6
    assert found["refused"].startswith(f"{over} of 6 samples") and "too_long: drop" in found["refused"]
    assert found["dry"] is None and found["not_rehearsed"] == "the job is refused"
    assert found["findings"][0]["refused"], "what refuses comes first"
    assert found["lengths"]["max"] <= 52 and found["lengths"]["rows"] == 6 - over
    text = "\n".join(lines(found, colour=False))
    assert "✗ length:" in text and "this job would be refused" in text and "time     not measured" in text


@pytest.mark.slow
def test_dropping_what_is_too_long_is_allowed(data: Path) -> None:
    found = report(data, max_length=52, too_long="drop")
    assert found["refused"] is None and "left out whole" in finding(found, "length")["text"]


def test_a_template_that_deletes_thinking_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    other = with_template(tmp_path, R1_LIKE)
    found = report(data, model=other)
    assert "the template deletes it" in found["refused"] and str(other) in found["refused"]
    assert not finding(report(data, model=other, chat_template="any", max_length=60), "chat template")[
        "refused"
    ]


def test_a_tokenizer_without_a_chat_template(data: Path, tmp_path: Path) -> None:
    other = with_template(tmp_path, None)
    with pytest.raises(UsageError, match="no chat template, so there is no place for a system message"):
        report(data, model=other, system="reasoning")
    for system in ("none", "own"):
        # max_length 60 refuses, so that nothing is rehearsed here.
        found = report(data, model=other, system=system, max_length=60)
        assert "plain prompts" in finding(found, "chat template")["text"]


def test_a_sample_longer_than_the_context_is_refused(data: Path, tmp_path: Path) -> None:
    long = [replace(TRACES[0], thinking="x" * 300), *TRACES[1:]]
    write_records(tmp_path / "long.parquet", long, Trace)
    found = report(data, traces=tmp_path / "long.parquet", max_length=1000)
    assert "trace t0 has" in found["refused"] and "context is 256" in found["refused"]


def test_a_table_without_the_needed_columns_is_named(data: Path) -> None:
    with pytest.raises(UsageError, match=r"problems\.parquet.*column") as caught:
        report(data, traces=data / "problems.parquet")
    assert "\n" not in str(caught.value)


def test_hostile_text_does_not_steer_the_terminal(data: Path, tmp_path: Path) -> None:
    nasty = "\x1b[2J\x1b]0;owned\x07\u202e<|end|></think>"
    write_records(
        tmp_path / "nasty.parquet",
        [replace(TRACES[0], id=f"t{nasty}", thinking=f"a{nasty}b"), *TRACES[1:]],
        Trace,
    )
    found = report(data, traces=tmp_path / "nasty.parquet", max_length=69)
    assert finding(found, "control tokens")["text"].startswith("1 of")
    for colour in (False, True):
        text = "\n".join(lines(found, colour=colour))
        assert not re.search("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]", text)
        assert set(re.findall("\x1b.{3}", text)) <= {"\x1b[0m", "\x1b[7m", "\x1b[32", "\x1b[31", "\x1b[90"}


@pytest.mark.slow
def test_mid_training_counts_packed_rows(data: Path) -> None:
    found = report(data, "mid-train", batch=2, max_length=200)
    assert found["refused"] is None and found["dry"] is not None
    assert found["lengths"]["rows"] < found["numbers"]["samples"] and found["lengths"]["max"] <= 200
    document = report(data, "mid-train", batch=2, max_length=200, loss_on="document")
    assert document["refused"] is None and document["estimate"]["learned"] > found["estimate"]["learned"]


@pytest.mark.slow
def test_reinforcement_is_checked_on_its_prompts_and_longest_replies(data: Path) -> None:
    settings = {"batch": 8, "group": 4, "policy": {"max_tokens": 40}, "max_answer_tokens": 20}
    found = report(data, "grpo", **settings)
    assert found["refused"] is None and found["dry"] is not None
    student = load_student(data / "model")
    longest = max(len(render_prompt(student.tokenizer, student.template, each.question)) for each in PROBLEMS)
    assert found["lengths"]["max"] == longest + 40 + 20
    assert "replies of up to 60 tokens" in finding(found, "replies")["text"]
    (shown,) = found["samples"]
    assert shown["learned"] == 0 and "".join(text for text, _, _ in shown["pieces"]).endswith("<think>")


@pytest.mark.slow
def test_preferences_are_checked_on_both_sides(data: Path) -> None:
    student = load_student(data / "model")
    pairs = []
    for problem in PROBLEMS[:4]:
        prompt = tuple(render_prompt(student.tokenizer, student.template, problem.question))
        good, bad = (tuple(student.tokenizer(text)["input_ids"]) for text in ("yes", "certainly not"))
        free = ((True,) * len(good), (True,) * len(bad))
        pairs.append(Pair(problem.id, prompt, good, bad, *free, "rollout", "a", "b"))
    write_pairs(data / "pairs.parquet", pairs, {problem.id: problem for problem in PROBLEMS})
    found = report(data, "dpo", batch=2)
    assert found["refused"] is None and found["lengths"]["rows"] == 8 and found["dry"] is not None
    assert [sample["trace"] for sample in found["samples"]] == ["a (chosen)", "b (rejected)"]
    learned = ["".join(text for text, yes, _ in each["pieces"] if yes) for each in found["samples"]]
    assert learned == ["yes", "certainly not"]
    short = report(data, "dpo", batch=2, max_length=20)
    assert short["refused"].startswith("4 of 4 samples")


def test_think_markers_become_tokens_when_the_student_is_made(data: Path, tmp_path: Path) -> None:
    save_student(tiny_student(think_tokens=False), tmp_path / "text")
    place = str(tmp_path / "text")
    run_single("student", {"source": place}, tmp_path / "as-it-is")
    run_single("student", {"source": place, "markers": "tokens"}, tmp_path / "tokens")
    # max_length 20 refuses, so that nothing is rehearsed here.
    as_text = finding(report(data, model=tmp_path / "as-it-is", max_length=20), "think markers")["text"]
    assert as_text.startswith("text of 8 and 10 tokens") and "two would be added" in as_text
    lora = {"rank": 4}
    as_tokens = finding(report(data, model=tmp_path / "tokens", max_length=20, lora=lora), "think markers")
    assert as_tokens["text"].startswith("one token each; an adapter does not train")


def test_a_stage_that_trains_nothing_has_nothing_to_check(data: Path) -> None:
    inputs = {"model": str(data / "model"), "problems": str(data / "problems.parquet")}
    with pytest.raises(UsageError, match="only a stage that trains"):
        run_single("rollouts", {}, data / "nothing", inputs=inputs, look=LOOK)


@pytest.mark.parametrize("kind", ["sft", "mid-train"])
def test_what_the_check_refuses_the_job_refuses_too(data: Path, tmp_path: Path, kind: str) -> None:
    other = with_template(tmp_path, R1_LIKE)
    inputs = {
        "model": str(other),
        "problems": [str(data / "problems.parquet")],
        "traces": [str(data / "traces.parquet")],
    }
    with pytest.raises(UsageError) as caught:
        run_single(kind, {"steps": 1, "system": "none"}, tmp_path / "m", inputs=inputs)
    assert str(caught.value) == report(data, kind, model=other)["refused"]
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_a_job_that_was_told_to_trains_with_such_a_template(data: Path, tmp_path: Path) -> None:
    inputs = {
        "model": str(with_template(tmp_path, R1_LIKE)),
        "problems": [str(data / "problems.parquet")],
        "traces": [str(data / "traces.parquet")],
    }
    settings = {"steps": 1, "batch": 2, "system": "none", "chat_template": "any"}
    assert run_single("sft", settings, tmp_path / "m", inputs=inputs)["metrics"]["steps"] == 1


def test_bfloat16_that_costs_time_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for factor, told in ((3.94, True), (0.5, False)):
        monkeypatch.setattr("tutelage.recipe.jobs.checking.slower_in_bfloat16", lambda factor=factor: factor)
        found = report(data, bf16=True)
        names = [each["name"] for each in found["findings"]]
        assert ("precision" in names) is told
        assert found["refused"] is None
        if told:
            assert "3.9 times as long as float32; bf16: false" in finding(found, "precision")["text"]
    monkeypatch.setattr("tutelage.recipe.jobs.checking.slower_in_bfloat16", lambda: 3.94)
    assert "precision" not in [each["name"] for each in report(data)["findings"]]
