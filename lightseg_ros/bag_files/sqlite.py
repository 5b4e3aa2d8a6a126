# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""sqlite databases of rosbag2."""
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
import functools
from pathlib import Path
import shutil
import sqlite3
import struct
import tempfile
from urllib.parse import quote

from .chunked import Channel, Message
from .packed import DamagedError

SQLITE = b'SQLite format 3\0'
JOURNAL = 'its recorder was killed; the messages in its journal file are read too'


class SqliteFile:
    """
    A sqlite database of rosbag2, open for reading; `DamagedError` if sqlite reads nothing in it.

    With a journal beside it, a copy is read that has the journal's messages too. One that was cut short is
    read as far as sqlite can.
    """

    def __init__(self, path: Path):
        self.notes: list[str] = []
        self._copy: tempfile.TemporaryDirectory | None = None
        found = path.stat()
        if any(p.is_file() and p.stat().st_size for p in journals(path)):
            try:
                self._copy = checkpointed_copy(path, found.st_size, found.st_mtime_ns)
            except (OSError, sqlite3.Error) as e:
                raise DamagedError('it was not finished by its recorder, and the copy that is needed to read '
                                   f'it can not be made: {e}') from e
            path = Path(self._copy.name) / path.name
            found = path.stat()
            self.notes.append(JOURNAL)
        self._db = _connect(path)
        try:
            self.channels, self._readable = _index(path, found.st_size, found.st_mtime_ns)
        except sqlite3.Error as e:
            self._db.close()
            raise DamagedError(f'sqlite can not read it: {e}') from e
        if self._readable is not None:
            self.notes.append(f'the database is damaged or cut short; sqlite still reads '
                              f'{len(self._readable)} messages')

    def messages(self, wanted: Collection[int], start_ns: int | None = None) -> Iterator[Message]:
        """Yield the messages of the wanted channels by recording time, from `start_ns` on."""
        rows: Iterator[tuple[int, int, int]]
        if self._readable is not None:
            rows = (r for r in self._readable if start_ns is None or r[0] >= start_ns)
        else:
            # Without the data, so that a database without an index of the times is sorted in little memory.
            rows = self._db.execute('SELECT timestamp, id, topic_id FROM messages WHERE timestamp >= ? '
                                    'ORDER BY timestamp, id', (-1 << 63 if start_ns is None else start_ns,))
        for time_ns, number, channel in rows:
            if channel in wanted:
                (data,), = self._db.execute('SELECT data FROM messages WHERE id = ?', (number,))
                yield channel, time_ns, data

    def close(self) -> None:
        """Close the database."""
        self._db.close()
        self._copy = None  # a copy lives as long as a file that reads it


def journals(path: Path) -> list[Path]:
    """Files beside a sqlite database that hold messages that were not yet written into it."""
    return [path.with_name(path.name + suffix) for suffix in ('-wal', '-journal')]


@functools.lru_cache(maxsize=2)
def checkpointed_copy(path: Path, size: int, mtime_ns: int) -> tempfile.TemporaryDirectory:
    """
    Copy a sqlite database with its journals, which a killed recorder leaves, and write them into the copy.

    `size` and `mtime_ns` are the file's, so that one that grew is copied again. The copy is made once per
    process, since every task of an evaluation opens the bag anew, and lives as long as the folder object.
    """
    folder = tempfile.TemporaryDirectory(prefix='lightseg_')
    copy = Path(folder.name) / path.name
    shutil.copyfile(path, copy)
    for journal in journals(path):
        if journal.is_file():
            shutil.copyfile(journal, copy.with_name(journal.name))
    with closing(sqlite3.connect(copy)) as db:
        db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
        db.execute('PRAGMA journal_mode = DELETE')
    return folder


def _connect(path: Path) -> sqlite3.Connection:
    # immutable: neither locks nor journals are made beside the user's file.
    db = sqlite3.connect(f'file:{quote(str(path.absolute()))}?mode=ro&immutable=1', uri=True,
                         check_same_thread=False)
    # With this, sqlite opens a file that has fewer pages than its header says.
    db.execute('PRAGMA writable_schema = ON')
    return db


@functools.lru_cache(maxsize=8)
def _index(path: Path, size: int, mtime_ns: int) -> tuple[dict[int, Channel],
                                                                 list[tuple[int, int, int]] | None]:
    """
    Count a database's messages, once per process; `size` and `mtime_ns` as for `checkpointed_copy`.

    The second value is None for a whole database, else (time, id, channel) of each message that is readable.
    """
    with closing(_connect(path)) as db:
        # A view could compute rows without end.
        (tables,), = db.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN "
                                "('topics', 'messages')")
        if tables != 2:
            raise sqlite3.DatabaseError('it has no tables topics and messages')
        topics = db.execute('SELECT id, name, type, serialization_format FROM topics').fetchall()
        with open(path, 'rb') as f:
            head = f.read(100)
        page_size, pages = *struct.unpack_from('>H', head, 16), *struct.unpack_from('>I', head, 28)
        readable: list[tuple[int, int, int]] | None = None
        counts: dict[int, int] = {}
        try:
            if size < pages * (page_size if page_size > 1 else 1 << 16):
                raise sqlite3.DatabaseError('cut short')
            counts = dict(db.execute('SELECT topic_id, count(*) FROM messages GROUP BY topic_id'))
        except sqlite3.DatabaseError:
            readable = sorted(_readable(db))
            counts = Counter(channel for _, _, channel in readable)
    return {number: Channel(name, kind, encoding, counts.get(number, 0))
            for number, name, kind, encoding in topics}, readable


def _readable(db: sqlite3.Connection) -> Iterator[tuple[int, int, int]]:
    """Yield the messages of a damaged database, in the order of the table, until sqlite gives up."""
    with suppress(sqlite3.DatabaseError):
        for row in db.execute('SELECT timestamp, id, topic_id FROM messages NOT INDEXED ORDER BY id'):
            with suppress(sqlite3.DatabaseError):
                db.execute('SELECT data FROM messages WHERE id = ?', (row[1],)).fetchone()
                yield row
