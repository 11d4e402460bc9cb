"""Whatever stands beside a text, its logits are those that it has alone."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from loopmodels import padded, small, texts
from tutelage.errors import UsageError
from tutelage.train.batches import Packed
from tutelage.train.examples import Example
from tutelage.train.packing import check_blind

# Some of the random models are chaotic, and rounding is not what is tested there: they run in float64, but
# for eager attention, whose softmax is in float32 whatever the model is.
CLOSE = {"sdpa": {"atol": 1e-9, "rtol": 1e-9}, "eager": {"atol": 1e-3, "rtol": 1e-3}}
SHAPES = st.fixed_dictionaries(
    {
        "block": st.sampled_from(["sandwich", "pre"]),
        "adapter": st.sampled_from(["linear", "add"]),
        "norm_after_core": st.sampled_from([None, "exit", "every", "none"]),
        "num_key_value_heads": st.sampled_from([1, 2, 4]),
        "num_prelude_layers": st.integers(0, 2),
        "num_core_layers": st.integers(1, 2),
        "num_coda_layers": st.integers(0, 2),
        "qk_bias": st.booleans(),
        "qk_norm": st.booleans(),
        "attention_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "head_dim": st.sampled_from([None, 6]),
        "attention": st.sampled_from(["sdpa", "eager"]),
    }
)
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def made(shape):
    """A model of `shape`, and how close its logits must be."""
    model = small(**shape)
    return model.double() if shape["attention"] == "sdpa" else model, CLOSE[shape["attention"]]


@torch.no_grad()
def alone(model, row, steps):
    return model(row[None], num_steps=steps).logits[0]


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, lengths=LENGTHS, left=st.booleans(), steps=st.integers(1, 3))
@torch.no_grad()
def test_padding_changes_no_text(shape, lengths, left, steps):
    model, close = made(shape)
    rows = texts(*lengths)
    ids, mask = padded(rows, left)
    found = model(ids, attention_mask=mask, num_steps=steps)
    assert found.logits.isfinite().all() and found.state.isfinite().all()
    for line, row in enumerate(rows):
        torch.testing.assert_close(found.logits[line][mask[line] == 1], alone(model, row, steps), **close)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("shape", [{}, {"block": "pre", "adapter": "add", "num_key_value_heads": 2}])
@torch.no_grad()
def test_padding_changes_nothing_in_float32(attention, left, shape):
    model = small(attention=attention, **shape)
    rows = texts(1, 3, 7, 7)
    ids, mask = padded(rows, left)
    logits = model(ids, attention_mask=mask, num_steps=4).logits
    for line, row in enumerate(rows):
        found = logits[line][mask[line] == 1]
        torch.testing.assert_close(found, alone(model, row, 4), atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, holes=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3))
@torch.no_grad()
def test_any_mask_takes_the_masked_tokens_out(shape, holes):
    model, close = made(shape)
    mask = torch.tensor(holes).long()
    ids = torch.stack(texts(*[6] * len(mask)))
    logits = model(ids, attention_mask=mask, num_steps=2).logits
    assert logits.isfinite().all()
    for line, kept in enumerate(mask == 1):
        if kept.any():
            torch.testing.assert_close(logits[line][kept], alone(model, ids[line][kept], 2), **close)


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, lengths=LENGTHS)
@torch.no_grad()
def test_packed_texts_do_not_see_each_other(shape, lengths):
    model, close = made(shape)
    rows = texts(*lengths)
    examples = [Example(row.tolist(), row.tolist(), f"{n}", f"{n}") for n, row in enumerate(rows)]
    batch = Packed(examples, [list(range(len(rows))), [0]], pad=0, flat=False)([{"row": 0}, {"row": 1}])
    logits = model(batch["input_ids"], position_ids=batch["position_ids"], num_steps=2).logits
    for row, found in zip(rows, logits[0].split(lengths), strict=True):
        torch.testing.assert_close(found, alone(model, row, 2), **close)
    torch.testing.assert_close(logits[1, : lengths[0]], alone(model, rows[0], 2), **close)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_trainers_check_of_packing_passes(attention):
    model = small(attention=attention)
    check_blind(model, lambda examples, rows: Packed(examples, rows, 0, flat=False))


def test_the_flash_kernels_are_told_where_examples_end():
    """They cannot run here; what they would be given can be seen."""
    told = []

    def attend(module, query, key, value, mask, **kwargs):
        told.append(SimpleNamespace(**kwargs))
        return query.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("told", attend)
    model = small()
    model.config._attn_implementation = "told"
    ends = torch.tensor([0, 2, 6], dtype=torch.int32)
    packed = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 4, "max_length_k": 4}
    ids, positions = torch.ones(1, 6, dtype=torch.long), torch.tensor([[0, 1, 0, 1, 2, 3]])
    model(ids, position_ids=positions, num_steps=(1, 1), **packed)
    assert len(told) == 1 + 2 * 2 + 1
    for each in told:
        assert each.cu_seq_lens_q is ends and each.max_length_k == 4 and each.position_ids is positions


def test_gradients_of_a_padded_batch_are_those_of_its_texts():
    model = small(num_key_value_heads=2)
    rows = texts(3, 6)
    for left in (False, True):
        ids, mask = padded(rows, left)
        model.zero_grad()
        model(ids, attention_mask=mask, num_steps=(1, 2)).logits[mask == 1].pow(2).sum().backward()
        together = {name: each.grad.clone() for name, each in model.named_parameters()}
        model.zero_grad()
        for row in rows:
            model(row[None], num_steps=(1, 2)).logits.pow(2).sum().backward()
        for name, each in model.named_parameters():
            assert (together[name] - each.grad).norm() <= 1e-5 * each.grad.norm(), name


def test_a_mask_of_another_length_is_one_line():
    model = small()
    with pytest.raises(UsageError, match="attention_mask has 3 columns for 4 tokens so far"):
        model(torch.ones(1, 4, dtype=torch.long), attention_mask=torch.ones(1, 3))
