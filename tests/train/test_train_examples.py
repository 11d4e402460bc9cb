"""Examples: what is learned, what is not, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.students.template import Template, end_of_turn, render_completion, render_prompt
from tutelage.train.examples import IGNORE, build_examples, gold_traces

TOKENIZER = byte_tokenizer()
PROBLEMS = {f"p{n}": Problem(f"p{n}", f"What is {n} + {n}?", gold=str(2 * n)) for n in range(4)}


def trace(number: int, thinking: str = "", answer: str = "", sample: int = 0) -> Trace:
    name = f"t{number}-{sample}"
    return Trace(name, f"p{number}", sample, "m", answer or f"It is {2 * number}.", thinking=thinking)


HOSTILE = st.text(
    st.sampled_from("ab .\n<|/>é🙂") | st.characters(exclude_categories=["Cs"]), max_size=30
) | st.sampled_from(["</think>", "<|end|>", "x<|user|>y", "<think>\n"])


@given(
    question=HOSTILE,
    thinking=HOSTILE,
    answer=HOSTILE.filter(lambda text: text.strip()),
    prefill=st.booleans(),
    system=st.none() | HOSTILE,
)
def test_the_loss_is_on_the_reply_alone_and_the_prompt_is_that_of_inference(
    question: str, thinking: str, answer: str, prefill: bool, system: str | None
) -> None:
    template = Template(prefill=prefill, system=system)
    problems = {"p": Problem("p", question)}
    made = build_examples(
        TOKENIZER, template, problems, [Trace("t", "p", 0, "m", answer, thinking=thinking)], max_length=9999
    )
    (example,) = made.examples
    prompt = render_prompt(TOKENIZER, template, question)
    reply = render_completion(TOKENIZER, template, thinking, answer)
    assert example.input_ids == prompt + reply
    assert example.labels == [IGNORE] * len(prompt) + reply
    # The end of the turn is learned, and nothing that a text says ends it earlier.
    end = end_of_turn(TOKENIZER)
    assert example.labels[-1] == end and example.labels.count(end) == 1
    assert made.too_long == [] and (example.problem_id, example.trace_id) == ("p", "t")


def test_thinking_stands_before_the_answer_or_is_left_out() -> None:
    with_thinking = trace(1, thinking="one and one")
    whole = build_examples(TOKENIZER, Template(), PROBLEMS, [with_thinking]).examples[0]
    bare = build_examples(TOKENIZER, Template(), PROBLEMS, [with_thinking], target="answer").examples[0]
    learned = TOKENIZER.decode([number for number in whole.labels if number != IGNORE])
    assert learned == "one and one</think>It is 2.<|end|>"
    assert TOKENIZER.decode([n for n in bare.labels if n != IGNORE]) == "</think>It is 2.<|end|>"


def test_a_mix_leaves_the_thinking_of_every_other_trace_out() -> None:
    traces = [trace(1, thinking="hm"), trace(2, thinking="hm")]
    whole, bare, mixed = (
        build_examples(TOKENIZER, Template(), PROBLEMS, traces, target=target).examples
        for target in ("thinking", "answer", "mixed")
    )
    assert mixed == [whole[0], bare[1]] and whole[1] != bare[1]


def test_a_document_is_learned_whole_but_for_its_first_token() -> None:
    traces = [trace(1, thinking="one and one"), trace(2)]
    masked = build_examples(TOKENIZER, Template(), PROBLEMS, traces).examples
    whole = build_examples(TOKENIZER, Template(), PROBLEMS, traces, loss_on="document").examples
    for some, every in zip(masked, whole, strict=True):
        assert every.input_ids == some.input_ids
        assert every.labels == [IGNORE, *every.input_ids[1:]]


def test_examples_come_in_the_order_of_the_traces_one_each() -> None:
    traces = [trace(2), trace(0), trace(2, sample=1), trace(3)]
    made = build_examples(TOKENIZER, Template(), PROBLEMS, traces)
    assert [example.trace_id for example in made.examples] == [each.id for each in traces]


def test_a_sample_over_the_limit_is_refused_by_name_or_dropped_and_counted_never_cut() -> None:
    traces = [trace(0), trace(1, thinking="x" * 200), trace(2)]
    lengths = [len(e.input_ids) for e in build_examples(TOKENIZER, Template(), PROBLEMS, traces).examples]
    with pytest.raises(UsageError, match=rf"trace t1-0 has {lengths[1]} tokens, more than max_length 100"):
        build_examples(TOKENIZER, Template(), PROBLEMS, traces, max_length=100)
    made = build_examples(TOKENIZER, Template(), PROBLEMS, traces, max_length=100, too_long="drop")
    assert made.too_long == ["t1-0"]
    assert [len(example.input_ids) for example in made.examples] == [lengths[0], lengths[2]]
    # Exactly at the limit is not over it.
    exact = build_examples(TOKENIZER, Template(), PROBLEMS, traces, max_length=lengths[1])
    assert len(exact.examples) == 3
    with pytest.raises(UsageError, match="every trace is longer than max_length 5"):
        build_examples(TOKENIZER, Template(), PROBLEMS, traces, max_length=5, too_long="drop")


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ([], "there is no trace to train on"),
        ([trace(9)], "trace t9-0: its problem p9 is not among the problems given"),
        ([trace(0), trace(1, answer=" \n ")], "trace t1-0 has no answer to learn"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_line(traces: list[Trace], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_examples(TOKENIZER, Template(), PROBLEMS, traces)
    assert "\n" not in str(caught.value)


def test_thinking_for_a_student_without_thinking_is_refused() -> None:
    template = Template(thinking=False)
    with pytest.raises(UsageError, match="thinking is switched off"):
        build_examples(TOKENIZER, template, PROBLEMS, [trace(1, thinking="hm")])
    (plain,) = build_examples(
        TOKENIZER, template, PROBLEMS, [trace(1, thinking="hm")], target="answer"
    ).examples
    assert TOKENIZER.decode([n for n in plain.labels if n != IGNORE]) == "It is 2.<|end|>"


def test_gold_answers_are_traces_without_thinking() -> None:
    problems = list(PROBLEMS.values())
    traces = gold_traces(problems, "The answer is {gold}.")
    assert [each.answer for each in traces] == [f"The answer is {2 * n}." for n in range(4)]
    assert all(not each.thinking and not each.request_key for each in traces)
    assert len({each.id for each in traces}) == 4
    with pytest.raises(UsageError, match="problem q has no gold answer"):
        gold_traces([*problems, Problem("q", "Why?")])


BARE = Template(thinking=False)


def prefixes(question: str, pairs: object, template: Template = BARE) -> list[list[int]]:
    """Ids and labels of one example whose problem has these prefix answers; its own answer is z."""
    problem = Problem("p", question, gold="z", metadata={"prefix_answers": pairs})
    made = build_examples(
        TOKENIZER, template, {"p": problem}, [Trace("t", "p", 0, "m", "z")], loss_on="prefixes"
    )
    return [made.examples[0].input_ids, made.examples[0].labels]


@given(
    question=st.text("abc \né🙂", min_size=1, max_size=12),
    system=st.none() | st.text("abc \n", max_size=12),
    thinking=st.booleans(),
    data=st.data(),
)
def test_an_answer_is_learned_where_the_prefix_that_has_it_ends(
    question: str, system: str | None, thinking: bool, data: st.DataObject
) -> None:
    template = Template(thinking=thinking, system=system)
    ends = data.draw(st.lists(st.integers(1, len(question)), unique=True))
    answers = {end: data.draw(st.sampled_from("xyz")) for end in ends}
    ids, labels = prefixes(question, [[end, answer] for end, answer in answers.items()], template)
    prompt = render_prompt(TOKENIZER, template, question)
    reply = render_completion(TOKENIZER, template, "", "z")
    assert ids == prompt + reply and labels[len(prompt) :] == reply
    # The bytes tokenizer has one token per byte; what stands before the question is what it is without one.
    frame = render_prompt(TOKENIZER, template, "")
    first = next(
        place
        for place in range(len(frame), -1, -1)
        if prompt == frame[:place] + list(TOKENIZER(question)["input_ids"]) + frame[place:]
        and TOKENIZER.decode(frame[place:]).startswith("<|")
    )
    expected = [IGNORE] * (len(prompt) + 1)
    for end, answer in answers.items():
        expected[first + len(question[:end].encode())] = TOKENIZER(answer)["input_ids"][0]
    assert labels[: len(prompt)] == expected[: len(prompt)]


@pytest.mark.parametrize(
    ("question", "pairs", "message"),
    [
        ("abc", None, "there is no list"),
        ("abc", "abc", "there is no list"),
        ("abc", [[4, "x"]], "is not .characters read, answer. with a token of the question that ends there"),
        ("abc", [[0, "x"]], "that ends there"),
        ("abc", [[1]], "is not .characters read, answer."),
        ("abc", [[1, 2]], "is not .characters read, answer."),
        ("abc", [[1, "xy"]], "'xy' is 2 tokens; one place can learn only one"),
        ("abc", [[1, ""]], "'' is 0 tokens"),
    ],
)
def test_prefix_answers_that_cannot_be_learned_are_refused(
    question: str, pairs: object, message: str
) -> None:
    with pytest.raises(UsageError, match=f"problem p: prefix_answers: .*{message}"):
        prefixes(question, pairs)
