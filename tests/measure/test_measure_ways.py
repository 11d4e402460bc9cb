"""Methods by name."""

from __future__ import annotations

import pytest

from tutelage.errors import UsageError
from tutelage.measure.grid import FREE, Grid
from tutelage.measure.ways import method_of
from tutelage.think.policy import ThinkingPolicy

NAMES = {
    "token-conditional:64": ("token-conditional", "token-conditional: 64", "capped", (None, 64)),
    "token-conditional:64:forced": (
        *("token-conditional, forced end", "token-conditional, forced end: 64", "capped"),
        (None, 64),
    ),
    "step-conditional:8:forced": (
        *("step-conditional, forced end", "step-conditional, forced end: 8", "capped"),
        (None, 800),
    ),
    "class-conditional:long": ("class-conditional", "class-conditional: long", "capped", FREE),
    "rejection:32": ("rejection", "rejection: 32", "capped", (None, 32)),
    "rejection:32:4": ("rejection", "rejection: 32", "capped", (None, 32)),
    "weighted-vote:4": (
        *("weighted-vote by mean probability", "weighted-vote by mean probability: 4", "extended"),
        FREE,
    ),
    "best-of:4": ("best-of by mean log-prob", "best-of by mean log-prob: 4", "extended", FREE),
    "pass:4": ("best-of by gold answer", "best-of by gold answer: 4", "extended", FREE),
    "shortest-of-correct:4": (
        *("shortest-of-correct by gold answer", "shortest-of-correct by gold answer: 4", "extended"),
        FREE,
    ),
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_every_method_has_a_name_a_line_and_a_part(name, expected):
    method = method_of(name)
    assert method.name == name.partition(":")[0].replace("pass", "best-of")
    grid = Grid(ThinkingPolicy(), samples=2, temperature=1.0, methods=(method,))
    point = grid.planned()[-1]
    assert (point.line, point.setting, point.part, point.bound) == expected


def test_a_method_that_looks_at_the_gold_answer_says_so():
    assert [bool(method_of(name).oracle) for name in ("pass:2", "shortest-of-correct:2", "best-of:2")] == [
        *(True, True),
        False,
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tournament:4", "there is no 'tournament'; there is: token-conditional, "),
        ("best-of", r"'best-of': write it as best-of:N"),
        ("best-of:many", r"write it as best-of:N"),
        ("best-of:2:3", r"write it as best-of:N"),
        ("class-conditional:huge", r"write it as class-conditional:short\|long"),
        ("token-conditional:64:maybe", r"write it as token-conditional:TOKENS\[:forced\]"),
        ("token-conditional:64:forced:x", r"write it as token-conditional:TOKENS\[:forced\]"),
        ("rejection:1:2:3", r"write it as rejection:TOKENS\[:TRIES\]"),
        ("token-conditional:60", "60 is not a power of two; ask for 64"),
        ("best-of:0", "there must be at least 1"),
    ],
)
def test_a_wrong_name_is_refused_with_what_there_is(name, message):
    with pytest.raises(UsageError, match=message):
        method_of(name)
