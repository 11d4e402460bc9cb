"""The words for a GPU that is too small."""

from __future__ import annotations

from tutelage.errors import UsageError
from tutelage.train.settings import Optimiser


def out_of_memory(error: BaseException, optimiser: Optimiser) -> UsageError | None:
    """What to lower when `error` says that the memory of the GPU did not suffice; None for another error."""
    if "out of memory" not in str(error).lower():
        return None
    advice = []
    if optimiser.batch // optimiser.accumulate > 1:
        advice.append(f"raise accumulate above {optimiser.accumulate}")
    if not optimiser.checkpointing:
        advice.append("set checkpointing: true")
    if optimiser.lora is None:
        advice.append("train a LoRA adapter (lora: {rank: 16})")
    advice.append("lower max_length")
    return UsageError(f"the GPU's memory does not suffice: {', or '.join(advice)}")
