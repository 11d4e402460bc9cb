"""The settings of the stage `curate` as the room `curate` takes them.

Promises: a setting that does not fit is named, with what would fit.
Does not: choose (see `curating`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tutelage.curate.benchmarks import Benchmark
from tutelage.curate.diversity import PreRule
from tutelage.curate.funnel import Rules
from tutelage.curate.quality import Settings as Quality
from tutelage.curate.watch import Thresholds, Watch, watch
from tutelage.errors import UsageError
from tutelage.plain import some, visible
from tutelage.recipe import curation
from tutelage.records import Problem


def rules_of(config: curation.Curate, seed: int | None) -> Rules:
    """The rules of the funnel."""
    return Rules(
        method=config.method,
        target=config.target,
        seed=config.seed if config.seed is not None else seed or 0,
        order=config.order,
        near=config.near,
        solved=config.solved,
        low=config.low,
        high=config.high,
        bands=config.bands,
        missing=config.missing,
        hopeless=config.hopeless,
        keep=config.keep,
        prefer=config.prefer,
        per_problem=config.per_problem,
        first=tuple(PreRule(**each.model_dump()) for each in config.first),
        weights=config.weights,
        long=config.long,
        short=config.short,
        border=config.border,
    )


def quality_settings(given: Mapping[str, Any]) -> Quality:
    """The quality rules with what is set otherwise.

    Raises UsageError for a setting that they do not have, and for a value of another type."""
    names = [each.name for each in fields(Quality)]
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"quality: there is no setting {name!r}{meant} settings: {', '.join(names)}")
    try:
        return TypeAdapter(Quality).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"quality.{first['loc'][0]}: {first['msg']}; it is {first['input']!r}") from error


def watch_settings(config: curation.Curate, benchmarks: Sequence[Benchmark]) -> Watch | None:
    """The benchmarks made ready; None where there is none."""
    if not benchmarks:
        return None
    return watch(
        benchmarks,
        config.detectors,
        thresholds=Thresholds(**config.thresholds.model_dump()),
        boilerplate=config.boilerplate,
        allow=allowed_lines(Path(config.allow)) if config.allow else (),
    )


def allowed_lines(path: Path) -> list[str]:
    """The lines of a file of boilerplate. Raises UsageError for one that is not there, or not UTF-8."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"allow: {path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"allow: {path}: not UTF-8 text (byte {error.start})") from error


def by_field(problems: Sequence[Problem], name: str) -> dict[str, str]:
    """The text of the field `name` of each problem's metadata, by problem id, as the domain to sample by.

    Raises UsageError for a problem without it: what has no label would be drawn as one domain of its own."""
    for problem in problems:
        if problem.metadata.get(name) is None:
            there = some([visible(key)[:40] for key in sorted(problem.metadata)], 8) or "no field at all"
            raise UsageError(
                f"domains: problem {problem.id!r} has no {name!r} in its metadata ({there}); name a field"
                " that every problem has"
            )
    return {problem.id: str(problem.metadata[name]) for problem in problems}
