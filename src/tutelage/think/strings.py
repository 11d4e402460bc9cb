"""Which string to write where a close is refused, picked by a small classifier on the model's last state.

`collect` tries every string at every refused close and keeps the state that the model was in; `fit` learns
from that which continuation ends right; the `Picker` is then a `choose_wait`.

Promises: a logistic regression per refused close, one output per string (several strings may end right, or
none), with the strength of its penalty chosen by cross-validation over problems; the same examples and seed
give the same picker; it is saved as safetensors and JSON, so that nothing runs when it is opened.
Does not: split problems into training and test (never fit on problems that are measured), or look at text.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.think.control import BudgetForcing
from tutelage.think.methods import Progress, Single, Solver, solve
from tutelage.think.request import Request

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""What is tried as penalty: half the squared weights times this, beside the mean loss."""
_WEIGHTS, _SETTINGS = "picker.safetensors", "picker.json"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """The model's last state (width,) at the refused close number `close` of a reply to `problem_id`, and for
    each string the share of the continuations that ended right (1 or 0 at the last close)."""

    problem_id: str
    close: int
    state: Floats
    right: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Picker:
    """A `choose_wait`: the index of the string that is likeliest to end right. `weights` (closes, strings,
    width) act on states from which `mean` (closes, width) was taken, divided by `scale`; `bias` is (closes,
    strings). Beyond the last close that was learned its weights are used again. `penalties` were chosen by
    cross-validation on `examples` examples."""

    strings: tuple[str, ...]
    weights: Floats
    bias: Floats
    mean: Floats
    scale: Floats
    penalties: tuple[float, ...]
    examples: int

    def __call__(self, state: Tensor, waits: int) -> int:
        """The index of the string for `state` (width,) after `waits` waits."""
        return int(self.logits(state.detach().double().cpu().numpy(), waits).argmax())

    def logits(self, states: Floats, close: int) -> Floats:
        """The log-odds of ending right, (..., strings), for `states` (..., width) at that refused close.

        Raises UsageError for states of another model's width."""
        if states.shape[-1] != self.weights.shape[2]:
            raise UsageError(
                f"picker: it was fitted to states of width {self.weights.shape[2]}, this model's have "
                f"{states.shape[-1]}; fit one to this model"
            )
        k = min(close, len(self.weights) - 1)
        found: Floats = (states - self.mean[k]) / self.scale[k] @ self.weights[k].T + self.bias[k]
        return found

    def save(self, folder: str | Path) -> Path:
        """Write `picker.safetensors` and `picker.json` into `folder`."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in ("weights", "bias", "mean", "scale")}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, place / _WEIGHTS)
        told = {"strings": self.strings, "penalties": self.penalties, "examples": self.examples}
        (place / _SETTINGS).write_text(json.dumps(told, indent=1), encoding="utf-8")
        return place

    @classmethod
    def load(cls, folder: str | Path) -> Picker:
        """What `save` wrote. Raises UsageError when it is not there or not whole."""
        place = Path(folder)
        try:
            arrays = load_file(place / _WEIGHTS)
            told = json.loads((place / _SETTINGS).read_text(encoding="utf-8"))
            return cls(
                strings=tuple(told["strings"]),
                penalties=tuple(told["penalties"]),
                examples=told["examples"],
                **{name: arrays[name] for name in ("weights", "bias", "mean", "scale")},
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UsageError(f"{place}: no readable picker here ({error}); fit and save it again") from error


@dataclass(frozen=True, slots=True, eq=False)
class Sequenced(Single):
    """Budget forcing with a given string at each refused close: `order` holds indices into `strings`. `seen`
    is told (problem id, attempt, close, state) at each of them."""

    strings: tuple[str, ...]
    order: tuple[int, ...]
    seen: Callable[[str, int, int, Tensor], None] | None = None

    @property
    def name(self) -> str:
        """`wait`."""
        return "wait"

    def row(self) -> dict[str, Any]:
        """The strings in their order."""
        return {
            "waits": len(self.order),
            "wait": [self.strings[i] for i in self.order],
            "chosen": "given",
        }

    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The plain question."""

        def choose(state: Tensor, waits: int) -> int:
            if self.seen is not None:
                self.seen(problem.id, attempt, waits, state)
            return self.order[waits]

        forcing = BudgetForcing(refuse_closes=len(self.order), wait=self.strings, choose_wait=choose)
        return forcing.request(solver, problem, attempt, **more)


@dataclass(slots=True)
class _Notes:
    """States by (problem, attempt, strings so far)."""

    states: dict[tuple[str, int, tuple[int, ...]], Floats] = field(default_factory=dict)

    def listen(self, order: tuple[int, ...]) -> Callable[[str, int, int, Tensor], None]:
        """What `Sequenced` tells of its states."""

        def seen(problem_id: str, attempt: int, close: int, state: Tensor) -> None:
            key = (problem_id, attempt, order[:close])
            if key not in self.states:
                self.states[key] = state.detach().double().cpu().numpy()

        return seen


def collect(
    solver: Solver,
    problems: Sequence[Problem],
    strings: Sequence[str],
    closes: int = 1,
    progress: Progress | None = None,
) -> list[Example]:
    """Examples from all orders of `strings` over the first `closes` refused closes: len(strings) ** closes
    replies per problem and sample, which share what they write alike. A reply that closes less often, because
    its budget ends, gives fewer examples.

    Raises UsageError where the solver has no verifier, or there are fewer than two strings."""
    words = tuple(strings)
    if solver.verify is None:
        raise UsageError("picker: nothing tells which continuations are right; give the solver a verifier")
    if len(set(words)) < 2 or closes < 1:
        raise UsageError("picker: there is nothing to choose; give at least two strings and one close")
    notes = _Notes()
    orders = list(itertools.product(range(len(words)), repeat=closes))
    tasks = [(solver, Sequenced(words, order, notes.listen(order))) for order in orders]
    outcomes = solve(tasks, problems, progress)
    flat = [(order, outcome) for order, mine in zip(orders, outcomes, strict=True) for outcome in mine]
    rights = solver.verify(
        [outcome.problem for _, outcome in flat], [outcome.attempts[0].completion for _, outcome in flat]
    )
    ended: dict[tuple[str, int, tuple[int, ...]], list[float]] = {}
    for (order, outcome), right in zip(flat, rights, strict=True):
        for close in range(closes):
            key = (outcome.problem.id, outcome.sample, order[: close + 1])
            ended.setdefault(key, []).append(float(right))
    return [
        Example(
            problem_id,
            len(before),
            state,
            tuple(float(np.mean(ended[problem_id, sample, (*before, i)])) for i in range(len(words))),
        )
        for (problem_id, sample, before), state in notes.states.items()
    ]


def fit(examples: Sequence[Example], strings: Sequence[str], *, folds: int = 5, seed: int = 0) -> Picker:
    """A picker among `strings`, one logistic regression per refused close that the examples know.

    Loss: binary cross-entropy per string against the share that ended right, mean over examples and strings,
    plus the penalty. The penalty is the one of PENALTIES with the least cross-validated loss, whole problems
    being held out. Raises UsageError when a close has examples of fewer problems than there are folds."""
    parts = []
    for close in range(1 + max((example.close for example in examples), default=0)):
        mine = [example for example in examples if example.close == close]
        ids = sorted({example.problem_id for example in mine})
        if len(ids) < folds:
            raise UsageError(
                f"picker: close {close} was refused on {len(ids)} problems, too few for {folds} folds; "
                "collect on more problems"
            )
        states = np.stack([example.state for example in mine])
        right = np.array([example.right for example in mine])
        shuffled = np.random.default_rng(seed).permutation(len(ids))
        fold_of = {ids[place]: number % folds for number, place in enumerate(shuffled)}
        fold = np.array([fold_of[example.problem_id] for example in mine])
        losses = [
            np.mean([_held_out(states, right, fold == number, penalty) for number in range(folds)])
            for penalty in PENALTIES
        ]
        penalty = PENALTIES[int(np.argmin(losses))]
        parts.append((*_regress(states, right, penalty), penalty))
    weights, bias, mean, scale, penalties = zip(*parts, strict=True)
    return Picker(
        tuple(strings),
        np.stack(weights),
        np.stack(bias),
        np.stack(mean),
        np.stack(scale),
        penalties,
        len(examples),
    )


def _held_out(states: Floats, right: Floats, held: NDArray[np.bool_], penalty: float) -> float:
    """The loss on the examples that are held out, without the penalty."""
    weights, bias, mean, scale = _regress(states[~held], right[~held], penalty)
    logits = (states[held] - mean) / scale @ weights.T + bias
    # log(1 + e^x) − y·x, the cross-entropy of a logit
    return float(np.mean(np.logaddexp(0.0, logits) - right[held] * logits))


def _regress(states: Floats, right: Floats, penalty: float) -> tuple[Floats, Floats, Floats, Floats]:
    """(weights (strings, width), bias (strings,), mean (width,), scale (width,)); the bias has no penalty."""
    mean, scale = states.mean(axis=0), states.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1.0)  # a feature that never varies says nothing
    x, y = torch.from_numpy((states - mean) / scale), torch.from_numpy(right)
    weights = torch.zeros((y.shape[1], x.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights, bias], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights.T + bias, y)
        value = value + penalty / 2 * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().numpy(), bias.detach().numpy(), mean, scale
