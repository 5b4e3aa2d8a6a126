# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Read bags without ROS, one message at a time: ROS 2 sqlite3 and mcap, and ROS 1."""
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
import hashlib
from itertools import islice
import os
from pathlib import Path
import re
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags.typesys import get_types_from_msg, get_typestore, Stores
import yaml

from . import bag_files, foxglove, images, video
from .bag_files import BagFile, chunked, packed, sqlite
from .bag_files.chunked import NS
from .files import read_small
from .images import ImageError
from .texts import one_line

# The message definitions that we need are the same in every ROS 2 distribution. A bag's own definitions are
# not used, so a bag without them, or with broken ones, can be read.
ROS1, ROS2 = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_HUMBLE)
# Definitions of images and video that ROS itself does not have; fields as in their packages.
STAMP = 'builtin_interfaces/Time timestamp\nstring frame_id\n'
FOREIGN = {
    'foxglove_msgs/msg/RawImage': STAMP + 'uint32 width\nuint32 height\nstring encoding\nuint32 step\n'
                                  'uint8[] data\n',
    'foxglove_msgs/msg/CompressedImage': STAMP + 'uint8[] data\nstring format\n',
    'foxglove_msgs/msg/CompressedVideo': STAMP + 'uint8[] data\nstring format\n',
    'ffmpeg_image_transport_msgs/msg/FFMPEGPacket':
        'std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n'
        'bool is_bigendian\nuint8[] data\n'}
for name, definition in FOREIGN.items():
    ROS2.register(get_types_from_msg(definition, name))
TYPES = ROS2.types
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
# What a message can be encoded in -> the types that hold images.
IMAGE_TYPES = {'cdr': (IMAGE, COMPRESSED, *FOREIGN), 'ros1': (IMAGE, COMPRESSED),
               'protobuf': foxglove.TYPES, 'json': foxglove.TYPES}
# A folder's files with these names are parts of a bag, whatever they hold.
SUFFIXES = ('.mcap', '.db3', '.zstd')
MAX_STAMP = (1 << 31) * NS - 1  # ns, in a message: its seconds are int32
MAX_METADATA = 1 << 24  # bytes of a metadata.yaml
NO_METADATA = 'no metadata.yaml, its files are read by name'
HARMLESS = (NO_METADATA, sqlite.JOURNAL)  # ends of notes that cost no message


class BagError(ValueError):
    """A bag or message that can't be read or written; the text says which, what was found and what to do."""


@dataclass(frozen=True)
class Topic:
    """A topic of a bag, its message type ('sensor_msgs/msg/Image') and its number of messages."""

    name: str
    type: str
    count: int
    encoding: str = 'cdr'

    @property
    def is_image(self) -> bool:
        """Whether its messages can be decoded to images."""
        return self.type in IMAGE_TYPES.get(self.encoding, ())

    @property
    def is_video(self) -> bool:
        """Whether its messages are packets of a video, by its type; a CompressedImage may be one too."""
        return self.is_image and self.type.endswith(('CompressedVideo', 'FFMPEGPacket'))

    def __str__(self) -> str:
        kind = self.type.replace('/msg/', '/').removeprefix('sensor_msgs/') or 'of no type'
        encoding = '' if self.encoding in ('cdr', 'ros1') else f' in {self.encoding}'
        return f'{self.name} ({kind}{encoding}, {self.count} messages)'


@dataclass(frozen=True)
class Recorded:
    """
    A message as the bag stores it. `time_ns`: when it was recorded.

    `encoding`: of `raw`, one of `IMAGE_TYPES`; 'ros1' is ROS 1's own.
    """

    topic: str
    type: str
    time_ns: int
    raw: bytes
    encoding: str = 'cdr'

    def read(self) -> Any:
        """
        Deserialize it; `BagError` where the bytes are not that type's.

        What holds an image or a packet of video in another type becomes an Image or CompressedImage.
        """
        try:
            if self.encoding in ('protobuf', 'json'):
                fields = foxglove.parse(self.type, self.encoding, self.raw)
                head = header(fields['stamp_ns'], fields['frame_id'])
                fields['data'] = np.frombuffer(fields['data'], np.uint8)
                return _image(head, SimpleNamespace(**fields))
            if self.encoding == 'ros1':
                return ROS1.deserialize_ros1(self.raw, self.type)
            msg: Any = ROS2.deserialize_cdr(self.raw, self.type)
            if self.type.startswith('foxglove_msgs/'):
                return _image(TYPES['std_msgs/msg/Header'](msg.timestamp, msg.frame_id), msg)
            if self.type in FOREIGN:
                return TYPES[COMPRESSED](msg.header, msg.encoding, msg.data)
            return msg
        except Exception as e:  # broken bytes raise all sorts of errors in there
            raise self._broken(e) from e

    def cdr(self) -> bytes:
        """Return the message as a ROS 2 publisher sends it; `BagError` as for `read`."""
        if self.encoding == 'cdr' and self.type not in FOREIGN:
            return self.raw
        try:
            if self.encoding == 'ros1':
                # With the definitions of ROS 2 this leaves out the sequence number of a ROS 1 header.
                return bytes(ROS2.ros1_to_cdr(self.raw, self.type))
            msg = self.read()
            return bytes(ROS2.serialize_cdr(msg, msg.__msgtype__))
        except Exception as e:  # broken bytes raise all sorts of errors in there
            raise self._broken(e) from e

    def stamp_ns(self) -> int:
        """Return the stamp of the message's header in ns, or `time_ns` where it is 0, that is, not set."""
        try:
            if self.encoding in ('protobuf', 'json'):
                return foxglove.parse(self.type, self.encoding, self.raw)['stamp_ns'] or self.time_ns
            if self.encoding == 'ros1':
                sec, nanosec = struct.unpack_from('<II', self.raw, 4)
            else:
                sec, nanosec = struct.unpack_from('<iI' if self.raw[1] & 1 else '>iI', self.raw, 4)
        except (struct.error, IndexError, ValueError, KeyError):
            return self.time_ns
        return sec * NS + nanosec or self.time_ns

    def _broken(self, e: Exception) -> BagError:
        return BagError(f'{self.topic}: a message of {len(self.raw)} bytes is no {self.type} ({e})')


@dataclass(frozen=True)
class Picture(Recorded):
    """A packet of video, which is read as an rgb8 Image. `load` decodes it, (H, W, 3) uint8 RGB."""

    load: Callable[[], np.ndarray] = lambda: np.zeros((0, 0, 3), np.uint8)

    def read(self) -> Any:
        head = super().read().header
        try:
            return image(self.load(), 'rgb8', head)
        except ImageError as e:
            raise BagError(f'{self.topic}: {e}') from e

    def cdr(self) -> bytes:
        return bytes(ROS2.serialize_cdr(self.read(), IMAGE))


class Bag:
    """
    A bag, open for reading: a folder or file of rosbag2 (sqlite3, mcap), or a ROS 1 `.bag`.

    Images may be in Foxglove's schemas too, and be packets of video. Files are recognised by what they hold,
    not by their names. What a recorder did not finish, what is damaged and what is missing is left out:
    `notes` says so, and gains notes while messages are read. `BagError` for what can't be read at all. Use
    it in a `with` statement.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.notes: list[str] = []
        self._files: list[tuple[str, BagFile]] = []
        self._videos: dict[str, bool] = {}
        self._fingerprint: tuple[int, ...] = ()
        self._stack = ExitStack()
        try:
            if self.path.is_dir():
                self._open_folder()
            else:
                self._open_file(self.path)
        except BaseException:
            self._stack.close()
            raise
        self._collect_notes()
        self.topics: dict[str, Topic] = {}
        for topic in (_topic(c) for _, f in self._files for c in f.channels.values()):
            known = self.topics.get(topic.name, topic)
            if (known.type, known.encoding) != (topic.type, topic.encoding):
                # One name, two kinds of messages: the images are what we are here for.
                topic = topic if topic.is_image and not known.is_image else known
            elif known is not topic:
                topic = Topic(topic.name, topic.type, known.count + topic.count, topic.encoding)
            self.topics[topic.name] = topic
        self._check_counts()

    def __enter__(self) -> 'Bag':
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def image_topic(self, wanted: str | None = None, exclude: Sequence[str] = (),
                    kind: str = 'image topic') -> Topic:
        """
        Find the image topic: `wanted`, or the bag's only one; `BagError` says which topics there are.

        Its type is what its messages are read as, Image or CompressedImage. `kind`: what an error calls it.
        """
        found = [t for t in self.topics.values() if t.is_image and t.name not in exclude]
        if wanted is not None:
            found = [t for t in found if t.name == wanted]
        elif not video.available():
            found = [t for t in found if not t.is_video] or found
        if wanted is None:
            # Depth is compressed under the same type. A topic without messages is no choice beside another.
            found = [t for t in found if not t.name.endswith('/compressedDepth')] or found
            found = [t for t in found if t.count] or found
        if len(found) == 1:
            is_video = self._is_video(found[0].name)
            if is_video and not video.available():
                raise BagError(f'{self.path} has no image topic that can be decoded here; it has {found[0]}, '
                               'which needs `pip install av`')
            as_type = COMPRESSED if found[0].type.endswith('CompressedImage') and not is_video else IMAGE
            return replace(found[0], type=as_type, encoding='cdr')
        known = [t for t in self.topics.values() if t.is_image]
        if found:
            raise BagError(f'{self.path} has several image topics: {_listed(found)}. Name one with '
                           '--image-topic')
        if known and wanted:
            other = f'it has {self.topics[wanted]}, and ' if wanted in self.topics else ''
            raise BagError(f'{self.path} has no {kind} {wanted}; {other}its image topics: '
                           + _listed(known))
        beside = f' beside {", ".join(exclude)}' if exclude else ''
        raise BagError(f'{self.path} has no {kind}{f" {wanted}" if wanted else ""}{beside}; it has '
                       + _listed(self.topics.values()))

    def messages(self, *topics: str, start_ns: int | None = None) -> Iterator[Recorded]:
        """
        Yield messages by recording time, from `start_ns` on; `BagError` where the bag breaks off.

        Packets of video are read as Images (`Recorded.read`): each before the next message is taken.
        """
        videos = [t for t in topics if self._is_video(t)]
        if not videos:
            yield from self._stored(*topics, start_ns=start_ns)
            return
        begin = start_ns
        if start_ns is not None:
            # Each video is decoded from its last key frame before that.
            keys = [_key_times(self.path, t, self._fingerprint) for t in videos]
            begin = min([start_ns, *(k[i - 1] for k in keys if (i := bisect_right(k, start_ns)))])
        yield from _pictures(self._stored(*topics, start_ns=begin), videos, start_ns)

    def _stored(self, *topics: str, start_ns: int | None = None) -> Iterator[Recorded]:
        found: Counter[str] = Counter()
        try:
            for _, file in self._files:
                wanted = {number: t for number, c in file.channels.items()
                          if (t := self.topics[c.topic]).name in topics
                          and (t.type, t.encoding) == (_topic(c).type, c.encoding)}
                for number, time_ns, data in file.messages(wanted, start_ns) if wanted else ():
                    topic, raw = wanted[number], bytes(data)
                    if raw.startswith(packed.ZSTD) and topic.encoding == 'cdr':
                        # Compressed one by one; CDR begins with a zero. What does not decompress is broken.
                        with suppress(packed.DamagedError):
                            raw = packed.decompressed(raw)
                    yield Recorded(topic.name, topic.type, time_ns, raw, topic.encoding)
                    found[topic.name] += 1
        except Exception as e:  # every storage format has its own errors
            raise BagError(f'{self.path} breaks off after {found.total()} messages: {_text(e)}') from e
        finally:
            self._collect_notes()
        if start_ns is None:
            for name in topics:
                if name in self.topics and found[name] != self.topics[name].count:
                    self._note(f'{self.path.name}: states {self.topics[name].count} messages on {name}; '
                               f'{found[name]} can be read')

    def _is_video(self, name: str) -> bool:
        """Whether a topic's messages are packets of video; a CompressedImage's format says so."""
        if name not in self._videos:
            topic = self.topics.get(name)
            self._videos[name] = topic is not None and topic.is_video
            if topic and topic.is_image and topic.type.endswith('CompressedImage'):
                with suppress(BagError):
                    self._videos[name] = any(video.codec(m.read()) for m in islice(self._stored(name), 1))
        return self._videos[name]

    def _open_file(self, path: Path) -> None:
        try:
            found = path.stat()
            self._fingerprint += (found.st_size, found.st_mtime_ns)
            if not found.st_size:
                raise packed.DamagedError('it is empty')
            with open(path, 'rb') as f:
                start = f.read(16)
            if start.startswith(packed.ZSTD):
                folder, note = packed.decompressed_copy(path, found.st_size, found.st_mtime_ns)
                self._stack.callback(lambda: folder)  # keeps the folder as long as this bag is open
                if note:
                    self._note(f'{path.name}: {note}')
                path = Path(folder.name) / path.stem
            kind = bag_files.kind(path)
            if not kind:
                raise packed.DamagedError(f'it starts with {start!r}; expected an mcap, sqlite3 (.db3) or '
                                             'ROS 1 (.bag, version 2.0) file')
            file = kind(path)
        except Exception as e:  # broken files raise all sorts of errors
            raise BagError(f'{path} does not open as a bag: {one_line(_text(e))}') from e
        self._stack.callback(file.close)
        for number, c in list(file.channels.items()):
            if not all(isinstance(t, str) and t.isprintable() for t in (c.topic, c.type, c.encoding)):
                del file.channels[number]
                self._note(f'{path.name}: a topic whose name or type is no printable text is left out')
        self._files.append((path.name, file))

    def _open_folder(self) -> None:
        """Open the files that metadata.yaml names and, where some of these are missing, all others."""
        parts = {p.name.removesuffix('.zstd'): p for p in sorted(self.path.iterdir(), key=_by_number)
                 if p.is_file() and not p.name.startswith('.') and _is_part(p)}
        listed = self._metadata()
        if not parts:
            raise BagError(f'{self.path} is not a bag: expected '
                           + (f'the files that its metadata.yaml names ({", ".join(listed)})' if listed else
                              'metadata.yaml, .mcap or .db3 files in it'))
        missing = [n for n in listed if n.removesuffix('.zstd') not in parts]
        others = [n for n in parts if n not in [m.removesuffix('.zstd') for m in listed]]
        chosen = list(parts)
        if listed and not missing:
            chosen = [n.removesuffix('.zstd') for n in listed]
            if others:
                self._note(f'{self.path.name}: {", ".join(others)} left out, metadata.yaml does not name it')
        elif missing:
            self._note(f'{self.path.name}: metadata.yaml names {", ".join(missing)}, which is not there'
                       + (f'; {", ".join(others)} is read instead' if others else ''))
        for name in chosen:
            try:
                self._open_file(parts[name])
            except BagError as e:
                if len(chosen) == 1:
                    raise
                self._note(str(e))
        if not self._files:
            raise BagError(f'{self.path} does not open as a bag: {self.notes[-1]}')

    def _metadata(self) -> list[str]:
        """Read metadata.yaml: keep the counts of messages; return the names of the files."""
        self._stated: dict[str, int] = {}
        path = self.path / 'metadata.yaml'
        if not path.is_file():
            self._note(f'{self.path.name}: {NO_METADATA}')
            return []
        try:
            text = read_small(path, MAX_METADATA).decode()
            metadata = yaml.safe_load(text)['rosbag2_bagfile_information']
            listed = [Path(name).name for name in metadata['relative_file_paths']]
            self._stated = {t['topic_metadata']['name']: int(t['message_count'])
                            for t in metadata['topics_with_message_count']}
            if not all(isinstance(name, str) and name.isprintable() for name in (*listed, *self._stated)):
                raise ValueError('names that are no printable texts')
        except Exception as e:  # broken files raise all sorts of errors
            self._stated = {}
            self._note(f'{self.path.name}: its metadata.yaml is empty or broken and not used '
                       f'({type(e).__name__}), its files are read by name')
            return []
        compression = metadata.get('compression_format') or 'zstd'
        if metadata.get('compression_mode') and compression != 'zstd':
            shown = one_line(compression, 80) if isinstance(compression, str) else type(compression).__name__
            self._note(f'{self.path.name}: compressed with {shown}; only zstd can be decompressed')
        return listed

    def _check_counts(self) -> None:
        """Compare what metadata.yaml counts with what its files state."""
        if not self.path.is_dir():
            return
        found = Counter({t.name: t.count for t in self.topics.values()})
        wrong = [f'{n} messages on {name}; its files hold {found[name]}'
                 for name, n in self._stated.items() if n != found[name]]
        if wrong:
            self._note(f'{self.path.name}: metadata.yaml counts {", and ".join(wrong)}')

    def _collect_notes(self) -> None:
        for name, file in self._files:
            for note in file.notes:
                self._note(f'{name}: {note}')

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _pictures(messages: Iterator[Recorded], videos: Sequence[str],
              start_ns: int | None) -> Iterator[Recorded]:
    """Yield messages from `start_ns` on, those of videos as pictures; the ones before are only decoded."""
    if not videos:
        yield from (m for m in messages if start_ns is None or m.time_ns >= start_ns)
        return
    name, *others = videos

    def packet(message: Recorded) -> Any:
        if message.topic != name:
            return None
        try:
            return message.read()
        except BagError as e:
            return ImageError(str(e))

    stream = video.Stream(_pictures(messages, others, None), packet)
    for message, number in stream:
        if start_ns is not None and message.time_ns < start_ns:
            continue
        yield message if number is None else Picture(
            message.topic, message.type, message.time_ns, message.raw, message.encoding,
            partial(stream.picture, number))


@lru_cache(maxsize=8)
def _key_times(path: Path, topic: str, fingerprint: tuple[int, ...]) -> list[int]:
    """When a video's key frames were recorded, in ns, ascending. `fingerprint`: of the files as they are."""
    times = []
    with Bag(path) as bag, suppress(BagError):
        for message in bag._stored(topic):
            with suppress(BagError):
                msg = message.read()
                if (name := video.codec(msg)) and video.is_key(bytes(msg.data), name):
                    times.append(message.time_ns)
    return sorted(times)


def _image(head: Any, msg: Any) -> Any:
    """Make the message of sensor_msgs from one of Foxglove's."""
    if hasattr(msg, 'format'):
        return TYPES[COMPRESSED](head, msg.format, msg.data)
    return TYPES[IMAGE](head, msg.height, msg.width, msg.encoding, 0, msg.step, msg.data)


def _topic(channel: chunked.Channel) -> Topic:
    kind = channel.type
    if channel.encoding in ('cdr', 'ros1') and kind.count('/') == 1:
        kind = kind.replace('/', '/msg/')  # as ROS 1 and some recorders write it
    return Topic(channel.topic, kind, channel.count, channel.encoding)


def _listed(topics: Iterable[Topic]) -> str:
    texts = [str(t) for t in topics]
    return ', '.join(texts[:10]) + (f' and {len(texts) - 10} more' if len(texts) > 10 else '') or 'no topic'


def _is_part(path: Path) -> bool:
    """Whether a file in a folder is a part of a bag of ROS 2."""
    return path.suffix in SUFFIXES or bag_files.kind(path) in (bag_files.McapFile, bag_files.SqliteFile)


def header(stamp_ns: int, frame_id: str = '') -> Any:
    """
    Make a std_msgs/Header.

    A stamp that it can't hold becomes the nearest one: ROS 1 has later ones, and names of files any.
    """
    stamp_ns = min(max(stamp_ns, -MAX_STAMP), MAX_STAMP)
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


def digest(path: str | Path, *, names: bool = False) -> str:
    """SHA-256 of a bag's file, or of its folder's files by name, hexadecimal. `names`: of these too."""
    path = Path(path)
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]:
        if names:
            total.update(os.fsencode(file.name) + b'\0')
        with open(file, 'rb') as f:
            while block := f.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _text(e: Exception) -> str:
    return str(e) or type(e).__name__


def _by_number(path: Path) -> tuple:
    """Return a sort key that puts bag_10.mcap after bag_9.mcap."""
    return tuple(int(t) if t.isdecimal() else t for t in re.split(r'(\d+)', path.name))
