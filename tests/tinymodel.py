"""Parts for tests: a byte-level tokenizer and a random Llama small enough to build in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tutelage.students.pretrained import Student
from tutelage.students.template import Template

CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_tokenizer(think_tokens: bool = True, special: bool = True, chat: bool = True) -> Any:
    """Every byte is a token; `<think>` is one too, or (think_tokens=False) seven bytes of text."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]})
    if think_tokens:
        tokenizer.add_tokens(
            [AddedToken("<think>", special=special), AddedToken("</think>", special=special)]
        )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def tiny_llama(vocabulary: int, seed: int = 0, layers: int = 2, width: int = 32, room: int = 256) -> Any:
    """A random Llama with grouped attention heads, float32, evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=room,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    # Larger weights than the default initialisation, so that greedy text varies from row to row.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model


def tiny_student(seed: int = 0, think_tokens: bool = True, closes: float = 1.0, **template: Any) -> Student:
    """`closes` above 1 scales the scores of the closing marker, so that a random model closes its
    thinking."""
    tokenizer = byte_tokenizer(think_tokens)
    model = tiny_llama(len(tokenizer), seed)
    if think_tokens:
        with torch.no_grad():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids("</think>")] *= closes
    return Student(model, tokenizer, Template(**template), f"tiny-{seed}")
