"""Which problems to keep by who solves them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate.difficulty import Rate, difficulty, pass_rates
from tutelage.errors import UsageError
from tutelage.records import Status, Verdict


def verdicts(outcomes: dict[str, str]) -> list[Verdict]:
    """A letter for each attempt: c(orrect), i(ncorrect), u(ndecided)."""
    status: dict[str, Status] = {"c": "correct", "i": "incorrect", "u": "undecided"}
    return [
        Verdict(f"{problem}-{number}", problem, status[letter], f"because {letter}", "number")
        for problem, letters in outcomes.items()
        for number, letter in enumerate(letters)
    ]


def rates(**outcomes: str) -> dict[str, Rate]:
    return pass_rates(verdicts(outcomes))


def test_pass_rates_count_the_undecided_apart() -> None:
    found = rates(a="ciuu", b="cc")
    assert found == {"a": Rate(1, 4, 2, (("because u", 2),)), "b": Rate(2, 2)}
    assert found["a"].share == 0.25


def test_pass_rates_show_hostile_reasons_in_one_line() -> None:
    hostile = Verdict("t", "p", "undecided", "\x1b[31m\n\ud800" + "x" * 10_000_000, "math")
    ((reason, count),) = pass_rates([hostile])["p"].reasons
    assert count == 1 and len(reason) <= 120 and reason.startswith("␛[31m \ufffdxxx")


def test_two_verdicts_on_one_trace_are_refused() -> None:
    with pytest.raises(UsageError, match="'a-0' has two verdicts"):
        pass_rates(verdicts({"a": "c"}) * 2)


def test_unsolved_drops_what_any_solver_solves_in_any_attempt() -> None:
    weak, strong = rates(a="ii", b="ic", c="ii", d="uu"), rates(a="i", b="i", c="c", d="i")
    kept, drops = difficulty(["d", "c", "b", "a"], {"weak": weak, "strong": strong}, keep="unsolved")
    assert kept == ["d", "a"]
    assert [(d.record_id, d.problem_id, d.stage, d.rule, d.reason, d.score) for d in drops] == [
        ("c", "c", "difficulty", "solved", "strong solved 1 of 1", 1.0),
        ("b", "b", "difficulty", "solved", "weak solved 1 of 2", 0.5),
    ]


def test_a_band_of_the_mean_over_all_attempts() -> None:
    solvers = {"one": rates(a="cccc", b="ciii", c="iiii", d="iciu"), "two": rates(a="c", b="c", c="i", d="i")}
    kept, drops = difficulty("abcd", solvers, keep="band", low=0.2, high=0.4)
    assert kept == ["b", "d"]  # 2 of 5 and 1 of 5: both bounds are included
    assert [(d.record_id, d.rule, d.reason, d.score) for d in drops] == [
        ("a", "too-easy", "2 solvers together solved 5 of 5, more than 0.4", 1.0),
        ("c", "too-hard", "2 solvers together solved 0 of 5, less than 0.2", 0.0),
    ]
    _, (drop, *_) = difficulty("da", {"one": solvers["one"]}, keep="band", low=0.5)
    assert drop.reason == "one solved 1 of 4 (1 undecided), less than 0.5"


def test_limo_fails_for_the_weak_solved_at_times_by_the_strong() -> None:
    weak = rates(a="iiii", b="iici", c="iiii", d="iiii", e="iiii")
    strong = rates(a="c" + "i" * 31, b="c" + "i" * 31, c="i" * 32, d="c" * 4 + "i" * 28, e="ccc" + "i" * 29)
    bands = {"weak": (0.0, 0.0), "strong": (1 / 32, 3 / 32)}
    kept, drops = difficulty("abcde", {"weak": weak, "strong": strong}, keep="band", bands=bands)
    assert kept == ["a", "e"]
    assert [(d.record_id, d.rule, d.reason) for d in drops] == [
        ("b", "too-easy", "weak solved 1 of 4, more than 0"),
        ("c", "too-hard", "strong solved 0 of 32, less than 0.03125"),
        ("d", "too-easy", "strong solved 4 of 32, more than 0.09375"),
    ]


@pytest.mark.parametrize("keep", ["unsolved", "band"])
def test_problems_without_an_attempt_follow_missing(keep: Any) -> None:
    solvers = {"one": rates(a="ic"), "two": {**rates(a="i", b="i"), "c": Rate(0, 0)}}
    bounds = {"low": 0.1, "high": 0.4} if keep == "band" else {}
    with pytest.raises(UsageError) as raised:
        difficulty("abc", solvers, keep=keep, hopeless="keep", **bounds)
    said = "2 of 3 problems were not attempted by every solver, the first is 'b' (one); collect"
    assert said in str(raised.value)
    _, drops = difficulty("abc", solvers, keep=keep, missing="drop", hopeless="keep", **bounds)
    left_out = [(d.record_id, d.rule, d.reason) for d in drops if d.rule == "not-attempted"]
    assert left_out == [
        ("b", "not-attempted", "no attempt by one"),
        ("c", "not-attempted", "no attempt by one, two"),
    ]
    # b is then judged by its one attempt, which failed: as unsolved it stays, in the band it does not.
    kept, _ = difficulty("abc", solvers, keep=keep, missing="keep", hopeless="keep", **bounds)
    assert kept == (["a", "c"] if keep == "band" else ["b", "c"])


def test_what_one_solver_decides_needs_no_attempt_of_the_other() -> None:
    solvers = {"one": rates(a="c", b="i"), "two": rates(b="c")}
    assert difficulty("ab", solvers, keep="unsolved")[0] == []
    bands = {"one": (0.0, 0.5), "two": (0.0, 1.0)}
    assert difficulty("ab", solvers, keep="band", bands=bands)[0] == ["b"]


def test_a_solver_that_solves_nothing_stops_the_selection() -> None:
    broken = {**rates(a="uiu"), "b": Rate(0, 2, 1, (("timeout", 1),)), "z": Rate(5, 5)}
    for keep in ("unsolved", "band"):
        with pytest.raises(UsageError) as raised:
            difficulty("ab", {"fine": rates(a="c", b="i"), "broken": broken}, keep=keep)  # type: ignore[arg-type]
        said = str(raised.value)
        assert (
            "'broken' solved none of the problems in 5 attempts (3 undecided, most often: because u)" in said
        )
        assert 'set hopeless to "keep"' in said
    with pytest.raises(UsageError, match=r"'bad' solved none of the problems in 2 attempts; look"):
        difficulty("ab", {"bad": rates(a="i", b="i")}, keep="unsolved")
    kept, _ = difficulty("ab", {"bad": rates(a="i", b="i")}, keep="unsolved", hopeless="keep")
    assert kept == ["a", "b"]


def test_a_solver_without_a_verdict_on_these_problems_stops_it() -> None:
    with pytest.raises(UsageError, match="'other' has no verdict on any of the 2 problems"):
        difficulty("ab", {"other": rates(z="c")}, keep="unsolved", missing="keep")
    with pytest.raises(UsageError, match="2 of 2 problems were not attempted"):
        difficulty("ab", {"other": rates(z="c")}, keep="unsolved", hopeless="keep")
    assert difficulty([], {"other": {}}, keep="unsolved") == ([], [])


OUTCOMES = st.dictionaries(st.sampled_from("abcdef"), st.text("ciu", max_size=4))


@given(
    st.dictionaries(st.sampled_from(["one", "two", "three"]), OUTCOMES, min_size=1),
    st.sampled_from(["unsolved", "band"]),
    st.sampled_from(["drop", "keep"]),
    st.tuples(st.integers(0, 4), st.integers(0, 4)).map(sorted),
)
@settings(max_examples=150, deadline=None)
def test_every_problem_is_kept_or_dropped_once(outcomes: Any, keep: Any, missing: Any, band: Any) -> None:
    solvers = {name: rates(**found) for name, found in outcomes.items()}
    low, high = (band[0] / 4, band[1] / 4) if keep == "band" else (0.0, 1.0)
    kept, drops = difficulty(
        "abcdef", solvers, keep=keep, low=low, high=high, missing=missing, hopeless="keep"
    )
    assert sorted(kept + [drop.record_id for drop in drops]) == list("abcdef") and kept == sorted(kept)
    for problem in kept:
        found = [letters[problem] for letters in outcomes.values() if letters.get(problem)]
        if keep == "unsolved":
            assert "c" not in "".join(found)
        elif found:
            assert low <= "".join(found).count("c") / len("".join(found)) <= high
        assert missing == "keep" or len(found) == len(solvers)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"keep": "hard"}, "keep is 'hard'; use unsolved or band"),
        ({"keep": "band", "missing": "skip"}, "missing is 'skip'"),
        ({"keep": "band", "hopeless": "drop"}, "hopeless is 'drop'; use refuse or keep"),
        ({"keep": "band", "low": 0.6, "high": 0.4}, "the band of low and high is 0.6 to 0.4"),
        ({"keep": "band", "high": 90}, "is 0 to 90; give shares"),
        ({"keep": "band", "low": float("nan")}, "is nan to 1"),
        ({"keep": "unsolved", "high": 0.5}, 'for keep "band"'),
        ({"keep": "unsolved", "bands": {"one": (0, 1)}}, 'for keep "band"'),
        ({"keep": "band", "low": 0.1, "bands": {"one": (0, 1)}}, "not both"),
        ({"keep": "band", "bands": {"won": (0, 1)}}, "one, won has a band or verdicts, not both"),
        ({"keep": "band", "bands": {"one": (0, 2)}}, "the band of one is 0 to 2"),
        ({"keep": "band", "solvers": {}}, "there is no solver"),
    ],
)
def test_settings_that_cannot_be_meant(given_settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        difficulty(**{"problem_ids": "a", "solvers": {"one": rates(a="c")}, **given_settings})
    assert message in str(raised.value) and "\n" not in str(raised.value)
