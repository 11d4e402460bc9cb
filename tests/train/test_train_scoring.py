"""A teacher scores traces: the numbers are the model's own, and a kill costs nothing that was written."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.train import scoring
from tutelage.train.divergence import shifted
from tutelage.train.examples import IGNORE, Example, build_examples
from tutelage.train.logprobs import ScoreFile
from tutelage.train.scoring import logits_at, score

TEACHER = tiny_student()


def examples(count: int) -> list[Example]:
    problems = {f"p{n}": Problem(f"p{n}", "?" * (n % 3)) for n in range(count)}
    traces = [Trace(f"t{n}", f"p{n}", 0, "m", f"{n}" + "!" * (n % 5)) for n in range(count)]
    return build_examples(TEACHER.tokenizer, TEACHER.template, problems, traces).examples


def test_the_numbers_are_the_models_own_at_each_place_of_the_reply(tmp_path: Path) -> None:
    rows = examples(5)
    header = score(TEACHER, rows, tmp_path / "s.parquet", top_k=4, batch=2)
    found = ScoreFile(tmp_path / "s.parquet")
    assert header == found.header
    assert (header.dtype, header.top_k, header.teacher) == ("float32", 4, "tiny-0")
    # Longest first, whatever the order given.
    assert found.names()[0] == max(rows, key=lambda row: len(row.input_ids)).trace_id
    for row in rows:
        with torch.no_grad():
            logits = TEACHER.model(torch.tensor([row.input_ids])).logits[0]
        start = row.labels.index(next(label for label in row.labels if label != IGNORE))
        expected = logits[start - 1 : -1].log_softmax(-1)  # (places, vocabulary)
        kept = found[row.trace_id]
        assert kept.start == start and kept.ids.tolist() == row.input_ids
        best = expected.topk(4, dim=-1)
        assert np.array_equal(kept.top_ids, best.indices.numpy())
        assert np.allclose(kept.top_logprobs, best.values.numpy(), atol=1e-5)
        assert np.allclose(np.exp(kept.tail), 1 - best.values.exp().sum(-1).numpy(), atol=1e-5)


def test_rows_of_a_model_beyond_the_tokenizer_share_nothing(tmp_path: Path) -> None:
    padded = Student(copy.deepcopy(TEACHER.model), TEACHER.tokenizer, TEACHER.template, "padded")
    size = len(TEACHER.tokenizer)
    padded.model.resize_token_embeddings(size + 27, mean_resizing=False)
    with torch.no_grad():
        padded.model.lm_head.weight[size:] = 50.0  # by far the best where they count
    rows = examples(3)
    assert score(padded, rows, tmp_path / "a.parquet", top_k=size).vocabulary == size
    score(TEACHER, rows, tmp_path / "b.parquet", top_k=size)
    for a, b in zip(ScoreFile(tmp_path / "a.parquet"), ScoreFile(tmp_path / "b.parquet"), strict=True):
        assert np.array_equal(a.top_ids, b.top_ids) and np.allclose(a.top_logprobs, b.top_logprobs, atol=1e-5)


class Killed(BaseException):
    """As sudden as it gets within one process."""


@pytest.mark.parametrize("written", [1, 3])
def test_a_kill_loses_nothing_that_was_written_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    rows = examples(8)
    score(TEACHER, rows, tmp_path / "whole.parquet", top_k=3, batch=2)
    monkeypatch.setattr(scoring, "PART_BYTES", 1)  # a part for each batch
    path, fed = tmp_path / "cut.parquet", []
    inner = scoring._score_batch

    def counted(teacher: Student, members: Any, header: Any) -> Any:
        if len(fed) == written and not resumed:
            raise Killed
        fed.append([member.trace_id for member in members])
        return inner(teacher, members, header)

    resumed = False
    monkeypatch.setattr(scoring, "_score_batch", counted)
    with pytest.raises(Killed):
        score(TEACHER, rows, path, top_k=3, batch=2)
    assert not path.exists()
    resumed = True
    heard: list[int] = []
    score(TEACHER, rows, path, top_k=3, batch=2, progress=lambda done, total, note: heard.append(done))
    assert sorted(name for names in fed for name in names) == sorted(row.trace_id for row in rows)
    assert heard[0] == 2 * written + 2 and heard[-1] == 8
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["cut.parquet", "whole.parquet"]
    for a, b in zip(ScoreFile(path), ScoreFile(tmp_path / "whole.parquet"), strict=True):
        assert a.trace_id == b.trace_id and np.array_equal(a.top_logprobs, b.top_logprobs)


_SCORES = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]) / "train")]
import test_train_scoring as test
from tutelage.train import scoring
scoring.PART_BYTES = 1
scoring.score(test.TEACHER, test.examples(3000), Path(sys.argv[2]), top_k=3, batch=2)
"""


@pytest.mark.slow
def test_a_real_kill_leaves_whole_parts_that_are_taken_up(tmp_path: Path) -> None:
    path, tests = tmp_path / "s.parquet", Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", _SCORES, str(tests), str(path)])
    try:
        while len(parts := list(tmp_path.glob("*.parts/*.parquet"))) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not path.exists()
    (folder,) = tmp_path.glob("*.parts")
    parts = sorted(folder.glob("*.parquet"))
    kept = {part.name: part.read_bytes() for part in parts}
    written, done = scoring._finished(folder)
    assert [part.name for part in written] == sorted(kept) and len(done) == 2 * len(kept)
    heard: list[int] = []

    def stop(count: int, total: int, note: str) -> None:
        heard.append(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(TEACHER, examples(3000), path, top_k=3, batch=2, progress=stop)
    assert heard == [len(done) + 2]
    assert {part.name: part.read_bytes() for part in parts} == kept


def test_parts_of_another_teacher_are_never_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PART_BYTES", 1)
    inner = scoring._score_batch
    monkeypatch.setattr(scoring, "_join", lambda parts: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        score(TEACHER, examples(4), tmp_path / "s.parquet", top_k=3)
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr(scoring, "_score_batch", lambda *args: calls.append(1) or inner(*args))
    score(tiny_student(seed=1), examples(4), tmp_path / "s.parquet", top_k=3)
    assert calls and [p.name for p in tmp_path.iterdir()] == ["s.parquet"]


def test_logits_are_those_of_the_learned_places_alone() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]])
    labels = torch.tensor([[IGNORE, IGNORE, IGNORE, 4, 5], [IGNORE, IGNORE, 8, 9, IGNORE]])
    learned = shifted(labels)
    with torch.no_grad():
        found = logits_at(TEACHER.model, ids, learned)
        whole = TEACHER.model(ids).logits
    assert torch.allclose(found, whole[:, :-1][learned], atol=1e-5) and len(found) == 4


def test_what_cannot_be_scored_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    rows = examples(2)
    with pytest.raises(UsageError, match="there is no trace to score"):
        score(TEACHER, [], path, top_k=3)
    with pytest.raises(UsageError, match="two traces share the id t0"):
        score(TEACHER, [rows[0], rows[0]], path, top_k=3)
    with pytest.raises(UsageError, match=r"top_k is 9999, but the teacher's tokenizer has \d+ ids"):
        score(TEACHER, rows, path, top_k=9999)
    with pytest.raises(UsageError, match="trace t0: a prompt and then a reply"):
        score(TEACHER, [Example([1, 2], [1, 2], "p0", "t0")], path, top_k=3)
    assert not path.exists()
