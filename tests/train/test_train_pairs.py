"""Pairs from judged rollouts, and their file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, write_records
from tutelage.students.template import render_prompt
from tutelage.train.pairs import Pair, PairSet, lengths, misfit, read_pairs, rollout_pairs, write_pairs
from tutelage.train.rollouts import Rollout

STATUSES = ("correct", "incorrect", "undecided")
_groups = st.lists(
    st.tuples(
        st.sampled_from(["p", "q", "r"]),
        st.sampled_from(STATUSES),
        st.integers(1, 6),
        st.integers(0, 2),
        st.booleans(),
    ),
    max_size=24,
)


def rollout(
    number: int, problem: str, status: Any, ids: tuple[int, ...], *, cut: bool = False, prompt: int = 1
) -> Rollout:
    reason = "length" if cut else "stop"
    trace = Trace(f"t{number}", problem, number, "m", "a", finish_reason=reason)
    return Rollout(trace, (prompt,), ids, (True,) * len(ids), None, status)


def made(rows: list[tuple[str, str, int, int, bool]]) -> list[Rollout]:
    """Replies of some lengths; right and wrong ones never have the same ids."""
    return [
        rollout(n, problem, status, (STATUSES.index(status), shade) * length, cut=cut)
        for n, (problem, status, length, shade, cut) in enumerate(rows)
    ]


@settings(max_examples=40, deadline=None)
@given(_groups, st.integers(1, 5), st.integers(0, 3), st.sampled_from(["drop", "rejected"]))
def test_a_pair_is_one_correct_and_one_incorrect_reply_to_one_problem(
    rows: list[tuple[str, str, int, int, bool]], most: int, seed: int, truncated: Any
) -> None:
    rollouts = made(rows)
    found = rollout_pairs(rollouts, per_problem=most, seed=seed, truncated=truncated)
    by_id = {each.trace.id: each for each in rollouts}
    for pair in found.pairs:
        good, bad = by_id[pair.chosen_trace], by_id[pair.rejected_trace]
        cut = bad.trace.finish_reason == "length"
        assert good.status == "correct" != bad.status and good.trace.finish_reason == "stop"
        assert truncated == "rejected" if cut else bad.status == "incorrect"
        assert good.trace.problem_id == bad.trace.problem_id == pair.problem_id
        assert (pair.chosen_ids, pair.rejected_ids) == (good.ids, bad.ids)
    texts = Counter((pair.problem_id, pair.chosen_ids, pair.rejected_ids) for pair in found.pairs)
    assert all(times == 1 for times in texts.values())
    assert all(n <= most for n in Counter(pair.problem_id for pair in found.pairs).values())
    again = rollout_pairs(rollouts, per_problem=most, seed=seed, truncated=truncated)
    assert again == found


@settings(max_examples=40, deadline=None)
@given(_groups, st.integers(1, 5))
def test_no_pair_is_missed_and_rollouts_are_shared_evenly(
    rows: list[tuple[str, str, int, int, bool]], most: int
) -> None:
    rollouts = made([(*row[:4], False) for row in rows])
    found = rollout_pairs(rollouts, per_problem=most)
    for problem in {each.trace.problem_id for each in rollouts}:
        mine = [each for each in rollouts if each.trace.problem_id == problem]
        right = len({each.ids for each in mine if each.status == "correct"})
        wrong = len({each.ids for each in mine if each.status == "incorrect"})
        pairs = [pair for pair in found.pairs if pair.problem_id == problem]
        assert len(pairs) == min(most, right * wrong)
        used = [Counter(pair.chosen_ids for pair in pairs), Counter(pair.rejected_ids for pair in pairs)]
        if len(pairs) <= min(right, wrong):  # enough of both: nobody is used twice
            assert all(times == 1 for side in used for times in side.values())


@settings(max_examples=40, deadline=None)
@given(_groups, st.floats(1, 3))
def test_a_length_ratio_bounds_every_pair(rows: list[tuple[str, str, int, int, bool]], ratio: float) -> None:
    for pair in rollout_pairs(made(rows), length_ratio=ratio, per_problem=20).pairs:
        a, b = len(pair.chosen_ids), len(pair.rejected_ids)
        assert max(a, b) <= ratio * min(a, b)


def test_other_problems_do_not_change_the_pairs_of_one() -> None:
    mine = [rollout(n, "p", STATUSES[n % 2], (n,)) for n in range(8)]
    others = [rollout(n + 8, "q", STATUSES[n % 2], (n,)) for n in range(8)]
    alone = rollout_pairs(mine, per_problem=3).pairs
    beside = rollout_pairs([*others, *mine], per_problem=3).pairs
    assert alone == [pair for pair in beside if pair.problem_id == "p"]
    assert alone != rollout_pairs(mine, per_problem=3, seed=1).pairs


def test_what_is_left_out_is_counted() -> None:
    rollouts = [
        rollout(0, "p", "correct", (1,)),
        rollout(1, "p", "correct", (1,)),
        rollout(2, "p", "incorrect", (2,)),
        rollout(3, "p", "undecided", (3,)),
        rollout(4, "p", "incorrect", (4,), cut=True),
        rollout(5, "q", "correct", (1,)),
        rollout(6, "r", "incorrect", (1,)),
        rollout(7, "s", "correct", (1,)),
        rollout(8, "s", "incorrect", (1, 2, 3)),
    ]
    found = rollout_pairs(rollouts, length_ratio=2)
    assert [(pair.chosen_trace, pair.rejected_trace) for pair in found.pairs] == [("t0", "t2")]
    assert found.left_out == {
        "the same reply again": 1,
        "undecided": 1,
        "cut off": 1,
        "problems with correct rollouts only": 1,
        "problems with none correct": 1,
        "problems whose replies differ too much in length": 1,
    }


def test_what_cannot_be_paired_is_refused() -> None:
    good, bad = rollout(0, "p", "correct", (1,)), rollout(1, "p", "incorrect", (2,))
    with pytest.raises(UsageError, match="rollout t2 has no verdict; judge the rollouts first"):
        rollout_pairs([good, bad, rollout(2, "p", None, (1,))])
    with pytest.raises(UsageError, match="t0 and t1 answer one problem under two prompts"):
        rollout_pairs([good, rollout(1, "p", "incorrect", (2,), prompt=7)])
    with pytest.raises(UsageError, match="per_problem is 0"):
        rollout_pairs([good, bad], per_problem=0)
    with pytest.raises(UsageError, match=r"length_ratio is 0\.5"):
        rollout_pairs([good, bad], length_ratio=0.5)


def test_lengths_count_what_the_model_drew() -> None:
    pairs = [
        Pair("p", (1,), (1, 2, 3), (1,), (True, False, False), (True,), "rollout"),
        Pair("p", (1,), (1,), (1, 2, 3), (True,), (True,) * 3, "rollout"),
    ]
    assert lengths(pairs) == {
        "chosen_tokens_mean": 1.0,
        "rejected_tokens_mean": 2.0,
        "chosen_longer": 0.0,
        "chosen_shorter": 0.5,
    }
    assert lengths([])["chosen_tokens_mean"] is None


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
            st.lists(st.integers(0, 2**31 - 1), max_size=4),
            st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False)),
        ),
        max_size=4,
    )
)
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[int], dict[str, float]]]
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "a.parquet"
    pairs = [
        Pair(name, tuple(ids), (1,), tuple(ids), (True,), (False,) * len(ids), "judge", "a", "b", evidence)
        for name, ids, evidence in rows
    ]
    problems = {name: Problem(name, f"{name}?", source="s", licence="CC0-1.0") for name, _, _ in rows}
    write_pairs(path, pairs, problems)
    assert read_pairs(path) == PairSet(pairs, problems=problems)
    assert [each.name for each in path.parent.iterdir()] == ["a.parquet"]


def test_what_is_no_file_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_pairs(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("x")
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        read_pairs(tmp_path / "text.parquet")
    write_records(tmp_path / "p.parquet", [Problem("p", "?")], Problem)
    with pytest.raises(UsageError, match="not a table of preference pairs"):
        read_pairs(tmp_path / "p.parquet")


def test_pairs_of_another_prompt_are_named() -> None:
    student = tiny_student()
    problems = {"p": Problem("p", "1?")}
    prompt = tuple(render_prompt(student.tokenizer, student.template, "1?"))
    whole = Pair("p", prompt, (1,), (2,), (True,), (True,), "rollout")
    within = Pair("p", (*prompt, 5), (1,), (2,), (True,), (True,), "pivotal")
    assert misfit(student, PairSet([whole, within], problems=problems)) == ""
    other = tiny_student(system="Think.")
    assert misfit(other, PairSet([whole, within], problems=problems)) == "p"
    assert misfit(other, PairSet([])) == ""
    silent = tiny_student(thinking=False)  # the same prompt but for the opening marker
    assert misfit(silent, PairSet([whole], problems=problems)) == "p"
