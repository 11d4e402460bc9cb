"""The list of subjects, and a user's."""

import json
from pathlib import Path

import pytest

from tutelage.curate.subjects import MSC, SUBJECTS, Subject, read_subjects
from tutelage.errors import UsageError


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_classification_has_its_63_classes() -> None:
    titles = {subject.code: subject.title for subject in MSC}
    assert len(MSC) == len(titles) == 63
    assert titles["05"] == "Combinatorics" and titles["51"] == "Geometry" and titles["60"].startswith("Prob")


def test_the_list_of_the_house_is_sound() -> None:
    assert set(MSC) < set(SUBJECTS)
    assert len({subject.title.casefold() for subject in SUBJECTS}) == len(SUBJECTS)
    codes = [subject.code for subject in SUBJECTS]
    assert len(set(codes)) == len(codes) and all(len(code) == 2 and code.isdigit() for code in codes)
    assert Subject("88", "Chemistry") in SUBJECTS


def test_the_list_of_the_house_comes_back_from_each_kind_of_file(tmp_path: Path) -> None:
    rows = [{"code": subject.code, "title": subject.title} for subject in SUBJECTS]
    for path in (
        written(tmp_path, "list.jsonl", "\n".join(map(json.dumps, rows))),
        written(tmp_path, "list.json", json.dumps(rows)),
        written(tmp_path, "list.txt", "\ufeff" + "\r\n\n".join(f"{s.code}  {s.title}" for s in SUBJECTS)),
    ):
        assert read_subjects(path) == SUBJECTS, path.name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "the list of subjects is empty"),
        ("a.txt", "A Algebra\nB", "line 2: the code 'B' has no title"),
        ("a.txt", "A Algebra\n\na Analysis", "line 3: the code 'a' is on line 1 already"),
        ("a.txt", "A Algebra\nB algebra", "line 2: the title 'algebra' is on line 1 already"),
        ("a.txt", "*1* Algebra", "line 1: the code '*1*' is not"),
        ("a.txt", "A. Algebra", "line 1: the code 'A.' is not"),
        ("a.txt", "12345678901234567 x", "is not 1 to 16 letters"),
        ("a.txt", "A x\u202ey", "line 1: the title"),
        ("a.txt", "A " + "x" * 10_000_000, "longer than 200"),
        ("a.txt", b"A one\nB \xff", "line 2: not UTF-8 (byte 0xff)"),
        ("a.jsonl", '{"code": "A", "title": "x"}\n{"code": "B"}', "line 2: no title"),
        ("a.jsonl", '{"code": 3, "title": "Logic"}', "line 1: the code is '3'; it must be text"),
        ("a.jsonl", '{"code": "A", "title": "x\\ud800"}', "line 1: the title"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.json", "[]", "the list of subjects is empty"),
        ("a.json", '[{"code": "A", "title": null}]', "row 1: the title is 'None'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(UsageError) as raised:
        read_subjects(path)
    said = str(raised.value)
    assert message in said and str(path) in said and "\n" not in said and len(said) < 400


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_subjects(tmp_path / "no.txt")
