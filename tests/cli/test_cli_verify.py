"""`tutelage verify` on real files, through the whole program."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.cli import main
from tutelage.records import Problem, Trace, Verdict, read_records, write_records

ROWS = [
    {"q": "1+1", "reply": "The answer is 2.", "answer": "2"},
    {"q": "1+2", "reply": "So 1 + 2 = 4.", "answer": "3"},
    {"q": "3*3", "reply": "about 9 / 3 / 1", "answer": "3"},
    {"q": "2+2", "reply": "4", "answer": ""},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["verify", *arguments])
    out, err = capfd.readouterr()
    assert "Traceback" not in err, err
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


A = ["a.jsonl", "--answer", "reply", "--gold", "answer"]


def test_a_file_of_answers(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, *A, "--kind", "number", "--json")
    document = json.loads(out)
    assert code == 0 and document.pop("seconds") > 0
    told = document.pop("verdicts")
    assert [(row["id"], row["status"]) for row in told] == [
        ("1", "correct"),
        ("2", "incorrect"),
        ("3", "undecided"),
        ("4", "undecided"),
    ]
    assert set(told[0]) == {"id", "status", "reason", "method", "extracted"}
    assert document == {
        "rows": 4,
        "correct": 1,
        "incorrect": 1,
        "undecided": 2,
        "methods": {"number": 4},
        "undecided_reasons": {"last number: several divisions in a row": 1, "no gold answer": 1},
    }
    assert not list(folder.glob("*.parquet"))  # without --out nothing is written
    code, out, _ = run(capfd, *A)
    assert "4 judged: 1 correct, 1 incorrect, 2 undecided" in out and "undecided, 1: no gold answer" in out
    assert "wrote" not in out


@pytest.mark.parametrize("name", ["v.parquet", "v.jsonl"])
def test_verdicts_are_written(folder: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capfd, *A, "--out", name, "--json", "--id", "q")
    assert code == 0 and json.loads(out)["verdicts"] == name
    if name.endswith("parquet"):
        found = [(v.trace_id, v.status) for v in read_records(Path(name), Verdict)]
    else:
        rows = [json.loads(line) for line in Path(name).read_text().splitlines()]
        found = [(row["trace_id"], row["status"]) for row in rows]
    assert found == [("1+1", "correct"), ("1+2", "incorrect"), ("3*3", "undecided"), ("2+2", "undecided")]


def test_parquet_math_agreement_and_tolerance(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"answer": [r"\boxed{\frac{1}{2}}", "1.01"], "gold": ["0.5", "1"]})
    pq.write_table(table, "a.parquet")
    code, out, _ = run(capfd, "a.parquet", "--kind", "math", "--agreement", "--json", "--seconds", "60")
    document = json.loads(out)
    assert (code, document["correct"], document["incorrect"]) == (0, 1, 1)
    assert document["agreement"]["judges"] == ["rule", "second parser"]
    code, out, _ = run(capfd, "a.parquet", "--tolerance", "0.05", "--agreement")
    assert "2 judged: 2 correct" in out and "agreement on 2 traces" in out


def test_problems_and_traces(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_records(folder / "q.parquet", [Problem("p", "1+1?", "2")], Problem)
    write_records(folder / "t.parquet", [Trace("t", "p", 0, "m", "2")], Trace)
    code, out, _ = run(
        capfd, "--problems", "q.parquet", "--traces", "t.parquet", "--out", "v.parquet", "--json"
    )
    document = json.loads(out)
    assert code == 0 and document["metrics"]["correct"] == 1
    assert document["outputs"] == {"verdicts": str(folder / "v.parquet")}
    code, out, _ = run(capfd, "--problems", "q.parquet", "--traces", "t.parquet", "--out", "v.parquet")
    assert "1 judged: 1 correct" in out and "wrote " in out


def test_gold_answers_are_checked(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--check-gold", "a.jsonl", "--column", "question=q", "--column", "id=q"]
    code, out, err = run(capfd, *arguments, "--json")
    document = json.loads(out)
    assert code == 3 and document["checked"] == 4 and document["error"]["exit_code"] == 3
    assert document["failed"] == [{"id": "2+2", "gold": "", "test": "empty", "reason": "no gold answer"}]
    code, out, err = run(capfd, *arguments)
    assert code == 3 and out.count("no gold answer") == 1 and "error: 1 of 4 gold answers fail" in err
    Path("good.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    code, out, _ = run(capfd, "--check-gold", "good.jsonl", "--json")
    assert (code, json.loads(out)) == (0, {"checked": 1, "failed": []})
    code, out, _ = run(capfd, "--check-gold", "good.jsonl", "--kind", "math")
    assert (code, out) == (0, "1 gold answers checked, 0 fail\n")


def test_programs_are_judged_in_the_sandbox(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"answer": "```python\ndef f(x):\n    return x + 1\n```", "gold": "assert f(1) == 2"},
        {"answer": "```python\ndef f(x):\n    return x\n```", "gold": "assert f(1) == 2"},
    ]
    Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = run(capfd, "c.jsonl", "--kind", "code", "--json", "--allow-weaker-sandbox")
    if code == 2:  # a machine without any sandbox refuses, and says why
        assert "sandbox unavailable" in err
        return
    document = json.loads(out)
    assert (code, document["correct"], document["incorrect"]) == (0, 1, 1)
    (method,) = document["methods"]
    assert method.startswith("code (")
    golds = ["assert True", "pass", "assert f(1) == 2"]
    rows = [{"id": gold, "question": gold, "answer": gold} for gold in golds]
    Path("g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run(capfd, "--check-gold", "g.jsonl", "--kind", "code", "--allow-weaker-sandbox", "--json")
    document = json.loads(out)
    found = {each["id"]: each["test"] for each in document["failed"]}
    assert code == 3 and found == {"assert True": "perturbed", "pass": "itself"}, document


MISTAKES = {
    "": "nothing to judge",
    "a.jsonl --problems a.jsonl": "FILE and --problems",
    "a.jsonl": "a.jsonl line 1: no column 'gold' for the gold; columns there: q, reply, answer",
    "a.jsonl --gold answer --answer text": "no column 'text' for the answer",
    "gone.jsonl": "gone.jsonl: no such file",
    "--problems a.jsonl": "--problems needs --traces FILE and --out PATH",
    "a.jsonl --gold answer --answer q --kind numbr": "unknown checker 'numbr'",
    "a.jsonl --gold answer --answer q --kind gone.py:check": "gone.py",
    "a.jsonl --gold answer --answer q --judge m --out v.parquet": "--judge m: write one of openai:MODEL",
    "a.jsonl --gold answer --answer q --judge openai:m": "--judge needs --out or --ledger",
    "a.jsonl --gold answer --answer q --judge-budget 1": "--judge-budget is for a judge",
    "a.jsonl --gold answer --answer q --second-look": "second_look needs a judge",
    "a.jsonl --gold answer --answer q --seconds 0": "seconds",
    "a.jsonl --gold answer --answer reply --judge openai:m --judge-url http://127.0.0.1:1/v1 "
    "--judge-key-env NO_SUCH_KEY --out v.parquet": "NO_SUCH_KEY is not set",
    "bytes.jsonl": "bytes.jsonl line 1: not UTF-8",
    "--check-gold gone.jsonl": "gone.jsonl: no such file",
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.items())
def test_a_mistake_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    Path("bytes.jsonl").write_bytes(b'{"answer": "\xe9", "gold": "1"}\n')
    code, out, err = run(capfd, *arguments.split())
    last = err.strip().splitlines()[-1]
    assert code == 2 and out == "" and last.startswith("error: ") and message in last, err
    assert not Path("v.parquet").exists()


def test_a_row_of_50_mb_with_its_answer_at_the_end(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "so " * 17_000_000 + "the answer is 72."
    with Path("big.jsonl").open("w") as file:
        file.write(json.dumps({"answer": text, "gold": "72"}) + "\n")
    code, out, _ = run(capfd, "big.jsonl", "--json")
    assert code == 0 and json.loads(out)["correct"] == 1


def test_a_judge_that_stops_early_leaves_its_counts(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    fake = importlib.import_module("endpoint_server")
    monkeypatch.setenv("A_JUDGE_KEY", "sk-secret-of-the-judge")

    def script(number: int, body: dict[str, Any]) -> Any:
        labels = re.findall(r"^(\S+) if they", body["messages"][-1]["content"], re.MULTILINE)
        return fake.Say(fake.completion(labels[0]))

    with Path("many.jsonl").open("w") as file:
        for n in range(1, 9):
            file.write(json.dumps({"answer": f"{n} / 3 / 1", "gold": "3", "question": "?"}) + "\n")
    price = ["--judge-price", "0,1000", "--set", "judge.max_tokens=50"]
    with fake.serving(script) as server:
        given = ["many.jsonl", "--out", "v.parquet", "--question", "question", "--judge", "openai:m"]
        given += ["--judge-url", server.url, "--judge-key-env", "A_JUDGE_KEY", *price]
        given += ["--set", "judge.concurrency=1"]
        code, out, err = run(capfd, *given, "--judge-budget", "0.1", "--json")
        document = json.loads(out)
        bought = len(server.bodies)
        assert code == 3 and "the judge stopped early" in err and document["error"]["exit_code"] == 3
        assert (
            document["rows"] == 8
            and document["correct"] == bought > 0
            and document["undecided"] == 8 - bought
        )
        assert server.headers[0]["Authorization"] == "Bearer sk-secret-of-the-judge"
        code, out, _ = run(capfd, *given, "--judge-budget", "5")
        assert code == 0 and len(server.bodies) == 8  # nothing is bought twice
    assert "8 judged: 8 correct" in out and "judge m: 8 replies, $0.16" in out
    for path in folder.iterdir():
        assert b"sk-secret" not in path.read_bytes(), path
