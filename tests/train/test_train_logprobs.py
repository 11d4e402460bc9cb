"""Files of a teacher's log-probabilities: what is written is read, and what does not fit is refused."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tinymodel import byte_tokenizer
from tutelage.errors import StorageError, UsageError
from tutelage.train import logprobs
from tutelage.train.divergence import top_and_tail
from tutelage.train.examples import IGNORE, Example
from tutelage.train.logprobs import (
    Header,
    Scored,
    ScoreFile,
    tokenizer_fingerprint,
    vocabulary_size,
    write_scores,
)

TOKENIZER = byte_tokenizer()
HEADER = Header("big", tokenizer_fingerprint(TOKENIZER), vocabulary_size(TOKENIZER), 3, "float32")


def scored(number: int, prompt: int = 2, reply: int = 3, k: int = 3, vocabulary: int = 20) -> Scored:
    """Random scores of a made-up reply."""
    generator = torch.Generator().manual_seed(number)
    best = top_and_tail(torch.randn(reply, vocabulary, generator=generator) * 3, k)
    ids = torch.randint(0, vocabulary, (prompt + reply,), generator=generator)
    return Scored(
        trace_id=f"t{number}",
        problem_id=f"p{number}",
        ids=ids.numpy().astype(np.int32),
        start=prompt,
        top_ids=best.ids.numpy().astype(np.int32),
        top_logprobs=best.logprobs.numpy(),
        tail=best.tail.numpy(),
    )


def example(row: Scored) -> Example:
    ids = row.ids.tolist()
    return Example(ids, [IGNORE] * row.start + ids[row.start :], row.problem_id, row.trace_id)


def same(a: Scored, b: Scored) -> bool:
    return (a.trace_id, a.problem_id, a.start) == (b.trace_id, b.problem_id, b.start) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("ids", "top_ids", "top_logprobs", "tail")
    )


@settings(max_examples=25)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=8),
    k=st.integers(1, 20),
    group=st.integers(1, 2000),
)
def test_what_is_written_is_read_and_each_place_adds_up_to_one(
    shapes: list[tuple[int, int]], k: int, group: int
) -> None:
    rows = [scored(number, prompt, reply, k) for number, (prompt, reply) in enumerate(shapes)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "GROUP_BYTES", group)
        path = Path(folder) / "scores.parquet"
        write_scores(path, replace(HEADER, top_k=k), rows)
        found = ScoreFile(path)
        assert found.header == replace(HEADER, top_k=k) and len(found) == len(rows)
        assert all(same(a, b) for a, b in zip(found, rows, strict=True))
        for row in reversed(rows):
            assert same(found[row.trace_id], row)
            total = np.exp(found[row.trace_id].top_logprobs).sum(-1) + np.exp(found[row.trace_id].tail)
            assert np.allclose(total, 1, atol=1e-3)


def test_the_file_is_plain_parquet_as_documented(tmp_path: Path) -> None:
    rows = [scored(0, 2, 3), scored(1, 4, 2)]
    write_scores(tmp_path / "s.parquet", HEADER, rows)
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column_names == [
        "trace_id", "problem_id", "ids", "start", "top_ids", "top_logprobs", "tail",
    ]  # fmt: skip
    first = table.to_pylist()[0]
    assert first["start"] == 2 and len(first["ids"]) == 5 and len(first["tail"]) == 3
    # Place by place, best first.
    assert first["top_ids"] == [int(number) for place in rows[0].top_ids for number in place]
    header = json.loads(table.schema.metadata[b"tutelage.scores"])
    assert header["version"] == 1 and header["top_k"] == 3 and header["temperature"] == 1.0
    assert header["teacher"] == "big" and header["tokenizer"] == HEADER.tokenizer


def test_a_reader_remembers_a_bounded_number_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "GROUP_BYTES", 1)  # a row each
    rows = [scored(number, reply=50) for number in range(20)]
    write_scores(tmp_path / "s.parquet", HEADER, rows)
    monkeypatch.setattr(logprobs, "CACHE_BYTES", 10_000)
    found = ScoreFile(tmp_path / "s.parquet")
    for row in rows * 2:
        assert same(found[row.trace_id], row)
        assert found._cached <= 10_000
    assert 1 < len(found._cache) < 20


def test_scores_fit_the_replies_that_they_were_made_of(tmp_path: Path) -> None:
    rows = [scored(number) for number in range(4)]
    write_scores(tmp_path / "s.parquet", HEADER, rows)
    found = ScoreFile(tmp_path / "s.parquet")
    found.match(TOKENIZER, [example(row) for row in rows[:3]])
    # The student may be asked in other words: the reply counts.
    other = example(rows[0])
    found.match(TOKENIZER, [replace(other, input_ids=[9, *other.input_ids], labels=[IGNORE, *other.labels])])
    changed = replace(other, labels=[*other.labels[:-1], (other.labels[-1] + 1) % 20])
    with pytest.raises(UsageError, match="the scores of trace t0 are of another reply"):
        found.match(TOKENIZER, [changed])
    with pytest.raises(UsageError, match="no scores of trace t9; score the traces"):
        found.match(TOKENIZER, [example(scored(9))])
    with pytest.raises(
        UsageError, match=r"another tokenizer .* aligned: true, or train on .*\(sft\)"
    ) as caught:
        found.match(byte_tokenizer(think_tokens=False), [example(rows[0])])
    assert "\n" not in str(caught.value)


def test_the_fingerprint_is_of_what_the_ids_mean_not_of_the_file(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path / "elsewhere")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "elsewhere")
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(TOKENIZER)
    # Flags do not change what an id means; another token does.
    assert tokenizer_fingerprint(byte_tokenizer(special=False)) == tokenizer_fingerprint(TOKENIZER)
    more = byte_tokenizer()
    more.add_tokens([AddedToken("<more>")])
    assert tokenizer_fingerprint(more) != tokenizer_fingerprint(TOKENIZER)


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    with pytest.raises(UsageError, match="no such file"):
        ScoreFile(path)
    path.write_bytes(b"PAR1 not at all")
    with pytest.raises(UsageError, match="not a readable file of scores"):
        ScoreFile(path)
    pq.write_table(pa.table({"id": ["x"]}), path)
    with pytest.raises(UsageError, match="not a file of scores; the stage score makes one"):
        ScoreFile(path)
    write_scores(path, replace(HEADER, version=2), [scored(0)])
    with pytest.raises(UsageError, match="scores of format 2; this program reads 1"):
        ScoreFile(path)
    write_scores(path, replace(HEADER, top_k=2), [scored(0)])  # three were kept
    with pytest.raises(UsageError, match="the row of trace t0 is damaged"):
        _ = ScoreFile(path)["t0"]


def test_bytes_that_changed_on_the_disk_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_scores(path, HEADER, [scored(number, reply=400) for number in range(3)])
    whole = path.read_bytes()
    at = len(whole) // 2
    path.write_bytes(whole[:at] + bytes(255 - byte for byte in whole[at : at + 8]) + whole[at + 8 :])
    with pytest.raises(UsageError, match="not a readable file of scores") as caught:
        list(ScoreFile(path))
    assert "\n" not in str(caught.value)
    path.write_bytes(whole[:at])
    with pytest.raises(UsageError, match="not a readable file of scores"):
        ScoreFile(path)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"

    def broken() -> object:
        yield scored(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scores(path, HEADER, broken())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="cannot write"):
        write_scores(Path("/proc/nowhere/s.parquet"), HEADER, [scored(0)])
