"""Decontamination keeps its promises, and its evidence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.curate import decontaminate
from tutelage.curate.benchmarks import Benchmark
from tutelage.curate.decontaminate import drop_for, first_hits
from tutelage.curate.detectors import Hit
from tutelage.curate.watch import Thresholds, watch
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
    train = problems("train", same, "Something else?")
    kept, (drop,) = decontaminate(train, test, detectors=("exact",))
    assert [problem.id for problem in kept] == ["train1"]
    assert (drop.problem_id, drop.rule, drop.score, drop.matched_id) == ("train0", "exact", 1.0, "test0")
    assert drop.matched_text == test[0].question and drop.stage == "decontamination"


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
    kept, drops = decontaminate(problems("train", a, b), [])
    assert len(kept) == 2 and not drops


def test_a_shared_run_of_words_is_a_hit_with_its_evidence() -> None:
    train = problems("train", f"Well: {LONG}, and so on!", LONG.replace("seven", "SEVENTY"))
    test = problems("test", "Nothing of the kind.", f"{LONG} sixteen")
    kept, (drop,) = decontaminate(train, test)
    assert [problem.id for problem in kept] == ["train1"]
    assert (drop.problem_id, drop.rule, drop.matched_id) == ("train0", "ngram-13", "test1")
    assert drop.matched_text == test[1].question and drop.benchmark == "test"
    assert f"both have: {' '.join(LONG.lower().split()[:13])}" in drop.reason
    assert drop.score == 3 / 4  # of the test question's four runs
    assert decontaminate(train, test, detectors=("exact",))[1] == []


def test_the_best_match_is_named() -> None:
    test = problems("test", f"{LONG.rsplit(' ', 2)[0]} a b c d e f", f"{LONG} x")
    (drop,) = decontaminate(problems("train", f"{LONG} y"), test)[1]
    assert drop.matched_id == "test1"


def test_the_strongest_evidence_is_the_rule() -> None:
    train, test = problems("train", LONG), problems("test", LONG)
    for detectors in (("ngram-13", "exact"), ("exact", "ngram-8", "fuzzy")):
        (drop,) = decontaminate(train, test, detectors=detectors)[1]
        assert drop.rule == "exact"
    for detectors, rule in ((("ngram-8", "fuzzy"), "fuzzy"), (("fuzzy", "ngram-8", "ngram-13"), "ngram-13")):
        (drop,) = decontaminate(train, test, detectors=detectors)[1]
        assert drop.rule == rule


def test_runs_that_many_items_share_count_here() -> None:
    """No item may stay, whatever many of them have in common."""
    test = problems("test", *(f"{LONG} number {n}" for n in range(30)))
    assert len(decontaminate(problems("train", f"{LONG} other"), test)[1]) == 1


def test_a_partial_hit_drops_nothing() -> None:
    shared = " ".join(LONG.split()[:9])
    train = problems("train", f"{shared} red green blue white black brown pink grey olive beige")
    test = problems("test", f"{shared} oak elm ash fir pine yew lime birch alder hazel")
    assert decontaminate(train, test, detectors=("overlap",))[1] == []
    (drop,) = decontaminate(
        train, test, detectors=("overlap",), thresholds=Thresholds(partial=0.2, overlap=0.23)
    )[1]
    assert drop.rule == "overlap" and drop.score == round(3 / 13, 4)


def test_several_benchmarks_and_problems_together_are_told_apart() -> None:
    named = [
        Benchmark("aime", (("a1", "How many roots are there?"),)),
        Benchmark("gpqa", (("g", "Why so?"),)),
    ]
    train = problems("train", "how many roots are there", "Why so", "Which one?")
    kept, drops = decontaminate(train, named)
    assert [(drop.benchmark, drop.matched_id) for drop in drops] == [("aime", "a1"), ("gpqa", "g")]
    assert [problem.id for problem in kept] == ["train2"]


def test_duplicates_inside_train_keep_the_first() -> None:
    kept, (drop,) = decontaminate(problems("train", "Same here?", "Other", "same HERE"), [])
    assert [problem.id for problem in kept] == ["train0", "train1"]
    assert (drop.problem_id, drop.rule, drop.matched_id) == ("train2", "duplicate", "train0")
    assert drop.stage == "duplicates"


def test_drops_come_in_the_order_of_the_problems() -> None:
    train = problems("train", "Same here?", "same here", "In the test?", "SAME here")
    drops = decontaminate(train, problems("test", "In the test?"))[1]
    assert [(drop.record_id, drop.rule) for drop in drops] == [
        ("train1", "duplicate"),
        ("train2", "exact"),
        ("train3", "duplicate"),
    ]


def test_what_is_too_short_for_runs_is_named() -> None:
    against = watch([Benchmark("b", (("short", "Three words only"), ("long", LONG)))], ("exact", "ngram-13"))
    assert list(against.short_items()) == [("b", "short", 3, ("ngram-13",))]


@pytest.mark.parametrize("width", ["0", "1", "-3", "1000", "x", ""])
def test_a_run_of_less_than_two_words_is_refused(width: str) -> None:
    with pytest.raises(UsageError, match=f"no detector 'ngram-{width}'; there are exact, "):
        decontaminate([], [], detectors=(f"ngram-{width}",))


def test_of_several_hits_the_first_that_is_not_partial_drops_a_row() -> None:
    hits = [
        Hit(3, "overlap", 0.3, "b", "i", "item", partial=True),
        Hit(3, "fuzzy", 0.8, "b", "j", "item"),
        Hit(3, "numbers", 0.9, "b", "k", "item"),
        Hit(4, "overlap", 0.3, "b", "i", "item", partial=True),
    ]
    assert first_hits(hits) == {3: hits[1]}


def test_long_evidence_is_shortened() -> None:
    drop = drop_for("t", "p", Hit(0, "ngram-8", 0.5, "b", "i", "x" * 9000, shared="y" * 9000), "thinking")
    assert (drop.record_id, drop.problem_id) == ("t", "p") and len(drop.matched_text) < 500
    assert drop.reason.startswith("its thinking is like i of b (ngram-8 0.5); both have: yyy")
    assert len(drop.reason) < 300


SHORT = st.lists(st.sampled_from(["a", "b", "3", "+", "?", "A", "1.5"]), max_size=6).map(" ".join)


@given(st.lists(SHORT, max_size=8), st.lists(SHORT, max_size=4), st.sampled_from([None, 2, 3]))
def test_nothing_that_stays_is_in_the_test_set_or_there_twice(
    train: list[str], test: list[str], ngram: int | None
) -> None:
    detectors = ("exact",) if ngram is None else ("exact", f"ngram-{ngram}")
    kept, drops = decontaminate(problems("train", *train), problems("test", *test), detectors=detectors)
    keys = [words(problem.question) or [problem.question.strip()] for problem in kept]
    held = [words(text) for text in test if words(text)]  # a text without words asks nothing
    assert not any(key in held for key in keys) and len({tuple(key) for key in keys}) == len(keys)
    assert sorted([p.id for p in kept] + [d.problem_id for d in drops]) == sorted(
        p.id for p in problems("train", *train)
    )
    if ngram:
        runs = {tuple(h[i : i + ngram]) for h in held for i in range(len(h) - ngram + 1)}
        assert not any(tuple(k[i : i + ngram]) in runs for k in keys for i in range(len(k) - ngram + 1))


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_raises(text: str) -> None:
    detectors = ("exact", "ngram-2", "overlap", "numbers", "fuzzy")
    decontaminate(problems("train", text), problems("test", text + "x"), detectors=detectors)
    kept, drops = decontaminate(problems("train", text), problems("test", text))
    # A question without a word is no item to be found again.
    assert (kept == []) == bool(words(text)) and len(kept) + len(drops) == 1
