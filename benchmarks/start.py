"""The cost of starting, of planning, and of running jobs.

Every figure is the best of several repeats, with the number of repeats beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "recipe"))


def best(action: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return min(found)


def python(*arguments: str) -> Callable[[], object]:
    """A Python process with these arguments."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def runner() -> list[tuple[str, float, int]]:
    """The recipe runner on jobs that do nothing, with workers of its own."""
    import fake_stages

    from tutelage.recipe.load import build_recipe
    from tutelage.recipe.plan import plan_jobs
    from tutelage.recipe.run import run_recipe

    os.environ["PYTHONPATH"] = str(ROOT / "tests" / "recipe")
    stages: dict[str, dict[str, str]] = {"world": {"kind": "make"}}
    stages |= {f"arm{i}": {"kind": "add", "numbers": "world"} for i in range(100)}
    recipe = build_recipe({"name": "bench", "workers": 2, "stages": stages}, kinds=fake_stages.KINDS)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        first = best(lambda: run_recipe(recipe, run_dir), 1)
        again = best(lambda: run_recipe(recipe, run_dir), 3)
    return [
        ("plan 101 jobs", best(lambda: plan_jobs(recipe), 5), 5),
        ("run 101 empty jobs, 2 workers", first, 1),
        ("find that 101 jobs are finished", again, 3),
    ]


def main() -> None:
    """Print the table."""
    bare = best(python("-c", "pass"), 5)
    rows = [
        ("python -c pass", bare, 5),
        ("import tutelage, over bare Python", best(python("-c", "import tutelage"), 5) - bare, 5),
        ("tutelage --help, over bare Python", best(python("-m", "tutelage", "--help"), 5) - bare, 5),
        ("import tutelage.records (pyarrow)", best(python("-c", "import tutelage.records"), 5) - bare, 5),
        *runner(),
    ]
    for name, seconds, repeats in rows:
        print(f"{name:40} {seconds * 1000:9.1f} ms   best of {repeats}")


if __name__ == "__main__":
    main()
