"""How the states of a recurrent-depth model move from pass to pass of its core, token by token.

Promises: a text gets the same states and predictions whatever else is traced with it; without an exit, those
of the model's own forward at every depth; with one, a token that has settled stands still, and what comes
after it goes on reading the keys and values of its last pass, as in the engine's reading of a prompt. Memory
is that of one batch and of what was asked to be kept.
Does not: save time where tokens leave (the engine does: see `loops`), sample, or say what the paths mean (see
`measure.paths`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from tutelage.errors import UsageError
from tutelage.students.recurrent.exits import begin, decides, looks, predicts, settled
from tutelage.students.recurrent.model import RecurrentDepthForCausalLM
from tutelage.students.recurrent.states import truncated
from tutelage.think.effort import Exit

# Tokens that run through the loop at once, and scores (tokens x vocabulary) that are held at once: 256 MiB.
_TOKENS = 8192
_SCORES = 2**26


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What became of one text. `predicted` (reads, tokens): the likeliest token after each, and `surprise`
    (reads, tokens): -ln p of the one that comes (nats; NaN after the last), at each depth of `read`; `states`
    (len(kept), tokens, width): those after the passes `kept`, 0 the initial one; `steps` (tokens,): passes
    that each token made."""

    ids: tuple[int, ...]
    read: tuple[int, ...]
    kept: tuple[int, ...]
    predicted: NDArray[np.int64]
    surprise: NDArray[np.float64]
    states: NDArray[np.float32]
    steps: NDArray[np.int64]


def recurrent(model: Any, name: str) -> RecurrentDepthForCausalLM:
    """`model`, if it is one that loops. Raises UsageError that calls it `name`."""
    if not isinstance(model, RecurrentDepthForCausalLM):
        raise UsageError(
            f"{name}: a {type(model).__name__} has no loop to look into; give a recurrent-depth model "
            "(tutelage retrofit makes one)"
        )
    return model


@torch.inference_mode()
def trace_loops(
    model: RecurrentDepthForCausalLM,
    rows: Sequence[Sequence[int]],
    steps: int,
    *,
    read: Sequence[int] | None = None,
    keep: Sequence[int] = (),
    exit: Exit | None = None,
    alone: Sequence[int] | None = None,
    first_seed: int | None = None,
) -> list[Trajectory]:
    """A trajectory for each of `rows` (token ids), in their order, over `steps` passes.

    `read`: the depths to predict at (None: the last); `keep`: those whose states are kept. `exit`: a token
    stops where it says so, and is read where it stopped. `alone`: for each row the place from which tokens
    come one by one, as the engine feeds the last token of a prompt and those of a reply: exits that compare
    predictions then see all tokens before them as they ended (None: none comes alone). `first_seed`: draws
    other initial states than the model's own. Raises UsageError for a depth that the model does not have, or
    a row without tokens."""
    model.config.check_steps(steps)
    read = tuple(sorted({steps} if read is None else set(read)))
    keep = tuple(sorted(set(keep)))
    for name, asked, least in (("read", read, 1), ("keep", keep, 0)):
        if any(not least <= step <= steps for step in asked):
            raise UsageError(f"trace: {name} {list(asked)} must lie between {least} and steps, {steps}")
    if any(not row for row in rows):
        raise UsageError("trace: a text without tokens has no states; leave it out")
    found: dict[int, Trajectory] = {}
    # An exit that compares predictions holds the scores of all tokens.
    most = _SCORES // model.config.vocab_size if exit is not None and predicts(exit) else _TOKENS
    for batch in _batches([len(row) for row in rows], min(_TOKENS, most)):
        walk = _Walk(model, [rows[number] for number in batch], exit, first_seed)
        fixed = None
        if exit is not None and predicts(exit) and alone is not None:
            fixed = walk.one_by_one(steps, [alone[number] for number in batch])
        found |= zip(batch, walk.run(steps, read, keep, fixed), strict=True)
    return [found[number] for number in range(len(rows))]


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of rows of like length, so that a batch with its padding has at most `most` tokens, or one
    row."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda each: lengths[each]):
        if batch and (len(batch) + 1) * lengths[number] > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


class _Stopped:
    """Keys and values of the core: those of tokens that stopped stay. It stands where a cache would, for a
    pass over all tokens at once."""

    def __init__(self) -> None:
        self.stopped: Tensor | None = None  # (rows, tokens)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def place(self, step: int, layer: int) -> int:
        """One place per layer: a pass takes over that of the pass before."""
        return layer

    def update(self, keys: Tensor, values: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """(rows, heads, tokens, head width) twice."""
        if self.stopped is not None and place in self._kept:
            still = self.stopped[:, None, :, None]
            old_keys, old_values = self._kept[place]
            keys, values = torch.where(still, old_keys, keys), torch.where(still, old_values, values)
        self._kept[place] = (keys, values)
        return keys, values


@dataclass(frozen=True, slots=True)
class _Ended:
    """Passes (rows, tokens) after which tokens stop, 0 where that is not known yet, and the `states` (rows,
    tokens, width) in which they do."""

    passes: Tensor
    states: Tensor


class _Walk:
    """One batch on its way. Rows are padded at their ends, where causal attention does not look."""

    def __init__(
        self,
        model: RecurrentDepthForCausalLM,
        rows: Sequence[Sequence[int]],
        exit: Exit | None,
        first_seed: int | None,
    ) -> None:
        self._model, self._rows, self._exit = model, rows, exit
        body, device = model.model, model.lm_head.weight.device
        longest = max(map(len, rows))
        self._ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        positions = torch.arange(longest, device=device)[None]
        given = body.embed_tokens(self._ids)
        self._mask = create_causal_mask(
            config=model.config,
            inputs_embeds=given,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )
        self._embedded = given * model.config.embedding_scale
        self._rotation = body.rotary_emb(self._embedded, position_ids=positions)
        for block in body.prelude:
            self._embedded = block(self._embedded, self._rotation, self._mask)
        if first_seed is None:
            self._state = body.first_state(self._embedded, positions)
        else:
            self._state = _drawn(self._embedded, model.config.state_std, first_seed)

    def run(
        self, steps: int, read: Sequence[int], keep: Sequence[int], fixed: _Ended | None = None
    ) -> list[Trajectory]:
        """A trajectory per row; `fixed`: where tokens stop, if that is known."""
        kept, told = [self._state] if 0 in keep else [], []
        passes = torch.zeros_like(self._ids)
        for step, (state, made) in enumerate(self._loop(steps, fixed), start=1):
            passes = made
            if step in keep:
                kept.append(state)
            if step in read:
                told.append(self._predict(state))
        return self._parted(read, keep, told, kept, passes)

    def one_by_one(self, steps: int, alone: Sequence[int]) -> _Ended:
        """Where all tokens stop if those from `alone` on (a place per row) come one by one."""
        padding = [[0] * len(row) + [1] * (self._ids.shape[1] - len(row)) for row in self._rows]
        ended = _Ended(torch.tensor(padding, device=self._ids.device), self._state)
        # Those before them do not see them: one loop is enough. Then a loop for each that comes alone.
        upto = torch.tensor(alone, device=self._ids.device)[:, None]
        places = torch.arange(self._ids.shape[1], device=self._ids.device)[None]
        while (ended.passes == 0).any():
            *_, (state, made) = self._loop(steps, ended)
            known = (places < upto) & (ended.passes == 0)
            ended = _Ended(
                torch.where(known, made, ended.passes), torch.where(known[..., None], state, ended.states)
            )
            upto = upto + 1
        return ended

    def _loop(self, steps: int, fixed: _Ended | None) -> Iterator[tuple[Tensor, Tensor]]:
        """After each pass the states (rows, tokens, width), and how many passes each token has made."""
        state, exit = self._state, self._exit
        made = torch.zeros_like(self._ids)
        inside = torch.ones_like(made, dtype=torch.bool)
        known = inside & False if fixed is None else fixed.passes > 0
        still = _Stopped() if exit is not None else None
        past = None if exit is None else begin(exit, state)
        for step in range(1, steps + 1):
            if inside.any():
                through: Any = (self._rotation, self._mask, still)
                moved = self._model.model.once(state, self._embedded, step - 1, *through)
                state = torch.where(inside[..., None], moved, state)
                made = made + inside
            if exit is not None and past is not None and still is not None:
                if looks(exit, step) and not known.all():
                    seen = state if fixed is None else torch.where(known[..., None], fixed.states, state)
                    leaves, past = settled(exit, self._looked_at(exit, seen), past)
                    if decides(exit, step):
                        stays = inside & (known | ~leaves)
                        if exit.ordered:
                            waits = stays if fixed is None else stays & (~known | (step < fixed.passes))
                            stays = inside & (stays | (waits.cumsum(dim=1) > 0) & ~known)
                        inside = stays
                if fixed is not None:
                    inside = inside & (~known | (step < fixed.passes))
                still.stopped = ~inside
            yield state, made

    def _looked_at(self, exit: Exit, state: Tensor) -> Tensor:
        """What the exit compares: the states, or the scores that they give."""
        if not predicts(exit):
            return state
        scores: Tensor = self._model.lm_head(self._heard(state))
        return scores

    def _heard(self, state: Tensor) -> Tensor:
        """What the head reads of `state` (rows, tokens, width)."""
        return self._model.model.heard(state, self._rotation, self._mask, None)

    def _predict(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest next token and -ln p of the real one, (rows, tokens) each."""
        hidden = self._heard(state).flatten(0, 1)
        follows = torch.roll(self._ids, -1, dims=1).flatten()
        best, cost = [], []
        size = max(1, _SCORES // self._model.config.vocab_size)
        for part, after in zip(torch.split(hidden, size), torch.split(follows, size), strict=True):
            scores = self._model.lm_head(part).float()
            best.append(scores.argmax(dim=-1))
            cost.append(nn.functional.cross_entropy(scores, after, reduction="none"))
        return torch.cat(best).view(self._ids.shape), torch.cat(cost).view(self._ids.shape)

    def _parted(
        self,
        read: Sequence[int],
        keep: Sequence[int],
        told: Sequence[tuple[Tensor, Tensor]],
        kept: Sequence[Tensor],
        made: Tensor,
    ) -> list[Trajectory]:
        best = torch.stack([each for each, _ in told]).cpu().numpy()
        cost = torch.stack([each for _, each in told]).double().cpu().numpy()
        states = torch.stack(list(kept)).float().cpu().numpy() if kept else None
        width = self._state.shape[-1]
        found = []
        for number, row in enumerate(self._rows):
            size = len(row)
            surprise = cost[:, number, :size].copy()
            surprise[:, -1] = np.nan
            found.append(
                Trajectory(
                    ids=tuple(row),
                    read=tuple(read),
                    kept=tuple(keep),
                    predicted=best[:, number, :size].copy(),
                    surprise=surprise,
                    states=np.zeros((0, size, width), np.float32)
                    if states is None
                    else states[:, number, :size].copy(),
                    steps=made[number, :size].cpu().numpy(),
                )
            )
        return found


def _drawn(like: Tensor, std: float, seed: int) -> Tensor:
    """Initial states of the shape of `like` (rows, tokens, width), the same for every row."""
    draw = torch.Generator().manual_seed(seed)
    return truncated(torch.empty(like.shape[1:]), std, draw).to(like).expand(like.shape)
