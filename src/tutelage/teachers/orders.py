"""One completion of one problem that may be bought: the problem, the sample and the ledger's debt.

Does not: send anything or choose what to buy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, TypeVar

from tutelage.ledger import Debt, request_key
from tutelage.records import Problem

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Order:
    """`debt.request` is the JSON of the body, exactly what is sent."""

    problem: Problem
    sample: int
    debt: Debt


def order(
    problem: Problem,
    sample: int,
    base_url: str,
    model: str,
    body: Mapping[str, Any],
    reserve: Callable[[str], Decimal | None] | None = None,
) -> Order:
    """The order for one body. `reserve` gives the most that a request (its JSON text) can cost."""
    request = json.dumps(body)
    debt = Debt(
        key=request_key(base_url, model, body, sample),
        teacher=f"{base_url} {model}",
        sample=sample,
        request=request,
        reserve=reserve(request) if reserve else None,
    )
    return Order(problem, sample, debt)


@dataclass(frozen=True, slots=True)
class Bought:
    """What one round of buying left: problems and samples that another process is buying. (What was bought
    is in the ledger, and counted by the watch.)"""

    held: tuple[tuple[Problem, int], ...] = ()


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """`items` in lists of at most `size`, taken only as they are asked for."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
