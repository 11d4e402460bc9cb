"""Distillation from a teacher with another tokenizer, through TRL's GOLDTrainer.

GOLD reads the reply's text with both tokenizers, joins the ids of both into the shortest spans that end at
the same byte, and compares the models' distributions per span: ids of the same spelling by the generalised
Jensen-Shannon divergence, the others by the distance of their sorted probabilities (ULD, Boizard et al. 2024,
arXiv 2402.12030). Where we choose other settings than TRL's defaults: spans are merged by the chain rule
("bayesian"; the default compares the distributions one place late), ids of the same spelling are told apart
(`hybrid`), nothing is cut, and the cross-entropy of the traces is added with weight 1, since the end of the
turn has no partner and would not be learned.

Promises: the prompts are rendered by each model's own template; the student's ids are those it would be
fine-tuned on; how the tokenizers split numbers is looked at first.
Does not: divide by the number of places of a step (GOLD averages per reply, then per micro-batch); read
tokenizers that are not byte-level BPE (TRL cannot align them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.experimental.gold import GOLDConfig, GOLDTrainer
from trl.experimental.utils import is_byte_level_tokenizer
from trl.trainer.utils import RepeatSampler

from tutelage.errors import UsageError
from tutelage.records import stable_hash
from tutelage.students.pretrained import Student
from tutelage.students.reserved import padding
from tutelage.students.template import markers, render_prompt
from tutelage.tokens import decode_ids
from tutelage.train.digits import check_digits
from tutelage.train.distillation import Distillation, Distilled
from tutelage.train.examples import IGNORE, Example
from tutelage.train.fit import fit
from tutelage.train.settings import Keep, Optimiser, Progress, Validation

Span = tuple[int, int]


def distill_aligned(
    student: Student,
    teacher: Student,
    examples: Sequence[Example],
    questions: Mapping[str, str],
    settings: Distillation,
    optimiser: Optimiser,
    *,
    any_numbers: bool = False,
    keep: Keep | None = None,
    validation: Validation | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Train `student` in place on the distributions of a `teacher` with another tokenizer, over the replies
    of `examples`. `questions` are the problems' texts by id, asked of the teacher in its own way.
    `any_numbers` goes on though numbers are split differently.

    Raises UsageError for tokenizers that cannot be aligned or split numbers differently, templates with
    different closing markers, and as `fit` does."""
    if len(examples) < optimiser.batch:
        raise UsageError(f"batch {optimiser.batch} is more than the {len(examples)} examples; lower it")
    _check(student, teacher, any_numbers)
    prompts = {
        identity: _teacher_prompt(teacher, identity, questions[identity])
        for identity in {example.problem_id for example in examples}
    }
    counts = {"tokens_seen": 0.0, "tokens_learned": 0.0, "written": 0.0}
    made: list[_Trainer] = []
    with TemporaryDirectory(prefix="tutelage-teacher-") as scratch:
        teacher.tokenizer.save_pretrained(scratch)

        def build(model: Any, arguments: dict[str, Any], callbacks: list[Any]) -> _Trainer:
            trainer = _Trainer(
                model=model,
                teacher_model=teacher.model.to(next(model.parameters()).device).eval().requires_grad_(False),
                args=_arguments(arguments, settings, Path(scratch)),
                train_dataset=Dataset.from_dict({"row": list(range(len(examples)))}),
                data_collator=_Collator(student, examples, prompts),
                processing_class=student.tokenizer,
                callbacks=callbacks,
            )
            trainer.begin([prompts[example.problem_id] for example in examples], counts)
            trainer.generation_config.eos_token_id = sorted(markers(student.tokenizer, student.template).end)
            made.append(trainer)
            return trainer

        fitted = fit(
            student,
            optimiser,
            build,
            keep=keep,
            validation=validation,
            progress=progress,
            names=lambda: ", ".join(examples[row].trace_id for row in made[-1].fed),
            counts=counts,
        )
    return Distilled(
        fitted, int(counts["tokens_seen"]), int(counts["tokens_learned"]), int(counts["written"])
    )


def _arguments(arguments: dict[str, Any], settings: Distillation, tokenizer: Path) -> GOLDConfig:
    return GOLDConfig(
        **arguments,
        teacher_tokenizer_name_or_path=str(tokenizer),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        disable_dropout=False,
        lmbda=settings.on_policy,
        beta=settings.beta,
        temperature=1.0,  # of the student's own replies
        top_p=1.0,
        max_completion_length=settings.max_new_tokens,
        use_uld_loss=True,
        use_extended_uld=True,
        uld_token_merge_strategy="bayesian",
        uld_use_hybrid_loss=True,
        uld_crossentropy_weight=1.0,
        uld_student_temperature=settings.temperature,
        uld_teacher_temperature=settings.temperature,
    )


def _check(student: Student, teacher: Student, any_numbers: bool) -> None:
    for who, each in (("student", student), ("teacher", teacher)):
        if not is_byte_level_tokenizer(each.tokenizer.backend_tokenizer):
            raise UsageError(
                f"the {who}'s tokenizer is not byte-level BPE, as aligning needs (Llama 3, Qwen, Phi are); "
                "train on the teacher's texts (sft)"
            )
    ours, theirs = student.template, teacher.template
    if ours.thinking and theirs.thinking and ours.think_close != theirs.think_close:
        raise UsageError(
            f"the student closes its thinking with {ours.think_close!r}, the teacher with "
            f"{theirs.think_close!r}; give the student the teacher's markers"
        )
    if not any_numbers:
        check_digits(student.tokenizer, teacher.tokenizer)


def _teacher_prompt(teacher: Student, identity: str, question: str) -> str:
    """The teacher's prompt as the text that TRL will tokenise: without a begin-of-text that its tokenizer
    adds.

    Raises UsageError where that text would be read as other ids: control tokens spelled in the question."""
    ids = render_prompt(teacher.tokenizer, teacher.template, question)
    text = decode_ids(teacher.tokenizer, ids)
    start = getattr(teacher.tokenizer, "bos_token", None)
    added = teacher.tokenizer("x")["input_ids"][0] == teacher.tokenizer.bos_token_id
    if start and added:
        text = text.removeprefix(start)
        ids = ids[1:] if ids[0] == teacher.tokenizer.bos_token_id else ids
    if teacher.tokenizer(text, add_special_tokens=False)["input_ids"] != list(ids):
        raise UsageError(
            f"problem {identity}: its text holds control tokens of the teacher, which aligning would read as "
            "such; leave it out"
        )
    return text


def byte_spans(tokenizer: Any, ids: Sequence[int]) -> list[Span]:
    """Where each of `ids` stands in the UTF-8 bytes of their text, half-open."""
    added = {number: len(text.encode()) for text, number in tokenizer.get_added_vocab().items()}
    spans, place = [], 0
    for number, piece in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        size = added.get(number, len(piece))  # a byte-level piece has one letter per byte
        spans.append((place, place + size))
        place += size
    return spans


class _Collator:
    """Rows as GOLD wants them: the student's ids and where they stand in the bytes of the reply, and the
    texts that the teacher will read."""

    def __init__(self, student: Student, examples: Sequence[Example], prompts: Mapping[str, str]) -> None:
        self.student, self.examples, self.prompts = student, examples, prompts
        self.pad = padding(student.tokenizer).id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        found = [self.examples[row["row"]] for row in rows]
        starts = [next(place for place, label in enumerate(each.labels) if label != IGNORE) for each in found]
        ids = [torch.tensor(each.input_ids) for each in found]
        prompts = [each[:start] for each, start in zip(ids, starts, strict=True)]
        spans, texts = [], []
        for each, start in zip(found, starts, strict=True):
            text, places = self._reply(each, start)
            texts.append(text)
            spans.append(torch.tensor([(0, 0)] * start + places))
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": pad_sequence(
                [torch.tensor(each.labels) for each in found], batch_first=True, padding_value=IGNORE
            ),
            "prompts": _left(prompts, self.pad),
            "prompt_attention_mask": _left([torch.ones_like(each) for each in prompts], 0),
            "byte_offsets": pad_sequence(spans, batch_first=True),
            "original_prompt_text": [self.prompts[each.problem_id] for each in found],
            "original_completion_text": texts,
            "rows": torch.tensor([row["row"] for row in rows]),
        }

    def _reply(self, example: Example, start: int) -> tuple[str, list[Span]]:
        """The reply's text without its end of turn, and the place of each id in its bytes."""
        reply = example.input_ids[start:-1]
        text = decode_ids(self.student.tokenizer, reply)
        spans = byte_spans(self.student.tokenizer, reply)
        size = len(text.encode("utf-8"))
        if spans and spans[-1][1] != size:
            raise UsageError(f"trace {example.trace_id}: its ids do not spell its text byte for byte")
        return text, [*spans, (size, size)]


def _left(rows: Sequence[Tensor], value: int) -> Tensor:
    flipped = pad_sequence([row.flip(0) for row in rows], batch_first=True, padding_value=value)
    return flipped.flip(1)


class _Sampler(RepeatSampler):  # type: ignore[misc]
    """TRL's order of rows, each epoch's from the seed and its number: TRL's own goes on from the last
    epoch's, so that a run taken up in a later epoch would begin with the first one's order."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each epoch."""
        self.generator.manual_seed(int(stable_hash(self.seed, epoch), 16) % 2**63)


class _Trainer(GOLDTrainer):  # type: ignore[misc]
    """TRL's trainer, counting what it is fed; on the student's own replies the teacher too is asked in its
    own way."""

    # GOLD's aligned loss is a mean over the micro-batch, to be averaged over those of the step.
    loss_is_scaled_for_ga = False
    _MODEL_INPUT_RESERVED_KEYS = GOLDTrainer._MODEL_INPUT_RESERVED_KEYS | {"rows"}

    def begin(self, prompts: Sequence[str], counts: dict[str, float]) -> None:
        """The teacher's prompts, row by row, and the counters."""
        self.teacher_prompts, self.counts = prompts, counts
        self.fed: list[int] = []

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """GOLD's loss; counts the tokens, and remembers the rows."""
        self.fed = inputs["rows"].tolist()
        self.counts["tokens_seen"] += int(inputs["attention_mask"].sum())
        self.counts["tokens_learned"] += int((inputs["labels"] != IGNORE).sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> _Sampler:
        return _Sampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size * self.accelerator.num_processes,
            repeat_count=self.args.gradient_accumulation_steps,
            shuffle=True,
            seed=self.args.seed,
        )

    def _generate_non_vllm_for_slices(
        self, slices: list[dict[str, Any]], on_policy_indices: list[int]
    ) -> None:
        super()._generate_non_vllm_for_slices(slices, on_policy_indices)
        for index in on_policy_indices:
            rows = slices[index]["rows"].tolist()
            self.counts["written"] += len(rows)
            self._buffered_inputs[index]["original_prompt_text"] = [self.teacher_prompts[row] for row in rows]
