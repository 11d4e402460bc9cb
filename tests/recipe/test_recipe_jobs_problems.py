"""Jobs that make data, each run on its own: problems, traces through a ledger, verdicts."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import PartialError, UsageError
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, Verdict, read_records, write_records
from tutelage.tokens import encode_text


def lab(out: Path, **settings: Any) -> tuple[list[Problem], list[Problem], dict[str, Any]]:
    done = run_single("lab-problems", {"min_steps": 2, "max_steps": 4, **settings}, out)
    train, test = (read_records(Path(done["outputs"][name]), Problem) for name in ("train", "test"))
    return train, test, done["metrics"]


def questions(problems: list[Problem]) -> set[str]:
    return {problem.question for problem in problems}


def test_lab_problems_are_as_many_as_asked_distinct_and_disjoint(tmp_path: Path) -> None:
    train, test, metrics = lab(tmp_path / "p.parquet", train=300, test=90)
    assert (len(train), len(test)) == (len(questions(train)), len(questions(test))) == (300, 90)
    assert not questions(train) & questions(test)
    assert (metrics["train"], metrics["test"]) == (300, 90)
    assert set(Counter(p.metadata["difficulty"] for p in test).values()) == {30}
    shares = Counter(problem.metadata["difficulty"] for problem in train)
    assert set(shares) == {2, 3, 4} and max(shares.values()) - min(shares.values()) <= 3


def held_out(out: Path) -> set[str]:
    return questions(read_records(out.with_name(f"{out.stem}-validation.parquet"), Problem))


def test_validation_problems_of_the_lab_are_in_neither_other_set_and_move_none(tmp_path: Path) -> None:
    out, plain = tmp_path / "p.parquet", tmp_path / "q.parquet"
    train, test, metrics = lab(out, train=90, test=60, validation=30, min_steps=1, max_steps=2)
    assert metrics["validation"] == len(held_out(out)) == 30
    assert not held_out(out) & questions([*train, *test])
    assert lab(plain, train=90, test=60, min_steps=1, max_steps=2)[1] == test
    assert held_out(plain) == set()


def test_where_the_world_is_small_overlap_is_dropped_and_counted(tmp_path: Path) -> None:
    """One step has 3,360 questions, so that a pool of 1,500 and a test of 500 cannot miss each other."""
    train, test, metrics = lab(tmp_path / "p.parquet", train=1000, test=500, min_steps=1, max_steps=1)
    assert len(train) == 1000 and not questions(train) & questions(test)
    (row,) = metrics["funnel"]
    assert row["reasons"]["exact"] == row["dropped"] > 50
    drops = json.loads((tmp_path / "p-drops.json").read_text())
    assert {drop["matched_id"] for drop in drops} <= {problem.id for problem in test}


def test_a_world_too_small_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ask for fewer, or more steps"):
        lab(tmp_path / "p.parquet", train=3000, test=2000, min_steps=1, max_steps=1)


def products(out: Path, **settings: Any) -> tuple[list[Problem], list[Problem], dict[str, Any]]:
    done = run_single("lab-products", {"min_steps": 4, "max_steps": 6, **settings}, out)
    train, test = (read_records(Path(done["outputs"][name]), Problem) for name in ("train", "test"))
    return train, test, done["metrics"]


def test_products_are_as_many_as_asked_and_disjoint(tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    train, test, metrics = products(out, train=600, test=90, validation=30, stride=2)
    assert (len(train), len(test)) == (len(questions(train)), len(questions(test))) == (600, 90)
    assert not questions(train) & questions(test)
    assert (metrics["train"], metrics["validation"]) == (600, 30)
    assert len(held_out(out)) == 30 and not held_out(out) & questions([*train, *test])
    assert set(Counter(p.metadata["difficulty"] for p in test)) == {4, 6}  # in strides of two
    again = products(tmp_path / "q.parquet", train=600, test=90, seed=1, stride=2)[1]
    assert questions(again) != questions(test)


def test_products_keep_apart_from_those_of_another_stage(tmp_path: Path) -> None:
    settings = {"min_steps": 3, "max_steps": 3}
    first = products(tmp_path / "a.parquet", train=30, test=20, **settings)[:2]
    taken = [str(tmp_path / name) for name in ("a.parquet", "a-test.parquet")]
    # Of 216 questions; another seed alone meets some again.
    for inputs, shared in (({}, True), ({"apart_from": taken}, False)):
        out = tmp_path / f"b-{shared}.parquet"
        done = run_single(
            "lab-products", {**settings, "train": 40, "test": 40, "seed": 1}, out, inputs=inputs
        )
        again = [p for name in ("train", "test") for p in read_records(Path(done["outputs"][name]), Problem)]
        assert bool(questions([*first[0], *first[1]]) & questions(again)) is shared


def test_the_seed_and_the_onlookers_of_the_lab_are_settings(tmp_path: Path) -> None:
    first = lab(tmp_path / "a.parquet", train=20, test=20, seed=1)[:2]
    assert lab(tmp_path / "b.parquet", train=20, test=20, seed=1)[:2] == first
    other = lab(tmp_path / "c.parquet", train=20, test=20, seed=2)
    assert not questions([*first[0], *first[1]]) & questions([*other[0], *other[1]])
    assert not any("watches" in problem.question for problem in first[0])
    assert any(
        "watches" in p.question for p in lab(tmp_path / "d.parquet", train=20, test=20, onlookers=2)[0]
    )


def numbers(path: Path, count: int, first: int = 0) -> Path:
    """Questions that share no run of words."""
    rows = [{"question": f"n{first + n} plus {n}?", "answer": str(first + 2 * n)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def from_file(out: Path, train: Path, **settings: Any) -> tuple[list[Problem], list[Problem], dict[str, Any]]:
    done = run_single("problems", settings, out, inputs={"train": str(train)})
    found = (read_records(Path(done["outputs"][name]), Problem) for name in ("train", "test"))
    return *found, done["metrics"]  # type: ignore[return-value]


def test_problems_are_held_out_by_their_ids_and_the_seed_alone(tmp_path: Path) -> None:
    source = numbers(tmp_path / "q.jsonl", 30)
    train, test, metrics = from_file(tmp_path / "a.parquet", source, hold_out=10, seed=1)
    assert (len(train), len(test)) == (metrics["train"], metrics["test"]) == (20, 10)
    assert questions(train) | questions(test) == {f"n{n} plus {n}?" for n in range(30)}
    source.write_text("".join(reversed(source.read_text().splitlines(keepends=True))))
    again = from_file(tmp_path / "b.parquet", source, hold_out=10, seed=1)
    assert questions(again[1]) == questions(test)
    assert questions(from_file(tmp_path / "c.parquet", source, hold_out=10, seed=2)[1]) != questions(test)


@pytest.mark.parametrize("exam", ["a source", "hold_out"])
def test_validation_problems_are_set_aside_from_training_alone(tmp_path: Path, exam: str) -> None:
    out = tmp_path / "a.parquet"
    other = {"test": str(numbers(tmp_path / "t.jsonl", 3)), "detectors": ["exact"]}
    settings = other if exam == "a source" else {"hold_out": 3}
    train, test, metrics = from_file(out, numbers(tmp_path / "q.jsonl", 30), validation=8, **settings)
    held = held_out(out)
    assert len(held) == metrics["validation"] <= 8 and len(test) == 3
    assert not held & questions([*train, *test]) and not questions(train) & questions(test)
    assert held | questions([*train, *test]) == {f"n{n} plus {n}?" for n in range(30)}
    with pytest.raises(UsageError, match="validation 30 leaves no training problem of"):
        from_file(tmp_path / "b.parquet", tmp_path / "q.jsonl", validation=30, **settings)


def test_limits_checker_and_source_are_used(tmp_path: Path) -> None:
    test_file = numbers(tmp_path / "t.jsonl", 9, first=100)
    train, test, _ = from_file(
        tmp_path / "a.parquet",
        numbers(tmp_path / "q.jsonl", 9),
        test=str(test_file),
        train_limit=5,
        test_limit=4,
        checker="exact",
        source="mine",
        licence="MIT",
    )
    assert (len(train), len(test)) == (5, 4)
    assert {(p.checker, p.source, p.licence) for p in [*train, *test]} == {("exact", "mine", "MIT")}


def test_a_training_problem_of_the_test_set_is_dropped(tmp_path: Path) -> None:
    train, test, metrics = from_file(
        tmp_path / "a.parquet",
        numbers(tmp_path / "q.jsonl", 9),
        test=str(numbers(tmp_path / "t.jsonl", 3)),
        detectors=["exact"],
    )
    assert len(train) == 6 and not questions(train) & questions(test)
    assert metrics["funnel"][0]["reasons"] == {"exact": 3}
    with pytest.raises(UsageError, match=r"q\.jsonl: every training problem is in the test set"):
        from_file(tmp_path / "b.parquet", tmp_path / "q.jsonl", test=str(tmp_path / "q.jsonl"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"give either test \(a source\) or hold_out"),
        ({"test": "t.jsonl", "hold_out": 2}, "give either test"),
        ({"hold_out": 9}, "hold_out 9 leaves no training problem of 9"),
    ],
)
def test_a_test_set_is_wanted_and_only_one(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    numbers(tmp_path / "t.jsonl", 3, first=100)
    if "test" in settings:
        settings = {**settings, "test": str(tmp_path / "t.jsonl")}
    with pytest.raises(UsageError, match=message):
        from_file(tmp_path / "a.parquet", numbers(tmp_path / "q.jsonl", 9), **settings)


CARELESS = {
    "kind": "lab",
    "style": "careless",
    "slip": 0.6,
    "price": {"prompt": "0.10", "completion": "0.40"},
}


def collected(tmp_path: Path, out: str = "t.parquet", **settings: Any) -> tuple[list[Trace], dict[str, Any]]:
    if not (tmp_path / "p.parquet").exists():
        lab(tmp_path / "p.parquet", train=40, test=5)
    done = run_single("collect", settings, tmp_path / out, inputs={"problems": str(tmp_path / "p.parquet")})
    return read_records(tmp_path / out, Trace), done["metrics"]


def test_replies_are_bought_once_and_priced_by_their_tokens(tmp_path: Path) -> None:
    traces, first = collected(tmp_path, teacher=CARELESS, samples=3)
    assert len(traces) == first["traces"] == first["requests"] == first["bought"] == 120
    tokenizer = build_tokenizer()
    problems = {p.id: p for p in read_records(tmp_path / "p.parquet", Problem)}
    prompt = sum(len(encode_text(tokenizer, problems[t.problem_id].question)) for t in traces)
    written = sum(
        len(encode_text(tokenizer, t.thinking)) + len(encode_text(tokenizer, t.answer)) for t in traces
    )
    ends = len(traces)
    assert (first["prompt_tokens"], first["completion_tokens"]) == (prompt, written + ends)
    dollars = Decimal(prompt) * Decimal("0.10") / 10**6 + Decimal(written + ends) * Decimal("0.40") / 10**6
    assert Decimal(first["dollars"]) == dollars

    again, second = collected(tmp_path, "u.parquet", teacher=CARELESS, samples=3)
    assert again == traces and (second["bought"], second["reused"]) == (0, 120)
    assert {key: second[key] for key in ("requests", "dollars")} == {"requests": 120, "dollars": str(dollars)}
    # Fewer samples are some of them; other settings are another teacher.
    assert collected(tmp_path, "v.parquet", teacher=CARELESS, samples=2)[1]["bought"] == 0
    assert collected(tmp_path, "w.parquet", teacher={**CARELESS, "slip": 0.1})[1]["bought"] == 40


def test_no_reply_at_all_is_an_error_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(PartialError, match=r"had \(no human solution\); 40 requests failed"):
        collected(tmp_path, teacher={"kind": "human"})


def test_human_solutions_cost_nothing_and_gaps_are_counted(tmp_path: Path) -> None:
    problems = [
        Problem("a", "1 + 1?", "2", metadata={"solution": "One more than one."}),
        Problem("b", "2 + 2?", "4"),
    ]
    write_records(tmp_path / "p.parquet", problems, Problem)
    (trace,), metrics = collected(tmp_path, teacher={"kind": "human", "answer": "It is {gold}."})
    assert (trace.thinking, trace.answer) == ("One more than one.", "It is 2.")
    assert metrics["requests"] == 0 and metrics["failures"] == {"no human solution": 1}


def test_every_trace_gets_a_verdict_and_they_are_counted(tmp_path: Path) -> None:
    traces, _ = collected(tmp_path, teacher=CARELESS, samples=2)
    inputs = {"problems": str(tmp_path / "p.parquet"), "traces": str(tmp_path / "t.parquet")}
    counts = run_single("verify", {}, tmp_path / "v.parquet", inputs=inputs)["metrics"]
    verdicts = read_records(tmp_path / "v.parquet", Verdict)
    assert [verdict.trace_id for verdict in verdicts] == [trace.id for trace in traces]
    gold = {problem.id: problem.gold for problem in read_records(tmp_path / "p.parquet", Problem)}
    right = [trace.answer == f"Answer: {gold[trace.problem_id]}" for trace in traces]
    assert [verdict.status == "correct" for verdict in verdicts] == right
    assert counts["correct"] == sum(right) and counts["incorrect"] == 80 - sum(right) > 0
    assert counts["traces"] == 80 and counts["methods"] == {"number": 80}
