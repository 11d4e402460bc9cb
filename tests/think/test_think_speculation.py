"""Self-speculation: the same replies as deep decoding, whatever is asked, and drafts that are counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.template import Template
from tutelage.think import Engine, Request, Sampling, ThinkingPolicy
from tutelage.think.effort import Effort
from tutelage.think.loops import Loops
from tutelage.think.speculation import Speculating

TOKENIZER = byte_tokenizer()
CLOSE = TOKENIZER.convert_tokens_to_ids("</think>")
ROOM = 96
# The same examples each time: among many thousand tokens one may lie within a last bit of an exit's threshold
# or of a draw's edge, where deep decoding and speculation may rightly differ. Failing ones are not shrunk: a
# decoding takes too long for that.
SURE: dict[str, Any] = {"derandomize": True, "phases": [Phase.explicit, Phase.generate], "database": None}


def build(scale: float = 1.5, seed: int = 0) -> Student:
    """A random recurrent model; small `scale`s make states move little, so that drafts are often right."""
    torch.manual_seed(seed)
    config = RecurrentDepthConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=len(TOKENIZER),
        mean_recurrence=6,
        max_recurrence=12,
        max_position_embeddings=ROOM,
        adapter_init="identity",
        state_std=0.2,
        tie_word_embeddings=False,
    )
    model = RecurrentDepthForCausalLM(config).eval()
    with torch.no_grad():
        for block in model.model.core:
            for weight in block.parameters():
                if weight.ndim == 2:
                    weight.mul_(scale)
        model.lm_head.weight.mul_(6.0)
        model.lm_head.weight[CLOSE] *= 1.5
    return Student(model, TOKENIZER, Template(), "deep")


STUDENT = build()
LOOPS = Loops(STUDENT.model)


def replies(requests, backend, batch=4):
    return Engine(STUDENT, max_batch=batch, backend=backend).generate(requests)


def request(prompt, policy, **more):
    return Request(tuple(prompt), policy, max_new_tokens=40, **more)


efforts = st.fixed_dictionaries(
    {
        "num_steps": st.sampled_from([None, 1, 2, 5, 12]),
        "exit": st.sampled_from([None, None, "state:0.2", "acceleration:0.3,min=2", "kl:1e-2", "argmax:2"]),
        "continuous": st.sampled_from([False, False, True]),
    }
)
thoughts = st.sampled_from(
    [
        {},
        {"max_tokens": 12},
        {"min_tokens": 10, "max_tokens": 20, "wait": ("Wait", "Hmm"), "close_text": "So:"},
        {"refuse_closes": 2, "wait": None, "max_tokens": 25},
        {"max_tokens": 14, "close": "rank:8", "grace_tokens": 6},
        {"max_tokens": 0},
    ]
)
samplings = st.sampled_from([Sampling(), Sampling(0.7), Sampling(1.0, top_k=3)])
prompts = st.lists(st.integers(3, 200), min_size=1, max_size=30)
asked = st.lists(
    st.tuples(prompts, thoughts, efforts, samplings, st.integers(0, 5), st.sampled_from([None, 2])),
    min_size=1,
    max_size=5,
)


def check(given_requests, draft_steps, lookahead, batch):
    requests = [
        request(prompt, ThinkingPolicy(**policy, **effort), sampling=sampling, seed=seed, logprobs=logprobs)
        for prompt, policy, effort, sampling, seed, logprobs in given_requests
    ]
    deep = replies(requests, LOOPS, batch)
    speculating = Speculating(LOOPS, draft_steps, lookahead)
    found = replies(requests, speculating, batch)
    for one, other in zip(found, deep, strict=True):
        assert one.ids == other.ids and one.forced == other.forced and one.steps == other.steps
        assert (one.closed_by, one.waits, one.refused) == (other.closed_by, other.waits, other.refused)
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine.token == theirs.token and mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    drafts = speculating.drafts
    assert 0 <= drafts.accepted <= drafts.drafted and 0 <= drafts.rate <= 1
    assert not speculating._rows and not LOOPS._rows, "no row is left behind"


@pytest.mark.slow
@given(asked, st.sampled_from([1, 2, 5]), st.integers(1, 9), st.integers(1, 4))
@settings(deadline=None, max_examples=2, **SURE)
def test_replies_are_those_of_deep_decoding(given_requests, draft_steps, lookahead, batch):
    check(given_requests, draft_steps, lookahead, batch)


@pytest.mark.slow
@given(asked, st.sampled_from([1, 2, 3, 5, 11]), st.integers(1, 12), st.integers(1, 5))
@settings(deadline=None, max_examples=12, **SURE)
def test_replies_are_those_of_deep_decoding_thoroughly(given_requests, draft_steps, lookahead, batch):
    check(given_requests, draft_steps, lookahead, batch)


def test_scores_are_those_of_one_token_after_the_other():
    speculating = Speculating(LOOPS, 1, 4)
    mine, _ = speculating.prefill([(5, 6, 7), (9, 8)])
    theirs, _ = LOOPS.prefill([(5, 6, 7), (9, 8)])
    try:
        for step in range(30):
            tokens = [(7 * step + 3) % 50 + 5, (5 * step) % 60 + 5]
            found = speculating.decode(dict(zip(mine, tokens, strict=True)), [mine[1], mine[0]])
            known = LOOPS.extend({row: [token] for row, token in zip(theirs, tokens, strict=True)})
            right = torch.cat([known[theirs[1]].logits, known[theirs[0]].logits])
            assert torch.allclose(found.logits, right, atol=1e-3)
            states = torch.cat([known[theirs[1]].states, known[theirs[0]].states])
            assert torch.allclose(found.states, states, atol=1e-3)
            assert list(speculating.passes(mine[0])) == list(LOOPS.passes(theirs[0]))
            found.logits.fill_(torch.nan)  # as the engine writes into what it is given
    finally:
        for row in theirs:
            LOOPS.free(row)
        for row in mine:
            speculating.free(row)


def test_rows_are_forked_and_taken_back_in_the_middle_of_drafts():
    speculating = Speculating(LOOPS, 5, 6)
    (row,), scores = speculating.prefill([(5, 6, 7)])
    told = []
    for _ in range(4):
        token = int(scores.logits[0].argmax())
        told.append(token)
        scores = speculating.decode({row: token}, [row])
    assert speculating._rows[row].ahead, "drafts are there that the next steps would leave"
    copy = speculating.fork(row, 5)
    speculating.withdraw(row, 2)
    assert len(speculating.passes(row)) == 5 == len(speculating.passes(copy))
    both = speculating.decode({row: told[2], copy: told[2]}, [row, copy])
    (fresh,), _ = LOOPS.prefill([(5, 6, 7, *told[:2])])
    right = LOOPS.extend({fresh: [told[2]]})[fresh].logits[0]
    assert torch.allclose(both.logits[0], right, atol=1e-3)
    assert torch.allclose(both.logits[1], right, atol=1e-3)
    for one in (row, copy):
        speculating.free(one)
    LOOPS.free(fresh)


@pytest.mark.slow
def test_drafts_save_steps_where_they_are_right_and_are_counted():
    calm = build(scale=0.02)
    loops = Loops(calm.model)
    speculating = Speculating(loops, 6, 8)
    asked = request([5, 6, 7], ThinkingPolicy(num_steps=12))
    calls: list[tuple[int, int]] = []
    extend = loops.extend

    def counted(tokens, effort=None):
        calls.append((sum(map(len, tokens.values())), loops.bound(effort or Effort(12))))
        return extend(tokens, effort)

    loops.extend = counted  # type: ignore[method-assign]
    (reply,) = Engine(calm, backend=speculating).generate([asked])
    (deep,) = Engine(calm, backend=Loops(calm.model)).generate([asked])
    assert reply.ids == deep.ids and reply.steps == deep.steps == (12,) * len(reply.ids)
    drafts = speculating.drafts
    assert drafts.rate > 0.5
    assert drafts.accepted + drafts.checks == len(reply.ids) - 1, "each fed token was drafted or computed"
    deep_calls = [count for count, steps in calls if steps == 12]
    assert len(deep_calls) == drafts.checks <= len(reply.ids) / 4, "one deep pass for many tokens"
    assert drafts.drafted == sum(deep_calls) - drafts.checks
    assert speculating.core_steps == loops.core_steps == 12 * (3 + sum(deep_calls)) + 6 * drafts.drafted


@pytest.mark.slow
@pytest.mark.parametrize("effort", [{"num_steps": 2}, {"exit": "kl:1e-3"}, {"continuous": True}])
def test_what_cannot_be_checked_side_by_side_is_not_drafted(effort):
    speculating = Speculating(LOOPS, 2)
    (reply,) = replies([request([5, 6], ThinkingPolicy(**effort))], speculating)
    assert speculating.drafts.drafted == 0 and speculating.drafts.alone == speculating.drafts.checks > 0
    assert reply == replies([request([5, 6], ThinkingPolicy(**effort))], LOOPS)[0]


def test_drafts_stop_at_the_end_of_the_context():
    long = request(range(5, 5 + ROOM - 10), ThinkingPolicy(max_tokens=0, answer_reserve=1))
    long = replace(long, max_new_tokens=None)
    speculating = Speculating(LOOPS, 5, 20)
    assert replies([long], speculating)[0] == replies([long], LOOPS)[0]


def test_what_makes_no_sense_is_one_line():
    for wrong, says in (
        ({"draft_steps": 0}, "num_steps is 0"),
        ({"draft_steps": 13}, "max_recurrence"),
        ({"draft_steps": 12}, "less than 12"),
        ({"draft_steps": 2, "lookahead": 0}, "lookahead is 0"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            Speculating(LOOPS, **wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="shared:2"):
        Speculating(Loops(STUDENT.model, cache="shared:2"), 2)
    with pytest.raises(UsageError, match=r"max_recurrence|may take"):
        replies([request([5], ThinkingPolicy(num_steps=13))], Speculating(LOOPS, 2))
