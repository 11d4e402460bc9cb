"""Units and scales, and how the number checker uses them."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.verify import judge, verify
from tutelage.verify.numbers import only_number
from tutelage.verify.quantities import compound
from tutelage.verify.units import UNITS, conversions, kinds, read_tail

CONVERTED = [
    ("5 km", "5000 m"),
    ("5 lb", "80 oz"),
    ("2 pounds", "£2"),
    ("20 °C", "68 °F"),
    (r"20^\circ C", "68 degrees Fahrenheit"),
    ("1800 cents", "$18"),
    ("5 m^2", "50000 cm^2"),
    ("5 square meters", "50000 cm²"),
    ("60 mph", "60 miles per hour"),
    ("36 km/h", "10 m/s"),
    ("1 m^3", "1000 liters"),
    ("1 gallon", "16 cups"),
    ("1 1/2 hours", "90 minutes"),
    (r"\boxed{18\text{ kg}}", "18000 g"),
    ("1 year", "12 months"),
    ("12 inches", "1 foot"),
    ("It is 5 feet 3 inches.", "63 inches"),
    ("2 hours and 30 minutes", "150 min"),
    ("63 inches", "5 feet 3 inches"),
    ("5 mins", "300 s"),
    ("so $m = 5$ kg", "5000 g"),
    (r"it is $5\text{ kg}$", "5000 g"),
    ("-$5", "-500 cents"),
]


@pytest.mark.parametrize(("answer", "gold"), CONVERTED)
def test_units_of_one_kind_are_converted_exactly(answer: str, gold: str) -> None:
    verdict = verify(answer=answer, gold=gold)
    assert verdict.status == "correct", verdict.reason


@pytest.mark.parametrize(
    ("answer", "gold", "reason"),
    [
        ("5 kg", "5 km", "unit differs: kg for km"),
        ("$18", "18 euros", "unit differs: $ for euro"),
        ("18 euros", "$18", "unit differs: euro for $"),
        ("so $m = 5$ kg", "5 km", "unit differs: kg for km"),
        ("5%", "5 kg", "unit differs: % for kg"),
        ("5 m", "5 m^2", "unit differs: m for m^2"),
        ("5 cm", "5 m", "not equal to 5 m"),
    ],
)
def test_another_unit_is_incorrect_and_the_reason_names_it(answer: str, gold: str, reason: str) -> None:
    verdict = verify(answer=answer, gold=gold)
    assert verdict.status == "incorrect" and reason in verdict.reason


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("18 apples", "18"),
        ("18 apples", "18 kg"),
        ("18", "18 kg"),
        ("18 kg", "18"),
        ("$18 per hour", "$18"),
        ("There are 5 in the box", "5 inches"),
        ("the 18th day", "18"),
    ],
)
def test_words_and_a_missing_unit_leave_the_number_as_it_stands(answer: str, gold: str) -> None:
    assert verify(answer=answer, gold=gold).status == "correct"


@pytest.mark.parametrize(
    ("answer", "gold", "status", "rule"),
    [
        ("50%", "0.5", "correct", "with % applied"),
        ("50%", "50", "correct", "without %"),
        ("0.5", "50%", "correct", "with % applied"),
        ("50", "50%", "correct", "without %"),
        (r"50\%", "50 percent", "correct", "equal"),
        ("0.5%", "50%", "incorrect", "not equal"),
        ("5 million", "5000000", "correct", "with million applied"),
        ("$5 million", "$5,000,000", "correct", "with million applied"),
        ("5 million", "5 thousand", "incorrect", "not equal"),
    ],
)
def test_percent_and_million_on_one_side_may_apply_or_not(
    answer: str, gold: str, status: str, rule: str
) -> None:
    verdict = verify(answer=answer, gold=gold)
    assert verdict.status == status and rule in verdict.reason


def test_years_and_days_do_not_convert() -> None:
    verdict = verify(answer="1 year", gold="365 days")
    assert verdict.status == "undecided" and "do not convert" in verdict.reason


@pytest.mark.parametrize("kind", ["number", "math"])
def test_a_tolerance_is_opted_in_and_stated(kind: str) -> None:
    assert verify(answer="99.5", gold="100", kind=kind).status == "incorrect"
    verdict = verify(answer="99.5", gold="100", kind=kind, tolerance=0.01)
    assert verdict.status == "correct" and "relative tolerance 0.01" in verdict.reason
    assert verify(answer="98.9", gold="100", kind=kind, tolerance="1/100").status == "incorrect"
    assert verify(answer="0.0001", gold="0", kind=kind, tolerance=0.5).status == "incorrect"
    assert verify(answer="995 m", gold="1 km", kind=kind, tolerance=0.01).status == "correct"


@pytest.mark.parametrize("wrong", [-1, 1, "much", True, "nan", [], "1/0"])
def test_a_tolerance_that_cannot_be_meant_is_refused_before_any_trace(wrong: object) -> None:
    problem = Problem("p7", "q", "1", "number", metadata={"tolerance": wrong})

    def traces() -> Iterator[Trace]:
        raise AssertionError("a trace was read")
        yield

    with pytest.raises(UsageError, match=r"'p7'.*tolerance"):
        list(judge({"p7": problem}, traces()))


def test_several_numbers_are_one_quantity_only_with_falling_units() -> None:
    found = compound("so 1 mile, 2 yards and 3 feet")
    assert found is not None and found.value == 5280 + 6 + 3
    for text in ("3 inches 5 feet", "5 feet 3 kg", "5 feet 3 apples", "5 feet", "20 °C 3 °C", ""):
        assert compound(text) is None


def test_words_with_several_meanings_keep_them() -> None:
    assert kinds(UNITS["pound"]) == {"mass", "GBP"}
    assert kinds(UNITS["ounce"]) == {"mass", "volume"}
    assert kinds(UNITS["cent"]) == {"USD", "EUR"}


@given(
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(sorted(UNITS)),
    st.fractions(min_value=-(10**6), max_value=10**6),
)
def test_a_conversion_there_and_back_is_exact(first: str, second: str, value: Fraction) -> None:
    for kind, factor, offset in UNITS[first].readings:
        for kind2, factor2, offset2 in UNITS[second].readings:
            if kind == kind2:
                there = (value * factor + offset - offset2) / factor2
                pairs = list(conversions(value, UNITS[first], there, UNITS[second]))
                assert any(a == b for a, b in pairs)


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_raises(after: str, before: str) -> None:
    read_tail(after, before)
    compound(after)


@given(st.integers(0, 10**9), st.sampled_from(sorted(set(UNITS) - {"$", "in", "°C", "°F", "floz"})))
def test_every_unit_is_read_after_a_number(value: int, name: str) -> None:
    found = only_number(f"{value} {name}")
    unit = read_tail(found.after, found.before).unit
    assert found.value == value and unit is not None and unit.readings == UNITS[name].readings


def test_the_reason_is_one_line() -> None:
    verdict: Verdict = verify(answer="5\nkg", gold="5 km")
    assert "\n" not in verdict.reason


def test_two_answers_are_none() -> None:
    for gold in ("18", "19"):
        assert verify(answer="The answer is 18 or 19.", gold=gold).status == "undecided"
        assert verify(answer=r"\boxed{18 \text{ or } 19}", gold=gold).status == "undecided"
