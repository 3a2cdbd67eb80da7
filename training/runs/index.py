"""Index of an output folder: a SQLite database of its runs and adapters, and of who uses them.

The files of the runs and adapters are the truth. The index can be deleted at any time: the next program that opens it
reads the files again. Processes and containers that share an output folder share its index; in write-ahead-log mode
readers never wait for a writer (sqlite.org/wal.html, which also says that a network file system does not support it).
"""

import contextlib
import errno
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hra_diffusion import records
from hra_diffusion.files import FileError, make_folder, move, remove, to_file_error

VERSION = 2
"""Version of the schema. An index of another version is deleted and filled again."""
BUSY_SECONDS = 30.0
"""How long to wait while another process writes."""
TABLES = (
    """CREATE TABLE folders (
    name TEXT PRIMARY KEY,                -- of a run or an adapter; "" for adapters in the output folder itself
    run_stamp TEXT NOT NULL DEFAULT '',   -- modification times of the run's files when they were last read
    adapter_stamp TEXT NOT NULL DEFAULT '',
    status TEXT,                          -- NULL if it is no run
    step INTEGER, steps INTEGER, reason TEXT,
    place REAL,                           -- orders the waiting runs; NULL for runs outside the queue
    device TEXT NOT NULL DEFAULT '',      -- asked for; '' for any
    changed REAL NOT NULL DEFAULT 0,      -- Unix seconds
    owner TEXT NOT NULL DEFAULT '',       -- see ``owners.Owner``
    shared INTEGER NOT NULL DEFAULT 0
)""",
    """CREATE TABLE adapters (
    path TEXT PRIMARY KEY,                -- relative to the output folder
    folder TEXT NOT NULL,
    step INTEGER,                         -- of a checkpoint
    name TEXT,                            -- NULL for another program's file
    method TEXT, base TEXT, subject TEXT, class_noun TEXT,
    words TEXT NOT NULL,                  -- what a search looks into
    error TEXT NOT NULL DEFAULT '',       -- why it can't be read
    size INTEGER NOT NULL, modified INTEGER NOT NULL
)""",
    "CREATE INDEX adapters_folder ON adapters (folder)",
    "CREATE INDEX adapters_modified ON adapters (modified DESC)",
    """CREATE TABLE leases (
    holder TEXT PRIMARY KEY,
    resource TEXT NOT NULL, kind TEXT NOT NULL, purpose TEXT NOT NULL,
    memory INTEGER NOT NULL, waiting INTEGER NOT NULL,
    space TEXT NOT NULL, pid INTEGER NOT NULL, started REAL NOT NULL,
    since REAL NOT NULL, heartbeat REAL NOT NULL
)""",
    "CREATE TABLE requested (visitor TEXT NOT NULL, images INTEGER NOT NULL, time REAL NOT NULL)",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL)",
    "INSERT INTO facts VALUES ('revision', 0), ('scanned', 0)",
)
VISIBLE = {
    "folders": "UPDATE OF status, step, steps, reason, place, owner, shared",
    "adapters": "UPDATE",
    "leases": "UPDATE OF waiting",
}
"""The changes of rows that change the revision, besides new and deleted rows. Heartbeats do not."""
TRIGGERS = tuple(
    f"CREATE TRIGGER {table}_{event.split()[0]} AFTER {event} ON {table} BEGIN "
    "UPDATE facts SET value = value + 1 WHERE name = 'revision'; END"
    for table, update in VISIBLE.items()
    for event in ("INSERT", "DELETE", update)
)


@dataclass
class _Connection:
    """A connection shared by the threads of this process, and the inode of its file."""

    database: sqlite3.Connection
    inode: int


_connections: dict[Path, _Connection] = {}
_lock = threading.RLock()
"""Held while a connection of this process is used."""


@dataclass(frozen=True)
class Index:
    """The index of one output folder."""

    output: Path

    @property
    def path(self) -> Path:
        """The database file, as an absolute path."""
        return self.output.absolute() / ".queue" / "index.sqlite3"

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a SELECT statement."""
        with self._connected() as database:
            return database.execute(query, values).fetchall()

    def value(self, query: str, *values: Any) -> Any:
        """Return the first column of the first row of a SELECT statement, or None."""
        rows = self.rows(query, *values)
        return rows[0][0] if rows else None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Within the block, no other process or thread writes. Changes are kept if the block raises no error."""
        with self._connected() as database:
            if database.in_transaction:  # in a block of this thread
                yield database
                return
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def revision(self) -> int:
        """Return a number that grows with every change of the runs, adapters and leases."""
        return int(self.value("SELECT value FROM facts WHERE name = 'revision'"))

    def forget(self, name: str) -> None:
        """Remove the folder of this name, which was deleted or moved, with its adapters."""
        with self.writing() as database:
            database.execute("DELETE FROM folders WHERE name = ?", (name,))
            database.execute("DELETE FROM adapters WHERE folder = ?", (name,))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with _lock:
            try:
                yield self._connect()
            except sqlite3.OperationalError as error:
                raise self._file_error(error) from error
            except sqlite3.DatabaseError as error:  # damaged since it was opened
                self._close()
                raise FileError(f"{self.path} was damaged and is made anew from the files; try again") from error

    def _connect(self) -> sqlite3.Connection:
        """Return this process's connection. The file may have been deleted or replaced since the last call."""
        known = _connections.get(self.path)
        with contextlib.suppress(OSError):
            if known and self.path.stat().st_ino == known.inode:
                return known.database
        self._close()
        make_folder(self.path.parent)
        if self.path.is_dir():
            self.set_aside()
        try:
            database = _open(self.path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self.set_aside()
            database = _open(self.path)
        _connections[self.path] = _Connection(database, self.path.stat().st_ino)
        return database

    def _close(self) -> None:
        if known := _connections.pop(self.path, None):
            known.database.close()

    def set_aside(self) -> None:
        """Rename a damaged database, in favour of a new one."""
        with _lock:
            self._close()
            move(self.path, records.path_aside(self.path))
            self._remove_logs()

    def delete(self) -> None:
        """Delete the database. The next use makes it anew from the files."""
        with _lock:
            self._close()
            remove(self.path)
            self._remove_logs()

    def _remove_logs(self) -> None:
        for suffix in ("-wal", "-shm"):
            remove(self.path.with_name(self.path.name + suffix))

    def _file_error(self, error: sqlite3.OperationalError) -> FileError:
        codes = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY": errno.EROFS, "SQLITE_CANTOPEN": errno.EACCES}
        name = getattr(error, "sqlite_errorname", "")
        code = next((code for start, code in codes.items() if name.startswith(start)), None)
        if code is not None:
            return to_file_error(OSError(code, str(error)), self.path)
        return FileError(f"{self.path}: {error}")


def _open(path: Path) -> sqlite3.Connection:
    """Open a database, create its tables if needed, and check it. Raises sqlite3.DatabaseError if it is damaged."""
    database = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    database.row_factory = sqlite3.Row
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                database.execute(f"DROP TABLE {table}")
            for statement in TABLES + TRIGGERS:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("database disk image is malformed")
    except BaseException:
        database.close()
        raise
    return database
