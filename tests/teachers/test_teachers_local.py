"""A local model as a source of traces: exact counts, marked text, common random numbers."""

import pytest

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.students.template import render_prompt
from tutelage.teachers.local import LocalTeacher, decode, local_sampler, to_traces
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.tokens import encode_text

STUDENT = tiny_student(closes=2.0)
PROBLEMS = [Problem(f"p{i}", "how many? " + "x" * i, "7") for i in range(5)]
HOT = LocalTeacher(STUDENT, "tiny", Sampling(1.0), samples=3, seed=1, max_answer=5)
WAITING = ThinkingPolicy(min_tokens=8, max_tokens=20, refuse_closes=1, wait=" Wait", close_text="A: ")


def test_traces_come_in_order_with_exact_counts_and_settings():
    traces = list(local_sampler(HOT, WAITING)(PROBLEMS))
    assert [(t.problem_id, t.sample) for t in traces] == [(p.id, s) for p in PROBLEMS for s in range(3)]
    assert len({t.id for t in traces}) == len(traces)
    assert any(t.forced_spans for t in traces) and {t.closed_by for t in traces} == {"model", "budget"}
    for trace, reply in zip(traces, decode(HOT, PROBLEMS, WAITING), strict=True):
        assert (trace.thinking_sampled, trace.thinking_forced) == reply.count("thinking")
        assert trace.thinking_tokens <= 20
        assert (trace.answer_sampled, trace.answer_forced) == reply.count("answer")
        assert trace.closed_by == reply.closed_by and trace.finish_reason == reply.finish_reason
        assert trace.answer_forced == (len("A: ") if trace.closed_by == "budget" else 0)
        for start, end in trace.forced_spans:
            assert trace.thinking[start:end].strip() == "Wait"
        assert trace.settings["policy"]["wait"] == " Wait" and trace.settings["seed"] == 1
    question = render_prompt(STUDENT.tokenizer, STUDENT.template, PROBLEMS[2].question)
    assert traces[6].prompt_tokens == len(question)


def test_the_same_call_gives_equal_traces_whatever_the_batch():
    once = list(local_sampler(HOT, WAITING)(PROBLEMS))
    small = LocalTeacher(STUDENT, "tiny", Sampling(1.0), samples=3, seed=1, max_answer=5, max_batch=2)
    assert once == list(local_sampler(small, WAITING)(PROBLEMS))
    assert once[3:6] == list(local_sampler(HOT, WAITING)(PROBLEMS[1:2]))
    other = LocalTeacher(STUDENT, "tiny", Sampling(1.0), samples=3, seed=2, max_answer=5)
    assert [t.thinking for t in once] != [t.thinking for t in local_sampler(other, WAITING)(PROBLEMS)]


def test_forced_text_is_marked_by_its_place_in_the_thinking():
    policy, teacher = ThinkingPolicy(max_tokens=30), LocalTeacher(STUDENT, "m")
    reply, cut = decode(teacher, PROBLEMS, policy)[0], 10
    wait = encode_text(STUDENT.tokenizer, "Wait, é")
    doctored = type(reply)(
        ids=(*reply.ids[:cut], *wait, *reply.ids[cut:]),
        forced=reply.forced[:cut] + bytes([1] * len(wait)) + reply.forced[cut:],
        phases=reply.phases[:cut] + bytes([1] * len(wait)) + reply.phases[cut:],
        finish_reason=reply.finish_reason,
        closed_by=reply.closed_by,
        written=reply.written,
        by_force=reply.by_force,
        refused=1,
        waits=1,
    )
    (trace,) = to_traces(teacher, PROBLEMS[:1], policy, [doctored])
    ((start, end),) = trace.forced_spans
    assert trace.thinking[start:end] == "Wait, é"


def test_without_thinking_the_reply_is_the_answer():
    student = tiny_student(thinking=False)
    teacher = LocalTeacher(student, "m", max_answer=4)
    for trace in local_sampler(teacher, ThinkingPolicy())(PROBLEMS):
        assert (trace.thinking, trace.thinking_tokens, trace.closed_by) == ("", 0, "none")
        assert trace.answer_sampled <= 4
    with pytest.raises(UsageError, match="thinking switched off"):
        list(local_sampler(teacher, ThinkingPolicy(min_tokens=3))(PROBLEMS))


def test_padding_is_never_sampled_and_a_long_question_is_one_line():
    teacher = LocalTeacher(STUDENT, "m", Sampling(5.0), samples=20)
    pad = STUDENT.tokenizer.pad_token_id
    assert all(pad not in reply.ids for reply in decode(teacher, PROBLEMS[:1], ThinkingPolicy(max_tokens=60)))
    with pytest.raises(UsageError, match="room"):
        list(local_sampler(HOT, ThinkingPolicy())([Problem("long", "x" * 300)]))
