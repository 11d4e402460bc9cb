"""Mock models, random policies and a driver for machines: what the tests of thinking share."""

import random

import numpy as np
from hypothesis import strategies as st

from tutelage.think.machine import PHASES, build
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.segments import ceiling
from tutelage.tokens import Markers

END = 0
BREAK = 3  # the id whose text holds a line break
ALPHABET = list(range(8))  # 0 ends the text; the marker, wait strings and thoughts share the rest
PROMPT = (5, 1, 2)


def breaks_line(token):
    return token == BREAK


def mock(seed):
    """A greedy model whose preference depends on the last three ids only, so that it can loop."""

    def prefer(context):
        order = ALPHABET.copy()
        random.Random(f"{seed}{context[-3:]}{len(context) % 5}").shuffle(order)
        return order

    return prefer


def scores_of(order):
    """Next-token scores in which the ids rank as in `order`."""
    scores = np.full(len(ALPHABET), -np.inf)
    for rank, token in enumerate(order):
        scores[token] = len(ALPHABET) - rank
    return scores


def play(state, prefer, prompt=PROMPT, append_only=False, begun=()):
    """Drive `state` with a mock model: `prefer(context)` orders the alphabet. Returns the ids in its
    cache."""
    cache = [*prompt, *begun, *state.opening]
    banned, steps = (), 0
    while not state.finished:
        steps += 1
        assert steps < 5_000, "the machine does not come to an end"
        assert state.progress.thinking <= ceiling(state.machine.script, state.progress)
        order = prefer(tuple(cache))
        token = next(token for token in order if token not in banned)
        closing, refused = state.closing, state.progress.refused
        settled = state.ids[: state.settled]
        step = state.step(token, scores_of(order) if state.wants_scores else None)
        assert state.ids[: len(settled)] == settled, "what was settled has changed"
        if state.progress.refused > refused:
            assert token in (closing, END)
        if step.done:
            assert state.finished and not step.feed and not step.back
            break
        assert step.feed or step.banned
        assert not (append_only and step.back)
        if step.back:
            del cache[-step.back :]
        cache += step.feed
        banned = step.banned
        assert cache == [*prompt, *state.ids]
    return cache


ids = st.lists(st.sampled_from(ALPHABET[1:]), min_size=1, max_size=3).map(tuple)


@st.composite
def policies(draw, waits):
    """A random policy whose wait strings are the texts "w", "ww", ... of the given ids."""
    most = draw(st.none() | st.integers(0, 20))
    refuse = 0 if most == 0 else draw(st.integers(0, 3))
    if most is not None and refuse:
        waits = tuple(wait for wait in waits if len(wait) < most)
    close = "hard" if most is None else draw(st.sampled_from(["hard", "newline", "rank:1", "rank:3"]))
    policy = ThinkingPolicy(
        min_tokens=draw(st.integers(0, 20 if most is None else most)),
        max_tokens=most,
        refuse_closes=refuse,
        wait=tuple("w" * (i + 1) for i in range(len(waits))) or None,
        max_waits=draw(st.none() | st.integers(0, 3)) if waits else None,
        close=close,
        grace_tokens=0 if close == "hard" else draw(st.integers(1, 8)),
        close_text=draw(st.sampled_from(["", "A"])),
        answer_reserve=draw(st.integers(1, 5)),
    )
    return policy, {text: list(wait) for text, wait in zip(policy.wait_strings, waits, strict=True)}


@st.composite
def machines(draw):
    """A random policy compiled with random markers of one to three ids."""
    policy, known = draw(policies(tuple(draw(st.lists(ids, max_size=2)))))
    markers = Markers(open=draw(ids), close=draw(ids), end=frozenset({END}))
    return build(
        policy,
        markers,
        (known | {"A": [3, 3]}).__getitem__,
        prefilled=draw(st.booleans()),
        breaks_line=breaks_line,
    )


def scripted(policy, stream, close=(6,), waits=None, room=60, limit=None, append_only=False, scores=None):
    """The state after a fixed stream of sampled ids; a banned id is skipped to the next of the stream."""
    markers = Markers(open=(5,), close=close, end=frozenset({END}))
    machine = build(policy, markers, waits or (lambda text: [7]), breaks_line=breaks_line)
    state = machine.start(room, PROMPT[-1], limit, append_only)
    stream, banned = iter(stream), ()
    while not state.finished:
        token = next(token for token in stream if token not in banned)
        banned = state.step(token, None if scores is None else scores(state)).banned
    return state


def text(state, phase):
    """The ids of one phase."""
    return [token for token, p in zip(state.ids, state.phases, strict=True) if PHASES[p] == phase]
