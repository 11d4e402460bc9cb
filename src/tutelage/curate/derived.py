"""A problem made from others: rewritten, turned round, made checkable.

Whatever makes new questions goes through here, so that none forgets where it came from.
Promises: the same parents, question, answer and way give the same id, in every run; the parents are named;
domain, source and licence are theirs; a question that is still that of a parent is refused, and so are
parents under different licences (under which one the new question may stand is not for a program to say).
Does not: write questions, or compare with benchmarks: a derived problem is decontaminated like any other,
whether its parents were or not. A checker's options (`tolerance`, `choices`) belong to the old question and
are not carried over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tutelage.errors import UsageError
from tutelage.questions import question_key
from tutelage.records import Problem, stable_hash

DERIVED = "derived"
"""The key in `metadata` that holds how a problem was derived."""


def derived(
    parent: Problem | Sequence[Problem],
    *,
    question: str,
    gold: str | None,
    checker: str | None = None,
    how: str,
    metadata: Mapping[str, Any] | None = None,
) -> Problem:
    """A new problem out of one parent or several. `how` is a word for the way ("rewritten", "to-number");
    `checker` is the parents' where none is given. Of several parents, sources are joined, and a domain that
    is not that of all is left empty.

    Raises UsageError for a question that is empty or equal to a parent's but for case and punctuation, an
    empty `how`, no parents, one that is there twice, parents under different licences or, where none is
    given, with different checkers, and metadata that says `derived` itself."""
    parents = (parent,) if isinstance(parent, Problem) else tuple(parent)
    if not parents:
        raise UsageError("derived: there is no parent; give the problems that the question was made from")
    ids = tuple(each.id for each in parents)
    if len(set(ids)) < len(ids):
        raise UsageError(
            f"derived: a parent is given twice among {', '.join(map(repr, ids))}; give each once"
        )
    what = f"derived from {', '.join(map(repr, ids))}"
    if not how.strip():
        raise UsageError(f"{what}: how is empty; say in a word how the question was made")
    if not question.strip():
        raise UsageError(f"{what}: the new question is empty")
    if DERIVED in (metadata or {}):
        raise UsageError(f"{what}: metadata has the key {DERIVED!r}; that is where how is kept: rename it")
    made = Problem("", question, gold, checker or _one(what, "checker", (each.checker for each in parents)))
    for each in parents:
        if question_key(each) == question_key(made):
            raise UsageError(f"{what}: the question is that of {each.id!r}; keep the parent instead")
    domains = {each.domain for each in parents}
    return Problem(
        id=stable_hash(DERIVED, how, ids, question, gold, made.checker),
        question=question,
        gold=gold,
        checker=made.checker,
        domain=parents[0].domain if len(domains) == 1 else "",
        source=" + ".join(dict.fromkeys(each.source for each in parents if each.source)),
        licence=_one(what, "licence", (each.licence for each in parents)),
        parents=ids,
        metadata={**(metadata or {}), DERIVED: how},
    )


def _one(what: str, name: str, values: Iterable[str]) -> str:
    found = list(dict.fromkeys(values))
    if len(found) > 1:
        remedy = "give one" if name == "checker" else "combine problems under one licence only"
        raise UsageError(f"{what}: the parents differ in {name} ({', '.join(map(repr, found))}); {remedy}")
    return found[0]


def ancestors(problem: Problem, by_id: Mapping[str, Problem]) -> list[Problem]:
    """Everything that `problem` was derived from, its parents first, then theirs, each once.

    Raises UsageError for a parent that is not in `by_id`, and for a problem that descends from itself."""
    found: dict[str, Problem] = {}
    line = deque((problem.id, parent) for parent in problem.parents)
    while line:
        child, parent_id = line.popleft()
        if parent_id == problem.id:
            raise UsageError(f"problem {problem.id!r} descends from itself, by way of {child!r}")
        if parent_id in found:
            continue
        parent = by_id.get(parent_id)
        if parent is None:
            raise UsageError(f"problem {child!r}: its parent {parent_id!r} is not among the problems")
        found[parent_id] = parent
        line.extend((parent_id, each) for each in parent.parents)
    return list(found.values())
