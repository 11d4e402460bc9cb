"""The divergences against numbers worked out by hand, against TRL's, and as laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tutelage.errors import UsageError
from tutelage.train import divergence
from tutelage.train.divergence import Sparse, generalised_jsd, kl, on_support, shifted, summed, top_and_tail
from tutelage.train.examples import IGNORE

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def logs(*shares: float) -> Tensor:
    return torch.tensor(shares).log()


@st.composite
def two_logits(draw: st.DrawFn, vocabulary: int = 7) -> tuple[Tensor, Tensor]:
    row = st.lists(st.floats(-20, 20, width=32), min_size=vocabulary, max_size=vocabulary)
    rows = draw(st.integers(1, 4))
    return tuple(torch.tensor([draw(row) for _ in range(rows)]) for _ in range(2))  # type: ignore[return-value]


def test_the_divergences_are_those_worked_out_by_hand() -> None:
    teacher, student = logs(0.5, 0.25, 0.25), logs(0.25, 0.25, 0.5)
    # 0.5 ln 2 + 0 + 0.25 ln ½ = 0.25 ln 2, and the same the other way round.
    assert float(generalised_jsd(teacher, student, 0)) == pytest.approx(0.25 * math.log(2), abs=1e-6)
    assert float(generalised_jsd(teacher, student, 1)) == pytest.approx(0.25 * math.log(2), abs=1e-6)
    # M = (3/8, 1/4, 3/8): each half is 0.5 ln(4/3) + 0.25 ln(2/3).
    half = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    assert float(generalised_jsd(teacher, student, 0.5)) == pytest.approx(half, abs=1e-6)
    lopsided_teacher, lopsided = logs(0.9, 0.1), logs(0.6, 0.4)
    forward = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    reverse = 0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.1)
    assert float(generalised_jsd(lopsided_teacher, lopsided, 0)) == pytest.approx(forward, abs=1e-6)
    assert float(generalised_jsd(lopsided_teacher, lopsided, 1)) == pytest.approx(reverse, abs=1e-6)
    # beta is the teacher's share of the mixture: M = 0.25 T + 0.75 S = (0.675, 0.325).
    quarter = 0.25 * (0.9 * math.log(0.9 / 0.675) + 0.1 * math.log(0.1 / 0.325)) + 0.75 * (
        0.6 * math.log(0.6 / 0.675) + 0.4 * math.log(0.4 / 0.325)
    )
    assert float(generalised_jsd(lopsided_teacher, lopsided, 0.25)) == pytest.approx(quarter, abs=1e-6)


def test_an_id_that_is_never_written_counts_nothing_or_makes_it_infinite() -> None:
    sure, open_ = torch.tensor([0.0, -torch.inf]), logs(0.5, 0.5)
    assert float(kl(sure, open_)) == pytest.approx(math.log(2))
    assert float(kl(open_, sure)) == math.inf


@pytest.mark.parametrize("beta", BETAS)
def test_what_is_no_number_shows(beta: float) -> None:
    broken, sound = torch.tensor([[math.nan, 0.0]]), torch.zeros(1, 2)
    assert math.isnan(float(summed(broken, sound, beta)))
    assert math.isnan(float(summed(sound, broken, beta)))
    assert math.isnan(float(summed(broken, top_and_tail(sound, 1), beta)))


@pytest.mark.slow  # importing TRL's trainer takes seconds
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_whole_distributions_give_the_loss_of_trl(beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 11) * 3, torch.randn(2, 5, 11) * 3
    labels = torch.randint(0, 11, (2, 5))
    labels[0, :2] = labels[1, 4:] = IGNORE
    theirs = GKDTrainer.generalized_jsd_loss(
        student, teacher, labels, beta=beta, temperature=temperature, num_items_in_batch=13
    )
    valid = labels != IGNORE
    ours = summed(student[valid], teacher[valid], beta, temperature) / 13
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.slow
def test_the_bucket_of_all_other_ids_is_that_of_trl() -> None:
    from trl.experimental.server_distillation import server_distillation_trainer as theirs

    torch.manual_seed(1)
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    best = top_and_tail(teacher, 3)
    support = torch.ones(6, 3, dtype=torch.bool)
    student_best = student.log_softmax(-1).gather(-1, best.ids)
    theirs_student, mask = theirs._add_tail_bucket(student_best, support)
    theirs_teacher, _ = theirs._add_tail_bucket(best.logprobs, support)
    assert torch.allclose(on_support(student, best.ids), theirs_student, atol=1e-5)
    for beta in BETAS:
        expected = theirs._jsd_divergence(theirs_student, theirs_teacher, beta, mask).sum()
        assert float(summed(student, best, beta)) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.slow
@given(two_logits(), st.sampled_from(BETAS))
def test_a_divergence_is_never_negative_and_nothing_for_equal_distributions(
    pair: tuple[Tensor, Tensor], beta: float
) -> None:
    student, teacher = pair
    assert float(summed(student, teacher, beta)) >= -1e-5
    assert float(summed(student, student, beta)) == pytest.approx(0, abs=1e-5)
    assert float(summed(student, top_and_tail(student, 2), beta)) == pytest.approx(0, abs=1e-5)


@given(two_logits(), st.sampled_from(BETAS))
def test_the_whole_vocabulary_as_best_ids_is_the_whole_distribution(
    pair: tuple[Tensor, Tensor], beta: float
) -> None:
    student, teacher = pair
    dense = float(summed(student, teacher, beta))
    assert float(summed(student, top_and_tail(teacher, 7), beta)) == pytest.approx(dense, abs=1e-5, rel=1e-5)


@given(two_logits(), st.sampled_from(BETAS), st.integers(1, 6))
def test_fewer_ids_never_show_more_divergence(pair: tuple[Tensor, Tensor], beta: float, k: int) -> None:
    student, teacher = pair
    fewer = float(summed(student, top_and_tail(teacher, k), beta))
    more = float(summed(student, top_and_tail(teacher, k + 1), beta))
    assert fewer <= more + 1e-4


@given(two_logits(), st.integers(1, 7))
def test_best_ids_and_tail_add_up_to_one(pair: tuple[Tensor, Tensor], k: int) -> None:
    best = top_and_tail(pair[0], k)
    total = best.logprobs.exp().sum(-1) + best.tail.exp()
    assert torch.allclose(total, torch.ones(len(total)), atol=1e-5)
    assert (best.logprobs.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_pieces_change_nothing_but_memory(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(10, 8), torch.randn(10, 8)
    target = top_and_tail(teacher, 3) if sparse else teacher
    found = []
    for chunk in (1 << 24, 24):  # all places together; three at a time
        monkeypatch.setattr(divergence, "CHUNK", chunk)
        begun = student.clone().requires_grad_()
        total = summed(begun, target, 0.3)
        total.backward()
        found.append((total.detach(), begun.grad))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-7)


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_stay_finite_where_almost_nothing_is_left(beta: float) -> None:
    student = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    sure = Sparse(torch.tensor([[0], [0]]), torch.zeros(2, 1), torch.full((2,), -math.inf))
    summed(student, sure, beta).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_the_loss_is_shifted_by_one() -> None:
    labels = torch.tensor([[IGNORE, IGNORE, 5, 6, IGNORE]])
    # The ids 5 and 6, at places 2 and 3, are predicted at places 1 and 2.
    assert shifted(labels).tolist() == [[False, True, True, False]]


def test_no_place_is_no_loss_with_a_gradient() -> None:
    student = torch.randn(0, 5, requires_grad=True)
    total = summed(student, torch.randn(0, 5), 0.0)
    total.backward()
    assert float(total.detach()) == 0.0


def test_what_cannot_be_compared_is_refused() -> None:
    student = torch.randn(2, 5)
    with pytest.raises(UsageError, match="temperature 2 needs a live teacher"):
        summed(student, top_and_tail(student, 2), 0.0, 2.0)
    with pytest.raises(UsageError, match="the teacher scores 4 ids and the student 5, not the same"):
        summed(student, torch.randn(2, 4), 0.0)
    with pytest.raises(UsageError, match=r"beta is 1\.5"):
        summed(student, student, 1.5)
