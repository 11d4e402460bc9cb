"""Answers compared as text.

Promises: equal means equal after Unicode NFC, white space collapsed, and surrounding quotes, Markdown stars,
dollar signs and one final period removed; case counts. Linear time.
Does not: know numbers or mathematics; `nan` equals `nan` here, as text.
"""

from __future__ import annotations

import re
import unicodedata

from tutelage.records import Problem
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.decision import Decision, before_judging
from tutelage.verify.workers import WorkerPool

_SPACE = re.compile(r"\s+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}")
_EDGE = " \t\"'`*$“”‘’"


def normalise(text: str) -> str:
    """The form in which two answers are compared."""
    text = _SPACE.sub(" ", unicodedata.normalize("NFC", _INVISIBLE.sub("", text))).strip(_EDGE)
    wrapped = _WRAPPED.fullmatch(text)
    text = wrapped[1].strip(_EDGE) if wrapped else text
    return text.removesuffix(".").strip(_EDGE) if len(text) > 1 else text


def candidates(text: str) -> list[str]:
    """What may be the answer in `text`, most trusted first: the marked answer alone where there is one, else
    the whole text and its last line."""
    marked = marked_answer(text)
    if marked is not None:
        return [marked.text]
    return [text.strip(), last_line(text)[0]]


def equal(answer: str, gold: str) -> bool:
    """True when any candidate of `answer` equals `gold` after `normalise`."""
    wanted = normalise(gold)
    return any(normalise(candidate) == wanted for candidate in candidates(answer))


def decide(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    """Checker `exact`. No worker is needed."""
    if (early := before_judging(problem, answer, "exact")) is not None:
        return early
    found = candidates(answer)[-1]
    if equal(answer, problem.gold or ""):
        return "correct", "same text", "exact", found
    return "incorrect", "the text differs", "exact", found
