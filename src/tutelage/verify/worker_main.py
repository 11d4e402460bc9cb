"""The worker process: `python -m tutelage.verify.worker_main`. One JSON line in, one JSON line out.

Promises: ends when its parent is gone (end of input; and an alarm of its own ends a hung job even then,
because the kernel delivers it whatever the interpreter is doing); what the user's code prints goes to stderr,
never into the answers; its address space is limited to the bytes given as the first argument.
Does not: protect from hostile checker code. The user's function runs with the user's rights; model text is
only ever data.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.verify import user

ALARM_GRACE = 2.0
RETIRE_AT = 0.6
"""A worker whose memory has ever held this share of its limit ends after the reply: libraries keep caches,
and freed memory is rarely given back."""


def _limit_memory(limit: int) -> bool:
    """Limit the address space; False where this system cannot (macOS)."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ValueError, OSError):
        return False
    return True


def _peak_memory() -> int:
    """The most memory this program has held, in bytes."""
    # Not ru_maxrss where there is /proc: on Linux it starts at what the process that started this one held
    # (a caller with torch loaded), and every worker would be retired after its first answer.
    with contextlib.suppress(OSError, StopIteration, ValueError):
        told = Path("/proc/self/status").read_bytes().splitlines()
        return int(next(line for line in told if line.startswith(b"VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    match request["op"]:
        case "load-math":
            from tutelage.verify import symbolic

            return {"loaded": symbolic.equality("1", "1")[0]}
        case "math":
            from tutelage.verify import symbolic

            with contextlib.redirect_stderr(io.StringIO()):
                status, reason = symbolic.equality(request["gold"], request["answer"])
            return {"status": status, "reason": reason}
        case "load-gym":
            from tutelage.verify import gym_scorers

            return {"loaded": len(gym_scorers.load().DATASETS)}
        case "gym":
            from tutelage.verify import gym_scorers

            return gym_scorers.scores(request["task"], request["entry"], request["answers"])
        case "load-user":
            if request["folder"] not in sys.path:
                sys.path.append(request["folder"])
            user.load_function(request["checker"])
            return {"loaded": request["checker"]}
        case "user":
            problem = user.problem_from_json(request["problem"])
            trace = user.trace_from_json(request["trace"])
            verdict = user.run(request["checker"], problem, trace)
            return {"verdict": user.to_json(verdict)}
        case "user-score":
            problem = user.problem_from_json(request["problem"])
            trace = user.trace_from_json(request["trace"])
            return {"score": user.run_score(request["checker"], problem, trace)}
        case other:
            return {"failed": f"unknown request {other!r}"}


def _guarded(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _answer(request)
    except UsageError as error:
        return {"usage": str(error)}
    except MemoryError:
        return {"failed": "out of memory", "retire": True}
    except RecursionError:
        return {"failed": "nested too deeply"}
    except Exception as error:  # noqa: BLE001 - whatever a library raises becomes an undecided verdict
        return {"failed": user.one_line(error)}


def main() -> None:
    """Serve requests until the input ends."""
    limit = int(sys.argv[1])
    limited = _limit_memory(limit)
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what anyone prints must not be taken for a reply
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # printing a lone surrogate must not raise
    sys.path.append(str(Path.cwd()))  # a user's own module, after everything else
    print(json.dumps({"ready": True, "memory_limited": limited}), file=replies, flush=True)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + ALARM_GRACE)
        reply = _guarded(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not request["op"].startswith("load") and _peak_memory() > RETIRE_AT * limit:
            reply["retire"] = True
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
