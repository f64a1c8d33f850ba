"""An append-only JSONL file that a killed process leaves whole, and files that are replaced whole or not at all.

One unbuffered write a line: what the kernel took outlives the process. A line counts once its line break is there; a
torn last line is left out by readers and cut off when the file is opened for writing again. A power cut may lose the
lines since the last `sync`, never those before it.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from cai.errors import DataError, RunDirError
from cai.records import Record

ModelT = TypeVar("ModelT", bound=BaseModel)
RecordT = TypeVar("RecordT", bound=Record)

_HEAD = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*"),"index":(\d+),')


class Head(NamedTuple):
    """The beginning of a stage record's line, and where the line is."""

    key: int
    """See `id_key`."""
    position: int
    """In the run's input."""
    offset: int
    """In bytes."""
    line: int
    """1-based."""


class Journal:
    """A JSONL file open for appending."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; what stands after its last line break is cut off.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = path
        _cut_torn_line(path)
        self._file: FileIO = FileIO(path, "ab")

    def write(self, record: Record) -> None:
        """Append a record.

        Raises:
            RunDirError: it cannot be written; the file is as before.
        """
        line = record.model_dump_json().encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            while written < len(line):  # a full disk takes a part first; the next write says why
                written += self._file.write(line[written:])
        except OSError as error:
            with suppress(OSError):  # a line that is written after this one must not run on from its half
                self._file.truncate(end)
            raise write_error(self.path, error) from None

    def sync(self) -> None:
        """Have the kernel put all lines on disk.

        Raises:
            RunDirError: it could not.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def id_key(id: str) -> int:
    """A 64-bit hash that stands for an id in memory."""
    return int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), "big")


def read_document(path: Path, model: type[ModelT], whose: str) -> ModelT:
    """Read a file that is one JSON document; `whose` says what writes it, such as "a run of `cai rank`".

    Raises:
        DataError: it cannot be read, or is no `model`.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; it is written by {whose}") from None
    except ValidationError as error:
        raise DataError(
            f"{path} is not what {whose} writes ({first_problem(error)}); make it anew with this version of cai"
        ) from None


def read_heads(path: Path) -> Iterator[Head]:
    """Read the beginning of each whole line of a journal of stage records, without parsing the records.

    Raises:
        RunDirError: the file is missing, or a line within it is broken.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                head = _HEAD.match(line)
                if head is None or not line.endswith(b"}\n"):
                    raise RunDirError(f"{path}:{number}: broken line; remove it, and its record is made anew")
                yield Head(id_key(json.loads(head[1])), int(head[2]), offset, number)
                offset += len(line)
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}") from None


def read_at(path: Path, model: type[RecordT], offsets: Iterator[int]) -> Iterator[RecordT]:
    """Read the records that begin at these bytes, one at a time.

    Raises:
        RunDirError: the file cannot be read, or a record is not a valid `model`.
    """
    try:
        with path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                yield _parse(file.readline(), model, f"{path}: the line at byte {offset}")
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: Path, model: type[RecordT]) -> Iterator[RecordT]:
    """Read all records of a journal; a missing file has none, a torn last line is left out.

    Raises:
        RunDirError: the file cannot be read, or a line is not a valid `model`.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield _parse(line, model, f"{path}:{number}")
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}") from None


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it, so that readers see the old or the new content, never half.

    Raises:
        OSError: it cannot be written; the file is as before.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file of a run, whole or not at all.

    Raises:
        RunDirError: it cannot be written; the message says why and what to do.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise write_error(path, error) from None


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `path`, in place of one that has it, when all of it is written."""
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    yield partial
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def partial_path(path: Path) -> Path:
    """The temporary name that a file or folder is written under."""
    return path.with_name(f".{path.name}.partial")


def write_error(path: Path, error: OSError) -> RunDirError:
    """Say why `path` cannot be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, remedy = "the disk is full", "free some space"
    else:
        reason, remedy = error.strerror or str(error), "mend that"
    return RunDirError(
        f"{path} cannot be written: {reason}; what is finished is kept: {remedy} and run the same command again"
    )


def first_problem(error: ValidationError) -> str:
    """Word the first of pydantic's findings about a file of ours, with its key."""
    first = error.errors(include_url=False)[0]
    return ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)


def _cut_torn_line(path: Path) -> None:
    """Cut what stands after the last line break."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            file.seek(start)
            found = file.read(keep - start).rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)


def _parse(line: bytes, model: type[RecordT], place: str) -> RecordT:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        raise RunDirError(f"{place} is not a valid {model.__name__}: {first_problem(error)}") from None
