"""The policy: what is refused when it is built, and its dictionary."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import policies

from tutelage.errors import UsageError
from tutelage.think.policy import ThinkingPolicy


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens 5 is larger than max_tokens 4"),
        ({"min_tokens": -1}, "negative"),
        ({"max_tokens": 1.5}, "whole number"),
        ({"max_tokens": True}, "whole number"),
        ({"max_tokens": 0, "refuse_closes": 1}, "needs room to think"),
        ({"wait": ""}, "wait is empty"),
        ({"wait": ()}, "wait is empty"),
        ({"wait": ("a", 3)}, "a list of texts"),
        ({"wait": 3}, "a list of texts|must be text"),
        ({"max_waits": 1}, "wait is None"),
        ({"answer_reserve": 0}, "no room for an answer"),
        ({"close": "soft"}, "close must be"),
        ({"close": "rank:0"}, "close must be"),
        ({"close": "rank:"}, "close must be"),
        ({"close": None}, "close must be"),
        ({"close": "newline", "grace_tokens": 4}, "needs max_tokens"),
        ({"close": "newline", "max_tokens": 4}, "needs grace_tokens"),
        ({"max_tokens": 4, "grace_tokens": 4}, "needs close"),
        ({"grace_tokens": -4}, "negative"),
        ({"close_text": None}, "close_text must be text"),
        ({"think_open": "<a>"}, "give both"),
        ({"think_open": "<a>", "think_close": "<a>"}, "must differ"),
        ({"think_open": " ", "think_close": "<a>"}, "must not be empty"),
    ],
)
def test_an_impossible_policy_is_refused_when_built(fields, reason):
    with pytest.raises(UsageError, match=reason):
        ThinkingPolicy(**fields)


@given(made=policies(((1,), (2, 3))))
@settings(max_examples=100, deadline=None)
def test_policy_fields_survive_a_dictionary(made):
    policy, _ = made
    assert ThinkingPolicy.from_dict(policy.to_dict()) == policy


def test_a_list_is_taken_for_a_tuple_and_an_unknown_field_is_named():
    policy = ThinkingPolicy(wait=["a", "b"])
    assert policy.wait_strings == ("a", "b") and hash(policy) == hash(ThinkingPolicy(wait=("a", "b")))
    with pytest.raises(UsageError, match="max_token"):
        ThinkingPolicy.from_dict({"max_token": 3})


@given(st.text(max_size=12))
@settings(max_examples=50, deadline=None)
def test_the_way_to_close_is_one_of_three(text):
    try:
        policy = ThinkingPolicy(max_tokens=4, close=text, grace_tokens=2)
    except UsageError:
        return
    assert policy.close == "newline" or policy.rank is not None
