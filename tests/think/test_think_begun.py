"""Replies that are taken up in their middle: the machine is where it was, the engine goes on as it did."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from machines import PROMPT, machines, mock, play

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.students.template import Template, render_prompt
from tutelage.think.begun import take_up
from tutelage.think.engine import Engine, Request
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

STUDENT = tiny_student(closes=1.5)
TEXT_MARKS = tiny_student(think_tokens=False)  # the marker is a line of text
POLICIES = (
    ThinkingPolicy(max_tokens=12),
    ThinkingPolicy(max_tokens=8, close_text="so"),
    ThinkingPolicy(min_tokens=4, max_tokens=14),
    ThinkingPolicy(max_tokens=5, close="newline", grace_tokens=4),
)


def request(student=STUDENT, policy=POLICIES[0], **options):
    prompt = tuple(render_prompt(student.tokenizer, student.template, "7?"))
    return Request(prompt, policy, Sampling(1.0), max_answer=6, **options)


@given(machine=machines(), seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_state_is_the_one_that_wrote_the_ids(machine, seed, share):
    policy = replace(machine.policy, refuse_closes=0, wait=None, max_waits=None)
    if policy.rank is not None:
        policy = replace(policy, close="newline")
    machine = replace(machine, script=replace(machine.script, policy=policy, waits=()))
    room = machine.script.overhead + machine.policy.answer_reserve + 30
    whole = machine.start(room, PROMPT[-1])
    play(whole, mock(seed))
    assume(whole.progress.closed_by != "eos")  # from the ids alone it looks like the model's own marker
    cut = round(share * len(whole.ids))
    state = machine.start(room, PROMPT[-1])
    take_up(state, whole.ids[:cut])
    # What it forces next is what came; and it stands where the other one stood.
    assert state.opening == tuple(whole.ids[cut : cut + len(state.opening)])
    play(state, mock(seed), begun=whole.ids[:cut])
    if state.ids == whole.ids:  # a mock has no memory of what was masked before the cut
        assert state.phases == whole.phases
        assert state.progress.written == whole.progress.written
        assert state.progress.finish_reason == whole.progress.finish_reason
    assert state.ids[:cut] == whole.ids[:cut]


@pytest.mark.slow
@pytest.mark.parametrize("student", [STUDENT, TEXT_MARKS, replace(STUDENT, template=Template(prefill=False))])
def test_a_reply_taken_up_anywhere_goes_on_to_the_same_ids(student):
    for number, policy in enumerate(POLICIES):
        asked = request(student, policy, seed=number)
        (whole,) = Engine(student).generate([asked])
        cuts = [replace(asked, begun=whole.ids[:cut]) for cut in range(len(whole.ids) + 1)]
        for again in Engine(student, max_batch=4).generate(cuts):
            assert (again.ids, again.phases, again.finish_reason) == (
                whole.ids,
                whole.phases,
                whole.finish_reason,
            )
            assert again.written == whole.written
            assert again.by_force == whole.by_force or whole.closed_by == "eos"


def test_a_reply_does_not_depend_on_who_else_goes_on_from_the_same_ids():
    asked = request()
    (whole,) = Engine(STUDENT).generate([asked])
    cut = whole.ids[:4]
    # The same ids given as a longer prompt draw their own random numbers.
    mixed = [replace(asked, begun=cut), replace(asked, prompt_ids=asked.prompt_ids + cut)]
    alone = [Engine(STUDENT).generate([one])[0] for one in mixed]
    assert Engine(STUDENT).generate(mixed) == alone
    assert alone[0].ids == whole.ids


def test_what_was_given_is_prefilled_once_and_not_decoded():
    asked = request()
    (whole,) = Engine(STUDENT).generate([asked])
    cut = whole.ids[:6]
    engine = Engine(STUDENT)
    engine.generate([replace(asked, begun=cut, seed=seed) for seed in range(5)])
    assert engine.stats.prefilled == len(asked.prompt_ids) + 6


def test_ids_that_the_policy_could_not_have_written_are_refused_with_their_place():
    engine = Engine(STUDENT)
    close = STUDENT.tokenizer.convert_tokens_to_ids("</think>")
    end = STUDENT.tokenizer.eos_token_id
    with pytest.raises(UsageError, match=r"at place 12 it does not allow the id 65"):
        engine.check(request(begun=(65,) * 13))  # the budget ends after 12
    with pytest.raises(UsageError, match="more than one reply: it is over after 3"):
        engine.check(request(begun=(65, close, end, 65)))
    with pytest.raises(UsageError, match="place 1 it does not allow"):
        engine.check(request(policy=POLICIES[2], begun=(65, close)))  # too early
    with pytest.raises(UsageError, match="not in the model's vocabulary"):
        engine.check(request(begun=(10**6,)))


def test_policies_whose_past_cannot_be_told_from_ids_are_refused():
    for policy in (
        ThinkingPolicy(max_tokens=12, refuse_closes=1, wait="no"),
        ThinkingPolicy(min_tokens=3, wait="no"),
    ):
        with pytest.raises(UsageError, match="closes are refused"):
            Engine(STUDENT).check(request(policy=policy, begun=(65,)))
    with pytest.raises(UsageError, match="needs the scores"):
        Engine(STUDENT).check(
            request(policy=ThinkingPolicy(max_tokens=9, close="rank:4", grace_tokens=2), begun=(65,))
        )


def test_stop_strings_and_log_probabilities_do_not_go_with_a_begun_reply():
    for options in ({"stop": ("x",)}, {"logprobs": 0}):
        with pytest.raises(UsageError, match="cannot have stop strings or log-probabilities"):
            request(begun=(65,), **options)
