"""How long the rest of a run takes, and which job to start first.

Promises: pure functions of the plan and of what was measured so far; the guess of a kind is scaled by how its
finished jobs compared with their guesses.
Does not: read clocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from tutelage.recipe.plan import Job


def ranks(jobs: Sequence[Job]) -> dict[str, float]:
    """Seconds from the start of each job to the end of the longest chain that hangs on it. The ready job
    with the highest rank goes first, so that no long chain is left alone at the end."""
    found: dict[str, float] = {}
    for job in reversed(jobs):
        hanging = [found[other.id] for other in jobs if job.id in other.after and other.id in found]
        found[job.id] = job.expected_s + max(hanging, default=0.0)
    return found


def scale(jobs: Sequence[Job], took: Mapping[str, float]) -> dict[str, float]:
    """Expected seconds of each job, scaled by the measured over guessed time of finished jobs (`took`,
    seconds by id) of its kind, or of all kinds where none of its own has finished."""
    guessed: dict[str, float] = {}
    measured: dict[str, float] = {}
    for job in jobs:
        if job.id in took:
            for name in (job.kind.name, ""):
                guessed[name] = guessed.get(name, 0.0) + job.expected_s
                measured[name] = measured.get(name, 0.0) + took[job.id]
    factors = {name: measured[name] / guessed[name] for name in guessed}
    overall = factors.get("", 1.0)
    return {job.id: job.expected_s * factors.get(job.kind.name, overall) for job in jobs}


def remaining(expected_s: float, elapsed_s: float, fraction: float) -> float:
    """Seconds a running job still takes: by its own progress once a twentieth is done, else by the guess."""
    if fraction >= 0.05:
        return elapsed_s * (1.0 - min(fraction, 1.0)) / fraction
    return max(expected_s - elapsed_s, 0.1 * expected_s)


def time_left(
    jobs: Sequence[Job], seconds: Mapping[str, float], running: Mapping[str, float], workers: int
) -> float:
    """Seconds until all is done: the plan played through with `workers` workers.

    `running` gives the seconds left of running jobs; jobs neither in `running` nor in `seconds` are
    finished."""
    waiting = {job.id: set(job.after) for job in jobs if job.id in seconds and job.id not in running}
    unfinished = waiting.keys() | running.keys()
    for needed in waiting.values():
        needed &= unfinished
    busy = [(left, name) for name, left in running.items()]
    heapq.heapify(busy)
    clock = 0.0
    order = sorted(waiting, key=ranks(jobs).__getitem__, reverse=True)
    while busy or waiting:
        for name in [name for name in order if name in waiting and not waiting[name]]:
            if len(busy) >= workers:
                break
            del waiting[name]
            heapq.heappush(busy, (clock + seconds[name], name))
        if not busy:
            break
        clock, ended = heapq.heappop(busy)
        for needed in waiting.values():
            needed.discard(ended)
    return clock
