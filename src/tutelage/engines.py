"""Engines: one function over many pieces of work, in this process or in worker processes of a Ray cluster.

Promises
- Results come in the order of the pieces, each as soon as it and all before it are there; no more than a few
  that are ready wait for one that is not.
- local: one worker works in the caller's thread, several in threads of their own (for work that lets go of
  Python's lock: numpy, Arrow, waiting).
- ray: a piece whose worker process or machine died is done again by another worker, TRIES times in all.
- A TutelageError of the function arrives here as it was raised.
- Ray is loaded when "ray" is asked for, and not before. It sends no usage statistics and prints nothing.
Does not: undo what a dead worker had done (a piece must be safe to do again), move files (machines share a
folder), or pass on the environment: a worker sees the variables that its machine's Ray was started with.

A cluster that runs is used (RAY_ADDRESS, or one that `ray start` left on this machine); else one is started
with this machine's cores. It ends with the process.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa

from tutelage.errors import PartialError, TutelageError, UsageError

Engine = Literal["local", "ray"]
Piece = TypeVar("Piece")
Result = TypeVar("Result")
Make = Callable[[], AbstractContextManager[Callable[[Piece], Result]]]
"""Opens the function in a worker; once per worker process, so it may hold what is costly to make."""

# A piece that takes its worker down (out of memory, say) would do so for ever.
TRIES = 4
CONNECT_SECONDS = 10.0
# What Ray reads from the environment when it is loaded.
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints deaths of workers on our stdout, whatever log_to_driver says; verbs print JSON there.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    # Its C++ part warns on stderr about arguments of actors, which Ray Data itself makes.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def spread(
    make: Make[Piece, Result], pieces: Sequence[Piece], *, engine: Engine, workers: int
) -> Iterator[Result]:
    """The function that `make` opens (once per worker), applied to each of `pieces`, by `workers` processes
    ("local": threads of this one). With "ray" `make`, pieces and results are pickled.

    Raises what the function raises; UsageError when Ray is missing or no cluster answers; PartialError when
    workers kept dying or the cluster is lost."""
    if engine == "local" and min(workers, len(pieces)) > 1:
        yield from _in_threads(make, pieces, min(workers, len(pieces)))
        return
    if engine == "local":
        with make() as function:
            for piece in pieces:
                yield function(piece)
        return
    if pieces:
        with _quiet_ray() as ray:
            yield from _on_ray(ray, make, pieces, workers)


def _in_threads(make: Make[Any, Any], pieces: Sequence[Any], workers: int) -> Iterator[Any]:
    own = threading.local()
    with ExitStack() as opened:
        lock = threading.Lock()

        def work(piece: Any) -> Any:
            if not hasattr(own, "function"):
                context = make()
                function = context.__enter__()
                with lock:  # closed when all are done, also after an error
                    opened.push(context)
                own.function = function
            return own.function(piece)

        pool = ThreadPoolExecutor(workers, thread_name_prefix="tutelage")
        ahead: deque[Future[Any]] = deque()
        try:
            for piece in pieces:
                ahead.append(pool.submit(work, piece))
                if len(ahead) >= 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _quiet_ray() -> Iterator[Any]:
    """Ray, loaded and connected, with its own logs turned down to errors."""
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"the engine ray needs Ray ({error}): pip install 'tutelage[ray]'") from error
    log = logging.getLogger("ray.data")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        if not ray.is_initialized():
            _connect(ray)
        yield ray
    finally:
        log.setLevel(before)


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _reach(address)
        ray.init(
            address=None if address or not _forgotten() else "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        hint = " (does it ask for a token? Then set RAY_AUTH_MODE=token)" if address else ""
        raise UsageError(
            f"no Ray cluster at {address or 'this machine'}: {_one_line(error)}{hint}"
        ) from error


def _reach(address: str) -> None:
    """Raises OSError when nobody listens at host:port. Ray itself would try for two minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _forgotten() -> bool:
    """Whether the cluster that Ray noted down on this machine is gone: one that was killed leaves its note
    behind, and Ray would wait for it."""
    try:
        _reach(
            (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
        )
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _on_ray(ray: Any, make: Make[Any, Any], pieces: Sequence[Any], workers: int) -> Iterator[Any]:
    from ray import cloudpickle
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError, RayTaskError

    try:
        tables = [
            pa.table({"number": [number], "piece": pa.array([cloudpickle.dumps(piece)], pa.large_binary())})
            for number, piece in enumerate(pieces)
        ]
    except (TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"this work cannot be sent to another process: {_one_line(error)}") from error
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # Counts apart from the workers, because those die; their own retries are not limited.
    tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
    with DataContext.current(context):
        results = ray.data.from_arrow(tables).map_batches(
            _Worker,
            fn_constructor_kwargs={"make": make, "tries": tries},
            batch_size=1,
            batch_format="pyarrow",
            # One piece at a time: the first worker to be up must not queue the pieces of the others.
            compute=ActorPoolStrategy(size=min(workers, len(pieces)), max_tasks_in_flight_per_actor=1),
            num_cpus=1,
        )
        batches = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    try:
        for batch in batches:
            for answer in batch.column("result"):
                raised, value = cloudpickle.loads(answer.as_py())
                if raised is not None:
                    raise raised
                yield value
    except RayTaskError:
        raise  # a defect in the function: its traceback is worth more than one line
    except RayError as error:
        raise PartialError(f"Ray gave up: {_one_line(error)}; the same command goes on") from error
    finally:
        ray.kill(tries)


class _Tries:
    """How often each piece was begun."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self._begun[number] += 1
        return self._begun[number]


class _Worker:
    """Lives in a worker process; Ray Data calls it with tables of one piece."""

    def __init__(self, make: Make[Any, Any], tries: Any) -> None:
        self._open = ExitStack()
        self._function = self._open.enter_context(make())
        self._tries = tries

    def __call__(self, batch: pa.Table) -> pa.Table:
        from ray import cloudpickle

        found = [
            cloudpickle.dumps(self._one(number.as_py(), piece.as_py()))
            for number, piece in zip(batch["number"], batch["piece"], strict=True)
        ]
        return pa.table({"result": pa.array(found, pa.large_binary())})

    def _begun(self, number: int) -> int:
        import ray

        return int(ray.get(self._tries.begin.remote(number)))

    def _one(self, number: int, piece: bytes) -> tuple[TutelageError | None, Any]:
        from ray import cloudpickle

        if self._begun(number) > TRIES:
            text = f"piece {number}: its worker process died {TRIES} times (out of memory?), last before"
            return PartialError(f"{text} a try on {socket.gethostname()}"), None
        try:
            return None, self._function(cloudpickle.loads(piece))
        except TutelageError as error:
            return error, None


def _one_line(error: BaseException, limit: int = 300) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:limit]
