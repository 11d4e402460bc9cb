"""Tokens that a tokenizer keeps for later use: think markers and the padding token are taken from them.

Promises: a marker that is a token already stays as it is; where the tokenizer has two reserved tokens they
get the markers' spelling, so that the vocabulary and the shape of the weights do not change; where it has
none two tokens are added, their embeddings begin as the mean of what the marker's text was until then; the
student given is not half changed when something fails; what comes out saves and loads like any other.
Does not: train the embeddings, or decide whether markers should be tokens (`template` writes both kinds).

A marker that is one token costs one place instead of up to seven, and cannot be taken for text.
Phi-4-reasoning took two reserved tokens; s1 took one as padding, so that end-of-text stayed learned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.students.template import markers
from tutelage.tokens import encode_text

# Spellings that makers use for tokens which no text was ever trained with.
RESERVED = re.compile(
    r"<\|reserved_special_token_\d+\|>"  # Llama 3
    r"|<\|reserved_\d+\|>"  # gpt-oss
    r"|<\|reserved_token_\d+\|>"
    r"|<\|extra_\d+\|>|<\|extra_id_\d+\|>"  # Qwen 1, OLMo 2
    r"|<\|dummy_\d+\|>|<\|placeholder\d+\|>"  # Phi-4, Phi-3
    r"|<unused_?\d+>|<\|unused_?\d+\|>|\[unused\d+\]"  # Gemma and others, BERT
    r"|<SPECIAL_\d+>|\[control_\d+\]"  # Mistral
    r"|<reserved_?\d+>|<extra_id_\d+>"
    r"|<｜place▁holder▁no▁\d+｜>"  # DeepSeek
)
# For padding any token does that ends nothing: its row is never read (s1 took Qwen's <|fim_pad|>).
PADDING = re.compile(r"<\|fim_pad\|>|<fim_pad>|<\|pad\|>|<pad>|\[PAD\]")


@dataclass(frozen=True, slots=True)
class Padding:
    """The id that fills up a batch and its spelling. `how`: `own` (the tokenizer's pad), `reserved` (an
    unused token), or `end` (the end-of-text id itself: only masking by length keeps that learned)."""

    id: int
    token: str
    how: str


def reserved_tokens(tokenizer: Any) -> list[str]:
    """Added tokens whose name says that nothing uses them, by id. Neither the tokenizer's own roles (begin,
    end, padding, …) nor its chat template names one of them."""
    template = getattr(tokenizer, "chat_template", None) or ""
    roles = {value for value in tokenizer.special_tokens_map.values() if isinstance(value, str)}
    return [
        text
        for text, _ in sorted(tokenizer.get_added_vocab().items(), key=lambda pair: pair[1])
        if RESERVED.fullmatch(text) and text not in roles and text not in str(template)
    ]


def padding(tokenizer: Any) -> Padding:
    """What batches are padded with: the tokenizer's own pad where no reply can end with it, else an unused
    token, else the end of text.

    Raises UsageError when there is neither a pad nor an end of text."""
    own = tokenizer.pad_token_id
    # Not `markers(...).end`: a tokenizer whose pad is the second end (<|endoftext|>) is as safe as any.
    if own is not None and own != tokenizer.eos_token_id:
        return Padding(int(own), str(tokenizer.pad_token), "own")
    added = tokenizer.get_added_vocab()
    named = [text for text in added if PADDING.fullmatch(text)]
    for text in (*named, *reversed(reserved_tokens(tokenizer))):
        if added[text] != tokenizer.eos_token_id:
            return Padding(added[text], text, "reserved")
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has neither a padding nor an end-of-text token; set its eos_token")
    return Padding(int(tokenizer.eos_token_id), str(tokenizer.eos_token), "end")


def with_markers(student: Student, think_open: str = "<think>", think_close: str = "</think>") -> Student:
    """A student whose think markers are one token each, by its template too. The model is changed in place
    where rows must be added or filled; the tokenizer given is left as it is.

    Raises UsageError for empty, equal or unusable markers, and when the tokenizer cannot be rewritten."""
    template = replace(student.template, thinking=True, think_open=think_open, think_close=think_close)
    wanted = (think_open, think_close)
    if any(marker != marker.strip() for marker in wanted):
        raise UsageError("markers: white space at the ends of a marker cannot be part of a token")
    added = student.tokenizer.get_added_vocab()
    missing = [marker for marker in wanted if marker not in added]
    if not missing:
        return replace(student, template=template)
    free = reserved_tokens(student.tokenizer)
    if len(free) >= len(missing):
        tokenizer = _renamed(student.tokenizer, dict(zip(free, missing, strict=False)))
    else:
        tokenizer = _rewritten(student.tokenizer, {}, missing)
    spelled = {
        tokenizer.convert_tokens_to_ids(each): encode_text(student.tokenizer, each) for each in missing
    }
    _fill(student.model, spelled, fresh=len(free) < len(missing))
    found = Student(student.model, tokenizer, template, student.name)
    if {len(markers(tokenizer, template).open), len(markers(tokenizer, template).close)} != {1}:
        raise RuntimeError("a marker is still more than one token")
    return found


def _renamed(tokenizer: Any, names: dict[str, str]) -> Any:
    before = {text: tokenizer.convert_tokens_to_ids(text) for text in names}
    made = _rewritten(tokenizer, names, [])
    moved = [new for old, new in names.items() if made.convert_tokens_to_ids(new) != before[old]]
    if moved or len(made) != len(tokenizer):
        raise UsageError(
            f"this tokenizer's reserved tokens ({', '.join(names)}) cannot be renamed; set markers: text"
        )
    return made


def _rewritten(tokenizer: Any, names: dict[str, str], extra: Sequence[str]) -> Any:
    """A copy of the tokenizer with tokens renamed and added. By its files: no API of a fast tokenizer changes
    a token's spelling, and what was read from files is known to load again."""
    from tokenizers import AddedToken

    with TemporaryDirectory(prefix="tutelage-markers-") as scratch:
        folder = Path(scratch)
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            file = folder / name
            if names and file.is_file():
                content = json.loads(file.read_text(encoding="utf-8"))
                content = _rename(content, names) if name == "tokenizer.json" else _without(content, names)
                file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        made = type(tokenizer).from_pretrained(folder)
    # Not "special": other programs leave special tokens out of what they print, and the thinking with them
    # would lose its borders. DeepSeek's and Qwen's markers are not special either.
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in extra])
    return made


def _rename(content: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """tokenizer.json with other spellings, ids as before; the white space around them is text again (Phi's
    reserved tokens swallow it)."""
    plain = {"special": False, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    for token in content["added_tokens"]:
        if token["content"] in names:
            token.update(plain, content=names[token["content"]])
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict):
        content["model"]["vocab"] = {names.get(text, text): number for text, number in vocabulary.items()}
    elif isinstance(vocabulary, list):  # unigram models: [piece, score]
        content["model"]["vocab"] = [[names.get(row[0], row[0]), *row[1:]] for row in vocabulary]
    return content


def _without(content: Any, names: dict[str, str]) -> Any:
    """Settings that name the old spellings as special tokens, without them."""
    if isinstance(content, list):
        return [_without(each, names) for each in content if not _is_named(each, names)]
    if isinstance(content, dict):
        return {key: _without(each, names) for key, each in content.items() if not _is_named(each, names)}
    return content


def _is_named(value: Any, names: dict[str, str]) -> bool:
    if isinstance(value, dict):
        value = value.get("content")
    return isinstance(value, str) and value in names


def _fill(model: Any, spelled: dict[int, list[int]], *, fresh: bool) -> None:
    """Rows for the markers. New ones begin as the mean of the rows of the text that spelled them: their own
    meaning, and not the same for both. A reserved row stays, unless nothing was ever put there: makers leave
    zeros or one vector for all, and from equal rows a model could not tell opening from closing."""
    rows = model.get_input_embeddings().weight.shape[0]
    needed = max(spelled) + 1
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    tables = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    with torch.no_grad():
        for table in tables:  # (vocabulary, width)
            for number, text in spelled.items():
                if fresh or _untrained(table, number, spelled):
                    table[number] = table[[each for each in text if each != number]].mean(dim=0)


def _untrained(table: torch.Tensor, number: int, spelled: dict[int, list[int]]) -> bool:
    usual = table.norm(dim=1).median()
    same = any(torch.equal(table[number], table[other]) for other in spelled if other != number)
    return same or bool(table[number].norm() < 0.01 * usual)
