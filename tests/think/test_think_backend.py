"""Promises of the backend: scores are those of whole forwards without a cache, whatever happens in the batch;
what it cannot run is refused by name."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from tinymodel import tiny_llama
from tutelage.errors import UsageError
from tutelage.think import backend
from tutelage.think.backend import Batch, check_model

VOCABULARY = 40
MODEL = tiny_llama(VOCABULARY, layers=1)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def build(kind, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model


def whole(model, ids):
    """Scores after `ids` from one forward without a cache: (vocabulary,)."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def agrees(model, batch, rows):
    for k, ids in enumerate(rows):
        torch.testing.assert_close(batch.logits[k], whole(model, ids), rtol=1e-4, atol=1e-3)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_rows_join_leave_grow_and_take_back_without_touching_each_other(seed):
    """A random life of a batch. The reference recomputes every row alone, from nothing, at every step."""
    chance = random.Random(seed)
    draw = lambda most: [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, most))]  # noqa: E731
    with torch.inference_mode():
        batch, rows = Batch(MODEL), []
        for _ in range(12):
            event = chance.choice(["admit", "decode", "decode", "withdraw", "keep"])
            if event == "admit" or not rows:
                prompts = [draw(12) for _ in range(chance.randint(1, 3))]
                prompts += [prompts[-1]] * chance.randint(0, 2)
                batch.admit(prompts)
                rows += [list(prompt) for prompt in prompts]
            elif event == "keep":
                kept = sorted(chance.sample(range(len(rows)), chance.randint(0, len(rows))))
                batch.keep(kept)
                rows = [rows[k] for k in kept]
            else:
                if event == "withdraw":
                    k = chance.randrange(len(rows))
                    count = chance.randint(0, len(rows[k]))  # also the whole row, prompt included
                    batch.withdraw(k, count)
                    del rows[k][len(rows[k]) - count :]
                fed = [chance.randrange(VOCABULARY) for _ in rows]
                batch.decode(fed)
                for ids, token in zip(rows, fed, strict=True):
                    ids.append(token)
            assert len(batch) == len(rows)
            agrees(MODEL, batch, rows)


def test_a_row_grows_past_every_allocation_and_a_late_one_joins():
    with torch.inference_mode():
        batch, rows = Batch(MODEL), [[1, 2, 3]]
        batch.admit(rows)
        for step in range(150):  # several times the slots that are allocated ahead
            if step == 100:
                batch.admit([[4, 5]])
                rows.append([4, 5])
            fed = [(7 * step + k) % VOCABULARY for k in range(len(rows))]
            batch.decode(fed)
            rows = [[*ids, token] for ids, token in zip(rows, fed, strict=True)]
            if step % 25 == 24:
                agrees(MODEL, batch, rows)


def test_prompts_are_prefilled_in_parts_and_equal_neighbours_once(monkeypatch):
    monkeypatch.setattr(backend, "_PREFILL_TOKENS", 20)
    shapes, forward = [], Batch._forward

    def spy(self, ids, *rest):
        shapes.append(tuple(ids.shape))
        forward(self, ids, *rest)

    monkeypatch.setattr(Batch, "_forward", spy)
    rows = [[1] * 6, [1] * 6, [2] * 6, [3] * 9, [3] * 9, [4] * 30]
    with torch.inference_mode():
        batch = Batch(MODEL)
        batch.admit(rows)
        agrees(MODEL, batch, rows)
    assert shapes == [(2, 6), (1, 9), (1, 30)]
    assert all(rows * width <= 20 or rows == 1 for rows, width in shapes)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),  # learned positions
        ("qwen3", {"head_dim": 8, "num_key_value_heads": 2}),
        ("gemma", {"head_dim": 8, "num_key_value_heads": 1}),
        ("cohere", {"num_key_value_heads": 2}),
        ("falcon", {}),  # attention of its own, not transformers' shared one
    ],
)
def test_models_of_other_kinds_agree_with_their_own_forward(kind, more):
    model, rows = build(kind, **more), [[1, 2, 3], [4, 5, 6, 7, 8, 9], [3]]
    with torch.inference_mode():
        batch = Batch(model)
        batch.admit(rows)
        for step in range(8):
            batch.decode([5, step, 9])
            rows = [[*ids, token] for ids, token in zip(rows, (5, step, 9), strict=True)]
        agrees(model, batch, rows)


def test_rotations_that_change_with_the_longest_row_limit_the_context():
    """longrope changes the rotations of the whole batch when one row passes the original length."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 16,
    }
    options = {"original_max_position_embeddings": 16, "rope_parameters": rope, "num_key_value_heads": 2}
    assert check_model(build("phi3", **options)) == 16
    assert check_model(MODEL) == 256


def test_half_precision_stays_close_to_itself_without_a_cache():
    model = tiny_llama(VOCABULARY).to(torch.bfloat16)
    with torch.inference_mode():
        batch, rows = Batch(model), [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
        batch.admit(rows)
        batch.decode([5, 6])
        assert batch.logits.dtype == torch.float32
        for k, ids in enumerate([[1, 2, 3, 5], [4, 5, 6, 7, 8, 9, 6]]):
            expected = whole(model, ids).float()
            assert (batch.logits[k] - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("mistral", {"sliding_window": 8}, "mistral .*sliding_attention"),
        ("gemma2", {"head_dim": 8}, "gemma2 .*sliding_attention"),
        ("lfm2", {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}, "lfm2 .*conv"),
        ("mamba", {}, "mamba .*linear_attention"),
        ("falcon", {"alibi": True}, "falcon .*ALiBi"),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "mpt .*no explicit positions"),
    ],
)
def test_models_that_do_not_look_at_the_whole_row_are_refused_by_name(kind, more, reason):
    with pytest.raises(UsageError, match=reason) as refusal:
        check_model(build(kind, **more))
    assert "\n" not in str(refusal.value)


def test_encoders_and_models_of_images_are_refused_by_name():
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(UsageError, match=r"t5 .*encoder-decoder"):
        check_model(T5ForConditionalGeneration(config))
    model = tiny_llama(VOCABULARY)
    model.config.get_text_config = lambda: object()  # as of a model with a language model inside
    with pytest.raises(UsageError, match=r"llama .*text and images"):
        check_model(model)
