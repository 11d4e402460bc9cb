"""What a verb is given, as the files that stages read: questions as Parquet, a model as a folder.

Promises: a file of our own records and a model folder are used as they are; other questions are read as
`problems.read_problems` does and written beside the output; a model given by name is converted once and kept
beside the output.
Does not: choose or change questions beyond `limit`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tutelage.errors import UsageError
from tutelage.problems.files import read_problems
from tutelage.recipe.single import run_single
from tutelage.recipe.stage import StageKind
from tutelage.records import Problem, read_records, write_records


def questions_file(
    source: str,
    out: Path,
    *,
    limit: int | None = None,
    checker: str | None = None,
    columns: Sequence[str] | None = None,
) -> Path:
    """The path of a Parquet file with the problems of `source` (a file or `hub:owner/name`).

    `columns` are texts `ours=theirs`; `checker` judges problems that do not name their own. Raises
    UsageError."""
    pairs = column_pairs(columns)
    if limit is None and checker is None and not pairs and _is_ours(Path(source)):
        return Path(source)
    problems = read_problems(source, columns=pairs or None, checker=checker or "number", limit=limit)
    path = out.with_name(f"{out.stem}-problems.parquet")
    write_records(path, problems, Problem)
    return path


def column_pairs(columns: Sequence[str] | None) -> dict[str, str]:
    """Texts `ours=theirs` as a mapping. Raises UsageError."""
    pairs = {}
    for column in columns or ():
        ours, equals, theirs = column.partition("=")
        if not equals:
            raise UsageError(f"--column {column}: write it as ours=theirs, such as question=problem")
        pairs[ours] = theirs
    return pairs


def student_folder(source: str, out: Path, *, kinds: Mapping[str, StageKind] | None = None) -> Path:
    """The model folder for `source`: a folder, or what the stage `student` takes (a GGUF file,
    `gguf:PACKAGE`, a Hub name, `lab-base`). Raises UsageError."""
    if Path(source).is_dir():
        return Path(source)
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", source).strip("-")
    folder = out.absolute().with_name(f"student-{slug}")
    if not (folder / "config.json").is_file():  # a stage writes its folder whole or not at all
        run_single("student", {}, folder, inputs={"source": source}, kinds=kinds)
    return folder


def require_apart(folder: Path, written: Iterable[str], read: Iterable[str | Path]) -> None:
    """Raise UsageError where a file that is read would be replaced by one that is written."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file; give a folder")
    places = {(folder / name).resolve() for name in written}
    for each in read:
        if Path(each).resolve() in places:
            raise UsageError(f"--out {folder}: {each} would be overwritten; give another folder")


def _is_ours(path: Path) -> bool:
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        read_records(path, Problem)
    except UsageError:
        return False
    return True
