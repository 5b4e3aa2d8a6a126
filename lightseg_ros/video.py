# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
H.264 and H.265 in messages, a packet in each, decoded in order from a key frame by PyAV (`pip install av`).

Decoders paint over what is missing. Here a packet that is damaged, or that refers to a lost one, gives no
picture, and nor do the ones after it up to the next key frame.
"""
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
import importlib.util
from typing import Any, Generic, TypeVar

import numpy as np

from .images import ImageError

Item = TypeVar('Item')
# The units of a packet (NAL types) that decoding can begin with: a picture that refers to no other, or the
# parameters that come before one.
KEYS = {'h264': (5, 7), 'hevc': (*range(16, 22), 33)}
# How many packets later a picture may come: none in streams for robots, some where B-frames are used.
MAX_DELAY = 32


def codec(msg: Any) -> str:
    """Return 'h264' or 'hevc' if a CompressedImage holds a packet of it, else ''."""
    name = getattr(msg, 'format', '').split(';')[0].lower()
    if '264' in name or name == 'avc':
        return 'h264'
    return 'hevc' if '265' in name or 'hevc' in name else ''


def available() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec('av') is not None


def is_key(packet: bytes, name: str) -> bool:
    """Whether decoding can begin with a packet of this codec (Annex B)."""
    return any(kind in KEYS[name] for kind, _, _ in _units(packet, name))


class Stream(Generic[Item]):
    """
    Iterates over items, of which some are packets of a video, and decodes when a picture is asked for.

    `packet`: returns an item's CompressedImage, or the `ImageError` of a broken one, or None for other items.
    Yields each item with its number among the packets, or None.
    """

    def __init__(self, items: Iterator[Item], packet: Callable[[Item], Any]):
        self._items, self._packet = items, packet
        self._ahead: deque[tuple[Item, int | None]] = deque()  # read, and not yielded yet
        self._pending: deque[tuple[int, Any]] = deque()  # packets that are not decoded yet
        self._count = 0
        self._decoder = _Decoder()

    def __iter__(self) -> Iterator[tuple[Item, int | None]]:
        while self._ahead or self._read():
            item, number = self._ahead.popleft()
            if number is not None and self._pending and self._pending[0][0] < number \
                    and _begins(next((m for n, m in reversed(self._pending) if n == number), None)):
                # Nobody asked for the pictures since the last key frame.
                while self._pending[0][0] < number:
                    self._pending.popleft()
                self._decoder.lose('')
            yield item, number

    def picture(self, number: int) -> np.ndarray:
        """
        Return the picture (H, W, 3) uint8 RGB of the packet that was yielded last.

        `ImageError` where it can't be decoded.
        """
        done = self._decoder.done
        while self._pending and self._pending[0][0] <= number:
            self._decoder.feed(*self._pending.popleft())
        # Streams that send pictures out of order need the packets after it.
        while number not in done and number > self._count - MAX_DELAY and self._read():
            while self._pending:
                self._decoder.feed(*self._pending.popleft())
        if number not in done:
            self._decoder.lose('the video ends')
        frame = done.get(number)
        for old in [n for n in done if n < number]:
            del done[old]
        if frame is None:
            raise ImageError('a packet of video without a picture')
        if isinstance(frame, ImageError):
            raise frame
        rgb: np.ndarray = frame.to_ndarray(format='rgb24')
        return rgb

    def _read(self) -> bool:
        for item in self._items:
            number = None
            if (msg := self._packet(item)) is not None:
                number, self._count = self._count, self._count + 1
                self._pending.append((number, msg))
            self._ahead.append((item, number))
            return True
        return False


def _begins(msg: Any) -> bool:
    name = codec(msg)
    return bool(name) and is_key(bytes(msg.data), name)


class _Decoder:
    """Decodes packets in their order. `done`: what became of them: a frame of PyAV's, or an `ImageError`."""

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}
        self._context: Any = None
        self._lost = 'the recording starts after it'  # why there is no context
        self._codec = ''
        self._gaps = _Gaps()
        self._waiting: set[int] = set()  # packets in the decoder

    def feed(self, number: int, msg: Any) -> None:
        if isinstance(msg, ImageError):
            self.lose('a packet before it is broken')
            self.done[number] = msg
        elif not (name := codec(msg)):
            self.done[number] = ImageError(f'{msg.format!r} in a video; expected h264 or h265')
        elif not available():
            self.done[number] = ImageError(f'{msg.format!r}, which needs `pip install av`')
        else:
            self._decode(number, bytes(msg.data), name)

    def _decode(self, number: int, packet: bytes, name: str) -> None:
        import av
        if name != self._codec:
            self.lose('the recording starts after it')
        if not self._context and is_key(packet, name):
            self._codec, self._gaps = name, _Gaps()
            self._context = av.CodecContext.create(name, 'r')
            # Stop at damage instead of painting over it. Threads of whole frames would delay each picture.
            self._context.options = {'err_detect': 'explode', 'ec': '0'}
            self._context.thread_type = 'SLICE'
        if self._context and name == 'h264' and (gap := self._gaps.found(packet)):
            self.lose(gap)
        if not self._context:
            self.done[number] = ImageError(f'a packet of {name} without a key frame: {self._lost}')
            return
        data = av.Packet(packet)
        data.pts = data.dts = number
        self._waiting.add(number)
        try:
            self._take(self._context.decode(data))
        except av.error.FFmpegError as e:
            self._waiting.discard(number)
            self.done[number] = ImageError(f'a packet of {name}, {len(packet)} bytes, does not decode: '
                                           f'{e.strerror}')
            self.lose('a packet before it is damaged')

    def _take(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame.pts in self._waiting:
                self._waiting.discard(frame.pts)
                self.done[frame.pts] = frame if not frame.is_corrupt else ImageError(
                    'a damaged picture of a video')

    def lose(self, why: str) -> None:
        """Take what is still in the decoder, and wait for a key frame."""
        if self._context:
            import av
            with suppress(av.error.FFmpegError):
                self._take(self._context.decode(None))
        self._context, self._lost = None, why
        self._waiting.clear()


class _Gaps:
    """
    Finds lost packets of H.264 by frame_num, which counts the pictures that others refer to (ITU-T H.264).

    FFmpeg fills such gaps with the picture before, without a word; for H.265 it reports them.
    """

    def __init__(self) -> None:
        self.bits = 0  # of frame_num; 0: it is not checked
        self.last = -1

    def found(self, packet: bytes) -> str:
        """Return what is missing before this packet, or ''."""
        for kind, reference, unit in _units(packet, 'h264'):
            if kind == 7:
                self.bits = _frame_num_bits(unit)
            elif kind in (1, 5) and self.bits:
                bits = _Bits(unit[:64])
                for _ in range(3):  # first macroblock, slice type, picture parameters
                    bits.ue()
                number = bits.u(self.bits)
                if kind == 1 and self.last >= 0 and (number - self.last) % (1 << self.bits) > 1:
                    return 'packets before it are lost'
                if reference:
                    self.last = number
                return ''
        return ''


def _frame_num_bits(sps: bytes) -> int:
    """Return how many bits frame_num has; 0 if gaps are allowed, or where we can't tell."""
    bits = _Bits(sps[:64])
    profile = bits.u(24) >> 16
    bits.ue()
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128):
        if bits.ue() == 3:
            bits.u(1)
        bits.ue()
        bits.ue()
        if bits.u(2) & 1:
            return 0  # scaling matrices come before it
    length = bits.ue() + 4
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        return 0
    bits.ue()
    return 0 if bits.u(1) else length


class _Bits:
    """Reads numbers of bits from the start of a unit of H.264."""

    def __init__(self, unit: bytes):
        data = unit.replace(b'\0\0\3', b'\0\0')  # emulation prevention
        self.value, self.left = int.from_bytes(data + bytes(16), 'big'), 8 * len(data) + 128

    def u(self, n: int) -> int:
        self.left = max(0, self.left - n)
        return self.value >> self.left & (1 << n) - 1

    def ue(self) -> int:
        zeros = 0
        while self.left and not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)


def _units(packet: bytes, name: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, whether others refer to it (H.264), and content of a packet's units up to a picture's."""
    at = packet.find(b'\0\0\1')
    while 0 <= at < len(packet) - 3:
        head = packet[at + 3]
        kind = head & 0x1F if name == 'h264' else head >> 1 & 0x3F
        yield kind, head & 0x60, packet[at + 4:at + 132]
        if (1 <= kind <= 5) if name == 'h264' else kind < 32:
            return
        at = packet.find(b'\0\0\1', at + 3)
