"""Benchmarks are read whole, named, and told apart; what is wrong with a file is said in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tutelage.curate.benchmarks import (
    Benchmark,
    missing_column,
    of_problems,
    questions,
    read_benchmark,
    read_benchmarks,
)
from tutelage.errors import UsageError
from tutelage.records import Problem, write_records

Rows = Sequence[Mapping[str, Any]]
TWO: Rows = [
    {"id": "a", "question": "How many?", "gold": "3"},
    {"id": 7, "question": "How much?", "gold": "4"},
]


def lines(path: Path, rows: Rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def whole(path: Path, rows: Rows) -> str:
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return str(path)


def columns(path: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist([{**row, "id": str(row["id"])} for row in rows]), path)
    return str(path)


def refused(*names: str, column: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_benchmarks(names, column)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize(("write", "suffix"), [(lines, "jsonl"), (whole, "json"), (columns, "parquet")])
def test_every_format_gives_the_same_benchmark(write: Any, suffix: str, tmp_path: Path) -> None:
    (found,) = read_benchmarks([write(tmp_path / f"math.{suffix}", TWO)])
    assert found == Benchmark("math", (("a", "How many?"), ("7", "How much?")), "question")
    assert found.as_json() == {
        "name": "math",
        "revision": found.revision,
        "items": 2,
        "column": "question",
    }
    assert found.revision == of_problems("x", [Problem("1", "How many?"), Problem("2", "How much?")]).revision


def test_our_own_records_are_a_benchmark_too(tmp_path: Path) -> None:
    problems = [Problem("p1", "One?"), Problem("p2", "Two?")]
    write_records(tmp_path / "own.parquet", problems, Problem)
    assert read_benchmark(str(tmp_path / "own.parquet")) == of_problems("own", problems)


def test_the_column_is_guessed_or_named(tmp_path: Path) -> None:
    rows = [{"text": "T?", "problem": "P?", "prompt": "Q?"}]
    name = lines(tmp_path / "a.jsonl", rows)
    other = lines(tmp_path / "b.jsonl", rows)
    assert read_benchmark(name).items == (("line 1", "P?"),)
    assert read_benchmark(name).column == "problem"
    assert read_benchmark(name, "prompt").items == (("line 1", "Q?"),)
    own, usual = read_benchmarks([f"{name}::text", other], column="prompt")
    assert (own.name, own.column, own.items[0][1]) == ("a", "text", "T?")
    assert (usual.name, usual.column, usual.items[0][1]) == ("b", "prompt", "Q?")


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    name = lines(tmp_path / "a.jsonl", [{"questoin": "?", "answer": "3"}])
    said = refused(name)
    assert "no column 'question'; did you mean 'questoin'?" in said and "questoin, answer" in said
    assert said.startswith(name) and "--column" in said
    said = refused(f"{name}::answers")
    assert said.startswith(f"{name}: no column 'answers'; did you mean 'answer'?")
    assert "did you mean" not in refused(name, column="zzzz") and "questoin, answer" in refused(
        name, column="zz"
    )
    assert missing_column("x", {}) == "no column 'x' columns there: none"


def test_a_column_that_is_missing_in_a_later_row_is_named_with_the_row(tmp_path: Path) -> None:
    name = lines(tmp_path / "a.jsonl", [{"question": "?"}, {"problem": "?"}])
    said = refused(name)
    assert said.startswith(f"{name} line 2: no column 'question'") and "problem" in said


def test_names_of_columns_keep_to_their_line(tmp_path: Path) -> None:
    name = lines(tmp_path / "a.jsonl", [{"a\nb\x1b[31m\ud800": 1, "x" * 10_000_000: 2}])
    assert len(refused(name)) < 400 and "\x1b" not in refused(name)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows"),
        ([{"question": 3}], "line 1: 'question' is int, not text"),
        ([{"question": "?"}, {"question": ["?"]}], "line 2: 'question' is list, not text"),
        ([{"id": "x", "question": "1"}, {"id": "x", "question": "2"}], "line 2: id 'x' is taken by line 1"),
        ([{"id": 3, "question": "1"}, {"id": "3", "question": "2"}], "line 2: id '3' is taken by line 1"),
        ([{"question": "1"}, {"id": "line 1", "question": "2"}], "line 2: id 'line 1' is taken by line 1"),
        ([[1]], "a row must be an object"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_the_row(rows: Any, said: str, tmp_path: Path) -> None:
    name = lines(tmp_path / "a.jsonl", rows)
    assert said in refused(name) and refused(name).startswith(name)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "none.jsonl")) == f"{tmp_path}/none.jsonl: no such file"
    assert "for a Hub data set write hub:owner/name" in refused("owner/name")
    assert "no benchmark is named" in refused()
    (tmp_path / "a.csv").write_text("question\n?\n")
    assert "use .jsonl, .json or .parquet" in refused(str(tmp_path / "a.csv"))
    (tmp_path / "a.parquet").write_text("no")
    assert "not readable as Parquet" in refused(str(tmp_path / "a.parquet"))
    (tmp_path / "a.jsonl").write_text('{"question": "?"}\n{"question"\n')
    assert "line 2: not JSON" in refused(str(tmp_path / "a.jsonl"))
    whole(tmp_path / "empty.json", [])
    assert refused(str(tmp_path / "empty.json")).endswith("empty.json: no rows")


def test_rows_without_an_id_or_a_question_stay(tmp_path: Path) -> None:
    rows = [{"id": "", "question": None}, {"id": None, "question": "x\ud800"}, {"id": 1.5, "question": ""}]
    found = read_benchmark(lines(tmp_path / "a.jsonl", rows))
    assert found.items == (("line 1", ""), ("line 2", "x\ufffd"), ("line 3", ""))


def test_a_row_keeps_its_fields(tmp_path: Path) -> None:
    one, two = questions(lines(tmp_path / "a.jsonl", TWO), None)
    assert (one.id, one.question, one.column, one.where, one.fields) == (
        *("a", "How many?", "question", "line 1"),
        TWO[0],
    )
    assert two.fields["gold"] == "4" and two.where == "line 2"


def test_the_revision_is_that_of_the_content(tmp_path: Path) -> None:
    revision = read_benchmark(lines(tmp_path / "a.jsonl", TWO)).revision
    assert revision.startswith("sha256:") and len(revision) == len("sha256:") + 16
    other_names = [{"id": f"{number}", "problem": row["question"]} for number, row in enumerate(TWO)]
    assert read_benchmark(lines(tmp_path / "b.jsonl", other_names)).revision == revision
    for rows in (TWO[:1], [*TWO, *other_names[:0], {"id": "c", "question": ""}], list(reversed(TWO))):
        assert read_benchmark(lines(tmp_path / "a.jsonl", rows)).revision != revision


QUESTIONS = st.lists(st.text(alphabet="a1:\0\ud800?", max_size=4), max_size=4)


@given(QUESTIONS, QUESTIONS)
@example(["a\0a"], ["a", "a"])
@example(["a1:a"], ["a", "a"])
@example(["\ud800"], ["?"])
def test_two_contents_have_two_revisions(one: list[str], other: list[str]) -> None:
    first, second = (
        Benchmark("x", tuple((str(at), question) for at, question in enumerate(each))).revision
        for each in (one, other)
    )
    assert (first == second) == (one == other)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = [
        lines(tmp_path / "one" / "test.jsonl", TWO),
        lines(tmp_path / "two" / "test.jsonl", TWO),
        lines(tmp_path / "other.jsonl", TWO),
    ]
    assert [each.name for each in read_benchmarks(names)] == [names[0], names[1], "other"]
    both = [f"{names[2]}::question", f"{names[2]}::gold"]
    found = read_benchmarks(both)
    assert [each.name for each in found] == both and found[1].items[0] == ("a", "3")
    assert refused(names[2], names[0], names[2]) == f"{names[2]}: named twice as a benchmark; name it once"
