"""The command line: one file per verb, and here what they share.

Promises: errors that a user can repair are one line on stderr and exit code 2, 3 or 130, without a
traceback; with `--json`, stdout is exactly one JSON document, also for an error; nothing a library prints
reaches stdout; help loads neither torch nor transformers nor pyarrow.
Does not: hold logic. A verb turns its options into one call.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import tutelage
from tutelage.cli import output
from tutelage.cli.collect import collect
from tutelage.cli.compare import compare
from tutelage.cli.curate import curate
from tutelage.cli.doctor import doctor
from tutelage.cli.evaluate import evaluate
from tutelage.cli.report import report
from tutelage.cli.retrofit import retrofit
from tutelage.cli.run import run
from tutelage.cli.serve import serve
from tutelage.cli.sweep import sweep
from tutelage.cli.train import train
from tutelage.cli.verify import verify
from tutelage.errors import EXIT_INTERRUPTED, EXIT_USAGE, PartialError, TutelageError

EXIT_DEFECT = 1
_INTERRUPTED = "interrupted; run the same command again to continue"
# click's base class for wrong options, wherever this version of typer keeps its click.
_Misuse: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="tutelage",
    help="Teach a small model to reason, pay for every trace once, and prove that it worked.",
    epilog="Start with: tutelage doctor, then: tutelage run lab --run-dir runs/demo",
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for verb in (
    run,
    collect,
    verify,
    curate,
    retrofit,
    train,
    evaluate,
    sweep,
    compare,
    serve,
    report,
    doctor,
):
    app.command()(output.guarded(verb))


def _version(value: bool) -> None:
    if value:
        output.write(f"tutelage {tutelage.__version__}\n")
        raise typer.Exit


@app.callback()
def _top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # the callback has printed it
    if context.invoked_subcommand is None:
        output.write(context.get_help() + "\n")
        raise typer.Exit(EXIT_USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    sys.exit(_call(given, as_json))


def _call(given: list[str], as_json: bool) -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(args=given, prog_name="tutelage", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        # typer makes this of Ctrl-C in a verb, without a word.
        return output.fail(_INTERRUPTED, code, as_json) if code == EXIT_INTERRUPTED else code
    except PartialError as error:
        return output.fail(str(error), error.exit_code, as_json, error.done)
    except TutelageError as error:
        return output.fail(str(error), error.exit_code, as_json)
    except _Misuse as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "tutelage"
        message = error.format_message()  # type: ignore[attr-defined]
        return output.fail(f"{where}: {message} (see {where} --help)", EXIT_USAGE, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return output.fail(_INTERRUPTED, EXIT_INTERRUPTED, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has seen enough; nothing to say at exit
        return 0
    except Exception as error:  # noqa: BLE001 - a defect of ours: the traceback is wanted, and JSON stays JSON
        traceback.print_exc()
        return output.fail(f"a defect in tutelage: {type(error).__name__}: {error}", EXIT_DEFECT, as_json)
