"""The endpoints over a scripted source: shapes, counts, refusals."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted, site, thoughts

from tutelage.serve.body import parse
from tutelage.serve.source import Ended, Order, Refused, Said, Score, Turn

THINKING = {
    "budget": 9,
    "min": 0,
    "used": 3,
    "sampled": 2,
    "forced": 1,
    "waits": 1,
    "refused": 1,
    "closed_by": "budget",
}


@pytest.fixture(scope="module")
def source():
    return Scripted()


@pytest.fixture(scope="module")
def served(source):
    with site(source) as running:
        yield running


def test_a_chat_reply_has_thinking_answer_and_exact_usage(served):
    reply = served.chat(thinking_token_budget=9, n=2).json
    first, second = reply["choices"]
    assert first["message"]["reasoning_content"] == first["message"]["reasoning"] == "I think Wait"
    assert first["message"]["content"] == "seven 0" and second["message"]["content"] == "seven 1"
    assert first["thinking"] == reply["thinking"] == THINKING
    assert first["finish_reason"] == "stop" and [first["index"], second["index"]] == [0, 1]
    assert reply["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 14,
        "total_tokens": 25,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 6},
    }
    assert reply["object"] == "chat.completion" and reply["model"] == "scripted"


def test_content_is_never_null(served, source):
    source.script = lambda order: [Said(0, "hm", "thinking", tokens=1), Ended(0, "length", "room", 1, 2, 1)]
    try:
        for more in ({}, {"reasoning_format": "tags"}, {"reasoning_format": "hide"}):
            message = served.chat(**more).json["choices"][0]["message"]
            assert isinstance(message["content"], str)
        assert (
            served.chat(reasoning_format="tags").json["choices"][0]["message"]["content"].count("think>") == 2
        )
    finally:
        source.script = thoughts


def test_thinking_is_split_tagged_or_hidden(served):
    tags = served.chat(reasoning_format="tags").json["choices"][0]["message"]
    assert tags["content"] == "<think>\nI think Wait\n</think>\n\nseven 0" and "reasoning" not in tags
    hidden = served.chat(reasoning={"exclude": True}).json
    assert "think Wait" not in json.dumps(hidden) and hidden["thinking"]["used"] == 3


@pytest.mark.parametrize("shape", ["split", "tags", "hide"])
def test_a_stream_says_the_same_as_the_whole(served, shape):
    whole = served.chat(reasoning_format=shape, n=2).json
    events = served.chat(
        reasoning_format=shape, n=2, stream=True, stream_options={"include_usage": True}
    ).events
    assert events[-1] == "[DONE]" and events[-2]["choices"] == [] and events[-2]["usage"] == whole["usage"]
    chunks = events[:-2]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in events[:-1]}) == 1
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        joined = {
            key: "".join(c["delta"].get(key) or "" for c in mine) for key in ("content", "reasoning_content")
        }
        message = whole["choices"][index]["message"]
        assert joined["content"] == message["content"]
        assert joined["reasoning_content"] == (message.get("reasoning_content") or "")
        assert mine[-1]["finish_reason"] == "stop"
        assert mine[-1]["thinking"] == whole["choices"][index]["thinking"]
        assert all(c["finish_reason"] is None for c in mine[:-1])
        forced = [c for c in mine if c.get("forced")]
        assert len(forced) == (0 if shape == "hide" else 1)


def test_conversations_become_turns(served, source):
    served.chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "reasoning_content": "secret"},
            {"role": "user", "content": "d"},
        ]
    )
    expected = (Turn("system", "Be brief."), Turn("user", "ab"), Turn("assistant", "c"), Turn("user", "d"))
    assert source.orders[-1].prompt == expected


def test_sampling_reaches_the_order(served, source):
    served.chat(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=-1, stop="x", n=3, max_tokens=90)
    order = source.orders[-1]
    assert (order.temperature, order.top_p, order.top_k, order.min_p) == (0.5, 0.9, 7, 0.1)
    assert order.seed == 2**63 - 1 and order.stop == ("x",) and order.n == 3 and order.max_new_tokens == 90
    served.chat(seed=5)
    assert source.orders[-1].seed == 5 == source.orders[-1].choice_seed(0) != source.orders[-1].choice_seed(1)
    served.chat()
    one = source.orders[-1].seed
    served.chat()
    assert one != source.orders[-1].seed


@pytest.mark.parametrize(
    ("fields", "reserve"),
    [
        ({"max_tokens": 1000}, 32),
        ({"max_tokens": 40}, 10),
        ({"max_tokens": 1}, 1),
        ({"max_completion_tokens": 50, "thinking_token_budget": 30}, 10),
        ({"max_tokens": 100, "thinking_token_budget": 90, "answer_reserve": 10}, 10),
        ({"max_tokens": 64, "min_thinking_tokens": 60}, 2),
        ({"max_tokens": 64, "reasoning_effort": "high"}, 16),
        ({}, 32),
    ],
    ids=str,
)
def test_the_reserve_gives_way_to_a_small_limit(served, source, fields, reserve):
    assert served.chat(**fields).status == 200
    assert source.orders[-1].policy.answer_reserve == reserve


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 30, "thinking_token_budget": 30}, "thinking_token_budget"),
        ({"max_tokens": 30, "thinking_budget": 25, "answer_reserve": 6}, "thinking_budget"),
        ({"max_tokens": 30, "answer_reserve": 31}, "answer_reserve"),
        ({"max_tokens": 30, "min_thinking_tokens": 30}, "min_thinking_tokens"),
        (
            {
                "max_tokens": 30,
                "thinking_token_budget": 25,
                "thinking_close": "newline",
                "thinking_grace_tokens": 5,
            },
            "thinking_token_budget",
        ),
        ({"max_tokens": 30, "max_completion_tokens": 31}, "max_completion_tokens"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"n": 129}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"top_p": 0}, "top_p"),
        ({"temperature": 3}, "temperature"),
        ({"stream": 1}, "stream"),
        ({"model": 5}, "model"),
    ],
    ids=str,
)
def test_what_is_not_supported_or_contradicts_itself_is_refused_by_name(served, fields, param):
    answer = served.chat(**fields)
    assert answer.status == 400 and answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"


def test_neutral_values_of_unsupported_fields_are_accepted(served):
    neutral = {"tools": [], "response_format": {"type": "text"}, "presence_penalty": 0, "logit_bias": {}}
    assert served.chat(**neutral, frequency_penalty=0.0, user="me", metadata={"a": "b"}).status == 200


def test_a_model_without_thinking_refuses_to_control_it():
    with site(Scripted(thinks=False)) as served:
        answer = served.chat(thinking_token_budget=5)
        assert answer.status == 400 and "cannot be enforced" in answer.error["message"]
        assert answer.error["param"] == "thinking_token_budget"
        assert served.chat(min_thinking_tokens=5).error["param"] == "min_thinking_tokens"
        assert served.chat(reasoning_effort="none").status == 200
        assert [card["id"] for card in served.ask("GET", "/v1/models").json["data"]] == ["scripted"]


def test_models_are_listed_with_presets_that_can_be_asked(served, source):
    cards = served.ask("GET", "/v1/models").json["data"]
    assert cards[0]["id"] == "scripted" and cards[0]["max_model_len"] == 4096
    for card in cards:
        assert served.ask("GET", f"/v1/models/{card['id']}").json == card
        assert served.chat(model=card["id"]).json["model"] == card["id"]
    assert source.orders[-1].policy.max_tokens == 3072
    missing = served.ask("GET", "/v1/models/other")
    assert missing.status == 404 and missing.error["code"] == "model_not_found"


def test_completions_are_raw_without_thinking_fields(served, source):
    reply = served.post("/v1/completions", prompt="abc").json
    assert source.orders[-1].thinks is False and source.orders[-1].max_new_tokens == 16
    assert reply["object"] == "text_completion" and reply["choices"][0]["text"] == " seven 0"
    assert "thinking" not in reply["choices"][0]
    reply = served.post("/v1/completions", prompt=[1, 2, 3], thinking_token_budget=4).json
    assert source.orders[-1].prompt == (1, 2, 3) and source.orders[-1].thinks
    assert reply["choices"][0]["reasoning_content"] == "I think Wait"
    assert reply["choices"][0]["text"] == "seven 0" and reply["choices"][0]["thinking"]["budget"] == 4


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_are_numbered_one_after_the_other(served, stream):
    answer = served.post("/v1/completions", prompt=["a", [5, 6], "c"], n=2, stream=stream)
    if stream:
        assert answer.events[-1] == "[DONE]"
        texts = {}
        for chunk in answer.events[:-1]:
            choice = chunk["choices"][0]
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        assert texts == {index: f" seven {index % 2}" for index in range(6)}
    else:
        assert [choice["index"] for choice in answer.json["choices"]] == list(range(6))
        assert answer.json["usage"]["prompt_tokens"] == 33


@pytest.mark.parametrize(
    "prompt", [None, [], [[]], 5, ["a", 5], [1, "a"], [-1], [True, False], {"a": 1}], ids=str
)
def test_prompts_that_are_none_are_refused(served, prompt):
    answer = served.post("/v1/completions", prompt=prompt)
    assert answer.status == 400 and answer.error["param"].startswith("prompt")


def test_echo_is_refused_not_ignored(served):
    assert served.post("/v1/completions", prompt="a", echo=True).error["param"] == "echo"
    assert served.post("/v1/completions", prompt="a", echo=True, logprobs=1).error["param"] == "echo"


def test_logprobs_have_both_shapes():
    scores = (Score("se", -0.5, (("se", -0.5), ("x", -2.0))), Score("ven", -0.25, (("ven", -0.25),)))

    def script(order: Order):
        return [Said(0, "seven", "answer", tokens=2, scores=scores), Ended(0, "stop", "none", 1, 3)]

    with site(Scripted(script)) as served:
        told = served.chat(logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"]
        assert [token["token"] for token in told] == ["se", "ven"] and told[0]["bytes"] == [115, 101]
        assert told[0]["top_logprobs"][1]["logprob"] == -2.0
        old = served.post("/v1/completions", prompt="a", logprobs=2).json["choices"][0]["logprobs"]
        assert old["token_logprobs"] == [-0.5, -0.25] and old["text_offset"] == [0, 2]
        assert old["top_logprobs"][0] == {"se": -0.5, "x": -2.0}
        assert served.chat().json["choices"][0]["logprobs"] is None


def test_tokens_can_be_counted(served):
    found = served.post("/tokenize", prompt="abc").json
    assert found == {"tokens": [97, 98, 99], "count": 3, "max_model_len": 4096}
    assert served.post("/tokenize", messages=[{"role": "user", "content": "ab"}]).json["count"] == 2
    assert served.post("/detokenize", tokens=[97, 98]).json == {"prompt": "ab"}
    assert served.post("/detokenize", tokens="ab").status == served.post("/tokenize").status == 400


@pytest.mark.parametrize(
    ("refused", "status", "retry"),
    [
        (Refused(503, "full", code="queue_full", retry_after=7), 503, "7"),
        (Refused(400, "too long", param="messages", code="context_length_exceeded"), 400, None),
    ],
    ids=["full", "long"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_source_refuses_is_a_status_also_for_a_stream(refused, status, retry, stream):
    with site(Scripted(refuse=refused)) as served:
        answer = served.chat(stream=stream)
        assert answer.status == status and answer.headers.get("retry-after") == retry
        assert answer.error["code"] == refused.code and answer.error["param"] == refused.param


def test_an_address_may_have_only_so_many_requests_at_a_time():
    with site(Scripted(lambda order: [0.3, *thoughts(order)]), per_client=1) as served:
        slow = threading.Thread(target=served.chat)
        slow.start()
        while not served.metric("rows"):
            pass
        answer = served.chat()
        slow.join()
        assert answer.status == 429 and answer.headers["retry-after"] == "1"
        assert answer.error["type"] == "rate_limit_error"
        assert served.chat().status == 200


def test_unknown_paths_and_methods_are_error_objects(served):
    missing, wrong = served.ask("GET", "/v1/nothing"), served.ask("GET", "/v1/chat/completions")
    assert (missing.status, wrong.status) == (404, 405)
    assert missing.error["type"] == "not_found_error" and wrong.error["message"]


def test_metrics_count_what_was_done():
    with site(Scripted()) as served:
        served.chat(n=2)
        served.chat(n=0)
        assert served.metric("completion_tokens_total") == 14
        assert served.metric("thinking_tokens_total") == 6
        assert served.metric("waits_total") == served.metric("refused_closes_total") == 2
        assert served.metric("requests_total") == 2 + 4  # reading them is a request too
        assert served.metric("rows") == 0


def test_a_defect_is_a_500_that_tells_nothing_of_the_inside(caplog):
    def script(order: Order):
        raise RuntimeError("the secret of the house")

    with site(Scripted(script)) as served:
        answer = served.chat()
        assert answer.status == 500 and "secret" not in answer.raw.decode()
        assert "the secret of the house" in caplog.text
        assert served.ask("GET", "/health").json["status"] == "ok"


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
@settings(deadline=None)
def test_any_bytes_are_an_object_or_a_400(raw):
    try:
        assert isinstance(parse(raw), dict)
    except Refused as error:
        assert error.status == 400


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b"\xff\xfe",
        b"[]",
        b"",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_bodies_that_are_no_object_of_text_are_refused(raw):
    with pytest.raises(Refused) as caught:
        parse(raw)
    assert caught.value.status == 400 and len(str(caught.value)) < 200
