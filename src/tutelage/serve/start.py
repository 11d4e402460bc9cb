"""From the options of `tutelage serve` to a running server.

Promises: everything that can be refused is refused before the model is loaded, but what only the model or the
upstream server can tell; a server that others on the network can reach without a key says so.
Does not: print (it is told where to).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import UsageError
from tutelage.serve.app import build_app
from tutelage.serve.efforts import Unit, parse_settings, read_efforts
from tutelage.serve.gate import Rules
from tutelage.serve.run import listen, run, url_of
from tutelage.serve.source import Source
from tutelage.wire import LOOPBACK


@dataclass(frozen=True, slots=True)
class Options:
    """What to serve, where and to whom; see the help of `tutelage serve`."""

    model: str | None = None
    name: str | None = None
    upstream: str | None = None
    upstream_key_env: str | None = None
    upstream_kind: str | None = None
    tokenizer: str | None = None
    context: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str | None = None
    origins: tuple[str, ...] = ()
    dtype: str = "float32"
    device: str | None = None
    threads: int | None = None
    max_batch: int = 32
    max_queue: int = 1024
    max_per_client: int | None = None
    efforts: tuple[str, ...] = ()
    effort_in: Unit | None = None
    draft_steps: int | None = None
    grace: int = 10


@dataclass(frozen=True, slots=True)
class Ready:
    """A server that answers."""

    url: str
    model: str
    context: int


async def start(options: Options, ready: Callable[[Ready], None], say: Callable[[str], None]) -> None:
    """Serve until a signal says stop. Raises UsageError for options that cannot be kept."""
    parse_settings(options.efforts)
    if options.upstream is not None and options.draft_steps is not None:
        raise UsageError("--draft-steps: the model of --upstream is not decoded here; leave it out")
    key = _secret(options.api_key_env, "--api-key-env")
    if options.upstream is None and options.model is None:
        raise UsageError("serve: name a model, or a server to stand before with --upstream URL")
    with listen(options.host, options.port) as opened:
        url = url_of(opened)
        source = await _proxy(options) if options.upstream is not None else _local(options)
        if key is None and options.host not in LOOPBACK:
            say(f"warning: whoever reaches {url} may use it; --api-key-env NAME asks for a key")
        app = build_app(
            source,
            Rules(key, options.host, options.origins),
            efforts=read_efforts(
                options.efforts,
                source.context,
                thinks=source.thinks,
                depth=source.depth,
                unit=options.effort_in,
            ),
            per_client=options.max_per_client,
        )
        told = Ready(url, source.model, source.context)
        await run(app, opened, ready=lambda: ready(told), say=say, grace=options.grace)


def _local(options: Options) -> Source:
    # Threads of one step wait for each other by spinning. What OpenMP does by default is too long where other
    # processes want the cores (seconds for a step of 50 ms); this is as fast where they do not.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        import torch

        from tutelage.serve.local import Local
        from tutelage.students.pretrained import load_student
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tutelage"):
            raise  # a defect of ours, which no installing mends
        raise UsageError(f"serve: a model needs {error.name}: pip install 'tutelage[train]'") from error
    assert options.model is not None
    threads = options.threads or torch.get_num_threads()
    # OpenMP gives every thread that computes helpers of its own. With those of this one, from loading, there
    # would be more than cores, and all would sleep after each operation: 80 ms instead of 45 ms for a step.
    torch.set_num_threads(1)
    student = load_student(options.model, device=options.device, dtype=options.dtype)
    return Local(
        student,
        name=options.name or short_name(options.model),
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        threads=threads,
        draft_steps=options.draft_steps,
    )


async def _proxy(options: Options) -> Source:
    from tutelage.serve.upstream import Upstream

    assert options.upstream is not None
    tokenizer = None
    if options.tokenizer is not None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise UsageError("--tokenizer: needs transformers: pip install 'tutelage[train]'") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise UsageError(f"--tokenizer {options.tokenizer}: cannot load it: {line}") from error
    proxy = Upstream(
        options.upstream,
        options.model,
        key=_secret(options.upstream_key_env, "--upstream-key-env"),
        kind=options.upstream_kind,
        context=options.context,
        tokenizer=tokenizer,
    )
    await proxy.connect()
    return proxy


def short_name(model: str) -> str:
    """What clients call a model: the last part of its folder, the whole name of one on the Hub."""
    bare = model.removeprefix("gguf:").removeprefix("hub:")
    path = Path(bare)
    if model.startswith("hub:") or (len(path.parts) == 2 and not Path(bare).exists()):
        return bare
    return path.name.removesuffix(".gguf") or "model"


def _secret(variable: str | None, option: str) -> str | None:
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UsageError(f"{option} {variable}: this environment variable is not set, or empty")
    return value
