"""openai-python and curl against a real server: what they ask comes back in the shapes that they read."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import openai
import pytest
from served import CHAT, Server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("server")]

QUESTION = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60)


def thinks(budget: int, **more: Any) -> dict[str, Any]:
    """Fields for a thought of exactly `budget` tokens: what a random model would close is masked."""
    return {"thinking_token_budget": budget, "min_thinking_tokens": max(budget, 0), **more}


def letter(answer: str, thought: str = "") -> str:
    """A letter of an answer that can be its stop string; one that is in the thought as well, if there is."""
    usable = [c for c in answer[1:] if c.isprintable() and c not in f"{answer[0]}\N{REPLACEMENT CHARACTER}"]
    return next((c for c in usable if c in thought), usable[-1])


def ask(client: openai.OpenAI, server: Server, *, budget: int = 16, **fields: Any) -> Any:
    fields = {"temperature": 0, "max_tokens": 64, "extra_body": thinks(budget), **fields}
    return client.chat.completions.create(model=server.model, messages=QUESTION, **fields)


def test_create_gives_thinking_answer_and_exact_counts(client: openai.OpenAI, server: Server) -> None:
    reply = ask(client, server)
    (choice,) = reply.choices
    assert reply.object == "chat.completion" and reply.model == server.model
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.message.reasoning_content and choice.message.reasoning == choice.message.reasoning_content
    assert choice.finish_reason in ("stop", "length")
    usage, thinking = reply.usage, choice.thinking
    assert thinking == reply.thinking
    assert thinking["budget"] == 16 and thinking["closed_by"] == "budget"
    assert thinking["used"] == thinking["sampled"] + thinking["forced"] == 16
    assert usage.completion_tokens_details.reasoning_tokens == 16 < usage.completion_tokens <= 64
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("budget", [0, 1, 40])
def test_the_budget_of_extra_body_is_kept(client: openai.OpenAI, server: Server, budget: int) -> None:
    reply = ask(client, server, budget=budget, max_tokens=128)
    assert reply.thinking["used"] == budget
    assert bool(reply.choices[0].message.reasoning_content) == (budget > 0)


def test_effort_words_order_the_budgets(client: openai.OpenAI, server: Server) -> None:
    def budget(word: str) -> int:
        reply = ask(client, server, reasoning_effort=word, extra_body={})
        assert reply.thinking["used"] <= reply.thinking["budget"]
        return int(reply.thinking["budget"])

    assert 0 == budget("none") < budget("minimal") <= budget("low") < budget("medium")


def test_a_minimum_and_a_wait_string_reach_the_reply(client: openai.OpenAI, server: Server) -> None:
    body = thinks(40, min_thinking_tokens=40, thinking_wait="\nWait", thinking_refuse_closes=1)
    reply = ask(client, server, extra_body=body, max_tokens=128)
    assert reply.thinking["min"] == 40 and reply.thinking["used"] == 40
    assert reply.choices[0].message.reasoning_content.count("\nWait") >= reply.thinking["waits"]


def test_the_suffix_of_a_model_name_is_a_budget(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(
        model=f"{server.model}@think=12", messages=QUESTION, temperature=0, max_tokens=64
    )
    assert reply.thinking["budget"] == 12 and reply.thinking["used"] <= 12


def test_a_stream_says_the_same_as_create(client: openai.OpenAI, server: Server) -> None:
    whole = ask(client, server)
    chunks = list(ask(client, server, stream=True, stream_options={"include_usage": True}))
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    *told, last = chunks
    assert last.choices == [] and last.usage.to_dict() == whole.usage.to_dict()
    assert all(chunk.usage is None for chunk in told)
    deltas = [chunk.choices[0].delta for chunk in told]
    thought = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    # White space at the end of a thought belongs to the marker, which a stream learns too late.
    assert thought.rstrip() == whole.choices[0].message.reasoning_content
    ends = [chunk.choices[0] for chunk in told if chunk.choices[0].finish_reason]
    assert [end.finish_reason for end in ends] == [whole.choices[0].finish_reason]
    assert ends[0].thinking == whole.thinking


def test_forced_text_is_marked_in_a_stream(client: openai.OpenAI, server: Server) -> None:
    body = thinks(8, thinking_close_text="Final Answer:")
    chunks = list(ask(client, server, stream=True, extra_body=body))
    forced = [c.choices[0] for c in chunks if c.choices and getattr(c.choices[0], "forced", False)]
    assert "Final Answer:" in "".join(
        (c.delta.content or "") + (getattr(c.delta, "reasoning_content", None) or "") for c in forced
    )


def test_the_stream_helper_accumulates(client: openai.OpenAI, server: Server) -> None:
    """It takes "length" for an error, so the reply is stopped by a string."""
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 64, "extra_body": thinks(16)}
    stop = letter(ask(client, server).choices[0].message.content)
    whole = ask(client, server, stop=[stop])
    with client.chat.completions.stream(
        model=server.model, messages=QUESTION, stop=[stop], stream_options={"include_usage": True}, **fields
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"
    assert final.usage.to_dict() == whole.usage.to_dict()


def test_the_async_client_gets_what_each_asked(server: Server) -> None:
    async def both() -> list[tuple[int, Any, str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:

            async def one(budget: int) -> tuple[int, Any, str]:
                fields = {"model": server.model, "messages": QUESTION, "temperature": 0, "max_tokens": 64}
                whole = await client.chat.completions.create(**fields, extra_body=thinks(budget))
                stream = await client.chat.completions.create(
                    **fields, extra_body=thinks(budget), stream=True
                )
                text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
                return budget, whole, text

            return await asyncio.gather(*(one(budget) for budget in range(12)))

    for budget, whole, text in asyncio.run(both()):
        assert whole.thinking["used"] == budget
        assert whole.choices[0].message.content == text


def test_n_choices_are_seeded_and_differ(client: openai.OpenAI, server: Server) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 7}
    first, again = (ask(client, server, n=3, **fields) for _ in range(2))
    alone, other = ask(client, server, n=1, **fields), ask(client, server, n=1, temperature=1.0, seed=8)
    texts = [(c.message.reasoning_content, c.message.content) for c in first.choices]
    assert [c.index for c in first.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts == [(c.message.reasoning_content, c.message.content) for c in again.choices]
    assert texts[0] == (alone.choices[0].message.reasoning_content, alone.choices[0].message.content)
    assert texts[0] != (other.choices[0].message.reasoning_content, other.choices[0].message.content)
    assert first.usage.prompt_tokens == alone.usage.prompt_tokens
    assert sum(c.thinking["used"] for c in first.choices) == 48


def test_stop_acts_on_the_answer_only(client: openai.OpenAI, server: Server) -> None:
    whole = ask(client, server, max_tokens=128)
    thought, answer = whole.choices[0].message.reasoning_content, whole.choices[0].message.content
    stop = letter(answer, thought)
    cut = ask(client, server, max_tokens=128, stop=[stop])
    assert cut.choices[0].message.reasoning_content == thought
    assert cut.choices[0].message.content == answer[: answer.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < whole.usage.completion_tokens


def test_logprobs_cover_the_answer(client: openai.OpenAI, server: Server) -> None:
    reply = ask(client, server, logprobs=True, top_logprobs=3)
    told = reply.choices[0].logprobs.content
    assert told
    for token in told:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        ranked = [other.logprob for other in token.top_logprobs]
        assert ranked == sorted(ranked, reverse=True) and ranked[0] >= token.logprob - 1e-6
    streamed = list(ask(client, server, logprobs=True, top_logprobs=3, stream=True))
    again = [
        t for c in streamed if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content
    ]
    assert [t.to_dict() for t in again] == [t.to_dict() for t in told]


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert unknown.value.code == "model_not_found" and "nobody" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model=server.model, messages=[{"role": "user", "content": "x" * 10_000}]
        )
    assert long.value.code == "context_length_exceeded" and long.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as negative:
        ask(client, server, budget=-5, stream=True)
    assert negative.value.param == "thinking_token_budget"
    with pytest.raises(openai.BadRequestError) as twice:
        ask(client, server, extra_body=thinks(64, min_thinking_tokens=128))
    assert "min_thinking_tokens" in twice.value.message


def test_models_are_listed_and_found(client: openai.OpenAI, server: Server) -> None:
    listed = client.models.list().data
    assert listed[0].id == server.model
    for model in listed:
        assert client.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_plain_completions(client: openai.OpenAI, server: Server) -> None:
    whole = client.completions.create(model=server.model, prompt="abc", max_tokens=12, temperature=0)
    pieces = client.completions.create(
        model=server.model, prompt="abc", max_tokens=12, temperature=0, stream=True
    )
    assert whole.object == "text_completion" and 0 < whole.usage.completion_tokens <= 12
    assert "".join(c.choices[0].text for c in pieces if c.choices) == whole.choices[0].text
    both = client.completions.create(model=server.model, prompt=["abc", "xyz"], max_tokens=12, temperature=0)
    assert [c.index for c in both.choices] == [0, 1] and both.choices[0].text == whole.choices[0].text


def test_a_reply_goes_back_as_history_without_its_thinking(client: openai.OpenAI, server: Server) -> None:
    """openai-python hands the message back with every field that it got, `reasoning_content` too."""
    message = ask(client, server).choices[0].message
    assert message.reasoning_content
    again = [*QUESTION, message.to_dict(), {"role": "user", "content": "And 3+3?"}]
    bare = [*QUESTION, {"role": "assistant", "content": message.content}, again[-1]]
    with_thought, without = (
        client.chat.completions.create(
            model=server.model, messages=turns, temperature=0, max_tokens=64, extra_body=thinks(8)
        )
        for turns in (again, bare)
    )
    assert with_thought.usage.to_dict() == without.usage.to_dict()
    assert with_thought.choices[0].message.content == without.choices[0].message.content


def test_responses_and_their_stream(client: openai.OpenAI, server: Server) -> None:
    fields: dict[str, Any] = {"model": server.model, "input": "2+2?", "temperature": 0}
    fields |= {"max_output_tokens": 64, "extra_body": thinks(16)}
    whole = client.responses.create(**fields)
    reasoning, message = whole.output
    assert reasoning.type == "reasoning" and reasoning.content[0].text
    assert message.type == "message" and message.content[0].text == whole.output_text != ""
    assert whole.usage.output_tokens_details.reasoning_tokens == 16 == whole.thinking["used"]
    events = list(client.responses.create(**fields, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert text == whole.output_text and thought.rstrip() == reasoning.content[0].text
    last = events[-1].response
    assert last.output_text == text and last.usage.to_dict() == whole.usage.to_dict()
    with client.responses.stream(**fields) as stream:
        told = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert told[-1] == text


def curl(server: Server, path: str, fields: Any, *options: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    command = [program, "-sS", "-N", "--max-time", "60", "-H", "Content-Type: application/json"]
    command += [*options, "--data-binary", "@-", server.url + path]
    done = subprocess.run(command, input=json.dumps(fields).encode(), capture_output=True, check=True)
    return done.stdout.decode()


def test_curl_reads_a_reply_and_a_stream(server: Server) -> None:
    fields = {"model": server.model, "messages": QUESTION, "temperature": 0, "max_tokens": 48}
    fields |= thinks(16)
    whole = json.loads(curl(server, CHAT, fields))
    lines = curl(server, CHAT, fields | {"stream": True}).splitlines()
    told = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert told[-1] == "[DONE]" and all(not x or x[:5] in ("data:", ": pin") for x in lines)
    chunks = [json.loads(each) for each in told[:-1]]
    content = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert content == whole["choices"][0]["message"]["content"]


def test_curl_shows_the_status_of_an_error(server: Server) -> None:
    fields = {"model": server.model, "messages": QUESTION, "thinking_token_budget": "many"}
    body, _, status = curl(server, CHAT, fields, "-w", "\n%{http_code}").rpartition("\n")
    assert status == "400" and json.loads(body)["error"]["param"] == "thinking_token_budget"
