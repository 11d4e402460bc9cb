"""Promises of the sequential methods."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talkers import Talker, part, questions, talking_solver

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.students.template import Template, markers
from tutelage.think.control import (
    FINAL_ANSWER,
    S1_CLOSE,
    S1_OPEN,
    BudgetForcing,
    ClassConditional,
    Natural,
    RejectionSampling,
    TokenConditional,
    power_of_two,
)
from tutelage.think.methods import reply_seed
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.think.steps import StepConditional
from tutelage.think.vote import Vote
from tutelage.tokens import decode_ids, encode_text

GREEDY = Sampling()


def one(method, say, **settings):
    """The outcome of a method with a model that says `say`."""
    talker = Talker(say if callable(say) else lambda prompt, seed: say)
    return method.run(talking_solver(talker, **settings), questions(1))[0], talker


def test_s1_at_its_maximum():
    outcome, _ = one(BudgetForcing(max_tokens=4, close_text=FINAL_ANSWER), "thinking|7", sampling=GREEDY)
    assert part(outcome.chosen, "thinking") == "thin"
    assert part(outcome.chosen, "close") == "</think>"
    assert part(outcome.chosen, "answer").startswith(FINAL_ANSWER)
    assert outcome.chosen.closed_by == "budget" and outcome.chosen.count("answer")[1] == len(FINAL_ANSWER)


def test_s1_waits_as_often_as_told_and_then_lets_go():
    method = BudgetForcing(refuse_closes=2, wait="Wait", close_text=FINAL_ANSWER)
    outcome, _ = one(method, "a|b|c|7", sampling=GREEDY)
    assert part(outcome.chosen, "thinking") == "aWaitbWaitc"
    # The model closed by itself in the end: nothing is written for it, and it answers freely.
    assert outcome.chosen.closed_by == "model" and part(outcome.chosen, "answer") == "7"
    assert outcome.chosen.count("thinking") == (3, 8) == outcome.thinking


def test_s1_markers_are_a_control_token_and_a_word():
    """`<|im_start|>think` and `<|im_start|>answer`, as s1's models write them."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    template = Template(think_open=S1_OPEN, think_close=S1_CLOSE)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    marks = markers(tokenizer, template)
    assert marks.open == (start, *encode_text(tokenizer, "think\n"))
    assert marks.close == (start, *encode_text(tokenizer, "answer\n"))
    policy = ThinkingPolicy(refuse_closes=1, wait="Wait", max_tokens=12, close_text=FINAL_ANSWER)
    state = policy.compile(tokenizer, template).start(200, 1)
    cache = []
    for token in [*encode_text(tokenizer, "hm"), *marks.close, *encode_text(tokenizer, "oh, no")]:
        step = state.step(token)
        del cache[len(cache) - step.back :]
        cache += step.feed
    # Its own close became the wait string, whole; then the maximum closed with s1's marker.
    assert decode_ids(tokenizer, cache) == f"hmWaitoh, no{S1_CLOSE}\n{FINAL_ANSWER}"


@given(
    most=st.integers(0, 12),
    refuse=st.integers(0, 2),
    thoughts=st.lists(st.text("abc", max_size=6), min_size=1, max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_a_budget_is_never_exceeded(most, refuse, thoughts):
    if most == 0:
        refuse = 0
    method = BudgetForcing(max_tokens=most, refuse_closes=refuse, wait="W" if most > 1 else None)
    outcome, _ = one(method, "|".join(thoughts) + "|7", sampling=GREEDY)
    assert sum(outcome.thinking) <= most
    assert outcome.chosen.refused <= refuse


def test_what_budget_forcing_leaves_open_is_the_solvers():
    policy = ThinkingPolicy(max_tokens=50, close_text="So:", answer_reserve=3)
    solver = talking_solver(Talker(lambda prompt, seed: "t|7"), policy=policy)
    assert BudgetForcing().policy(solver) == policy
    assert BudgetForcing(max_tokens=9).policy(solver) == ThinkingPolicy(
        max_tokens=9, close_text="So:", answer_reserve=3
    )
    assert BudgetForcing(refuse_closes=1, close_text="").policy(solver) == ThinkingPolicy(
        max_tokens=50, refuse_closes=1, answer_reserve=3
    )


@pytest.mark.parametrize(
    ("method", "name", "row"),
    [
        (Natural(), "natural", {}),
        (BudgetForcing(max_tokens=8), "budget", {"budget": 8}),
        (
            BudgetForcing(refuse_closes=2, wait="Wait"),
            "wait",
            {"waits": 2, "wait": "Wait", "chosen": "fixed"},
        ),
        (
            BudgetForcing(refuse_closes=2, wait=("Wait", "Hmm")),
            "wait",
            {"waits": 2, "wait": ["Wait", "Hmm"], "chosen": "rotation"},
        ),
        (BudgetForcing(refuse_closes=1), "suppress", {"waits": 1}),
        (TokenConditional(64), "token-conditional", {"asked": 64, "forced_end": False}),
        (
            StepConditional(4, forced_end=True),
            "step-conditional",
            {"asked": 4, "forced_end": True, "counted_by": "ours"},
        ),
        (ClassConditional("long"), "class-conditional", {"asked": "long"}),
        (RejectionSampling(32, tries=4), "rejection", {"asked": 32, "tries": 4}),
        (
            Vote(4, of=BudgetForcing(max_tokens=8)),
            "vote",
            {"budget": 8, "of": "budget", "votes": 4},
        ),
    ],
)
def test_rows_say_what_was_done(method, name, row):
    assert (method.name, method.row()) == (name, row)


def test_token_conditional_asks_in_the_prompt_and_forces_only_if_told():
    free, talker = one(TokenConditional(4), "thinking|7", sampling=GREEDY)
    assert "question 0\nThink for up to 4 tokens." in talker_prompt(talker)
    assert free.thinking == (8, 0)
    forced, _ = one(TokenConditional(4, forced_end=True), "thinking|7", sampling=GREEDY)
    assert forced.thinking == (4, 0) and forced.chosen.closed_by == "budget"
    # The solver's own maximum is not lifted by asking for more.
    capped = ThinkingPolicy(max_tokens=2)
    small, _ = one(TokenConditional(4, forced_end=True), "thinking|7", sampling=GREEDY, policy=capped)
    assert small.thinking == (2, 0)


def talker_prompt(talker):
    return decode_ids(byte_tokenizer(), talker.asked[0].prompt_ids)


@given(tokens=st.integers(1, 10**6))
@settings(deadline=None)
def test_buckets_are_powers_of_two_rounded_up(tokens):
    bucket = power_of_two(tokens)
    assert bucket & (bucket - 1) == 0 and tokens <= bucket < 2 * tokens
    assert power_of_two(bucket) == bucket


def test_class_conditional_has_two_prompts():
    prompts = {}
    for length in ("short", "long"):
        _, talker = one(ClassConditional(length), "t|7", sampling=GREEDY)
        prompts[length] = talker_prompt(talker)
    assert "briefly" in prompts["short"] and "long time" in prompts["long"]


def test_step_conditional_counts_down_in_one_reply():
    outcome, talker = one(StepConditional(2, forced_end=True), "one\n\ntwo\n\nthree|7", sampling=GREEDY)
    assert part(outcome.chosen, "thinking") == "2 steps left\none\n\n1 steps left\ntwo\n\n"
    assert len(talker.asked) == 1
    free, _ = one(StepConditional(2), "one\n\ntwo\n\nthree|7", sampling=GREEDY)
    assert part(free.chosen, "thinking").endswith("two\n\nthree")


def lengths_by_try(wanted, samples=1):
    """A model that thinks `wanted[i]` tokens in attempt number i of problem p0."""
    length = {reply_seed(0, "p0", i): wanted[i] for i in range(len(wanted))}
    return lambda prompt, seed: "t" * length[seed] + "|7"


def test_rejection_takes_the_first_short_reply_and_counts_all_tries():
    outcome, talker = one(RejectionSampling(limit=4, tries=5), lengths_by_try([9, 6, 4, 1, 1]))
    assert outcome.picked == 2 and outcome.chosen.closed_by == "model"
    # Rejected tries were cut one token beyond the limit.
    assert [sum(a.completion.count("thinking")) for a in outcome.attempts] == [5, 5, 4]
    assert outcome.thinking == (14, 0) and len(talker.asked) == 3


def test_rejection_gives_up_after_its_tries():
    outcome, _ = one(RejectionSampling(limit=4, tries=3), lengths_by_try([9, 9, 9, 1]))
    assert outcome.picked is None and outcome.chosen is None and outcome.answer is None
    assert len(outcome.attempts) == 3 and outcome.thinking == (15, 0)


def test_a_try_is_never_another_samples_reply():
    talker = Talker(lambda prompt, seed: "ttttttttt|7")
    RejectionSampling(limit=2, tries=3).run(talking_solver(talker, samples=2), questions(2))
    assert len({request.seed for request in talker.asked}) == len(talker.asked) == 12


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: TokenConditional(100), "128"),
        (lambda: TokenConditional(4, line="Be brief."), "{tokens}"),
        (lambda: RejectionSampling(-1), "limit -1"),
        (lambda: RejectionSampling(4, tries=0), "tries 0"),
        (lambda: power_of_two(0), "at least 1"),
        (lambda: Vote(0), "vote: 0 replies"),
    ],
)
def test_impossible_methods_are_refused(build, names):
    with pytest.raises(UsageError) as refused:
        build()
    assert names in str(refused.value) and "\n" not in str(refused.value)


def test_a_chooser_needs_a_choice():
    method = BudgetForcing(refuse_closes=1, choose_wait=lambda state, waits: 0)
    with pytest.raises(UsageError, match="give them as `wait`"):
        one(method, "t|7")
