"""replay: recordings in every layout that is about become traces; nothing is bought, nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, write_records
from tutelage.teachers.collect import CollectResult, collect
from tutelage.teachers.layouts import first_text
from tutelage.teachers.replay import ReplayTeacher

Q = "What is  6 times 7?"
PROBLEM = Problem(id="six", question="What is 6 times 7?", gold="42")


def lines(tmp_path: Path, *rows: Any, name: str = "rec.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def play(teacher: ReplayTeacher, problem: Problem = PROBLEM, samples: int = 1) -> CollectResult:
    return collect([problem], teacher, samples=samples, ledger_path=Path("/nonexistent/never/made"))


USER = {"role": "user", "content": Q}
LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": [USER, {"role": "assistant", "content": "42", "reasoning_content": "6*7"}]}),
    ("messages", {"messages": [USER, {"role": "assistant", "content": "<think>6*7</think>42"}]}),
    ("messages", {"question": Q, "messages": [{"role": "assistant", "content": "42", "thinking": "6*7"}]}),
    (
        "conversations",
        {
            "system": "…",
            "conversations": [
                {"from": "human", "value": Q},
                {
                    "from": "gpt",
                    "value": "<|begin_of_thought|>\n6*7\n<|end_of_thought|>\n"
                    "<|begin_of_solution|>\n42\n<|end_of_solution|>",
                },
            ],
        },
    ),
    ("deepseek", {"problem": Q, "deepseek_reasoning": "6*7", "deepseek_solution": "42", "solution": "?"}),
    ("openthoughts", {"problem": Q, "reasoning": "6*7", "deepseek_solution": "42"}),
    ("generations", {"problem": Q, "answer": "?", "generations": ["<think>6*7</think>42"], "messages": []}),
    (
        "deepseek",
        {
            "question": Q,
            "solution": "?",
            "deepseek_thinking_trajectory": "6*7",
            "deepseek_attempt": "42",
            "gemini_thinking_trajectory": "?",
            "gemini_attempt": "?",
        },
    ),
    ("gemini", {"question": Q, "solution": "?", "gemini_thinking_trajectory": "6*7", "gemini_attempt": "42"}),
    ("s1k", {"question": Q, "solution": "?", "thinking_trajectories": ["6*7"], "attempt": "42", "cot": None}),
    ("s1k", {"question": Q, "thinking_trajectories": "6*7", "attempt": "42"}),
    (
        "conversations",
        {
            "conversations": [
                {"from": "system", "value": "Think first."},
                {"from": "user", "value": Q},
                {"from": "assistant", "value": "<think>\n6*7\n</think>\n\n42"},
            ]
        },
    ),
    (
        "generations",
        {
            "problem": Q,
            "answer": "?",
            "generations": ["<think>6*7</think>42"],
            "finish_reasons": None,
            "is_reasoning_complete": [True],
            "correctness_math_verify": [True],
        },
    ),
    ("plain", {"problem": Q, "gtruth_answer": "?", "message_thinking": "6*7", "message_content": "42"}),
    ("plain", {"question": Q, "thinking": "6*7", "answer": "42"}),
    ("plain", {"prompt": Q, "response": "6*7</think>42", "answer": "?"}),
    ("plain", {"id": "six", "reasoning": "6*7", "answer": 42}),
]


@pytest.mark.parametrize(("layout", "row"), LAYOUTS)
@pytest.mark.parametrize("auto", [True, False])
def test_every_layout_is_read(tmp_path: Path, layout: Any, row: dict[str, Any], auto: bool) -> None:
    result = play(ReplayTeacher("rec", lines(tmp_path, row), "auto" if auto else layout))
    assert [(t.thinking, t.answer, t.sample, t.maker) for t in result.traces] == [("6*7", "42", 0, "rec")]
    assert result.failed == []


def test_a_generation_whose_thinking_is_not_complete_was_cut_off(tmp_path: Path) -> None:
    """Older parts of OpenR1-Math have no finish reasons; without an answer there is no closing tag either."""
    row = {
        "problem": Q,
        "generations": ["So <think>6*", "<think>6*7</think>42", "<think>6*7</think>42"],
        "is_reasoning_complete": [False, True, False],
        "finish_reasons": [None, None, "stop"],
    }
    traces = play(ReplayTeacher("rec", lines(tmp_path, row)), samples=3).traces
    assert [(t.thinking, t.answer, t.finish_reason) for t in traces] == [
        ("6*", "So", "length"),
        ("6*7", "42", "unknown"),
        ("6*7", "42", "stop"),
    ]


def test_several_trajectories_are_several_samples(tmp_path: Path) -> None:
    row = {"question": Q, "thinking_trajectories": ["a", "b"], "attempt": "42"}
    traces = play(ReplayTeacher("rec", lines(tmp_path, row)), samples=2).traces
    assert [(t.thinking, t.answer, t.sample) for t in traces] == [("a", "42", 0), ("b", "42", 1)]


def test_gemini_is_chosen_by_name(tmp_path: Path) -> None:
    row = LAYOUTS[7][1]
    assert play(ReplayTeacher("rec", lines(tmp_path, row), "gemini")).traces[0].thinking == "?"


def test_parquet_and_json_lists_are_read(tmp_path: Path) -> None:
    row = {"question": Q, "thinking": "6*7", "answer": "42"}
    (tmp_path / "rec.json").write_text(json.dumps([row]))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rec.parquet")
    for name in ("rec.json", "rec.parquet"):
        assert play(ReplayTeacher("rec", tmp_path / name)).traces[0].thinking == "6*7"


def test_our_own_traces_can_be_replayed(tmp_path: Path) -> None:
    old = Trace(
        id="x",
        problem_id="six",
        sample=0,
        maker="m",
        answer="42",
        thinking="6*7",
        prompt_tokens=4,
        thinking_sampled=5,
        thinking_forced=1,
        answer_sampled=2,
        finish_reason="length",
        cost=Decimal("0.5"),
    )
    write_records(tmp_path / "t.parquet", [old], Trace)
    result = play(ReplayTeacher("rec", tmp_path / "t.parquet"))
    trace = result.traces[0]
    assert (trace.prompt_tokens, trace.thinking_tokens, trace.answer_sampled) == (4, 6, 2)
    assert (trace.finish_reason, trace.cost, trace.request_key) == ("length", Decimal("0.5"), "")
    assert (result.cost, result.spent, result.bought, result.reused) == (Decimal("0.5"), 0, 0, 1)


def test_what_is_not_recorded_is_unknown(tmp_path: Path) -> None:
    result = play(ReplayTeacher("rec", lines(tmp_path, LAYOUTS[9][1])))
    trace = result.traces[0]
    assert (trace.cost, trace.thinking_tokens, trace.prompt_tokens) == (None, None, None)
    assert (result.cost, result.prompt_tokens, result.completion_tokens) == (None, None, None)
    assert (trace.finish_reason, trace.closed_by) == ("unknown", "unknown")


def test_samples_come_in_file_order_and_missing_ones_are_listed(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {
            "problem": Q,
            "generations": ["<think>a</think>1", None, "<think>b"],
            "finish_reasons": ["stop", "stop", "length"],
        },
        {"problem": "Something else?", "generations": ["<think>x</think>9"]},
        {"problem": Q, "generations": ["<think>c</think>3"]},
    )
    result = play(ReplayTeacher("rec", path), samples=4)
    assert [(t.thinking, t.answer, t.finish_reason, t.sample) for t in result.traces] == [
        ("a", "1", "stop", 0),
        ("b", "", "length", 1),
        ("c", "3", "unknown", 2),
    ]
    assert result.failed == [("six", "no recording of sample 3 and on")]
    assert len({trace.id for trace in result.traces}) == 3
    assert len(play(ReplayTeacher("rec", path), samples=2).traces) == 2


def test_the_human_solution_is_a_teacher() -> None:
    problem = Problem("six", Q, gold="42", metadata={"solution": "6*7 is 42.\n"})
    trace = play(ReplayTeacher("human", layout="human"), problem).traces[0]
    assert (trace.thinking, trace.answer, trace.cost) == ("6*7 is 42.", "The answer is 42.", None)
    teacher = ReplayTeacher("human", layout="human", answer_template="#### {gold}")
    assert play(teacher, problem).traces[0].answer == "#### 42"
    assert play(teacher, PROBLEM).failed == [("six", "no human solution")]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = lines(tmp_path, {"q": Q, "why": "6*7", "what": "42", "answer": "?", "n": "other", "messages": []})
    columns = {"question": "q", "thinking": "why", "answer": "what"}
    trace = play(ReplayTeacher("rec", path, columns=columns)).traces[0]
    assert (trace.thinking, trace.answer) == ("6*7", "42")
    assert play(ReplayTeacher("rec", path, columns={**columns, "id": "n"})).traces == []


@pytest.mark.slow  # imports `datasets`
def test_a_data_set_on_the_hub_is_played_like_a_file(tmp_path: Path) -> None:
    row = {"question": Q, "deepseek_thinking_trajectory": "6*7", "deepseek_attempt": "42"}
    lines(tmp_path, row, name="train.jsonl")
    trace = play(ReplayTeacher("r1", f"hub:{tmp_path}")).traces[0]
    assert (trace.thinking, trace.answer, trace.maker) == ("6*7", "42", "r1")
    with pytest.raises(UsageError, match="cannot be read from the Hub"):
        play(ReplayTeacher("r1", f"hub:{tmp_path / 'nothing'}"))


def test_an_id_of_another_data_set_does_not_match_a_different_question(tmp_path: Path) -> None:
    path = lines(tmp_path, {"id": "six", "question": "What is 1+1?", "thinking": "1+1", "answer": "2"})
    assert play(ReplayTeacher("rec", path)).failed == [("six", "no recording of sample 0 and on")]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "rec.jsonl"
    path.write_bytes(rb'{"question": "What is 6 times 7?", "thinking": "\ud800<script>", "answer": "\u0000"}')
    trace = play(ReplayTeacher("rec", path)).traces[0]
    assert "<script>" in trace.thinking
    write_records(tmp_path / "out.parquet", [trace], Trace)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "q", "answer": "a"}\n{"question":', r"rec\.jsonl:2: not JSON"),
        (b'{"question": "q", "answer": "a"}\n\n[1]\n', r"rec\.jsonl:3: not a JSON object"),
        (b'{"question": "\xff", "answer": "a"}', r"rec\.jsonl:1: not UTF-8"),
        (b'{"question": "q"}', r"rec\.jsonl:1: no layout fits these columns: question"),
        (b'{"answer": "a", "cost": "free"}', r"rec\.jsonl:1: cost: 'free' is not an amount"),
        (b"\n", r"rec\.jsonl: no rows"),
        (b"[" * 100_000, r"rec\.jsonl:1: not JSON"),
    ],
)
def test_a_broken_recording_names_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rec.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        play(ReplayTeacher("rec", path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "messages"}, "rec.jsonl:1: layout messages needs messages; there are answer, question"),
        ({"columns": {"thinking": "why"}}, "rec.jsonl:1: no column 'why'; there are answer, question"),
        ({"columns": {"wy": "why"}}, "columns.wy: not one of"),
        ({"layout": "human"}, "path: give a file, or layout human"),
        ({"path": None}, "path: give a file, or layout human"),
        ({"path": Path("none.jsonl")}, "none.jsonl: no such file"),
        ({"path": Path(__file__)}, "recordings are .jsonl, .json or .parquet"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, settings: Mapping[str, Any], message: str
) -> None:
    path = lines(tmp_path, {"question": Q, "answer": "a"})
    with pytest.raises(UsageError) as caught:
        play(ReplayTeacher(**{"name": "rec", "path": path, **settings}))
    assert message in str(caught.value)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rec.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match=r"rec\.parquet: not a readable Parquet file"):
        play(ReplayTeacher("rec", tmp_path / "rec.parquet"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (18, "18"),
        (18.0, "18"),
        (0.5, "0.5"),
        (-2.0, "-2"),
        (float("nan"), ""),
        (float("inf"), ""),
        (True, ""),
    ],
)
def test_numbers_in_columns_of_text(value: object, text: str) -> None:
    assert first_text({"a": None, "b": value}, ("a", "b")) == text
