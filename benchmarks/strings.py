"""Does it pay to pick the wait string? A classifier on the last state against fixed strings, in the lab.

    python benchmarks/strings.py [--run-dir runs/demo] [--train 800] [--test 500] [--closes 1 2]

The students are those of the recipe `lab` (arm `drafting`, one per seed), trained now where the run folder
does not have them. For every number of refused closes, all orders of the strings are tried on fresh training
problems, the classifier is fitted to them, and everything is measured on the recipe's test problems:

    fixed      the same string at every refused close
    rotation   the strings in turn (with one close: the first)
    masked     nothing is written, the close is only refused
    constant   the one order that was best on the training problems: what a picker without a look at the
               state could learn
    picked     the classifier's choice at every refused close
    oracle     right if any order is right: an upper bound that looks at the gold answer

Differences are paired over problems, with bootstrap intervals (95 %).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
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
from tutelage.think.strings import Sequenced, collect, fit
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


def orders(closes: int) -> list[tuple[int, ...]]:
    """Every order of the strings over the refused closes."""
    return list(itertools.product(range(len(STRINGS)), repeat=closes))


def called(order: tuple[int, ...]) -> str:
    """An order as people read it."""
    return ",".join(STRINGS[i].strip(". ") for i in order)


def best_order(solver: Solver, problems: Sequence[Problem], closes: int) -> tuple[int, ...]:
    """The order that ends right most often on `problems`; of equals the first."""
    every = {called(order): Sequenced(STRINGS, order) for order in orders(closes)}
    scores = measured(solver, every, problems)
    return max(orders(closes), key=lambda order: scores[called(order)][0].mean())


def experiment(
    solver: Solver, training: Sequence[Problem], test: Sequence[Problem], closes: int, save: Path | None
) -> dict[str, Any]:
    """All arms for one number of refused closes."""
    began = time.perf_counter()
    picker = fit(collect(solver, training, STRINGS, closes), STRINGS)
    constant = best_order(solver, training, closes)
    if save is not None:
        picker.save(save)
    methods: dict[str, Method] = {"natural": Natural()}
    methods |= {
        f"fixed {word.strip('. ')}": BudgetForcing(refuse_closes=closes, wait=word) for word in STRINGS
    }
    methods["rotation"] = BudgetForcing(refuse_closes=closes, wait=STRINGS)
    methods["masked"] = BudgetForcing(refuse_closes=closes)
    methods[f"constant ({called(constant)})"] = Sequenced(STRINGS, constant)
    picks = [dict.fromkeys((word.strip(". ") for word in STRINGS), 0) for _ in range(closes)]

    def pick(state: torch.Tensor, waits: int) -> int:
        index = picker(state, waits)
        picks[waits][STRINGS[index].strip(". ")] += 1
        return index

    methods["picked"] = BudgetForcing(refuse_closes=closes, wait=STRINGS, choose_wait=pick)
    every = {f"order {called(order)}": Sequenced(STRINGS, order) for order in orders(closes)}
    found = measured(solver, methods | every, test)
    tried = [found[name][0] for name in every]
    found = {name: found[name] for name in methods}
    found["oracle"] = (np.max(tried, axis=0), None)  # of no reply, so of no length
    wait, own = found[f"fixed {STRINGS[0].strip('. ')}"][0], found["picked"][0]
    return {
        "closes": closes,
        "penalties": picker.penalties,
        "examples": picker.examples,
        "picks": picks,
        "seconds": time.perf_counter() - began,
        "rows": [
            {
                "arm": name,
                **asdict(accuracy(scores)),
                "thinking_tokens_mean": tokens,
                "minus_wait": None if scores is wait else asdict(paired(scores, wait)),
                "picked_minus_this": None if scores is own else asdict(paired(own, scores)),
            }
            for name, (scores, tokens) in found.items()
        ],
    }


def show(title: str, result: dict[str, Any]) -> None:
    """One experiment as a table."""
    print(f"\n{title}, {result['closes']} refused closes; {result['seconds']:.0f} s")
    print(f"picks by close: {result['picks']}; penalties {result['penalties']}")
    print(f"  {'arm':22} {'accuracy':24} {'tokens':>6}  {'minus Wait':25} picked minus this")
    for row in result["rows"]:
        gaps = [
            f"{gap['mean']:+6.1%} [{gap['lo']:+.1%}, {gap['hi']:+.1%}]" if gap else ""
            for gap in (row["minus_wait"], row["picked_minus_this"])
        ]
        share = f"{row['mean']:.1%} [{row['lo']:.1%}, {row['hi']:.1%}]"
        tokens = "" if row["thinking_tokens_mean"] is None else f"{row['thinking_tokens_mean']:.1f}"
        print(f"  {row['arm']:22} {share:24} {tokens:>6}  {gaps[0]:25} {gaps[1]}")


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
