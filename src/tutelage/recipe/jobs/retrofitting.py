"""Jobs around a recurrent-depth student made of a pretrained one: plain documents, surgery, training on the
documents, and how well they are predicted.

Promises: a model is written only after one pass through it was found to be the donor's own, layer by layer;
its folder remembers the donor, the surgery and what it learned from.
Does not: hold a room's logic.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from tutelage.errors import UsageError
from tutelage.lab.world import make_problems
from tutelage.measure.perplexity import perplexity_by_steps
from tutelage.problems.texts import Text, read_texts, write_texts
from tutelage.recipe import healing
from tutelage.recipe.files import write_text
from tutelage.recipe.jobs import fitting
from tutelage.recipe.manifest import versions
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem
from tutelage.students.card import write_training
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.recurrent.influence import choose_split, score_layers, spare, table
from tutelage.students.recurrent.retrofit import (
    Split,
    Surgery,
    check_split,
    donor_config,
    layer_differences,
    read_layers,
    retrofit,
)
from tutelage.tokens import encode_text
from tutelage.train import ranks
from tutelage.train.check import Finding
from tutelage.train.documents import document_examples
from tutelage.train.dry import dry_pass, longest
from tutelage.train.examples import Example
from tutelage.train.sft import train_sft

# How far one pass may be from the donor's, as a share of the largest value: float32 rounding is below 1e-5.
_APART = 1e-3
_PROBE = 32


def texts(ctx: JobContext[healing.Texts]) -> dict[str, Any]:
    """Plain documents as one file."""
    config = ctx.config
    found = read_texts(
        config.source,
        columns=config.columns,
        limit=config.limit,
        split=config.split,
        licence=config.licence,
    )
    write_texts(ctx.outputs["texts"], found)
    return {"documents": len(found), "characters": sum(len(each.text) for each in found)}


def retrofit_model(ctx: JobContext[healing.Retrofit]) -> dict[str, Any]:
    """Surgery on a pretrained model."""
    config = ctx.config
    torch.set_num_threads(ctx.threads)
    begun = load_student(str(ctx.path("model")), device="cpu")
    surgery = Surgery(
        mean=config.mean,
        backprop=config.backprop,
        most=config.most,
        adapter=config.adapter,
        start=config.start,
        untie=config.untie,
        state_std=config.state_std,
        seed=config.seed,
    )
    layers = len(begun.model.model.layers) if hasattr(begun.model.model, "layers") else 0
    split, numbers = _split(ctx, begun, layers)
    made = retrofit(begun.model, split, surgery, begun.name)
    probe = torch.randint(0, made.config.vocab_size, (1, _PROBE), generator=torch.Generator().manual_seed(0))
    apart = layer_differences(begun.model, made, split, probe)
    worst = max(apart, key=lambda each: each[1])
    if not worst[1] <= _APART:
        where = "the logits" if worst[0] < 0 else f"layer {worst[0]}"
        raise UsageError(
            f"{begun.name}: one pass without the adapter is not the donor's: {where} differs by "
            f"{worst[1]:.1%}; its configuration asks for something that is not supported here"
        )
    numbers |= {
        **{name: list(part) for name, part in asdict(split).items()},
        "left_out": layers - len(split.layers),
        "donor_parameters": sum(each.numel() for each in begun.model.parameters()),
        "parameters": sum(each.numel() for each in made.parameters()),
        "largest_difference": worst[1],
    }
    folder = ctx.outputs["model"]
    save_student(Student(made, begun.tokenizer, begun.template, begun.name), folder)
    write_training(
        folder,
        {
            "stage": ctx.stage,
            "kind": config.kind,
            "settings": config.model_dump(mode="json", exclude={"model", "texts"}),
            "versions": versions(),
            "seed": config.seed,
            "numbers": {name: each for name, each in numbers.items() if name != "table"},
        },
        before=ctx.path("model"),
    )
    return numbers


def _split(ctx: JobContext[healing.Retrofit], begun: Student, layers: int) -> tuple[Split, dict[str, Any]]:
    """The layers named, or those chosen and how."""
    config = ctx.config
    if config.layers is None:
        named = Split(
            read_layers(config.prelude or "", "prelude"),
            read_layers(config.core or "", "core"),
            read_layers(config.coda or "", "coda"),
        )
        # A wrong donor is the first thing said.
        donor_config(begun.model.config, named, Surgery(), begun.name)
        return check_split(named, layers), {}
    donor_config(begun.model.config, Split((), (0,), ()), Surgery(), begun.name)
    span = spare(layers, config.layers)
    scores = score_layers(begun.model, _sample(ctx, begun), span)
    split = choose_split(scores, config.layers, config.by)
    return split, {"scores": [asdict(each) for each in scores], "table": table(scores, split)}


def _sample(ctx: JobContext[healing.Retrofit], begun: Student) -> list[list[int]]:
    """Token ids to measure layers on."""
    config = ctx.config
    found = [each.text for source in ctx.inputs.get("texts", ()) for each in read_texts(source.path)]
    if not found:
        found = [each.question for each in make_problems(config.sample, seed=0, min_steps=2, max_steps=6)]
    return [encode_text(begun.tokenizer, each)[: config.tokens] for each in found[: config.sample]]


def pretrain(ctx: JobContext[healing.Pretrain]) -> dict[str, Any]:
    """One model trained on plain documents, for one seed."""
    config = ctx.config
    student = fitting.start(ctx)
    found, examples, finding = documents(ctx, student)
    if finding.refused:
        raise UsageError(finding.text)
    if next(student.model.parameters()).device.type == "cuda":
        dry_pass(
            student,
            fitting.optimiser(ctx),
            lambda begun, optimiser, progress: train_sft(
                begun,
                longest(examples, optimiser.batch, config.max_length),
                optimiser,
                packed=config.max_length,
                progress=progress,
            ),
        )
    result = train_sft(
        student,
        examples,
        fitting.optimiser(ctx),
        packed=config.max_length,
        keep=fitting.keep(ctx),
        validation=fitting.validation(ctx),
        progress=ctx.progress,
    )
    numbers = {
        "documents": len(found),
        "examples": len(examples),
        "tokens_seen": result.tokens_seen,
        "tokens_learned": result.tokens_learned,
        "padding": round(1 - result.tokens_seen / result.positions, 4),
        "epochs": result.epochs,
        "packing": asdict(result.packing) if result.packing else None,
        "processes": ranks.processes(),
    }
    return fitting.finish(ctx, student, result.fitted, numbers, [_learned(each) for each in found])


def documents(
    ctx: JobContext[healing.Pretrain], student: Student
) -> tuple[list[Text], list[Example], Finding]:
    """The documents of a stage, the examples they become, and whether these fit into the model."""
    found = [each for source in ctx.inputs["texts"] for each in read_texts(source.path)]
    examples = document_examples(student.tokenizer, found, ctx.config.max_length)
    most, room = max(len(each.input_ids) for each in examples), student.model.config.max_position_embeddings
    said = f"the longest example has {most} tokens, the model's context {room}"
    return (
        found,
        examples,
        Finding("context", most > room, said + ("; lower max_length" if most > room else "")),
    )


def _learned(text: Text) -> Problem:
    """A document in the model's record, where its source and licence are told as those of problems are."""
    return Problem(text.id, text.text, source=text.source, licence=text.licence)


def perplexity(ctx: JobContext[healing.Perplexity]) -> dict[str, Any]:
    """How well documents are predicted, by passes of the core."""
    config = ctx.config
    torch.set_num_threads(ctx.threads)
    student = load_student(str(ctx.path("model")), dtype="bfloat16" if config.bf16 else "float32")
    found = [each.text for source in ctx.inputs["texts"] for each in read_texts(source.path)]
    rows = perplexity_by_steps(student, found[: config.documents], config.steps, window=config.window)
    write_text(ctx.outputs["perplexity"], json.dumps(rows, indent=1) + "\n")
    return {"by_steps": rows}
