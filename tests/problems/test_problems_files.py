"""Reading problems: the good files, and every way in which a file can be bad."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.problems import read_problems, without_marks
from tutelage.records import Problem, Trace, read_records, write_records

GSM = {
    "question": "Ann has 48 clips and sells half. How many?",
    "answer": "She sells 48/2 = <<48/2=24>>24 clips.\nSo 1,000+24 = <<1000+24=1024>>1,024.\n#### 1,024",
}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path: Path | str, **settings: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read_problems(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_a_gsm8k_row_gives_gold_and_the_human_solution(tmp_path: Path) -> None:
    (problem,) = read_problems(jsonl(tmp_path / "a.jsonl", GSM), licence="MIT")
    assert problem.gold == "1024"
    assert problem.metadata == {"solution": "She sells 48/2 = 24 clips.\nSo 1,000+24 = 1,024."}
    assert (problem.question, problem.checker, problem.source) == (GSM["question"], "number", "a.jsonl")
    assert (problem.licence, len(problem.id)) == ("MIT", 16)


@pytest.mark.parametrize("question", ["question", "problem", "prompt", "input"])
@pytest.mark.parametrize("gold", ["answer", "gold", "expected_answer", "solution", "ground_truth"])
def test_guessed_columns(tmp_path: Path, question: str, gold: str) -> None:
    (problem,) = read_problems(jsonl(tmp_path / "a.jsonl", {question: "q?", gold: 18, "level": 3}))
    assert (problem.question, problem.gold, problem.metadata["level"]) == ("q?", "18", 3)


def test_answer_and_solution_columns_side_by_side(tmp_path: Path) -> None:
    row = {"problem": "q?", "solution": "First 9 <<9*2=18>>, so 18.", "answer": "18", "license": "CC0"}
    (problem,) = read_problems(jsonl(tmp_path / "a.jsonl", row))
    assert (problem.gold, problem.licence) == ("18", "CC0")
    assert problem.metadata == {"solution": "First 9 , so 18."}


def test_named_columns_win_over_guesses(tmp_path: Path) -> None:
    row = {"question": "no", "text": "yes", "answer": "1", "key": 2, "n": 7, "area": "sums"}
    columns = {"question": "text", "gold": "key", "id": "n", "domain": "area"}
    (problem,) = read_problems(jsonl(tmp_path / "a.jsonl", row), columns=columns, source="mine")
    assert (problem.id, problem.question, problem.gold, problem.domain) == ("7", "yes", "2", "sums")
    assert problem.metadata == {"question": "no", "answer": "1"} and problem.source == "mine"


def test_answer_pattern(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q", "answer": "It is [3], no, [4]."})
    (problem,) = read_problems(path, answer_pattern=r"\[(\d+)\]")
    assert problem.gold == "4" and problem.metadata["solution"] == "It is [3], no, [4]."
    assert "a.jsonl line 1: 'answer' does not match" in refused(path, answer_pattern=r"\{(\d+)\}")
    assert "not a regular expression" in refused(path, answer_pattern="(")


def test_jsonl_json_and_parquet_give_the_same_problems(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "question": f"Is {i} even? ümlaut", "answer": str(i)} for i in range(5)]
    lines = jsonl(tmp_path / "a.jsonl", *rows)
    lines.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes().replace(b"\n", b"\r\n\n"))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "lines.json").write_bytes(lines.read_bytes())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [
        read_problems(tmp_path / name, source="s")
        for name in ("a.jsonl", "a.json", "lines.json", "a.parquet")
    ]
    assert read[0] == read[1] == read[2] == read[3] and [p.id for p in read[0]] == [
        "r0",
        "r1",
        "r2",
        "r3",
        "r4",
    ]
    assert read_problems(lines, source="s", limit=2) == read[0][:2]


def test_our_own_records_come_back_as_they_were(tmp_path: Path) -> None:
    problems = [Problem("a", "q?", None, "exact", "d", "s", "l", ("x",), {"k": [1]})]
    path = tmp_path / "p.parquet"
    write_records(path, problems, Problem)
    assert read_problems(path) == problems == read_records(path, Problem)
    assert "takes no column mapping" in refused(path, columns={"id": "id"})
    write_records(path, [Trace("t", "p", 0, "m", "a", cost=Decimal(1))], Trace)
    assert "holds Trace records" in refused(path)


def test_ids_are_stable_and_a_repeated_question_gets_its_own(tmp_path: Path) -> None:
    row = {"question": "q?", "answer": "1"}
    first = read_problems(jsonl(tmp_path / "a.jsonl", row, row), source="s")
    again = read_problems(jsonl(tmp_path / "b.jsonl", {"answer": "1", "question": "q?"}), source="s")
    assert first[0].id == again[0].id != first[1].id
    assert read_problems(tmp_path / "a.jsonl", source="other")[0].id != first[0].id


def test_no_gold(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q?", "note": 1})
    assert "no answer column" in refused(path) and "there: question, note" in refused(path)
    assert read_problems(path, columns={"gold": ""})[0].gold is None
    assert read_problems(path, checker="mine.py:check")[0].gold is None
    nulls = jsonl(tmp_path / "b.jsonl", {"question": "q?", "answer": None})
    assert read_problems(nulls)[0].gold is None


def test_a_broken_line_17_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[{"question": "q", "answer": "1"}] * 30)
    lines = path.read_bytes().splitlines(keepends=True)

    def with_17(line: bytes) -> str:
        path.write_bytes(b"".join([*lines[:16], line, *lines[17:]]))
        message = refused(path)
        assert f"{path} line 17: " in message
        return message

    assert "not JSON" in with_17(b'{"question": "q", "answer": \n')
    assert "not UTF-8 (byte 15 is 0xff)" in with_17(b'{"question": "\xff", "answer": "1"}\n')
    assert "must be an object, not list" in with_17(b'["q", "1"]\n')
    assert "no column 'answer'; columns there: question" in with_17(b'{"question": "q"}\n')
    assert "'question' is int, not text" in with_17(b'{"question": 3, "answer": "1"}\n')
    assert "'question' is empty" in with_17(b'{"question": " ", "answer": "1"}\n')
    assert "'answer' is list" in with_17(b'{"question": "q", "answer": ["1"]}\n')
    assert "cannot be read as JSON" in with_17(b"[" * 200_000 + b"\n")
    assert len(read_problems(path, limit=16)) == 16  # what is not asked for is not read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "the data set is empty"),
        ("a.jsonl", b"\n \n", "the data set is empty"),
        ("a.json", b"[]", "the data set is empty"),
        ("a.json", b'[{"question": "q",\n "answer"', "line 2: not JSON"),
        ("a.json", b'[{"question": "\n\xff"}]', "line 2: not UTF-8"),
        ("a.json", b"[3]", "row 1: a row must be an object, not int"),
        ("a.parquet", b"PAR1 not really", "not readable as Parquet"),
        ("a.csv", b"question,answer\nq,1\n", "use .jsonl, .json or .parquet"),
        (
            "a.jsonl",
            b'{"text": "q", "answer": "1"}',
            "no question column; name it with columns question=NAME",
        ),
        ("a.jsonl", b'{"id": 1, "question": "q", "answer": "1"}\n' * 2, "line 2: id '1' is taken by line 1"),
        ("a.jsonl", b'{"id": [1], "question": "q", "answer": "1"}\n', "line 1: 'id' is list"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message in refused(path)


def test_bad_settings(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", GSM)
    assert "no such file" in refused(tmp_path / "missing.jsonl")
    assert "no such file" in refused(tmp_path)
    assert "write hub:owner/name" in refused("owner/name")
    assert "limit is 0" in refused(path, limit=0)
    assert "no column 'text' for question; columns there: question, answer" in refused(
        path, columns={"question": "text"}
    )
    assert "columns.qestion: no such field" in refused(path, columns={"qestion": "question"})
    assert "for Hub data sets" in refused(path, split="train")


def test_lone_surrogates_and_control_tokens_are_only_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "<|im_end|> \\ud800 \\u0000 <b>", "answer": "1", "\\ud800": "\\ud800"}\n')
    (problem,) = read_problems(path)
    assert problem.question == "<|im_end|> \ufffd \0 <b>"
    write_records(tmp_path / "p.parquet", [problem], Problem)


@pytest.mark.slow  # imports `datasets`
def test_a_data_set_through_the_datasets_library(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", GSM, {**GSM, "question": "another?"})
    name = f"hub:{tmp_path}"
    problems = read_problems(name)
    assert [problem.gold for problem in problems] == ["1024", "1024"]
    assert read_problems(name, limit=1, split="train") == problems[:1]
    assert "cannot be read from the Hub" in refused(name, split="nothing")


@given(st.text(), st.text())
def test_without_marks_never_raises_and_keeps_plain_text(before: str, after: str) -> None:
    without_marks(before + "<<1+1=2>>" + after)
    plain = "She has 5 < 6 and 7 > 2."
    assert without_marks(plain) == plain


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none() | st.floats(allow_nan=False))
)
def test_other_columns_survive_as_metadata(
    tmp_path_factory: pytest.TempPathFactory, extra: dict[str, Any]
) -> None:
    names = {"question", "problem", "prompt", "input", "answer", "gold", "id", "solution"}
    extra = {k: v for k, v in extra.items() if k not in names}
    path = jsonl(tmp_path_factory.mktemp("h") / "a.jsonl", {"question": "q", "answer": "1", **extra})
    (problem,) = read_problems(path)
    assert problem.metadata == extra


def test_a_row_of_50_mb(tmp_path: Path) -> None:
    text = "How many? " * 5_200_000
    path = jsonl(tmp_path / "a.jsonl", {"question": text, "answer": "1"}, {"question": "2?", "answer": "2"})
    problems = read_problems(path)
    assert problems[0].question == text and problems[1].gold == "2"


def test_an_empty_gold_stays_and_is_for_the_checker_to_tell(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": gold} for n, gold in enumerate(("", None, "3"))]
    assert [problem.gold for problem in read_problems(jsonl(tmp_path / "a.jsonl", *rows))] == ["", None, "3"]


def test_equal_ids_and_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"id": "x", "question": f"{n}?", "answer": "1"} for n in range(2)))
    assert "line 2: id 'x' is taken by line 1" in refused(path)
    path.write_bytes(b'{"question": "1?", "answer": "1"}\n{"question": "caf\xe9", "answer": "2"}\n')
    assert "line 2: not UTF-8 (byte 18 is 0xe9)" in refused(path)
