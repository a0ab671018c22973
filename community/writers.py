"""Rows -> files of a dataset, as they come: JSON lines, Parquet, or a folder of `datasets`.

Each writer keeps a file a split open and at most one batch of rows in memory. The same rows
give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from community.errors import unknown
from community.extras import extra
from community.formats import Row, Type

BATCH = 5000
"""Rows that are written at once, and those of a row group in Parquet."""


class Writer(Protocol):
    """Writes the rows of splits below a folder."""

    def write(self, split: str, rows: Sequence[Row]) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """`train.jsonl` and so on: one row a line, characters as they are."""

    suffix = "jsonl"

    def __init__(self, folder: Path, columns: Mapping[str, Type]) -> None:
        self.folder, self._names = folder, tuple(columns)
        self._files: dict[str, IO[str]] = {}

    def write(self, split: str, rows: Sequence[Row]) -> None:
        if split not in self._files:
            path = self.folder / f"{split}.{self.suffix}"
            self._files[split] = path.open("w", encoding="utf-8", newline="\n")
        named = (dict(zip(self._names, row, strict=True)) for row in rows)
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in named)
        self._files[split].writelines(lines)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class Parquet:
    """`train.parquet` and so on, compressed with zstd, a row group a batch."""

    suffix = "parquet"

    def __init__(self, folder: Path, columns: Mapping[str, Type]) -> None:
        self.folder = folder
        self.arrow, self._parquet = extra("pyarrow"), extra("pyarrow.parquet")
        self.schema = _schema(self.arrow, columns)
        self._files: dict[str, Any] = {}

    def open(self, path: Path) -> Any:
        return self._parquet.ParquetWriter(path, self.schema, compression="zstd")

    def write(self, split: str, rows: Sequence[Row]) -> None:
        if split not in self._files:
            self._files[split] = self.open(self.folder / f"{split}.{self.suffix}")
        columns = [
            self.arrow.array(values, field.type)
            for values, field in zip(zip(*rows, strict=True), self.schema, strict=True)
        ]
        self._files[split].write_table(self.arrow.table(columns, schema=self.schema))

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class Saved(Parquet):
    """What `datasets.load_from_disk` reads: a DatasetDict as its `save_to_disk` leaves it."""

    suffix = "stream"

    def __init__(self, folder: Path, columns: Mapping[str, Type]) -> None:
        super().__init__(folder, columns)
        self._datasets = extra("datasets")

    def open(self, path: Path) -> Any:
        return self.arrow.ipc.new_stream(path, self.schema)

    def close(self) -> None:
        super().close()
        if not self._files:
            return
        bars = not self._datasets.are_progress_bars_disabled()
        self._datasets.disable_progress_bars()
        try:
            whole = {split: self._read(split) for split in self._files}
            self._datasets.DatasetDict(whole).save_to_disk(str(self.folder))
        finally:
            if bars:
                self._datasets.enable_progress_bars()
        for split in self._files:
            self._path(split).unlink()

    def _path(self, split: str) -> Path:
        return self.folder / f"{split}.{self.suffix}"

    def _read(self, split: str) -> Any:
        """The rows of a split, still on disk, with a fingerprint that depends on them alone."""
        with self._path(split).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        table = self._datasets.table.MemoryMappedTable.from_file(str(self._path(split)))
        return self._datasets.Dataset(table, split=split, fingerprint=content)


WRITERS: Mapping[str, type[JsonLines] | type[Parquet]] = {
    "jsonl": JsonLines,
    "parquet": Parquet,
    "hf": Saved,
}


def writer(kind: str, folder: Path, columns: Mapping[str, Type]) -> Writer:
    """A writer below a folder. CommunityError for an unknown kind and without its extra."""
    if kind not in WRITERS:
        raise unknown("kind of file", kind, WRITERS)
    return WRITERS[kind](folder, columns)


def _schema(arrow: Any, columns: Mapping[str, Type]) -> Any:
    message = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
    types = {
        "string": arrow.string(),
        "strings": arrow.list_(arrow.string()),
        "messages": arrow.list_(message),
        "bool": arrow.bool_(),
        "int64": arrow.int64(),
        "float64": arrow.float64(),
    }
    return arrow.schema([(name, types[kind]) for name, kind in columns.items()])


class Batches:
    """Collects rows by split and hands them to a writer in batches."""

    def __init__(self, target: Writer) -> None:
        self._target = target
        self._rows: dict[str, list[Row]] = {}

    def add(self, split: str, row: Row) -> None:
        rows = self._rows.setdefault(split, [])
        rows.append(row)
        if len(rows) >= BATCH:
            self._flush(split)

    def close(self) -> None:
        """Write what is left and close the files."""
        for split in self._rows:
            self._flush(split)
        self._target.close()

    def _flush(self, split: str) -> None:
        if rows := self._rows[split]:
            self._target.write(split, rows)
            self._rows[split] = []
