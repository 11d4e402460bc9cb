"""States traced through the loop: those of the model itself, and those of an exit that stops tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymodel import tiny_llama
from tutelage.errors import UsageError
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.recurrent.cache import LoopCache
from tutelage.students.recurrent.exits import exit_steps
from tutelage.think.effort import Effort, Exit
from tutelage.think.loops import Loops
from tutelage.think.trajectories import recurrent, trace_loops

VOCABULARY = 41
SHAPES: dict[str, dict[str, Any]] = {
    "huginn": {"num_coda_layers": 1},
    "every": {"norm_after_core": "every", "adapter_init": "identity", "state_std": 0.2},
    "looped llama": {"block": "pre", "num_key_value_heads": 2, "num_core_layers": 3, "num_coda_layers": 2},
    "added": {"adapter": "add", "qk_bias": True, "num_prelude_layers": 0, "num_coda_layers": 0},
}


def looped(seed: int = 0, scale: float = 2.0, **shape: Any) -> RecurrentDepthForCausalLM:
    """A random model that loops, its weights large enough for texts to differ."""
    torch.manual_seed(seed)
    config = RecurrentDepthConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=VOCABULARY,
        **({"num_core_layers": 1, "mean_recurrence": 4} | shape),
    )
    model = RecurrentDepthForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


ROWS = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5, 8, 9, 7, 9, 3, 2, 3], [8]]


@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_and_states_are_those_of_the_model_at_every_depth(shape: str) -> None:
    model = looped(**SHAPES[shape])
    traced = trace_loops(model, ROWS, 6, read=[1, 2, 6], keep=range(7))
    for row, run in zip(ROWS, traced, strict=True):
        assert run.ids == tuple(row) and list(run.steps) == [6] * len(row)
        for number, step in enumerate((1, 2, 6)):
            with torch.no_grad():
                out = model(torch.tensor([row]), num_steps=step)
            assert list(run.predicted[number]) == out.logits[0].argmax(-1).tolist()
            np.testing.assert_allclose(run.states[step], out.state[0], atol=2e-5)
            told = out.logits[0].log_softmax(-1)
            wanted = [-told[place, after].item() for place, after in enumerate(row[1:])]
            np.testing.assert_allclose(run.surprise[number, :-1], wanted, atol=1e-4)
            assert np.isnan(run.surprise[number, -1])


@pytest.mark.parametrize(
    "text", ["kl:0.1", "state:0.3", "argmax:3", "acceleration:0.5", "state:0.3,min=3,every=2"]
)
def test_a_token_that_settled_stands_still_and_is_read_at_its_last_pass(text: str) -> None:
    """Against the model itself, token by token, each as deep as it was traced, over a cache in which those
    before it are read at their last pass."""
    model, exit = looped(scale=3.0, **SHAPES["every"]), Exit.parse(text)
    (run,) = trace_loops(model, [ROWS[2]], 8, keep=range(9), exit=exit)
    assert len(set(run.steps)) > 1, "the exit must tell these tokens apart for the test to mean anything"
    cache = LoopCache(model.config, "latest")
    for position, made in enumerate(run.steps):
        assert (run.states[made:, position] == run.states[made, position]).all()
        with torch.no_grad():
            ids = torch.tensor([[ROWS[2][position]]])
            out = model(ids, num_steps=int(made), past_key_values=cache)
        np.testing.assert_allclose(run.states[made, position], out.state[0, 0], atol=1e-4)
        assert run.predicted[0, position] == out.logits[0, 0].argmax()


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["kl:0.1", "state:0.3", "argmax:3,min=2", "acceleration:0.5,every=2", "kl:0.3,every=2"]
)
def test_tokens_leave_where_they_do_in_the_engine(text: str) -> None:
    """A prompt and the reply to it: the same passes and predictions as the backend that decodes."""
    model, exit = looped(scale=3.0, **SHAPES["huginn"]), Exit.parse(text)
    rows, starts = [ROWS[2], ROWS[0], ROWS[2][::-1]], [7, 4, 9]
    traced = trace_loops(model, rows, 12, exit=exit, alone=[start - 1 for start in starts])
    told = set()
    for row, start, run in zip(rows, starts, traced, strict=True):
        backend = Loops(model)
        (number,), scores = backend.prefill([row[:start]], [Effort(12, exit)])
        for place in range(start, len(row)):
            assert scores.logits[0].argmax() == run.predicted[0, place - 1]
            scores = backend.decode({number: row[place]}, [number])
        assert scores.logits[0].argmax() == run.predicted[0, -1]
        assert list(backend.passes(number)) == run.steps.tolist()
        told |= set(run.steps.tolist())
    assert len(told) > 2, "these tokens must leave at different passes for the test to mean anything"


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=5),
    text=st.sampled_from([None, "kl:0.02", "state:0.4,min=2", "argmax:2"]),
)
def test_a_text_is_traced_alike_alone_and_among_others(rows: list[list[int]], text: str | None) -> None:
    model, exit = looped(**SHAPES["every"]), None if text is None else Exit.parse(text)
    together = trace_loops(model, rows, 5, keep=[5], exit=exit)
    for row, among in zip(rows, together, strict=True):
        (alone,) = trace_loops(model, [row], 5, keep=[5], exit=exit)
        np.testing.assert_allclose(among.states, alone.states, atol=1e-5)
        assert (among.steps == alone.steps).all()


@pytest.mark.parametrize("text", ["kl:0.02", "state:0.4", "argmax:2", "acceleration:0.5"])
def test_a_text_of_one_token_leaves_where_the_criterion_says(text: str) -> None:
    """It has no earlier token whose stopping could change its states."""
    model, exit = looped(**SHAPES["every"]), Exit.parse(text)
    for token in range(12):
        (free,) = trace_loops(model, [[token]], 8, keep=range(9))
        states = [torch.tensor(state) for state in free.states]

        def predict(state: torch.Tensor) -> torch.Tensor:
            hidden = state[None]
            place = torch.zeros(1, 1, dtype=torch.long)
            for block in model.model.coda:
                hidden = block(hidden, model.model.rotary_emb(hidden, position_ids=place), None)
            with torch.no_grad():
                return model.lm_head(model.model.norm(hidden))[0]

        (run,) = trace_loops(model, [[token]], 8, exit=exit)
        needs = exit.criterion in ("kl", "argmax")
        assert run.steps.tolist() == exit_steps(exit, states, predict if needs else None).tolist()


def test_other_initial_states_are_seeded_and_other_ones() -> None:
    model = looped()
    one, same, other = (
        trace_loops(model, ROWS, 2, keep=[0, 2], first_seed=seed)[2].states for seed in (1, 1, 2)
    )
    assert (one == same).all()
    assert np.abs(one[0] - other[0]).max() > 0.1
    assert np.abs(one[0]).max() <= 3 * model.config.state_std


def test_what_is_long_goes_in_several_batches_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model, exit = looped(**SHAPES["every"]), Exit.parse("kl:0.02")
    whole = trace_loops(model, ROWS, 4, keep=[4], exit=exit)
    monkeypatch.setattr("tutelage.think.trajectories._TOKENS", 5)
    monkeypatch.setattr("tutelage.think.trajectories._SCORES", 3 * VOCABULARY)
    for one, other in zip(whole, trace_loops(model, ROWS, 4, keep=[4], exit=exit), strict=True):
        np.testing.assert_allclose(one.states, other.states, atol=1e-5)
        np.testing.assert_allclose(one.surprise, other.surprise, atol=1e-4)
        assert (one.predicted == other.predicted).all() and (one.steps == other.steps).all()


def test_what_cannot_be_traced_is_refused() -> None:
    model = looped()
    with pytest.raises(UsageError, match="max_recurrence is 32"):
        trace_loops(model, ROWS, 33)
    with pytest.raises(UsageError, match=r"read \[0, 3\] must lie between 1 and steps, 4"):
        trace_loops(model, ROWS, 4, read=[3, 0])
    with pytest.raises(UsageError, match=r"keep \[5\]"):
        trace_loops(model, ROWS, 4, keep=[5])
    with pytest.raises(UsageError, match="without tokens"):
        trace_loops(model, [[1], []], 4)
    with pytest.raises(UsageError, match="mine: a LlamaForCausalLM has no loop"):
        recurrent(tiny_llama(VOCABULARY), "mine")
