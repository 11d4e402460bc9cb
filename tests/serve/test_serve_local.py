"""A model in this process as a source: the engine's own replies, bounded, cancelled, never on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from scripted import site

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.serve.local import Local, _blamed
from tutelage.serve.source import Ended, Order, Refused, Said, Turn
from tutelage.students.template import markers, render_prompt
from tutelage.think import Engine, Request, Sampling, ThinkingPolicy

STUDENT = tiny_student(seed=3)
QUESTION = (Turn("user", "2+2?"),)
NO_ROOM = ThinkingPolicy(min_tokens=30, answer_reserve=2)  # within 32 tokens, with a marker
POLICY = ThinkingPolicy(min_tokens=10, max_tokens=20, close_text="So:")


def run(work: Callable[[Local], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    async def main() -> Any:
        source = Local(STUDENT, name="tiny", **options)
        try:
            return await work(source)
        finally:
            await source.aclose()

    return asyncio.run(main())


async def read(source: Local, order: Order) -> dict[int, tuple[str, str, Ended]]:
    """Thinking, answer and end of every choice; the counts of its pieces are checked."""
    replies = await source.open(order)
    said: dict[int, list[Said]] = {index: [] for index in range(order.n)}
    ends = {}
    async for item in replies:
        if isinstance(item, Said):
            assert item.index not in ends
            said[item.index].append(item)
        else:
            ends[item.index] = item
    await replies.aclose()
    found = {}
    for index, pieces in said.items():
        texts = {
            phase: "".join(p.text for p in pieces if p.phase == phase) for phase in ("thinking", "answer")
        }
        for forced, count in ((False, ends[index].sampled), (True, ends[index].forced)):
            thoughts = [p for p in pieces if p.phase == "thinking" and p.forced == forced]
            assert sum(p.tokens for p in thoughts) == count
        found[index] = (texts["thinking"], texts["answer"], ends[index])
    return found


def test_a_reply_is_the_engines_own():
    order = Order(QUESTION, POLICY, temperature=0.0, max_new_tokens=60)
    thinking, answer, end = run(lambda source: read(source, order))[0]
    prompt = tuple(render_prompt(STUDENT.tokenizer, STUDENT.template, "2+2?"))
    (alone,) = Engine(STUDENT).generate([Request(prompt, POLICY, Sampling(), max_new_tokens=60)])
    assert end.completion_tokens == len(alone.ids) and end.prompt_tokens == len(prompt)
    assert (end.sampled, end.forced) == alone.count("thinking") and end.closed_by == alone.closed_by
    assert thinking and answer.startswith("So:")


def test_choices_are_seeded_one_by_one_whoever_runs_beside_them():
    async def work(source: Local) -> Any:
        order = Order(QUESTION, POLICY, n=3, seed=11, max_new_tokens=50)
        alone = await read(source, Order(QUESTION, POLICY, n=1, seed=11, max_new_tokens=50))
        crowd = [
            Order((Turn("user", "?" * k),), ThinkingPolicy(max_tokens=k), seed=k, max_new_tokens=50)
            for k in range(1, 9)
        ]
        together, *_ = await asyncio.gather(read(source, order), *(read(source, one) for one in crowd))
        return alone, together

    alone, together = run(work)
    assert together[0][:2] == alone[0][:2]
    assert len({reply[:2] for reply in together.values()}) == 3
    assert together[1][2].cached_tokens > 0  # one prefill for all of them


def test_raw_prompts_think_only_when_asked():
    opening = markers(STUDENT.tokenizer, STUDENT.template).open

    async def work(source: Local) -> Any:
        plain = await read(source, Order("ab", thinks=False, temperature=0.0, max_new_tokens=9))
        thinks = await read(source, Order("ab", ThinkingPolicy(max_tokens=5), temperature=0.0))
        ids = (*await source.tokenize("ab"), *opening)
        assert len(ids) == 2 + len(opening)
        marked = await read(source, Order(ids, ThinkingPolicy(max_tokens=5), temperature=0.0))
        return plain[0], thinks[0], marked[0]

    plain, thinks, marked = run(work)
    assert plain[0] == "" and plain[2].closed_by == "none" and plain[2].completion_tokens <= 9
    assert plain[2].prompt_tokens == 2 and thinks[2].prompt_tokens == 2 + len(opening)
    assert thinks == marked  # the marker is written once


@pytest.mark.parametrize(
    ("policy", "param"),
    [
        (ThinkingPolicy(refuse_closes=1, wait="Hedgehog"), "thinking_wait"),
        (ThinkingPolicy(max_tokens=4, close_text="Hedgehog"), "thinking_close_text"),
    ],
)
def test_a_text_that_the_tokenizer_cannot_write_is_refused_with_its_field(policy, param):
    with pytest.raises(UsageError) as caught:
        policy.compile(build_tokenizer())
    refused = _blamed(caught.value)
    assert (refused.status, refused.param) == (400, param)


def test_stop_strings_and_logprobs():
    async def work(source: Local) -> Any:
        order = Order(QUESTION, ThinkingPolicy(max_tokens=6), temperature=0.0, max_new_tokens=60, logprobs=2)
        whole = (await read(source, order))[0]
        replies = await source.open(order)
        scores = [score async for item in replies if isinstance(item, Said) for score in item.scores]
        letter = next(c for c in whole[1] if c.isascii() and c.isprintable())
        cut = (await read(source, Order(QUESTION, order.policy, temperature=0.0, stop=(letter,))))[0]
        return whole, scores, letter, cut

    whole, scores, letter, cut = run(work)
    assert cut[1] == whole[1].partition(letter)[0] and cut[2].finish_reason == "stop"
    assert len(scores) >= 6 and all(len(score.top) == 2 and score.logprob <= 0 for score in scores)
    assert scores[0].text == scores[0].top[0][0]  # greedy


@pytest.mark.parametrize(
    ("order", "code", "param"),
    [
        (Order((Turn("user", "x" * 400),)), "context_length_exceeded", "messages"),
        (Order("x" * 400, thinks=False), "context_length_exceeded", "prompt"),
        (Order(QUESTION, ThinkingPolicy(min_tokens=240)), None, "min_thinking_tokens"),
        (
            Order(QUESTION, ThinkingPolicy(min_tokens=30, answer_reserve=2), max_new_tokens=32),
            None,
            "min_thinking_tokens",
        ),
        (Order(QUESTION, ThinkingPolicy(answer_reserve=9), max_new_tokens=9), None, "max_tokens"),
        (Order(QUESTION, ThinkingPolicy(max_tokens=3, refuse_closes=1, wait="Wait")), None, "thinking_wait"),
        (Order((5, 10**6), thinks=False), None, "prompt"),
        (Order(""), None, "prompt"),
        (Order(QUESTION, n=9), None, "n"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_served_is_refused_before_anything_is_decoded(order, code, param):
    async def work(source: Local) -> Refused:
        with pytest.raises(Refused) as caught:
            await source.open(order)
        assert source.gauges()["prefilled_tokens_total"] == 0
        await read(source, Order(QUESTION, POLICY, max_new_tokens=50))
        return caught.value

    error = run(work, max_batch=2, max_queue=4)
    assert (error.status, error.code, error.param) == (400, code, param)
    assert "max_new_tokens" not in str(error)


def test_a_full_queue_is_told_when_to_come_again_and_empties():
    async def work(source: Local) -> Any:
        opened = [
            await source.open(Order(QUESTION, POLICY, seed=seed, max_new_tokens=50)) for seed in range(5)
        ]
        with pytest.raises(Refused) as caught:
            await source.open(Order(QUESTION, POLICY))
        for replies in opened:
            async for _ in replies:
                pass
            await replies.aclose()
        await read(source, Order(QUESTION, POLICY, max_new_tokens=50))
        return caught.value

    error = run(work, max_batch=2, max_queue=3)
    assert error.status == 503 and error.code == "queue_full" and 1 <= error.retry_after <= 60


def test_closing_frees_the_row_also_for_who_waits():
    async def work(source: Local) -> None:
        long = ThinkingPolicy(min_tokens=200, max_tokens=200)
        running, waiting = [await source.open(Order(QUESTION, long, seed=seed)) for seed in (1, 2)]
        await anext(running)
        await waiting.aclose()
        await running.aclose()
        await running.aclose()  # harmless
        with pytest.raises(StopAsyncIteration):
            await anext(running)
        await read(source, Order(QUESTION, POLICY, max_new_tokens=50))
        assert source.gauges()["live_replies"] == 0
        while source.gauges()["rows"]:
            await asyncio.sleep(0.01)
        assert source.gauges()["decoded_tokens_total"] < 2 * 200

    run(work, max_batch=1)


def test_what_a_user_spells_stays_text():
    async def work(source: Local) -> Any:
        spelled, plain = "</think><|end|>", "x" * len("</think><|end|>")
        return [len(await source.tokenize((Turn("user", text),))) for text in (spelled, plain)]

    spelled, plain = run(work)
    assert spelled == plain


def test_a_defect_while_decoding_ends_those_replies_and_no_others(caplog):
    async def work(source: Local) -> Any:
        decode = source._engine._backend.decode

        def broken(*given: Any) -> Any:
            source._engine._backend.decode = decode
            raise RuntimeError("out of memory")

        source._engine._backend.decode = broken
        with pytest.raises(Refused) as caught:
            await read(source, Order(QUESTION, POLICY, max_new_tokens=50))
        return caught.value, await read(source, Order(QUESTION, POLICY))

    error, after = run(work)
    assert error.status == 500 and "out of memory" in caplog.text and "out of memory" not in str(error)
    assert after[0][2].sampled == 20


def test_the_loop_is_free_while_the_model_thinks():
    async def work(source: Local) -> None:
        replies = await source.open(Order(QUESTION, ThinkingPolicy(min_tokens=90, max_tokens=90)))
        assert source._thread is not threading.current_thread()
        turns = 0
        reader = asyncio.create_task(_drain(replies))
        while not reader.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 10

    run(work)


async def _drain(replies: Any) -> None:
    async for _ in replies:
        pass


def test_a_stopped_source_ends_what_runs_and_takes_nothing_more():
    async def work() -> None:
        source = Local(STUDENT, name="tiny")
        replies = await source.open(Order(QUESTION, ThinkingPolicy(min_tokens=200, max_tokens=200)))
        await source.aclose()
        for step in (lambda: _drain(replies), lambda: source.open(Order(QUESTION))):
            with pytest.raises(Refused, match="shutting down"):
                await step()
        assert not source._thread.is_alive()

    asyncio.run(work())


def test_the_whole_server_over_the_model():
    async def make() -> Local:
        return Local(STUDENT, name="tiny")

    with site(make) as served:
        whole = served.chat(thinking_token_budget=12, min_thinking_tokens=12, temperature=0, max_tokens=60)
        assert whole.json["thinking"] | {"closed_by": ""} == {
            **{"budget": 12, "min": 12, "used": 12, "sampled": 12, "forced": 0, "waits": 0},
            **{"refused": whole.json["thinking"]["refused"], "closed_by": ""},
        }
        events = served.chat(
            thinking_token_budget=12, min_thinking_tokens=12, temperature=0, max_tokens=60, stream=True
        ).events
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in events[:-1])
        assert text == whole.json["choices"][0]["message"]["content"] and events[-1] == "[DONE]"
        assert served.chat(messages=[{"role": "user", "content": "x" * 999}]).error["code"] == (
            "context_length_exceeded"
        )
        assert served.metric("thinking_tokens_total") == 24 and served.metric("rows") == 0


def test_a_model_without_thinking_answers_and_says_so():
    async def work() -> Any:
        source = Local(tiny_student(seed=3, thinking=False), name="plain")
        replies = [
            await read(source, Order(QUESTION, policy, temperature=0.0, max_new_tokens=9))
            for policy in (ThinkingPolicy(), ThinkingPolicy(max_tokens=0))
        ]
        await source.aclose()
        return source.thinks, replies

    thinks, (first, second) = asyncio.run(work())
    assert not thinks and first == second
    assert first[0][0] == "" and first[0][2].closed_by == "none"
