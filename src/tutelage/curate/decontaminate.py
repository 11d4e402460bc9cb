"""Training problems that are also in the test set, and training problems that are there twice.

Promises: a training question equal to a test question after normalisation never stays; one that shares a run
of `ngram` words with a test question does not stay either; of equal training questions the first stays; every
drop keeps its evidence (which problem, by which rule, what text).
Does not: find rewordings, or the same problem with other numbers. A question of fewer than `ngram` words can
only be checked for equality: `too_short` names those.

Source of the word runs: Phi-4 technical report, App. B (13-grams). We differ: one shared run is enough, there
is no allow-list, and operators and decimal numbers are words, so that 3+4 and 3-4, or 1.8 and 18, stay
different. Made for natural text: questions from a few templates share runs without being the same, so give
None there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tutelage.errors import UsageError
from tutelage.questions import question_key, words
from tutelage.records import Problem

Rule = Literal["exact", "ngram", "duplicate"]


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a problem was dropped. `rule`: `exact` (equal to a test question), `ngram` (shares a run of words
    with one) or `duplicate` (equal to an earlier training question). `score` is 1 for equality, else the
    share of the shorter question's runs that both have. `matched_text` is the matching question, or the first
    shared run."""

    problem_id: str
    rule: Rule
    score: float
    matched_id: str
    matched_text: str


def decontaminate(
    train: Sequence[Problem], test: Sequence[Problem], *, ngram: int | None = 13
) -> tuple[list[Problem], list[Drop]]:
    """The training problems that stay, in their order, and the drops. `ngram` None: equality only.

    Raises UsageError when `ngram` is less than 2."""
    if ngram is not None and ngram < 2:
        raise UsageError(f"ngram is {ngram}; it must be at least 2, or none")
    test_words = [words(problem.question) for problem in test]
    exact: dict[str, Problem] = {}
    for problem, tokens in zip(test, test_words, strict=True):
        exact.setdefault(question_key(problem, tokens), problem)
    index: dict[str, list[int]] = {}
    sizes: list[int] = []
    for number, tokens in enumerate(test_words):
        grams = set(_runs(tokens, ngram))
        sizes.append(len(grams))
        for gram in grams:
            index.setdefault(gram, []).append(number)

    kept: list[Problem] = []
    drops: list[Drop] = []
    first: dict[str, Problem] = {}
    for problem in train:
        tokens = words(problem.question)
        key = question_key(problem, tokens)
        if key in exact:
            drops.append(Drop(problem.id, "exact", 1.0, exact[key].id, exact[key].question))
        elif (shared := _overlap(problem, tokens, ngram, index, sizes, test)) is not None:
            drops.append(shared)
        elif key in first:
            drops.append(Drop(problem.id, "duplicate", 1.0, first[key].id, first[key].question))
        else:
            first[key] = problem
            kept.append(problem)
    return kept, drops


def too_short(problems: Iterable[Problem], ngram: int) -> list[str]:
    """Ids of the problems with fewer than `ngram` words: they can be checked for equality only."""
    return [problem.id for problem in problems if len(words(problem.question)) < ngram]


def _runs(tokens: list[str], ngram: int | None) -> list[str]:
    if ngram is None:
        return []
    return [" ".join(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]


def _overlap(
    problem: Problem,
    tokens: list[str],
    ngram: int | None,
    index: dict[str, list[int]],
    sizes: list[int],
    test: Sequence[Problem],
) -> Drop | None:
    """The drop for the test question that shares most runs with `problem`; None when none shares any."""
    runs = _runs(tokens, ngram)
    if not any(run in index for run in runs):
        return None
    distinct = set(runs)
    counts = Counter(number for run in distinct for number in index.get(run, ()))
    shares = {number: count / min(len(distinct), sizes[number]) for number, count in counts.items()}
    best = min(shares, key=lambda number: (-shares[number], number))
    run = next(run for run in runs if best in index.get(run, ()))
    return Drop(problem.id, "ngram", shares[best], test[best].id, run)
