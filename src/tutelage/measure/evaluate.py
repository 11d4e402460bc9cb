"""How often an arm is right: traces from a sampler, verdicts from a checker, a number with its interval.

Promises: every problem counts once, whatever the number of samples (they are averaged per problem first); an
undecided verdict counts as not correct and is reported beside the accuracy; the interval is over problems.
Does not: build samplers or checkers (they are handed in), or write files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.measure.statistics import accuracy
from tutelage.records import Problem, Trace, Verdict

Sampler = Callable[[Sequence[Problem]], Iterator[Trace]]
Check = Callable[[Sequence[Problem], Sequence[Trace]], list[Verdict]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured. `accuracy` in [0, 1] with its 95 % interval over `n` problems with `samples` replies
    each; `thinking_tokens_mean` per reply, sampled and forced, None when a maker does not tell;
    `closed_by` and `finished` count replies by who closed the thinking and how the reply ended."""

    traces: list[Trace]
    verdicts: list[Verdict]
    accuracy: float
    ci95: tuple[float, float]
    n: int
    samples: int
    thinking_tokens_mean: float | None
    forced_tokens_mean: float | None
    closed_by: dict[str, int]
    finished: dict[str, int]
    undecided: int

    def to_json(self) -> dict[str, Any]:
        """Everything but the traces and verdicts, JSON-ready."""
        return {
            "accuracy": self.accuracy,
            "ci95": list(self.ci95),
            "n": self.n,
            "samples": self.samples,
            "thinking_tokens_mean": self.thinking_tokens_mean,
            "forced_tokens_mean": self.forced_tokens_mean,
            "closed_by": self.closed_by,
            "finished": self.finished,
            "undecided": self.undecided,
        }


def evaluate(problems: Sequence[Problem], sampler: Sampler, check: Check) -> Evaluation:
    """Ask `sampler` for traces of `problems`, judge them with `check`, and sum up."""
    if not problems:
        raise UsageError("there is no problem to evaluate on")
    traces = list(sampler(problems))
    return summed_up(problems, traces, check(problems, traces))


def summed_up(
    problems: Sequence[Problem], traces: Sequence[Trace], verdicts: Sequence[Verdict]
) -> Evaluation:
    """The evaluation of traces that were judged already.

    Raises UsageError when a problem has no trace, problems have different numbers of traces, a trace has no
    verdict or belongs to none of the problems, or there are more verdicts than traces."""
    scores = scores_by_problem(traces, verdicts)
    missing = [problem.id for problem in problems if problem.id not in scores]
    if missing:
        raise UsageError(f"{len(missing)} problems have no reply, {missing[0]} for one")
    sizes = {len(scores[problem.id]) for problem in problems}
    if len(sizes) != 1:
        raise UsageError("problems have different numbers of replies; evaluate them in one go")
    strangers = scores.keys() - {problem.id for problem in problems}
    if strangers:
        raise UsageError(f"{len(strangers)} problems with replies were not asked, {min(strangers)} for one")
    if len(verdicts) != len(traces):
        raise UsageError(f"{len(verdicts)} verdicts for {len(traces)} replies; judge each reply once")
    found = accuracy([scores[problem.id] for problem in problems])
    return Evaluation(
        traces=list(traces),
        verdicts=list(verdicts),
        accuracy=found.mean,
        ci95=(found.lo, found.hi),
        n=len(problems),
        samples=sizes.pop(),
        thinking_tokens_mean=mean(trace.thinking_tokens for trace in traces),
        forced_tokens_mean=mean(trace.thinking_forced for trace in traces),
        closed_by=dict(sorted(Counter(trace.closed_by for trace in traces).items())),
        finished=dict(sorted(Counter(trace.finish_reason for trace in traces).items())),
        undecided=sum(verdict.status == "undecided" for verdict in verdicts),
    )


def scores_by_problem(traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> dict[str, list[float]]:
    """1.0 for each correct trace and 0.0 for each other, by problem id, in the order of the traces.

    Raises UsageError for a trace without a verdict."""
    judged = {verdict.trace_id: verdict for verdict in verdicts}
    scores: dict[str, list[float]] = {}
    for trace in traces:
        if trace.id not in judged:
            raise UsageError(f"trace {trace.id} has no verdict")
        scores.setdefault(trace.problem_id, []).append(float(judged[trace.id].status == "correct"))
    return scores


def mean(values: Any) -> float | None:
    """The mean, None when there is no value or one of them is None."""
    found = list(values)
    return sum(found) / len(found) if found and None not in found else None
