"""`tutelage collect` against a real server: what it buys, prints and keeps, and how it fails."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tutelage.cli import main
from tutelage.ledger import Ledger
from tutelage.records import Problem, Trace, read_records

COLLECT = [sys.executable, "-m", "tutelage", "collect"]
STATES = {"owed": 0, "done": 0, "truncated": 0, "refused": 0, "empty": 0, "failed": 0}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fake server, which lives beside the tests of teachers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    return importlib.import_module("endpoint_server")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 30 questions, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"p{n}", "question": f"What is {n}?", "answer": str(n)} for n in range(30)]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


class Caller:
    """`collect` with its usual options; `teacher` is asked at `url`."""

    def __init__(self, capfd: pytest.CaptureFixture[str], url: str) -> None:
        self.capfd = capfd
        self.usual = ["--problems", "q.jsonl", "--teacher", "openai:m", "--base-url", url, "--out", "out"]

    def text(self, *arguments: str, usual: bool = True) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["collect", *(self.usual if usual else ()), *arguments])
        out, err = self.capfd.readouterr()
        assert "Traceback" not in err, err
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    def json(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        code, out, _ = self.text(*arguments, "--json")
        return code, json.loads(out)

    def refused(self, *arguments: str, usual: bool = True) -> str:
        """The one line of a call that does nothing."""
        code, out, err = self.text(*arguments, usual=usual)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and out == "" and len(errors) == 1, (code, out, err)
        return errors[0].removeprefix("error: ")


@contextmanager
def asking(fake: Any, capfd: pytest.CaptureFixture[str], script: Any) -> Iterator[tuple[Any, Caller]]:
    with fake.serving(script) as server:
        yield server, Caller(capfd, server.url)


def asked(body: dict[str, Any]) -> int:
    """The number in the question."""
    return int(re.findall(r"\d+", body["messages"][-1]["content"])[-1])


def teacher(fake: Any) -> Any:
    """Right but for every third question; every tenth needs a limit of 200 tokens."""

    def script(number: int, body: dict[str, Any]) -> Any:
        n = asked(body)
        if n % 10 == 0 and body.get("max_tokens", 0) < 200:
            return fake.Say(fake.completion("cut", "length"))
        return fake.Say(fake.completion(f"It is {n if n % 3 else n + 1}.", reasoning_content="hm"))

    return script


PRICED = ["--price", "1,2", "--max-tokens", "100"]


def test_the_document_holds_states_requests_and_money(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with asking(fake, capfd, teacher(fake)) as (server, call):
        code, told = call.json(*PRICED, "--samples", "2")
        assert code == 0 and len(server.bodies) == 60
        assert told["states"] == {**STATES, "done": 54, "truncated": 6}
        assert (told["requests"], told["requests_sent"], told["requests_from_ledger"]) == (60, 60, 0)
        assert (told["problems"], told["samples"], told["traces"], told["failures"]) == (30, 2, 60, {})
        cost = 60 * (Decimal(10) * 1 + Decimal(20) * 2) / 10**6
        assert Decimal(told["cost"]) == Decimal(told["spent"]) == cost
        assert (told["prompt_tokens"], told["completion_tokens"]) == (600, 1200)
        assert {
            name: Path(path).relative_to(folder).as_posix() for name, path in told["outputs"].items()
        } == {
            "traces": "out/data/traces.parquet",
            "problems": "out/data/problems.parquet",
            "ledger": "out/ledger.sqlite",
        }
        traces = read_records(folder / "out/data/traces.parquet", Trace)
        assert [(t.problem_id, t.sample) for t in traces] == [(f"p{n}", s) for n in range(30) for s in (0, 1)]
        assert len(read_records(folder / "out/data/problems.parquet", Problem)) == 30

        # The same command finds everything in the ledger.
        before = (folder / "out/data/traces.parquet").read_bytes()
        code, again = call.json(*PRICED, "--samples", "2")
        assert code == 0 and len(server.bodies) == 60
        assert (again["requests_sent"], again["requests_from_ledger"], again["spent"]) == (0, 60, "0")
        for now in ("pilot", "requests_sent", "requests_from_ledger", "spent"):
            del told[now]
            again.pop(now, None)
        assert again == told
        assert (folder / "out/data/traces.parquet").read_bytes() == before

        code, out, _ = call.text(*PRICED, "--samples", "2")
        assert (
            code == 0
            and "60 replies asked for: 54 done, 6 truncated; 60 were in the ledger, 0 requests" in out
        )
        assert "cost: $0.003, of which this call paid $0; 600 prompt and 1,200 completion tokens" in out


def test_the_options_reach_the_request(fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with asking(fake, capfd, fake.echo) as (server, call):
        options = (
            "--limit 1 --system Think. --max-tokens 64 --temperature 0.5 --set seed=3 --set sampling.top_p=1"
        )
        code, told = call.json(*options.split(), "--set", "prompt='Q: {question}'", "--set", "samples=2")
        assert code == 0 and told["samples"] == 2
        assert server.bodies[0] == {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Think."},
                {"role": "user", "content": "Q: What is 0?"},
            ],
            "max_tokens": 64,
            "seed": 3,
            "temperature": 0.5,
            "top_p": 1,
        }


def test_chosen_traces_are_bought_again_and_only_once(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = ["--retry", "finish_reason=length", "--set", "max_tokens=200", "--price", "1,2"]
    with asking(fake, capfd, teacher(fake)) as (server, call):
        assert "out/data/traces.parquet: no such file; collect without --retry first" in call.refused(*again)
        call.json(*PRICED)
        assert len(server.bodies) == 30
        code, told = call.json(*again, "--explain")
        assert code == 0 and told["would_be_sent"] == 3 and len(server.bodies) == 30
        assert [(miss["detail"], miss["count"]) for miss in told["misses"]] == [("max_tokens: 100 -> 200", 3)]

        code, told = call.json(*again)
        assert code == 0 and len(server.bodies) == 33
        assert told["retry"] == {"chosen": 3, "same_settings": 0, "unknown_problem": 0, "new": 3}
        assert told["states"] == {**STATES, "done": 3} and told["traces"] == 33
        # The cost is that of everything in the file: 30 replies and 3 that were bought again.
        assert Decimal(told["cost"]) == Decimal("0.00005") * 33 and Decimal(told["spent"]) == Decimal(
            "0.00015"
        )
        file = folder / "out/data/traces.parquet"
        traces = read_records(file, Trace)
        cut = {t.id: t for t in traces if t.finish_reason == "length"}
        assert {t.supersedes for t in traces[30:]} == cut.keys() and len(cut) == 3
        assert [t.problem_id for t in traces[30:]] == ["p0", "p10", "p20"]

        # The same command again buys nothing and writes the same file.
        before = file.read_bytes()
        code, told = call.json(*again)
        assert (code, len(server.bodies), told["retry"]["chosen"]) == (
            0,
            33,
            0,
        ) and file.read_bytes() == before
        # So does collecting again as at first: the new traces stay with those that they supersede.
        code, told = call.json(*PRICED)
        assert (code, len(server.bodies), told["traces"]) == (0, 33, 33) and file.read_bytes() == before
        assert Decimal(told["cost"]) == Decimal("0.00005") * 33
        # A request with the settings of the trace itself is not sent.
        code, out, _ = call.text("--retry", "finish_reason=stop,problem_id=p7", "--max-tokens", "100")
        assert code == 0 and len(server.bodies) == 33
        assert "retry: 1 traces chosen, 0 new, 1 left as they are: the settings are the same" in out


def test_a_kill_before_the_new_traces_are_written_loses_nothing(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ["--retry", "state=truncated", "--set", "max_tokens=200"]
    with asking(fake, capfd, teacher(fake)) as (server, call):
        call.json(*PRICED)
        with monkeypatch.context() as patch:
            patch.setattr("tutelage.recipe.jobs.collecting.with_new", lambda *_: 1 / 0)
            with pytest.raises(SystemExit):
                main(["collect", *call.usual, *again])
            capfd.readouterr()
        assert len(server.bodies) == 33
        code, told = call.json(*again)
        assert (code, len(server.bodies), told["requests_from_ledger"], told["traces"]) == (0, 33, 3, 33)


def test_the_pilot_says_what_the_rest_costs_before_it_is_bought(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with asking(fake, capfd, teacher(fake)) as (server, call):
        code, out, err = call.text(*PRICED, "--pilot", "10", "--pilot-only")
        assert code == 0 and len(server.bodies) == 10
        # Ten of thirty: every third question.
        assert sorted(asked(body) for body in server.bodies) == list(range(0, 30, 3))
        assert (
            "pilot: 10 replies for $0.00050, $0.000050 each; the 20 left will cost about $0.0010 (95 %" in err
        )
        assert "pilot: 0 of 10 correct" in err and "with none correct, look at the settings" in err
        assert "20 owed, 10 done" in out or "20 owed, 9 done, 1 truncated" in out
        code, told = call.json(*PRICED, "--pilot", "10")
        assert code == 0 and len(server.bodies) == 30 and told["requests_sent"] == 20
        assert told["pilot"]["left"] == 20 and told["pilot"]["correct"] == 0
        assert told["pilot"]["projected"] == "0.001" == told["spent"]
        # Nothing is missing any more: no pilot.
        assert "pilot" not in call.json(*PRICED, "--pilot", "10")[1]


def test_a_pilot_without_a_price_tells_tokens(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with asking(fake, capfd, fake.echo) as (_, call):
        code, out, err = call.text("--pilot", "5")
        assert code == 0 and "the price is unknown; about 500 completion tokens for the 25 left" in err
        assert "cost: unknown, of which this call paid unknown" in out


def test_a_pilot_is_not_bought_for_a_checker_that_cannot_work(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with asking(fake, capfd, fake.echo) as (server, call):
        line = call.refused("--checker", "gone.py:check")
        assert "gone.py" in line and "with pilot 0 there is none" in line and not server.bodies
        assert call.json("--checker", "gone.py:check", "--pilot", "0")[0] == 0


def test_failures_are_counted_and_the_rest_is_kept(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    well = {"yes": False}

    def script(number: int, body: dict[str, Any]) -> Any:
        if asked(body) == 7 and not well["yes"]:
            return fake.Say({"error": {"message": "too long"}}, 400)
        return fake.Say(fake.completion())

    with asking(fake, capfd, script) as (server, call):
        code, told = call.json()
        assert code == 3 and told["states"] == {**STATES, "done": 29, "failed": 1} and told["traces"] == 29
        assert told["failures"] == {"HTTP 400: too long": 1} and told["error"]["exit_code"] == 3
        assert "1 of 30 replies are missing" in told["error"]["message"]
        code, out, err = call.text()
        assert code == 3 and "failed: 1 x HTTP 400: too long" in out and "1 of 30 replies are missing" in err
        well["yes"] = True
        sent = len(server.bodies)
        code, told = call.json()
        assert code == 0 and told["states"]["done"] == 30 and len(server.bodies) == sent + 1


def test_a_budget_ends_the_buying_and_the_document_is_there(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with asking(fake, capfd, fake.echo) as (server, call):
        # A request may cost at most (its bytes + 128) * 1 + 20 * 2 millionths of a dollar, and costs 50.
        code, told = call.json("--price", "1,2", "--max-tokens", "20", "--budget", "0.001", "--pilot", "0")
        assert code == 3 and "budget" in told["error"]["message"]
        assert (
            0 < told["traces"] == told["states"]["done"] < 30
            and told["states"]["owed"] == 30 - told["traces"]
        )
        assert Decimal(told["cost"]) <= Decimal("0.001")
        assert len(read_records(folder / "out/data/traces.parquet", Trace)) == told["traces"]
        code, told = call.json("--price", "1,2", "--max-tokens", "20", "--budget", "1", "--pilot", "0")
        assert code == 0 and told["states"]["done"] == 30 and len(server.bodies) == 30


def test_explain_buys_and_writes_nothing(fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with asking(fake, capfd, fake.echo) as (server, call):
        code, out, _ = call.text("--explain")
        assert code == 0 and "0 in the ledger (none), 30 would be sent" in out and "30 never asked" in out
        assert not (folder / "out").exists() and not server.bodies
        call.json("--limit", "20")
        code, out, _ = call.text("--explain", "--temperature", "0.5")
        assert "20 other settings: temperature: (not set) -> 0.5 (p0 sample 0, p1 sample 0" in out
        assert "10 never asked (p20 sample 0" in out
        code, told = call.json("--explain")
        assert (told["requests"], told["requests_from_ledger"], told["would_be_sent"]) == (30, 20, 10)
        assert told["states"] == {"done": 20} and len(server.bodies) == 20


def test_recorded_traces_need_no_server_and_no_ledger(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"What is {n}?", "reasoning_content": "hm", "response": f"{n}"} for n in range(29)]
    Path("deepseek.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = Caller(capfd, "")
    usual = ["--problems", "q.jsonl", "--teacher", "replay:deepseek.jsonl", "--out", "out"]
    code, out, _ = call.text(*usual, "--json", usual=False)
    told = json.loads(out)
    assert code == 3 and told["traces"] == 29 and told["failures"] == {"no recording of sample 0 and on": 1}
    assert "ledger" not in told["outputs"] and not (folder / "out/ledger.sqlite").exists()
    assert {t.maker for t in read_records(folder / "out/data/traces.parquet", Trace)} == {"deepseek"}
    assert "--explain: recorded traces are not in a ledger" in call.refused(*usual, "--explain", usual=False)
    assert "recorded traces cannot be asked for again" in call.refused(
        *usual, "--retry", "maker=deepseek", usual=False
    )


def test_the_makers_own_servers_have_their_address_and_key(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.recipe.collecting import teacher_settings

    assert teacher_settings("openai:gpt", None, {}) == {
        "kind": "endpoint",
        "api": "chat",
        "base_url": "https://api.openai.com/v1",
        "model": "gpt",
        "key_env": "OPENAI_API_KEY",
        "max_tokens_field": "max_completion_tokens",
    }
    found = teacher_settings("anthropic:claude", None, {"key_env": "MINE", "system": None})
    assert (found["api"], found["base_url"], found["key_env"]) == (
        "messages", "https://api.anthropic.com/v1", "MINE"
    )  # fmt: skip
    # The key of the maker's own server is sent to no other one.
    assert teacher_settings("openai:a:b", "http://host/v1", {})["key_env"] == ""
    assert teacher_settings("openai:a:b", "http://host/v1", {})["model"] == "a:b"
    assert teacher_settings("local:lab-base", None, {"system": None}) == {
        "kind": "local",
        "model": "lab-base",
    }
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    call = Caller(capfd, "")
    line = call.refused("--problems", "q.jsonl", "--teacher", "openai:m", "--out", "out", usual=False)
    assert "the environment variable OPENAI_API_KEY is not set" in line


def test_the_commands_of_the_readme_work(fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    text = (root / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line.split()[2:] for line in text.splitlines() if line.startswith("tutelage collect ")]
    assert len(commands) == 3

    def script(number: int, body: dict[str, Any]) -> Any:
        cut = number == 5 and body["max_tokens"] == 8192
        return fake.Say(fake.completion("IV", "length" if cut else "stop"))

    sent = []
    with asking(fake, capfd, script) as (server, call):
        for command in commands:
            command[command.index("--base-url") + 1] = server.url
            command[command.index("--problems") + 1] = str(root / "examples/own-task/questions.jsonl")
            code, _, err = call.text(*command, usual=False)
            assert code == 0, err
            sent.append(len(server.bodies))
        assert sent == [120, 121, 121] and server.bodies[-1]["max_tokens"] == 32768
    assert len(read_records(folder / "runs/traces/data/traces.parquet", Trace)) == 121


MISTAKES = {
    "an unknown scheme": (
        ["--teacher", "gpt:4"],
        "--teacher gpt:4: no such teacher; write one of openai:MODEL",
    ),
    "no model": (["--teacher", "openai:"], "--teacher openai:: no such teacher"),
    "no address": (["--teacher", "completions:m"], "--teacher completions:m: give --base-url"),
    "an option of servers": (
        ["--teacher", "local:m", "--system", "x"],
        "--system: is for a server; for local:",
    ),
    "a price": (["--price", "1"], "--price 1: write PROMPT,COMPLETION"),
    "a price that is none": (["--price", "1,cheap"], "price.completion"),
    "a budget without a price": (["--budget", "5"], "budget"),
    "a filter": (["--retry", "length"], "--retry"),
    "an unknown setting": (
        ["--set", "max_tokenz=5"],
        "--set teacher.max_tokenz: unknown key; did you mean 'max_tokens'?",
    ),
    "an unknown setting of the stage": (
        ["--set", "sample=5"],
        "--set sample: unknown key; did you mean 'samples'?",
    ),
    "a setting unlike any": (["--set", "colour=5"], "--set colour: unknown key; there is: "),
    "a wrong setting": (
        ["--set", "max_tokens=many"],
        "--set teacher.max_tokens: input should be a valid integer",
    ),
    "a pilot that is none": (["--pilot", "0", "--pilot-only"], "--pilot-only needs --pilot"),
    "a key in place of its name": (["--key-env", "sk-123"], "give the NAME of an environment variable"),
    "a key that is not set": (["--key-env", "NO_SUCH_KEY"], "variable NO_SUCH_KEY is not set"),
    "no such file": (["--problems", "gone.jsonl"], "gone.jsonl: no such file"),
    "a missing column": (["--problems", "column.jsonl"], "column.jsonl: no question column"),
    "equal ids": (["--problems", "ids.jsonl"], "ids.jsonl line 2: id 'a' is taken by line 1"),
    "bytes that are no text": (["--problems", "bytes.jsonl"], "bytes.jsonl line 2: not UTF-8"),
    "an --out that is a file": (["--out", "q.jsonl"], "--out q.jsonl: is a file; give a folder"),
    "a ledger that is none": (["--out", "odd"], "odd/ledger.sqlite: not a readable ledger"),
    "a database of someone else": (["--out", "other"], "other/ledger.sqlite: a database, but not a ledger"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_costs_nothing(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str], mistake: str
) -> None:
    import sqlite3

    arguments, message = MISTAKES[mistake]
    Path("column.jsonl").write_text('{"frage": "1?", "answer": "1"}\n')
    Path("ids.jsonl").write_text('{"id": "a", "question": "1?", "answer": "1"}\n' * 2)
    Path("bytes.jsonl").write_bytes(
        b'{"question": "1?", "answer": "1"}\n{"question": "\xff", "answer": "1"}\n'
    )
    Path("odd").mkdir()
    Path("odd/ledger.sqlite").write_text("not a ledger " * 500)
    Path("other").mkdir()
    with sqlite3.connect("other/ledger.sqlite") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with asking(fake, capfd, fake.echo) as (server, call):
        usual = dict(zip(call.usual[::2], call.usual[1::2], strict=True))
        if "--teacher" in arguments:
            del usual["--base-url"]
        usual |= dict(zip(arguments[::2], arguments[1::2], strict=False))
        flags = arguments[-1:] if len(arguments) % 2 else []
        line = call.refused(*(part for pair in usual.items() for part in pair), *flags, usual=False)
        assert message in line and not server.bodies
        assert "sk-123" not in line


@pytest.mark.slow
def test_a_row_of_50_mb_is_asked_and_kept(fake: Any, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "x" * 50_000_000
    Path("q.jsonl").write_text(json.dumps({"id": "big", "question": f"{text} 5?", "answer": "5"}) + "\n")
    with asking(fake, capfd, lambda number, body: fake.Say(fake.completion("5"))) as (server, call):
        code, told = call.json()
        assert code == 0 and told["states"]["done"] == 1
        assert len(server.bodies[0]["messages"][0]["content"]) == len(text) + 3


STOPS = {
    "a wrong key": (401, {"error": {"message": "bad key"}}, "the server refuses the key"),
    "a model that does not exist": (404, {"error": {"message": "no model m"}}, "no such model or address"),
}


@pytest.mark.parametrize("stop", STOPS)
def test_what_cannot_work_stops_at_once_in_one_line(
    fake: Any, folder: Path, capfd: pytest.CaptureFixture[str], stop: str
) -> None:
    status, body, message = STOPS[stop]
    now = {"well": False}

    def script(number: int, asked: dict[str, Any]) -> Any:
        return fake.Say(fake.completion()) if now["well"] else fake.Say(body, status)

    with asking(fake, capfd, script) as (server, call):
        line = call.refused("--set", "concurrency=2")
        assert message in line and body["error"]["message"] in line and 1 <= len(server.bodies) <= 2
        # What was bought before is kept when it happens later.
        now["well"] = True
        assert call.json("--limit", "10")[1]["traces"] == 10
        now["well"] = False
        code, told = call.json("--set", "concurrency=2", "--pilot", "0")
        assert code == 3 and message in told["error"]["message"] and told["traces"] == 10
        assert len(read_records(folder / "out/data/traces.parquet", Trace)) == 10


def test_a_server_that_is_not_there_is_said_quickly(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    call = Caller(capfd, url)
    line = call.refused("--set", "retries=1")
    assert url in line and "no reply at all" in line
    with Ledger(folder / "out/ledger.sqlite") as ledger:
        assert ledger.totals().replies == 0


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_traces(fake: Any, folder: Path) -> None:
    with fake.serving(fake.echo) as server:
        usual = ["--problems", "q.jsonl", "--teacher", "openai:m", "--base-url", server.url, "--pilot", "3"]
        found = []
        for engine in ("ray", "local"):
            done = subprocess.run(
                [*COLLECT, *usual, "--out", engine, "--engine", engine, "--json"],
                env={**os.environ, "RAY_ADDRESS": "local"},  # no cluster that someone else may have started
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout)
            assert told["states"] == {**STATES, "done": 30} and told["requests_sent"] == 30
            found.append(read_records(folder / engine / "data/traces.parquet", Trace))
        assert found[0] == found[1] and len(server.bodies) == 60


@pytest.mark.slow
def test_an_interrupt_ends_with_130_and_the_same_command_goes_on(fake: Any, folder: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        return fake.Say(fake.completion(), seconds=0.0 if number < 10 else 60.0 if number < 12 else 0.0)

    with fake.serving(script) as server:
        usual = ["--problems", "q.jsonl", "--teacher", "openai:m", "--base-url", server.url, "--out", "out"]
        command = [*COLLECT, *usual, "--set", "concurrency=2", "--pilot", "0", "--json"]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 60
        while len(server.bodies) < 12 and time.monotonic() < end:
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        out, err = first.communicate(timeout=60)
        assert first.returncode == 130 and json.loads(out)["error"]["exit_code"] == 130, err
        assert "interrupted; run the same command again to continue" in err and "Traceback" not in err
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        told = json.loads(done.stdout)
        assert done.returncode == 0 and told["traces"] == 30 and told["requests_from_ledger"] == 10
        assert len(server.bodies) == 32  # only the two in flight were asked twice
