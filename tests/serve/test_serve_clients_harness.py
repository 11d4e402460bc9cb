"""lm-eval and inspect_ai, unchanged and offline, as people run them: budgets arrive, counts come back.

They run from an environment of their own, which `make test` builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from served import Server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("server")]

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv-clients" / "bin"
HERE = Path(__file__).parent
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n", "Question:"], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def run(folder: Path, program: str, *arguments: str, **env: str) -> str:
    """What the client printed; its home and caches are `folder`, and it is told to stay offline."""
    assert (CLIENTS / program).exists(), f"{CLIENTS / program}: make {CLIENTS.parent.name}/.made builds it"
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [CLIENTS / program, *arguments],
        cwd=folder,
        env={**kept, **offline, "HOME": str(folder), "OPENAI_API_KEY": "any", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def lm_eval(folder: Path, server: Server, name: str, budget: str) -> list[dict[str, Any]]:
    """The samples that lm-eval wrote down."""
    data = folder / "sums.jsonl"
    rows = [{"question": f"What is {n}+2?", "answer": str(n + 2)} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task").mkdir()
    (folder / "task" / "sums.yaml").write_text(TASK.format(data=data))
    model = f"model={name},base_url={server.url}/v1/chat/completions,num_concurrent=3,max_length=4096"
    run(
        folder,
        "lm_eval",
        *("run", "--model", "local-chat-completions", "--model_args", f"{model},timeout=60,max_retries=1"),
        *("--tasks", "sums", "--include_path", "task", "--apply_chat_template"),
        *("--gen_kwargs", f"{budget}max_gen_toks=64", "--output_path", "out", "--log_samples"),
    )
    (found,) = (folder / "out").rglob("samples_sums_*.jsonl")
    return [json.loads(line) for line in found.read_text().splitlines()]


@pytest.mark.parametrize("suffix", [False, True])
def test_lm_eval_thinks_as_long_as_it_was_told(server: Server, tmp_path: Path, suffix: bool) -> None:
    """By `--gen_kwargs thinking_token_budget=...`, and by the model's name for those who cannot send it."""
    before = server.metrics()
    name, told = (f"{server.model}@think=10", "") if suffix else (server.model, "thinking_token_budget=10,")
    samples = lm_eval(tmp_path, server, name, told)
    after = server.metrics()
    assert len(samples) == 6
    for sample in samples:
        # The same question, asked by hand with what lm-eval says that it sent, has the same answer.
        (asked,), sent = sample["arguments"]["gen_args_0"].values()
        (message,) = json.loads(asked)
        assert (sent.get("thinking_token_budget") == 10) is not suffix
        reply = server.ask(message["content"], thinking_token_budget=10, stop=sent["until"], max_tokens=64)
        assert reply.json["thinking"]["budget"] == 10
        assert sample["resps"][0][0] == reply.json["choices"][0]["message"]["content"]
    thought = {k: after[k] - before.get(k, 0) for k in after if "thinking" in k and "total" in k}
    assert sum(thought.values()) > 0, after


def inspect(folder: Path, server: Server, *options: str) -> dict[str, Any]:
    """The log that inspect wrote. It takes no absolute path of a task."""
    shutil.copy(HERE / "inspect_sums.py", folder)
    run(
        folder,
        "inspect",
        *("eval", "inspect_sums.py", "--model", f"openai-api/ours/{server.model}"),
        *("--log-dir", "logs", "--log-format", "json", "--display", "plain", "--max-tokens", "200"),
        *("--max-retries", "0", "--temperature", "0", *options),
        OURS_BASE_URL=f"{server.url}/v1",
        OURS_API_KEY="any",
    )
    (found,) = (folder / "logs").glob("*.json")
    log: dict[str, Any] = json.loads(found.read_text())
    assert log["status"] == "success" and len(log["samples"]) == 3
    return log


def reasoning(sample: dict[str, Any]) -> tuple[str, str]:
    """Thinking and answer as inspect split them."""
    content = sample["output"]["choices"][0]["message"]["content"]
    parts = {part["type"]: part for part in content}
    return parts["reasoning"]["reasoning"], parts["text"]["text"]


@pytest.mark.parametrize("stream", ["false", "true"])
def test_inspect_reads_reasoning_and_usage(server: Server, tmp_path: Path, stream: str) -> None:
    log = inspect(tmp_path, server, "--reasoning-effort", "low", "-M", f"stream={stream}")
    for sample in log["samples"]:
        thinking, answer = reasoning(sample)
        reply = server.ask(sample["input"], reasoning_effort="low", max_tokens=200).json
        message, usage = reply["choices"][0]["message"], reply["usage"]
        assert thinking == message["reasoning_content"] and answer == message["content"]
        seen = sample["output"]["usage"]
        assert seen["reasoning_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"] > 0
        assert seen["output_tokens"] == usage["completion_tokens"]
        assert seen["total_tokens"] == usage["total_tokens"]


def test_inspect_sends_a_budget_in_its_extra_body(server: Server, tmp_path: Path) -> None:
    controls = {"thinking_token_budget": 20, "thinking_wait": " Wait", "thinking_refuse_closes": 1}
    log = inspect(tmp_path, server, "--extra-body", json.dumps(controls))
    used = [sample["output"]["usage"]["reasoning_tokens"] for sample in log["samples"]]
    told = [server.ask(s["input"], max_tokens=200, **controls) for s in log["samples"]]
    assert used == [t.json["usage"]["completion_tokens_details"]["reasoning_tokens"] for t in told]
    assert all(t.json["thinking"]["used"] <= 20 for t in told)


def test_inspect_sees_a_prompt_that_is_too_long_as_its_stop_reason(server: Server, tmp_path: Path) -> None:
    words = "x" * 9000
    log = inspect(tmp_path, server, "--system-message", words)
    assert {s["output"]["choices"][0]["stop_reason"] for s in log["samples"]} == {"model_length"}
