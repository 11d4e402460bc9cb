"""The report of a check before training, in lines for people.

Promises: what is learned and what is not stand apart, in colour on a terminal and between ⟦ ⟧ elsewhere; text
of data sets does not steer the terminal; numbers that rest on an assumption have it beside them.
Does not: check (see `recipe.jobs.checking`), or print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.plain import visible
from tutelage.recipe.display import duration
from tutelage.train.mask import Piece, painted

_GIGA = 2**30


def lines(report: Mapping[str, Any], colour: bool) -> list[str]:
    """The report that `recipe.jobs.checking:check` gives."""
    text = [f"{report['stage']} of {visible(report['model'])}, before any step", ""]
    for each in report["findings"]:
        sign = _painted("31", "✗", colour) if each["refused"] else _painted("32", "✓", colour)
        text.append(f"{sign} {each['name']}: {visible(each['text'])}")
    text += ["", *_data(report), "", *_cost(report)]
    for sample in report["samples"]:
        text += ["", *_sample(sample, colour)]
    text += ["", _verdict(report)]
    return text


def _data(report: Mapping[str, Any]) -> list[str]:
    numbers, lengths = report["numbers"], report["lengths"]
    of = next(name for name in ("problems", "documents") if name in numbers)
    text = [f"samples  {numbers['samples']:,} of {numbers[of]:,} {of}"]
    if "share_too_long" in numbers:
        share, limit = numbers["share_too_long"], numbers["limit"]
        text.append(f"too long {numbers['too_long']:,} ({share:.1%}) over max_length {limit:,}; none is cut")
    context = f", the model's context is {lengths['context']:,}" if lengths["context"] else ""
    text.append(
        f"tokens   {lengths['p50']:,.0f} a row in the middle, {lengths['p95']:,.0f} at 95 %, "
        f"{lengths['max']:,} at most, in {lengths['rows']:,} rows{context}"
    )
    return text


def _cost(report: Mapping[str, Any]) -> list[str]:
    expected, dry = report["estimate"], report["dry"]
    memory = expected["memory"]
    parts = ", ".join(f"{name} {memory[name] / _GIGA:.2f}" for name in memory if name != "total")
    text = [
        f"run      {expected['steps']:,} steps, {expected['epochs']:,} epochs, {expected['tokens']:,} tokens "
        f"({expected['learned']:,} learned), {expected['padding']:.0%} padding",
        f"weights  {expected['parameters']:,}, trained {expected['trained']:,}",
        f"memory   about {memory['total'] / _GIGA:.2f} GB ({parts})",
    ]
    if dry is None:
        text.append(f"time     not measured: {report['not_rehearsed']}")
    else:
        added = "held at most" if dry["device"] != "cpu" else "added"
        room = f" of {dry['room_bytes'] / _GIGA:.1f}" if dry["room_bytes"] else ""
        text.append(f"time     about {duration(expected['seconds'])}")
        text.append(
            f"measured {dry['seconds']:.2f} s for the longest micro-batch, {added} "
            f"{dry['peak_bytes'] / _GIGA:.2f}{room} GB on {dry['device']}"
        )
    return [*text, *(f"         ({each})" for each in expected["assumptions"])]


def _sample(sample: Mapping[str, Any], colour: bool) -> list[str]:
    key = "green is learned" if colour else "⟦learned⟧"
    head = (
        f"trace {visible(sample['trace'])}: {sample['learned']} of {sample['tokens']} tokens learned "
        f"({key}, tokens parted by ·)"
    )
    return [head, *painted([Piece(*each) for each in sample["pieces"]], colour=colour).split("\n")]


def _verdict(report: Mapping[str, Any]) -> str:
    if report["refused"] is None:
        return "nothing found that would refuse this job"
    return f"this job would be refused: {visible(report['refused'])}"


def _painted(code: str, text: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text
