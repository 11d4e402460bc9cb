"""The body of a request: bytes to a JSON object, and typed reads of its fields.

Promises: whatever the bytes are, the result is a dictionary or one Refused(400) that names the field; NaN,
Infinity, numbers of a million digits and nesting without end are refused.
Does not: know what the fields mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from tutelage.serve.source import Refused

Body = Mapping[str, Any]


def bad(field: str | None, message: str, code: str | None = None) -> Refused:
    """A 400 that blames `field` (what follows a space in it is for people only)."""
    param = field and field.partition(" ")[0]
    return Refused(400, f"{field}: {message}" if field else message, param=param, code=code)


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request's body."""
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise bad(None, f"the body is not valid UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise bad(None, "the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise bad(None, f"the body is not valid JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise bad(None, f"the body is not valid JSON: {str(error)[:100]}") from None
    if not isinstance(found, dict):
        raise bad(None, "the body must be a JSON object")
    if b"\\u" in raw:
        _check_text(found)
    return found


def _check_text(found: dict[str, Any]) -> None:
    """JSON can spell half a character, which is no text."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad(
            None, "the body holds a lone surrogate (\\ud800 to \\udfff), which is no character"
        ) from None
    except RecursionError:
        raise bad(None, "the body is nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def whole(body: Body, field: str, low: int, high: int, path: str | None = None) -> int | None:
    """A whole number of `low` to `high`, None where it is absent or null. `path` names it in errors."""
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(path or field, f"must be a whole number, not {shown(value)}")
    if not low <= value <= high:
        raise bad(path or field, f"is {shown(value)}; it must be {low} to {high}")
    return value


def real(body: Body, field: str, low: float, high: float, default: float) -> float:
    """A finite number of `low` to `high`."""
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(field, f"must be a number, not {shown(value)}")
    if not (math.isfinite(value) and low <= value <= high):
        raise bad(field, f"is {shown(value)}; it must be {low:g} to {high:g}")
    return float(value)


def flag(body: Body, field: str, default: bool | None = False, path: str | None = None) -> bool | None:
    """true or false, `default` where it is absent or null."""
    value = body.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise bad(path or field, f"must be true or false, not {shown(value)}")
    return value


def text(body: Body, field: str, path: str | None = None) -> str | None:
    """A text, None where it is absent or null."""
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise bad(path or field, f"must be text, not {shown(value)}")
    return value


def table(body: Body, field: str, path: str | None = None) -> Body:
    """An object, empty where it is absent or null."""
    value = body.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad(path or field, f"must be an object, not {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value of a client's in an error, never long."""
    try:
        line = json.dumps(value)
    except (RecursionError, ValueError):
        return type(value).__name__
    return line if len(line) <= 60 else f"{line[:57]}..."
