"""Promises of the machine, over random policies and mock models."""

import doctest

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from machines import END, PROMPT, machines, mock, play, scores_of, scripted, text

import tutelage.think.machine
from tutelage.errors import UsageError
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.students.template import Template
from tutelage.think.machine import PHASES, Step, build
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.segments import cap, ceiling
from tutelage.tokens import Markers


@pytest.mark.slow
@given(
    machine=machines(),
    seed=st.integers(0, 10**6),
    spare=st.integers(0, 40),
    limit=st.none() | st.integers(1, 9),
    append_only=st.booleans(),
)
@settings(max_examples=600, deadline=None)
def test_promises_of_the_machine(machine, seed, spare, limit, append_only):
    policy, script = machine.policy, machine.script
    reserve = min(policy.answer_reserve, limit or policy.answer_reserve)
    room = script.overhead + reserve + spare
    state = machine.start(room, PROMPT[-1], limit, append_only)
    play(state, mock(seed), append_only=append_only)
    progress, most = state.progress, cap(script, state.progress)
    labels = [(PHASES[phase], bool(f)) for phase, f in zip(state.phases, state.forced, strict=True)]
    # Sampled and forced are counted apart and add up.
    assert len(state.ids) == len(labels) == progress.used == sum(progress.written.values()) <= room
    for phase in PHASES:
        assert sum(name == phase for name, _ in labels) == progress.written.get(phase, 0)
        assert labels.count((phase, True)) == progress.forced.get(phase, 0)
    assert [name for name, _ in labels] == sorted((name for name, _ in labels), key=PHASES.index)
    # Thinking stays between the minimum and the maximum with its grace.
    assert progress.thinking <= ceiling(script, progress)
    if policy.max_tokens is not None:
        assert ceiling(script, progress) <= policy.max_tokens + policy.grace_tokens
    if progress.closed_by in ("model", "eos"):
        assert progress.thinking >= min(policy.min_tokens, most)
    elif progress.closed_by == "grace":
        assert most <= progress.thinking + len(machine.close)
    assert policy.max_waits is None or progress.waits <= policy.max_waits
    assert progress.closed_by in ("model", "eos", "budget", "grace", "room")
    # The whole marker is there, right after the thinking; the answer had its reserve.
    marker = tuple(token for token, (name, _) in zip(state.ids, labels, strict=True) if name == "close")
    assert machine.close[-len(marker) :] == marker
    sampled = labels.count(("answer", False))
    assert progress.finish_reason == "stop" or sampled >= reserve
    assert limit is None or sampled <= limit
    assert (state.ids[-1] == END) == (progress.finish_reason == "stop")


@pytest.mark.slow
@given(machine=machines(), other=machines(), seed=st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_two_policies_write_the_same_until_their_steps_differ(machine, other, seed):
    """What sharing rests on: with the same model, equal steps so far mean equal ids so far."""
    other = build_like(other, machine)
    one, two = machine.start(60, PROMPT[-1]), other.start(60, PROMPT[-1])
    prefer, cache, banned = mock(seed), list(PROMPT), ()
    if one.opening != two.opening:
        return
    cache += one.opening
    while not (one.finished or two.finished):
        order = prefer(tuple(cache))
        token = next(token for token in order if token not in banned)
        steps = [state.step(token, scores_of(order)) for state in (one, two)]
        if steps[0] != steps[1]:
            return
        assert one.ids == two.ids
        del cache[len(cache) - steps[0].back :]
        cache += steps[0].feed
        banned = steps[0].banned


def build_like(machine, model):
    """`machine`'s policy with the markers of `model`."""
    marks = Markers(model.script.open.ids or (5,), model.close, model.end)
    waits = {wait.text: wait.ids for wait in machine.script.waits} | {"A": (3, 3)}
    prefilled = not model.script.open.ids
    return build(
        machine.policy, marks, waits.__getitem__, prefilled=prefilled, breaks_line=machine.breaks_line
    )


@given(machine=machines(), seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_append_only_changes_nothing_where_markers_are_one_id(machine, seed):
    if len(machine.close) > 1:
        return
    states = [machine.start(60, PROMPT[-1], append_only=way) for way in (False, True)]
    for state in states:
        play(state, mock(seed))
    assert states[0].ids == states[1].ids
    assert states[0].progress == states[1].progress


def test_natural_thinking_is_left_alone():
    state = scripted(ThinkingPolicy(), [1, 2, 6, 3, END])
    assert (state.ids, sum(state.forced)) == ([1, 2, 6, 3, END], 0)
    assert (state.progress.closed_by, state.progress.finish_reason) == ("model", "stop")


def test_a_budget_closes_and_forces_the_close_text():
    state = scripted(ThinkingPolicy(max_tokens=2, close_text="A"), [1, 2, 4, END], waits=lambda text: [3, 3])
    assert state.ids == [1, 2, 6, 3, 3, 4, END]
    assert list(state.forced) == [0, 0, 1, 1, 1, 0, 0]
    assert state.progress.closed_by == "budget"


def test_budget_zero_answers_at_once():
    state = scripted(ThinkingPolicy(max_tokens=0), [4, END])
    assert (state.opening, state.ids) == ((6,), [6, 4, END])


def test_the_room_closes_where_there_is_less_of_it_than_the_maximum():
    for policy in (ThinkingPolicy(answer_reserve=2), ThinkingPolicy(max_tokens=50, answer_reserve=2)):
        state = scripted(policy, [1, 2, 4, END], room=5)
        assert (state.ids, state.progress.closed_by) == ([1, 2, 6, 4, END], "room")


def test_a_close_at_a_line_break_waits_for_one_within_its_grace():
    policy = ThinkingPolicy(max_tokens=2, close="newline", grace_tokens=3)
    state = scripted(policy, [1, 2, 4, 3, 4, END])
    assert (state.ids, state.progress.closed_by) == ([1, 2, 4, 3, 6, 4, END], "grace")
    state = scripted(policy, [1, 2, 4, 4, 4, 1, END])
    assert (state.ids, state.progress.closed_by) == ([1, 2, 4, 4, 4, 6, 1, END], "budget")
    state = scripted(policy, [1, 3, 4, END])  # the maximum ends a line already
    assert (state.ids, state.progress.closed_by) == ([1, 3, 6, 4, END], "budget")
    state = scripted(policy, [1, 2, 6, 4, END])
    assert (state.ids, state.progress.closed_by) == ([1, 2, 6, 4, END], "model")


def test_a_line_break_that_begins_the_marker_is_its_beginning():
    policy = ThinkingPolicy(max_tokens=2, close="newline", grace_tokens=3)
    state = scripted(policy, [1, 2, 4, 3, 4, END], close=(3, 6))
    assert state.ids == [1, 2, 4, 3, 6, 4, END]
    assert (text(state, "close"), list(state.forced)) == ([3, 6], [0, 0, 0, 0, 1, 0, 0])


def test_a_close_by_rank_waits_until_the_marker_is_likely():
    policy = ThinkingPolicy(max_tokens=1, close="rank:2", grace_tokens=4)
    orders = {1: [4, 1, 6], 2: [4, 6, 1]}  # the marker is third, then second

    def scores(state):
        return scores_of(orders.get(len(state.ids), [4]))

    state = scripted(policy, [1, 4, 4, 2, END], scores=scores)
    assert (state.ids, state.progress.closed_by) == ([1, 4, 6, 2, END], "grace")
    with pytest.raises(UsageError, match="needs the next-token scores"):
        scripted(policy, [1, 4, 4, 2, END])


def test_refused_closes_become_the_wait_strings_in_rotation_then_the_close_is_accepted():
    policy = ThinkingPolicy(refuse_closes=3, wait=("a", "b"))
    state = scripted(policy, [1, 6, 2, 6, 3, 6, 4, 6, 1, END], waits=lambda text: [{"a": 7, "b": 5}[text]])
    assert text(state, "thinking") == [1, 7, 2, 5, 3, 7, 4]
    assert state.progress.waits == state.progress.forced["thinking"] == 3


def test_a_wait_string_may_be_chosen():
    markers = Markers(open=(5,), close=(6,), end=frozenset({END}))
    machine = build(
        ThinkingPolicy(refuse_closes=2, wait=("a", "b")), markers, lambda text: [{"a": 7, "b": 5}[text]]
    )
    state = machine.start(60, PROMPT[-1])
    state.choose_wait = lambda: 1
    assert [state.step(token).feed for token in (6, 2, 6, 6)] == [(5,), (2,), (5,), (6,)]


def test_after_max_waits_or_without_a_string_the_close_is_masked():
    state = scripted(ThinkingPolicy(refuse_closes=2, wait="w", max_waits=1), [1, 6, 2, 6, 3, 6, 4, END])
    assert text(state, "thinking") == [1, 7, 2, 3]
    state = scripted(ThinkingPolicy(min_tokens=3), [6, 1, END, 2, 6, 3, 6, 4, END])
    assert text(state, "thinking") == [1, 2, 3] and not sum(state.forced)


def test_an_end_of_text_while_thinking_counts_as_a_close():
    state = scripted(ThinkingPolicy(refuse_closes=1, wait="w", close_text="A"), [1, END, 2, END, 4, END])
    # The marker and the close text are ours, the decision is the model's.
    assert state.ids == [1, 7, 2, 6, 7, 4, END]
    assert state.progress.closed_by == "eos"


def test_a_marker_of_several_tokens_is_withdrawn_when_refused():
    state = scripted(
        ThinkingPolicy(refuse_closes=1, wait="w"), [1, 6, 4, 6, 2, 6, 4, 6, 3, END], close=(6, 4, 6)
    )
    assert state.ids == [1, 7, 2, 6, 4, 6, 3, END]


def test_a_driver_that_cannot_take_back_keeps_what_was_written_of_a_refused_marker():
    policy = ThinkingPolicy(refuse_closes=1, wait="w")
    state = scripted(policy, [1, 6, 4, 6, 2, 6, 4, 6, 3, END], close=(6, 4, 6), append_only=True)
    assert state.ids == [1, 6, 4, 7, 2, 6, 4, 6, 3, END]
    assert text(state, "thinking") == [1, 6, 4, 7, 2]


def test_what_completes_a_close_is_known_beforehand():
    machine = build(ThinkingPolicy(), Markers((5,), (6, 4), frozenset({END})), lambda text: [7])
    state = machine.start(60, PROMPT[-1])
    seen = []
    for token in (1, 6, 4, 2, END):
        seen.append(state.closing)
        state.step(token)
    assert (seen, state.closing) == ([None, None, 4, None, None], None)


def test_a_marker_that_has_begun_is_not_settled():
    machine = build(ThinkingPolicy(), Markers((5,), (6, 4), frozenset({END})), lambda text: [7])
    state = machine.start(60, PROMPT[-1])
    seen = []
    for token in (1, 6, 6, 4, 6):
        state.step(token)
        seen.append(state.settled)
    assert seen == [1, 1, 2, 4, 5]


def test_a_budget_completes_a_marker_that_has_begun():
    state = scripted(ThinkingPolicy(max_tokens=3), [1, 6, 4, 3, END], close=(6, 4, 2))
    assert state.ids == [1, 6, 4, 2, 3, END]
    assert (state.progress.thinking, list(state.forced)) == (1, [0, 0, 0, 1, 0, 0])


def test_a_marker_begun_by_a_wait_string_closes():
    state = scripted(ThinkingPolicy(refuse_closes=1, wait="w"), [1, END, 4, 2, 3, END], close=(7, 4, 2))
    assert state.ids == [1, 7, 4, 2, 3, END]
    assert text(state, "close") == [4, 2]


def test_markers_in_the_answer_change_nothing():
    assert scripted(ThinkingPolicy(max_tokens=2), [1, 6, 5, 6, 5, 6, END]).ids == [1, 6, 5, 6, 5, 6, END]


@pytest.mark.slow
@given(prompt=st.lists(st.integers(0, 7), max_size=6), stream=st.lists(st.integers(1, 7), min_size=12))
@example(prompt=[5, 6, 6], stream=[4, 6, 1] * 4)
@settings(max_examples=60, deadline=None)
def test_markers_in_the_prompt_change_nothing(prompt, stream):
    machine = build(
        ThinkingPolicy(max_tokens=5, answer_reserve=3),
        Markers((5,), (6, 4), frozenset({END})),
        lambda text: [7],
    )
    states = [machine.start(12, last) for last in (1, *prompt[-1:])]
    for state in states:
        for token in stream:
            if not state.finished:
                state.step(token)
    assert all(state.ids == states[0].ids for state in states)


def test_a_wait_string_that_would_break_the_maximum_is_not_written():
    state = scripted(ThinkingPolicy(max_tokens=3, refuse_closes=1, wait="w"), [1, 2, 6, 4, END])
    assert state.ids == [1, 2, 6, 4, END]
    state = scripted(ThinkingPolicy(max_tokens=3, min_tokens=3, wait="w"), [1, 2, 6, 3, 4, END])
    assert state.ids == [1, 2, 3, 6, 4, END]


def test_a_stop_string_ends_the_answer_without_an_end_of_text():
    machine = build(ThinkingPolicy(max_tokens=1), Markers((5,), (6,), frozenset({END})), lambda text: [7])
    state = machine.start(60, PROMPT[-1])
    assert state.step(1) == Step((1, 6))
    state.step(4)
    state.end()
    assert state.finished and state.ids == [1, 6, 4]
    assert (state.progress.finish_reason, state.progress.written["answer"]) == ("stop", 1)


def test_without_thinking_the_policy_leaves_the_answer_alone():
    markers = Markers(open=(), close=(), end=frozenset({END}))
    state = build(ThinkingPolicy(max_tokens=5), markers, lambda text: []).start(9, PROMPT[-1], 3)
    play(state, lambda context: [1])
    assert (state.ids, state.progress.finish_reason) == ([1, 1, 1], "length")
    assert state.progress.closed_by == "none"
    with pytest.raises(UsageError, match="thinking switched off"):
        build(ThinkingPolicy(min_tokens=1), markers, lambda text: [])


def test_what_does_not_fit_is_refused_with_the_reason():
    markers = Markers(open=(5,), close=(6,), end=frozenset({END}))
    with pytest.raises(UsageError, match="does not fit into max_tokens 2"):
        build(ThinkingPolicy(max_tokens=2, refuse_closes=1, wait="w"), markers, lambda text: [7, 7])
    with pytest.raises(UsageError, match="no tokens"):
        build(ThinkingPolicy(wait="w"), markers, lambda text: [])
    with pytest.raises(UsageError, match="4 tokens of room"):
        build(ThinkingPolicy(answer_reserve=4), markers, lambda text: []).start(4, 1)
    with pytest.raises(UsageError, match="at least 1"):
        build(ThinkingPolicy(), markers, lambda text: []).start(40, 1, 0)


def test_a_policy_is_compiled_with_the_markers_of_the_template():
    tokenizer = build_tokenizer()
    assert ThinkingPolicy().compile(tokenizer).close == tuple(tokenizer.convert_tokens_to_ids(["</think>"]))
    s1 = ThinkingPolicy(think_open="<think>begin", think_close="</think>answer")
    assert len(s1.compile(tokenizer).close) > 1
    assert s1.compile(tokenizer).close[0] == tokenizer.convert_tokens_to_ids("</think>")
    with pytest.raises(UsageError, match="leave them out"):
        s1.compile(tokenizer, Template())
    with pytest.raises(UsageError, match="thinking switched off"):
        ThinkingPolicy(min_tokens=1).compile(tokenizer, Template(thinking=False))


def test_a_text_that_the_tokenizer_cannot_write_is_refused():
    for policy in (
        ThinkingPolicy(refuse_closes=1, wait="Hedgehog"),
        ThinkingPolicy(max_tokens=4, close_text="Hedgehog"),
    ):
        with pytest.raises(UsageError, match="no tokens for 'Hedgehog'"):
            policy.compile(build_tokenizer())


def test_the_example_in_the_documentation_is_true():
    assert doctest.testmod(tutelage.think.machine).failed == 0
