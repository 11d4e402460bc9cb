"""A worker process: takes jobs as JSON lines on stdin, answers with JSON lines on stdout.

Promises: what libraries print goes to stderr (the run's log.txt) and never into the protocol; the worker
ends at once when its parent does, also after `kill -9` and in the middle of a long call; every failure of
a job is one answer, with the traceback in the log. The global random generators of the libraries loaded so
far are set before each job, so that the order of jobs in a worker shows less; stages still pass seeds of
their own. Does not: choose jobs, touch the manifest, or import a room before a job needs it.

In:  {"job": {...}}                       Out: {"progress": [done, total, note]}
                                               {"done": {"metrics": ..., "outputs": {name: sha256},
                                               "seconds": ...}} {"error": {"kind": ..., "message": ...}}
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import queue
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import PartialError, TutelageError, storage_error
from tutelage.recipe.files import PARTIAL, content_hash, remove
from tutelage.recipe.stage import JobContext, Source, load_dotted

Send = Callable[[dict[str, Any]], None]
_PROGRESS_EVERY_S = 0.1
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve jobs until stdin closes."""
    die_with_parent()
    protocol = os.dup(1)
    requests = os.dup(0)
    os.dup2(2, 1)  # prints of libraries, also of C code, go to the log
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)  # a child process of a stage must not eat our requests
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    out = os.fdopen(protocol, "wb", buffering=0)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message, allow_nan=False).encode() + b"\n")

    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        with os.fdopen(requests, "rb") as lines:
            for line in lines:
                jobs.put(json.loads(line))
        os._exit(0)  # the parent is gone; nothing here is worth finishing without it

    threading.Thread(target=listen, daemon=True).start()
    while True:
        send(answer(jobs.get()["job"], send))


def answer(job: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Run one job and return the message that says how it ended. Progress goes through `send`."""
    began = time.monotonic()
    _log(f"--- {job['id']} starts\n")
    try:
        metrics, outputs = perform(job, send)
        seconds = round(time.monotonic() - began, 3)
        _log(f"--- {job['id']} done in {seconds:.1f} s\n")
        return {"done": {"metrics": metrics, "outputs": outputs, "seconds": seconds}}
    except BaseException as error:  # noqa: BLE001 - reported to the parent, whatever it is
        _log(traceback.format_exc())
        return {"error": _describe(error, job["id"])}


def _log(text: str) -> None:
    # On a full disk the log cannot be written; that must not hide the reason, which goes to the parent.
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def perform(job: Mapping[str, Any], send: Send) -> tuple[dict[str, Any], dict[str, str]]:
    """Run one job here, or in the processes that its stage asks for (`launch`); gives its metrics and the
    content hash of each output. Raises whatever the stage raises."""
    if job["config"].get("launch"):
        from tutelage.recipe.launched import launch

        return launch(job, send)
    last = [0.0]

    def progress(done: int, total: int, note: str) -> None:
        moment = time.monotonic()
        if done >= total or moment - last[0] >= _PROGRESS_EVERY_S:
            last[0] = moment
            send({"progress": [int(done), int(total), str(note)]})

    outputs = {name: Path(path) for name, path in job["outputs"].items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(path.with_name(path.name + PARTIAL))  # left by a killed attempt
    function = load_dotted(job["run"])
    config = load_dotted(job["config_class"]).model_validate_json(json.dumps(job["config"]), strict=True)
    sources: dict[str, list[Source]] = {}
    for need in job["needs"]:
        source = Source(need["key"], need["stage"], need["output"], need["seed"], Path(need["path"]))
        sources.setdefault(need["field"], []).append(source)
    seed_everything(job["id"])
    metrics = function(
        JobContext(
            run_dir=Path(job["run_dir"]),
            job_id=job["id"],
            stage=job["stage"],
            seed=job["seed"],
            config=config,
            inputs={name: tuple(found) for name, found in sources.items()},
            outputs=outputs,
            ledger_path=Path(job["ledger"]),
            threads=job["threads"],
            progress=progress,
            run=job["seen"],
        )
    )
    hashes = {}
    for name, path in outputs.items():
        digest = content_hash(path)
        if digest is None:
            raise RuntimeError(f"the stage did not write its output {name!r} ({path})")
        hashes[name] = digest
    return json.loads(json.dumps(metrics if metrics is not None else {}, allow_nan=False)), hashes


def _describe(error: BaseException, job_id: str) -> dict[str, Any]:
    stored = storage_error(error, job_id)
    if stored is not None:
        return {"kind": "storage", "message": one_line(stored)}
    if isinstance(error, TutelageError):
        kind = "partial" if isinstance(error, PartialError) else "usage"
        return {"kind": kind, "message": one_line(error)}
    if isinstance(error, MemoryError):
        return {"kind": "defect", "message": "not enough memory"}
    return {"kind": "defect", "message": f"{type(error).__name__}: {one_line(error)}"}


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message of `error` on one line, cut after `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def seed_everything(job_id: str) -> None:
    """Set the global generators from the id of the job, so that the order of jobs in a worker cannot
    matter."""
    number = int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big")
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends: the thread on stdin cannot run while C code
    holds the interpreter. Elsewhere that thread is all there is."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    main()
