"""Text of models, users and data sets made plain: for the eye, and for Markdown.

Promises: `visible` leaves no control or reordering character and no lone surrogate; what goes through `cell`
can neither end a table's cell nor become markup; what stands in `fenced` cannot end its fence; `some` names a
few of many and counts the rest.
Does not: shorten texts, or write HTML (a template escapes that).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Bidirectional controls can reorder the text around them, so they are spelled out like the C0 controls.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    """`text` with control and reordering characters shown as symbols, and lone surrogates as U+FFFD."""
    return _HIDDEN.sub(lambda found: _symbol(ord(found.group())), str(text))


def some(names: Sequence[str], most: int = 4) -> str:
    """The first `most` of `names`, and how many there are beside them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def cell(text: str) -> str:
    """Text that cannot end a cell or become markup: tags, emphasis, code, entities, mathematics, links."""
    return re.sub(r"([|<>`\\*_&~$]|\](?=[(\[])|:(?=//))", r"\\\1", " ".join(text.split()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell(each) for each in line) + " |" for line in lines)


def fenced(text: str, language: str = "") -> str:
    """A Markdown block of code that holds `text` as it is, whatever fences are inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def _symbol(code: int) -> str:
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"
