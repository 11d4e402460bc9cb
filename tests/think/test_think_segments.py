"""Segments: the primitive that drivers of text play, and its agreement with the machine."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import ALPHABET, BREAK, END, PROMPT, machines, mock, play

import tutelage.think.policy
from tutelage.errors import UsageError
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.segments import (
    Done,
    Force,
    Generate,
    Span,
    after_force,
    after_generate,
    begin,
    ceiling,
    next_segment,
)


@pytest.mark.slow
@given(machine=machines(), seed=st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_a_proxy_that_plays_segments_gets_what_the_machine_gets(machine, seed):
    """The segments played as completions of text (marker withheld, continued from the kept prefix) agree
    with the machine wherever completions of text can do it: not where a close has to be masked, nor
    by rank."""
    prefer, room, script, close = mock(seed), 60, machine.script, machine.close
    state = machine.start(room, PROMPT[-1])
    play(state, prefer)
    progress, reply = begin(script, room), []
    while not isinstance(segment := next_segment(script, progress), Done):
        if isinstance(segment, Force):
            reply += segment.ids
            progress = after_force(script, progress)
            continue
        if segment.mask_first or segment.until == "rank":
            return
        thoughts = reply[len(reply) - progress.thinking :] if segment.phase == "thinking" else []
        text, stop = [], "length"
        while len(text) < segment.at_most:
            token = prefer((*PROMPT, *reply, *text))[0]
            if token in machine.end:
                stop = "end"
                break
            text.append(token)
            if segment.phase == "thinking" and (*thoughts, *text)[-len(close) :] == close:
                stop = "close"
                break
            if segment.until == "newline" and token == BREAK:
                stop = "newline"
                break
        at_the_maximum = segment.until == "close" and machine.policy.close == "newline"
        if stop == "length" and at_the_maximum and text and text[-1] == BREAK:
            stop = "newline"
        marker = 0
        if segment.phase == "thinking" and stop == "close":
            marker = min(len(close), len(text))
        elif segment.phase == "thinking" and stop != "end":
            widest = min(len(close) - 1, len(text))
            known = (*thoughts, *text)
            marker = next((k for k in range(widest, 0, -1) if known[-k:] == close[:k]), 0)
        kept = text[: len(text) - marker]
        rest = None if stop == "close" else Span("", close[marker:], len(close) - marker)
        progress = after_generate(script, progress, len(kept), stop, marker, rest)
        reply += text if stop != "close" or progress.closed_by == "model" else kept
        if segment.phase == "answer" and stop == "end":
            reply.append(END)
    assert reply == state.ids


texts = st.lists(st.sampled_from(["Wait", "Hmm", "Alternatively"]), min_size=1, max_size=2).map(tuple)


@pytest.mark.slow
@given(
    most=st.none() | st.integers(0, 40),
    refuse=st.integers(0, 3),
    waits=st.none() | texts,
    reserve=st.integers(1, 9),
    room=st.integers(40, 120),
    lies=st.lists(st.integers(1, 30), min_size=40, max_size=40),
    stops=st.lists(st.sampled_from(["close", "end", "length", "newline"]), min_size=40, max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_promises_of_a_play_in_text(most, refuse, waits, reserve, room, lies, stops):
    """Whatever the model does, and however long forced texts turn out to be (never longer than their
    bytes)."""
    grace = {"close": "newline", "grace_tokens": 5} if most is not None else {}
    policy = ThinkingPolicy(
        max_tokens=most,
        refuse_closes=refuse if most != 0 else 0,
        wait=waits,
        close_text="Final Answer:",
        answer_reserve=reserve,
        **grace,
    )
    play = policy.segments(room)
    total = forced = 0
    for lie, stop in zip(lies, stops, strict=True):
        segment = play.segment
        if isinstance(segment, Done):
            break
        if isinstance(segment, Force):
            length = min(lie, len(segment.text))
            play.forced(length)
            total, forced = total + length, forced + length
            continue
        assert segment.at_most >= 1
        if segment.phase == "answer":
            assert segment.at_most >= reserve
        produced = min(lie, segment.at_most)
        stop = "length" if produced == segment.at_most else stop
        if segment.until == "end":
            stop = stop if stop in ("end", "length") else "end"
        elif segment.until == "close" and stop == "newline":
            stop = "close"
        play.generated(produced, stop)
        total += produced + (stop == "end" and segment.until == "end")
        assert play.progress.thinking <= ceiling(play.script, play.progress)
    assert total == play.progress.used <= room
    assert forced == sum(play.progress.forced.values())


def test_a_play_forces_the_markers_around_what_the_model_writes():
    play = ThinkingPolicy(max_tokens=20, refuse_closes=1, wait="Wait").segments(200, prefilled=False)
    written = []
    for produced, stop in ((5, "close"), (3, "close"), (4, "end")):
        while isinstance(play.segment, Force):
            written.append(play.segment.text)
            play.forced()
        assert isinstance(play.segment, Generate)
        written.append(produced)
        play.generated(produced, stop, marker=1 if stop == "close" else 0)
    assert written == ["<think>", 5, "Wait", 3, 4]
    assert play.segment == Done("stop")
    assert (play.progress.closed_by, play.progress.thinking) == ("model", 12)  # Wait: at most 4 tokens


def test_a_marker_that_has_begun_is_completed_and_not_written_twice():
    play = ThinkingPolicy(max_tokens=9).segments(200)
    play.generated(7, "length", marker=2, begun="</thi")
    assert play.segment == Force("close", Span("nk>", (), 6))
    assert play.progress.closed_by == "budget"


def test_a_play_refuses_what_cannot_be_kept():
    with pytest.raises(UsageError, match="tokens of room"):
        ThinkingPolicy().segments(8)
    with pytest.raises(UsageError, match="does not fit into max_tokens 3"):
        ThinkingPolicy(max_tokens=3, refuse_closes=1, wait="Wait").segments(99, count=len)
    with pytest.raises(UsageError, match="thinking switched off"):
        ThinkingPolicy(min_tokens=3).segments(99, thinks=False)
    assert ThinkingPolicy().segments(99, thinks=False).segment == Generate("answer", "end", 99)


def test_the_first_segment_says_what_to_ask_for():
    assert ThinkingPolicy(max_tokens=9).segments(99).segment == Generate("thinking", "close", 9)
    assert ALPHABET  # the mock's ids are not text: only their counts matter here


def test_the_example_in_the_documentation_is_true():
    assert doctest.testmod(tutelage.think.policy).failed == 0
