"""The tiny student: small, seeded without side effects, and an ordinary model on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, SmolLM3ForCausalLM

from tutelage.errors import UsageError
from tutelage.lab.products import phrases
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.lab.world import make_problems
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.recurrent import RecurrentDepthForCausalLM
from tutelage.students.template import Template, render_completion, render_prompt, split_completion
from tutelage.students.tiny import Loops, TinyConfig, build_tiny

SMALL = TinyConfig(width=12, layers=1, heads=3, feed_forward=16)


def build(config: TinyConfig = SMALL, seed: int = 0) -> PreTrainedModel:
    tokenizer = build_tokenizer()
    return build_tiny(
        config,
        vocabulary=len(tokenizer),
        pad=tokenizer.pad_token_id,
        end=tokenizer.eos_token_id,
        seed=seed,
    )


def parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_it_is_a_stock_model_of_at_most_two_million_parameters() -> None:
    model = build(TinyConfig())
    assert type(model) is SmolLM3ForCausalLM
    assert 100_000 < parameters(model) <= 2_000_000
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_the_seed_gives_the_weights_and_disturbs_no_one_else() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = build(seed=1)
    assert torch.equal(torch.rand(3), expected)
    two, other = build(seed=1), build(seed=2)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    embedding = "model.embed_tokens.weight"
    assert not torch.equal(one.state_dict()[embedding], other.state_dict()[embedding])


def test_places_are_not_encoded() -> None:
    """With one layer, the last token then sees those before it as a bag: their order does not matter."""
    model = build().eval()
    with torch.no_grad():
        one, two = (model(torch.tensor([ids])).logits[0, -1] for ids in ([9, 14, 21, 30], [21, 9, 14, 30]))
        other = model(torch.tensor([[9, 14, 22, 30]])).logits[0, -1]
    assert torch.allclose(one, two, atol=1e-6) and not torch.allclose(one, other, atol=1e-6)


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="width 10 does not divide by 3 heads"):
        build(TinyConfig(width=10, heads=3))


def test_it_saves_and_loads_with_its_tokenizer_and_template(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    template = Template(think_open="<think>", prefill=True)
    saved = Student(build(), tokenizer, template, "tiny")
    save_student(saved, tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").is_file()
    loaded = load_student(tmp_path / "model", device="cpu")
    assert type(loaded.model) is SmolLM3ForCausalLM and loaded.template == template
    for name, value in saved.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name])
    (problem,) = make_problems(1, min_steps=3, max_steps=3, onlookers=1, seed=0)
    for each in (tokenizer, loaded.tokenizer):
        prompt = render_prompt(each, template, problem.question)
        assert each.decode(prompt) == f"<|user|>{problem.question}<|assistant|><think>"
        reply = render_completion(each, template, "Counter: 4. Ann adds 3: 7", "Answer: 7")
        assert split_completion(each, template, reply) == ("Counter: 4. Ann adds 3: 7", "Answer: 7")
        # Markers and turns are one token each, and the reply is phrases.
        assert len(prompt) == 3 + (3 + 2 * len(problem.metadata["steps"])) and len(reply) == 9
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([render_prompt(tokenizer, template, problem.question)])
    with torch.no_grad():
        assert torch.equal(saved.model.eval()(ids).logits, loaded.model(ids).logits)


def test_rotary_positions_tell_the_order() -> None:
    model = build(TinyConfig(width=12, layers=1, heads=3, feed_forward=16, rope_base=100.0)).eval()
    assert model.config.rope_parameters["rope_theta"] == 100.0
    with torch.no_grad():
        one, two = (model(torch.tensor([ids])).logits[0, -1] for ids in ([9, 14, 21, 30], [21, 9, 14, 30]))
    assert not torch.allclose(one, two, atol=1e-6)


def test_loops_make_it_recurrent_and_it_saves_and_loads(tmp_path: Path) -> None:
    loops = Loops(prelude=2, core=1, coda=1, mean=3, backprop=2, limit=9, state_std=0.1, embedding_scale=1.5)
    shape = TinyConfig(width=12, heads=3, feed_forward=16, rope_base=100.0, loops=loops)
    model = build(shape, seed=4)
    assert type(model) is RecurrentDepthForCausalLM
    config = model.config
    assert (config.num_prelude_layers, config.num_core_layers, config.num_coda_layers) == (2, 1, 1)
    assert (config.mean_recurrence, config.mean_backprop_depth, config.max_recurrence) == (3, 2, 9)
    assert (config.block, config.norm_after_core, config.adapter_init) == ("pre", "every", "identity")
    assert (config.state_std, config.embedding_scale, config.rope_theta) == (0.1, 1.5, 100.0)
    assert parameters(build(shape, seed=4)) == parameters(model)
    tokenizer = build_tokenizer(phrases())
    save_student(Student(model, tokenizer, Template(thinking=False), "tiny"), tmp_path / "model")
    loaded = load_student(tmp_path / "model", device="cpu")
    ids = torch.tensor([render_prompt(tokenizer, loaded.template, "abfe")])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids, num_steps=4).logits, loaded.model(ids, num_steps=4).logits)
