"""The lab's closed-vocabulary tokenizer: one token per phrase of the counter world, or of another one.

Promises: every text that a lab world or its teachers write survives encode and decode unchanged; a word it
does not know becomes `<unk>`; the result is a stock `PreTrainedTokenizerFast` that saves and loads as usual.
Does not: handle open text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.lab.world import AMOUNTS, NAMES, QUESTION_END, WATCH

PAD, END, UNKNOWN, USER, ASSISTANT = "<|pad|>", "<|end|>", "<unk>", "<|user|>", "<|assistant|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
SPECIAL = (PAD, END, UNKNOWN, USER, ASSISTANT, THINK_OPEN, THINK_CLOSE)
# ". Hmm" is never taught: what does a word do that the student has not seen?
CONNECTIVES = (". Wait", ". Hmm", ". So")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def phrases() -> tuple[str, ...]:
    """The vocabulary's plain phrases, in id order after the special tokens."""
    return (
        "Counter",
        "Answer",
        QUESTION_END,
        *CONNECTIVES,
        *(f": {digit}" for digit in range(10)),
        *(f". {name}" for name in NAMES),
        f" {WATCH}",
        *(f" {operation} {amount}" for operation, amounts in AMOUNTS.items() for amount in amounts),
    )


def build_tokenizer(words: Sequence[str] | None = None) -> Any:
    """A `PreTrainedTokenizerFast` over the special tokens and `words`; None: those of the counter world (61
    tokens in all)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = phrases() if words is None else tuple(words)
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(_escape(word) for word in longest_first)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=[USER, ASSISTANT, THINK_OPEN, THINK_CLOSE],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _escape(word: str) -> str:
    return "".join(f"\\{c}" if c in ".?:|<>/" else c for c in word)
