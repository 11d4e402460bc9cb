"""Price lists: a file of the user's own, or the list of the package genai-prices.

Promises: numbers keep the decimals they were written with (0.14 is 0.14); a model that a list does not have
has an unknown price, never 0; a mistake in a file names file and key; nothing is fetched: the package's own
list is the one it was installed with.
Does not: guess: a model behind a server that the list does not know (a local one) has no price there.

A file is YAML or JSON, prices in US dollars per million tokens::

    deepseek-reasoner: {prompt: 0.55, cached: 0.14, completion: 2.19}
    my-model:          {prompt: "1", completion: "2"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import UsageError
from tutelage.teachers.money import UNKNOWN, Price, price

GENAI = "genai"
_FIELDS = ("prompt", "cached", "completion")
# Some models cost less at night: the dearest hour of a day is what a budget must reserve for.
_HOURS = 24


def find_price(prices: str, model: str, base_url: str) -> Price:
    """The price of `model` at `base_url` in the list `prices`: "genai", or the path of a file.

    Raises UsageError when the list cannot be read or the package is not installed."""
    return _genai(model, base_url) if prices == GENAI else read_prices(Path(prices)).get(model, UNKNOWN)


# --- a file ---


def read_prices(path: Path) -> dict[str, Price]:
    """The prices in a file, by model. Raises UsageError naming file and key."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{path}: {why}; prices: give a YAML or JSON file, or genai") from error
    try:
        document = _json(text) if path.suffix.lower() == ".json" else _yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    table: dict[str, Price] = {}
    for model, fields in _pairs(document, f"{path}"):
        where = f"{path}: {model}"
        if model in table:
            raise UsageError(f"{where}: given twice")
        told: dict[str, Any] = {}
        for name, value in _pairs(fields, where):
            if name not in _FIELDS:
                raise UsageError(f"{where}.{name}: not one of {', '.join(_FIELDS)}")
            if name in told:
                raise UsageError(f"{where}.{name}: given twice")
            if isinstance(value, list):
                raise UsageError(f"{where}.{name}: not an amount of US dollars")
            told[name] = value
        table[model] = price(told.get("prompt"), told.get("completion"), told.get("cached"), field=where)
    return table


def _pairs(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The pairs of a mapping, which the readers below give as a list so that doubles are seen."""
    for pair in value if isinstance(value, list) else [value]:
        if not isinstance(pair, tuple) or not isinstance(pair[0], str):
            raise UsageError(f"{where}: not a mapping like model: {{prompt: 0.55, completion: 2.19}}")
        yield pair


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=list, parse_float=str, parse_int=str, parse_constant=str)


def _yaml(text: str) -> Any:
    return _plain(yaml.compose(text, Loader=yaml.SafeLoader))


def _plain(node: Any) -> Any:
    """A YAML node with each scalar as it is spelt, mappings as lists of pairs; null is None."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if isinstance(node, yaml.MappingNode):
        return [(_plain(key), _plain(value)) for key, value in node.value]
    return [_plain(each) for each in node.value] if node is not None else None


# --- the package ---


def _genai(model: str, base_url: str) -> Price:
    try:
        from genai_prices import Usage, calc_price
        from genai_prices.types import ModelPrice
    except ModuleNotFoundError as error:
        raise UsageError(
            "prices: genai needs a package that is not installed; try: pip install 'tutelage[prices]'"
        ) from error

    def listed(when: datetime) -> ModelPrice | None:
        try:
            return calc_price(
                Usage(input_tokens=0, output_tokens=0),
                model,
                provider_api_url=base_url,
                genai_request_timestamp=when,
            ).model_price
        except LookupError:
            return None

    now = datetime.now(UTC)
    hours = (listed(now + timedelta(hours=hour)) for hour in range(_HOURS))
    found = [each for each in hours if each is not None]
    if not found or any(_unfit(each) for each in found):
        return UNKNOWN
    steps = [tier.start for each in found for step in _steps(each) for tier in getattr(step, "tiers", ())]
    if not steps:
        return _dearest(found, _base)
    return replace(_dearest(found, _base), long=_dearest(found, _top), long_from=min(steps))


def _steps(listed: Any) -> tuple[Any, Any, Any]:
    return listed.input_mtok, listed.output_mtok, listed.cache_read_mtok


def _unfit(listed: Any) -> bool:
    """A model that also charges by the request, or more for thinking: two prices would be too low for it."""
    return (
        listed.input_mtok is None
        or listed.output_mtok is None
        or listed.requests_kcount is not None
        or listed.output_reasoning_mtok is not None
    )


def _base(step: Any) -> Decimal:
    """The price before it rises with the length of the prompt."""
    found: Decimal = getattr(step, "base", step)
    return found


def _top(step: Any) -> Decimal:
    """The highest price that any length of prompt has."""
    steps: list[Decimal] = [tier.price for tier in getattr(step, "tiers", ())]
    return max([_base(step), *steps])


def _dearest(found: list[Any], amount: Callable[[Any], Decimal]) -> Price:
    """The highest of each of the prices; that of cached tokens only where every hour has one."""
    prompt, completion, cached = zip(*(_steps(each) for each in found), strict=True)
    return Price(
        max(map(amount, prompt)),
        max(map(amount, completion)),
        None if None in cached else max(map(amount, cached)),
    )
