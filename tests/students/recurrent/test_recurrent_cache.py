"""Tokens one after another give what they give together, and each way of sharing slots is what it says."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from loopmodels import padded, small, texts
from tutelage.errors import UsageError
from tutelage.students.recurrent.cache import LoopCache

# In float64: these models are chaotic, and rounding is not what is tested.
CLOSE = {"atol": 1e-9, "rtol": 1e-9}
LAYERS = st.fixed_dictionaries(
    {
        "num_prelude_layers": st.integers(0, 2),
        "num_core_layers": st.integers(1, 3),
        "num_coda_layers": st.integers(0, 2),
        "num_key_value_heads": st.sampled_from([1, 4]),
    }
)
PROMPTS = texts(3, 6)


@torch.no_grad()
def fed(model, ids, parts, steps, mode):
    """Logits of all tokens, fed in `parts`, each with its depth of `steps`, and the cache."""
    cache = LoopCache(model.config, mode)
    logits = [
        model(part, past_key_values=cache, num_steps=depth).logits
        for part, depth in zip(ids.split(parts, dim=1), steps, strict=True)
    ]
    return torch.cat(logits, dim=1), cache


@settings(max_examples=20, deadline=None)
@given(
    shape=LAYERS,
    parts=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    steps=st.integers(1, 4),
    mode=st.sampled_from(["full", "latest", "shared:4", "shared:7"]),
)
def test_pieces_give_what_the_whole_gives_at_one_depth(shape, parts, steps, mode):
    """Of shared slots this holds where they are at least as many as steps."""
    model = small(**shape).double()
    ids = torch.stack(texts(sum(parts), sum(parts)))
    found, cache = fed(model, ids, parts, [steps] * len(parts), mode)
    torch.testing.assert_close(found, model(ids, num_steps=steps).logits, **CLOSE)
    slots = steps  # those that no step came to are not made
    assert len(cache.layers) == model.config.depth(slots)
    assert {layer.get_seq_length() for layer in cache.layers} == {sum(parts)}


class Plain:
    """The cache's meaning written without a cache: for each text position, its keys and values by slot."""

    def __init__(self, model, mode):
        self.model, self.mode = model, mode
        self.slots = int(mode.split(":")[1]) if ":" in mode else None
        self.depths = []

    def read(self, before, step):
        """The step whose keys and values of token `before` are read at `step`."""
        depth = self.depths[before]
        if self.slots is None:
            return min(step, depth - 1)
        # The last step that the token wrote into this slot; if none, its last step before.
        same = [each for each in range(depth) if each % self.slots == step % self.slots]
        return same[-1] if same else depth - 1


@torch.no_grad()
def reference(model, ids, depths, mode):
    """One token after another, each with its own depth: every layer of every step is kept, and attention
    gathers what `Plain` says."""
    inner, plain = model.model, Plain(model, mode)
    kept = {}  # (token, layer name, step) → key, value
    out = []

    def attend(name, layer, x, at, step, read):
        attention = layer.self_attn
        normed = layer.norm_1(x)
        shape = (1, 1, -1, attention.head_dim)
        rotation = inner.rotary_emb(x, position_ids=torch.tensor([[at]]))
        query = attention.q_proj(normed).view(shape).transpose(1, 2)
        key = attention.k_proj(normed).view(shape).transpose(1, 2)
        value = attention.v_proj(normed).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        kept[at, name, step] = key, value
        pairs = [kept[before, name, read(before)] for before in range(at)] + [(key, value)]
        keys = torch.cat([pair[0] for pair in pairs], dim=2)
        values = torch.cat([pair[1] for pair in pairs], dim=2)
        groups = attention.num_key_value_groups
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        weights = (query @ keys.transpose(2, 3) * attention.scaling).softmax(-1)
        x = x + attention.o_proj((weights @ values).transpose(1, 2).reshape(1, 1, -1))
        x = layer.norm_2(x)
        return layer.norm_4(x + layer.mlp(layer.norm_3(x)))

    for at, (token, depth) in enumerate(zip(ids[0], depths, strict=True)):
        e = inner.embed_tokens(token[None, None]) * model.config.embedding_scale
        for number, layer in enumerate(inner.prelude):
            e = attend(f"p{number}", layer, e, at, 0, lambda before: 0)
        state = inner.first_state(e, torch.tensor([[at]]))
        for step in range(depth):
            x = inner.adapter(state, e)
            for number, layer in enumerate(inner.core):
                x = attend(f"c{number}", layer, x, at, step, partial(plain.read, step=step))
            state = x
        x = inner.norm(state)
        for number, layer in enumerate(inner.coda):
            x = attend(f"d{number}", layer, x, at, 0, lambda before: 0)
        out.append(model.lm_head(inner.norm(x)))
        plain.depths.append(depth)
    return torch.cat(out, dim=1)


@settings(max_examples=15, deadline=None)
@given(
    shape=LAYERS,
    depths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    mode=st.sampled_from(["latest", "shared:1", "shared:2", "shared:3"]),
)
def test_tokens_of_different_depths_read_what_each_mode_says(shape, depths, mode):
    model = small(**shape).double()
    ids = texts(len(depths))[0][None]
    found, cache = fed(model, ids, [1] * len(depths), depths, mode)
    torch.testing.assert_close(found, reference(model, ids, depths, mode), **CLOSE)
    slots = max(depths) if mode == "latest" else min(max(depths), int(mode[-1]))
    assert len(cache.layers) == model.config.depth(slots)
    assert {layer.get_seq_length() for layer in cache.layers} == {len(depths)}


@torch.no_grad()
def test_full_refuses_a_deeper_token_and_is_left_as_it_was():
    model = small(num_prelude_layers=0, num_coda_layers=0).double()
    ids = texts(6)[0][None]
    cache = LoopCache(model.config)
    model(ids[:, :2], past_key_values=cache, num_steps=4)
    model(ids[:, 2:3], past_key_values=cache, num_steps=2)  # shallower: it finds what it needs
    # The slot of step 3 is there, but one token short; reading it would leave that token out.
    for depth in (3, 4, 5):
        with pytest.raises(UsageError, match=f"not all earlier tokens went {depth} steps deep"):
            model(ids[:, 3:], past_key_values=cache, num_steps=depth)
    assert cache.get_seq_length() == 3
    found = model(ids[:, 3:4], past_key_values=cache, num_steps=2).logits
    # Without the shallow token all of them have come four deep again.
    cache.crop(-2)
    deep = model(ids[:, 4:], past_key_values=cache, num_steps=4).logits
    whole, _ = fed(model, torch.cat([ids[:, :2], ids[:, 4:]], dim=1), [2, 2], [4, 4], "full")
    torch.testing.assert_close(deep, whole[:, 2:], **CLOSE)
    latest, _ = fed(model, ids[:, :4], [2, 1, 1], [4, 2, 2], "latest")
    torch.testing.assert_close(found, latest[:, 3:], **CLOSE)


@pytest.mark.parametrize("mode", ["full", "latest", "shared:2"])
@torch.no_grad()
def test_crop_reorder_and_copies(mode):
    model = small().double()
    ids = torch.stack(texts(7, 7))
    _, cache = fed(model, ids[:, :6], [4, 2], [3, 3], mode)
    twin = copy.deepcopy(cache)
    cache.crop(-2)
    assert cache.get_seq_length() == 4 and twin.get_seq_length() == 6
    again = model(ids[:, 4:], past_key_values=cache, num_steps=3).logits
    straight, _ = fed(model, ids, [4, 3], [3, 3], mode)
    torch.testing.assert_close(again, straight[:, 4:], **CLOSE)
    twin.reorder_cache(torch.tensor([1, 0]))
    swapped = model(ids[[1, 0], 6:], past_key_values=twin, num_steps=3).logits
    ordered, _ = fed(model, ids, [4, 2, 1], [3, 3, 3], mode)
    torch.testing.assert_close(swapped, ordered[[1, 0], 6:], **CLOSE)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)
    cache.reset()
    assert cache.get_seq_length() == 0
    fresh = model(ids, past_key_values=cache, num_steps=3).logits
    torch.testing.assert_close(fresh, fed(model, ids, [7], [3], mode)[0], **CLOSE)


def shown(model, ids, mask=None, **asked):
    """The new ids of each row."""
    if asked.get("do_sample"):
        torch.manual_seed(0)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=5, pad_token_id=0, **asked)
    return found[:, ids.shape[1] :].tolist()


def test_generate_gives_a_padded_row_what_it_has_alone_with_and_without_cache():
    model = small()
    ids, mask = padded(PROMPTS, left=True)
    asked = {"do_sample": False, "num_steps": 4}
    together = shown(model, ids, mask, **asked)
    for row, expected in zip(PROMPTS, together, strict=True):
        assert shown(model, row[None], **asked) == [expected]
        assert shown(model, row[None], use_cache=False, **asked) == [expected]
        for mode in ("latest", "shared:4"):
            cache = LoopCache(model.config, mode)
            assert shown(model, row[None], past_key_values=cache, **asked) == [expected]
    assert len({tuple(each) for each in together}) == 2


@pytest.mark.parametrize("asked", [{"do_sample": True, "top_k": 9}, {"num_beams": 3, "do_sample": False}])
def test_sampling_and_beams_need_no_cache_either(asked):
    model = small()
    ids, mask = padded(PROMPTS, left=True)
    cached = shown(model, ids, mask, num_steps=2, **asked)
    assert cached == shown(model, ids, mask, num_steps=2, use_cache=False, **asked)


def test_a_prompt_lookup_crops_the_cache_and_changes_nothing():
    model = small()
    ids = torch.cat([PROMPTS[1], PROMPTS[1]])[None]
    plain = shown(model, ids, do_sample=False, num_steps=2)
    assert shown(model, ids, do_sample=False, num_steps=2, prompt_lookup_num_tokens=3) == plain


def test_the_depth_changes_what_is_generated_and_the_configuration_says_how_slots_are_shared():
    model = small(loop_cache="shared:1")
    ids = torch.stack(texts(6, 6, 6, 6))
    asked = {"do_sample": False, "num_steps": 3}
    whole = shown(model, ids, past_key_values=LoopCache(model.config, "full"), **asked)
    shared = shown(model, ids, **asked)
    assert shared == shown(model, ids, past_key_values=LoopCache(model.config, "shared:1"), **asked)
    assert model(ids, use_cache=True).past_key_values.mode == "shared:1"
    shallow = shown(model, ids, do_sample=False, num_steps=1)
    assert shared != whole and shallow != shared and shallow != whole


@pytest.mark.parametrize("mode", ["", "shared", "shared:0", "shared:-1", "sliding", "full:2", 3])
def test_a_mode_that_is_not_one_is_one_line(mode):
    with pytest.raises(UsageError, match="write full, latest or shared:M"):
        LoopCache(small().config, mode)


def test_other_caches_are_refused():
    model = small()
    ids = PROMPTS[0][None]
    with pytest.raises(UsageError, match="DynamicCache does not know of loops"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(UsageError, match="cache_implementation 'static' does not know of loops"):
        model.generate(ids, cache_implementation="static", max_new_tokens=2)
    model.train().activation_checkpointing_enable()
    with pytest.raises(UsageError, match="gradient checkpointing cannot fill a cache"):
        model(ids, past_key_values=LoopCache(model.config))
