"""Numbers in text: exact values, hostile text, linear time."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.verify.numbers import last_number, only_number

VALUES = [
    ("18", 18),
    ("$1,234.50", Fraction("1234.5")),
    ("1,00,000", 100_000),
    ("10{,}000", 10_000),
    (r"10,\!000", 10_000),
    ("1\u2009234\u00a0567", 1_234_567),
    ("= - 5", -5),
    ("3/4", Fraction(3, 4)),
    (r"-\frac{3}{4}", Fraction(-3, 4)),
    (r"\dfrac{ -3 }{ 4 }", Fraction(-3, 4)),
    ("1 1/2", Fraction(3, 2)),
    ("1.5e3", 1500),
    (r"1.5 \times 10^{-3}", Fraction(15, 10_000)),
    (".5", Fraction(1, 2)),
    ("0.1", Fraction(1, 10)),
    ("−18", -18),
    ("-$5", -5),
    ("$-5", -5),
    ("50%", 50),
    (r"50\%", 50),
    ("٩٨٫٥", Fraction("98.5")),
    ("１８", 18),
    ("1\u200b8", 18),
    ("\u200f18\u200e", 18),
    ("18\x00", 18),
    ("18\ud800", 18),
    ("18.", 18),
    ("18 apples", 18),
    (r"18 \text{ cm}^2", 18),
    ("18 cm^2", 18),
    (r"90^\circ", 90),
    ("(18)", 18),
    ("x = 18", 18),
    ("USD18", 18),
    ("0018.00", 18),
    ("0" * 5000 + "7", 7),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_reads_the_number_exactly(text: str, value: Fraction) -> None:
    found = last_number(text)
    assert found is not None and found.value == value
    assert only_number(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "√3",
        r"\sqrt{3}",
        "2^5",
        "5x",
        "5π",
        "3 + 4",
        "(3,4)",
        "3,5",
        "1 or 2",
        "1/0",
        "1/2/3",
        "9!",
        "-(9)",
        "5ab",
        "9" * 1001,
    ],
)
def test_what_is_not_one_plain_number_has_no_value_and_a_reason(text: str) -> None:
    found = only_number(text)
    assert found.value is None and found.problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48/2 = 24", 24),
        ("20-18", 18),
        ("5 - 3", 3),
        ("- 3 apples", 3),
        ("In 2020, 7", 7),
        ("v1.2.3 costs 4", 4),
        ("18, then", 18),
    ],
)
def test_last_number_of_prose(text: str, value: int) -> None:
    found = last_number(text)
    assert found is not None and found.value == value


@pytest.mark.parametrize("text", ["", "none", "4:30 p.m.", "ratio 3:4", "CO2", "nan", "inf", "Infinity"])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


def test_a_right_to_left_override_does_not_turn_81_into_18() -> None:
    found = last_number("\u202e81")
    assert found is not None and found.value == 81


def test_nearly_equal_is_not_equal() -> None:
    assert only_number("0.3333333333").value != Fraction(1, 3)
    assert only_number("0.1").value == only_number("1/10").value


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_every_decimal_comes_back(units: int, places: int) -> None:
    value = Fraction(units, 10**places)
    written = f"{'-' if units < 0 else ''}{abs(units) // 10**places:,}"
    if places:
        written += f".{abs(units) % 10**places:0{places}d}"
    for text in (written, written.replace(",", ""), f"so it is ${written}." if units >= 0 else written):
        found = last_number(text)
        assert found is not None and found.value == value


@given(st.integers(-999, 999), st.integers(1, 999))
def test_every_fraction_comes_back(numerator: int, denominator: int) -> None:
    assert only_number(f"{numerator}/{denominator}").value == Fraction(numerator, denominator)
    assert only_number(rf"\frac{{{numerator}}}{{{denominator}}}").value == Fraction(numerator, denominator)


def spellings(value: Fraction) -> list[str]:
    """Every understood way to write a value with a short decimal form."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    places = 0
    while (size * 10**places).denominator != 1:
        places += 1
    whole, rest = divmod(size.numerator * 10**places // size.denominator, 10**places)
    tail = f".{rest:0{places}d}" if places else ""
    digits, grouped = f"{whole}{tail}", f"{whole:,}{tail}"
    found = [
        digits,
        grouped,
        grouped.replace(",", "{,}"),
        grouped.replace(",", r"\,"),
        grouped.replace(",", "\u2009"),
        digits.translate(str.maketrans("0123456789.", "０１２３４５６７８９．")),
        digits.translate(str.maketrans("0123456789.", "٠١٢٣٤٥٦٧٨٩٫")),
        "\u200b".join(digits),
        "00" + digits,
        f"${grouped}",
        f"{digits}e0",
        f"{(size * 1000).numerator}e-3" if (size * 1000).denominator == 1 else digits,
        rf"{digits} \times 10^{{0}}",
        f"{size.numerator}/{size.denominator}",
        rf"\frac{{{size.numerator}}}{{{size.denominator}}}",
        f"{digits} apples",
        rf"{digits}\text{{ apples}}",
        f"${digits}$",
    ]
    if size.denominator > 1 and whole:
        part = size - whole
        found.append(f"{whole} {part.numerator}/{part.denominator}")
    return [
        f"({sign}{digits})",
        *(sign + text for text in found),
        f"x = {sign}{digits}",
        f"\u2212{digits}" if sign else digits,
    ]


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_every_spelling_is_read_back_exactly(units: int, places: int) -> None:
    value = Fraction(units, 10**places)
    for text in spellings(value):
        found = only_number(text)
        assert found.value == value, text


@pytest.mark.parametrize("text", ["1e9999", "1e-9999", "2.5e3.1", "5x", "5ab", "so it is 3*4", "it is -(4)"])
def test_a_part_of_an_expression_is_not_taken_for_its_value(text: str) -> None:
    found = last_number(text)
    assert found is not None and found.value is None and found.problem


@pytest.mark.parametrize("text", ["1.234,56", "1.234.567", "3,5", "3.5,4.5", "1,23", "12,34,5"])
def test_commas_and_points_that_may_be_a_list_have_no_value(text: str) -> None:
    found = last_number(text)
    assert found is not None and found.value is None and "joined" in found.problem


@given(st.text())
def test_no_text_raises(text: str) -> None:
    last_number(text)
    only_number(text)


@given(st.text(alphabet=r"0123456789,./^{}()-+= \$%frac:eE", max_size=60))
def test_no_number_like_text_raises(text: str) -> None:
    last_number(text)
    only_number(text)


@given(st.text(alphabet="ab 12.,\n", max_size=40), st.integers(0, 9999))
def test_what_stands_before_does_not_matter(before: str, number: int) -> None:
    found = last_number(f"{before} word {number}")
    assert found is not None and found.value == number


HOSTILE = [
    "word ",
    "1",
    "1,",
    "1/",
    "1 ",
    "a^",
    "$",
    "-",
    "{",
    "\\text{",
    "9\u00a0",
    "٣",
    "1.",
    "1 1/",
    "\\frac{1}{",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_linear(piece: str) -> None:
    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        start = time.process_time()
        last_number(text)
        return time.process_time() - start

    small, large = seconds(100_000), seconds(400_000)
    # Four times the text: quadratic would be 16 times. The floor keeps the clock's noise out.
    assert large < 9 * max(small, 0.02)
