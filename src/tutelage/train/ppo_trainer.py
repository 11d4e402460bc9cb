"""The trainer of PPO: a step is a batch of replies, several passes over it; a value head beside the model.

Promises: all updates of a step but the last are made inside it, the last by the loop around it, so that
checkpoints, log and learning rate are those of any other stage; the value head and its optimiser state are in
the checkpoint; a loss that is not a number stops the step before its gradient is used.
Does not: draw replies (see `ppo_replies`).
"""

from __future__ import annotations

import copy
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from tutelage.errors import UsageError
from tutelage.train.episodes import Episodes, Outlook, gather, look
from tutelage.train.gae import gae, masked_mean, whiten
from tutelage.train.merged import merged
from tutelage.train.ppo_replies import Replies
from tutelage.train.recurrent import backbone
from tutelage.train.settings import Optimiser
from tutelage.train.surrogate import action_rewards, k1, k3, policy_loss, value_loss
from tutelage.train.value import ValueHead, width_of


@dataclass(frozen=True, slots=True)
class PpoSettings:
    """`group` replies to each problem of a step; `epochs` passes over them in minibatches of `minibatch`
    replies. `gamma` and `lam`: see `gae`. The loss is the policy's plus `value_weight` times the value's.
    `kl` weighs the divergence from the start in the reward. Raises UsageError for numbers that cannot
    work."""

    group: int = 8
    epochs: int = 2
    minibatch: int = 32
    clip_low: float = 0.2
    clip_high: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    value_weight: float = 0.5
    value_clip: float = 0.2
    value_learning_rate: float = 1e-4
    kl: float = 0.0

    def __post_init__(self) -> None:
        for name in ("group", "epochs", "minibatch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class _Batch:
    """A step's replies with what stays fixed over its epochs; tensors are (rows, actions)."""

    episodes: Episodes
    old: Outlook
    advantages: Tensor
    returns: Tensor
    temperature: float


class PpoTrainer(Trainer):  # type: ignore[misc]
    """A trainer whose step is a batch of replies. All updates but the last are made inside `training_step`;
    the last one's gradient is left for the loop around it."""

    def __init__(
        self,
        settings: PpoSettings,
        replies: Replies,
        optimiser: Optimiser,
        model: Any,
        arguments: TrainingArguments,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.settings, self.replies, self.told = settings, replies, optimiser
        # A tracker or a sampler of data must not decide the order of replies.
        steps = [{"step": step} for step in range(arguments.max_steps)]
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=steps,
            data_collator=lambda rows: {"step": torch.tensor([row["step"] for row in rows])},
            callbacks=callbacks,
        )
        self.head = ValueHead(width_of(model), arguments.seed).to(arguments.device)
        self.reference: Any = None
        if self.settings.kl and not isinstance(model, PeftModel):
            reference = copy.deepcopy(model).eval().requires_grad_(False)
            self.reference = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self.norm = torch.zeros(())
        self._noted: dict[str, list[float]] = {}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The model's optimiser, with the head as a group of its own."""
        fresh = self.optimizer is None
        optimiser: torch.optim.Optimizer = super().create_optimizer(model)
        if fresh:
            optimiser.add_param_group(
                {
                    "params": list(self.head.parameters()),
                    "lr": self.settings.value_learning_rate,
                    "weight_decay": 0.0,
                }
            )
        return optimiser

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """All epochs over the replies of one step; gives the mean loss of the minibatches, or the first that
        is not a number, with the clipped gradient of the last one in place."""
        step = int(self.state.global_step)
        # Without dropout (old and new probabilities must be of one function), unless activations are
        # recomputed or a recurrent model (which has no dropout) loops without gradient: both are done in
        # training mode only.
        model.train(bool(self.args.activation_checkpointing) or backbone(model) is not None)
        batch = self._collect(model, step)
        losses: list[Tensor] = []
        plan = self._minibatches(len(batch.returns), step)
        for number, rows in enumerate(plan):
            self.optimizer.zero_grad()
            losses.append(self._backward(model, batch, rows))
            if not torch.isfinite(losses[-1]):
                return losses[-1]
            self.norm = self.accelerator.clip_grad_norm_(
                [*model.parameters(), *self.head.parameters()], self.args.max_grad_norm or math.inf
            )
            if not torch.isfinite(self.norm):
                return self.norm
            if number + 1 < len(plan):
                self.optimizer.step()
        return torch.stack(losses).mean()

    def _collect(self, model: Any, step: int) -> _Batch:
        with merged(self.accelerator.unwrap_model(model)) as plain:
            drawn = self.replies.draw(step, plain)
        for name, number in self.replies.numbers.items():
            self._note(name, number)
        temperature = drawn.temperature
        episodes = gather(drawn.rollouts, self.replies.pad, self.args.device)
        mask = episodes.mask
        with torch.no_grad():
            old = self._whole(model, self.head, episodes, temperature)
            reference: Tensor | None = None
            if self.settings.kl:
                reference = self._start(model, episodes, temperature).logprobs
                self._note("ppo/kl", float(masked_mean(k1(old.logprobs, reference), mask)))
                self._note("ppo/kl_k3", float(masked_mean(k3(reference - old.logprobs), mask)))
            rewards = torch.tensor(drawn.rewards, device=mask.device)
            given = action_rewards(rewards, old.logprobs, reference, mask, self.settings.kl)
            advantages, returns = gae(
                given, old.values, mask, gamma=self.settings.gamma, lam=self.settings.lam
            )
            self._note("ppo/entropy", float(masked_mean(old.entropy, mask)))
            self._note("ppo/value", float(masked_mean(old.values, mask)))
            self._note("ppo/explained", _explained(old.values, returns, mask))
        return _Batch(episodes, old, whiten(advantages, mask), returns, temperature)

    def _start(self, model: Any, episodes: Episodes, temperature: float) -> Outlook:
        """What the model that training started from says."""
        if self.reference is not None:
            return self._whole(self.reference, None, episodes, temperature)
        with self.accelerator.unwrap_model(model).disable_adapter():
            return self._whole(model, None, episodes, temperature)

    def _whole(self, model: Any, head: ValueHead | None, episodes: Episodes, temperature: float) -> Outlook:
        """`look` at all episodes, a part at a time."""
        count, actions = episodes.mask.shape
        plain = self.accelerator.unwrap_model(model)
        parts = []
        for first in range(0, count, self._part):
            part = episodes.rows(range(first, min(first + self._part, count)))
            found = look(plain, head, part, temperature)
            parts.append([_wide(each, actions) for each in (found.logprobs, found.entropy, found.values)])
        return Outlook(*(torch.cat([part[k] for part in parts]) for k in range(3)))

    def _backward(self, model: Any, batch: _Batch, rows: Sequence[int]) -> Tensor:
        """Add up the gradient of one minibatch; its loss."""
        settings, tokens = self.settings, int(batch.episodes.mask[list(rows)].sum())
        total = torch.zeros((), device=batch.returns.device)
        notes: dict[str, float] = {}
        for first in range(0, len(rows), self._part):
            index = list(rows[first : first + self._part])
            part = batch.episodes.rows(index)
            share = int(part.mask.sum()) / tokens
            actions = part.mask.shape[1]
            old, old_values, advantages, returns = (
                each[index, :actions]
                for each in (batch.old.logprobs, batch.old.values, batch.advantages, batch.returns)
            )
            now = look(self.accelerator.unwrap_model(model), self.head, part, batch.temperature)
            policy = policy_loss(
                now.logprobs, old, advantages, part.mask, low=settings.clip_low, high=settings.clip_high
            )
            value = value_loss(now.values, old_values, returns, part.mask, clip=settings.value_clip)
            loss = share * (policy.loss + settings.value_weight * value)
            self.accelerator.backward(loss)
            total += loss.detach()
            for name, each in (
                ("ppo/policy_loss", policy.loss),
                ("ppo/value_loss", value),
                ("ppo/clipped", policy.clipped),
                ("ppo/moved", policy.moved),
            ):
                notes[name] = notes.get(name, 0.0) + share * float(each.detach())
        for name, number in notes.items():
            self._note(name, number)
        return total

    @property
    def _part(self) -> int:
        """Rows that go through the model at once."""
        return min(self.settings.minibatch, self.told.batch // self.told.accumulate)

    def _minibatches(self, count: int, step: int) -> list[list[int]]:
        """Rows of each minibatch, of nearly equal size, pass by pass in another order."""
        pieces = -(-count // self.settings.minibatch)
        found = []
        for epoch in range(self.settings.epochs):
            order = list(range(count))
            random.Random(f"{self.told.seed}|{step}|{epoch}").shuffle(order)
            found += [order[count * k // pieces : count * (k + 1) // pieces] for k in range(pieces)]
        return found

    def _note(self, name: str, value: float) -> None:
        self._noted.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The loop's numbers, with the means of ours since the last row."""
        ours = {name: statistics.fmean(values) for name, values in self._noted.items()}
        self._noted.clear()
        super().log({**logs, **ours}, start_time)

    def _clip_grad_norm(self, model: Any) -> Any:
        """What the last minibatch's gradient, of model and head together, was before it was clipped."""
        return self.norm

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: a step's inputs are a number, its replies come from it."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        self.head.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.head.load(Path(resume_from_checkpoint))


def _wide(x: Tensor, actions: int) -> Tensor:
    """`x` (rows, fewer) filled with zeros to (rows, actions)."""
    return torch.nn.functional.pad(x, (0, actions - x.shape[1]))


def _explained(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """The share of the returns' variance that the values explain; 0 where the returns do not vary."""
    spread = returns[mask].var(correction=0)
    return float(1 - (returns - values)[mask].var(correction=0) / spread) if float(spread) > 0 else 0.0
