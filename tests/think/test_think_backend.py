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
from tutelage.think import backend, slots
from tutelage.think.backend import HuggingFace, check_model
from tutelage.think.llama import fits

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


def build_backend(model, lean):
    """`lean` False: through the model's own forward, also where the lean one would fit."""
    with pytest.MonkeyPatch.context() as patch:
        if not lean:
            patch.setattr(backend, "fits", lambda model: False)
        made = HuggingFace(model)
    assert (made._lean is not None) == lean
    return made


def agrees(model, scores, rows):
    assert len(scores.logits) == len(rows) and scores.logits.dtype == torch.float32
    for logits, states, ids in zip(scores.logits, scores.states, rows, strict=True):
        torch.testing.assert_close(logits, whole(model, ids), rtol=1e-4, atol=1e-3)
        made = model.get_output_embeddings()(states) * getattr(model, "logit_scale", 1.0)
        torch.testing.assert_close(made, logits, rtol=1e-4, atol=1e-3)


def decode(part, rows, tokens, wanted=None):
    """Feed `tokens` to the rows {handle: ids}; the scores of all of them."""
    fed = dict(zip(rows, tokens, strict=True))
    for row, token in fed.items():
        rows[row] = [*rows[row], token]
    return part.decode(fed, list(rows) if wanted is None else wanted)


@pytest.mark.parametrize("lean", [True, False])
@given(seed=st.integers(0, 10**6), smallest=st.sampled_from([4, 16, 128]))
@settings(max_examples=10, deadline=None)
def test_rows_come_go_fork_grow_and_take_back_without_touching_each_other(lean, seed, smallest):
    """A random life of a batch. The reference recomputes every row alone, from nothing, at every step."""
    chance = random.Random(seed)
    draw = lambda most: [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, most))]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(slots, "_SMALLEST", smallest)  # rows move from shelf to shelf
        part, rows = build_backend(MODEL, lean), {}
        for _ in range(14):
            event = chance.choice(["prefill", "decode", "decode", "withdraw", "fork", "free"])
            row = chance.choice(list(rows)) if rows else None
            if event == "prefill" or row is None:
                prompts = [draw(12) for _ in range(chance.randint(1, 3))]
                handles, scores = part.prefill(prompts)
                agrees(MODEL, scores, prompts)
                rows |= dict(zip(handles, prompts, strict=True))
                continue
            if event == "free":
                part.free(row)
                del rows[row]
            elif event == "withdraw":
                count = chance.randint(0, len(rows[row]))  # also the whole row, prompt included
                part.withdraw(row, count)
                rows[row] = rows[row][: len(rows[row]) - count]
            elif event == "fork":
                length = chance.randint(0, len(rows[row]))
                rows[part.fork(row, length)] = rows[row][:length]
            if rows:
                wanted = chance.sample(list(rows), chance.randint(0, len(rows)))
                scores = decode(part, rows, [chance.randrange(VOCABULARY) for _ in rows], wanted)
                agrees(MODEL, scores, [rows[row] for row in wanted])


def test_memory_is_given_back_when_the_last_row_goes_and_follows_the_rows():
    part = HuggingFace(MODEL)
    with torch.inference_mode():
        (long, short), _ = part.prefill([[1] * 200, [2] * 3])
        held = {capacity: shelf.keys.shape[1] for capacity, shelf in part._slots._shelves.items()}
        assert set(held) == {128, 256}, "a long row does not make its neighbour longer"
        part.free(long)
        part.free(short)
    assert not part._slots._shelves


def test_prompts_are_prefilled_some_thousand_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(backend, "_PREFILL_TOKENS", 20)
    for lean, name in ((True, "_prefill_lean"), (False, "_prefill_padded")):
        sizes, run = [], getattr(HuggingFace, name)

        def spy(self, prompts, rows, sizes=sizes, run=run):
            sizes.append([len(prompt) for prompt in prompts])
            return run(self, prompts, rows)

        monkeypatch.setattr(HuggingFace, name, spy)
        rows = [[1] * 6, [2] * 6, [3] * 9, [4] * 30, [5]]
        with torch.inference_mode():
            agrees(MODEL, build_backend(MODEL, lean).prefill(rows)[1], rows)
        assert sizes == [[6, 6], [9], [30], [1]]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("llama", {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True}),
        ("qwen2", {"num_key_value_heads": 2}),
        ("qwen3", {"head_dim": 16, "num_key_value_heads": 2}),
        ("smollm3", {"num_key_value_heads": 2, "no_rope_layers": [1, 0], "use_sliding_window": False}),
    ],
)
def test_the_lean_forward_is_the_function_of_the_models_own(kind, more):
    model = build(kind, **more)
    for name, weight in model.named_parameters():  # norms and biases are ones and zeros when a model is new
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [3]]
    with torch.inference_mode():
        part = build_backend(model, True)
        handles, scores = part.prefill(rows)
        agrees(model, scores, rows)
        held = dict(zip(handles, rows, strict=True))
        for step in range(4):
            scores = decode(part, held, [5, step, 9])
        agrees(model, scores, held.values())


@pytest.mark.parametrize("change", ["hook", "type", "activation", "family"])
def test_a_model_that_was_changed_keeps_its_own_forward(change):
    model = build("llama", num_key_value_heads=2)
    assert fits(model)
    if change == "hook":
        model.model.layers[1].mlp.register_forward_hook(lambda *args: None)
    elif change == "type":
        model.lm_head.to(torch.bfloat16)
    elif change == "activation":
        model.config.hidden_act = "gelu"
    else:
        model = build("gemma", head_dim=8, num_key_value_heads=1)
    assert not fits(model)


def test_an_adapter_keeps_its_own_forward_and_is_read():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert not fits(model) and not fits(model.get_base_model())
    with torch.inference_mode():
        agrees(model.eval(), HuggingFace(model).prefill([[1, 2, 3]])[1], [[1, 2, 3]])


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),  # learned positions
        ("gemma", {"head_dim": 8, "num_key_value_heads": 1}),
        ("cohere", {"num_key_value_heads": 2}),
        ("gpt_neox", {}),
    ],
)
def test_models_of_other_kinds_agree_with_their_own_forward(kind, more):
    model, rows = build(kind, **more), [[1, 2, 3], [4, 5, 6, 7, 8, 9], [3]]
    with torch.inference_mode():
        part = build_backend(model, False)
        handles, scores = part.prefill(rows)
        agrees(model, scores, rows)
        held = dict(zip(handles, rows, strict=True))
        for step in range(8):
            scores = decode(part, held, [5, step, 9])
        agrees(model, scores, held.values())


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


@pytest.mark.parametrize("lean", [True, False])
def test_half_precision_stays_close_to_itself_without_a_cache(lean):
    model = tiny_llama(VOCABULARY).to(torch.bfloat16)
    with torch.inference_mode():
        part = build_backend(model, lean)
        handles, _ = part.prefill([[1, 2, 3], [4, 5, 6, 7, 8, 9]])
        scores = part.decode(dict(zip(handles, (5, 6), strict=True)), handles)
        for logits, ids in zip(scores.logits, [[1, 2, 3, 5], [4, 5, 6, 7, 8, 9, 6]], strict=True):
            expected = whole(model, ids).float()
            assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_attention_setting_of_the_model_is_left_as_it_was():
    model = build("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=128)
    before = model.config._attn_implementation
    HuggingFace(model).prefill([[1, 2]])
    assert model.config._attn_implementation == before
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("mistral", {"sliding_window": 8}, "mistral .*sliding_attention"),
        ("gemma2", {"head_dim": 8}, "gemma2 .*sliding_attention"),
        ("lfm2", {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}, "lfm2 .*conv"),
        ("mamba", {}, "mamba .*linear_attention"),
        ("falcon", {"alibi": True}, "falcon .*ALiBi"),
        ("falcon", {}, "falcon .*attention of this model cannot be replaced"),
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
