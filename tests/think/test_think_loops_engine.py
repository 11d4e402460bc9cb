"""Promises of the engine for a model with loops: every policy works as before, at each request's own depth;
what stands behind each id is told; and a model without loops is not asked for them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from looping import loop_student

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.students.template import render_prompt
from tutelage.think.backend import HuggingFace
from tutelage.think.engine import Engine, Request
from tutelage.think.loops import Loops
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

STUDENT = loop_student(closes=3.0)
DEPTHS = (
    {},
    {"num_steps": 1},
    {"num_steps": 6},
    {"num_steps": 8, "exit": "state:0.3"},
    {"num_steps": 8, "exit": "kl:0.05"},
    {"exit": "acceleration:0.3,every=2"},
    {"num_steps": 4, "continuous": True},
)
POLICIES = (
    ThinkingPolicy(max_tokens=8),
    ThinkingPolicy(max_tokens=0, close_text="A:"),
    ThinkingPolicy(min_tokens=5, max_tokens=12, wait=(" Wait", " Hm"), refuse_closes=1),
    ThinkingPolicy(min_tokens=6, max_tokens=14),
    ThinkingPolicy(max_tokens=10, refuse_closes=2, wait="no", max_waits=1, close_text="so"),
    ThinkingPolicy(max_tokens=7, close="rank:40", grace_tokens=4),
)


def prompt(text, student=STUDENT):
    return tuple(render_prompt(student.tokenizer, student.template, text))


def requests(count=7, **options):
    return [
        Request(
            prompt("?" * (1 + i % 3)),
            replace(POLICIES[i % len(POLICIES)], **DEPTHS[i % len(DEPTHS)]),
            max_answer=3,
            **options,
        )
        for i in range(count)
    ]


def alone(asked):
    return [Engine(STUDENT, max_batch=1).generate([request])[0] for request in asked]


def bare(policy=None, ids=(1, 2, 3), **options):
    return Request(ids, policy or ThinkingPolicy(), thinks=False, **options)


def test_budgets_waits_and_depths_of_a_mixed_batch_are_those_of_each_request_alone():
    asked = requests()
    expected = alone(asked)
    assert Engine(STUDENT, max_batch=4).generate(asked[::-1])[::-1] == expected
    assert any(reply.waits for reply in expected) and any(any(reply.forced) for reply in expected)
    exits = [reply for request, reply in zip(asked, expected, strict=True) if request.policy.exit]
    assert len({steps for reply in exits for steps in reply.steps}) > 3


@pytest.mark.parametrize("steps", [1, 4])
def test_greedy_ids_at_a_fixed_depth_are_those_of_transformers(steps):
    ids = [5, 9, 40, 7]
    with torch.inference_mode():
        expected = STUDENT.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, 4, dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            num_steps=steps,
            pad_token_id=0,
            eos_token_id=None,
            suppress_tokens=[STUDENT.tokenizer.pad_token_id],
        )[0, 4:].tolist()
    request = bare(ThinkingPolicy(num_steps=steps), ids=tuple(ids), max_new_tokens=12)
    (reply,) = Engine(STUDENT).generate([request])
    assert list(reply.ids) == expected[: len(reply.ids)] and len(reply.ids) > 3
    assert reply.steps == (steps,) * len(reply.ids)
    assert reply.core_steps == steps * (len(ids) + len(reply.ids) - 1)


def test_each_reply_says_what_stands_behind_its_ids():
    for request, reply in zip(asked := requests(), Engine(STUDENT, max_batch=6).generate(asked), strict=True):
        most = request.policy.num_steps or (12 if request.policy.exit else 3)
        assert len(reply.steps) == len(reply.ids)
        assert all(
            0 < steps <= most or (steps == 0 and forced)
            for steps, forced in zip(reply.steps, reply.forced, strict=True)
        )
        if not request.policy.exit:
            assert {*reply.steps} <= {0, most}


def test_passes_are_counted_once_in_the_engine_and_for_each_reply_as_if_alone():
    policy = ThinkingPolicy(num_steps=8, exit="state:0.3")
    request = bare(policy, max_new_tokens=9)
    engine = Engine(STUDENT)
    (reply,) = engine.generate([request])
    assert reply.core_steps == engine.stats.core_steps > sum(reply.steps)
    again = Engine(STUDENT)
    twins = again.generate([request] * 4)
    assert twins == [reply] * 4, "one row does for all"
    assert again.stats.core_steps == reply.core_steps


def test_a_row_is_shared_only_at_equal_effort():
    prompts = [bare(ThinkingPolicy(**depth), max_new_tokens=3) for depth in DEPTHS for _ in range(2)]
    engine = Engine(STUDENT, max_batch=32)
    engine.generate(prompts)
    assert engine.stats.prefilled == 3 * len(DEPTHS) and engine.stats.shared > 0
    late = Engine(STUDENT, max_batch=32)
    jobs = late.submit_all(prompts[:2])
    late.step()
    jobs += late.submit_all([prompts[1], prompts[2]])
    while late.step():
        pass
    replies = [job.completion for job in jobs]
    assert late.stats.prefilled == 6, "who comes later joins a row of equal effort only"
    assert replies[0] == replies[2] and replies[0] != replies[3]


def test_less_is_computed_where_tokens_leave():
    deep, early = (
        Engine(STUDENT).generate([bare(ThinkingPolicy(num_steps=12, exit=exit), max_new_tokens=8)])[0]
        for exit in (None, "state:0.5")
    )
    assert deep.core_steps == 12 * (3 + len(deep.ids) - 1)
    assert early.core_steps < 0.8 * 12 * (3 + len(early.ids) - 1)


@pytest.mark.parametrize("depth", [depth for depth in DEPTHS if not depth.get("continuous")])
def test_a_reply_can_be_taken_up_in_its_middle(depth):
    """Exits that read predictions see a prompt that is read at once differently; see `loops`."""
    policy = ThinkingPolicy(max_tokens=8, **depth)
    request = Request(prompt("?"), policy, max_answer=4)
    engine = Engine(STUDENT)
    (whole,) = engine.generate([request])
    (rest,) = engine.generate([replace(request, begun=whole.ids[:3])])
    if not depth.get("exit", "").startswith("kl"):
        assert (rest.ids, rest.steps, rest.core_steps) == (whole.ids, whole.steps, whole.core_steps)


def test_continuous_thought_cannot_be_taken_up_in_its_middle():
    policy = ThinkingPolicy(max_tokens=8, num_steps=4, continuous=True)
    request = Request(prompt("?"), policy, max_answer=4, begun=(1, 2))
    with pytest.raises(UsageError, match="continuous"):
        Engine(STUDENT).check(request)


@pytest.mark.parametrize(
    "depth", [{"num_steps": 4}, {"exit": "kl"}, {"continuous": True}, {"num_steps": 4, "exit": "state:0.1"}]
)
def test_a_model_without_loops_refuses_an_effort_by_its_name_and_field(depth):
    student = tiny_student()
    engine = Engine(student)
    with pytest.raises(UsageError, match=f"^request 1: {next(iter(depth))}: tiny-0 has no loop") as refusal:
        engine.generate([bare(), bare(ThinkingPolicy(**depth))])
    assert "\n" not in str(refusal.value)
    reply = engine.generate([bare(max_new_tokens=4)])[0]
    assert reply.steps == () and reply.core_steps == engine.stats.core_steps == 0
    with pytest.raises(UsageError, match="has no loop"):
        HuggingFace(student.model).prefill([[1]], [ThinkingPolicy(**depth).effort])


def test_a_depth_beyond_the_models_is_refused_before_anything_is_decoded():
    engine = Engine(STUDENT)
    with pytest.raises(UsageError, match=r"num_steps is 13; loops-0 may take 12 \(max_recurrence"):
        engine.generate([bare(), bare(ThinkingPolicy(num_steps=13))])
    assert engine.stats.prefilled == 0


def test_a_cache_of_another_kind_can_be_given():
    engine = Engine(STUDENT, backend=Loops(STUDENT.model, cache="shared:2"))
    (reply,) = engine.generate([bare(ThinkingPolicy(num_steps=9), max_new_tokens=5)])
    assert reply.steps == (9,) * 5


@pytest.mark.slow
@given(
    picks=st.lists(st.integers(0, 41), min_size=2, max_size=9),
    batch=st.integers(1, 6),
    hot=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_any_mixture_of_policies_and_depths_comes_out_as_alone(picks, batch, hot):
    asked = [
        Request(
            prompt("?" * (1 + pick % 2)),
            replace(POLICIES[pick % 6], **DEPTHS[pick // 6]),
            Sampling(1.0) if hot else Sampling(),
            seed=pick,
            max_answer=3,
        )
        for pick in picks
    ]
    assert Engine(STUDENT, max_batch=batch).generate(asked) == alone(asked)
