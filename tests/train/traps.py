"""Parts for the tests of the checks: chat templates of the kinds that there are, and samples of a tiny
student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl

from tinymodel import CHAT, tiny_student
from tutelage.records import Problem, Trace
from tutelage.train.check import Samples
from tutelage.train.examples import build_examples

_ROLE = "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
_END = "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
_GENERATE = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
# As DeepSeek-R1's: everything up to the closing marker goes.
DELETES = f"{_ROLE}{{{{ m['content'].split('</think>')[-1] }}}}{_END}{_GENERATE}"
# "Cleans" what the assistant wrote: one space between two words.
STRIPS = f"{_ROLE}{{{{ m['content'].split() | join(' ') }}}}{_END}{_GENERATE}"
# Opens the thinking of each reply, whatever the reply begins with.
DOUBLES = (
    f"{_ROLE}{{% if m['role'] == 'assistant' %}}{{{{ '<think>' }}}}{{% endif %}}{{{{ m['content'] }}}}{_END}"
    f"{_GENERATE}"
)
REFUSES = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no replies') }}{% endif %}"
    f"{{{{ m['content'] }}}}{{% endfor %}}{_GENERATE}"
)
# Knows both ways in the last turn and drops the thinking of earlier ones, as Qwen3's.
QWEN3_LIKE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set t = m.reasoning_content or m['content'].split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set a = m['content'].split('</think>')[-1].strip() %}"
    "{% if loop.last %}{{ '<|assistant|><think>\n' + t + '\n</think>\n\n' + a + '<|end|>' }}"
    "{% else %}{{ '<|assistant|>' + a + '<|end|>' }}{% endif %}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}" + _GENERATE
)
PLAIN = CHAT


def published(name: str) -> str:
    """A published model's chat template, as TRL carries it."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def samples(
    replies: Sequence[tuple[str, str]] = (("3+4 is 7", "7"),),
    question: str = "3+4?",
    chat: str | None = CHAT,
    tokenizer: Any = None,
    **template: Any,
) -> Samples:
    """Examples of a tiny student, one per (thinking, answer)."""
    student = tiny_student(**template)
    student.tokenizer.chat_template = chat
    if tokenizer is not None:
        student = type(student)(student.model, tokenizer, student.template, student.name)
    problems = {"p": Problem("p", question)}
    traces = [
        Trace(f"t{n}", "p", n, "m", answer, thinking=thinking) for n, (thinking, answer) in enumerate(replies)
    ]
    made = build_examples(student.tokenizer, student.template, problems, traces, max_length=10**6)
    return Samples(student, problems, {trace.id: trace for trace in traces}, made.examples)
