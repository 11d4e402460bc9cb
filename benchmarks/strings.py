"""Does it pay to pick the wait string? A classifier on the last state against fixed strings, in the lab.

    python benchmarks/strings.py [--run-dir runs/demo] [--train 800] [--test 500] [--closes 1 2]
                                 [--temperature 0.7 --samples 4]

The students are those of the recipe `lab` (arm `drafting`, one per seed), trained now where the run folder
does not have them. For every number of refused closes, everything that may be written at them is tried on
fresh training problems, the classifiers are fitted to that, and all is measured on the recipe's test
problems:

    fixed       the same string at every refused close
    rotation    the strings in turn (with one close: the first)
    masked      nothing is written, the close is only refused
    constant    the one order of strings that was best on the training problems: what a picker without a look
                at the state could learn
    picked      the classifier's choice at every refused close
    oracle      right if any order is right: an upper bound that looks at the gold answer
    ... / stop  the same, with one more option at each close: to let the model close

Differences are paired over problems, with bootstrap intervals (95 %).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from tutelage.lab.world import make_problems
from tutelage.measure.replies import Judged, solver_of
from tutelage.measure.statistics import accuracy, paired
from tutelage.recipe.load import load_recipe
from tutelage.recipe.run import run_recipe
from tutelage.records import Problem, by_id, read_records
from tutelage.students.pretrained import load_student
from tutelage.think import Engine, Sampling, ThinkingPolicy
from tutelage.think.control import BudgetForcing, Natural
from tutelage.think.methods import Method, Outcome, Solver, solve
from tutelage.think.strings import Order, Picker, Sequenced, collect, fit
from tutelage.verify.cascade import judge

ARM = "train-drafting"
STRINGS = (". Wait", ". Hmm", ". So")
TRAINING_SEED = 7  # of the problems that the picker learns on; the student's have 0


def trained(run_dir: Path, seeds: Sequence[int]) -> list[Path]:
    """The students, trained where they are not there yet (about two minutes on two cores)."""
    recipe = load_recipe("lab", overrides=[f"seeds={list(seeds)}"])
    run_recipe(recipe, run_dir, console=Console(stderr=True), only=[ARM])
    return [run_dir / "models" / f"{ARM}-seed{seed}" for seed in seeds]


def rights(solver: Solver, outcomes: Sequence[Outcome]) -> np.ndarray:
    """Whether each outcome is right, (problems, samples)."""
    assert solver.verify is not None
    said = [(outcome.problem, outcome.chosen) for outcome in outcomes]
    told = solver.verify([problem for problem, _ in said], [reply for _, reply in said if reply is not None])
    return np.array(told, dtype=float).reshape(-1, solver.samples)


def measured(
    solver: Solver, methods: dict[str, Method], problems: Sequence[Problem]
) -> dict[str, tuple[np.ndarray, float | None]]:
    """Scores (problems, samples) and mean thinking tokens of every method, all decoded together."""
    found = solve([(solver, method) for method in methods.values()], problems)
    return {
        name: (rights(solver, outcomes), float(np.mean([sum(one.thinking) for one in outcomes])))
        for name, outcomes in zip(methods, found, strict=True)
    }


def called(order: Order) -> str:
    """An order as people read it."""
    return ",".join([*(word.strip(". ") for word in STRINGS), "stop"][i] for i in order)


def plain(order: Order) -> bool:
    """Whether all options of an order are strings."""
    return len(STRINGS) not in order


def experiment(
    solver: Solver, training: Sequence[Problem], test: Sequence[Problem], closes: int, save: Path | None
) -> dict[str, Any]:
    """All arms for one number of refused closes."""
    began = time.perf_counter()
    learned = collect(solver, training, STRINGS, closes, may_close=True)
    without = [replace(one, right={o: r for o, r in one.right.items() if plain(o)}) for one in learned]
    pickers = {"picked": fit(without, STRINGS), "picked / stop": fit(learned, STRINGS)}
    if save is not None:
        for name, picker in pickers.items():
            picker.save(save / name.replace(" / ", "-"))
    methods: dict[str, Method] = {"natural": Natural()}
    for word in STRINGS:
        methods[f"fixed {word.strip('. ')}"] = BudgetForcing(refuse_closes=closes, wait=word)
    methods["rotation"] = BudgetForcing(refuse_closes=closes, wait=STRINGS)
    methods["masked"] = BudgetForcing(refuse_closes=closes)
    for name, tried in (("constant", without), ("constant / stop", learned)):
        best = max(tried[0].right, key=lambda order: sum(one.right[order] for one in tried))
        methods[f"{name} ({called(best)})"] = Sequenced(STRINGS, best, closes)
    picks: dict[str, list[Counter[str]]] = {}
    for name, picker in pickers.items():
        picks[name] = [Counter() for _ in range(closes)]
        chooser = noting(picker, picks[name])
        methods[name] = BudgetForcing(refuse_closes=closes, wait=STRINGS, choose_wait=chooser)
    found = measured(solver, methods, test)
    everything = collect(solver, test, STRINGS, closes, may_close=True)
    for name, kept in (("oracle", plain), ("oracle / stop", lambda order: True)):
        any_right = [any(ok for order, ok in one.right.items() if kept(order)) for one in everything]
        # Of no reply in particular, so of no length.
        found[name] = (np.array(any_right, dtype=float).reshape(-1, solver.samples), None)
    rivals = {"minus_wait": f"fixed {STRINGS[0].strip('. ')}", "minus_picked": "picked"}
    return {
        "closes": closes,
        "penalties": {name: picker.penalties for name, picker in pickers.items()},
        "states": {name: picker.examples for name, picker in pickers.items()},
        "picks": picks,
        "seconds": time.perf_counter() - began,
        "rows": [
            {
                "arm": name,
                **asdict(accuracy(scores)),
                "thinking_tokens_mean": tokens,
                **{
                    label: None if name == rival else asdict(paired(scores, found[rival][0]))
                    for label, rival in rivals.items()
                },
            }
            for name, (scores, tokens) in found.items()
        ],
    }


def noting(picker: Picker, counts: list[Counter[str]]) -> Callable[[torch.Tensor, int], int | None]:
    """`picker`, with its choices counted by refused close."""

    def choose(state: torch.Tensor, waits: int) -> int | None:
        index = picker(state, waits)
        counts[waits][called((len(STRINGS) if index is None else index,))] += 1
        return index

    return choose


def show(title: str, result: dict[str, Any]) -> None:
    """One experiment as a table."""
    print(f"\n{title}, {result['closes']} refused closes; {result['seconds']:.0f} s")
    for name, counts in result["picks"].items():
        print(f"  {name}: {[dict(count) for count in counts]}, penalties {result['penalties'][name]}")
    print(f"  {'arm':28} {'accuracy':22} {'tokens':>6}  {'minus Wait':25} minus picked")
    for row in result["rows"]:
        gaps = [
            f"{gap['mean']:+6.1%} [{gap['lo']:+.1%}, {gap['hi']:+.1%}]" if gap else ""
            for gap in (row["minus_wait"], row["minus_picked"])
        ]
        share = f"{row['mean']:.1%} [{row['lo']:.1%}, {row['hi']:.1%}]"
        tokens = "" if row["thinking_tokens_mean"] is None else f"{row['thinking_tokens_mean']:.1f}"
        print(f"  {row['arm']:28} {share:22} {tokens:>6}  {gaps[0]:25} {gaps[1]}")


def main() -> None:
    """Run it and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/strings"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--train", type=int, default=800, help="problems that the picker learns on")
    parser.add_argument("--test", type=int, default=500, help="problems that are measured")
    parser.add_argument("--closes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--save", type=Path, help="keep the pickers here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folders = trained(options.run_dir, options.seeds)
    known = read_records(options.run_dir / "data/world.train.parquet", Problem)
    test = read_records(options.run_dir / "data/world.test.parquet", Problem)[: options.test]
    training = make_problems(
        options.train,
        min_steps=2,
        max_steps=6,
        seed=TRAINING_SEED,
        exclude=[problem.id for problem in (*known, *test)],
    )
    results = []
    for folder in folders:
        student = load_student(folder)
        judged = Judged(student, folder.name, lambda asked, traces: list(judge(by_id(list(asked)), traces)))
        solver = solver_of(
            Engine(student, max_batch=128),
            judged,
            ThinkingPolicy(max_tokens=120, answer_reserve=8, close_text="Answer"),
            sampling=Sampling(temperature=options.temperature),
            samples=options.samples,
            seed=0,
            max_answer=8,
        )
        for closes in options.closes:
            save = options.save and options.save / f"{folder.name}-{closes}"
            result = experiment(solver, training, test, closes, save)
            show(folder.name, result)
            results.append({"student": folder.name, "temperature": options.temperature, **result})
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
