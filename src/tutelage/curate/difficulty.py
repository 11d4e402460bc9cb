"""How hard problems are, told by who solves them, and which of them to keep.

Promises: every problem that is dropped names the solver and its k of n; an attempt that could not be judged
counts as one that is not correct, and is counted apart; a problem that some solver never attempted is
refused, dropped or kept as the caller says, never by accident; a solver that solves nothing at all stops the
selection (a broken solver makes every problem look hard).
Does not: run solvers or judge. Of two traces, one of which supersedes the other, give `pass_rates` the
verdict on the later one only.

Sources. `unsolved`: s1, arXiv 2501.19393, section 2.2: two models attempt each problem once, and what either
solves is too easy (51,581 to 24,496). `band` with `bands`: LIMO, arXiv 2502.03387: dropped when a weak model
solves it within 4 attempts, kept when a strong one solves 1 to 3 of 32, that is
`{"weak": (0, 0), "strong": (1/32, 3/32)}`. Phi-4-reasoning (arXiv 2504.21318, section 2) looks for problems
between weak and strong models in the same way; its thresholds are not disclosed, so there are no defaults of
ours that would pass for them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tutelage.curate.drops import Drop
from tutelage.errors import UsageError
from tutelage.plain import some, visible
from tutelage.records import Verdict

Keep = Literal["unsolved", "band"]
Missing = Literal["refuse", "drop", "keep"]
Hopeless = Literal["refuse", "keep"]
Band = tuple[float, float]
"""The least and the largest pass rate, both included."""
STAGE = "difficulty"
_REASON = 120


@dataclass(frozen=True, slots=True)
class Rate:
    """How a solver did on one problem: `correct` of `attempts`; `undecided` of those could not be judged, for
    `reasons` (reason, count), the most frequent first."""

    correct: int
    attempts: int
    undecided: int = 0
    reasons: tuple[tuple[str, int], ...] = ()

    @property
    def share(self) -> float:
        """`correct` per attempt. Not to be asked without an attempt."""
        return self.correct / self.attempts


def pass_rates(verdicts: Iterable[Verdict]) -> dict[str, Rate]:
    """How one solver did on each problem that `verdicts` are about, in the order of their first verdict.

    Raises UsageError for two verdicts on one trace, which would count an attempt twice."""
    seen: set[str] = set()
    statuses: dict[str, Counter[str]] = {}
    reasons: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        if verdict.trace_id in seen:
            raise UsageError(f"trace {verdict.trace_id!r} has two verdicts; give one for each trace")
        seen.add(verdict.trace_id)
        statuses.setdefault(verdict.problem_id, Counter())[verdict.status] += 1
        if verdict.status == "undecided":
            said = visible(" ".join(verdict.reason[: 2 * _REASON].split()))[:_REASON]
            reasons.setdefault(verdict.problem_id, Counter())[said] += 1
    return {
        problem_id: Rate(
            found["correct"],
            found.total(),
            found["undecided"],
            tuple(_ordered(reasons.get(problem_id, Counter()))),
        )
        for problem_id, found in statuses.items()
    }


def difficulty(
    problem_ids: Sequence[str],
    solvers: Mapping[str, Mapping[str, Rate]],
    *,
    keep: Keep,
    low: float = 0.0,
    high: float = 1.0,
    bands: Mapping[str, Band] | None = None,
    missing: Missing = "refuse",
    hopeless: Hopeless = "refuse",
) -> tuple[list[str], list[Drop]]:
    """The problems to keep, in their order, and a drop for each other one. `solvers` holds, by the name of
    the solver, its rate by problem id.

    `unsolved` drops what any solver solves in any attempt (rule `solved`). `band` keeps a problem when the
    share of correct ones among all attempts of all solvers is from `low` to `high` (rules `too-easy` and
    `too-hard`); with `bands`, one for each solver, when the share of each solver is in its own. A solver that
    has not attempted a problem leaves it open unless another one decides it: then `missing` says whether that
    is an error, a drop (rule `not-attempted`), or no reason to drop (it is judged by the attempts there are,
    and kept without any). `hopeless="keep"` lets pass a solver without a single correct answer.

    Raises UsageError for an unknown setting, bounds that are no shares, bands that do not fit the solvers, no
    solver at all, an attempt that is missing (`refuse`), and a solver that is hopeless (`refuse`)."""
    _check(solvers, keep, low, high, bands, missing, hopeless)
    if not problem_ids:
        return [], []
    if hopeless == "refuse":
        for name, rates in solvers.items():
            _require_some(name, rates, problem_ids)
    kept: list[str] = []
    drops: list[Drop] = []
    unattempted: list[tuple[str, str]] = []
    for problem_id in problem_ids:
        tried = {
            name: rate
            for name, rates in solvers.items()
            if (rate := rates.get(problem_id)) is not None and rate.attempts > 0
        }
        absent = [name for name in solvers if name not in tried]
        why: tuple[str, str, float | None] | None = None
        if keep == "unsolved":
            why = _solved(tried)
        elif bands is not None:
            why = _outside(tried, bands)
        elif tried and (not absent or missing == "keep"):
            name = next(iter(tried)) if len(tried) == 1 else f"{len(tried)} solvers together"
            why = _outside({name: _pooled(tried)}, {name: (low, high)})
        if why is None and absent and missing != "keep":
            unattempted.append((problem_id, absent[0]))
            why = ("not-attempted", f"no attempt by {some(absent)}", None)
        if why is None:
            kept.append(problem_id)
        else:
            drops.append(Drop(problem_id, problem_id, STAGE, *why))
    if unattempted and missing == "refuse":
        problem_id, name = unattempted[0]
        raise UsageError(
            f"difficulty: {len(unattempted):,} of {len(problem_ids):,} problems were not attempted by every"
            f" solver, the first is {problem_id!r} ({name}); collect and verify the rest, or set missing to"
            " drop or keep"
        )
    return kept, drops


def _solved(tried: Mapping[str, Rate]) -> tuple[str, str, float | None] | None:
    for name, rate in tried.items():
        if rate.correct:
            return "solved", f"{name} solved {_of(rate)}", rate.share
    return None


def _outside(tried: Mapping[str, Rate], bands: Mapping[str, Band]) -> tuple[str, str, float | None] | None:
    """What is too easy for one solver is so, whatever it is to the others."""
    for name, rate in tried.items():
        if rate.share > bands[name][1]:
            return "too-easy", f"{name} solved {_of(rate)}, more than {bands[name][1]:g}", rate.share
    for name, rate in tried.items():
        if rate.share < bands[name][0]:
            return "too-hard", f"{name} solved {_of(rate)}, less than {bands[name][0]:g}", rate.share
    return None


def _of(rate: Rate) -> str:
    undecided = f" ({rate.undecided} undecided)" if rate.undecided else ""
    return f"{rate.correct} of {rate.attempts}{undecided}"


def _pooled(tried: Mapping[str, Rate]) -> Rate:
    return Rate(
        sum(rate.correct for rate in tried.values()),
        sum(rate.attempts for rate in tried.values()),
        sum(rate.undecided for rate in tried.values()),
    )


def _require_some(name: str, rates: Mapping[str, Rate], problem_ids: Sequence[str]) -> None:
    """Raise UsageError unless the solver solved any of the problems."""
    found = [rate for problem_id in problem_ids if (rate := rates.get(problem_id)) is not None]
    attempts = sum(rate.attempts for rate in found)
    if not attempts:
        raise UsageError(
            f"difficulty: the solver {name!r} has no verdict on any of the {len(problem_ids):,} problems; let"
            " it attempt them, and verify its traces, or leave it out"
        )
    if any(rate.correct for rate in found):
        return
    undecided = sum(rate.undecided for rate in found)
    said = ""
    if undecided:
        reasons: Counter[str] = Counter()
        for rate in found:
            reasons.update(dict(rate.reasons))
        often = f", most often: {_ordered(reasons)[0][0]}" if reasons else ""
        said = f" ({undecided:,} undecided{often})"
    raise UsageError(
        f"difficulty: the solver {name!r} solved none of the problems in {attempts:,} attempts{said}; look at"
        ' its replies, or, if it is meant to fail, set hopeless to "keep"'
    )


def _ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _check(
    solvers: Mapping[str, Mapping[str, Rate]],
    keep: str,
    low: float,
    high: float,
    bands: Mapping[str, Band] | None,
    missing: str,
    hopeless: str,
) -> None:
    if not solvers:
        raise UsageError("difficulty: there is no solver; name at least one")
    for name, value, known in (
        ("keep", keep, ("unsolved", "band")),
        ("missing", missing, ("refuse", "drop", "keep")),
        ("hopeless", hopeless, ("refuse", "keep")),
    ):
        if value not in known:
            raise UsageError(f"difficulty: {name} is {value!r}; use {' or '.join(known)}")
    narrowed = (low, high) != (0.0, 1.0)
    if keep == "unsolved" and (narrowed or bands is not None):
        raise UsageError('difficulty: low, high and bands are for keep "band", not for "unsolved"')
    if bands is not None and narrowed:
        raise UsageError("difficulty: give low and high, or bands for each solver, not both")
    for name, (least, most) in {"low and high": (low, high), **(bands or {})}.items():
        if not (math.isfinite(least) and math.isfinite(most) and 0 <= least <= most <= 1):
            raise UsageError(
                f"difficulty: the band of {name} is {least:g} to {most:g}; give shares from 0 to 1"
            )
    if bands is not None and set(bands) != set(solvers):
        differ = [name for name in [*solvers, *bands] if (name in solvers) != (name in bands)]
        raise UsageError(
            f"difficulty: {some(differ)} has a band or verdicts, not both; the solvers are"
            f" {some(list(solvers))}; give each one a band"
        )
