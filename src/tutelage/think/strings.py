"""What to write where a close is refused, picked by a small classifier on the model's last state.

`collect` tries every option at every refused close and keeps the states that the model was in; `fit` learns
from that which continuation ends right; the `Picker` is then a `choose_wait`. The options are wait strings
and, if wanted, to let the model close after all.

Promises: a logistic regression per refused close, one output per option (several may end right, or none),
with the strength of its penalty chosen by cross-validation over problems; the same trials and seed give the
same picker; it is saved as safetensors and JSON, so that nothing runs when it is opened.
Does not: split problems into training and test (never fit on problems that are measured), or look at text.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


Order = tuple[int, ...]
"""Options taken at successive refused closes: indices into the strings, or their number: let it close."""


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """One reply to `problem_id` with every option tried at every refused close. `states` holds the model's
    last state (width,) where the options of the key had been taken before and a close was to be refused;
    `right` says of every complete order whether the reply ended right."""

    problem_id: str
    sample: int
    states: Mapping[Order, Floats]
    right: Mapping[Order, bool]

    def ends_right(self, taken: Order, picker: Callable[[Floats, int], int]) -> bool:
        """Whether the reply ends right after the options `taken`, `picker` choosing the later ones."""
        while taken not in self.right:
            if taken not in self.states:  # no close was refused any more: what follows is the same for all
                return next(right for order, right in self.right.items() if order[: len(taken)] == taken)
            taken = (*taken, picker(self.states[taken], len(taken)))
        return self.right[taken]


@dataclass(frozen=True, slots=True, eq=False)
class Picker:
    """A `choose_wait`: the option that is likeliest to end right. `weights` (closes, options, width) act on
    states from which `mean` (closes, width) was taken, divided by `scale`; `bias` is (closes, options). The
    options are the strings and, where there is one more, to let the model close. Beyond the last close that
    was learned its weights are used again. `penalties` were chosen by cross-validation on `examples` states.
    """

    strings: tuple[str, ...]
    weights: Floats
    bias: Floats
    mean: Floats
    scale: Floats
    penalties: tuple[float, ...]
    examples: int

    def __call__(self, state: Tensor, waits: int) -> int | None:
        """The index of the string for `state` (width,) after `waits` waits, None to let the model close."""
        option = self.option(state.detach().double().cpu().numpy(), waits)
        return None if option == len(self.strings) else option

    def option(self, state: Floats, close: int) -> int:
        """The option with the best odds."""
        return int(self.logits(state, close).argmax())

    def logits(self, states: Floats, close: int) -> Floats:
        """The log-odds of ending right, (..., options), for `states` (..., width) at that refused close.

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
    """Budget forcing with a given option at each of `closes` refused closes: `order` holds indices into
    `strings`, or at its end their number: then the model may close. `seen` is told (problem id, attempt,
    close, state) at each of them."""

    strings: tuple[str, ...]
    order: Order
    closes: int
    seen: Callable[[str, int, int, Tensor], None] | None = None

    @property
    def name(self) -> str:
        """`wait`."""
        return "wait"

    def row(self) -> dict[str, Any]:
        """The strings in their order."""
        words = [self.strings[i] for i in self.order if i < len(self.strings)]
        return {"waits": len(words), "wait": words, "chosen": "given"}

    def request(self, solver: Solver, problem: Problem, attempt: int, **more: Any) -> Request:
        """The plain question."""

        def choose(state: Tensor, waits: int) -> int | None:
            if self.seen is not None:
                self.seen(problem.id, attempt, waits, state)
            return None if self.order[waits] == len(self.strings) else self.order[waits]

        forcing = BudgetForcing(refuse_closes=self.closes, wait=self.strings, choose_wait=choose)
        return forcing.request(solver, problem, attempt, **more)


def orders(strings: int, closes: int, may_close: bool = False) -> list[Order]:
    """Every complete order of options over `closes` refused closes; letting it close ends one."""
    whole = list(itertools.product(range(strings), repeat=closes))
    if not may_close:
        return whole
    shorter = [
        order for length in range(closes) for order in itertools.product(range(strings), repeat=length)
    ]
    return [*whole, *((*order, strings) for order in shorter)]


def collect(
    solver: Solver,
    problems: Sequence[Problem],
    strings: Sequence[str],
    closes: int = 1,
    *,
    may_close: bool = False,
    progress: Progress | None = None,
) -> list[Tried]:
    """Every order of `strings` over the first `closes` refused closes, tried on every problem and sample
    (`may_close`: also to let the model close, at each of them). The replies share what they write alike.

    Raises UsageError where the solver has no verifier, or there is nothing to choose."""
    words = tuple(strings)
    if solver.verify is None:
        raise UsageError("picker: nothing tells which continuations are right; give the solver a verifier")
    if len(words) + may_close < 2 or not words or len(set(words)) < len(words) or closes < 1:
        raise UsageError("picker: there is nothing to choose; give at least two options and one close")
    states: dict[tuple[str, int], dict[Order, Floats]] = defaultdict(dict)

    def listen(order: Order) -> Callable[[str, int, int, Tensor], None]:
        def seen(problem_id: str, attempt: int, close: int, state: Tensor) -> None:
            known = states[problem_id, attempt]
            if order[:close] not in known:
                known[order[:close]] = state.detach().double().cpu().numpy()

        return seen

    every = orders(len(words), closes, may_close)
    outcomes = solve(
        [(solver, Sequenced(words, each, closes, listen(each))) for each in every], problems, progress
    )
    flat = [(order, outcome) for order, mine in zip(every, outcomes, strict=True) for outcome in mine]
    said = solver.verify(
        [outcome.problem for _, outcome in flat], [outcome.attempts[0].completion for _, outcome in flat]
    )
    right: dict[tuple[str, int], dict[Order, bool]] = defaultdict(dict)
    for (order, outcome), ok in zip(flat, said, strict=True):
        right[outcome.problem.id, outcome.sample][order] = bool(ok)
    return [Tried(*key, states[key], ends) for key, ends in right.items()]


def fit(tried: Sequence[Tried], strings: Sequence[str], *, folds: int = 5, seed: int = 0) -> Picker:
    """A picker among `strings` (and letting the model close, where that was tried), one logistic regression
    per refused close.

    From the last close backwards, an option counts as right where the reply ends right when the later options
    are those of the regressions fitted before. Loss: binary cross-entropy, mean over states and options, plus
    the penalty: the one of PENALTIES with the least loss in cross-validation, whole problems being held out.
    Raises UsageError when a close was refused on fewer problems than there are folds."""
    words = tuple(strings)
    known = [order for one in tried for order in one.right]
    closes = max(map(len, known), default=1)
    options = len(words) + any(len(words) in order for order in known)
    parts: list[tuple[Floats, Floats, Floats, Floats, float]] = []
    examples = 0

    def later(state: Floats, close: int) -> int:
        weights, bias, mean, scale, _ = parts[closes - 1 - close]
        return int(((state - mean) / scale @ weights.T + bias).argmax())

    for close in reversed(range(closes)):
        mine = [(one, taken) for one in tried for taken in one.states if len(taken) == close]
        if len({one.problem_id for one, _ in mine}) < folds:
            raise UsageError(
                f"picker: close {close} was refused on {len({one.problem_id for one, _ in mine})} problems, "
                f"too few for {folds} folds; collect on more problems"
            )
        states = np.stack([one.states[taken] for one, taken in mine])
        right = np.array(
            [[float(one.ends_right((*taken, i), later)) for i in range(options)] for one, taken in mine]
        )
        fold = _folds([one.problem_id for one, _ in mine], folds, seed)
        losses = [
            np.mean([_held_out(states, right, fold == number, penalty) for number in range(folds)])
            for penalty in PENALTIES
        ]
        penalty = PENALTIES[int(np.argmin(losses))]
        parts.append((*_regress(states, right, penalty), penalty))
        examples += len(mine)
    weights, bias, mean, scale, penalties = zip(*reversed(parts), strict=True)
    return Picker(
        words, np.stack(weights), np.stack(bias), np.stack(mean), np.stack(scale), penalties, examples
    )


def _folds(problem_ids: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each state: whole problems, dealt out in a seeded order."""
    ids = sorted(set(problem_ids))
    dealt = np.random.default_rng(seed).permutation(len(ids))
    fold_of = {ids[place]: number % folds for number, place in enumerate(dealt)}
    return np.array([fold_of[each] for each in problem_ids])


def _held_out(states: Floats, right: Floats, held: NDArray[np.bool_], penalty: float) -> float:
    """The loss on the examples that are held out, without the penalty."""
    weights, bias, mean, scale = _regress(states[~held], right[~held], penalty)
    logits = (states[held] - mean) / scale @ weights.T + bias
    # log(1 + e^x) − y·x, the cross-entropy of a logit
    return float(np.mean(np.logaddexp(0.0, logits) - right[held] * logits))


def _regress(states: Floats, right: Floats, penalty: float) -> tuple[Floats, Floats, Floats, Floats]:
    """(weights (options, width), bias (options,), mean (width,), scale (width,)); the bias has no penalty."""
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
