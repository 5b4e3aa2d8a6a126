# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of an evaluation on disk: scores and results of a few frames each, joined when all are done."""
from dataclasses import dataclass, field
import fcntl
import json
import logging
import os
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any

import cv2

from .. import bag_writer, bags
from ..bags import Bag
from ..files import make_folder, remove_empty, write_whole
from ..health import Health
from ..inference.segmenter import Prediction
from ..labels import LabelSet
from .recordings import RecordedFrame
from .scores import Scores

log = logging.getLogger(__name__)
IDENTITY = 'evaluation.json'
PREFIX = '/segmentation'
# What the scores of a frame take in parts, JSON and report; after how many frames the room is estimated.
FRAME_BYTES, ROOM_AFTER = 2000, 10


class PartsError(ValueError):
    """Parts that are of another evaluation, or that the disk has no room for; the text says what to do."""


@dataclass(frozen=True)
class Part:
    """Frames `first` to `last` (exclusive) of the chosen ones of recording number `recording`."""

    recording: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """Its files' name; names sort like the parts."""
        return f'{self.recording:04d}-{self.first:09d}-{self.last:09d}'


class Parts:
    """
    A folder that gets the scores, and with `out` the results, of one part after the other.

    `identity`: everything that the scores depend on. With `resume` the parts in the folder are kept;
    `PartsError` if they are of another evaluation. Otherwise they are removed. `total`: number of frames that
    all parts together will have. While its `with` block runs, no other evaluation can use the folder: it
    would remove these parts, or replace them by its own of the same names. `PartsError` if another one does.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], total: int, *, out: Path | None = None,
                 resume: bool = False):
        self.folder, self.total, self.out = folder, total, out
        self._made = [path for path in folder.parents if not path.exists()]
        made = make_folder(folder)
        self._lock = _locked(folder)
        try:
            self._begin(identity, out, resume)
        except BaseException:
            os.close(self._lock)
            remove_empty(made)
            raise

    def __enter__(self) -> 'Parts':
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def _begin(self, identity: dict[str, Any], out: Path | None, resume: bool) -> None:
        folder = self.folder
        identity = json.loads(json.dumps(identity | {'out': str(out and out.absolute())}, default=str))
        known = self._known()
        self.done = self._find() if known else []
        # The bag that this evaluation wrote when it was stopped is written anew.
        self._ours = bool(resume and self.done and out and known.get('out') == identity['out'])
        if resume and self.done:
            if other := [k for k in identity if identity[k] != known.get(k)]:
                raise PartsError(f'--resume: {folder} is of another evaluation, with other '
                                 f'{", ".join(other)}; repeat the command that was stopped, or leave out '
                                 '--resume to start anew')
            log.info('%d of %d frames were scored before', self.frames(), self.total)
        elif resume:
            log.info('there is nothing to resume: %s has no scored frames; starting', folder)
        elif self.done:
            log.warning('the %d frames that were scored before are dropped; --resume would go on after them',
                        self.frames())
        if not (resume and self.done):
            self._clear()
            self.done = []
        if out and out.exists() and not self._ours:
            raise PartsError(f'{out} exists; no bag is overwritten: remove it or choose another name')
        write_whole(folder / IDENTITY, json.dumps(identity, indent=1))

    def frames(self) -> int:
        """Return how many frames are done."""
        return sum(p.last - p.first for p in self.done)

    def missing(self, recording: int, count: int) -> list[tuple[int, int]]:
        """Return the runs (first, last) of a recording's `count` chosen frames that are not done."""
        out, at = [], 0
        for p in sorted((p for p in self.done if p.recording == recording), key=lambda p: p.first):
            if p.first > at:
                out.append((at, p.first))
            at = p.last
        return [*out, (at, count)] if at < count else out

    def bag(self) -> Path:
        """Return a path for the results of the next part, for `add`."""
        return Path(tempfile.mkdtemp(dir=self.folder, prefix='bag-')) / 'results.mcap'

    def add(self, part: Part, scores: Scores, results: Path | bytes | None = None) -> None:
        """
        Keep the scores of a part, and its results: an mcap file, which is moved, or the content of one.

        `PartsError` if the disk has no room for the parts to come.
        """
        if isinstance(results, bytes):
            write_whole(self.folder / f'{part.name}.mcap', results)
        elif results is not None:
            os.replace(results, self.folder / f'{part.name}.mcap')
            results.parent.rmdir()
        # Written last: it says that the part is whole.
        scores.save(self.folder / f'{part.name}.npz')
        self.done.append(part)
        self._check_room()

    def join(self, scores: Scores) -> Scores:
        """Merge the parts' scores, in order, into `scores`, which is returned; write the results to `out`."""
        order = sorted(self.done, key=lambda p: p.name)
        for part in order:
            scores.merge(Scores.load(self.folder / f'{part.name}.npz', scores.labels, scores.truth,
                                     scores.apart_ns))
        if self.out and order:
            if self._ours and self.out.is_dir():
                shutil.rmtree(self.out)
            elif self._ours:
                self.out.unlink(missing_ok=True)
            with bag_writer.Writer(self.out) as writer:
                classes_written = False
                for part in order:
                    with Bag(self.folder / f'{part.name}.mcap') as bag:
                        for m in bag.messages(*bag.topics):
                            if m.topic != f'{PREFIX}/label_info_json' or not classes_written:
                                writer.write_raw(m.topic, m.type, m.raw, m.time_ns)
                                classes_written |= m.topic == f'{PREFIX}/label_info_json'
        return scores

    def remove(self) -> None:
        """Remove all parts, and the folders that were made for them if nothing else is in them."""
        self._clear()
        remove_empty([self.folder, *self._made])

    def _clear(self) -> None:
        for path in [*self.folder.glob('*.npz'), *self.folder.glob('*.mcap'), self.folder / IDENTITY]:
            path.unlink(missing_ok=True)
        for path in self.folder.glob('bag-*'):
            shutil.rmtree(path, ignore_errors=True)

    def _known(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / IDENTITY).read_text())
        except (OSError, ValueError):
            return {}

    def _find(self) -> list[Part]:
        found = (re.fullmatch(r'(\d+)-(\d+)-(\d+)', p.stem) for p in self.folder.glob('*.npz'))
        return [Part(*map(int, m.groups())) for m in found if m]

    def _check_room(self) -> None:
        if self.frames() < ROOM_AFTER:
            return
        results = sum(p.stat().st_size for p in self.folder.glob('*.mcap')) / self.frames()
        left = self.total - self.frames()
        # The results are copied from the parts into the bag before the parts are removed.
        needed = left * FRAME_BYTES + results * (left + self.total)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise PartsError(f'the disk of {self.folder} has {free / 1e9:.3g} GB free, and this evaluation '
                             f'needs about {needed / 1e9:.3g} GB more: make room, then go on with --resume')


def _locked(folder: Path) -> int:
    """Open a folder that no other process has locked, and lock it; returns its descriptor."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        raise PartsError(f'another evaluation is writing to {folder}: wait until it has ended, or write the '
                         'results to another place') from e
    except OSError as e:  # some network file systems lock no folders
        log.debug('%s is not locked: %s', folder, e)
    return descriptor


@dataclass
class Recorder:
    """Writes results as the node publishes them, with their frames' stamps; a context manager."""

    path: Path
    labels: LabelSet
    model: str
    jpeg_quality: int = 90
    health: Health = field(default_factory=Health)
    last_status_ns: int | None = None

    def __enter__(self) -> 'Recorder':
        self.writer = bag_writer.Writer(self.path)
        self.writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.writer.__exit__(*error)

    def write(self, frame: RecordedFrame, prediction: Prediction) -> None:
        """Add a frame's labels, overlay and confidence, and once a second of the recording a status."""
        stamp = min(max(0, frame.stamp_ns), bags.MAX_STAMP)  # an mcap file has no times before 1970
        head = bags.header(frame.stamp_ns, frame.frame_id)
        if self.last_status_ns is None:
            classes = bags.TYPES['std_msgs/msg/String'](json.dumps(self.labels.to_dict()))
            self.writer.write(f'{PREFIX}/label_info_json', classes, stamp)
        assert prediction.overlay is not None and prediction.confidence is not None
        jpeg = cv2.imencode('.jpg', cv2.cvtColor(prediction.overlay, cv2.COLOR_RGB2BGR),
                            [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality])[1]
        overlay = bags.TYPES['sensor_msgs/msg/CompressedImage'](head, 'rgb8; jpeg compressed bgr8', jpeg)
        self.writer.write(f'{PREFIX}/label', bags.image(prediction.labels, 'mono8', head), stamp)
        self.writer.write(f'{PREFIX}/overlay/compressed', overlay, stamp)
        self.writer.write(f'{PREFIX}/confidence', bags.image(prediction.confidence, 'mono8', head), stamp)
        self.health.frame_received()
        self.health.frame_processed(prediction.stage_ms)
        if self.last_status_ns is None or abs(stamp - self.last_status_ns) >= bags.NS:
            self.last_status_ns = stamp
            status = self.health.status(0, {'model': self.model})
            value = bags.TYPES['diagnostic_msgs/msg/KeyValue']
            entry = bags.TYPES['diagnostic_msgs/msg/DiagnosticStatus'](
                status.level, 'segmentation: frames', status.summary, '',
                [value(k, v) for k, v in status.values.items()])
            message = bags.TYPES['diagnostic_msgs/msg/DiagnosticArray'](head, [entry])
            self.writer.write('/diagnostics', message, stamp)
