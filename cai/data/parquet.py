"""Rows of records into a parquet file, row group by row group."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from pydantic import BaseModel

from cai.records import Message

if TYPE_CHECKING:  # imported where it is used: `cai --help` must not wait for it
    import pyarrow as pa

MAX_ROWS = 2048
MAX_CHARS = 8_000_000
"""A row group is written when its rows reach either, so this much text at most waits in memory for one file."""


class ParquetFile:
    """A parquet file in the making. Its columns are the fields of the row class."""

    def __init__(self, path: Path, row: type[BaseModel]) -> None:
        """Create the file.

        Raises:
            OSError: it cannot be written; so do the other methods.
        """
        import pyarrow.parquet as pq

        self.path = path
        self.rows = 0
        """Rows added so far."""
        self._schema = arrow_schema(row)
        self._columns = {name: _column(field.annotation) for name, field in row.model_fields.items()}
        self._waiting_rows = 0
        self._waiting_chars = 0
        self._file: BinaryIO = path.open("wb")
        self._writer: Any = pq.ParquetWriter(self._file, self._schema, compression="zstd")

    def add(self, row: BaseModel, chars: int) -> None:
        """Add a row that holds `chars` characters of text."""
        for name, column in self._columns.items():
            column.add(getattr(row, name))
        self.rows += 1
        self._waiting_rows += 1
        self._waiting_chars += chars
        if self._waiting_rows >= MAX_ROWS or self._waiting_chars >= MAX_CHARS:
            self._write_group()

    def finish(self) -> str:
        """Complete the file, put it on disk and return the sha256 of its content."""
        if self._waiting_rows:
            self._write_group()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def abandon(self) -> None:
        """Let go of the file, finished or not; what is on disk is of no use if it was not."""
        for part in (self._writer, self._file):
            with suppress(OSError):  # a full disk refuses the footer and the last buffer too
                part.close()

    def _write_group(self) -> None:
        import pyarrow as pa

        arrays = [self._columns[field.name].take(field.type) for field in self._schema]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._waiting_rows = self._waiting_chars = 0


def arrow_schema(row: type[BaseModel]) -> "pa.Schema":
    """The Arrow schema of a row class.

    Its fields are texts, floats and truth values (each may be null), integers, lists of texts, and messages.
    """
    import pyarrow as pa

    types: dict[Any, pa.DataType] = {
        str: pa.string(),
        str | None: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        float | None: pa.float64(),
        bool: pa.bool_(),
        bool | None: pa.bool_(),
        tuple[str, ...]: pa.list_(pa.string()),
        tuple[Message, ...]: pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    return pa.schema([(name, types[field.annotation]) for name, field in row.model_fields.items()])


class _Column(Protocol):
    """The values of a column that wait for their row group."""

    def add(self, value: Any) -> None: ...

    def take(self, type_: "pa.DataType") -> "pa.Array":
        """All values, which then wait no longer."""
        ...


def _column(annotation: Any) -> _Column:
    return _Conversations() if annotation == tuple[Message, ...] else _Values()


class _Values:
    """Plain values."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self.add = self._values.append

    def take(self, type_: "pa.DataType") -> "pa.Array":
        import pyarrow as pa

        array = pa.array(self._values, type_)
        self._values.clear()
        return array


class _Conversations:
    """Lists of messages, kept as flat texts: several times faster than records or dicts, which Python's garbage
    collector would visit over and over while they wait."""

    def __init__(self) -> None:
        self._roles: list[str] = []
        self._contents: list[str] = []
        self._offsets = [0]

    def add(self, value: tuple[Message, ...]) -> None:
        for message in value:
            self._roles.append(message.role)
            self._contents.append(message.content)
        self._offsets.append(len(self._roles))

    def take(self, type_: "pa.DataType") -> "pa.Array":
        import pyarrow as pa

        texts = [pa.array(texts, pa.string()) for texts in (self._roles, self._contents)]
        messages = pa.StructArray.from_arrays(texts, fields=list(type_.value_type))
        array = pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), messages, type=type_)
        self._roles.clear()
        self._contents.clear()
        self._offsets = [0]
        return array
