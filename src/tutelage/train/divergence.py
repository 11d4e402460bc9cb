"""How far a student's next-token distribution is from a teacher's.

Everything works on natural logarithms, in float32. `beta` follows Agarwal et al. 2024 ("On-policy
distillation of language models", arXiv 2306.13649, eq. 1) in TRL's convention: 0 is forward
KL(teacher‖student), which covers all that the teacher might write; 1 is reverse KL(student‖teacher), which
seeks what the teacher writes most; between them the generalised Jensen-Shannon divergence with the mixture M
= beta·T + (1 − beta)·S.

Promises: equal to TRL's `generalized_jsd_loss` on whole distributions; on a teacher's best ids and one bucket
for all others it is a lower bound of that, and equal to it where the best ids are the whole vocabulary; the
mixture is formed in log space; beside the logits only a few times `CHUNK` vocabulary-sized numbers are alive
at once.
Does not: run models, or know about files. No factor temperature² is applied (as in TRL, unlike Hinton et al.
2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tutelage.errors import UsageError
from tutelage.train.examples import IGNORE

CHUNK = 1 << 24  # numbers: 64 MB in float32
# The logarithm of a share that is as good as none: keeps empty buckets finite, in value and in gradient.
FLOOR = -50.0


@dataclass(frozen=True, slots=True)
class Sparse:
    """A teacher's distribution at some places: its best `ids` (places, k), their `logprobs` (places, k) at
    temperature 1, and `tail` (places,), the logarithm of what all other ids share."""

    ids: Tensor
    logprobs: Tensor
    tail: Tensor

    def __len__(self) -> int:
        return len(self.tail)

    def cut(self, start: int, end: int) -> Sparse:
        """Places `start` to `end`."""
        return Sparse(self.ids[start:end], self.logprobs[start:end], self.tail[start:end])


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first‖second) in nats of log-probabilities (..., n), as (...). An id that `first` never writes
    counts nothing; one that only `second` never writes makes it infinite."""
    possible = first != -torch.inf  # a NaN stays one
    known = torch.where(possible, first, 0.0)
    other = torch.where(possible, second, 0.0)
    return torch.where(possible, known.exp() * (known - other), 0.0).sum(-1)


def generalised_jsd(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """The divergence in nats of log-probabilities (..., n), as (...): forward KL at `beta` 0, reverse KL at
    1, beta·KL(T‖M) + (1 − beta)·KL(S‖M) between them (arXiv 2306.13649, eq. 1)."""
    if not 0 <= beta <= 1:
        raise UsageError(f"beta is {beta:g}; it must be between 0 (forward KL) and 1 (reverse KL)")
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    weight = torch.tensor(beta, dtype=student.dtype, device=student.device)
    mixture = torch.logaddexp(student + torch.log1p(-weight), teacher + torch.log(weight))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def top_and_tail(logits: Tensor, k: int) -> Sparse:
    """The `k` best ids of each place of `logits` (places, vocabulary), best first, and the rest as one
    bucket."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    best, ids = logprobs.topk(k, dim=-1)
    return Sparse(ids, best, _rest(logprobs, ids))


def on_support(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (places, k + 1) of `ids` (places, k) and of all others together, from `logits`
    (places, vocabulary)."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    return torch.cat([logprobs.gather(-1, ids), _rest(logprobs, ids).unsqueeze(-1)], dim=-1)


def _rest(logprobs: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of what all but `ids` share. Summed over them: 1 − sum would lose a small rest, and with
    it its gradient, to rounding."""
    others = logprobs.scatter(-1, ids, torch.finfo(logprobs.dtype).min / 4)
    return others.logsumexp(-1).clamp_min(FLOOR)


def shifted(labels: Tensor) -> Tensor:
    """Where the loss falls, (batch, tokens − 1): True at place i where the id at i + 1, which the logits at i
    predict, is learned."""
    return labels[:, 1:] != IGNORE


def summed(student: Tensor, teacher: Tensor | Sparse, beta: float, temperature: float = 1.0) -> Tensor:
    """The divergences of all places added up, in nats: divide by the number of learned ids of the whole step
    (all micro-batches, all processes), so that accumulating gradients changes nothing.

    `student` are logits (places, vocabulary); `teacher` are logits of the same ids, or its best ids. Both are
    divided by `temperature` before the softmax. Raises UsageError for another temperature than 1 with best
    ids: the bucket of the others cannot be tempered."""
    if isinstance(teacher, Sparse):
        if temperature != 1:
            raise UsageError(
                f"temperature {temperature:g} needs a live teacher: saved scores are at temperature 1"
            )
    elif teacher.shape != student.shape:
        raise UsageError(
            f"the teacher scores {teacher.shape[-1]} ids and the student {student.shape[-1]}, not the same"
        )
    if len(student) == 0:
        return student.sum() * 0.0
    total = torch.zeros((), device=student.device)
    size, start = max(1, CHUNK // student.shape[-1]), 0
    pieces = torch.split(student, size)  # slices would each bring a gradient as large as the whole
    for piece in pieces:
        end = start + len(piece)
        part = teacher.cut(start, end) if isinstance(teacher, Sparse) else teacher[start:end]
        if len(pieces) == 1 or not torch.is_grad_enabled():
            total = total + _piece(piece, part, beta, temperature)
        else:  # forget the piece's distributions, and make them again when the gradient is asked for
            total = total + checkpoint(
                _piece, piece, part, beta, temperature, use_reentrant=False, preserve_rng_state=False
            )
        start = end
    return total


def _piece(student: Tensor, teacher: Tensor | Sparse, beta: float, temperature: float) -> Tensor:
    if isinstance(teacher, Sparse):
        wanted = torch.cat([teacher.logprobs, teacher.tail.clamp_min(FLOOR).unsqueeze(-1)], dim=-1).float()
        return generalised_jsd(wanted, on_support(student, teacher.ids), beta).sum()
    return generalised_jsd(
        torch.log_softmax(teacher.float() / temperature, dim=-1),
        torch.log_softmax(student.float() / temperature, dim=-1),
        beta,
    ).sum()
