# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Writes files so that they appear whole or not at all; reads small ones of bounded size."""
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
import errno
import os
from pathlib import Path
import shutil
import stat
import sys
import tempfile
from typing import BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileError(OSError, ValueError):
    """A place where nothing can be written; the text says what is there and what to do."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """
    Yield a temporary path; when the block ends, what was written there becomes the file `path`.

    The temporary file lies in the folder of `path`, and its data is on the disk before it gets its name:
    after a crash `path` holds the old file or the new one, never a part of it. Missing parent folders are
    made. If the block raises, `path` stays as it was; the temporary file and new folders are removed.

    What is no regular file (a FIFO, a device, a symbolic link, and with it /dev/stdout) is never replaced:
    it gets the content when the block ends. `FileError` for a folder, and where nothing can be written.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise FileError(f'{path} is a folder; expected a file to write: give a name in it, such as '
                        f'{path / "result"}{path.suffix}')
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            yield temporary
            with open(temporary, 'rb') as content, _open(path) as out:
                shutil.copyfileobj(content, out)
        return
    with in_folder(path.parent):
        try:
            with suppress(FileNotFoundError):
                os.lstat(path)  # the temporary name is shorter than one that is too long
            fd, name = tempfile.mkstemp(path.suffix[:20], f'.{path.name[:100]}.', path.parent)
        except OSError as e:
            raise _refused(path, path.parent, e) from e
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
        except BaseException as e:
            Path(name).unlink(missing_ok=True)
            if isinstance(e, OSError) and (e.filename == name or e.errno in FULL):
                raise _refused(path, path.parent, e) from e
            raise


def is_stream(path: Path) -> bool:
    """Whether `path` is there and is neither a regular file nor a folder, or is a symbolic link to a file."""
    there = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return there or os.path.islink(path) and not os.path.isdir(path)


def _open(path: Path) -> BinaryIO:
    """
    Open what is not replaced, for writing.

    /dev/stdout and its like are what this process has open already. To open them anew would empty the file
    that they were directed to, and what is printed before and after would overwrite each other.
    """
    own = os.path.realpath('/proc/self/fd')
    at = path
    for _ in range(8):
        if at.name.isdigit() and os.path.realpath(at.parent) == own:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            return open(os.dup(int(at.name)), 'wb')
        if not at.is_symlink():
            break
        at = at.parent / os.readlink(at)
    return open(path, 'wb')


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; if the block raises, those that are new and empty are removed."""
    new = make_folder(folder)
    try:
        yield
    except BaseException:
        remove_empty(new)
        raise


def make_folder(folder: str | Path) -> list[Path]:
    """Make a folder and its parents; returns the new ones, the deepest first. `FileError` where it can't."""
    folder = Path(folder)
    new = [f for f in (folder, *folder.parents) if not os.path.exists(f)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _refused(folder, folder, e) from e
    return new


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove what `make_folder` returned, as far as it is empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def folder_beside(path: Path) -> Path:
    """Make a hidden folder in the folder of `path`, for what gets that name when it is whole."""
    try:
        return Path(tempfile.mkdtemp(dir=path.parent, prefix=f'.{path.name[:100]}.'))
    except OSError as e:
        raise _refused(path, path.parent, e) from e


def try_to_write(path: str | Path) -> None:
    """Write a little where a file will lie, and remove it: an error comes before hours of work, not after."""
    path = Path(path)
    if is_stream(path):
        return
    with suppress(_TriedError), replacing(path) as temporary:
        temporary.write_bytes(bytes(1 << 16))
        raise _TriedError


def keep_inputs(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Raise `FileError` where an output would replace a file that is read, or another output."""
    seen = {os.path.realpath(path): path for path in inputs if path and os.path.exists(path)}
    for path in (path for path in outputs if path):
        if os.path.exists(path) and not os.path.isfile(path):
            continue  # a pipe, or a folder, which is never replaced
        if (place := os.path.realpath(path)) in seen:
            raise FileError(f'{path} would replace {seen[place]}, which is read or written too: choose '
                            'another name')
        seen[place] = path


class _TriedError(Exception):
    pass


def _refused(path: Path, folder: Path, error: OSError) -> FileError:
    """Say why `path` can't be written: something in the way of `folder`, or what the system says."""
    there = next((p for p in (folder, *folder.parents) if os.path.exists(p)), folder)
    if not os.path.isdir(there):
        return FileError(f'{there} is a file; expected a folder{f" for {path}" if path != there else ""}: '
                         'choose another place, or move that file away')
    todo = 'make room' if error.errno in FULL else 'choose another place'
    return FileError(f'{path} cannot be written: {error.strerror or error}; {todo}')


def write_whole(path: str | Path, content: str | bytes) -> None:
    """
    Write text (as UTF-8) or bytes to `path`, whole or not at all.

    A file's name that is no UTF-8 becomes an escape, as JSON knows it too: it must not cost the result.
    """
    data = content.encode(errors='backslashreplace') if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


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
