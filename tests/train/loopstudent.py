"""A recurrent student of a few thousand weights with the byte tokenizer of the other tests."""

from __future__ import annotations

from typing import Any

import torch

from tinymodel import byte_tokenizer
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.template import Template
from tutelage.train.examples import Example, build_examples

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_core_layers": 1,
    "mean_recurrence": 4,
    "mean_backprop_depth": 2,
    "max_position_embeddings": 256,
}


def loop_student(seed: int = 0, **shape: Any) -> Student:
    """Random weights, evaluation mode. Its states move with the depth, so that one depth is not another."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = RecurrentDepthConfig(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**SHAPE, **shape},
    )
    return Student(RecurrentDepthForCausalLM(config).eval(), tokenizer, Template(), "loops")


def loop_examples(student: Student, count: int) -> list[Example]:
    """Replies of different lengths."""
    problems = {f"p{n}": Problem(f"p{n}", f"{n}?") for n in range(count)}
    traces = [Trace(f"t{n}", f"p{n}", 0, "m", f"{n}" + "!" * (n % 5)) for n in range(count)]
    return build_examples(student.tokenizer, student.template, problems, traces).examples
