"""A run directory: what a stage was asked, what it has finished, what failed; safe against kill -9 at any byte.

    manifest.json      what was asked and by which versions; state, counts, usage, timings (replaced atomically)
    constitution.yaml  the constitution the run works by, frozen
    records.jsonl      one finished record a line, in order of completion (append-only, one write a line)
    failures.jsonl     one failed try a line: id, step, reason (append-only)
    rejects.jsonl      input rows that could not be used, with the reason
    data/, README.md   the exported data set and its card

A line counts once its line break is on disk. A torn last line is cut off when the run is opened again, and its record
is made anew. Memory: 8 bytes for each finished id; records themselves are never held.
"""

import errno
import json
import os
import re
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from cai import __version__
from cai.errors import RunDirError
from cai.records import Failure, Record, StageRecord, Usage

RecordT = TypeVar("RecordT", bound=Record)

_HEAD = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*"),"index":(\d+),')
_MANIFEST = "manifest.json"


class Manifest(BaseModel):
    """What manifest.json holds."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    state: Literal["running", "stopped", "failed", "finished"] = "running"
    """`stopped`: interrupted, resumable. `failed`: more failures than allowed. `running` after a crash."""
    command: tuple[str, ...] = ()
    config: dict[str, Any]
    """The resolved configuration."""
    inputs: dict[str, str]
    """Hashes of what the result depends on: constitution, templates, prompts."""
    engine: dict[str, Any] = {}
    versions: dict[str, str] = {"cai": __version__}
    seed: int
    created: str
    updated: str
    counts: dict[str, int] = {}
    failures: dict[str, int] = {}
    """Number of failed records by reason."""
    usage: Usage = Usage()
    seconds: float = 0.0
    """Wall-clock time of all sessions."""
    sessions: int = 0


class RunDir:
    """An open, locked run directory. Use as a context manager."""

    def __init__(self, path: Path, manifest: Manifest, lock: FileLock) -> None:
        """Take a locked directory; callers use `RunDir.open`."""
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._began = time.monotonic()
        self._seconds_before = manifest.seconds
        self._records = _Journal(path / "records.jsonl")
        self._failures = _Journal(path / "failures.jsonl")
        self._finished = _sorted_ids(key for key, _, _ in self._records.heads())
        self._failed: dict[int, str] = {}
        self._tries: Counter[int] = Counter()
        for failure in read_jsonl(self._failures.path, Failure):
            key = _key(failure.id)
            self._tries[key] += 1
            if not _contains(self._finished, key):
                self._failed[key] = failure.reason
        self.finished = len(self._finished)
        """Number of finished records, those of earlier sessions included."""

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        stage: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        seed: int,
        command: Sequence[str] = (),
        free_keys: frozenset[str] = frozenset(),
        overwrite: bool = False,
    ) -> Self:
        """Create the run directory, or open it to go on.

        `free_keys` are dotted config keys that may change between sessions, since results do not depend on them.

        Raises:
            RunDirError: another process has it; it belongs to another configuration (the differences are named); it
                is not a run directory; it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise RunDirError(f"another process is working on {path}; wait for it, or choose another --out") from None
        except OSError as error:
            raise RunDirError(f"{path} cannot be used as a run directory: {error.strerror}") from None
        try:
            manifest = cls._manifest(path, stage, config, inputs, seed, command, free_keys, overwrite)
            run = cls(path, manifest, lock)
            run.save("running")
        except OSError as error:
            lock.release()
            raise _write_error(path, error) from None
        except BaseException:
            lock.release()
            raise
        return run

    @staticmethod
    def _manifest(
        path: Path,
        stage: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        seed: int,
        command: Sequence[str],
        free_keys: frozenset[str],
        overwrite: bool,
    ) -> Manifest:
        now = _now()
        fresh = Manifest(
            stage=stage, command=tuple(command), config=dict(config), inputs=dict(inputs), seed=seed, created=now, updated=now
        )
        if not (path / _MANIFEST).exists():
            others = [entry.name for entry in path.iterdir() if entry.name != ".lock"]
            if others:
                raise RunDirError(f"{path} is not a run directory and not empty ({others[0]}, …); choose another --out")
            return fresh
        if overwrite:
            _clear(path)
            return fresh
        old = read_manifest(path)
        if changed := _differences(old, fresh, free_keys):
            raise RunDirError(
                f"{path} holds a run with another configuration: {'; '.join(changed)}. "
                "Give another --out, or --overwrite to start it anew"
            )
        return old.model_copy(update={"config": dict(config), "command": tuple(command)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._records.close()
        self._failures.close()
        self._lock.release()

    @property
    def failed(self) -> int:
        """Number of records whose last try failed."""
        return len(self._failed)

    def is_finished(self, id: str) -> bool:
        """Whether a record of this id was finished before this session."""
        return _contains(self._finished, _key(id))

    def failed_tries(self, id: str) -> int:
        """How many tries of this id failed before this session."""
        return self._tries[_key(id)]

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed records by reason, the most frequent first."""
        return dict(Counter(self._failed.values()).most_common())

    def append(self, record: StageRecord, usage: Usage) -> None:
        """Put a finished record on disk."""
        self._records.write(record)
        self.finished += 1
        self._failed.pop(_key(record.id), None)
        self.manifest.usage = self.manifest.usage + usage

    def append_failure(self, failure: Failure) -> None:
        """Put a failed try on disk."""
        self._failures.write(failure)
        self._failed[_key(failure.id)] = failure.reason

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of the run directory, whole or not at all."""
        try:
            replace_file(self.path / name, text)
        except OSError as error:
            raise _write_error(self.path, error) from None

    def save(self, state: Literal["running", "stopped", "failed", "finished"]) -> None:
        """Replace the manifest, with the counts as they are now."""
        manifest = self.manifest
        if state == "running":
            manifest.sessions += 1
        manifest.state = state
        manifest.updated = _now()
        manifest.seconds = round(self._seconds_before + time.monotonic() - self._began, 3)
        manifest.failures = self.failures
        manifest.counts = {**manifest.counts, "finished": self.finished, "failed": self.failed}
        self.write_text(_MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def read_manifest(run: Path) -> Manifest:
    """Read the manifest of a run directory.

    Raises:
        RunDirError: there is none, or it is broken.
    """
    try:
        return Manifest.model_validate_json((run / _MANIFEST).read_bytes())
    except FileNotFoundError:
        raise RunDirError(f"{run} is not a run directory (no {_MANIFEST})") from None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error.error_count()} invalid entries"
        raise RunDirError(f"{run / _MANIFEST} cannot be read: {reason}") from None


def read_records(run: Path, model: type[RecordT]) -> Iterator[RecordT]:
    """Read the finished records of a run in the order of its input, one at a time. A torn last line is left out.

    Raises:
        RunDirError: records.jsonl is missing, or a line within it is broken.
    """
    path = run / "records.jsonl"
    places = sorted((index, offset) for _, index, offset in _heads(path))
    try:
        with path.open("rb") as file:
            for _, offset in places:
                file.seek(offset)
                yield _parse(file.readline(), model, path)
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}") from None


def read_jsonl(path: Path, model: type[RecordT]) -> Iterator[RecordT]:
    """Read a journal line by line; a missing file has no lines, a torn last line is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _parse(line, model, path)


def replace_file(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that readers see the old or the new text, never half."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class _Journal:
    """An append-only JSONL file. One unbuffered write a line: a killed process leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _cut_torn_line(path)
        self._file: FileIO = FileIO(path, "ab")

    def heads(self) -> Iterator[tuple[int, int, int]]:
        return _heads(self.path)

    def write(self, record: Record) -> None:
        line = record.model_dump_json().encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise _write_error(self.path, error) from None
        if written != len(line):
            raise _write_error(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def close(self) -> None:
        self._file.close()


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


def _heads(path: Path) -> Iterator[tuple[int, int, int]]:
    """Key, index and byte offset of each whole line, without parsing the records."""
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                head = _HEAD.match(line)
                if head is None or not line.endswith(b"}\n"):
                    raise RunDirError(f"{path}:{number}: broken line; restore the file or remove that line")
                yield _key(json.loads(head[1])), int(head[2]), offset
                offset += len(line)
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}") from None


def _parse(line: bytes, model: type[RecordT], path: Path) -> RecordT:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RunDirError(f"{path}: a line is not a valid {model.__name__}: {first['loc']}: {first['msg']}") from None


def shared_keys_digest(config: Mapping[str, Any], inputs: Mapping[str, str], free_keys: frozenset[str]) -> str:
    """Hash of all that must stay the same when a run goes on: inputs, and the config without `free_keys`."""
    kept = {key: value for key, value in _flat(config).items() if key not in free_keys}
    return sha256(json.dumps([kept, dict(inputs)], sort_keys=True).encode()).hexdigest()


def _differences(old: Manifest, new: Manifest, free_keys: frozenset[str]) -> list[str]:
    """What differs between two runs, apart from `free_keys`, in words."""
    before, after = _flat(old.config), _flat(new.config)
    changed = [
        f"{key} is {_shown(after.get(key))}, was {_shown(before.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if key not in free_keys and before.get(key) != after.get(key)
    ]
    changed += [
        f"the {name} changed" for name in sorted(old.inputs.keys() | new.inputs.keys())
        if old.inputs.get(name) != new.inputs.get(name)
    ]
    if old.stage != new.stage:
        changed.insert(0, f"the stage is {new.stage}, was {old.stage}")
    return changed


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _clear(path: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    import shutil

    shutil.rmtree(path / "data", ignore_errors=True)
    for name in ("records.jsonl", "failures.jsonl", "rejects.jsonl", "constitution.yaml", "README.md", _MANIFEST):
        (path / name).unlink(missing_ok=True)


def _write_error(path: Path, error: OSError) -> RunDirError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunDirError(f"the disk is full, {path} cannot be written; free some space and run the same command again")
    return RunDirError(f"{path} cannot be written: {error.strerror}")


def _key(id: str) -> int:
    return int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), "big")


def _sorted_ids(keys: Iterator[int]) -> "array[int]":
    return array("Q", sorted(array("Q", keys)))


def _contains(ids: "array[int]", key: int) -> bool:
    place = bisect_left(ids, key)
    return place < len(ids) and ids[place] == key


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
