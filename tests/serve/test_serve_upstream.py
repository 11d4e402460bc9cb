"""The proxy: what an upstream writes under our control is what the token machine would have let it write."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upstream_server import ASSISTANT, CLOSE, END, THINK, Fake, Mishap, Vocabulary, upstream

from tutelage.errors import UsageError
from tutelage.serve.source import Ended, Order, Refused, Said, Turn
from tutelage.serve.upstream import Upstream
from tutelage.think.machine import PHASES, Machine, build
from tutelage.think.policy import ThinkingPolicy
from tutelage.tokens import Markers

KINDS = ("vllm", "sglang", "llamacpp")
V = Vocabulary()
SPELLED = Vocabulary(markers=False)
ASK = f"<|user|>hi{END}{ASSISTANT}{THINK}"


def play(fake: Fake, order: Order, **how: Any) -> tuple[list[Said], list[Ended]]:
    """All that is said to `order`."""

    async def run() -> tuple[list[Said], list[Ended]]:
        source = Upstream(fake.url, **how)
        await source.connect()
        try:
            pieces = [piece async for piece in await source.open(order)]
        finally:
            await source.aclose()
        return [p for p in pieces if isinstance(p, Said)], [p for p in pieces if isinstance(p, Ended)]

    fake.bodies.clear()
    return asyncio.run(run())


def spoken(said: Sequence[Said], phase: str, forced: bool | None = None) -> str:
    return "".join(p.text for p in said if p.phase == phase and forced in (None, p.forced))


def says(thought: str, answer: str = "\n\nIt is 42.", vocabulary: Vocabulary = V) -> Any:
    """A model that thinks `thought` (in which "|" is an attempt to close, "$" one to end the text), over and
    over, then answers; masked, it says " so"."""
    marks = {"|": CLOSE, "$": END}
    tape = [i for letter in thought for i in vocabulary.encode(marks.get(letter, letter))]
    reply = [*vocabulary.encode(answer), vocabulary.id(END)]
    close, start = vocabulary.encode(CLOSE), vocabulary.encode(THINK)

    def model(ids: Sequence[int]) -> Sequence[int]:
        at = _last(ids, close)
        begun = _last(ids, start)
        if at > begun:
            return [reply[min(len(ids) - at, len(reply) - 1)]]
        return [tape[(len(ids) - begun) % len(tape)], *vocabulary.encode(" so")]

    return model


def _last(ids: Sequence[int], marker: Sequence[int]) -> int:
    """Behind the last `marker` in `ids`, 0 without."""
    found = [i for i in range(len(ids)) if list(ids[i : i + len(marker)]) == list(marker)]
    return found[-1] + len(marker) if found else 0


def chance(*words: object) -> float:
    digest = hashlib.blake2b(repr(words).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


def wild(seed: int, vocabulary: Vocabulary) -> Any:
    """A model whose every next id hangs on all before it; it closes, ends and begins markers now and then."""
    close, end = vocabulary.encode(CLOSE), vocabulary.id(END)
    others = [*vocabulary.encode(" so and.\n42ab"), vocabulary.id("Wait")]

    def model(ids: Sequence[int]) -> Sequence[int]:
        rest = sorted(others, key=lambda token: chance(seed, tuple(ids), token))
        begun = next((k for k in range(len(close) - 1, 0, -1) if list(ids[-k:]) == close[:k]), 0)
        if begun and chance(seed, tuple(ids)) < 0.8:
            return [close[begun], *rest, end]
        draw = chance(seed, len(ids), tuple(ids))
        first = [close[0]] if draw < 0.25 else [end] if draw < 0.32 else []
        return [*first, *rest, *close[:1], end]

    return model


def machine_says(machine: Machine, model: Any, prompt: Sequence[int], room: int) -> Any:
    """The same reply by the token machine, with a loop of its own."""
    state = machine.start(room, prompt[-1])
    fed = [*prompt, *state.opening]
    banned: tuple[int, ...] = ()
    while not state.finished:
        token = next(one for one in model(fed) if one not in banned)
        step = state.step(token)
        fed = fed[: len(fed) - step.back] + list(step.feed)
        banned = step.banned
    return state


@pytest.fixture(scope="module", params=KINDS)
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    with upstream(request.param, says("a|")) as server:
        yield server


@pytest.fixture(scope="module", params=KINDS)
def speller(request: pytest.FixtureRequest) -> Iterator[Fake]:
    with upstream(request.param, says("a|"), SPELLED) as server:
        yield server


policies = st.builds(
    lambda low, extra, **more: ThinkingPolicy(
        min_tokens=low, max_tokens=None if extra is None else low + extra, **more
    ),
    low=st.integers(0, 12),
    extra=st.none() | st.integers(3, 20),
    refuse_closes=st.integers(0, 2),
    wait=st.sampled_from([None, "Wait", ("Hmm", "Wait so")]),
    close_text=st.sampled_from(["", "Final Answer:"]),
    answer_reserve=st.integers(1, 6),
)


@settings(deadline=None, max_examples=20)
@given(policy=policies, seed=st.integers(0, 9999), newline=st.booleans(), few=st.booleans())
def test_proxy_and_token_machine_write_the_same_reply(
    fake: Fake, policy: ThinkingPolicy, seed: int, newline: bool, few: bool
) -> None:
    _same(fake, V, policy, seed, newline, few)


@settings(deadline=None, max_examples=20)
@given(policy=policies, seed=st.integers(0, 9999), newline=st.booleans())
def test_so_they_do_where_the_marker_is_spelled(
    speller: Fake, policy: ThinkingPolicy, seed: int, newline: bool
) -> None:
    _same(speller, SPELLED, policy, seed, newline, False)


def _same(fake: Fake, words: Vocabulary, policy: ThinkingPolicy, seed: int, newline: bool, few: bool) -> None:
    if newline and policy.max_tokens is not None:
        policy = replace(policy, close="newline", grace_tokens=5)
    if few and policy.wait is not None:
        policy = replace(policy, max_waits=1)
    fake.model = wild(seed, words)
    prompt, room = words.encode(ASK), 90
    markers = Markers((), tuple(words.encode(CLOSE)), frozenset({words.id(END)}))
    machine = build(policy, markers, words.encode, breaks_line=lambda token: b"\n" in words.bytes[token])
    state = machine_says(machine, fake.model, prompt, room)
    said, [ended] = play(fake, Order(tuple(prompt), policy, temperature=0.0, max_new_tokens=room))
    progress = state.progress
    forced = progress.forced.get("thinking", 0)
    assert ended.completion_tokens == progress.used == len(state.ids)
    assert (ended.sampled, ended.forced) == (progress.thinking - forced, forced)
    assert (ended.closed_by, ended.finish_reason) == (progress.closed_by, progress.finish_reason)
    assert (ended.waits, ended.refused) == (progress.waits, progress.refused)
    for phase in ("thinking", "answer"):
        for by_force in (False, True):
            mine = [
                token
                for token, where, how in zip(state.ids, state.phases, state.forced, strict=True)
                if PHASES[where] == phase and bool(how) == by_force
            ]
            tokens = [p.tokens for p in said if p.phase == phase and p.forced == by_force]
            assert sum(tokens) == len(mine)
            assert min(tokens, default=0) >= 0
            assert spoken(said, phase, by_force) == words.text(mine)


def test_a_chat_is_rendered_by_the_upstream_and_its_open_marker_is_seen() -> None:
    order = Order((Turn("user", "hi"),), ThinkingPolicy(max_tokens=3), temperature=0.0)
    for kind in ("vllm", "llamacpp"):
        for prefill in (True, False):
            with upstream(kind, says("ab"), prefill=prefill) as fake:
                said, [ended] = play(fake, order)
            assert (spoken(said, "thinking"), spoken(said, "answer")) == (
                "aba" if not prefill else "bab",
                "\n\nIt is 42.",
            )
            # One token of a marker that we had to open, three thoughts, the close, nine of answer, the end.
            assert ended.completion_tokens == (not prefill) + 3 + 1 + 8 + 1
            assert ended.closed_by == "budget"


@pytest.mark.parametrize("prefill", [True, False])
def test_no_thinking_at_all_is_an_empty_thought(prefill: bool) -> None:
    order = Order((Turn("user", "hi"),), ThinkingPolicy(max_tokens=0), temperature=0.0, seed=2**64 + 5)
    with upstream("vllm", says("ab"), prefill=prefill) as fake:
        said, [ended] = play(fake, order)
    assert (spoken(said, "thinking"), spoken(said, "answer")) == ("", "\n\nIt is 42.")
    assert (ended.closed_by, ended.sampled, ended.forced, ended.reprefilled) == ("budget", 0, 0, 0)
    assert fake.bodies[2]["seed"] == 5
    assert V.text(fake.bodies[2]["prompt"]).endswith("<think>\n</think>" if prefill else "<think></think>")


def test_sglang_needs_a_tokenizer_for_chats_and_says_so() -> None:
    from transformers import PreTrainedTokenizerFast

    from tutelage.lab.tokenizer import build_tokenizer

    order = Order((Turn("user", "hi"),), temperature=0.0)
    with upstream("sglang", says("a|")) as fake:
        with pytest.raises(Refused, match="--tokenizer") as caught:
            play(fake, order)
        assert caught.value.status == 501
        local = build_tokenizer()
        assert isinstance(local, PreTrainedTokenizerFast)
        _, [ended] = play(fake, order, tokenizer=local)
    assert ended.prompt_tokens == len(fake.bodies[2]["prompt"]) - 1 > 2


def test_a_template_that_switches_thinking_off_leaves_the_answer_alone_and_refuses_controls() -> None:
    with upstream("vllm", lambda ids: V.encode("ok") if ids[-1] != ord("o") else [V.id(END)]) as fake:
        fake.prefill, fake.ends_closed = False, True
        said, [ended] = play(fake, Order((Turn("user", "hi"),)))
        assert (spoken(said, "answer"), ended.closed_by) == ("o", "none")
        with pytest.raises(UsageError, match="thinking switched off"):
            play(fake, Order((Turn("user", "hi"),), ThinkingPolicy(min_tokens=4)))


def test_the_stop_strings_of_the_client_act_on_the_answer_alone(fake: Fake) -> None:
    fake.model = says("It is ab|", "\n\nIt is 42. No.")
    order = Order(tuple(V.encode(ASK)), temperature=0.0, stop=(" is", "42. N"))
    said, [ended] = play(fake, order)
    assert (spoken(said, "thinking"), spoken(said, "answer")) == ("It is ab", "\n\nIt")
    assert ended.finish_reason == "stop"
    said, [ended] = play(fake, replace(order, stop=("42. N",)))
    assert spoken(said, "answer") == "\n\nIt is "
    said, _ = play(fake, replace(order, stop=("42. Nothing",)))
    assert spoken(said, "answer") == "\n\nIt is 42. No."  # what was held back comes when nothing follows


def test_a_marker_inside_a_token_is_found_and_what_stands_before_it_is_kept(speller: Fake) -> None:
    """The model writes "?<" as one token and completes "</think>" from there."""
    tape = [*SPELLED.encode("ab?<"), *SPELLED.encode("/think>")]
    start = SPELLED.encode(THINK)

    def model(ids: Sequence[int]) -> Sequence[int]:
        if SPELLED.text(ids).rpartition(THINK)[2].count(CLOSE):
            return [SPELLED.id(END)]
        return [tape[(len(ids) - _last(ids, start)) % len(tape)]]

    speller.model = model
    policy = ThinkingPolicy(refuse_closes=1, wait=" and so")
    said, [ended] = play(speller, Order(tuple(SPELLED.encode(ASK)), policy, temperature=0.0))
    assert spoken(said, "thinking").startswith("ab? and so")
    assert speller.bodies[3]["prompt"] == SPELLED.encode(f"{ASK}ab? and so")
    assert CLOSE not in spoken(said, "thinking") and (ended.refused, ended.waits) == (1, 1)


def test_characters_of_several_tokens_are_neither_halved_nor_lost(fake: Fake) -> None:
    fake.model = says("é€x|", "ü 42")
    policy = ThinkingPolicy(refuse_closes=1, wait="Hmm")
    said, [ended] = play(fake, Order(tuple(V.encode(ASK)), policy, temperature=0.0))
    assert spoken(said, "thinking").startswith("é€xHmm")
    assert spoken(said, "answer") == "ü 42"
    assert fake.bodies[3]["prompt"] == V.encode(f"{ASK}é€xHmm")
    assert ended.sampled + ended.forced == len(V.encode(spoken(said, "thinking")))


def test_a_hidden_marker_of_llama_cpp_is_found_by_its_id() -> None:
    with upstream("llamacpp", says("ab|"), hides_markers=True) as fake:
        said, [ended] = play(fake, Order(tuple(V.encode(ASK)), temperature=0.0))
    assert (spoken(said, "thinking"), spoken(said, "answer"), ended.closed_by) == (
        "ab",
        "\n\nIt is 42.",
        "model",
    )


def test_what_the_upstream_computes_again_is_told(fake: Fake) -> None:
    fake.model = says("ab|")
    prompt = tuple(V.encode(ASK))
    policy = ThinkingPolicy(refuse_closes=1, wait="Wait")
    _, [ended] = play(fake, Order(prompt, policy, temperature=0.0))
    sent = [len(body["prompt"]) for body in fake.bodies[2:]]
    # Of each continuation all but what is forced since the last one was there before.
    assert ended.reprefilled == sum(sent[1:]) - 1
    assert len(sent) == 3
    play(fake, Order(prompt, policy, temperature=0.0))
    _, [again] = play(fake, Order(prompt, policy, temperature=0.0))
    assert (ended.cached_tokens, again.cached_tokens) == (ended.cached_tokens, len(prompt))


def test_choices_differ_by_their_seeds_and_each_ends_once(fake: Fake) -> None:
    fake.model = says("ab|")
    order = Order(tuple(V.encode(ASK)), ThinkingPolicy(max_tokens=5), n=3, seed=11)
    said, ended = play(fake, order)
    assert sorted(one.index for one in ended) == [0, 1, 2]
    assert {p.index for p in said} == {0, 1, 2}
    seeds = [body["seed"] for body in fake.bodies[2:]]
    assert len(set(seeds)) == len(seeds)
    assert order.choice_seed(0) in seeds


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"policy": ThinkingPolicy(max_tokens=9, close="rank:4", grace_tokens=3)}, "thinking_close"),
        ({"logprobs": 2}, "logprobs"),
    ],
)
def test_what_a_proxy_cannot_do_is_refused_by_name(fake: Fake, change: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        play(fake, replace(Order(tuple(V.encode(ASK))), **change))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(fake.bodies) == 2  # the probe alone


def test_a_prompt_that_fills_the_context_is_refused_with_the_right_code(fake: Fake) -> None:
    for length in (fake.context, fake.context - 20):
        with pytest.raises(Refused) as caught:
            play(fake, Order(tuple([97] * length)))
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_a_mask_that_is_not_honoured_is_an_error(fake: Fake) -> None:
    fake.model, fake.ignores_mask = says("a|"), True
    try:
        with pytest.raises(Refused, match="although it was masked"):
            play(fake, Order(tuple(V.encode(ASK)), ThinkingPolicy(min_tokens=9)))
    finally:
        fake.ignores_mask = False


@pytest.mark.parametrize(
    ("mishap", "status", "words"),
    [
        (Mishap(429, {"Retry-After": "7"}, {"error": {"message": "slow\ndown"}}), 429, "busy: slow down"),
        (Mishap(503, {}, {"detail": "loading"}), 503, "loading"),
        (Mishap(401), 502, "--upstream-key-env"),
        (Mishap(400, {}, {"object": "error", "message": "too long"}), 400, "too long"),
        (Mishap(404, {}, {"error": "no model"}), 502, "no model"),
        (Mishap(500, {}, "boom"), 502, "status 500: boom"),
    ],
)
def test_errors_of_the_upstream_become_ours_before_the_first_piece(
    fake: Fake, mishap: Mishap, status: int, words: str
) -> None:
    fake.mishaps = {2: mishap}
    try:
        with pytest.raises(Refused, match=words) as caught:
            play(fake, Order(tuple(V.encode(ASK))), key="sk-secret")
    finally:
        fake.mishaps = {}
    assert caught.value.status == status
    assert caught.value.retry_after == {429: 7, 503: 1}.get(status)
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("mishap", [Mishap(after=2), Mishap(after=2, error={"message": "out of memory"})])
def test_a_stream_that_breaks_off_is_an_error_and_no_reply(fake: Fake, mishap: Mishap) -> None:
    fake.model, fake.mishaps = says("abc"), {2: mishap}
    try:
        with pytest.raises(Refused, match=r"broke off|out of memory") as caught:
            play(fake, Order(tuple(V.encode(ASK)), ThinkingPolicy(max_tokens=50)))
    finally:
        fake.mishaps = {}
    assert caught.value.status == 502


@pytest.mark.parametrize("pieces", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_leaving_a_reply_hangs_up_on_the_upstream(kind: str, pieces: int) -> None:
    async def run(fake: Fake) -> None:
        source = Upstream(fake.url)
        await source.connect()
        found = await source.open(Order(tuple(V.encode(ASK)), ThinkingPolicy(max_tokens=400), n=2))
        for _ in range(pieces):
            await anext(found)
        while len(fake.bodies) < 4:  # the probe's two, and one for each choice
            await asyncio.sleep(0.005)
        assert source.gauges()["rows"] == 2
        await found.aclose()  # type: ignore[attr-defined]
        assert source.gauges()["rows"] == 0
        while len(fake.aborted) < 2:
            await asyncio.sleep(0.005)
        await source.aclose()

    with upstream(kind, says("abc"), pause=0.005) as fake:
        asyncio.run(asyncio.wait_for(run(fake), 20))
        assert sorted(fake.aborted) == [2, 3]


def test_servers_that_cannot_be_continued_are_refused_by_name() -> None:
    async def connect(url: str, **how: Any) -> None:
        source = Upstream(url, **how)
        try:
            await source.connect()
        finally:
            await source.aclose()

    with upstream("vllm", says("a|")) as fake:
        fake.kind = "openai"
        with pytest.raises(UsageError, match="'openai'"):
            asyncio.run(connect(fake.url))
        asyncio.run(connect(fake.url + "/v1/", kind="vllm"))
        fake.kind, fake.ignores_ids = "vllm", True
        with pytest.raises(Refused, match="gives no token ids"):
            asyncio.run(connect(fake.url))
        fake.ignores_ids = False
        with pytest.raises(UsageError, match="name one of its models: m"):
            asyncio.run(connect(fake.url, model="other"))
        fake.key = "sk-1"
        with pytest.raises(Refused, match="--upstream-key-env"):
            asyncio.run(connect(fake.url))
        asyncio.run(connect(fake.url, key="sk-1"))
    with pytest.raises(Refused, match="cannot connect") as caught:
        asyncio.run(connect(fake.url))
    assert caught.value.status == 503


def test_tokens_and_text_go_through_to_the_upstream(fake: Fake) -> None:
    async def run() -> None:
        source = Upstream(fake.url)
        await source.connect()
        assert await source.tokenize("Wait so") == tuple(V.encode("Wait so"))
        assert await source.detokenize(tuple(V.encode("Wait so"))) == "Wait so"
        assert (source.model, source.context) == ("m", fake.context)
        await source.aclose()

    asyncio.run(run())
