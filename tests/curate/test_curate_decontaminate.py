"""Decontamination keeps its promises, and its evidence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.curate import decontaminate, too_short
from tutelage.errors import UsageError
from tutelage.questions import words
from tutelage.records import Problem

LONG = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def problems(prefix: str, *questions: str) -> list[Problem]:
    return [Problem(f"{prefix}{i}", question) for i, question in enumerate(questions)]


@pytest.mark.parametrize(
    "same",
    [
        "How many   clips, in 1,000 boxes?",
        "HOW MANY CLIPS IN 1000 BOXES",
        "how many clips… in １０００ boxes",
    ],
)
def test_equal_after_normalisation(same: str) -> None:
    test = problems("test", "How many clips in 1000 boxes?")
    kept, (drop,) = decontaminate(problems("train", same, "Something else?"), test, ngram=None)
    assert [problem.id for problem in kept] == ["train1"]
    assert (drop.problem_id, drop.rule, drop.score, drop.matched_id) == ("train0", "exact", 1.0, "test0")
    assert drop.matched_text == test[0].question


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is 3+4?", "What is 3-4?"),
        ("What is 3*4?", "What is 3/4?"),
        ("Is it 1.8?", "Is it 18?"),
        ("1 8", "18"),
        ("x = 2", "x < 2"),
        ("कि", "का"),
        ("几何", "代数"),
        ("🙂", "🙃"),
        ("", "?"),
    ],
)
def test_different_stays_different(a: str, b: str) -> None:
    kept, drops = decontaminate(problems("train", a), problems("test", b))
    assert len(kept) == 1 and not drops


def test_a_shared_run_of_words_is_a_hit_with_its_evidence() -> None:
    train = problems("train", f"Well: {LONG}, and so on!", LONG.replace("seven", "SEVENTY"))
    test = problems("test", "Nothing of the kind.", f"{LONG} sixteen")
    kept, (drop,) = decontaminate(train, test)
    assert [problem.id for problem in kept] == ["train1"]
    assert (drop.problem_id, drop.rule, drop.matched_id) == ("train0", "ngram", "test1")
    assert drop.matched_text == " ".join(LONG.lower().split()[:13])
    assert drop.score == 3 / 4  # of the test question's four runs
    assert decontaminate(train, test, ngram=None)[1] == []


def test_the_best_match_is_named() -> None:
    test = problems("test", f"{LONG.rsplit(' ', 2)[0]} a b c d e f", f"{LONG} x")
    (drop,) = decontaminate(problems("train", f"{LONG} y"), test)[1]
    assert drop.matched_id == "test1"


def test_duplicates_inside_train_keep_the_first() -> None:
    kept, (drop,) = decontaminate(problems("train", "Same here?", "Other", "same HERE"), [])
    assert [problem.id for problem in kept] == ["train0", "train1"]
    assert (drop.problem_id, drop.rule, drop.matched_id) == ("train2", "duplicate", "train0")


def test_what_is_too_short_for_runs_is_named() -> None:
    assert too_short(problems("p", "Three words only", LONG), 13) == ["p0"]


@pytest.mark.parametrize("ngram", [0, 1, -3])
def test_a_run_of_less_than_two_words_is_refused(ngram: int) -> None:
    with pytest.raises(UsageError, match="ngram is"):
        decontaminate([], [], ngram=ngram)


SHORT = st.lists(st.sampled_from(["a", "b", "3", "+", "?", "A", "1.5"]), max_size=6).map(" ".join)


@given(st.lists(SHORT, max_size=8), st.lists(SHORT, max_size=4), st.sampled_from([None, 2, 3]))
def test_nothing_that_stays_is_in_the_test_set_or_there_twice(
    train: list[str], test: list[str], ngram: int | None
) -> None:
    kept, drops = decontaminate(problems("train", *train), problems("test", *test), ngram=ngram)
    keys = [words(problem.question) or [problem.question] for problem in kept]
    held = [words(text) or [text] for text in test]
    assert not any(key in held for key in keys) and len({tuple(key) for key in keys}) == len(keys)
    assert sorted([p.id for p in kept] + [d.problem_id for d in drops]) == sorted(
        p.id for p in problems("train", *train)
    )
    if ngram:
        runs = {tuple(h[i : i + ngram]) for h in held for i in range(len(h) - ngram + 1)}
        assert not any(tuple(k[i : i + ngram]) in runs for k in keys for i in range(len(k) - ngram + 1))


@given(st.text())
def test_no_text_raises(text: str) -> None:
    decontaminate(problems("train", text), problems("test", text + "x"), ngram=2)
    assert decontaminate(problems("train", text), problems("test", text))[0] == []
