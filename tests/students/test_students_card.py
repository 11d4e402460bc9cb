"""The model card says what the record says, and hostile names stay text in Markdown and in YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tutelage.errors import StorageError
from tutelage.records import Problem
from tutelage.students.card import CARD_FILE, card, write_start, write_training
from tutelage.students.lineage import Lineage, read_training
from tutelage.students.template import Template

NASTY = (
    "</think><script>hit()</script> | [a](https://example.invalid) `x` *y* \u202eon\u202c \x00 \ud83d\n"
    "---\nlicense: mit\n# head\n```\n- item"
)
STAGE: dict[str, Any] = {
    "stage": "sft",
    "kind": "sft",
    "seed": 1,
    "steps": 450,
    "stopped": None,
    "numbers": {"examples": 20, "tokens_seen": 12_345, "tokens_learned": 2_345},
    "settings": {"validate_on": {"sampling": {"temperature": 0.7}, "policy": {"max_tokens": 64}}},
}


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and the rest as HTML."""
    assert text.startswith("---\n")
    front, body = text[4:].split("\n---\n", 1)
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found, MarkdownIt("commonmark").enable("table").render(body)


def test_the_card_names_base_stages_data_and_how_to_speak_to_it() -> None:
    lineage = Lineage(
        {"source": "hub:owner/base-1", "licence": "Apache-2.0"},
        (
            {
                **STAGE,
                "problems": [{"source": "gsm8k", "licence": "MIT", "count": 20}],
                "selected_on": ["a", "b"],
            },
        ),
        (1, 2, 3),
    )
    front, page = parts(card(lineage, Template(system="Think first.")))
    assert front["base_model"] == "owner/base-1" and front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "text-generation" and front["tags"] == ["tutelage", "reasoning", "sft"]
    for told in ("450", "12,345", "2,345", "gsm8k", "MIT", "Think first.", "&lt;think&gt;", "0.7"):
        assert told in page
    assert "learned from 3 different questions" in page and "chosen on 2 questions" in page


def test_what_nobody_told_is_not_made_up() -> None:
    front, page = parts(card(Lineage({"source": "base"}), Template(thinking=False)))
    assert "base_model" not in front and front["license"] == "other"
    assert "It was not trained here" in page and "No problems are on record" in page
    assert "no markers of thinking" in page and "chosen on" not in page


def test_hostile_names_and_messages_stay_text() -> None:
    stage = {
        **STAGE,
        **{
            "stage": NASTY,
            "kind": NASTY,
            "seed": NASTY,
            "stopped": NASTY,
            "settings": {"sampling": {NASTY: NASTY}},
        },
        "problems": [{"source": NASTY, "licence": NASTY, "count": 1}],
    }
    told = Template(system=NASTY, think_open=NASTY, think_close=NASTY + "x")
    text = card(Lineage({"source": NASTY, "licence": NASTY}, (stage,)), told)
    text.encode()
    front, page = parts(text)
    assert front["license"] == "other" and "base_model" not in front
    tags = set(re.findall(r"</?(\w+)", page))
    assert tags <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert page.count("<h1>") == 1 and page.count("<h2>") == 5
    assert "\u202e" not in page and "\x00" not in page and "<a " not in page


def test_the_folder_holds_the_card_and_the_questions_of_all_stages(tmp_path: Path) -> None:
    start, trained = tmp_path / "start", tmp_path / "trained"
    start.mkdir()
    trained.mkdir()
    write_start(start, "owner/base", "mit")
    problems = [Problem(f"p{n}", f"What is {n} + {n}?", source="mine", licence="cc0") for n in range(4)]
    write_training(trained, STAGE, before=start, trained_on=problems[:3], selected_on=problems[3:])
    front, page = parts((trained / CARD_FILE).read_text())
    assert front["base_model"] == "owner/base" and "cc0" in page
    found = read_training(trained)
    assert found.stages[0]["problems"] == [{"source": "mine", "licence": "cc0", "count": 3}]
    assert len(found.learned) == 3 and len(found.chosen_on) == 1


def test_the_same_training_gives_the_same_card_wherever_it_lies(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        write_training(folder, STAGE, before=tmp_path / "base")
        texts.append((folder / CARD_FILE).read_bytes())
    assert texts[0] == texts[1] and str(tmp_path).encode() not in texts[0]


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).mkdir()
    with pytest.raises(StorageError, match="cannot write the model card"):
        write_start(tmp_path, "owner/base")
