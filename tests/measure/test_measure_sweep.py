"""The sweep: every point equals a run of its own, votes cost all their tokens, controls are there."""

from dataclasses import replace

import pytest

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.measure.evaluate import evaluate
from tutelage.measure.sweep import Grid, canonical, sweep
from tutelage.records import Problem, Verdict
from tutelage.teachers.local import LocalTeacher, local_sampler
from tutelage.think.engine import generate
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

PROBLEMS = [Problem(f"p{i}", "sum? " + "y" * (i % 5) + str(i), "7") for i in range(8)]
TEACHER = LocalTeacher(tiny_student(closes=2.0), "tiny", seed=3, max_answer=6)
NATURAL = ThinkingPolicy(max_tokens=40, close_text="A", answer_reserve=6)
GRID = Grid(
    NATURAL,
    budgets=(0, 5, 20, 60),
    waits=(1, 2),
    wait=" Wait",
    other_waits=("Hm",),
    suppress=(1,),
    votes=(1, 2, 4),
    vote_samples=4,
)


def check(problems, traces):
    """Right where the answer's length is even: an arbitrary rule that gives answers of both kinds."""
    return [
        Verdict(
            t.id, t.problem_id, "incorrect" if len(t.answer) % 2 else "correct", "", "exact", t.answer or None
        )
        for t in traces
    ]


POINTS = sweep("arm", TEACHER, PROBLEMS, check, GRID)


def test_every_method_and_control_has_its_points():
    made = [(p.row["method"], p.row["budget"], p.row["waits"], p.row["wait"], p.row["votes"]) for p in POINTS]
    assert made == [
        ("natural", None, None, None, None),
        *(("budget", b, None, None, None) for b in (0, 5, 20, 60)),
        *(("wait", None, n, word, None) for word in (" Wait", "Hm") for n in (1, 2)),
        ("suppress", None, 1, None, None),
        ("natural", None, None, None, None),
        *(("vote", None, None, None, k) for k in (1, 2, 4)),
    ]
    fields = {"arm", "method", "budget", "waits", "wait", "accuracy", "ci95", "n", "samples", "closed_by"}
    for point in POINTS:
        assert fields <= set(point.row) and point.row["thinking_tokens_mean"] is not None
        assert point.row["n"] == len(PROBLEMS)


@pytest.mark.parametrize("index", range(10))
def test_a_point_equals_a_run_of_its_own(index):
    """One greedy trace is closed again at every budget; nothing before the close depends on the budget, so
    the accuracy, the tokens and even the texts must be those of a separate run."""
    row = POINTS[index].row
    policy = replace(NATURAL, max_tokens=40 if row["budget"] is None else row["budget"])
    policy = replace(policy, refuse_closes=row["waits"] or 0, wait=row["wait"])
    alone = evaluate(PROBLEMS, local_sampler(TEACHER, policy), check)
    if row["method"] == "wait":
        assert sum(t.thinking_forced for t in alone.traces) > 0, "the model never closes: nothing is tested"
    assert [(t.thinking, t.answer) for t in alone.traces] == [
        (t.thinking, t.answer) for t in POINTS[index].traces
    ]
    for name, value in row.items():
        if name in alone.to_json():
            assert alone.to_json()[name] == value


def test_budgets_bind_and_cost_fewer_tokens_than_runs_of_their_own(monkeypatch):
    made = {p.row["budget"]: p.row for p in POINTS if p.row["method"] == "budget"}
    assert made[0]["thinking_tokens_mean"] == 0 and made[0]["closed_by"] == {"budget": 8}
    assert all(row["thinking_tokens_mean"] <= budget for budget, row in made.items())
    replayed = []

    def spy(model, requests, *rest, **options):
        replayed.append(sum(request.replay is not None for request in requests))
        return generate(model, requests, *rest, **options)

    monkeypatch.setattr("tutelage.teachers.local.generate", spy)
    sweep("arm", TEACHER, PROBLEMS, check, replace(GRID, votes=()))
    assert replayed == [0] + [len(PROBLEMS)] * 9


def test_a_vote_costs_the_tokens_of_all_its_attempts_and_a_vote_of_one_is_the_mean():
    sampled = next(p.row for p in POINTS if p.row["sampling"] == "T = 0.7")
    votes = {p.row["votes"]: p.row for p in POINTS if p.row["method"] == "vote"}
    many = LocalTeacher(TEACHER.student, "tiny", Sampling(0.7), samples=4, seed=3, max_answer=6)
    found = evaluate(PROBLEMS, local_sampler(many, NATURAL), check)
    assert sampled["accuracy"] == pytest.approx(found.accuracy)
    assert votes[1]["accuracy"] == pytest.approx(found.accuracy)
    for size, row in votes.items():
        assert row["thinking_tokens_mean"] == pytest.approx(size * found.thinking_tokens_mean)
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]


def test_all_right_answers_vote_together():
    right = [Verdict("t", "p", "correct", "", "math", text) for text in ("1/2", "0.5")]
    assert canonical(right[0]) == canonical(right[1])
    assert canonical(Verdict("t", "p", "incorrect", "", "math", None)) is None


def test_wrong_answers_of_equal_text_vote_together_and_never_with_the_right_ones():
    def judged(status, extracted):
        return Verdict("t", "p", status, "", "number", extracted)

    assert canonical(judged("incorrect", "3")) == canonical(judged("undecided", "3"))
    assert canonical(judged("incorrect", "3")) != canonical(judged("incorrect", "4"))
    # No text that a model may write is taken for a right answer.
    for text in ("right", "wrong: 3", "", "\x00correct", canonical(judged("correct", "3"))):
        assert canonical(judged("incorrect", text)) != canonical(judged("correct", "3"))


def test_a_vote_is_won_by_the_most_given_answer():
    """Three of four samples agree on a wrong answer: right once in four alone, never in a vote."""

    def check(problems, traces):
        right, wrong = ("correct", "7"), ("incorrect", "3")
        judged = [(t, *(wrong if t.sample else right)) for t in traces]
        return [Verdict(t.id, t.problem_id, status, "", "exact", answer) for t, status, answer in judged]

    grid = Grid(NATURAL, votes=(1, 3, 4), vote_samples=4)
    made = {p.row["votes"]: p.row["accuracy"] for p in sweep("arm", TEACHER, PROBLEMS[:3], check, grid)}
    assert made[1] == pytest.approx(0.25) and made[3] == made[4] == 0


@pytest.mark.parametrize(
    "policy",
    [
        ThinkingPolicy(min_tokens=4, max_tokens=40, answer_reserve=6),
        ThinkingPolicy(max_tokens=40, refuse_closes=1, wait=("no", "Hm"), max_waits=1, answer_reserve=6),
    ],
)
def test_points_stay_exact_where_the_natural_policy_refuses_closes(policy):
    """A reply in which a close was refused cannot be taken up again: it is decoded anew. And masked closes
    write nothing, also where the natural policy has wait strings."""
    grid = Grid(policy, budgets=(6, 12), suppress=(2,))
    natural, *capped, masked = sweep("arm", TEACHER, PROBLEMS, check, grid)
    assert any(trace.thinking_forced for trace in natural.traces) == (policy.wait is not None)
    for point, budget in zip(capped, grid.budgets, strict=True):
        fresh = local_sampler(TEACHER, replace(policy, max_tokens=budget))
        assert point.traces == list(fresh(PROBLEMS))
    assert masked.row["thinking_tokens_mean"] > 0
    assert all(trace.thinking_forced == 0 and trace.forced_spans == () for trace in masked.traces)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"votes": (0,)}, "votes: 0 is no number of voters"),
        ({"budgets": (8, -1)}, "max_tokens is -1"),
        (
            {"budgets": (2,), "policy": ThinkingPolicy(min_tokens=3)},
            "min_tokens 3 is larger than max_tokens 2",
        ),
        ({"waits": (-1,)}, "refuse_closes is -1"),
        ({"waits": (1,), "wait": ""}, "wait is empty"),
        ({"waits": (1,), "other_waits": ("",)}, "wait is empty"),
    ],
)
def test_an_impossible_point_is_refused_when_the_grid_is_built(fields, reason):
    with pytest.raises(UsageError, match=reason):
        replace(GRID, **{"budgets": (), "waits": (), "votes": (), **fields})


def test_progress_is_told_for_every_pass_and_impossible_votes_are_refused():
    told = []
    sweep("arm", TEACHER, PROBLEMS[:2], check, GRID, lambda *call: told.append(call))
    assert [done for done, _, _ in told] == list(range(1, GRID.steps + 1))
    assert {total for _, total, _ in told} == {GRID.steps}
    with pytest.raises(UsageError, match="8 is more than vote_samples 4"):
        replace(GRID, votes=(8,))
