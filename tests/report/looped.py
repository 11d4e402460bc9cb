"""Made-up but realistic tables about a recurrent-depth student: three seeds, two models of fixed depth."""

from __future__ import annotations

import math
import random
from typing import Any

from sample import HOSTILE, _ci

STEPS = [1, 2, 4, 8, 12, 16, 32]
DEPTHS = [4, 8, 12, 16, 20]
EXIT = "kl:0.0005"


def _share(p: float, n: int) -> dict[str, Any]:
    return {"accuracy": p, "ci95": _ci(p, n), "n": n}


def _right(depth: int | None, steps: int) -> float:
    depths = DEPTHS if depth is None else [depth]
    found = [1 / 6 + 0.8 / (1 + math.exp(0.9 * (each - 1.15 * steps)) + (each > 16) * 0.6) for each in depths]
    return sum(found) / len(found)


def _one(seed: int, examples: bool) -> dict[str, Any]:
    rng = random.Random(seed)

    def near(p: float) -> float:
        return min(1.0, max(0.0, p + rng.uniform(-0.03, 0.03)))

    groups = [(depth, 200) for depth in DEPTHS] + [(None, 200 * len(DEPTHS))]
    told: dict[str, Any] = {
        "name": "recurrent",
        "seed": seed,
        "steps": STEPS,
        "at": 16,
        "n": 1000,
        "trained_mean": 8,
        "parameters": 350_000,
        "accuracy": [
            {"depth": depth, "steps": step, "enough": step == 16, **_share(near(_right(depth, step)), n)}
            for depth, n in groups
            for step in STEPS
        ],
        "baselines": [],
        "differences": [],
        "exits": [],
        "examples": [],
        "positions": [
            {
                "exit": EXIT,
                "position": at,
                "passes": 2 + 0.4 * at,
                "passes_ci95": [1.8 + 0.4 * at, 2.3 + 0.4 * at],
            }
            | {"n": 1000 - 40 * at}
            for at in range(22)
        ],
    }
    for name, layers, size in (("equal-parameters", 3, 350_000), ("equal-flops", 10, 1_120_000)):
        for depth, n in groups:
            right = near(_right(depth, layers - 1))
            gap = _right(depth, 16) - right
            told["baselines"].append({"name": name, "parameters": size, "depth": depth, **_share(right, n)})
            told["differences"].append(
                {"a": "recurrent", "b": name, "depth": depth, "steps": 16, "difference": gap}
                | {"difference_ci95": [gap - 0.06, gap + 0.06], "p": 0.0004, "n": n}
            )
    for depth, n in groups:
        passes = 0.8 * (depth or 12) + 1.3
        told["exits"].append(
            {
                "exit": EXIT,
                "depth": depth,
                "bound": 16,
                "passes": passes,
                "passes_ci95": [passes - 0.2, passes + 0.2],
            }
            | {"fixed": _right(depth, 16), "difference": -0.012, "difference_ci95": [-0.03, 0.005], "p": 0.3}
            | _share(near(_right(depth, 15)), n)
        )
    if examples:
        told["examples"] = [
            {"examples": count, "steps": step, "enough": step == min(32, 2 * (count + 1))}
            | _share(near(1 / 6 + 0.8 * (count > 0) * _right(8, step)), 300)
            for count in (0, 1, 4)
            for step in STEPS
        ]
    text = ["<|user|>", *"cfbdaefcab", "<|assistant|>", "d", "<|end|>"]
    told["heat"] = [
        {"exit": EXIT, "bound": 16, "problem_id": f"s3-{seed}-{depth}", "depth": depth, "start": 12}
        | {"tokens": [[word, min(16, 1 + at * depth // 9), "e"] for at, word in enumerate(text)]}
        for depth in (4, 12, 20)
    ]
    told["paths"] = {
        "steps": 32,
        "kinds": [
            {"kind": kind, "share": share, "ci95": _ci(share, 1400), "n": 1400}
            for kind, share in (("settles", 0.86), ("orbits", 0.1), ("drifts", 0.04))
        ],
        "shares": [0.52, 0.21, 0.08],
        "tokens": [
            {"text": text[at], "position": at, "problem_id": "s3-1", "depth": 12, "kind": kind}
            | {"at": [_spot(kind, at, step) for step in range(33)]}
            for at, kind in enumerate(["settles"] * 9 + ["orbits"] * 3 + ["drifts"] * 2)
        ],
    }
    told["restarts"] = [
        {"steps": step, "distance": 1.4 * 0.7**step, "distance_ci95": [1.3 * 0.7**step, 1.5 * 0.7**step]}
        | {"n": 100, "tokens": 1400, "same": 1 - 0.5 * 0.7**step}
        for step in STEPS
    ]
    return told


def _spot(kind: str, at: int, step: int) -> list[float]:
    turn, fade = 0.7 * at, 0.8**step
    if kind == "orbits":
        return [3 * math.cos(turn) + math.cos(step), 3 * math.sin(turn) + math.sin(step)]
    if kind == "drifts":
        return [-1 + 0.15 * step, math.sin(turn) + 0.02 * step]
    return [4 * math.cos(turn) * (1 - fade) + fade, 4 * math.sin(turn) * (1 - fade) - fade]


def looped(seeds: tuple[int, ...] = (1, 2, 3), examples: bool = True) -> dict[str, Any]:
    """A summary that holds this section alone."""
    return {"title": "lab: loops", "depths": [_one(seed, examples) for seed in seeds]}


def hostile() -> dict[str, Any]:
    """The same with the nastiest texts wherever a text of a model or user stands."""
    data = looped(seeds=(1,))
    (one,) = data["depths"]
    one["name"] = HOSTILE
    for each in (*one["baselines"], *one["differences"]):
        each["name" if "name" in each else "b"] = HOSTILE
    for each in one["heat"]:
        each["problem_id"] = HOSTILE
        each["tokens"] = [[HOSTILE, 3, HOSTILE], ["", 1, ""], ["\n", 16, " "]]
    for each in one["paths"]["tokens"]:
        each["text"] = each["problem_id"] = HOSTILE
    return data
