"""Promises of the backend with loops: each token's scores are those of the model's own forward at the depth
that its effort gives it, whatever else is in the batch; what has left is not computed."""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from looping import VOCABULARY, loop_model

from tutelage.errors import UsageError
from tutelage.students.recurrent import exits
from tutelage.students.recurrent.cache import LoopCache
from tutelage.think import loops, slots
from tutelage.think.effort import Effort, Exit
from tutelage.think.loops import Loops
from tutelage.think.loops_forward import Parts

MODEL = loop_model()
EXITS = ("state:0.3", "acceleration:0.3", "kl:0.02", "kl:0.05,min=3,every=2", "argmax:3", "state:0.25,min=2")
STATE_EXITS = ("state:0.3", "acceleration:0.3", "state:0.4,min=3,every=2")
PROMPTS = ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [3], [9, 9, 9, 9, 1])
KINDS = (
    {},
    {"block": "pre", "adapter": "add", "norm_after_core": "none", "num_core_layers": 1},
    {"norm_after_core": "exit", "num_prelude_layers": 2, "num_coda_layers": 2, "num_key_value_heads": 4},
    {"num_prelude_layers": 0, "num_coda_layers": 0, "num_core_layers": 3, "qk_bias": True},
    {"attention_bias": True, "qk_norm": True, "head_dim": 16, "num_key_value_heads": 1, "state_std": 0.0},
)


def effort(steps=None, exit=None, continuous=False):
    return Effort(steps, Exit.parse(exit) if exit else None, continuous)


efforts = st.builds(effort, st.none() | st.integers(1, 9), st.none() | st.sampled_from(EXITS), st.booleans())


def whole(model, ids, steps):
    """Scores after each of `ids` from one forward without a cache: (tokens, vocabulary)."""
    with torch.no_grad():
        return model(torch.tensor([ids]), num_steps=steps).logits[0].float()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def alone(model, prompt, deep, fed=()):
    """A row by itself: `prompt`, then `fed` [(token, effort or None)] one by one. Its last scores, its
    steps."""
    part = Loops(model)
    (row,), scores = part.prefill([prompt], [deep])
    last = scores.logits[0]
    for token, own in fed:
        last = part.extend({row: [token]}, own)[row].logits[0]
    return last, list(part.passes(row))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_depth_is_the_function_of_the_models_own_forward(kind):
    model = loop_model(**kind)
    depths = (1, 5, 3, 12)
    with torch.inference_mode():
        part = Loops(model)
        rows, scores = part.prefill(PROMPTS, [effort(depths[0]), effort(depths[1]), Effort(), effort(12)])
        held = [list(prompt) for prompt in PROMPTS]
        for k, steps in enumerate(depths):
            torch.testing.assert_close(scores.logits[k], whole(model, held[k], steps)[-1], rtol=0, atol=1e-4)
            torch.testing.assert_close(model.lm_head(scores.states[k]), scores.logits[k], rtol=0, atol=1e-5)
        for token in range(3):
            scores = part.decode({row: token + k for k, row in enumerate(rows)}, rows[::-1])
            held = [[*ids, token + k] for k, ids in enumerate(held)]
        for k, steps in enumerate(depths):
            expected = whole(model, held[k], steps)[-1]
            torch.testing.assert_close(scores.logits[3 - k], expected, rtol=0, atol=1e-4)
            assert part.passes(rows[k]) == [steps] * len(held[k])
        assert part.core_steps == sum(steps * len(ids) for steps, ids in zip(depths, held, strict=True))


@pytest.mark.parametrize("exit", EXITS)
@pytest.mark.parametrize("kind", [{}, KINDS[2]])
def test_exits_are_those_of_the_models_own_forward_token_by_token(exit, kind):
    """The reference passes each token through the model at every depth, over a cache in which the tokens
    before it stopped where they stopped, and then once more at the depth that the exit says."""
    model, rule, most = loop_model(**kind), Exit.parse(exit), 8
    ids = [4, 5, 6, 7, 8]
    cache, taken = LoopCache(model.config, "latest"), []
    with torch.inference_mode():
        for token in ids:
            states, logits = [], {}
            ask = {"input_ids": torch.tensor([[token]])}
            for steps in range(1, most + 1):
                out = model(**ask, past_key_values=copy.deepcopy(cache), num_steps=steps)
                states.append(out.state[:, 0])
                logits[id(states[-1])] = out.logits[:, 0]
            place = torch.tensor([[len(taken)]])
            states.insert(0, model.model.first_state(torch.zeros(1, 1, 32), place)[:, 0])
            steps = int(exits.exit_steps(rule, states, lambda state, told=logits: told[id(state)]))
            expected = model(**ask, past_key_values=cache, num_steps=steps).logits[0, 0]
            taken.append(steps)
        part = Loops(model)
        (row,), scores = part.prefill([ids[:1]], [Effort(most, rule)])
        for token in ids[1:]:
            scores = part.decode({row: token}, [row])
    assert part.passes(row) == taken and len(set(taken)) > 1
    close(scores.logits[0], expected)


@pytest.mark.parametrize("deep", [effort(), effort(7), *(effort(10, exit) for exit in STATE_EXITS)])
def test_a_prompt_at_once_is_the_prompt_token_by_token(deep):
    """Not so for exits that read predictions: see `loops`."""
    with torch.inference_mode():
        together = Loops(MODEL)
        rows, scores = together.prefill(PROMPTS, [deep] * len(PROMPTS))
        for row, logits, prompt in zip(rows, scores.logits, PROMPTS, strict=True):
            last, steps = alone(MODEL, prompt[:1], deep, [(token, None) for token in prompt[1:]])
            close(logits, last)
            assert together.passes(row) == steps


@pytest.mark.slow
@given(
    deep=st.lists(efforts, min_size=4, max_size=4),
    order=st.permutations(range(4)),
    cut=st.integers(0, 4),
)
@settings(max_examples=8, deadline=None)
def test_a_row_is_the_same_alone_and_beside_any_others_however_prompts_are_grouped(deep, order, cut):
    with torch.inference_mode():
        part, rows = Loops(MODEL), {}
        for group in (order[:cut], order[cut:]):
            if group:
                handles, _ = part.prefill([PROMPTS[k] for k in group], [deep[k] for k in group])
                rows |= dict(zip(group, handles, strict=True))
        for token in (5, 6):
            scores = part.decode({row: token + k for k, row in rows.items()}, [rows[k] for k in range(4)])
        for k, row in rows.items():
            agrees(part, row, (PROMPTS[k], deep[k], [(5 + k, None), (6 + k, None)]), scores.logits[k])


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), smallest=st.sampled_from([4, 128]), data=st.data())
@settings(max_examples=15, deadline=None)
def test_rows_of_any_effort_come_go_fork_and_take_back_without_touching_each_other(seed, smallest, data):
    """A random life of a batch. The reference computes every row alone, from nothing."""
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(slots, "_SMALLEST", smallest)
        part, rows = Loops(MODEL), {}
        for _ in range(9):
            event = chance.choice(["prefill", "decode", "decode", "extend", "withdraw", "fork", "free"])
            row = chance.choice(list(rows)) if rows else None
            if event == "prefill" or row is None:
                prompts = [
                    [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 7))] for _ in range(2)
                ]
                deep = [data.draw(efforts) for _ in prompts]
                handles, scores = part.prefill(prompts, deep)
                for k, handle in enumerate(handles):
                    rows[handle] = (prompts[k], deep[k], [])
                    agrees(part, handle, rows[handle], scores.logits[k])
                continue
            prompt, deep_, fed = rows[row]
            if event == "free":
                part.free(row)
                del rows[row]
            elif event == "withdraw":
                count = chance.randint(0, len(fed))
                part.withdraw(row, count)
                rows[row] = (prompt, deep_, fed[: len(fed) - count])
            elif event == "fork":
                length = chance.randint(0, len(fed))
                rows[part.fork(row, len(prompt) + length)] = (prompt, deep_, fed[:length])
            elif event == "extend":
                own = None if deep_.continuous else data.draw(st.none() | efforts.filter(_parallel))
                some = chance.sample(list(rows), chance.randint(1, len(rows)))
                some = [each for each in some if own is None or not rows[each][1].continuous] or [row]
                tokens = {
                    each: [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 4))] for each in some
                }
                found = part.extend(tokens, own)
                for each, ids in tokens.items():
                    rows[each][2].extend((token, own) for token in ids)
                    assert len(found[each].logits) == len(found[each].states) == len(ids)
                    agrees(part, each, rows[each], found[each].logits[-1])
            if rows:
                wanted = chance.sample(list(rows), chance.randint(0, len(rows)))
                tokens = {each: chance.randrange(VOCABULARY) for each in rows}
                scores = part.decode(tokens, wanted)
                for each, token in tokens.items():
                    rows[each][2].append((token, None))
                assert len(scores.logits) == len(wanted)
                for k, each in enumerate(wanted):
                    agrees(part, each, rows[each], scores.logits[k])


def _parallel(deep):
    return not deep.continuous


def agrees(part, row, known, logits):
    expected, steps = alone(MODEL, *known)
    assert part.passes(row) == steps
    close(logits, expected)


@pytest.mark.parametrize("deep", [effort(6), effort(10, "state:0.3"), effort(10, "kl:0.02")])
def test_several_known_tokens_at_once_are_those_tokens_one_by_one(deep):
    with torch.inference_mode():
        at_once, in_turn = Loops(MODEL), Loops(MODEL)
        rows, _ = at_once.prefill(PROMPTS, [deep] * 4)
        again, _ = in_turn.prefill(PROMPTS, [deep] * 4)
        tokens = {rows[1]: [1, 2, 3, 4, 5], rows[0]: [6], rows[3]: [7, 8]}
        found = at_once.extend(tokens)
        for row, ids in tokens.items():
            for k, token in enumerate(ids):
                twin = again[rows.index(row)]
                close(found[row].logits[k], in_turn.extend({twin: [token]})[twin].logits[0])
            assert at_once.passes(row) == in_turn.passes(twin)


def test_drafts_that_were_taken_back_leave_no_trace():
    """As speculation uses it: shallow tokens, taken back, then the same ones deep."""
    with torch.inference_mode():
        part = Loops(MODEL)
        (row, other), _ = part.prefill(PROMPTS[:2], [effort(8)] * 2)
        drafts = [5, 6, 7]
        part.extend({row: drafts}, effort(2))
        part.withdraw(row, 3)
        found = part.extend({row: drafts, other: drafts})[row].logits
    close(found, whole(MODEL, [*PROMPTS[0], *drafts], 8)[-3:])
    assert part.passes(row) == [8] * 6


def test_a_deeper_token_reads_shallower_ones_at_their_last_step():
    """As the model's own cache has it with "latest"."""
    cache = LoopCache(MODEL.config, "latest")
    with torch.inference_mode():
        for ids, steps in ((PROMPTS[1], 2), ([1, 2], 7), ([3], 4)):
            out = MODEL(torch.tensor([ids]), past_key_values=cache, num_steps=steps).logits[0]
        part = Loops(MODEL)
        (row,), _ = part.prefill([PROMPTS[1]], [effort(2)])
        part.extend({row: [1, 2]}, effort(7))
        close(part.extend({row: [3]}, effort(4))[row].logits, out)


@pytest.mark.parametrize("mode", ["shared:1", "shared:2", "shared:4"])
def test_a_shared_cache_is_the_models_own_and_takes_no_more_memory_with_depth(mode):
    cache = LoopCache(MODEL.config, mode)
    with torch.inference_mode():
        part = Loops(MODEL, cache=mode)
        (row,), scores = part.prefill([PROMPTS[1]], [effort(7)])
        held = part._slots._shape[0]
        close(
            scores.logits[0],
            MODEL(torch.tensor([PROMPTS[1]]), past_key_values=cache, num_steps=7).logits[0, -1],
        )
        for token, steps in ((1, 7), (2, 1), (3, 12), (4, 3)):
            out = MODEL(torch.tensor([[token]]), past_key_values=cache, num_steps=steps).logits[0]
            close(part.extend({row: [token]}, effort(steps))[row].logits, out)
        assert part._slots._shape[0] == held == 2 + 2 * int(mode[-1])


def test_memory_follows_the_steps_that_were_made_and_not_those_that_were_allowed():
    model = loop_model(max_recurrence=1000)
    with torch.inference_mode():
        part = Loops(model)
        (row,), _ = part.prefill([PROMPTS[1]], [effort(1000, "state:0.9")])
        most = max(part.passes(row))
        assert part._slots._shape[0] <= 2 + 2 * max(3, 2 * most) < 100
        part.extend({row: [1]}, effort(40))
        assert 2 + 2 * 40 <= part._slots._shape[0] <= 2 + 2 * 80


def test_what_has_left_is_not_computed(monkeypatch):
    """The arrays of the loop shrink: what the core is given is what is counted."""
    seen, core = [], Parts.core

    def spy(self, state, *more):
        seen.append(len(state))
        return core(self, state, *more)

    monkeypatch.setattr(Parts, "core", spy)
    with torch.inference_mode():
        part = Loops(MODEL)
        rows, _ = part.prefill(PROMPTS, [effort(2), effort(10, "state:0.3"), effort(5), effort(9, "kl:0.02")])
        assert sum(seen) == part.core_steps == sum(sum(part.passes(row)) for row in rows)
        before = part.core_steps
        seen.clear()
        part.decode(dict.fromkeys(rows, 1), rows)
        assert seen == sorted(seen, reverse=True) and seen[0] == 4 and len(set(seen)) > 2
        assert sum(seen) == part.core_steps - before


@pytest.mark.parametrize("exit", ["state:1e-30", "acceleration:1e-30", "kl:1e-30", "argmax:1000"])
def test_an_exit_that_is_never_met_is_bounded(exit):
    with torch.inference_mode():
        for deep, most in ((effort(4, exit), 4), (effort(None, exit), 12)):
            part = Loops(MODEL)
            (row,), scores = part.prefill([[1, 2, 3]], [deep])
            assert part.passes(row) == [most] * 3
            close(scores.logits[0], whole(MODEL, [1, 2, 3], most)[-1])


@pytest.mark.parametrize("exit", EXITS)
def test_a_state_that_is_not_a_number_comes_to_an_end_and_stays_with_its_row(exit):
    model = loop_model()
    model.model.embed_tokens.weight.data[7] = torch.nan
    prompts, deep = [[1, 2, 3], [4, 7, 5]], effort(8, exit)
    with torch.inference_mode():
        part = Loops(model)
        (good, bad), scores = part.prefill(prompts, [deep, deep])
        assert part.passes(bad)[1:] == [8, 8] and scores.logits[1].isnan().all()
        expected, steps = alone(model, prompts[0], deep, [(6, None)])
        found = part.decode({good: 6, bad: 6}, [good]).logits[0]
        close(found, expected)
        assert part.passes(good) == steps


def test_continuous_thought_starts_from_the_last_state():
    """The reference: the model's own forward, told the initial state of each token of the reply."""
    cache, ids, steps = LoopCache(MODEL.config), [1, 2, 3], 4
    with torch.inference_mode():
        out = MODEL(torch.tensor([ids]), past_key_values=cache, num_steps=steps)
        part = Loops(MODEL)
        (row,), _ = part.prefill([ids], [effort(steps, continuous=True)])
        for token in (5, 6, 7):
            start = out.state[:, -1:]
            out = MODEL(torch.tensor([[token]]), past_key_values=cache, num_steps=steps, initial_state=start)
            logits = part.decode({row: token}, [row]).logits[0]
            close(logits, out.logits[0, 0])
        fresh = whole(MODEL, [*ids, 5, 6, 7], steps)[-1]
        assert (logits - fresh).abs().max() > 1e-3
        copied = part.fork(row, 5)  # taken up in the middle of the reply
        close(part.extend({copied: [7]})[copied].logits[0], logits)
        back = part.fork(row, 2)  # and within the prompt, whose tokens start by themselves
        part.extend({back: [3, 5, 6]})
        close(part.extend({back: [7]})[back].logits[0], logits)


def test_half_precision_stays_close_to_the_model():
    model = loop_model().to(torch.bfloat16)
    with torch.inference_mode():
        part = Loops(model)
        rows, scores = part.prefill(PROMPTS, [effort(3), effort(5), effort(), effort(1, "state:0.1")])
        scores = part.decode(dict.fromkeys(rows, 5), rows)
        for k, steps in enumerate((3, 5, 3, 1)):
            expected = whole(model, [*PROMPTS[k], 5], steps)[-1]
            assert (scores.logits[k] - expected).abs().max() < 0.06 * expected.abs().max()
        with_exit = Loops(model)
        rows, _ = with_exit.prefill(PROMPTS, [effort(12, "state:0.3")] * 4)
        assert len({steps for row in rows for steps in with_exit.passes(row)}) > 1


def test_many_prompts_are_computed_some_thousand_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(loops, "_PREFILL_TOKENS", 8)
    sizes, feed = [], Loops._feed
    monkeypatch.setattr(
        Loops, "_feed", lambda self, fed, *more: (sizes.append(len(fed)), feed(self, fed, *more))[1]
    )
    with torch.inference_mode():
        _, scores = Loops(MODEL).prefill([*PROMPTS, PROMPTS[1]], [effort(3)] * 5)
    assert sizes == [1, 1, 2, 1]
    for logits, ids in zip(scores.logits, [*PROMPTS, PROMPTS[1]], strict=True):
        close(logits, whole(MODEL, ids, 3)[-1])


def test_the_mode_of_the_model_does_not_matter_and_is_left_alone():
    model = loop_model()
    with torch.inference_mode():
        expected = Loops(model).prefill([[1, 2]])[1].logits
        model.train()
        close(Loops(model).prefill([[1, 2]])[1].logits, expected)
    assert model.training and all(module.training for module in model.modules())


def test_depths_and_models_that_cannot_be_run_are_refused_in_one_line():
    part = Loops(MODEL)
    for ask in (
        lambda: part.prefill([[1]], [effort(13)]),
        lambda: part.extend({part.prefill([[1]])[0][0]: [1]}, effort(13)),
    ):
        with (
            pytest.raises(UsageError, match=r"num_steps is 13; .*max_recurrence") as refusal,
            torch.no_grad(),
        ):
            ask()
        assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError, match="shared:M"):
        Loops(MODEL, cache="shared:0")
    hooked = loop_model()
    hooked.model.core[0].mlp.register_forward_hook(lambda *args: None)
    with pytest.raises(UsageError, match=r"core\.0\.mlp has a hook"):
        Loops(hooked)


def test_an_adapter_is_refused_by_its_place():
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(loop_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UsageError, match=r"q_proj.* merge adapters"):
        Loops(adapted)


def test_rows_are_forgotten():
    with torch.inference_mode():
        part = Loops(MODEL)
        rows, _ = part.prefill(PROMPTS, [effort(2, continuous=True)] * 4)
        for row in rows:
            part.free(row)
    assert not part._rows and not part._slots._reach and not part._slots._shelves
