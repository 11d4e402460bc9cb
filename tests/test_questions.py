"""Equal questions have one number; different ones do not."""

from __future__ import annotations

import pytest

from tutelage.questions import question_hashes
from tutelage.records import Problem


def hashes(*questions: str) -> set[str]:
    return question_hashes(Problem(f"p{number}", text) for number, text in enumerate(questions))


@pytest.mark.parametrize("same", ["How many  clips, in 1,000 boxes", "HOW MANY CLIPS IN １０００ BOXES?"])
def test_spelling_alone_makes_no_other_question(same: str) -> None:
    assert len(hashes("How many clips in 1000 boxes?", same)) == 1


@pytest.mark.parametrize("other", ["What is 3 - 4?", "What is 34?", "What is 3 + 5?", "What is 4 + 3?"])
def test_other_numbers_and_signs_make_other_questions(other: str) -> None:
    assert len(hashes("What is 3 + 4?", other)) == 2


def test_questions_without_words_are_told_apart_and_lone_surrogates_do_no_harm() -> None:
    found = hashes("?!", "🪨", "\ud83d", "a")
    assert len(found) == 4 and all(len(each) == 16 for each in found)
