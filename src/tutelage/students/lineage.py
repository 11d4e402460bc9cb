"""What a trained model remembers of its making, in its own folder: every stage from the first one on, the
questions it learned from, and the questions that something about it was chosen on.

Promises: a record read back is the one written; a stage adds itself to the record of the model it started
from; the same training gives the same files, byte for byte: no times, no machine.
Does not: decide what overlaps (see `measure.selection`), or write the card for people (see `card`).

Files, beside the weights: `tutelage_training.json` (the start and the stages, in order) and
`tutelage_questions.parquet` (one column, `question`: the sorted 64-bit numbers of the questions learned from,
eight bytes each, so that a million problems take 8 MB).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import StorageError, UsageError
from tutelage.records import clean_text

TRAINING_FILE = "tutelage_training.json"
QUESTIONS_FILE = "tutelage_questions.parquet"
FORMAT = 1
# Keys that say when, where or how fast, wherever they stand: two runs of one training differ in them.
_PASSING = frozenset({"expected_s", "wall_s", "started", "device", "trackers"})


@dataclass(frozen=True, slots=True)
class Lineage:
    """How a model came about. `start` is what the first stage started from (`source`, `licence`); `stages`
    are JSON objects, the first stage first (fields: see `card.write_training`); `learned` are the numbers of
    all questions that any stage learned from, sorted."""

    start: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...] = ()
    learned: tuple[int, ...] = ()

    @property
    def chosen_on(self) -> frozenset[str]:
        """The questions (see `questions`) that a checkpoint or a stop of any stage was chosen on."""
        return frozenset(each for stage in self.stages for each in stage.get("selected_on", ()))

    @property
    def learned_from(self) -> frozenset[str]:
        """The questions that any stage learned from, as `chosen_on` has them."""
        return frozenset(f"{number:016x}" for number in self.learned)


def begin(folder: Path, source: str, licence: str = "") -> Lineage:
    """Write what the model in `folder` is before any training: `source` as the user named it (of a path only
    the last part is kept). A model trained here before keeps its record: when `source` is its folder, that
    record is copied.

    Raises StorageError when the disk refuses."""
    before = Path(source).expanduser()
    if (before / TRAINING_FILE).is_file():
        lineage = read_training(before)
    else:
        lineage = Lineage({"source": _named(source), "licence": clean_text(licence)})
    return _write(folder, lineage)


def add_stage(
    folder: Path, stage: Mapping[str, Any], before: Path, learned: Collection[str], chosen: Collection[str]
) -> Lineage:
    """Write into `folder` the record of the model in `before` with `stage` added to it. `learned` and
    `chosen` are questions (see `questions.question_hashes`).

    Raises StorageError when the disk refuses."""
    known = read_training(before)
    numbers = sorted({*known.learned, *(int(each, 16) for each in learned)})
    added = {**_portable(stage), "selected_on": sorted(chosen)}
    return _write(folder, Lineage(known.start, (*known.stages, added), tuple(numbers)))


def read_training(folder: Path) -> Lineage:
    """The record in a model folder; one without stages for a model that was not trained here.

    Raises UsageError for a file that is not such a record."""
    file = folder / TRAINING_FILE
    if not file.is_file():
        return Lineage({"source": folder.name, "licence": ""})
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        start, stages = data["start"], data["stages"]
        sound = (
            data["format"] == FORMAT
            and isinstance(start, dict)
            and isinstance(stages, list)
            and all(isinstance(each, dict) for each in stages)
            and all(isinstance(each, str) for stage in stages for each in stage.get("selected_on", ()))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise UsageError(
            f"{file}: not a record of training; put the one back that belongs to this model, or remove it "
            "(the model then counts as never trained here)"
        )
    return Lineage(start, tuple(stages), _read_questions(folder / QUESTIONS_FILE))


def _read_questions(file: Path) -> tuple[int, ...]:
    if not file.is_file():
        return ()
    try:
        return tuple(pq.read_table(file, columns=["question"]).column("question").to_pylist())
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UsageError(
            f"{file}: not a readable list of questions; put the one back that belongs to this model, or "
            "remove it"
        ) from error


def _write(folder: Path, lineage: Lineage) -> Lineage:
    record = {"format": FORMAT, "start": lineage.start, "stages": list(lineage.stages)}
    try:
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / TRAINING_FILE).write_text(text, encoding="utf-8")
        if lineage.learned:
            table = pa.table({"question": pa.array(lineage.learned, pa.uint64())})
            pq.write_table(table, folder / QUESTIONS_FILE, compression="zstd")
    except OSError as error:
        raise StorageError(f"{folder}: cannot save how it was trained ({error.strerror or error})") from error
    return lineage


def _portable(value: Any) -> Any:
    """`value` as JSON data, without what two runs of one training differ in."""
    if isinstance(value, Mapping):
        return {clean_text(str(key)): _portable(each) for key, each in value.items() if _stays(str(key))}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_portable(each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return clean_text(str(value))


def _stays(key: str) -> bool:
    return key not in _PASSING and not key.endswith(("_seconds", "_per_second"))


def _named(source: str) -> str:
    """`source` without the folders that lead to it; names (`owner/name`, `gguf:package`) stay."""
    path = Path(source)
    is_path = path.is_absolute() or source.startswith(("~", "./", "../")) or path.exists()
    return clean_text(path.name if is_path else source)
