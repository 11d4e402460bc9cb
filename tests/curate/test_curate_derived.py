"""Problems made from others."""

from dataclasses import replace
from typing import Any

import pytest

from tutelage.curate.derived import ancestors, derived
from tutelage.errors import UsageError
from tutelage.records import Problem, by_id, read_records, write_records

PARENT = Problem(
    "p", "Prove that 2 + 2 = 4.", None, "exact", "Logic", "book", "MIT", metadata={"tolerance": 0.1}
)


def test_a_derived_problem_names_its_parent_and_takes_what_is_its(tmp_path: Any) -> None:
    new = derived(PARENT, question="What is 2 + 2?", gold="4", checker="number", how="to-number")
    assert new == Problem(
        new.id,
        "What is 2 + 2?",
        "4",
        "number",
        "Logic",
        "book",
        "MIT",
        ("p",),
        {"derived": "to-number"},
    )
    write_records(tmp_path / "p.parquet", [new], Problem)
    assert read_records(tmp_path / "p.parquet", Problem) == [new]


def test_the_id_is_stable_and_tells_problems_apart() -> None:
    settings: dict[str, Any] = {"question": "What is 2 + 2?", "gold": "4", "how": "rewritten"}
    assert derived(PARENT, **settings).id == "f25a69f10af149fc"  # a change of ids would orphan bought traces
    others = [
        derived(replace(PARENT, id="q"), **settings),
        *(
            derived(PARENT, **{**settings, **other})
            for other in ({"question": "And 3?"}, {"gold": "5"}, {"how": "x"}, {"checker": "math"})
        ),
    ]
    assert len({problem.id for problem in [PARENT, derived(PARENT, **settings), *others]}) == 7


def test_metadata_is_kept_beside_how() -> None:
    new = derived(PARENT, question="x", gold=None, how="rewritten", metadata={"turn": 1})
    assert new.metadata == {"turn": 1, "derived": "rewritten"} and new.checker == "exact"


def test_several_parents() -> None:
    other = replace(PARENT, id="q", question="What is 3?", domain="Numbers", source="web")
    new = derived([PARENT, other], question="What is 2 + 3?", gold="5", how="joined")
    assert (new.parents, new.domain, new.source, new.licence) == (("p", "q"), "", "book + web", "MIT")
    same = derived(
        [PARENT, replace(other, domain="Logic", source="book")], question="x", gold="5", how="joined"
    )
    assert (same.domain, same.source) == ("Logic", "book")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"question": " \n"}, "derived from 'p': the new question is empty"),
        ({"question": PARENT.question}, "the question is that of 'p'"),
        ({"question": "prove that: 2 + 2 = 4"}, "the question is that of 'p'"),
        ({"how": " "}, "how is empty"),
        ({"metadata": {"derived": 1}}, "metadata has the key 'derived'"),
        ({"parent": []}, "there is no parent"),
        ({"parent": [PARENT, PARENT]}, "a parent is given twice among 'p', 'p'"),
        ({"parent": [PARENT, replace(PARENT, id="q", licence="")]}, "differ in licence ('MIT', '')"),
        (
            {"parent": [PARENT, replace(PARENT, id="q", checker="math")]},
            "differ in checker ('exact', 'math')",
        ),
    ],
)
def test_what_cannot_be_derived(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        derived(**{"parent": PARENT, "question": "What is 2 + 2?", "gold": "4", "how": "x", **settings})
    assert message in str(raised.value)


def test_a_changed_sign_is_a_new_question() -> None:
    assert derived(PARENT, question="Prove that 2 - 2 = 4.", gold=None, how="altered").parents == ("p",)


def test_ancestors_parents_first_each_once() -> None:
    family = {
        name: Problem(name, "?", parents=tuple(parents))
        for name, parents in (
            ("a", ""),
            ("b", "a"),
            ("c", "a"),
            ("d", "bc"),
            ("e", "da"),
        )
    }
    assert [problem.id for problem in ancestors(family["e"], family)] == ["d", "a", "b", "c"]
    assert ancestors(family["a"], family) == []


def test_ancestors_that_cannot_be_found() -> None:
    family = by_id([Problem("a", "?", parents=("b",)), Problem("b", "?", parents=("a",))])
    with pytest.raises(UsageError, match="'a' descends from itself, by way of 'b'"):
        ancestors(family["a"], family)
    # A circle further up ends as well.
    assert [each.id for each in ancestors(Problem("c", "?", parents=("a",)), family)] == ["a", "b"]
    with pytest.raises(UsageError, match="'d': its parent 'x' is not among the problems"):
        ancestors(Problem("d", "?", parents=("x",)), family)
