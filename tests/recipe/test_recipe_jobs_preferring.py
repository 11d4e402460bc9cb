"""The stages pairs and dpo: from rollouts to a model, with a judge behind a real server."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import PartialError, UsageError
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, read_records, write_records
from tutelage.students.lineage import read_training
from tutelage.students.pretrained import load_student
from tutelage.students.template import render_completion, render_prompt
from tutelage.train.pairs import PairSet, read_pairs
from tutelage.train.rollouts import Rollout, write_rollouts


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fake server, which lives beside the tests of teachers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    return importlib.import_module("endpoint_server")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with problems, an untrained student, and six replies to each problem: two right, three wrong
    of which one was cut off, one undecided."""
    folder = tmp_path_factory.mktemp("lab")
    run_single("lab-problems", {"train": 6, "test": 2}, folder / "train.parquet")
    run_single("student", {"source": "tiny", "seed": 3}, folder / "tiny")
    student = load_student(folder / "tiny", device="cpu")
    rollouts = []
    for problem in read_records(folder / "train.parquet", Problem):
        prompt = tuple(render_prompt(student.tokenizer, student.template, problem.question))
        for number in range(6):
            answer = f"Answer: {number}"
            ids = tuple(render_completion(student.tokenizer, student.template, "", answer))
            trace = Trace(
                f"{problem.id}-{number}",
                problem.id,
                number,
                "m",
                answer,
                finish_reason="length" if number == 4 else "stop",
            )
            status: Any = "correct" if number < 2 else "undecided" if number == 5 else "incorrect"
            rollouts.append(Rollout(trace, prompt, ids, (True,) * len(ids), None, status))
    write_rollouts(folder / "r.parquet", rollouts)
    return folder


def paired(lab: Path, out: Path, **settings: Any) -> tuple[dict[str, Any], PairSet]:
    inputs = {"problems": str(lab / "train.parquet"), "rollouts": str(lab / "r.parquet")}
    if model := settings.pop("model", None):
        inputs["model"] = str(model)
    metrics = run_single("pairs", settings, out, inputs=inputs, seed=0)["metrics"]
    return metrics, read_pairs(out)


def test_pairs_of_rollouts_come_with_counts_and_lengths(lab: Path, tmp_path: Path) -> None:
    metrics, found = paired(lab, tmp_path / "p.parquet", per_problem=9)
    assert metrics["pairs"] == len(found.pairs) == 6 * 2 * 2 and metrics["problems"] == 6
    assert metrics["left_out"] == {"undecided": 6, "cut off": 6}
    assert metrics["chosen_tokens_mean"] == metrics["rejected_tokens_mean"] > 0
    assert {p.question for p in read_records(lab / "train.parquet", Problem)} == {
        p.question for p in found.problems.values()
    }
    metrics, _ = paired(lab, tmp_path / "q.parquet", per_problem=9, truncated="rejected", limit=2)
    assert metrics["pairs"] == 2 * 2 * 3 and metrics["rollouts"] == 12


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gap": 0.3}, "gap belongs to method: pivotal; this stage has rollout"),
        ({"both_orders": True}, "both_orders belongs to method: judge"),
        ({"method": "judge"}, "judge .* belongs to method: judge"),
        ({"method": "pivotal", "confirm": 32}, "confirm"),
    ],
)
def test_a_setting_of_another_method_is_refused(
    lab: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        paired(lab, tmp_path / "p.parquet", **settings)


def judge_of(server: Any) -> Any:
    """A judge that likes large numbers."""

    def script(number: int, body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        replies = re.findall(r"<reply-(\d+)-\w+>\nAnswer: (\d)\n</reply-", text)
        entries = [
            {"reply": int(place), "faults": [], "accuracy": 3, "style": 1 + int(digit) // 2, "detail": 3}
            for place, digit in replies
        ]
        nonce = re.search(r'\{"check": "(\w+)"', text)
        assert nonce and len(entries) == 4
        said = json.dumps({"check": nonce[1], "discussion": "", "replies": entries})
        return server.Say(server.completion(f"Well.\n```json\n{said}\n```"))

    return server.serving(script)


def at(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "endpoint", "base_url": url, "model": "j", "max_tokens": 50, **more}


def test_a_judge_is_paid_through_the_ledger_once(lab: Path, server: Any, tmp_path: Path) -> None:
    price = {"prompt": "1", "completion": "1"}
    with judge_of(server) as fake:
        settings = {"method": "judge", "judge": at(fake.url, price=price), "per_problem": 2}
        metrics, found = paired(lab, tmp_path / "p.parquet", **settings)
        assert len(fake.bodies) == metrics["judge"]["replies"] == 6
        assert float(metrics["judge"]["dollars"]) > 0 and metrics["judge"]["model"] == "j"
        assert metrics["left_out"]["looks"] == 6 and metrics["left_out"]["cut off"] == 6
        assert metrics["pairs"] == 12
        for pair in found.pairs:
            good, bad = (int(trace[-1]) for trace in (pair.chosen_trace, pair.rejected_trace))
            assert good // 2 > bad // 2 and pair.method == "judge"
        again, _ = paired(lab, tmp_path / "p.parquet", **{**settings, "by": "accuracy"})
        assert len(fake.bodies) == 6  # the same questions: the replies are in the ledger
        assert again["pairs"] == 0 and again["left_out"]["ties"] == 6 * 6


def test_a_budget_that_is_used_up_ends_the_stage_with_what_there_is(
    lab: Path, server: Any, tmp_path: Path
) -> None:
    price = {"prompt": "0", "completion": "1000"}
    with judge_of(server) as fake, pytest.raises(PartialError, match="the judge stopped early") as stopped:
        judge = at(fake.url, price=price, budget="0.1", concurrency=1)
        paired(lab, tmp_path / "p.parquet", method="judge", judge=judge)
    metrics = stopped.value.done["metrics"]
    assert 0 < len(fake.bodies) < 6 and metrics["pairs"] == len(read_pairs(tmp_path / "p.parquet").pairs) > 0
    assert metrics["left_out"]["looks without a reply"] == 6 - len(fake.bodies)


def test_rollouts_of_other_problems_are_refused(lab: Path, tmp_path: Path) -> None:
    inputs = {"problems": str(tmp_path / "q.parquet"), "rollouts": str(lab / "r.parquet")}
    write_records(tmp_path / "q.parquet", [Problem("p", "?")], Problem)
    with pytest.raises(UsageError, match="which is not among its problems"):
        run_single("pairs", {}, tmp_path / "p.parquet", inputs=inputs, seed=0)
    assert not (tmp_path / "p.parquet").exists()


def preferred(lab: Path, out: Path, pairs: list[Path], **settings: Any) -> dict[str, Any]:
    model = settings.pop("model", lab / "tiny")
    inputs = {"model": str(model), "pairs": [str(each) for each in pairs]}
    settings = {"steps": 2, "batch": 4, "warmup_steps": 0, "learning_rate": 1e-3, **settings}
    metrics = run_single("dpo", settings, out, inputs=inputs, seed=0)["metrics"]
    assert isinstance(metrics, dict)
    return metrics


@pytest.mark.slow
def test_a_model_is_trained_on_pairs_of_several_files(lab: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file, limit in zip(files, (2, 6), strict=True):
        paired(lab, file, per_problem=2, limit=limit)
    metrics = preferred(lab, tmp_path / "m", files)
    assert metrics["examples"] == 2 * 2 + 6 * 2 and metrics["problems"] == 6
    assert metrics["margin"] > 0 and metrics["reward_accuracy"] > 0.5
    lineage = read_training(tmp_path / "m")
    assert lineage.stages[-1]["kind"] == "dpo" and len(lineage.learned_from) == 6
    log = [json.loads(line) for line in next(tmp_path.glob("m*.jsonl")).read_text().splitlines()]
    assert all("rewards/margins" in row for row in log)


@pytest.mark.slow
def test_pairs_that_do_not_fit_are_refused_or_dropped(lab: Path, tmp_path: Path) -> None:
    paired(lab, tmp_path / "a.parquet", per_problem=1)
    longest = sorted(pair.length for pair in read_pairs(tmp_path / "a.parquet").pairs)
    assert longest[0] < longest[-1]
    with pytest.raises(UsageError, match=r"more than max_length .* or set too_long: drop"):
        preferred(lab, tmp_path / "m", [tmp_path / "a.parquet"], max_length=longest[0])
    metrics = preferred(
        lab, tmp_path / "m", [tmp_path / "a.parquet"], max_length=longest[0], too_long="drop", steps=1
    )
    assert metrics["too_long"] == sum(each > longest[0] for each in longest)
    run_single("student", {"source": "tiny", "template": {"thinking": False}}, tmp_path / "other")
    with pytest.raises(UsageError, match="do not begin with this student's prompt"):
        preferred(lab, tmp_path / "n", [tmp_path / "a.parquet"], model=tmp_path / "other")


@pytest.mark.slow
def test_pivotal_tokens_of_the_labs_base_are_found_and_trained_on(tmp_path: Path) -> None:
    """The base writes two or three steps well and more badly, so that some digits decide."""
    world = {"train": 12, "test": 2, "min_steps": 3, "max_steps": 5}
    run_single("lab-problems", world, tmp_path / "train.parquet")
    run_single("student", {"source": "lab-base"}, tmp_path / "base")
    decoding: dict[str, Any] = {
        "policy": {"max_tokens": 60, "answer_reserve": 8, "close_text": "Answer"},
        "max_answer_tokens": 8,
    }
    inputs = {"model": str(tmp_path / "base"), "problems": str(tmp_path / "train.parquet")}
    run_single("rollouts", {"samples": 4, **decoding}, tmp_path / "r.parquet", inputs=inputs, seed=0)
    settings = {"method": "pivotal", "model": tmp_path / "base", "attempts": 2, **decoding}
    metrics, found = paired(tmp_path, tmp_path / "p.parquet", **settings)
    assert metrics["pairs"] > 0 and metrics["continuations"]["continuations"] > 64
    for pair in found.pairs:
        seen = pair.evidence
        assert len(pair.chosen_ids) == len(pair.rejected_ids) == 1 and pair.chosen_ids != pair.rejected_ids
        assert seen["p_rejected"] < seen["p_before"] < seen["p_chosen"] and seen["n"] == 64
        moved = {"chosen": seen["p_chosen"], "rejected": seen["p_rejected"]}[seen["found"]]
        assert abs(moved - seen["p_before"]) >= 0.2
    trained = preferred(tmp_path, tmp_path / "m", [tmp_path / "p.parquet"], model=tmp_path / "base")
    assert trained["chosen_tokens_mean"] == 1
