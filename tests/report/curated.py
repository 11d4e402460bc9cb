"""A made-up but realistic curation run, and the same with the nastiest text at every place."""

from __future__ import annotations

from typing import Any

from sample import HOSTILE

QUESTION = (
    "A train leaves the station at 9:40 and travels 228 km at a mean speed of 76 km/h, with a stop of 25 "
    "minutes on its way. At what time does it arrive?"
)
ITEM = (
    "An express train leaves at 9:40, travels 228 km at a mean speed of 76 km/h and makes a stop of 25 "
    "minutes. When does it arrive?"
)
THINKING = (
    "The ride itself takes 228 / 76 = 3 hours. With the stop of 25 minutes that is 3 h 25 min, so the train "
    "arrives at 9:40 + 3:25 = 13:05. Let me check this: from 9:40 to 12:40 are three hours, and 25 minutes "
    "more make 13:05. "
)


def sample(stage: str, rule: str, number: int, **more: Any) -> dict[str, Any]:
    fields = dict.fromkeys(("reason", "benchmark", "matched_id", "matched_text"), "")
    ids = {"record_id": f"s1-{number:05d}/0", "problem_id": f"s1-{number:05d}"}
    return {"stage": stage, "rule": rule, "score": None, "question": QUESTION, "text": THINKING * 3} | (
        fields | ids | more
    )


def document() -> dict[str, Any]:
    """59,000 traces of 31 domains down to 1,000, in six stages."""
    names = [
        *("Algebra", "Number theory", "Geometry", "Combinatorics and discrete structures", "Analysis"),
        *("Mechanics of particles and systems", "Probability theory and stochastic processes", "Biology"),
        *("Quantum theory", "Statistics", "Differential equations", "Electromagnetism and optics", "Logic"),
        *(f"Subject {number}" for number in range(18)),
    ]
    before = {name: int(14_000 * 0.79**place) + 20 for place, name in enumerate(names)}
    after = {name: max(6, 92 - 5 * place) for place, name in enumerate(names)}
    rises = [0, 310, 2_900, 9_400, 14_800, 13_100, 9_200, 5_100, 2_700, 1_490]
    return {
        "title": "1,000 traces out of 59,000",
        "about": "Which of the traces a student should learn from: hard, of many domains, and long.",
        "source": {"name": "s1-59k", "traces": 59_000, "problems": 54_210},
        "method": "s1",
        "seed": 3,
        "target": 1_000,
        "kept": {"traces": 1_000, "problems": 1_000},
        "notes": ["812 records have no domain: they were put together as one."],
        "funnel": [
            {
                "stage": "quality",
                "kept": 51_581,
                "dropped": 7_419,
                "reasons": {"no-answer": 5_230, "loops": 1_877, "not-text": 312},
            },
            {"stage": "traces", "kept": 46_040, "dropped": 5_541, "reasons": {"incorrect": 5_541}},
            {
                "stage": "decontamination",
                "kept": 45_704,
                "dropped": 336,
                "reasons": {"ngram": 301, "wording": 35},
            },
            {
                "stage": "duplicates",
                "kept": 43_121,
                "dropped": 2_583,
                "reasons": {"exact": 1_702, "near": 881},
            },
            {
                "stage": "difficulty",
                "kept": 16_121,
                "dropped": 27_000,
                "reasons": {"solved": 26_871, "not-attempted": 129},
            },
            {"stage": "selection", "kept": 1_000, "dropped": 15_121, "reasons": {"not-chosen": 15_121}},
        ],
        "samples": [
            sample("quality", "loops", 71, reason="the last 40 lines are the same", text="Wait. " * 20_000),
            sample(
                *("decontamination", "ngram", 311),
                score=0.62,
                reason="8 of 13 runs of 13 words are in the item",
                benchmark="kinematics-500",
                matched_id="test/118",
                matched_text=ITEM,
            ),
            sample(
                *("duplicates", "near", 4_007),
                score=0.913,
                reason="0.913 of the shingles are the same (at least 0.85)",
                matched_id="s1-00019",
                matched_text=QUESTION.replace("train", "bus"),
            ),
            sample("difficulty", "solved", 902, score=1.0, reason="small-7b solved it in 4 of 4 attempts"),
            sample("difficulty", "solved", 903, score=0.25, reason="small-7b solved it in 1 of 4 attempts"),
        ],
        "kept_samples": [
            {
                "record_id": f"s1-{number:05d}/0",
                "problem_id": f"s1-{number:05d}",
                "domain": names[number],
                "length": 6_200 + 350 * number,
                "question": QUESTION,
                "text": THINKING * 6,
            }
            for number in range(4)
        ],
        "domains": {"before": before, "after": after},
        "lengths": {
            "unit": "tokens",
            "edges": [0, 250, 500, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 20_000],
            "before": rises,
            "after": [0, 0, 8, 41, 92, 141, 203, 221, 190, 104],
        },
        "benchmarks": [
            {"name": "kinematics-500", "revision": "a91c7f02", "items": 500},
            {"name": "gsm8k", "revision": "e53f048 (test)", "items": 1_319},
        ],
        "detectors": [
            {"detector": "ngram, 13 words", "hits": 301, "uncheckable": 88},
            {"detector": "wording", "hits": 57, "uncheckable": 0},
        ],
        "settings": {"select": {"method": "s1", "target": 1_000}, "quality": {"loops": 40}},
        "versions": {"tutelage": "0.1.0", "numpy": "2.3.1"},
        "seconds": 94.2,
    }


def poison(value: Any, key: str = "") -> Any:
    """The same structure with the hostile text at every text, and at every name that the document chooses."""
    if isinstance(value, dict):
        chosen = key in {"reasons", "before", "after", "settings", "versions"}
        return {f"{k} {HOSTILE}" if chosen else k: poison(item, k) for k, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return f"{value} {HOSTILE}" if value and isinstance(value, str) else value
