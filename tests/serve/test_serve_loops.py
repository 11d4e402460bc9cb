"""Loops on the wire: every name of a control, effort words in loops, what is told, and what is refused."""

from __future__ import annotations

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted, site

from tinymodel import byte_tokenizer, tiny_student
from tutelage.cli import main
from tutelage.errors import UsageError
from tutelage.serve.efforts import WORDS, default_efforts, default_loops, read_efforts
from tutelage.serve.fields import split_model, thinking
from tutelage.serve.local import Local
from tutelage.serve.source import Depth, Ended, Order, Refused, Said, Turn
from tutelage.students.pretrained import Student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.template import Template
from tutelage.think.policy import ThinkingPolicy

DEPTH = Depth(mean=8, most=64)
LOOPS = default_loops(DEPTH)
HOLDERS = ("", "chat_template_kwargs", "custom_params")


def put(holder, **fields):
    return {holder: fields} if holder else fields


def read(body, suffix=None, efforts=LOOPS, depth=DEPTH):
    return thinking(body, suffix or {}, efforts, depth)


def refused(body, suffix=None, **more):
    with pytest.raises(Refused) as caught:
        read(body, suffix, **more)
    assert caught.value.status == 400 and "\n" not in str(caught.value)
    return caught.value


def passes(order):
    """A reply of three tokens, each behind as many passes as were asked for."""
    steps = order.policy.num_steps
    return [
        item
        for index in range(order.n)
        for item in (
            Said(index, "seven", "answer", tokens=2),
            Ended(index, "stop", "none", 11, 3, core_steps=3 * steps),
        )
    ]


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_place_of_the_controls_means_the_same(holder):
    found = read(put(holder, num_steps=12, exit="kl:1e-3,min=2", continuous=True))
    assert found.policy == ThinkingPolicy(num_steps=12, exit="kl:1e-3,min=2", continuous=True)
    assert not found.stated, "nothing was said about thinking in tokens"
    assert found.name("num_steps") == (f"{holder}.num_steps" if holder else "num_steps")


def test_what_is_not_said_is_the_mean_and_with_an_exit_the_most():
    assert read({}).policy.num_steps == DEPTH.mean
    assert read({"num_steps": None, "exit": None, "continuous": None}).policy.num_steps == DEPTH.mean
    assert read({"exit": "kl"}).policy.num_steps == DEPTH.most
    assert read({"exit": "kl", "num_steps": 9}).policy.num_steps == 9
    assert read({}, depth=None, efforts=default_efforts(4096)).policy == ThinkingPolicy()


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(
    ("control", "value", "says"),
    [
        ("num_steps", 0, "1 to 64"),
        ("num_steps", -3, "1 to 64"),
        ("num_steps", 65, "1 to 64"),
        ("num_steps", 10**400, "1 to 64"),
        ("num_steps", "8", "whole number"),
        ("num_steps", True, "whole number"),
        ("num_steps", 2.0, "whole number"),
        ("exit", "entropy", "there is: kl, state"),
        ("exit", "kl:-1", "above 0"),
        ("exit", "kl:nan", "above 0"),
        ("exit", "kl:1e-3,min=0", "at least 1"),
        ("exit", "argmax:1.5", "whole number"),
        ("exit", "kl:small", "not readable"),
        ("exit", "", "not readable"),
        ("exit", "kl:" + "1" * 1000, "not readable"),
        ("exit", 5e-4, "must be text"),
        ("continuous", 1, "true or false"),
    ],
)
def test_a_control_that_makes_no_sense_is_refused_by_name(holder, control, value, says):
    error = refused(put(holder, **{control: value}))
    assert error.param == (f"{holder}.{control}" if holder else control)
    assert says in str(error) and len(str(error)) < 300


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(("control", "value"), [("num_steps", 4), ("exit", "kl"), ("continuous", True)])
def test_a_model_without_loops_refuses_them_all(holder, control, value):
    error = refused(put(holder, **{control: value}), depth=None, efforts=default_efforts(4096))
    assert error.param == (f"{holder}.{control}" if holder else control) and "no loops" in str(error)
    for suffix in ({"steps": "4"}, {"exit": "kl"}, {"continuous": "true"}):
        assert "no loops" in str(refused({}, suffix, depth=None, efforts=default_efforts(4096)))


@pytest.mark.parametrize(
    "field",
    ["exit_threshold", "recurrence", "num_loops", "continuous_compute", "num_steps_max", "early_exit"],
)
def test_what_looks_like_a_control_of_loops_and_is_none_is_refused(field):
    assert refused({field: 4}).param == field
    assert refused({"chat_template_kwargs": {field: 4}}).param == f"chat_template_kwargs.{field}"


def test_two_places_must_agree():
    both = {"num_steps": 9, "chat_template_kwargs": {"num_steps": 9}}
    assert read(both).policy.num_steps == 9
    assert refused({"num_steps": 9, "custom_params": {"num_steps": 8}}).param == "custom_params.num_steps"
    assert refused({"num_steps": 9, "reasoning_effort": "low"}).param == "num_steps"
    assert read({"num_steps": 4, "reasoning_effort": "low"}).policy.num_steps == 4


def test_the_suffix_of_a_name_says_it_too():
    suffix = split_model("m@steps=6,exit=kl:1e-3|min=2,continuous=true,think=9", "m")
    assert read({}, suffix).policy == ThinkingPolicy(
        max_tokens=9, num_steps=6, exit="kl:1e-3,min=2", continuous=True
    )
    assert read({}, {"steps": "high"}).policy.num_steps == 16
    assert "suffix steps" in str(refused({"num_steps": 7}, {"steps": "6"}))
    for suffix in ({"steps": "0"}, {"steps": "65"}, {"steps": "²"}, {"exit": "bogus"}, {"continuous": "1"}):
        assert refused({}, suffix).param == "model"
    # A word stands beside the control of its own unit only.
    assert refused({}, {"think": "high"}).param == "model"
    assert refused({}, {"steps": "high"}, efforts=default_efforts(4096)).param == "model"


def test_effort_words_are_multiples_of_the_mean():
    assert LOOPS.words == {
        "none": 1, "minimal": 2, "low": 4, "medium": 8, "high": 16, "xhigh": 32, "max": 64,
    }  # fmt: skip
    for word, steps in LOOPS.words.items():
        found = read({"reasoning_effort": word})
        assert found.policy == ThinkingPolicy(num_steps=steps) and not found.stated
    assert refused({"reasoning_effort": "heroic"}).param == "reasoning_effort"


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_larger_word_is_never_fewer_loops_and_never_too_many(mean, most):
    found = list(default_loops(Depth(mean, most)).words.values())
    assert found == sorted(found) and found[0] == 1 and found[-1] == most


@given(st.integers(16, 10**6), st.integers(1, 100))
def test_every_word_is_there_in_both_units(context, mean):
    assert tuple(default_efforts(context).words) == tuple(default_loops(Depth(mean, 8 * mean)).words) == WORDS


def test_the_unit_of_the_words_is_that_of_the_thinking():
    def unit(**more):
        return read_efforts([], 4096, **more).unit

    assert unit(thinks=True, depth=None) == unit(thinks=False, depth=None) == "tokens"
    assert unit(thinks=True, depth=DEPTH) == "tokens" and unit(thinks=False, depth=DEPTH) == "loops"
    assert unit(thinks=True, depth=DEPTH, unit="loops") == "loops"
    for wrong in ({"depth": None, "unit": "loops"}, {"thinks": False, "depth": DEPTH, "unit": "tokens"}):
        with pytest.raises(UsageError, match="--effort-in"):
            read_efforts([], 4096, **wrong)
    assert read_efforts(["low=3", "max=20"], 4096, thinks=False, depth=DEPTH).words["low"] == 3
    for wrong in ("low=0", "low=65", "max=-1"):
        with pytest.raises(UsageError, match="1 to 64 loops"):
            read_efforts([wrong], 4096, thinks=False, depth=DEPTH)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["num_steps", "exit", "continuous", "reasoning_effort", "custom_params"])


@given(st.dictionaries(names, json_values, max_size=4), st.sampled_from([None, DEPTH]))
@settings(deadline=None)
def test_any_value_is_read_or_refused(body, depth):
    efforts = default_efforts(4096) if depth is None else LOOPS
    try:
        policy = read(body, depth=depth, efforts=efforts).policy
    except Refused as error:
        assert error.status == 400 and error.param
    else:
        assert policy.effort.asked == (depth is not None), "nothing is dropped in silence"


@pytest.fixture(scope="module")
def source():
    return Scripted(passes, thinks=False, depth=DEPTH)


@pytest.fixture(scope="module")
def served(source):
    with site(source) as running:
        yield running


def test_a_chat_tells_the_loops_asked_and_made(served, source):
    reply = served.chat(num_steps=5, n=2).json
    assert source.orders[-1].policy.num_steps == 5
    told = reply["thinking"]
    assert (told["num_steps"], told["exit"], told["continuous"], told["core_steps"]) == (5, None, False, 15)
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0, "core_steps": 30}
    assert served.metric("reply_core_steps_total") == 30


def test_a_stream_and_a_response_tell_them_too(served):
    *_, last, counts, _ = served.chat(
        exit="kl:1e-3", stream=True, stream_options={"include_usage": True}
    ).events
    assert last["thinking"]["exit"] == "kl:1e-3" and last["thinking"]["num_steps"] == 64
    assert counts["usage"]["completion_tokens_details"]["core_steps"] == 192
    reply = served.post("/v1/responses", input="3+4?", reasoning={"effort": "low"}).json
    assert reply["usage"]["output_tokens_details"]["core_steps"] == 12 and reply["thinking"]["num_steps"] == 4


def test_a_raw_prompt_has_loops_without_thinking(served, source):
    reply = served.post("/v1/completions", prompt="3+4=", num_steps=2).json
    order = source.orders[-1]
    assert not order.thinks and order.max_new_tokens == 16 and order.policy.num_steps == 2
    assert reply["choices"][0]["thinking"]["core_steps"] == 6 and reply["choices"][0]["text"] == "seven"


def test_thinking_in_tokens_is_still_refused_by_its_own_name(served):
    for body in ({"num_steps": 4, "thinking_token_budget": 9}, {"thinking_token_budget": 9}):
        answer = served.chat(**body)
        assert answer.status == 400 and answer.error["param"] == "thinking_token_budget"
    assert served.chat(enable_thinking=False).status == 200


def test_the_list_of_models_tells_the_loops(served):
    cards = served.ask("GET", "/v1/models").json["data"]
    assert cards[0]["loops"] == {"mean": 8, "max": 64} and not cards[0]["thinks"]
    assert [card["id"] for card in cards[1:]] == [f"scripted@steps={word}" for word in WORDS]
    assert served.chat(model="scripted@steps=minimal").json["thinking"]["num_steps"] == 2
    with site(Scripted()) as plain:
        cards = plain.ask("GET", "/v1/models").json["data"]
        assert cards[0]["loops"] is None and cards[1]["id"] == "scripted@think=none"
        answer = plain.chat(num_steps=4)
        assert answer.status == 400 and answer.error["param"] == "num_steps"
        assert "core_steps" not in plain.chat().json["thinking"]


def test_a_model_that_does_both_has_its_words_in_the_unit_that_was_set():
    source = Scripted(thinks=True, depth=DEPTH)
    with site(source) as running:
        running.chat(reasoning_effort="low", num_steps=3)
        assert source.orders[-1].policy == ThinkingPolicy(max_tokens=512, num_steps=3, answer_reserve=32)
    with site(source, efforts=read_efforts([], 4096, depth=DEPTH, unit="loops")) as running:
        running.chat(reasoning_effort="low", thinking_token_budget=7)
        assert source.orders[-1].policy == ThinkingPolicy(max_tokens=7, num_steps=4, answer_reserve=32)


def deep_student():
    """A random recurrent model without thinking in tokens, mean 4, at most 12 loops."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = RecurrentDepthConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=len(tokenizer),
        mean_recurrence=4,
        max_recurrence=12,
        max_position_embeddings=96,
        adapter_init="identity",
    )
    return Student(RecurrentDepthForCausalLM(config).eval(), tokenizer, Template(thinking=False), "deep")


def served_replies(student, orders, **options):
    """Answer and end of each of `orders`, and the gauges after them."""

    async def work():
        source = Local(student, name="deep", **options)
        try:
            found = []
            for order in orders:
                replies = await source.open(order)
                pieces = [piece async for piece in replies]
                await replies.aclose()
                text = "".join(piece.text for piece in pieces if isinstance(piece, Said))
                found.append((text, pieces[-1]))
            return found, source.depth, source.gauges()
        finally:
            await source.aclose()

    return asyncio.run(work())


def test_a_real_model_counts_its_loops_and_drafts_change_nothing():
    student = deep_student()

    def order(**policy):
        return Order((Turn("user", "2+2?"),), ThinkingPolicy(**policy), temperature=0.0, max_new_tokens=8)

    orders = [order(num_steps=2), order(), order(num_steps=12), order(exit="state:0.5", num_steps=12)]
    plain, depth, gauges = served_replies(student, orders)
    assert depth == Depth(mean=4, most=12)
    ends = [end for _, end in plain]
    counts = [end.core_steps / end.completion_tokens for end in ends]
    assert counts[:3] == [2, 4, 12] and 1 <= counts[3] <= 12
    assert gauges["core_steps_total"] >= sum(end.core_steps for end in ends), "prompts make passes too"
    drafted, _, _ = served_replies(student, orders, draft_steps=2)
    assert drafted == plain


def test_a_model_without_loops_has_no_depth_and_cannot_draft():
    (reply,), depth, gauges = served_replies(tiny_student(), [Order("ab", thinks=False, max_new_tokens=3)])
    assert depth is None and reply[1].core_steps is None and "core_steps_total" not in gauges
    with pytest.raises(UsageError, match="--draft-steps: deep has no loops"):
        served_replies(tiny_student(), [], draft_steps=2)
    with pytest.raises(UsageError, match="less than 12"):
        served_replies(deep_student(), [], draft_steps=12)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["m", "--effort-in", "hours"], "--effort-in 'hours': write tokens or loops"),
        (["--upstream", "http://127.0.0.1:9", "--draft-steps", "2"], "--draft-steps"),
        (["m", "--draft-steps", "0"], "--draft-steps"),
    ],
)
def test_options_that_make_no_sense_are_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments, "--port", "0"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
