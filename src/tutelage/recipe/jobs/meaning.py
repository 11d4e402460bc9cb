"""The detector `meaning` as settings describe it, for the stage `curate` and for the check of a file.

Promises: what the judge is asked goes through the ledger and the judge's own budget; where the judge cannot
be asked to the end, that is raised, since half of its answers are another choice; questions that stayed
undecided are counted in a note, with the reasons.
Does not: embed or judge (see `curate.meaning`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.curate.detectors import Hit
from tutelage.curate.embeddings import embed_by
from tutelage.curate.meaning import meaning_hits
from tutelage.curate.watch import Watch
from tutelage.plain import some
from tutelage.recipe import curation
from tutelage.recipe.jobs.asking import JudgeDesk, judge_teacher
from tutelage.recipe.stage import Progress
from tutelage.verify.llm_judge import NoReply


@dataclass(frozen=True, slots=True)
class Meant:
    """The hits, the desk of the judge (None: there is none), and what is to be said to people."""

    hits: list[Hit]
    desk: JudgeDesk | None
    notes: list[str]


def look_by_meaning(
    texts: Sequence[str], against: Watch, settings: curation.Meaning, *, ledger: Path, progress: Progress
) -> Meant:
    """The hits among `texts`. Raises UsageError for a model or a judge that cannot be used, and what stopped
    the judge."""
    desk = JudgeDesk(judge_teacher(settings.judge), ledger, progress) if settings.judge is not None else None

    def ask(prompts: Sequence[str]) -> list[str | NoReply | None]:
        assert desk is not None
        replies = desk.ask(prompts)
        if desk.error is not None:
            raise desk.error
        return replies

    items = [question for benchmark in against.benchmarks for _, question in benchmark.items]
    hits = meaning_hits(
        texts,
        against,
        embed_by(settings.embed, items),
        least=settings.least,
        ask=ask if desk is not None else None,
        progress=progress,
    )
    reasons = Counter(hit.note.partition(": ")[2] for hit in hits if hit.partial)
    notes = []
    if reasons:
        told = some([f"{reason} {count:,}" for reason, count in reasons.most_common()])
        notes.append(
            f"meaning: {reasons.total():,} questions near a benchmark's item are undecided and were not"
            f" dropped ({told})"
        )
    return Meant(hits, desk, notes)
