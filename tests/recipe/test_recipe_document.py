"""YAML with lines, YAML 1.2 scalars, overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.recipe.document import MAX_BYTES, Document, override, parse_document, parse_value, read_document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-2", -2),
        ("1_000", 1000),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'7'", "7"),
        ("e5", "e5"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_value(text, "x") == value
    assert type(parse_value(text, "x")) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml:3: the key 'a' is given twice"),
        ("a:\n  - [", "r.yaml:2: not valid YAML"),
        ("a: !!python/object/apply:os.system [x]", "r.yaml:1: "),
        ("a: !!binary aGk=", "r.yaml:1: the tag"),
        ("- 1", "r.yaml: a recipe is a mapping"),
        ("", "r.yaml: a recipe is a mapping"),
        ("a: &a [*a]", "r.yaml:1: too deep or too large"),
        ("? [1]\n: 2", "r.yaml:1: keys are plain text"),
        ("a: " + "[" * 5000, "r.yaml"),
        ("a: *b", "r.yaml:1: not valid YAML"),
        ("a: 1\n---\nb: 2", "r.yaml:2: not valid YAML"),
        ("a: \x00", "r.yaml: not valid YAML"),
    ],
)
def test_what_is_not_such_yaml_is_one_line_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_document(text, "r.yaml")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_billion_laughs_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 9):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    with pytest.raises(UsageError, match="too deep or too large"):
        parse_document("\n".join(lines), "r.yaml")


def test_merge_keys_work_and_own_keys_win() -> None:
    document = parse_document("d: &d {x: 1, y: 2}\ne:\n  <<: *d\n  y: 3\n", "r.yaml")
    assert document.data["e"] == {"x": 1, "y": 3}


@given(st.text(max_size=60))
def test_any_text_gives_plain_data_or_one_usage_error(text: str) -> None:
    try:
        document = parse_document(text, "r.yaml")
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(document.data, dict)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"name: \xff")
    with pytest.raises(UsageError, match=r"r\.yaml: not UTF-8 text \(byte 6\)"):
        read_document(file)
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="larger than"):
        read_document(file)


BASE = Document({"seeds": [0, 1], "stages": {"world": {"kind": "make", "sizes": [1, 2]}}}, "r.yaml")


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("seeds=[2, 3]", ("seeds",), [2, 3]),
        ("stages.world.train=5", ("stages", "world", "train"), 5),
        ("world.train=1e-3", ("stages", "world", "train"), 0.001),
        ("world.sizes.1=7", ("stages", "world", "sizes", 1), 7),
        ("world.a.b=x=y", ("stages", "world", "a", "b"), "x=y"),
        ("about=", ("about",), ""),
    ],
)
def test_overrides_reach_their_place(setting: str, place: tuple[str | int, ...], value: object) -> None:
    changed = override(BASE, [setting])
    found: object = changed.data
    for part in place:
        found = found[part]  # type: ignore[index]
    assert found == value
    assert changed.where(place).startswith("--set ")
    assert BASE.data == {"seeds": [0, 1], "stages": {"world": {"kind": "make", "sizes": [1, 2]}}}


def test_a_pattern_reaches_each_stage_that_has_the_setting() -> None:
    stages = {
        "a-full": {"steps": 1},
        "b-full": {"steps": 2, "lora": {"rank": 4}},
        "c-full": {},
        "b-lora": {"steps": 3},
    }
    base = Document({"stages": stages}, "r.yaml")
    changed = override(base, ["*-full.steps=9", "stages.*.lora.rank=8"])
    assert changed.data["stages"] == {
        "a-full": {"steps": 9},
        "b-full": {"steps": 9, "lora": {"rank": 8}},
        "c-full": {},
        "b-lora": {"steps": 3},
    }
    assert changed.where(("stages", "b-full", "steps")).startswith("--set ")
    for setting, message in (
        ("*-full.batch=4", "--set *-full.batch: none of a-full, b-full, c-full has batch; name a stage"),
        ("x*.steps=4", "--set x*.steps: no such stage"),
    ):
        with pytest.raises(UsageError) as caught:
            override(base, [setting])
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds", "--set seeds: write it as key=value"),
        ("=3", "--set =3: write it as key=value"),
        ("a..b=3", "write it as key=value"),
        ("wrold.train=3", "--set wrold.train: no stage 'wrold'; did you mean 'world'?"),
        ("stages.wrold.train=3", "no stage 'wrold'; did you mean 'world'?"),
        ("world.sizes.2=3", "stages.world.sizes is a list of 2; give a position"),
        ("world.kind.x=3", "stages.world.kind is a plain value, it has no 'x'"),
        ("seeds=[1", "--set seeds:1: not valid YAML"),
    ],
)
def test_a_wrong_override_says_why(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(BASE, [setting])
    assert message in str(caught.value)
