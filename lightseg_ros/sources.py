# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sources of frames for a camera, without ROS: folder, video, device, bag, or the synthetic street."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from . import bags, images, labels, pictures
from .bags import BagError
from .images import ImageError
from .labels import LabelError
from .pictures import PictureError
from .synthetic.street import Street

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
BAG_SUFFIXES = ('.mcap', '.db3', '.bag', '.active', '.zstd')
STREET_SIZE, STREET_RATE = (640, 480), 15.0
FOLDER_RATE = 10.0
Warn = Callable[[str], object]


class SourceError(ValueError):
    """A source that gives no frames; the text says what was found and what was expected."""


@dataclass(frozen=True)
class Calibration:
    """What a CameraInfo message holds: k and r (3, 3), p (3, 4), d the coefficients of `model`."""

    k: np.ndarray
    r: np.ndarray
    p: np.ndarray
    d: tuple[float, ...]
    model: str

    def scaled(self, x: float, y: float) -> 'Calibration':
        """Return the calibration of the image resized by x across and y down, pixel centres kept."""
        resize = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        return replace(self, k=resize @ self.k, p=resize @ self.p)


@dataclass(frozen=True)
class SourceFrame:
    """
    A frame: rgb (H, W, 3) uint8.

    `stamp_ns`: when it was taken, for what was recorded in time. `truth`: (H, W) uint8, CamVid class ids, 255
    void, where it is known. `calibration`: where it is known. `depth`: (H, W) float32 metres, 0 where nothing
    is, where it is known and was asked for.
    """

    rgb: np.ndarray
    stamp_ns: int | None = None
    truth: np.ndarray | None = None
    calibration: Calibration | None = None
    depth: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """
    Frames, and their pace.

    `frames()`: a new iterator over all frames, from the first one. `rate`: frames per second to publish them
    at; 0 means at the pace of their stamps, or as they come for a `live` source.
    """

    description: str
    frames: Callable[[], Iterator[SourceFrame]]
    rate: float = 0.0
    live: bool = False


def open_source(name: str, *, topic: str = '', rate: float = 0.0, width: int = 0, height: int = 0,
                seed: int = 0, depth: bool = False, warn: Warn = log.warning) -> Source:
    """
    Open a source by its name; `SourceError` if it gives no frames.

    name: 'synthetic'; a folder of images (with CamVid's labels from the folder of the same name and 'annot',
    if it lies beside it); an image; a video; a bag, with `topic` where it has several image topics;
    '/dev/video0' or its number. `rate`: frames per second; 0 means the source's own, 10 for a folder, 15 for
    the street. `width`, `height`: the size of the frames; 0 means their own, or, if the other one is given,
    what keeps the aspect ratio. `seed`: of the street. `depth`: with depth, which only the street has. `warn`
    is called with a text for each frame that is left out.
    """
    if not name:
        raise SourceError("no source; expected 'synthetic', a folder of images, a video, a bag or a device")
    path = Path(name).expanduser()
    if name == 'synthetic':
        return _street(rate or STREET_RATE, width, height, seed, depth)
    if depth:
        raise SourceError(f"source {name!r} has no depth; only 'synthetic' has")
    if name.isdecimal() or name.startswith('/dev/'):
        source = _device(name, rate, width, height)
    elif not path.exists():
        raise SourceError(f"no source {name!r}: no such file or folder; expected 'synthetic', a folder of "
                          'images, a video, a bag, or a device such as /dev/video0')
    elif _is_bag(path):
        source = _bag(path, topic, rate, warn)
    elif path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        source = _folder(path, rate, warn)
    else:
        source = _video(path, rate)
    if not (width or height):
        return source
    return replace(source, frames=lambda: (_resized(f, width, height) for f in source.frames()))


def _street(rate: float, width: int, height: int, seed: int, depth: bool) -> Source:
    own_width, own_height = STREET_SIZE
    if not (width or height):
        width, height = STREET_SIZE
    width, height = width or height * own_width // own_height, height or width * own_height // own_width
    try:
        street = Street(width, height, seed, with_depth=depth)
    except ValueError as e:
        raise SourceError(str(e)) from e
    calibration = Calibration(street.matrix, np.eye(3), np.hstack([street.matrix, np.zeros((3, 1))]),
                              (0.0,) * 5, 'plumb_bob')

    def frames() -> Iterator[SourceFrame]:
        index = 0
        while True:
            rgb, ids = street.render(index / rate)
            yield SourceFrame(rgb, round(index * 1e9 / rate), ids, calibration, street.depth)
            index += 1

    return Source(f'synthetic street {width}x{height}, seed {seed}', frames, rate)


def _folder(path: Path, rate: float, warn: Warn) -> Source:
    files = [path] if path.is_file() else sorted(
        p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        found = ', '.join(sorted(p.name for p in path.iterdir())[:5]) or 'nothing'
        raise SourceError(f'no images in {path}, which holds {found}; expected {", ".join(IMAGE_SUFFIXES)}')
    folder = files[0].parent.resolve()
    annotations = folder.with_name(folder.name + 'annot')
    label_files = {p.stem: p for p in annotations.iterdir()} if annotations.is_dir() else {}
    camvid = labels.load('camvid')

    def truth(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        label_file = label_files.get(file.stem)
        if label_file is None:
            return None
        try:
            ids = pictures.read_labels(label_file)
        except PictureError as e:
            warn(f'{e}; shown without ground truth')
            return None
        if ids.shape != shape:
            warn(f'{label_file} is {ids.shape}; expected {shape}: shown without ground truth')
            return None
        try:
            return camvid.from_source(ids)
        except LabelError as e:
            warn(f'{label_file}: {e}; shown without ground truth')
            return None

    def frames() -> Iterator[SourceFrame]:
        skipped = 0
        for file in files:
            try:
                rgb = pictures.read(file)
            except PictureError as e:
                skipped += 1
                warn(f'{e}: left out ({skipped} of {len(files)} so far)')
                continue
            yield SourceFrame(rgb, truth=truth(file, rgb.shape[:2]))
        if skipped == len(files):
            raise SourceError(f'none of the {skipped} images in {folder} is readable, {files[0].name} the '
                              'first')

    known = sum(f.stem in label_files for f in files)
    return Source(f'{len(files)} images in {folder}' + (f', {known} with ground truth' if known else ''),
                  frames, rate or FOLDER_RATE)


def _video(path: Path, rate: float) -> Source:
    def start() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise SourceError(
                f'{path} ({path.stat().st_size} bytes) does not open as a video; expected a folder of '
                f'images, an image ({", ".join(IMAGE_SUFFIXES)}), a video that OpenCV reads, or a bag '
                f'({", ".join(BAG_SUFFIXES)}, or a folder with metadata.yaml)')
        return capture

    capture = start()
    own_rate = capture.get(cv2.CAP_PROP_FPS)
    if not 1 <= own_rate <= 240:  # some containers claim none, or thousands
        own_rate = 25.0
    ok = capture.grab()
    capture.release()
    if not ok:
        raise SourceError(f'{path} holds no frame that can be read')

    def frames() -> Iterator[SourceFrame]:
        capture = start()
        index = 0
        while (read := capture.read())[0]:
            yield SourceFrame(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), round(index * 1e9 / own_rate))
            index += 1
        capture.release()

    return Source(f'video {path}, {own_rate:.4g} frames a second', frames, rate or own_rate)


def _device(name: str, rate: float, width: int, height: int) -> Source:
    device = int(name) if name.isdecimal() else name
    capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        found = ', '.join(sorted(str(p) for p in Path('/dev').glob('video*'))) or 'none'
        raise SourceError(f'device {name} does not open as a camera; devices here: {found}. Is it in use, or '
                          "may this user not read it (group 'video')?")
    for key, value in ((cv2.CAP_PROP_FRAME_WIDTH, width), (cv2.CAP_PROP_FRAME_HEIGHT, height),
                       (cv2.CAP_PROP_FPS, rate), (cv2.CAP_PROP_BUFFERSIZE, 1)):
        if value:
            capture.set(key, value)

    def frames() -> Iterator[SourceFrame]:
        while (read := capture.read())[0]:
            yield SourceFrame(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
        raise SourceError(f'device {name} gives no more frames: unplugged?')

    return Source(f'device {name}', frames, rate, live=True)


def _is_bag(path: Path) -> bool:
    if path.is_dir():
        return any(p.name == 'metadata.yaml' or p.suffix in bags.SUFFIXES for p in path.iterdir())
    return path.suffix.lower() in BAG_SUFFIXES


def _bag(path: Path, topic: str, rate: float, warn: Warn) -> Source:
    try:
        with bags.Bag(path) as bag:
            found = bag.image_topic(topic or None)
    except BagError as e:
        text = str(e).replace(
            'Name one with --image-topic', 'Name one: parameter topic of the camera node, camera_topic of '
            'the launch file, --image-topic of lightseg demo')
        raise SourceError(text) from e
    if not found.count:
        raise SourceError(f'{path}: topic {found.name} has no messages')
    info_topic = found.name.removesuffix('/compressed').rsplit('/', 1)[0] + '/camera_info'

    def frames() -> Iterator[SourceFrame]:
        calibration, skipped, shown = None, 0, 0
        try:
            with bags.Bag(path) as bag:
                for recorded in bag.messages(found.name, info_topic):
                    try:
                        msg = recorded.read()
                        if recorded.topic == info_topic:
                            try:
                                calibration = _calibration(msg)
                            except (AttributeError, TypeError, ValueError, IndexError) as e:
                                warn(f'{path}: {info_topic} is left out, it holds no CameraInfo: {e}')
                            continue
                        rgb = np.ascontiguousarray(images.decode(msg))
                    except (BagError, ImageError) as e:
                        skipped += 1
                        warn(f'{path}: a message is left out ({skipped} so far): {e}')
                        continue
                    shown += 1
                    yield SourceFrame(rgb, recorded.time_ns, calibration=calibration)
        except BagError as e:
            if not shown:
                raise SourceError(str(e)) from e
            warn(str(e))
        if not shown:
            raise SourceError(f'{path}: none of the {skipped} messages on {found.name} could be decoded')

    return Source(f'bag {path}, topic {found.name}, {found.count} messages', frames, rate)


def _calibration(info: Any) -> Calibration | None:
    """Read a CameraInfo of ROS 2, or ROS 1 (capitals); None where the camera is not calibrated (k is 0)."""
    k, d, r, p = (getattr(info, n) if hasattr(info, n) else getattr(info, n.upper()) for n in 'kdrp')
    if not k[0]:
        return None
    return Calibration(np.array(k).reshape(3, 3), np.array(r).reshape(3, 3), np.array(p).reshape(3, 4),
                       tuple(map(float, d)), info.distortion_model)


def _resized(frame: SourceFrame, width: int, height: int) -> SourceFrame:
    own_height, own_width = frame.rgb.shape[:2]
    size = (width or max(round(height * own_width / own_height), 1),
            height or max(round(width * own_height / own_width), 1))
    if size == (own_width, own_height):
        return frame
    x, y = size[0] / own_width, size[1] / own_height
    return SourceFrame(
        cv2.resize(frame.rgb, size, interpolation=cv2.INTER_AREA if x * y < 1 else cv2.INTER_LINEAR),
        frame.stamp_ns,
        None if frame.truth is None else cv2.resize(frame.truth, size, interpolation=cv2.INTER_NEAREST_EXACT),
        frame.calibration and frame.calibration.scaled(x, y))
