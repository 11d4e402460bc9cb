"""One self-contained HTML page for a run of curation: what went in, what stayed, and why the rest did not.

Promises: as for the page of a run, nothing is fetched, no text becomes markup, a section without data is left
out, the file is written whole or not at all; no scripts. A drop that names what it is too like stands beside
it, with the words that both have marked; a text that is cut says how much is missing.
Does not: decide or count (the document does), check one count against another, or draw (see
`curation_plots`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.report import plots, svg, words
from tutelage.report.curation_plots import Part, bars, histogram
from tutelage.report.curation_samples import LINE, TEXT, cut, groups, kept
from tutelage.report.fields import counts_at, entries, number_at, number_or_none, text_at
from tutelage.report.parts import asset, digest, flat, mapping, write_page
from tutelage.report.summary import Step, read_funnel

DOMAINS = 14
"""Rows of the picture of domains; where there are more, the last one holds all others."""
_SIDES = ("before", "after")
_WIDTHS = (plots.WIDE, plots.NARROW)
_STYLE = """
svg .bar.before { fill: var(--grey); } svg .bar.after { fill: var(--blue); }
.rule td:first-child { padding-left: 18px; color: var(--soft); }
.example { margin: 10px 0 26px; }
"""


def render_curation(document: Mapping[str, Any], path: Path) -> None:
    """Write the page of a curation run at `path`; `document` is the content of `curation.json`.

    Raises UsageError for a broken entry, naming it, and StorageError when the disk refuses."""
    write_page(path, curation_page(document))


def curation_page(document: Mapping[str, Any]) -> str:
    """The HTML text that `render_curation` writes."""
    try:
        return _page(document)
    except UsageError as error:
        # The readers of fields name another file, and a key of the document can hold line breaks.
        said = " ".join(visible(error).removeprefix("summary: ").removeprefix(".").split())
        raise UsageError(f"curation.json: {said:.300}") from error


def _page(document: Mapping[str, Any]) -> str:
    steps = read_funnel(document)
    for index, step in enumerate(steps):
        _no_less_than_0(f"funnel[{index}]", step.kept, step.dropped, *step.reasons.values())
    (largest, others), (lengths, edges, unit) = _domains(document), _lengths(document)
    domains = [*largest, *others]
    # A check drops nothing: it has no funnel, and its examples were found.
    check = document.get("method") == "check"
    style = asset("page.css") + _STYLE
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(asset("curation.html"))
    return template.render(
        policy=f"default-src 'none'; style-src '{digest(style)}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        words=words,
        cut=lambda name: cut(name, LINE),
        share=lambda part, whole: words.percent(part / whole) if whole else "",
        title=cut(text_at(document, "title", ""), LINE),
        about=cut(document.get("about") or "", 4 * TEXT),
        sentences=(_found if check else _sentences)(
            mapping(document, "source"), mapping(document, "kept"), steps
        ),
        facts="" if check else _facts(document),
        lost="found" if check else "dropped",
        notes=[cut(note) for note in _list(document, "notes", "")],
        steps=steps,
        funnels=[plots.funnel([_told(step, width) for step in steps], width) for width in _WIDTHS]
        if steps and not check
        else [],
        domains=domains,
        domain_bars=[bars(domains, width) for width in _WIDTHS] if domains else [],
        moved=_moved(largest),
        lengths=lengths,
        unit=unit,
        columns=[histogram(lengths, edges, unit, width) for width in _WIDTHS] if lengths else [],
        middles=[_middle(lengths, f"{side}_share") for side in _SIDES],
        benchmarks=_rows(document, "benchmarks", ("name", "revision"), ("items",)),
        detectors=_rows(document, "detectors", ("detector",), ("hits", "uncheckable")),
        groups=groups(document, steps),
        kept=kept(document),
        settings=[(cut(name, LINE), cut(value)) for name, value in flat(mapping(document, "settings"))],
        versions=[(cut(name, LINE), cut(value)) for name, value in flat(mapping(document, "versions"))],
    )


def _sentences(source: Mapping[str, Any], chosen: Mapping[str, Any], steps: Sequence[Step]) -> list[str]:
    """What came in and what stayed; then what dropped most of the rest."""
    traces, problems = (_count(source, key, "source") for key in ("traces", "problems"))
    left, of = (_count(chosen, key, "kept") for key in ("traces", "problems"))
    share = f" ({words.percent(left / traces)})" if traces else ""
    name = cut(text_at(source, "name", "source"), LINE)
    told = [
        f"Of {traces:,} traces ({problems:,} problems) in {name}, {left:,}{share} were kept, "
        f"of {of:,} different problems."
    ]
    losses = sorted((step for step in steps if step.dropped), key=lambda step: -step.dropped)
    if losses:
        first, *others = [f"{cut(step.stage, LINE)} ({step.dropped:,})" for step in losses]
        most = 2 * losses[0].dropped > sum(step.dropped for step in losses)
        then = f", then by {words.listing(others, 3)}" if others else ""
        told.append(f"{'Most' if most else 'The largest part'} of the rest was dropped by {first}{then}.")
    return told


def _found(source: Mapping[str, Any], clean: Mapping[str, Any], steps: Sequence[Step]) -> list[str]:
    """Of a check: how many rows have a hit, and which detector is the strongest evidence."""
    rows, left = _count(source, "traces", "source"), _count(clean, "traces", "kept")
    name = cut(text_at(source, "name", "source"), LINE)
    share = f" ({words.percent((rows - left) / rows)})" if rows else ""
    have = f"{rows - left:,}{share} have something in common with an item of a test set"
    told = [f"Of {rows:,} rows of {name}, {have}."]
    by = [
        f"{cut(rule, LINE)} ({words.amount(count)})"
        for step in steps
        for rule, count in step.reasons.items()
        if count
    ]
    if by:
        told.append(f"The strongest evidence of each is by {words.listing(by, 6)}.")
    return told


def _facts(document: Mapping[str, Any]) -> str:
    """How the selection was made, in one line."""
    target, seconds = document.get("target"), number_or_none(document, "seconds", "")
    facts = [
        f"Method {cut(text_at(document, 'method', ''), LINE)}",
        f"seed {_count(document, 'seed', '')}",
        "no target" if target is None else f"target {_count(document, 'target', ''):,} traces",
    ]
    return ", ".join([*facts, *([] if seconds is None else [f"done in {words.duration(seconds)}"])]) + "."


def _told(step: Step, width: int) -> Step:
    """The step with the share that it drops behind its name, where there is room for that."""
    if width < plots.WIDE or not step.dropped:
        return step
    share = words.percent(step.dropped / (step.kept + step.dropped))
    name = f"{svg.elide(step.stage, 220, 15.5)}: {share} dropped"
    return Step(name, step.kept, step.dropped, step.reasons)


def _domains(document: Mapping[str, Any]) -> tuple[list[Part], list[Part]]:
    """The largest domains by their share before or after, most before first; the others as one, if any."""
    section = mapping(document, "domains")
    counts = [counts_at(section, side, "domains") for side in _SIDES]
    names = list(dict.fromkeys(name for side in counts for name in side))
    rows = _parts("domains", names, *([side.get(name, 0.0) for name in names] for side in counts))
    rows.sort(key=lambda row: (-max(row.before_share, row.after_share), row.name))
    most = DOMAINS if len(rows) <= DOMAINS else DOMAINS - 1
    shown, rest = sorted(rows[:most], key=lambda row: (-row.before, -row.after, row.name)), rows[most:]
    if not rest:
        return shown, []
    old, new = sum(row.before for row in rest), sum(row.after for row in rest)
    shares = sum(row.before_share for row in rest), sum(row.after_share for row in rest)
    return shown, [Part(f"{len(rest)} others", old, new, *shares)]


def _lengths(document: Mapping[str, Any]) -> tuple[list[Part], list[str], str]:
    """A part from each edge to the next, the edges, and what is counted."""
    section = mapping(document, "lengths")
    if not section:
        return [], [], ""
    where = "lengths"
    edges, before, after = (
        [number_at({key: value}, key, where) for value in _list(section, key, f"{where}.")]
        for key in ("edges", *_SIDES)
    )
    if not len(edges) - 1 == len(before) == len(after) or not before:
        raise UsageError("lengths.edges must have one entry more than lengths.before and lengths.after")
    if edges != sorted(set(edges)):
        raise UsageError("lengths.edges must rise from entry to entry")
    marks = [words.amount(edge) for edge in edges]
    parts = _parts(where, [f"{lo} to {hi}" for lo, hi in pairwise(marks)], before, after)
    return parts, marks, cut(text_at(section, "unit", where), LINE)


def _parts(where: str, names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> list[Part]:
    _no_less_than_0(where, *before, *after)
    whole = (sum(before) or 1.0, sum(after) or 1.0)
    return [
        Part(cut(name, LINE) or "none", old, new, old / whole[0], new / whole[1])
        for name, old, new in zip(names, before, after, strict=True)
    ]


def _moved(parts: Sequence[Part]) -> str:
    """Which share rose most and which fell most, "" where nothing was kept or no share changed."""
    if not any(part.after for part in parts):
        return ""
    order = sorted(parts, key=lambda part: part.after_share - part.before_share)
    told = [
        f"{part.name} {verb} most, from {old} to {new}"
        for part, verb in ((order[-1], "rose"), (order[0], "fell"))
        for old, new in [(words.percent(part.before_share), words.percent(part.after_share))]
        if old != new and (verb == "rose") == (part.after_share > part.before_share)
    ]
    return f"The share of {', that of '.join(told)}." if told else ""


def _middle(parts: Sequence[Part], side: str) -> str:
    """The part that the median is in, "" where there are no records."""
    reached = 0.0
    for part in parts:
        reached += getattr(part, side)
        if reached >= 0.5 - 1e-9:
            return part.name
    return ""


def _rows(
    document: Mapping[str, Any], section: str, texts: Sequence[str], counts: Sequence[str]
) -> list[list[str]]:
    """The cells of a table."""
    return [
        [
            *(cut(text_at(row, key, where), LINE) for key in texts),
            *(f"{_count(row, key, where):,}" for key in counts),
        ]
        for where, row in entries(document, section)
    ]


def _list(row: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    value = row.get(key) or []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UsageError(f"{where}{key} must be a list")
    return value


def _count(row: Mapping[str, Any], key: str, where: str) -> int:
    """`row[key]`, a whole number of at least 0."""
    value = number_at(row, key, where)
    if value < 0 or value != int(value):
        raise UsageError(f"{where}.{key} must be a whole number from 0 on, not {value:g}")
    return int(value)


def _no_less_than_0(where: str, *counts: float) -> None:
    if any(count < 0 for count in counts):
        raise UsageError(f"{where}: no count can be less than 0")
