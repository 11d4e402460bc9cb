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

Promises: a rule is one that `Settings` can switch off or tune; a row's faults depend on that row alone; the first
rule in this order that a row breaks is its fault; evidence says where; a text above `most_characters` is not
searched by any rule (as long as `too-long` is on), so that one monster costs nothing.
Does not: drop anything, or judge the answer: a wrong answer breaks no rule here.

Source of the rules: s1 (arXiv 2501.19393, section 2.2) and OpenThoughts (arXiv 2506.04178); the marks of each are
in `marks`. Neither looks for loops, broken characters or mixed scripts. OpenThoughts3 found that filters of
answers gained nothing for a student of 7B, which says little of these: its teacher hardly ever loops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tutelage.curate import marks
from tutelage.curate.columnar import as_strings
from tutelage.curate.loops import loops, word_counts
from tutelage.curate.scripts import foreign
from tutelage.errors import UsageError
from tutelage.plain import some
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
_OPTIONAL = ("gold", "source")
# Blanks of Unicode count as blanks, and so do characters without width.
_SOMETHING = r"[^\x00-\x20\x7F\pZ\x{200B}-\x{200F}\x{2060}\x{FEFF}]"
_ANSWER = re.compile(marks.LEAK)
_AFTER = 40


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
    """How strict the rules are. Raises UsageError for an unknown rule and a number out of its range."""

    off: tuple[str, ...] = ()
    """Rules that are not asked."""
    failed: tuple[str, ...] = FAILED
    """Finish reasons of a failed call, in small letters. What counts as cut is known (see `teachers`)."""
    need_thinking: bool = False
    """Whether thinking that is missing is a fault like a missing answer."""
    most_characters: int = 2_000_000
    """Of any text. Some 500,000 tokens, ten times the longest trace that a teacher of today writes."""
    least_words: int | None = None
    """Of thinking, as in `loops`: between blanks."""
    most_words: int | None = None
    asy_sources: tuple[str, ...] = ()
    """Sources whose drawings in Asymptote are kept: s1 exempted AIME, where the text suffices."""
    art_lines: int | None = 3
    """So many lines drawn with characters make a picture; None: none do."""
    damage: int = 1
    """So many broken characters in one text are a fault. The default lets none pass: a pool is large."""
    foreign_share: float = 0.05
    """Of the letters of thinking or answer, above which other scripts than the question's are a fault."""
    foreign_letters: int = 20
    """The fewest such letters: a name or a quoted word is no fault."""
    loop_width: int = 12
    loop_share: float = 0.3
    """Of runs of `loop_width` words that occurred before. Measured: of 7,473 human solutions of GSM8K the highest
    share is 0.11 (0.26 where sub-questions are told twice), of five long traces of a teacher 0.01; a text that is
    there twice has about 0.5."""
    loop_turns: int = 4
    """An end that repeats more often than this, in a row, is a loop, however long the text before it."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.off if name not in RULES]
        if unknown:
            raise UsageError(
                f"quality.off: there is no rule {unknown[0]!r}; the rules are {', '.join(RULES)}"
            )
        least = {"most_characters": 1, "art_lines": 1, "damage": 1, "foreign_letters": 1, "loop_turns": 1}
        least |= {"least_words": 0, "most_words": 0, "loop_width": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"quality.{name} is {value}; it must be at least {low}")
        for name in ("foreign_share", "loop_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"quality.{name} is {getattr(self, name)}; it must be from 0 to 1")
        if (
            self.least_words is not None
            and self.most_words is not None
            and self.least_words > self.most_words
        ):
            raise UsageError(
                f"quality.least_words is {self.least_words}, more than most_words ({self.most_words}); no trace"
                " could pass"
            )


def faults(batch: pa.Table, settings: Settings | None = None) -> list[Fault]:
    """For each row that breaks a rule the first one, in the order of `RULES`; rows ascending.

    `batch` has the columns of `TEXTS` and `finish_reason`, and may have `gold` and `source` (texts, nulls are
    fine). Raises UsageError for a column that is missing or holds no texts."""
    first: dict[int, Fault] = {}
    for fault in all_faults(batch, settings):
        first.setdefault(fault.row, fault)
    return list(first.values())


def all_faults(batch: pa.Table, settings: Settings | None = None) -> list[Fault]:
    """Every rule that a row breaks, once each, by row, then in the order of `RULES`: as `faults`, for counts of
    what each rule alone would drop. A row above `most_characters` breaks that rule and those before it only."""
    own = settings or Settings()
    whole = _read(batch)
    rest, found = whole, []
    if "too-long" not in own.off:
        found += list(_too_large(whole, own))
        rest = whole.without([fault.row for fault in found])
    for rule, ask in _ON_ALL.items():
        if rule not in own.off:
            found += ask(whole, own)
    for rule, ask in _ON_REST.items():
        if rule not in own.off:
            found += [
                Fault(int(rest.rows[each.row]), rule, each.reason, each.score) for each in ask(rest, own)
            ]
    return sorted(found, key=lambda fault: (fault.row, RULES.index(fault.rule)))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Columns without nulls, and the numbers of their rows in the batch that was given."""

    rows: NDArray[np.int64]
    columns: dict[str, pa.Array]

    def __getitem__(self, name: str) -> pa.Array:
        return self.columns[name]

    def without(self, left_out: list[int]) -> _Batch:
        if not left_out:
            return self
        kept = np.setdiff1d(self.rows, left_out)
        at = pa.array(kept)
        return _Batch(kept, {name: column.take(at) for name, column in self.columns.items()})


def _read(batch: pa.Table) -> _Batch:
    columns = {}
    for name in (*TEXTS, "finish_reason", *_OPTIONAL):
        if name not in batch.column_names:
            if name in _OPTIONAL:
                columns[name] = pa.array([""] * len(batch), pa.large_string())
                continue
            raise UsageError(
                f"the batch has no column {name!r}; it has {some(batch.column_names, 12) or 'none'}"
            )
        column = batch.column(name)
        of = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not any(fits(of) for fits in _TEXTS):
            raise UsageError(f"column {name!r} holds {column.type}; it must hold texts")
        columns[name] = as_strings(column)
    return _Batch(np.arange(len(batch)), columns)


_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


def _too_large(batch: _Batch, own: Settings) -> Iterator[Fault]:
    taken: set[int] = set()
    for name in TEXTS:
        # A text has at most as many characters as bytes, and those need not be counted.
        large = np.flatnonzero(pc.binary_length(batch[name]).to_numpy() > own.most_characters)
        for row in large.tolist():
            size = pc.utf8_length(batch[name][row]).as_py()
            if size > own.most_characters and row not in taken:
                taken.add(row)
                reason = f"the {name} has {size:,} characters; at most {own.most_characters:,} are sane"
                yield Fault(row, "too-long", reason, float(size))


def _finish(wrong: Callable[[str], bool], rule: str, said: str, batch: _Batch) -> Iterator[Fault]:
    column = batch["finish_reason"].dictionary_encode()
    names = column.dictionary.to_pylist()
    bad = np.array([wrong(name.strip().lower()) for name in names], np.bool_)
    codes = column.indices.to_numpy()
    for row in np.flatnonzero(bad[codes]).tolist() if len(codes) else ():
        yield Fault(row, rule, f"finish_reason is '{marks.one_line(names[codes[row]], 60)}': {said}")


def _failed(batch: _Batch, own: Settings) -> Iterator[Fault]:
    return _finish(lambda name: name in own.failed, "failed", "the call failed", batch)


def _cut(batch: _Batch, own: Settings) -> Iterator[Fault]:
    return _finish(is_truncated, "cut", "it ran into a limit", batch)


def _missing(batch: _Batch, own: Settings) -> Iterator[Fault]:
    empty: dict[int, list[str]] = {}
    for name in TEXTS:
        if name != "thinking" or own.need_thinking:
            for row in np.flatnonzero(~marks.has(_SOMETHING, batch[name])).tolist():
                empty.setdefault(row, []).append(name)
    for row, names in empty.items():
        yield Fault(row, "missing", f"no {' and no '.join(names)}")


def _too_long(batch: _Batch, own: Settings) -> Iterator[Fault]:
    if (most := own.most_words) is not None:
        counts = word_counts(batch["thinking"])
        for row in np.flatnonzero(counts > most).tolist():
            reason = f"{counts[row]:,} words of thinking; at most {most:,} are wanted"
            yield Fault(row, "too-long", reason, float(counts[row]))


def _too_short(batch: _Batch, own: Settings) -> Iterator[Fault]:
    if (least := own.least_words) is not None:
        counts = word_counts(batch["thinking"])
        for row in np.flatnonzero(counts < least).tolist():
            reason = f"{counts[row]:,} words of thinking; at least {least:,} are wanted"
            yield Fault(row, "too-short", reason, float(counts[row]))


def _multi_part(batch: _Batch, own: Settings) -> Iterator[Fault]:
    for mark in marks.marks(marks.PARTS, batch["question"]):
        yield Fault(mark.row, "multi-part", mark.evidence("question"))


def _image(batch: _Batch, own: Settings) -> Iterator[Fault]:
    found: dict[int, Fault] = {}
    exempt = pc.is_in(batch["source"], value_set=pa.array(own.asy_sources, pa.large_string())).to_pylist()
    for pattern in (marks.IMAGE, marks.ASY):
        for mark in marks.marks(pattern, batch["question"]):
            if pattern != marks.ASY or not exempt[mark.row]:
                found.setdefault(mark.row, Fault(mark.row, "image", mark.evidence("question")))
    if own.art_lines is not None:
        for mark in marks.marks(marks.ART, batch["question"], least=own.art_lines):
            reason = f"lines drawn with characters: {mark.evidence('question')}"
            found.setdefault(mark.row, Fault(mark.row, "image", reason))
    yield from found.values()


def _figure(batch: _Batch, own: Settings) -> Iterator[Fault]:
    drawn = marks.has(marks.DRAWN, batch["question"])
    for mark in marks.marks(marks.FIGURE, batch["question"]):
        if not drawn[mark.row]:
            yield Fault(mark.row, "figure", mark.evidence("question"))


def _leak(batch: _Batch, own: Settings) -> Iterator[Fault]:
    for mark in marks.marks(marks.LEAK, batch["question"]):
        gold = batch["gold"][mark.row].as_py().strip().casefold()
        for begin, end in [found.span() for found in _ANSWER.finditer(mark.text)]:
            if _tells(mark.text[end - 1 :][: len(gold) + _AFTER].casefold(), gold):
                around = marks.excerpt(mark.text, begin, end)
                yield Fault(mark.row, "leak", f"an answer in the question at character {begin:,}: {around}")
                break


def _tells(said: str, gold: str) -> bool:
    """Whether what is `said` after "answer:" is an answer, and no place for one. With a known answer it is
    that one alone: "Answer: A, B, C or D" tells nothing."""
    if not gold:
        return not said.startswith((*"_[<{?.(", "\\boxed"))
    said = said.removeprefix("\\boxed{")
    return said.startswith(gold) and not said[len(gold) :][:1].isalnum()


def _encoding(batch: _Batch, own: Settings) -> Iterator[Fault]:
    found: dict[int, Fault] = {}
    for name in TEXTS:
        for mark in marks.marks(marks.DAMAGE, batch[name], least=own.damage):
            found.setdefault(mark.row, Fault(mark.row, "encoding", mark.evidence(name)))
    yield from found.values()


def _language(batch: _Batch, own: Settings) -> Iterator[Fault]:
    found: dict[int, Fault] = {}
    for name in ("thinking", "answer"):
        for hit in foreign(
            batch["question"], batch[name], share=own.foreign_share, least=own.foreign_letters
        ):
            around = marks.excerpt(batch[name][hit.row].as_py(), hit.at, hit.at + 1)
            reason = (
                f"{hit.letters:,} letters ({hit.share:.0%}) of the {name} are in another script than the question:"
                f" {hit.group} at character {hit.at:,}: {around}"
            )
            found.setdefault(hit.row, Fault(hit.row, "language", reason, round(hit.share, 4)))
    yield from found.values()


def _loop(batch: _Batch, own: Settings) -> Iterator[Fault]:
    for hit in loops(batch["thinking"], width=own.loop_width, share=own.loop_share, turns=own.loop_turns):
        run = f"'{marks.one_line(hit.run, 200)}'"
        reason = f"{hit.again:.0%} of the runs of {own.loop_width} words in the thinking occurred before"
        if hit.turns > own.loop_turns:
            reason += f", its end repeats {hit.turns:,} times in a row"
        yield Fault(hit.row, "loop", f"{reason}; {hit.times:,} times: {run}", round(hit.again, 4))


_Ask = Callable[[_Batch, Settings], Iterator[Fault]]
_ON_ALL: dict[str, _Ask] = {"failed": _failed, "cut": _cut}
_ON_REST: dict[str, _Ask] = {
    "missing": _missing,
    "too-long": _too_long,
    "too-short": _too_short,
    "multi-part": _multi_part,
    "image": _image,
    "figure": _figure,
    "leak": _leak,
    "encoding": _encoding,
    "language": _language,
    "loop": _loop,
}
