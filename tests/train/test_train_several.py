"""One stage in two processes: the same losses and weights as in one, and one voice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from tutelage.errors import UsageError
from tutelage.recipe.single import run_single

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
TWO = CONFIGS / "cpu-two-processes.yaml"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    run_single("lab-problems", {"train": 16, "test": 4, "min_steps": 1, "max_steps": 3}, folder / "p.parquet")
    given = {"problems": str(folder / "p.parquet")}
    run_single(
        "collect", {"teacher": {"kind": "lab", "style": "detailed"}}, folder / "t.parquet", inputs=given
    )
    run_single("student", {"source": "tiny", "seed": 3}, folder / "tiny")
    loops = {"mean": 4, "backprop": 2}
    run_single("student", {"source": "tiny", "seed": 3, "width": 64, "recurrent": loops}, folder / "loops")
    return folder


def train(
    lab: Path, out: str, launch: list[str], *more: str, stage: str = "sft", model: str = "tiny"
) -> dict[str, Any]:
    command = ["train", stage, "--model", str(lab / model), "--problems", str(lab / "p.parquet")]
    command += ["--traces", str(lab / "t.parquet"), "--steps", "4", "--out", str(lab / out), "--json"]
    settings = ("system=own", "batch=8", "warmup_steps=1", *more)
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tutelage", *command, *(x for s in settings for x in ("--set", s))],
        capture_output=True,
        text=True,
        timeout=300,
        env=QUIET,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)  # one document, whatever the number of processes
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", ["torchrun", "launch"])
def test_two_processes_train_as_one_does(lab: Path, way: str) -> None:
    """The verb started twice by torchrun, and a stage that starts its processes itself."""
    one = train(lab, f"one-{way}", [])
    both = (
        train(lab, f"both-{way}", TORCHRUN, "accumulate=2")
        if way == "torchrun"
        else train(lab, f"both-{way}", [], "accumulate=2", f"launch={TWO}")
    )
    assert (one["metrics"]["processes"], both["metrics"]["processes"]) == (1, 2)
    assert len(one["metrics"]["losses"]) == 4
    for (step, alone), (again, shared) in zip(
        one["metrics"]["losses"], both["metrics"]["losses"], strict=True
    ):
        assert step == again and shared == pytest.approx(alone, abs=1e-4)
    for name in ("tokens_seen", "tokens_learned", "epochs", "examples"):
        assert one["metrics"][name] == both["metrics"][name]
    first, second = (load_file(lab / f"{each}-{way}/model.safetensors") for each in ("one", "both"))
    for name, weights in first.items():
        assert torch.allclose(weights, second[name], atol=1e-4), name
    rows = (lab / f"both-{way}-log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
    assert not list(lab.glob("*.work"))


@pytest.mark.slow
def test_a_recurrent_student_has_the_same_depths_and_states_in_both(lab: Path) -> None:
    one = train(lab, "one-loops", [], model="loops")
    both = train(lab, "both-loops", [], "accumulate=2", f"launch={TWO}", model="loops")
    assert (one["metrics"]["processes"], both["metrics"]["processes"]) == (1, 2)
    losses = [[loss for _, loss in each["metrics"]["losses"]] for each in (one, both)]
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], abs=1e-4)
    first, second = (load_file(lab / f"{each}-loops/model.safetensors") for each in ("one", "both"))
    for name, weights in first.items():
        assert torch.allclose(weights, second[name], atol=1e-4), name
    rows = [json.loads(row) for row in (lab / "both-loops-log.jsonl").read_text().splitlines()]
    assert all({"state_cosine", "loss_r1", "loss_mean"} <= row.keys() for row in rows) and len(rows) == 4


@pytest.mark.slow
def test_an_error_in_several_processes_is_one_line(lab: Path) -> None:
    given = {
        "model": str(lab / "tiny"),
        "problems": [str(lab / "p.parquet")],
        "traces": [str(lab / "t.parquet")],
    }
    settings = {"steps": 1, "system": "own", "max_length": 5, "launch": str(TWO)}
    with pytest.raises(UsageError, match=r"^trace \w+ has \d+ tokens, more than max_length 5; raise it"):
        run_single("sft", settings, lab / "none", inputs=given)
    assert not (lab / "none").exists()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path: Path) -> None:
    config = load_config_from_file(str(path))
    fields = yaml.safe_load(path.read_text())
    assert config.num_processes == fields["num_processes"] > 1
    assert str(config.distributed_type.value) == fields["distributed_type"]
    assert ("fsdp" in path.stem) == (fields.get("fsdp_config", {}).get("fsdp_version") == 2)
