"""One stage on its own: the same checks and function as in a recipe, messages name options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_stages
import pytest

from tutelage.errors import StorageError, UsageError
from tutelage.recipe.single import run_single


def add(tmp_path: Path, **kwargs: Any) -> dict[str, Any]:
    (tmp_path / "in.json").write_text("[1, 2]")
    settings = {"plus": 5, **kwargs.pop("settings", {})}
    return run_single(
        "add",
        settings,
        tmp_path / kwargs.pop("out", "out.json"),
        inputs={"numbers": str(tmp_path / kwargs.pop("numbers", "in.json"))},
        kinds=fake_stages.KINDS,
        **kwargs,
    )


def test_it_runs_the_stage_with_settings_seed_and_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    heard: list[tuple[int, int, str]] = []
    done = add(tmp_path, seed=3, overrides=["plus=6"], progress=lambda *each: heard.append(each))
    assert json.loads((tmp_path / "out.json").read_text()) == [10, 11]
    assert done["metrics"]["sum"] == 21 and heard[0][:2] == (0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"plus": "x"}}, 'tutelage add: --plus: input should be a valid integer, got "x"'),
        ({"settings": {"pluss": 1}}, "tutelage add: --pluss: unknown key; did you mean 'plus'?"),
        ({"settings": {"sleep_s": "x"}}, 'tutelage add: --sleep-s: input should be a valid number, got "x"'),
        ({"overrides": ["pluss=1"]}, "--set pluss: unknown key; did you mean 'plus'?"),
        ({"numbers": "gone.json"}, "tutelage add: --numbers: no such file or folder: "),
    ],
)
def test_a_mistake_names_the_option(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        add(tmp_path, **change)
    assert str(caught.value).startswith(message)


def test_a_folder_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="this folder exists and is not empty"):
        add(tmp_path, out="mine")


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device"):
        run_single("mischief", {"what": "full"}, tmp_path / "out.json", kinds=fake_stages.KINDS)


def test_further_outputs_go_beside_the_first_and_names_stay_names(tmp_path: Path) -> None:
    inputs = {"model": "some/model"}
    done = run_single("make", {}, tmp_path / "out.json", inputs=inputs, kinds=fake_stages.KINDS)
    assert done["outputs"] == {
        "numbers": str(tmp_path / "out.json"),
        "spare": str(tmp_path / "out-spare.json"),
    }
    assert json.loads((tmp_path / "out-spare.json").read_text()) == [0, -1, -2]
