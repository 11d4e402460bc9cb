"""What `tutelage curate` does: choose from a pool, and say why a record is gone.

Promises: records are chosen by the stage `curate`, so that a verb and a recipe cannot differ; models that
solve are asked through the ledger in the folder, and only about what the cheap stages left.
Does not: choose (see `recipe.jobs.curating` and the room `curate`), or check a file (see `contamination`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.curate.evidence import read_drops
from tutelage.curate.funnel import BY_DIFFICULTY
from tutelage.curate.pool import Pool, is_ours, read_pool
from tutelage.errors import UsageError
from tutelage.plain import some
from tutelage.recipe.collecting import collect_folder, teacher_settings
from tutelage.recipe.given import questions_file, require_apart
from tutelage.recipe.single import run_single
from tutelage.recipe.stage import Progress
from tutelage.records import Problem, Trace, read_records

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
    require_apart(folder, written, [source, *([problems] if problems else []), *verdicts])
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
    if is_ours(Path(source)):
        if problems is not None:
            problems = questions_file(str(problems), folder / "pool.parquet", checker=checker)
        elif checker is not None:
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
