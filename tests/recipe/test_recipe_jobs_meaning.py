"""The detector `meaning` in the stage curate and in the check of a file (the judge: a real server)."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tutelage.cli import main
from tutelage.errors import BudgetError, UsageError
from tutelage.recipe.contamination import check_file, check_text, meaning_settings
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, write_records

ITEM = "Janet's ducks lay 16 eggs per day. She eats three and sells the others. What does she earn with them?"
QUESTIONS = {
    "copy": ITEM,
    "retold": "With the eggs that her 90 ducks lay per day, but for three she eats, what does Janet earn?",
    "kin": "Of the eggs that her ducks lay per day Janet paints the others, but three she eats. How many?",
    "other": "A train leaves the harbour at noon and needs four hours to the border. How fast is it?",
}
LEAST = 0.4


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fake server, which lives beside the tests of teachers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    return importlib.import_module("endpoint_server")


@pytest.fixture
def serve(server: Any) -> Callable[..., Any]:
    """A server whose judge says that a question about painting is another one."""

    def script(number: int, body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        accept, reject = re.findall(r"^(\S+) if they are", text, re.MULTILINE)
        return server.Say(server.completion(f"So.\n{reject if 'paints' in text else accept}"))

    return lambda other=None: server.serving(other or script)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "q.parquet", [Problem(name, text) for name, text in QUESTIONS.items()], Problem)
    traces = [
        Trace(f"t-{name}", name, 0, "m", "5", f"I think of {name}, one step after another.")
        for name in QUESTIONS
    ]
    write_records(tmp_path / "t.parquet", traces, Trace)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"id": "duck", "question": ITEM}) + "\n")
    rows = [json.dumps({"id": name, "question": text}) for name, text in QUESTIONS.items()]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def at(url: str) -> dict[str, Any]:
    return {"kind": "endpoint", "base_url": url, "model": "j", "max_tokens": 50}


def curated(folder: Path, out: str, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics, and the drops of decontamination by problem."""
    given = {"method": "full", "domains": "own", "against": [str(folder / "bench.jsonl")], **settings}
    inputs = {"problems": [str(folder / "q.parquet")], "traces": [str(folder / "t.parquet")]}
    result = run_single(
        "curate", given, folder / out / "traces.parquet", inputs=inputs, ledger=folder / "ledger.sqlite"
    )
    drops = pq.read_table(result["outputs"]["drops"]).to_pylist()
    document = json.loads(Path(result["outputs"]["curation"]).read_text())
    found = {drop["problem_id"]: drop for drop in drops if drop["stage"] == "decontamination"}
    return {**result["metrics"], "detectors": document["detectors"]}, found


def test_what_a_judge_confirms_is_dropped_with_its_item_and_paid_once(
    folder: Path, serve: Callable[..., Any]
) -> None:
    assert set(curated(folder, "without")[1]) == {"copy"}
    with serve() as server:
        metrics, drops = curated(folder, "with", meaning={"least": LEAST, "judge": at(server.url)})
        # In both orders about the retold question and its kin; not about the copy, or what is far away.
        assert len(server.bodies) == 4
        curated(folder, "again", meaning={"least": LEAST, "judge": at(server.url)})
        assert len(server.bodies) == 4
    assert {name: drop["rule"] for name, drop in drops.items()} == {"copy": "exact", "retold": "meaning"}
    drop = drops["retold"]
    assert (drop["matched_id"], drop["matched_text"], drop["benchmark"]) == ("duck", ITEM, "bench")
    assert (
        drop["reason"].endswith("; a judge found them the same in both orders") and LEAST < drop["score"] < 1
    )
    assert metrics["asked"]["meaning"]["replies"] == 4 and metrics["notes"] == []
    assert metrics["detectors"][-1] == {"detector": "meaning", "hits": 1, "uncheckable": 0}


def test_without_a_judge_the_similarity_decides(folder: Path) -> None:
    metrics, drops = curated(folder, "out", meaning={"least": LEAST})
    assert set(drops) == {"copy", "retold", "kin"} and "asked" not in metrics
    assert drops["kin"]["reason"].endswith("; by similarity alone, no judge was asked")
    assert set(curated(folder, "stricter", meaning={"least": 0.99})[1]) == {"copy"}


def test_what_stays_undecided_is_kept_and_told(folder: Path, serve: Callable[..., Any], server: Any) -> None:
    with serve(lambda number, body: server.Say(server.completion("Who knows?"))) as live:
        metrics, drops = curated(folder, "out", meaning={"least": LEAST, "judge": at(live.url)})
    assert set(drops) == {"copy"} and metrics["problems"] == 3
    assert metrics["notes"] == [
        "meaning: 2 questions near a benchmark's item are undecided and were not dropped (not in the form 2)"
    ]


def test_a_judge_that_cannot_be_asked_to_the_end_stops_the_stage(
    folder: Path, serve: Callable[..., Any], server: Any
) -> None:
    with serve() as live:
        priced = {**at(live.url), "price": {"prompt": "1", "completion": "1"}}
        with pytest.raises(BudgetError):
            curated(folder, "out", meaning={"least": LEAST, "judge": {**priced, "budget": "0.0001"}})
        assert len(live.bodies) < 4
    with (
        serve(lambda number, body: server.Say({"error": "no such key"}, status=401)) as live,
        pytest.raises(UsageError, match="HTTP 401"),
    ):
        curated(folder, "out", meaning={"least": LEAST, "judge": at(live.url)})
    assert not (folder / "out" / "traces.parquet").exists()


def test_meaning_needs_benchmarks_and_settings_that_fit(folder: Path) -> None:
    with pytest.raises(UsageError, match="name some in benchmarks or against"):
        curated(folder, "out", against=[], meaning={})
    with pytest.raises(UsageError, match=r"meaning\.least"):
        curated(folder, "out", meaning={"least": 0})
    with pytest.raises(UsageError, match="nowhere: no such model folder"):
        curated(folder, "out", meaning={"embed": "nowhere"})


def test_a_check_tells_hits_and_what_is_undecided(
    folder: Path, serve: Callable[..., Any], server: Any
) -> None:
    def checked(out: str, **settings: Any) -> dict[str, Any]:
        return check_file(
            str(folder / "rows.jsonl"),
            [str(folder / "bench.jsonl")],
            folder / out,
            meaning={"embed": "words", "least": LEAST, **settings},
        )

    told = checked("alone")
    hits = {
        hit["id"]: (hit["detector"], hit["note"])
        for hit in told["hits"]
        if hit["detector"] in ("exact", "meaning")
    }
    assert hits == {
        "copy": ("exact", ""),
        "retold": ("meaning", "by similarity alone, no judge was asked"),
        "kin": ("meaning", "by similarity alone, no judge was asked"),
    }
    assert told["detectors"]["meaning"] == 2 and told["contaminated"] == 3 and "asked" not in told
    clean = [json.loads(line)["id"] for line in Path(told["outputs"]["clean"]).read_text().splitlines()]
    assert clean == ["other"]
    assert "by similarity alone" in Path(told["outputs"]["page"]).read_text()

    def script(number: int, body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        accept = re.findall(r"^(\S+) if they are", text, re.MULTILINE)[0]
        return server.Say(server.completion("no idea" if "paints" in text else accept))

    with serve(script) as live:
        told = checked("judged", judge=at(live.url))
    assert [hit["id"] for hit in told["hits"] if hit["detector"] == "meaning"] == ["retold"]
    assert [(hit["id"], hit["note"]) for hit in told["partial"] if hit["detector"] == "meaning"] == [
        ("kin", "undecided: not in the form")
    ]
    assert told["asked"]["replies"] == 4
    assert "note: meaning: 1 questions near a benchmark's item are undecided" in check_text(told)


def test_options_of_the_verb(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows, bench, out = (str(folder / name) for name in ("rows.jsonl", "bench.jsonl", "out"))
    words = ["curate", "--check", rows, "--against", bench, "--out", out, "--json"]

    def code(*more: str) -> Any:
        with pytest.raises(SystemExit) as caught:
            main([*words, *more])
        return caught.value.code

    assert code("--meaning", "words", "--meaning-least", str(LEAST)) == 0
    assert json.loads(capfd.readouterr().out)["detectors"]["meaning"] == 2
    for more, said in (
        (["--judge", "openai:m"], "--judge is for --meaning"),
        (["--meaning-least", "0.5"], "--meaning-least is for --meaning"),
        (["--meaning", "words", "--meaning-least", "2"], "--meaning-least 2: it must be"),
        (["--meaning", "words", "--judge", "local:m"], "--judge local:m: write one of"),
        (["--meaning", "words", "--judge-url", "http://x"], "--judge-url is for a judge"),
        (["--meaning", "nowhere"], "nowhere: no such model folder"),
    ):
        assert code(*more) == 2
        assert said in capfd.readouterr().err


def test_options_become_settings() -> None:
    assert meaning_settings(None, None, None, None) is None
    assert meaning_settings("words", None, None, None) == {"embed": "words", "judge": None}
    found = meaning_settings("a/b", 0.7, "openai:m", "http://localhost:1/v1")
    assert found is not None and found["least"] == 0.7
    assert {key: found["judge"][key] for key in ("kind", "base_url", "model")} == {
        "kind": "endpoint",
        "base_url": "http://localhost:1/v1",
        "model": "m",
    }
