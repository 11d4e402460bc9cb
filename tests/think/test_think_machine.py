"""Promises of the policy and the machine, over random policies and mock models."""

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.think.machine import AGAIN, OVER, PHASES, Row
from tutelage.think.policy import (
    Done,
    Force,
    Generate,
    Script,
    ThinkingPolicy,
    after_force,
    after_generate,
    begin,
    cap,
    next_segment,
    write_script,
)
from tutelage.tokens import Markers

END = 0
ALPHABET = list(range(8))  # 0 ends the text; the marker, wait strings and thoughts share the rest
PROMPT = (5, 1, 2)


def play(row, prefer, prompt=PROMPT):
    """Drive `row` with a mock model: `prefer(context)` orders the alphabet. Returns the ids the cache
    holds."""
    cache = [*prompt, *row.ids[: len(row.ids) - len(row.pending)]]
    steps = 0
    while not row.finished:
        steps += 1
        assert steps < 5_000, "the machine does not come to an end"
        assert row.progress.thinking <= cap(row._script, row.progress)
        if row.pending:
            cache.append(row.pending.pop(0))
            continue
        choices = [token for token in prefer(tuple(cache)) if token not in row.mask]
        fed = row.offer(choices[0])
        if fed == OVER:
            break
        if fed == AGAIN:
            assert row.mask and not row.back
            continue
        if row.back:
            del cache[-row.back :]
        cache.append(fed)
        assert cache == [*prompt, *row.ids[: len(row.ids) - len(row.pending)]]
    return cache


def mock(seed):
    """A greedy model whose preference depends on the last three ids only, so that it can loop."""

    def prefer(context):
        order = ALPHABET.copy()
        random.Random(f"{seed}{context[-3:]}{len(context) % 5}").shuffle(order)
        return order

    return prefer


ids = st.lists(st.sampled_from(ALPHABET[1:]), min_size=1, max_size=3).map(tuple)


@st.composite
def scripts(draw):
    most = draw(st.none() | st.integers(0, 20))
    refuse = 0 if most == 0 else draw(st.integers(0, 3))
    waits = tuple(draw(st.lists(ids, max_size=2)))
    if most is not None and refuse:
        waits = tuple(wait for wait in waits if len(wait) < most)
    policy = ThinkingPolicy(
        min_tokens=draw(st.integers(0, 20 if most is None else most)),
        max_tokens=most,
        refuse_closes=refuse,
        wait=tuple("w" * (i + 1) for i in range(len(waits))) or None,
        max_waits=draw(st.none() | st.integers(0, 3)) if waits else None,
        close_text=draw(st.sampled_from(["", "A"])),
        answer_reserve=draw(st.integers(1, 5)),
    )
    markers = Markers(open=draw(ids), close=draw(ids), end=frozenset({END}))
    known = {text: list(wait) for text, wait in zip(policy.wait_strings, waits, strict=True)} | {"A": [3, 3]}
    return write_script(policy, markers, known.__getitem__, prefilled=draw(st.booleans()))


@given(
    script=scripts(),
    seed=st.integers(0, 10**6),
    spare=st.integers(0, 40),
    limit=st.none() | st.integers(1, 9),
)
@settings(max_examples=400, deadline=None)
def test_promises_of_the_machine(script, seed, spare, limit):
    policy = script.policy
    reserve = min(policy.answer_reserve, limit or policy.answer_reserve)
    room = script.overhead + reserve + spare
    row = Row(script, room, PROMPT[-1], limit)
    play(row, mock(seed))
    progress, most = row.progress, cap(script, row.progress)
    labels = [(PHASES[phase], bool(f)) for phase, f in zip(row.phases, row.forced, strict=True)]
    # Sampled and forced are counted apart and add up.
    assert len(row.ids) == len(labels) == progress.used == sum(progress.written.values()) <= room
    for phase in PHASES:
        assert sum(name == phase for name, _ in labels) == progress.written.get(phase, 0)
        assert labels.count((phase, True)) == progress.forced.get(phase, 0)
    assert [name for name, _ in labels] == sorted((name for name, _ in labels), key=PHASES.index)
    # Thinking stays between the minimum and the maximum.
    assert progress.thinking <= most <= (room if policy.max_tokens is None else policy.max_tokens)
    assert progress.thinking >= min(policy.min_tokens, most) or progress.closed_by == "budget"
    assert policy.max_waits is None or progress.waits <= policy.max_waits
    assert progress.closed_by in ("model", "budget")
    # The whole marker is there, right after the thinking; the answer had its reserve.
    marker = tuple(token for token, (name, _) in zip(row.ids, labels, strict=True) if name == "close")
    assert script.close[-len(marker) :] == marker
    sampled = labels.count(("answer", False))
    assert progress.finish_reason == "stop" or sampled >= reserve
    assert limit is None or sampled <= limit
    assert (row.ids[-1] == END) == (progress.finish_reason == "stop")


def forced_like_a_marker(policy, waits=()):
    """A wait string whose first id is that of a marker of two."""
    return Script(policy=policy, open=(4, 1), close=(1, 1), end=frozenset({END}), waits=waits, close_text=())


@given(one=scripts(), other=scripts(), seed=st.integers(0, 10**6))
@example(
    one=forced_like_a_marker(ThinkingPolicy(answer_reserve=1)),
    other=forced_like_a_marker(ThinkingPolicy(min_tokens=6, wait="w", answer_reserve=1), ((1,),)),
    seed=1,
)
@settings(max_examples=200, deadline=None)
def test_replaying_another_reply_changes_nothing(one, other, seed):
    """Greedy (or with the same random numbers), a reply under one policy is the reply under another as far
    as the policies write the same, so that one long trace can be closed again at every budget."""
    other = Script(other.policy, one.open, one.close, one.end, other.waits, other.close_text)
    room = 60
    plain = replace(one.policy, min_tokens=0, refuse_closes=0)  # a source may not have refused anything
    source = Row(replace(one, policy=plain), room, PROMPT[-1])
    play(source, mock(seed))
    alone = Row(other, room, PROMPT[-1])
    play(alone, mock(seed))
    resumed = Row(other, room, PROMPT[-1])
    resumed.replay(source.ids, source.forced)
    assert not resumed.pending
    play(resumed, mock(seed))
    assert (resumed.ids, resumed.phases, resumed.forced) == (alone.ids, alone.phases, alone.forced)
    assert resumed.progress == alone.progress


@given(script=scripts(), seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_a_proxy_that_plays_segments_gets_what_the_machine_gets(script, seed):
    """The segments played as completions of text (marker withheld, continued from the kept prefix) agree
    with the machine wherever no close has to be masked, which completions of text cannot do."""
    prefer, room = mock(seed), 60
    row = Row(script, room, PROMPT[-1])
    play(row, prefer)
    progress, reply = begin(script, room), []
    while not isinstance(segment := next_segment(script, progress), Done):
        if isinstance(segment, Force):
            reply += segment.ids
            progress = after_force(script, progress, segment.ids)
            continue
        if segment.mask_first:
            return
        text: list[int] = []
        stop = "length"
        while len(text) < segment.at_most:
            token = prefer((*PROMPT, *reply, *text))[0]
            if token in script.end:
                stop = "end"
                break
            text.append(token)
            tail = (*reply[len(reply) - progress.thinking :], *text) if segment.phase == "thinking" else ()
            if tail[-len(script.close) :] == script.close:
                stop = "close"
                break
        marker = 0
        if segment.phase == "thinking" and stop == "close":
            marker = min(len(script.close), len(text))
        elif segment.phase == "thinking" and stop == "length":
            known = (*reply[len(reply) - progress.thinking :], *text)
            marker = next(
                (
                    k
                    for k in range(min(len(script.close) - 1, len(text)), 0, -1)
                    if known[-k:] == script.close[:k]
                ),
                0,
            )
        kept = text[: len(text) - marker]
        progress = after_generate(script, progress, len(kept), stop, marker)
        accepted = stop == "length" or (stop == "close" and progress.closed_by == "model")
        reply += text if accepted else kept
        if segment.phase == "answer" and stop == "end":
            reply.append(END)
    assert reply == row.ids


def scripted(policy, stream, close=(6,), waits=None, room=60, limit=None):
    """A row after a fixed stream of sampled ids; a masked id is skipped to the next of the stream."""
    markers = Markers(open=(5,), close=close, end=frozenset({END}))
    row = Row(write_script(policy, markers, waits or (lambda text: [7])), room, PROMPT[-1], limit)
    stream = iter(stream)
    play(row, lambda context: [next(token for token in stream if token not in row.mask)])
    return row


def text(row, phase):
    return [token for token, p in zip(row.ids, row.phases, strict=True) if PHASES[p] == phase]


def test_natural_thinking_is_left_alone():
    row = scripted(ThinkingPolicy(), [1, 2, 6, 3, END])
    assert (row.ids, sum(row.forced)) == ([1, 2, 6, 3, END], 0)
    assert (row.progress.closed_by, row.progress.finish_reason) == ("model", "stop")


def test_a_budget_closes_and_forces_the_close_text():
    row = scripted(ThinkingPolicy(max_tokens=2, close_text="A"), [1, 2, 4, END], waits=lambda text: [3, 3])
    assert row.ids == [1, 2, 6, 3, 3, 4, END]
    assert list(row.forced) == [0, 0, 1, 1, 1, 0, 0]
    assert row.progress.closed_by == "budget"


def test_budget_zero_answers_at_once():
    assert scripted(ThinkingPolicy(max_tokens=0), [4, END]).ids == [6, 4, END]


def test_refused_closes_become_the_wait_strings_in_rotation_then_the_close_is_accepted():
    policy = ThinkingPolicy(refuse_closes=3, wait=("a", "b"))
    row = scripted(policy, [1, 6, 2, 6, 3, 6, 4, 6, 1, END], waits=lambda text: [{"a": 7, "b": 5}[text]])
    assert text(row, "thinking") == [1, 7, 2, 5, 3, 7, 4]
    assert row.progress.waits == row.progress.forced["thinking"] == 3


def test_after_max_waits_or_without_a_string_the_close_is_masked():
    row = scripted(ThinkingPolicy(refuse_closes=2, wait="w", max_waits=1), [1, 6, 2, 6, 3, 6, 4, END])
    assert text(row, "thinking") == [1, 7, 2, 3]
    row = scripted(ThinkingPolicy(min_tokens=3), [6, 1, END, 2, 6, 3, 6, 4, END])
    assert text(row, "thinking") == [1, 2, 3] and not sum(row.forced)


def test_an_end_of_text_while_thinking_counts_as_a_close():
    row = scripted(ThinkingPolicy(refuse_closes=1, wait="w", close_text="A"), [1, END, 2, END, 4, END])
    assert row.ids == [
        1,
        7,
        2,
        6,
        7,
        4,
        END,
    ]  # the marker and the close text are ours, the decision is the model's
    assert row.progress.closed_by == "model"


def test_a_marker_of_several_tokens_is_withdrawn_when_refused():
    row = scripted(
        ThinkingPolicy(refuse_closes=1, wait="w"), [1, 6, 4, 6, 2, 6, 4, 6, 3, END], close=(6, 4, 6)
    )
    assert row.ids == [1, 7, 2, 6, 4, 6, 3, END]


def test_a_budget_completes_a_marker_that_has_begun():
    row = scripted(ThinkingPolicy(max_tokens=3), [1, 6, 4, 3, END], close=(6, 4, 2))
    assert row.ids == [1, 6, 4, 2, 3, END]
    assert (row.progress.thinking, list(row.forced)) == (1, [0, 0, 0, 1, 0, 0])


def test_a_marker_begun_by_a_wait_string_closes():
    row = scripted(ThinkingPolicy(refuse_closes=1, wait="w"), [1, END, 4, 2, 3, END], close=(7, 4, 2))
    assert row.ids == [1, 7, 4, 2, 3, END]
    assert text(row, "close") == [4, 2]


def test_markers_in_the_answer_change_nothing():
    assert scripted(ThinkingPolicy(max_tokens=2), [1, 6, 5, 6, 5, 6, END]).ids == [1, 6, 5, 6, 5, 6, END]


def test_a_wait_string_that_would_break_the_maximum_is_not_written():
    row = scripted(ThinkingPolicy(max_tokens=3, refuse_closes=1, wait="w"), [1, 2, 6, 4, END])
    assert row.ids == [1, 2, 6, 4, END]
    row = scripted(ThinkingPolicy(max_tokens=3, min_tokens=3, wait="w"), [1, 2, 6, 3, 4, END])
    assert row.ids == [1, 2, 3, 6, 4, END]


def test_without_thinking_the_policy_leaves_the_answer_alone():
    markers = Markers(open=(), close=(), end=frozenset({END}))
    row = Row(write_script(ThinkingPolicy(max_tokens=5), markers, lambda text: []), 9, PROMPT[-1], 3)
    play(row, lambda context: [1])
    assert (row.ids, row.progress.finish_reason) == ([1, 1, 1], "length")
    assert row.progress.closed_by == "none"
    with pytest.raises(UsageError, match="thinking switched off"):
        write_script(ThinkingPolicy(min_tokens=1), markers, lambda text: [])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens 5 is larger than max_tokens 4"),
        ({"min_tokens": -1}, "negative"),
        ({"max_tokens": 1.5}, "whole number"),
        ({"max_tokens": True}, "whole number"),
        ({"max_tokens": 0, "refuse_closes": 1}, "needs room to think"),
        ({"wait": ""}, "wait is empty"),
        ({"wait": ()}, "wait is empty"),
        ({"max_waits": 1}, "wait is None"),
        ({"answer_reserve": 0}, "no room for an answer"),
    ],
)
def test_an_impossible_policy_is_refused_when_built(fields, reason):
    with pytest.raises(UsageError, match=reason):
        ThinkingPolicy(**fields)


def test_what_does_not_fit_is_refused_with_the_reason():
    markers = Markers(open=(5,), close=(6,), end=frozenset({END}))
    with pytest.raises(UsageError, match="does not fit into max_tokens 2"):
        write_script(ThinkingPolicy(max_tokens=2, refuse_closes=1, wait="w"), markers, lambda text: [7, 7])
    with pytest.raises(UsageError, match="no tokens"):
        write_script(ThinkingPolicy(wait="w"), markers, lambda text: [])
    with pytest.raises(UsageError, match="4 tokens of room"):
        Row(write_script(ThinkingPolicy(answer_reserve=4), markers, lambda text: []), 4, 1)
    with pytest.raises(UsageError, match="at least 1"):
        Row(write_script(ThinkingPolicy(), markers, lambda text: []), 40, 1, 0)


def test_policy_fields_survive_a_dictionary():
    policy = ThinkingPolicy(1, 9, 2, ("a", "b"), 3, "A", 4)
    assert ThinkingPolicy.from_dict(policy.to_dict()) == policy
    assert ThinkingPolicy.from_dict({**policy.to_dict(), "wait": ["a", "b"]}) == policy
    with pytest.raises(UsageError, match="max_token"):
        ThinkingPolicy.from_dict({"max_token": 3})


def test_the_first_segment_says_what_a_proxy_has_to_ask_for():
    script = write_script(
        ThinkingPolicy(max_tokens=9), Markers((5,), (6,), frozenset({END})), lambda text: []
    )
    progress = after_force(script, begin(script, 60), ())
    assert next_segment(script, progress) == Generate("thinking", "close", 9)
