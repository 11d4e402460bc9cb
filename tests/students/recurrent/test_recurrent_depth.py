"""How deep the model goes, and what of it carries a gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from loopmodels import VOCABULARY, small, small_config, texts
from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.recurrent.depth import Clock, read_steps, sample_steps
from tutelage.students.template import Template

IDS = torch.stack(texts(7, 7))


def gradients(model, num_steps, **asked):
    """Of every weight, by name; the state starts at the same place each time."""
    state = torch.randn(*IDS.shape, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    model(IDS, labels=IDS, num_steps=num_steps, initial_state=0.5 * state, **asked).loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def same(ones, others, close=1e-5):
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        assert (one - others[name]).norm() <= close * one.norm() + 1e-8, name


def test_a_number_is_all_with_gradient_and_a_pair_its_last_steps():
    model = small().train()
    whole, pair, short = (gradients(model, steps) for steps in (4, (0, 4), (2, 2)))
    same(whole, pair)
    name = "model.core.0.mlp.up_proj.weight"
    assert not torch.allclose(whole[name], short[name], rtol=1e-2)
    none = gradients(model, (4, 0))
    assert not any(name.startswith(("model.core", "model.adapter", "model.prelude")) for name in none)
    # Tied: the head still learns, through the embedding's weight.
    assert "model.coda.0.mlp.up_proj.weight" in none and "model.embed_tokens.weight" in none


def test_a_pair_is_the_same_as_starting_from_the_state_of_its_free_steps():
    model = small()
    with torch.no_grad():
        state = model(IDS, num_steps=2).state
    model.zero_grad()
    model(IDS, labels=IDS, num_steps=3, initial_state=state).loss.backward()
    restarted = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    model(IDS, labels=IDS, num_steps=(2, 3)).loss.backward()
    same(restarted, {name: each.grad for name, each in model.named_parameters()})


def saved_bytes(model, num_steps):
    """Bytes of the different tensors that autograd keeps for the backward pass."""
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(IDS, labels=IDS, num_steps=num_steps)
    return sum(size for size, _ in held.values())


def test_memory_does_not_grow_with_the_steps_without_gradient():
    model = small(max_recurrence=64).train()
    base = saved_bytes(model, (0, 3))
    assert saved_bytes(model, (1, 3)) == saved_bytes(model, (40, 3)) <= base
    assert saved_bytes(model, (0, 6)) > 1.5 * base


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("steps", [3, (2, 2)])
def test_gradient_checkpointing_gives_equal_gradients(reentrant, steps):
    model = small().train()
    plain = gradients(model, steps)
    held = saved_bytes(model, steps)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert saved_bytes(model, steps) < 0.6 * held
    same(plain, gradients(model, steps, use_cache=True))


def test_bfloat16_as_weights_and_as_mixed_precision(recwarn):
    model = small().train()
    found = []
    for kept in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=kept):
            found.append(gradients(model, (2, 2)))
    # A weight that autocast cast without gradient must not be used again for the steps with one.
    same(*found, close=0.03)
    assert not [each for each in recwarn if "fused" in str(each.message)]
    with torch.no_grad():
        logits = model.eval()(IDS).logits
        rounded = model.bfloat16()(IDS).logits
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - logits).norm() < 0.1 * logits.norm()


def test_depth_is_drawn_in_training_and_the_mean_in_evaluation():
    model = small()
    assert model(IDS).steps == (0, 3)
    model.train()
    free = [model.model(IDS).steps for _ in range(6)]
    assert free == [sample_steps(step, 3, 2) for step in range(6)]  # the backbone counts by itself
    assert len(set(free)) > 1
    model.model.clock = Clock(5, 4, seed=7, step=11, mode="told")
    told = [model(IDS).steps for _ in range(2)]
    assert told == [sample_steps(11, 5, 4, seed=7)] * 2


@given(st.integers(0, 10**9), st.integers(1, 64), st.integers(1, 16), st.integers(0, 2**32))
def test_a_draw_is_a_function_of_seed_and_step(step, mean, backprop, seed):
    state = np.random.get_state()[1].tolist()
    torch_state = torch.get_rng_state()
    free, kept = sample_steps(step, mean, backprop, seed)
    assert sample_steps(step, mean, backprop, seed) == (free, kept)
    assert 1 <= kept <= backprop and free >= 0 and (free == 0 or kept == backprop)
    assert np.random.get_state()[1].tolist() == state and torch.equal(torch.get_rng_state(), torch_state)


def test_the_depths_have_the_mean_and_spread_of_the_source():
    drawn = np.array([sum(sample_steps(step, 32, 8)) for step in range(4000)])
    # Mean r̄ + 1; variance that of Poisson, r̄, and of its rate, r̄² (e^σ² − 1) with σ = 0.5.
    spread = (32 + 32**2 * (np.exp(0.25) - 1)) ** 0.5
    assert abs(drawn.mean() - 33) < 4 * spread / 4000**0.5
    assert abs(drawn.std() - spread) < 0.1 * spread
    assert abs(np.median(drawn) - 29) <= 1  # as the paper says of r̄ = 32


def test_the_same_text_has_the_same_logits_in_evaluation_only():
    model = small()
    with torch.inference_mode():
        first = model(IDS).logits
    again = model(IDS, labels=IDS)  # a state table made in inference mode serves gradients too
    again.loss.backward()
    assert torch.equal(first, again.logits)
    other = small(state_seed=1)
    assert not torch.equal(first, other(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS, num_steps=2).logits, model(IDS, num_steps=2).logits)
    model.config.state_std = 0.0
    assert torch.equal(model(IDS, num_steps=2).logits, model(IDS, num_steps=2).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [{}, {"block": "pre", "adapter": "add", "qk_norm": True, "qk_bias": True}])
def test_a_saved_model_is_loaded_again(tmp_path, tied, shape):
    model = small(tie_word_embeddings=tied, loop_cache="shared:2", max_recurrence=9, **shape)
    model.save_pretrained(tmp_path / "m")
    assert not list((tmp_path / "m").glob("*.bin"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert isinstance(again, RecurrentDepthForCausalLM)
    differs = {"dtype", "architectures", "_name_or_path"}  # which loading adds
    ours, theirs = model.config.to_dict(), again.config.to_dict()
    assert {key for key in ours | theirs if ours.get(key) != theirs.get(key)} <= differs
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_student_is_loaded_and_a_folder_that_is_not_whole_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tokenizer = byte_tokenizer()
    model = small(vocab_size=len(tokenizer))
    folder = save_student(Student(model, tokenizer, Template(), "r"), tmp_path / "r")
    assert torch.equal(load_student(folder, device="cpu").model(IDS).logits, model(IDS).logits)
    weights = load_file(folder / "model.safetensors")
    one = "model.adapter.linear.weight"

    def refused(changed, told):
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UsageError, match=told) as caught:
            load_student(folder, device="cpu")
        assert "\n" not in str(caught.value)

    refused({key: each for key, each in weights.items() if key != one}, f"missing {one}$")
    refused(weights | {"x": torch.zeros(1)}, "extra x$")
    refused(weights | {one: torch.zeros(16, 16)}, r"is \(16, 16\), config.json needs \(16, 32\)")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"sandwich"', '"post"'))
    refused(weights, "block is 'post'; known: sandwich, pre")


@pytest.mark.parametrize(
    "asked", [0, -1, (0, 0), (-1, 2), (2, -1), (1, 2, 3), (1,), 1.5, (1, 1.5), "3", "34", True]
)
def test_an_impossible_depth_is_one_line(asked):
    with pytest.raises(UsageError, match="num_steps is"):
        small()(IDS, num_steps=asked)


def test_depths_of_numpy_and_torch_are_read_and_the_most_is_kept():
    for asked in (np.int64(3), torch.tensor(3), [np.int64(0), 3], torch.tensor([0, 3])):
        assert read_steps(asked) == (0, 3)
    model = small(max_recurrence=5)
    assert model(IDS, num_steps=(1, 4)).steps == (1, 4)
    with pytest.raises(UsageError, match="num_steps is 6; this model's max_recurrence is 5"):
        model(IDS, num_steps=6)
    with pytest.raises(UsageError, match="must both be at least 1"):
        sample_steps(0, 0, 4)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"block": "post"}, "block is 'post'; known: sandwich, pre"),
        ({"adapter": "gate"}, "adapter is 'gate'"),
        ({"adapter_init": "zero"}, "adapter_init is 'zero'"),
        ({"norm_after_core": "never"}, "norm_after_core is 'never'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_attention_heads": 3}, "hidden_size 16 does not divide by num_attention_heads 3"),
        ({"num_key_value_heads": 3}, "does not divide by num_key_value_heads 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"num_attention_heads": 16}, "heads are 1 wide"),
        ({"num_core_layers": 0}, "num_core_layers is 0"),
        ({"num_prelude_layers": -1}, "num_prelude_layers is -1"),
        ({"mean_recurrence": 0}, "mean_recurrence is 0"),
        ({"mean_recurrence": 4.0}, "mean_recurrence is 4.0; write a whole number"),
        ({"mean_backprop_depth": "4"}, "mean_backprop_depth is '4'"),
        ({"max_recurrence": 2}, "mean_recurrence is 3, more than max_recurrence 2"),
        ({"state_std": -1.0}, "state_std is -1.0"),
        ({"state_std": float("nan")}, "state_std is nan"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
        ({"embedding_scale": 0.0}, "embedding_scale is 0.0"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, "rope_theta is 5.0, but"),
        ({"loop_cache": "shared:0"}, "loop cache 'shared:0'"),
    ],
)
def test_a_shape_that_cannot_work_is_one_line(changed, told):
    with pytest.raises(UsageError, match=told) as caught:
        small_config(**changed)
    assert "\n" not in str(caught.value)


def test_other_bad_inputs_are_one_line():
    model = small()
    for asked, told in [
        ({"initial_state": torch.zeros(1, 7, 16)}, "initial_state has the shape"),
        ({"output_hidden_states": True}, "output_hidden_states: a recurrent model does not return these"),
        ({"inputs_embeds": torch.zeros(2, 7, 16)}, "either input_ids or inputs_embeds"),
    ]:
        with pytest.raises(UsageError, match=told):
            model(IDS, **asked)
    with pytest.raises(UsageError, match="either input_ids or inputs_embeds"):
        model()


def test_first_weights_are_those_of_the_source():
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 300, "mean_recurrence": 8}
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(num_attention_heads=4, qk_bias=True, **shape))
    std = (2 / (5 * 128)) ** 0.5
    depth = 1 + 8 * 2 + 1
    block = model.model.core[0]
    for weight, expected in [
        (model.model.embed_tokens.weight, std),
        (block.mlp.up_proj.weight, std),
        (block.self_attn.q_proj.weight, std),
        (model.model.adapter.linear.weight, std),
        (block.mlp.down_proj.weight, std / (2 * depth) ** 0.5),
        (block.self_attn.o_proj.weight, std / (2 * depth) ** 0.5),
    ]:
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not block.self_attn.q_bias.any() and bool((block.norm_2.weight == 1).all())
    near = RecurrentDepthForCausalLM(
        RecurrentDepthConfig(num_attention_heads=4, adapter_init="identity", **shape)
    )
    eye = torch.eye(128)
    off = near.model.adapter.linear.weight - torch.cat([eye, 0.5 * eye], dim=1)
    assert 0 < off.std().item() < 0.01


def test_lora_learns_on_the_named_layers_and_merges():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)  # the adapter's first weights
    model = small().double()  # untrained loops blow float32's rounding up
    names = ["q_proj", "v_proj", "down_proj", "adapter.linear"]
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM"))
    optimiser = torch.optim.SGD([each for each in tuned.parameters() if each.requires_grad], lr=0.5)
    tuned.train()
    for _ in range(2):
        optimiser.zero_grad()
        tuned(IDS, labels=IDS, num_steps=(1, 2)).loss.backward()
        optimiser.step()
    learned = {name for name, each in tuned.named_parameters() if each.grad is not None and each.grad.any()}
    assert any("core.1.self_attn.q_proj.lora_B" in name for name in learned)
    assert any("adapter.linear.lora_B" in name for name in learned)
    tuned.eval()
    before = tuned(IDS).logits
    merged = tuned.merge_and_unload()
    assert isinstance(merged, RecurrentDepthForCausalLM)
    torch.testing.assert_close(merged(IDS).logits, before, atol=1e-9, rtol=1e-9)


def test_labels_are_shifted_and_ignored_where_there_are_none():
    model = small()
    labels = IDS.clone()
    labels[:, :4] = -100
    found = model(IDS, labels=labels, num_steps=2)
    scores = found.logits[:, 3:-1].log_softmax(-1)
    expected = -scores.gather(-1, IDS[:, 4:, None]).mean()
    torch.testing.assert_close(found.loss, expected)
    assert found.logits.shape == (2, 7, VOCABULARY)
    torch.testing.assert_close(model(IDS, num_steps=2, logits_to_keep=1).logits, found.logits[:, -1:])
