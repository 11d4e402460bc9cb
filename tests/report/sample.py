"""A made-up but realistic run, and the nastiest text a model can write."""

from __future__ import annotations

import math
import random
from typing import Any

HOSTILE = (
    "</script><script>window.hit=1</script><img src=x onerror='window.hit=1'><b>bold</b> "
    '"><svg onload=window.hit=1> javascript:window.hit=1 {{ 7*7 }} <!-- \x00 \x1b[31m '
    "\u202eright-to-left\u202c \u2066iso \ud83d lone \u2028 line </textarea></style></title> "
    '<a href="https://example.invalid/x">x</a><link rel=stylesheet href=//example.invalid/y.css>'
)


def _ci(p: float, n: int) -> list[float]:
    half = 1.96 * math.sqrt(max(p * (1 - p), 0.002) / n)
    return [max(0.0, p - half), min(1.0, p + half)]


def summary(seeds: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """Seven arms, four comparisons (one not shown), a full thinking curve, funnel and bill."""
    rng = random.Random(0)
    base = {
        "base": (0.06, 11, 0, 0),
        "answer-only": (0.17, 0, 96_000, 0),
        "human-terse": (0.41, 38, 310_000, 0),
        "teacher": (0.83, 121, 1_240_000, 2400),
        "careless-unfiltered": (0.52, 118, 1_210_000, 2400),
        "careless-filtered": (0.69, 117, 1_190_000, 2400),
        "drafting": (0.61, 74, 820_000, 2400),
    }
    n = 400
    arms = []
    for name, (p, tokens, seen, calls) in base.items():
        for seed in seeds if name != "base" else seeds[:1]:
            value = min(0.99, max(0.0, p + rng.uniform(-0.03, 0.03)))
            arms.append(
                {
                    "name": name,
                    "seed": seed,
                    "accuracy": value,
                    "ci95": _ci(value, n),
                    "n": n,
                    "samples": n,
                    "thinking_tokens_mean": tokens + rng.uniform(-2, 2) if tokens else 0.0,
                    "tokens_seen": seen,
                    "teacher_calls": calls,
                    "train_steps": 400 if seen else 0,
                }
            )
    comparisons = []
    for a, b, gaps in (
        ("teacher", "human-terse", (0.43, 0.41)),
        ("human-terse", "answer-only", (0.24, 0.22)),
        ("careless-filtered", "careless-unfiltered", (0.17, 0.15)),
        ("drafting", "careless-filtered", (-0.03, 0.02)),
    ):
        for seed, gap in zip(seeds, gaps, strict=False):
            ci = [gap - 0.058, gap + 0.058]
            p = 0.21 if abs(gap) < 0.05 else 1e-9
            comparisons.append({"a": a, "b": b, "seed": seed, "difference": gap, "ci95": ci, "n": n, "p": p})
    return {
        "title": "lab: one small model, six ways of teaching",
        "about": "Word problems about a chain of hand-overs; the knob is the number of steps.\n"
        "Example: “Ada has 4 stones. Ada gives 3 to Ben. Ben had 2. How many has Ben?” The answer is 5.",
        "arms": arms,
        "comparisons": comparisons,
        "curve": curve(seeds, n),
        "analysis": [analysis(seeds[0], n)],
        "funnel": [
            {"stage": "problems made", "kept": 3000, "dropped": 0, "reasons": {}},
            {
                "stage": "decontaminated against the test set",
                "kept": 2871,
                "dropped": 129,
                "reasons": {"same 8-gram as a test problem": 97, "same question": 32},
            },
            {
                "stage": "careless teacher: verified",
                "kept": 1602,
                "dropped": 798,
                "reasons": {"wrong answer": 761, "no answer": 37},
            },
            {"stage": "teacher: verified", "kept": 2400, "dropped": 0, "reasons": {}},
        ],
        "cost": {
            "requests": 9600,
            "prompt_tokens": 412_000,
            "completion_tokens": 1_180_000,
            "dollars": None,
            "by_teacher": [
                {
                    "teacher": name,
                    "requests": 2400,
                    "prompt_tokens": 103_000,
                    "completion_tokens": 295_000,
                    "dollars": price,
                }
                for name, price in (
                    ("terse", 0.31),
                    ("detailed", 0.0),
                    ("careless", 0.33),
                    ("drafting", None),
                )
            ],
        },
        "wall_s": 431.7,
        "attempts": 2,
        "stages": [
            {"id": "problems", "seconds": 1.3},
            {"id": "collect", "seconds": 9.8},
            {"id": "train teacher seed 1", "seconds": 61.0},
        ],
        "settings": {"seeds": list(seeds), "problems": {"steps": [3, 4, 5], "test": n}, "wait": "Wait"},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "tutelage": "0.1.0"},
    }


def analysis(seed: int, n: int) -> dict[str, Any]:
    """Two lines, one of them at one place, and one step between neighbours."""
    cut = {
        "line": "cut short",
        "n": n,
        "area": {"value": 0.44, "ci95": [0.40, 0.48], "from": 16.0, "to": 74.0},
        "targets": [
            {"target": 0.5, "tokens": 60.6, "ci95": [54.2, None], "resamples_reached": 0.9},
            {"target": 0.9, "tokens": None, "ci95": [None, None], "resamples_reached": 0.0},
        ],
        "control": 100.0,
        "scaling": 13.16,
        "performance": 60.0,
    }
    waiting = {
        "line": "wait “Wait”",
        "n": n,
        "area": None,
        "targets": [{"target": 0.9, "tokens": None, "ci95": [None, None], "resamples_reached": 0.0}],
        "control": None,
        "scaling": None,
        "performance": 72.0,
    }
    step = {"a": "at most 32 tokens", "b": "at most 16 tokens", "difference": 0.14, "ci95": [0.08, 0.2]}
    return {
        "arm": "drafting",
        "seed": seed,
        "lines": [cut, waiting],
        "neighbours": [{**step, "n": n, "p": 0.0001, "p_holm": 0.002}],
    }


def curve(seeds: tuple[int, ...], n: int) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for seed in seeds:

        def add(arm: str, method: str, p: float, tokens: float, seed: int = seed, **rest: Any) -> None:
            value = min(0.98, max(0.01, p + 0.015 * seeds.index(seed)))
            points.append(
                {
                    "arm": arm,
                    "method": method,
                    "budget": None,
                    "waits": None,
                    "wait": None,
                    "seed": seed,
                    "accuracy": value,
                    "ci95": _ci(value, n),
                    "n": n,
                    "samples": n,
                    "thinking_tokens_mean": tokens,
                    "closed_by": {"model": n - 12, "budget": 12},
                    **rest,
                }
            )

        add("drafting", "natural", 0.60, 74, sampling="greedy")
        add("drafting", "natural", 0.56, 75, sampling="sampled", samples=4 * n)
        for budget, p, tokens in ((16, 0.13, 16), (32, 0.27, 31), (64, 0.49, 58), (128, 0.60, 73)):
            add("drafting", "budget", p, tokens, budget=budget)
        for waits, p, tokens in ((1, 0.68, 131), (2, 0.72, 186), (4, 0.715, 290), (8, 0.70, 470)):
            add("drafting", "wait", p, tokens, waits=waits, wait="Wait")
        for waits, p, tokens in ((1, 0.62, 128), (2, 0.60, 180), (4, 0.57, 285)):
            add("drafting", "wait", p, tokens, waits=waits, wait="Hmm")
        for waits, p, tokens in ((1, 0.52, 126), (2, 0.33, 178), (4, 0.12, 281)):
            add("drafting", "suppress", p, tokens, waits=waits)
        for votes, p, tokens in ((3, 0.64, 225), (5, 0.67, 375), (7, 0.68, 525)):
            add("drafting", "vote", p, tokens, votes=votes, samples=8 * n)
        add("teacher", "natural", 0.83, 121, sampling="greedy")
        for budget, p, tokens in ((32, 0.1, 32), (64, 0.24, 63), (128, 0.72, 109)):
            add("teacher", "budget", p, tokens, budget=budget)
    return points


def staged(seeds: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    """A ladder of five stages over three seeds, accuracy against traces for two sizes, and their training."""
    rng = random.Random(1)
    n = 400
    climb = {"base": 0.31, "mid-trained": 0.55, "fine-tuned": 0.72, "preferences": 0.74, "reinforced": 0.83}
    amounts = {"small": {125: 0.3, 500: 0.44, 2000: 0.7}, "large": {125: 0.42, 500: 0.6, 2000: 0.79}}
    places = {name: {f"{name} {x}": float(x) for x in line} for name, line in amounts.items()}
    shares = climb | {f"{name} {x}": p for name, line in amounts.items() for x, p in line.items()}
    arms = []
    for name, p in shares.items():
        for seed in seeds:
            value = p + rng.uniform(-0.03, 0.03)
            arms.append({"name": name, "seed": seed, "accuracy": value, "ci95": _ci(value, n), "n": n})
    arms[-1]["chosen_on"], arms[0]["trained_on"] = 120, 7
    training = []
    for stage, kind in (("mid", "mid-train"), ("sft", "sft"), ("prefer", "dpo"), ("reinforce", "grpo")):
        for seed in seeds:
            steps = [40 * step for step in range(1, 11)]
            row: dict[str, Any] = {
                **{"stage": stage, "kind": kind, "seed": seed, "steps": 400, "examples": 2000},
                **{"tokens_seen": 1_250_000, "tokens_learned": 830_000, "stopped": None, "chosen_step": None},
                "series": {"loss": [[s, 2.1 * math.exp(-s / 150) + rng.uniform(0, 0.1)] for s in steps]},
                "validations": [],
            }
            if stage == "mid":
                looks = [(s, min(0.95, 0.3 + s / 900 + rng.uniform(-0.03, 0.03))) for s in steps]
                row["packing"] = 0.981
                row["stopped"] = "no better validation in 3 looks"
                row["validations"] = [
                    {"step": step, "accuracy": p, "ci95": _ci(p, 200), "n": 200} for step, p in looks
                ]
                row["chosen_step"] = max(looks, key=lambda look: look[1])[0]
            if stage == "prefer":
                row["series"]["rewards/accuracies"] = [[s, 0.5 + s / 1000] for s in steps]
            if stage == "reinforce":
                row["series"]["drawn/reward"] = [[s, -0.4 + s / 500 + rng.uniform(-0.1, 0.1)] for s in steps]
            training.append(row)
    return {
        "title": "the ladder: what each stage adds",
        "arms": arms,
        "ladders": [{"title": "one stage after the other", "arms": list(climb)}],
        "against": [
            {"title": "sample efficiency", "axis": "traces", "logarithmic": True, "lines": places},
            {"title": "the same, evenly", "axis": "traces", "lines": {"small": places["small"]}},
        ],
        "training": training,
    }


def traces(seeds: tuple[int, ...] = (1, 2), count: int = 12) -> list[dict[str, Any]]:
    """Three arms on `count` questions; the forced span follows an astral character on purpose."""
    rows = []
    for number in range(count):
        for arm in ("teacher", "human-terse", "drafting"):
            for seed in seeds:
                gold = str(number + 5)
                right = (number + len(arm)) % 3 > 0
                head = f"🪨 Ben had 2, Ada gives {number + 3}. 2 + {number + 3} = {gold}. "
                text = head + "Wait" + f" I check again: {gold}."
                rows.append(
                    {
                        "problem_id": f"q{number:04d}",
                        "question": f"Ada gives {number + 3} stones to Ben, who had 2. How many has Ben?",
                        "gold": gold,
                        "difficulty": 3 + number % 3,
                        "arm": arm,
                        "seed": seed,
                        "thinking": text if arm == "drafting" else head,
                        "answer": gold if right else str(number),
                        "status": "correct" if right else "incorrect",
                        "reason": "the numbers are equal" if right else f"{number} is not {gold}",
                        "forced_spans": [[len(head), len(head) + 4]] if arm == "drafting" else [],
                        "thinking_tokens": 74,
                        "closed_by": "model",
                    }
                )
    return rows
