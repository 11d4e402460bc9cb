"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) through TRL, on pairs of ids.

Promises: what is trained is the pairs' ids, never tokenised again and never cut (a pair over the limit is
refused, or dropped and counted); the loss leaves out what the thinking policy wrote; the reference is the
student as it was handed in, its log-probabilities computed once, so that no second model is held; they are
those of the start also when a killed run goes on; rewards, margins and accuracies are in the log.
Does not: make pairs (see `pairs`, `judged`, `pivotal`), save, or evaluate.

TRL's trainer would tokenise every set and keep reference log-probabilities under a hash of its table; here
rows are numbers of pairs, so both are replaced. Dropout is off, as the method asks for equal distributions at
the start: a LoRA adapter with dropout is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tutelage.errors import UsageError
from tutelage.plain import some
from tutelage.students.pretrained import Student
from tutelage.train.fit import Fitted, fit
from tutelage.train.pairs import Pair
from tutelage.train.recurrent import comparing
from tutelage.train.settings import Keep, Optimiser, Progress, Validation

Loss = Literal["sigmoid", "ipo", "hinge", "robust"]
_ROWS = "rows"


@dataclass(frozen=True, slots=True)
class Preference:
    """The loss. `beta` weighs staying close to the start; `ipo` (Azar et al. 2023) takes means over tokens,
    `robust` (Chowdhury et al. 2024) needs `label_smoothing`, the share of pairs thought to be the wrong way
    round. `sft_weight` adds so many times the cross-entropy of the chosen sides, as a mean over tokens
    (Pang et al. 2024, arXiv 2404.19733), which keeps their probability from falling with the rejected."""

    beta: float = 0.1
    loss: Loss = "sigmoid"
    sft_weight: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise UsageError(f"beta is {self.beta:g}; it must be above 0")
        if self.sft_weight < 0:
            raise UsageError(f"sft_weight is {self.sft_weight:g}; it must not be below 0")
        if (self.loss == "robust") != (self.label_smoothing > 0) or self.label_smoothing >= 0.5:
            raise UsageError(
                f"label_smoothing is {self.label_smoothing:g} with loss {self.loss}; robust needs one "
                "above 0 and below 0.5, no other loss has any"
            )


@dataclass(frozen=True, slots=True)
class DpoResult:
    """What was done: the run itself, the pairs trained on, tokens fed (both sides, padding not counted), and
    epochs."""

    fitted: Fitted
    pairs: int
    tokens_seen: int
    epochs: float


class _Collator(DataCollatorForPreference):  # type: ignore[misc]
    """Looks rows up among the pairs. TRL's rows, chosen sides first, with no loss on what was not drawn."""

    def __init__(self, pairs: Sequence[Pair], pad: int) -> None:
        super().__init__(pad_token_id=pad)
        self.pairs = pairs

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = [self.pairs[int(row["row"])] for row in examples]
        given = [
            {
                **row,
                "prompt_ids": list(pair.prompt_ids),
                "chosen_ids": list(pair.chosen_ids),
                "rejected_ids": list(pair.rejected_ids),
            }
            for row, pair in zip(examples, pairs, strict=True)
        ]
        batch: dict[str, Any] = super().torch_call(given)
        mask = batch["completion_mask"]  # (2 × pairs, tokens)
        sides = [(pair, pair.chosen_free) for pair in pairs] + [(pair, pair.rejected_free) for pair in pairs]
        for line, (pair, free) in enumerate(sides):
            first = len(pair.prompt_ids)
            mask[line, first : first + len(free)] = torch.tensor(free, dtype=mask.dtype)
        return {**batch, _ROWS: torch.tensor([int(row["row"]) for row in examples])}


class _Trainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer over numbered pairs. `counts` and `last` are the caller's, kept up to date."""

    def __init__(self, counts: dict[str, float], last: list[int], **given: Any) -> None:
        self.counts, self.last = counts, last
        super().__init__(**given)
        self._total_train_tokens = int(counts.get("tokens_seen", 0))
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")  # TRL's copy of the start; what it is for is computed by now

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The rows with `ref_chosen_logps` and `ref_rejected_logps` of the model as it is now."""
        rows = DataLoader(dataset, batch_size, shuffle=False, collate_fn=self.data_collator)
        columns: tuple[list[float], list[float]] = ([], [])
        for batch in self.accelerator.prepare(rows):
            del batch[_ROWS]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TRL calls transformers by an old name
                found = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            for column, values in zip(columns, self.accelerator.gather_for_metrics(found), strict=True):
                column += values.tolist()
        return dataset.add_column("ref_chosen_logps", columns[0]).add_column("ref_rejected_logps", columns[1])

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        self.last[:] = inputs.pop(_ROWS).tolist()
        loss = super()._compute_loss(model, inputs, return_outputs)
        self.counts["tokens_seen"] = self._total_train_tokens
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written from the manifest, with the model."""


def within(pairs: Sequence[Pair], max_length: int) -> tuple[list[Pair], int]:
    """The pairs of at most `max_length` tokens, and how many are longer."""
    kept = [pair for pair in pairs if pair.length <= max_length]
    return kept, len(pairs) - len(kept)


def train_dpo(
    student: Student,
    pairs: Sequence[Pair],
    preference: Preference,
    optimiser: Optimiser,
    *,
    max_length: int = 1024,
    keep: Keep | None = None,
    validation: Validation | None = None,
    progress: Progress | None = None,
) -> DpoResult:
    """Train `student` in place on `pairs` (a batch counts pairs) and give back what was done.

    Raises UsageError when there is no pair, when one is longer than `max_length` or has a side without a
    token that the model drew, for an adapter with dropout, and what `fit` raises."""
    _check(pairs, max_length, optimiser)
    optimiser = comparing(optimiser, student.model)
    tokenizer = student.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    counts: dict[str, float] = {}
    last: list[int] = []
    made: list[_Trainer] = []

    def build(model: Any, arguments: dict[str, Any], callbacks: list[TrainerCallback]) -> Trainer:
        made.append(
            _Trainer(
                counts,
                last,
                model=model,
                args=DPOConfig(
                    **arguments,
                    beta=preference.beta,
                    loss_type=[preference.loss, *(["sft"] if preference.sft_weight else [])],
                    loss_weights=[1.0, preference.sft_weight] if preference.sft_weight else None,
                    label_smoothing=preference.label_smoothing,
                    precompute_ref_log_probs=True,
                    max_length=None,
                ),
                train_dataset=Dataset.from_dict({"row": list(range(len(pairs)))}),
                data_collator=_Collator(pairs, pad),
                processing_class=tokenizer,
                callbacks=callbacks,
            )
        )
        return made[0]

    def names() -> str:
        return f"pairs of problems {some(list(dict.fromkeys(pairs[row].problem_id for row in last)))}"

    fitted = fit(
        student,
        optimiser,
        build,
        keep=keep,
        validation=validation,
        progress=progress,
        names=names,
        counts=counts,
    )
    vars(student.model).pop("forward", None)  # TRL's; a copy of this student would run these weights by it
    return DpoResult(
        fitted=fitted,
        pairs=len(pairs),
        tokens_seen=int(counts["tokens_seen"]),
        epochs=round(float(made[0].state.epoch or 0.0), 3),
    )


def _check(pairs: Sequence[Pair], max_length: int, optimiser: Optimiser) -> None:
    if not pairs:
        raise UsageError("there is no pair to train on; look at what the stage that made the pairs left out")
    for pair in pairs:
        if pair.length > max_length:
            raise UsageError(
                f"a pair of problem {pair.problem_id} has {pair.length} tokens, more than max_length "
                f"{max_length}; raise it, or set too_long: drop (cutting would hide how a reply ends)"
            )
        if not (pair.prompt_ids and any(pair.chosen_free) and any(pair.rejected_free)):
            raise UsageError(f"a pair of problem {pair.problem_id} has a side that the model drew nothing of")
    if optimiser.lora and optimiser.lora.dropout:
        raise UsageError("lora.dropout must be 0 for dpo: it compares the student with its start")


def summary(fitted: Fitted) -> dict[str, Any]:
    """The last row of the log that has them: margin and accuracy of the rewards, log-probabilities of both
    sides (None: no row)."""
    names = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
    rows = [row for row in fitted.log if all(name in row for name in names)]
    first, last = (rows[0], rows[-1]) if rows else ({}, {})
    return {
        "margin": last.get("rewards/margins"),
        "reward_accuracy": last.get("rewards/accuracies"),
        "logps_chosen": [first.get("logps/chosen"), last.get("logps/chosen")],
        "logps_rejected": [first.get("logps/rejected"), last.get("logps/rejected")],
    }
