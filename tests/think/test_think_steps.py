"""Promises of counting steps down, on the machine alone and token by token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.students.template import Template
from tutelage.think.machine import PHASES
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.segments import cap
from tutelage.think.steps import BREAK, StepPolicy, counted_down
from tutelage.tokens import decode_ids, encode_text

TOKENIZER = byte_tokenizer()
CLOSE, END = TOKENIZER.convert_tokens_to_ids(["</think>", "<|end|>"])


def play(policy, said, room=4000, template=None):
    """The state after a model that says `said` ("|": it closes its thinking), as far as it is let."""
    machine = policy.compile(TOKENIZER, template or Template())
    state = machine.start(room, last_prompt_id=1)
    fed = [*state.opening]
    for letter in [*said, END, END]:  # in the end it stops, in its thinking too
        if state.finished:
            break
        token = {"|": CLOSE, END: END}.get(letter) or encode_text(TOKENIZER, letter)[0]
        step = state.step(token)
        assert not step.back
        fed += step.feed
    assert state.finished and fed == state.ids[: len(fed)]
    return state


def thinking(state):
    pairs = zip(state.ids, state.phases, strict=True)
    return decode_ids(TOKENIZER, [token for token, phase in pairs if PHASES[phase] == "thinking"])


def test_steps_are_counted_down_and_the_end_is_forced():
    state = play(StepPolicy(steps=3), "one\n\ntwo\n\nthree\n\nfour")
    assert thinking(state) == "3 steps left\none\n\n2 steps left\ntwo\n\n1 steps left\nthree\n\n"
    assert state.progress.closed_by == "budget"
    assert decode_ids(TOKENIZER, state.ids).endswith("three\n\n</think>four<|end|>")


def test_without_a_forced_end_the_model_may_go_on():
    state = play(StepPolicy(steps=2, forced_end=False), "one\n\ntwo\n\nthree\n\nfour|!")
    assert thinking(state) == "2 steps left\none\n\n1 steps left\ntwo\n\nthree\n\nfour"
    assert state.progress.closed_by == "model"


def test_the_model_may_close_while_steps_are_left():
    state = play(StepPolicy(steps=4), "one\n\ntwo|!")
    assert thinking(state) == "4 steps left\none\n\n3 steps left\ntwo"
    assert state.progress.closed_by == "model"


def test_a_model_that_counts_by_itself_is_ended_at_zero():
    policy = StepPolicy(steps=2, markers="model")
    state = play(policy, "one\n\n1 steps left\ntwo\n\n0 steps left\nthree")
    assert thinking(state) == "2 steps left\none\n\n1 steps left\ntwo\n\n0 steps left\n"
    assert state.progress.closed_by == "budget"
    free = play(
        StepPolicy(steps=2, markers="model", forced_end=False), "one\n\n0 steps left\n-1 steps left\n|!"
    )
    assert thinking(free).endswith("0 steps left\n-1 steps left\n")


def test_blank_lines_without_text_are_no_steps():
    assert thinking(play(StepPolicy(steps=2), "\n\n\n\none\n\ntwo")).count("steps left") == 2


def test_the_closing_marker_as_text_does_not_disturb_the_count():
    state = play(StepPolicy(steps=2), "one\n\ntwo\n</think>\n!", template=Template(think_close="</THINK>"))
    assert "1 steps left" in thinking(state)


@pytest.mark.slow
@given(
    steps=st.integers(1, 5),
    most=st.none() | st.integers(0, 60),
    paragraphs=st.lists(st.text("ab\n", min_size=1, max_size=12), min_size=1, max_size=8),
    forced_end=st.booleans(),
    room=st.integers(60, 200),
)
@settings(max_examples=200, deadline=None)
def test_promises(steps, most, paragraphs, forced_end, room):
    """The maximum holds, forced and sampled ids add up, and so many markers are written as there were
    steps."""
    policy = StepPolicy(max_tokens=most, steps=steps, forced_end=forced_end)
    state = play(policy, BREAK.join(paragraphs) + "|answer", room=room)
    progress = state.progress
    assert progress.thinking <= cap(state.machine.script, progress)
    assert len(state.ids) == progress.used == sum(progress.written.values())
    assert sum(state.forced) == sum(progress.forced.values())
    markers = [f"{left} steps left\n" for left in range(steps, 0, -1)]
    written = thinking(state)
    assert progress.waits <= steps and all(marker in written for marker in markers[: progress.waits])
    marked = sum(len(marker) for marker in markers[: progress.waits])
    assert progress.forced.get("thinking", 0) == marked


def test_a_trace_is_split_at_its_blank_lines():
    assert counted_down("a\nb\n\nc\n\n\n\nd") == "3 steps left\na\nb\n\n2 steps left\nc\n\n1 steps left\nd"


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"steps": 0}, "0 steps"),
        ({"marker": "go on\n"}, "{left}"),
        ({"marker": "{left} left"}, "end its line"),
        ({"refuse_closes": 1}, "refuse_closes"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"max_tokens": 9, "close": "newline", "grace_tokens": 2}, "graceful"),
    ],
)
def test_impossible_counts_are_refused(fields, names):
    with pytest.raises(UsageError) as refused:
        StepPolicy(**fields)
    assert names in str(refused.value) and "\n" not in str(refused.value)


def test_a_template_without_thinking_is_refused():
    with pytest.raises(UsageError, match="switched off"):
        StepPolicy().compile(TOKENIZER, Template(thinking=False))


def test_it_is_a_policy_of_its_own():
    assert StepPolicy(steps=2) == StepPolicy(steps=2) != StepPolicy(steps=3)
    assert StepPolicy(steps=2) != ThinkingPolicy(wait=StepPolicy(steps=2).wait)
