"""Several examples in one row of a fixed number of tokens, each blind to the others.

Promises: no example is cut, lost or doubled; an example in a packed row has the loss and the logits that it
has alone, and a model that would let it see its neighbours is refused before training begins (`check_blind`
tries it on the model given).
Does not: make batches (see `batches`), or plan itself: best-fit decreasing (Ding et al. 2024, arXiv
2404.10830, "Fewer Truncations Improve Language Modeling") is TRL's `pack_dataset`.

How neighbours are kept apart: nothing but `position_ids` that start again at 0 with each example. Without an
attention mask transformers makes the block-diagonal mask from them (eager, sdpa and flex attention); the
flash kernels take the ends of the examples and one long row (see `batches.Packed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from datasets import Dataset
from trl import pack_dataset

from tutelage.errors import UsageError
from tutelage.train.batches import FED
from tutelage.train.examples import Example

# How far the logits of a packed example may be from those alone, as a share of the largest. Rounding is 3.5 %
# in bfloat16 (SmolLM2, sdpa); a model that sees the neighbours is off by half and more.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Rows of `check_blind`: the third example after the first, after the second, and alone.
_ROWS = [[0, 2], [1, 2], [2]]
_LENGTHS = (9, 9, 7)


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which examples share a row: lists of places in `lengths`, best fit decreasing. Raises UsageError for an
    example that is longer than `room` tokens."""
    over = next((place for place, length in enumerate(lengths) if length > room), None)
    if over is not None:
        raise UsageError(
            f"example {over} has {lengths[over]} tokens, more than a packed row of {room}; raise max_length, "
            "or set too_long: drop"
        )
    if not lengths:
        raise UsageError("there is no example to pack")
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        # One whole batch: packing piece by piece would leave a half-filled row at the end of each piece.
        rows = pack_dataset(
            Dataset.from_dict({"place": [[place] * length for place, length in enumerate(lengths)]}),
            room,
            "bfd",
            {"batch_size": None},
        )
    finally:
        if shown:
            datasets.enable_progress_bars()
    groups = []
    for row in rows:
        ends = [sum(row["seq_lengths"][: number + 1]) for number in range(len(row["seq_lengths"]))]
        groups.append([row["place"][end - 1] for end in ends])
    return groups


def filled(lengths: Sequence[int], groups: Sequence[Sequence[int]], room: int) -> float:
    """The share of the positions of all rows that hold a real token."""
    return sum(lengths) / (len(groups) * room)


def check_blind(model: Any, collator: Callable[[list[Example], list[list[int]]], Any]) -> None:
    """Try on `model` that a packed example does not see its neighbours. `collator(examples, rows)` makes the
    collator that training will use. Costs two passes over 39 tokens.

    Raises UsageError that names the model when its scores depend on a neighbour."""
    collate = collator(_probes(model), _ROWS)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = _logits(model, collate([{"row": 0}, {"row": 1}]))  # (32, vocabulary)
            alone = _logits(model, collate([{"row": 2}]))  # (7, vocabulary)
    finally:
        model.train(training)
    beside = packed.view(2, sum(_LENGTHS[1:]), -1)[:, -_LENGTHS[2] :]  # (2, 7, vocabulary)
    off = float((beside - alone).abs().max()) / max(float(alone.abs().max()), 1e-6)
    if not off <= _TOLERANCE.get(model.dtype, 1e-4):
        raise UsageError(
            f"{type(model).__name__} with {model.config._attn_implementation} attention cannot be trained on "
            f"packed rows: the scores of an example change by {off:.2%} with what stands before it; use "
            "kind: sft (not packed), or a model with sdpa attention"
        )


def _probes(model: Any) -> list[Example]:
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randint(vocabulary, (length,), generator=draw).tolist() for length in _LENGTHS]
    return [Example(ids, ids, f"probe-{number}", f"probe-{number}") for number, ids in enumerate(drawn)]


def _logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Logits (positions of all rows, vocabulary)."""
    fed = {
        name: each.to(model.device) if isinstance(each, torch.Tensor) else each
        for name, each in batch.items()
        if name not in ("labels", FED)
    }
    logits: torch.Tensor = model(**fed, use_cache=False).logits
    return logits.flatten(0, 1).float()
