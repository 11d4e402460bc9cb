"""A local model that answers problems: the project's own engine as a source of traces.

Promises: token counts are counts of ids, sampled and forced apart; forced text is marked by its place in the
thinking; the random numbers of a reply depend on (seed, problem, sample) alone, so that two policies, or two
models, are compared under common random numbers; the same call gives equal traces.
Does not: judge, keep a ledger (nothing is bought), or load models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.records import Problem, Trace, stable_hash
from tutelage.students.pretrained import Student
from tutelage.students.template import markers, render_prompt
from tutelage.think.engine import Completion, Request, generate
from tutelage.think.machine import PHASES
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.tokens import decode_ids, encode_text

Progress = Callable[[int, int, str], None]
Sampler = Callable[[Sequence[Problem]], Iterator[Trace]]
_THINKING, _ANSWER = PHASES.index("thinking"), PHASES.index("answer")


@dataclass(frozen=True, slots=True)
class LocalTeacher:
    """A student that answers: `samples` replies per problem under `sampling`, each answer of at most
    `max_answer` sampled tokens, `max_batch` rows at a time. `maker` names it in the traces."""

    student: Student
    maker: str
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    seed: int = 0
    max_answer: int = 64
    max_batch: int = 64


def local_sampler(teacher: LocalTeacher, policy: ThinkingPolicy, progress: Progress | None = None) -> Sampler:
    """Problems in, traces out (problem by problem, sample by sample) under `policy`.

    The sampler raises UsageError for a policy, a prompt or a model that cannot be run."""

    def sample(problems: Sequence[Problem]) -> Iterator[Trace]:
        replies = decode(teacher, problems, policy, progress=progress)
        yield from to_traces(teacher, problems, policy, replies)

    return sample


def decode(
    teacher: LocalTeacher,
    problems: Sequence[Problem],
    policy: ThinkingPolicy,
    *,
    replay: Sequence[Completion] | None = None,
    progress: Progress | None = None,
) -> list[Completion]:
    """Completions of every problem, problem by problem, sample by sample. `replay`: completions of the same
    call under another policy; what both policies write alike is not decoded again, unless the other policy
    refused a close in that reply."""
    tokenizer, template = teacher.student.tokenizer, teacher.student.template
    requests: list[Request] = []
    for problem in problems:
        prompt = tuple(render_prompt(tokenizer, template, problem.question))
        for sample in range(teacher.samples):
            earlier = replay[len(requests)] if replay is not None else None
            if earlier is not None and earlier.refused:  # a masked close leaves no sign to go by
                earlier = None
            seed = int(stable_hash(teacher.seed, problem.id, sample), 16)
            requests.append(
                Request(prompt, policy, teacher.sampling, seed, teacher.max_answer, None, earlier)
            )
    return generate(
        teacher.student.model,
        requests,
        markers(tokenizer, template),
        encode=lambda text: encode_text(tokenizer, text),
        prefilled=template.prefill,
        forbid=_unusable(teacher.student),
        max_batch=teacher.max_batch,
        progress=progress,
    )


def to_traces(
    teacher: LocalTeacher, problems: Sequence[Problem], policy: ThinkingPolicy, replies: Sequence[Completion]
) -> Iterator[Trace]:
    """The completions of `decode` as traces."""
    settings = {
        "policy": policy.to_dict(),
        "sampling": teacher.sampling.to_dict(),
        "seed": teacher.seed,
        "max_answer": teacher.max_answer,
        "template": teacher.student.template.to_dict(),
    }
    tokenizer, template = teacher.student.tokenizer, teacher.student.template
    prompts = [len(render_prompt(tokenizer, template, problem.question)) for problem in problems]
    for index, reply in enumerate(replies):
        problem, sample = problems[index // teacher.samples], index % teacher.samples
        thinking, spans = _marked_text(tokenizer, reply)
        sampled, forced = reply.count("thinking")
        answered, prompted = reply.count("answer")
        answer = [token for token, phase in zip(reply.ids, reply.phases, strict=True) if phase == _ANSWER]
        yield Trace(
            id=stable_hash(problem.id, teacher.maker, settings, sample),
            problem_id=problem.id,
            sample=sample,
            maker=teacher.maker,
            answer=decode_ids(tokenizer, answer).strip(),
            thinking=thinking,
            settings=settings,
            prompt_tokens=prompts[index // teacher.samples],
            thinking_sampled=sampled,
            thinking_forced=forced,
            answer_sampled=answered,
            answer_forced=prompted,
            forced_spans=spans,
            finish_reason=reply.finish_reason,
            closed_by=reply.closed_by,
        )


def _marked_text(tokenizer: Any, reply: Completion) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The thinking as text without white space at its ends, and where it was forced (character ranges)."""
    ids = [
        (token, forced)
        for token, forced, phase in zip(reply.ids, reply.forced, reply.phases, strict=True)
        if phase == _THINKING
    ]
    whole = decode_ids(tokenizer, [token for token, _ in ids])
    text = whole.strip()
    lead = len(whole) - len(whole.lstrip())
    spans: list[tuple[int, int]] = []
    start = 0
    for index in range(1, len(ids) + 1):
        if index < len(ids) and ids[index][1] == ids[start][1]:
            continue
        if ids[start][1]:
            # Ends are found by decoding the prefix: a character may be made of several tokens.
            first, last = (
                min(max(len(decode_ids(tokenizer, [token for token, _ in ids[:end]])) - lead, 0), len(text))
                for end in (start, index)
            )
            if last > first:
                spans.append((first, last))
        start = index
    return text, tuple(spans)


def _unusable(student: Student) -> tuple[int, ...]:
    """Ids that must never be sampled: padding, unless it also ends replies, and rows of the embedding beyond
    the tokenizer, which could not be decoded."""
    tokenizer = student.tokenizer
    ends = markers(tokenizer, student.template).end
    beyond = range(len(tokenizer), int(student.model.config.vocab_size))
    pad = tokenizer.pad_token_id
    return tuple(beyond) if pad is None or pad in ends else (pad, *beyond)
