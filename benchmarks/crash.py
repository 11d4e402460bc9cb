"""kill -9 at random moments of a collecting run, again and again; then to the end; then the counts.

Checked: every request is answered once in the traces; no request whose reply was stored before a kill was
sent again after it; what was asked more than once is no more than what was in flight at the kills. The fake
server counts, not we.
"""

from __future__ import annotations

import argparse
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fake_server import counts, serving

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Kill:
    """What was so after one kill: `asked` by prompt, the prompts that are `stored`, and those `flying`: asked
    by the process that was killed, and not stored."""

    asked: dict[str, int]
    stored: frozenset[str]
    flying: frozenset[str]


def prompt(number: int) -> str:
    """The question of problem `number`."""
    return f"What is {number} and {number}?"


def collect_all(url: str, ledger: Path, requests: int, at_once: int) -> None:
    """The whole run; checks the traces."""
    from tutelage.records import Problem
    from tutelage.teachers.collect import collect
    from tutelage.teachers.endpoint import EndpointTeacher

    problems = [Problem(id=f"p{number}", question=prompt(number)) for number in range(requests)]
    teacher = EndpointTeacher(url, "m", concurrency=at_once)
    found = collect(problems, teacher, samples=1, ledger_path=ledger)
    if found.error:
        raise found.error
    traces = list(found.traces)
    assert [trace.problem_id for trace in traces] == [problem.id for problem in problems]
    assert len({trace.request_key for trace in traces}) == requests


def child(url: str, ledger: Path, requests: int, at_once: int) -> subprocess.Popen[bytes]:
    """The run in a process of its own."""
    command = [sys.executable, __file__, "--child", url, str(ledger)]
    return subprocess.Popen([*command, "--requests", str(requests), "--at-once", str(at_once)])


def stored(ledger: Path) -> frozenset[str]:
    """Prompts with a stored reply, read without our own code."""
    if not ledger.exists():
        return frozenset()
    with sqlite3.connect(ledger) as file:
        try:
            rows = file.execute(
                "SELECT json_extract(request, '$.messages[0].content') FROM replies WHERE raw IS NOT NULL"
            ).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            rows = []  # killed before the ledger was made
    file.close()
    return frozenset(text for (text,) in rows)


def kill_at(url: str, ledger: Path, target: int, delay: float, options: argparse.Namespace) -> Kill:
    """Start a run and kill it `delay` seconds after `target` requests have been answered in all."""
    before = counts(url)
    process = child(url, ledger, options.requests, options.at_once)
    end = time.monotonic() + WAIT_SECONDS
    while len(counts(url, "answered")) < target and process.poll() is None:
        assert time.monotonic() < end, f"only {len(counts(url, 'answered'))} of {target} answers"
        time.sleep(0.004)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    asked = counts(url)
    while True:  # until the server has read what was on its way
        time.sleep(0.03)
        if asked == (asked := counts(url)):
            break
    here = stored(ledger)
    now = {text for text, count in asked.items() if count > before.get(text, 0)}
    return Kill(asked, here, frozenset(now - here))


def main(arguments: list[str] | None = None) -> None:
    """Print the counts; an AssertionError where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, metavar=("URL", "LEDGER"))
    options = parser.parse_args(arguments)
    if options.child:
        collect_all(options.child[0], Path(options.child[1]), options.requests, options.at_once)
        return
    chance = random.Random(options.seed)
    targets = sorted(chance.randrange(options.requests) for _ in range(options.kills))
    kills: list[Kill] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serving(0.05) as url:
        ledger = Path(folder) / "ledger.sqlite"
        for target in targets:
            kills.append(kill_at(url, ledger, target, chance.uniform(0, 0.1), options))
        process = child(url, ledger, options.requests, options.at_once)
        assert process.wait() == 0, "the last run did not end well"
        asked = counts(url)
        assert len(stored(ledger)) == options.requests
    _check(kills, asked, options)
    again = sum(asked.values()) - options.requests
    flying = [len(kill.flying) for kill in kills]
    print(
        f"{options.kills} kills in a run of {options.requests} requests, {options.at_once} at once, "
        f"{time.monotonic() - began:.0f} s (seed {options.seed})"
    )
    print(f"replies stored at the kills: {[len(kill.stored) for kill in kills]}")
    print(f"in flight at the kills: {flying}, {sum(flying)} in all")
    print(
        f"answered once in the traces: {options.requests}; "
        f"sent in all: {sum(asked.values())}, so {again} again"
    )
    print("sent again although stored: 0")


def _check(kills: list[Kill], asked: dict[str, int], options: argparse.Namespace) -> None:
    assert len(asked) == options.requests, f"{len(asked)} prompts were asked"
    for kill in kills:
        more = [text for text in kill.stored if asked[text] > kill.asked.get(text, 0)]
        assert not more, f"stored before a kill and sent again after it: {more[:3]}"
        assert len(kill.flying) <= options.at_once, f"{len(kill.flying)} were in flight at a kill"
    again = sum(asked.values()) - options.requests
    assert again <= sum(len(kill.flying) for kill in kills), f"{again} repeats"


if __name__ == "__main__":
    main()
