"""Every detector finds what it is for, names the best item, and is silent where it says nothing."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from tutelage.curate import hashed as module
from tutelage.curate.benchmarks import Benchmark
from tutelage.curate.detectors import Hit, find, hits, shortened
from tutelage.curate.hashed import hashed
from tutelage.curate.watch import DETECTORS, Thresholds, Watch, blind_to, by_runs, watch, width
from tutelage.errors import UsageError
from tutelage.questions import words

LONG = (
    "Ada packs seven crates of oranges before noon and her brother carries twelve crates of lemons "
    "to the market where a trader pays 3 coins for every crate"
)
WORDS = words(LONG)  # 28


def names(count: int, kind: str = "w") -> str:
    """Some words that are in no other text of the same kind."""
    return " ".join(kind + chr(97 + at // 26) + chr(97 + at % 26) for at in range(count))


def benchmark(*questions: str, name: str = "test") -> Benchmark:
    return Benchmark(name, tuple((f"{name}{number}", question) for number, question in enumerate(questions)))


def found(
    text: str,
    *items: str,
    detector: str,
    thresholds: Thresholds | None = None,
    boilerplate: int | None = None,
) -> Hit | None:
    """The only hit of a text among items."""
    all_of_them = find(
        [text], watch([benchmark(*items)], [detector], thresholds=thresholds, boilerplate=boilerplate)
    )
    assert len(all_of_them) <= 1
    return all_of_them[0] if all_of_them else None


def runs(text: str, size: int) -> list[tuple[str, ...]]:
    known = words(text)
    return [tuple(known[at : at + size]) for at in range(len(known) - size + 1)]


def test_exact_finds_the_same_words_and_names_the_first_item() -> None:
    hit = found(
        "HOW many, in １,０００?", "How few?", "How many in 1,000", "how many in 1000", detector="exact"
    )
    assert hit == Hit(0, "exact", 1.0, "test", "test1", "How many in 1,000")
    for other in ("How many in 1,001", "many how in 1000", "How many in", "How many in 1000 0"):
        assert found(other, "How many in 1,000", detector="exact") is None
    # Signs alone count, though little: the second item must not hide behind the first.
    assert found("3", "3 -(", "3", detector="exact") == Hit(0, "exact", 1.0, "test", "test1", "3")
    # Nothing is not the same as nothing.
    assert found("?!", "", "...", detector="exact") is None


@pytest.mark.parametrize("size", [2, 5, 8, 13])
def test_ngram_finds_one_shared_run_and_no_shorter_one(size: int) -> None:
    shared = " ".join(WORDS[3 : 3 + size])
    item = f"{names(4, 'p')} {shared} {names(6, 'q')}"
    text = f"{names(9, 'r')}, {shared.upper()}! {names(30, 's')}"
    hit = found(text, names(40, "t"), item, detector=f"ngram-{size}")
    assert hit is not None and (hit.item_id, hit.item, hit.shared) == ("test1", item, shared)
    assert hit.score == round(1 / (10 + size - size + 1), 4) and not hit.partial
    assert found(text, item, detector=f"ngram-{size + 1}") is None


def test_the_item_with_the_largest_share_is_named() -> None:
    items = (
        f"{' '.join(WORDS[:10])} {names(4)}",  # 3 runs of 8 of 7
        f"{' '.join(WORDS[:12])} {names(4)}",  # 5 of 9
        f"{' '.join(WORDS[:12])} {names(4)}",
        f"{' '.join(WORDS[:13])} {names(12)}",  # 6 of 18
    )
    hit = found(f"{LONG} x", *items, detector="ngram-8")
    assert hit is not None and (hit.item_id, hit.score) == ("test1", round(5 / 9, 4))
    # Of the shorter text's runs, whichever that is.
    hit = found(" ".join(WORDS[:9]), LONG, detector="ngram-8")
    assert hit is not None and hit.score == 1.0 and hit.shared == " ".join(WORDS[:8])


def test_items_of_several_benchmarks_are_named_with_theirs() -> None:
    many = [benchmark(name="none"), benchmark("a b c", "d e f", name="one"), benchmark(name="also none")]
    against = watch([*many, benchmark("g h i", name="two"), benchmark(name="last")], ["exact", "ngram-2"])
    hits = find(["g h i!", "d, e, f", "x", "A B C", "b c"], against)
    assert [(hit.row, hit.detector, hit.benchmark, hit.item_id) for hit in hits] == [
        *((0, "exact", "two", "two0"), (0, "ngram-2", "two", "two0")),
        *((1, "exact", "one", "one1"), (1, "ngram-2", "one", "one1")),
        *((3, "exact", "one", "one0"), (3, "ngram-2", "one", "one0")),
        (4, "ngram-2", "one", "one0"),
    ]


def overlapping(shared: int, *, blocks: int = 1) -> tuple[str, str]:
    """A text and an item of 40 words each with `shared` runs of 7 in common, none of 13 (34 runs in all)."""
    text, item, at = [], [], 0
    for block in range(blocks):
        size = 6 + shared // blocks + (block < shared % blocks)
        own = names(size, f"b{chr(97 + block)}").split()
        text += [*own, f"x{chr(97 + block)}"]
        item += [*own, f"y{chr(97 + block)}"]
        at += size
    return (
        " ".join([*text, *names(40 - len(text), "left").split()]),
        " ".join([*item, *names(40 - len(item), "right").split()]),
    )


@pytest.mark.parametrize(
    ("shared", "blocks", "partial"),
    [(6, 1, None), (7, 2, True), (13, 3, True), (14, 3, False), (16, 3, False)],
)
def test_overlap_has_a_band_in_which_a_hit_is_partial(shared: int, blocks: int, partial: bool | None) -> None:
    text, item = overlapping(shared, blocks=blocks)
    assert len(set(runs(text, 7)) & set(runs(item, 7))) == shared and len(runs(text, 7)) == 34
    hit = found(text, item, detector="overlap")
    if partial is None:
        assert hit is None
    else:
        assert hit is not None and hit.partial == partial and hit.score == round(shared / 34, 4)
        assert tuple(hit.shared.split()) in set(runs(text, 7)) & set(runs(item, 7))
    levels = Thresholds(partial=shared / 34, overlap=shared / 34)
    hit = found(text, item, detector="overlap", thresholds=levels)
    assert hit is not None and not hit.partial


def test_overlap_is_silent_where_a_run_of_13_was_found() -> None:
    items = benchmark(LONG, overlapping(16, blocks=3)[1])
    both = watch([items], ["overlap", "ngram-13"])
    rows = [f"{LONG} x", overlapping(16, blocks=3)[0]]
    assert [(hit.row, hit.detector) for hit in find(rows, both)] == [(0, "ngram-13"), (1, "overlap")]
    assert [hit.row for hit in find(rows, both, ["overlap"])] == [0, 1]
    assert [hit.row for hit in find(rows, watch([items], ["overlap"]))] == [0, 1]


@pytest.mark.parametrize(
    "told",
    [
        LONG.replace("seven", "9").replace("twelve", "1,250.5").replace(" 3 ", " 44 "),
        LONG.replace("seven", "eleven").replace(" 3 ", " forty "),
        LONG.replace("seven", "٧").replace("twelve", "६"),
    ],
)
def test_numbers_finds_a_problem_with_other_numbers(told: str) -> None:
    hit = found(told, names(30), LONG, detector="numbers")
    assert hit is not None and (hit.item_id, hit.score) == ("test1", 1.0)
    assert hit.shared == " ".join(words(told)[:8])  # in the words of the text
    assert found(told.replace("crates", "boxes"), LONG, detector="numbers") is None


def test_numbers_is_silent_for_the_same_problem_and_for_a_single_run() -> None:
    assert found(LONG.upper(), LONG, detector="numbers") is None
    eight, nine = "she has 3 red and 4 blue pens", "she has 3 red and 4 blue old pens"
    assert found(eight.replace("3", "5"), eight, detector="numbers") is None
    assert found(nine.replace("3", "5"), nine, detector="numbers") is not None
    assert (width("numbers"), blind_to(8, ["numbers"]), blind_to(9, ["numbers"])) == (9, ("numbers",), ())


def test_numbers_has_a_threshold() -> None:
    changed = LONG.replace("twelve", "2").replace("trader", "person")
    share = len({*runs(LONG, 8)} & {*runs(LONG.replace("trader", "person"), 8)}) / len(runs(LONG, 8))
    assert 0.6 < share < 0.7
    for limit in (share - 0.01, share + 0.01):
        hit = found(changed, LONG, detector="numbers", thresholds=Thresholds(numbers=limit))
        assert (hit is not None) == (limit < share) and (hit is None or hit.score == round(share, 4))


def test_runs_of_many_items_count_for_nothing() -> None:
    phrase = "how many of them are left at the end"  # two runs of 8
    items = [f"{names(9, chr(98 + number))} {phrase}" for number in range(4)]
    text = f"{names(12, 'x')} {phrase}"
    against = watch([benchmark(*items[:2]), benchmark(*items[2:], name="other")], ["ngram-8"], boilerplate=4)
    assert against.left_out == {"ngram-8": 2} and find([text], against) == []
    for allowed in (
        watch([benchmark(*items)], ["ngram-8"], boilerplate=5),
        watch([benchmark(*items)], ["ngram-8"]),
    ):
        assert allowed.left_out == {"ngram-8": 0} and len(find([text], allowed)) == 1
    # What is left of an item still counts, and that is what is shown, not the phrase that stands first.
    both = f"{phrase} {names(9, 'b')} and"
    (hit,) = find([both], against)
    assert (hit.item_id, hit.shared) == ("test0", " ".join(names(9, "b").split()[:8]))


def test_runs_of_allowed_texts_count_for_nothing() -> None:
    definition = "a prime is a whole number above one with two divisors"
    item, text = f"Recall that {definition} only", f"We know {definition} indeed"
    for detector in ("ngram-8", "overlap", "numbers"):
        levels = Thresholds(numbers=0.2)
        changed = text.replace("two", "three") if detector == "numbers" else text
        assert [
            hit.detector for hit in find([changed], watch([benchmark(item)], [detector], thresholds=levels))
        ]
        against = watch([benchmark(item)], [detector], thresholds=levels, allow=[definition.upper(), "x"])
        assert find([changed], against) == [] and against.left_out[detector] > 0


def test_fuzzy_has_the_similarity_of_the_words_and_the_best_item() -> None:
    told = LONG.replace("packs", "fills").replace("noon", "midday").replace("trader", "merchant")
    farther = told.replace("brother", "cousin").replace("market", "harbour")
    hit = found(told.upper(), farther, LONG, names(20), LONG, farther, detector="fuzzy")
    expected = Indel.normalized_similarity(" ".join(words(told)), " ".join(words(LONG)))
    other = Indel.normalized_similarity(" ".join(words(told)), " ".join(words(farther)))
    assert expected != other
    assert hit is not None and hit.score == round(max(expected, other), 4) and hit.shared == ""
    assert hit.item_id == ("test1" if expected > other else "test0")
    for limit in (expected - 1e-3, expected + 1e-3):
        near = found(told, LONG, detector="fuzzy", thresholds=Thresholds(fuzzy=limit))
        assert (near is not None) == (limit < expected)


def test_fuzzy_says_nothing_about_texts_and_items_that_are_too_short() -> None:
    assert found("add one two three", "add one two", detector="fuzzy") is None
    assert found("add one two", "add one two three", detector="fuzzy") is None
    assert found("add one two three", "add one two three", detector="fuzzy") is not None


def test_what_is_too_short_is_told() -> None:
    assert blind_to(0, DETECTORS) == DETECTORS and blind_to(13, DETECTORS) == ()
    assert blind_to(7, DETECTORS) == ("ngram-13", "numbers", "ngram-8")
    items = [benchmark("", names(3), names(13), name="one"), benchmark(names(8), name="two")]
    against = watch(items, ["ngram-8", "exact", "fuzzy", "ngram-13"])
    assert list(against.short_items()) == [
        ("one", "one0", 0, ("exact", "ngram-13", "fuzzy", "ngram-8")),
        ("one", "one1", 3, ("ngram-13", "fuzzy", "ngram-8")),
        ("two", "two0", 8, ("ngram-13",)),
    ]
    assert list(watch(items, []).short_items()) == []


SMALL = st.lists(
    st.lists(st.sampled_from(["a", "B", "3", "+", "c"]), max_size=14).map(" ".join), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(
    SMALL,
    SMALL,
    st.sampled_from([2, 3, 5]),
    st.sampled_from([None, 2, 3]),
    st.sampled_from([[], ["a b c a"]]),
)
def test_a_hit_by_runs_is_one_and_no_text_that_shares_a_run_is_missed(
    texts: list[str], items: list[str], size: int, boilerplate: int | None, allow: Sequence[str]
) -> None:
    against = watch([benchmark(*items)], [f"ngram-{size}"], boilerplate=boilerplate, allow=allow)
    counts = Counter(run for item in items for run in set(runs(item, size)))
    allowed = {run for text in allow for run in runs(text, size)}
    counted = [
        {
            run
            for run in runs(item, size)
            if run not in allowed and (boilerplate is None or counts[run] < boilerplate)
        }
        for item in items
    ]
    by_row = {hit.row: hit for hit in find(texts, against)}
    for row, text in enumerate(texts):
        own = runs(text, size)
        scores = [
            len(set(own) & each) / max(1, min(len(set(own)), len(set(runs(item, size)))))
            for each, item in zip(counted, items, strict=True)
        ]
        assert (row in by_row) == (max(scores) > 0)
        if hit := by_row.get(row):
            best = scores.index(max(scores))
            assert (hit.item_id, hit.item, hit.score) == (f"test{best}", items[best], round(max(scores), 4))
            assert hit.shared == " ".join(next(run for run in own if run in counted[best]))


HOSTILE = [
    *(
        "",
        "\0",
        "\ud800\udfff",
        "\x1b[31m" * 50,
        "-" * 3000,
        "<script>alert(1)</script> " * 20,
        "１２３" * 99,
    ),
    *(names(30), "a\0b " * 20, "\u202e" * 9, "." * 999, "١ ٢ ٣ ٤ ٥ ٦ ٧ ٨ ٩"),
]
POOL = [
    *(LONG, f"{LONG} and more", LONG.replace("seven", "4"), LONG.replace("packs", "fills"), "What is 3 + 4?"),
    *(
        overlapping(16, blocks=3)[0],
        overlapping(7, blocks=2)[0],
        *HOSTILE,
        "Nothing of the kind at all, this.",
    ),
]
ITEMS = [LONG, "What is 3 + 4", overlapping(16, blocks=3)[1], overlapping(7, blocks=2)[1], *HOSTILE]


@pytest.fixture(scope="module")
def everything() -> Watch:
    return watch([benchmark(*ITEMS)], [*DETECTORS, "ngram-2"])


def test_every_detector_has_something_to_say_about_the_pool(everything: Watch) -> None:
    hits = find(POOL, everything)
    assert {hit.detector for hit in hits} == {*DETECTORS, "ngram-2"} and any(hit.partial for hit in hits)
    assert hits == sorted(hits, key=lambda hit: (hit.row, everything.detectors.index(hit.detector)))
    assert len({(hit.row, hit.detector) for hit in hits}) == len(hits)
    assert everything.detectors == ("exact", "ngram-13", "overlap", "numbers", "fuzzy", "ngram-8", "ngram-2")


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(len(POOL))), st.lists(st.integers(1, len(POOL) - 1), max_size=4))
def test_hits_do_not_depend_on_the_batch_and_the_order_of_texts(
    everything: Watch, order: list[int], cuts: list[int]
) -> None:
    texts = [POOL[at] for at in order]
    expected = {(hit.row, hit.detector): hit for hit in find(POOL, everything)}
    places = [0, *sorted(set(cuts)), len(POOL)]
    seen = {}
    for start, stop in pairwise(places):
        for hit in find(texts[start:stop], everything):
            row = order[start + hit.row]
            seen[row, hit.detector] = Hit(row, *(getattr(hit, name) for name in Hit.__slots__[1:]))
    assert seen == expected


def test_hits_are_the_same_in_threads_and_after_a_journey(everything: Watch) -> None:
    expected = find(POOL, everything)
    with ThreadPoolExecutor(4) as pool:
        assert all(each == expected for each in pool.map(lambda _: find(POOL, everything), range(12)))
    assert find(POOL, pickle.loads(pickle.dumps(everything))) == expected


def test_columns_give_what_lists_give(everything: Watch) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in POOL]
    expected = find(texts, everything)
    column = pa.array(["before", *texts, None], pa.string())
    for each in (
        column.slice(1, len(texts)),
        pa.chunked_array([texts[:3], texts[3:]]),
        pa.array([*texts, None]),
    ):
        assert find(each, everything) == expected
    known = hashed(texts)
    assert hits(texts, known, everything) == expected
    assert hits(texts, known, everything, ["exact"]) == [hit for hit in expected if hit.detector == "exact"]


LARGE = {
    "NUL": "\0",
    "minus": "-",
    "commas": "1,",
    "one word": "a",
    "repeats": f"{LONG}. ",
    "markup": "\x1b[31m<b>é ",
}


@pytest.mark.parametrize("megabytes", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", LARGE)
def test_a_text_of_megabytes_does_no_harm(kind: str, megabytes: int) -> None:
    piece = LARGE[kind]
    text = f"x {piece * (megabytes * 1_000_000 // len(piece))} {LONG}"
    against = watch([benchmark(LONG, f"{names(5)} {LONG}")], ["exact", "ngram-13", "overlap"])
    start = time.process_time()
    first, *rest = find([text, LONG], against)
    assert time.process_time() - start < 2 + 2 * megabytes
    assert (first.row, first.detector, first.item_id) == (0, "ngram-13", "test0")
    # Behind a word that was cut the first run that is looked at is another one.
    assert tuple(first.shared.split()) in runs(LONG, 13)[: None if kind in ("NUL", "one word") else 1]
    assert [(hit.row, hit.detector) for hit in rest] == [(1, "exact"), (1, "ngram-13")]


def test_a_run_behind_a_word_that_was_cut_is_still_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "_LARGEST", 256)
    text = f"x {'a' * 1000} {LONG}"
    assert hashed([text]).sizes[0] > len(words(text))
    hit = found(text, LONG, detector="ngram-13")
    assert hit is not None and tuple(hit.shared.split()) in runs(LONG, 13)


def test_nothing_finds_nothing() -> None:
    for against in (
        watch([]),
        watch([benchmark()]),
        watch([benchmark("", "?")]),
        watch([benchmark(LONG)], []),
    ):
        assert find([LONG, "", None], against) == [] and find([], against) == []  # type: ignore[list-item]
    assert find([], watch([benchmark(LONG)])) == []


@pytest.mark.parametrize(
    "name",
    ["ngram", "ngram-1", "ngram-0", "ngram--8", "ngram-8.0", "ngram-08", "ngram-1000", "ngram-٨", "near", ""],
)
def test_an_unknown_detector_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no detector") as caught:
        watch([benchmark(LONG)], ["exact", name])
    assert repr(name) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    with pytest.raises(UsageError, match="no detector"):
        width(name)


def test_detectors_of_runs_are_told() -> None:
    assert [each for each in DETECTORS if by_runs(each)] == ["ngram-13", "overlap", "ngram-8"]
    assert (width("ngram-2"), width("ngram-999"), width("exact"), width("fuzzy")) == (2, 999, 1, 4)


@pytest.mark.parametrize("name", ["partial", "overlap", "numbers", "fuzzy"])
@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_thresholds_are_shares(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"thresholds.{name} is"):
        Thresholds(**{name: value})
    Thresholds(partial=1.0, overlap=1.0, numbers=1.0, fuzzy=1.0)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match=r"partial is 0\.5, above thresholds\.overlap, 0\.3"):
        Thresholds(partial=0.5, overlap=0.3)
    for boilerplate in (1, 0, -3):
        with pytest.raises(UsageError, match="boilerplate is"):
            watch([benchmark(LONG)], boilerplate=boilerplate)


def test_evidence_is_shortened() -> None:
    assert (
        shortened("abc", 3) == "abc" and shortened("abcd", 3) == "abc…" and len(shortened("x" * 999)) == 401
    )
