"""Batches of token ids from rows of a training set.

A collator here gets rows as `{"row": number}` and looks them up, so that the ids of a set are kept once, as
small arrays, and not in the trainer's table.

Promises: labels are -100 where no loss falls: on padding, and in a packed row on the first token of each
example (its neighbour would be told to predict it); each batch says under `fed` what it holds: the rows,
their tokens (padding not counted), the tokens under the loss, and all positions.
Does not: choose which rows come together (the trainer's sampler does), or plan packed rows (see `packing`).

Why there is no attention mask: padding stands at the right, where a causal model's real tokens do not look,
so that a mask changes no loss; without one attention takes its fast path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tutelage.train.examples import IGNORE, Example

FED = "fed"


@dataclass(frozen=True, slots=True)
class Fed:
    """What a batch holds: numbers of its rows, real tokens, tokens under the loss, positions with padding."""

    rows: tuple[int, ...]
    tokens: int
    learned: int
    positions: int


class Padded:
    """One example a row, padded at the right to the longest of the batch."""

    def __init__(self, examples: Sequence[Example], pad: int) -> None:
        self.pad = pad
        self.ids = [np.asarray(each.input_ids, np.int32) for each in examples]
        self.labels = [np.asarray(each.labels, np.int32) for each in examples]
        self.learned = [int((each[1:] != IGNORE).sum()) for each in self.labels]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        places = [int(row["row"]) for row in rows]
        shape = len(places), max(len(self.ids[place]) for place in places)
        input_ids = np.full(shape, self.pad, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        for line, place in enumerate(places):
            input_ids[line, : len(self.ids[place])] = self.ids[place]
            labels[line, : len(self.ids[place])] = self.labels[place]
        return {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            FED: Fed(
                tuple(places),
                sum(len(self.ids[place]) for place in places),
                sum(self.learned[place] for place in places),
                input_ids.size,
            ),
        }


class Packed:
    """Several examples a row, `groups[row]` names them. Padding is an example of its own, so that no real one
    sees it. With `flat` (flash attention) the rows of a batch come as one long one, with the ends of the
    examples."""

    def __init__(self, examples: Sequence[Example], groups: Sequence[Sequence[int]], pad: int, flat: bool):
        self.pad, self.groups, self.flat = pad, groups, flat
        self.ids = [np.asarray(each.input_ids, np.int32) for each in examples]
        self.labels = [_without_first(each.labels) for each in examples]
        self.learned = [int((each != IGNORE).sum()) for each in self.labels]
        self.inner = DataCollatorForLanguageModeling(pad_token_id=pad, padding_free=True)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        places = [int(row["row"]) for row in rows]
        batch = self._flat(places) if self.flat else self._grid(places)
        held = [each for place in places for each in self.groups[place]]
        fed = Fed(
            tuple(places),
            sum(len(self.ids[each]) for each in held),
            sum(self.learned[each] for each in held),
            batch["input_ids"].numel(),
        )
        return {**batch, FED: fed}

    def _grid(self, places: Sequence[int]) -> dict[str, Any]:
        """`input_ids`, `labels` and `position_ids`, each (rows, longest row)."""
        totals = [sum(len(self.ids[each]) for each in self.groups[place]) for place in places]
        shape = len(places), max(totals)
        input_ids = np.full(shape, self.pad, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        position_ids = np.zeros(shape, np.int64)
        for line, place in enumerate(places):
            at = 0
            for each in self.groups[place]:
                end = at + len(self.ids[each])
                input_ids[line, at:end] = self.ids[each]
                labels[line, at:end] = self.labels[each]
                position_ids[line, at:end] = np.arange(end - at)
                at = end
            position_ids[line, at:] = np.arange(shape[1] - at)
        found = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
        return {name: torch.from_numpy(each) for name, each in found.items()}

    def _flat(self, places: Sequence[int]) -> dict[str, Any]:
        joined = [
            {
                "input_ids": np.concatenate([self.ids[each] for each in self.groups[place]]).astype(np.int64),
                "labels": np.concatenate([self.labels[each] for each in self.groups[place]]).astype(np.int64),
                "seq_lengths": [len(self.ids[each]) for each in self.groups[place]],
            }
            for place in places
        ]
        batch: dict[str, Any] = self.inner.torch_call(joined)
        return batch


def _without_first(labels: Sequence[int]) -> NDArray[np.int32]:
    found = np.asarray(labels, np.int32)
    return np.concatenate([np.full(1, IGNORE, np.int32), found[1:]])
