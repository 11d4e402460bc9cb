"""Mathematics: what a lenient comparison takes for equal, what a strict one loses, and what stays open."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.records import Problem, Trace, Verdict
from tutelage.verify import WorkerPool, check_trace
from tutelage.verify.mathematics import depth, rounded, without_doubles
from tutelage.verify.numbers import Found


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(seconds=20) as pool:
        yield pool


def check(pool: WorkerPool, answer: str, gold: str) -> Verdict:
    return check_trace(Problem("p", "q", gold, "math"), Trace("t", "p", 0, "m", answer), pool)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"1+\frac{1}{\mathrm{e}}", r"1-\frac{1}{\mathrm{e}}"),
        (r"1+1/\text{e}", "1-1/e"),
        ("2^{-98}", "2^{-99}"),
        ("10^{-10}", "10^{-11}"),
        (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
        ("3x+4y+14=0", "3*x-1*y+13=0"),
        ("The answer is 3x+4y+14=0", "3*x-1*y+13=0"),
        ("So the line is 3x+4y+14=0.", "3*x-1*y+13=0"),
        ("18.0000001", "18"),
        ("0.3333330001", "1/3"),
        ("0.3333", "1/3"),
        ("1.4142137", r"\sqrt{2}"),
        (r"\sqrt{2}+10^{-8}", r"\sqrt{2}"),
        ("x+0.0000001", "x"),
        (r"\{1.0000001, 2\}", r"\{1,2\}"),
        ("5", "5x"),
        ("5ab", "5"),
        ("5 cm", "5 m"),
        ("9 and 5", "3 and 5"),
        (r"9\text{ and }5", r"3\text{ and }5"),
        ("x=9 and y=5", "x=3 and y=5"),
        ("3 and 5", "5 feet 3 inches"),
        ("5 apples and 3 pears", "5 feet 3 inches"),
        ("5 feet 4 inches", "5 feet 3 inches"),
        ("2 dogs and 7 cats", "2 cats and 7 dogs"),
        ("7 dogs", "2 cats and 7 dogs"),
        (r"2\sqrt{3}\text{ m}", r"2\sqrt{3}\text{ cm}"),
        (r"2\sqrt{3}\text{ kg}", r"2\sqrt{3}\text{ cm}"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("0/0", "0/0"),
        (r"\boxed{" + "1+" * 1000 + "1}", "1"),
    ],
)
def test_what_is_not_equal_is_never_correct(pool: WorkerPool, answer: str, gold: str) -> None:
    for dressed in (answer, answer if "boxed" in answer or " is " in answer else rf"\boxed{{{answer}}}"):
        verdict = check(pool, dressed, gold)
        assert verdict.status in ("incorrect", "undecided"), verdict.reason


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"2\sqrt{3} \text{ cm}", r"2\sqrt{3}"),
        (r"2\sqrt{3}", r"2\sqrt{3}\text{ cm}"),
        ("50 mm", "5 cm"),
        ("63 inches", "5 feet 3 inches"),
        ("2.5 hours", "2 hours and 30 minutes"),
        ("5 and 3", "3 and 5"),
        ("1, 2, and 3", r"\{1,2,3\}"),
        (r"5\text{ and }3", "3 or 5"),
        ("y = 4, x = 3", "x = 3 and y = 4"),
        ("2 Cats and  7 dogs.", "2 cats and 7 dogs"),
        (r"\boxed{x=2\text{ or }x=3}", "2,3"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
        ("(" * 500 + "x+1" + ")" * 500, "1+x"),
        ("(" * 500 + "1" + ")" * 500, "1"),
        (r"\boxed{\frac{\sqrt{3}}{2}", r"\frac{\sqrt{3}}{2}"),
        (r"\text{yes}", "Yes"),
        ("1.41421356", r"\sqrt{2}"),
        ("3.1415926", r"\pi"),
        ("3.1415927", r"\pi"),
        ("0.333333", "1/3"),
        ("1/3", "0.333333"),
        ("-0.666667", "-2/3"),
        ("50%", r"\frac12"),
        ("word " * 2_000_000 + r"\boxed{x+1}", "1+x"),
    ],
)
def test_what_is_equal_is_correct(pool: WorkerPool, answer: str, gold: str) -> None:
    verdict = check(pool, answer, gold)
    assert verdict.status == "correct", verdict.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (r"\frac{1}{1+" * 250 + "1" + "}" * 250, "deep; more than 200"),
        (r"\boxed{" + "1+x+" * 2000 + "1}", "more than 4,000"),
        (r"\boxed{" + "1+" * 500_000 + "1}", "too many to judge"),
        ("two", "cannot parse the answer"),
    ],
)
def test_what_cannot_be_judged_is_undecided_with_the_reason(
    pool: WorkerPool, answer: str, reason: str
) -> None:
    verdict = check(pool, answer, "18")
    assert verdict.status == "undecided" and reason in verdict.reason


def test_plain_numbers_need_no_worker() -> None:
    with WorkerPool() as pool:
        for answer, status in [
            ("A: 18", "correct"),
            ("19", "incorrect"),
            ("18.5", "incorrect"),
            (r"\boxed{\frac{36}{2}}", "correct"),
            ("18 apples", "correct"),
            ("１８", "correct"),
        ]:
            verdict = check(pool, answer, "She has <<9*2=18>>18\n#### 18")
            assert (verdict.status, verdict.method) == (status, "number")
        assert not pool._all


def test_a_timeout_begins_the_reason() -> None:
    with WorkerPool(seconds=0.5) as pool:
        verdict = check(pool, r"The answer is \boxed{10^{10^9}}", "18")
        assert verdict.status == "undecided" and verdict.reason.startswith("timeout")


@given(st.fractions(min_value=-100, max_value=100, max_denominator=97), st.integers(6, 12))
def test_an_exact_form_is_its_own_rounding_and_no_other(value: Fraction, places: int) -> None:
    near = Fraction(round(value * 10**places), 10**places)
    if near == 0:
        return
    exact, far = Found(str(value), value), near + Fraction(2, 10**places)
    for shown, same in ((near, True), (far, False)):
        written = f"{'-' if shown < 0 else ''}{abs(shown.__trunc__())}." + (
            str(abs(shown * 10**places - shown.__trunc__() * 10**places)).zfill(places)
        )
        assert bool(rounded(Found(written, shown), exact)) == same


@given(st.text(alphabet="()x1 ", max_size=30))
def test_doubled_brackets_go_and_nothing_else(text: str) -> None:
    short = without_doubles(text)
    assert len(short) <= len(text) and depth(short) <= depth(text)
    assert short.replace("(", "").replace(")", "") == text.replace("(", "").replace(")", "")
    assert without_doubles("((x))") == "(x)" and without_doubles("((x)(y))") == "((x)(y))"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("1200 cats and 7 dogs", "undecided"),
        ("1,200.0 cats, 7 dogs", "undecided"),
        ("two cats and 7 dogs", "undecided"),
        ("1,200 cats and 8 dogs", "incorrect"),
    ],
)
def test_numbers_in_words_are_compared_by_value(pool: WorkerPool, answer: str, status: str) -> None:
    assert check(pool, answer, "1,200 cats and 7 dogs").status == status
