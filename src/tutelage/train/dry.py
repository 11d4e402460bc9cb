"""A rehearsal of a training run: two steps on its longest batch, by the stage itself.

Promises: what is too large for the machine fails now, with one line that says what to lower; the stage's own
trainer runs, with its optimiser's state, its adapter and its recomputation, so that memory and seconds are
those of the run; the weights are bit for bit what they were, and so are the random generators; what it held
is given back.
Does not: choose the longest batch (the caller hands in a run of it), or predict (see `estimate`).

How the weights stay: the learning rate and the weight decay of the rehearsal are zero.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tutelage.errors import UsageError
from tutelage.train.recurrent import backbone
from tutelage.train.settings import Depth, Optimiser, Progress

if TYPE_CHECKING:
    from tutelage.students.pretrained import Student
    from tutelage.train.examples import Example

Run = Callable[["Student", Optimiser, Progress], object]
_STEPS = 2  # the first allocates and warms up, the second is timed
_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "not enough memory")


@dataclass(frozen=True, slots=True)
class Dry:
    """What the rehearsal measured. `seconds` is one micro-batch of the longest samples with its optimiser
    step; `peak_bytes` the most memory held at once (GPU) or added to the process (CPU); `room_bytes` what the
    device has in all (None: not known)."""

    device: str
    seconds: float
    peak_bytes: int
    room_bytes: int | None


def longest(examples: Sequence[Example], rows: int, room: int | None = None) -> list[Example]:
    """The samples of the longest micro-batch: `rows` of them, or as many as fill so many packed rows of
    `room` tokens."""
    ordered = sorted(examples, key=lambda each: len(each.input_ids), reverse=True)
    if room is None:
        return ordered[:rows]
    ends = accumulate(len(each.input_ids) for each in ordered)
    return [each for each, end in zip(ordered, ends, strict=True) if end <= rows * room] or ordered[:1]


def dry_pass(student: Student, optimiser: Optimiser, run: Run) -> Dry:
    """Rehearse. `run(student, optimiser, progress)` is the stage on one micro-batch of its longest samples,
    with the optimiser that it is given.

    Raises UsageError when the memory does not suffice and when the model gives no finite loss to begin
    with."""
    device = next(student.model.parameters()).device
    learns = [parameter.requires_grad for parameter in student.model.parameters()]
    training = student.model.training
    rehearsal = replace(
        optimiser,
        steps=_STEPS,
        batch=optimiser.batch // optimiser.accumulate,
        accumulate=1,
        learning_rate=0.0,
        muon_learning_rate=0.0,
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        # A recurrent student at its mean, which is what a step costs on average.
        depth=Depth(drawn=backbone(student.model) is None),
        lengths=None,
    )
    moments: list[float] = []

    def hear(done: int, total: int, note: str) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments.append(time.perf_counter())

    _give_back(device)
    before = _forget_peak(device)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            run(student, rehearsal, hear)
    except UsageError as error:
        # With a learning rate of zero only the model and the data can be at fault.
        if "not a number" not in str(error):
            raise
        samples = re.search(r"\(([^)]*)\)", str(error))
        where = f" on the longest samples ({samples[1]})" if samples else ""
        raise UsageError(
            f"{student.name}: the loss is not a number{where} before any step is taken; look at these "
            "samples, or take other weights"
        ) from error
    except Exception as error:
        if (wanted := out_of_memory(error, optimiser)) is not None:
            raise wanted from error
        raise
    finally:
        for parameter, learned in zip(student.model.parameters(), learns, strict=True):
            parameter.requires_grad_(learned)
            parameter.grad = None
        student.model.train(training)
    found = Dry(str(device), moments[-1] - moments[-2], _peak(device, before), _room(device))
    _give_back(device)
    return found


def out_of_memory(error: BaseException, optimiser: Optimiser) -> UsageError | None:
    """What to lower when `error` says that the memory did not suffice; None for another error."""
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
        sign.lower() in str(error).lower() for sign in _SIGNS
    ):
        return None
    rows, advice = optimiser.batch // optimiser.accumulate, []
    if rows > 1:
        more = range(optimiser.accumulate + 1, optimiser.batch + 1)
        parts = next(number for number in more if optimiser.batch % number == 0)
        advice.append(f"accumulate: {parts} (the same training, {optimiser.batch // parts} rows at a time)")
    if not optimiser.checkpointing:
        advice.append("checkpointing: true")
    if optimiser.lora is None:
        advice.append("a LoRA adapter (lora: {rank: 16})")
    gpu = isinstance(error, torch.OutOfMemoryError) or "CUBLAS" in str(error)
    if gpu and not optimiser.bf16:
        advice.append("bf16: true")
    advice.append("a lower max_length")
    whose, plural = "the GPU's memory" if gpu else "the memory", "row" if rows == 1 else "rows"
    return UsageError(f"{whose} does not suffice for {rows} {plural} at a time; try {', or '.join(advice)}")


def slower_in_bfloat16() -> float:
    """How many times as long a product of matrices takes this processor in bfloat16 as in float32: about one
    half where it has instructions for it, several times where it has none and computes in software."""

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(256, 512, dtype=dtype), torch.ones(1024, 512, dtype=dtype)
        taken = []
        for _ in range(4):
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            taken.append(time.perf_counter() - start)
        return min(taken)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on the device, None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _meminfo("MemAvailable")


def _give_back(device: torch.device) -> None:
    """Free what nothing holds any more: a trainer and its optimiser's states are a ring of references, and
    the allocators of C and CUDA keep what was freed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        with suppress(OSError, AttributeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)


def _forget_peak(device: torch.device) -> int:
    """Start measuring the peak anew; gives what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0  # all that is allocated counts, the weights too
    with suppress(OSError):  # Linux: the high-water mark begins again at what is held now
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _high_water()


def _peak(device: torch.device, before: int) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return max(0, _high_water() - before)


def _high_water() -> int:
    """The most memory that this process has held, in bytes."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _room(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return _meminfo("MemTotal")


def _meminfo(name: str) -> int | None:
    """A line of Linux's list, in bytes, and no more than the container may have."""
    limit = None
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    with suppress(OSError):
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        if found:
            return min(int(found[1]) * 1024, limit or sys.maxsize)
    return None
