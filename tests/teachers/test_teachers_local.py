"""A local model as a source of traces: exact counts, marked text, common random numbers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymodel import tiny_llama, tiny_student
from tutelage.errors import UsageError
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.records import Problem, Trace, read_records, write_records
from tutelage.students.template import render_prompt
from tutelage.teachers.collect import collect
from tutelage.teachers.local import LocalTeacher, decode, local_sampler, to_traces
from tutelage.teachers.money import cost, price
from tutelage.teachers.weights import fingerprint
from tutelage.think.engine import Completion
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


def marked(pieces, tokenizer=STUDENT.tokenizer):
    """The trace of a reply whose thinking is `pieces`: (text or ids, forced) in order."""
    ids, forced = [], bytearray()
    for piece, by_force in pieces:
        more = encode_text(tokenizer, piece) if isinstance(piece, str) else piece
        ids += more
        forced += bytes([by_force]) * len(more)
    written = {"thinking": len(ids)} if ids else {}
    reply = Completion(
        tuple(ids), bytes(forced), bytes([1]) * len(ids), "stop", "model", written, {}, refused=0, waits=0
    )
    teacher = replace(HOT, student=replace(STUDENT, tokenizer=tokenizer), samples=1)
    (trace,) = to_traces(teacher, PROBLEMS[:1], ThinkingPolicy(), [reply])
    return trace


def covered(trace):
    """For each character of the thinking whether a forced span holds it; spans are in order and apart."""
    flat = [edge for span in trace.forced_spans for edge in span]
    assert flat == sorted(set(flat)) and (not flat or (flat[0] >= 0 and flat[-1] <= len(trace.thinking)))
    return [any(start <= i < end for start, end in trace.forced_spans) for i in range(len(trace.thinking))]


TEXT = st.text(st.sampled_from(" \n\u3000aé–好🎲</think>") | st.characters(codec="utf-8"), max_size=6)


@given(st.lists(st.tuples(TEXT, st.booleans()), max_size=6))
@settings(max_examples=150, deadline=None)
def test_spans_cover_the_forced_characters_and_no_others(pieces):
    """Characters of several tokens, forced text at both ends, white space that is cut off."""
    trace = marked(pieces)
    text = "".join(piece for piece, _ in pieces)
    flags = [by_force for piece, by_force in pieces for _ in piece]
    lead = len(text) - len(text.lstrip())
    assert trace.thinking == text.strip()
    assert covered(trace) == flags[lead : lead + len(trace.thinking)]


def test_spans_are_right_behind_a_character_that_was_never_finished():
    half = list(encode_text(STUDENT.tokenizer, "好"))[:2]
    trace = marked([(" ", False), (half, False), (" Wait", True), (half[:1], False), ("!", True)])
    assert trace.thinking == "\ufffd Wait\ufffd!"
    assert trace.forced_spans == ((1, 6), (7, 8))


def test_spans_are_right_for_a_tokenizer_of_whole_phrases():
    tokenizer = build_tokenizer()
    pieces = [("Counter", False), (". Ann", True), (": 7", False), ("Answer", True)]
    trace = marked(pieces, tokenizer)
    assert trace.thinking == "Counter. Ann: 7Answer"
    assert [trace.thinking[a:b] for a, b in trace.forced_spans] == [". Ann", "Answer"]


def test_policies_are_compared_under_common_random_numbers():
    """Until a policy interferes, a sampled reply is the same under every policy; and it does not depend on
    which other problems are asked, or in which order."""
    short, long = (list(decode(HOT, PROBLEMS, ThinkingPolicy(max_tokens=n))) for n in (6, 30))
    for one, other in zip(short, long, strict=True):
        own = one.count("thinking")[0]
        assert one.ids[:own] == other.ids[:own]
    assert len({reply.ids for reply in long}) == len(long), "samples and problems have numbers of their own"
    back = list(local_sampler(HOT, WAITING)(PROBLEMS[::-1]))
    assert sorted(back, key=by_place) == sorted(local_sampler(HOT, WAITING)(PROBLEMS), key=by_place)


def by_place(trace):
    return trace.problem_id, trace.sample


def test_traces_survive_a_file(tmp_path):
    policy = replace(WAITING, wait=(" Wait", " Hm"))
    traces = list(local_sampler(HOT, policy)(PROBLEMS))
    write_records(tmp_path / "traces.parquet", traces, Trace)
    assert read_records(tmp_path / "traces.parquet", Trace) == traces
    assert ThinkingPolicy.from_dict(traces[0].settings["policy"]) == policy


def test_rows_of_the_model_beyond_the_tokenizer_are_never_sampled():
    known = len(STUDENT.tokenizer)
    wide = replace(STUDENT, model=tiny_llama(known + 200))
    teacher = LocalTeacher(wide, "m", Sampling(5.0), samples=10)
    replies = decode(teacher, PROBLEMS[:1], ThinkingPolicy(max_tokens=60))
    assert max(token for reply in replies for token in reply.ids) < known


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


# --- through the ledger ---

SOLVER = replace(HOT, policy=WAITING, model=fingerprint(STUDENT))


def solve(path, count=5, samples=3, teacher=SOLVER, **options):
    return collect(PROBLEMS[:count], teacher, samples=samples, ledger_path=path / "l.sqlite", **options)


def plain(trace):
    """All of a trace but what says which ledger it came through."""
    return replace(trace, id="", request_key="", settings={})


def test_through_the_ledger_come_the_traces_of_the_sampler(tmp_path):
    found = solve(tmp_path)
    assert list(map(plain, found.traces)) == list(map(plain, local_sampler(HOT, WAITING)(PROBLEMS)))
    assert {trace.closed_by for trace in found.traces} == {"model", "budget"}
    trace = next(iter(found.traces))
    assert {**trace.settings, "model": ""} == {
        **next(iter(local_sampler(HOT, WAITING)(PROBLEMS))).settings,
        "model": "",
    }
    assert (found.cost, found.sent, found.bought, found.error) == (None, 0, 15, None)


def test_what_was_decoded_once_is_not_decoded_again(tmp_path):
    first = list(solve(tmp_path, 3, 2).traces)
    again = solve(tmp_path, 5, 3)
    assert (again.bought, again.reused) == (9, 6)
    assert [t for t in again.traces if t.sample < 2][:6] == first
    # Replies come and go with the commit of their batches: one row at a time gives the same ones.
    alone = replace(SOLVER, max_batch=1)
    (tmp_path / "other").mkdir()
    assert list(solve(tmp_path / "other", teacher=alone).traces) == list(again.traces)


def test_a_model_that_was_trained_on_is_another_teacher(tmp_path):
    other = tiny_student(closes=2.0)
    assert fingerprint(other) == SOLVER.model, "the same weights, wherever they were loaded"
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1
    assert fingerprint(other) != SOLVER.model
    solve(tmp_path, 1)
    assert solve(tmp_path, 1, teacher=replace(SOLVER, student=other, model=fingerprint(other))).bought == 3


def test_an_answer_that_ran_into_its_limit_is_truncated_and_kept(tmp_path):
    short = replace(SOLVER, max_answer=2)
    found = solve(tmp_path, teacher=short)
    cut = [trace.answer_sampled for trace in found.traces if trace.finish_reason == "length"]
    assert found.states["truncated"] == len(cut) > 0
    assert set(cut) == {2}
    assert solve(tmp_path, teacher=short).bought == 0


def test_a_question_without_room_fails_alone(tmp_path):
    problems = [PROBLEMS[0], Problem("long", "x" * 300), PROBLEMS[1]]
    found = collect(problems, SOLVER, samples=1, ledger_path=tmp_path / "l")
    assert [trace.problem_id for trace in found.traces] == ["p0", "p1"]
    ((problem, reason),) = found.failed
    assert problem == "long" and "room" in reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "model: nothing names the weights"),
        ({"max_answer": 0}, "max_answer: 0"),
        ({"max_batch": 0}, "max_batch: 0"),
        ({"student": tiny_student(thinking=False)}, "thinking switched off"),
    ],
)
def test_a_solver_that_cannot_work_says_so(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        solve(tmp_path, teacher=replace(SOLVER, **change))


def test_a_price_makes_a_cost(tmp_path):
    found = solve(tmp_path, 1, 1, teacher=replace(SOLVER, price=price(1, 2)))
    assert found.cost == cost(price(1, 2), found.prompt_tokens, found.completion_tokens) > 0
