"""`tutelage curate` through the whole program: choose, check, and say why."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tutelage.cli import main
from tutelage.curate.evidence import read_drops
from tutelage.records import Problem, Trace, Verdict, read_records, write_records

CURATE = [sys.executable, "-m", "tutelage", "curate"]
NAMES = "river stone market garden teacher ladder music engine pocket winter bridge candle letter harbor"


def text(name: Any, size: int) -> str:
    draw = random.Random(f"text {name}")
    return " ".join(draw.choices(NAMES.split(), k=size))


def row(number: int, size: int = 0) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "question": f"{text(number, 20)}, how many are {number}?",
        "thinking": f"{text((number, 'thinking'), size or 10 + number % 30)}, so it is {number}.",
        "answer": str(number),
        "gold": str(number),
        "domain": ("sums", "sets", "graphs")[number % 3],
        "correct": number % 4 != 0,
    }


def lines(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    return name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recorded pool of 24 rows and a benchmark with one of its questions; also the current folder."""
    monkeypatch.chdir(tmp_path)
    lines("pool.jsonl", *map(row, range(24)))
    lines(
        "bench.jsonl", {"id": "b1", "question": row(5)["question"].upper()}, {"id": "b2", "question": "1+1?"}
    )
    return tmp_path


class Caller:
    """The verb, called in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def text(self, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["curate", *arguments])
        out, err = self.capfd.readouterr()
        assert "Traceback" not in err, err
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    def json(self, *arguments: str) -> dict[str, Any]:
        code, out, err = self.text(*arguments, "--json")
        assert code == 0, err
        document = json.loads(out)
        assert isinstance(document, dict)
        return document

    def refused(self, *arguments: str) -> str:
        code, out, err = self.text(*arguments)
        last = err.strip().splitlines()[-1]
        assert code == 2 and out == "" and last.startswith("error: "), (code, err)
        return last.removeprefix("error: ")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Caller:
    return Caller(capfd)


def chosen(name: str) -> list[str]:
    return [each.id for each in read_records(Path(name) / "traces.parquet", Trace)]


# --- choosing ---


def test_a_recorded_pool_from_end_to_end(folder: Path, call: Caller) -> None:
    told = call.json(
        "--traces",
        "pool.jsonl",
        "--target",
        "6",
        "--keep",
        "correct",
        "--against",
        "bench.jsonl",
        "--out",
        "o",
    )
    assert list(told) == ["method", "target", "seed", "kept", "problems", "stages", "notes", "outputs"]
    assert (told["method"], told["target"], told["seed"], told["kept"]) == ("s1", 6, 0, 6)
    assert told["problems"] == 6 and told["notes"] == []
    assert [set(each) for each in told["stages"]] == [{"stage", "kept", "dropped", "reasons"}] * 5
    found = {each["stage"]: each["reasons"] for each in told["stages"]}
    assert found == {
        "quality": {},
        "decontamination": {"exact": 1},
        "duplicates": {},
        "traces": {"incorrect": 6},
        "selection": {"not-chosen": 11},
    }
    places = {name: str(folder / "o" / file) for name, file in (
        ("traces", "traces.parquet"), ("problems", "problems.parquet"), ("drops", "drops.parquet"),
        ("curation", "curation.json"), ("page", "report.html"),
    )}  # fmt: skip
    assert told["outputs"] == places and all(Path(each).is_file() for each in places.values())
    ids = chosen("o")
    assert len(ids) == 6 and all(int(name[1:]) % 4 for name in ids)
    assert sorted([*ids, *(each.record_id for each in read_drops(Path("o/drops.parquet")))]) == sorted(
        f"q{n}" for n in range(24)
    )
    assert {each.domain for each in read_records(Path("o/problems.parquet"), Problem)} == {
        "sums", "sets", "graphs",
    }  # fmt: skip
    # The same command again gives the same; another seed or method another choice.
    again = ["--traces", "pool.jsonl", "--target", "6", "--keep", "correct", "--against", "bench.jsonl"]
    assert call.json(*again, "--out", "o")["stages"] == told["stages"] and chosen("o") == ids
    assert call.json(*again, "--out", "p", "--seed", "1")["seed"] == 1 and chosen("p") != ids
    assert call.json(*again, "--out", "p", "--method", "longest")["method"] == "longest"
    assert call.json(*again, "--out", "p", "--workers", "3")["kept"] == 6 and chosen("p") == ids


def test_text_for_people(folder: Path, call: Caller) -> None:
    code, out, err = call.text("--traces", "pool.jsonl", "--target", "99", "--out", "o")
    assert code == 0 and "24 kept" in out and "quality" in out and f"page: {folder}/o/report.html" in out
    assert "note: 24 records are left, fewer than the target 99: all of them were kept" in out
    assert "curate starts" in err
    code, out, _ = call.text(
        "--traces", "pool.jsonl", "--against", "bench.jsonl", "--out", "o", "--target", "3"
    )
    assert "1 dropped: exact 1" in out and "20 dropped: not-chosen 20" in out


def test_our_own_traces_with_verdicts_and_settings(folder: Path, call: Caller) -> None:
    write_records(Path("d/problems.parquet"), [Problem("p", "How many?", "1", domain="sums")], Problem)
    write_records(Path("d/traces.parquet"), [Trace(f"t{n}", "p", n, "m", f"{n}") for n in range(3)], Trace)
    verdicts = [Verdict(f"t{n}", "p", "correct" if n else "incorrect", "", "number") for n in range(3)]
    write_records(Path("d/v.parquet"), verdicts, Verdict)
    usual = ["--traces", "d/traces.parquet", "--out", "o", "--keep", "correct", "--verdicts", "d/v.parquet"]
    assert call.json(*usual)["kept"] == 1 and chosen("o") == ["t1"]
    assert call.json(*usual, "--set", "per_problem=2")["kept"] == 2 and chosen("o") == ["t1", "t2"]
    Path("d/problems.parquet").rename("elsewhere.parquet")
    assert "--problems FILE" in call.refused(*usual)
    assert call.json(*usual, "--problems", "elsewhere.parquet")["kept"] == 1


def test_columns_say_what_is_what(folder: Path, call: Caller) -> None:
    lines("f.jsonl", *({"frage": each["question"], "antwort": each["answer"]} for each in map(row, range(5))))
    given = ["--traces", "f.jsonl", "--out", "o", "--column", "frage", "--set", "domains=own"]
    assert call.json(*given, "--column", "answer=antwort")["kept"] == 5
    assert {each.answer for each in read_records(Path("o/traces.parquet"), Trace)} == set("01234")
    assert "no column 'farge'; did you mean 'frage'?" in call.refused(
        "--traces", "f.jsonl", "--out", "o", "--column", "farge", "--column", "answer=antwort"
    )


def test_nothing_of_the_user_s_is_overwritten(folder: Path, call: Caller) -> None:
    call.json("--traces", "pool.jsonl", "--out", "o")
    before = {each.name: each.read_bytes() for each in Path("o").iterdir()}
    for given in (
        ["--traces", "o/traces.parquet", "--out", "o"],
        ["--traces", "pool.jsonl", "--out", "o", "--verdicts", "o/drops.parquet"],
        ["--traces", "./o/../o/traces.parquet", "--out", str(folder / "o"), "--target", "1"],
    ):
        assert "would be overwritten; give another folder" in call.refused(*given)
    assert before == {each.name: each.read_bytes() for each in Path("o").iterdir()}
    assert call.json("--traces", "o/traces.parquet", "--out", "smaller", "--target", "2")["kept"] == 2
    Path("clean.jsonl").write_bytes(Path("pool.jsonl").read_bytes())
    assert "would be overwritten" in call.refused(
        "--check", "clean.jsonl", "--against", "bench.jsonl", "--out", "."
    )


# --- solvers ---


def tries(name: str, solved: set[int], count: int = 24) -> str:
    said = [
        Verdict(f"s{n}", f"q{n}", "correct" if n in solved else "incorrect", "", "number")
        for n in range(count)
    ]
    write_records(Path(name), said, Verdict)
    return name


def test_solvers_from_files(folder: Path, call: Caller) -> None:
    tries("weak.parquet", set(range(10)))
    tries("my.strong-1.parquet", {10, 11})
    usual = ["--traces", "pool.jsonl", "--out", "o", "--solver", "weak=weak.parquet"]
    told = call.json(*usual, "--solver", "openai:strong 1=my.strong-1.parquet")
    assert {each["stage"]: each["reasons"] for each in told["stages"]}["difficulty"] == {"solved": 12}
    drops = {each.record_id: each for each in read_drops(Path("o/drops.parquet"))}
    assert drops["q11"].reason == "openai:strong 1 solved 1 of 1" and sorted(chosen("o"))[0] == "q12"
    told = call.json(*usual, "--method", "random", "--target", "3")
    assert told["notes"] == ["the method random takes no account of solvers; they dropped nothing"]
    tries("none.parquet", set())
    assert "the solver 'none' solved none" in call.refused(*usual, "--solver", "none=none.parquet")
    tries("some.parquet", {1}, 5)
    assert "19 of 24 problems were not attempted" in call.refused(
        "--traces", "pool.jsonl", "--out", "o", "--solver", "some=some.parquet"
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fake server, which lives beside the tests of teachers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    return importlib.import_module("endpoint_server")


def test_a_solver_is_asked_once_and_only_about_what_the_cheap_stages_left(
    fake: Any, folder: Path, call: Caller
) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        asked = int(body["messages"][-1]["content"].rstrip("?").split()[-1])
        return fake.Say(fake.completion(f"It is {asked if asked < 12 else -1}."))

    lines("pool.jsonl", *map(row, range(24)), {**row(0), "id": "again"}, {**row(30), "answer": ""})
    with fake.serving(script) as server:
        given = ["--traces", "pool.jsonl", "--out", "o", "--solver", "openai:m", "--solver-url", server.url]
        given += ["--against", "bench.jsonl"]
        told = call.json(*given, "--target", "4")
        reasons = {each["stage"]: each["reasons"] for each in told["stages"]}
        assert reasons["quality"] == {"missing": 1} and reasons["duplicates"] == {"duplicate": 1}
        assert reasons["difficulty"] == {"solved": 11}  # 0 to 11, of which 5 is in the benchmark
        assert len(server.bodies) == 23 and len(chosen("o")) == 4
        assert all(int(name[1:]) >= 12 for name in chosen("o"))
        again = call.json(*given, "--target", "7", "--seed", "3", "--keep", "correct")
        assert again["kept"] == 7 and len(server.bodies) == 23
        # Others of the same server are other solvers; more attempts are bought, the first are kept.
        call.json(*given, "--attempts", "2")
        assert len(server.bodies) == 46
        known = tries("weak.parquet", {20})
        told = call.json(*given, "--solver", f"weak={known}")
        assert len(server.bodies) == 46
        assert {each["stage"]: each["reasons"] for each in told["stages"]}["difficulty"] == {"solved": 12}
        assert "takes no account of solvers" in call.refused(*given, "--method", "random")
        assert "takes no account of solvers" in call.refused(*given, "--set", "method=longest")
    assert len(server.bodies) == 46


def test_what_costs_money_later_is_not_asked_twice(fake: Any, folder: Path, call: Caller) -> None:
    """The labeller comes after the solvers: it is asked once, and about what they leave."""
    asked: Counter[str] = Counter()

    def script(number: int, body: dict[str, Any]) -> Any:
        prompt = body["messages"][-1]["content"]
        label = "You sort questions by subject" in prompt
        asked["label" if label else "solve"] += 1
        solved = prompt.endswith(" 3?")
        return fake.Say(fake.completion("05" if label else "3" if solved else "no idea"))

    with fake.serving(script) as server:
        labeller = f"{{kind: endpoint, base_url: '{server.url}', model: l}}"
        given = ["--traces", "pool.jsonl", "--out", "o", "--solver", "openai:m", "--solver-url", server.url]
        given += ["--set", f"labeller={labeller}", "--set", "domains=llm", "--target", "4"]
        assert call.json(*given)["kept"] == 4
        assert asked == {"solve": 24, "label": 23}
        call.json(*given)
    assert asked == {"solve": 24, "label": 23}


def test_a_solver_that_cannot_be_asked_is_one_line(fake: Any, folder: Path, call: Caller) -> None:
    usual = ["--traces", "pool.jsonl", "--out", "o"]
    with fake.serving(lambda *_: fake.Say({"error": {"message": "bad key"}}, 401)) as server:
        line = call.refused(*usual, "--solver", "openai:m", "--solver-url", server.url)
    assert "401" in line and "bad key" in line and not Path("o/traces.parquet").exists()


# --- checking ---


def check(call: Caller, source: str, *more: str) -> dict[str, Any]:
    return call.json("--check", source, "--against", "bench.jsonl", *more, "--out", "c")


def test_hits_name_what_they_are_like(folder: Path, call: Caller) -> None:
    told = check(call, "pool.jsonl")
    assert (told["rows"], told["contaminated"], told["file"]) == (24, 1, "pool.jsonl")
    first = told["hits"][0]
    assert (first["id"], first["row"], first["field"]) == ("q5", "line 6", "question")
    assert (first["detector"], first["score"]) == ("exact", 1.0)
    assert (first["benchmark"], first["benchmark_item"]) == ("bench", "b1")
    assert first["text"] == row(5)["question"] and first["benchmark_text"] == row(5)["question"].upper()
    assert {each["detector"] for each in told["hits"]} >= {"exact", "ngram-8", "ngram-13", "fuzzy"}
    assert told["detectors"]["exact"] == 1 and {
        "name": "bench",
        "items": 2,
        "column": "question",
    }.items() <= (told["benchmarks"][0].items())
    assert told["benchmarks"][0]["revision"].startswith("sha256:")
    assert [each["benchmark_item"] for each in told["uncheckable_items"]] == ["b2"]
    hits = [json.loads(line) for line in Path("c/hits.jsonl").read_text().splitlines()]
    assert hits == told["hits"]
    kept = [line for line in Path("pool.jsonl").read_text().splitlines() if '"q5"' not in line]
    assert [json.loads(line) for line in Path("c/clean.jsonl").read_text().splitlines()] == [
        json.loads(line) for line in kept
    ]
    assert "exact" in Path("c/report.html").read_text()
    code, out, _ = call.text("--check", "pool.jsonl", "--against", "bench.jsonl", "--out", "c")
    assert code == 0 and "24 rows, 1 with a hit" in out and "line 6 (q5) exact 1: bench b1" in out


def test_answers_and_traces_are_looked_into_as_well(folder: Path, call: Caller) -> None:
    lines(
        "t.jsonl",
        {"question": "Which one?", "thinking": f"They ask: {row(5)['question']} So.", "answer": "5"},
    )
    told = check(call, "t.jsonl", "--detectors", "exact,ngram-8")
    assert [(each["field"], each["detector"]) for each in told["hits"]] == [("thinking", "ngram-8")]
    assert told["contaminated"] == 1 and Path("c/clean.jsonl").read_text() == ""


def test_rows_that_are_too_short_are_told(folder: Path, call: Caller) -> None:
    lines(
        "s.jsonl",
        {"id": "a", "question": ""},
        {"id": "b", "question": None},
        {"id": "c", "question": "one two"},
    )
    told = check(call, "s.jsonl", "--detectors", "exact,ngram-8")
    assert told["hits"] == [] and told["uncheckable"] == [
        {"id": "a", "row": "line 1", "words": 0, "detectors": ["exact", "ngram-8"]},
        {"id": "b", "row": "line 2", "words": 0, "detectors": ["exact", "ngram-8"]},
        {"id": "c", "row": "line 3", "words": 2, "detectors": ["ngram-8"]},
    ]


def test_several_benchmarks_after_one_option(folder: Path, call: Caller) -> None:
    lines("second.jsonl", {"problem": row(7)["question"]})
    lines("third.jsonl", {"text": row(8)["question"], "other": "x"})
    told = call.json(
        "--check", "pool.jsonl", "--against", "bench.jsonl", "second.jsonl", "third.jsonl::text", "--out", "c"
    )
    assert {(each["benchmark"], each["id"]) for each in told["hits"]} == {
        ("bench", "q5"), ("second", "q7"), ("third", "q8"),
    }  # fmt: skip
    assert [each["name"] for each in told["benchmarks"]] == ["bench", "second", "third"]
    told = call.json(
        "--check", "pool.jsonl", "--against", "bench.jsonl", "--against", "second.jsonl", "--out", "c"
    )
    assert told["contaminated"] == 2


def test_boilerplate_that_is_allowed_counts_for_nothing(folder: Path, call: Caller) -> None:
    Path("allow.txt").write_text(row(5)["question"] + "\n")
    told = check(call, "pool.jsonl", "--detectors", "ngram-8", "--allow", "allow.txt")
    assert told["contaminated"] == 0
    assert check(call, "pool.jsonl", "--detectors", "ngram-8")["contaminated"] == 1


def test_columns_of_the_file_and_of_the_benchmark(folder: Path, call: Caller) -> None:
    lines("f.jsonl", *({"frage": each["question"], "note": 1.5} for each in map(row, range(6))))
    for column in ("frage", "question=frage"):
        told = check(call, "f.jsonl", "--column", column)
        assert [each["id"] for each in told["hits"] if each["detector"] == "exact"] == ["line 6"]
    usual = ["--check", "f.jsonl", "--against", "bench.jsonl", "--out", "c"]
    assert "f.jsonl: no column 'farge'; did you mean 'frage'? columns there: frage, note" in call.refused(
        *usual, "--column", "farge"
    )
    assert "name it with --column" in call.refused(*usual)
    lines("odd.jsonl", {"qestion": "1+1?"})
    line = call.refused("--check", "pool.jsonl", "--against", "odd.jsonl", "--out", "c")
    assert line.startswith("odd.jsonl: no column 'question'; did you mean 'qestion'?")
    told = call.json(
        "--check", "pool.jsonl", "--against", "odd.jsonl", "--against-column", "qestion", "--out", "c"
    )
    assert told["benchmarks"][0]["column"] == "qestion"


def test_hostile_rows_come_through_unchanged(folder: Path, call: Caller) -> None:
    rows = [
        {"question": "\ud800 <script>alert(1)</script> \x00\x1b[31m", "answer": "\udfff"},
        {"question": "</table>" * 500, "answer": None, "more": {"a": [1, None, "é"]}, "n": 1e300},
    ]
    lines("h.jsonl", *rows)
    assert check(call, "h.jsonl")["hits"] == []
    assert [json.loads(line) for line in Path("c/clean.jsonl").read_text().splitlines()] == rows
    lines("h.jsonl", {**row(5), "question": row(5)["question"] + "\ud800<script>\x1b[31m"})
    told = check(call, "h.jsonl")
    assert told["contaminated"] == 1
    assert "<script>" not in Path("c/report.html").read_text()
    code, out, _ = call.text("--check", "h.jsonl", "--against", "bench.jsonl", "--out", "c")
    assert code == 0 and "\x1b" not in out


@pytest.mark.slow
def test_a_row_of_20_mb(folder: Path, call: Caller) -> None:
    size = 20_000_000
    long = (text("long", 5000) + " ") * (size // 35_000 + 1)
    lines("big.jsonl", {"question": f"{long[:size]} {row(5)['question']}", "answer": "5"}, row(3))
    told = check(call, "big.jsonl", "--detectors", "exact,ngram-13")
    assert [(each["row"], each["detector"]) for each in told["hits"]] == [("line 1", "ngram-13")]
    assert len(told["hits"][0]["text"]) < 1000
    assert json.loads(Path("c/clean.jsonl").read_text()) == row(3)


def test_a_file_of_parquet_is_checked(folder: Path, call: Caller) -> None:
    problems = [Problem(each["id"], each["question"], each["gold"]) for each in map(row, range(8))]
    write_records(Path("p.parquet"), problems, Problem)
    assert [each["id"] for each in check(call, "p.parquet", "--detectors", "exact")["hits"]] == ["q5"]


# --- why ---


def test_why_a_record_is_there_or_gone(folder: Path, call: Caller) -> None:
    call.json("--traces", "pool.jsonl", "--target", "6", "--against", "bench.jsonl", "--out", "o")
    told = call.json("--why", "q5", "--out", "o")
    (drop,) = told["dropped"]
    assert told["id"] == "q5" and told["chosen"] == []
    assert (drop["stage"], drop["rule"], drop["matched_id"]) == ("decontamination", "exact", "b1")
    code, out, _ = call.text("--why", "q5", "--out", "o")
    assert code == 0 and out.startswith("q5: dropped at decontamination by exact: its question is like b1")
    assert f"bench b1: {row(5)['question'].upper()}" in out
    name = chosen("o")[0]
    assert call.json("--why", name, "--out", "o") == {
        "id": name, "chosen": [{"record_id": name, "problem_id": name}], "dropped": [],
    }  # fmt: skip
    assert call.text("--why", name, "--out", "o")[1] == f"{name}: chosen\n"
    assert call.refused("--why", "nobody", "--out", "o").startswith("--why nobody: no record of the pool")
    assert "curate writes it" in call.refused("--why", "q5", "--out", "elsewhere")


def test_why_of_a_problem_is_told_of_all_its_traces(folder: Path, call: Caller) -> None:
    lines("pool.jsonl", *({**row(1), "answer": str(n)} for n in range(3)), row(2))
    call.json("--traces", "pool.jsonl", "--out", "o")
    told = call.json("--why", "q1", "--out", "o")
    assert [each["record_id"] for each in told["chosen"]] == ["q1"]
    assert [each["record_id"] for each in told["dropped"]] == ["q1#1", "q1#2"]
    assert [each["record_id"] for each in call.json("--why", "q1#2", "--out", "o")["dropped"]] == ["q1#2"]


# --- mistakes ---

T = "--traces pool.jsonl --out o"
C = "--check pool.jsonl --against bench.jsonl --out o"
MISTAKES = {
    "": "nothing to do; give one of --traces, --check, --why",
    "--out o": "nothing to do",
    "--traces pool.jsonl": "--traces needs --out DIR",
    "--check pool.jsonl": "--check needs --out DIR",
    f"{T} --why q1": "--traces and --why; give one of",
    f"{C} --traces pool.jsonl": "--traces and --check; give one of",
    "--check pool.jsonl --out o": "no benchmark is named; give --against FILE",
    "--check pool.jsonl bench.jsonl --out o": "bench.jsonl: benchmarks come after --against",
    f"{T} bench.jsonl": "bench.jsonl: benchmarks come after --against",
    f"{C} --target 5": "--target has no part in --check; leave it out",
    f"{C} --method random": "--method random has no part in --check",
    f"{C} --set near=0.5": "--set has no part in --check",
    f"{C} --solver openai:m": "--solver has no part in --check",
    "--why q1 --out o --against bench.jsonl": "--against has no part in --why",
    "--why q1 --out o --seed 4": "--seed has no part in --why",
    f"{C} --column question=a --column b": "--column names the column of the questions, once",
    f"{C} --column answer=a": "--column names the column of the questions, once",
    f"{C} --detectors exact,ngram": "no detector 'ngram'",
    f"{C} --detectors exact,,fuzzy": "--detectors exact,,fuzzy",
    f"{C} --allow gone.txt": "allow: gone.txt: cannot be read",
    f"{C} --allow bytes.txt": "allow: bytes.txt: not UTF-8 text (byte 0)",
    "--check gone.jsonl --against bench.jsonl --out o": "gone.jsonl: no such file",
    "--check pool.jsonl --against gone.jsonl --out o": "gone.jsonl: no such file",
    "--check pool.jsonl --against bench.jsonl bench.jsonl --out o": "bench.jsonl: named twice",
    "--check twice.jsonl --against bench.jsonl --out o": "id 'a' is taken by line 1; ids must differ",
    "--check empty.jsonl --against bench.jsonl --out o": "empty.jsonl: no rows",
    "--check pool.jsonl --against bench.jsonl --out pool.jsonl": "--out pool.jsonl: is a file; give a folder",
    "--traces pool.jsonl --out bench.jsonl": "--out bench.jsonl: is a file; give a folder",
    "--traces gone.jsonl --out o": "gone.jsonl: no such file",
    "--traces gone.parquet --out o": "gone.parquet: no such file",
    "--traces empty.jsonl --out o": "empty.jsonl: no rows",
    "--traces broken.jsonl --out o": "broken.jsonl:1: not JSON",
    f"{T} --problems pool.jsonl": "--problems is for traces as collect writes them",
    f"{T} --target 0": "--target",
    f"{T} --method best": "--method",
    f"{T} --against gone.jsonl": "gone.jsonl",
    f"{T} --detectors ngram-1 --against bench.jsonl": "no detector 'ngram-1'",
    f"{T} --allow gone.txt --against bench.jsonl": "gone.txt",
    f"{T} --allow bytes.txt --against bench.jsonl": "not UTF-8 text",
    f"{T} --solver weak": "--solver weak: write NAME=FILE (verdicts), or KIND:MODEL",
    f"{T} --solver weak=gone.parquet": "--solver weak=gone.parquet: gone.parquet: no such file",
    f"{T} --solver weak=bench.jsonl": "bench.jsonl",
    f"{T} --solver a=v.parquet --solver a=v.parquet": "'a' is named twice",
    f"{T} --solver completions:m": "--solver completions:m: give --solver-url",
    f"{T} --solver nobody:m": "--solver nobody:m: no such teacher",
    f"{T} --solver-url http://127.0.0.1:1/v1": "--solver-url and --attempts are for a model that is asked",
    f"{T} --attempts 3": "--solver-url and --attempts are for a model",
    f"{T} --verdicts gone.parquet": "gone.parquet",
    f"{T} --verdicts v.parquet --keep correct": "has no verdict; verify the traces first",
    f"{T} --set quality.off=[lop]": "there is no rule 'lop'",
    f"{T} --set near=2": "near",
    f"{T} --set neer=0.5": "unknown key; did you mean",
    f"{T} --method s1-code": "s1-code and weights go together",
    f"{T} --column qustion=id": "--column qustion: no such field",
    f"{T} --engine spark": "--engine",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(folder: Path, call: Caller, arguments: str) -> None:
    Path("bytes.txt").write_bytes(b"\xff\xfe")
    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text("{broken\n")
    lines("twice.jsonl", {"id": "a", "question": "1?"}, {"id": "a", "question": "2?"})
    verdicts = [Verdict("other", "p", "correct", "", "number")]
    write_records(Path("v.parquet"), verdicts, Verdict)
    if "--keep correct" in arguments:
        lines("pool.jsonl", {"question": "1+1?", "answer": "2"})
    assert MISTAKES[arguments] in call.refused(*arguments.split())
    assert not Path("o/traces.parquet").exists() and not Path("o/hits.jsonl").exists()


def test_the_questions_of_our_traces_may_be_in_any_file_of_questions(folder: Path, call: Caller) -> None:
    first = call.json("--traces", "pool.jsonl", "--out", "o")
    rows = [
        {"id": each.id, "question": each.question, "answer": "1"}
        for each in read_records(Path("o/problems.parquet"), Problem)
    ]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = call.json("--traces", "o/traces.parquet", "--problems", "asked.jsonl", "--out", "p")
    assert again["kept"] == first["kept"] > 0


def test_what_is_partly_like_an_item_is_told_and_stays(folder: Path, call: Caller) -> None:
    item = text("item", 24)
    half = " ".join([*item.split()[:10], *text("other", 14).split()])
    lines("bench.jsonl", {"question": item})
    lines("asked.jsonl", {"question": half}, {"question": text("clean", 24)})
    arguments = ("--check", "asked.jsonl", "--against", "bench.jsonl", "--out", "c", "--detectors", "overlap")
    told = call.json(*arguments)
    assert told["hits"] == [] and [each["id"] for each in told["partial"]] == ["line 1"]
    assert told["notes"][0].startswith("1 record is partly like an item")
    assert len(Path("c/clean.jsonl").read_text().splitlines()) == 2


def test_a_checker_is_for_rows_without_one(folder: Path, call: Caller) -> None:
    call.json("--traces", "pool.jsonl", "--out", "o", "--checker", "math")
    assert {each.checker for each in read_records(Path("o/problems.parquet"), Problem)} == {"math"}
    assert "leave out --checker" in call.refused(
        "--traces", "o/traces.parquet", "--out", "p", "--checker", "math"
    )


def test_help_shows_examples(call: Caller) -> None:
    code, out, _ = call.text("--help")
    assert code == 0
    for each in ("--traces", "--check", "--why"):
        assert f"tutelage curate {each}" in out
    assert "Examples:" in out and "--solver small=small-verdicts.parquet" in out


# --- in other processes ---


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(
        [*CURATE, *arguments], capture_output=True, text=True, timeout=300, check=False, env=env
    )


def told_by(out: str) -> tuple[list[str], list[Any], Any]:
    """What a choice came to, but for the time it took."""
    document = json.loads((Path(out) / "curation.json").read_text())
    return chosen(out), read_drops(Path(out) / "drops.parquet"), document["funnel"]


@pytest.mark.slow
def test_a_ray_cluster_chooses_the_same(folder: Path) -> None:
    lines("pool.jsonl", *(row(n) for n in range(2100)), *({**row(n), "id": f"r{n}"} for n in range(100)))
    usual = ["--traces", "pool.jsonl", "--against", "bench.jsonl", "--target", "300", "--json"]
    for engine in ("local", "ray"):
        # No cluster that someone else may have started.
        done = run(*usual, "--out", engine, "--engine", engine, "--workers", "2", RAY_ADDRESS="local")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["kept"] == 300 and "Traceback" not in done.stderr
    assert pq.ParquetFile("local/pool-traces.parquet").num_row_groups == 3
    assert told_by("local") == told_by("ray")
    for name in ("traces.parquet", "problems.parquet", "drops.parquet"):
        assert Path("local", name).read_bytes() == Path("ray", name).read_bytes()
    done = run(
        "--check", "pool.jsonl", "--against", "bench.jsonl", "--out", "c", "--engine", "ray", "--json",
        "--workers", "2", RAY_ADDRESS="local",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [each["id"] for each in json.loads(done.stdout)["hits"] if each["detector"] == "exact"] == [
        "q5",
        "r5",
    ]


@pytest.mark.slow
def test_hash_randomisation_changes_nothing(folder: Path) -> None:
    lines("pool.jsonl", *(row(n) for n in range(60)), *({**row(n), "id": f"r{n}"} for n in range(20)))
    usual = ["--traces", "pool.jsonl", "--against", "bench.jsonl", "--target", "20"]
    for seed in ("1", "2"):
        done = run(*usual, "--out", f"o{seed}", "--set", "domains=clusters", PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
    assert told_by("o1") == told_by("o2")


@pytest.mark.slow
def test_kill_9_in_the_look_and_the_same_command_gives_the_same(folder: Path) -> None:
    lines("pool.jsonl", *(row(n, 300) for n in range(6000)))
    usual = ["--traces", "pool.jsonl", "--against", "bench.jsonl", "--target", "500"]
    assert run(*usual, "--out", "whole").returncode == 0
    for wait in (0.0, 0.3, 0.6):
        child = subprocess.Popen([*CURATE, *usual, "--out", "killed"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        # The pool's last file is there, so the look has begun.
        while not Path("killed/pool-verdicts.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL
        assert not Path("killed/traces.parquet").exists()
    done = run(*usual, "--out", "killed")
    assert done.returncode == 0, done.stderr
    assert told_by("killed") == told_by("whole")
    assert not list(Path("killed").glob("*.partial"))
