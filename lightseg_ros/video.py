# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
H.264 and H.265 in messages, a packet in each, decoded in order from a key frame by PyAV (`pip install av`).

Decoders paint over what is missing. Here a packet that is damaged, or that refers to a lost one, gives no
picture, and nor do the ones after it up to the next key frame.
"""
from collections.abc import Iterable, Iterator
from contextlib import suppress
import importlib.util
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np

from .images import ImageError

Item = TypeVar('Item')
# The units of a packet (NAL types) that decoding can begin with: a picture that refers to no other, or the
# parameters that come before one.
KEYS = {'h264': (5, 7), 'hevc': (*range(16, 22), 33)}
# Packets that may wait for their picture. Streams for robots have none; others send pictures out of order.
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


def decoded(packets: Iterable[tuple[Item, Any]]) -> Iterator[tuple[Item, np.ndarray | ImageError, float]]:
    """
    Decode CompressedImage messages of a video in their order.

    packets: anything, and the message, or the `ImageError` that stands in for a broken one. Yields the same
    thing; its picture (H, W, 3) uint8 RGB, or why there is none; and milliseconds.
    """
    decoder: _Decoder[Item] = _Decoder()
    for item, msg in packets:
        yield from decoder.feed(item, msg)
    yield from decoder.finish()


class _Decoder(Generic[Item]):
    def __init__(self) -> None:
        self.context: Any = None
        self.lost = 'it comes before the first key frame'  # why there is no context
        self.codec = ''
        self.gaps = _Gaps()
        self.count = 0
        self.waiting: dict[int, Item] = {}  # packets whose picture has not come yet, in their order
        self.done: dict[int, np.ndarray | ImageError] = {}

    def feed(self, item: Item, msg: Any) -> Iterator[tuple[Item, np.ndarray | ImageError, float]]:
        began = perf_counter()
        number, self.count = self.count, self.count + 1
        self.waiting[number] = item
        if isinstance(msg, ImageError):
            self._lose('a packet before it is broken')
            self.done[number] = msg
        elif not codec(msg):
            self.done[number] = ImageError(f'{msg.format!r} in a video; expected h264 or h265')
        else:
            self._decode(number, bytes(msg.data), codec(msg))
        while len(self.waiting) - len(self.done) > MAX_DELAY:
            oldest = next(n for n in self.waiting if n not in self.done)
            self.done[oldest] = ImageError('this packet of a video gives no picture')
        yield from self._ready(began)

    def finish(self) -> Iterator[tuple[Item, np.ndarray | ImageError, float]]:
        began = perf_counter()
        self._lose('the video ends')
        yield from self._ready(began)

    def _decode(self, number: int, packet: bytes, name: str) -> None:
        import av
        key = is_key(packet, name)
        if name != self.codec:
            self._lose('it comes before the first key frame')
        if key and not self.context:
            self.codec, self.gaps = name, _Gaps()
            self.context = av.CodecContext.create(name, 'r')
            # Stop at damage instead of painting over it. Threads of whole frames would delay each picture.
            self.context.options = {'err_detect': 'explode', 'ec': '0'}
            self.context.thread_type = 'SLICE'
        if not self.context:
            self.done[number] = ImageError(f'a packet of {name} without its key frame: {self.lost}')
            return
        if name == 'h264' and (gap := self.gaps.found(packet)):
            self._lose(gap)
            self.done[number] = ImageError(f'a packet of {name} without its key frame: {gap}')
            return
        data = av.Packet(packet)
        data.pts = data.dts = number
        try:
            self._take(self.context.decode(data))
        except av.error.FFmpegError as e:
            self.done[number] = ImageError(f'a packet of {name}, {len(packet)} bytes, does not decode: '
                                           f'{e.strerror}')
            self._lose('a packet before it is damaged')

    def _take(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame.pts in self.waiting:
                self.done[frame.pts] = ImageError('a damaged picture of a video') if frame.is_corrupt \
                    else frame.to_ndarray(format='rgb24')

    def _lose(self, why: str) -> None:
        """Take what is still in the decoder, and wait for a key frame."""
        if self.context:
            import av
            with suppress(av.error.FFmpegError):
                self._take(self.context.decode(None))
        self.context, self.lost = None, why
        for number in self.waiting:
            self.done.setdefault(number, ImageError('this packet of a video gives no picture'))

    def _ready(self, began: float) -> Iterator[tuple[Item, np.ndarray | ImageError, float]]:
        ms = 1e3 * (perf_counter() - began)
        while self.waiting and (number := next(iter(self.waiting))) in self.done:
            yield self.waiting.pop(number), self.done.pop(number), ms
            ms = 0.0


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
