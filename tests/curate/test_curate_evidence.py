"""Drops on disk, and what of them is shown."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.curate.drops import Drop
from tutelage.curate.evidence import (
    Texts,
    histogram,
    read_drops,
    sample_rows,
    shares,
    shown_drops,
    shown_records,
    write_drops,
)
from tutelage.errors import StorageError, UsageError

DROPS = [
    Drop("t1", "p1", "quality", "loop", "it goes round", 0.5),
    Drop("t2", "p2", "decontamination", "exact", "like", 1.0, "b", "What is 1+1?", "bench"),
    Drop("p1", "p3", "selection", "not-chosen", "others were chosen"),
]


def test_drops_come_back_equal_all_or_those_about_a_record(tmp_path: Path) -> None:
    path = tmp_path / "new/drops.parquet"
    write_drops(path, DROPS)
    assert read_drops(path) == DROPS
    assert read_drops(path, "t2") == [DROPS[1]]
    assert read_drops(path, "p1") == [DROPS[0], DROPS[2]]  # its own, and that of its problem
    assert read_drops(path, "nobody") == []
    assert [each.name for each in path.parent.iterdir()] == ["drops.parquet"]
    write_drops(path, [])
    assert read_drops(path) == []


TEXT = st.text(st.characters(exclude_categories=()), max_size=8)


@given(st.lists(st.builds(Drop, TEXT, TEXT, TEXT, TEXT, TEXT, st.none() | st.floats(allow_nan=False))))
def test_any_text_can_be_written(tmp_path_factory: pytest.TempPathFactory, drops: list[Drop]) -> None:
    path = tmp_path_factory.mktemp("drops") / "d.parquet"
    write_drops(path, drops)
    found = read_drops(path)
    assert [drop.score for drop in found] == [drop.score for drop in drops]
    for ours, theirs in zip(drops, found, strict=True):
        surrogates = any("\ud800" <= sign <= "\udfff" for sign in ours.reason)
        assert len(ours.reason) == len(theirs.reason) and surrogates == (ours.reason != theirs.reason)


def test_what_is_no_table_of_drops_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.parquet: no such file; curate writes it"):
        read_drops(tmp_path / "gone.parquet")
    pq.write_table(pa.table({"record_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match=r"not a table of drops \(no column 'problem_id'\)"):
        read_drops(tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        read_drops(tmp_path / "broken.parquet")


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "drops.parquet").mkdir()
    with pytest.raises(StorageError, match=r"drops\.parquet: cannot write"):
        write_drops(tmp_path / "drops.parquet", DROPS)
    assert [each.name for each in tmp_path.iterdir()] == ["drops.parquet"]


def test_a_few_drops_of_every_stage_and_rule_are_shown() -> None:
    drops = [Drop(f"t{n}", "p", "quality", ("loop", "cut")[n % 2], "") for n in range(20)]
    drops += [Drop("x", "p", "traces", "loop", "")]
    shown = shown_drops(drops)
    assert [(drop.stage, drop.rule) for drop in shown] == [
        *[("quality", "loop")] * 3,
        *[("quality", "cut")] * 3,
        ("traces", "loop"),
    ]
    assert set(shown_drops(drops[::-1])) == set(shown)  # by their ids, not by their order


def test_a_few_kept_records_are_shown_whatever_their_order() -> None:
    ids = [f"t{n}" for n in range(50)]
    assert shown_records(ids) == shown_records(ids[::-1]) and len(set(shown_records(ids))) == 6
    assert shown_records(["a"]) == ["a"]


def test_texts_are_cut_and_samples_need_them() -> None:
    texts = Texts.of("q" * 5000, "think " * 1000, "answer")
    assert len(texts.question) == len(texts.text) == 1200
    assert Texts.of("q", " ", "answer").text == "answer"
    assert Texts.of("q", "so", "answer").text == "so\n\nanswer"
    (row,) = sample_rows(DROPS, {"t2": Texts("the question", "the text")})
    assert row["record_id"] == "t2" and row["matched_text"] == "What is 1+1?" and row["score"] == 1.0
    assert (row["question"], row["text"]) == ("the question", "the text")


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=40), st.data())
def test_a_histogram_counts_every_record_once(before: list[int], data: st.DataObject) -> None:
    after = data.draw(st.lists(st.sampled_from(before), max_size=len(before)))
    found = histogram(before, after, "tokens")
    assert (sum(found["before"]), sum(found["after"])) == (len(before), len(after))
    assert len(found["before"]) == len(found["after"]) == len(found["edges"]) - 1
    assert found["edges"] == sorted(set(found["edges"])) and found["unit"] == "tokens"
    again = histogram(before, before, "tokens")
    assert again["before"] == again["after"] == found["before"]


def test_bins_of_a_histogram_and_nothing_to_count() -> None:
    found = histogram([0, 1, 5, 99, 100_000], [100_000, 5], "words")
    edges, last = found["edges"], len(found["before"]) - 1
    for value in (0, 1, 5, 99):
        at = min(last, next(n for n in range(last + 1) if value < edges[n + 1] or n == last))
        assert found["before"][at] >= 1
    assert found["after"][last] == 1  # beyond the last edge is in the last bin
    assert histogram([], [], "words") == {}


def test_shares_of_domains_before_and_after() -> None:
    domains = {"a": "sets", "b": "sets", "c": "graphs", "d": "rings"}
    assert shares(domains, ["d", "a"]) == {
        "before": {"sets": 2, "graphs": 1, "rings": 1},
        "after": {"sets": 1, "graphs": 0, "rings": 1},
    }
