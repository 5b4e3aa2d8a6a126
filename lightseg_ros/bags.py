# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Read and write bags without ROS, one message at a time: ROS 2 sqlite3 and mcap, and ROS 1, by rosbags."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, ExitStack, suppress
from dataclasses import dataclass
import functools
import hashlib
import os
from pathlib import Path
import re
import shutil
import sqlite3
import struct
import tempfile
from typing import Any, TypeAlias

import cv2
import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader as Reader1
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from rosbags.rosbag2 import Reader as Reader2
from rosbags.rosbag2 import Writer as Writer2
from rosbags.rosbag2.enums import CompressionFormat
from rosbags.typesys import get_typestore, Stores

from . import images, pictures
from .labels import LabelSet
from .mcap_repair import indexed_copy, is_complete
from .pictures import PictureError

# The message definitions that we need are the same in every ROS 2 distribution. A bag's own definitions are
# not used, so a bag without them, or with broken ones, can be read.
ROS1, ROS2 = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_HUMBLE)
TYPES = ROS2.types
IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
NS = 10 ** 9
# path, size, time of modification -> folder of the copy, note
Repair: TypeAlias = Callable[[Path, int, int], tuple[tempfile.TemporaryDirectory, str]]


class BagError(ValueError):
    """A bag or message that can't be read or written; the text says which, what was found and what to do."""


@dataclass(frozen=True)
class Topic:
    """A topic of a bag, its message type ('sensor_msgs/msg/Image') and its number of messages."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class Recorded:
    """A message as the bag stores it. `time_ns`: when it was recorded. `raw`: CDR, or ROS 1's own format."""

    topic: str
    type: str
    time_ns: int
    raw: bytes
    ros1: bool = False

    def read(self) -> Any:
        """Deserialize it; `BagError` where the bytes are not that type's."""
        try:
            return (ROS1.deserialize_ros1 if self.ros1 else ROS2.deserialize_cdr)(self.raw, self.type)
        except Exception as e:  # broken bytes raise all sorts of errors in there
            raise BagError(f'{self.topic}: a message of {len(self.raw)} bytes is no {self.type} ({e})') from e

    def cdr(self) -> bytes:
        """Return the message as a ROS 2 publisher sends it; `BagError` as for `read`."""
        if not self.ros1:
            return self.raw
        try:
            # With the definitions of ROS 2 this leaves out the sequence number of a ROS 1 header.
            return bytes(ROS2.ros1_to_cdr(self.raw, self.type))
        except Exception as e:  # broken bytes raise all sorts of errors in there
            raise BagError(f'{self.topic}: a message of {len(self.raw)} bytes is no {self.type} ({e})') from e

    def stamp_ns(self) -> int:
        """Return the stamp of the message's header in ns, or `time_ns` where it is 0, that is, not set."""
        try:
            if self.ros1:
                sec, nanosec = struct.unpack_from('<II', self.raw, 4)
            else:
                sec, nanosec = struct.unpack_from('<iI' if self.raw[1] & 1 else '>iI', self.raw, 4)
        except (struct.error, IndexError):
            return self.time_ns
        return sec * NS + nanosec or self.time_ns


class Bag:
    """
    A bag, open for reading: a folder or file of rosbag2 (sqlite3, mcap), or a ROS 1 `.bag`.

    A folder that lost its metadata.yaml, and an mcap file that was cut short, are read as far as they go:
    `notes` says so. `BagError` for what can't be read. Use it in a `with` statement.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.notes: list[str] = []
        self._stack = ExitStack()
        try:
            self._readers = self._open(self.path)
        except BaseException:
            self._stack.close()
            raise
        self.topics: dict[str, Topic] = {}
        for c in (c for r in self._readers for c in r.connections):
            known = self.topics.get(c.topic)
            self.topics[c.topic] = Topic(c.topic, c.msgtype, c.msgcount + (known.count if known else 0))

    def __enter__(self) -> 'Bag':
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def image_topic(self, wanted: str | None = None, exclude: Sequence[str] = ()) -> Topic:
        """Find the image topic: `wanted`, or the bag's only one; `BagError` lists those of the bag."""
        found = [t for t in self.topics.values() if t.type in IMAGE_TYPES and t.name not in exclude]
        if wanted is not None:
            found = [t for t in found if t.name == wanted]
        if len(found) == 1:
            return found[0]
        known = ', '.join(f'{t.name} ({t.type.rsplit("/", 1)[1]}, {t.count} messages)'
                          for t in self.topics.values() if t.type in IMAGE_TYPES) or 'none'
        what = 'several image topics' if found else f'no image topic {wanted or ""}'.rstrip()
        raise BagError(f'{self.path} has {what}; its image topics: {known}'
                       + ('. Name one with --image-topic' if found else ''))

    def messages(self, *topics: str, start_ns: int | None = None) -> Iterator[Recorded]:
        """Yield messages by recording time, from `start_ns` on; `BagError` where the bag breaks off."""
        count = 0
        try:
            for reader in self._readers:
                wanted = [c for c in reader.connections if c.topic in topics]
                for c, time_ns, raw in reader.messages(wanted, start_ns) if wanted else ():
                    yield Recorded(c.topic, c.msgtype, time_ns, bytes(raw), isinstance(reader, Reader1))
                    count += 1
        except Exception as e:  # every storage format has its own errors
            raise BagError(f'{self.path} breaks off after {count} messages: {_text(e)}') from e

    def _open(self, path: Path) -> list[Any]:
        if path.is_dir() and not (path / 'metadata.yaml').is_file():
            parts = [p for p in path.iterdir() if p.suffix in ('.mcap', '.db3')]
            if not parts:
                raise BagError(f'{path} is not a bag: expected metadata.yaml, .mcap or .db3 files in it')
            self.notes.append(f'{path.name}: no metadata.yaml, its files are read by name')
            return [r for p in sorted(parts, key=_by_number) for r in self._open(p)]
        if path.is_dir():
            parts = sorted((p for p in path.iterdir() if p.suffix in ('.mcap', '.db3')), key=_by_number)
            if any(_repair_of(p) for p in parts):
                return [r for p in parts for r in self._open(p)]
        elif repair := _repair_of(path):
            path = self._repaired(path, repair)
        try:
            reader = Reader1(path) if path.suffix == '.bag' and path.is_file() else Reader2(path)
            reader.open()
        except Exception as e:  # every storage format has its own errors
            raise BagError(f'{self.path} does not open as a bag: {_text(e)}') from e
        self._stack.callback(reader.close)
        return [reader]

    def _repaired(self, path: Path, repair: Repair) -> Path:
        """Return a readable copy of a file that a recorder did not finish."""
        found = path.stat()
        try:
            folder, note = repair(path, found.st_size, found.st_mtime_ns)
        except (OSError, sqlite3.Error) as e:
            raise BagError(f'{path} was not finished by its recorder, and the copy that is needed to read it '
                           f'can not be made: {_text(e)}') from e
        self._stack.callback(lambda: folder)  # keeps the folder as long as this bag is open
        self.notes.append(f'{path.name}: {note}')
        return Path(folder.name) / path.name


def _repair_of(path: Path) -> Repair | None:
    """Return what makes a readable copy of a file that its recorder did not finish; None for whole files."""
    if not path.is_file():
        return None
    if path.suffix == '.mcap' and not is_complete(path):
        return indexed_copy
    if path.suffix == '.db3' and any(p.is_file() and p.stat().st_size for p in journals(path)):
        return checkpointed_copy
    return None


def journals(path: Path) -> list[Path]:
    """Files beside a sqlite database that hold messages that were not yet written into it."""
    return [path.with_name(path.name + suffix) for suffix in ('-wal', '-journal')]


@functools.lru_cache(maxsize=2)
def checkpointed_copy(path: Path, size: int, mtime_ns: int) -> tuple[tempfile.TemporaryDirectory, str]:
    """
    Copy a sqlite database with its journals, which a killed recorder leaves, and write them into the copy.

    Returns the copy's folder and what a user should know. `size` and `mtime_ns` as for `indexed_copy`.
    """
    folder = tempfile.TemporaryDirectory(prefix='lightseg_')
    copy = Path(folder.name) / path.name
    shutil.copyfile(path, copy)
    for journal in journals(path):
        if journal.is_file():
            shutil.copyfile(journal, copy.with_name(journal.name))
    with closing(sqlite3.connect(copy)) as db:
        db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
        db.execute('PRAGMA journal_mode = DELETE')
    return folder, 'its recorder was killed; the messages in its journal file are read too'


def header(stamp_ns: int, frame_id: str = '') -> Any:
    """Make a std_msgs/Header."""
    time = TYPES['builtin_interfaces/msg/Time'](*divmod(stamp_ns, NS))
    return TYPES['std_msgs/msg/Header'](time, frame_id)


def image(array: np.ndarray, encoding: str, head: Any) -> Any:
    """Make an Image, or with encoding 'jpeg' or 'png' a CompressedImage; see `images.encode`."""
    data = np.zeros(0, np.uint8)
    empty = TYPES['sensor_msgs/msg/CompressedImage'](head, '', data) if encoding in ('jpeg', 'png') else \
        TYPES['sensor_msgs/msg/Image'](head, 0, 0, '', 0, 0, data)
    return images.encode(array, encoding, head, empty)


def camera_info(height: int, width: int, head: Any) -> Any:
    """Make the CameraInfo of a camera that is not calibrated: all zeros, as the message defines it."""
    roi = TYPES['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return TYPES['sensor_msgs/msg/CameraInfo'](head, height, width, '', np.zeros(0), np.zeros(9), np.zeros(9),
                                               np.zeros(12), 0, 0, roi)


class Writer:
    """
    Writes a ROS 2 bag: one mcap file if `path` ends in .mcap, else a folder with metadata.yaml.

    It appears whole when the `with` block ends, or not at all. mcap chunks are compressed with zstd.
    `storage`: 'mcap' or 'sqlite3' (folders only, what ROS 2 Humble records). `BagError` if `path` exists.
    """

    def __init__(self, path: str | Path, storage: str = 'mcap'):
        self.path = Path(path)
        if storage not in ('mcap', 'sqlite3') or (storage != 'mcap' and self.path.suffix == '.mcap'):
            raise BagError(f'storage is {storage!r} for {self.path}; expected mcap, or sqlite3 for a folder')
        if self.path.exists():
            raise BagError(f'{self.path} exists; no bag is overwritten: remove it or choose another name')
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f'.{self.path.name}.', dir=self.path.parent))
        # The files inside are named like the folder.
        self._bag = self._folder / self.path.name
        plugin = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}[storage]
        self._writer = Writer2(self._bag, version=8, storage_plugin=plugin)
        if storage == 'mcap':
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> 'Writer':
        self._writer.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._writer.close()
                os.replace(next(self._bag.glob('*.mcap')) if self.path.suffix == '.mcap' else self._bag,
                           self.path)
            else:
                with suppress(Exception):
                    self._writer.abort()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, topic: str, msg: Any, time_ns: int) -> None:
        """Add a message made from `TYPES`."""
        self.write_raw(topic, msg.__msgtype__, bytes(ROS2.serialize_cdr(msg, msg.__msgtype__)), time_ns)

    def write_raw(self, topic: str, msgtype: str, cdr: bytes, time_ns: int) -> None:
        """Add a serialized message of a type in `TYPES`."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, msgtype, typestore=ROS2)
        self._writer.write(self._connections[topic], time_ns, cdr)


def folder_stamps(paths: Sequence[Path], rate: float) -> list[int]:
    """
    Return stamps in ns for the files of a folder, from their names; `rate` in Hz.

    A name of 16 digits or more is the stamp itself; SECONDS.NANOSECONDS or SECONDS_NANOSECONDS too. Otherwise
    the last number in a name counts frames: frame n of a recording is at 1 s + n / rate (0001TP_008550 and
    0001TP_008580 are one second apart at 30 Hz). The text before it names the recording; each recording
    starts one second after the previous one. Files without numbers follow each other.
    """
    stems = [p.stem for p in paths]
    if all(re.fullmatch(r'\d{16,}', s) for s in stems):
        return [int(s) for s in stems]
    if all(re.fullmatch(r'\d{9,}[._]\d{9}', s) for s in stems):
        return [int(s[:-10]) * NS + int(s[-9:]) for s in stems]
    matches = [re.fullmatch(r'(.*?)(\d+)(\D*)', s) for s in stems]
    frames = [(m[1], int(m[2])) if m else ('', i) for i, m in enumerate(matches)]
    if any(m is None for m in matches):
        frames = [('', i) for i in range(len(stems))]
    stamps, shift, end = {}, 0, 0
    for recording in sorted({r for r, _ in frames}):
        numbers = sorted(n for r, n in frames if r == recording)
        first = NS + round(numbers[0] * NS / rate)
        shift = 0 if first > end else end + NS - first
        for n in numbers:
            stamps[recording, n] = end = NS + round(n * NS / rate) + shift
    return [stamps[f] for f in frames]


def from_folder(frames: Path, out: Path, *, truth: Path | None = None, labels: LabelSet | None = None,
                rate: float = 30.0, image_topic: str = '/camera/image_raw',
                label_topic: str = '/camera/label', encoding: str = 'rgb8', storage: str = 'mcap',
                frame_id: str = 'camera') -> int:
    """
    Make a bag from a data set's folder, with image, camera_info and, with `truth`, label topics.

    Returns the number of frames written.

    `truth` holds label images of the same stems in the data set's own ids; they become class ids of `labels`
    with its `ignore_id` as void, mono8. A frame without a label image is written alone. `encoding`: rgb8,
    bgr8, mono8, or 'png' or 'jpeg' for a CompressedImage on IMAGE_TOPIC/compressed. Stamps: `folder_stamps`.
    `BagError` names a file that is not an image, `LabelError` ids that are not in the label set.
    """
    paths = image_files(frames)
    partners = {p.stem: p for p in image_files(truth)} if truth else {}
    if partners and labels is None:
        raise BagError(f'label images in {truth} without a label set: name one with --labels')
    if truth and not any(p.stem in partners for p in paths):
        raise BagError(f'no label image in {truth} has the name of an image in {frames}')
    if encoding in ('png', 'jpeg'):
        image_topic = f'{image_topic}/compressed'
    info_topic = image_topic.removesuffix('/compressed').rsplit('/', 1)[0] + '/camera_info'
    with Writer(out, storage) as writer:
        for stamp, path in sorted(zip(folder_stamps(paths, rate), paths)):
            rgb = _read(pictures.read, path)
            head = header(stamp, frame_id)
            height, width = rgb.shape[:2]
            pixels = rgb[..., ::-1] if encoding == 'bgr8' else cv2.cvtColor(
                rgb, cv2.COLOR_RGB2GRAY) if encoding == 'mono8' else rgb
            writer.write(image_topic, image(pixels, encoding, head), stamp)
            writer.write(info_topic, camera_info(height, width, head), stamp)
            if path.stem in partners and labels is not None:
                ids = labels.from_source(_read(pictures.read_labels, partners[path.stem]))
                writer.write(label_topic, image(ids, 'mono8', head), stamp)
    return len(paths)


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name; `BagError` if there are none."""
    suffixes = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes) if folder.is_dir() else []
    if not found:
        raise BagError(f'no images in {folder}; expected a folder of {", ".join(suffixes)}')
    return found


def _read(reader: Callable[[Path], np.ndarray], path: Path) -> np.ndarray:
    try:
        return reader(path)
    except PictureError as e:
        raise BagError(str(e)) from e


def digest(path: str | Path) -> str:
    """SHA-256 of a bag's file, or of its folder's files by name, hexadecimal."""
    path = Path(path)
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]:
        with open(file, 'rb') as f:
            while block := f.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _text(e: Exception) -> str:
    return str(e) or type(e).__name__


def _by_number(path: Path) -> tuple:
    """Return a sort key that puts bag_10.mcap after bag_9.mcap."""
    return tuple(int(t) if t.isdigit() else t for t in re.split(r'(\d+)', path.name))
