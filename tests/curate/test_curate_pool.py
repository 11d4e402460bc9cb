"""A pool from whatever it came as: our traces, and recorded ones of many layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.curate.pool import is_ours, read_pool
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict, read_records, stable_hash, write_records

Rows = Sequence[Mapping[str, Any]]
PLAIN = {"question": "1+1?", "thinking": "One and one.", "answer": "2"}


def lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(
    folder: Path, rows: Rows, **settings: Any
) -> tuple[list[Problem], list[Trace], dict[str, Verdict] | None]:
    pool = read_pool(lines(folder / "recorded.jsonl", rows), folder / "out", **settings)
    verdicts = None
    if pool.verdicts is not None:
        verdicts = {each.trace_id: each for each in read_records(pool.verdicts, Verdict)}
    return read_records(pool.problems, Problem), read_records(pool.traces, Trace), verdicts


# --- our own ---


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write_records(tmp_path / "data/problems.parquet", [Problem("p", "1+1?", "2")], Problem)
    write_records(tmp_path / "data/traces.parquet", [Trace("t", "p", 0, "m", "2")], Trace)
    return tmp_path / "data/traces.parquet"


def test_our_own_traces_are_used_where_they_are_with_the_problems_beside_them(ours: Path) -> None:
    pool = read_pool(ours, ours.parent / "out")
    assert (pool.name, pool.traces, pool.problems) == ("traces", ours, ours.with_name("problems.parquet"))
    assert pool.verdicts is None and not (ours.parent / "out").exists()
    other = ours.with_name("other.parquet")
    ours.with_name("problems.parquet").rename(other)
    assert read_pool(ours, ours.parent, problems=other).problems == other
    with pytest.raises(UsageError, match=r"its questions are not in .*problems.parquet; give them with"):
        read_pool(ours, ours.parent)


def test_what_does_not_go_with_our_own_traces(ours: Path) -> None:
    with pytest.raises(UsageError, match="takes no column names"):
        read_pool(ours, ours.parent, columns={"question": "q"})
    recorded = lines(ours.with_name("r.jsonl"), [PLAIN])
    with pytest.raises(UsageError, match=r"r\.jsonl: holds its own questions; --problems is for traces"):
        read_pool(recorded, ours.parent, problems=ours)


def test_only_a_file_of_traces_is_ours(ours: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"question": ["1+1?"], "answer": ["2"]}), other)
    assert is_ours(ours)
    places = (broken, other, ours.with_name("problems.parquet"), tmp_path, tmp_path / "gone.parquet")
    assert not any(is_ours(place) for place in places)
    with pytest.raises(UsageError, match=r"broken.parquet: not a readable Parquet file"):
        read_pool(broken, tmp_path / "out")
    pool = read_pool(other, tmp_path / "out")
    assert read_records(pool.traces, Trace)[0].answer == "2"


# --- recorded layouts ---

LAYOUTS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "plain": (PLAIN, [("One and one.", "2")]),
    "inline tags": ({"question": "1+1?", "response": "<think>One.</think>2"}, [("One.", "2")]),
    "s1K-1.1": (
        {
            "question": "1+1?",
            "solution": "2",
            "deepseek_thinking_trajectory": "One.",
            "deepseek_attempt": "two",
            "gemini_thinking_trajectory": "Uno.",
            "gemini_attempt": "due",
        },
        [("One.", "two")],
    ),
    "OpenThoughts": (
        {
            "problem": "1+1?",
            "reasoning": "One.",
            "deepseek_solution": "<|begin_of_solution|>2<|end_of_solution|>",
        },
        [("One.", "2")],
    ),
    "open-r1": (
        {"problem": "1+1?", "answer": "2", "generations": ["<think>a</think>2", "<think>b</think>3"]},
        [("a", "2"), ("b", "3")],
    ),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "2", "reasoning_content": "One."},
            ]
        },
        [("One.", "2")],
    ),
    "conversations": (
        {
            "conversations": [
                {"from": "human", "value": "1+1?"},
                {"from": "gpt", "value": "<think>One.</think>2"},
            ]
        },
        [("One.", "2")],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recorded_layouts(tmp_path: Path, layout: str) -> None:
    row, said = LAYOUTS[layout]
    (problem,), traces, verdicts = read(tmp_path, [row])
    assert problem.question == "1+1?" and problem.source == "recorded" and verdicts is None
    assert [(each.thinking, each.answer) for each in traces] == said
    assert all(each.problem_id == problem.id and each.maker == "recorded" for each in traces)


def test_what_else_a_row_tells_is_kept(tmp_path: Path) -> None:
    row = {
        **PLAIN,
        "gold": 12,
        "subject": "sums",
        "source_type": "aime",
        "finish_reason": "length",
        "thinking_tokens": 7,
        "license": "MIT",
    }
    (problem,), (trace,), _ = read(tmp_path, [row], checker="math")
    assert (problem.gold, problem.domain, problem.source, problem.checker) == ("12", "sums", "aime", "math")
    assert problem.metadata == {"license": "MIT"}
    assert (trace.finish_reason, trace.thinking_tokens) == ("length", 7)


def test_columns_name_what_is_what(tmp_path: Path) -> None:
    row = {"frage": "1+1?", "denken": "Eins.", "text": "2", "nr": 7, "fach": "Summen", "loesung": "2"}
    columns = {
        "question": "frage",
        "thinking": "denken",
        "answer": "text",
        "id": "nr",
        "domain": "fach",
        "gold": "loesung",
    }
    (problem,), (trace,), _ = read(tmp_path, [row], columns=columns)
    assert problem == Problem("7", "1+1?", "2", "number", "Summen", "recorded")
    assert (trace.id, trace.thinking, trace.answer) == ("7", "Eins.", "2")


# --- ids ---


def test_a_problem_has_its_own_id_or_that_of_its_question(tmp_path: Path) -> None:
    rows = [
        {"id": "a", **PLAIN},
        PLAIN,
        {**PLAIN, "answer": "3"},
        {"id": "a", **PLAIN, "answer": "4"},
        {"problem_id": 5, "id": "x", **PLAIN},
    ]
    problems, traces, _ = read(tmp_path, rows)
    key = stable_hash("1+1?")
    assert [each.id for each in problems] == ["a", key, "5"]
    assert [(each.id, each.problem_id, each.sample, each.answer) for each in traces] == [
        ("a", "a", 0, "2"),
        (key, key, 0, "2"),
        (f"{key}#1", key, 1, "3"),
        ("a#1", "a", 1, "4"),
        ("5", "5", 0, "2"),
    ]


def test_two_questions_under_one_id_are_refused_with_both_places(tmp_path: Path) -> None:
    rows = [{"id": "a", **PLAIN}, {"id": "b", **PLAIN}, {"id": "a", **PLAIN, "question": "2+2?"}]
    with pytest.raises(UsageError) as refused:
        read(tmp_path, rows)
    path = tmp_path / "recorded.jsonl"
    assert str(refused.value) == (
        f"{path}:3: id 'a' is taken by another question ({path}:1); ids must differ"
    )
    assert not list((tmp_path / "out").iterdir())  # nothing half written


# --- rows that say nothing ---


def test_rows_without_a_question_or_an_answer_are_records(tmp_path: Path) -> None:
    rows = [
        PLAIN,
        {**PLAIN, "question": ""},
        {**PLAIN, "question": None},
        {**PLAIN, "answer": None, "thinking": None},
        {"question": "3+3?"},
        {"question": "4+4?", "messages": []},
        {"question": "5+5?", "generations": []},
    ]
    problems, traces, _ = read(tmp_path, rows)
    assert [each.question for each in problems] == ["1+1?", "", "", "3+3?", "4+4?", "5+5?"]
    assert [each.id for each in problems[1:3]] == ["row 2", "row 3"]
    assert len(traces) == len(rows) and [each.answer for each in traces[3:]] == ["", "", "", ""]
    assert {each.problem_id for each in traces} == {each.id for each in problems}


def test_hostile_text_is_a_record(tmp_path: Path) -> None:
    text = "\ud800<script>\x00\x1b[31m"
    (problem,), (trace,), _ = read(tmp_path, [{"id": text, "question": text, "answer": text}])
    assert problem.id == problem.question == trace.answer == text.replace("\ud800", "\ufffd")


# --- what the file says of right and wrong ---


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"correct": True}, "correct"),
        ({"correct": False}, "incorrect"),
        ({"is_correct": "Correct"}, "correct"),
        ({"verified": "no"}, "incorrect"),
        ({"correct": None}, None),
        ({"correct": "perhaps"}, None),
        ({"correct": 1}, None),
    ],
)
def test_verdicts_come_from_the_file(tmp_path: Path, told: dict[str, Any], status: str | None) -> None:
    verdicts = read(tmp_path, [{"id": "a", **PLAIN, **told}])[2]
    if status is None:
        assert verdicts is None
    else:
        assert verdicts == {"a": Verdict("a", "a", status, "recorded says so", "recorded")}  # type: ignore[arg-type]


def test_each_grade_is_for_the_trace_of_its_own_model(tmp_path: Path) -> None:
    row = {**LAYOUTS["s1K-1.1"][0], "id": "a", "deepseek_grade": "Yes", "gemini_grade": "No"}
    found = read(tmp_path, [row])[2]
    assert found is not None and found["a"].status == "correct"
    columns = {"thinking": "gemini_thinking_trajectory", "answer": "gemini_attempt"}
    _, (trace,), found = read(tmp_path, [row], columns=columns)
    assert trace.answer == "due" and found is not None and found["a"].status == "incorrect"
    only = {name: value for name, value in row.items() if not name.startswith("deepseek")}
    found = read(tmp_path, [only])[2]
    assert found is not None and found["a"].status == "incorrect"


# --- mistakes ---


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, r"recorded\.jsonl: no rows$"),
        (
            [{"qeustion": "1+1?", "answer": "2"}],
            {},
            "no column 'question'; did you mean 'qeustion'.*--column question=NAME$",
        ),
        (
            [PLAIN],
            {"columns": {"question": "questoin"}},
            r"no column 'questoin'; did you mean 'question'\? columns there: question, thinking, answer$",
        ),
        ([PLAIN], {"columns": {"qustion": "question"}}, "--column qustion: no such field; fields are id, "),
        ([{"question": "1+1?", "said": "2"}], {}, r"recorded\.jsonl:1: no layout fits these columns"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, rows: Rows, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        read(tmp_path, rows, **settings)
    assert "\n" not in str(refused.value)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "recorded.jsonl", [PLAIN])
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UsageError, match=r"recorded\.jsonl:2: not JSON"):
        read_pool(path, tmp_path / "out")
    with pytest.raises(UsageError, match="no such file"):
        read_pool(tmp_path / "gone.jsonl", tmp_path / "out")
