"""Packing: nothing lost, nothing cut, no example sees its neighbours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.students.tiny import TinyConfig, build_tiny
from tutelage.train.batches import FED, Packed, Padded
from tutelage.train.examples import IGNORE, Example
from tutelage.train.packing import check_blind, filled, pack

LLAMA = tiny_student().model
# The lab's student: no rotary encoding, so that positions alone cannot keep neighbours apart.
SMOLLM3 = build_tiny(TinyConfig(), vocabulary=len(tiny_student().tokenizer), pad=0, end=1, seed=0)
PAD = 0


def example(length: int, prompt: int, seed: int) -> Example:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 250, (length,), generator=draw).tolist()
    return Example(ids, [IGNORE] * prompt + ids[prompt:], f"p{seed}", f"t{seed}")


EXAMPLES = [example(length, length // 3, length) for length in (23, 5, 17, 9, 30, 2, 14)]
LENGTHS = [len(each.input_ids) for each in EXAMPLES]
# The fully learned ones show a loss on a neighbour's first token.
WHOLE = [Example(each.input_ids, each.input_ids, each.problem_id, each.trace_id) for each in EXAMPLES]


def logits_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    fed = {name: each for name, each in batch.items() if name not in ("labels", FED)}
    logits: torch.Tensor = model(**fed, use_cache=False).logits
    return logits


def summed_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    logits, labels = logits_of(model, batch)[:, :-1], batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def everything(rows: int) -> list[dict[str, Any]]:
    return [{"row": number} for number in range(rows)]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", [LLAMA, SMOLLM3], ids=["llama", "smollm3"])
def test_packed_rows_have_the_loss_and_the_logits_of_the_same_rows_alone(
    model: Any, attention: str, flat: bool
) -> None:
    model = copy.deepcopy(model)
    model.set_attn_implementation(attention)
    for examples in (EXAMPLES, WHOLE):
        groups = pack(LENGTHS, 40)
        batch = Packed(examples, groups, PAD, flat)(everything(len(groups)))
        with torch.no_grad():
            together = summed_loss(model, batch)
            alone = summed_loss(model, Padded(examples, PAD)(everything(len(examples))))
            assert float(together) == pytest.approx(float(alone), rel=1e-5)
            found = logits_of(model, batch).flatten(0, 1)
            rows = batch["input_ids"].shape[1] if not flat else 0
            for line, group in enumerate(groups):
                at = line * rows if not flat else sum(LENGTHS[e] for g in groups[:line] for e in g)
                for each in group:
                    own = logits_of(model, {"input_ids": torch.tensor([examples[each].input_ids])})[0]
                    assert torch.allclose(found[at : at + LENGTHS[each]], own, atol=1e-4, rtol=1e-4)
                    at += LENGTHS[each]


@pytest.mark.parametrize("model", [LLAMA, SMOLLM3], ids=["llama", "smollm3"])
def test_packed_gradients_are_those_of_the_rows_alone_also_when_activations_are_recomputed(
    model: Any,
) -> None:
    groups = pack(LENGTHS, 40)
    batches = (
        Padded(EXAMPLES, PAD)(everything(len(EXAMPLES))),
        Packed(EXAMPLES, groups, PAD, False)(everything(len(groups))),
    )
    found = []
    for batch, recompute in ((batches[0], False), (batches[1], False), (batches[1], True)):
        own = copy.deepcopy(model).train()
        if recompute:
            own.activation_checkpointing_enable()
        summed_loss(own, batch).backward()
        found.append({name: each.grad for name, each in own.named_parameters()})
    for name, grad in found[0].items():
        for other in found[1:]:
            scale = float(grad.abs().max())
            assert torch.allclose(grad, other[name], atol=1e-4 * scale), name


class Seeing(Packed):
    """A collator whose batches let attention run over the ends of examples."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(rows)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


@pytest.mark.parametrize("model", [LLAMA, SMOLLM3], ids=["llama", "smollm3"])
def test_a_model_that_lets_packed_examples_see_each_other_is_refused(model: Any) -> None:
    check_blind(model, lambda probes, rows: Packed(probes, rows, PAD, False))
    check_blind(model, lambda probes, rows: Packed(probes, rows, PAD, True))
    with pytest.raises(
        UsageError, match=r"cannot be trained on packed rows: the scores of an example change"
    ):
        check_blind(model, lambda probes, rows: Seeing(probes, rows, PAD, False))
    halved = copy.deepcopy(model).to(torch.bfloat16)
    check_blind(halved, lambda probes, rows: Packed(probes, rows, PAD, False))
    with pytest.raises(UsageError, match="cannot be trained on packed rows"):
        check_blind(halved, lambda probes, rows: Seeing(probes, rows, PAD, False))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_every_example_is_in_one_row_and_no_row_is_over_its_room(lengths: list[int]) -> None:
    groups = pack(lengths, 50)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    totals = [sum(lengths[place] for place in group) for group in groups]
    assert max(totals) <= 50
    # Best fit: no two rows could be one.
    assert all(a + b > 50 for n, a in enumerate(totals) for b in totals[n + 1 :])
    assert filled(lengths, groups, 50) == pytest.approx(sum(lengths) / (50 * len(groups)))
    assert groups == pack(lengths, 50)


def test_what_does_not_fit_is_refused_not_cut() -> None:
    with pytest.raises(UsageError, match="example 1 has 51 tokens, more than a packed row of 50"):
        pack([3, 51], 50)
    with pytest.raises(UsageError, match="no example to pack"):
        pack([], 50)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=8),
    st.booleans(),
)
def test_a_batch_holds_its_rows_and_says_so(shapes: list[tuple[int, int]], flat: bool) -> None:
    examples = [example(length, min(prompt, length), n) for n, (length, prompt) in enumerate(shapes)]
    lengths = [len(each.input_ids) for each in examples]
    groups = pack(lengths, 16)
    for collate, rows in (
        (Padded(examples, PAD), len(examples)),
        (Packed(examples, groups, PAD, flat), len(groups)),
    ):
        batch = collate(everything(rows))
        fed = batch[FED]
        assert fed.rows == tuple(range(rows)) and fed.tokens == sum(lengths)
        # A row's first token is never predicted, whatever its label.
        assert fed.learned == int((batch["labels"][:, 1:] != IGNORE).sum())
        assert fed.learned == sum(label != IGNORE for each in examples for label in each.labels[1:])
        assert fed.positions == batch["input_ids"].numel() >= fed.tokens
        learned = batch["labels"] != IGNORE
        assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
