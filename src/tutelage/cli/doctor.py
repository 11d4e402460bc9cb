"""`tutelage doctor`: what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.output import AsJson, emit


def doctor(
    data: Annotated[
        Path | None, typer.Option("--data", help="A folder to look for data in.  [default: the current one]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can do, and what to type next.

    \b
    Examples:
      tutelage doctor
      tutelage doctor --json
    """
    from tutelage.recipe.machine import advice, examine

    found = examine(data or Path.cwd())
    rows = [(item.name, item.state, item.detail) for item in found]
    width = max(len(name) for name, _, _ in rows)
    sign = {"yes": "+", "no": "-", "partly": "~"}
    lines = [f" {sign[state]} {name:{width}}  {detail}" for name, state, detail in rows]
    steps = advice(found)
    text = "\n".join([*lines, "", "What to type next:", *(f"  {step}" for step in steps)])
    checks = [{"name": name, "state": state, "detail": detail} for name, state, detail in rows]
    emit({"checks": checks, "next": steps}, text, as_json)
