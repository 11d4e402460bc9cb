"""Next-token training on traces through TRL: supervised fine-tuning, and mid-training on packed rows.

Promises: `steps` optimiser steps on rows drawn without replacement, epoch by epoch, in an order that depends
on the seed alone; the loss of a step is the mean over all its tokens under the loss, however many
micro-batches and processes share it; tokens are counted as they are fed, also over a kill; the student given
is trained in place, and its forward pass is its own again afterwards.
Does not: choose data or cut it, save the model, or evaluate it.

What TRL's trainer would also do at each step and is switched off, since it costs a quarter of the time on a
small model: entropy and accuracy over the whole vocabulary, counting floating point operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tutelage.errors import UsageError
from tutelage.plain import some
from tutelage.students.pretrained import Student
from tutelage.students.reserved import padding
from tutelage.train.batches import FED, Fed, Packed, Padded
from tutelage.train.examples import Example
from tutelage.train.fit import Fitted, fit
from tutelage.train.packing import check_blind, filled, pack
from tutelage.train.settings import Keep, Optimiser, Progress, Validation


@dataclass(frozen=True, slots=True)
class Packing:
    """How examples were packed: rows, their room in tokens, and the share of positions with a real token."""

    rows: int
    room: int
    filled: float


@dataclass(frozen=True, slots=True)
class SftResult:
    """What was done: the run itself, tokens fed (padding not counted), tokens under the loss, positions
    (padding counted), epochs, and the packing (None: one example a row)."""

    fitted: Fitted
    tokens_seen: int
    tokens_learned: int
    positions: int
    epochs: float
    packing: Packing | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the loss alone. `counts` and `last` are the caller's, kept up to date."""

    def __init__(self, counts: dict[str, float], last: list[Fed], **given: Any) -> None:
        self.counts, self.last = counts, last
        super().__init__(**given)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The cross-entropy summed over this micro-batch, divided by the tokens of the whole step."""
        fed: Fed = inputs.pop(FED)
        self._count(fed)
        inputs["use_cache"] = False
        if inputs["labels"].device.type == "cpu":
            # The model's own loss: TRL's head scores masked positions too where there is no Triton.
            return Trainer.compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)
        loss = model(**inputs, fused_lm_head=True, num_items_in_batch=num_items_in_batch).loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return loss

    def _count(self, fed: Fed) -> None:
        self.last[:] = [fed]
        held = [fed.tokens, fed.learned, fed.positions]
        if self.accelerator.num_processes > 1:
            everywhere = torch.tensor(held, device=self.accelerator.device)
            held = self.accelerator.reduce(everywhere, "sum").tolist()
        for name, number in zip(("tokens_seen", "tokens_learned", "positions"), held, strict=True):
            self.counts[name] = self.counts.get(name, 0) + number

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | {"tokens_seen": self.counts.get("tokens_seen", 0)}, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written from the manifest, with the model."""


def train_sft(
    student: Student,
    examples: Sequence[Example],
    optimiser: Optimiser,
    *,
    packed: int | None = None,
    keep: Keep | None = None,
    validation: Validation | None = None,
    progress: Progress | None = None,
) -> SftResult:
    """Train `student` on `examples` and give back what was done. With `packed` they share rows of so many
    tokens, and the batch counts rows.

    Raises UsageError when there is no example, when an example does not fit into a packed row, when the
    model lets packed examples see each other, and what `fit` raises."""
    if not examples:
        raise UsageError("there is no example to train on")
    if packed is not None and optimiser.lengths:
        raise UsageError("lengths: packed rows mix long and short examples; leave it out, or use kind: sft")
    tokenizer = student.tokenizer
    pad = padding(tokenizer).id
    packing, groups = None, [[place] for place in range(len(examples))]
    collate: Padded | Packed = Padded(examples, pad)
    if packed is not None:
        lengths = [len(each.input_ids) for each in examples]
        groups = pack(lengths, packed)
        packing = Packing(len(groups), packed, filled(lengths, groups, packed))
        flat = "flash" in (student.model.config._attn_implementation or "")
        check_blind(student.model, lambda probes, rows: Packed(probes, rows, pad, flat))
        collate = Packed(examples, groups, pad, flat)
    counts: dict[str, float] = {}
    last: list[Fed] = []
    made: list[_Trainer] = []

    def build(model: Any, arguments: dict[str, Any], callbacks: list[TrainerCallback]) -> Trainer:
        made.append(
            _Trainer(
                counts,
                last,
                model=model,
                args=SFTConfig(
                    **arguments,
                    dataset_kwargs={"skip_prepare_dataset": True},  # rows are ready, nothing may be cut
                    max_length=None,
                    ddp_find_unused_parameters=False,  # a search at each step, and there are none
                ),
                train_dataset=Dataset.from_dict({"row": list(range(len(groups)))}),
                data_collator=collate,
                processing_class=tokenizer,
                callbacks=callbacks,
            )
        )
        return made[0]

    def names() -> str:
        ids = [examples[each].trace_id for fed in last for row in fed.rows for each in groups[row]]
        return f"traces {some(ids)}"

    fitted = fit(
        student,
        optimiser,
        build,
        keep=keep,
        validation=validation,
        progress=progress,
        names=names,
        counts=counts,
        sizes=[each.size for each in examples] if optimiser.lengths else None,
    )
    vars(student.model).pop("forward", None)  # TRL's; a copy of this student would run these weights by it
    return SftResult(
        fitted=fitted,
        tokens_seen=int(counts["tokens_seen"]),
        tokens_learned=int(counts["tokens_learned"]),
        positions=int(counts["positions"]),
        # With lengths the whole run is one round of the loader, whatever share of the rows it feeds.
        epochs=round(
            fitted.steps * optimiser.batch / len(groups)
            if optimiser.lengths
            else float(made[0].state.epoch or 0.0),
            3,
        ),
        packing=packing,
        losses=[(row["step"], row["loss"]) for row in fitted.log if "loss" in row],
    )
