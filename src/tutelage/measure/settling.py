"""How the states of real examples settle: passes per token, paths in principal components, other beginnings.

Promises: the examples are chosen by their place in the file, evenly over problem depths, and not by what they
show; what is counted is counted over more texts than are shown; every mean has its interval and n.
Does not: measure accuracy (see `depths`), or draw (see `report.depths`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tutelage.measure.depths import Asked, by_depth
from tutelage.measure.paths import KINDS, LEAST, apart, kinds_of_paths, principal
from tutelage.measure.statistics import wilson
from tutelage.students.pretrained import Student
from tutelage.think.effort import Exit
from tutelage.think.trajectories import recurrent, trace_loops
from tutelage.tokens import decode_ids

Row = dict[str, Any]
# Texts that paths are counted over, and that start twice; the tokens of one heat map; paths of one picture.
_COUNTED, _TOKENS, _DRAWN = 100, 200, 24
_SEEDS = (101, 202)


def chosen(asked: Sequence[Asked], shown: int) -> list[Asked]:
    """At most `shown` problems, evenly over the depths there are: the first of each."""
    groups = [members for depth, members in by_depth(asked).items() if depth is not None]
    groups = groups or [list(range(len(asked)))]
    if shown < len(groups):
        groups = [groups[round(place)] for place in np.linspace(0, len(groups) - 1, shown)] if shown else []
    rounds = max(map(len, groups), default=0)
    order = [members[turn] for turn in range(rounds) for members in groups if turn < len(members)]
    return [
        asked[number] for number in sorted(order[:shown], key=lambda each: (asked[each].depth or 0, each))
    ]


def heat(student: Student, shown: Sequence[Asked], exits: Sequence[Exit], bound: int) -> list[Row]:
    """For each exit and example its tokens and the passes that each took, at most `bound`: {exit, bound,
    problem_id, depth, start, right, tokens: [[text, passes, next token predicted]]}. `start`: where the
    answer begins."""
    model = recurrent(student.model, student.name)
    found = []
    for exit in exits:
        alone = [each.start - 1 for each in shown]
        traced = trace_loops(model, [each.ids[:_TOKENS] for each in shown], bound, exit=exit, alone=alone)
        for each, run in zip(shown, traced, strict=True):
            texts = [decode_ids(student.tokenizer, [number]) for number in run.ids]
            said = [decode_ids(student.tokenizer, [int(number)]) for number in run.predicted[0]]
            found.append(
                {
                    "exit": str(exit),
                    "bound": bound,
                    "problem_id": each.problem_id,
                    "depth": each.depth,
                    "start": each.start,
                    "tokens": [
                        [text, int(passes), word]
                        for text, passes, word in zip(texts, run.steps, said, strict=True)
                    ],
                }
            )
    return found


def paths(student: Student, asked: Sequence[Asked], shown: Sequence[Asked], steps: int) -> Row:
    """The kinds of all tokens' paths over `steps` passes, and the paths of some tokens of `shown` in their
    first two principal components: {steps, kinds: [{kind, share, ci95, n}], shares, tokens: [{text,
    position, problem_id, depth, kind, at}]}, `at` one [x, y] for each pass, the initial state first.
    Empty where nothing is shown, or `steps` are too few to tell the kinds apart."""
    if not shown or steps < LEAST:
        return {}
    model = recurrent(student.model, student.name)
    some = list(asked[:: max(1, len(asked) // _COUNTED)])[:_COUNTED]
    late = range(steps - max(LEAST, steps // 4), steps + 1)
    counts: Counter[str] = Counter()
    for start in range(0, len(some), 16):
        for run in trace_loops(
            model, [each.ids[:_TOKENS] for each in some[start : start + 16]], steps, keep=late
        ):
            counts.update(kinds_of_paths(run.states))
    total = counts.total()
    told = [
        {"kind": kind, "share": counts[kind] / total, "ci95": _wilson(counts[kind], total), "n": total}
        for kind in KINDS
    ]
    traced = trace_loops(model, [each.ids[:_TOKENS] for each in shown], steps, keep=range(steps + 1))
    drawn = principal(np.concatenate([run.states.reshape(-1, run.states.shape[-1]) for run in traced]), 3)
    tokens = []
    for each, run in zip(shown, traced, strict=True):
        places, kinds = drawn.project(run.states)[..., :2], kinds_of_paths(run.states)
        tokens += [
            {
                "text": decode_ids(student.tokenizer, [run.ids[position]]),
                "position": position,
                "problem_id": each.problem_id,
                "depth": each.depth,
                "kind": kinds[position],
                "at": [[round(float(x), 4), round(float(y), 4)] for x, y in places[:, position]],
            }
            for position in range(len(run.ids))
        ]
    return {
        "steps": steps,
        "kinds": told,
        "shares": [float(share) for share in drawn.shares],
        "tokens": _spread(tokens),
    }


def _spread(tokens: Sequence[Row]) -> list[Row]:
    """At most `_DRAWN` of `tokens`: the rarest kind first, evenly over each."""
    by_kind = {kind: [token for token in tokens if token["kind"] == kind] for kind in KINDS}
    left, kept = _DRAWN, []
    groups = sorted((group for group in by_kind.values() if group), key=len)
    for number, group in enumerate(groups):
        room = left // (len(groups) - number)
        picked = group[:: max(1, -(-len(group) // max(1, room)))][:room]
        kept += picked
        left -= len(picked)
    return sorted(kept, key=lambda token: (str(token["problem_id"]), token["position"]))


def restarts(student: Student, asked: Sequence[Asked], steps: Sequence[int], seed: int = 0) -> list[Row]:
    """How far the states from two other initial states lie apart after each of `steps` passes, and the share
    of tokens after which both predict the same: {steps, distance, distance_ci95, n, tokens, same}."""
    model = recurrent(student.model, student.name)
    rows = [each.ids[:_TOKENS] for each in asked[:: max(1, len(asked) // _COUNTED)][:_COUNTED]]
    asked_for = sorted(set(steps))
    one, other = (
        trace_loops(model, rows, asked_for[-1], read=asked_for, keep=asked_for, first_seed=first)
        for first in _SEEDS
    )
    return [
        {
            "steps": step,
            **apart([run.states[number] for run in one], [run.states[number] for run in other], seed),
            "same": float(
                np.mean(
                    np.concatenate(
                        [a.predicted[number] == b.predicted[number] for a, b in zip(one, other, strict=True)]
                    )
                )
            ),
        }
        for number, step in enumerate(asked_for)
    ]


def _wilson(count: int, total: int) -> list[float]:
    found = wilson(count, total)
    return [found.lo, found.hi]
