"""Promises of the engine on a tiny random Llama: independence of the batch, exact forcing, replay."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymodel import byte_tokenizer, tiny_llama
from tutelage.errors import UsageError
from tutelage.students.template import Template, markers, render_prompt
from tutelage.think.backend import Batch
from tutelage.think.engine import Request, generate
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.tokens import Markers, encode_text

TOKENIZER = byte_tokenizer()
MODEL = tiny_llama(len(TOKENIZER))
MARKS = markers(TOKENIZER, Template())
POLICIES = (
    ThinkingPolicy(max_tokens=12),
    ThinkingPolicy(max_tokens=0, close_text="A:"),
    ThinkingPolicy(min_tokens=5, max_tokens=20, wait=(" Wait", " Hm"), refuse_closes=1),
    ThinkingPolicy(min_tokens=6, max_tokens=30),
    ThinkingPolicy(max_tokens=25, refuse_closes=2, wait="no", max_waits=1, close_text="so"),
)


def encode(text):
    return encode_text(TOKENIZER, text)


def requests(count=10, sampling=None, policies=POLICIES, **options):
    asked = [render_prompt(TOKENIZER, Template(), "?" * (1 + 3 * (i % 4)) + str(i)) for i in range(count)]
    return [
        Request(
            tuple(ids), policies[i % len(policies)], sampling or Sampling(), seed=i, max_answer=6, **options
        )
        for i, ids in enumerate(asked)
    ]


def run(asked, model=MODEL, *, marks=MARKS, **options):
    return generate(model, asked, marks, encode=encode, **options)


def step_by_step(request, forced_ids, model=MODEL):
    """The greedy reply written with whole forwards, without any cache: ids and where they were forced."""
    ids = list(request.prompt_ids)
    for by_force, token in forced_ids:
        if by_force:
            ids.append(token)
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
    return tuple(ids[len(request.prompt_ids) :])


def test_greedy_ids_are_those_of_whole_forwards_without_a_cache():
    asked = requests(policies=(ThinkingPolicy(max_tokens=12), ThinkingPolicy(max_tokens=7, close_text="A:")))
    for request, made in zip(asked, run(asked), strict=True):
        assert step_by_step(request, list(zip(made.forced, made.ids, strict=True))) == made.ids


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.9, top_p=0.9, top_k=20)])
def test_a_reply_does_not_depend_on_its_neighbours(sampling):
    asked = requests(sampling=sampling)
    together = run(asked)
    assert together == [run([request])[0] for request in asked]
    assert together == run(asked, max_batch=3)  # rows leave, others join
    assert together == run(asked[::-1], max_batch=4)[::-1]
    assert len({made.ids for made in together}) > 5


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=2)])
def test_a_marker_of_several_tokens_and_withdrawals_do_not_touch_the_neighbours(sampling):
    """The pair of ids that the random model writes most often, taken as the closing marker, makes it close,
    and be refused, all the time."""
    probe = run(requests(30, sampling, (ThinkingPolicy(max_tokens=40),)))
    pairs = Counter(pair for made in probe for pair in pairwise(made.ids[:40]) if pair[0] != pair[1])
    marks = Markers(MARKS.open, pairs.most_common(1)[0][0], MARKS.end)
    policies = (
        ThinkingPolicy(min_tokens=25, max_tokens=40),
        ThinkingPolicy(refuse_closes=2, max_tokens=40, wait=" Wait"),
        ThinkingPolicy(max_tokens=40),
    )
    asked = requests(30, sampling, policies)
    together = run(asked, marks=marks)
    assert together == [run([request], marks=marks)[0] for request in asked]
    assert sum(made.refused for made in together[0::3]) > 2
    assert sum(made.waits for made in together[1::3]) > 2
    if sampling.greedy:  # after a withdrawal a row is where it would be had it never written the marker
        for request, made in [*zip(asked, together, strict=True)][1::3]:
            assert step_by_step(request, list(zip(made.forced, made.ids, strict=True))) == made.ids


@given(
    budget=st.integers(0, 30),
    wait=st.sampled_from([None, " Wait"]),
    refuse=st.integers(0, 2),
    least=st.integers(0, 10),
    temperature=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_closing_one_long_trace_again_is_the_same_as_a_run_of_its_own(
    budget, wait, refuse, least, temperature
):
    natural = requests(6, Sampling(temperature), (ThinkingPolicy(max_tokens=40),))
    traces = run(natural)
    policy = ThinkingPolicy(
        min_tokens=min(least, budget),
        max_tokens=budget,
        refuse_closes=refuse if budget > len(wait or "") else 0,
        wait=wait,
        close_text="A",
    )
    own = [Request(r.prompt_ids, policy, r.sampling, r.seed, max_answer=6) for r in natural]
    again = [
        Request(r.prompt_ids, policy, r.sampling, r.seed, max_answer=6, replay=trace)
        for r, trace in zip(natural, traces, strict=True)
    ]
    assert run(again) == run(own)


def test_forced_and_sampled_counts_add_up_and_the_context_is_kept():
    room = MODEL.config.max_position_embeddings
    for request, made in zip(asked := requests(max_new_tokens=50), run(asked), strict=True):
        assert len(made.ids) == len(made.forced) == len(made.phases) <= 50
        assert sum(made.forced) == sum(made.by_force.values())
        assert len(made.ids) == sum(made.written.values())
        assert len(made.ids) + len(request.prompt_ids) <= room
        assert made.count("thinking")[1] % len(encode(" Wait")) == 0 or request.policy.wait != " Wait"
    long = Request(tuple(range(7, room - 40)), ThinkingPolicy(answer_reserve=8))
    (made,) = run([long])
    assert len(made.ids) <= room - len(long.prompt_ids)
    assert made.closed_by == "model" or sum(made.count("answer")) >= 8 or made.finish_reason == "stop"


def test_samples_of_one_prompt_share_its_prefill(monkeypatch):
    seen = []
    forward = Batch._forward
    monkeypatch.setattr(
        Batch, "_forward", lambda self, ids, *a: (seen.append(ids.shape), forward(self, ids, *a))[1]
    )
    one = requests(1)[0]
    same = [Request(one.prompt_ids, one.policy, Sampling(1.0), seed, max_answer=3) for seed in range(5)]
    made = run(same)
    assert seen[0] == (1, len(one.prompt_ids))
    assert all(shape[1] == 1 for shape in seen[1:]), "nothing is prefilled twice, forced tokens are only fed"
    assert len({m.ids for m in made}) == 5
    monkeypatch.undo()
    assert made == [run([request])[0] for request in same], "sharing changes nothing"


def test_neighbours_may_have_other_sampling_settings():
    settings_ = (
        Sampling(),
        Sampling(1.0),
        Sampling(0.8, top_p=0.7),
        Sampling(1.2, top_k=5),
        Sampling(3.0, 0.99),
    )
    asked = [replace(one, sampling=settings_[i % 5]) for i, one in enumerate(requests(20))]
    assert run(asked) == [run([request])[0] for request in asked] == run(asked, max_batch=7)


def test_forced_ids_are_the_texts_of_the_policy_and_are_counted():
    policy = ThinkingPolicy(max_tokens=9, close_text="So: ")
    for made in run(requests(4, policies=(policy,)), prefilled=False):
        pieces = {
            phase: [t for t, p in zip(made.ids, made.phases, strict=True) if p == phase] for phase in range(5)
        }
        assert tuple(pieces[0]) == MARKS.open and tuple(pieces[2]) == MARKS.close
        assert made.count("open") == (0, 1) and made.count("thinking") == (9, 0)
        assert made.count("close") == (0, 1) and made.closed_by == "budget"
        assert pieces[3][:4] == list(encode("So: ")) and made.count("answer")[1] == 4
        assert [t for t, f in zip(made.ids, made.forced, strict=True) if f] == [
            *MARKS.open, *MARKS.close, *encode("So: "),
        ]  # fmt: skip


def test_forbidden_ids_are_never_sampled():
    asked = requests(6, Sampling(2.0))
    banned = {token for made in run(asked) for token, f in zip(made.ids, made.forced, strict=True) if not f}
    banned -= {*MARKS.close, *MARKS.end}
    for made in run(asked, forbid=sorted(banned)):
        assert banned.isdisjoint(t for t, f in zip(made.ids, made.forced, strict=True) if not f)


def test_the_attention_setting_of_the_model_is_left_as_it_was():
    before = MODEL.config._attn_implementation
    run(requests(2))
    assert MODEL.config._attn_implementation == before


def test_no_requests_give_no_completions_and_progress_is_told():
    assert run([]) == []
    told = []
    run(requests(7), max_batch=2, progress=lambda *call: told.append(call))
    assert told[-1][:2] == (7, 7) and [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_what_cannot_be_run_is_refused_by_name():
    asked = requests(1)
    config = tiny_llama(40).config
    sliding = tiny_llama(40)
    config = sliding.config
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UsageError, match=r"llama \(LlamaForCausalLM\): layers with sliding_attention"):
        run(asked, sliding)
    flash = tiny_llama(40)
    flash.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UsageError, match="flash_attention_2"):
        run(asked, flash)
    with pytest.raises(UsageError, match=r"request 0: .* tokens of room"):
        run([Request(tuple(range(7, 7 + 250)))])
    with pytest.raises(UsageError, match="request 0: the prompt is empty"):
        run([Request(())])
    with pytest.raises(UsageError, match="max_batch"):
        run(asked, max_batch=0)
    (plain,) = run(asked)
    with pytest.raises(UsageError, match="cannot be replayed"):
        run([Request(asked[0].prompt_ids, replay=replace(plain, refused=1))])
