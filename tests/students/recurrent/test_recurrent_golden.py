"""Numbers of the published architecture, for weights that a formula gives."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tutelage.errors import UsageError
from tutelage.students.recurrent import (
    RecurrentDepthConfig,
    RecurrentDepthForCausalLM,
    convert_huginn,
    huginn_config,
    load_huginn_state_dict,
)

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
IDS = torch.tensor(GOLDEN["input_ids"])
FIELDS = GOLDEN["config"] | {"rope_base": 50000, "norm_eps": 1e-6, "qk_bias": True}
# The published model.
REAL = {
    "n_embd": 5280,
    "n_heads": 55,
    "n_layers": 8,
    "block_size": 4096,
    "vocab_size": 65536,
    "padded_vocab_size": 65536,
    "tie_embeddings": True,
    "intermediate_size": 17920,
    "bias": False,
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "norm_eps": 1e-6,
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "state_init": "like-init",
    "injection_type": "linear",
    "n_layers_in_recurrent_block": 4,
    "mean_recurrence": 32,
    "mean_backprop_depth": 8,
    "n_layers_in_prelude": 2,
    "n_layers_in_coda": 2,
    "qk_bias": True,
    "rope_base": 50000,
    "bos_token_id": 65504,
}
# Of the gradients that golden.json names: our tensors.
PARTS = {
    "transformer.wte.weight": ["model.embed_tokens.weight"],
    "transformer.prelude.0.mlp.fc.weight": [f"model.prelude.0.mlp.{x}_proj.weight" for x in ("gate", "up")],
    "transformer.adapter.weight": ["model.adapter.linear.weight"],
    "transformer.core_block.0.attn.Wqkv.weight": [f"model.core.0.self_attn.{x}_proj.weight" for x in "qkv"],
    "transformer.coda.0.mlp.proj.weight": ["model.coda.0.mlp.down_proj.weight"],
    "lm_head.weight": ["lm_head.weight"],
}


def fill(name, shape, amplitude, base=0.0):
    place = np.arange(math.prod(shape), dtype=np.float64)
    phase = (zlib.crc32(name.encode()) % 10007) / 10007 * 2 * math.pi
    drawn = np.sin(12.9898 * (place + 1) + phase) * 43758.5453
    drawn = 2 * (drawn - np.floor(drawn)) - 1
    return torch.tensor((base + amplitude * drawn).reshape(shape).astype(np.float32))


def weights():
    found = {}
    for name, shape in GOLDEN["parameter_shapes"].items():
        if "norm" in name or "ln_f" in name:
            found[name] = fill(name, shape, 0.1, 1.0)
        elif "wte" in name or "qk_bias" in name:
            found[name] = fill(name, shape, 0.05)
        else:
            found[name] = fill(name, shape, 1.2 / math.sqrt(shape[-1]))
    return found


STATE = fill("input_states", (2, 8, 64), 0.5)


@pytest.fixture(scope="module")
def model():
    return load_huginn_state_dict(RecurrentDepthForCausalLM(huginn_config(FIELDS)).eval(), weights())


@pytest.mark.parametrize("steps", GOLDEN["logits"])
def test_logits(model, steps):
    golden = GOLDEN["logits"][steps]
    with torch.no_grad():
        logits = model(IDS, num_steps=int(steps), initial_state=STATE).logits
    shown = torch.tensor(golden["last_position_first_8"])
    torch.testing.assert_close(logits[0, -1, :8], shown, atol=1e-4, rtol=0)
    assert logits.argmax(-1).tolist() == golden["argmax"]
    # Sums of 2,048 numbers: each may be off by 1e-4, in one direction at worst.
    assert abs(float(logits.sum()) - golden["sum"]) < 1e-2
    assert abs(float(logits.abs().sum()) - golden["abs_sum"]) < 1e-2
    assert float(logits.pow(2).mean().sqrt()) == pytest.approx(golden["rms"], abs=1e-5)


@pytest.mark.parametrize("pair", GOLDEN["grads"])
def test_gradients(model, pair):
    golden = dict(GOLDEN["grads"][pair])
    free, kept = map(int, pair.split(","))
    model.zero_grad()
    found = model(IDS, num_steps=(free, kept), initial_state=STATE)
    assert found.steps == (free, kept)
    # These compare position by position, without a shift.
    loss = functional.cross_entropy(found.logits.flatten(0, 1), IDS.flatten())
    loss.backward()
    assert loss.item() == pytest.approx(golden.pop("loss"), rel=1e-5)
    ours = dict(model.named_parameters())
    for name, norm in golden.items():
        squares = sum(float(ours[part].grad.pow(2).sum()) for part in PARTS[name])
        assert math.sqrt(squares) == pytest.approx(norm, rel=1e-3), name


def test_missing_and_extra_keys_are_listed_and_nothing_changes(model):
    given = weights()
    before = model.lm_head.weight.clone()
    given["lm_head.weight"] = torch.zeros_like(given["lm_head.weight"])
    given["transformer.coda.7.x"] = given.pop("transformer.coda.0.mlp.proj.weight")
    with pytest.raises(UsageError) as caught:
        load_huginn_state_dict(model, given)
    told = "missing transformer.coda.0.mlp.proj.weight; extra transformer.coda.7.x"
    assert str(caught.value) == f"Huginn checkpoint: {told}"
    with pytest.raises(UsageError, match=f"and {len(given) - 5} more"):
        load_huginn_state_dict(model, {})
    wide = weights() | {"transformer.adapter.weight": torch.zeros(64, 64)}
    with pytest.raises(UsageError, match=r"adapter.weight has the shape \(64, 64\).* needs \(64, 128\)"):
        load_huginn_state_dict(model, wide)
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize(
    "changed",
    [
        {"block": "pre"},
        {"norm_after_core": "every"},
        {"num_key_value_heads": 2},
        {"attention_bias": True},
        {"qk_norm": True},
    ],
)
def test_a_configuration_that_the_layout_cannot_hold_is_named(changed):
    shape = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128, "qk_bias": True}
    shape |= {"tie_word_embeddings": False} | changed
    with pytest.raises(UsageError, match=f"the layout needs {next(iter(changed))}"):
        load_huginn_state_dict(RecurrentDepthForCausalLM(RecurrentDepthConfig(**shape)), weights())


def test_the_real_model_fits_without_memory():
    config = huginn_config(REAL)
    assert (config.head_dim, config.max_recurrence, config.bos_token_id) == (96, 256, 65504)
    assert config.embedding_scale == pytest.approx(72.6636, abs=1e-4)
    assert config.state_std == pytest.approx(math.sqrt(2 / 5))
    with torch.device("meta"):
        model = RecurrentDepthForCausalLM(config)
        given = {"freqs_cis": torch.empty(1, 4096, 1, 48, 2)}
        given["transformer.wte.weight"] = given["lm_head.weight"] = torch.empty(65536, 5280)
        given["transformer.adapter.weight"] = torch.empty(5280, 10560)
        given["transformer.ln_f.weight"] = torch.empty(5280)
        for part, layers in (("prelude", 2), ("core_block", 4), ("coda", 2)):
            for number in range(layers):
                start = f"transformer.{part}.{number}"
                given |= {f"{start}.norm_{norm}.weight": torch.empty(5280) for norm in (1, 2, 3, 4)}
                given[f"{start}.attn.qk_bias"] = torch.empty(2, 1, 55, 96)
                given[f"{start}.attn.Wqkv.weight"] = torch.empty(15840, 5280)
                given[f"{start}.attn.proj.weight"] = torch.empty(5280, 5280)
                given[f"{start}.mlp.fc.weight"] = torch.empty(35840, 5280)
                given[f"{start}.mlp.proj.weight"] = torch.empty(5280, 17920)
    load_huginn_state_dict(model, given)
    # The published count, 3,509,051,040, leaves out the adapter and the norms of the blocks.
    left_out = 5280 * 10560 + 8 * 4 * 5280
    assert sum(each.numel() for each in model.parameters()) == 3_509_051_040 + left_out
    del given["transformer.core_block.3.norm_4.weight"]
    with pytest.raises(UsageError, match=r"missing transformer.core_block.3.norm_4.weight"):
        load_huginn_state_dict(model, given)


def test_a_model_without_memory_takes_the_tensors(model):
    with torch.device("meta"):
        bare = RecurrentDepthForCausalLM(huginn_config(FIELDS)).eval()
    load_huginn_state_dict(bare, weights())
    asked = {"num_steps": 2, "initial_state": STATE}
    with torch.no_grad():
        assert torch.equal(bare(IDS, **asked).logits, model(IDS, **asked).logits)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_class_name": "TransformerPreNormBlock"}, "block_class_name is 'TransformerPreNormBlock'"),
        ({"injection_type": "ffn"}, "injection_type is 'ffn'"),
        ({"n_heads": None}, "num_attention_heads is None"),
        ({"n_heads": 7}, "does not divide"),
    ],
)
def test_a_config_json_of_another_model_is_named(changed, message):
    with pytest.raises(UsageError, match=message):
        huginn_config(REAL | changed)


def test_a_config_json_with_missing_fields_lists_them():
    with pytest.raises(UsageError, match=r"missing n_embd, rope_base, vocab_size"):
        dropped = ("n_embd", "rope_base", "vocab_size", "padded_vocab_size")
        huginn_config({key: value for key, value in REAL.items() if key not in dropped})


@pytest.fixture
def published(tmp_path):
    """A folder of the published layout, in two shards."""
    folder = tmp_path / "huginn"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(FIELDS))
    (folder / "tokenizer_config.json").write_text("{}")
    given, index = weights(), {}
    for number, keys in enumerate((list(given)[:20], list(given)[20:])):
        save_file({key: given[key] for key in keys}, folder / f"part-{number}.safetensors")
        index |= dict.fromkeys(keys, f"part-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_a_folder_is_converted(published, tmp_path, model):
    out = convert_huginn(published, tmp_path / "ours")
    assert len(list(out.glob("*.safetensors"))) == 2 and (out / "tokenizer_config.json").is_file()
    again = RecurrentDepthForCausalLM.from_pretrained(out).eval()
    ours = {key: each for file in out.glob("*.safetensors") for key, each in load_file(file).items()}
    assert ours.keys() == dict(again.named_parameters()).keys()
    with torch.no_grad():
        asked = {"num_steps": 2, "initial_state": STATE}
        assert torch.equal(again(IDS, **asked).logits, model(IDS, **asked).logits)
    with pytest.raises(UsageError, match="is there already"):
        convert_huginn(published, out)


def test_a_folder_that_is_not_whole_is_one_line_and_writes_nothing(published, tmp_path):
    out = tmp_path / "ours"
    (published / "part-1.safetensors").write_bytes(b"cut")
    with pytest.raises(UsageError, match=r"part-1.safetensors: not a whole safetensors file"):
        convert_huginn(published, out)
    save_file({"lm_head.weight": torch.zeros(128, 64)}, published / "part-1.safetensors")
    with pytest.raises(UsageError, match=r"part-1.safetensors: no tensor"):
        convert_huginn(published, out)
    (published / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(UsageError, match=r"Huginn checkpoint: missing lm_head.weight"):
        convert_huginn(published, out)
    (published / "config.json").write_text("[")
    with pytest.raises(UsageError, match=r"config.json: not readable as JSON"):
        convert_huginn(published, out)
    with pytest.raises(UsageError, match=r"config.json: cannot read it"):
        convert_huginn(tmp_path, out)
    assert not list(tmp_path.glob("ours*"))
