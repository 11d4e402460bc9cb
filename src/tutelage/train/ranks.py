"""Which of several processes this is, when one command is started in each of them.

`accelerate launch` and `torchrun` start the same command once per device and say so in the environment. Every
process then runs the same stage; the first one alone writes and speaks.

Promises: one process alone needs nothing of this, and loads no library for it.
Does not: start processes, or share out work (the trainer does).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def processes() -> int:
    """How many processes share the work; 1 when this one was started by itself."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK") or 0) == 0


def device() -> str | None:
    """The device of this process, None where there is only one process (the usual choice then holds)."""
    if processes() == 1:
        return None
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK') or 0}" if torch.cuda.is_available() else "cpu"


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The block runs in the first process, then in all others."""
    if processes() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def wait() -> None:
    """Go on when every process has come here."""
    if processes() > 1:
        _state().wait_for_everyone()


def _state() -> Any:
    import torch
    from accelerate import PartialState

    # Without being told, accelerate takes processes on a machine without a GPU for single ones.
    return PartialState(cpu=not torch.cuda.is_available())
