"""Events of an upstream's stream, however its bytes arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.serve import upstream_http
from tutelage.serve.source import Refused
from tutelage.serve.upstream_http import blocks
from tutelage.teachers.streams import events


def read(pieces: Sequence[bytes]) -> list[str]:
    async def arriving() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def run() -> list[str]:
        return [data async for block in blocks(arriving()) for _, data in events(block)]

    return asyncio.run(run())


@settings(deadline=None, max_examples=60)
@given(
    data=st.lists(
        st.text(alphabet='a"{é€\\ ', min_size=1, max_size=6).map(str.strip).filter(bool), max_size=5
    ),
    line=st.sampled_from([b"\n", b"\r\n"]),
    cuts=st.lists(st.integers(0, 80), max_size=8),
    last=st.booleans(),
)
def test_events_are_the_same_however_the_stream_is_cut(
    data: list[str], line: bytes, cuts: list[int], last: bool
) -> None:
    whole = b": ping" + line + line
    whole += b"".join(b"data: " + one.encode() + line + line for one in data)
    if last:  # many servers leave out the last blank line
        whole = whole.removesuffix(line)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    assert read([whole[a:b] for a, b in pairwise(places)]) == data


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_http, "_LONGEST_EVENT", 100)
    with pytest.raises(Refused, match="more than 100 bytes"):
        read([b"data: " + b"x" * 60] * 2)
