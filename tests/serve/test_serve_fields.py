"""Every control under all its names: the same meaning, contradictions refused, nothing ignored."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.serve.efforts import Efforts, default_efforts, read_efforts
from tutelage.serve.fields import split_model, thinking
from tutelage.serve.source import Refused
from tutelage.think.policy import ThinkingPolicy

EFFORTS = default_efforts(4096)
# Each spelling of the maximum, as a function from tokens to a body.
MAXIMA = {
    "thinking_token_budget": lambda n: {"thinking_token_budget": n},
    "thinking_budget": lambda n: {"thinking_budget": n},
    "thinking_budget_tokens": lambda n: {"thinking_budget_tokens": n},
    "reasoning_budget_tokens": lambda n: {"reasoning_budget_tokens": n},
    "reasoning_max_tokens": lambda n: {"reasoning_max_tokens": n},
    "custom_params.thinking_budget": lambda n: {"custom_params": {"thinking_budget": n}},
    "nvext.max_thinking_tokens": lambda n: {"nvext": {"max_thinking_tokens": n}},
    "thinking.budget_tokens": lambda n: {"thinking": {"type": "enabled", "budget_tokens": n}},
    "reasoning.max_tokens": lambda n: {"reasoning": {"max_tokens": n}},
    "chat_template_kwargs.thinking_budget": lambda n: {"chat_template_kwargs": {"thinking_budget": n}},
}
OFF = [
    {"thinking_token_budget": 0},
    {"reasoning_effort": "none"},
    {"enable_thinking": False},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"thinking": {"type": "disabled"}},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}},
]


def read(body, suffix=None):
    return thinking(body, suffix or {}, EFFORTS)


def refused(body, suffix=None):
    with pytest.raises(Refused) as caught:
        read(body, suffix)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("name", MAXIMA)
def test_every_name_of_the_maximum_means_the_same(name):
    found = read(MAXIMA[name](77))
    assert found.policy == ThinkingPolicy(max_tokens=77) and found.explicit and found.stated
    assert found.name("max_tokens") == name


@pytest.mark.parametrize("name", MAXIMA)
def test_the_maximum_may_be_unlimited_and_never_below(name):
    unlimited = read({k: v for k, v in MAXIMA[name](-1).items() if k != "thinking"} or MAXIMA[name](-1))
    assert unlimited.policy.max_tokens is None and not unlimited.explicit
    error = refused(MAXIMA[name](-2))
    assert error.param == name and "-2" in str(error)


@pytest.mark.parametrize("body", OFF, ids=str)
def test_every_switch_turns_thinking_off(body):
    assert read(body).policy.max_tokens == 0


@given(
    st.sampled_from(sorted(MAXIMA)),
    st.sampled_from(sorted(MAXIMA)),
    st.integers(1, 500),
    st.integers(1, 500),
)
@settings(deadline=None)
def test_two_names_must_agree(one, other, first, second):
    if one.partition(".")[0] == other.partition(".")[0]:
        return
    body = {**MAXIMA[one](first), **MAXIMA[other](second)}
    if first == second:
        assert read(body).policy.max_tokens == first
    else:
        error = refused(body)
        assert {str(error.param)} <= {one, other} and one in str(error) and other in str(error)


def test_effort_words_are_budgets_of_the_model():
    found = [read({"reasoning_effort": word}).policy.max_tokens for word in EFFORTS.words]
    assert found == sorted(found) and found[0] == 0 and found[1] == 4096 // 16
    assert read({"reasoning": {"effort": "low"}}).policy.max_tokens == EFFORTS.words["low"]
    assert not read({"reasoning_effort": "low"}).explicit
    assert default_efforts(10**6).words["low"] == 4096


def test_effort_words_can_be_set_and_wrong_settings_are_named():
    assert read_efforts(["low=256,high=-1", "max=9"], 4096).words["low"] == 256
    assert thinking({"reasoning_effort": "high"}, {}, Efforts({"high": -1})).policy.max_tokens is None
    for wrong in ("heroic=1", "low", "low=", "low=-2", "low=many", "low=²"):
        with pytest.raises(UsageError, match="--effort"):
            read_efforts([wrong], 4096)


def test_an_effort_word_that_contradicts_a_budget_is_refused():
    assert "thinking_token_budget" in str(refused({"reasoning_effort": "low", "thinking_token_budget": 7}))
    assert refused({"enable_thinking": True, "reasoning_effort": "none"}).param == "enable_thinking"
    assert refused({"reasoning_effort": "heroic"}).param == "reasoning_effort"


def test_all_details_reach_the_policy():
    body = {
        "thinking_token_budget": 100,
        "min_thinking_tokens": 10,
        "thinking_wait": ["Wait", "Hmm"],
        "thinking_max_waits": 3,
        "thinking_refuse_closes": 2,
        "thinking_close": "rank:4",
        "thinking_grace_tokens": 9,
        "thinking_close_text": "Final Answer:",
        "answer_reserve": 20,
    }
    found = read(body)
    assert found.policy == ThinkingPolicy(
        min_tokens=10,
        max_tokens=100,
        refuse_closes=2,
        wait=("Wait", "Hmm"),
        max_waits=3,
        close="rank:4",
        grace_tokens=9,
        close_text="Final Answer:",
        answer_reserve=20,
    )
    assert found.reserved


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"thinking_token_budget": 10, "min_thinking_tokens": 11}, "min_thinking_tokens"),
        ({"thinking_budget": 0, "min_thinking_tokens": 1}, "min_thinking_tokens"),
        ({"thinking_max_waits": 1}, "thinking_max_waits"),
        ({"thinking_wait": ""}, "thinking_wait"),
        ({"thinking_wait": ["a", ""]}, "thinking_wait"),
        ({"thinking_wait": []}, "thinking_wait"),
        ({"thinking_wait": 5}, "thinking_wait"),
        ({"thinking_wait": "x" * 2000}, "thinking_wait"),
        ({"thinking_close": "rank:0"}, "thinking_close"),
        ({"thinking_grace_tokens": 4}, "thinking_grace_tokens"),
        ({"answer_reserve": 0}, "answer_reserve"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"thinking": {"tokens": 5}}, "thinking.tokens"),
        ({"reasoning": {"depth": 5}}, "reasoning.depth"),
        ({"thinking_speed": 5}, "thinking_speed"),
        ({"max_reasoning": 5}, "max_reasoning"),
        ({"token_budget": 5}, "token_budget"),
        ({"vllm_xargs": {"thinking_token_budget": 5}}, "vllm_xargs.thinking_token_budget"),
        ({"reasoning_budget_message": "Enough."}, "reasoning_budget_message"),
        ({"extra_body": {"thinking_token_budget": 5}}, "extra_body"),
        ({"reasoning_format": "xml"}, "reasoning_format"),
        ({"reasoning_format": "tags", "include_reasoning": False}, "reasoning_format"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_names_the_clients_own_field(body, param):
    error = refused(body)
    assert error.param == param
    assert "thinking policy" not in str(error) and "max_tokens" not in str(error).split("known")[0]


def test_harmless_fields_and_nulls_are_let_pass():
    body = {
        "user": "me",
        "metadata": {"thinking_style": "deep"},
        "service_tier": "auto",
        "thinking_token_budget": None,
        "thinking_wait": None,
        "reasoning": {"summary": "auto", "effort": None},
        "store": False,
    }
    found = read(body)
    assert found.policy == ThinkingPolicy() and not found.stated


def test_what_is_shown():
    assert read({}).show == "split"
    assert read({"reasoning_format": "tags"}).show == "tags"
    assert read({"reasoning": {"exclude": True}}).show == "hide"
    assert read({"include_reasoning": False}).show == "hide"


def test_the_suffix_of_a_name_is_a_policy():
    suffix = split_model("m@think=256,min=64,wait=Wait|Hmm,refuse=2,reserve=8", "m")
    policy = thinking({}, suffix, EFFORTS).policy
    assert policy == ThinkingPolicy(
        min_tokens=64, max_tokens=256, refuse_closes=2, wait=("Wait", "Hmm"), answer_reserve=8
    )
    assert thinking({}, split_model("m@think=low", "m"), EFFORTS).policy.max_tokens == EFFORTS.words["low"]
    assert split_model("m", "m") == split_model(None, "m") == {}
    assert thinking({}, split_model("a@b@think=3", "a@b"), EFFORTS).policy.max_tokens == 3


@pytest.mark.parametrize(
    "name",
    ["m@", "m@think", "m@think=", "m@speed=3", "m@think=1,think=2", "m@think=x", "m@min=-1", "m@think=-2"],
)
def test_a_wrong_suffix_is_refused(name):
    with pytest.raises(Refused) as caught:
        thinking({}, split_model(name, "m"), EFFORTS)
    assert caught.value.status == 400 and caught.value.param == "model"


def test_a_suffix_that_contradicts_the_body_is_refused():
    assert "suffix think" in str(refused({"thinking_token_budget": 9}, {"think": "10"}))
    assert read({"thinking_token_budget": 9}, {"think": "9"}).policy.max_tokens == 9


@pytest.mark.parametrize("name", ["other", "", "m2@think=3", "@think=3", "M"])
def test_another_model_is_not_found(name):
    with pytest.raises(Refused) as caught:
        split_model(name, "m")
    assert caught.value.status == 404 and caught.value.code == "model_not_found"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [*(name.partition(".")[0] for name in MAXIMA), "thinking_wait", "min_thinking_tokens"]
)


@given(st.dictionaries(names, json_values, max_size=4))
@settings(deadline=None)
def test_any_value_is_read_or_refused(body):
    try:
        assert isinstance(read(body).policy, ThinkingPolicy)
    except Refused as error:
        assert error.status == 400 and error.param
