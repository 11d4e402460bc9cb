"""Plain documents, for training on text that asks nothing.

`read_texts` takes a `.txt` or `.md` file (one document), a folder of such files, a `.jsonl`, `.json` or
`.parquet` file with a column of texts, or `hub:owner/name`.
Promises: the order of the source; a document is kept whole, as it is written; empty ones are left out; every
error is one UsageError that names file, row and what is wrong.
Does not: clean, filter or deduplicate.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import StorageError, UsageError
from tutelage.problems.files import HUB, Row, file_rows, hub_rows
from tutelage.records import clean_text, stable_hash

_PLAIN = (".txt", ".md")


@dataclass(frozen=True, slots=True)
class Text:
    """One document: where it is from and under which licence ("": not told). `id` is a hash of the text."""

    id: str
    text: str
    source: str = ""
    licence: str = ""


def read_texts(
    source: str | Path,
    *,
    columns: Sequence[str] = ("text",),
    limit: int | None = None,
    split: str = "train",
    licence: str = "",
) -> list[Text]:
    """The documents of `source`, or the first `limit`. Several `columns` are put one after the other, a line
    each; `split` is for the Hub. `licence` stands where a row tells none.

    Raises UsageError for a missing file, a broken row, a missing column, a column that is not text, and where
    there is no text at all."""
    name = str(source)
    if name.startswith(HUB):
        found = _of_rows(name, hub_rows(name, split, limit), columns, name.removeprefix(HUB), licence)
    else:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.suffix in _PLAIN and each.is_file())
            found = (_of_file(each, licence) for each in files)
        elif not path.is_file():
            raise UsageError(f"{name}: no such file or folder; for a Hub data set write {HUB}owner/name")
        elif path.suffix in _PLAIN:
            found = iter([_of_file(path, licence)])
        else:
            found = _of_rows(name, file_rows(path), columns, path.name, licence)
    texts = list(islice((each for each in found if each.text.strip()), limit))
    if not texts:
        raise UsageError(f"{name}: there is no text in it")
    return texts


def write_texts(path: Path, texts: Iterable[Text]) -> None:
    """Write Parquet that `read_texts` reads back as it is. Raises StorageError."""
    schema = pa.schema([(each.name, pa.string()) for each in fields(Text)])
    rows = [{key: clean_text(value) for key, value in asdict(text).items()} for text in texts]
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot write ({error.strerror or error})") from error


def _of_file(path: Path, licence: str) -> Text:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start + 1})") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return Text(stable_hash(text), text, path.name, licence)


def _of_rows(
    name: str, rows: Iterator[Row], columns: Sequence[str], source: str, licence: str
) -> Iterator[Text]:
    for where, row in rows:
        parts = []
        for column in columns:
            if column not in row:
                raise UsageError(
                    f"{name} {where}: no column {column!r}; it has {', '.join(map(str, row)) or 'none'}"
                )
            if not isinstance(row[column], str):
                raise UsageError(f"{name} {where}: {column} is not text")
            parts.append(row[column])
        text = "\n".join(parts)
        yield Text(
            stable_hash(text), text, _told(row.get("source")) or source, _told(row.get("licence")) or licence
        )


def _told(value: Any) -> str:
    return value if isinstance(value, str) else ""
