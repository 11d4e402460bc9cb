"""FLOPs: the sums are torch's own counter's, for models of both kinds, and replies add up token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from tinymodel import tiny_llama
from tutelage.errors import UsageError
from tutelage.measure.flops import (
    Part,
    arithmetic,
    cost_rows,
    flops_per_token,
    known_arithmetic,
    spent,
    together,
)
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.recurrent.cache import LoopCache
from tutelage.think.effort import Effort, Exit
from tutelage.think.machine import PHASES
from tutelage.think.request import Completion


def recurrent(**settings_):
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 64,
        "num_prelude_layers": 1,
        "num_core_layers": 2,
        "num_coda_layers": 1,
        "mean_recurrence": 3,
    }
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(**shape | settings_)).eval()
    model.set_attn_implementation("eager")
    return model


def llama():
    model = tiny_llama(64)
    model.set_attn_implementation("eager")
    return model


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return counter.get_total_flops()


def reply(ids: int, steps: tuple[int, ...] = (), forced: bytes | None = None, prompt: int = 0) -> Completion:
    """`prompt`: passes of the prompt but for its last token."""
    answer = PHASES.index("answer")
    return Completion(
        ids=tuple(range(ids)),
        forced=forced or bytes(ids),
        phases=bytes([answer] * ids),
        finish_reason="stop",
        closed_by="none",
        written={"answer": ids},
        by_force={"answer": sum(forced or b"")},
        refused=0,
        waits=0,
        steps=steps,
        core_steps=sum(steps) + prompt,
    )


MODELS = {
    "llama": (llama, None),
    "recurrent": (recurrent, 5),
    "recurrent, mean depth": (recurrent, None),
    "tied, pre-norm, added": (
        lambda: recurrent(block="pre", adapter="add", tie_word_embeddings=True, num_coda_layers=0),
        4,
    ),
    "biases and head norms": (lambda: recurrent(qk_bias=True, qk_norm=True, attention_bias=True), 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_token_costs_what_the_counter_counts(name):
    """One token after seven others, fed through a cache: matrices, attention over eight, and the head."""
    make, steps = MODELS[name]
    model = make()
    more = {} if steps is None else {"num_steps": steps}
    cache = LoopCache(model.config) if hasattr(model.config, "mean_recurrence") else None
    with torch.inference_mode():
        past = model(torch.arange(7)[None], past_key_values=cache, use_cache=True, **more).past_key_values

    def one():
        model(torch.tensor([[9]]), past_key_values=past, use_cache=True, **more)

    assert counted(one) == flops_per_token(model, steps, context=8)
    assert flops_per_token(model, steps, context=8) > flops_per_token(model, steps)


@pytest.mark.parametrize("name", ["llama", "recurrent"])
def test_a_whole_reply_costs_what_its_steps_add_up_to(name):
    """A prompt of four, then three tokens at depths of their own, of which the last is not fed."""
    make, steps = MODELS[name]
    model = make()
    depths = (5, 2, 3) if steps else ()
    cost = arithmetic(model)
    prompt = [(n + 1, 5 if steps else None) for n in range(3)]
    own = [(4, 5), (5, 2), (6, 3)] if steps else [(4, None), (5, None), (6, None)]
    fed = sum(flops_per_token(model, passes, context) - cost.head for context, passes in prompt + own)
    effort = Effort(num_steps=steps)
    found = spent(cost, 4, reply(3, depths, prompt=15), effort)
    assert found.flops == pytest.approx(fed + 3 * cost.head)
    assert found.loops == (pytest.approx(10 / 3) if steps else None)
    forced = spent(cost, 4, reply(3, depths, bytes([1, 0, 0]), prompt=15), effort)
    assert found.flops - forced.flops == pytest.approx(cost.head)  # nothing was scored for what we wrote
    # What was forced at the end is never fed.
    last = spent(cost, 4, reply(3, (*depths[:2], 0)[: len(depths)], bytes([0, 0, 1]), prompt=15), effort)
    context, passes = own[2]
    assert found.flops - last.flops == pytest.approx(flops_per_token(model, passes, context))


def test_other_architectures_are_counted_too():
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=32)).eval()
    gpt.set_attn_implementation("eager")
    assert counted(lambda: gpt(torch.tensor([[3]]))) == flops_per_token(gpt, context=1)


def test_of_experts_the_chosen_ones_are_counted():
    shape = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=50,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    attention, router, experts, head = 4 * 32 * 32, 4 * 32, 2 * 3 * 32 * 48, 50 * 32
    assert flops_per_token(MixtralForCausalLM(shape)) == 2 * (attention + router + experts + head)


def test_weights_that_nobody_can_count_are_refused_by_name():
    model = llama()
    model.model.odd = torch.nn.Parameter(torch.zeros(2, 3, 4))
    with pytest.raises(UsageError, match=r"model\.odd: weights of shape \(2, 3, 4\)"):
        arithmetic(model)
    assert known_arithmetic(model) is None
    assert cost_rows(model, [3], [reply(1)], Effort(), 1) == {
        **{"flops": None, "flops_ci95": None, "loops": None, "loops_ci95": None}
    }


def test_loops_of_a_model_without_them_are_refused():
    with pytest.raises(UsageError, match="no loops"):
        flops_per_token(llama(), 4)


def test_a_reply_that_does_not_say_its_passes_is_refused():
    with pytest.raises(UsageError, match="3 tokens tells 0 numbers of passes"):
        spent(arithmetic(recurrent()), 4, reply(3), Effort())


@pytest.mark.parametrize(
    ("rule", "looks"),
    [("kl:5e-4", 3 + 4), ("kl:5e-4,min=3,every=2", 2 + 2), ("argmax:2", 3 + 4), ("state:0.03", 0)],
)
def test_an_exit_that_reads_predictions_pays_for_its_looks(rule, looks):
    """Two tokens leave by their last look, after three and four passes of at most eight."""
    cost = replace(arithmetic(recurrent()), before=Part(0.0, 0.0), core=Part(0.0, 0.0), after=Part(1.0, 0.0))
    effort = Effort(num_steps=8, exit=Exit.parse(rule))
    found = spent(cost, 1, reply(2, (3, 4)), effort)
    assert found.flops == (looks or 2) + (looks + 2) * cost.head
    # At the bound the state is passed on once more.
    bound = spent(cost, 1, reply(2, (3, 4)), replace(effort, num_steps=4))
    assert bound.flops - found.flops == (1 if looks else 0)


def test_costs_are_means_over_problems_with_their_intervals():
    model, effort = recurrent(), Effort(num_steps=8)
    replies = [reply(2, (8, 8), prompt=24), reply(2, (4, 4), prompt=24)]
    replies += [reply(1, (2,), prompt=64), reply(1, (2,), prompt=64)]
    found = cost_rows(model, [4, 4, 9, 9], replies, effort, 2)
    assert found["loops"] == (6 + 2) / 2
    lo, hi = found["loops_ci95"]
    assert 2 <= lo <= 4 <= hi <= 6
    parts = [
        spent(arithmetic(model), length, each, effort)
        for length, each in zip([4, 4, 9, 9], replies, strict=True)
    ]
    assert found["flops"] == pytest.approx(together(parts).flops / 4)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30),
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.integers(1, 9),
    st.sampled_from([None, "state:0.1", "kl:1e-3", "argmax:2,every=3"]),
)
def test_more_of_anything_costs_more(prompt, steps, depth, rule):
    cost = arithmetic(RECURRENT)
    effort = Effort(num_steps=16, exit=Exit.parse(rule) if rule else None)

    def of(tokens, passes):
        return spent(cost, tokens, reply(len(passes), tuple(passes), prompt=depth * (tokens - 1)), effort)

    here = of(prompt, steps)
    assert here.flops < of(prompt + 1, steps).flops
    assert here.flops < of(prompt, [*steps, 1]).flops
    assert here.flops < of(prompt, [n + 1 for n in steps]).flops
    assert here.passes == sum(steps) and here.tokens == len(steps)


RECURRENT = recurrent()
