"""Which choice an answer claims."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.verify import WorkerPool, require_checkers, verify

CITIES = ["Rome", "Paris", "Berlin", "New York"]

SAID = [
    "The answer is (B).",
    "The answer is B because it is",
    "Answer: B",
    "A: B",
    "#### B",
    r"\boxed{B}",
    r"\boxed{\text{B}}",
    r"$\boxed{\textbf{(B)}\ 5}$",
    r"\boxed{B",
    "**B**",
    "B. Paris",
    "B) Paris",
    "(b)",
    "Option B",
    "Option B is correct.",
    "The correct option is **B**",
    "I think so.\nB",
    "Therefore, the correct answer is B) Paris.",
    "The answer is:\n\nB",
    "So it must be B.",
    "Ｂ",
    "B\u200b",
    "A cat, I think. The answer is B",
]


@pytest.mark.parametrize("answer", SAID)
@pytest.mark.parametrize("gold", ["B", "(B)", "B.", "B) Paris", r"\text{B}"])
def test_a_letter_in_every_dress(answer: str, gold: str) -> None:
    verdict = verify(answer=answer, gold=gold, kind="choice")
    assert (verdict.status, verdict.method, verdict.extracted) == ("correct", "choice", "B"), verdict.reason
    assert verify(answer=answer, gold="C", kind="choice").status == "incorrect"


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        ("Paris", "B", "correct"),
        ("paris.", "Paris", "correct"),
        ("The answer is Paris.", "B", "correct"),
        ("The answer is New York", "D", "correct"),
        (r"\boxed{\text{Berlin}}", "C", "correct"),
        ("Rome", "B", "incorrect"),
        ("E", "B", "incorrect"),
        ("B. Rome", "B", "undecided"),
        ("A. Rome\nB. Paris", "B", "undecided"),
        ("It may be Paris, it may be Rome", "B", "undecided"),
        ("B", "Madrid", "undecided"),
        ("B", "E", "undecided"),
    ],
)
def test_with_the_choices_given(answer: str, gold: str, status: str) -> None:
    for choices in (CITIES, dict(zip("ABCD", CITIES, strict=True))):
        verdict = verify(answer=answer, gold=gold, kind="choice", choices=choices)
        assert verdict.status == status, verdict.reason


@pytest.mark.parametrize(
    "answer",
    [
        "A dog has four legs",
        "The answer is A dog",
        "It is a lovely day",
        "The best choice is a long walk",
        "The answer is not A",
        "I do not know",
        "And so on",
    ],
)
def test_an_article_is_no_choice(answer: str) -> None:
    for gold in ("A", "I"):
        assert verify(answer=answer, gold=gold, kind="choice").status == "undecided"


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is B or C",
        "The answer is B. No, the answer is C.",
        r"\boxed{B} \boxed{C}",
        "**B** and **C**",
    ],
)
def test_several_letters_are_undecided(answer: str) -> None:
    for gold in ("B", "C"):
        assert verify(answer=answer, gold=gold, kind="choice").status == "undecided"


@pytest.mark.parametrize("wrong", ["Rome", 5, [], {"Rome": "A"}, ["x"] * 27])
def test_choices_that_are_none_are_refused(wrong: object) -> None:
    problem = Problem("p7", "q", "A", "choice", metadata={"choices": wrong})
    with WorkerPool() as pool, pytest.raises(UsageError, match=r"'p7'.*choices"):
        require_checkers([problem], pool)


@pytest.mark.slow
@given(st.text(max_size=80), st.sampled_from("ABCDEFGH"), st.sampled_from("ABCDEFGH"))
def test_a_boxed_letter_is_read_back_from_any_text(before: str, letter: str, gold: str) -> None:
    text = before.replace("\\", "") + rf" \boxed{{{letter}}}"
    assert (verify(answer=text, gold=gold, kind="choice").status == "correct") == (letter == gold)


@given(st.text())
def test_no_text_raises(text: str) -> None:
    verify(answer=text, gold="A", kind="choice", choices=CITIES)
    verify(answer="A", gold=text, kind="choice")


@pytest.mark.parametrize(
    "piece", ["answer is ", "A. ", "option A ", "\\boxed{", "(", "*", " ", "\n", "choice:"]
)
def test_ten_megabytes_take_less_than_a_second_or_two(piece: str) -> None:
    text = piece * (10_000_000 // len(piece))
    start = time.process_time()
    verify(answer=text, gold="A", kind="choice")
    assert time.process_time() - start < 2
