"""When two questions are the same: their words as compared, and a short number for a question.

Promises: questions that differ in case, punctuation, spacing or the form of a character only are equal;
numbers, operators and their order count, so 3+4 and 3-4, or 1.8 and 18, stay different.
Does not: find rewordings, or the same problem with other numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from tutelage.records import Problem, stable_hash

_GROUPS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PUNCTUATION = r"""\s!"#$&'(),.:;?@\[\\\]_`{|}~«»¿¡…\u2000-\u206f\u3000-\u303f+*/^=<>%×÷−\-"""
_WORD = re.compile(rf"\d+(?:\.\d+)*|[+*/^=<>%×÷−]|-(?=\s*[\d(])|[^{_PUNCTUATION}\d]+")


def words(text: str) -> list[str]:
    """`text` as compared: NFKC, case folded, punctuation gone, numbers and operators kept as words."""
    return _WORD.findall(_GROUPS.sub("", unicodedata.normalize("NFKC", text).casefold()))


def question_key(problem: Problem, tokens: Sequence[str] | None = None) -> str:
    """What equal questions have in common; `tokens` are its `words` where they are known already."""
    found = words(problem.question) if tokens is None else tokens
    # A question without any word (signs, emoji) is compared as it stands; else all of those would be equal.
    return " ".join(found) if found else "\0" + problem.question.strip()


def question_hashes(problems: Iterable[Problem]) -> set[str]:
    """One number (16 hex digits, 64 bits) for each different question."""
    return {stable_hash(question_key(problem)) for problem in problems}
