"""What the search for pivotal tokens needs of a model: replies to search in, and estimates of how replies
that begin alike end.

Promises: an estimate is of continuations from exact ids, drawn by the project's own engine and judged by the
problem's checker; other rounds draw other random numbers; undecided and cut-off continuations are no
successes, and are counted.
Does not: search (see `pivotal`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash
from tutelage.students.pretrained import Student
from tutelage.teachers.replies import is_truncated
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.pivotal import Attempt, Estimate, Prefix
from tutelage.train.rollouts import Rollout, continue_
from tutelage.train.scoring import logits_at
from tutelage.verify.cascade import judge
from tutelage.verify.workers import WorkerPool


@dataclass(slots=True)
class Oracle:
    """Estimates by `student` as it is. `counts`: continuations drawn, cut off, and undecided."""

    student: Student
    problems: Mapping[str, Problem]
    pool: WorkerPool
    policy: ThinkingPolicy
    sampling: Sampling
    seed: int
    max_answer: int
    max_batch: int = 64
    workers: int = 1
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, prefixes: Sequence[Prefix], n: int, round_: int) -> list[Estimate]:
        """One estimate for each prefix, from `n` continuations."""
        found = continue_(
            self.student,
            [(self.problems[name], ids) for name, ids in prefixes],
            n=n,
            policy=self.policy,
            sampling=self.sampling,
            seed=int(stable_hash(self.seed, "pivotal", round_), 16),
            max_answer=self.max_answer,
            max_batch=self.max_batch,
        )
        traces = [each.trace for group in found for each in group]
        verdicts = iter(judge(self.problems, traces, workers=self.workers, pool=self.pool))
        estimates = []
        for (_, ids), group in zip(prefixes, found, strict=True):
            firsts: dict[int, tuple[int, int]] = {}
            right = 0
            for each in group:
                status, cut = next(verdicts).status, is_truncated(each.trace.finish_reason)
                good = int(status == "correct" and not cut)
                right += good
                self.counts.update({"continuations": 1, "cut off": cut, "undecided": status == "undecided"})
                if len(each.ids) > len(ids) and each.free[len(ids)]:
                    before = firsts.get(each.ids[len(ids)], (0, 0))
                    firsts[each.ids[len(ids)]] = (before[0] + good, before[1] + 1)
            estimates.append(Estimate(right, n, firsts))
        return estimates


def attempts(student: Student, rollouts: Sequence[Rollout], per_problem: int) -> list[Attempt]:
    """Finished and decided rollouts to search in: of each problem at most `per_problem` different ones, right
    and wrong ones in turn. Log-probabilities that are not there are computed with `student`.

    Raises UsageError when a rollout has no verdict."""
    sides: dict[str, dict[str, list[Rollout]]] = defaultdict(lambda: {"correct": [], "incorrect": []})
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for each in rollouts:
        if each.status is None:
            raise UsageError(f"rollout {each.trace.id} has no verdict; judge the rollouts first")
        key = (each.trace.problem_id, each.ids)
        if each.status != "undecided" and not is_truncated(each.trace.finish_reason) and key not in seen:
            seen.add(key)
            sides[each.trace.problem_id][each.status].append(each)
    chosen: list[Rollout] = []
    for both in sides.values():
        right, wrong = both["correct"], both["incorrect"]
        most = max(len(right), len(wrong))
        in_turn = [side[k] for k in range(most) for side in (right, wrong) if k < len(side)]
        chosen += in_turn[:per_problem]
    return [_attempt(student, each) for each in chosen]


def _attempt(student: Student, each: Rollout) -> Attempt:
    return Attempt(
        problem_id=each.trace.problem_id,
        trace_id=each.trace.id,
        prompt_ids=each.prompt_ids,
        ids=each.ids,
        free=each.free,
        logprobs=each.logprobs or logprobs(student, each.prompt_ids, each.ids),
        right=each.status == "correct",
    )


@torch.inference_mode()
def logprobs(student: Student, prompt: Sequence[int], ids: Sequence[int]) -> tuple[float, ...]:
    """The natural-log probability of each of `ids` after `prompt`."""
    device = next(student.model.parameters()).device
    whole = torch.tensor([[*prompt, *ids]], device=device)  # (1, tokens)
    learned = torch.zeros_like(whole, dtype=torch.bool)[:, 1:]
    learned[:, len(prompt) - 1 :] = True
    scores = logits_at(student.model, whole, learned).float().log_softmax(dim=-1)
    return tuple(scores.gather(1, torch.tensor(ids, device=device)[:, None])[:, 0].tolist())
