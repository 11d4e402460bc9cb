"""Distribution distillation: the student learns what its teacher would write at every place of a reply.

The teacher is a file of saved scores (see `scoring`), or a live model of the same tokenizer; the loss is the
same: the divergence (see `divergence`) summed over the places of a step and divided by their number. With a
live teacher a share of the micro-batches may be written by the student itself (on-policy: Agarwal et al.
2024, arXiv 2306.13649, algorithm 1), by the project's engine.

TRL's trainers divide this work: GKDTrainer takes whole distributions of a live teacher, DistillationTrainer
is on-policy only, ServerDistillationTrainer takes best ids from a vLLM server; none reads saved scores. Here
TRL's SFTTrainer does the training and the loss alone is ours.

Promises: accumulating micro-batches and several processes give the loss of one large batch; what the policy
wrote into the student's own replies (a forced close) is not learned; which micro-batches are the student's,
and what it writes, depends on the seed and the step alone, so that a resumed run is the same run.
Does not: align other tokenizers (see `aligned`), or mix in a cross-entropy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tutelage.errors import UsageError
from tutelage.records import stable_hash
from tutelage.students.pretrained import Student
from tutelage.students.reserved import padding
from tutelage.think.engine import Engine, Request
from tutelage.think.sampling import Sampling
from tutelage.train.divergence import Sparse, shifted, summed
from tutelage.train.examples import IGNORE, Example
from tutelage.train.fit import Fitted, fit
from tutelage.train.logprobs import ScoreFile, tokenizer_fingerprint, vocabulary_size
from tutelage.train.merged import merged
from tutelage.train.scoring import logits_at
from tutelage.train.settings import Keep, Optimiser, Progress, Validation


@dataclass(frozen=True, slots=True)
class Distillation:
    """`beta` 0 is forward KL, 1 reverse KL, between them the generalised Jensen-Shannon divergence.
    `temperature` divides both models' logits in the loss. `on_policy` is the share of micro-batches that the
    student writes, at temperature 1 and with `max_new_tokens` at most (TRL's trainer for it stops at 128, in
    the middle of a thought). Raises UsageError for numbers that cannot work."""

    beta: float = 0.0
    temperature: float = 1.0
    on_policy: float = 0.0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("beta", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name):g}; it must be between 0 and 1")
        if not self.temperature > 0:
            raise UsageError(f"temperature is {self.temperature:g}; it must be above 0")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Distilled:
    """What was done: how training went, tokens fed (padding not counted), tokens under the loss, and replies
    that the student wrote."""

    fitted: Fitted
    tokens_seen: int
    tokens_learned: int
    written: int


def distill(
    student: Student,
    examples: Sequence[Example],
    source: Student | ScoreFile,
    settings: Distillation,
    optimiser: Optimiser,
    *,
    keep: Keep | None = None,
    validation: Validation | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Train `student` in place on the distributions of `source`, a live teacher or saved scores, at the
    places of the examples' replies.

    Raises UsageError for a teacher of another tokenizer, for scores that are not of these replies, for
    settings that need a live teacher where there is none, and as `fit` does."""
    if not examples:
        raise UsageError("there is no example to train on")
    _check(student, examples, source, settings)
    counts = {"tokens_seen": 0.0, "tokens_learned": 0.0, "written": 0.0}
    made: list[_Trainer] = []

    def build(model: Any, arguments: dict[str, Any], callbacks: list[Any]) -> _Trainer:
        trainer = _Trainer(
            model=model,
            args=SFTConfig(
                **arguments,
                # Rows are ready: ids, labels and nothing to cut.
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=None,
            ),
            train_dataset=Dataset.from_dict(
                {
                    "input_ids": [example.input_ids for example in examples],
                    "labels": [example.labels for example in examples],
                    "row": list(range(len(examples))),
                }
            ),
            data_collator=_Collator(student.tokenizer, examples, source),
            processing_class=student.tokenizer,
            callbacks=callbacks,
        )
        trainer.begin(student, examples, source, settings, optimiser.seed, counts)
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
        sizes=[each.size for each in examples] if optimiser.lengths else None,
    )
    return Distilled(
        fitted, int(counts["tokens_seen"]), int(counts["tokens_learned"]), int(counts["written"])
    )


def _check(
    student: Student, examples: Sequence[Example], source: Student | ScoreFile, settings: Distillation
) -> None:
    if isinstance(source, ScoreFile):
        source.match(student.tokenizer, examples)
        if settings.on_policy:
            raise UsageError("on_policy needs a live teacher: nobody has scored what the student will write")
        if settings.temperature != 1:
            raise UsageError(
                f"temperature {settings.temperature:g} needs a live teacher: saved scores are at 1"
            )
        return
    if tokenizer_fingerprint(source.tokenizer) != tokenizer_fingerprint(student.tokenizer):
        raise UsageError(
            f"the teacher {source.name} has another tokenizer than the student; set aligned: true, or train "
            "on the teacher's texts (sft)"
        )
    size = vocabulary_size(student.tokenizer)
    for who, model in (("teacher", source.model), ("student", student.model)):
        rows = model.get_output_embeddings().weight.shape[0]
        if rows < size:
            raise UsageError(f"the {who} scores {rows} ids, its tokenizer has {size}; resize its embeddings")


class _Collator:
    """Rows as tensors, and with them the saved scores of their learned places, row by row, place by place."""

    def __init__(self, tokenizer: Any, examples: Sequence[Example], source: Student | ScoreFile) -> None:
        self.inner = DataCollatorForLanguageModeling(pad_token_id=padding(tokenizer).id)
        self.examples = examples
        self.scores = source if isinstance(source, ScoreFile) else None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = self.inner(rows)
        batch["rows"] = torch.tensor([row["row"] for row in rows])
        if self.scores is not None:
            found = [self.scores[self.examples[row["row"]].trace_id] for row in rows]
            for name in ("top_ids", "top_logprobs", "tail"):
                batch[name] = torch.from_numpy(np.concatenate([getattr(each, name) for each in found]))
        return batch


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the divergence as its loss, and micro-batches that the student writes."""

    def begin(
        self,
        student: Student,
        examples: Sequence[Example],
        source: Student | ScoreFile,
        settings: Distillation,
        seed: int,
        counts: dict[str, float],
    ) -> None:
        """What the loss needs beside what TRL's trainer is made of."""
        self.student, self.examples, self.settings = student, examples, settings
        self.seed, self.counts = seed, counts
        self.vocabulary = vocabulary_size(student.tokenizer)
        self.fed: list[int] = []
        self.teacher: Any = None
        if isinstance(source, Student):
            self.teacher = source.model.to(self.args.device).eval().requires_grad_(False)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean divergence in nats over the learned places of the whole step."""
        ids, learned = inputs["input_ids"], shifted(inputs["labels"])
        self.fed = inputs["rows"].tolist()
        logits = logits_at(model, ids, learned)[:, : self.vocabulary]
        teacher: Tensor | Sparse
        if self.teacher is None:
            teacher = Sparse(inputs["top_ids"].long(), inputs["top_logprobs"], inputs["tail"])
        else:
            with torch.no_grad():
                teacher = logits_at(self.teacher, ids, learned)[:, : self.vocabulary]
        total = summed(logits, teacher, self.settings.beta, self.settings.temperature)
        places = learned.sum()
        self.counts["tokens_seen"] += int(inputs["attention_mask"].sum())
        self.counts["tokens_learned"] += int(places)
        loss = total / (places if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # their gradients are averaged
        return (loss, None) if return_outputs else loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The step's micro-batches, those of the student's own writing in place of the given ones."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self.settings.on_policy:
            return batches, items
        step, rank = self.state.global_step, self.accelerator.process_index
        own = [
            number
            for number in range(len(batches))
            if random.Random(f"{self.seed} {step} {number} {rank}").random() < self.settings.on_policy
        ]
        if own:
            rows = [batches[number]["rows"].tolist() for number in own]
            written = iter(self._written([row for part in rows for row in part], step))
            for number, part in zip(own, rows, strict=True):
                batches[number] = self._batch(part, [next(written) for _ in part])
        return batches, self._get_num_items_in_batch(batches, device)

    def _written(self, rows: Sequence[int], step: int) -> list[tuple[list[int], list[int]]]:
        """Ids and labels of the student's own replies to the prompts of `rows`."""
        requests = []
        for row in rows:
            example = self.examples[row]
            start = next(place for place, label in enumerate(example.labels) if label != IGNORE)
            requests.append(
                Request(
                    tuple(example.input_ids[:start]),
                    sampling=Sampling(temperature=1.0),
                    seed=int(stable_hash(self.seed, step, example.trace_id), 16),
                    max_new_tokens=self.settings.max_new_tokens,
                )
            )
        with merged(self.accelerator.unwrap_model(self.model)) as plain:
            own = Student(plain, self.student.tokenizer, self.student.template, self.student.name)
            replies = Engine(own, max_batch=64).generate(requests)
        self.counts["written"] += len(replies)
        return [
            (
                [*request.prompt_ids, *reply.ids],
                [IGNORE] * len(request.prompt_ids)
                + [
                    IGNORE if forced else number
                    for number, forced in zip(reply.ids, reply.forced, strict=True)
                ],
            )
            for request, reply in zip(requests, replies, strict=True)
        ]

    def _batch(
        self, rows: Sequence[int], written: Sequence[tuple[list[int], list[int]]]
    ) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = self.data_collator(
            [
                {"row": row, "input_ids": ids, "labels": labels}
                for row, (ids, labels) in zip(rows, written, strict=True)
            ]
        )
        return {name: each.to(self.args.device) for name, each in batch.items()}
