"""The funnel: every trace is chosen or has one drop; what is chosen hangs on nothing that it should not."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate.detectors import Hit
from tutelage.curate.difficulty import Rate
from tutelage.curate.diversity import PreRule
from tutelage.curate.drops import Drop
from tutelage.curate.duplicates import Sketches
from tutelage.curate.funnel import METHODS, Chosen, Helpers, Rules, run_funnel
from tutelage.curate.limo import Features
from tutelage.curate.looks import Plan, ProblemLook, TraceLook, look_at_problems, look_at_traces
from tutelage.curate.quality import Fault, Settings
from tutelage.errors import UsageError
from tutelage.records import Problem, Status, Trace, Verdict, to_table

HIT = Hit(0, "exact", 1.0, "bench", "b0", "What is it?")
Verdicts = dict[str, Verdict]


@dataclasses.dataclass
class Pool:
    """Looks at some problems and traces, and the questions behind them."""

    problems: list[ProblemLook]
    traces: list[TraceLook]
    questions: dict[str, str]
    verdicts: Verdicts = dataclasses.field(default_factory=dict)
    solvers: dict[str, dict[str, Rate]] = dataclasses.field(default_factory=dict)
    easy: Any = None

    def run(self, **rules: Any) -> Chosen:
        own = Rules(**rules)
        helpers = Helpers(
            domains=lambda ids: {look.id: look.domain for look in self.problems if look.id in set(ids)},
            questions=lambda ids: [self.questions[name] for name in ids],
            vectors=lambda ids: np.array([[len(name), int(name[1:])] for name in ids], np.float32),
            easy=self.easy,
        )
        texts = [self.questions[look.id] for look in self.problems]
        sketches = Sketches.of(texts) if own.near is not None else None
        return run_funnel(
            self.problems, iter(self.traces), sketches, self.verdicts, self.solvers, own, helpers
        )


def problem(number: int, domain: str = "d0", source: str = "s", hits: tuple[Hit, ...] = ()) -> ProblemLook:
    return ProblemLook(f"p{number}", domain, source, 3, hits)


def trace(number: int, sample: int = 0, **more: Any) -> TraceLook:
    usual: dict[str, Any] = {
        "supersedes": None,
        "tokens": 10 * number + sample + 1,
        "words": 5,
        "fault": None,
        "hit": None,
        "in_answer": False,
        "counts": Features(5, 1, 0, 0),
    }
    return TraceLook(f"t{number}.{sample}", f"p{number}", sample, **{**usual, **more})


def pool(count: int, samples: int = 1, domains: int = 3) -> Pool:
    problems = [problem(n, f"d{n % domains}") for n in range(count)]
    traces = [trace(n, sample) for n in range(count) for sample in range(samples)]
    return Pool(problems, traces, {f"p{n}": f"question number {n} of {n * n}" for n in range(count)})


def verdict(trace_id: str, status: Status) -> Verdict:
    return Verdict(trace_id, "p" + trace_id[1:].split(".")[0], status, f"it is {status}", "number")


def rules_of(found: Chosen) -> dict[str, tuple[str, str]]:
    return {drop.record_id: (drop.stage, drop.rule) for drop in found.drops}


def row(found: Chosen, stage: str) -> dict[str, Any]:
    (one,) = [each for each in found.rows if each["stage"] == stage]
    return one


def adds_up(found: Chosen, given: Sequence[TraceLook]) -> None:
    """Every trace once, chosen or dropped; what enters a stage is what the one before it kept."""
    ids = [look.id for look in given]
    assert sorted([*found.traces, *(drop.record_id for drop in found.drops)]) == sorted(ids)
    assert [drop.record_id for drop in found.drops] == [name for name in ids if name not in set(found.traces)]
    entered = len(ids)
    for each in found.rows:
        assert each["kept"] + each["dropped"] == entered
        assert sum(each["reasons"].values()) == each["dropped"]
        stage = [drop.rule for drop in found.drops if drop.stage == each["stage"]]
        assert Counter(stage) == each["reasons"]
        entered = each["kept"]
    assert entered == len(found.traces) == len(found.after)
    owner = {look.id: look.problem_id for look in given}
    assert {owner[name] for name in found.traces} == set(found.problems)
    assert len(set(found.problems)) == len(found.problems)
    assert all(drop.reason and drop.problem_id == owner[drop.record_id] for drop in found.drops)


# --- the law ---

FAULT = Fault(0, "loop", "it goes round", 0.5)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    count = draw(st.integers(1, 9))
    made = Pool([], [], {})
    for n in range(count):
        hits = draw(st.sampled_from([(), (), (), (HIT,), (dataclasses.replace(HIT, partial=True),)]))
        made.problems.append(
            problem(n, draw(st.sampled_from(["", "a", "b"])), draw(st.sampled_from("xy")), hits)
        )
        made.questions[f"p{n}"] = draw(st.sampled_from(["one two three", "four five six", f"some {n} thing"]))
        for sample in range(draw(st.integers(0, 3))):
            made.traces.append(
                trace(
                    n,
                    sample,
                    supersedes=draw(st.sampled_from([None, None, f"t{n}.{sample - 1}"])),
                    tokens=draw(st.sampled_from([None, 3, 9])),
                    fault=draw(st.sampled_from([None, None, None, FAULT])),
                    hit=draw(st.sampled_from([None, None, None, HIT])),
                    in_answer=draw(st.booleans()),
                )
            )
    status = st.sampled_from(["correct", "correct", "incorrect", "undecided"])
    made.verdicts = {look.id: verdict(look.id, draw(status)) for look in made.traces}
    for name in draw(st.sampled_from([(), ("weak",), ("weak", "strong")])):
        made.solvers[name] = {f"p{n}": Rate(draw(st.integers(0, 2)), 2) for n in range(count)}
    made.traces = draw(st.permutations(made.traces))
    return made


RULES = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "target": st.none() | st.integers(1, 12),
        "seed": st.integers(0, 3),
        "near": st.sampled_from([None, 0.8]),
        "solved": st.sampled_from(["unsolved", "band"]),
        "hopeless": st.just("keep"),
        "keep": st.sampled_from(["all", "correct"]),
        "prefer": st.sampled_from(["first", "longest", "shortest", "limo"]),
        "per_problem": st.integers(1, 3),
    }
)


@settings(max_examples=80, deadline=None)
@given(pools(), RULES)
def test_every_trace_is_chosen_or_dropped_exactly_once(made: Pool, rules: dict[str, Any]) -> None:
    if rules["method"] == "s1-code":
        rules = {**rules, "weights": {"a": 1.0, "b": 2.0, "": 1.0}}
    if rules["method"] == "long-short":
        rules = {**rules, "long": 1, "short": 1}
    try:
        found = made.run(**rules)
    except UsageError as error:
        said = str(error)
        assert "\n" not in said
        assert said.startswith(("nothing is left", "the pool holds no traces")) or (
            rules["method"] == "long-short"
        ), said
        return
    adds_up(found, made.traces)
    assert len(found.problems) <= (rules["target"] or 99) or rules["method"] == "full"
    if rules["keep"] == "correct":
        assert all(made.verdicts[name].status == "correct" for name in found.traces)
    assert max(Counter(name.split(".")[0] for name in found.traces).values()) <= rules["per_problem"]
    broken = {look.id for look in made.traces if look.fault or look.hit}
    assert not broken & set(found.traces)
    again = made.run(**rules)
    assert (again.traces, again.drops, again.rows) == (found.traces, found.drops, found.rows)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(12)), st.sampled_from(["s1", "random", "diverse", "longest", "facility"]))
def test_the_order_of_rows_does_not_matter_without_duplicates(order: list[int], method: Any) -> None:
    made = pool(12)
    usual = made.run(method=method, target=5)
    made.traces = [made.traces[at] for at in order]
    made.problems = [made.problems[at] for at in order]
    other = made.run(method=method, target=5)
    assert (other.traces, other.problems) == (usual.traces, usual.problems)
    assert sorted(map(repr, other.drops)) == sorted(map(repr, usual.drops))


# --- one stage after the other ---


def test_the_stages_in_their_order_with_evidence() -> None:
    made = pool(8)
    made.problems[1] = problem(1, hits=(dataclasses.replace(HIT, partial=True), HIT))
    made.traces[0] = trace(0, fault=FAULT)
    made.traces[2] = trace(2, hit=HIT, in_answer=True)
    made.questions["p4"] = made.questions["p3"]
    made.solvers = {"weak": {f"p{n}": Rate(int(n == 5), 1) for n in range(8)}}
    made.easy = lambda ids: [Drop("p6", "p6", "rubric", "recall", "graded as recall of a fact")]
    made.verdicts = {look.id: verdict(look.id, "correct") for look in made.traces}
    made.verdicts["t7.0"] = verdict("t7.0", "incorrect")
    found = made.run(keep="correct")
    adds_up(found, made.traces)
    assert rules_of(found) == {
        "t0.0": ("quality", "loop"),
        "t1.0": ("decontamination", "exact"),
        "t2.0": ("decontamination", "exact"),
        "t4.0": ("duplicates", "duplicate"),
        "t5.0": ("difficulty", "solved"),
        "t6.0": ("rubric", "recall"),
        "t7.0": ("traces", "incorrect"),
    }
    assert found.traces == ["t3.0"] and found.problems == ["p3"]
    evidence = {drop.record_id: drop for drop in found.drops}
    assert evidence["t0.0"].score == 0.5 and "its question is like b0 of bench" in evidence["t1.0"].reason
    assert "its answer is like b0" in evidence["t2.0"].reason and evidence["t2.0"].benchmark == "bench"
    assert evidence["t4.0"].matched_id == "p3" and evidence["t5.0"].reason == "weak solved 1 of 1"
    assert [each["stage"] for each in found.rows] == [
        "quality",
        "decontamination",
        "duplicates",
        "difficulty",
        "rubric",
        "traces",
        "selection",
    ]


def test_a_partial_hit_drops_nothing_and_is_told() -> None:
    made = pool(3)
    made.problems[0] = problem(0, hits=(dataclasses.replace(HIT, detector="overlap", partial=True),))
    found = made.run()
    assert found.drops == []
    assert found.notes == [
        "1 record is partly like an item (overlap, below its threshold); nothing was dropped for that"
    ]


def test_a_superseded_trace_is_dropped_first_even_for_a_broken_one() -> None:
    made = pool(1)
    made.traces = [trace(0), trace(0, 1, supersedes="t0.0"), trace(0, 2, supersedes="t0.1", fault=FAULT)]
    made.traces.append(trace(0, 3))
    found = made.run()
    adds_up(found, made.traces)
    assert found.traces == ["t0.3"]
    assert rules_of(found) == {
        "t0.0": ("superseded", "superseded"),
        "t0.1": ("superseded", "superseded"),
        "t0.2": ("quality", "loop"),
    }
    assert "superseded" not in {each["stage"] for each in pool(2).run().rows}  # no row where there is none


def test_the_stated_order_of_sources_decides_which_duplicate_stays() -> None:
    made = pool(4)
    made.problems = [problem(n, source="abca"[n]) for n in range(4)]
    made.questions = dict.fromkeys(made.questions, "the same question for all of them")
    assert made.run().problems == ["p0"]
    assert made.run(order=("c", "b")).problems == ["p2"]
    found = made.run(order=("b",))
    assert found.problems == ["p1"]
    assert [drop.matched_id for drop in found.drops] == ["p1"] * 3
    with pytest.raises(UsageError, match="order: no record is of 'd'; sources there: a, b, c"):
        made.run(order=("a", "d"))


def test_equal_ids_are_refused() -> None:
    made = pool(2)
    made.traces.append(made.traces[0])
    with pytest.raises(UsageError, match=r"two records of the pool share the id 't0\.0'"):
        made.run()
    made = pool(2)
    made.problems.append(made.problems[1])
    with pytest.raises(UsageError, match="share the id 'p1'"):
        made.run()
    with pytest.raises(UsageError, match="the pool holds no traces"):
        Pool([], [], {}).run()


# --- solvers ---


def test_a_solver_that_always_fails_stops() -> None:
    made = pool(3)
    made.solvers = {"weak": {f"p{n}": Rate(0, 1) for n in range(3)}}
    with pytest.raises(UsageError, match="the solver 'weak' solved none of the problems in 3 attempts"):
        made.run()
    assert len(made.run(hopeless="keep").traces) == 3
    del made.solvers["weak"]["p1"]
    with pytest.raises(UsageError, match=r"1 of 3 problems were not attempted.*'p1' \(weak\)"):
        made.run(hopeless="keep")
    del made.solvers["weak"]["p2"]
    assert made.run(hopeless="keep", missing="drop").problems == ["p0"]
    assert set(made.run(hopeless="keep", missing="keep").problems) == {"p0", "p1", "p2"}


def test_solvers_count_for_the_s1_methods_alone_and_that_is_said() -> None:
    made = pool(4)
    made.solvers = {"weak": {f"p{n}": Rate(int(n < 2), 1) for n in range(4)}}
    assert set(made.run().problems) == {"p2", "p3"}
    found = made.run(method="random")
    assert len(found.problems) == 4
    assert found.notes == ["the method random takes no account of solvers; they dropped nothing"]
    assert "difficulty" not in {each["stage"] for each in found.rows}


# --- which traces ---


def test_keep_correct_needs_a_verdict_on_every_trace() -> None:
    made = pool(2)
    made.verdicts = {"t0.0": verdict("t0.0", "correct")}
    with pytest.raises(UsageError, match=r"trace 't1\.0' has no verdict; verify the traces first"):
        made.run(keep="correct")
    made.traces[1] = trace(1, fault=FAULT)  # what is gone already needs none
    assert made.run(keep="correct").traces == ["t0.0"]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ({}, ["t0.0"]),
        ({"prefer": "longest"}, ["t0.1"]),
        ({"prefer": "shortest"}, ["t0.2"]),
        ({"prefer": "limo"}, ["t0.2"]),
        ({"prefer": "longest", "per_problem": 2}, ["t0.0", "t0.1"]),
        ({"per_problem": 5}, ["t0.0", "t0.1", "t0.2"]),
    ],
)
def test_which_traces_of_a_problem(rules: dict[str, Any], chosen: list[str]) -> None:
    made = pool(1)
    made.traces = [
        trace(0, 0, tokens=20),
        trace(0, 1, tokens=30),
        trace(0, 2, tokens=10, counts=Features(9, 5, 2, 2)),
    ]
    found = made.run(**rules)
    adds_up(found, made.traces)
    assert found.traces == chosen and set(rules_of(found).values()) <= {("traces", "surplus")}


def test_lengths_are_tokens_where_all_are_told_else_words() -> None:
    made = pool(3)
    found = made.run(method="longest", target=1)
    assert (found.unit, found.before, found.after) == ("tokens", [1, 11, 21], [21])
    assert {drop.score for drop in found.drops} == {1.0, 11.0}
    made.traces[0] = trace(0, tokens=None, words=50)
    found = made.run(method="longest", target=1)
    assert (found.unit, found.traces, found.after) == ("words", ["t0.0"], [50])


# --- the target ---


@pytest.mark.parametrize("method", METHODS)
def test_each_method_chooses_the_target_and_the_same_again(method: Any) -> None:
    made = pool(30)
    more: dict[str, Any] = {"weights": {"d0": 1.0, "d1": 3.0}} if method == "s1-code" else {}
    found = made.run(method=method, target=10, seed=1, **more)
    adds_up(found, made.traces)
    assert len(found.problems) == (30 if method == "full" else 10)
    assert made.run(method=method, target=10, seed=1, **more).traces == found.traces
    seeds = {tuple(made.run(method=method, target=10, seed=seed, **more).traces) for seed in range(4)}
    assert (len(seeds) == 1) == (method in ("longest", "full"))
    if method == "longest":
        assert found.problems == [f"p{n}" for n in range(29, 19, -1)]
    if method == "full":
        assert found.notes == ["the method full keeps all 30 records, whatever the target"]


def test_a_target_larger_than_the_pool_keeps_all_and_says_so() -> None:
    found = pool(5).run(target=9)
    assert len(found.traces) == 5
    assert found.notes == ["5 records are left, fewer than the target 9: all of them were kept"]
    assert pool(5).run(target=5).notes == []


def test_the_domains_are_alike_and_the_long_ones_more_often() -> None:
    made = pool(0)
    for n in range(120):
        made.problems.append(problem(n, "rare" if n < 20 else "common"))
        made.traces.append(trace(n))
        made.questions[f"p{n}"] = f"question {n} of its kind {n}"
    found = made.run(target=24)
    domains = Counter(found.domains[name] for name in found.problems)
    assert abs(domains["rare"] - 12) <= 8
    common = [number for number in found.after if number > 200]
    assert sum(common) / len(common) > 1000  # of 201 to 1191


def test_what_is_taken_before_any_draw() -> None:
    made = pool(12)
    made.problems[3] = problem(3, source="aime")
    made.problems[4] = problem(4, source="aime")
    made.verdicts = {look.id: verdict(look.id, "correct") for look in made.traces}
    made.verdicts["t4.0"] = verdict("t4.0", "incorrect")
    first = (PreRule(source="aime"), PreRule(least_length=110))
    for seed in range(3):
        assert made.run(target=4, seed=seed, first=first).problems[:2] == ["p3", "p11"]
    assert made.run(target=1, first=first).problems == ["p3"]
    made.verdicts = {}
    with pytest.raises(UsageError, match="first: takes correct records only, and there are no verdicts"):
        made.run(target=4, first=first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fault": FAULT}, r"nothing is left after quality \(loop 2\); loosen that stage"),
        ({"hit": HIT}, r"nothing is left after decontamination \(exact 2\)"),
    ],
)
def test_nothing_left_names_the_stage(change: Mapping[str, Any], message: str) -> None:
    made = pool(2)
    made.traces = [trace(n, **change) for n in range(2)]
    with pytest.raises(UsageError, match=message) as refused:
        made.run()
    assert "\n" not in str(refused.value)


def test_nothing_left_after_the_solvers_or_the_verdicts() -> None:
    made = pool(2)
    made.solvers = {"weak": {f"p{n}": Rate(1, 1) for n in range(2)}}
    with pytest.raises(UsageError, match=r"nothing is left after difficulty \(solved 2\)"):
        made.run()
    made.verdicts = {look.id: verdict(look.id, "undecided") for look in made.traces}
    made.solvers = {}
    with pytest.raises(UsageError, match=r"nothing is left after traces \(undecided 2\)"):
        made.run(keep="correct")


# --- from files, in parts ---


def test_parts_and_workers_choose_the_same(tmp_path: Path) -> None:
    draw = random.Random("pool")
    names = ["river", "stone", "market", "garden", "ladder", "music", "engine", "winter"]
    problems = [
        Problem(f"p{n}", " ".join(draw.choices(names, k=20)), "1", domain=f"d{n % 3}", source="ab"[n % 2])
        for n in range(40)
    ]
    problems += [dataclasses.replace(problems[n], id=f"p{40 + n}") for n in range(5)]
    traces = [
        Trace(f"t{n}.{s}", f"p{n}", s, "m", "1", " ".join(draw.choices(names, k=draw.randrange(5, 60))))
        for n in range(45)
        for s in range(2)
    ]
    found = []
    for rows, workers in ((1000, 1), (1000, 3), (7, 1), (7, 3)):
        files = [tmp_path / f"{kind}{rows}.parquet" for kind in ("q", "t")]
        pq.write_table(to_table(problems, Problem), files[0], row_group_size=rows)
        pq.write_table(to_table(traces, Trace), files[1], row_group_size=rows)
        plan = Plan((files[0],), Settings(), None)
        looks, sketches = look_at_problems(plan, engine="local", workers=workers)
        seen = list(look_at_traces(plan, files[1:], engine="local", workers=workers))
        helpers = Helpers(
            lambda ids: {each.id: each.domain for each in problems},
            lambda ids: [next(each.question for each in problems if each.id == name) for name in ids],
            lambda ids: np.zeros((len(ids), 1), np.float32),
        )
        chosen = run_funnel(looks, seen, sketches, {}, {}, Rules(target=10, order=("b",)), helpers)
        adds_up(chosen, seen)
        found.append((chosen.traces, chosen.drops, chosen.rows))
    assert found[0] == found[1] == found[2] == found[3]
    assert Counter(drop.rule for drop in found[0][1] if drop.stage == "duplicates") == {"duplicate": 10}
