"""The stage `collect` in a recipe: retries, a pilot, and how it ends early."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import BudgetError, PartialError, UsageError
from tutelage.recipe.load import build_recipe
from tutelage.recipe.run import run_recipe
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, read_records, write_records


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fake server, which lives beside the tests of teachers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    return importlib.import_module("endpoint_server")


@pytest.fixture
def server(fake: Any, tmp_path: Path) -> Iterator[Any]:
    """Ten questions, of which p3 and p7 need a limit of 200 tokens."""
    write_records(tmp_path / "q.parquet", fake.problems(10), Problem)

    def script(number: int, body: dict[str, Any]) -> Any:
        long = body["messages"][-1]["content"] in ("What is 3?", "What is 7?")
        if long and body["max_tokens"] < 200:
            return fake.Say(fake.completion("cut", "length"))
        return fake.Say(fake.completion("It is 1."))

    with fake.serving(script) as running:
        yield running


def teacher(server: Any, **settings: Any) -> dict[str, Any]:
    price = {"prompt": "1", "completion": "2"}
    usual = {"kind": "endpoint", "base_url": server.url, "model": "m", "max_tokens": 100, "price": price}
    return {**usual, **settings}


def collected(tmp_path: Path, **settings: Any) -> tuple[list[Trace], dict[str, Any]]:
    done = run_single(
        "collect", settings, tmp_path / "t.parquet", inputs={"problems": str(tmp_path / "q.parquet")}
    )
    return read_records(tmp_path / "t.parquet", Trace), done["metrics"]


RETRY = {"where": "finish_reason=length", "set": {"max_tokens": 200, "sampling": {"top_p": 0.9}}}


def test_a_retry_buys_the_plain_requests_first_and_then_the_chosen_ones(tmp_path: Path, server: Any) -> None:
    asked = teacher(server, sampling={"temperature": 0.5})
    traces, metrics = collected(tmp_path, teacher=asked, samples=2, retry=RETRY)
    assert len(server.bodies) == 24 and len(traces) == metrics["traces"] == 24
    assert [body["max_tokens"] for body in server.bodies] == [100] * 20 + [200] * 4
    # A block of settings keeps what is not named.
    assert {(body["temperature"], body.get("top_p")) for body in server.bodies[20:]} == {(0.5, 0.9)}
    assert {(t.problem_id, t.sample) for t in traces[20:]} == {("p3", 0), ("p3", 1), ("p7", 0), ("p7", 1)}
    cut = {t.id for t in traces if t.finish_reason == "length"}
    assert {t.supersedes for t in traces[20:]} == cut and len(cut) == 4
    assert metrics["retry"] == {"chosen": 4, "same_settings": 0, "unknown_problem": 0, "new": 4}
    assert metrics["states"]["done"] == 20 and metrics["states"]["truncated"] == 4
    assert (metrics["bought"], metrics["requests"], metrics["dollars"]) == (24, 24, "0.0012")
    again, metrics = collected(tmp_path, teacher=asked, samples=2, retry=RETRY)
    assert again == traces and len(server.bodies) == 24 and (metrics["bought"], metrics["reused"]) == (0, 24)


def test_a_retry_can_choose_among_the_traces_of_another_stage(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text(
        "".join(f'{{"id": "p{n}", "question": "What is {n}?", "answer": "{n}"}}\n' for n in range(10))
    )
    recipe = build_recipe(
        {
            "name": "r",
            "stages": {
                "questions": {"kind": "problems", "train": "q.jsonl", "hold_out": 1},
                "first": {"kind": "collect", "problems": "questions.train", "teacher": teacher(server)},
                "again": {
                    "kind": "collect",
                    "problems": "questions.train",
                    "earlier": "first",
                    "retry": {"where": "state=truncated"},
                    "teacher": teacher(server, max_tokens=200, name="longer"),
                },
                "judged": {"kind": "verify", "problems": "questions.train", "traces": "again"},
            },
        }
    )
    result = run_recipe(recipe, tmp_path / "run", console=None)
    metrics = {job.id: job.metrics for job in result.jobs}
    new = metrics["again"]["retry"]["new"]
    assert len(server.bodies) == 9 + new and 1 <= new <= 2
    traces = read_records(tmp_path / "run/data/again.traces.parquet", Trace)
    assert [t.maker for t in traces] == ["m"] * 9 + ["longer"] * new
    assert metrics["judged"]["traces"] == len(traces) == 9 + new
    # Money is counted once: the dollars of a stage are those of the replies that it asked for.
    assert (metrics["first"]["bought"], metrics["again"]["bought"]) == (9, new)
    assert Decimal(metrics["first"]["dollars"]) == 9 * Decimal("0.00005")
    assert Decimal(metrics["again"]["dollars"]) == new * Decimal("0.00005")


@pytest.mark.parametrize(
    ("retry", "message"),
    [
        ({"where": "finish_reason=length", "set": {"max_token": 1}}, r"retry\.set\.max_token: extra inputs"),
        (
            {"where": "finish_reason=length", "set": {"max_tokens": "x"}},
            r"retry\.set\.max_tokens: input should",
        ),
        ({"where": "colour=red"}, "traces have no field 'colour'"),
    ],
)
def test_a_mistake_in_a_retry_is_found_before_anything_is_bought(
    tmp_path: Path, server: Any, retry: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        collected(tmp_path, teacher=teacher(server), retry=retry)
    assert not server.bodies


def test_a_pilot_is_in_the_metrics_and_its_replies_are_not_bought_twice(
    tmp_path: Path, server: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    _, metrics = collected(tmp_path, teacher=teacher(server), pilot=4)
    assert len(server.bodies) == 10 and metrics["bought"] == 10 and metrics["sent"] == 10
    assert metrics["pilot"]["rows"] == 4 and metrics["pilot"]["left"] == 6
    assert metrics["spent"] == metrics["dollars"] == "0.0005"
    assert "pilot: 4 replies for $0.00020" in capfd.readouterr().err


def test_a_budget_that_ends_in_the_pilot_buys_nothing_more(tmp_path: Path, server: Any) -> None:
    with pytest.raises(BudgetError) as caught:
        collected(tmp_path, teacher=teacher(server, max_tokens=60, budget="0.0006"), pilot=8)
    done = caught.value.done["metrics"]
    assert 0 < done["traces"] == done["states"]["done"] + done["states"]["truncated"] < 8
    assert done["traces"] == len(server.bodies) == len(read_records(tmp_path / "t.parquet", Trace))
    assert list(caught.value.done["outputs"]) == ["traces"]


def test_an_end_in_the_retry_keeps_what_was_collected(tmp_path: Path, fake: Any) -> None:
    write_records(tmp_path / "q.parquet", fake.problems(10), Problem)

    def script(number: int, body: dict[str, Any]) -> Any:
        if body["max_tokens"] == 200:
            return fake.Say({"error": {"message": "no such key"}}, 401)
        return fake.Say(fake.completion("cut", "length"))

    with fake.serving(script) as server:
        first = list(collected(tmp_path, teacher=teacher(server))[0])
        with pytest.raises((PartialError, UsageError), match="refuses the key"):
            collected(tmp_path, teacher=teacher(server), retry=RETRY)
    assert read_records(tmp_path / "t.parquet", Trace) == first
