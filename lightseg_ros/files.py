# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Writes files so that they appear whole or not at all; reads small ones of bounded size."""
from collections.abc import Iterator
from contextlib import contextmanager
import errno
import os
from pathlib import Path
import stat
import tempfile


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """
    Yield a temporary path in the folder of `path`; when the block ends, the temporary file replaces `path`.

    The data is on the disk before the file gets its name, so that after a crash `path` holds the old file or
    the new one, never a part of it. If the block raises, the temporary file is removed and `path` stays as it
    was. Missing parent folders are made. What exists and is no regular file (a FIFO, a symbolic link, and
    with it /dev/stdout) is yielded itself: it is written straight to and never replaced.
    """
    path = Path(path)
    if path.is_symlink() or path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name[:100]}.', suffix=path.suffix[:20])
    os.close(fd)
    try:
        yield Path(name)
        fd = os.open(name, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        # mkstemp makes files that only their owner can read.
        os.chmod(name, 0o666 & ~umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_small(path: str | Path, limit: int) -> bytes:
    """
    Read a regular file of at most `limit` bytes.

    OSError for a longer one, and for FIFOs and devices, which could block or never end.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(fd, 'rb') as f:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, 'not a regular file', str(path))
        data = f.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f'longer than {limit} bytes', str(path))
    return data


def cache_dir() -> Path:
    """Where this package keeps files: $XDG_CACHE_HOME/lightseg_ros, by default ~/.cache/lightseg_ros."""
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'lightseg_ros'


def own_dir() -> Path:
    """
    Return `cache_dir`, made where it is missing; only this user may enter it.

    OSError where it can't be, or where others could have put something into it: compiled models are code.
    """
    root = cache_dir()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = root.stat()
    if found.st_uid != os.getuid():
        raise OSError(f'{root} belongs to another user, number {found.st_uid}')
    if found.st_mode & 0o022:
        raise OSError(f'others may write to {root}: remove it')
    if found.st_mode & 0o077:
        root.chmod(0o700)
    return root


def umask() -> int:
    """Return this process's umask."""
    # The system call that reads the umask must also set it, which other threads would see for a moment.
    try:
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('Umask:'):
                return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022
