"""The questions given to a verb, as the Parquet file that stages read.

Promises: a file of our own records is used as it is; anything else is read as `problems.read_problems`
does and written beside the output.
Does not: choose or change questions beyond `limit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tutelage.errors import UsageError
from tutelage.problems.files import read_problems
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
    pairs = {}
    for column in columns or ():
        ours, equals, theirs = column.partition("=")
        if not equals:
            raise UsageError(f"--column {column}: write it as ours=theirs, such as question=problem")
        pairs[ours] = theirs
    if limit is None and checker is None and not pairs and _is_ours(Path(source)):
        return Path(source)
    problems = read_problems(source, columns=pairs or None, checker=checker or "number", limit=limit)
    path = out.with_name(f"{out.stem}-problems.parquet")
    write_records(path, problems, Problem)
    return path


def _is_ours(path: Path) -> bool:
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        read_records(path, Problem)
    except UsageError:
        return False
    return True
