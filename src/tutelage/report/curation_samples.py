"""The evidence of a curation run as its page shows it: records of each rule, and what they were too like.

Promises: a text is shown from its beginning, free of control characters, and a cut one says how much is
missing; no more of a text is looked at than is shown, however long it is; marks are the same from both sides.
Does not: find likenesses (the rule did), or choose samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.report import words
from tutelage.report.fields import entries, number_or_none, text_at
from tutelage.report.summary import Step

Segments = list[tuple[str, bool]]
"""A text in pieces; True: marked."""
TEXT, LINE = 700, 160
"""Characters shown of a text, and of a name."""
# Nothing parts the words of Chinese and Japanese texts: each of their characters is one here.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
_TELLING = 4


def groups(document: Mapping[str, Any], steps: Sequence[Step]) -> list[dict[str, Any]]:
    """`samples` by stage and rule, in the order of the funnel, with how many the rule dropped (None: the
    funnel does not say). Raises UsageError that names a broken sample."""
    counts = {(step.stage, rule): count for step in steps for rule, count in step.reasons.items()}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in counts}
    for where, row in entries(document, "samples"):
        key = text_at(row, "stage", where), text_at(row, "rule", where)
        found.setdefault(key, []).append(_sample(row, where))
    return [
        {
            "stage": cut(stage, LINE),
            "rule": cut(rule, LINE),
            "count": counts.get((stage, rule)),
            "samples": samples,
            "compared": any(sample["other"] for sample in samples),
        }
        for (stage, rule), samples in found.items()
        if samples
    ]


def kept(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`kept_samples`, in file order. Raises UsageError that names a broken one."""
    return [_sample(row, where) for where, row in entries(document, "kept_samples")]


def cut(text: object, most: int = TEXT) -> str:
    """The beginning of `text` for the eye, with a note of how much was cut off."""
    return "".join(piece for piece, _ in _beginning(str(text), most))


def marked(text: str, *others: str) -> Segments:
    """The beginning of `text` in pieces; marked are the words that the beginning of one of `others` has too.

    A word counts by itself if it has four letters or a digit, any word in a run of three that both have. What
    stands between two marked words is marked with them."""
    (shown, _), *note = _beginning(text, TEXT)
    found = list(_WORD.finditer(shown))
    mine = [word.group().casefold() for word in found]
    theirs = [[w.casefold() for w in _WORD.findall(visible(other[:TEXT]))] for other in others]
    known = {word for side in theirs for word in side}
    runs = {run for side in theirs for run in _runs(side)}
    both = [w in known and (len(w) >= _TELLING or any(map(str.isdigit, w))) for w in mine]
    for start, run in enumerate(_runs(mine)):
        if run in runs:
            both[start : start + 3] = [True] * 3
    pieces: Segments = []
    done = 0
    for index, word in enumerate(found):
        if not both[index]:
            continue
        joined = index > 0 and both[index - 1]
        pieces.append((shown[done : word.start()], joined))
        pieces.append((word.group(), True))
        done = word.end()
    pieces.append((shown[done:], False))
    return _joined([*pieces, *note])


def _sample(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A record as it is shown. `other` names what it was found too like, "" where it stands alone."""
    texts = ("question", "text", "matched_text", "reason", "problem_id", "domain", "benchmark", "matched_id")
    raw = {key: row.get(key) or "" for key in texts}
    for key, value in raw.items():
        if not isinstance(value, str):
            raise UsageError(f"{where}.{key} must be text, not {value!r:.60}")
    question, text, matched = raw["question"], raw["text"], raw["matched_text"]
    score, length = number_or_none(row, "score", where), number_or_none(row, "length", where)
    item = f"record {cut(raw['matched_id'], LINE)}" if raw["matched_id"] else "another record"
    if raw["benchmark"]:
        item = f"{cut(raw['benchmark'], LINE)} {cut(raw['matched_id'], LINE)}".strip()
    return {
        "record": cut(text_at(row, "record_id", where), LINE),
        "problem": cut(raw["problem_id"], LINE),
        "domain": cut(raw["domain"], LINE),
        "reason": cut(raw["reason"]),
        "score": "" if score is None else f"{score:.3g}",
        "length": "" if length is None else words.amount(length),
        "question": marked(question, matched),
        "text": marked(text, matched),
        "matched": marked(matched, question, text),
        "other": item if matched or raw["matched_id"] else "",
        "outside": bool(raw["benchmark"]),
    }


def _beginning(text: str, most: int) -> Segments:
    """The first `most` characters, and a note about the others where there are some."""
    note = [(f" … [{len(text) - most:,} more characters]", False)] if len(text) > most else []
    return [(visible(text[:most]), False), *note]


def _runs(side: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    return zip(side, side[1:], side[2:], strict=False)


def _joined(pieces: Segments) -> Segments:
    """Without empty pieces, and neighbours of one kind as one piece."""
    kinds = groupby((piece for piece in pieces if piece[0]), key=itemgetter(1))
    return [("".join(text for text, _ in members), mark) for mark, members in kinds]
