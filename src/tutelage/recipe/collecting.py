"""What `tutelage collect` does: questions and a teacher in, a folder with the ledger and the traces out.

Promises: traces are collected by the stage `collect`, so that a verb and a recipe cannot differ; the same
call on the same folder goes on where it stopped; the document it gives has the same keys however it ended.
Does not: buy or judge (see `recipe.jobs.collecting` and the room `teachers`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tutelage.errors import PartialError, UsageError, storage_error
from tutelage.recipe.single import run_single
from tutelage.recipe.stage import Progress, Settings
from tutelage.recipe.stages import Collect
from tutelage.recipe.teachers import EndpointTeacher, LocalTeacher, ReplayTeacher
from tutelage.records import Problem, write_records

EXPLAIN = "tutelage.recipe.jobs.collecting:explain_orders"


@dataclass(frozen=True, slots=True)
class Server:
    """A kind of server: the API that is spoken, where its maker's own one is, and the usual name of the
    variable with its key. `limit` is what that one calls the token limit."""

    api: str
    base_url: str = ""
    key_env: str = ""
    limit: str = "max_tokens"


SERVERS = {
    # OpenAI's own reasoning models refuse `max_tokens`; other servers know nothing else.
    "openai": Server("chat", "https://api.openai.com/v1", "OPENAI_API_KEY", "max_completion_tokens"),
    "completions": Server("completions"),
    "anthropic": Server("messages", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
}
_TEACHERS: dict[str, type[Settings]] = {"replay": ReplayTeacher, "local": LocalTeacher}


def teacher_settings(spelled: str, base_url: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a teacher written as `openai:MODEL` and the like; `given` are those with an option of
    their own (None: not given). Raises UsageError."""
    scheme, _, name = spelled.partition(":")
    named = {key: value for key, value in given.items() if value is not None}
    if scheme in SERVERS and name:
        server = SERVERS[scheme]
        if base_url is None and not server.base_url:
            raise UsageError(f"--teacher {spelled}: give --base-url, such as http://localhost:8000/v1")
        own = base_url is None or base_url.rstrip("/") == server.base_url
        settings = {
            "kind": "endpoint",
            "api": server.api,
            "base_url": base_url or server.base_url,
            "model": name,
            "key_env": server.key_env if own else "",
        }
        if own and server.limit != "max_tokens":
            settings["max_tokens_field"] = server.limit
        return {**settings, **named}
    if scheme in _TEACHERS and name:
        if base_url is not None:
            named = {"base_url": base_url, **named}
        if named:
            option = next(iter(named)).replace("_", "-")
            raise UsageError(f"--{option}: is for a server; for {scheme}: write --set KEY=VALUE")
        if scheme == "replay":
            return {"kind": "replay", "path": name, "name": Path(name).stem or "recorded"}
        return {"kind": "local", "model": name}
    known = ", ".join(["openai:MODEL", "completions:MODEL", "anthropic:MODEL", "local:MODEL", "replay:FILE"])
    raise UsageError(f"--teacher {spelled}: no such teacher; write one of {known}")


def price_settings(text: str | None) -> dict[str, str] | None:
    """`PROMPT,COMPLETION` in US dollars per million tokens. Raises UsageError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise UsageError(
            f"--price {text}: write PROMPT,COMPLETION in US dollars per million tokens: 0.50,2.00"
        )
    return {"prompt": parts[0], "completion": parts[1]}


def placed(overrides: Sequence[str], kind: str) -> list[str]:
    """Texts `key=value` with `teacher.` before each key that is no setting of the stage but one of the
    teacher."""
    teacher = _TEACHERS.get(kind, EndpointTeacher)
    found = []
    for text in overrides:
        key = text.partition("=")[0].split(".")[0].strip()
        # A slip of the pen counts for what it is nearest to, so that the message names that.
        meant = get_close_matches(key, [*Collect.model_fields, *teacher.model_fields], n=1)
        belongs = key not in Collect.model_fields and bool(meant) and meant[0] in teacher.model_fields
        found.append(f"teacher.{text}" if belongs else text)
    return found


def collect_folder(
    folder: Path,
    problems: Sequence[Problem],
    settings: Mapping[str, Any],
    *,
    retry: str | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Collect into `folder` with the settings of the stage; gives the document of the verb.

    Raises UsageError, and PartialError with the same document in `done` when something is missing at the
    end."""
    questions, ledger = _folder(folder) / "data/problems.parquet", folder / "ledger.sqlite"
    try:
        write_records(questions, problems, Problem)  # so that the traces can be judged later
    except OSError as error:
        stored = storage_error(error, str(folder))
        raise stored or UsageError(f"--out {folder}: cannot be made ({error.strerror or error})") from error
    try:
        result = _run(folder, questions, settings, retry, overrides, progress)
    except PartialError as error:
        if error.done:
            error.done = document(error.done, questions, ledger)
        raise
    told = document(result, questions, ledger)
    if missing := result["metrics"]["failed"]:
        raise PartialError(
            f"{missing} of {told['requests']} replies are missing (see failures); all others are saved, the "
            "same command asks for these again",
            told,
        )
    return told


def explain_folder(
    folder: Path,
    problems: Sequence[Problem],
    settings: Mapping[str, Any],
    *,
    retry: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """What the same call of `collect_folder` would find in the ledger, and why not (see `teachers.explain`).

    Buys nothing and leaves the folder as it is. Raises UsageError."""
    with tempfile.TemporaryDirectory(prefix="tutelage-explain-") as name:
        questions = Path(name) / "problems.parquet"
        write_records(questions, problems, Problem)
        found = _run(_folder(folder), questions, settings, retry, overrides, None, EXPLAIN)
    return dict(found["metrics"])


def _folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file; give a folder for the ledger and the traces")
    return folder


def _run(
    folder: Path,
    questions: Path,
    settings: Mapping[str, Any],
    retry: str | None,
    overrides: Sequence[str],
    progress: Progress | None,
    look: str = "",
) -> dict[str, Any]:
    traces = folder / "data/traces.parquet"
    if retry is not None and not traces.is_file():
        raise UsageError(f"--retry: {traces}: no such file; collect without --retry first")
    return run_single(
        "collect",
        {**settings, "retry": {"where": retry} if retry is not None else None},
        traces,
        inputs={"problems": str(questions), "earlier": str(traces) if traces.is_file() else None},
        ledger=folder / "ledger.sqlite",
        overrides=placed(overrides, settings["teacher"]["kind"]),
        progress=progress,
        look=look,
    )


def document(result: Mapping[str, Any], questions: Path, ledger: Path) -> dict[str, Any]:
    """What the verb prints: counts of this call, and money. `cost` is that of all replies behind the traces,
    `spent` what this call paid, both in US dollars, None when a price is not known."""
    metrics = result["metrics"]
    return {
        "problems": metrics["problems"],
        "samples": metrics["samples"],
        "states": metrics["states"],
        "requests": sum(metrics["states"].values()),
        "requests_sent": metrics["sent"],
        "requests_from_ledger": metrics["reused"],
        "traces": metrics["traces"],
        "failures": metrics["failures"],
        "cost": metrics["dollars_of_traces"],
        "spent": metrics["spent"],
        "prompt_tokens": metrics["prompt_tokens"],
        "completion_tokens": metrics["completion_tokens"],
        **{name: metrics[name] for name in ("pilot", "retry") if name in metrics},
        "outputs": {
            **result["outputs"],
            "problems": str(questions.absolute()),
            **({"ledger": str(ledger.absolute())} if ledger.exists() else {}),  # a replay has none
        },
    }


def as_text(told: Mapping[str, Any]) -> str:
    """`document` as lines for people. (The pilot has said its part before.)"""
    here = f"{told['requests_from_ledger']} were in the ledger, {told['requests_sent']} requests sent"
    lines = [
        f"{told['requests']} replies asked for: {_counts(told['states'])}; {here}",
        f"cost: {_dollars(told['cost'])}, of which this call paid {_dollars(told['spent'])}; "
        f"{_tokens(told['prompt_tokens'])} prompt and {_tokens(told['completion_tokens'])} completion tokens",
        *(f"failed: {count} x {reason}" for reason, count in told["failures"].items()),
    ]
    if retry := told.get("retry"):
        parts = [f"{retry['chosen']} traces chosen", f"{retry['new']} new"]
        if retry["same_settings"]:
            parts.append(f"{retry['same_settings']} left as they are: the settings are the same")
        if retry["unknown_problem"]:
            parts.append(f"{retry['unknown_problem']} left out: their problem is not among those given")
        lines.append(f"retry: {', '.join(parts)}")
    return "\n".join([*lines, f"{told['traces']} traces in all", *_places(told["outputs"])])


def explanation_text(told: Mapping[str, Any]) -> str:
    """The document of `explain_folder` as lines for people."""
    lines = [
        f"{told['requests']} replies asked for: {told['requests_from_ledger']} in the ledger "
        f"({_counts(told['states'])}), {told['would_be_sent']} would be sent"
    ]
    for miss in told["misses"]:
        shown = ", ".join(f"{each['problem_id']} sample {each['sample']}" for each in miss["examples"])
        more = ", ..." if miss["count"] > len(miss["examples"]) else ""
        detail = f": {miss['detail']}" if miss["detail"] else ""
        lines.append(f"{miss['count']} {miss['why']}{detail} ({shown}{more})")
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def _places(outputs: Mapping[str, str]) -> list[str]:
    return [f"{name}: {path}" for name, path in outputs.items()]


def _dollars(amount: str | None) -> str:
    return "unknown" if amount is None else f"${amount}"


def _tokens(count: int | None) -> str:
    return "an unknown number of" if count is None else f"{count:,}"
