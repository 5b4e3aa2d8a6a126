# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of image files: which files are frames, and the recordings, numbers and stamps in their names."""
from collections.abc import Sequence
from pathlib import Path
import re

from .bags import BagError, NS

# Names of files: a stamp in ns; seconds and nanoseconds; a recording and the number of a frame.
STAMP, SECONDS, NUMBERED = r'\d{16,}', r'\d{9,}[._]\d{9}', r'(.*?)(\d+)(\D*)'


def folder_stamps(paths: Sequence[Path], rate: float) -> list[int]:
    """
    Return stamps in ns for the files of a folder, from their names; `rate` in Hz.

    A name of 16 digits or more is the stamp itself; SECONDS.NANOSECONDS or SECONDS_NANOSECONDS too. Otherwise
    the last number in a name counts frames: frame n of a recording is at 1 s + n / rate (0001TP_008550 and
    0001TP_008580 are one second apart at 30 Hz). The text before it names the recording; each recording
    starts one second after the previous one. Files without numbers follow each other.
    """
    stems = [p.stem for p in paths]
    if all(re.fullmatch(STAMP, s) for s in stems):
        return [int(s) for s in stems]
    if all(re.fullmatch(SECONDS, s) for s in stems):
        return [int(s[:-10]) * NS + int(s[-9:]) for s in stems]
    matches = [re.fullmatch(NUMBERED, s) for s in stems]
    frames = [(m[1], int(m[2])) if m else ('', i) for i, m in enumerate(matches)]
    if None in matches:
        frames = [('', i) for i in range(len(stems))]
    stamps, shift, end = {}, 0, 0
    for recording in sorted({r for r, _ in frames}):
        numbers = sorted(n for r, n in frames if r == recording)
        first = NS + round(numbers[0] * NS / rate)
        shift = 0 if first > end else end + NS - first
        for n in numbers:
            stamps[recording, n] = end = NS + round(n * NS / rate) + shift
    return [stamps[f] for f in frames]


def named_by_stamps(paths: Sequence[Path]) -> bool:
    """Whether `folder_stamps` takes the names of files for stamps, and not for numbers of frames."""
    return any(all(re.fullmatch(form, p.stem) for p in paths) for form in (STAMP, SECONDS))


def recordings_of(paths: Sequence[Path]) -> list[str | None]:
    """Return which recording each file belongs to, as `folder_stamps` reads their names; None: no number."""
    matches = [re.fullmatch(NUMBERED, p.stem) for p in paths]
    return [m and m[1] for m in matches]


def frame_numbers(paths: Sequence[Path]) -> list[int]:
    """Return the numbers in the names of one recording's files; empty if there are none, or several."""
    found = [re.fullmatch(NUMBERED, p.stem) for p in paths]
    one = len({m and m[1] for m in found}) == 1
    return [int(m[2]) for m in found if m] if one else []


def image_files(folder: Path) -> list[Path]:
    """Return a folder's image files, sorted by name, without hidden ones; `BagError` if there are none."""
    suffixes = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
    # macOS leaves ._0001.jpg beside 0001.jpg.
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes
                   and not p.name.startswith('.') and not p.is_dir()) if folder.is_dir() else []
    if not found:
        raise BagError(f'no images in {folder}; expected a folder of {", ".join(suffixes)}')
    return found
