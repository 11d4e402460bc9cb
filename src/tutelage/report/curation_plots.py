"""What a selection changed, drawn: shares of domains and of lengths, before beside after.

Promises: pure functions from parts to SVG, drawn at the width they are shown at (see `plots`); before (grey)
and after (blue) are on one scale; every share of a domain stands beside its bar in figures.
Does not: choose which domains are shown, or count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report import plots, svg
from tutelage.report.words import percent

_RIGHT = 24


@dataclass(frozen=True, slots=True)
class Part:
    """A domain, or the lengths between two edges: its records before and after, and their shares of all."""

    name: str
    before: float
    after: float
    before_share: float
    after_share: float


def bars(parts: Sequence[Part], width: int) -> Markup:
    """A row for each part: its share before over its share after, and both in figures."""
    wide = width >= plots.WIDE
    # Names stand beside the bars on screens, above them on phones.
    left, right, down, height = (330.0, width - 130.0, 3, 38) if wide else (0.0, float(width), 22, 58)
    scale = svg.linear(0, _most(parts), left, right)
    body = []
    for row, part in enumerate(parts):
        top = row * height
        figures = f"{percent(part.before_share)} → {percent(part.after_share)}"
        if wide:
            body.append(svg.text(left - 12, top + 19, svg.elide(part.name, left - 16, 13), "num", "end"))
            body.append(svg.text(right + 12, top + 19, figures, "num"))
        else:
            room = width - svg.text_width(figures, 13) - 8
            body.append(svg.text(0, top + 15, svg.elide(part.name, room, 13), "num"))
            body.append(svg.text(width, top + 15, figures, "num", "end"))
        for y, share, kind in ((0, part.before_share, "before"), (12, part.after_share, "after")):
            body.append(svg.rect(left, top + down + y, scale(share) - left, 11, f"bar {kind}"))
    name = "Share of each domain before and after the selection"
    return svg.picture(width, len(parts) * height, name, body, plots.width_class(width))


def histogram(parts: Sequence[Part], edges: Sequence[str], unit: str, width: int) -> Markup:
    """Two columns between each two edges, before and after. All are equally wide, whatever the edges."""
    left, top, bottom = 46.0, 12.0, 236.0
    marks = svg.ticks(0.0, _most(parts), 4)
    y, slot = svg.linear(marks[0], marks[-1], bottom, top), (width - left - _RIGHT) / len(parts)
    body = []
    for mark in marks:
        body.append(svg.line(left, y(mark), width - _RIGHT, y(mark), "grid"))
        body.append(svg.text(left - 8, y(mark) + 4, f"{100 * mark:.4g} %", "soft", "end"))
    for index, part in enumerate(parts):
        for place, share, kind in ((0.1, part.before_share, "before"), (0.5, part.after_share, "after")):
            x = left + (index + place) * slot
            body.append(svg.rect(x, y(share), 0.4 * slot, bottom - y(share), f"bar {kind}"))
    every = math.ceil((max(svg.text_width(edge, 12) for edge in edges) + 10) / slot)
    for index in range(0, len(edges), every):
        x = left + index * slot
        body.append(svg.line(x, bottom, x, bottom + 5, "tick"))
        body.append(svg.text(x, bottom + 19, edges[index], "soft", "middle"))
    named = svg.elide(f"length in {unit}", width - left - _RIGHT, 12)
    body.append(svg.text(width - _RIGHT, bottom + 38, named, "soft", "end"))
    name = "Share of lengths before and after the selection"
    return svg.picture(width, bottom + 46, name, body, plots.width_class(width))


def _most(parts: Sequence[Part]) -> float:
    """The largest share; a hair where nothing has one, so that the scale has a length."""
    return max([0.01, *(max(part.before_share, part.after_share) for part in parts)])
