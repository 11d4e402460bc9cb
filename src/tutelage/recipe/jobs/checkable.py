"""What each kind of training stage would put through the model: its data, made as the stage makes it,
the findings about it, and a run of the stage on its longest batch.

Promises: samples, pairs and prompts by the same functions as the stage's own job, but with no limit on their
length: too long is a finding here, not an error.
Does not: check or measure (see `checking`), or write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.recipe.healing import Pretrain
from tutelage.recipe.jobs import fitting, preferring, retrofitting, training
from tutelage.recipe.stage import JobContext
from tutelage.recipe.training import Distill, Dpo, MidTrain, Rl, TraceData
from tutelage.records import Problem, Trace, by_id, read_records
from tutelage.students.pretrained import Student
from tutelage.students.reserved import padding
from tutelage.train import check as traps
from tutelage.train.check import Finding, Samples
from tutelage.train.dry import longest
from tutelage.train.examples import IGNORE, Example, build_examples
from tutelage.train.packing import pack
from tutelage.train.pairs import Pair
from tutelage.train.preferences import Preference, train_dpo
from tutelage.train.settings import Optimiser, Progress
from tutelage.train.sft import train_sft

_NO_LIMIT = 2**40  # tokens
_SHOWN = 3
_OF_PROMPTS = (traps.chat_template, traps.context, traps.unknown_words, traps.control_tokens)


@dataclass(frozen=True, slots=True)
class Job:
    """What a kind of stage hands to the common part: findings; samples to show; the rows that pass through
    the model with the tokens of each; the optimiser that counts those rows; how to rehearse it, and what the
    rehearsal leaves out."""

    student: Student
    findings: list[Finding]
    numbers: dict[str, Any]
    shown: Sequence[Example]
    lengths: list[int]
    learned: int
    optimiser: Optimiser
    rehearse: Callable[[Student, Optimiser, Progress], object]
    left_out: tuple[str, ...] = ()


def of_traces(ctx: JobContext[Any], config: TraceData) -> Job:
    """Mid-training, fine-tuning and distillation."""
    packs = isinstance(config, MidTrain)
    open_end = config.model_copy(update={"max_length": _NO_LIMIT})
    learned = training.lessons(
        replace(ctx, config=open_end), fitting.start(ctx), getattr(config, "loss_on", "reply")
    )
    every = learned.made.examples
    fitting_ones = [each for each in every if len(each.input_ids) <= config.max_length]
    examples = fitting_ones or every
    samples = Samples(
        learned.student,
        by_id(learned.problems),
        {trace.id: trace for trace in learned.traces},
        examples,
        config.target,
        config.chat_template == "faithful",
    )
    pad = padding(learned.student.tokenizer).id
    collate = traps.packed(pad) if packs else traps.padded(pad)
    over = len(every) - len(fitting_ones)
    findings = [_too_long(config, over, len(every)), *traps.find_traps(samples, collate)]
    if config.target == "thinking":
        empty = sum(not samples.traces[each.trace_id].thinking.strip() for each in examples)
        text = f"{empty} of {len(examples)} samples have no thinking"
        findings.append(Finding("thinking", False, text + (", and teach to have none" if empty else "")))
    lengths = [len(each.input_ids) for each in examples]
    rows = lengths
    if packs and max(lengths) <= config.max_length:
        rows = [sum(lengths[each] for each in group) for group in pack(lengths, config.max_length)]

    def rehearse(student: Student, optimiser: Optimiser, progress: Progress) -> object:
        room = config.max_length if packs else None
        chosen = longest(examples, optimiser.batch, room)
        return train_sft(student, chosen, optimiser, packed=room, progress=progress)

    return Job(
        student=learned.student,
        findings=findings,
        numbers=learned.numbers
        | {
            "samples": len(every),
            "too_long": over,
            "share_too_long": over / len(every),
            "limit": config.max_length,
        },
        shown=_spread(examples),
        lengths=rows,
        learned=sum(label != IGNORE for each in examples for label in each.labels),
        optimiser=fitting.optimiser(ctx),
        rehearse=rehearse,
        left_out=_teacher(ctx) if isinstance(config, Distill) else (),
    )


def of_documents(ctx: JobContext[Any], config: Pretrain) -> Job:
    """Training on plain documents."""
    begun = fitting.start(ctx)
    found, examples, finding = retrofitting.documents(ctx, begun)
    lengths = [len(each.input_ids) for each in examples]

    def rehearse(student: Student, optimiser: Optimiser, progress: Progress) -> object:
        room = config.max_length
        return train_sft(
            student, longest(examples, optimiser.batch, room), optimiser, packed=room, progress=progress
        )

    return Job(
        student=begun,
        findings=[finding],
        numbers={"documents": len(found), "samples": len(examples), "limit": config.max_length},
        shown=_spread(examples),
        lengths=[sum(lengths[each] for each in group) for group in pack(lengths, config.max_length)],
        learned=sum(label != IGNORE for each in examples for label in each.labels),
        optimiser=fitting.optimiser(ctx),
        rehearse=rehearse,
    )


def of_pairs(ctx: JobContext[Any], config: Dpo) -> Job:
    """Preferences: both sides of a pair pass through the model."""
    student = fitting.start(ctx)
    pairs, problems = preferring.own_pairs(ctx, student)
    if not pairs:
        raise UsageError("there is no pair to train on; look at what the stage that made the pairs left out")
    over = [pair for pair in pairs if pair.length > config.max_length]
    kept = [pair for pair in pairs if pair.length <= config.max_length] or pairs
    sides = [side for pair in kept for side in _sides(pair)]
    samples = Samples(student, problems, {}, sides, faithful=False)
    begun = fitting.optimiser(ctx)

    def rehearse(student: Student, optimiser: Optimiser, progress: Progress) -> object:
        # What is rehearsed counts rows, the stage counts pairs.
        pairs = max(1, optimiser.batch // 2)
        hardest = sorted(kept, key=lambda pair: pair.length, reverse=True)[:pairs]
        return train_dpo(
            student,
            hardest,
            Preference(config.beta, config.loss, config.sft_weight, config.label_smoothing),
            replace(optimiser, batch=pairs),
            max_length=_NO_LIMIT,
            progress=progress,
        )

    return Job(
        student=student,
        findings=[
            _too_long(config, len(over), len(pairs)),
            traps.chat_template(samples),
            traps.context(samples),
        ],
        numbers={
            "samples": len(pairs),
            "problems": len(problems),
            "too_long": len(over),
            "share_too_long": len(over) / len(pairs),
            "limit": config.max_length,
        },
        shown=sides[:2],
        lengths=[len(side.input_ids) for side in sides],
        learned=sum(label != IGNORE for side in sides for label in side.labels),
        optimiser=replace(begun, batch=2 * begun.batch),
        rehearse=rehearse,
    )


def of_prompts(ctx: JobContext[Any], config: Rl) -> Job:
    """Reinforcement: the prompts are known, of the replies the longest that may be drawn."""
    student = fitting.start(ctx)
    problems = read_records(ctx.path("problems"), Problem)
    if not problems:
        raise UsageError(f"stage {ctx.stage}: there is no problem to train on")
    traces = {each.id: Trace(each.id, each.id, 0, "check", "?") for each in problems}
    known = by_id(problems)
    made = build_examples(
        student.tokenizer, student.template, known, list(traces.values()), max_length=_NO_LIMIT
    )
    samples = Samples(student, known, traces, made.examples, faithful=False)
    prompts = [_prompt(each) for each in made.examples]
    room = traps.context_of(student.model)
    policy = config.policy
    reply = None if policy.max_tokens is None else policy.max_tokens + policy.grace_tokens
    wanted = (room or _NO_LIMIT) if reply is None else reply + config.max_answer_tokens
    lengths = [max(len(ids) + 1, min(len(ids) + wanted, room or _NO_LIMIT)) for ids in prompts]
    if max(lengths) >= _NO_LIMIT:
        raise UsageError(f"stage {ctx.stage}: set policy.max_tokens; nothing else limits a reply's length")

    def rehearse(student: Student, optimiser: Optimiser, progress: Progress) -> object:
        begun = sorted(prompts, key=len, reverse=True)[: optimiser.batch]
        rows = [_filled(ids, max(lengths)) for ids in begun]
        return train_sft(student, rows, replace(optimiser, batch=len(rows)), progress=progress)

    cut = sum(len(ids) + wanted > (room or _NO_LIMIT) for ids in prompts)
    said = "no limit on thinking but the context" if reply is None else f"replies of up to {wanted} tokens"
    return Job(
        student=student,
        findings=[
            # The replies of these samples are stand-ins, so nothing is said about them.
            *(look(samples) for look in _OF_PROMPTS),
            Finding("replies", False, f"{said}; for {cut} of {len(prompts)} prompts the context ends sooner"),
        ],
        numbers={"samples": len(problems), "problems": len(problems)},
        shown=[_filled(prompts[0], len(prompts[0]))],
        lengths=lengths,
        learned=sum(length - len(ids) for length, ids in zip(lengths, prompts, strict=True)),
        optimiser=fitting.optimiser(ctx),
        rehearse=rehearse,
        left_out=(
            "every reply as long as it may be: lengths, tokens and time are upper bounds",
            "time and memory: a training step alone, without drawing the replies",
        ),
    )


def _too_long(config: TraceData | Dpo, over: int, of: int) -> Finding:
    text = f"{over} of {of} samples ({over / of:.1%}) are longer than max_length {config.max_length}"
    if over and config.too_long == "refuse":
        text += "; raise it, or set too_long: drop (cutting would teach the model never to answer)"
    elif over:
        text += " and are left out whole"
    return Finding("length", bool(over) and (config.too_long == "refuse" or over == of), text)


def _spread(examples: Sequence[Example]) -> list[Example]:
    """The shortest, one in the middle, and the longest."""
    ordered = sorted(examples, key=lambda each: len(each.input_ids))
    places = dict.fromkeys((0, len(ordered) // 2, len(ordered) - 1))
    return [ordered[place] for place in places][:_SHOWN]


def _sides(pair: Pair) -> tuple[Example, Example]:
    """Both sides of a pair as samples: learned is what the model drew."""
    made = []
    for name, ids, free, trace in (
        ("chosen", pair.chosen_ids, pair.chosen_free, pair.chosen_trace),
        ("rejected", pair.rejected_ids, pair.rejected_free, pair.rejected_trace),
    ):
        labels = [each if drawn else IGNORE for each, drawn in zip(ids, free, strict=True)]
        begun = [IGNORE] * len(pair.prompt_ids)
        made.append(
            Example([*pair.prompt_ids, *ids], begun + labels, pair.problem_id, f"{trace} ({name})".strip())
        )
    return made[0], made[1]


def _prompt(example: Example) -> list[int]:
    return [each for each, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORE]


def _filled(prompt: list[int], length: int) -> Example:
    """A row of `length` tokens that begins with the prompt: for memory and time, which do not read it."""
    rest = length - len(prompt)
    ids = prompt + [prompt[place % len(prompt)] for place in range(rest)]
    return Example(ids, [IGNORE] * len(prompt) + ids[len(prompt) :], "prompt", "prompt")


def _teacher(ctx: JobContext[Any]) -> tuple[str, ...]:
    folder = ctx.maybe("teacher")
    if folder is None:
        return ("memory and time: as fine-tuning on these rows; the saved scores come on top",)
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 2**30
    return (f"memory and time: as fine-tuning on these rows; the teacher's {size:.2f} GB come on top",)
