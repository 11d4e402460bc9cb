r"""Checker `choice`: the letter, or the text of the option, that an answer claims.

The gold is a letter (`B`, `(B)`, `B.`, `B) Paris`) or, with `metadata["choices"]` (a list of texts, lettered
from A, or letter to text), the text of an option. Looked for, in this order, the first kind that is there
decides: boxes; statements ("the answer is (B)", "Option B is correct", `#### B`); the last line, when it is
only a letter ("**B**", "B. Paris") or only the text of an option.
Promises: never raises; linear time; needs no worker; "A" as an article is never a choice; several different
letters claimed in the deciding kind, or a letter beside another option's text, are `undecided`; a letter that
is not among the choices is `incorrect`.
Does not: guess from an option that is merely mentioned: an answer that claims none is `undecided`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.verify import exact
from tutelage.verify.answers import boxes, last_line
from tutelage.verify.decision import Decision, before_judging
from tutelage.verify.numbers import plain
from tutelage.verify.workers import WorkerPool

CHOICES = "choices"
_TAIL = 20_000
_OPEN = r"[\s*_`\"'“‘$(\[{]*"
_STATEMENT = re.compile(
    r"(?:\b(?:answer|option|choice)\b(?:[^\n.:=]{0,40}?\bis\b|[ \t]*[:=])|(?<!\#)\#{4}(?!\#)"
    r"|\b(?:choose|pick|select|(?:must|should|has to) be)\b)[\s:*]{0,10}"
    r"(?:(?:option|choice|letter|answer)\b[\s:]{0,3})?",
    re.IGNORECASE,
)
_CORRECT = re.compile(
    rf"(?i:\b(?:option|choice|answer)){_OPEN}(?P<letter>[A-Z])\b[\s*)\]}}]*(?i:is)\s+(?i:the\s+)?(?i:correct|right)"
)
_LETTER = re.compile(
    rf"{_OPEN}(?P<letter>[A-Za-z])(?![\w'’])(?P<close>[)\]}}*_`\"'”’$]*)(?P<mark>[.:,;)]?)(?P<rest>.*)",
    re.DOTALL,
)
_AFTER_A = re.compile(r"\s*(?:\Z|[,;.!?—–-]|\(|(?:because|since|as|which|and|or|so|is)\b)")
_OTHER = re.compile(rf"\s*(?:,|/|or|and|&)\s*{_OPEN}(?P<letter>[A-Z])(?![\w'’])")
_CLAUSE = re.compile(r"[.,;](?:\s|$)")
_LINE = 300
_PREFIX = re.compile(r"\A\s*(?i:option|choice|answer)\s*:?\s*(?=\W*[A-Za-z]\b)|\A\s*A:\s*(?=\W*[A-Z]\W*\Z)")


@dataclass(frozen=True, slots=True)
class Claim:
    """A letter that the answer claims ("" for an option's text that is none of the choices), and its text."""

    letter: str
    text: str
    clash: str = ""


def options(problem: Problem) -> dict[str, str]:
    """The problem's choices by letter; empty when it lists none. Raises UsageError when they are no list of
    texts and no mapping of letters to texts."""
    given: Any = problem.metadata.get(CHOICES)
    if given is None:
        return {}
    if isinstance(given, Mapping):
        found = {str(letter).strip().upper(): str(text) for letter, text in given.items()}
    elif isinstance(given, Sequence) and not isinstance(given, str):
        found = {chr(ord("A") + index): str(text) for index, text in enumerate(given)}
    else:
        found = {}
    if not found or not all(re.fullmatch("[A-Z]", letter) for letter in found):
        raise UsageError(
            f"problem {problem.id!r}: choices is {str(given)[:60]!r};"
            " it is a list of at most 26 texts, or letters to texts"
        )
    return found


def _plain(text: str) -> str:
    """Full-width letters and the like as plain ones, invisible characters and LaTeX wrappers gone."""
    return plain(text if text.isascii() else unicodedata.normalize("NFKC", text))


def _same(text: str, option: str) -> bool:
    return _normal(text) == _normal(option)


def _normal(text: str) -> str:
    return exact.normalise(text).casefold()


def read_claim(text: str, choices: Mapping[str, str], *, bare: bool = False) -> list[Claim]:
    """The letters that begin `text`, or the option that it is. `bare`: only a letter with nothing after it, a
    letter with a mark (`B. Paris`), or an option's whole text."""
    text = _PREFIX.sub("", _plain(text))
    whole = [letter for letter, option in choices.items() if _same(text, option)]
    if len(whole) == 1:
        return [Claim(whole[0], text.strip())]
    match = _LETTER.match(text)
    if match is None:
        return []
    letter, rest = match["letter"], match["rest"]
    marked = bool(match["mark"] or match["close"]) or text[: match.start("letter")].rstrip().endswith(
        ("(", "[")
    )
    if letter.islower() and not (marked or not rest.strip()):
        return []
    if letter in "aAI" and not marked and not _AFTER_A.match(rest):
        return []  # an article, or the speaker
    if bare and rest.strip() and not marked:
        return []
    clash = next(
        (other for other, option in choices.items() if other != letter.upper() and _same(rest, option)), ""
    )
    claims = [Claim(letter.upper(), text.strip(), clash)]
    other = _OTHER.match(text, match.end("close"))
    return [*claims, Claim(other["letter"], text.strip())] if other is not None else claims


def _statements(text: str, choices: Mapping[str, str]) -> Iterator[Claim]:
    for match in _CORRECT.finditer(text):
        yield Claim(match["letter"], match[0].strip())
    for match in _STATEMENT.finditer(text):
        rest = text[match.end() : match.end() + _LINE].split("\n", 1)[0]
        yield from read_claim(rest, choices) or read_claim(_CLAUSE.split(rest, maxsplit=1)[0], choices)


def _listed(text: str) -> set[str]:
    return set(re.findall(r"(?m)^[\s*(>-]*([A-Z])[.):]", text))


def claims(answer: str, choices: Mapping[str, str]) -> tuple[list[Claim], str]:
    """What the answer claims, by the first kind of mark that claims anything, and which kind."""
    boxed = [claim for box in boxes(answer) for claim in read_claim(box.text, choices)]
    if boxed:
        return boxed, "boxed"
    tail = _plain(answer[-_TAIL:])
    stated = list(_statements(tail, choices))
    if stated:
        return stated, "stated"
    line = last_line(answer)[0]
    found = read_claim(line, choices, bare=True)
    if found and len(_listed(tail)) > 1:
        return [], "last line"  # the options are listed, none is claimed
    return found, "last line"


def decide(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    """Checker `choice`. No worker is needed. Raises UsageError for choices that are none."""
    choices = options(problem)
    if (early := before_judging(problem, answer, "choice")) is not None:
        return early
    gold = problem.gold or ""
    wanted = read_claim(gold, choices, bare=True)
    if len(wanted) != 1 or wanted[0].clash:
        return (
            "undecided",
            f"the gold answer {gold.strip()[:80]!r} is not one letter or option",
            "choice",
            None,
        )
    if choices and wanted[0].letter not in choices:
        return "undecided", f"the gold answer {wanted[0].letter!r} is not among the choices", "choice", None
    found, how = claims(answer, choices)
    if not found:
        return "undecided", "no choice is stated", "choice", None
    letters = sorted({claim.letter for claim in found})
    shown = found[-1].letter
    if len(letters) > 1:
        return "undecided", f"{how}: several letters, {', '.join(letters)}", "choice", shown
    clash = next((claim.clash for claim in found if claim.clash), "")
    if clash:
        return "undecided", f"{how}: {shown} with the text of {clash}", "choice", shown
    if choices and shown not in choices:
        return "incorrect", f"{how}: {shown} is not among the choices", "choice", shown
    if shown == wanted[0].letter:
        return "correct", f"{how}: the same choice", "choice", shown
    return "incorrect", f"{how}: not {wanted[0].letter}", "choice", shown
