# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs as an archive in parts, so that they can be copied between machines and continued there."""
from collections.abc import Callable
import hashlib
import io
import logging
import os
from pathlib import Path, PurePosixPath
import re
import shutil
import tarfile
import tempfile
from typing import BinaryIO

import torch

from .. import files
from ..texts import one_line
from . import checkpoint
from .processes import finished_weights

log = logging.getLogger(__name__)

PART = '{}-of-{}.runs.tar'
KEPT = ('.safetensors', '.csv', '.png', '.log', '.json')


class ArchiveError(ValueError):
    """Parts of an archive that are missing or damaged; the text says which."""


def write_parts(runs: Path, to: Path, part_bytes: int) -> list[Path]:
    """
    Write the runs in the folder `runs` to `to`, as an archive in parts of at most `part_bytes` bytes.

    The archive holds weights, logs and curves, and the checkpoints of unfinished runs. The optimiser moments
    in these are rounded to bfloat16, which makes a checkpoint a quarter smaller; a resumed run differs by
    that rounding. The last 32 bytes are the SHA-256 of all bytes before. Older parts in `to` are removed.
    """
    files.make_folder(to)
    for old in to.glob(PART.format('*', '*')):
        old.unlink()
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode='w') as tar:
            for folder in sorted(p for p in runs.iterdir() if p.is_dir()):
                for path in sorted(folder.iterdir()):
                    if path.suffix in KEPT:
                        tar.add(path, path.relative_to(runs))
                if not finished_weights(folder) and (folder / 'last.pt').is_file():
                    _add_checkpoint(tar, folder / 'last.pt', runs)
        whole.seek(0)
        sha = hashlib.sha256()
        while piece := whole.read(2 ** 20):
            sha.update(piece)
        whole.write(sha.digest())
        count = -(-whole.tell() // part_bytes)
        whole.seek(0)
        parts = [to / PART.format(i + 1, count) for i in range(count)]
        for part in parts:
            files.write_whole(part, whole.read(part_bytes))
    return parts


def _add_checkpoint(tar: tarfile.TarFile, path: Path, runs: Path) -> None:
    state = checkpoint.read(path)
    for moments in state['optimizer']['state'].values():
        moments.update({k: v.bfloat16() for k, v in moments.items()
                        if k != 'step' and isinstance(v, torch.Tensor) and v.is_floating_point()})
    with tempfile.NamedTemporaryFile() as small:
        torch.save(state, small)
        small.flush()
        tar.add(small.name, path.relative_to(runs))


def read_parts(source: Path, runs: Path) -> None:
    """
    Join the parts that `write_parts` wrote to `source`, and unpack them into `runs`, all of them or nothing.

    A run that has more steps in `runs` than in the archive stays as it is. `ArchiveError` if a part is
    missing or damaged.
    """
    found = sorted(p.name for p in source.glob(PART.format('*', '*')))
    stated = found[0].split('.')[0].split('-of-')[1] if found else '1'
    count = int(stated) if re.fullmatch('[1-9][0-9]{0,3}', stated) else 1  # not a list of 10^9 names
    parts = [source / PART.format(i + 1, count) for i in range(count)]
    if found != sorted(p.name for p in parts):
        raise ArchiveError(one_line(f'{source} holds {", ".join(found) or "no part"}; expected '
                                    f'{", ".join(p.name for p in parts)}'))
    if other := [part.name for part in parts if not part.is_file()]:
        raise ArchiveError(f'{source} holds {one_line(other[0], 200)}, which is not a regular file')
    archive = b''.join(part.read_bytes() for part in parts)
    if hashlib.sha256(archive[:-32]).digest() != archive[-32:]:
        raise ArchiveError(f'the parts in {source}, {len(archive)} bytes, are damaged (SHA-256 differs): '
                           'copy them again')
    with tempfile.TemporaryDirectory(dir=runs, prefix='.unpack') as scratch:
        unpack(io.BytesIO(archive), Path(scratch), lambda path: len(path.parts) == 2 and (
            path.suffix in KEPT or path.name == 'last.pt'))
        for folder in sorted(Path(scratch).iterdir()):
            here = runs / folder.name
            if _progress(here) > _progress(folder):
                log.warning('%s has more steps than the run in %s: it stays as it is', here, source)
                continue
            here.mkdir(exist_ok=True)
            for path in folder.iterdir():
                os.replace(path, here / path.name)


def unpack(file: BinaryIO, folder: Path, wanted: Callable[[PurePosixPath], bool] = lambda path: True) -> None:
    """
    Copy the regular files of a tar archive that is not compressed into an empty folder.

    `wanted` is asked about each name. `ArchiveError` for a name that leads out of the folder, for links,
    devices, sparse files, a second file of the same name, and for what is no tar archive. tarfile's own
    extraction is not used: a chain of links leads its filters out of the folder (CVE-2025-4517).
    """
    try:
        with tarfile.open(fileobj=file, mode='r:') as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if path.is_absolute() or '..' in path.parts or not path.name or not member.name.isprintable():
                    raise ArchiveError(f'it holds a file {one_line(repr(member.name), 200)}, which leads '
                                       'elsewhere')
                source = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if source is None or not wanted(path):
                    raise ArchiveError(f'it holds {one_line(member.name, 200)}, which does not belong there')
                to = folder / path
                to.parent.mkdir(parents=True, exist_ok=True)
                with open(to, 'xb') as f:
                    shutil.copyfileobj(source, f)
    except (tarfile.TarError, OSError, EOFError, RecursionError) as e:
        raise ArchiveError(f'it can not be unpacked: {one_line(e)}') from e
    except ValueError as e:
        if isinstance(e, ArchiveError):
            raise
        raise ArchiveError(f'it can not be unpacked: {one_line(e)}') from e


def _progress(folder: Path) -> float:
    """Return the steps of a run's checkpoint; infinity if the run is finished, -1 without a checkpoint."""
    if finished_weights(folder):
        return float('inf')
    try:
        return float(checkpoint.read(folder / 'last.pt')['step'])
    except ValueError:
        return -1.0
