"""What layers do: the numbers are those of the formulas, and the choice is the one they call for."""

from __future__ import annotations

from math import acos, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinymodel import tiny_llama
from tutelage.errors import UsageError
from tutelage.students.recurrent.influence import (
    LayerScore,
    choose_split,
    score_layers,
    spare,
    table,
)
from tutelage.students.recurrent.retrofit import Split, check_split

TEXTS = [[5, 9, 200, 31, 7], [8, 8, 90], [4]]


def test_scores_are_those_of_the_formulas() -> None:
    model = tiny_llama(256, layers=4)
    scores = score_layers(model, TEXTS, 2)
    cosines: list[list[float]] = [[] for _ in range(4)]
    turns: list[list[float]] = [[] for _ in range(3)]
    for text in TEXTS[:2]:
        # What goes into each layer, and what comes out of the last before the norm.
        flow: list[torch.Tensor] = []
        hook = model.model.norm.register_forward_pre_hook(lambda _, args, flow=flow: flow.append(args[0]))
        with torch.no_grad():
            inner = model.model(torch.tensor([text]), output_hidden_states=True).hidden_states
        hook.remove()
        states = [each[0] for each in (*inner[:4], flow[0])]
        for token in range(1, len(text)):
            for layer in range(4):
                one, other = states[layer][token], states[layer + 1][token]
                cosines[layer].append(float(one @ other / one.norm() / other.norm()))
            for layer in range(3):
                one, other = states[layer][token], states[layer + 2][token]
                turns[layer].append(acos(float(one @ other / one.norm() / other.norm())) / pi)
    for each in scores:
        mean = sum(cosines[each.layer]) / len(cosines[each.layer])
        assert each.influence == pytest.approx(1 - mean, abs=1e-5)
        if each.layer < 3:
            assert each.angle == pytest.approx(sum(turns[each.layer]) / len(turns[each.layer]), abs=1e-4)
    assert scores[3].angle is None


def test_a_layer_that_does_nothing_has_no_influence_and_is_left_out() -> None:
    model = tiny_llama(256, layers=5)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    scores = score_layers(model, TEXTS, 1)
    assert scores[2].influence == pytest.approx(0, abs=1e-6) and scores[2].angle == pytest.approx(0, abs=1e-3)
    for by in ("influence", "angle"):
        assert choose_split(scores, (1, 2, 1), by) == Split((0,), (1, 3), (4,))
    shown = table(scores, Split((0,), (1, 3), (4,))).splitlines()
    assert len(shown) == 6 and shown[3].split() == ["2", "0.0000", "0.000", "-"]
    assert [line.split()[-1] for line in shown[1:]] == ["prelude", "core", "-", "core", "coda"]


def test_influence_takes_layers_one_by_one_and_angle_a_run() -> None:
    scores = [
        LayerScore(0, 0.9, 0.5),
        LayerScore(1, 0.1, 0.3),
        LayerScore(2, 0.5, 0.2),
        LayerScore(3, 0.4, 0.4),
        LayerScore(4, 0.2, None),
    ]
    assert choose_split(scores, (1, 1, 1), "influence") == Split((0,), (2,), (3,))
    assert choose_split(scores, (1, 1, 1), "angle") == Split((0,), (1,), (4,))


@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), min_size=1, max_size=30),
    st.tuples(st.integers(0, 8), st.integers(1, 8), st.integers(0, 8)),
    st.sampled_from(["influence", "angle"]),
)
def test_any_choice_is_a_split_of_so_many(
    drawn: list[tuple[float, float]], counts: tuple[int, int, int], by: str
) -> None:
    if sum(counts) > len(drawn):
        with pytest.raises(UsageError, match="but the donor has"):
            spare(len(drawn), counts)
        return
    span = spare(len(drawn), counts)
    scores = [
        LayerScore(layer, one, other if span and layer + span <= len(drawn) else None)
        for layer, (one, other) in enumerate(drawn)
    ]
    split = choose_split(scores, counts, by)  # type: ignore[arg-type]
    assert (len(split.prelude), len(split.core), len(split.coda)) == counts
    assert check_split(split, len(drawn)) == split


def test_what_cannot_be_measured_or_counted_is_refused() -> None:
    model = tiny_llama(256, layers=1)
    with pytest.raises(UsageError, match="no text with two tokens"):
        score_layers(model, [[4]], 0)
    with pytest.raises(UsageError, match="the core needs at least 1"):
        spare(4, (1, 0, 1))
