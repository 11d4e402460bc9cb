"""Drawing by hand: the few SVG elements and scales that the plots share.

Promises: every text is escaped and free of control characters; colours and fonts come from the page's classes
(no style attributes, so the content policy can forbid them). Does not: know what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from tutelage.plain import visible

Scale = Callable[[float], float]


def picture(width: float, height: float, name: str, body: Sequence[str], kind: str = "") -> Markup:
    """An SVG that scales with its container; `name` is what a screen reader says."""
    return Markup(
        f'<svg class="{escape(kind)}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
        f'aria-label="{escape(visible(name))}">{"".join(body)}</svg>'
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text; `kind` is a class of the page's style sheet."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{escape(kind)}" text-anchor="{escape(anchor)}">'
        f"{escape(visible(content))}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{escape(kind)}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" '
        f'class="{escape(kind)}"/>'
    )


def path(points: Sequence[tuple[float, float]], kind: str) -> str:
    """A line through `points`."""
    steps = " ".join(f"{'ML'[i > 0]}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return f'<path d="{steps}" class="{escape(kind)}"/>'


def marker(shape: str, x: float, y: float, kind: str, tip: str = "", size: float = 5) -> str:
    """A dot of one of the shapes `circle`, `square`, `triangle`, `hourglass`; `tip` shows on hover."""
    corners: dict[str, list[tuple[float, float]]] = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "triangle": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        "hourglass": [(-1, -1), (1, -1), (-1, 1), (1, 1)],
    }
    title = f"<title>{escape(visible(tip))}</title>" if tip else ""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" class="{escape(kind)}">{title}</circle>'
    ring = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners[shape])
    return f'<polygon points="{ring}" class="{escape(kind)}">{title}</polygon>'


def text_width(content: str, size: float = 12.5) -> float:
    """About how wide `content` is at `size` (user units); wide scripts count double."""
    return sum(1.0 if ord(c) > 0x2E7F else 0.55 for c in visible(content)) * size


def elide(content: str, width: float, size: float = 12.5) -> str:
    """`content` cut to about `width`, with an ellipsis where something was left out."""
    # A hostile label can be a megabyte long; no plot shows more than some hundred characters.
    shown = visible(content[:400]).replace("\n", " ")
    if len(content) <= 400 and text_width(shown, size) <= width:
        return shown
    while shown and text_width(shown + "…", size) > width:
        shown = shown[:-1]
    return shown.rstrip() + "…"


def linear(lo: float, hi: float, start: float, end: float) -> Scale:
    """Maps [lo, hi] onto [start, end]."""
    span = (hi - lo) or 1.0
    return lambda value: start + (value - lo) / span * (end - start)


def ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from at most `lo` to at least `hi`."""
    raw = max((hi - lo) / max(1, about), 1e-9)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]
