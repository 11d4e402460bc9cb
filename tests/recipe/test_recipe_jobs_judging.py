"""The stage verify: its counts, and a judge behind a real server, paid through the ledger."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import PartialError, UsageError
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, Verdict, read_records, write_records

ANSWERS = ["It is 3.", "It is 4.", "three", "several: 3 / 1 / 1", "about 3 / 1 / 1 or so"]
"""Correct, incorrect, incorrect (no number), and two that the rule leaves undecided; the gold answer is 3."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fake server, which lives beside the tests of teachers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    return importlib.import_module("endpoint_server")


def prepared(
    folder: Path, answers: list[str], gold: str | None = "3", kind: str = "number"
) -> dict[str, str]:
    problem = Problem("p", "What is 1+2?", gold, kind)
    write_records(folder / "q.parquet", [problem], Problem)
    traces = [Trace(f"t{n}", "p", n, "m", answer) for n, answer in enumerate(answers)]
    write_records(folder / "t.parquet", traces, Trace)
    return {"problems": str(folder / "q.parquet"), "traces": str(folder / "t.parquet")}


def judged(folder: Path, **settings: Any) -> tuple[dict[str, Any], list[Verdict]]:
    inputs = {"problems": str(folder / "q.parquet"), "traces": str(folder / "t.parquet")}
    result = run_single("verify", {"seconds": 60.0, **settings}, folder / "v.parquet", inputs=inputs)
    return result["metrics"], read_records(folder / "v.parquet", Verdict)


def labels_in(body: dict[str, Any]) -> tuple[str, str]:
    text = body["messages"][-1]["content"]
    return tuple(re.findall(r"^(\S+) if they", text, re.MULTILINE))  # type: ignore[return-value]


@pytest.fixture
def serve(server: Any) -> Callable[..., Any]:
    """A server whose judge says `same` of every answer with a 3 or the word in it."""

    def script(number: int, body: dict[str, Any]) -> Any:
        shown = re.search(r"<student-\w+>\n(.*?)\n</student", body["messages"][-1]["content"], re.DOTALL)
        assert shown
        same = "3" in shown[1] or "three" in shown[1]
        return server.Say(server.completion(f"I think.\n{labels_in(body)[0 if same else 1]}"))

    return lambda other=None: server.serving(other or script)


def at(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "endpoint", "base_url": url, "model": "j", "max_tokens": 50, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    prepared(tmp_path, ANSWERS)
    yield tmp_path


def test_counts_and_reasons(folder: Path) -> None:
    metrics, verdicts = judged(folder)
    assert [v.status for v in verdicts] == ["correct", "incorrect", "incorrect", "undecided", "undecided"]
    assert {name: metrics[name] for name in ("traces", "correct", "incorrect", "undecided")} == {
        "traces": 5,
        "correct": 1,
        "incorrect": 2,
        "undecided": 2,
    }
    assert sum(metrics["undecided_reasons"].values()) == 2 and metrics["methods"] == {"number": 5}


def test_a_tolerance_is_for_problems_that_set_none(tmp_path: Path) -> None:
    problems = [Problem("a", "q", "100"), Problem("b", "q", "100", metadata={"tolerance": 0.0001})]
    write_records(tmp_path / "q.parquet", problems, Problem)
    write_records(tmp_path / "t.parquet", [Trace(p.id, p.id, 0, "m", "101") for p in problems], Trace)
    assert [v.status for v in judged(tmp_path)[1]] == ["incorrect", "incorrect"]
    assert [v.status for v in judged(tmp_path, tolerance=0.05)[1]] == ["correct", "incorrect"]


def test_the_judge_decides_what_the_rules_did_not_and_is_paid_once(
    folder: Path, serve: Callable[..., Any]
) -> None:
    with serve() as server:
        metrics, verdicts = judged(folder, judge=at(server.url, price={"prompt": "1", "completion": "1"}))
        assert [v.status for v in verdicts] == ["correct", "incorrect", "incorrect", "correct", "correct"]
        assert [v.method for v in verdicts[3:]] == ["judge", "judge"]
        assert metrics["judge"] == {
            "judge": {"looks": 2, "correct": 2, "incorrect": 0, "no_verdict": 0},
            "model": "j",
            "replies": 2,
            "dollars": "0.00006",
        }
        assert len(server.bodies) == 2
        judged(folder, judge=at(server.url))
        metrics, verdicts = judged(folder, judge=at(server.url), second_look=True)
        assert len(server.bodies) == 4  # only the two second looks are new
    assert verdicts[2].status == "correct" and verdicts[2].method == "judge-second-look"
    assert verdicts[1].status == "incorrect" and verdicts[1].method == "judge-second-look"
    assert metrics["judge"]["judge-second-look"] == {
        "looks": 2,
        "correct": 1,
        "incorrect": 1,
        "no_verdict": 0,
    }
    assert metrics["methods"] == {"judge": 2, "judge-second-look": 2, "number": 1}
    assert metrics["judge"]["dollars"] is None  # no price: unknown, not 0


def test_a_budget_that_is_used_up_leaves_the_rest_undecided(folder: Path, serve: Callable[..., Any]) -> None:
    prepared(folder, [f"{n} / 3 / 1" for n in range(1, 9)])
    price = {"prompt": "0", "completion": "1000"}  # 0.05 dollars reserved, 0.02 paid for each request
    with serve() as server, pytest.raises(PartialError, match="the judge stopped early") as stopped:
        judged(folder, judge=at(server.url, price=price, budget="0.1", concurrency=1))
    verdicts = read_records(folder / "v.parquet", Verdict)
    statuses = [v.status for v in verdicts]
    assert 0 < statuses.count("correct") < 8 and statuses.count("correct") == len(server.bodies)
    left = [v for v in verdicts if v.status == "undecided"]
    assert all("the judge gave no verdict: " in v.reason and "budget" in v.reason for v in left)
    assert stopped.value.done["metrics"]["undecided"] == len(left)
    assert stopped.value.done["outputs"] == {"verdicts": str(folder / "v.parquet")}


@pytest.mark.parametrize(
    ("content", "finish", "reason"),
    [
        ("VERDICT: CORRECT", "stop", "the judge did not use the form"),
        ("INCORRECT", "stop", "the judge did not use the form"),
        ("{accept}", "length", "its reply was cut at the token limit"),
        ("", "stop", "the judge gave no verdict"),
    ],
)
def test_what_is_no_verdict(
    folder: Path, server: Any, serve: Callable[..., Any], content: str, finish: str, reason: str
) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        said = content.format(accept=labels_in(body)[0])
        return server.Say(server.completion(said, finish))

    with serve(script) as fake:
        metrics, verdicts = judged(folder, judge=at(fake.url))
    assert [v.status for v in verdicts[3:]] == ["undecided", "undecided"]
    assert all(reason in v.reason and "the rule said: " in v.reason for v in verdicts[3:])
    assert metrics["judge"]["judge"]["no_verdict"] == 2 and metrics["methods"] == {"number": 5}


def test_a_refused_key_stops_with_one_line(folder: Path, server: Any, serve: Callable[..., Any]) -> None:
    with (
        serve(lambda *_: server.Say({"error": {"message": "bad key"}}, status=401)) as fake,
        pytest.raises(UsageError, match="401") as refused,
    ):
        judged(folder, judge=at(fake.url))
    assert "\n" not in str(refused.value) and not (folder / "v.parquet").exists()


def test_settings_that_cannot_work_are_refused_before_a_verdict(folder: Path) -> None:
    with pytest.raises(UsageError, match="second_look needs a judge"):
        judged(folder, second_look=True)
    with pytest.raises(UsageError, match="budget: a cap needs"):
        judged(folder, judge=at("http://127.0.0.1:1/v1", budget="1"))
    assert not (folder / "v.parquet").exists()


def test_agreement_shows_the_judge_everything_and_changes_no_verdict(
    folder: Path, serve: Callable[..., Any]
) -> None:
    with serve() as server:
        metrics, verdicts = judged(folder, judge=at(server.url), agreement=True)
        assert len(server.bodies) == 5
    assert [v.status for v in verdicts] == ["correct", "incorrect", "incorrect", "correct", "correct"]
    found = metrics["agreement"]
    assert found["judges"] == ["rule", "second parser", "judge"] and found["traces"] == 5
    assert sum(row["traces"] for row in found["table"]) == 5
    pairs = {tuple(pair["judges"]): (pair["agree"], pair["decided_by_both"]) for pair in found["pairs"]}
    assert pairs["rule", "judge"] == (2, 3)
    assert "three" in json.dumps(found["listed"]) or found["disagreements"] == len(found["listed"])
    metrics, _ = judged(folder, agreement=True)
    assert metrics["agreement"]["judges"] == ["rule", "second parser"] and "judge" not in metrics


def test_verdicts_as_lines_of_json(folder: Path) -> None:
    inputs = {"problems": str(folder / "q.parquet"), "traces": str(folder / "t.parquet")}
    run_single("verify", {}, folder / "v.jsonl", inputs=inputs)
    rows = [json.loads(line) for line in (folder / "v.jsonl").read_text().splitlines()]
    assert [row["trace_id"] for row in rows] == ["t0", "t1", "t2", "t3", "t4"]
    assert rows[0].keys() == set(Verdict.__dataclass_fields__)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_gives_the_same_verdicts(ray_cluster: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text("def check(problem, trace):\n    return '3' in trace.answer\n")
    for kind in ("number", f"{tmp_path}/check.py:check"):
        prepared(folder, ANSWERS, kind=kind)
        local, here = judged(folder)
        metrics, verdicts = judged(folder, engine="ray", workers=2)
        assert metrics == local and metrics["correct"] > 0

        def plain(found: list[Verdict]) -> list[tuple[str, str, str]]:
            return [(v.trace_id, v.status, v.reason) for v in found]

        assert plain(verdicts) == plain(here)
