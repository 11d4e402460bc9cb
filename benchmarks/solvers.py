"""The funnel on GSM8K with the solutions of four models as solvers: what each stage keeps.

    python benchmarks/solvers.py --data FOLDER

FOLDER is the data folder of github.com/openai/grade-school-math. Its model_solutions_dev.jsonl has the
solutions of four models to 660 questions, all of them of the test set and none of the training set. So
there are two pools: the training set with its human solutions, protected against the whole test set,
without solvers; and the 660 questions with their human solutions, protected against the other 659 test
questions, with the four models as solvers. The models' answers are judged by this project, not by the
labels in the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGET = {"train": 1000, "dev": 100}


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(path: Path, written: Sequence[dict[str, Any]]) -> Path:
    """Write them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return path


def recorded(number: int, question: str, solution: str) -> dict[str, Any]:
    """A human solution as a trace."""
    thinking, _, gold = solution.replace("\nA:", "\n####").rpartition("####")
    answer = gold.strip().replace(",", "")
    told = {"thinking": thinking.strip(), "response": f"The answer is {answer}.", "gold": answer}
    return {"id": f"q{number}", "question": question, **told}


def verb(*words: str) -> dict[str, Any]:
    """The document of a verb."""
    done = subprocess.run(
        [sys.executable, "-m", "tutelage", *words, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def solved(folder: Path, maker: str, dev: Sequence[dict[str, Any]], pool: Path) -> str:
    """A model's solutions as judged traces: `NAME=VERDICTS`."""
    questions = [{"id": row["id"], "question": row["question"], "answer": row["gold"]} for row in rows(pool)]
    asked = write(folder / "asked.jsonl", questions)
    replies = [{"question": row["question"], "response": row[maker]["solution"]} for row in dev]
    replay = write(folder / f"{maker}.jsonl", replies)
    out = folder / maker
    verb(
        "collect",
        "--problems",
        str(asked),
        "--teacher",
        f"replay:{replay}",
        "--out",
        str(out),
        "--pilot",
        "0",
    )
    data = out / "data"
    told = verb(
        "verify", "--problems", str(data / "problems.parquet"), "--traces", str(data / "traces.parquet"),
        "--out", str(data / "verdicts.parquet"),
    )  # fmt: skip
    counts = told["metrics"]
    print(
        f"  {maker}: {counts['correct']} correct, {counts['incorrect']} not, {counts['undecided']} undecided"
    )
    return f"{maker}={data / 'verdicts.parquet'}"


def show(name: str, told: dict[str, Any]) -> None:
    """One line a stage."""
    print(f"\n{name}: target {told['target']}, method {told['method']}, seed {told['seed']}\n")
    print("| stage | kept | dropped | rules |\n| --- | --- | --- | --- |")
    for row in told["stages"]:
        reasons = ", ".join(f"{rule} {count:,}" for rule, count in row["reasons"].items())
        print(f"| {row['stage']} | {row['kept']:,} | {row['dropped']:,} | {reasons} |")
    for note in told["notes"]:
        print(f"note: {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    dev = rows(data / "model_solutions_dev.jsonl")
    attempted = {row["question"] for row in dev}
    test = rows(data / "test.jsonl")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = [
            recorded(at, row["question"], row["answer"]) for at, row in enumerate(rows(data / "train.jsonl"))
        ]
        pool = write(folder / "train-pool.jsonl", train)
        told = verb(
            "curate", "--traces", str(pool), "--target", str(TARGET["train"]), "--out", str(folder / "train"),
            "--against", str(data / "test.jsonl"),
        )  # fmt: skip
        show("GSM8K train, human solutions", told)
        human = [recorded(at, row["question"], row["ground_truth"]) for at, row in enumerate(dev)]
        pool = write(folder / "dev-pool.jsonl", human)
        rest = write(folder / "rest.jsonl", [row for row in test if row["question"] not in attempted])
        print("\nsolvers:")
        makers = [each for each, value in dev[0].items() if isinstance(value, dict)]
        given = [each for maker in makers for each in ("--solver", solved(folder, maker, dev, pool))]
        told = verb(
            "curate", "--traces", str(pool), "--target", str(TARGET["dev"]), "--out", str(folder / "dev"),
            "--against", str(rest), *given,
        )  # fmt: skip
        show("660 questions that four models tried", told)
        band = [*given, "--set", "solved=band", "--set", "low=0.25", "--set", "high=0.75"]
        told = verb(
            "curate", "--traces", str(pool), "--target", str(TARGET["dev"]), "--out", str(folder / "band"),
            "--against", str(rest), *band,
        )  # fmt: skip
        show("the same, pass rates from 25 to 75 %", told)


if __name__ == "__main__":
    main()
