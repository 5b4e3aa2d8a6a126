# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""mcap files (https://mcap.dev/spec) of any recorder."""
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
import functools
from pathlib import Path
import struct
from typing import BinaryIO

from .chunked import Channel, Chunk, ChunkedFile, Index, Message
from .packed import DamagedError, unpacked

MCAP = b'\x89MCAP0\r\n'
# Opcodes of records.
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, CHUNK_INDEX, STATISTICS, DATA_END = 2, 3, 4, 5, 6, 8, 11, 15
# Messages outside of chunks are read in portions of this many bytes.
PORTION = 1 << 20


class McapFile(ChunkedFile):
    """An mcap file of any recorder and profile, with or without index, statistics and chunks."""

    def __init__(self, path: Path):
        super().__init__(path, _index)

    @staticmethod
    def unpack(data: bytes) -> bytes:
        try:
            _, _, size, crc, name_size = struct.unpack_from('<QQQII', data)
            compression = data[32:32 + name_size].decode('latin-1')
            packed, = struct.unpack_from('<Q', data, 32 + name_size)
        except struct.error as e:
            raise DamagedError(f'it has only {len(data)} bytes') from e
        return unpacked(data[40 + name_size:40 + name_size + packed], compression, size, crc)

    @staticmethod
    def parse(content: bytes) -> Iterator[Message]:
        for opcode, record in _records(content):
            if opcode == MESSAGE:
                if len(record) < 22:
                    raise DamagedError(f'a message record of {len(record)} bytes')
                channel, _, time_ns = struct.unpack_from('<HIQ', record)
                yield channel, time_ns, record[22:]


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


class _Contents:
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
def _index(path: Path, size: int, mtime_ns: int) -> Index:
    """Index an mcap file once per process; `size` and `mtime_ns` as for `sqlite.checkpointed_copy`."""
    with open(path, 'rb') as f:
        stated = None
        with suppress(struct.error, DamagedError):
            contents, chunks = _summary(f, size)
            stated = contents.stated
            if stated is not None and chunks and contents.chunk_count == len(chunks) \
                    and sum(stated.values()) == contents.message_count \
                    and stated.keys() <= contents.channels.keys() \
                    and all(schema in contents.schemas for schema, _, _ in contents.channels.values()):
                return contents.index(stated, chunks, [])
        return _scanned(f, size, stated)


def _summary(f: BinaryIO, size: int) -> tuple[_Contents, list[Chunk]]:
    """Read the index at the end of an mcap file; `DamagedError` or `struct.error` if there is none."""
    f.seek(max(0, size - 37))
    footer = f.read(37)
    if not footer.startswith(struct.pack('<BQ', FOOTER, 20)) or not footer.endswith(MCAP):
        raise DamagedError('no footer')
    start, = struct.unpack_from('<Q', footer, 9)
    if not len(MCAP) < start <= size - 37:
        raise DamagedError('no summary')
    f.seek(start)
    contents, chunks = _Contents(), []
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
    contents, chunks, notes, at = _Contents(), [], [], len(MCAP)
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
