"""Surgery, healing and what came of them as stages and as a verb, on a tiny donor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tinymodel import byte_tokenizer
from tutelage.cli import main
from tutelage.errors import UsageError
from tutelage.problems.texts import read_texts
from tutelage.recipe.load import load_recipe
from tutelage.recipe.run import run_recipe
from tutelage.recipe.single import run_single
from tutelage.records import Problem, write_records
from tutelage.students.lineage import read_training
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.recurrent import RecurrentDepthForCausalLM
from tutelage.students.recurrent.retrofit import sliced
from tutelage.students.template import Template, render_prompt
from tutelage.think.engine import Engine, Request
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

NOTES = "The sun rises in the east and sets in the west, so the shadow of a tree turns around it. " * 6
PARTS = {"prelude": "0-1", "core": "3-4", "coda": "5"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A donor, and documents."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(6.0 if each.ndim == 2 else 1.0)
    save_student(Student(model, tokenizer, Template(), "donor"), folder / "donor")
    (folder / "notes.jsonl").write_text(
        "".join(json.dumps({"text": f"{number}. {NOTES}"}) + "\n" for number in range(6))
    )
    return folder


@pytest.fixture(scope="module")
def looped(data: Path) -> Path:
    run_single("retrofit", {**PARTS, "mean": 2}, data / "looped", inputs={"model": str(data / "donor")})
    return data / "looped"


def test_the_stage_writes_a_student_that_remembers_its_donor_and_surgery(data: Path, looped: Path) -> None:
    student = load_student(looped, device="cpu")
    assert isinstance(student.model, RecurrentDepthForCausalLM)
    config = student.model.config
    assert (config.num_prelude_layers, config.num_core_layers, config.num_coda_layers) == (2, 2, 1)
    assert (config.mean_recurrence, config.mean_backprop_depth, config.qk_norm) == (2, 2, True)
    ids = torch.randint(5, 250, (1, 40))
    with torch.no_grad():
        wanted = sliced(load_student(data / "donor", device="cpu").model, (0, 1, 3, 4, 5))(ids).logits
        found = student.model(ids, num_steps=1).logits
    assert (found - wanted).abs().max() < 2e-2 * wanted.abs().max()  # the first state is small, not zero
    (stage,) = read_training(looped).stages
    assert stage["kind"] == "retrofit" and stage["settings"]["core"] == "3-4"
    assert stage["numbers"]["left_out"] == 1 and stage["numbers"]["largest_difference"] < 1e-5
    assert "surgery" in (looped / "README.md").read_text()


@pytest.mark.parametrize("steps", [1, 3])
def test_the_engine_decodes_what_forward_says(looped: Path, steps: int) -> None:
    student = load_student(looped, device="cpu")
    prompts = [
        tuple(render_prompt(student.tokenizer, student.template, text)) for text in ("Why?", "And how so?")
    ]
    policy = ThinkingPolicy(max_tokens=6, num_steps=steps, answer_reserve=4)
    asked = [Request(prompt, policy, Sampling(), seed=0, max_answer=6) for prompt in prompts]
    for prompt, done in zip(prompts, Engine(student).generate(asked), strict=True):
        ids = [*prompt, *done.ids]
        with torch.no_grad():
            best = student.model(torch.tensor([ids]), num_steps=steps).logits[0].argmax(dim=-1).tolist()
        free = [place for place, forced in enumerate(done.forced) if not forced]
        assert free and {done.steps[place] for place in free} == {steps}
        assert [ids[len(prompt) + place] for place in free] == [
            best[len(prompt) + place - 1] for place in free
        ]


def test_layers_are_chosen_on_documents_and_shown(data: Path, tmp_path: Path) -> None:
    chosen = {"layers": [2, 2, 1], "by": "influence", "sample": 2}
    inputs = {"model": str(data / "donor"), "texts": [str(data / "notes.jsonl")]}
    metrics = run_single("retrofit", chosen, tmp_path / "a", inputs=inputs)["metrics"]
    kept = [*metrics["prelude"], *metrics["core"], *metrics["coda"]]
    least = min(metrics["scores"], key=lambda each: each["influence"])["layer"]
    assert kept == sorted(set(range(6)) - {least}) and len(metrics["table"].splitlines()) == 7
    other = run_single("retrofit", chosen, tmp_path / "b", inputs={"model": str(data / "donor")})["metrics"]
    assert other["scores"] != metrics["scores"]  # the lab's questions


@pytest.mark.slow
def test_healing_learns_documents_under_a_curriculum(data: Path, looped: Path, tmp_path: Path) -> None:
    settings = {
        **{"steps": 12, "batch": 4, "max_length": 96, "optimiser": "muon", "learning_rate": 1e-3},
        **{"muon_learning_rate": 1e-2, "warmup_steps": 1, "depth": {"start": 1, "over": 0.5}},
    }
    inputs = {"model": str(looped), "texts": [str(data / "notes.jsonl")]}
    metrics = run_single("pretrain", settings, tmp_path / "healed", inputs=inputs)["metrics"]
    losses = [loss for _, loss in metrics["losses"]]
    assert losses[-1] < losses[0] - 0.5 and metrics["documents"] == 6
    assert metrics["examples"] > 6 and metrics["packing"]["filled"] > 0.8
    lineage = read_training(tmp_path / "healed")
    assert [stage["kind"] for stage in lineage.stages] == ["retrofit", "pretrain"]
    assert lineage.stages[1]["problems"] == [{"source": "notes.jsonl", "licence": "", "count": 6}]
    measured = {}
    for name, folder in (("before", looped), ("after", tmp_path / "healed"), ("donor", data / "donor")):
        given = {"model": str(folder), "texts": [str(data / "notes.jsonl")]}
        found = run_single("perplexity", {"steps": [1, 3]}, tmp_path / f"{name}.json", inputs=given)
        measured[name] = found["metrics"]["by_steps"]
        assert json.loads((tmp_path / f"{name}.json").read_text()) == measured[name]
    assert [row["steps"] for row in measured["donor"]] == [None]
    for before, after in zip(measured["before"], measured["after"], strict=True):
        assert after["ci95"][1] < before["ci95"][0]


def test_documents_become_one_file(data: Path, tmp_path: Path) -> None:
    settings = {"source": str(data / "notes.jsonl"), "limit": 4, "licence": "CC0"}
    metrics = run_single("texts", settings, tmp_path / "t.parquet")["metrics"]
    texts = read_texts(tmp_path / "t.parquet")
    assert metrics["documents"] == len(texts) == 4 and {each.licence for each in texts} == {"CC0"}


def test_healing_is_checked_beforehand(
    data: Path, looped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["train", "pretrain", "--model", str(looped), "--texts", str(data / "notes.jsonl"), "--check"]
    given += ["--out", str(tmp_path / "x"), "--steps", "2", "--set", "batch=2"]
    for room, code in ((64, 0), (600, 2)):
        with pytest.raises(SystemExit) as ended:
            main([*given, "--set", f"max_length={room}"])
        said = capfd.readouterr()
        assert ended.value.code == code and " of 6 documents" in said.out
    assert "lower max_length" in said.err and not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="the model's context 256; lower max_length"):
        inputs = {"model": str(looped), "texts": [str(data / "notes.jsonl")]}
        run_single("pretrain", {"steps": 1, "max_length": 600}, tmp_path / "y", inputs=inputs)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prelude": "0-1", "core": "1-4"}, "core: layer 1 is named twice"),
        ({"core": "4-6"}, "core: layer 6 is not in the donor, which has 6"),
        ({"prelude": "3", "core": "1"}, "core: layer 1 comes after layer 3 of the prelude"),
        ({}, "name the layers of prelude, core and coda, or give layers"),
        ({"core": "1", "layers": [1, 1, 1]}, "layers chooses the layers, so core cannot name them"),
        ({"layers": [4, 2, 1]}, "layers 4,2,1: 7 layers, but the donor has 6"),
        ({"core": "x"}, "core x: write layers as 0-3"),
    ],
)
def test_what_cannot_be_cut_is_one_line(data: Path, tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run_single("retrofit", settings, tmp_path / "out", inputs={"model": str(data / "donor")})
    assert not (tmp_path / "out").exists()


def test_a_looped_model_is_not_cut_again(looped: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has recurrent depth already"):
        run_single("retrofit", {"core": "1"}, tmp_path / "out", inputs={"model": str(looped)})


def test_the_verb_cuts_and_tells(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = [str(data / "donor"), "--prelude", "0-1", "--core", "3,4", "--coda", "5", "--start", "sum"]
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["retrofit", *given, "--out", str(tmp_path / "a")])
    assert ended.value.code == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "prelude: 0-1  core: 3-4  coda: 5  left out: 1"
    weight = load_student(tmp_path / "a", device="cpu").model.model.adapter.linear.weight
    assert torch.equal(weight, torch.cat([torch.eye(32), torch.eye(32)], dim=1))
    with pytest.raises(SystemExit):
        main(["retrofit", str(data / "donor"), "--layers", "2,2,1", "--json", "--out", str(tmp_path / "b")])
    document = json.loads(capfd.readouterr().out)
    assert len(document["metrics"]["scores"]) == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--layers", "2,2"], "give three numbers"),
        (["--core", "1", "--by", "angle"], "--by chooses layers"),
        (["--layers", "a,b,c"], "write numbers with commas"),
    ],
)
def test_the_verb_refuses_in_one_line(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["retrofit", str(data / "donor"), *given, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and said in capfd.readouterr().err


@pytest.mark.slow
def test_the_published_recipe_runs_in_small(data: Path, tmp_path: Path) -> None:
    for name, first in (("train", 0), ("test", 40)):
        problems = [
            Problem(f"p{n}", f"{n} + 1?", str(n + 1), metadata={"solution": f"One more than {n}."})
            for n in range(first, first + 20)
        ]
        write_records(tmp_path / f"{name}.parquet", problems, Problem)
    settings: dict[str, Any] = {
        "workers": 1,
        "threads": 1,
        "stages.student.source": data / "donor",
        "stages.general.source": data / "notes.jsonl",
        "stages.held-out.source": data / "notes.jsonl",
        "stages.looped.prelude": "'0-1'",
        "stages.looped.core": "'3-4'",
        "stages.looped.coda": "'5'",
        "stages.problems.train": tmp_path / "train.parquet",
        "stages.problems.test": tmp_path / "test.parquet",
        "stages.problems.detectors": "[exact]",
    }
    for stage, config in load_recipe("retrofit").stages.items():
        if config.kind in ("pretrain", "sft"):
            few = {"steps": 2, "batch": 4, "accumulate": 1, "warmup_steps": 0, "max_length": 96}
            few |= {"bf16": False, "checkpointing": False}
            settings |= {f"stages.{stage}.{key}": value for key, value in few.items()}
        if config.kind == "evaluate":
            few = {"policy.max_tokens": 6, "policy.answer_reserve": 4, "max_answer_tokens": 4, "bf16": False}
            settings |= {f"stages.{stage}.{key}": value for key, value in few.items()}
        if config.kind == "perplexity":
            settings |= {
                f"stages.{stage}.{key}": value for key, value in {"bf16": False, "steps": [1, 2]}.items()
            }
    recipe = load_recipe("retrofit", overrides=[f"{key}={value}" for key, value in settings.items()])
    run_recipe(recipe, tmp_path / "run", console=None)
    summary = json.loads((tmp_path / "run/metrics/summary.json").read_text())
    assert [arm["name"] for arm in summary["arms"]][-4:] == [f"task, r = {r}" for r in (1, 2, 4, 8)]
    assert len(list((tmp_path / "run/metrics").glob("perplexity-*.json"))) == 4
    page = (tmp_path / "run/report.html").read_text()
    assert "passes of the core" in page and "surgery, healing, task" in page
