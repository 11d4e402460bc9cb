"""`/v1/responses`: items, their events in order, and what is refused."""

from __future__ import annotations

import pytest
from scripted import Scripted, site, thoughts

from tutelage.serve.source import Ended, Said, Turn


@pytest.fixture(scope="module")
def source():
    return Scripted()


@pytest.fixture(scope="module")
def served(source):
    with site(source) as running:
        yield running


def test_a_response_has_thinking_and_message_as_items(served, source):
    found = served.post(
        "/v1/responses",
        input="3+4?",
        instructions="Be brief.",
        reasoning={"effort": "low"},
        max_output_tokens=99,
    ).json
    order = source.orders[-1]
    assert order.prompt == (Turn("system", "Be brief."), Turn("user", "3+4?"))
    assert order.policy.max_tokens == 512 and order.max_new_tokens == 99
    reasoning, message = found["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "I think Wait"}]
    assert message["content"][0]["text"] == "seven 0" and found["status"] == "completed"
    assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert found["usage"]["total_tokens"] == 18 and found["thinking"]["used"] == 3


def test_a_stream_tells_every_item_from_start_to_end(served):
    answer = served.post("/v1/responses", input="3+4?", stream=True)
    events = answer.events
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    names = [line[7:] for line in answer.raw.decode().split("\n") if line.startswith("event: ")]
    assert names == [one["type"] for one in events]
    short = [name.removeprefix("response.") for name in names]
    item = ["output_item.added", "content_part.added"]
    end = ["content_part.done", "output_item.done"]
    assert short == [
        *("created", "in_progress", *item, "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", *end, *item, "output_text.delta", "output_text.done", *end, "completed"),
    ]
    last = events[-1]["response"]
    done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    assert last["output"] == done
    assert [one.get("forced") for one in events if one["type"].endswith("delta")] == [None, True, None]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_cut_in_its_thinking_is_incomplete_and_still_has_a_message(served, source, stream):
    source.script = lambda order: [Said(0, "hm", "thinking", tokens=1), Ended(0, "length", "room", 1, 2, 1)]
    answer = served.post("/v1/responses", input="?", stream=stream)
    source.script = thoughts
    found = answer.events[-1]["response"] if stream else answer.json
    assert found["status"] == "incomplete" and found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["output"][-1]["content"][0]["text"] == ""


def test_hidden_thinking_is_no_item(served):
    found = served.post("/v1/responses", input="?", reasoning={"exclude": True}).json
    assert [item["type"] for item in found["output"]] == ["message"]


def test_history_is_read_without_its_thinking(served, source):
    served.post(
        "/v1/responses",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "s"}],
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            {"role": "user", "content": "c"},
        ],
    )
    assert source.orders[-1].prompt == (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "function_call_output"}]}, "input[0]"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "n": 2}, "n"),
        ({"input": "a", "reasoning": {"effort": "vast"}}, "reasoning.effort"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(served, fields, param):
    answer = served.post("/v1/responses", **fields)
    assert answer.status == 400 and answer.error["param"] == param
