# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of a recording as picture files to be annotated: one in a while, or those of low confidence."""
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ..files import write_whole
from ..images import Range
from ..inference.segmenter import Segmenter
from ..labels import LabelSet
from . import recordings
from .progress import Progress
from .recordings import RecordedFrame, Recording, Selection
from .settings import EvaluationError, ModelSpec


def to_folder(path: Path, out: Path, *, image_topic: str | None = None, selection: Selection | None = None,
              value_range: Range = 'full', model: ModelSpec | None = None, lowest: int = 0, apart_ns: int = 0,
              prelabel: bool = False, quiet: bool = False) -> tuple[int, list[str], list[str]]:
    """
    Write frames to `out`/images, named by their stamps in ns.

    `prelabel`: write the labels that `model` gives them to `out`/labels, under the same names and in the data
    set's own ids: a start for annotation. `lowest`: only so many, of the lowest mean confidence of `model`,
    each at least `apart_ns` from the others.

    Returns the number of frames written, what was left out, and what else a user should know.
    `EvaluationError` if `out` holds something, `BagError` if the recording can't be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaluationError(f'{out} exists and is not an empty folder: choose another name')
    if (lowest or prelabel) and model is None:
        raise EvaluationError('the lowest confidence and labels to start with need a model')
    recording = recordings.index_bag(path, image_topic, selection=selection)
    segment = model.load() if model and (lowest or prelabel) else None
    notes = [n for n in recording.notes if recordings.kind_of(n) == 'bags_noted']
    failed = [n for n in recording.notes if n not in notes]
    if lowest and segment:
        recording = replace(recording, chosen=_least_sure(recording, segment, value_range, lowest, apart_ns,
                                                         failed, quiet))
    written: set[int] = set()
    for frame in _frames(recording, value_range, [] if lowest else failed, 'writing', quiet):
        if frame.stamp_ns in written:
            failed.append(f'frame {frame.index} has the stamp of another one: left out')
            continue
        written.add(frame.stamp_ns)
        name = f'{frame.stamp_ns:019d}.png'  # 16 digits or more are a stamp, see image_folders.folder_stamps
        _write(out / 'images' / name, cv2.cvtColor(np.ascontiguousarray(frame.rgb), cv2.COLOR_RGB2BGR))
        if prelabel and segment:
            _write(out / 'labels' / name, source_ids(segment([frame.rgb])[0].labels, segment.labels))
    if not written:
        raise EvaluationError(f'no frame of {path} could be written: '
                              + (failed[0] if failed else 'none was chosen'))
    return len(written), failed, notes


def source_ids(labels: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """
    Turn class ids (H, W) uint8 into the data set's own ids, uint8 or, where they are larger, uint16.

    A class with several ids becomes the first of them.
    """
    table = np.full(256, label_set.void_source_ids[0] if label_set.void_source_ids else label_set.ignore_id)
    table[:len(label_set)] = [own[0] for own in label_set.source_ids]
    return table.astype(np.uint8 if table.max() < 256 else np.uint16)[labels]


def _least_sure(recording: Recording, segment: Segmenter, value_range: Range, count: int, apart_ns: int,
                failed: list[str], quiet: bool) -> list[int]:
    """Return the numbers of the frames of the lowest mean confidence."""
    found = []
    for frame in _frames(recording, value_range, failed, 'segmenting', quiet):
        confidence = segment([frame.rgb], confidence=True)[0].confidence
        assert confidence is not None
        found.append((float(confidence.mean()), frame.index, frame.stamp_ns))
    chosen: list[tuple[int, int]] = []
    for _, number, stamp in sorted(found):
        if len(chosen) < count and all(abs(stamp - s) >= apart_ns for _, s in chosen):
            chosen.append((number, stamp))
    return sorted(number for number, _ in chosen)


def _frames(recording: Recording, value_range: Range, failed: list[str], title: str,
            quiet: bool) -> Iterator[RecordedFrame]:
    """Read the chosen frames; what does not decode is added to `failed`."""
    with Progress(len(recording.chosen), title, quiet) as progress:
        for task in recording.tasks(max(1, len(recording.chosen)), value_range):
            for item in recordings.read(replace(task, before=None)):
                progress.update(1)
                if isinstance(item, RecordedFrame):
                    yield item
                else:
                    failed.append(item.reason)


def _write(path: Path, pixels: np.ndarray) -> None:
    write_whole(path, cv2.imencode('.png', pixels)[1].tobytes())
