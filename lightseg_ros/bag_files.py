# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The files that bags consist of (mcap, sqlite3, ROS 1), read as far as they are whole.

Recorders that are killed leave files without an index, cut short, or with messages in a journal beside them.
Whatever can still be read is read, `notes` says what can't, and the user's files are never changed.
"""
from abc import ABC, abstractmethod
import bz2
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
import functools
import heapq
from pathlib import Path
import shutil
import sqlite3
import struct
import sys
import tempfile
from typing import BinaryIO, TypeAlias
from urllib.parse import quote
import zlib

import lz4.frame

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MCAP, SQLITE, ROS1, ZSTD = b'\x89MCAP0\r\n', b'SQLite format 3\0', b'#ROSBAG V2.0\n', b'\x28\xb5\x2f\xfd'
NS = 10 ** 9
# Opcodes of mcap records (https://mcap.dev/spec).
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, CHUNK_INDEX, STATISTICS, DATA_END = 2, 3, 4, 5, 6, 8, 11, 15
# Messages outside of chunks are read in portions of this many bytes.
PORTION = 1 << 20
JOURNAL = 'its recorder was killed; the messages in its journal file are read too'
# A few compressed bytes can become gigabytes. A chunk, a message or a file may become MAX_UNPACKED bytes; a
# file may also become MAX_RATIO times its size.
MAX_UNPACKED, MAX_RATIO = 1 << 28, 300
DECOMPRESSORS = {'zstd': zstd.ZstdDecompressor, 'lz4': lz4.frame.LZ4FrameDecompressor,
                 'bz2': bz2.BZ2Decompressor}


class DamagedError(ValueError):
    """A file, or a part of one, that can't be read; the text says what was found."""


@dataclass(frozen=True)
class Channel:
    """
    A topic of a file. `encoding`: of its messages, 'cdr', 'ros1', 'json', 'protobuf', ...

    `count`: the number of its messages that the file states, or that was found where it states none.
    """

    topic: str
    type: str
    encoding: str
    count: int


# A channel's id, time of recording in ns, and data.
Message: TypeAlias = tuple[int, int, bytes | memoryview]


@dataclass(frozen=True)
class Chunk:
    """
    A part of a file that holds messages: bytes `at` to `at + length`.

    `channels`: the channels that it has messages of; None if that is not known. `plain`: records as they are,
    outside of any chunk.
    """

    first_ns: int
    last_ns: int
    at: int
    length: int
    channels: frozenset[int] | None = None
    plain: bool = False


@dataclass(frozen=True)
class Index:
    """What a file holds: its channels by their ids, its chunks, and what a user should know of it."""

    channels: dict[int, Channel]
    chunks: list[Chunk]
    notes: list[str]


class ChunkedFile(ABC):
    """An mcap or ROS 1 file, open for reading. A damaged chunk is left out, and a note says so."""

    def __init__(self, path: Path, index: Index):
        self.channels, self.notes = index.channels, list(index.notes)
        self._chunks = sorted(index.chunks, key=lambda c: c.first_ns)
        self._file = open(path, 'rb')  # noqa: SIM115  `close` closes it

    @classmethod
    def content(cls, file: BinaryIO, chunk: Chunk) -> bytes:
        """Return a chunk's records, decompressed and checked; `DamagedError` if that fails."""
        file.seek(chunk.at)
        data = file.read(chunk.length)
        return data if chunk.plain else cls.unpack(data)

    @staticmethod
    @abstractmethod
    def unpack(data: bytes) -> bytes:
        """Return the records of a chunk that was read whole; `DamagedError` if that fails."""

    @staticmethod
    @abstractmethod
    def parse(content: bytes) -> Iterator[Message]:
        """Yield the messages among a chunk's records; `DamagedError` if they are no records."""

    def messages(self, wanted: Collection[int], start_ns: int | None = None) -> Iterator[Message]:
        """Yield the messages of the wanted channels by recording time, from `start_ns` on."""
        waiting: list[tuple[int, int, int, int, bytes | memoryview]] = []
        for number, chunk in enumerate(self._chunks):
            if start_ns is not None and chunk.last_ns < start_ns:
                continue
            if chunk.channels is not None and chunk.channels.isdisjoint(wanted):
                continue
            # Chunks may overlap in time: messages wait until no later chunk can hold an earlier one.
            while waiting and waiting[0][0] < chunk.first_ns:
                time_ns, _, _, channel, data = heapq.heappop(waiting)
                yield channel, time_ns, data
            try:
                found = list(self.parse(self.content(self._file, chunk)))
            except DamagedError as e:
                note = f'the chunk at byte {chunk.at} is damaged, its messages are left out ({e})'
                if note not in self.notes:
                    self.notes.append(note)
                continue
            for place, (channel, time_ns, data) in enumerate(found):
                if channel in wanted and (start_ns is None or time_ns >= start_ns):
                    heapq.heappush(waiting, (time_ns, number, place, channel, data))
        while waiting:
            time_ns, _, _, channel, data = heapq.heappop(waiting)
            yield channel, time_ns, data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class McapFile(ChunkedFile):
    """An mcap file of any recorder and profile, with or without index, statistics and chunks."""

    def __init__(self, path: Path):
        found = path.stat()
        super().__init__(path, _mcap_index(path, found.st_size, found.st_mtime_ns))

    @staticmethod
    def unpack(data: bytes) -> bytes:
        try:
            _, _, size, crc, name_size = struct.unpack_from('<QQQII', data)
            compression = data[32:32 + name_size].decode('latin-1')
            packed, = struct.unpack_from('<Q', data, 32 + name_size)
        except struct.error as e:
            raise DamagedError(f'it has only {len(data)} bytes') from e
        return _unpacked(data[40 + name_size:40 + name_size + packed], compression, size, crc)

    @staticmethod
    def parse(content: bytes) -> Iterator[Message]:
        for opcode, record in _records(content):
            if opcode == MESSAGE:
                if len(record) < 22:
                    raise DamagedError(f'a message record of {len(record)} bytes')
                channel, _, time_ns = struct.unpack_from('<HIQ', record)
                yield channel, time_ns, record[22:]


class Ros1File(ChunkedFile):
    """A ROS 1 bag, also one that was not finished (`.bag.active`, or cut short)."""

    def __init__(self, path: Path):
        found = path.stat()
        super().__init__(path, _ros1_index(path, found.st_size, found.st_mtime_ns))

    @staticmethod
    def unpack(data: bytes) -> bytes:
        fields, content = next(_ros1_records(data))
        if fields.get(b'op') != b'\5' or len(fields.get(b'size', b'')) != 4:
            raise DamagedError('there is no chunk at that place')
        size, = struct.unpack('<I', fields[b'size'])
        return _unpacked(bytes(content), fields.get(b'compression', b'').decode('latin-1'), size)

    @staticmethod
    def parse(content: bytes) -> Iterator[Message]:
        for fields, data in _ros1_records(content):
            if fields.get(b'op') == b'\2':
                try:
                    (channel,), time = struct.unpack('<I', fields[b'conn']), fields[b'time']
                    yield channel, _ros1_time(time), data
                except (KeyError, struct.error) as e:
                    raise DamagedError(f'a message record without connection or time ({e})') from e


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
            self.channels, self._readable = _sqlite_index(path, found.st_size, found.st_mtime_ns)
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


BagFile: TypeAlias = McapFile | Ros1File | SqliteFile


def kind(path: Path) -> type[BagFile] | None:
    """Tell from a file's first bytes what reads it; None if it is no part of a bag."""
    with open(path, 'rb') as f:
        start = f.read(16)
    if start.startswith(MCAP):
        return McapFile
    if start == SQLITE:
        return SqliteFile
    return Ros1File if start.startswith(ROS1) else None


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


@functools.lru_cache(maxsize=2)
def decompressed_copy(path: Path, size: int, mtime_ns: int) -> tuple[tempfile.TemporaryDirectory, str]:
    """Decompress a zstd file as `checkpointed_copy` copies one; the text says if it was cut short, or ''."""
    folder = tempfile.TemporaryDirectory(prefix='lightseg_')
    with open(path, 'rb') as packed, open(Path(folder.name) / path.stem, 'wb') as copy:
        frame, block, note = zstd.ZstdDecompressor(), b'', ''
        try:
            # A step at a time, so that a file that breaks off gives all that comes before.
            while block or not frame.needs_input or (block := packed.read(PORTION)):
                copy.write(frame.decompress(block, PORTION))
                if copy.tell() > max(MAX_UNPACKED, MAX_RATIO * size):
                    raise DamagedError(f'{size} bytes that decompress to more than {copy.tell()}')
                block = frame.unused_data if frame.eof else b''
                if frame.eof and (block or (block := packed.read(PORTION))):
                    frame = zstd.ZstdDecompressor()
                elif frame.eof:
                    break
            if not frame.eof:
                note = f'it decompresses to {copy.tell()} bytes, then it is cut short'
        except zstd.ZstdError as e:
            note = f'it decompresses to {copy.tell()} bytes, then it is damaged ({e})'
    return folder, note


def decompressed(message: bytes) -> bytes:
    """Decompress a message that was compressed with zstd on its own; `DamagedError` if it is broken."""
    return _decompressed(message, 'zstd', MAX_UNPACKED)


def _unpacked(data: bytes, compression: str, size: int, crc: int = 0) -> bytes:
    if compression in DECOMPRESSORS:
        if size > MAX_UNPACKED:
            raise DamagedError(f'{len(data)} bytes that say to hold {size}; expected {MAX_UNPACKED} at most')
        data = _decompressed(data, compression, size)
    elif compression not in ('', 'none'):
        raise DamagedError(f'compression {compression[:20]!r}; expected {", ".join(DECOMPRESSORS)} or none')
    if len(data) != size:
        raise DamagedError(f'it holds {len(data)} bytes, and says {size}')
    if crc and zlib.crc32(data) != crc:
        raise DamagedError('its checksum is wrong')
    return data


def _decompressed(data: bytes, compression: str, limit: int) -> bytes:
    """Decompress frames to `limit` bytes at most; `DamagedError` if there are more, or they are broken."""
    out = b''
    try:
        while data:
            frame = DECOMPRESSORS[compression]()
            out += frame.decompress(data, limit + 1 - len(out))
            if len(out) > limit:
                raise DamagedError(f'{len(data)} bytes that decompress to more than {limit}')
            if not frame.eof:
                raise DamagedError('it is cut short')
            data = frame.unused_data or b''
    except (zstd.ZstdError, RuntimeError, OSError, EOFError, ValueError) as e:
        raise DamagedError(str(e)) from e
    return out


def _records(content: bytes) -> Iterator[tuple[int, memoryview]]:
    """Split mcap records: opcode (1 byte), length (8 bytes), content."""
    view, at = memoryview(content), 0
    while at < len(view):
        if at + 9 > len(view):
            raise DamagedError('it ends in the middle of a record')
        opcode, length = struct.unpack_from('<BQ', view, at)
        if length > len(view) - at - 9:
            raise DamagedError('it ends in the middle of a record')
        yield opcode, view[at + 9:at + 9 + length]
        at += 9 + length


class _McapContents:
    """Collects what the records of an mcap file say about its channels and messages."""

    def __init__(self) -> None:
        self.schemas: dict[int, str] = {0: ''}  # 0: no schema
        self.channels: dict[int, tuple[int, str, str]] = {}
        self.found: Counter[int] = Counter()
        self.stated: dict[int, int] | None = None
        self.chunk_count = self.message_count = 0

    def add(self, opcode: int, record: memoryview) -> None:
        if opcode == SCHEMA:
            number, = struct.unpack_from('<H', record)
            self.schemas[number] = _string(record, 2)[0]
        elif opcode == CHANNEL:
            number, schema = struct.unpack_from('<HH', record)
            topic, at = _string(record, 4)
            self.channels[number] = schema, topic, _string(record, at)[0]
        elif opcode == MESSAGE:
            self.found[struct.unpack_from('<H', record)[0]] += 1
        elif opcode == STATISTICS:
            self.message_count, _, _, _, _, self.chunk_count = struct.unpack_from('<QHIIII', record)
            self.stated = dict(struct.iter_unpack('<HQ', record[46:]))

    def index(self, counts: dict[int, int], chunks: list[Chunk], notes: list[str]) -> Index:
        return Index({number: Channel(topic, self.schemas.get(schema, ''), encoding, counts.get(number, 0))
                      for number, (schema, topic, encoding) in self.channels.items()}, chunks, notes)


@functools.lru_cache(maxsize=8)
def _mcap_index(path: Path, size: int, mtime_ns: int) -> Index:
    """Index an mcap file once per process; `size` and `mtime_ns` as for `checkpointed_copy`."""
    with open(path, 'rb') as f:
        stated = None
        with suppress(struct.error, DamagedError):
            contents, chunks = _mcap_summary(f, size)
            stated = contents.stated
            if stated is not None and chunks and contents.chunk_count == len(chunks) \
                    and sum(stated.values()) == contents.message_count \
                    and stated.keys() <= contents.channels.keys() \
                    and all(schema in contents.schemas for schema, _, _ in contents.channels.values()):
                return contents.index(stated, chunks, [])
        return _scanned(f, size, stated)


def _mcap_summary(f: BinaryIO, size: int) -> tuple[_McapContents, list[Chunk]]:
    """Read the index at the end of an mcap file; `DamagedError` or `struct.error` if there is none."""
    f.seek(max(0, size - 37))
    footer = f.read(37)
    if not footer.startswith(struct.pack('<BQ', FOOTER, 20)) or not footer.endswith(MCAP):
        raise DamagedError('no footer')
    start, = struct.unpack_from('<Q', footer, 9)
    if not len(MCAP) < start <= size - 37:
        raise DamagedError('no summary')
    f.seek(start)
    contents, chunks = _McapContents(), []
    for opcode, record in _records(f.read(size - 37 - start)):
        if opcode == CHUNK_INDEX:
            first, last, at, length, n = struct.unpack_from('<QQQQI', record)
            if at + length > start:
                raise DamagedError('a chunk beyond the data')
            # Empty where the recorder wrote no message indexes.
            channels = frozenset(c for c, _ in struct.iter_unpack('<HQ', record[36:36 + n])) or None
            chunks.append(Chunk(first, last, at + 9, length - 9, channels))
        else:
            contents.add(opcode, record)
    return contents, chunks


def _scanned(f: BinaryIO, size: int, stated: dict[int, int] | None) -> Index:
    """Index an mcap file by reading all of it; `stated`: how many messages its statistics count."""
    contents, chunks, notes, at = _McapContents(), [], [], len(MCAP)
    plain: list[int] | None = None  # first and last time, start and end of messages outside of chunks

    def finish_plain() -> None:
        nonlocal plain
        if plain:
            chunks.append(Chunk(plain[0], plain[1], plain[2], plain[3] - plain[2], plain=True))
        plain = None

    while at + 9 <= size:
        f.seek(at)
        opcode, length = struct.unpack('<BQ', f.read(9))
        end = at + 9 + length
        if end > size or opcode in (0, FOOTER, DATA_END):
            break
        try:
            if opcode == CHUNK:
                finish_plain()
                first, last = struct.unpack('<QQ', f.read(16))
                chunk = Chunk(first, last, at + 9, length)
                for inner, record in _records(McapFile.content(f, chunk)):
                    contents.add(inner, record)
                chunks.append(chunk)
            elif opcode in (SCHEMA, CHANNEL, MESSAGE):
                record = memoryview(f.read(length))
                contents.add(opcode, record)
                if opcode == MESSAGE:
                    time_ns, = struct.unpack_from('<Q', record, 6)
                    if plain and plain[3] - plain[2] > PORTION:
                        finish_plain()
                    plain = plain or [time_ns, time_ns, at, at]
                    plain = [min(plain[0], time_ns), max(plain[1], time_ns), plain[2], end]
        except (DamagedError, struct.error, UnicodeDecodeError) as e:
            notes.append(f'the record at byte {at} is damaged and left out ({e})')
        at = end
    finish_plain()
    f.seek(max(0, size - len(MCAP)))
    if at == len(MCAP) or f.read() != MCAP:
        notes.insert(0, f'cut short, {at} of its {size} bytes are whole records')
    for number, count in (stated or {}).items():
        if count != contents.found[number] and number in contents.channels:
            notes.append(f'its statistics count {count} messages on {contents.channels[number][1]}; it holds '
                         f'{contents.found[number]}')
    return contents.index(contents.found, chunks, notes)


def _string(record: memoryview, at: int) -> tuple[str, int]:
    length, = struct.unpack_from('<I', record, at)
    return bytes(record[at + 4:at + 4 + length]).decode(), at + 4 + length


def _ros1_records(content: bytes | memoryview) -> Iterator[tuple[dict[bytes, bytes], memoryview]]:
    """Split ROS 1 records: a header of fields, and data, each after its length in 4 bytes."""
    view, at = memoryview(content), 0
    while at < len(view):
        try:
            n, = struct.unpack_from('<I', view, at)
            length, = struct.unpack_from('<I', view, at + 4 + n)
        except struct.error as e:
            raise DamagedError('it ends in the middle of a record') from e
        start = at + 8 + n
        if start + length > len(view):
            raise DamagedError('it ends in the middle of a record')
        yield _ros1_fields(view[at + 4:at + 4 + n]), view[start:start + length]
        at = start + length


def _ros1_fields(header: memoryview) -> dict[bytes, bytes]:
    fields, at = {}, 0
    while at < len(header):
        try:
            n, = struct.unpack_from('<I', header, at)
        except struct.error as e:
            raise DamagedError('a broken record header') from e
        name, _, value = bytes(header[at + 4:at + 4 + n]).partition(b'=')
        fields[name] = value
        at += 4 + n
    return fields


def _ros1_time(field: bytes) -> int:
    sec, nanosec = struct.unpack('<II', field)
    return sec * NS + nanosec


class _Ros1Contents:
    """Collects the connections of a ROS 1 bag, and how many messages each has."""

    def __init__(self) -> None:
        self.channels: dict[int, tuple[str, str]] = {}
        self.found: Counter[int] = Counter()

    def add(self, fields: dict[bytes, bytes], data: memoryview) -> int | None:
        """Take a record; return the time of a message."""
        if fields.get(b'op') == b'\7':
            number, = struct.unpack('<I', fields[b'conn'])
            topic = '/'.join(part for part in fields[b'topic'].decode().split('/') if part)
            if fields[b'topic'].startswith(b'/'):
                topic = '/' + topic
            self.channels[number] = topic, _ros1_fields(data)[b'type'].decode()
        elif fields.get(b'op') == b'\2':
            self.found[struct.unpack('<I', fields[b'conn'])[0]] += 1
            return _ros1_time(fields[b'time'])
        return None

    def index(self, chunks: list[Chunk], notes: list[str]) -> Index:
        return Index({number: Channel(topic, kind, 'ros1', self.found[number])
                      for number, (topic, kind) in self.channels.items()}, chunks, notes)


@functools.lru_cache(maxsize=8)
def _ros1_index(path: Path, size: int, mtime_ns: int) -> Index:
    """Index a ROS 1 bag once per process; `size` and `mtime_ns` as for `checkpointed_copy`."""
    with open(path, 'rb') as f:
        try:
            fields, end = _ros1_head(f, len(ROS1), size)
            index_at, chunk_count = struct.unpack('<Q', fields[b'index_pos'])[0], \
                struct.unpack('<I', fields[b'chunk_count'])[0]
        except (DamagedError, KeyError, struct.error) as e:
            raise DamagedError(f'its first record is broken ({e})') from e
        if fields.get(b'encryptor'):
            raise DamagedError(f'it is encrypted with {fields[b"encryptor"]!r}')
        start = end[0] + end[1]
        with suppress(DamagedError, KeyError, struct.error, UnicodeDecodeError):
            if index_at:
                return _ros1_summary(f, index_at, chunk_count, size)
        return _ros1_scanned(f, start, size)


def _ros1_head(f: BinaryIO, at: int, size: int) -> tuple[dict[bytes, bytes], tuple[int, int]]:
    """Read a record's header; returns its fields, and start and length of its data."""
    f.seek(at)
    n, = struct.unpack('<I', f.read(4))
    if at + 8 + n > size:
        raise DamagedError('it ends in the middle of a record')
    fields = _ros1_fields(memoryview(f.read(n)))
    return fields, (at + 8 + n, struct.unpack('<I', f.read(4))[0])


def _ros1_summary(f: BinaryIO, index_at: int, chunk_count: int, size: int) -> Index:
    """Read the index at the end of a ROS 1 bag; an error if it is not whole."""
    f.seek(index_at)
    contents, chunks = _Ros1Contents(), []
    for fields, data in _ros1_records(f.read()):
        if fields.get(b'op') == b'\6':
            at, = struct.unpack('<Q', fields[b'chunk_pos'])
            counts = dict(struct.iter_unpack('<II', data))
            contents.found.update(counts)
            head, (start, length) = _ros1_head(f, at, size)
            if head.get(b'op') != b'\5' or start + length > index_at:
                raise DamagedError('the index names a chunk that is not there')
            chunks.append(Chunk(_ros1_time(fields[b'start_time']), _ros1_time(fields[b'end_time']), at,
                                start + length - at, frozenset(counts)))
        else:
            contents.add(fields, data)
    if len(chunks) != chunk_count:
        raise DamagedError(f'{len(chunks)} chunks in the index; expected {chunk_count}')
    return contents.index(chunks, [])


def _ros1_scanned(f: BinaryIO, at: int, size: int) -> Index:
    """Index a ROS 1 bag, which its recorder did not finish, by reading all of it."""
    contents, chunks, notes = _Ros1Contents(), [], []
    with suppress(DamagedError, struct.error):
        while at < size:
            fields, (start, length) = _ros1_head(f, at, size)
            if start + length > size:
                break
            try:
                if fields.get(b'op') == b'\5' and length:
                    chunk = Chunk(0, 0, at, start + length - at)
                    times = [contents.add(*r) for r in _ros1_records(Ros1File.content(f, chunk))]
                    known = [t for t in times if t is not None]
                    if known:
                        chunks.append(Chunk(min(known), max(known), at, chunk.length))
                else:
                    # The last chunk of an unfinished bag says that it is empty; its records follow.
                    time_ns = contents.add(fields, memoryview(f.read(length)))
                    if time_ns is not None:
                        chunks.append(Chunk(time_ns, time_ns, at, start + length - at, plain=True))
            except (DamagedError, KeyError, struct.error, UnicodeDecodeError) as e:
                notes.append(f'the record at byte {at} is damaged and left out ({e})')
            at = start + length
    notes.insert(0, f'not finished by its recorder, {at} of its {size} bytes are whole records (`rosbag '
                    'reindex` repairs the file for other programs)')
    return contents.index(chunks, notes)


def _connect(path: Path) -> sqlite3.Connection:
    # immutable: neither locks nor journals are made beside the user's file.
    db = sqlite3.connect(f'file:{quote(str(path.absolute()))}?mode=ro&immutable=1', uri=True,
                         check_same_thread=False)
    # With this, sqlite opens a file that has fewer pages than its header says.
    db.execute('PRAGMA writable_schema = ON')
    return db


@functools.lru_cache(maxsize=8)
def _sqlite_index(path: Path, size: int, mtime_ns: int) -> tuple[dict[int, Channel],
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
