"""Numbers in words: per cent, tokens, money, time, as the page writes them. Pure; None is "unknown"."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float) -> str:
    """0.7125 -> `71.3 %`."""
    return f"{100 * share:.1f}\u00a0%"  # never parted at a line end


def interval(lo: float, hi: float) -> str:
    """(0.681, 0.742) -> `[68.1, 74.2]`, in per cent."""
    return f"[{_signed_zero(100 * lo)},\u00a0{_signed_zero(100 * hi)}]"


def points(difference: float) -> str:
    """0.123 -> `+12.3`, in percentage points."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text in {"+0.0", "−0.0"} else text


def amount(value: float | None) -> str:
    """A count short enough for a table: `131`, `12,400`, `1.24 M`; fractions below 10 keep one digit."""
    if value is None:
        return "unknown"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} M"
    if value == int(value) or abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}"


def flops(value: float | None) -> str:
    """FLOPs with three digits: `950 k`, `1.24 M`, `38.1 G`."""
    if value is None:
        return "unknown"
    for size, unit in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def dollars(value: float | None) -> str:
    """`$12.30`, `$0.0042`; None is a price nobody told, not a price of zero."""
    if value is None:
        return "price unknown"
    if value == 0:
        return "$0"
    return f"${value:,.2f}" if value >= 0.1 else f"${value:.2g}" if value >= 1e-4 else "under $0.0001"


def duration(seconds: float | None) -> str:
    """`42 s`, `7 min 05 s`, `2 h 03 min`."""
    if seconds is None:
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def p_value(p: float | None) -> str:
    """`p 0.031`, `p < 0.001`, or nothing when the file has none."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def listing(items: Sequence[str], most: int = 4) -> str:
    """`a, b and c`; beyond `most` the rest is counted."""
    shown = list(items[:most])
    if len(items) > most:
        shown.append(f"{len(items) - most} more")
    if len(shown) < 2:
        return "".join(shown)
    return ", ".join(shown[:-1]) + " and " + shown[-1]


def _signed_zero(value: float) -> str:
    text = f"{value:.1f}".replace("-", "−")
    return "0.0" if text == "−0.0" else text
