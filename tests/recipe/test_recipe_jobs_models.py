"""Jobs that make and measure models, each run on its own with the untrained tiny student."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tutelage.errors import UsageError
from tutelage.lab.products import phrases
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.recipe.jobs.showing import choose_shown
from tutelage.recipe.jobs.sweeping import KEPT
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, Verdict, read_records, write_records
from tutelage.students.pretrained import load_student
from tutelage.students.template import render_completion, render_prompt

CARELESS = {"kind": "lab", "style": "careless", "slip": 0.6}
SHORT = {"max_tokens": 12, "answer_reserve": 4, "close_text": "Answer"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with problems, traces of a careless teacher, their verdicts, and an untrained student."""
    folder = tmp_path_factory.mktemp("lab")
    world = {"train": 24, "test": 12, "min_steps": 2, "max_steps": 4}
    run_single("lab-problems", world, folder / "train.parquet")
    (folder / "train-test.parquet").rename(folder / "test.parquet")
    common = {"problems": str(folder / "train.parquet")}
    run_single("collect", {"teacher": CARELESS, "samples": 3}, folder / "traces.parquet", inputs=common)
    judged = {**common, "traces": str(folder / "traces.parquet")}
    run_single("verify", {}, folder / "verdicts.parquet", inputs=judged)
    run_single("student", {"source": "tiny", "seed": 3}, folder / "tiny")
    return folder


def trained(lab: Path, out: Path, *, verdicts: bool = True, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """The metrics of a training stage on the careless traces."""
    inputs: dict[str, Any] = {"model": str(lab / "tiny"), "problems": [str(lab / "train.parquet")]}
    if settings.pop("traces", True):
        inputs["traces"] = [str(lab / "traces.parquet")]
        if verdicts:
            inputs["verdicts"] = [str(lab / "verdicts.parquet")]
    kind = settings.pop("kind", "sft")
    settings = {"steps": 1, "batch": 8, "warmup_steps": 0, "system": "own", **settings}
    metrics = run_single(kind, settings, out, inputs=inputs, seed=seed)["metrics"]
    assert isinstance(metrics, dict)
    return metrics


def right_per_problem(lab: Path, calls: int) -> Counter[str]:
    traces = {t.id: t for t in read_records(lab / "traces.parquet", Trace) if t.sample < calls}
    verdicts = read_records(lab / "verdicts.parquet", Verdict)
    return Counter(v.problem_id for v in verdicts if v.status == "correct" and v.trace_id in traces)


@pytest.mark.parametrize(("calls", "per_problem"), [(1, 1), (2, 1), (None, 1), (None, 3)])
def test_rejection_keeps_the_first_right_traces_and_counts_every_call(
    lab: Path, tmp_path: Path, calls: int | None, per_problem: int
) -> None:
    metrics = trained(lab, tmp_path / "m", keep="correct", calls=calls, per_problem=per_problem)
    asked = calls or 3
    expected = sum(min(count, per_problem) for count in right_per_problem(lab, asked).values())
    assert metrics["examples"] == expected > 0
    assert metrics["teacher_calls"] == 24 * asked
    (row,) = metrics["funnel"]
    assert (row["kept"], row["kept"] + row["dropped"]) == (expected, 24 * asked)


def test_unfiltered_keeps_wrong_traces_too(lab: Path, tmp_path: Path) -> None:
    metrics = trained(lab, tmp_path / "m", calls=1, verdicts=False)
    assert metrics["examples"] == metrics["teacher_calls"] == 24 > right_per_problem(lab, 1).total()


def test_filtering_without_verdicts_is_refused(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no verdict; verify the traces first"):
        trained(lab, tmp_path / "m", keep="correct", verdicts=False)
    with pytest.raises(UsageError, match="verdicts, keep and mix choose among traces, but there are none"):
        trained(lab, tmp_path / "m", keep="correct", traces=False)
    assert not (tmp_path / "m").exists()


def test_without_traces_the_gold_answers_are_learned_as_the_recipe_writes_them(
    lab: Path, tmp_path: Path
) -> None:
    metrics = trained(lab, tmp_path / "m", traces=False, answer="Answer: {gold}", steps=3)
    assert metrics["teacher_calls"] == 0 and metrics["examples"] == 24 and metrics["epochs"] == 1
    student = load_student(lab / "tiny", device="cpu")
    speak = (student.tokenizer, student.template)
    problems = read_records(lab / "train.parquet", Problem)
    replies = [len(render_completion(*speak, "", f"Answer: {p.gold}")) for p in problems]
    prompts = [len(render_prompt(*speak, p.question)) for p in problems]
    assert metrics["tokens_learned"] == sum(replies)
    assert metrics["tokens_seen"] == sum(replies) + sum(prompts)


def test_a_trained_model_depends_on_its_seed_alone(lab: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        metrics = trained(lab, tmp_path / name, calls=1, seed=seed)
        assert metrics["steps"] == 1 and metrics["losses"]
    a, b, c, start = (load_file(each / "model.safetensors") for each in (*_each(tmp_path), lab / "tiny"))
    assert list(a) == list(start)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    assert any(not torch.equal(a[name], start[name]) for name in a)


def _each(folder: Path) -> list[Path]:
    return [folder / name for name in "abc"]


def test_a_student_keeps_the_template_it_was_saved_with_unless_told(lab: Path, tmp_path: Path) -> None:
    own = {"think_open": "<hm>", "think_close": "</hm>"}
    run_single("student", {"source": "tiny", "template": own}, tmp_path / "own")
    run_single("student", {"source": str(tmp_path / "own")}, tmp_path / "copy")
    assert load_student(tmp_path / "copy", device="cpu").template.think_open == "<hm>"
    run_single("student", {"source": str(tmp_path / "own"), "template": {}}, tmp_path / "told")
    assert load_student(tmp_path / "told", device="cpu").template.think_open == "<think>"
    run_single("student", {"source": "tiny", "seed": 4}, tmp_path / "other")
    other, tiny = (load_file(each / "model.safetensors") for each in (tmp_path / "other", lab / "tiny"))
    assert any(not torch.equal(other[name], tiny[name]) for name in tiny)


def test_traces_that_the_tokenizer_changes_are_refused_or_left_out_and_counted(
    lab: Path, tmp_path: Path
) -> None:
    traces = read_records(lab / "traces.parquet", Trace)
    right = {v.trace_id for v in read_records(lab / "verdicts.parquet", Verdict) if v.status == "correct"}
    broken = next(t for t in traces if t.id in right)
    spelled = replace(broken, answer=f"{broken.answer}</think>{broken.answer}")
    write_records(tmp_path / "t.parquet", [spelled if t is broken else t for t in traces], Trace)
    inputs = {
        "model": str(lab / "tiny"),
        "problems": [str(lab / "train.parquet")],
        "traces": [str(tmp_path / "t.parquet")],
        "verdicts": [str(lab / "verdicts.parquet")],
    }
    told = {"steps": 1, "batch": 8, "system": "own", "per_problem": 3}
    with pytest.raises(UsageError, match=r"1 of \d+ samples do not come back.*keep: faithful"):
        run_single("sft", {**told, "keep": "correct"}, tmp_path / "a", inputs=inputs)
    metrics = run_single("sft", {**told, "keep": "faithful"}, tmp_path / "b", inputs=inputs)["metrics"]
    assert metrics["changed"] == 1 and metrics["examples"] == len(right) - 1


def test_new_weights_have_the_size_asked_for_and_others_cannot(lab: Path, tmp_path: Path) -> None:
    run_single("student", {"source": "tiny", "width": 64, "layers": 2}, tmp_path / "small")
    config = load_student(tmp_path / "small", device="cpu").model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 2)
    with pytest.raises(UsageError, match=r"width, layers.* are of source: tiny"):
        run_single("student", {"source": str(lab / "tiny"), "width": 64}, tmp_path / "other")


def evaluated(lab: Path, out: Path, **settings: Any) -> dict[str, Any]:
    inputs = {"model": str(lab / "tiny"), "problems": str(lab / "test.parquet")}
    settings = {"arm": "a", "policy": SHORT, "max_answer_tokens": 4, **settings}
    metrics = run_single("evaluate", settings, out, inputs=inputs)["metrics"]
    assert isinstance(metrics, dict)
    return metrics


def test_an_evaluation_keeps_its_numbers_traces_and_verdicts(lab: Path, tmp_path: Path) -> None:
    metrics = evaluated(lab, tmp_path / "e", samples=2, sampling={"temperature": 1.0})
    assert json.loads((tmp_path / "e/evaluation.json").read_text()) == metrics
    traces = read_records(tmp_path / "e/traces.parquet", Trace)
    verdicts = read_records(tmp_path / "e/verdicts.parquet", Verdict)
    assert metrics["n"] == 12 and metrics["samples"] == 2 and len(traces) == len(verdicts) == 24
    assert metrics["accuracy"] == pytest.approx(sum(v.status == "correct" for v in verdicts) / 24)
    low, high = metrics["ci95"]
    assert 0 <= low <= metrics["accuracy"] <= high <= 1 and low < high
    assert all((trace.thinking_tokens or 0) <= 12 for trace in traces)
    assert all(trace.answer.startswith("Answer") for trace in traces if trace.closed_by == "budget")
    assert sum(metrics["closed_by"].values()) == sum(metrics["finished"].values()) == 24
    assert metrics["device"]


def test_an_arm_can_be_asked_without_thinking(lab: Path, tmp_path: Path) -> None:
    metrics = evaluated(lab, tmp_path / "e", thinking=False, policy={})
    assert metrics["thinking_tokens_mean"] == 0
    assert not any(trace.thinking for trace in read_records(tmp_path / "e/traces.parquet", Trace))


SWEEP: dict[str, Any] = {
    "arm": "a",
    "budgets": [0, 4],
    "waits": [0, 1, 2],
    "wait_strings": [". Wait", ". Hmm", None],
    "minimums": [6],
    "votes": [1, 2],
    "vote_samples": 2,
    "vote_temperature": 0.7,
    "max_thinking": 12,
    "close_text": "Answer",
    "max_answer_tokens": 4,
}


def swept(lab: Path, out: Path, **settings: Any) -> dict[str, Any]:
    inputs = {"model": str(lab / "tiny"), "problems": str(lab / "test.parquet")}
    metrics = run_single("sweep", {**SWEEP, **settings}, out, inputs=inputs)["metrics"]
    assert isinstance(metrics, dict)
    return metrics


def test_a_sweep_has_a_point_for_every_setting_over_the_same_problems(lab: Path, tmp_path: Path) -> None:
    metrics = swept(lab, tmp_path / "s")
    rows = json.loads((tmp_path / "s/curve.json").read_text())
    methods = Counter(row["method"] for row in rows)
    assert methods == {"natural": 2, "budget": 2, "wait": 6, "suppress": 3, "vote": 2}
    assert all(row["n"] == 12 and len(row["ci95"]) == 2 and row["arm"] == "a" for row in rows)
    assert [row["thinking_tokens_mean"] for row in rows if row["budget"] == 0] == [0.0]
    assert metrics["points"] == len(rows) and metrics["problems"] == 12 and metrics["decoded"] > 0
    assert metrics["unforced"]["accuracy"] == rows[0]["accuracy"] <= metrics["highest"]["accuracy"]
    shown = sorted((tmp_path / "s/shown").iterdir())
    assert len(shown) == 9  # each wait and suppressed close, for the reader of traces
    assert {(folder / "label.txt").read_text() for folder in shown} >= {
        "a, 2 × “. Hmm”",
        "a, 1 closes masked",
    }
    assert len(read_records(shown[0] / "traces.parquet", Trace)) == min(12, KEPT)
    with pytest.raises(UsageError, match="votes: 3 is more than the 2 samples"):
        swept(lab, tmp_path / "t", votes=[3])
    with pytest.raises(UsageError, match="methods: there is no 'magic'"):
        swept(lab, tmp_path / "t", methods=["magic:3"])


def test_a_sweep_leaves_points_replies_lines_and_a_page_that_agree(lab: Path, tmp_path: Path) -> None:
    own = {"samples": 2, "temperature": 0.8, "vote_samples": None, "vote_temperature": None}
    swept(lab, tmp_path / "s", **own, methods=["rejection:8", "class-conditional:short"])
    rows = json.loads((tmp_path / "s/curve.json").read_text())
    points = pq.read_table(tmp_path / "s/points.parquet").to_pylist()
    assert [point["setting"] for point in points] == [row["setting"] for row in rows]
    assert [json.loads(point["ci95"]) for point in points] == [row["ci95"] for row in rows]
    asked = {point["setting"]: json.loads(point["asked"]) for point in points}
    assert asked["rejection: 8"] == 8 and asked["class-conditional: short"] == "short"
    replies = pq.read_table(tmp_path / "s/replies.parquet").to_pylist()
    for number, row in enumerate(rows):
        mine = [reply for reply in replies if reply["point"] == number]
        assert len(mine) == (0 if row["method"] == "vote" else 12 * 2)
        if mine:
            assert row["accuracy"] == pytest.approx(sum(reply["correct"] for reply in mine) / 24)
            used = sum(reply["thinking_sampled"] + reply["thinking_forced"] for reply in mine)
            assert row["thinking_tokens_mean"] == pytest.approx(used / 24)
            assert Counter(r["closed_by"] for r in mine if r["closed_by"]) == row["closed_by"]
            assert row["replies"] == 24
            assert {(r["problem_id"], r["sample"]) for r in mine} == {
                (reply["problem_id"], sample) for reply in replies for sample in (0, 1)
            }
    analysis = json.loads((tmp_path / "s/analysis.json").read_text())
    assert {"cut short", "wait “. Wait”", "end suppressed"} <= {line["line"] for line in analysis["lines"]}
    page = (tmp_path / "s/page.html").read_text()
    assert page.startswith("<!doctype html>") and "Whole lines" in page and "majority of 2" in page


def test_a_sweep_of_a_student_without_thinking_is_refused(lab: Path, tmp_path: Path) -> None:
    run_single("student", {"source": "tiny", "template": {"thinking": False}}, tmp_path / "plain")
    inputs = {"model": str(tmp_path / "plain"), "problems": str(lab / "test.parquet")}
    with pytest.raises(UsageError, match="there is nothing to sweep"):
        run_single("sweep", {"arm": "a"}, tmp_path / "s", inputs=inputs)


def arm(folder: Path, statuses: str) -> str:
    """An evaluation made by hand: `r` right, `w` wrong, one letter per problem."""
    folder.mkdir()
    traces = [Trace(f"{folder.name}{n}", f"p{n}", 0, folder.name, "") for n in range(len(statuses))]
    verdicts = [
        Verdict(t.id, t.problem_id, "correct" if letter == "r" else "incorrect", "", "number")
        for t, letter in zip(traces, statuses, strict=True)
    ]
    write_records(folder / "traces.parquet", traces, Trace)
    write_records(folder / "verdicts.parquet", verdicts, Verdict)
    return f"file:{folder}"


def test_a_comparison_is_paired_and_a_minus_b(tmp_path: Path) -> None:
    evaluations = {
        "good": arm(tmp_path / "good", "r" * 18 + "w" * 2),
        "bad": arm(tmp_path / "bad", "r" * 6 + "w" * 14),
    }
    settings = {"evaluations": evaluations, "pairs": [["good", "bad"], ["bad", "good"]]}
    run_single("compare", settings, tmp_path / "c.json")
    first, second = json.loads((tmp_path / "c.json").read_text())
    assert (first["a"], first["b"], first["n"]) == ("good", "bad", 20)
    assert first["difference"] == pytest.approx(0.6) == -second["difference"]
    assert 0 < first["ci95"][0] < 0.6 < first["ci95"][1] and second["ci95"][1] < 0
    assert first["p"] <= first["p_holm"] <= 2 * first["p"]
    with pytest.raises(UsageError, match="pairs name 'best', which is not among its evaluations"):
        run_single("compare", {**settings, "pairs": [["best", "bad"]]}, tmp_path / "d.json")


def test_the_reader_shows_problems_evenly_over_difficulties() -> None:
    problems = [
        Problem(f"{level}-{n}", "?", metadata={"difficulty": level}) for level in (3, 2) for n in range(9)
    ]
    assert choose_shown(problems, 5) == ["2-0", "3-0", "2-1", "3-1", "2-2"]
    assert len(choose_shown(problems, 99)) == 18
    plain = [Problem(f"p{n}", "?") for n in range(3)]
    assert choose_shown([*problems, *plain], 4) == ["p0", "2-0", "3-0", "p1"]
    gym = replace(plain[0], metadata={"difficulty": {"min_terms": [2, 6]}})  # as reasoning-gym writes it
    assert choose_shown([*problems, gym], 2) == ["p0", "2-0"]


def test_the_tokenizer_of_the_student_is_that_of_the_lab(lab: Path) -> None:
    assert load_student(lab / "tiny", device="cpu").tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_new_weights_have_the_loops_positions_and_words_that_are_asked_for(tmp_path: Path) -> None:
    settings = {"source": "tiny", "world": "products", "rope_base": 100.0, "width": 32}
    run_single("student", {**settings, "recurrent": {"mean": 3, "limit": 7}}, tmp_path / "loops")
    run_single("student", {**settings, "layers": 2}, tmp_path / "fixed")
    loops, fixed = (load_student(tmp_path / name, device="cpu") for name in ("loops", "fixed"))
    assert (loops.model.config.mean_recurrence, loops.model.config.max_recurrence) == (3, 7)
    assert loops.model.config.num_hidden_layers == 1 and fixed.model.config.num_hidden_layers == 2
    assert fixed.model.config.no_rope_layers == [1, 1]
    assert loops.model.config.rope_theta == fixed.model.config.rope_parameters["rope_theta"] == 100.0
    assert (
        loops.tokenizer.get_vocab() == fixed.tokenizer.get_vocab() == build_tokenizer(phrases()).get_vocab()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "lab-base", "rope_base": 100.0}, "are of source: tiny"),
        ({"source": "lab-base", "recurrent": {}}, "are of source: tiny"),
        ({"source": "tiny", "layers": 2, "recurrent": {}}, "layers and recurrent exclude each other"),
        ({"source": "tiny", "recurrent": {"core": 0}}, "core"),
        ({"source": "tiny", "recurrent": {"mean": 0}}, "mean"),
    ],
)
def test_shapes_of_new_weights_that_cannot_be_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_single("student", settings, tmp_path / "model")


def test_fine_tuning_learns_prefixes_where_told(tmp_path: Path) -> None:
    world = {"train": 8, "test": 2, "min_steps": 5, "max_steps": 5}
    run_single("lab-products", world, tmp_path / "train.parquet")
    start = {"source": "tiny", "world": "products", "width": 32, "template": {"thinking": False}}
    run_single("student", {**start, "recurrent": {"mean": 2}}, tmp_path / "start")
    inputs = {"model": str(tmp_path / "start"), "problems": [str(tmp_path / "train.parquet")]}
    usual = {"steps": 1, "batch": 8, "warmup_steps": 0, "system": "none", "answer": "{gold}"}
    learned = {
        loss_on: run_single("sft", {**usual, "loss_on": loss_on}, tmp_path / loss_on, inputs=inputs)[
            "metrics"
        ]
        for loss_on in ("reply", "prefixes")
    }
    # Eight rows: answer and end of turn each; with prefixes also a product after each of five letters.
    assert learned["reply"]["tokens_learned"] == 8 * 2
    assert learned["prefixes"]["tokens_learned"] == 8 * (2 + 5)
