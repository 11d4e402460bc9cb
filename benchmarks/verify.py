"""Verdicts on GSM8K's labelled solutions beside math-verify in one run; then inputs made to hurt.

    python benchmarks/verify.py --data FOLDER

FOLDER holds model_solutions_dev.jsonl (github.com/openai/grade-school-math): 660 questions, four solutions
each with their `is_correct`. Every method runs in three rounds, one after another in each round, on one core;
rates are verdicts per second of wall time. `undecided` counts as "not correct" where verdicts meet labels.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from nasty import NASTY, Nasty

from tutelage.records import Problem, Trace, Verdict
from tutelage.verify import WorkerPool, check_trace, judge

ROUNDS = 3
FILE = "model_solutions_dev.jsonl"


def load(folder: Path, kind: str) -> tuple[dict[str, Problem], list[Trace], list[bool]]:
    """Problems by id, traces and labels."""
    problems: dict[str, Problem] = {}
    traces: list[Trace] = []
    labels: list[bool] = []
    for number, line in enumerate((folder / FILE).read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        name = str(number)
        problems[name] = Problem(name, row["question"], row["ground_truth"], kind)
        for maker, value in row.items():
            if isinstance(value, dict):
                traces.append(Trace(f"{number}/{maker}", name, 0, maker, value["solution"]))
                labels.append(value["is_correct"])
    return problems, traces, labels


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The peer of twelve lines: the last number of the text."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return float(found[-1].replace(",", ""))
    except ValueError:
        return None


def by_last_number(problems: dict[str, Problem], traces: Sequence[Trace]) -> list[str]:
    """Last number against last number."""
    verdicts = []
    for trace in traces:
        gold = last_number(problems[trace.problem_id].gold or "")
        same = gold is not None and gold == last_number(trace.answer)
        verdicts.append("correct" if same else "incorrect")
    return verdicts


def by_math_verify(problems: dict[str, Problem], traces: Sequence[Trace]) -> list[str]:
    """math-verify row by row in this process: whole texts on both sides, its defaults."""
    import math_verify

    verdicts = []
    for trace in traces:
        gold = math_verify.parse(problems[trace.problem_id].gold or "")
        same = math_verify.verify(gold, math_verify.parse(trace.answer))
        verdicts.append("correct" if same else "incorrect")
    return verdicts


def compare(folder: Path) -> None:
    """Rates, agreement with the labels, and every disagreement."""
    numbers, traces, labels = load(folder, "number")
    math, _, _ = load(folder, "math")
    import math_verify

    math_verify.verify(math_verify.parse("1"), math_verify.parse("1"))
    with WorkerPool() as pool:
        pool.load({"op": "load-math"})
        methods: dict[str, Callable[[], Sequence[str | Verdict]]] = {
            "math-verify, row by row": lambda: by_math_verify(numbers, traces),
            "last number, 12 lines": lambda: by_last_number(numbers, traces),
            "tutelage, number": lambda: list(judge(numbers, traces, pool=pool)),
            "tutelage, math": lambda: list(judge(math, traces, pool=pool)),
        }
        rates: dict[str, list[float]] = {name: [] for name in methods}
        results: dict[str, Sequence[str | Verdict]] = {}
        for _ in range(ROUNDS):
            for name, method in methods.items():
                began = time.perf_counter()
                results[name] = method()
                rates[name].append(len(traces) / (time.perf_counter() - began))
        began = time.perf_counter()
        list(judge(math, traces))
        cold = time.perf_counter() - began
    peer = median(rates["math-verify, row by row"])
    print(f"{len(traces):,} labelled solutions, {sum(labels):,} correct; {ROUNDS} rounds\n")
    print(
        f"{'method':26} {'verdicts/s in each round':>28} {'x peer':>7} {'agree':>8}  "
        f"{'false accept':>12} {'reject':>6} {'undecided':>9}"
    )
    for name, found in results.items():
        said = [each if isinstance(each, str) else each.status for each in found]
        accepts = sum(s == "correct" and not label for s, label in zip(said, labels, strict=True))
        rejects = sum(s != "correct" and label for s, label in zip(said, labels, strict=True))
        shown = " / ".join(f"{rate:,.0f}" for rate in rates[name])
        agree = 1 - (accepts + rejects) / len(labels)
        print(
            f"{name:26} {shown:>28} {median(rates[name]) / peer:6.1f}x {agree:8.2%}  "
            f"{accepts:12} {rejects:6} {said.count('undecided'):9}"
        )
    print("x peer: the median round over math-verify's median round.")
    print(f"tutelage, math, with the start of its worker: {len(traces) / cold:,.0f}/s ({cold:.2f} s)")
    for name, found in results.items():
        for verdict, trace, label in zip(found, traces, labels, strict=True):
            status = verdict if isinstance(verdict, str) else verdict.status
            if (status == "correct") != label:
                gold = numbers[trace.problem_id].gold
                print(f"\n{name}: {status}, labelled {'correct' if label else 'wrong'} (row {trace.id})")
                print(f"  gold:   {gold!r}\n  answer: {trace.answer!r}")
                if isinstance(verdict, Verdict):
                    print(f"  {verdict.reason}; extracted {verdict.extracted!r}")
            elif status == "undecided" and isinstance(verdict, Verdict):
                print(f"\n{name}: undecided, labelled wrong (row {trace.id}): {verdict.reason}")


class Peak:
    """The most memory that any worker of a pool has held, sampled every 10 ms."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool, self.megabytes = pool, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            for worker in list(self.pool._all):
                try:
                    status = Path(f"/proc/{worker.process.pid}/status").read_text()
                except OSError:
                    continue
                found = re.search(r"VmHWM:\s+(\d+)", status)
                self.megabytes = max(self.megabytes, int(found[1]) // 1024 if found else 0)

    def close(self) -> None:
        """Stop sampling."""
        self._done.set()
        self._thread.join()


def hurt() -> bool:
    """The nasty set: each verdict, its time and the worker's memory. True when all is as it must be."""
    good = True
    slowest, most = 0.0, 0
    print(f"\n{'input':44} {'kind':7} {'verdict':10} {'s':>6} {'worker MB':>9}  reason")
    with WorkerPool() as pool:
        pool.load({"op": "load-math"})
        for case in NASTY:
            verdict, seconds, megabytes = one(case, pool)
            fine = verdict.status in case.allowed
            good &= fine
            slowest, most = max(slowest, seconds), max(most, megabytes)
            mark = "" if fine else f"  <- must be {' or '.join(sorted(case.allowed))}"
            print(
                f"{case.name:44} {case.kind:7} {verdict.status:10} {seconds:6.2f} {megabytes:9}  "
                f"{verdict.reason[:70]}{mark}"
            )
        alive = one(Nasty("", "math", "$x+1$", "1+x", frozenset()), pool)[0].status == "correct"
    print(f"slowest verdict {slowest:.2f} s; most memory in a worker {most} MB; pool alive: {alive}")
    return good and alive and slowest < 6 and most < 1000


def one(case: Nasty, pool: WorkerPool) -> tuple[Verdict, float, int]:
    """The verdict on one case, its wall time, and the worker's peak memory."""
    problem = Problem("p", "", case.gold, case.kind)
    trace = Trace("t", "p", 0, "", case.answer)
    peak = Peak(pool)
    began = time.perf_counter()
    verdict = check_trace(problem, trace, pool)
    seconds = time.perf_counter() - began
    peak.close()
    return verdict, seconds, peak.megabytes


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--nasty", action="store_true", help="the second part only")
    arguments = parser.parse_args()
    if not arguments.nasty:
        if not (arguments.data / FILE).is_file():
            raise SystemExit(f"{arguments.data}: no {FILE}")
        compare(arguments.data)
    if not hurt():
        raise SystemExit("the nasty set: not as it must be")


if __name__ == "__main__":
    main()
