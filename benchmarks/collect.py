"""Collecting, side by side with a bare aiohttp loop that stores nothing.

Both ask the same fake server (a process of its own, a fixed 50 ms, replies of about 1 kB, every prompt
another) with the same number of requests at once, by turns, each round in a fresh process. `collect` has
every reply on disk (synchronous=FULL) before it counts. With `--requests 100000` the memory in use is printed
as it goes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fake_server import serving

ROUNDS = 3


async def _bare(url: str, requests: int, at_once: int) -> None:
    import aiohttp

    numbers = iter(range(requests))
    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def work() -> None:
            for number in numbers:
                message = {"role": "user", "content": f"What is {number} and {number}?"}
                body = json.dumps({"model": "m", "messages": [message]}).encode()
                headers = {"Content-Type": "application/json"}
                async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                    await response.read()

        await asyncio.gather(*(work() for _ in range(at_once)))


def _collect(url: str, requests: int, at_once: int, ledger: Path, every: int) -> list[int]:
    """Resident memory in MB at each `every` finished requests."""
    from tutelage.records import Problem
    from tutelage.teachers.collect import collect
    from tutelage.teachers.endpoint import EndpointTeacher

    problems = [Problem(id=f"p{n}", question=f"What is {n} and {n}?") for n in range(requests)]
    memory: list[int] = []

    def progress(done: int, total: int, note: str) -> None:
        if done >= every * (len(memory) + 1):
            memory.append(_resident())

    teacher = EndpointTeacher(url, "m", concurrency=at_once)
    found = collect(problems, teacher, samples=1, ledger_path=ledger, progress=progress)
    assert (found.bought, found.sent, len(found.traces)) == (requests, requests, requests), found.failures
    return memory


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20


def one(side: str, url: str, requests: int, at_once: int, every: int) -> None:
    """One round; prints its figures as JSON."""
    memory: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        if side == "collect":
            import tutelage.teachers.endpoint  # noqa: F401 - not part of the time
        else:
            import aiohttp  # noqa: F401
        began, busy = time.perf_counter(), time.process_time()
        if side == "collect":
            memory = _collect(url, requests, at_once, Path(folder) / "ledger.sqlite", every)
        else:
            asyncio.run(_bare(url, requests, at_once))
        seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = {"per_s": requests / seconds, "cpu_ms": 1000 * cpu / requests, "peak_mb": peak}
    print(json.dumps({**figures, "memory_mb": memory}))


def _round(side: str, url: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--url", url, "--every", str(options.every)]
    command += ["--requests", str(options.requests), "--at-once", str(options.at_once)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--every", type=int, default=10_000, help="memory is noted every so many requests")
    parser.add_argument("--side", choices=["bare", "collect"], help="one side alone, against --url")
    parser.add_argument("--url", default="")
    options = parser.parse_args(arguments)
    if options.side:
        one(options.side, options.url, options.requests, options.at_once, options.every)
        return
    found: dict[str, list[dict[str, float]]] = {"bare": [], "collect": []}
    with serving() as url:
        for _ in range(options.rounds):
            for side, rounds in found.items():
                rounds.append(_round(side, url, options))
    print(
        f"{options.requests} requests, {options.at_once} at once, 50 ms each, "
        f"{options.rounds} rounds by turns"
    )
    for side, rounds in found.items():
        speeds = " / ".join(f"{each['per_s']:,.0f}" for each in rounds)
        cpu = statistics.median(each["cpu_ms"] for each in rounds)
        peak = max(each["peak_mb"] for each in rounds)
        print(f"{side:8} {speeds} requests/s   {cpu:.3f} ms CPU per request   {peak} MB at most")
    ratios = [c["per_s"] / b["per_s"] for b, c in zip(found["bare"], found["collect"], strict=True)]
    print(
        f"collect / bare, round by round: {' / '.join(f'{ratio:.2f}' for ratio in ratios)}, "
        f"median {statistics.median(ratios):.2f} (wanted: 0.60)"
    )
    for each in found["collect"]:
        if each["memory_mb"]:
            print(f"memory of collect every {options.every}: {each['memory_mb']} MB")


if __name__ == "__main__":
    main()
