"""A recipe's problems from reasoning-gym, judged by their own scorer."""

from __future__ import annotations

from pathlib import Path

from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, Verdict, read_records, write_records


def test_train_and_test_share_no_problem_and_are_judged(tmp_path: Path) -> None:
    settings = {"train_limit": 40, "test_limit": 20, "detectors": ["exact"]}
    source = {"train": "gym:chain_sum", "test": "gym:chain_sum"}
    result = run_single("problems", settings, tmp_path / "train.parquet", inputs=source)
    test = next(Path(path) for name, path in result["outputs"].items() if name == "test")
    train = read_records(tmp_path / "train.parquet", Problem)
    held = read_records(test, Problem)
    assert (len(held), result["metrics"]["test"]) == (20, 20) and 30 <= len(train) <= 40
    assert not {problem.question for problem in train} & {problem.question for problem in held}
    traces = [
        Trace(f"t{n}", problem.id, n, "m", f"<answer>{problem.gold if n % 2 else -1}</answer>")
        for n, problem in enumerate(held)
    ]
    write_records(tmp_path / "t.parquet", traces, Trace)
    inputs = {"problems": str(test), "traces": str(tmp_path / "t.parquet")}
    metrics = run_single("verify", {"seconds": 60.0}, tmp_path / "v.parquet", inputs=inputs)["metrics"]
    assert (metrics["correct"], metrics["incorrect"], metrics["methods"]) == (10, 10, {"gym": 20})
    assert len(read_records(tmp_path / "v.parquet", Verdict)) == 20
