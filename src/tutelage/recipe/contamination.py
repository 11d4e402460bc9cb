"""What `tutelage curate --check` does: look for benchmark items in the rows of a file.

Promises: every row is looked at and none is changed; rows and items that are too short for a detector are
listed; the rows without a hit are written apart, as they were.
Does not: know the detectors (see `curate.detectors`), or choose among rows (see `curating`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import tutelage
from tutelage.curate.benchmarks import Row, questions, read_benchmarks
from tutelage.curate.decontaminate import partly
from tutelage.curate.detectors import Hit, find, hits, shortened
from tutelage.curate.hashed import hashed
from tutelage.curate.meaning import DETECTOR
from tutelage.curate.watch import DETECTORS, Watch, blind_to, by_runs, watch
from tutelage.engines import spread
from tutelage.errors import UsageError
from tutelage.recipe import curation
from tutelage.recipe.files import write_text
from tutelage.recipe.given import require_apart
from tutelage.recipe.jobs.funnel_rules import allowed_lines
from tutelage.recipe.jobs.meaning import look_by_meaning
from tutelage.recipe.stage import Progress
from tutelage.recipe.verifying import judge_settings
from tutelage.report.curation import render_curation
from tutelage.teachers.layouts import ANSWER, THINKING

BATCH = 8192
_CHECKED = {
    "hits": "hits.jsonl",
    "uncheckable": "uncheckable.jsonl",
    "clean": "clean.jsonl",
    "page": "report.html",
}


@dataclass(slots=True)
class _Checked:
    """What a check has seen so far."""

    hits: list[dict[str, Any]] = field(default_factory=list)
    partial: list[dict[str, Any]] = field(default_factory=list)
    uncheckable: list[dict[str, Any]] = field(default_factory=list)
    found: set[str] = field(default_factory=set)
    rows: int = 0
    notes: list[str] = field(default_factory=list)
    asked: dict[str, Any] | None = None


def check_file(
    source: str,
    against: Sequence[str],
    folder: Path,
    *,
    column: str | None = None,
    against_column: str | None = None,
    detectors: Sequence[str] | None = None,
    boilerplate: int | None = 10,
    allow: Path | None = None,
    meaning: Mapping[str, Any] | None = None,
    engine: Any = "local",
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hits of benchmarks in the rows of a file: the document of `curate --check`, which is also written to
    `folder` (hits.jsonl, uncheckable.jsonl, clean.jsonl with the rows that have no hit, report.html).

    Questions are looked at by all detectors, answers and traces (columns of the usual names) by those of
    runs; `meaning` (see `meaning_settings`) then at the questions of rows without a hit. Raises UsageError
    naming file, row and column, and PartialError when a judge could not be asked to the end."""
    require_apart(folder, _CHECKED.values(), [source, *(each.partition("::")[0] for each in against)])
    allowed = allowed_lines(allow) if allow else []
    benchmarks = read_benchmarks(against, against_column)
    ready = watch(
        benchmarks,
        detectors or DETECTORS,
        boilerplate=boilerplate,
        allow=allowed,
    )
    rows = list(questions(source, column))
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    seen = _Checked()
    folder.mkdir(parents=True, exist_ok=True)
    for batch, found in zip(
        batches, spread(partial(_checking, ready), batches, engine=engine, workers=workers), strict=True
    ):
        _note(seen, batch, *found, ready)
        if progress:
            progress(seen.rows, len(rows), f"{len(seen.hits)} hits")
    halves = {hit["id"] for hit in seen.partial if hit["detector"] == "overlap"}
    seen.notes += partly(halves - seen.found)
    if meaning is not None:
        _by_meaning(seen, rows, ready, curation.Meaning(**meaning), folder, progress)
    document = _written(source, folder, rows, seen, ready, [DETECTOR] if meaning is not None else [])
    return {**document, **({"asked": seen.asked} if seen.asked is not None else {})}


def meaning_settings(
    embed: str | None, least: float | None, judge: str | None, url: str | None
) -> dict[str, Any] | None:
    """The settings of `meaning` as options give them; None where it is not asked for. `judge` is written as
    `openai:MODEL` and the like. Raises UsageError."""
    if embed is None:
        given = {"--meaning-least": least, "--judge": judge, "--judge-url": url}
        if option := next((name for name, value in given.items() if value is not None), None):
            raise UsageError(f"tutelage curate: {option} is for --meaning; give --meaning words, or a model")
        return None
    if least is not None and not 0 < least <= 1:
        raise UsageError(f"tutelage curate: --meaning-least {least:g}: it must be above 0 and at most 1")
    try:
        asked = judge_settings(judge, url, {})
    except UsageError as error:
        told = str(error).replace("tutelage verify", "tutelage curate").replace("--teacher", "--judge")
        raise UsageError(told.replace("--base-url", "--judge-url")) from error
    return {"embed": embed, "judge": asked, **({"least": least} if least is not None else {})}


def _by_meaning(
    seen: _Checked,
    rows: Sequence[Row],
    ready: Watch,
    settings: curation.Meaning,
    folder: Path,
    progress: Progress | None,
) -> None:
    """Look at the questions of the rows without a hit."""
    left = [row for row in rows if row.id not in seen.found]
    found = look_by_meaning(
        [row.question for row in left],
        ready,
        settings,
        ledger=folder / "ledger.sqlite",
        progress=progress or (lambda done, total, note: None),
    )
    for hit in found.hits:
        _note_hit(seen, left[hit.row], left[hit.row].column, hit)
    seen.notes += found.notes
    seen.asked = found.desk.metrics() if found.desk is not None else None


_Found = tuple[list[tuple[str, Hit]], list[int]]
"""Hits with the column that they are in, and the words of each question."""


@contextmanager
def _checking(ready: Watch) -> Iterator[Callable[[Sequence[Row]], _Found]]:
    yield partial(_look, ready)


def _look(ready: Watch, batch: Sequence[Row]) -> _Found:
    texts: list[str] = [row.question for row in batch]
    known = hashed(texts)
    found = [(batch[0].column, hit) for hit in hits(texts, known, ready)]
    only = [each for each in ready.detectors if by_runs(each)]
    for name in dict.fromkeys(name for row in batch for name in row.fields if name in (*THINKING, *ANSWER)):
        if name == batch[0].column:
            continue
        texts = [text if isinstance(text := row.fields.get(name), str) else "" for row in batch]
        found += [(name, hit) for hit in find(texts, ready, only)]
    return found, known.sizes.tolist()


def _note(
    seen: _Checked, batch: Sequence[Row], found: Iterable[tuple[str, Hit]], sizes: Sequence[int], ready: Watch
) -> None:
    for column, hit in found:
        _note_hit(seen, batch[hit.row], column, hit)
    for row, size in zip(batch, sizes, strict=True):
        if blind := blind_to(size, ready.detectors):
            seen.uncheckable.append({"id": row.id, "row": row.where, "words": size, "detectors": list(blind)})
    seen.rows += len(batch)


def _note_hit(seen: _Checked, row: Row, column: str, hit: Hit) -> None:
    told = {
        "id": row.id,
        "row": row.where,
        "field": column,
        "detector": hit.detector,
        "score": hit.score,
        "benchmark": hit.benchmark,
        "benchmark_item": hit.item_id,
        "text": shortened(str(row.fields.get(column) or row.question)),
        "benchmark_text": shortened(hit.item),
        "shared": hit.shared,
        "note": hit.note,
    }
    (seen.partial if hit.partial else seen.hits).append(told)
    if not hit.partial:
        seen.found.add(row.id)


def _written(
    source: str, folder: Path, rows: Sequence[Row], seen: _Checked, ready: Watch, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the files of a check; `more` are detectors that were asked beside those of `ready`."""
    short = [
        {"benchmark": name, "benchmark_item": item, "words": size, "detectors": list(blind)}
        for name, item, size, blind in ready.short_items()
    ]
    clean = [row for row in rows if row.id not in seen.found]
    _jsonl(folder / "hits.jsonl", seen.hits)
    _jsonl(folder / "uncheckable.jsonl", seen.uncheckable)
    _jsonl(folder / "clean.jsonl", (dict(row.fields) for row in clean))
    counts = Counter(hit["detector"] for hit in seen.hits)
    document = {
        "file": source,
        "rows": len(rows),
        "contaminated": len(seen.found),
        "detectors": {name: counts[name] for name in (*ready.detectors, *more)},
        "benchmarks": [each.as_json() for each in ready.benchmarks],
        "boilerplate": dict(ready.left_out),
        "hits": seen.hits,
        "partial": seen.partial,
        "uncheckable": seen.uncheckable,
        "uncheckable_items": short,
        "notes": seen.notes,
        "outputs": {name: str((folder / file).absolute()) for name, file in _CHECKED.items()},
    }
    render_curation(_page(document, rows, clean), folder / "report.html")
    return document


def _page(document: Mapping[str, Any], rows: Sequence[Row], clean: Sequence[Row]) -> dict[str, Any]:
    """The check as a document of the curation page."""
    blind = Counter(name for each in document["uncheckable"] for name in each["detectors"])
    first: dict[str, str] = {}
    for hit in document["hits"]:
        first.setdefault(hit["id"], hit["detector"])
    reasons = Counter(first.values())
    shown: Counter[str] = Counter()
    samples = []
    for hit in document["hits"]:
        shown[hit["detector"]] += 1
        if shown[hit["detector"]] <= 5 and first[hit["id"]] == hit["detector"]:
            samples.append(
                {
                    "stage": "decontamination",
                    "rule": hit["detector"],
                    "record_id": hit["id"],
                    "problem_id": hit["id"],
                    "question": hit["text"],
                    "text": "",
                    "reason": f"its {hit['field']}"
                    + (f" shares: {hit['shared']}" if hit["shared"] else "")
                    + (f", {hit['note']}" if hit["note"] else ""),
                    "score": hit["score"],
                    "benchmark": hit["benchmark"],
                    "matched_id": hit["benchmark_item"],
                    "matched_text": hit["benchmark_text"],
                }
            )
    return {
        "title": f"Contamination of {Path(document['file']).name}",
        "about": "Every row was compared with every item of the benchmarks, by every detector. Nothing was "
        "removed from the file.",
        "source": {"name": document["file"], "traces": len(rows), "problems": len(rows)},
        "method": "check",
        "seed": 0,
        "kept": {"traces": len(clean), "problems": len(clean)},
        "funnel": [
            {
                "stage": "decontamination",
                "kept": len(clean),
                "dropped": len(rows) - len(clean),
                "reasons": dict(reasons.most_common()),
            }
        ],
        "samples": samples,
        "notes": document["notes"],
        "benchmarks": document["benchmarks"],
        "detectors": [
            {"detector": name, "hits": count, "uncheckable": blind[name]}
            for name, count in document["detectors"].items()
        ],
        "versions": {"tutelage": tutelage.__version__},
    }


def _jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    # A lone surrogate is no text in UTF-8, but it has a spelling in JSON, which this is.
    write_text(path, lines.encode("utf-8", "backslashreplace").decode())


def _row(hit: Mapping[str, Any]) -> str:
    return str(hit["row"]) if hit["row"] == hit["id"] else f"{hit['row']} ({hit['id']})"


def check_text(told: Mapping[str, Any], most: int = 20) -> str:
    """The document of `check_file` as lines for people."""
    counts = ", ".join(f"{name} {count:,}" for name, count in told["detectors"].items())
    lines = [f"{told['rows']:,} rows, {told['contaminated']:,} with a hit (hits by detector: {counts})"]
    lines += [
        f"{_row(hit)} {hit['detector']} {hit['score']:g}: {hit['benchmark']} {hit['benchmark_item']}"
        for hit in islice(told["hits"], most)
    ]
    if len(told["hits"]) > most:
        lines.append(f"... and {len(told['hits']) - most:,} more")
    lines.append(f"{len(told['uncheckable']):,} rows are too short for some detector")
    lines += [f"note: {note}" for note in told["notes"]]
    lines += [f"{each['name']}: {each['items']:,} items, {each['revision']}" for each in told["benchmarks"]]
    return "\n".join([*lines, *(f"{name}: {path}" for name, path in told["outputs"].items())])
