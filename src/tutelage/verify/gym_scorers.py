"""The scorers of reasoning-gym, as they run inside a worker process: made strict, and kept from running text.

Promises: only a score of exactly 1 counts (by default the package gives credit when the gold text occurs
anywhere in the answer); an item whose own answer does not score 1, or for which nonsense scores 1, decides
nothing; no answer is run as Python: nine tasks of version 0.1.25 hand it to `eval` or to `parse_expr` of
sympy, which is `eval` too, and get functions instead that accept plain literals and arithmetic only.
Does not: limit time or memory (`workers` does); make items (`problems.gym` does).
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

from tutelage.errors import UsageError

PACKAGE = "reasoning_gym"
INSTALL = "pip install 'tutelage[gym]'"
NONSENSE = "there is no answer here"
_NAME = re.compile(r"(?!.*__)[^\W\d_]\w{0,20}")
_FUNCTIONS = {
    "Abs",
    "abs",
    "sign",
    "factorial",
    "erf",
    "Ei",
    "Si",
    "Ci",
    "li",
    "gamma",
    "exp",
    "log",
    "ln",
    "sqrt",
}
_FUNCTIONS |= {
    "Rational",
    "Integer",
    "Float",
    *(
        f"{arc}{name}{h}"
        for arc in ("", "a")
        for h in ("", "h")
        for name in ("sin", "cos", "tan", "cot", "sec", "csc")
    ),
}
_OPERATIONS = (ast.operator, ast.unaryop, ast.expr_context)
_LITERALS = (ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.List, ast.Tuple, ast.Set, ast.Dict)
_refused: list[str] = []

Scorer = Callable[[str, Mapping[str, Any]], Any]


class Refused(ValueError):
    """The text is Python, but more than a literal or arithmetic."""


def _checked(text: str, *, names: bool) -> str:
    """`text` again when it holds only literals and arithmetic (with `names` also variables and the usual
    functions of them); else SyntaxError or TypeError, or Refused where it is Python of another kind."""
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__}, not text")
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        if isinstance(node, _OPERATIONS):
            continue
        if names and isinstance(node, ast.Constant) and not isinstance(node.value, int | float | complex):
            break
        if isinstance(node, _LITERALS):
            continue
        if names and isinstance(node, ast.Name) and _NAME.fullmatch(node.id):
            continue
        if names and isinstance(node, ast.Call) and not node.keywords:
            function = node.func
            if isinstance(function, ast.Name) and function.id in _FUNCTIONS:
                continue
        break
    else:
        return text
    _refused.append(text[:80])
    raise Refused("not a plain expression")


def plain_eval(text: Any, *_: Any) -> Any:
    """`eval` of literals and arithmetic."""
    code = compile(_checked(text, names=False).strip(), "<answer>", "eval")
    return eval(code, {"__builtins__": {}})  # noqa: S307 - `_checked` leaves constants and operators


class _Sympy:
    """sympy with a `parse_expr` that takes plain expressions only."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return _plain_parse(found) if name == "parse_expr" else found


@lru_cache(maxsize=4)
def _plain_parse(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parse_expr(text: str, *args: Any, **kwargs: Any) -> Any:
        return parse(_checked(text, names=True), *args, **kwargs)

    return parse_expr


@lru_cache(maxsize=1)
def load() -> Any:
    """The package's factory, with nothing left in the package that runs an answer.

    Raises UsageError when the package is missing."""
    try:
        factory = importlib.import_module(f"{PACKAGE}.factory")
    except ModuleNotFoundError as error:
        raise UsageError(f"gym: the Python package {error.name!r} is not installed; {INSTALL}") from error
    import sympy  # type: ignore[import-untyped]

    for name, module in list(sys.modules.items()):
        if not name.startswith(PACKAGE + "."):
            continue
        for variable, value in list(vars(module).items()):
            if value is sympy:
                setattr(module, variable, _Sympy(sympy))
            elif value is sympy.parse_expr:
                setattr(module, variable, _plain_parse(value))
        vars(module)["eval"] = plain_eval
    return factory


@lru_cache(maxsize=128)
def _scorer(task: str) -> Scorer:
    factory = load()
    if task not in factory.DATASETS:
        from difflib import get_close_matches

        near = get_close_matches(task, factory.DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"gym:{task}: reasoning-gym has no such task{hint}")
    scorer: Scorer = factory.get_score_answer_fn(task)
    return scorer


def _tuples(value: Any) -> Any:
    """`value` with tuples for lists: JSON has no tuples, and two tasks (arc_agi, rearc) compare with them."""
    if isinstance(value, list):
        return tuple(_tuples(each) for each in value)
    return {key: _tuples(each) for key, each in value.items()} if isinstance(value, dict) else value


@lru_cache(maxsize=256)
def _entry(task: str, text: str) -> dict[str, Any] | str:
    """The item for the scorer, or why it can decide nothing."""
    scorer = _scorer(task)
    entry: dict[str, Any] = json.loads(text)
    said = ""
    for metadata in (entry["metadata"], _tuples(entry["metadata"])):
        found = {**entry, "metadata": metadata}
        try:
            own = 1.0 if entry["answer"] is None else scorer(entry["answer"], found)
            if own == 1.0:
                loose = _score(scorer, NONSENSE, found) == 1.0
                return f"the scorer of {task} takes any answer" if loose else found
            said = f"the gold answer itself scores {own:g}"
        except Exception as error:  # noqa: BLE001 - whatever a scorer raises on an item is its reason
            said = f"the item does not fit its scorer ({type(error).__name__}: {str(error)[:100]})"
    return said


def _score(scorer: Scorer, answer: str, entry: Mapping[str, Any]) -> float | str:
    """The score of one answer text, or why there is none."""
    _refused.clear()
    try:
        score = float(scorer(answer, entry))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - becomes an undecided verdict with this reason
        return f"the scorer raised {type(error).__name__}: {' '.join(str(error).split())[:150]}"
    if _refused:
        return "not scored: the scorer would run this answer as Python"
    return score


def scores(task: str, entry: Mapping[str, Any], answers: list[str]) -> dict[str, Any]:
    """`{"scores": [...]}`, for each of `answers` a number or why there is none; or `{"failed": reason}` for
    an item that can decide nothing. Raises UsageError for an unknown task."""
    with contextlib.redirect_stdout(io.StringIO()):  # some scorers print what they cannot read
        found = _entry(task, json.dumps(entry, sort_keys=True))
        if isinstance(found, str):
            return {"failed": found}
        scorer = _scorer(task)
        return {"scores": [_score(scorer, answer, found) for answer in answers]}
