"""keys: the API key is in the header of a request, and in nothing that is written down or shown."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Say, chunks, completion, event, message, message_events, problems, serving
from hypothesis import given
from hypothesis import strategies as st

from tutelage.cli import main
from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.keys import SHORTEST, hide_key, read_key
from tutelage.teachers.replies import parse_reply
from tutelage.teachers.streams import unpack

KEY = "sk-do/not\\" + '"show-me'
TEACHER = EndpointTeacher("http://host/v1", "m")


def test_the_key_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_key("") == ""
    monkeypatch.setenv("MY_KEY", " sk-1\n")
    teacher = replace(TEACHER, key_env="MY_KEY")
    assert read_key(teacher.key_env) == "sk-1"
    request = teacher.order(Problem(id="p", question="?"), 0).debt.request
    assert "sk-1" not in repr(teacher) + repr(asdict(teacher)) + request


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NOT_SET", None, "key_env: the environment variable NOT_SET is not set"),
        ("MY_KEY", "  ", "MY_KEY is not set"),
        ("MY_KEY", "sk-secret\r\nX: y", "MY_KEY holds something that cannot be a key"),
        ("MY_KEY", "sk-secret clé", "MY_KEY holds something that cannot be a key"),
        ("sk-secret", None, "key_env: give the NAME"),
    ],
)
def test_a_missing_or_mistaken_key_is_one_line_without_the_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str
) -> None:
    if value is not None:
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        read_key(name)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": {"api_key": "sk-secret"}},
        {"sampling": {"user": ["me", "sk-secret"]}},
        {"system": "The key is sk-secret."},
        {"model": "sk-secret"},
        {"base_url": "http://host/sk-secret/v1"},
    ],
)
def test_a_key_among_the_settings_is_refused(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with pytest.raises(UsageError) as caught:
        replace(TEACHER, key_env="MY_KEY", **change).check()
    assert f"{next(iter(change))}: holds the API key" in str(caught.value)
    assert "sk-secret" not in str(caught.value)


# --- replies ---


@given(st.text(), st.text(), st.booleans())
def test_a_reply_without_the_key_is_left_as_it_came(before: str, after: str, plain: bool) -> None:
    raw = json.dumps(completion(before + after), ensure_ascii=not plain).encode("utf-8", "surrogatepass")
    assert hide_key(raw, KEY) == raw
    assert hide_key(raw, "") == raw
    stream = b"".join(
        one.encode() if isinstance(one, str) else event(one) for one in chunks(completion(after))
    )
    assert hide_key(stream, KEY) == stream


@given(
    st.lists(
        st.sampled_from(["plain", "number", "NUMBER", "backslash"]), min_size=len(KEY), max_size=len(KEY)
    )
)
def test_the_key_is_hidden_however_json_spells_it(ways: list[str]) -> None:
    spelt = "".join(map(spelling, KEY, ways))
    raw = f'{{"choices": [{{"message": {{"content": "<{spelt}>"}}, "finish_reason": "stop"}}]}}'.encode()
    assert KEY in json.loads(raw)["choices"][0]["message"]["content"]
    assert parse_reply(hide_key(raw, KEY)).answer == "<***>"


def spelling(character: str, way: str) -> str:
    if way in ("number", "NUMBER"):
        digits = f"{ord(character):04x}"
        return "\\u" + (digits.upper() if way == "NUMBER" else digits)
    return "\\" + character if character in '"\\' or (way == "backslash" and character == "/") else character


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_key_in_pieces_over_a_stream_is_hidden(size: int) -> None:
    said = completion(f"<{KEY}>", reasoning=f"it is {KEY}", usage=(10, 20))
    raw = b"".join(one.encode() if isinstance(one, str) else event(one) for one in chunks(said, size))
    found = parse_reply(hide_key(raw, KEY))
    assert (found.thinking, found.answer, found.completion_tokens) == ("it is ***", "<***>", 20)
    raw = "".join(message_events(message(f"<{KEY}>", f"it is {KEY}"), size)).encode()
    found = parse_reply(hide_key(raw, KEY))
    assert (found.thinking, found.answer, found.completion_tokens) == ("it is ***", "<***>", 20)


@pytest.mark.parametrize("word", ["x", "none", "EMPTY"])
def test_a_word_in_place_of_a_key_is_no_secret(word: str) -> None:
    assert len(word) < SHORTEST
    raw = json.dumps(completion(f"the {word} set")).encode()
    assert hide_key(raw, word) == raw


# --- end to end ---

PLAIN_KEY = "sk-do-not-show-me-0123456789"
ECHO = {"X-Echo": f"Bearer {PLAIN_KEY}"}


def echoes() -> list[Say]:
    """The key in bodies, headers and errors, plainly and in pieces."""
    said = completion(f"your key is {PLAIN_KEY}", reasoning_content=f"hm {PLAIN_KEY}")
    return [
        Say(said, headers=ECHO),
        Say(events=chunks(said), headers=ECHO),
        Say({"error": {"message": f"bad key {PLAIN_KEY}", "type": PLAIN_KEY}}, status=400, headers=ECHO),
        Say({"error": {"message": f"overloaded, {PLAIN_KEY}"}}, headers=ECHO),
        Say(f"<html>{PLAIN_KEY}</html>".encode(), status=500, headers=ECHO),
        Say(events=[*chunks(said)[:5], {"error": {"message": f"gone {PLAIN_KEY}"}}], headers=ECHO),
        Say(completion("", refusal=f"not with {PLAIN_KEY}"), headers=ECHO),
        Say({"choices": [{"message": {"content": "x"}, "finish_reason": PLAIN_KEY}]}, headers=ECHO),
        Say({"error": PLAIN_KEY}, status=429, headers={**ECHO, "Retry-After": PLAIN_KEY}),
        Say(said, status=418, torn=True, headers=ECHO),
    ]


def written(folder: Path) -> bytes:
    """All bytes in a folder, and the replies of its ledger unpacked."""
    files = [file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()]
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        rows = ledger.execute("SELECT raw FROM replies WHERE raw IS NOT NULL").fetchall()
    return b"".join([*files, *(unpack(raw) for (raw,) in rows)])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_a_server_that_echoes_the_key_gets_it_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool, header: str
) -> None:
    monkeypatch.setenv("TEACHER_KEY", PLAIN_KEY)
    says, notes = echoes(), list[str]()
    with serving(lambda number, body: says[number % len(says)]) as server:
        teacher = EndpointTeacher(
            server.url,
            "m",
            key_env="TEACHER_KEY",
            api="chat" if header == "Authorization" else "messages",
            max_tokens=10,
            stream=stream,
            retries=1,
            backoff_s=0.01,
            concurrency=1,
        )
        found = collect(
            problems(12),
            teacher,
            samples=2,
            ledger_path=tmp_path / "ledger.sqlite",
            progress=lambda done, total, note: notes.append(note),
        )
        assert all(PLAIN_KEY in headers[header] for headers in server.headers)
        assert all(PLAIN_KEY not in json.dumps(body) for body in server.bodies)
    traces = list(found.traces)
    assert any("***" in trace.answer for trace in traces) and found.failed
    assert any("***" in reason for _, reason in found.failed)
    everything = repr((traces, found, notes)).encode() + written(tmp_path)
    assert PLAIN_KEY.encode() not in everything


@pytest.mark.parametrize("number", range(len(echoes())))
def test_the_command_shows_and_writes_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    """Everything in the output folder, on stdout and on stderr, for each way to echo it."""
    monkeypatch.setenv("TEACHER_KEY", PLAIN_KEY)
    (tmp_path / "p.jsonl").write_text('{"id": "a", "question": "What is 1?", "answer": "1"}\n')
    say = echoes()[number]
    answers = [say, Say({"error": {"message": PLAIN_KEY}}, status=401)]
    with serving(lambda n, body: answers[min(n, 1)]) as server:
        words = ["collect", "--problems", str(tmp_path / "p.jsonl"), "--teacher", "openai:m"]
        words += ["--base-url", server.url, "--key-env", "TEACHER_KEY", "--samples", "2"]
        words += ["--out", str(tmp_path / "out"), "--json"]
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        assert server.headers[0]["Authorization"] == f"Bearer {PLAIN_KEY}"
    out, err = capfd.readouterr()
    assert code in (0, 2, 3)
    assert PLAIN_KEY not in out + err
    assert PLAIN_KEY.encode() not in written(tmp_path / "out")
