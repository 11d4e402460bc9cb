"""Promises of the exits: each is its formula, of a token's own past, never met by what is not a number."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.students.recurrent import exits
from tutelage.think.effort import Exit

CRITERIA = ("kl", "state", "argmax", "acceleration")


@st.composite
def rules(draw):
    criterion = draw(st.sampled_from(CRITERIA))
    threshold = draw(st.integers(1, 5)) if criterion == "argmax" else draw(st.floats(1e-3, 2.0))
    return Exit(criterion, threshold, draw(st.integers(1, 6)), draw(st.integers(1, 3)))


def trajectory(seed, steps=10, tokens=5, width=7):
    """States that come to rest, each token at its own pace."""
    draw = torch.Generator().manual_seed(seed)
    rest = torch.randn(tokens, width, generator=draw)
    pace = torch.rand(tokens, 1, generator=draw)
    return [rest + torch.randn(tokens, width, generator=draw) * pace**step for step in range(steps + 1)]


def naive(rule, states):
    """When one token leaves, from the formulas in the words of the module: states [[float]], logits too."""
    last = len(states) - 1

    def size(vector):
        return math.sqrt(sum(x * x for x in vector))

    def minus(a, b):
        return [x - y for x, y in zip(a, b, strict=True)]

    def probabilities(logits):
        top = max(logits)
        all_ = [math.exp(x - top) for x in logits]
        return [x / sum(all_) for x in all_]

    for step in range(rule.min_steps, last + 1, rule.every):
        now = states[step]
        if rule.criterion == "state":
            value = size(minus(now, states[step - 1])) / size(now)
        elif rule.criterion == "acceleration":
            if step < 2:
                continue
            new, old = minus(now, states[step - 1]), minus(states[step - 1], states[step - 2])
            value = size(minus(new, old)) / size(now)
        elif rule.criterion == "kl":
            if step - rule.every < 1:
                continue
            p, q = probabilities(now), probabilities(states[step - rule.every])
            value = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        else:
            best = [max(range(len(each)), key=each.__getitem__) for each in states]
            run, place = 1, step
            while place - rule.every >= 1 and best[place - rule.every] == best[step]:
                place -= rule.every
                run += rule.every
            value = rule.threshold - 1 if run >= rule.threshold else rule.threshold
        if value < rule.threshold:
            return step
    return last


@given(rule=rules(), seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_tokens_leave_when_their_formula_says_so(rule, seed):
    states = trajectory(seed)
    found = exits.exit_steps(rule, states, lambda state: state)
    for token, steps in enumerate(found.tolist()):
        assert steps == naive(rule, [state[token].tolist() for state in states])


@given(rule=rules(), seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_token_does_not_depend_on_its_neighbours_or_on_the_shape_of_the_batch(rule, seed, data):
    states = trajectory(seed)
    together = exits.exit_steps(rule, states, lambda state: state)
    some = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)))
    assert exits.exit_steps(rule, [state[some] for state in states], lambda state: state).equal(
        together[some]
    )
    rows = exits.exit_steps(rule, [torch.stack([s, s.flip(0)]) for s in states], lambda state: state)
    assert rows.equal(torch.stack([together, together.flip(0)]))


@given(rule=rules(), seed=st.integers(0, 10**6), cut=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_the_past_can_be_cut_down_to_some_tokens_at_any_step(rule, seed, cut):
    states, index = trajectory(seed), torch.tensor([3, 0])
    past, fewer = exits.begin(rule, states[0]), exits.begin(rule, states[0])
    for step in range(1, len(states)):
        if exits.looks(rule, step):
            held, past = exits.settled(rule, states[step], past)
            mine, fewer = exits.settled(rule, states[step] if step <= cut else states[step][index], fewer)
            assert mine.equal(held if step <= cut else held[index])
        if step == cut:
            fewer = fewer.of(index)


@given(rule=rules())
def test_looks_are_few_and_enough(rule):
    """A token whose prediction never changes leaves at the first step that the settings allow."""
    still = [torch.randn(1, 7, generator=torch.Generator().manual_seed(1))] * 30
    found = int(exits.exit_steps(rule, still, lambda state: state))
    first = 1 + (rule.min_steps - 1) % rule.every  # that is looked at, if all may be
    more = {"state": 0, "acceleration": 0, "kl": rule.every, "argmax": int(rule.threshold) - 1}
    least = {"acceleration": 2}.get(rule.criterion, first + more[rule.criterion])
    assert found == next(step for step in range(1, 30) if exits.decides(rule, step) and step >= least)
    if exits.predicts(rule):
        looked = [step for step in range(1, 30) if exits.looks(rule, step)]
        assert all(b - a == rule.every for a, b in pairwise(looked))
        assert (
            looked[0] in (first, rule.min_steps) or looked[0] > rule.min_steps - rule.every - rule.threshold
        )


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_is_never_settled(criterion, bad):
    rule = Exit(criterion, 1 if criterion == "argmax" else 1e9)
    states = [torch.full((2, 4), bad) for _ in range(6)]
    for state in states:
        state[1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = exits.exit_steps(rule, states, lambda state: state)
    assert found[1] < 5
    assert found[0] == 5 or (criterion == "argmax" and bad == math.inf)


def test_divergence_is_that_of_torch_and_impossible_tokens_add_nothing():
    a, b = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(exits.divergence(a, b), expected)
    a[:, 0] = b[:, 0] = -torch.inf
    assert exits.divergence(a, b).isfinite().all()


def test_predictions_are_needed_where_they_are_read():
    with pytest.raises(ValueError, match="kl reads predictions"):
        exits.exit_steps(Exit("kl", 0.1), trajectory(0))
