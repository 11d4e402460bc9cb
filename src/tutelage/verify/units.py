r"""Units and scales after a number, converted exactly.

Understood, written after the number (currency signs before it too): length, mass, time, volume, area, speed,
temperature, currency, and the scales %, thousand, million, billion, trillion.
Promises: factors are Fractions (1 inch is 127/5000 m), so a conversion never rounds; a word that has several
meanings (pounds: mass or sterling; ounces: mass or volume; cents) keeps them all; an unknown word ("apples")
is no unit.
Does not: know every unit. Not read: data sizes, energy, force; inches as `"` and feet as `'`; `K` for
kelvin, `M` for million and `t` for tonne (more often something else); a `$` after the number (it is LaTeX's);
`in` inside a sentence; "per hour" after anything but a length (so $18 per hour reads as $18). Years and
months are exact among themselves only.

A table of our own and not pint: a text of a model must not reach an expression parser, "pounds" must keep two
meanings, and what is needed is eighty names and one multiplication.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

Reading = tuple[str, Fraction, Fraction]
"""kind, factor and offset: the value in the kind's base unit is number * factor + offset"""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as written, and what it may mean."""

    name: str
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows a number: a scale (1 where there is none) and a unit, either may be missing."""

    scale: Fraction = Fraction(1)
    scale_name: str = ""
    unit: Unit | None = None


_TABLE = """
length  m meter metre = 1; km kilometer kilometre = 1000; cm centimeter centimetre = 1/100
length  mm millimeter millimetre = 1/1000; µm micrometer micrometre micron = 1/1000000
length  nm nanometer nanometre = 1/1000000000; inch inches in = 127/5000; ft foot feet = 381/1250
length  yd yard = 1143/1250; mi mile = 201168/125
mass  kg kilogram kilo = 1; g gram gm = 1/1000; mg milligram = 1/1000000; tonne = 1000; ton = 1000
mass  ton = 90718474/100000; lb lbs pound = 45359237/100000000; oz ounce = 45359237/1600000000
time  s sec second = 1; ms millisecond = 1/1000; min minute = 60; h hr hrs hour = 3600; day = 86400
time  week wk = 604800
calendar  month = 1; year yr yrs = 12; decade = 120; century centuries = 1200
volume  L l liter litre = 1/1000; mL ml milliliter millilitre cc = 1/1000000; cl cL centiliter = 1/100000
volume  gallon gal = 473176473/125000000000; quart qt = 473176473/500000000000
volume  pint = 473176473/1000000000000; cup = 473176473/2000000000000
volume  floz oz ounce fluidounce = 473176473/16000000000000
volume  tablespoon tbsp = 473176473/32000000000000; teaspoon tsp = 473176473/96000000000000
area  acre = 316160658/78125; hectare ha = 10000
speed  mph = 1397/3125; kph kmh = 5/18; knot = 463/900
temperature  °C celsius = 1 + 5463/20; °F fahrenheit = 5/9 + 45967/180; kelvin = 1
USD  $ USD dollar = 1; cent ¢ = 1/100
EUR  € EUR euro = 1; cent ¢ = 1/100
GBP  £ GBP pound = 1; pence penny pennies = 1/100
JPY  ¥ JPY yen = 1
INR  ₹ INR Rs rupee = 1; paise = 1/100
CHF  CHF franc = 1
"""
_SCALES = {
    "%": Fraction(1, 100),
    "percent": Fraction(1, 100),
    "per cent": Fraction(1, 100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}


def _table() -> dict[str, Unit]:
    found: dict[str, tuple[Reading, ...]] = {}
    for line in _TABLE.strip().splitlines():
        kind, entries = line.split(maxsplit=1)
        for entry in entries.split(";"):
            names, _, value = entry.partition("=")
            factor, _, offset = value.partition("+")
            reading = (kind, Fraction(factor.strip()), Fraction(offset.strip() or 0))
            for name in names.split():
                found[name] = (*found.get(name, ()), reading)
    return {name: Unit(name, readings) for name, readings in found.items()}


UNITS = _table()
"""By symbol or singular name. Found in any case but for single letters, and in the plural where the name has
three letters or more."""
_SCALE = re.compile(r"\s*(%|(?:percent|per cent|thousand|million|billion|trillion)\b)", re.IGNORECASE)
_NAME = re.compile(
    r"""
    \s*[-]?\s*
    (?P<power>(?:square|sq\.?|cubic|cu\.?)\s+)?
    (?:(?:°|degrees?)\s*(?P<degree>C|F|celsius|fahrenheit)\b
      |(?P<fluid>fluid\s+ounces?|fl\.?\s*oz)\b
      |(?P<word>[A-Za-zµ]+|[€£¥₹¢])
    )
    (?:\s*\^\s*\{?\s*(?P<exponent>[23])\s*\}?(?!\d)|(?P<raised>[²³]))?
    (?:\s*(?:/|per\b)\s*(?P<per>[A-Za-z]+))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ENDED = re.compile(r"\s*(?:[.,;:!?)\]}$*]|\^|/|²|³|\Z)")
_CLOSING = re.compile(r"\$(?![ ]?\d)")
_BEFORE = re.compile(r"(?:(?<![A-Za-z])(USD|EUR|GBP|JPY|INR|CHF|Rs)\.?|([$€£¥₹]))\s*-?\s*\Z")


def _lookup(word: str) -> Unit | None:
    if word in UNITS:
        return UNITS[word]
    lower = word.lower()
    if len(word) > 1 and lower in UNITS:
        return UNITS[lower]
    return UNITS.get(lower[:-1]) if len(word) > 3 and lower.endswith("s") else None


def _named(match: re.Match[str]) -> Unit | None:
    if match["degree"]:
        return UNITS["°" + match["degree"][0].upper()]
    unit = UNITS["floz"] if match["fluid"] else _lookup(match["word"])
    if unit is None or (
        (match["word"] or "").lower() == "in" and not _ENDED.match(match.string, match.end("word"))
    ):
        return None
    kind, factor, _ = unit.readings[0]
    if kind != "length":
        return unit
    power = 0
    if match["exponent"] or match["raised"]:
        power = 2 if (match["exponent"] or match["raised"]) in "2²" else 3
    elif match["power"]:
        power = 2 if match["power"].lower().startswith("s") else 3
    if power:
        shown = f"{unit.name}^{power}"
        return Unit(shown, (({2: "area", 3: "volume"}[power], factor**power, Fraction(0)),))
    by = _lookup(match["per"]) if match["per"] else None
    if by is not None and by.readings[0][0] == "time":
        return Unit(f"{unit.name}/{by.name}", (("speed", factor / by.readings[0][1], Fraction(0)),))
    return unit


def read_tail(after: str, before: str = "") -> Tail:
    """What the plain text `after` a number says about it; `before` is the text up to the number, for a
    currency sign or code. In `$18 kg$` and `$m = 18$ kg` the signs are those of LaTeX."""
    if (dollar := _CLOSING.search(after)) is not None:
        after = after[: dollar.start()] + after[dollar.end() :]
        before = before.removesuffix("$")
    scale = _SCALE.match(after)
    name = "" if scale is None else scale[1].lower()
    value = _SCALES[name] if name else Fraction(1)
    money = _BEFORE.search(before) if before else None
    if money is not None:
        return Tail(value, name, UNITS[money[1] or money[2]])
    match = _NAME.match(after, 0 if scale is None else scale.end())
    return Tail(value, name, None if match is None else _named(match))


def conversions(
    value: Fraction, unit: Unit, other: Fraction, wanted: Unit
) -> Iterator[tuple[Fraction, Fraction]]:
    """Both values in the base unit, once for each meaning that the two units share."""
    for kind, factor, offset in unit.readings:
        for kind2, factor2, offset2 in wanted.readings:
            if kind == kind2:
                yield value * factor + offset, other * factor2 + offset2


def kinds(unit: Unit) -> frozenset[str]:
    """What the unit may measure."""
    return frozenset(kind for kind, _, _ in unit.readings)
