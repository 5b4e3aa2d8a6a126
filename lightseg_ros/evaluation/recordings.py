# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The frames of a bag in order, each with its ground truth, cut into tasks for workers."""
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
import math
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .. import bags, image_folders, images, pictures
from ..bags import Bag, BagError
from ..footage import AS_STORED, Folder, Footage, Frame, open_recording, Video
from ..images import ImageError
from ..labels import LabelError, LabelSet
from ..pictures import PictureError

# Labels that are kept because they come before their frame; more means that the topics are out of order.
KEPT_LABELS = 64
# Recording times this far from all others, and so many times farther than these span, are taken for wrong.
FAR_NS, FAR_TIMES = 600 * bags.NS, 10
COUNTED = '--start, --duration and --every count from the earliest frame'
IN_ORDER = 'the first belongs to the first frame'
TURNED = ('it was turned upright, as its EXIF orientation asks, and its label is taken to be drawn on it '
          'upright. Look at both in the report; labels that were drawn on pictures as they are stored need '
          'pictures without that orientation: exiftool -Orientation= FOLDER')
# How notes end that cost no frame.
HARMLESS = (*bags.HARMLESS, AS_STORED, COUNTED, IN_ORDER)


@dataclass(frozen=True)
class GroundTruthSource:
    """
    Where ground truth comes from: a topic of the bag, or a folder of label images named by their stamps.

    `source_ids`: the label images hold the data set's own ids (as CamVid's files do) instead of class ids
    with 255 as void. `tolerance_ns`: how far the stamps of a frame and its label may differ. `rate`: Hz, for
    files named by frame numbers, see `image_folders.folder_stamps`.
    """

    topic: str | None = None
    folder: Path | None = None
    source_ids: bool = False
    tolerance_ns: int = 5_000_000
    rate: float = 30.0

    def __bool__(self) -> bool:
        return self.topic is not None or self.folder is not None


@dataclass(frozen=True)
class Selection:
    """
    Which frames of a recording are used: those from `start_ns` on, for `duration_ns` (None: to the end).

    Times count from the first frame. Of these, one in `every_ns`, or each `every_frames`th.
    """

    start_ns: int = 0
    duration_ns: int | None = None
    every_ns: int = 0
    every_frames: int = 1

    @property
    def timed(self) -> bool:
        """Whether it depends on when frames were recorded."""
        return bool(self.start_ns or self.duration_ns is not None or self.every_ns)

    def of(self, times: Sequence[int]) -> list[int]:
        """Return the numbers of the frames that are used; `times`: when each was recorded, in ns."""
        begin = min(times, default=0) + self.start_ns
        end = None if self.duration_ns is None else begin + self.duration_ns
        inside = [i for i, t in enumerate(times) if begin <= t and (end is None or t < end)]
        if not self.every_ns:
            return inside[::self.every_frames]
        cells = [(times[i] - begin) // self.every_ns for i in inside]
        return [i for i, cell, before in zip(inside, cells, [None, *cells]) if cell != before]


@dataclass(frozen=True)
class MessageIndex:
    """
    Where message number `place` of a topic lies.

    Read from `start_ns` on (None: from the start of the bag); the first message there has number `begin`.
    """

    place: int
    start_ns: int | None = None
    begin: int = 0


@dataclass(frozen=True)
class Task:
    """
    A run of a bag's frames that one worker scores, by their numbers on the image topic.

    `before`: the frame whose labels the first one's temporal consistency is measured from; None: there is
    none. `start`: where to read from. `partners`: for each frame, where its label lies on the label topic, or
    the label's file, or None. `samples`: the numbers of frames that the report shows.
    """

    bag: str
    topic: str
    numbers: tuple[int, ...]
    before: int | None
    start: MessageIndex
    partners: tuple[MessageIndex | str | None, ...]
    truth: GroundTruthSource
    value_range: images.Range = 'full'
    samples: frozenset[int] = frozenset()


@dataclass
class Recording:
    """
    What `index_bag` found in a bag: recording time, stamp and label of each frame.

    `chosen`: the numbers of the frames that are used. `samples`: of those that the report shows. `topic` is a
    stand-in unless `has_topics`.
    """

    path: Path
    topic: str
    truth: GroundTruthSource
    times: list[int]
    stamps: list[int]
    partners: list[MessageIndex | str | None]
    chosen: list[int]
    counts: dict[str, int]
    notes: list[str]
    sha256: str
    samples: set[int] = field(default_factory=set)
    has_topics: bool = True

    def tasks(self, size: int, value_range: images.Range = 'full', first: int = 0,
              last: int | None = None) -> list[Task]:
        """
        Cut the chosen frames, or their slice `first` to `last`, into tasks of `size` frames.

        `value_range`: how 16-bit images are read, `images.to_8_bits`.
        """
        last = len(self.chosen) if last is None else last
        firsts = range(first, last, size)
        befores = [self.chosen[f - 1] if f else None for f in firsts]
        starts = places(self.times, [self.chosen[f] if b is None else b for f, b in zip(firsts, befores)])
        return [Task(str(self.path), self.topic, tuple(numbers), before, start,
                     tuple(self.partners[n] for n in numbers), self.truth, value_range,
                     frozenset(self.samples.intersection(numbers)))
                for f, before, start in zip(firsts, befores, starts)
                for numbers in [self.chosen[f:min(f + size, last)]]]

    def describe(self) -> dict[str, Any]:
        """Return what a result says about its source."""
        folder = str(self.truth.folder) if self.truth.folder else None
        labels = {'labels_sha256': bags.digest(folder, names=True)} if folder else {}
        return {'name': self.path.name, 'path': str(self.path), 'sha256': self.sha256,
                'image_topic': self.topic if self.has_topics else None,
                'label_topic': self.truth.topic, 'label_folder': folder,
                'frames': len(self.chosen), 'notes': self.notes} | labels


@dataclass(frozen=True)
class Skip:
    """
    A frame that can't be used ('failed', 'before' if it is not counted), or a label ('truth_failed').

    As the note of a frame that is used: 'narrow_range', 'turned'.
    """

    what: str
    reason: str

    @property
    def counted(self) -> bool:
        """Whether it stands for one of the frames that are scored."""
        return self.what == 'failed'


@dataclass
class RecordedFrame:
    """
    A decoded frame with its ground truth, class ids (H, W) uint8.

    `counted` is False for the frame before a task's first one: it is only compared with. `note`: what a user
    should know of it. `sample`: the report shows it.
    """

    source: str
    index: int
    stamp_ns: int
    rgb: np.ndarray
    truth: np.ndarray | None = None
    decode_ms: float = 0.0
    frame_id: str = ''
    counted: bool = True
    note: Skip | None = None
    sample: bool = False


def index_bag(path: str | Path, image_topic: str | None = None, truth: GroundTruthSource | None = None,
              selection: Selection | None = None) -> Recording:
    """
    Read a bag's stamps, choose frames, find each one's ground truth, count what has none.

    A frame and a label belong together if their stamps are nearest within the tolerance; each is used once.
    `BagError` for a bag that does not open or lacks the topic; one that breaks off is used as far as it goes.
    """
    path, truth = named(path), truth or GroundTruthSource()
    with open_recording(path, truth.rate) as bag:
        notes = bag.notes
        labelled: list[str] = []
        if truth.topic:
            if isinstance(bag, Footage):
                raise BagError(f'{path} has no topics: give its labels as a folder, --label-dir, instead of '
                               f'--label-topic {truth.topic}')
            if truth.topic == image_topic:
                raise BagError(f'{truth.topic} is given as image topic and as label topic; expected two '
                               'topics')
            labelled = [bag.image_topic(truth.topic, kind='label topic').name]
        topic = bag.image_topic(image_topic, exclude=labelled).name
        wanted = [topic, *labelled]
        times: dict[str, list[int]] = {t: [] for t in wanted}
        stamps: dict[str, list[int]] = {t: [] for t in wanted}
        try:
            if isinstance(bag, Footage):
                times[topic] = stamps[topic] = bag.times
            else:
                for message in bag.messages(*wanted):
                    times[message.topic].append(message.time_ns)
                    stamps[message.topic].append(message.stamp_ns())
        except BagError as e:
            notes.append(str(e))
    labels: Sequence[MessageIndex | str] = []
    label_stamps: list[int] = []
    if truth.topic:
        label_stamps = stamps[truth.topic]
        labels = places(times[truth.topic], range(len(label_stamps)))
    elif truth.folder:
        files = image_folders.image_files(truth.folder)
        label_stamps, labels = image_folders.folder_stamps(files, truth.rate), [str(f) for f in files]
    selection = selection or Selection()
    chosen = selection.of(times[topic])
    if selection.timed and (far := _far(times[topic])):
        notes.append(f'{path.name}: {far}; frames used: {len(chosen)}; {COUNTED}')
    # All frames are matched, so that no frame gets the label of one that is not chosen.
    if truth.folder and not image_folders.named_by_stamps(files):
        matches = _match_files(bag, stamps[topic], files, truth, notes)
    else:
        matches = match(stamps[topic], label_stamps, truth.tolerance_ns)
    partners = [None if m is None else labels[m] for m in matches]
    found = [stamps[topic][n] for n in chosen]
    counts = {'read': len(found), 'duplicate_stamps': len(found) - len(set(found)),
              'stamps_back': sum(b < a for a, b in zip(found, found[1:]))}
    if truth:
        counts |= {'without_truth': sum(partners[n] is None for n in chosen),
                   'truth_without_frame': len(label_stamps) - sum(m is not None for m in matches)}
    return Recording(path, topic, truth, times[topic], stamps[topic], partners, chosen, counts, notes,
                     bags.digest(path), has_topics=not isinstance(bag, Footage))


def named(path: str | Path) -> Path:
    """Return a path whose last part names the recording, which '.' and '..' don't."""
    path = Path(path)
    return path if path.name.strip('.') else path.resolve()


def _far(times: Sequence[int]) -> str:
    """Say which frames were recorded at quite another time than all others; '' if none was."""
    ordered = sorted(times)
    gap, at = max(((b - a, i) for i, (a, b) in enumerate(zip(ordered, ordered[1:]), 1)), default=(0, 0))
    if gap <= max(FAR_NS, FAR_TIMES * (ordered[-1] - ordered[0] - gap if ordered else 0)):
        return ''
    few, others = sorted((ordered[:at], ordered[at:]), key=len)
    return (f'the recording time of {len(few)} of {len(times)} frames, {few[0] / bags.NS:.3f} s, is far from '
            f'that of the others, {others[0] / bags.NS:.3f} to {others[-1] / bags.NS:.3f} s')


def kind_of(note: str) -> str:
    """Return what a bag's note counts as: damage, or something to know that costs no message."""
    return 'bags_noted' if note.endswith(HARMLESS) else 'bags_damaged'


def spread(stamps: Sequence[tuple[str, int]], count: int, apart_ns: int) -> list[int]:
    """
    Choose frames that lie evenly in all of them, each of a source at least `apart_ns` after the one before.

    `stamps`: source and stamp of each frame. Returns at most `count` places.
    """
    out: list[int] = []
    for i in range(min(count, len(stamps))):
        place = (2 * i + 1) * len(stamps) // (2 * count)
        (source, stamp), before = stamps[place], stamps[out[-1]] if out else ('', 0)
        if place not in out and (source != before[0] or stamp - before[1] >= apart_ns):
            out.append(place)
    return out


def match(stamps: Sequence[int], others: Sequence[int], tolerance: int) -> list[int | None]:
    """Pair each stamp (ns) with the index of the nearest other one within the tolerance, used once."""
    order = sorted(range(len(others)), key=lambda i: others[i])
    values = [others[i] for i in order]
    pairs = []
    for i, stamp in enumerate(stamps):
        for j in range(bisect_left(values, stamp - tolerance), len(values)):
            if values[j] > stamp + tolerance:
                break
            pairs.append((abs(values[j] - stamp), i, order[j]))
    out: list[int | None] = [None] * len(stamps)
    used = set()
    for _, i, j in sorted(pairs):
        if out[i] is None and j not in used:
            out[i] = j
            used.add(j)
    return out


def _match_files(bag: Bag | Footage, stamps: Sequence[int], files: Sequence[Path], truth: GroundTruthSource,
                 notes: list[str]) -> list[int | None]:
    """
    Pair frames with label files that are not named by stamps.

    Names say what belongs together where the frames have some. Else the files' numbers must do, and `notes`
    gets what makes them ambiguous; `BagError` where they say nothing.
    """
    if isinstance(bag, Folder):
        by_stem = {f.stem: i for i, f in reversed([*enumerate(files)])}
        if any(f.stem in by_stem for f in bag.files):
            return [by_stem.pop(f.stem, None) for f in bag.files]
        # In one numbering: recordings follow each other, so a missing one would shift all later ones.
        together = image_folders.folder_stamps([*bag.files, *files], truth.rate)
        return match(together[:len(bag.files)], together[len(bag.files):], truth.tolerance_ns)
    numbers = image_folders.frame_numbers(files)
    if isinstance(bag, Video):
        first = 1 if _count_from_one(numbers, len(stamps)) else 0
        if first:
            notes.append(f'{truth.folder}: its files are numbered 1 to {max(numbers)}, the frames 0 to '
                         f'{len(stamps) - 1}; {IN_ORDER}')
        if first or sorted(numbers) == [*range(len(stamps))]:
            by_number = {n - first: i for i, n in enumerate(numbers)}
            return [by_number.get(n) for n in range(len(stamps))]
    matches = match(stamps, image_folders.folder_stamps(files, truth.rate), truth.tolerance_ns)
    names = image_folders.recordings_of(files)
    if None in names and len(files) != len(stamps):
        raise BagError(f'{files[names.index(None)]} has no number in its name, so nothing says which of the '
                       f'{len(stamps)} frames it belongs to; expected names that are stamps in ns or frame '
                       'numbers')
    if len({*names}) > 1 and not len(files) == len(stamps) == len(stamps) - matches.count(None):
        notes.append(f'{truth.folder} holds labels of {len({*names})} recordings, and some frames have none: '
                     'a later recording may have got the labels of other frames; name the files by stamp '
                     'in ns')
    return matches


def _count_from_one(numbers: Sequence[int], frames: int) -> bool:
    """
    Whether numbers of a video's frames begin with 1, as ffmpeg names them: all of them do, or every nth.

    Those of every tenth frame are 0, 10, 20 or 1, 11, 21.
    """
    return len({*numbers}) == len(numbers) > 1 and min(numbers) == 1 and max(numbers) <= frames and (
        len(numbers) == frames or math.gcd(*(n - 1 for n in numbers)) > 1)


def places(times: Sequence[int], numbers: Sequence[int]) -> list[MessageIndex]:
    """Locate messages by their recording times; if those jump back, read from the start of the bag."""
    if any(b < a for a, b in zip(times, times[1:])):
        return [MessageIndex(n) for n in numbers]
    starts = [times[max(0, n)] for n in numbers]
    return [MessageIndex(n, start, bisect_left(times, start)) for n, start in zip(numbers, starts)]


def read(task: Task, labels: LabelSet | None = None) -> Iterator[RecordedFrame | Skip]:
    """
    Decode a task's frames one at a time, with their ground truth; what can't be used comes as `Skip`.

    `labels`: the label set of the ground truth, where there is one.
    """
    source = Path(task.bag).name
    partners = dict(zip(task.numbers, task.partners))
    last = task.numbers[-1]
    # Labels have a reader of their own: one reader can't be at two places of a file.
    label_reader = Bag(task.bag) if task.truth.topic else nullcontext()
    with open_recording(task.bag, task.truth.rate) as bag, label_reader as label_bag:
        truths = _Truths(label_bag, task, labels)
        messages = bag.messages(task.topic, start_ns=task.start.start_ns)
        for number, message in enumerate(messages, task.start.begin):
            counted = number in partners
            if counted or number == task.before:
                began = perf_counter()
                try:
                    msg = message.read()
                    frame = RecordedFrame(source, number, message.stamp_ns(),
                                          images.decode(msg, task.value_range), frame_id=msg.header.frame_id,
                                          counted=counted, sample=number in task.samples)
                except (BagError, ImageError) as e:
                    yield Skip('failed' if counted else 'before', f'{source} frame {number}: {e}')
                else:
                    frame.decode_ms = 1e3 * (perf_counter() - began)
                    if task.value_range == 'full' and (narrow := images.narrow_range(msg)):
                        frame.note = Skip('narrow_range', f'{source} frame {number}: {narrow}; --value-range '
                                          'auto spreads them')
                    if counted:
                        try:
                            frame.truth = truths.of(partners[number], frame.rgb.shape[:2])
                        except (BagError, ImageError, LabelError, PictureError) as e:
                            yield Skip('truth_failed', f'{source} frame {number}: {e}')
                    if frame.truth is not None and isinstance(message, Frame) and pictures.keeps_size(
                            message.orientation, *frame.rgb.shape[:2]):
                        frame.note = Skip('turned', f'{source} frame {number}: {TURNED}')
                    yield frame
            if number == last:
                return  # stop here: a damaged bag may break off at the next message


class _Truths:
    """A task's ground truth, from the label topic or from files."""

    def __init__(self, bag: Bag | None, task: Task, labels: LabelSet | None):
        self.bag, self.labels, self.truth = bag, labels, task.truth
        self.needed = {p.place for p in task.partners if isinstance(p, MessageIndex)}
        self.ahead: dict[int, bags.Recorded] = {}
        self.messages: Iterator[bags.Recorded] = iter(())
        self.next = -1

    def of(self, partner: MessageIndex | str | None, size: tuple[int, ...]) -> np.ndarray | None:
        """Return the class ids (H, W) uint8 of a frame; `BagError` or `LabelError` if they don't fit."""
        if partner is None:
            return None
        assert self.labels
        if isinstance(partner, str):
            ids = pictures.read_labels(Path(partner))
        else:
            ids = images.decode_labels(self._message(partner).read())
        if ids.shape != size:
            raise BagError(f'its label image is {ids.dtype} {ids.shape}; expected {size}, one class id '
                           'per pixel')
        if self.truth.source_ids:
            return self.labels.from_source(ids)
        found = np.flatnonzero(np.bincount(ids.ravel(), minlength=256))
        strange = [int(i) for i in found if i >= len(self.labels) and i != self.labels.ignore_id]
        if strange:
            raise LabelError(f'its label image holds ids {strange[:5]}; expected class ids 0 to '
                             f'{len(self.labels) - 1} or {self.labels.ignore_id}; --label-ids source takes '
                             "the data set's own")
        return ids.astype(np.uint8)

    def _message(self, wanted: MessageIndex) -> bags.Recorded:
        """Read on to a message; keep the ones in between that later frames need."""
        if wanted.place in self.ahead:
            return self.ahead.pop(wanted.place)
        if not 0 <= self.next <= wanted.place:
            assert self.bag and self.truth.topic
            self.messages = self.bag.messages(self.truth.topic, start_ns=wanted.start_ns)
            self.next = wanted.begin
        for message in self.messages:
            number, self.next = self.next, self.next + 1
            if number == wanted.place:
                return message
            if number in self.needed:
                self.ahead[number] = message
                if len(self.ahead) > KEPT_LABELS:
                    del self.ahead[next(iter(self.ahead))]
        raise BagError('its label is no longer in the bag: did the bag change meanwhile?')
