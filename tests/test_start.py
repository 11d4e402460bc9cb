"""Starting is cheap: at most 0.4 s over bare Python, and no heavy library for help."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "datasets", "pyarrow", "numpy", "math_verify", "aiohttp", "jinja2")
LIMIT_S = 0.4
SHOW = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


def cpu_seconds(*arguments: str) -> float:
    """Processor time of a Python process, best of five: not disturbed by what else runs."""
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


@pytest.mark.parametrize("arguments", [("-c", "import tutelage"), ("-m", "tutelage", "--help")])
def test_import_and_help_cost_little(arguments: tuple[str, ...]) -> None:
    assert cpu_seconds(*arguments) - cpu_seconds("-c", "pass") <= LIMIT_S


@pytest.mark.parametrize(
    "code",
    [
        "import tutelage",
        "import tutelage.errors",
        "import tutelage.cli",
        "import typer; from typer.main import get_command; from tutelage.cli import app\n"
        "for verb in get_command(app).commands.values(): verb.get_help(typer.Context(verb))",
    ],
)
def test_heavy_libraries_are_not_loaded(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{SHOW}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
