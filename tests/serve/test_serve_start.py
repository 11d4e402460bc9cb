"""A proxy from the command line: what it is told, what it loads, and what its clients get."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from test_serve_upstream import says
from upstream_server import upstream

from tutelage.cli import main


@pytest.mark.slow
def test_a_proxy_forces_thinking_and_needs_no_torch():
    with upstream("vllm", says("so and so |")) as fake:
        process = subprocess.Popen(
            [sys.executable, "-m", "tutelage", "serve", "--upstream", fake.url, "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            env={**os.environ, "NO_COLOR": "1"},
        )
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            body = {
                "messages": [{"role": "user", "content": "hi"}],
                "min_thinking_tokens": 30,
                "thinking_token_budget": 40,
                "thinking_wait": "Wait",
                "max_tokens": 80,
            }
            request = urllib.request.Request(
                f"{ready['url']}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                reply = json.load(answer)
            thinking = reply["thinking"]
            assert 30 <= thinking["used"] <= 40 and thinking["waits"] >= 1 and thinking["forced"] >= 1
            assert thinking["used"] == thinking["sampled"] + thinking["forced"]
            assert "Wait" in reply["choices"][0]["message"]["reasoning_content"]
            assert reply["model"] == ready["model"]
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.terminate()
            process.wait(20)
    assert process.returncode == 0


def test_an_upstream_where_nobody_listens_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--upstream", "http://127.0.0.1:9", "--port", "0"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "127.0.0.1:9" in line
