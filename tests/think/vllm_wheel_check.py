"""A check of the plug-in against vLLM's own classes, by hand: vLLM's wheel unpacked, not installed.

    pip download --no-deps vllm && python -m zipfile -e vllm-*.whl /tmp/vllm
    pip install --no-deps --target /tmp/vllm msgspec cbor2 pyzmq openai_harmony cloudpickle pybase64 \
        cachetools uvloop
    PYTHONPATH=/tmp/vllm:tests:tests/think python tests/think/vllm_wheel_check.py

Other packages that vLLM imports on the way, and that play no part here, are stood in for.

vLLM's loader loads both processors by name, its validator refuses a bad request, and its own persistent
batch (`InputBatch`) and `Sampler` drive the first one through additions, removals, moves, swaps and
preemptions, on the CPU; every controlled request must think as it does alone. The second runner's sampler
needs a GPU: of it the loader, the base class and the context are its own, the batch is that of the tests.
"""

from __future__ import annotations

import importlib.machinery
import random
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

ABSENT = {"cpuinfo", "prometheus_client", "xgrammar", "fastapi", "partial_json_parser", "llguidance"}


class StandIns:
    """An importer of empty packages, whose attributes are empty classes."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = name.partition(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> types.ModuleType:
        module: Any = types.ModuleType(spec.name)

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = attribute
        return module  # type: ignore[no-any-return]

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.append(StandIns())  # type: ignore[arg-type]
import vllm.utils.torch_utils  # noqa: E402

vllm.utils.torch_utils.PIN_MEMORY = False  # there is no device to pin it for

from test_think_vllm import CONTEXT, END, PROMPT, TOKENIZER, alone, wild  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm.v1.sample.logits_processor import (  # noqa: E402
    LogitsProcessor,
    LogitsProcessors,
    _load_logitsprocs_by_fqcns,
    validate_logits_processors_parameters,
)
from vllm.v1.sample.sampler import Sampler  # noqa: E402
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState  # noqa: E402
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondBase  # noqa: E402
from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns  # noqa: E402
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch  # noqa: E402
from vllm_loop import Job, SecondRunner, config  # noqa: E402

FIRST = "tutelage.think.vllm:ThinkingProcessorV1"
SECOND = "tutelage.think.vllm:ThinkingProcessor"


def asked(i: int, **more: Any) -> SamplingParams:
    """Parameters of request `i`; every fourth one has no controls."""
    extra: dict[str, Any] = {"min_thinking_tokens": 5 + i % 7, "thinking_token_budget": 25}
    if i % 2:
        extra["thinking_wait"] = ["Wait", "Hm"]
    found = SamplingParams(
        temperature=0.9 if i % 3 else 0.0,
        seed=i,
        max_tokens=60,
        extra_args=None if i % 4 == 3 else extra,
        **more,
    )
    found.update_from_generation_config({}, END)
    return found


def first_runner(folder: Path, seed: int, count: int = 12, size: int = 4) -> tuple[int, int]:
    """vLLM's batch and sampler around the first processor. Returns replies checked, preemptions."""
    luck, model = random.Random(seed), wild(seed)
    settings = config(folder, CONTEXT)
    [made] = _load_logitsprocs_by_fqcns([FIRST])
    assert issubclass(made, LogitsProcessor)
    procs = LogitsProcessors([made(settings, torch.device("cpu"), False)])
    assert len(procs.non_argmax_invariant) == 1
    batch = InputBatch(size, CONTEXT, 1000, torch.device("cpu"), len(TOKENIZER), [16], [32], procs, True)
    sampler = Sampler()
    waiting = []
    for i in range(count):
        prompt = [i, *PROMPT] if i % 5 else [i, *PROMPT[:-1]]
        generator = torch.Generator().manual_seed(i)
        waiting.append(CachedRequestState(str(i), prompt, [], asked(i), generator, ([0],), 0, []))
    done: list[CachedRequestState] = []
    running: dict[str, CachedRequestState] = {}
    preempted = 0
    while waiting or running:
        for name, request in list(running.items()):
            over = request.output_token_ids[-1:] == [END] or len(request.output_token_ids) >= 60
            if over or luck.random() < 0.07:
                batch.remove_request(name)
                del running[name]
                (done if over else waiting).append(request)
                preempted += not over
                if not over and luck.random() < 0.5:  # as under asynchronous scheduling
                    request.output_token_ids = list(request.output_token_ids)
        while waiting and len(running) < size and luck.random() < 0.7:
            request = waiting.pop(0)
            batch.add_request(request)
            running[request.req_id] = request
        batch.condense()
        if batch.num_reqs > 1 and luck.random() < 0.3:
            batch.swap_states(*luck.sample(range(batch.num_reqs), 2))
        batch.refresh_metadata()
        if not running:
            continue
        rows = [running[name] for name in batch.req_ids]
        logits = torch.stack([model([*one.prompt_token_ids, *one.output_token_ids]) for one in rows])
        out = sampler(logits, batch.sampling_metadata)
        for request, token in zip(rows, out.sampled_token_ids[:, 0].tolist(), strict=True):
            if not luck.random() < 0.1 * (not request.output_token_ids):  # part of a prompt: thrown away
                request.output_token_ids.append(token)
    checked = 0
    for request in done:
        if request.sampling_params.extra_args is not None:
            thinking = alone(model, Job(request.sampling_params, request.prompt_token_ids))
            assert request.output_token_ids[: len(thinking)] == thinking, request.req_id
            checked += 1
    return checked, preempted


def second_runner(folder: Path, seed: int) -> tuple[int, int]:
    """vLLM's loader, base class, request state and context around the second processor."""
    [made] = _load_v2_logitsprocs_by_fqcns([SECOND])
    assert issubclass(made, SecondBase)
    model, settings = wild(seed), config(folder, CONTEXT)

    def make(states: Any) -> Any:
        known = LogitsProcRequestState(
            torch.device("cpu"), 4, len(TOKENIZER), states.all_token_ids, states.prompt_len,
            states.prefill_len, None,
        )  # fmt: skip
        processor = made(settings, known)
        inner = processor.apply

        def apply(logits: Any, ctx: Any) -> Any:
            n = len(ctx.idx_mapping_np)
            mapping = ctx.expanded_idx_mapping
            return inner(
                logits,
                LogitsContext(
                    mapping,
                    mapping,
                    ctx.idx_mapping_np,
                    torch.zeros(n),
                    ctx.input_ids,
                    ctx.pos,
                    ctx.idx_mapping_np,
                ),
            )

        processor.apply = apply
        return processor

    loop = SecondRunner(make, model, frozenset({END}), 4, random.Random(seed))
    jobs = [Job(asked(i), [i, *PROMPT] if i % 5 else [i, *PROMPT[:-1]]) for i in range(12)]
    loop.run(jobs)
    mine = [job for job in jobs if job.params.extra_args is not None]
    for job in mine:
        thinking = alone(model, Job(job.params, job.prompt))
        assert job.output[: len(thinking)] == thinking
    return len(mine), loop.preempted


def main() -> None:
    """Run it all and say what was checked."""
    print("vLLM", vllm.__version__)
    for bad in ({"min_thinking_tokens": -1}, {"thinking_budget": 1}):
        try:
            validate_logits_processors_parameters([FIRST], SamplingParams(extra_args=bad))
        except VLLMValidationError as error:
            print("refused:", error)
        else:
            raise AssertionError("not refused")
    with tempfile.TemporaryDirectory() as name:
        TOKENIZER.save_pretrained(name)
        for run in (first_runner, second_runner):
            found = [run(Path(name), seed) for seed in range(10)]
            replies, preempted = (sum(column) for column in zip(*found, strict=True))
            print(f"{run.__name__}: {replies} replies as alone, through {preempted} preemptions")


if __name__ == "__main__":
    main()
