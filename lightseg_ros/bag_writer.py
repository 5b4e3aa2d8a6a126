# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write bags of ROS 2 without ROS, and make them of folders of images."""
from collections.abc import Callable
from contextlib import suppress
import os
from pathlib import Path
import shutil
from typing import Any

import cv2
import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.rosbag2.enums import CompressionFormat

from . import bags, image_folders, pictures
from .bags import BagError, MAX_STAMP, ROS2
from .files import folder_beside, make_folder, remove_empty
from .labels import LabelSet
from .pictures import PictureError


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
        self._made = make_folder(self.path.parent)
        self._folder = folder_beside(self.path)
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
            if kind is not None:
                remove_empty(self._made)

    def write(self, topic: str, msg: Any, time_ns: int) -> None:
        """Add a message made from `TYPES`."""
        self.write_raw(topic, msg.__msgtype__, bytes(ROS2.serialize_cdr(msg, msg.__msgtype__)), time_ns)

    def write_raw(self, topic: str, msgtype: str, cdr: bytes, time_ns: int) -> None:
        """Add a serialized message of a type in `TYPES`."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, msgtype, typestore=ROS2)
        self._writer.write(self._connections[topic], time_ns, cdr)


def from_folder(frames: Path, out: Path, *, truth: Path | None = None, labels: LabelSet | None = None,
                rate: float = 30.0, image_topic: str = '/camera/image_raw',
                label_topic: str = '/camera/label', encoding: str = 'rgb8', storage: str = 'mcap',
                frame_id: str = 'camera', notes: list[str] | None = None) -> int:
    """
    Make a bag from a data set's folder, with image, camera_info and, with `truth`, label topics.

    Returns the number of frames written.

    `truth` holds label images of the same stems in the data set's own ids; they become class ids of `labels`
    with its `ignore_id` as void, mono8. A frame without a label image is written alone. `encoding`: rgb8,
    bgr8, mono8, or 'png' or 'jpeg' for a CompressedImage on IMAGE_TOPIC/compressed. Stamps: `folder_stamps`.
    `notes` gets what a user should look at. `BagError` names a file that is not an image, or a label image of
    another size than its image, `LabelError` ids that are not in the label set.
    """
    paths = image_folders.image_files(frames)
    partners = {p.stem: p for p in image_folders.image_files(truth)} if truth else {}
    if partners and labels is None:
        raise BagError(f'label images in {truth} without a label set: name one with --labels')
    if truth and not any(p.stem in partners for p in paths):
        raise BagError(f'no label image in {truth} has the name of an image in {frames}')
    if encoding in ('png', 'jpeg'):
        image_topic = f'{image_topic}/compressed'
    info_topic = image_topic.removesuffix('/compressed').rsplit('/', 1)[0] + '/camera_info'
    stamped = sorted(zip(image_folders.folder_stamps(paths, rate), paths))
    if stamped[-1][0] > MAX_STAMP:
        raise BagError(f'{stamped[-1][1]} has a number in its name that is no stamp in ns, and too large '
                       'for a frame number at this rate; rename the files')
    turned = 0
    with Writer(out, storage) as writer:
        for stamp, path in stamped:
            rgb = _read(pictures.read, path)
            head = bags.header(stamp, frame_id)
            height, width = rgb.shape[:2]
            pixels = rgb[..., ::-1] if encoding == 'bgr8' else cv2.cvtColor(
                rgb, cv2.COLOR_RGB2GRAY) if encoding == 'mono8' else rgb
            writer.write(image_topic, bags.image(pixels, encoding, head), stamp)
            writer.write(info_topic, bags.camera_info(height, width, head), stamp)
            if path.stem in partners and labels is not None:
                ids = labels.from_source(_read(pictures.read_labels, partners[path.stem]))
                if ids.shape != (height, width):
                    raise BagError(pictures.other_size(path, partners[path.stem], (height, width), ids.shape))
                turned += pictures.keeps_size(pictures.orientation_of(path), height, width)
                writer.write(label_topic, bags.image(ids, 'mono8', head), stamp)
    if turned and notes is not None:
        notes.append(f'{turned} images were turned upright, as their EXIF orientation asks, and their labels '
                     'are taken to be drawn on them upright; "lightseg data import" turns labels that were '
                     'drawn on images as they are stored')
    return len(paths)


def _read(reader: Callable[[Path], np.ndarray], path: Path) -> np.ndarray:
    try:
        return reader(path)
    except PictureError as e:
        raise BagError(str(e)) from e
