"""The run folder: lock, manifest, atomic files, and folders that are not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fake_stages
import pytest

from tutelage.errors import StorageError, UsageError, storage_error
from tutelage.recipe.files import content_hash, replace_folder, write_text
from tutelage.recipe.load import build_recipe
from tutelage.recipe.lock import run_lock
from tutelage.recipe.manifest import open_manifest
from tutelage.recipe.run import run_recipe

RECIPE = build_recipe({"name": "numbers", "stages": {"world": {"kind": "make"}}}, kinds=fake_stages.KINDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 0, "versions": {"tutelage": "0.0.1"}}', "format 0, written by tutelage 0.0.1"),
        ('{"format": 2}', "a run folder of format 2"),
        ("[]", "a run folder of format None"),
        ("{", "damaged"),
        ("\xff", "damaged"),
        ('{"format": 1, "name": "numbers"}', "damaged"),
        ('{"format": 1, "name": "other", "jobs": {}, "attempts": []}', "belongs to the recipe 'other'"),
    ],
)
def test_a_folder_that_cannot_be_continued_is_refused_and_left_as_it_is(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        run_recipe(RECIPE, tmp_path)
    assert "\n" not in str(caught.value) and "--run-dir" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex' but no manifest\.json"):
        run_recipe(RECIPE, tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        run_recipe(RECIPE, tmp_path / "thesis.tex")


def test_the_lock_names_its_holder_and_ends_with_the_block(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path),
        pytest.raises(UsageError, match=f"pid {os.getpid()}, since 20"),
        run_lock(tmp_path, wait_s=0.1),
    ):
        pass
    with run_lock(tmp_path, wait_s=0):
        pass


def test_killed_attempts_add_up(tmp_path: Path) -> None:
    first = open_manifest(tmp_path, "x")
    first.begin()
    first._began -= 5  # five seconds ago
    first.beat()
    again = open_manifest(tmp_path, "x")
    again.begin()
    assert [each["ended"] for each in again.attempts] == ["killed", "running"]
    assert 5 <= again.wall_s < 6


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_text(file, "first \ud800")
    assert file.read_text() == "first ?"
    with pytest.raises(StorageError, match=r"a\.json/b: cannot write \(Not a directory\)"):
        write_text(file / "b", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    with pytest.raises(StorageError, match="No space left on device"):
        _full()
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = ValueError("I/O error: No space left on device (os error 28)")
    assert storage_error(wrapped, "model") is not None
    assert storage_error(ValueError("other"), "model") is None


def _full() -> None:
    try:
        with Path("/dev/full").open("w") as file:
            file.write("x")
    except OSError as error:
        raise storage_error(error, "/dev/full") or error from error


def test_a_folder_is_replaced_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with replace_folder(target) as folder:
        (folder / "weights").write_text("1")
    before = content_hash(target)
    with pytest.raises(RuntimeError), replace_folder(target) as folder:
        (folder / "weights").write_text("2")
        raise RuntimeError
    assert content_hash(target) == before
    with replace_folder(target) as folder:
        (folder / "renamed").write_text("1")
    assert content_hash(target) != before and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_manifest_survives_what_json_cannot_say(tmp_path: Path) -> None:
    manifest = open_manifest(tmp_path, "x")
    manifest.begin()
    manifest.record("job", {"metrics": {"text": "\ud800 é"}})
    assert json.loads((tmp_path / "manifest.json").read_text())["jobs"]["job"]["metrics"]["text"] == "? é"
