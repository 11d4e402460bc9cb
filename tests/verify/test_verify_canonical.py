"""Answers as votes count them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.verify.canonical import canonical
from tutelage.verify.cascade import verify


def of(kind, answer, **metadata):
    return canonical(Problem("p", "?", checker=kind, metadata=metadata), answer)


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("number", ["The answer is 1,234.50", r"\boxed{1234.5}", "so it is 2469/2", "#### 1234.5 apples"]),
        ("math", [r"\boxed{\frac{1}{2}}", "The answer is 0.5", "1/2"]),
        ("math", [r"\boxed{x^2}", "The answer is $x^2$"]),
        ("choice", ["(B)", "The answer is B.", r"\boxed{B}"]),
        ("exact", ["The answer is Paris.", r"\boxed{Paris}", '"Paris"']),
        ("gym:spell_backward", [r"\boxed{olleh}", "olleh"]),
    ],
)
def test_answers_that_say_the_same_vote_together(kind, answers):
    assert len({of(kind, answer) for answer in answers}) == 1
    assert of(kind, answers[0]) is not None


@pytest.mark.parametrize("kind", ["number", "math", "choice", "exact", "code"])
def test_no_answer_is_none(kind):
    assert of(kind, " \n") is None


def test_what_differs_votes_apart():
    assert of("number", "18") != of("number", "19")
    assert of("math", r"\boxed{x}") != of("math", r"\boxed{x+1}")
    assert of("exact", "Paris") != of("exact", "paris")
    heights = [
        "5 feet 3 inches",
        "The answer is 5 feet 4 inches.",
        "The answer is 5 feet 3 inches",
        "5 feet",
        "63 inches",
    ]
    assert len({of("number", height) for height in heights}) == len(heights)
    assert of("choice", "A or B: the answer is A. The answer is B") is None


QUANTITIES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "$", "The answer is ", "-"]),
    st.sampled_from(["5", "5.0", "50", "0.5", "1/2", "5,000", "nan"]),
    st.sampled_from(
        ["", "%", " percent", " km", " m", " apples", " million", " USD", ".", " km 50 m", " and 50 m"]
    ),
)


@pytest.mark.slow
@given(one=QUANTITIES, two=QUANTITIES, gold=QUANTITIES, kind=st.sampled_from(["number", "math"]))
@settings(max_examples=400, deadline=None)
def test_what_votes_together_has_one_verdict(one, two, gold, kind):
    """`majority_at_k` refuses answers that are equal and judged otherwise."""
    if of(kind, one) == of(kind, two):
        verdicts = [verify(answer=answer, gold=gold, kind=kind).status for answer in (one, two)]
        assert verdicts[0] == verdicts[1]


def test_units_and_percent_signs_vote_apart():
    assert len({of("number", answer) for answer in ("5", "5 km", "5 m", "5%")}) == 4


@given(answer=st.text(max_size=200), kind=st.sampled_from(["number", "math", "choice", "exact", "code"]))
def test_no_text_raises(answer, kind):
    found = of(kind, answer)
    assert found is None or found.strip()


def test_choices_that_are_none_are_refused():
    with pytest.raises(UsageError):
        of("choice", "B", choices=3)
