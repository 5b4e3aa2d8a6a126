# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The cache of converted models on disk: checked at every load, bounded in size, not needed to run."""
import atexit
from collections.abc import Callable, Iterator
from contextlib import suppress
import hashlib
import json
import logging
import os
from pathlib import Path
import shutil
import tempfile
import time
from typing import TypeVar

from .. import files
from ..files import own_dir

log = logging.getLogger(__name__)
T = TypeVar('T')

SUMS = 'sha256.json'  # in each entry: name of a file -> its SHA-256, and '' -> the entry's name
MAX_SUMS = 1 << 20  # bytes
LIMIT_BYTES = 512 * 2 ** 20  # of all entries; a converted model takes 6 MB or so
NEEDED_BYTES = 32 * 2 ** 20  # free space that converting a model is begun with
ABANDONED_S = 3600.0  # an unfinished entry of that age is a dead process's


def load(name: str, make: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """
    Return what `read(folder)` makes of the entry `name`, which `make(folder)` writes where it is not there.

    An entry is used only if every file in it has the checksum that was noted; one that is damaged or can't be
    read is made anew. What `read` adds to the folder is noted too. Entries appear whole, so that several
    processes may want one at once. Where the cache can't be written, a temporary folder serves this process;
    OSError if there is none either.
    """
    try:
        root = own_dir()
        if (root / name).is_dir():
            return _read_kept(root / name, read)
    except Exception as e:  # every backend has its own errors for broken files; making it anew says what is
        log.warning('compiled models: %s; %s is made anew', e, name)
    error: OSError | None = None
    for root, kept in _places():
        try:
            new = Path(tempfile.mkdtemp(dir=root, prefix=f'.{name}.'))
        except OSError as e:
            log.warning('compiled models are not kept: %s', e)
            error = e
            continue
        try:
            _reserve(new)
            make(new)
            value = read(new)
            if kept:
                _keep(new, root / name)
            else:
                atexit.register(shutil.rmtree, new, ignore_errors=True)
            return value
        except OSError as e:
            shutil.rmtree(new, ignore_errors=True)
            log.warning('compiled models are not kept in %s: %s', root, e)
            error = e
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    raise OSError(f'no folder for a converted model, {NEEDED_BYTES >> 20} MB: {error}; make room, or set '
                  'XDG_CACHE_HOME or TMPDIR') from error


def _read_kept(entry: Path, read: Callable[[Path], T]) -> T:
    """Check and read an entry; one that is not as it was noted is removed, and an OSError says so."""
    try:
        noted = json.loads(files.read_small(entry / SUMS, MAX_SUMS))
        if noted.pop('', entry.name) != entry.name:
            raise OSError('it is another entry under this name')
        if (found := _sums(entry)) != noted:
            differ = sorted(k for k in {*found, *noted} if found.get(k) != noted.get(k))
            raise OSError(f'{differ[0]} is not what was written')
        value = read(entry)
    except Exception as e:
        _remove(entry)
        raise OSError(f'{entry.name} is damaged ({e})') from e
    with suppress(OSError):  # removed meanwhile, or a full disk
        os.utime(entry)
        if {p.name for p in entry.iterdir()} != {*noted, SUMS}:
            _note(entry, entry.name)
    return value


def _places() -> Iterator[tuple[Path, bool]]:
    """Yield the folders that may hold a new entry, and whether it is kept there."""
    try:
        yield own_dir(), True
    except OSError as e:
        log.warning('compiled models are not kept: %s', e)
    yield Path(tempfile.gettempdir()), False
    yield Path('/dev/shm'), False


def _reserve(folder: Path) -> None:
    """Raise OSError where the disk is full: what a library raises when it writes does not say so."""
    with tempfile.TemporaryFile(dir=folder) as f:
        os.posix_fallocate(f.fileno(), 0, NEEDED_BYTES)


def _keep(new: Path, entry: Path) -> None:
    """Give a new entry its name, unless another process was faster, and make room."""
    _note(new, entry.name)
    try:
        new.rename(entry)
    except OSError:  # it is in use already, which does not depend on its name
        shutil.rmtree(new, ignore_errors=True)
    _prune(entry.parent, entry)


def _note(entry: Path, name: str) -> None:
    files.write_whole(entry / SUMS, json.dumps({'': name, **_sums(entry)}))


def _sums(entry: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of an entry but SUMS; what is no regular file has none."""
    sums = {}
    for path in sorted(entry.iterdir()):
        if path.name != SUMS:
            regular = path.is_file() and not path.is_symlink()
            sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest() if regular else ''
    return sums


def _remove(entry: Path) -> None:
    """Remove an entry at once for all processes, then its files."""
    try:
        away = Path(tempfile.mkdtemp(dir=entry.parent, prefix='.removed.'))
        entry.rename(away / entry.name)
    except OSError:
        away = entry
    shutil.rmtree(away, ignore_errors=True)


def _prune(root: Path, newest: Path) -> None:
    """Remove the entries that were not used for longest until the rest is within the limit."""
    entries = []
    with suppress(OSError):
        for path in root.iterdir():
            with suppress(OSError):  # another process removes too
                used = path.stat().st_mtime
                if path.name.startswith('.'):
                    if time.time() - used > ABANDONED_S:
                        shutil.rmtree(path, ignore_errors=True)
                elif path != newest:
                    entries.append((used, path))
    total = _size(newest) + sum(_size(path) for _, path in entries)
    for _, path in sorted(entries):
        if total <= LIMIT_BYTES:
            break
        total -= _size(path)
        log.debug('the cache of compiled models is full: %s is removed', path.name)
        _remove(path)


def _size(entry: Path) -> int:
    total = 0
    for path in entry.rglob('*'):
        with suppress(OSError):
            total += path.lstat().st_size
    return total
