"""The example with a server runs as it is, against a server of ours and questions of ours."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.recipe.load import load_recipe
from tutelage.recipe.run import run_recipe
from tutelage.records import Trace, read_records

RECIPE = Path(__file__).parents[2] / "examples/endpoint-teacher/recipe.yaml"


@pytest.mark.slow
def test_it_collects_retries_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "teachers"))
    fake: Any = importlib.import_module("endpoint_server")
    for name, first in (("train", 0), ("test", 100)):
        rows = [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(first, first + 8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def script(number: int, body: dict[str, Any]) -> Any:
        number = int(body["messages"][-1]["content"].removeprefix("What is ").rstrip("?"))
        cut = number == 5 and body["max_tokens"] == 200
        return fake.Say(fake.completion(f"It is {number}.", "length" if cut else "stop"))

    with fake.serving(script) as server:
        files = [f"problems.{name}={tmp_path / name}.jsonl" for name in ("train", "test")]
        recipe = load_recipe(RECIPE, overrides=[*files, f"sampled.teacher.base_url={server.url}"])
        jobs = {job.id: job for job in run_recipe(recipe, tmp_path / "run", console=None).jobs}
    sampled = jobs["sampled"].metrics
    assert sampled["retry"]["new"] == 4 and sampled["pilot"]["rows"] == 8 and len(server.bodies) == 36
    assert jobs["judged"].metrics["correct"] == 36
    traces = read_records(tmp_path / "run/data/sampled.traces.parquet", Trace)
    assert sum(trace.supersedes is not None for trace in traces) == 4
    assert "pilot: 8 of 8 correct" in (tmp_path / "run/log.txt").read_text()
