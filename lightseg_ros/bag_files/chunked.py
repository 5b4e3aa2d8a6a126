# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a bag file holds, and reading one that consists of chunks."""
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
import heapq
from pathlib import Path
from typing import BinaryIO, TypeAlias

from .packed import DamagedError

NS = 10 ** 9


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

    def __init__(self, path: Path, read_index: Callable[[Path, int, int], Index]):
        found = path.stat()
        index = read_index(path, found.st_size, found.st_mtime_ns)
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
