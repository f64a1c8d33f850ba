"""One SQLite file, whose transactions are whole or not at all, and whose faults are explained in a sentence.

WAL mode with `synchronous=FULL`: a transaction that was committed outlives the process and a power cut, and readers
do not wait for writers.
"""

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from cai.errors import RunDirError
from cai.human import schema
from cai.journal import partial_path

BUSY_SECONDS = 30.0
"""How long a transaction waits for another process's."""

_REASONS = {
    sqlite3.SQLITE_BUSY: "another process holds it; wait for that or stop it, and try again",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; its file and its directory must be readable and writable",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a copy",
    sqlite3.SQLITE_FULL: "the disk is full; what was answered is kept: free some space and try again",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written; what was answered is kept: mend that and try again",
    sqlite3.SQLITE_NOTADB: "it is no database",
    sqlite3.SQLITE_PERM: "it may not be opened; its file and its directory must be readable and writable",
    sqlite3.SQLITE_READONLY: "it is write-protected; its file and its directory must be writable",
}


class Database:
    """An open file with the tables of `schema`. Safe for threads; a forked process opens its own."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Take an open connection; callers use `create` and `open`."""
        self.path = path
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file and bring an older schema up to date. What is write-protected can be read.

        Raises:
            RunDirError: it is missing, locked, of another kind, of a newer version, or cannot be read.
        """
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise RunDirError(f"{path} is not a file; name the file of a store of ratings")
        except OSError as error:
            raise RunDirError(f"the store of ratings {path} cannot be opened: {error.strerror}") from None
        with _explained(path):
            connection = _connect(path)
            try:
                database = cls(path, connection)
                _check_kind(path, connection)  # before anything is written to a file of somebody else
                _check_version(path, connection)
                if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                    raise RunDirError(
                        f"the store of ratings {path} is on a file system without shared memory, which its journal "
                        "needs; put it on a local disk"
                    )
                with database.transaction():
                    version = _check_version(path, connection)  # another process may have migrated it by now
                    if version < len(schema.MIGRATIONS):
                        schema.migrate(connection, version)
            except BaseException:
                connection.close()
                raise
            return database

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Read and write in one transaction, which no other process's comes between.

        Raises:
            RunDirError: it could not be begun or finished; nothing was written.
        """
        with self._lock, _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some faults have rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read with one statement, which waits for no other process.

        Raises:
            RunDirError: it cannot be read.
        """
        with self._lock, _explained(self.path):
            yield self._connection

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Read everything as it is now, while others go on writing.

        Raises:
            RunDirError: it cannot be read.
        """
        with _explained(self.path), closing(_connect(self.path)) as connection:
            connection.execute("BEGIN")
            yield connection

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


@contextmanager
def new_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Make a file whose tables the caller fills; it takes its name only once that has succeeded.

    Raises:
        RunDirError: the file exists, another process is making it, or it cannot be written.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            if path.exists():
                raise RunDirError(f"{path} exists; it is not made anew, since it may hold ratings")
            _remove(partial)  # of a process that was killed
            try:
                with _explained(path):
                    partial.touch()
                    with closing(_connect(partial)) as connection:
                        connection.execute("PRAGMA journal_mode = WAL")
                        connection.execute("BEGIN IMMEDIATE")
                        schema.migrate(connection, 0)
                        yield connection
                        connection.execute("COMMIT")
                partial.rename(path)
                _sync_directory(path.parent)
            finally:
                _remove(partial)
    except Timeout:
        raise RunDirError(f"another process is making {path}; wait for it") from None
    except OSError as error:
        raise RunDirError(f"the store of ratings {path} cannot be made: {error.strerror}; mend that") from None


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file that exists."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_kind(path: Path, connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != schema.APPLICATION_ID:
        raise RunDirError(f"{path} is no store of ratings; name another file, or move it away")


def _check_version(path: Path, connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(schema.MIGRATIONS):
        raise RunDirError(
            f"the store of ratings {path} was written by a newer cai (its schema is version {version}, this cai knows "
            f"{len(schema.MIGRATIONS)}); update cai"
        )
    return version


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Put SQLite's faults of files and disks into a sentence; others are bugs, and pass."""
    try:
        yield
    except sqlite3.Error as error:
        reason = _REASONS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if reason is None:
            raise
        raise RunDirError(f"the store of ratings {path} cannot be used: {reason}") from error


def _remove(partial: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Have the new name outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
