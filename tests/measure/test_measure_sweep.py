"""The sweep: every point equals a run of its own, all attempts count, and lines hang together."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps

import numpy as np
import pytest

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.measure.evaluate import evaluate
from tutelage.measure.grid import Grid
from tutelage.measure.lines import analyse, lines_of
from tutelage.measure.replies import Judged
from tutelage.measure.sweep import sweep
from tutelage.records import Problem, Verdict
from tutelage.teachers.local import LocalTeacher, local_sampler
from tutelage.think.control import ClassConditional, RejectionSampling, TokenConditional
from tutelage.think.engine import Engine
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.think.vote import ShortestOfCorrect

PROBLEMS = [Problem(f"p{i}", "sum? " + "y" * (i % 5) + str(i), "7", "exact") for i in range(8)]
STUDENT = tiny_student(closes=2.0)
NATURAL = ThinkingPolicy(max_tokens=40, close_text="A", answer_reserve=6)
GRID = Grid(
    NATURAL,
    budgets=(20, 0, 5),
    waits=(0, 1, 2),
    minimums=(12,),
    strings=(" Wait", "Hm", None),
    votes=(1, 2, 4),
    vote_samples=4,
    vote_temperature=0.7,
)


def check(problems, traces):
    """Right where the answer's length is even: an arbitrary rule that gives answers of both kinds."""
    return [
        Verdict(
            t.id, t.problem_id, "incorrect" if len(t.answer) % 2 else "correct", "", "exact", t.answer or None
        )
        for t in traces
    ]


class Counting(Engine):
    """Notes how often it was asked."""

    calls = 0

    def generate(self, requests, progress=None):
        self.calls += 1
        return super().generate(requests, progress)


def swept(grid, problems=PROBLEMS, check=check, engine=None):
    engine = engine or Engine(STUDENT)
    return sweep("arm", engine, Judged(STUDENT, "arm", check), problems, grid, seed=3, max_answer=6)


POINTS = swept(GRID)
SAMPLED = swept(replace(GRID, samples=4, temperature=0.9, vote_samples=None, vote_temperature=None))


def test_every_setting_and_control_has_its_point():
    keys = ("method", "part", "budget", "waits", "min_tokens", "wait", "votes")
    made = [tuple(point.row.get(key) for key in keys) for point in POINTS]
    assert made == [
        ("natural", "natural", None, None, None, None, None),
        *(("budget", "capped", b, None, None, None, None) for b in (0, 5, 20)),
        *(
            (method, "extended", None, *setting, word, None)
            for word, method in ((" Wait", "wait"), ("Hm", "wait"), (None, "suppress"))
            for setting in ((1, None), (2, None), (None, 12))
        ),
        ("natural", "natural", None, None, None, None, None),
        *(("vote", "extended", None, None, None, None, k) for k in (1, 2, 4)),
    ]
    assert {point.row["n"] for point in POINTS} == {len(PROBLEMS)}
    assert [point.row["samples"] for point in POINTS] == [1] * 13 + [4] * 4
    assert len({point.row["setting"] for point in POINTS}) == len(POINTS)


@pytest.mark.parametrize("points", [POINTS, SAMPLED], ids=["greedy", "sampled"])
def test_a_point_equals_a_run_of_its_own(points):
    """One trace is closed again at every budget and goes on at every refused close; nothing before it depends
    on that, so the texts must be those of a separate run, greedy or sampled."""
    temperature = 0.9 if points is SAMPLED else 0.0
    teacher = LocalTeacher(
        STUDENT, "arm", Sampling(temperature), 4 if points is SAMPLED else 1, seed=3, max_answer=6
    )
    forced = 0
    # Sampled: one point of each kind, because these are many replies.
    for point in points[:13] if points is POINTS else [points[i] for i in (0, 2, 3, 5, 6, 11)]:
        row = point.row
        policy = replace(NATURAL, max_tokens=40 if row["budget"] is None else row["budget"])
        refused = {"refuse_closes": row["waits"] or 0, "min_tokens": row.get("min_tokens", 0)}
        policy = replace(policy, **refused, wait=row["wait"])
        alone = evaluate(PROBLEMS, local_sampler(teacher, policy), check)
        assert [(t.thinking, t.answer, t.closed_by) for t in alone.traces] == [
            (r.trace.thinking, r.trace.answer, r.trace.closed_by) for r in point.replies
        ]
        told = alone.to_json()
        for name in told.keys() & row.keys():
            assert row[name] == told[name], (row["setting"], name)
        forced += (row["wait"] is not None) * sum(t.thinking_forced for t in alone.traces)
    assert forced, "the model never closes: nothing is tested"


def test_everything_is_decoded_in_one_go():
    engine = Counting(STUDENT)
    swept(GRID, engine=engine)
    assert engine.calls == 1


def test_a_curve_costs_one_long_thought_and_its_answers():
    """Closes are masked, so that every thought is as long as its budget. Fed to the model: the longest
    thought, and per budget the marker (1 id), the close text (1) and the answer but for its last id."""
    budgets = tuple(range(16, 129, 16))
    policy = ThinkingPolicy(max_tokens=128, refuse_closes=999, close_text="A", answer_reserve=6)
    together = Engine(STUDENT)
    points = swept(Grid(policy, budgets=budgets), engine=together)
    assert [point.row["thinking_tokens_mean"] for point in points[1:]] == list(budgets)
    answers = [reply.tokens - reply.thinking_sampled for point in points[1:] for reply in point.replies]
    least = len(PROBLEMS) * budgets[-1] + sum(answers) - len(answers)
    assert least <= together.stats.decoded <= 1.05 * least
    apart = 0
    for budget in budgets:
        engine = Engine(STUDENT)
        swept(Grid(replace(policy, max_tokens=budget)), engine=engine)
        apart += engine.stats.decoded
    assert apart >= 3 * together.stats.decoded


def test_budgets_bind_and_censoring_is_counted():
    made = {p.row["budget"]: p.row for p in POINTS if p.row["method"] == "budget"}
    assert made[0]["thinking_tokens_mean"] == 0 and made[0]["closed_by"] == {"budget": 8}
    assert all(row["thinking_tokens_mean"] <= budget for budget, row in made.items())
    for point in POINTS[:13]:
        row = point.row
        assert sum(row["closed_by"].values()) == sum(row["finished"].values()) == 8 * row["samples"]
        assert row["empty"] == sum(not reply.trace.answer.strip() for reply in point.replies)
        total = row["thinking_sampled_mean"] + row["thinking_forced_mean"]
        assert row["thinking_tokens_mean"] == pytest.approx(total)
        lo, hi = row["thinking_tokens_ci95"]
        assert lo <= row["thinking_tokens_mean"] <= hi


@pytest.mark.parametrize("points", [POINTS, SAMPLED], ids=["votes apart", "votes among the points' own"])
def test_a_vote_costs_the_tokens_of_all_its_attempts_and_a_vote_of_one_is_the_mean(points):
    sampled = points[0] if points is SAMPLED else points[13]
    votes = {p.row["votes"]: p for p in points if p.row["method"] == "vote" and p.row["budget"] is None}
    assert set(votes) == {1, 2, 4}
    assert votes[1].row["accuracy"] == pytest.approx(sampled.row["accuracy"])
    for size, point in votes.items():
        for name in ("thinking_tokens_mean", "thinking_sampled_mean", "tokens_mean"):
            assert point.row[name] == pytest.approx(size * sampled.row[name])
        assert point.row["ci95"][0] <= point.row["accuracy"] <= point.row["ci95"][1]
        assert point.row["accuracy"] == pytest.approx(point.scores.mean())


def test_sampled_points_are_voted_over_at_every_budget():
    cut = [p for p in SAMPLED if p.row["method"] == "vote" and p.row["budget"] is not None]
    assert [(p.row["budget"], p.row["votes"], p.row["part"]) for p in cut] == [
        (b, 4, "capped") for b in (0, 5, 20)
    ]
    assert not any(p.row["method"] == "vote" and p.row["budget"] is not None for p in POINTS)


def test_other_methods_stand_on_the_same_axes_with_all_their_tokens():
    methods = (
        *(TokenConditional(8, forced_end=True), ClassConditional("short")),
        *(RejectionSampling(4, tries=3), ShortestOfCorrect(3)),
    )
    grid = Grid(NATURAL, samples=2, temperature=0.9, methods=methods)
    points = {point.row["method"]: point for point in swept(grid)[1:]}
    assert list(points) == ["token-conditional", "class-conditional", "rejection", "shortest-of-correct"]
    assert points["token-conditional"].row["thinking_tokens_mean"] <= 8
    assert points["token-conditional"].bound == (None, 8)
    assert points["shortest-of-correct"].row["part"] == "extended"
    assert points["shortest-of-correct"].row["oracle"] is True
    rejected = points["rejection"]
    tried = [reply.attempts for reply in rejected.replies]
    assert max(tried) == 3 and len(tried) == 16
    assert rejected.row["tokens_mean"] == pytest.approx(np.mean([r.tokens for r in rejected.replies]))
    # Where every try was too long there is no answer, and none is right.
    none = [reply for reply in rejected.replies if reply.trace is None]
    assert none and not any(reply.correct for reply in none)
    assert rejected.row["empty"] >= len(none) and rejected.row["replies"] == 16
    assert sum(rejected.row["closed_by"].values()) == 16 - len(none)


def test_lines_start_or_end_at_the_unforced_point():
    lines = lines_of(SAMPLED)
    assert [(name, [p.row["setting"] for p in members]) for name, members in lines.items()] == [
        ("cut short", ["at most 0 tokens", "at most 5 tokens", "at most 20 tokens", "T = 0.9"]),
        ("wait “Wait”", ["T = 0.9", "1 × “Wait”", "2 × “Wait”"]),
        ("wait “Wait”, at least", ["T = 0.9", "at least 12 tokens, “Wait”"]),
        ("wait “Hm”", ["T = 0.9", "1 × “Hm”", "2 × “Hm”"]),
        ("wait “Hm”, at least", ["T = 0.9", "at least 12 tokens, “Hm”"]),
        ("end suppressed", ["T = 0.9", "1 closes masked", "2 closes masked"]),
        ("end suppressed, at least", ["T = 0.9", "at least 12 tokens, masked"]),
        ("majority vote", [f"majority of {k}, T = 0.9" for k in (1, 2, 4)]),
        ("majority vote of 4, cut short", [f"majority of 4, at most {b} tokens" for b in (0, 5, 20)]),
    ]


def test_the_analysis_has_every_line_and_every_step_once():
    found = analyse(POINTS, [p.id for p in PROBLEMS], 3, (0.5,))
    by_name = {line["line"]: line for line in found["lines"]}
    assert by_name["cut short"]["control"] == 100 and by_name["cut short"]["n"] == 8
    best = max(p.row["accuracy"] for p in POINTS if p.row["method"] in ("budget", "natural") and p.line != "")
    assert by_name["cut short"]["performance"] >= 100 * best
    steps = [(row["a"], row["b"]) for row in found["neighbours"]]
    assert len(steps) == len(set(steps)) == 3 + 3 * 2 + 3 * 1 + 2
    accuracy = {p.row["setting"]: p.row["accuracy"] for p in POINTS}
    for row in found["neighbours"]:
        assert row["difference"] == pytest.approx(accuracy[row["a"]] - accuracy[row["b"]])
        assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
        assert row["p"] <= row["p_holm"] <= 1 and row["n"] == 8


def test_a_vote_is_won_by_the_most_given_answer(monkeypatch):
    """Three of four samples agree on a wrong answer: right once in four alone, never in a vote."""

    def answer(self, problems, replies):
        return ["7" if number % 4 == 0 else "3" for number, _ in enumerate(replies)]

    def check(problems, traces):
        """The first of each problem's four different replies is right."""
        seen = set()
        fresh = [t.problem_id not in seen and not seen.add(t.problem_id) for t in traces]
        return [
            Verdict(t.id, t.problem_id, "correct" if first else "incorrect", "", "exact")
            for t, first in zip(traces, fresh, strict=True)
        ]

    monkeypatch.setattr(Judged, "read", answer)
    points = swept(Grid(NATURAL, votes=(1, 3, 4), samples=4, temperature=1.0), PROBLEMS[:3], check)
    assert [reply.answer for reply in points[0].replies] == ["7", "3", "3", "3"] * 3
    made = {p.row["votes"]: p.row["accuracy"] for p in points[1:]}
    assert made[1] == pytest.approx(0.25) and made[3] == made[4] == 0


def test_a_checker_that_looks_at_more_than_the_answer_does_not_stop_a_vote():
    def by_length_of_thought(problems, traces):
        return [
            Verdict(t.id, t.problem_id, "correct" if len(t.thinking) % 2 else "incorrect", "", "user")
            for t in traces
        ]

    problems = [replace(problem, checker="number") for problem in PROBLEMS]
    points = swept(Grid(NATURAL, votes=(1, 2), samples=8, temperature=1.0), problems, by_length_of_thought)
    assert points[1].row["accuracy"] <= points[0].row["accuracy"]


def test_equal_replies_are_judged_once():
    judged = []

    def once(problems, traces):
        judged.extend((t.problem_id, t.thinking, t.answer, t.forced_spans) for t in traces)
        return check(problems, traces)

    swept(Grid(NATURAL, budgets=(20, 30, 40)), check=once)
    assert len(judged) == len(set(judged))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": (60,)}, "budgets: 60 is more than the unforced model may think, 40"),
        ({"budgets": (5, 5)}, "budgets: .* different whole numbers"),
        ({"waits": (-1,)}, "waits: .* none negative"),
        ({"votes": (0,)}, "votes: .* different whole numbers"),
        ({"strings": ()}, "at least one"),
        ({"strings": ("Hm", "Hm")}, "each once"),
        ({"strings": ("Hm", "\nHm")}, "white space alone"),
        ({"samples": 4}, "samples: 4 greedy replies"),
        ({"votes": (2,)}, "votes: greedy replies are all the same"),
        ({"votes": (9,), "vote_samples": 8, "vote_temperature": 0.5}, "votes: 9 is more than the 8 samples"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Grid(NATURAL, **settings)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(NATURAL, minimums=(50,)), "min_tokens 50 is larger than max_tokens 40"),
        (Grid(NATURAL, waits=(1,), strings=("W" * 60,)), "fit"),
        (Grid(NATURAL, methods=(RejectionSampling(4),)), "greedy tries are all the same"),
    ],
)
def test_an_impossible_point_is_refused_before_anything_is_decoded(grid, message, monkeypatch):
    @wraps(STUDENT.model.forward)
    def never(*_arguments, **_options):
        raise AssertionError("decoded")

    monkeypatch.setattr(STUDENT.model, "forward", never)
    with pytest.raises(UsageError, match=message):
        swept(grid)
    with pytest.raises(UsageError, match="no problem"):
        swept(Grid(NATURAL), problems=[])
