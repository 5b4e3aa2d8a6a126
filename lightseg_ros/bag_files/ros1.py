# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS 1 bags, also unfinished ones."""
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
import functools
from pathlib import Path
import struct
from typing import BinaryIO

from .chunked import Channel, Chunk, ChunkedFile, Index, Message, NS
from .packed import DamagedError, unpacked

ROS1 = b'#ROSBAG V2.0\n'


class Ros1File(ChunkedFile):
    """A ROS 1 bag, also one that was not finished (`.bag.active`, or cut short)."""

    def __init__(self, path: Path):
        super().__init__(path, _index)

    @staticmethod
    def unpack(data: bytes) -> bytes:
        fields, content = next(_records(data))
        if fields.get(b'op') != b'\5' or len(fields.get(b'size', b'')) != 4:
            raise DamagedError('there is no chunk at that place')
        size, = struct.unpack('<I', fields[b'size'])
        return unpacked(bytes(content), fields.get(b'compression', b'').decode('latin-1'), size)

    @staticmethod
    def parse(content: bytes) -> Iterator[Message]:
        for fields, data in _records(content):
            if fields.get(b'op') == b'\2':
                try:
                    (channel,), time = struct.unpack('<I', fields[b'conn']), fields[b'time']
                    yield channel, _time(time), data
                except (KeyError, struct.error) as e:
                    raise DamagedError(f'a message record without connection or time ({e})') from e


def _records(content: bytes | memoryview) -> Iterator[tuple[dict[bytes, bytes], memoryview]]:
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
        yield _fields(view[at + 4:at + 4 + n]), view[start:start + length]
        at = start + length


def _fields(header: memoryview) -> dict[bytes, bytes]:
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


def _time(field: bytes) -> int:
    sec, nanosec = struct.unpack('<II', field)
    return sec * NS + nanosec


class _Contents:
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
            self.channels[number] = topic, _fields(data)[b'type'].decode()
        elif fields.get(b'op') == b'\2':
            self.found[struct.unpack('<I', fields[b'conn'])[0]] += 1
            return _time(fields[b'time'])
        return None

    def index(self, chunks: list[Chunk], notes: list[str]) -> Index:
        return Index({number: Channel(topic, kind, 'ros1', self.found[number])
                      for number, (topic, kind) in self.channels.items()}, chunks, notes)


@functools.lru_cache(maxsize=8)
def _index(path: Path, size: int, mtime_ns: int) -> Index:
    """Index a ROS 1 bag once per process; `size` and `mtime_ns` as for `sqlite.checkpointed_copy`."""
    with open(path, 'rb') as f:
        try:
            fields, end = _head(f, len(ROS1), size)
            index_at, chunk_count = struct.unpack('<Q', fields[b'index_pos'])[0], \
                struct.unpack('<I', fields[b'chunk_count'])[0]
        except (DamagedError, KeyError, struct.error) as e:
            raise DamagedError(f'its first record is broken ({e})') from e
        if fields.get(b'encryptor'):
            raise DamagedError(f'it is encrypted with {fields[b"encryptor"]!r}')
        start = end[0] + end[1]
        with suppress(DamagedError, KeyError, struct.error, UnicodeDecodeError):
            if index_at:
                return _summary(f, index_at, chunk_count, size)
        return _scanned(f, start, size)


def _head(f: BinaryIO, at: int, size: int) -> tuple[dict[bytes, bytes], tuple[int, int]]:
    """Read a record's header; returns its fields, and start and length of its data."""
    f.seek(at)
    n, = struct.unpack('<I', f.read(4))
    if at + 8 + n > size:
        raise DamagedError('it ends in the middle of a record')
    fields = _fields(memoryview(f.read(n)))
    return fields, (at + 8 + n, struct.unpack('<I', f.read(4))[0])


def _summary(f: BinaryIO, index_at: int, chunk_count: int, size: int) -> Index:
    """Read the index at the end of a ROS 1 bag; an error if it is not whole."""
    f.seek(index_at)
    contents, chunks = _Contents(), []
    for fields, data in _records(f.read()):
        if fields.get(b'op') == b'\6':
            at, = struct.unpack('<Q', fields[b'chunk_pos'])
            counts = dict(struct.iter_unpack('<II', data))
            contents.found.update(counts)
            head, (start, length) = _head(f, at, size)
            if head.get(b'op') != b'\5' or start + length > index_at:
                raise DamagedError('the index names a chunk that is not there')
            chunks.append(Chunk(_time(fields[b'start_time']), _time(fields[b'end_time']), at,
                                start + length - at, frozenset(counts)))
        else:
            contents.add(fields, data)
    if len(chunks) != chunk_count:
        raise DamagedError(f'{len(chunks)} chunks in the index; expected {chunk_count}')
    return contents.index(chunks, [])


def _scanned(f: BinaryIO, at: int, size: int) -> Index:
    """Index a ROS 1 bag, which its recorder did not finish, by reading all of it."""
    contents, chunks, notes = _Contents(), [], []
    with suppress(DamagedError, struct.error):
        while at < size:
            fields, (start, length) = _head(f, at, size)
            if start + length > size:
                break
            try:
                if fields.get(b'op') == b'\5' and length:
                    chunk = Chunk(0, 0, at, start + length - at)
                    times = [contents.add(*r) for r in _records(Ros1File.content(f, chunk))]
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
