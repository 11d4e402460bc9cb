"""What `tutelage curate` does: choose from a pool, check a file against benchmarks, say why a record is gone.

Promises: records are chosen by the stage `curate`, so that a verb and a recipe cannot differ; models that
solve are asked through the ledger in the folder, and only about what the cheap stages left; a check looks at
every row and changes none of them.
Does not: choose (see `recipe.jobs.curating` and the room `curate`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import tutelage
from tutelage.curate.benchmarks import Row, questions, read_benchmarks
from tutelage.curate.detectors import DETECTORS, Hit, Watch, blind_to, by_runs, find, hits, shortened, watch
from tutelage.curate.evidence import read_drops
from tutelage.curate.funnel import BY_DIFFICULTY
from tutelage.curate.hashed import hashed
from tutelage.curate.meaning import DETECTOR
from tutelage.curate.pool import Pool, is_ours, read_pool
from tutelage.engines import spread
from tutelage.errors import UsageError
from tutelage.plain import some
from tutelage.recipe import curation
from tutelage.recipe.collecting import collect_folder, teacher_settings
from tutelage.recipe.files import write_text
from tutelage.recipe.jobs.curating import allowed_lines
from tutelage.recipe.jobs.meaning import look_by_meaning
from tutelage.recipe.single import run_single
from tutelage.recipe.stage import Progress
from tutelage.recipe.verifying import judge_settings
from tutelage.records import Problem, Trace, read_records
from tutelage.report.curation import render_curation
from tutelage.teachers.layouts import ANSWER, THINKING

BATCH = 8192
_PLACES = {
    "problems": "problems.parquet",
    "drops": "drops.parquet",
    "curation": "curation.json",
    "page": "report.html",
}


def curate_folder(
    source: str,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    problems: Path | None = None,
    verdicts: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    checker: str | None = None,
    solvers: Sequence[str] = (),
    solver_url: str | None = None,
    attempts: int = 1,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Choose from the traces of `source` into `folder`; gives the document of the verb.

    `solvers` are texts `NAME=VERDICTS.parquet`, or teachers (`openai:MODEL` and the like, at `solver_url`)
    that attempt each problem `attempts` times. Raises UsageError, and PartialError when a solver could not be
    asked to the end."""
    written = ["traces.parquet", *_PLACES.values()]
    _require_apart(folder, written, [source, *([problems] if problems else []), *verdicts])
    known = _named([each for each in solvers if "=" in each])
    models = {each: _solver(each, solver_url) for each in solvers if "=" not in each}
    if not models and (solver_url is not None or attempts != 1):
        raise UsageError("--solver-url and --attempts are for a model that is asked: --solver openai:MODEL")
    method = _last(overrides, "method") or settings["method"]
    if models and method not in BY_DIFFICULTY:
        raise UsageError(
            f"--solver {next(iter(models))}: the method {method} takes no account of solvers, so that none is"
            " asked; leave it out"
        )
    if checker is not None and is_ours(Path(source)):
        raise UsageError(
            f"{source}: holds traces of ours, whose problems name their checkers; leave out --checker"
        )
    pool = read_pool(source, folder, problems=problems, columns=columns, checker=checker or "number")
    judged = [*verdicts, *([str(pool.verdicts)] if pool.verdicts else [])]
    if models:
        with tempfile.TemporaryDirectory(prefix="tutelage-curate-") as name:
            cheap = [*overrides, *_CHEAP]
            result = _stage(pool, Path(name), {**settings, "method": "full"}, judged, {}, cheap, progress)
            left = read_records(Path(result["outputs"]["problems"]), Problem)
        for model, teacher in models.items():
            known[model] = _attempted(model, teacher, left, folder, attempts, progress)
    result = _stage(pool, folder, settings, judged, known, overrides, progress)
    return _document(result)


# What comes after the solvers, or costs money, has no say in what they are asked.
_CHEAP = (
    "method=full", "target=null", "keep=all", "solvers={}", "solved=unsolved", "low=0", "high=1",
    "bands=null", "rubric=null", "domains=own", "labeller=null", "subjects=null", "first=[]", "weights={}",
    "meaning=null",
)  # fmt: skip


def _last(overrides: Sequence[str], key: str) -> str | None:
    """The value of the last text `key=value`."""
    found = [each.partition("=")[2].strip() for each in overrides if each.partition("=")[0].strip() == key]
    return found[-1] if found else None


def _require_apart(folder: Path, written: Iterable[str], read: Iterable[str | Path]) -> None:
    """Raise UsageError where a file that is read would be replaced by one that is written."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file; give a folder")
    places = {(folder / name).resolve() for name in written}
    for each in read:
        if Path(each).resolve() in places:
            raise UsageError(f"--out {folder}: {each} would be overwritten; give another folder")


def _named(texts: Sequence[str]) -> dict[str, str]:
    """Files of verdicts by the name of their solver."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not Path(path).is_file():
            raise UsageError(f"--solver {text}: {path}: no such file; give verdicts as verify writes them")
        if name in found:
            raise UsageError(f"--solver {text}: {name!r} is named twice; give each solver a name of its own")
        found[name] = path
    return found


def _solver(model: str, url: str | None) -> dict[str, Any]:
    """The settings of a solver that is asked. Raises UsageError in the words of this verb."""
    try:
        return teacher_settings(model, url, {})
    except UsageError as error:
        told = str(error).replace("--teacher", "--solver").replace("--base-url", "--solver-url")
        if ":" not in model:
            told = f"--solver {model}: write NAME=FILE (verdicts), or KIND:MODEL, such as openai:{model}"
        raise UsageError(told) from error


def _attempted(
    model: str,
    teacher: Mapping[str, Any],
    problems: Sequence[Problem],
    folder: Path,
    attempts: int,
    progress: Progress | None,
) -> str:
    """The verdicts on a model's attempts, bought where they are not in the ledger yet."""
    own = folder / "solvers" / re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-")
    collect_folder(own, problems, {"teacher": teacher, "samples": attempts}, progress=progress)
    done = run_single(
        "verify",
        {},
        own / "data/verdicts.parquet",
        inputs={"problems": str(own / "data/problems.parquet"), "traces": str(own / "data/traces.parquet")},
        progress=progress,
    )
    return str(done["outputs"]["verdicts"])


def _stage(
    pool: Pool,
    folder: Path,
    settings: Mapping[str, Any],
    verdicts: Sequence[str],
    solvers: Mapping[str, str],
    overrides: Sequence[str],
    progress: Progress | None,
) -> dict[str, Any]:
    # A solver's name may hold signs that a setting's name may not; only values are files.
    named = (
        {"solvers": {name: f"file:{Path(path).absolute()}" for name, path in solvers.items()}}
        if solvers
        else {}
    )
    return run_single(
        "curate",
        {**settings, **named},
        folder / "traces.parquet",
        inputs={
            "problems": [str(pool.problems.absolute())],
            "traces": [str(pool.traces.absolute())],
            "verdicts": [str(Path(each).absolute()) for each in verdicts] or None,
        },
        ledger=folder / "ledger.sqlite",
        seed=settings.get("seed") or 0,
        overrides=overrides,
        progress=progress,
        places={name: folder / file for name, file in _PLACES.items()},
    )


def _document(result: Mapping[str, Any]) -> dict[str, Any]:
    metrics = result["metrics"]
    return {
        "method": metrics["method"],
        "target": metrics["target"],
        "seed": metrics["seed"],
        "kept": metrics["kept"],
        "problems": metrics["problems"],
        "stages": [{**row, "stage": row["stage"].partition(": ")[2]} for row in metrics["funnel"]],
        "notes": metrics["notes"],
        "outputs": result["outputs"],
    }


def as_text(told: Mapping[str, Any]) -> str:
    """The document of `curate_folder` as lines for people."""
    rows = told["stages"]
    wide = max(len(row["stage"]) for row in rows)
    lines = [
        f"{row['stage']:<{wide}}  {row['kept']:>10,} kept  {row['dropped']:>10,} dropped"
        + (
            f": {some([f'{name} {count:,}' for name, count in row['reasons'].items()])}"
            if row["dropped"]
            else ""
        )
        for row in rows
    ]
    lines += [f"note: {note}" for note in told["notes"]]
    return "\n".join([*lines, *(f"{name}: {path}" for name, path in told["outputs"].items())])


# --- check ---

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
    _require_apart(folder, _CHECKED.values(), [source, *(each.partition("::")[0] for each in against)])
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


# --- why ---


def why(folder: Path, name: str) -> dict[str, Any]:
    """What became of a record (a trace, or all traces of a problem) of an earlier `curate --out FOLDER`.

    Raises UsageError when the folder is none, or the record was not in the pool."""
    drops = read_drops(folder / "drops.parquet", name)
    kept = [
        {"record_id": trace.id, "problem_id": trace.problem_id}
        for trace in read_records(folder / "traces.parquet", Trace)
        if name in (trace.id, trace.problem_id)
    ]
    if not drops and not kept:
        raise UsageError(f"--why {name}: no record of the pool that {folder} was chosen from has this id")
    return {"id": name, "chosen": kept, "dropped": [asdict(drop) for drop in drops]}


def why_text(told: Mapping[str, Any]) -> str:
    """The document of `why` as lines for people."""
    lines = [f"{each['record_id']}: chosen" for each in told["chosen"]]
    for drop in told["dropped"]:
        lines.append(f"{drop['record_id']}: dropped at {drop['stage']} by {drop['rule']}: {drop['reason']}")
        if drop["matched_text"]:
            of = f"{drop['benchmark']} {drop['matched_id']}".strip()
            lines.append(f"  {of}: {' '.join(drop['matched_text'].split())}")
    return "\n".join(lines)
