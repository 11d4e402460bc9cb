"""Quality rules: which traces of a batch are no use to learn from, whatever they say.

In the order in which they are asked, cheap and decisive ones first:

    failed       the call that made it failed, or was refused
    cut          it ran into a limit
    missing      no question, or no answer
    too-long     more characters than is sane, or (if set) words of thinking
    too-short    fewer words of thinking than asked for (if set)
    multi-part   a question in several parts, or badly numbered
    image        a question with a picture that a text cannot hold, or a drawing made of characters
    figure       a question that speaks of a figure that is not there
    leak         a question that tells its answer
    encoding     broken characters
    language     letters of a script that the question is not in
    loop         thinking that goes round in circles

Promises: every rule can be switched off, and those with a number tuned (`Settings`); a row's faults depend on
that row alone; the first rule in this order that a row breaks is its fault; evidence says where; while
`too-long` is on, a text above `most_characters` is not searched by any rule, so that one monster costs
nothing.
Does not: drop anything, or judge the answer: a wrong answer breaks no rule here.

Source: s1 (arXiv 2501.19393, section 2.2) has failed, missing, multi-part and image, OpenThoughts (arXiv
2506.04178) figure and leak, both as they are read in `marks`. The others are ours: a student learns to loop,
to mix scripts and to never end from traces that do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tutelage.curate import marks
from tutelage.curate.columnar import Columns, read_columns
from tutelage.curate.loops import loops, word_counts
from tutelage.curate.scripts import foreign
from tutelage.errors import UsageError
from tutelage.teachers.replies import is_truncated

RULES = (
    "failed", "cut", "missing", "too-long", "too-short", "multi-part", "image", "figure", "leak", "encoding",
    "language", "loop",
)  # fmt: skip
TEXTS = ("question", "thinking", "answer")
FAILED = (
    "error", "content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii",
    "malformed_function_call", "cancelled",
)  # fmt: skip
_NEEDED = (*TEXTS, "finish_reason")
_OPTIONAL = ("gold", "source")
# Unicode's blanks are blanks, and so are characters without width.
_SOMETHING = r"[^\x00-\x20\x7F\pZ\x{200B}-\x{200F}\x{2060}\x{FEFF}]"
# From how much on each number is allowed, and which may be None.
_COUNTS = {
    "most_characters": 1, "least_words": 0, "most_words": 0, "art_lines": 1, "damage": 1, "foreign_letters":
    1, "loop_width": 2, "loop_turns": 1,
}  # fmt: skip
_NONE = ("least_words", "most_words", "art_lines")
_NOT_SEARCHED = ("failed", "cut")


@dataclass(frozen=True, slots=True)
class Fault:
    """Row number `row` breaks `rule`; `reason` is the evidence in one line for people, `score` what the rule
    measured (None: it measures nothing)."""

    row: int
    rule: str
    reason: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How strict the rules are. Raises UsageError for an unknown rule, and a value that is not of the kind or
    in the range of its setting."""

    off: tuple[str, ...] = ()
    """Rules that are not asked."""
    failed: tuple[str, ...] = FAILED
    """Finish reasons of a failed call, in small letters. Which ones mean cut off is known (see
    `teachers`)."""
    need_thinking: bool = False
    """Whether thinking that is missing is a fault like an answer that is."""
    most_characters: int = 2_000_000
    """Of any text: some 500,000 tokens, ten times what a long trace has."""
    least_words: int | None = None
    """Of thinking; words as in `loops`: what stands between blanks."""
    most_words: int | None = None
    asy_sources: tuple[str, ...] = ()
    """Sources whose drawings in Asymptote are kept; s1 exempted AIME."""
    art_lines: int | None = 3
    """So many lines drawn with characters make a picture; None: none do."""
    damage: int = 1
    """So many broken characters in a text are a fault."""
    foreign_share: float = 0.05
    """Of the letters of thinking or answer: above it, other scripts than the question's are a fault."""
    foreign_letters: int = 20
    """The fewest such letters: a name or a quoted word is no fault."""
    loop_width: int = 12
    loop_share: float = 0.3
    """Of runs of `loop_width` words, those that occurred before: above it, they are a fault. Measured: at
    most 0.11 in 7,473 human solutions of GSM8K, 0.26 in 1,319 that tell sub-questions twice, 0.01 in five
    long traces of a teacher; a text that is there twice has about 0.5."""
    loop_turns: int = 4
    """An end that repeats more often than this, in a row, is a loop, however long the text before it."""

    def __post_init__(self) -> None:
        for name in ("off", "failed", "asy_sources"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not all(isinstance(each, str) for each in value):
                raise UsageError(f"quality.{name} is {value!r}; it must be a list of names")
        unknown = [name for name in self.off if name not in RULES]
        if unknown:
            raise UsageError(
                f"quality.off: there is no rule {unknown[0]!r}; the rules are {', '.join(RULES)}"
            )
        if not isinstance(self.need_thinking, bool):
            raise UsageError(f"quality.need_thinking is {self.need_thinking!r}; it must be true or false")
        for name, low in _COUNTS.items():
            value = getattr(self, name)
            if value is None and name in _NONE:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise UsageError(f"quality.{name} is {value!r}; it must be a whole number from {low} on")
        for name in ("foreign_share", "loop_share"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
                raise UsageError(f"quality.{name} is {value!r}; it must be a number from 0 to 1")
        least, most = self.least_words, self.most_words
        if least is not None and most is not None and least > most:
            raise UsageError(f"quality.least_words is {least}, above most_words, {most}; no trace could pass")


def faults(batch: pa.Table, settings: Settings | None = None) -> list[Fault]:
    """For each row that breaks a rule the first one, in the order of `RULES`; rows ascending.

    `batch` has the columns of `TEXTS` and `finish_reason`, and may have `gold` and `source` (texts; null is
    as good as ""). Raises UsageError for a column that is missing or holds no texts."""
    first: dict[int, Fault] = {}
    for fault in all_faults(batch, settings):
        first.setdefault(fault.row, fault)
    return list(first.values())


def all_faults(batch: pa.Table, settings: Settings | None = None) -> list[Fault]:
    """Every rule that a row breaks, once each, by row, then in the order of `RULES`: as `faults`, for counts
    of what each rule alone would drop. A row above `most_characters` is not asked for the rules that
    search."""
    own = settings or Settings()
    whole = read_columns(batch, _NEEDED, _OPTIONAL)
    rest, found = whole, []
    if "too-long" not in own.off:
        found += list(_too_large(whole, own))
        rest = whole.without([fault.row for fault in found])
    for rule, ask in _ASKED.items():
        if rule not in own.off:
            asked = whole if rule in _NOT_SEARCHED else rest
            found += [Fault(int(asked.rows[row]), rule, *why) for row, why in ask(rule, asked, own)]
    return sorted(found, key=lambda fault: (fault.row, RULES.index(fault.rule)))


_Found = tuple[int, tuple[str] | tuple[str, float]]
"""A row, and the reason and perhaps the score."""


def _too_large(batch: Columns, own: Settings) -> Iterator[Fault]:
    taken: set[int] = set()
    for name in TEXTS:
        # A text has at most as many characters as bytes, and those need not be counted.
        sizes = pc.binary_length(batch[name]).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(sizes > own.most_characters).tolist():
            size = pc.utf8_length(batch[name][row]).as_py()
            if size > own.most_characters and row not in taken:
                taken.add(row)
                reason = f"the {name} has {size:,} characters; at most {own.most_characters:,} are read"
                yield Fault(row, "too-long", reason, float(size))


def _finish(rule: str, batch: Columns, own: Settings) -> Iterator[_Found]:
    column = batch["finish_reason"].dictionary_encode()
    names = column.dictionary.to_pylist()
    said = "the call failed" if rule == "failed" else "it ran into a limit"
    plain = [name.strip().lower() for name in names]
    bad = [name in own.failed if rule == "failed" else is_truncated(name) for name in plain]
    for row, code in enumerate(column.indices.to_pylist() if any(bad) else ()):
        if bad[code]:
            yield row, (f"finish_reason is '{marks.one_line(names[code], 60)}': {said}",)


def _missing(rule: str, batch: Columns, own: Settings) -> Iterator[_Found]:
    empty: dict[int, list[str]] = {}
    for name in TEXTS:
        if name != "thinking" or own.need_thinking:
            for row in np.flatnonzero(~marks.has(_SOMETHING, batch[name])).tolist():
                empty.setdefault(row, []).append(name)
    for row, names in empty.items():
        yield row, (f"no {' and no '.join(names)}",)


def _words(rule: str, batch: Columns, own: Settings) -> Iterator[_Found]:
    bound = own.most_words if rule == "too-long" else own.least_words
    if bound is not None:
        counts = word_counts(batch["thinking"])
        said = "at most" if rule == "too-long" else "at least"
        for row in np.flatnonzero(counts > bound if rule == "too-long" else counts < bound).tolist():
            reason = f"{counts[row]:,} words of thinking; {said} {bound:,} are wanted"
            yield row, (reason, float(counts[row]))


def _in_question(rule: str, batch: Columns, own: Settings) -> Iterator[_Found]:
    questions = batch["question"]
    found: Iterator[tuple[int, str]]
    if rule == "multi-part":
        found = ((mark.row, mark.evidence("question")) for mark in marks.marks(marks.PARTS, questions))
    elif rule == "image":
        kept = pc.is_in(batch["source"], value_set=pa.array(own.asy_sources, pa.large_string()))
        found = marks.pictures(questions, kept.to_numpy(zero_copy_only=False), own.art_lines)
    else:
        found = marks.figures(questions) if rule == "figure" else marks.leaks(questions, batch["gold"])
    return ((row, (reason,)) for row, reason in found)


def _encoding(rule: str, batch: Columns, own: Settings) -> Iterator[_Found]:
    found: dict[int, str] = {}
    for name in TEXTS:
        for mark in marks.marks(marks.DAMAGE, batch[name], least=own.damage):
            found.setdefault(mark.row, mark.evidence(name))
    return ((row, (reason,)) for row, reason in found.items())


def _language(rule: str, batch: Columns, own: Settings) -> Iterator[_Found]:
    found: dict[int, _Found] = {}
    for name in ("thinking", "answer"):
        for hit in foreign(
            batch["question"], batch[name], share=own.foreign_share, least=own.foreign_letters
        ):
            around = marks.excerpt(batch[name][hit.row].as_py(), hit.at, hit.at + 1)
            reason = (
                f"{hit.letters:,} letters ({hit.share:.0%}) of the {name} are not in the question's script:"
                f" {hit.group} at character {hit.at:,}: {around}"
            )
            found.setdefault(hit.row, (hit.row, (reason, round(hit.share, 4))))
    yield from found.values()


def _loop(rule: str, batch: Columns, own: Settings) -> Iterator[_Found]:
    for hit in loops(batch["thinking"], width=own.loop_width, share=own.loop_share, turns=own.loop_turns):
        reason = f"{hit.again:.0%} of the runs of {own.loop_width} words in the thinking occurred before"
        if hit.turns > own.loop_turns:
            reason += f", and its end repeats {hit.turns:,} times in a row"
        reason += f"; {hit.times:,} times, first at byte {hit.at:,}: '{marks.one_line(hit.run, 200)}'"
        yield hit.row, (reason, round(hit.again, 4))


_ASKED: dict[str, Callable[[str, Columns, Settings], Iterator[_Found]]] = {
    "failed": _finish, "cut": _finish, "missing": _missing, "too-long": _words, "too-short": _words,
    "multi-part": _in_question, "image": _in_question, "figure": _in_question, "leak": _in_question,
    "encoding": _encoding, "language": _language, "loop": _loop,
}  # fmt: skip
