"""Marks in a question that tell that it cannot be learned from as it stands: pictures, parts, its own answer.

They are proxies, as with s1 (arXiv 2501.19393, section 2.2: ASCII art, missing images, badly numbered
questions) and OpenThoughts (arXiv 2506.04178: words for figures, "answer:", several parts). The expressions
are our own.
Promises: an expression is searched, and its place found, in time linear in the text, whoever wrote it
(Arrow's RE2, not Python's `re`); evidence is one line that names the place and is safe to show; no
expression marks plain arithmetic, powers in a program or a table in Markdown.
Does not: understand. "p1." at the end of a sentence, or a number in bold letters, is a mark as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tutelage.plain import visible

PARTS = (
    r"\bp[1-9][0-9]{0,2}\.(?:[^0-9]|$)"
    # Bold letters stick to their stars, so that `a ** 2 + b ** 2` and 2**10 are no such span.
    r"|(?:^|[^*\w)\]}])\*\*(?:[0-9]|[^*\s][^*\n]*[0-9])(?:[^*\n]*[^*\s])?\*\*"
    # Not f(a) + f(b): the letters in brackets stand alone.
    r"|(?s:(?:^|\s)\(a\)\s.*\s\(b\)\s)"
)
IMAGE = (
    # Not 5![...]: a factorial has its number before it.
    r"(?:^|[^\w)\]}!])!\[(?:[^\]\n]*\]\([^)\n]*\))?|!\[[^\]\n]*\]\([^)\n]*\)|(?i:<img\b|<svg\b)|\\includegraphics\b|\\begin\{tikzpicture\}"
)
ASY = r"\[asy\]"
ART = (
    r"(?m)^[ \t|]*[\x{2500}-\x{259F}]{2,}[ \t|\x{2500}-\x{259F}]*\r?$"
    # A line of slashes, bars and dashes; without a slash it may be the border of a table.
    r"|^[-_=+|<>^'. \t]*[/\\][-_=+|/\\<>^'. \t]{3,}\r?$"
)
_PICTURE = "(?:figure|diagram|graph|picture|image|chart|drawing|sketch)"
FIGURE = (
    # Phrases, not words: people "figure out" a lot, and "in the graph" is graph theory more often than not.
    rf"(?i)\b(?:the|this|see|from|to) (?:following|accompanying|attached|adjoining|given) {_PICTURE}\b"
    r"|\b(?:in|see|from|to) (?:(?:the|this) (?:figure|diagram)\b|(?:figure|diagram|fig\.) ?[0-9])"
    rf"|\b{_PICTURE} (?:is )?(?:shown|below|above)\b"
    rf"|\b(?:shown|pictured|depicted|illustrated|drawn) (?:(?:below|above)\b|in the {_PICTURE}\b)"
)
DRAWN = r"\[asy\]|\\begin\{tikzpicture\}|<svg"
"""A drawing that is there as text, so that talk of a figure is not about a missing one."""
LEAK = r"(?i)\banswers?[ \t]*:[ \t*$]*[^\s*$]"
_CONTINUED = (
    "\u0080-\u009f\u00a1-\u00aa\u00ac-\u00ba\u00bc-\u00bf\u20ac\u02c6\u2030\u0160\u0152\u017d\u0161\u0153"
    "\u017e\u0178\u2122"
)
"""Bytes 80 to BF read as Latin-1 or Windows-1252, but for quotation marks, dashes and blanks, which can stand
after a letter."""
DAMAGE = (
    r"[\x{FFFD}\x{80}-\x{9F}\x{E000}-\x{F8FF}\x{F0000}-\x{10FFFF}\x00-\x08\x0B\x0C\x0E-\x1F\x7F]"
    f"|\u00c3[{_CONTINUED}]|\u00c2[\u00a0-\u00aa\u00ac-\u00ba\u00bc-\u00bf]|\u00e2(?:\u20ac|\u201e\u00a2)"
    f"|\u00ef\u00bb\u00bf|\u00f0\u0178|(?:[\u00d0\u00d1][{_CONTINUED}]){{2}}"
)
"""What no text means: U+FFFD, controls (also those that broken escapes leave, \\f of \\frac), private use,
and UTF-8 that was read as Latin-1 or Windows-1252 (\u00c3\u00a9 for \u00e9)."""
_ANSWER = re.compile(LEAK)
_AFTER = 40
_AROUND = 40
_LONGEST = 200
_NAMED = 3
_BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Mark:
    """What was found in text number `row`: `found` (its beginning) at character `at`, and how often in all
    (`count`; 0: not counted)."""

    row: int
    found: str
    at: int
    count: int
    text: str

    def evidence(self, column: str) -> str:
        """One line for people."""
        plain = self.found.isascii() and self.found.isprintable()
        named = " ".join(f"U+{ord(sign):04X}" for sign in self.found[:_NAMED])
        shown = f"'{one_line(self.found, 60)}'" if plain else named
        many = f" (the first of {self.count:,})" if self.count > 1 else ""
        around = excerpt(self.text, self.at, self.at + len(self.found))
        return f"{shown} in the {column} at character {self.at:,}{many}: {around}"


def marks(pattern: str, texts: pa.Array, *, least: int = 1) -> Iterator[Mark]:
    """The texts in which `pattern` is found at least `least` times, in their order, each with the first
    place.

    Takes an array that `columnar.as_strings` made, and a pattern without groups of its own."""
    if least == 1:
        hit, counts = has(pattern, texts), None
    else:
        counts = pc.count_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
        hit = counts >= least
    rows = np.flatnonzero(hit)
    there = texts.take(pa.array(rows))
    starts = pc.find_substring_regex(there, pattern).to_pylist()
    found = pc.struct_field(pc.extract_regex(there, f"(?P<found>{pattern})"), "found").to_pylist()
    for row, text, start, what in zip(rows.tolist(), there, starts, found, strict=True):
        whole = text.as_py()
        at = len(whole.encode()[:start].decode()) + len(what) - len(what.lstrip(_BLANKS))
        yield Mark(row, what.strip(_BLANKS)[:_LONGEST], at, 0 if counts is None else int(counts[row]), whole)


def has(pattern: str, texts: pa.Array) -> NDArray[np.bool_]:
    """Whether `pattern` is found in each text, (texts,)."""
    found: NDArray[np.bool_] = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
    return found


def pictures(
    questions: pa.Array, kept: NDArray[np.bool_], art_lines: int | None
) -> Iterator[tuple[int, str]]:
    """Questions with a picture, and the evidence. `kept` says whose drawings in Asymptote do not count;
    `art_lines` lines drawn with characters count as a picture."""
    found: dict[int, str] = {}
    for mark in marks(IMAGE, questions):
        found.setdefault(mark.row, mark.evidence("question"))
    for mark in marks(ASY, questions):
        if not kept[mark.row]:
            found.setdefault(mark.row, mark.evidence("question"))
    if art_lines is not None:
        for mark in marks(ART, questions, least=art_lines):
            found.setdefault(mark.row, f"lines drawn with characters: {mark.evidence('question')}")
    yield from found.items()


def figures(questions: pa.Array) -> Iterator[tuple[int, str]]:
    """Questions that speak of a figure and hold no drawing, and the evidence."""
    drawn = has(DRAWN, questions)
    for mark in marks(FIGURE, questions):
        if not drawn[mark.row]:
            yield mark.row, mark.evidence("question")


def leaks(questions: pa.Array, gold: pa.Array) -> Iterator[tuple[int, str]]:
    """Questions with "answer:" and an answer behind it, and the evidence. Where the `gold` answer is known
    ("": it is not), only that one counts."""
    for mark in marks(LEAK, questions):
        answer = gold[mark.row].as_py().strip().casefold()
        for found in _ANSWER.finditer(mark.text):
            said = mark.text[found.end() - 1 :][: len(answer) + _AFTER].casefold()
            if _tells(said, answer):
                around = excerpt(mark.text, *found.span())
                yield mark.row, f"an answer in the question at character {found.start():,}: {around}"
                break


def _tells(said: str, answer: str) -> bool:
    """Whether what is `said` after "answer:" is an answer, and no place for one ("Answer: ___")."""
    if not answer:
        return not said.startswith((*"_[<{?.(", "\\boxed"))
    said = said.removeprefix("\\boxed{")
    return said.startswith(answer) and not said[len(answer) :][:1].isalnum()


def excerpt(text: str, begin: int, end: int) -> str:
    """The place in `text` with its surroundings, on one line."""
    left, right = max(0, begin - _AROUND), min(len(text), min(end, begin + 2 * _AROUND) + _AROUND)
    before, after = "…" if left else "", "…" if right < len(text) else ""
    return f"{before}{one_line(text[left:right], 4 * _AROUND)}{after}"


def one_line(text: str, most: int) -> str:
    """The beginning of `text` on one line that is safe to show, with names for what no font shows."""
    plain = visible(" ".join(text[:most].split()))
    return "".join(sign if sign.isprintable() else f"⟨U+{ord(sign):04X}⟩" for sign in plain)
