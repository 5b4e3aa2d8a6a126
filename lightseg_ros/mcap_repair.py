# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Find the messages of an mcap file that was cut short: a copy of its whole records with a new index."""
import functools
from pathlib import Path
import shutil
import struct
import tempfile

MAGIC = b'\x89MCAP0\r\n'


def is_complete(path: Path) -> bool:
    """Whether an mcap file ends as it should: recorders write the index when they close it."""
    with open(path, 'rb') as f:
        begins = f.read(8) == MAGIC
        f.seek(max(0, path.stat().st_size - 8))
        return not begins or f.read() == MAGIC


@functools.lru_cache(maxsize=2)
def indexed_copy(path: Path, size: int, mtime_ns: int) -> tuple[tempfile.TemporaryDirectory, str]:
    """
    Copy an mcap file that was cut short and index the copy; returns its folder and a note.

    `size` and `mtime_ns` are the file's, so that one that grew is copied again. The copy is made once per
    process, since every task of an evaluation opens the bag anew, and lives as long as the folder object.
    """
    folder = tempfile.TemporaryDirectory(prefix='lightseg_')
    copy = Path(folder.name) / path.name
    shutil.copyfile(path, copy)
    return folder, f'cut short, {_reindex(copy)} of its {size} bytes are whole records'


def _reindex(path: Path) -> int:
    """
    Cut an mcap file after its last whole record and write the missing index; returns the bytes kept.

    The format is https://mcap.dev/spec: records of opcode (1 byte), length (8 bytes) and content. A chunk's
    index entry repeats the chunk's own head and the message index records that follow the chunk.
    """
    size, end = path.stat().st_size, len(MAGIC)
    # For each chunk: start, length, head, message indexes (channel -> offset), their length.
    chunks: list[tuple[int, int, bytes, dict[int, int], int]] = []
    with open(path, 'r+b') as f:
        while end + 9 <= size:
            f.seek(end)
            opcode, length = struct.unpack('<BQ', f.read(9))
            if end + 9 + length > size or opcode in (0x02, 0x0F):
                break
            if opcode == 0x06:
                chunks.append((end, 9 + length, f.read(min(length, 64)), {}, 0))
            elif opcode == 0x07 and chunks:
                start, n, head, offsets, total = chunks[-1]
                channel, entries = struct.unpack('<HI', f.read(6))
                if entries:
                    offsets[channel] = end
                chunks[-1] = (start, n, head, offsets, total + 9 + length)
            end += 9 + length
        f.truncate(end)
        f.seek(end)
        f.write(struct.pack('<BQI', 0x0F, 4, 0))
        summary = f.tell() if any(c[3] for c in chunks) else 0
        for start, n, head, offsets, total in chunks if summary else ():
            first, last, raw_size, _, name_size = struct.unpack_from('<QQQII', head)
            name = head[32:32 + name_size]
            packed_size, = struct.unpack_from('<Q', head, 32 + name_size)
            index = struct.pack('<QQQQI', first, last, start, n, 10 * len(offsets))
            index += b''.join(struct.pack('<HQ', *item) for item in offsets.items())
            index += struct.pack('<QI', total, name_size) + name + struct.pack('<QQ', packed_size, raw_size)
            f.write(struct.pack('<BQ', 0x08, len(index)) + index)
        if summary:
            # Statistics without any count: a reader then looks for channels and messages in the chunks.
            f.write(struct.pack('<BQQHIIIIQQI', 0x0B, 46, 0, 0, 0, 0, 0, len(chunks), 0, 0, 0))
        f.write(struct.pack('<BQQQI', 0x02, 20, summary, 0, 0) + MAGIC)
    return end
