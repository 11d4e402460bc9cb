"""A teacher reads traces and says what it would have written: the making of a file of scores.

Promises: the longest traces come first, so that a GPU that is too small shows in the first minute; what was
scored is on the disk every so many seconds or megabytes, in parts beside the file, and a run that was killed
goes on after its last part with the same numbers; memory does not grow with the number of traces.
Does not: choose traces, load models, or know the format (see `logprobs`).
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tutelage.errors import UsageError
from tutelage.records import stable_hash
from tutelage.students.pretrained import Student
from tutelage.teachers.weights import fingerprint
from tutelage.train.divergence import CHUNK, Sparse, shifted, top_and_tail
from tutelage.train.examples import IGNORE, Example
from tutelage.train.logprobs import (
    Header,
    Scored,
    ScoreFile,
    tokenizer_fingerprint,
    vocabulary_size,
    write_groups,
    write_scores,
)
from tutelage.train.settings import Progress

PART_BYTES = 64 << 20
PART_SECONDS = 30.0


def score(
    teacher: Student,
    examples: Sequence[Example],
    path: Path,
    *,
    top_k: int,
    batch: int = 16,
    progress: Progress | None = None,
) -> Header:
    """Write the `top_k` best ids of `teacher` (a causal model in any dtype, on any device) at every place of
    every example's reply to the file `path`, `batch` examples at a time, longest first.

    Raises UsageError when there is nothing to score, two examples share a trace, `top_k` exceeds the
    vocabulary, or the GPU's memory does not suffice; StorageError when the disk refuses."""
    header = Header(
        teacher=teacher.name,
        tokenizer=tokenizer_fingerprint(teacher.tokenizer),
        vocabulary=vocabulary_size(teacher.tokenizer),
        top_k=top_k,
        dtype=str(next(teacher.model.parameters()).dtype).removeprefix("torch."),
    )
    _check(header, examples)
    ordered = sorted(examples, key=lambda example: -len(example.input_ids))
    batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    parts = _parts_folder(path, stable_hash(asdict(header), fingerprint(teacher), _digest(ordered), batch))
    written, done = _finished(parts)
    number, pending, since = len(written), [], time.monotonic()
    count = len(done)
    for members in batches:
        if members[0].trace_id in done:  # parts hold whole batches
            continue
        pending += _score_batch(teacher, members, header)
        count += len(members)
        if progress:
            progress(count, len(ordered), "traces scored")
        size = sum(row.nbytes for row in pending)
        if size >= PART_BYTES or time.monotonic() - since >= PART_SECONDS or count == len(ordered):
            write_scores(parts / f"{number:06d}.parquet", header, pending)
            number, pending, since = number + 1, [], time.monotonic()
    write_groups(path, header, _join(parts))
    shutil.rmtree(parts)
    return header


def _check(header: Header, examples: Sequence[Example]) -> None:
    if not examples:
        raise UsageError("there is no trace to score")
    if header.top_k > header.vocabulary:
        raise UsageError(f"top_k is {header.top_k}, but the teacher's tokenizer has {header.vocabulary} ids")
    seen: set[str] = set()
    for example in examples:
        if example.trace_id in seen:
            raise UsageError(f"two traces share the id {example.trace_id}; ids must be unique")
        seen.add(example.trace_id)


def _parts_folder(path: Path, mark: str) -> Path:
    """Where the parts of this very work are; those of other work for the same file are removed."""
    folder = path.with_name(f"{path.name}.{mark}.parts")
    for other in path.parent.glob(f"{path.name}.*.parts"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.trace_id} {len(example.input_ids)} {_start(example)}\n".encode())
        digest.update(np.asarray(example.input_ids, dtype=np.int32).tobytes())
    return digest.hexdigest()


def _finished(parts: Path) -> tuple[list[Path], set[str]]:
    """The whole parts and the traces in them."""
    files = sorted(parts.glob("*.parquet"))
    return files, {name for file in files for name in ScoreFile(file).names()}


def _join(parts: Path) -> Iterator[pa.Table]:
    for file in sorted(parts.glob("*.parquet")):
        yield from ScoreFile(file).tables()


def _start(example: Example) -> int:
    """Where the reply begins: the first learned id, after which all are learned."""
    start = next((place for place, label in enumerate(example.labels) if label != IGNORE), 0)
    if not start or IGNORE in example.labels[start:]:
        raise UsageError(f"trace {example.trace_id}: a prompt and then a reply are needed to score it")
    return start


def _score_batch(teacher: Student, members: Sequence[Example], header: Header) -> list[Scored]:
    device = next(teacher.model.parameters()).device
    width = max(len(example.input_ids) for example in members)
    ids = torch.zeros(len(members), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE)
    for row, example in enumerate(members):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        labels[row, :length] = torch.tensor(example.labels)
    learned = shifted(labels)
    try:
        with torch.inference_mode():
            best = _best(teacher.model, ids.to(device), learned.to(device), header)
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"the GPU's memory does not suffice to score {len(members)} traces of up to {width} tokens: "
            "lower batch, or set bf16: true"
        ) from error
    places = [len(example.input_ids) - _start(example) for example in members]
    rows = []
    for example, start, end in zip(members, np.cumsum([0, *places[:-1]]), np.cumsum(places), strict=True):
        part = best.cut(int(start), int(end))
        rows.append(
            Scored(
                trace_id=example.trace_id,
                problem_id=example.problem_id,
                ids=np.asarray(example.input_ids, dtype=np.int32),
                start=_start(example),
                top_ids=part.ids.numpy().astype(np.int32),
                top_logprobs=part.logprobs.numpy(),
                tail=part.tail.numpy(),
            )
        )
    return rows


def _best(model: Any, ids: Tensor, learned: Tensor, header: Header) -> Sparse:
    """Best ids at the learned places, row by row, on the CPU; softmax over a bounded number of places at
    once."""
    logits = logits_at(model, ids, learned)[:, : header.vocabulary]
    step = max(1, CHUNK // header.vocabulary)
    pieces = [
        top_and_tail(logits[start : start + step], header.top_k) for start in range(0, len(logits), step)
    ]
    return Sparse(
        torch.cat([piece.ids for piece in pieces]).cpu(),
        torch.cat([piece.logprobs for piece in pieces]).cpu(),
        torch.cat([piece.tail for piece in pieces]).cpu(),
    )


def logits_at(model: Any, ids: Tensor, learned: Tensor) -> Tensor:
    """Logits (places, vocabulary) of `model` at the True places of `learned` (batch, tokens − 1), row by row,
    for `ids` (batch, tokens), padded at the right, where a causal model does not look (see `batches`).
    Columns that are prompt in every row get no logits."""
    first = int(learned.any(dim=0).int().argmax())
    keep = ids.shape[1] - first
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
    places: Tensor = logits[:, -keep:][:, :-1][
        learned[:, first:]
    ]  # some models give all columns nevertheless
    return places
