"""Perplexity of texts at each number of passes of a recurrent-depth model, with intervals over documents.

Promises: every token but the first of a window is predicted once, the same tokens at every depth; the
interval is over documents, tokens of one document are no independent evidence; differences between depths are
paired by document.
Does not: judge texts, or read files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.measure.statistics import percentile_of_means
from tutelage.students.pretrained import Student
from tutelage.students.recurrent.model import RecurrentDepthForCausalLM
from tutelage.think.trajectories import trace_loops
from tutelage.tokens import encode_text

Floats = NDArray[np.float64]


def perplexity_by_steps(
    student: Student, texts: Sequence[str], steps: Sequence[int], *, window: int = 512
) -> list[dict[str, Any]]:
    """exp(mean -ln p per token) of `texts` at each of `steps`, and its ratio to the perplexity at the last of
    them: rows {steps, perplexity, ci95, ratio, ratio_ci95, n, tokens}, n documents. Documents are cut into
    windows of `window` tokens, which are read apart. A model without loops gives one row, its steps None.

    Raises UsageError where no text has two tokens, or the model is not that deep."""
    pieces = [_windows(encode_text(student.tokenizer, text), window) for text in texts]
    owners = [number for number, mine in enumerate(pieces) for _ in mine]
    rows = [piece for mine in pieces for piece in mine]
    if not rows:
        raise UsageError("perplexity: no text has two tokens to predict one from the other")
    loops = isinstance(student.model, RecurrentDepthForCausalLM)
    asked: list[int | None] = [*sorted(set(steps))] if loops else [None]
    if not asked:
        raise UsageError("perplexity: no number of steps is given; write one or more")
    costs = _costs(student, rows, [step for step in asked if step is not None])
    documents = {owner: place for place, owner in enumerate(sorted(set(owners)))}
    sums = np.zeros((len(asked), len(documents)))
    counts = np.zeros(len(documents))
    for owner, row, cost in zip(owners, rows, costs, strict=True):
        place = documents[owner]
        sums[:, place] += cost
        counts[place] += len(row) - 1
    return [
        {
            "steps": step,
            **_told("perplexity", "ci95", sums[number], np.zeros_like(counts), counts),
            **_told("ratio", "ratio_ci95", sums[number], sums[-1], counts),
            "n": len(documents),
            "tokens": int(counts.sum()),
        }
        for number, step in enumerate(asked)
    ]


def _windows(ids: Sequence[int], window: int) -> list[list[int]]:
    cut = [list(ids[start : start + window]) for start in range(0, len(ids), window)]
    return [piece for piece in cut if len(piece) > 1]


def _costs(student: Student, rows: Sequence[Sequence[int]], steps: Sequence[int]) -> list[Floats]:
    """Per row the sum of -ln p (nats) at each of `steps`, or at the model's one depth."""
    if not steps:
        return [np.array([_plain_cost(student.model, row)]) for row in rows]
    found = []
    # Some rows at a time: what is told of a row is as long as the row, for each depth.
    for start in range(0, len(rows), 64):
        traced = trace_loops(student.model, rows[start : start + 64], max(steps), read=steps)
        found += [each.surprise[:, :-1].sum(axis=1) for each in traced]
    return found


@torch.inference_mode()
def _plain_cost(model: Any, row: Sequence[int]) -> float:
    ids = torch.tensor([list(row)], device=model.device)
    scores = model(ids).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(scores, ids[0, 1:], reduction="sum"))


def _told(name: str, interval: str, above: Floats, below: Floats, counts: Floats) -> dict[str, Any]:
    """exp((Σ above − Σ below) / Σ counts), with its interval over documents."""

    def quantity(means: Floats) -> Floats:
        found: Floats = np.exp((means[0] - means[1]) / means[2])
        return found

    found = percentile_of_means(np.stack([above, below, counts]), quantity)
    return {name: found.value, interval: [found.lo, found.hi]}
