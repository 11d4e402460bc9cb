"""One job in several processes, for a stage that names an accelerate configuration under `launch`.

Promises: the job is the same function with the same settings; what the first process says is heard as from
one; an error of any process is told in its own words; the processes end with the one that started them.
Does not: choose how many processes there are (the configuration does), or share out the work (the trainer
does, see `train.ranks`).

This module is also what each process runs: `python -m tutelage.recipe.launched JOB.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tutelage.errors import PartialError, StorageError, UsageError
from tutelage.recipe import worker
from tutelage.train import ranks

_ERRORS: dict[str, type[Exception]] = {"usage": UsageError, "storage": StorageError, "partial": PartialError}


def launch(job: Mapping[str, Any], send: worker.Send) -> tuple[dict[str, Any], dict[str, str]]:
    """Run `job` under `accelerate launch`; gives what `worker.perform` gives. Raises what the stage raised in
    the first process that failed."""
    configuration = str(job["config"]["launch"])
    heard: dict[str, Any] = {}
    with TemporaryDirectory(prefix="tutelage-launch-") as scratch:
        file = Path(scratch) / "job.json"
        file.write_text(json.dumps(dict(job)), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            *_launcher(configuration),
            "-m",
            "tutelage.recipe.launched",
            str(file),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as processes:
            assert processes.stdout is not None
            for line in processes.stdout:
                message = _message(line)
                if "progress" in message:
                    send(message)
                elif "error" not in heard:  # the first error is the reason of the others
                    heard.update(message)
    if "error" in heard:
        kind, words = heard["error"]["kind"], heard["error"]["message"]
        raise _ERRORS.get(kind, RuntimeError)(words)
    if "done" not in heard:
        raise UsageError(
            f"the processes of {configuration} ended with code {processes.returncode} before the stage was "
            "done; what they said is above, or in log.txt"
        )
    return heard["done"]["metrics"], heard["done"]["outputs"]


def _launcher(configuration: str) -> list[str]:
    """The module that starts the processes, and its options."""
    fields = yaml.safe_load(Path(configuration).read_text(encoding="utf-8"))
    if not isinstance(fields, dict) or not isinstance(fields.get("num_processes"), int):
        raise UsageError(f"{configuration}: num_processes is missing; this is no configuration of accelerate")
    if fields.get("use_cpu"):
        # `accelerate launch` starts a single process here and leaves several to MPI.
        return ["torch.distributed.run", "--standalone", f"--nproc-per-node={fields['num_processes']}"]
    return ["accelerate.commands.launch", "--config_file", configuration]


def _message(line: str) -> dict[str, Any]:
    """A line of ours; nothing for a line that something else printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"progress", "done", "error"} & set(found) else {}


def main() -> None:
    """Do the job's share of this process. The first process says how it goes; any says what went wrong."""
    worker.die_with_parent()
    protocol = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job["config"]["launch"] = None  # it is launched

    def send(message: dict[str, Any]) -> None:
        if ranks.is_first():
            protocol.write(json.dumps(message, allow_nan=False).encode() + b"\n")

    answer = worker.answer(job, send)
    if "error" in answer:
        protocol.write(json.dumps(answer).encode() + b"\n")
        os._exit(1)  # not to wait in a barrier for what will not come; the launcher ends the others
    send(answer)


if __name__ == "__main__":
    main()
