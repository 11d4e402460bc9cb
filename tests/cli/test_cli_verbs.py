"""Verbs that need no model, on real files; and that each verb's options are settings of its stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_verbs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.cli import main
from tutelage.cli.options import comma_list
from tutelage.records import Verdict, write_records

START = (
    "import fake_verbs\n"
    "from tutelage.recipe import stages\n"
    "stages.KINDS = fake_verbs.KINDS\n"
    "from tutelage.cli import main\n"
    "main()\n"
)


def call(*arguments: str, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "q.jsonl").write_text(
        '{"question": "1+1", "answer": "2"}\n{"question": "2+2", "answer": "4"}\n'
    )
    (tmp_path / "t.parquet").write_bytes(b"traces")
    (tmp_path / "model").mkdir()
    return tmp_path


VERBS = {
    "verify": ["--traces", "t.parquet"],
    "train": ["--model", "model", "--traces", "t.parquet", "--verdicts", "t.parquet", "--steps", "3"],
    "evaluate": [
        *("--model", "model", "--samples", "4", "--num-steps", "8", "--exit", "kl:5e-4,min=2", "--continuous")
    ],
    "sweep": [
        *("gguf:some-package", "--budgets", "0,4,8", "--waits", "0,1", "--minimums", "6"),
        *("--wait-strings", 'Wait,\nHmm," So, ",none', "--samples", "4", "--temperature", "0.7"),
        *("--votes", "1,4", "--methods", "rejection:8,class-conditional:short", "--target", "0.5,0.25"),
        *("--max-thinking", "32", "--close-text", "Answer", "--max-answer", "9"),
        *("--num-steps", "1,2", "--exit", "kl:5e-4,min=2", "--exit", "argmax:5", "--continuous"),
        *("--depth", "4"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_runs_its_stage_with_its_options(folder: Path, verb: str) -> None:
    arguments = [verb, "--problems", "q.jsonl", "--out", "out/result.json", *VERBS[verb], "--json"]
    code, out, err = call(*arguments, "--set", "extra=1e-3", folder=folder)
    assert code == 0, err
    document = json.loads(out)
    seen = document["metrics"]
    assert seen["problems"] == 2 and seen["extra"] == 0.001
    assert next(iter(document["outputs"].values())) == str(folder / "out/result.json")
    assert "a library prints" in err
    if verb == "sweep":
        assert seen["budgets"] == [0, 4, 8] and seen["arm"] == "result"
        assert seen["wait_strings"] == ["Wait", "\nHmm", " So, ", None] and seen["waits"] == [0, 1]
        assert seen["methods"] == ["rejection:8", "class-conditional:short"] and seen["votes"] == [1, 4]
        assert seen["targets"] == [0.5, 0.25] and seen["temperature"] == 0.7 and seen["samples"] == 4
        assert seen["exits"] == ["kl:5e-4,min=2", "argmax:5"] and seen["num_steps"] == [1, 2]
        assert seen["continuous"] is True and seen["depth"] == 4
        assert document["points"] == [{"setting": "greedy"}] and document["analysis"] == {"lines": []}
        again = [each.replace("out/result.json", "again") for each in arguments[:-1]]
        text = call(*again, folder=folder)[1]
        assert text.splitlines()[0] == (
            "1 points over 2 problems; unforced 50.0% [10.0%, 90.0%] at 7 thinking tokens; "
            "highest 75.0% [20.0%, 95.0%] at 9 thinking tokens and 6.2 loops (at most 8 tokens)"
        )
        assert seen["model"] == f"file:{folder}/out/student-gguf-some-package"
    if verb == "evaluate":
        assert seen["policy"] == {"num_steps": 8, "exit": "kl:5e-4,min=2", "continuous": True}
    if verb == "train":
        assert seen["keep"] == "correct" and seen["steps"] == 3
        code, out, _ = call(*arguments[:-1], folder=folder)  # without --json
        assert code == 0 and "wrote " in out and "problems: 2" in out


@pytest.mark.parametrize("verb", VERBS)
def test_the_options_of_a_verb_are_settings_of_the_real_stage(
    folder: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "student-gguf-some-package").mkdir()
    (folder / "student-gguf-some-package/config.json").write_text("{}")
    messages = []

    def noted(message: dict[str, Any], _send: object) -> tuple[dict[str, Any], dict[str, str]]:
        messages.append(message)
        if verb == "sweep":
            return dict(fake_verbs.curve(Path(message["outputs"]["curve"]))), {}
        return {}, {}

    monkeypatch.setattr("tutelage.recipe.single.perform", noted)
    with pytest.raises(SystemExit) as ended:
        main([verb, "--problems", "q.jsonl", "--out", "result", *VERBS[verb]])
    assert ended.value.code == 0, capfd.readouterr().err
    assert messages[0]["stage"] == verb


@given(st.lists(st.text(st.sampled_from('a", \n'), min_size=1), min_size=1, max_size=4))
def test_any_items_can_be_written_as_a_comma_list(items: list[str]) -> None:
    """Quoted always; bare where there is something to see and neither comma nor quote."""

    def bare(item: str) -> bool:
        return bool(item.strip()) and not set(',"') & set(item)

    def quoted(item: str) -> str:
        return '"' + item.replace('"', '""') + '"'

    assert comma_list(",".join(map(quoted, items)), "--x") == items
    assert comma_list(",".join(i if bare(i) else quoted(i) for i in items), "--x") == items


MISTAKES = {
    "verify --problems gone.jsonl --traces t.parquet": "gone.jsonl: no such file",
    "verify --problems q.jsonl --traces gone": "tutelage verify: --traces: no such file",
    "verify --problems bad.jsonl --traces t.parquet": "bad.jsonl line 2",
    "collect --problems q.jsonl": "tutelage collect: Missing option '--teacher'",
    "train --problems q.jsonl --traces t.parquet --model ./no": "tutelage student: --source: no such file",
    "evaluate --problems q.jsonl --model m --set x": "--set stages.evaluate.x: write",
    "evaluate --problems q.jsonl --model m --column x": "--column x: write it as",
    "sweep m --problems q.jsonl --budgets 4,x": "--budgets 4,x: write numbers with commas",
    "sweep m --problems q.jsonl --budgets 4,": "--budgets 4,: write items with commas",
    'sweep m --problems q.jsonl --wait-strings "Wait,Hmm': '--wait-strings "Wait,Hmm: write items with',
    "sweep m --problems q.jsonl --set x": "--set stages.sweep.x: write",
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.items())
def test_a_mistake_is_one_line(folder: Path, arguments: str, message: str) -> None:
    (folder / "bad.jsonl").write_text('{"question": "1+1", "answer": "2"}\n{"question\n')
    code, out, err = call(*arguments.split(), "--out", "o.json", folder=folder)
    last = err.strip().splitlines()[-1]
    assert code == 2 and out == "" and last.startswith(f"error: {message}"), err
    assert "Traceback" not in err


def verdicts(path: Path, statuses: str, first: int = 0) -> None:
    names = {"c": "correct", "i": "incorrect", "u": "undecided"}
    write_records(
        path,
        [
            Verdict(f"t{n}", f"p{n}", names[each], "", "number")  # type: ignore[arg-type]
            for n, each in enumerate(statuses, first)
        ],
        Verdict,
    )


def test_compare_gives_a_paired_interval_and_counts_the_undecided(tmp_path: Path) -> None:
    verdicts(tmp_path / "a.parquet", "c" * 30 + "i" * 10)
    verdicts(tmp_path / "b.parquet", "c" * 10 + "i" * 29 + "u")
    code, out, _ = call("compare", "a.parquet", "b.parquet", "--json", folder=tmp_path)
    found = json.loads(out)
    assert code == 0 and found["difference"] == 0.5 and found["n"] == 40
    assert 0 < found["ci95"][0] < 0.5 < found["ci95"][1] and found["undecided"] == [0, 1]
    text = call("compare", "a.parquet", "b.parquet", folder=tmp_path)[1]
    assert "a minus b: +50.0%" in text and "n = 40" in text


def test_compare_refuses_what_is_not_comparable(tmp_path: Path) -> None:
    verdicts(tmp_path / "a.parquet", "ccc")
    verdicts(tmp_path / "b.parquet", "ccc", first=1)
    verdicts(tmp_path / "none.parquet", "")
    code, _, err = call("compare", "a.parquet", "b.parquet", folder=tmp_path)
    assert code == 2 and "1 problems were answered only by 'a'" in err
    code, _, err = call("compare", "a.parquet", "none.parquet", folder=tmp_path)
    assert code == 2 and "none.parquet: holds no verdicts" in err


@pytest.mark.slow
def test_report_runs_only_the_report_again(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n  one: {kind: make}\n  page: {kind: page, parts: [one]}\n"
    )
    code, _, err = call("report", "run", folder=tmp_path)
    assert code == 2 and "run: not a run folder" in err
    assert call("run", "r.yaml", "--run-dir", "run", "--only", "one", folder=tmp_path)[0] == 0
    assert call("report", "run", folder=tmp_path)[0] == 0
    before = (tmp_path / "run/page.html").read_text()
    code, out, _ = call("report", "run", folder=tmp_path)
    assert code == 0 and out.strip().endswith("page.html")
    assert (tmp_path / "run/page.html").read_text() != before  # it holds the time of writing
    (tmp_path / "run/one.json").unlink()
    code, _, err = call("report", "run", folder=tmp_path)
    assert code == 2 and "1 jobs are not finished (one)" in err and "tutelage run " in err
