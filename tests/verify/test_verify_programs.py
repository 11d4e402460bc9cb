"""Finding the program in an answer, and the tests in a gold answer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.verify.programs import IoTests, NotTests, PythonTests, programs_in, read_tests


def test_the_last_block_marked_as_python_is_the_program() -> None:
    answer = "First:\n```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```\nIt prints\n```\n2\n```\n"
    assert programs_in(answer) == ["x = 2\n"]


@pytest.mark.parametrize("word", ["python", "Python", "py", "python3", "py3", "PYTHON title=a"])
@pytest.mark.parametrize("fence", ["```", "````", "~~~"])
def test_marks_and_fences_of_all_kinds(word: str, fence: str) -> None:
    assert programs_in(f"{fence}{word}\nx = 1\n{fence}") == ["x = 1\n"]


def test_an_empty_last_block_is_not_the_program() -> None:
    assert programs_in("```python\nx = 1\n```\n```python\n\n```") == ["x = 1\n"]


def test_a_block_that_is_cut_is_used_as_it_stands() -> None:
    assert programs_in("So:\n```python\ndef f():\n    return 1\nprint(f(") == [
        "def f():\n    return 1\nprint(f("
    ]


def test_a_block_of_another_language_is_not_tried() -> None:
    answer = "```cpp\nint main() {}\n```"
    assert programs_in(answer) == [answer]


def test_without_a_marked_block_the_last_plain_one_then_the_whole_answer() -> None:
    answer = "```\nx = 1\n```\nthen\n```\nx = 2\n```"
    assert programs_in(answer) == ["x = 2\n", answer]


def test_a_block_in_a_list_loses_the_indentation_of_its_item() -> None:
    assert programs_in("1. So\n   ```python\n   if x:\n       y()\n   ```") == ["if x:\n    y()\n"]


def test_a_longer_fence_holds_a_shorter_one() -> None:
    assert programs_in("````python\nx = '''\n```\n'''\n````") == ["x = '''\n```\n'''\n"]


def test_long_hostile_answers_take_linear_time() -> None:
    for text in ("```python\n" * 200_000, "`" * 2_000_000, "```" + " " * 2_000_000, "~~~\n```\n" * 200_000):
        programs_in(text)


@given(
    st.text(st.characters(exclude_characters="`~\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")),
    st.text(max_size=50),
)
def test_any_program_in_a_block_is_found(line: str, before: str) -> None:
    if line.strip() and "`" not in before and "~" not in before:
        assert programs_in(f"{before}\n```python\nx{line}\n```\n") == [f"x{line}\n"]


@given(st.text())
def test_any_answer_gives_some_texts(answer: str) -> None:
    assert all(isinstance(text, str) and text for text in programs_in(answer))


def test_pairs_of_input_and_output() -> None:
    wanted = IoTests((("1", "2"), ("3\n4", "5")))
    assert read_tests('[{"input": "1", "output": "2"}, {"input": ["3", "4"], "output": "5"}]', {}) == wanted
    assert read_tests('{"inputs": ["1", "3\\n4"], "outputs": ["2", ["5"]]}', {}) == wanted


def test_python_tests() -> None:
    assert read_tests("assert f(1) == 2", {}) == PythonTests("assert f(1) == 2")
    assert read_tests('["assert f(1) == 2", "assert f(2) == 3"]', {}) == PythonTests(
        "assert f(1) == 2\nassert f(2) == 3"
    )
    check = "def check(candidate):\n    assert candidate(1) == 2\n"
    assert read_tests(check, {"entry_point": "f"}) == PythonTests(f"{check}\ncheck(f)\n")
    assert read_tests(f"{check}\ncheck(f)", {}) == PythonTests(f"{check}\ncheck(f)")


@pytest.mark.parametrize(
    ("gold", "metadata", "message"),
    [
        ("42", {}, "neither JSON pairs of input and output, nor asserts"),
        ("[]", {}, "an empty list"),
        ('{"inputs": [], "outputs": []}', {}, "an empty list"),
        ('{"inputs": ["1"], "outputs": []}', {}, "1 inputs and 0 outputs"),
        ('{"input": "1"}', {}, "without lists `inputs` and `outputs`"),
        ('{"fn_name": "f", "inputs": [[1]], "outputs": [2]}', {}, "fn_name"),
        ('[{"input": "1"}]', {}, "test 1 of the gold answer has no"),
        ('[{"input": "1", "output": 2}]', {}, "must be text or lists of lines"),
        ("[1, 2]", {}, "test 1 of the gold answer has no"),
        ("def check(candidate):\n    assert candidate", {}, "no entry_point"),
        ("def check(candidate):\n    assert candidate", {"entry_point": "f); x("}, "no entry_point"),
        ("[" * 100_000, {}, "neither"),
    ],
)
def test_a_gold_answer_that_is_no_tests_says_why(
    gold: str, metadata: dict[str, object], message: str
) -> None:
    with pytest.raises(NotTests, match=message.replace("(", r"\(")):
        read_tests(gold, metadata)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_any_json_gold_is_read_or_refused(value: object) -> None:
    try:
        read_tests(json.dumps(value), {})
    except NotTests as error:
        assert str(error)
