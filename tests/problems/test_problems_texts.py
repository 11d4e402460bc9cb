"""Plain documents come as they are written, or with one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.errors import UsageError
from tutelage.problems.texts import read_texts, write_texts


def test_files_folders_and_rows_give_their_documents(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_bytes(b"\xef\xbb\xbf# Two\n\nparts")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("one  \n")
    (tmp_path / "other.py").write_text("not a document")
    (tmp_path / "empty.txt").write_text(" \n")
    assert [each.text for each in read_texts(tmp_path)] == ["# Two\n\nparts", "one  \n"]
    assert [each.text for each in read_texts(tmp_path, limit=1)] == ["# Two\n\nparts"]
    rows = tmp_path / "r.jsonl"
    rows.write_text('{"q": "why", "a": "so", "licence": "MIT"}\n{"q": "how", "a": "thus"}\n')
    found = read_texts(rows, columns=("q", "a"), licence="CC0")
    assert [(each.text, each.licence, each.source) for each in found] == [
        ("why\nso", "MIT", "r.jsonl"),
        ("how\nthus", "CC0", "r.jsonl"),
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    texts = read_texts(tmp_path / "a.txt", licence="MIT")
    write_texts(tmp_path / "out" / "t.parquet", texts)
    assert read_texts(tmp_path / "out" / "t.parquet") == texts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "missing.txt: no such file or folder; for a Hub"),
        ("a.txt", b"\xff", "a.txt: not UTF-8 .byte 1"),
        ("a.txt", b"", "there is no text in it"),
        ("a.jsonl", b'{"body": "x"}', "line 1: no column 'text'; it has body"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', "line 2: text is not text"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.csv", b"text\nx", "cannot read .csv"),
    ],
)
def test_what_is_not_documents_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said) as found:
        read_texts(tmp_path / name)
    assert "\n" not in str(found.value)


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(json.dumps({"text": "a\ud800b"}))
    write_texts(tmp_path / "s.parquet", read_texts(tmp_path / "s.jsonl"))
    assert read_texts(tmp_path / "s.parquet")[0].text == "a\ufffdb"
