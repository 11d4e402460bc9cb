"""Rows with answers and gold answers, and every way in which such a file can be bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.errors import UsageError
from tutelage.problems.answers import read_answers


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read_answers(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 500
    return message


def test_one_problem_and_one_trace_per_row(tmp_path: Path) -> None:
    rows = [
        {"reply": "It is 3.", "key": 3, "q": "1+2", "choices": ["a", "b"]},
        {"reply": 4.5, "key": "4.5", "q": ""},
    ]
    names = {"answer": "reply", "gold": "key", "question": "q"}
    problems, traces = read_answers(jsonl(tmp_path / "a.jsonl", *rows[:1]), kind="math", **names)
    assert (problems[0].id, problems[0].gold, problems[0].question) == ("1", "3", "1+2")
    assert (problems[0].checker, problems[0].metadata) == ("math", {"choices": ["a", "b"]})
    assert (traces[0].id, traces[0].problem_id, traces[0].answer) == ("1", "1", "It is 3.")
    rows[1]["choices"] = []
    pq.write_table(pa.table({"reply": ["4.5", None], "key": [4.5, None]}), tmp_path / "a.parquet")
    problems, traces = read_answers(tmp_path / "a.parquet", answer="reply", gold="key")
    assert [each.gold for each in problems] == ["4.5", None] and [each.answer for each in traces] == [
        "4.5",
        "",
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    problems, traces = read_answers(tmp_path / "a.json", **names)
    assert [each.answer for each in traces] == ["It is 3.", "4.5"]


def test_an_empty_gold_stays_empty(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"answer": "3", "gold": gold} for gold in ("", None, "3")))
    problems, _ = read_answers(path)
    assert [each.gold for each in problems] == [None, None, "3"]
    problems, _ = read_answers(path, gold="")
    assert [each.gold for each in problems] == [None] * 3


def test_a_missing_column_names_those_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"answer": "3", "gold": "3"}, {"answer": "3"})
    assert refused(path).endswith("line 2: no column 'gold' for the gold; columns there: answer")
    assert "line 1: no column 'reply' for the answer; columns there: answer, gold" in refused(
        path, answer="reply"
    )
    assert "no column 'n' for the id" in refused(path, identity="n")
    assert "no answer column is named" in refused(path, answer="")


def test_equal_ids_are_named(tmp_path: Path) -> None:
    rows = [{"n": n, "answer": "3", "gold": "3"} for n in (7, 8, 7)]
    message = refused(jsonl(tmp_path / "a.jsonl", *rows), identity="n")
    assert message.endswith("line 3: id '7' is taken by line 1; ids must differ")
    rows[2]["n"] = None
    assert "line 3: 'n' is empty" in refused(jsonl(tmp_path / "b.jsonl", *rows), identity="n")


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"answer": "3", "gold": "3"}\n{"answer": "\xff", "gold": "3"}\n')
    assert "a.jsonl line 2: not UTF-8 (byte 13 is 0xff)" in refused(path)
    (tmp_path / "a.json").write_bytes(b'[{"answer": "3",\n "gold": "\xfe"}]')
    assert "a.json line 2: not UTF-8" in refused(tmp_path / "a.json")


@pytest.mark.parametrize("value", [["a"], {"a": 1}, True])
def test_a_cell_that_is_no_text(tmp_path: Path, value: Any) -> None:
    assert f"line 1: 'gold' is {type(value).__name__}" in refused(
        jsonl(tmp_path / "a.jsonl", {"answer": "3", "gold": value})
    )


def test_no_file_and_no_rows(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "no rows" in refused(tmp_path / "empty.jsonl")
    (tmp_path / "a.csv").write_text("answer,gold\n")
    assert "cannot read .csv" in refused(tmp_path / "a.csv")


def test_a_row_of_50_mb(tmp_path: Path) -> None:
    text = "so " * 17_000_000 + "the answer is 72."
    path = jsonl(tmp_path / "a.jsonl", {"answer": text, "gold": "72"}, {"answer": "1", "gold": "1"})
    _, traces = read_answers(path)
    assert traces[0].answer == text and len(traces) == 2


def test_lone_surrogates_and_control_tokens_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"answer": "\\ud800 <|im_end|></think> 3", "gold": "3"}\n')
    _, traces = read_answers(path)
    assert traces[0].answer == "\ufffd <|im_end|></think> 3"
