# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decompression of files, chunks and messages, within limits."""
import bz2
import functools
from pathlib import Path
import sys
import tempfile
import zlib

import lz4.frame

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD = b'\x28\xb5\x2f\xfd'
# A file is decompressed in steps of so many bytes.
STEP = 1 << 20
# A few compressed bytes can become gigabytes. A chunk, a message or a file may become MAX_UNPACKED bytes; a
# file may also become MAX_RATIO times its size.
MAX_UNPACKED, MAX_RATIO = 1 << 28, 300
DECOMPRESSORS = {'zstd': zstd.ZstdDecompressor, 'lz4': lz4.frame.LZ4FrameDecompressor,
                 'bz2': bz2.BZ2Decompressor}


class DamagedError(ValueError):
    """A file, or a part of one, that can't be read; the text says what was found."""


@functools.lru_cache(maxsize=2)
def decompressed_copy(path: Path, size: int, mtime_ns: int) -> tuple[tempfile.TemporaryDirectory, str]:
    """
    Decompress a zstd file once per process; the text says if it was cut short, or ''.

    `size` and `mtime_ns`, and how long the copy lives: as for `sqlite.checkpointed_copy`.
    """
    folder = tempfile.TemporaryDirectory(prefix='lightseg_')
    with open(path, 'rb') as packed, open(Path(folder.name) / path.stem, 'wb') as copy:
        frame, block, note = zstd.ZstdDecompressor(), b'', ''
        try:
            # A step at a time, so that a file that breaks off gives all that comes before.
            while block or not frame.needs_input or (block := packed.read(STEP)):
                copy.write(frame.decompress(block, STEP))
                if copy.tell() > max(MAX_UNPACKED, MAX_RATIO * size):
                    raise DamagedError(f'{size} bytes that decompress to more than {copy.tell()}')
                block = frame.unused_data if frame.eof else b''
                if frame.eof and (block or (block := packed.read(STEP))):
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


def unpacked(data: bytes, compression: str, size: int, crc: int = 0) -> bytes:
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
