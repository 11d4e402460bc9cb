"""Promises of the engine on tiny random models: independence of the batch, sharing, exact forcing, streaming,
cancellation, and what it refuses."""

import random
import threading
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinymodel import byte_tokenizer, tiny_llama, tiny_student
from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.students.template import Template, markers, render_prompt
from tutelage.think.backend import HuggingFace
from tutelage.think.engine import Completion, Engine, Piece, PromptTooLong, Request
from tutelage.think.machine import PHASES
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.tokens import decode_ids, encode_text

STUDENT = tiny_student(closes=1.5)
TOKENIZER, MODEL = STUDENT.tokenizer, STUDENT.model
MARKS = markers(TOKENIZER, Template())
POLICIES = (
    ThinkingPolicy(max_tokens=12),
    ThinkingPolicy(max_tokens=0, close_text="A:"),
    ThinkingPolicy(min_tokens=5, max_tokens=20, wait=(" Wait", " Hm"), refuse_closes=1),
    ThinkingPolicy(min_tokens=6, max_tokens=30),
    ThinkingPolicy(max_tokens=25, refuse_closes=2, wait="no", max_waits=1, close_text="so"),
    ThinkingPolicy(max_tokens=9, close="rank:40", grace_tokens=6),
)
HOT = Sampling(1.0)


def encode(text):
    return encode_text(TOKENIZER, text)


def prompt(text, student=STUDENT):
    return tuple(render_prompt(student.tokenizer, student.template, text))


def requests(count=10, sampling=None, policies=POLICIES, student=STUDENT, **options):
    return [
        Request(
            prompt("?" * (1 + 3 * (i % 4)) + str(i), student),
            policies[i % len(policies)],
            sampling or Sampling(),
            seed=i,
            max_answer=6,
            **options,
        )
        for i in range(count)
    ]


def run(asked, student=STUDENT, **options):
    return Engine(student, **options).generate(asked)


def alone(asked, student=STUDENT):
    engine = Engine(student, max_batch=1)
    return [engine.generate([request])[0] for request in asked]


def step_by_step(request, made, model=MODEL):
    """The greedy reply written with whole forwards, without any cache."""
    ids = list(request.prompt_ids)
    for by_force, token in zip(made.forced, made.ids, strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1]
        scores[TOKENIZER.pad_token_id] = -torch.inf  # never sampled
        ids.append(token if by_force else int(scores.argmax()))
    return tuple(ids[len(request.prompt_ids) :])


def test_greedy_ids_are_those_of_whole_forwards_without_a_cache():
    asked = requests(policies=(ThinkingPolicy(max_tokens=12), ThinkingPolicy(max_tokens=7, close_text="A:")))
    for request, made in zip(asked, run(asked), strict=True):
        assert step_by_step(request, made) == made.ids


def test_greedy_ids_are_those_of_transformers_generate():
    student = replace(STUDENT, template=Template(thinking=False))
    asked = [Request(prompt("?" * i, student), max_new_tokens=40) for i in range(1, 7)]
    for request, made in zip(asked, run(asked, student), strict=True):
        ids = torch.tensor([request.prompt_ids])
        options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": list(MARKS.end)}
        known = MODEL.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, **options)
        assert made.ids == tuple(known[0, len(request.prompt_ids) :].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), HOT, Sampling(0.9, top_p=0.9, top_k=20, min_p=0.02)])
def test_a_reply_does_not_depend_on_its_neighbours(sampling):
    asked = requests(12, sampling=sampling)
    together = run(asked)
    assert together == alone(asked)
    assert together == run(asked, max_batch=3)  # rows leave, others join
    assert together == run(asked[::-1], max_batch=4)[::-1]
    assert len({made.ids for made in together}) > 5
    assert {made.closed_by for made in together} >= {"budget", "grace"}


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=2)])
def test_a_marker_of_several_tokens_and_withdrawals_do_not_touch_the_neighbours(sampling):
    """The pair of ids that the random model writes most often, taken as the closing marker, makes it close,
    and be refused, all the time."""
    probe = run(requests(24, sampling, (ThinkingPolicy(max_tokens=40),)))
    pairs = Counter(
        pair for made in probe for pair in pairwise(made.ids[:40]) if pair[0] != pair[1] and max(pair) < 256
    )
    close = pairs.most_common(1)[0][0]

    class Marked(Engine):
        def _machine(self, policy, thinks):
            machine = super()._machine(policy, thinks)
            span = replace(machine.script.close, ids=close, tokens=2)
            return replace(machine, script=replace(machine.script, close=span))

    policies = (
        ThinkingPolicy(min_tokens=25, max_tokens=40),
        ThinkingPolicy(refuse_closes=2, max_tokens=40, wait=" Wait"),
        ThinkingPolicy(max_tokens=40),
    )
    asked = requests(12, sampling, policies)
    asked += [replace(one, policy=policies[(i + 1) % 3]) for i, one in enumerate(asked)]  # partners to share
    together = Marked(STUDENT).generate(asked)
    assert together == [Marked(STUDENT).generate([request])[0] for request in asked]
    assert together == Marked(STUDENT, max_batch=3).generate(asked)
    assert sum(made.refused - made.waits for made in together) > 2
    assert sum(made.waits for made in together) > 2
    if sampling.greedy:  # after a withdrawal a row is where it would be had it never written the marker
        for request, made in [*zip(asked, together, strict=True)]:
            if request.policy.wait is not None:
                assert step_by_step(request, made) == made.ids


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 5))
@example(seed=60771, slots=3)  # one row draws twice in a step in which another does not draw
@settings(max_examples=5, deadline=None)
def test_sharing_changes_no_reply_however_few_slots_there_are(seed, slots):
    """Random policies, seeds, samplings and arrivals over two prompts: rows part all the time, and more parts
    wait for a slot than there are."""
    chance = random.Random(seed)
    asked = []
    for i in range(10):
        budget = chance.choice([0, 3, 8, 9, 15, 30])
        policy = ThinkingPolicy(
            max_tokens=budget,
            min_tokens=chance.choice([0, budget // 2]),
            refuse_closes=chance.choice([0, 1, 2]) if budget > 5 else 0,
            wait=chance.choice([None, "W", ("Hm", "No")]),
            close_text=chance.choice(["", "A:"]),
        )
        sampling = chance.choice([Sampling(), HOT, Sampling(1.0, top_k=3)])
        logprobs = chance.choice([None, None, 2])
        asked.append(
            Request(prompt("ab"[i % 2]), policy, sampling, chance.choice([1, 2]), 5, logprobs=logprobs)
        )
    engine = Engine(STUDENT, max_batch=slots)
    jobs = engine.submit_all(asked[:6])
    for request in asked[6:]:  # latecomers find their prompt in a row that has gone on
        for _ in range(chance.randint(0, 6)):
            engine.step()
        jobs.append(engine.submit(request))
    while engine.step():
        assert engine.stats.rows <= slots
    for job, expected in zip(jobs, alone(asked), strict=True):
        assert job.error is None
        numbers = [one.logprob for one in expected.logprobs]
        assert [one.logprob for one in job.completion.logprobs] == pytest.approx(numbers, abs=1e-3)
        assert replace(job.completion, logprobs=()) == replace(expected, logprobs=())


@pytest.mark.slow
def test_a_curve_of_budgets_costs_one_long_trace_and_the_answers():
    budgets = range(8, 72, 8)
    policies = [ThinkingPolicy(max_tokens=budget, answer_reserve=4) for budget in budgets]
    student = tiny_student(seed=1, closes=0.0)  # never closes by itself
    asked = [Request(prompt("?", student), policy, HOT, 7, max_answer=4) for policy in policies]
    engine = Engine(student)
    together = engine.generate(asked)
    assert together == alone(asked, student)
    trace = max(sum(made.count("thinking")) for made in together)
    rest = sum(len(made.ids) - sum(made.count("thinking")) for made in together)
    assert trace == 64
    stats = engine.stats
    assert stats.prefilled == len(asked[0].prompt_ids)
    assert stats.decoded <= trace + rest, "nothing is computed twice"
    assert stats.decoded + stats.shared >= sum(len(made.ids) for made in together) - len(together)


def test_samples_of_one_prompt_share_its_prefill_and_forced_ids_are_only_fed(monkeypatch):
    seen = []
    prefill = HuggingFace.prefill

    def spy(self, prompts, efforts):
        seen.append(list(prompts))
        return prefill(self, prompts, efforts)

    monkeypatch.setattr(HuggingFace, "prefill", spy)
    one = requests(1)[0]
    same = [replace(one, sampling=HOT, seed=seed, max_answer=3) for seed in range(5)]
    engine = Engine(STUDENT)
    jobs = engine.submit_all(same)
    while engine.step():
        pass
    assert seen == [[one.prompt_ids]]
    assert [job.cached_tokens for job in jobs] == [0] + 4 * [len(one.prompt_ids)]
    assert len({job.completion.ids for job in jobs}) == 5
    assert [job.completion for job in jobs] == alone(same), "sharing changes nothing"


def test_a_slot_that_falls_free_is_filled_at_the_next_step():
    sizes = (3, 30, 4, 5, 6, 7)
    policies = [ThinkingPolicy(max_tokens=0, answer_reserve=1)] * 6
    student = tiny_student(seed=1)
    asked = [
        Request(prompt(str(i), student), policy, max_answer=size)
        for i, (size, policy) in enumerate(zip(sizes, policies, strict=True))
    ]
    made = [len(one.ids) for one in alone(asked, student)]
    assert made[1] > sum(made[2:]), "the long one outlives the others"
    engine = Engine(student, max_batch=2)
    jobs = engine.submit_all(asked)
    while any(not job.over for job in jobs if job is not jobs[1]):
        before = engine.stats.decoded
        engine.step()
        assert engine.stats.decoded - before == 2 or engine.stats.waiting == 0
    assert not jobs[1].over


def test_forced_and_sampled_counts_add_up_and_the_context_is_kept():
    room = MODEL.config.max_position_embeddings
    for request, made in zip(asked := requests(max_new_tokens=50), run(asked), strict=True):
        assert len(made.ids) == len(made.forced) == len(made.phases) <= 50
        assert sum(made.forced) == sum(made.by_force.values())
        assert len(made.ids) == sum(made.written.values())
        assert len(made.ids) + len(request.prompt_ids) <= room
    long = Request(tuple(range(7, room - 40)), ThinkingPolicy(answer_reserve=8))
    (made,) = run([long])
    assert len(made.ids) <= room - len(long.prompt_ids)
    assert made.closed_by == "model" or sum(made.count("answer")) >= 8 or made.finish_reason == "stop"


@pytest.mark.slow
def test_neighbours_may_have_other_sampling_settings():
    settings_ = (Sampling(), HOT, Sampling(0.8, top_p=0.7), Sampling(1.2, top_k=5), Sampling(3.0, min_p=0.1))
    asked = [replace(one, sampling=settings_[i % 5]) for i, one in enumerate(requests(10))]
    assert run(asked) == alone(asked) == run(asked, max_batch=7)


def test_forced_ids_are_the_texts_of_the_policy_and_are_counted():
    policy = ThinkingPolicy(max_tokens=9, close_text="So: ")
    student = tiny_student(closes=0.0, prefill=False)
    for made in run(requests(4, policies=(policy,), student=student), student):
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


def test_padding_and_ids_beyond_the_tokenizer_are_never_sampled():
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer) + 50)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] *= 3
        model.lm_head.weight[tokenizer.pad_token_id] *= 3
    student = Student(model, tokenizer, Template(), "tiny")
    for made in run(requests(6, Sampling(2.0)), student):
        assert max(made.ids) < len(tokenizer) and tokenizer.pad_token_id not in made.ids


def test_without_thinking_the_whole_reply_is_the_answer():
    (made,) = run([Request(prompt("?"), sampling=HOT, seed=3, max_new_tokens=20, thinks=False)])
    assert set(made.phases) <= {PHASES.index("answer"), PHASES.index("end")} and made.closed_by == "none"


def listen_to(engine, asked):
    """Pieces and end of each request."""
    told = [[] for _ in asked]
    jobs = [engine.submit(one, log.append) for one, log in zip(asked, told, strict=True)]
    while engine.step():
        pass
    return jobs, told


@pytest.mark.slow
@pytest.mark.parametrize("logprobs", [None, 0, 3])
def test_the_pieces_of_a_stream_add_up_to_the_reply(logprobs):
    asked = requests(6, Sampling(1.5), logprobs=logprobs)
    asked += [replace(one, policy=POLICIES[2]) for one in asked]
    for request, (*pieces, made) in zip(
        asked, listen_to(Engine(STUDENT, max_batch=8), asked)[1], strict=True
    ):
        assert isinstance(made, Completion) and all(isinstance(piece, Piece) for piece in pieces)
        assert replace(made, logprobs=()) == alone([replace(request, logprobs=None)])[0]
        for phase in ("thinking", "answer"):
            mine = [piece for piece in pieces if piece.phase == phase]
            ids = [t for t, p in zip(made.ids, made.phases, strict=True) if PHASES[p] == phase]
            assert "".join(piece.text for piece in mine) == decode_ids(TOKENIZER, ids)
            counts = [sum(piece.tokens for piece in mine if piece.forced == forced) for forced in (0, 1)]
            assert tuple(counts) == made.count(phase)
        if logprobs is not None:
            noted = [one for piece in pieces for one in piece.logprobs]
            kept = [
                one
                for one, p in zip(made.logprobs, made.phases, strict=True)
                if PHASES[p] in ("thinking", "answer")
            ]
            assert noted == kept and all(len(one.top) == logprobs for one in noted)


def test_log_probabilities_are_the_models_own_before_temperature_also_of_forced_ids():
    asked = requests(8, Sampling(1.5, top_k=3), logprobs=2)
    for request, made in zip(asked, run(asked), strict=True):
        with torch.no_grad():
            whole = MODEL(torch.tensor([[*request.prompt_ids, *made.ids]])).logits[0].log_softmax(-1)
        assert len(made.logprobs) == len(made.ids)
        for i, one in enumerate(made.logprobs):
            expected = whole[len(request.prompt_ids) + i - 1]
            assert one.token == made.ids[i] and one.logprob == pytest.approx(
                float(expected[one.token]), abs=2e-3
            )
            assert [value for _, value in one.top] == pytest.approx(
                expected.topk(2).values.tolist(), abs=2e-3
            )


def test_a_stop_string_ends_the_answer_and_only_the_answer():
    plain = Request(prompt("?"), ThinkingPolicy(max_tokens=20, answer_reserve=30), HOT, 5, max_answer=30)
    ((*pieces, whole),) = listen_to(Engine(STUDENT), [plain])[1]
    answer = "".join(piece.text for piece in pieces if piece.phase == "answer")
    thinking = "".join(piece.text for piece in pieces if piece.phase == "thinking")
    stop = answer[3:5]
    assert stop not in answer[:4] and len(stop.encode()) > 2, "of several ids, so that it comes in parts"
    asked = replace(plain, stop=("never", stop, thinking[1:3]))
    ((*pieces, made),) = listen_to(Engine(STUDENT), [asked])[1]
    assert "".join(piece.text for piece in pieces if piece.phase == "answer") == answer[:3]
    assert "".join(piece.text for piece in pieces if piece.phase == "thinking") == thinking
    assert made.finish_reason == "stop" and made.stop == stop
    assert made.ids == whole.ids[: len(made.ids)] and len(made.ids) < len(whole.ids)
    assert sum(piece.tokens for piece in pieces if piece.phase == "answer") == sum(made.count("answer"))
    assert run([asked]) == [made], "also where nobody listens"


def test_a_cancelled_request_is_gone_before_the_next_step_and_the_others_go_on():
    asked = [replace(one, policy=ThinkingPolicy(max_tokens=40)) for one in requests(6)]
    asked += asked[:2]  # these share their rows
    engine, ended = Engine(STUDENT, max_batch=3), []
    jobs = [engine.submit(one, ended.append) for one in asked]
    for _ in range(5):
        engine.step()
    victims = [jobs[0], jobs[5]]  # in a row with another, and still waiting
    before = [len(job.state.ids) for job in victims]
    for job in victims:
        engine.cancel(job)
    engine.step()
    assert [job.completion.finish_reason for job in victims] == ["cancelled"] * 2
    assert [len(job.state.ids) for job in victims] == before and before[0] > 0 == before[1]
    while engine.step():
        pass
    engine.cancel(jobs[1])  # over: nothing happens
    engine.step()
    rest = [i for i in range(8) if jobs[i] not in victims]
    assert [jobs[i].completion for i in rest] == alone([asked[i] for i in rest])
    assert engine.stats.rows == engine.stats.waiting == 0


def test_a_row_is_free_at_once_when_its_only_request_is_cancelled():
    engine = Engine(STUDENT, max_batch=1)
    first, second = engine.submit_all(
        [requests(2, policies=(ThinkingPolicy(max_tokens=40),))[i] for i in (0, 1)]
    )
    engine.step()
    assert (engine.stats.rows, engine.stats.waiting) == (1, 1)
    engine.cancel(first)
    engine.step()
    assert first.over and second.state.ids


@pytest.mark.slow
def test_requests_come_from_other_threads_while_one_drives():
    asked, engine, stop = requests(24), Engine(STUDENT, max_batch=4), threading.Event()

    def drive():
        while not stop.is_set():
            if not engine.step():
                engine.wait(0.05)

    driver = threading.Thread(target=drive)
    driver.start()
    made = {}
    ended = threading.Semaphore(0)

    def ask(number):
        def listen(news):
            if isinstance(news, Completion):
                made[number] = news
                ended.release()

        engine.submit(asked[number], listen)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert ended.acquire(timeout=60)
    stop.set()
    driver.join()
    assert [made[i] for i in range(24)] == alone(asked)


def test_the_state_at_a_refused_close_is_told_to_whoever_chooses_the_string():
    told = []

    def choose(state, waits):
        told.append((state.clone(), waits))
        return 1

    policy = ThinkingPolicy(max_tokens=30, refuse_closes=2, wait=("no", "yes"))
    student = tiny_student(closes=3.0)
    asked = [Request(prompt(str(i), student), policy, HOT, i, 4, choose_wait=choose) for i in range(4)]
    made = run(asked[:1] + asked[1:], student)
    assert sum(one.waits for one in made) == len(told) > 0
    for one in made:
        texts = decode_ids(TOKENIZER, [t for t, f in zip(one.ids, one.forced, strict=True) if f])
        assert "no" not in texts
    number, first = next((i, one) for i, one in enumerate(made) if one.waits)
    with torch.no_grad():
        ids = torch.tensor([[*asked[number].prompt_ids, *first.ids[: first.forced.index(1)]]])
        expected = student.model.model(ids).last_hidden_state[0, -1]
    assert any(torch.allclose(state, expected, atol=1e-3) for state, _ in told)


def test_one_request_that_fails_fails_alone():
    def choose(state, waits):
        raise ValueError("no idea")

    policy = ThinkingPolicy(max_tokens=30, min_tokens=25, refuse_closes=2, wait=("no", "yes"))
    student = tiny_student(closes=3.0)
    asked = [Request(prompt("0", student), policy, HOT, i, 4) for i in range(8)]
    engine = Engine(student)
    good = engine.submit_all(asked)
    bad = [engine.submit(replace(one, choose_wait=choose)) for one in asked]
    while engine.step():
        pass
    assert [job.completion for job in good] == alone(asked, student)
    failed = [job for job in bad if job.error]
    assert failed and all(isinstance(job.error, ValueError) for job in failed)
    with pytest.raises(ValueError, match="no idea"):
        engine.generate([one.request for one in failed[:1]])
    deaf = engine.submit(asked[0], lambda news: 1 / 0)
    fine = engine.submit(asked[1])
    while engine.step():
        pass
    assert isinstance(deaf.error, ZeroDivisionError) and fine.completion == good[1].completion


def test_a_model_that_fails_ends_everything_and_the_engine_can_go_on(monkeypatch):
    engine, told = Engine(STUDENT, max_batch=2), []
    jobs = [engine.submit(one, told.append) for one in requests(4)]
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine._backend, "decode", lambda *args: (_ for _ in ()).throw(MemoryError("full")))
        with pytest.raises(MemoryError):
            engine.step()
    assert all(isinstance(job.error, MemoryError) for job in jobs)
    assert engine.generate(requests(2)) == alone(requests(2))


def test_no_requests_give_no_completions_and_progress_is_told():
    assert run([]) == []
    told = []
    Engine(STUDENT, max_batch=2).generate(requests(7), lambda *call: told.append(call))
    assert told[-1][:2] == (7, 7) and [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_what_cannot_be_run_is_refused_by_name():
    sliding = tiny_llama(40)
    sliding.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UsageError, match=r"llama \(LlamaForCausalLM\): layers with sliding_attention"):
        Engine(replace(STUDENT, model=sliding))
    flash = tiny_llama(40)
    flash.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UsageError, match="flash_attention_2"):
        Engine(replace(STUDENT, model=flash))
    with pytest.raises(UsageError, match="max_batch"):
        Engine(STUDENT, max_batch=0)
    engine = Engine(STUDENT)
    with pytest.raises(PromptTooLong, match=r"request 1: .*250 tokens long.*context 256: .*tokens of room"):
        engine.generate([Request((7,)), Request(tuple(range(7, 7 + 250)))])
    with pytest.raises(UsageError, match=r"max_new_tokens is 9: .*reserve") as short:
        engine.check(Request((7,), max_new_tokens=9))
    assert not isinstance(short.value, PromptTooLong)
    with pytest.raises(UsageError, match="vocabulary"):
        engine.check(Request((7, 10**6)))
    with pytest.raises(UsageError, match="wait string"):
        engine.check(Request((7,), ThinkingPolicy(max_tokens=2, refuse_closes=1, wait="Wait")))
    assert engine.stats.waiting == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt_ids": ()}, "the prompt is empty"),
        ({"max_answer": 0}, "max_answer is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop": ("a", "")}, "stop holds an empty string"),
        ({"choose_wait": lambda state, waits: 0}, "policy's wait is None"),
    ],
)
def test_impossible_requests_are_refused(fields, reason):
    with pytest.raises(UsageError, match=reason):
        Request(**{"prompt_ids": (1,), **fields})
