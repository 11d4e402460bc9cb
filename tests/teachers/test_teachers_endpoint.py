"""endpoint: the body says exactly what the settings say, and the key is nowhere but in the header."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.teachers.endpoint import EndpointTeacher, request_body
from tutelage.teachers.money import price
from tutelage.teachers.orders import Order

TEACHER = EndpointTeacher("http://host/v1", "m")
PROBLEM = Problem(id="p", question="2+2? {braces} {0}")


def orders(teacher: EndpointTeacher, problems: list[Problem], samples: int) -> list[Order]:
    return [teacher.order(problem, sample) for problem in problems for sample in range(samples)]


def test_a_plain_chat_body() -> None:
    assert request_body(TEACHER, PROBLEM, 3) == {
        "model": "m",
        "messages": [{"role": "user", "content": PROBLEM.question}],
    }


def test_every_setting_is_in_the_body() -> None:
    teacher = replace(
        TEACHER,
        system="Be brief.",
        prompt="Q: {question}\nA:",
        sampling={"temperature": 0.5},
        extra={"chat_template_kwargs": {"enable_thinking": True}},
        max_tokens=9,
        max_tokens_field="max_completion_tokens",
        seed=40,
    )
    assert request_body(teacher, PROBLEM, 2) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Q: {PROBLEM.question}\nA:"},
        ],
        "max_completion_tokens": 9,
        "seed": 42,
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": True},
    }


def test_text_completions_have_a_prompt() -> None:
    teacher = replace(TEACHER, api="completions", prompt="{question}\n<think>")
    assert request_body(teacher, PROBLEM, 0) == {"model": "m", "prompt": f"{PROBLEM.question}\n<think>"}
    assert teacher.url == "http://host/v1/completions"
    assert TEACHER.url == "http://host/v1/chat/completions"


def test_messages_have_their_system_beside_them_and_a_limit() -> None:
    teacher = replace(TEACHER, api="messages", system="Be brief.", max_tokens=9, extra={"top_k": 5})
    assert request_body(teacher, PROBLEM, 0) == {
        "model": "m",
        "messages": [{"role": "user", "content": PROBLEM.question}],
        "system": "Be brief.",
        "max_tokens": 9,
        "top_k": 5,
    }
    assert teacher.url == "http://host/v1/messages"
    assert teacher.headers("sk-1") == {"x-api-key": "sk-1", "anthropic-version": "2023-06-01"}
    assert teacher.headers("") == {"anthropic-version": "2023-06-01"}
    teacher.check()


def test_keys_of_openai_servers_are_bearer_tokens() -> None:
    assert TEACHER.headers("sk-1") == {"Authorization": "Bearer sk-1"}
    assert TEACHER.headers("") == {}


@pytest.mark.parametrize(
    ("api", "asked"),
    [
        ("chat", {"stream": True, "stream_options": {"include_usage": True}}),
        ("completions", {"stream": True, "stream_options": {"include_usage": True}}),
        ("messages", {"stream": True}),
    ],
)
def test_a_stream_is_asked_for_with_its_counts(api: Any, asked: dict[str, Any]) -> None:
    plain = replace(TEACHER, api=api, max_tokens=9)
    body = request_body(replace(plain, stream=True), PROBLEM, 0)
    assert body == {**request_body(plain, PROBLEM, 0), **asked}
    # A server that does not know the option can be spared it.
    spared = replace(plain, stream=True, extra={"stream_options": None})
    spared.check()
    assert request_body(spared, PROBLEM, 0)["stream_options"] is None


def test_a_stream_may_be_long_but_not_silent() -> None:
    assert replace(TEACHER, timeout_s=60.0).limits(1000.0) == (60.0, None)
    assert replace(TEACHER, timeout_s=60.0).limits(10.0) == (10.0, None)
    assert replace(TEACHER, timeout_s=60.0, stream=True).limits(1000.0) == (1000.0, 60.0)


@given(st.text())
def test_any_question_makes_a_body_that_is_utf8_json(question: str) -> None:
    [order] = orders(TEACHER, [Problem(id="p", question=question)], 1)
    assert json.loads(order.debt.request)["messages"][0]["content"].encode() is not None


def test_lone_surrogates_are_replaced_before_they_are_sent() -> None:
    assert request_body(TEACHER, Problem(id="p", question="\ud800"), 0)["messages"][0]["content"] == "\ufffd"


def test_each_sample_has_a_key_of_its_own_with_or_without_a_seed() -> None:
    for teacher in (TEACHER, replace(TEACHER, seed=1)):
        keys = [order.debt.key for order in orders(teacher, [PROBLEM], 4)]
        assert len(set(keys)) == 4
        assert keys == [order.debt.key for order in orders(teacher, [PROBLEM], 4)]


CHANGES: list[dict[str, Any]] = [
    {"base_url": "http://host2/v1"},
    {"model": "m2"},
    {"api": "completions"},
    {"system": "s"},
    {"prompt": "{question}!"},
    {"sampling": {"temperature": 0}},
    {"extra": {"x": 1}},
    {"max_tokens": 5},
    {"seed": 0},
    {"stream": True},
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_request_changes_the_key(change: dict[str, Any]) -> None:
    [one], [two] = orders(TEACHER, [PROBLEM], 1), orders(replace(TEACHER, **change), [PROBLEM], 1)
    assert one.debt.key != two.debt.key


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "http://host/v1/"},
        {"concurrency": 99},
        {"retries": 0},
        {"timeout_s": 1.0},
        {"price": price(1, 1)},
        {"reasoning": True, "reasoning_within": 3},
        {"requests_per_s": 1.0, "tokens_per_min": 5},
        {"budget": Decimal(1), "price": price(1, 1), "max_tokens": None},
        {"name": "x"},
        {"key_env": "K"},
        {"tags": ()},
    ],
)
def test_what_does_not_change_the_request_keeps_the_key(change: dict[str, Any]) -> None:
    if "budget" in change:
        change, base = {**change, "max_tokens": 5}, replace(TEACHER, max_tokens=5)
    else:
        base = TEACHER
    [one], [two] = orders(base, [PROBLEM], 1), orders(replace(base, **change), [PROBLEM], 1)
    assert one.debt.key == two.debt.key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "host"}, "base_url: not an address"),
        ({"sampling": {"n": 4}}, "sampling.n: this field is set by the teacher itself"),
        ({"extra": {"stream": True}}, "extra.stream"),
        ({"extra": {"max_tokens": 4}}, "extra.max_tokens"),
        ({"seed": 1, "sampling": {"seed": 4}}, "sampling.seed"),
        ({"sampling": {"a": 1}, "extra": {"a": 1}}, "extra.a: also given in sampling"),
        ({"extra": {"since": date(2026, 1, 1)}}, "extra.since: cannot be sent as JSON"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature: cannot be sent as JSON"),
        ({"prompt": "hi"}, "prompt: has no {question}"),
        ({"api": "completions", "system": "s"}, "system: text completions"),
        ({"api": "messages"}, "max_tokens: messages servers want one"),
        ({"api": "messages", "max_tokens": 1, "seed": 1}, "seed: messages servers have none"),
        ({"api": "messages", "max_tokens": 1, "max_tokens_field": "x"}, "max_tokens_field: messages servers"),
        ({"api": "messages", "max_tokens": 1, "extra": {"system": "s"}}, "extra.system: give it as system"),
        ({"concurrency": 0}, "concurrency: 0"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"deadline_s": 0.0}, "deadline_s: 0.0"),
        ({"requests_per_s": 0.0}, "requests_per_s: 0.0"),
        ({"tokens_per_min": 0}, "tokens_per_min: 0"),
        ({"reasoning_within": 0}, "reasoning_within: 0"),
        ({"retries": -1}, "retries: -1"),
        ({"budget": Decimal(1)}, "budget: a cap needs"),
        ({"budget": Decimal(1), "price": price(1, 1)}, "budget: a cap needs"),
        ({"budget": Decimal(1), "max_tokens": 1}, "budget: a cap needs"),
    ],
)
def test_settings_that_cannot_work_name_their_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(TEACHER, **change).check()
    assert str(caught.value).startswith(message)
