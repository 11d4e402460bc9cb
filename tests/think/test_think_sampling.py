"""Sampling: exact truncation, the right frequencies, random numbers of the row's own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.think import sampling
from tutelage.think.sampling import Sampling, choose, uniforms


def test_uniform_numbers_depend_on_their_three_parts_only_and_are_uniform():
    whole = uniforms(range(2000), range(2000), [0] * 2000)
    assert whole[7] == uniforms([7], [7], [0])[0]
    assert len({uniforms([1], [2], [3])[0], uniforms([2], [1], [3])[0], uniforms([1], [3], [2])[0]}) == 3
    assert whole.min() >= 0 and whole.max() < 1
    steps = uniforms([5] * 20000, range(20000), [0] * 20000)
    for numbers in (whole, steps):
        shares = np.histogram(numbers, 10, (0, 1))[0] / len(numbers)
        assert np.abs(shares - 0.1).max() < 0.03
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.03
    uniforms([-1, 2**80], [0, 0], [0, 0])  # any integer is a seed


def test_frequencies_follow_the_tempered_softmax():
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0]])
    n = 20_000
    picked = choose(logits.expand(n, 4), [Sampling(0.7)] * n, uniforms(range(n), [0] * n, [0] * n))
    shares = np.bincount(picked, minlength=4) / n
    assert np.abs(shares - (logits[0] / 0.7).softmax(-1).numpy()).max() < 0.015


@given(seed=st.integers(0, 10**6), k=st.integers(0, 40), p=st.floats(0.05, 1.0), width=st.integers(1, 29))
@settings(max_examples=80, deadline=None)
def test_top_k_then_top_p_keep_exactly_the_best(seed, k, p, width):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((1, 30), generator=generator) * 3
    n = 300
    u = uniforms([seed] * n, range(n), [0] * n)
    picked = choose(logits.expand(n, 30), [Sampling(1.0, p, k)] * n, u)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_SHORTLISTS", (width,))
        assert choose(logits.expand(n, 30), [Sampling(1.0, p, k)] * n, u) == picked
    order = logits[0].argsort(descending=True).tolist()[: k or 30]
    probabilities = logits[0, order].double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    allowed = {token for token, mass in zip(order, before.tolist(), strict=True) if mass < p + 1e-9}
    assert set(picked) <= allowed


def test_greedy_and_sampled_rows_share_a_batch_and_masked_ids_are_never_taken():
    logits = torch.zeros((4, 6))
    logits[:, 3] = 1.0
    logits[:, 5] = -torch.inf
    settings_ = [Sampling(), Sampling(1.0), Sampling(5.0, top_k=1), Sampling(1.0, top_p=0.01)]
    assert choose(logits, settings_, np.array([0.0, 0.0, 0.9, 0.9])) == [3, 0, 3, 3]
    assert choose(logits[:1], [Sampling(100.0)], np.array([1 - 2.0**-53])) == [4]


@given(
    scores=st.lists(st.integers(-20, 20), min_size=2, max_size=12, unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    k=st.integers(0, 14),
    p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_distribution_is_that_of_the_definition(scores, temperature, k, p):
    """The reference, in plain Python: the k best, of these the fewest whose share reaches p, renormalised. An
    even grid of random numbers meets every token as often as its probability says, to one count."""
    weights = {token: math.exp(score / 4 / temperature) for token, score in enumerate(scores)}
    best = sorted(weights, key=weights.__getitem__, reverse=True)[: k or len(scores)]
    mass, kept, reached = sum(weights[token] for token in best), [], 0.0
    for token in best:
        if reached >= p * mass:
            break
        kept.append(token)
        reached += weights[token]
    n = 1000
    logits = torch.tensor([scores], dtype=torch.float32).expand(n, -1) / 4
    picked = choose(logits, [Sampling(temperature, p, k)] * n, (np.arange(n) + 0.5) / n)
    for token in weights:
        share = weights[token] / reached if token in kept else 0.0
        assert abs(picked.count(token) - n * share) <= 1.001


def test_a_row_that_needs_the_whole_vocabulary_leaves_its_neighbours_alone():
    """Equal scores are common in half precision, and a longer list may order them differently."""
    flat = torch.zeros(3000)
    ties = torch.randint(0, 4, (3000,), generator=torch.Generator().manual_seed(0)).float()
    narrow, wide = Sampling(1.0, top_k=50), Sampling(1.0, top_p=0.99)
    for u in np.linspace(0.01, 0.99, 20):
        alone = choose(ties[None], [narrow], np.array([u]))
        assert choose(torch.stack([ties, flat]), [narrow, wide], np.array([u, u]))[:1] == alone
        plain = choose(ties[None], [Sampling(1.0)], np.array([u]))
        assert choose(torch.stack([ties, ties]), [Sampling(1.0), narrow], np.array([u, u])) == plain + alone


def test_a_temperature_that_rounds_to_zero_is_greedy():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for sampling_ in (Sampling(1e-300), Sampling(1e-300, top_p=0.9)):
        assert choose(logits, [sampling_], np.array([0.999])) == [1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_k": -1}, "top_k")],
)
def test_impossible_settings_are_refused(fields, reason):
    with pytest.raises(UsageError, match=reason):
        Sampling(**fields)
    with pytest.raises(UsageError, match="temperature"):
        Sampling(float("nan"))
