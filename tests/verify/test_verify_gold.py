"""Gold answers against themselves, boxed, and altered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.verify.gold import GoldFailure, check_gold, right_answers, wrong_answers


def problem(gold: str | None, kind: str, name: str = "p", **metadata: Any) -> Problem:
    return Problem(name, "q", gold, kind, metadata=metadata)


def failing(gold: str | None, kind: str, **metadata: Any) -> list[tuple[str, str]]:
    return [(each.test, each.reason) for each in check_gold([problem(gold, kind, **metadata)], seconds=60)]


@pytest.mark.parametrize("gold", ["72", "0", "-3", "1,234", "0.5", "3/4", "$18", "50%", "1.5e3", "9", "1/9"])
def test_good_numbers(gold: str) -> None:
    assert failing(gold, "number") == []


def test_a_gold_that_is_no_number_is_listed_with_its_reason() -> None:
    found = check_gold([problem("72", "number", "good"), problem("seventy-two", "number", "bad")])
    assert [(each.problem_id, each.gold, each.test) for each in found] == [
        ("bad", "seventy-two", "itself"),
        ("bad", "seventy-two", "boxed"),
    ]
    assert "not a number" in found[0].reason


@pytest.mark.parametrize("kind", ["number", "exact", "math", "choice"])
@pytest.mark.parametrize("gold", [None, "", " \n"])
def test_an_empty_gold_is_a_failure(kind: str, gold: str | None) -> None:
    assert failing(gold, kind) == [("empty", "no gold answer")]


GOOD_MATHEMATICS = [
    r"\frac{1}{2}",
    r"2\sqrt{3}",
    "x^2+1",
    "x=5",
    "(1,2)",
    r"(-\infty,5]",
    r"\{1,2\}",
    r"\pm 2",
    "0",
    "x-x",
    r"\infty",
    r"30^\circ",
    r"50\%",
    r"\text{even}",
    r"\frac{\pi}{4}",
    r"1 - 1/e",
    "2^{-99}",
    "0.333333",
    r"\boxed{7}",
    r"$\sqrt{51}$",
]


def test_good_mathematics() -> None:
    assert check_gold([problem(gold, "math", gold) for gold in GOOD_MATHEMATICS], seconds=60) == []


@pytest.mark.slow
def test_mathematics_that_cannot_be_judged() -> None:
    for gold in ("nan", r"\frac{0}{0}"):
        assert [test for test, _ in failing(gold, "math")] == ["itself", "boxed"]


def test_text_and_the_users_own_function(tmp_path: Path) -> None:
    assert failing("blue", "exact") == []
    assert failing("open { brace", "exact")[0][0] == "boxed"
    checks = tmp_path / "checks.py"
    checks.write_text(
        "def exact(problem, trace):\n    return trace.answer == problem.gold\n"
        "def any(problem, trace):\n    return True\n"
        "def none(problem, trace):\n    return False\n"
    )
    assert failing("XIV", f"{checks}:exact") == []
    assert failing("XIV", f"{checks}:any") == [("perturbed", "an altered text (XIVx) counts as correct")]
    ((test, reason),) = failing("XIV", f"{checks}:none")
    assert test == "itself" and reason.startswith("incorrect")
    assert failing(None, f"{checks}:exact") == []  # the user's checker may need none
    with pytest.raises(UsageError, match="no function 'gone'"):
        failing("XIV", f"{checks}:gone")


def test_a_tolerance_of_the_user_is_no_defect() -> None:
    ((what, answer), *_) = wrong_answers(problem("1000", "number", tolerance=0.01))
    assert (what, answer) == ("the gold answer plus 30", "1030")


def test_what_is_tried_on_choices_and_programs() -> None:
    assert wrong_answers(problem("B", "choice")) == [("another choice", "A")]
    assert wrong_answers(problem("(A)", "choice", choices=["x", "y"])) == [("another choice", "B")]
    assert wrong_answers(problem("Paris", "choice", choices=["Paris", "Rome"])) == [
        ("another choice", "Rome")
    ]
    assert wrong_answers(problem("Paris", "choice")) == []
    assert wrong_answers(problem("assert f(1)", "code"))[0][1] == "```python\npass\n```"
    assert right_answers(problem("assert f(1)", "code")) == []
    ((test, answer),) = right_answers(problem("assert f(1)", "code", solution="def f(x): return x"))
    assert test == "itself" and answer.startswith("```python\ndef f")


def test_a_gold_that_too_much_agrees_with_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.verify import gold

    monkeypatch.setattr(gold, "CHECKERS", {"number": None})
    monkeypatch.setattr("tutelage.verify.cascade.CHECKERS", {"number": lambda *_: ("correct", "", "", None)})
    assert failing("72", "number") == [
        ("perturbed", "the gold answer plus 1 (73) counts as correct"),
        ("perturbed", "the gold answer with another digit (82) counts as correct"),
    ]  # the negated one is left out where 0 passes too


def test_the_order_is_that_of_the_problems() -> None:
    many = [problem("x" if number % 7 == 0 else str(number), "number", f"p{number}") for number in range(50)]
    seen: list[tuple[int, int]] = []
    found = check_gold(many, workers=3, progress=lambda done, total, _: seen.append((done, total)))
    assert [each.problem_id for each in found[::2]] == [f"p{number}" for number in range(0, 50, 7)]
    assert seen[-1] == (50, 50) and isinstance(found[0], GoldFailure)


@given(
    st.one_of(st.integers().map(str), st.decimals(allow_nan=False, allow_infinity=False).map(str), st.text())
)
def test_no_gold_raises(gold: str) -> None:
    for kind in ("number", "math", "exact", "choice", "code"):
        right_answers(problem(gold, kind))
        wrong_answers(problem(gold, kind))


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_are_good_golds(number: int) -> None:
    assert failing(str(number), "number") == []
