"""The plug-in for vLLM: whatever the batch does, a request thinks as the machine alone would let it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vllm_loop import BatchUpdate, FirstRunner, Job, Move, SecondRunner, config, params

from tinymodel import byte_tokenizer, tiny_student
from tutelage.errors import UsageError
from tutelage.students.template import Template, markers
from tutelage.think.engine import Engine, Request
from tutelage.think.machine import PHASES
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling, choose, uniforms
from tutelage.think.vllm import ThinkingProcessor, ThinkingProcessorV1, ThinkingProcessorV2
from tutelage.think.vllm_rows import FIELDS, read_controls
from tutelage.tokens import encode_text

CONTEXT = 200
TOKENIZER = byte_tokenizer()
OPEN = TOKENIZER.convert_tokens_to_ids("<think>")
CLOSE = TOKENIZER.convert_tokens_to_ids("</think>")
END = TOKENIZER.convert_tokens_to_ids("<|end|>")
PROMPT = [*encode_text(TOKENIZER, "What?"), OPEN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(found)
    return found


def wild(seed: int) -> Any:
    """Scores that hang on all ids before; closes, ends and markers that begin come now and then."""

    @lru_cache(maxsize=20_000)
    def scores(ids: tuple[int, ...]) -> Tensor:
        rng = np.random.default_rng([seed, *ids])
        found = torch.from_numpy(rng.standard_normal(len(TOKENIZER)).astype(np.float32)) * 2
        draw = rng.random()
        found[CLOSE] += 9.0 * (draw < 0.15)
        found[END] += 9.0 * (0.15 <= draw < 0.22) - 2
        return found

    return lambda ids: scores(tuple(ids)).clone()


def runner(
    version: int, folder: Path, model: Any, chaos: int | None = None, batch: int = 3, **more: Any
) -> Any:
    luck = None if chaos is None else random.Random(chaos)
    ends = frozenset({END})
    settings = config(folder, CONTEXT, **more)
    if version == 1:
        return FirstRunner(ThinkingProcessorV1(settings, "cpu", False), model, ends, batch, luck)
    return SecondRunner(lambda states: ThinkingProcessorV2(settings, states), model, ends, batch, luck)


def alone(model: Any, job: Job) -> list[int]:
    """The thinking of `job` with its close, by a loop of one's own around the machine."""
    policy = read_controls(job.params.extra_args)
    assert policy is not None
    machine = policy.compile(TOKENIZER, Template(prefill=job.prompt[-1] == OPEN))
    room = min(job.params.max_tokens, CONTEXT - len(job.prompt))
    state = machine.start(room, job.prompt[-1], append_only=True)
    sampling = Sampling(job.params.temperature, job.params.top_p, job.params.top_k, job.params.min_p)
    fed = [*job.prompt, *state.opening]
    banned: tuple[int, ...] = ()
    while state.progress.stage != "answer":
        scores = model(fed)
        scores[list(banned)] = float("-inf")
        u = uniforms([job.params.seed], [len(state.ids)], [state.progress.refused])
        step = state.step(choose(scores[None], [sampling], u)[0], scores)
        fed += step.feed
        banned = () if step.feed else step.banned
    return state.ids


controls = st.fixed_dictionaries(
    {"min_thinking_tokens": st.integers(0, 10)},
    optional={
        "thinking_token_budget": st.integers(11, 25),
        "thinking_refuse_closes": st.integers(0, 2),
        "thinking_wait": st.sampled_from(["Wait", ["Hm", "So"]]),
        "thinking_close_text": st.just("A:"),
        "answer_reserve": st.integers(1, 5),
    },
)
jobs = st.lists(
    st.tuples(
        st.none() | controls,
        st.integers(0, 99),
        st.sampled_from([{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8, "top_k": 40}]),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("version", [1, 2])
@settings(deadline=None, max_examples=10)
@given(wanted=jobs, seed=st.integers(0, 99), chaos=st.none() | st.integers(0, 999))
def test_each_request_thinks_as_it_would_alone(
    folder: Path, version: int, wanted: Any, seed: int, chaos: int | None
) -> None:
    model = wild(seed)
    mine = [
        Job(params(extra, seed=own, **more), [i, *PROMPT] if opened else [i, *PROMPT[:-1]])
        for i, (extra, own, more, opened) in enumerate(wanted)
    ]
    loop = runner(version, folder, model, chaos)
    outputs = loop.run(mine)
    for job, output in zip(mine, outputs, strict=True):
        if job.params.extra_args is not None:
            thinking = alone(model, job)
            assert output[: len(thinking)] == thinking
            answer = output[len(thinking) :]
        else:
            answer = output
        by_vllm = Job(job.params, [*job.prompt, *output[: len(output) - len(answer)]])
        by_vllm.params = params(None, **{**vars(job.params), "extra_args": None})
        uncontrolled(model, by_vllm, len(output) - len(answer), job.params.max_tokens)
        assert answer == by_vllm.output


def uncontrolled(model: Any, job: Job, before: int, most: int) -> None:
    """What vLLM writes by itself after `before` ids of a reply of at most `most`."""
    sampling = Sampling(temperature=job.params.temperature)
    while before + len(job.output) < most:
        place = before + len(job.output)
        u = np.array([random.Random(f"{job.params.seed}/{place}").random()])
        job.output.append(choose(model(job.ids)[None], [sampling], u)[0])
        if job.output[-1] == END:
            return


@pytest.mark.parametrize("version", [1, 2])
def test_the_test_above_does_preempt_and_split(folder: Path, version: int) -> None:
    loop = runner(version, folder, wild(3), chaos=5)
    extra = {"min_thinking_tokens": 20, "thinking_wait": "Wait"}
    loop.run([Job(params(extra, seed=i), [i, *PROMPT]) for i in range(5)])
    assert loop.preempted > 3


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_the_thinking_is_that_of_our_engine_id_for_id(folder: Path, version: int, heat: float) -> None:
    student = tiny_student(seed=1, closes=1.5)
    engine = Engine(student)

    def model(ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            scores = student.model(torch.tensor([list(ids)])).logits[0, -1].float()
        scores[TOKENIZER.pad_token_id] = float("-inf")  # which our engine never samples
        return scores

    policy = {"min_thinking_tokens": 12, "thinking_token_budget": 30, "thinking_wait": "Wait"}
    more = {"thinking_close": "newline", "thinking_grace_tokens": 6}
    requests, mine = [], []
    for i, extra in enumerate((policy, {**policy, **more}, {"min_thinking_tokens": 20})):
        controls = read_controls(extra)
        assert controls is not None
        prompt = [i + 40, *PROMPT]
        requests.append(
            Request(tuple(prompt), controls, Sampling(temperature=heat), seed=i, max_new_tokens=60)
        )
        mine.append(Job(params(extra, seed=i, temperature=heat), prompt))
    outputs = runner(version, folder, model, chaos=2).run(mine)
    for output, reply in zip(outputs, engine.generate(requests), strict=True):
        thought = [i for i, phase in enumerate(reply.phases) if PHASES[phase] in ("thinking", "close")]
        assert output[: len(thought)] == list(reply.ids[: len(thought)])
        assert len(thought) >= 12


def eager(ids: Sequence[int]) -> Tensor:
    """Scores of a model that would always close, and else writes 7."""
    scores = torch.zeros(len(TOKENIZER))
    scores[CLOSE], scores[7] = 5.0, 4.0
    return scores


@pytest.mark.parametrize("readded_first", [False, True])
def test_what_left_the_batch_without_a_word_is_remembered(folder: Path, readded_first: bool) -> None:
    """vLLM does not list a removed row that another one moved onto, or that was added in its place. A close
    that was masked leaves no sign in the ids, so only the state knows that it was refused."""
    processor = ThinkingProcessorV1(config(folder, CONTEXT), "cpu", False)
    extra = params({"thinking_refuse_closes": 1})
    outputs: list[list[int]] = [[], [], []]

    def step(*rows: int, added: Sequence[tuple[int, int]] = (), moved: Any = ()) -> None:
        told = [(place, extra, [i, *PROMPT], outputs[i]) for place, i in added]
        processor.update_state(BatchUpdate(len(rows), [], told, moved) if told or moved else None)
        logits = processor.apply(torch.stack([eager(()) for _ in rows]))
        for row, i in enumerate(rows):
            outputs[i].append(int(logits[row].argmax()))

    step(0, 1, added=[(0, 0), (1, 1)])
    assert outputs == [[7], [7], []]
    if readded_first:  # the first one comes back behind the one that is added in its place
        step(2, 1, 0, added=[(2, 0), (0, 2)])
        assert outputs == [[7, CLOSE], [7, CLOSE], [7]]
    else:
        step(1, moved=[(1, 0, Move.UNIDIRECTIONAL)])
        step(1, 0, added=[(1, 0)])
        assert outputs[0] == [7, CLOSE]


@pytest.mark.parametrize("version", [1, 2])
def test_rank_closes_where_the_marker_is_likely_enough(folder: Path, version: int) -> None:
    def model(ids: Sequence[int]) -> Tensor:
        scores = torch.zeros(len(TOKENIZER))
        scores[7], scores[8] = 3.0, 2.0
        scores[CLOSE] = 2.5 if len(ids) >= len(PROMPT) + 9 else -5.0
        return scores

    extra = {"thinking_token_budget": 5, "thinking_close": "rank:2", "thinking_grace_tokens": 20}
    [output] = runner(version, folder, model).run([Job(params(extra), PROMPT)])
    assert output[:10] == [7] * 9 + [CLOSE]


@pytest.mark.parametrize("version", [1, 2])
def test_spelled_markers_and_graceful_ends(tmp_path: Path, version: int) -> None:
    """A tokenizer without marker tokens: a refused marker's beginning stays, the whole one never does."""
    tokenizer = byte_tokenizer(think_tokens=False)
    tokenizer.save_pretrained(tmp_path)
    marks = markers(tokenizer, Template())
    text = encode_text(tokenizer, "ab\n</think>\n42")

    def model(ids: Sequence[int]) -> Tensor:
        begun = next((k for k in range(len(text) - 1, 0, -1) if list(ids[-k:]) == text[:k]), 0)
        scores = torch.zeros(len(tokenizer))
        scores[text[begun]], scores[98] = 5.0, 3.0
        return scores

    extra = {"thinking_refuse_closes": 1, "thinking_wait": "Wait"}
    prompt = [*encode_text(tokenizer, "Q"), *marks.open]
    settings = config(tmp_path, CONTEXT)
    ends = frozenset({tokenizer.eos_token_id})
    job = Job(params(extra, max_tokens=90), prompt)
    if version == 1:
        loop: Any = FirstRunner(ThinkingProcessorV1(settings, "cpu", False), model, ends, 1, None)
    else:
        loop = SecondRunner(lambda states: ThinkingProcessorV2(settings, states), model, ends, 1, None)
    [output] = loop.run([job])
    said = tokenizer.decode(output)
    assert said.startswith("ab\n</think>Waitab\n</think>\n")


@pytest.mark.parametrize("version", [1, 2])
def test_a_prompt_whose_thinking_is_closed_is_left_alone_unless_more_is_asked(
    folder: Path, version: int
) -> None:
    model = wild(1)
    closed = [*PROMPT, *encode_text(TOKENIZER, "\n\n"), CLOSE, *encode_text(TOKENIZER, "\n\n")]
    free = runner(version, folder, model).run([Job(params(None), closed)])
    capped = runner(version, folder, model).run([Job(params({"thinking_token_budget": 5}), closed)])
    asked = runner(version, folder, model).run([Job(params({"min_thinking_tokens": 5}), closed)])
    assert free == capped
    assert asked[0][0] == OPEN and asked[0].index(CLOSE) >= 6


@pytest.mark.parametrize("version", [1, 2])
def test_unseeded_requests_draw_differently_and_all_workers_alike(folder: Path, version: int) -> None:
    extra = {"min_thinking_tokens": 15}

    def worker() -> list[list[int]]:
        mine = [Job(params(extra, temperature=1.0), list(PROMPT)) for _ in range(3)]
        return runner(version, folder, wild(4)).run(mine)

    first, second = worker(), worker()
    assert [one[:15] for one in first] == [one[:15] for one in second]
    assert len({tuple(one[:15]) for one in first}) == 3


@pytest.mark.parametrize("version", [1, 2])
def test_something_that_overrules_us_is_told(
    folder: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    loop = runner(version, folder, wild(4))
    before = loop.sampled
    loop.sampled = lambda logits, job, row: 9 if len(job.output) == 3 else before(logits, job, row)
    [output] = loop.run([Job(params({"min_thinking_tokens": 10}, seed=1), list(PROMPT))])
    assert output[3] == 9
    assert "not controlled any more" in caplog.text


@pytest.mark.parametrize("version", [1, 2])
def test_a_reply_begun_elsewhere_is_taken_over_as_far_as_its_ids_tell(folder: Path, version: int) -> None:
    extra = {"min_thinking_tokens": 18, "thinking_wait": "Wait", "thinking_token_budget": 30}
    asked = params(extra, seed=3, temperature=1.0)
    tried = ((wild(seed), alone(wild(seed), Job(asked, PROMPT))) for seed in range(50))
    model, whole = next((model, ids) for model, ids in tried if "Wait" in TOKENIZER.decode(ids))
    wait = encode_text(TOKENIZER, "Wait")
    for cut in range(1, len(whole)):
        if any(whole[cut - k : cut - k + 4] == wait for k in (1, 2, 3)):
            continue  # in the middle of what we forced: no sign of that
        [output] = runner(version, folder, model).run([Job(asked, PROMPT, output=whole[:cut])])
        assert output[: len(whole)] == whole


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"min_thinking_tokens": -1}, "min_thinking_tokens is -1"),
        ({"min_thinking_tokens": 9, "thinking_token_budget": 5}, "min_thinking_tokens 9 is larger"),
        ({"thinking_wait": 5}, "thinking_wait must be text"),
        ({"thinking_budget": 5}, "vllm_xargs.thinking_budget: not a control"),
        ({"thinking_close": "soon"}, "thinking_close must be"),
        ({"answer_reserve": 60}, "max_tokens 60 leaves no room to think beside answer_reserve 60"),
    ],
)
def test_controls_that_cannot_be_kept_are_refused_when_the_request_comes(
    extra: dict[str, Any], words: str
) -> None:
    for processor in (ThinkingProcessorV1, ThinkingProcessorV2):
        with pytest.raises(ValueError, match=words):
            processor.validate_params(params(extra))


def test_what_would_overrule_us_is_refused() -> None:
    extra = {"min_thinking_tokens": 5}
    for processor in (ThinkingProcessorV1, ThinkingProcessorV2):
        processor.validate_params(params(extra))
        processor.validate_params(params({"other": 1}, thinking_token_budget=5))
        with pytest.raises(ValueError, match="put it beside the other controls"):
            processor.validate_params(params(extra, thinking_token_budget=5))
    with pytest.raises(ValueError, match="presence_penalty: this model runner"):
        ThinkingProcessorV1.validate_params(params(extra, presence_penalty=1.0))
    ThinkingProcessorV1.validate_params(params(None, presence_penalty=1.0))
    ThinkingProcessorV2.validate_params(params(extra, presence_penalty=1.0))


def test_servers_that_cannot_be_controlled_are_refused_at_the_start(folder: Path) -> None:
    for make in (
        lambda settings: ThinkingProcessorV1(settings, "cpu", False),
        lambda settings: ThinkingProcessorV2(settings, None),
    ):
        with pytest.raises(ValueError, match="speculative"):
            make(config(folder, speculative_config=object()))
        with pytest.raises(ValueError, match="unknown field 'open'"):
            make(config(folder, additional_config={"tutelage": {"open": "x"}}))
        with pytest.raises(UsageError, match="must differ"):
            make(config(folder, additional_config={"tutelage": {"think_open": "</think>"}}))
        hidden = config(folder)
        hidden.model_config.skip_tokenizer_init = True
        with pytest.raises(ValueError, match="skip-tokenizer-init"):
            make(hidden)


def test_a_reply_without_room_runs_on_with_a_word_in_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = [*[65] * (CONTEXT - 20), OPEN]
    [output] = runner(1, folder, wild(1)).run(
        [Job(params({"min_thinking_tokens": 5}, max_tokens=15), prompt)]
    )
    assert len(output) <= 15
    assert "without control of its thinking" in caplog.text


def test_the_fields_are_those_of_the_server() -> None:
    from tutelage.serve.fields import thinking

    body = {
        "thinking_token_budget": 40,
        "min_thinking_tokens": 8,
        "thinking_wait": ["Wait", "Hmm"],
        "thinking_max_waits": 2,
        "thinking_refuse_closes": 1,
        "thinking_close": "newline",
        "thinking_grace_tokens": 4,
        "thinking_close_text": "Answer:",
        "answer_reserve": 9,
    }
    assert set(body) == set(FIELDS)
    assert read_controls(body) == thinking(body, {}, {}).policy
    assert read_controls({"thinking_token_budget": -1}) == ThinkingPolicy()
    assert read_controls({"kv_transfer_params": {}}) is None


def test_the_interface_is_vllms() -> None:
    """The names and arguments that vLLM calls; `docs/vllm.md` tells of the check against its own classes."""
    assert ThinkingProcessor in (ThinkingProcessorV1, ThinkingProcessorV2)
    for name in ("validate_params", "is_argmax_invariant", "update_state", "apply"):
        assert callable(getattr(ThinkingProcessorV1, name))
    for name in ("validate_params", "add_request", "apply"):
        assert callable(getattr(ThinkingProcessorV2, name))
