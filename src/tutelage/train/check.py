"""Traps that a training run falls into without a sound, looked for before its first step.

Promises: every sample that would be trained is looked at, in its final token ids: it decodes to the stored
trace, its prompt is the prompt of inference, its reply ends with the end of turn, once, and learns that; no
text became a control token; no sample is longer than the model's context; a batch as it is collated, padding
and all, still learns every end; the tokenizer's chat template keeps the thinking. What fails is named.
Does not: change anything, choose traces, or measure (see `dry` and `estimate`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import Student
from tutelage.students.reserved import padding
from tutelage.students.template import end_of_turn, markers, render_prompt, split_completion
from tutelage.tokens import decode_ids
from tutelage.train.conversation import converse, refuse_conversation
from tutelage.train.examples import IGNORE, Example, Target

Collate = Callable[[Sequence[Example]], Mapping[str, Any]]
_EXCERPT = 40


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says. `refused`: training must not begin; `text` is one line for people."""

    name: str
    refused: bool
    text: str


@dataclass(frozen=True)
class Samples:
    """What is to be trained: the examples in their final ids, and what they were made from. `faithful` asks
    for a chat template that keeps the thinking of a conversation."""

    student: Student
    problems: Mapping[str, Problem]
    traces: Mapping[str, Trace]
    examples: Sequence[Example]
    target: Target = "thinking"
    faithful: bool = True

    @cached_property
    def prompts(self) -> dict[str, list[int]]:
        """The prompt of inference of each problem that has a sample."""
        tokenizer, template = self.student.tokenizer, self.student.template
        ids = dict.fromkeys(example.problem_id for example in self.examples)
        return {each: render_prompt(tokenizer, template, self.problems[each].question) for each in ids}


def refuse_traps(
    student: Student,
    problems: Mapping[str, Problem],
    traces: Sequence[Trace],
    examples: Sequence[Example],
    *,
    target: Target = "thinking",
    faithful: bool = True,
    collate: Collate | None = None,
) -> None:
    """What every stage that trains on traces calls before it begins: raises UsageError for the first check
    that refuses. Costs about as much as tokenizing the data; no model is run. `collate` makes the batch as
    the stage does (None: one sample a row, padded)."""
    by_trace = {trace.id: trace for trace in traces}
    samples = Samples(student, problems, by_trace, examples, target, faithful)
    for check in CHECKS:
        if (found := check(samples)).refused:
            raise UsageError(found.text)
    if (found := collated(samples, collate)).refused:
        raise UsageError(found.text)


def find_traps(samples: Samples, collate: Collate | None = None) -> list[Finding]:
    """What all the checks say, refused or not."""
    return [*(check(samples) for check in CHECKS), collated(samples, collate)]


def chat_template(samples: Samples) -> Finding:
    """The tokenizer's own chat template, tried on conversations with thinking (see `conversation`)."""
    student = samples.student
    found = converse(student.tokenizer, student.template)
    if found.marker_given is None:
        return Finding("chat template", False, "none: the model is trained on plain prompts, without roles")
    if not student.template.thinking:
        return Finding("chat template", False, "thinking is off, so there is none to lose")
    try:
        refuse_conversation(found, student.name)
    except UsageError as error:
        return Finding("chat template", samples.faithful, str(error))
    keeps = " and ".join(way for way, fate in found.last.items() if fate == "kept")
    text = f"keeps thinking given in {keeps}"
    if "kept" not in found.earlier.values():
        text += "; leaves out that of earlier turns"
    if student.template.prefill and not found.marker_given:
        text += f"; its prompts do not end with {student.template.think_open}, other programs must add that"
    return Finding("chat template", False, text)


def context(samples: Samples) -> Finding:
    """No sample is longer than what the model was made for."""
    room = context_of(samples.student.model)
    longest = max(samples.examples, key=lambda each: len(each.input_ids))
    length = len(longest.input_ids)
    if room is None:
        return Finding("context", False, f"the longest sample has {length} tokens; the model names no limit")
    if length > room:
        text = (
            f"trace {visible(longest.trace_id)} has {length} tokens, but the model's context is {room}; set "
            f"max_length: {room} and too_long: drop, or take a model with a longer context"
        )
        return Finding("context", True, text)
    return Finding("context", False, f"the longest sample has {length} of the model's {room} tokens")


def context_of(model: Any) -> int | None:
    """How many positions the model was made for, None when it does not say."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def changed(samples: Samples) -> dict[str, str]:
    """What is wrong with each trace that does not come back from its tokens, by trace id: render → tokenize →
    decode gives thinking and answer of the stored trace, white space at their ends aside, and the prompt is
    what the engine will see."""
    tokenizer, template = samples.student.tokenizer, samples.student.template
    prompts = samples.prompts
    faults: dict[str, str] = {}
    for example in samples.examples:
        trace, prompt = samples.traces[example.trace_id], prompts[example.problem_id]
        if example.input_ids[: len(prompt)] != prompt:
            faults[trace.id] = "its prompt is not the one that the engine would make"
            continue
        thinking, answer = split_completion(tokenizer, template, example.input_ids[len(prompt) :])
        thinks = template.thinking and samples.target != "answer"
        wanted = trace.thinking if thinks and not (samples.target == "mixed" and not thinking) else ""
        for field, stored, got in (("thinking", wanted, thinking), ("answer", trace.answer, answer)):
            if _clean(stored) != got:
                faults[trace.id] = f"its {field} {_difference(_clean(stored), got)}"
                break
    return faults


def round_trip(samples: Samples) -> Finding:
    """Every trace comes back from its tokens (see `changed`)."""
    faults = changed(samples)
    if faults:
        share = f"{len(faults)} of {len(samples.examples)} samples do not come back from their tokens"
        trace, fault = next(iter(faults.items()))
        text = f"{share}; trace {visible(trace)}: {fault}; use another tokenizer, or leave such traces out "
        return Finding("round trip", True, f"{text}(keep: faithful)")
    return Finding("round trip", False, f"all {len(samples.examples)} samples decode to their stored traces")


def end_learned(samples: Samples) -> Finding:
    """The end of turn is the last token of every sample, occurs once in the reply, and is learned; so is all
    of the reply."""
    end = end_of_turn(samples.student.tokenizer)
    prompts = samples.prompts
    for example in samples.examples:
        at = len(prompts[example.problem_id])
        reply, labels = example.input_ids[at:], example.labels[at:]
        wrong = (
            "does not end with the end of turn"
            if not reply or reply[-1] != end
            else f"holds the end of turn {reply.count(end)} times in its reply"
            if reply.count(end) > 1
            else "does not learn its end of turn, so the model would never stop"
            if labels[-1] != end
            else "does not learn its whole reply"
            if labels != reply
            else ""
        )
        if wrong:
            text = f"trace {visible(example.trace_id)} {wrong}; the loss mask is wrong"
            return Finding("end of turn", True, text)
    spelled = visible(decode_ids(samples.student.tokenizer, [end]))
    return Finding("end of turn", False, f"{spelled} is the last token of each reply, once, and learned")


def control_tokens(samples: Samples) -> Finding:
    """Text that spells a control token stays text."""
    tokenizer, template = samples.student.tokenizer, samples.student.template
    control = control_ids(tokenizer)
    marks = markers(tokenizer, template)
    frame = [each for each in render_prompt(tokenizer, template, "?") if each in control]
    written = [*(() if template.prefill else marks.open), *marks.close, end_of_turn(tokenizer)]
    expected = Counter([*frame, *(each for each in written if each in control)])
    spellings = re.compile("|".join(re.escape(text) for text in sorted(control.values(), key=len)) or r"(?!)")
    spelled = 0
    for example in samples.examples:
        trace, problem = samples.traces[example.trace_id], samples.problems[example.problem_id]
        spelled += any(spellings.search(text) for text in (problem.question, trace.thinking, trace.answer))
        if (found := Counter(each for each in example.input_ids if each in control)) != expected:
            extra = next(iter((found - expected) or (expected - found)))
            text = (
                f"trace {visible(trace.id)}: the token {visible(control[extra])} occurs {found[extra]} times "
                f"in its sample, {expected[extra]} times in the template: its text became a control token"
            )
            return Finding("control tokens", True, text)
    text = f"{spelled} of {len(samples.examples)} samples spell one in their text; none became one"
    return Finding("control tokens", False, text)


def unknown_words(samples: Samples) -> Finding:
    """A closed vocabulary writes what it does not know as one and the same token: a system message of such
    tokens is noise in every sample. In replies the round trip finds them."""
    tokenizer, template = samples.student.tokenizer, samples.student.template
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return Finding("unknown words", False, "the tokenizer can write any text")
    if (count := render_prompt(tokenizer, template, "").count(unknown)) > 0:
        text = (
            f"the tokenizer has no tokens for {count} words around the question (its system message, or its "
            "chat template); set system: none, or one that it can write"
        )
        return Finding("unknown words", True, text)
    prompts = samples.prompts
    hit = sum(unknown in prompt for prompt in prompts.values())
    return Finding("unknown words", False, f"{hit} of {len(prompts)} prompts hold one")


def control_ids(tokenizer: Any) -> dict[int, str]:
    """Added tokens by id. Runs of white space are text, and so is what stands for an unknown word (the round
    trip sees that one)."""
    return {
        number: text
        for text, number in tokenizer.get_added_vocab().items()
        if len(text) > 1 and text.strip() and number != tokenizer.unk_token_id
    }


CHECKS: tuple[Callable[[Samples], Finding], ...] = (
    chat_template,
    context,
    round_trip,
    end_learned,
    unknown_words,
    control_tokens,
)


def collated(samples: Samples, collate: Collate | None = None) -> Finding:
    """A batch of the shortest and the longest samples learns as many tokens, and as many ends, as they do:
    padding that equals the end of text hides the end from collators that mask by id."""
    pad = padding(samples.student.tokenizer)
    end = end_of_turn(samples.student.tokenizer)
    by_length = sorted(samples.examples, key=lambda each: len(each.input_ids))
    rows = list({id(each): each for each in (*by_length[:2], *by_length[-2:])}.values())
    labels = (collate or padded(pad.id))(rows)["labels"]
    ends, learned = int((labels == end).sum()), int((labels != IGNORE).sum())
    wanted = sum(label != IGNORE for row in rows for label in row.labels)
    how = {
        "own": f"{visible(pad.token)}, the tokenizer's own",
        "reserved": f"{visible(pad.token)}, a token that nothing else uses",
        "end": f"{visible(pad.token)}, the end of text itself: masked by length, so that it is still learned",
    }[pad.how]
    if ends != len(rows) or learned != wanted:
        text = (
            f"in a batch padded with {visible(pad.token)} {ends} of {len(rows)} ends of turn and {learned} "
            f"of {wanted} tokens are learned, so the model would never stop; give the tokenizer a pad_token "
            "of its own"
        )
        return Finding("padding", True, text)
    return Finding("padding", False, how)


def padded(pad: int) -> Collate:
    """One sample a row, as the stages that do not pack collate them."""

    def collate(rows: Sequence[Example]) -> Mapping[str, Any]:
        from tutelage.train.batches import Padded

        return Padded(rows, pad)([{"row": row} for row in range(len(rows))])

    return collate


def packed(pad: int) -> Collate:
    """All samples in one row, as a stage that packs collates them, beside a row of the shortest."""

    def collate(rows: Sequence[Example]) -> Mapping[str, Any]:
        from tutelage.train.batches import Packed

        groups = [group for group in (list(range(1, len(rows))), [0]) if group]
        return Packed(rows, groups, pad, flat=False)([{"row": row} for row in range(len(groups))])

    return collate


def _clean(text: str) -> str:
    """Text as it can be written at all: `encode_text` puts "?" for lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def _difference(stored: str, got: str) -> str:
    at = next(
        (place for place, (a, b) in enumerate(zip(stored, got, strict=False)) if a != b),
        min(len(stored), len(got)),
    )
    before, after = _excerpt(stored, at), _excerpt(got, at)
    return f"comes back changed at character {at}: {before!r} became {after!r}"


def _excerpt(text: str, at: int) -> str:
    return visible(text[max(0, at - _EXCERPT // 2) : at + _EXCERPT // 2])
