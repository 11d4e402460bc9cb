"""Where the final answer stands."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.verify.answers import last_boxed, last_line, marked_answer


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        (r"so \boxed{18}.", "18", "boxed"),
        (r"\boxed{1} and then \boxed{2}", "2", "boxed"),
        (r"\boxed{\frac{1}{2}} end", r"\frac{1}{2}", "boxed"),
        (r"\boxed{3} put it in \boxed{}", "3", "boxed"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}", "boxed"),
        (r"\fbox{7}", "7", "boxed"),
        (r"\boxed 18", "18", "boxed"),
        ("work\n#### 72", "72", "####"),
        ("The answer is 18. I checked it 3 times.", "18", "answer is"),
        ("The final answer is: **18**", "18", "answer is"),
        ("**Answer:** 18", "18", "answer is"),
        ("Steps: 3\nA: 18", "18", "answer is"),
        ("the answer is 18, because 9 * 2", "18", "answer is"),
        ("The answer is\n\n18", "18", "answer is"),
        (r"The answer is 3. #### 4 \boxed{5}", "5", "boxed"),
        ("The answer is 3.\n#### 4", "4", "####"),
    ],
)
def test_order_of_trust(text: str, answer: str, how: str) -> None:
    found = marked_answer(text)
    assert found is not None and (found.text, found.how) == (answer, how)


def test_a_box_that_is_never_closed_gives_the_rest_of_its_line() -> None:
    found = last_boxed("\\boxed{18\nand more 3")
    assert found is not None and (found.text, found.closed) == ("18", False)


@pytest.mark.parametrize(
    "text", ["#### Step 3: add them", "##### 5", "#### 3. Add", "no answer here", "", r"\boxed{}"]
)
def test_headings_and_empty_boxes_are_no_answer(text: str) -> None:
    assert marked_answer(text) is None


@given(st.text())
def test_no_text_raises(text: str) -> None:
    marked_answer(text)
    last_line(text)


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "\\boxed{}", "####", "answer is ", "answer ", "{", "A:\n", "\n", " "]
)
def test_ten_megabytes_take_less_than_a_second_or_two(piece: str) -> None:
    text = piece * (10_000_000 // len(piece))
    start = time.process_time()
    marked_answer(text)
    last_line(text)
    assert time.process_time() - start < 2


def test_the_last_line_says_when_it_was_cut() -> None:
    assert last_line("a\nbc \n\n") == ("bc", False)
    line, cut = last_line("x" * 5000, 100)
    assert (len(line), cut) == (100, True)
