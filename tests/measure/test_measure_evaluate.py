"""Evaluation: every problem counts once, undecided is not correct, and what is missing is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.measure.evaluate import evaluate, scores_by_problem, summed_up
from tutelage.measure.statistics import wilson
from tutelage.records import Problem, Trace, Verdict

PROBLEMS = [Problem(f"p{i}", "?", "1") for i in range(4)]


def traces(samples, **more):
    return [
        Trace(f"{p.id}-{s}", p.id, s, "m", "1", thinking_sampled=10 * (s + 1), thinking_forced=1, **more)
        for p in PROBLEMS
        for s in range(samples)
    ]


def verdicts(made, statuses):
    return [Verdict(t.id, t.problem_id, o, "", "exact", "1") for t, o in zip(made, statuses, strict=True)]


def test_one_sample_each_gets_a_wilson_interval_and_undecided_is_not_correct():
    made = traces(1, closed_by="model")
    judged = verdicts(made, ["correct", "undecided", "incorrect", "correct"])
    found = evaluate(PROBLEMS, lambda problems: iter(made), lambda problems, t: judged)
    interval = wilson(2, 4)
    assert (found.accuracy, found.ci95, found.n, found.samples) == (0.5, (interval.lo, interval.hi), 4, 1)
    assert (found.undecided, found.thinking_tokens_mean, found.forced_tokens_mean) == (1, 11, 1)
    assert (found.closed_by, found.finished) == ({"model": 4}, {"stop": 4})
    assert "traces" not in found.to_json() and found.to_json()["ci95"] == [interval.lo, interval.hi]


@given(st.lists(st.sampled_from(["correct", "incorrect", "undecided"]), min_size=12, max_size=12))
def test_samples_are_averaged_per_problem_and_the_interval_holds_the_mean(statuses):
    made = traces(3)
    found = summed_up(PROBLEMS, made, verdicts(made, statuses))
    assert found.accuracy == pytest.approx(statuses.count("correct") / 12)
    assert 0 <= found.ci95[0] <= found.accuracy <= found.ci95[1] <= 1
    assert (found.n, found.samples, found.thinking_tokens_mean) == (4, 3, 21)


def test_what_is_missing_is_refused():
    made = traces(2)
    judged = verdicts(made, ["correct"] * 8)
    with pytest.raises(UsageError, match="no problem"):
        evaluate([], lambda problems: iter(()), lambda problems, t: [])
    with pytest.raises(UsageError, match="1 problems have no reply, p0"):
        summed_up(PROBLEMS, made[2:], judged)
    with pytest.raises(UsageError, match="different numbers"):
        summed_up(PROBLEMS, made[1:], judged)
    with pytest.raises(UsageError, match="p3-1 has no verdict"):
        scores_by_problem(made, judged[:-1])


def test_what_is_too_much_is_refused():
    made = traces(2)
    judged = verdicts(made, ["correct"] * 8)
    with pytest.raises(UsageError, match="1 problems with replies were not asked, p3"):
        summed_up(PROBLEMS[:3], made, judged)
    with pytest.raises(UsageError, match="9 verdicts for 8 replies"):
        summed_up(PROBLEMS, made, [*judged, Verdict("other", "p0", "undecided", "", "exact")])


def test_samples_do_not_narrow_the_interval_as_if_they_were_problems():
    """Twelve equal samples of each of four problems tell no more about the problems than one."""
    made = traces(12)
    judged = verdicts(made, ["correct" if t.problem_id in ("p0", "p1") else "incorrect" for t in made])
    found = summed_up(PROBLEMS, made, judged)
    pooled = wilson(24, 48)
    assert found.accuracy == 0.5
    assert found.ci95[1] - found.ci95[0] > 1.5 * (pooled.hi - pooled.lo)


def test_unknown_token_counts_stay_unknown():
    made = [Trace(f"{p.id}", p.id, 0, "m", "1") for p in PROBLEMS]
    assert summed_up(PROBLEMS, made, verdicts(made, ["correct"] * 4)).thinking_tokens_mean is None
