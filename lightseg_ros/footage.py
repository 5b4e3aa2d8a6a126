# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Image folders and video files as recordings: they are read by the calls of `bags.Bag`."""
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from . import bags, image_folders, pictures
from .bags import Bag, BagError, NS, Recorded, Topic
from .pictures import PictureError

IMAGE = 'sensor_msgs/msg/Image'
TOPIC = '/camera/image_raw'
# Containers, as FFmpeg calls them, that find a key frame exactly; in a transport stream it guesses.
INDEXED = ('mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm')
AS_STORED = ('its frames are used as they are stored; to give the network true proportions: ffmpeg -i VIDEO '
             '-vf scale=iw*sar:ih,setsar=1 NEW_VIDEO')
VIDEO_SUFFIXES = ('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.ts', '.wmv')


@dataclass(frozen=True)
class Frame(Recorded):
    """A frame of a folder or video; `load` gives its pixels, (H, W, 3) uint8 RGB or (H, W) uint16."""

    load: Callable[[], np.ndarray] = lambda: np.zeros((0, 0, 3), np.uint8)

    def read(self) -> Any:
        """Return it as an Image; `BagError` where it does not decode."""
        pixels = self.load()
        return bags.image(pixels, 'rgb8' if pixels.ndim == 3 else 'mono16', bags.header(self.time_ns))

    def cdr(self) -> bytes:
        return bytes(bags.ROS2.serialize_cdr(self.read(), IMAGE))

    def stamp_ns(self) -> int:
        return self.time_ns

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8, that `read` has undone."""
        return self.load.orientation if isinstance(self.load, _Picture) else 1


class Footage:
    """
    A recording without topics: its frames stand for whichever image topic is asked for.

    `times`: stamps of the frames in ns, ascending. A frame's stamp is when it was recorded.
    """

    path: Path
    times: list[int]

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __enter__(self) -> 'Footage':
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def topics(self) -> dict[str, Topic]:
        return {TOPIC: self.image_topic()}

    def image_topic(self, wanted: str | None = None, exclude: Sequence[str] = ()) -> Topic:
        """Return the frames as a topic of the name that is wanted."""
        return Topic(wanted or TOPIC, IMAGE, len(self.times))

    def messages(self, *topics: str, start_ns: int | None = None) -> Iterator[Frame]:
        """Yield the frames in order, from `start_ns` on, for the first of the topics."""
        first = 0 if start_ns is None else bisect_left(self.times, start_ns)
        for number, load in self._frames(first):
            yield Frame(topics[0], IMAGE, self.times[number], b'', load=load)

    def _frames(self, first: int) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        raise NotImplementedError


class Folder(Footage):
    """A folder of image files; their stamps come from their names, see `image_folders.folder_stamps`."""

    def __init__(self, path: Path, rate: float):
        super().__init__()
        files = image_folders.image_files(path)
        pairs = sorted(zip(image_folders.folder_stamps(files, rate), files))
        self.path, self.times, self.files = path, [t for t, _ in pairs], [f for _, f in pairs]

    def _frames(self, first: int) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        for number in range(first, len(self.files)):
            yield number, _Picture(self.files[number])


class Video(Footage):
    """
    A video file, decoded by PyAV. Frame n is stamped 1 s + its time in the video, as `folder_stamps` does it.

    `BagError` if it does not open, or holds no video, or PyAV is not installed.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        try:
            import av
        except ImportError as e:
            raise BagError(f'{path}: videos are read by PyAV, which is not installed: pip install av') from e
        self._av = av
        with self._open() as container:
            stream = self._stream(container)
            stamps = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
            if not stamps:
                raise BagError(f'{path} holds no frame')
            base, rate = stream.time_base, stream.average_rate or stream.guessed_rate or 25
            # Some containers, such as AVI, have no stamps; then the frames follow each other.
            self._pts = None if None in stamps or len(set(stamps)) < len(stamps) else sorted(stamps)
            self.times = [NS + round((p - self._pts[0]) * base * NS) for p in self._pts] if self._pts else [
                NS + round(i * NS / rate) for i in range(len(stamps))]
            aspect = Fraction(stream.sample_aspect_ratio or 1)
            if aspect != 1:
                width, height = stream.width, stream.height
                self.notes.append(f'{path.name}: its pixels are not square, and players show its {width}x'
                                  f'{height} as {round(width * aspect)}x{height}; {AS_STORED}')

    def _open(self) -> Any:
        try:
            return self._av.open(str(self.path))
        except (self._av.error.FFmpegError, OSError) as e:
            raise BagError(f'{self.path} does not open as a video: {e.strerror or e}') from e

    def _stream(self, container: Any) -> Any:
        if not container.streams.video:
            raise BagError(f'{self.path} holds no video')
        stream = container.streams.video[0]
        # What is damaged is not to be repaired in silence.
        stream.codec_context.options = {'err_detect': 'explode'}
        return stream

    def _frames(self, first: int) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        """Decode from the key frame before frame `first`; a frame that does not come out is a broken one."""
        with self._open() as container:
            stream = self._stream(container)
            if self._pts and first and container.format.name in INDEXED:
                container.seek(self._pts[first], stream=stream)
            place = {pts: i for i, pts in enumerate(self._pts or ())}
            number = first
            for count, (frame, whole) in enumerate(self._decoded(container, stream)):
                at = place.get(frame.pts, -1) if place else count
                for missing in range(number, at):
                    yield missing, self._broken(missing)
                if at >= number:
                    yield at, _pixels(frame) if whole else self._broken(at)
                    number = at + 1
            for missing in range(number, len(self.times)):
                yield missing, self._broken(missing)

    def _decoded(self, container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
        """Yield frames, and whether each is whole: after damage none is, up to the next key frame."""
        lost = False
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except self._av.error.InvalidDataError:
                lost = True  # its frame will be missing, and FFmpeg paints over those that refer to it
                continue
            for frame in frames:
                lost = lost and not frame.key_frame
                yield frame, not (lost or frame.is_corrupt)

    def _broken(self, number: int) -> Callable[[], np.ndarray]:
        def fail() -> np.ndarray:
            raise BagError(f'frame {number} of the video does not decode: damaged data')
        return fail


def open_recording(path: str | Path, rate: float = 30.0) -> 'Bag | Footage':
    """
    Open a bag, an image folder or a video; use it in a `with` statement. `BagError` if it is none of them.

    `rate`: Hz, of folders whose files are named by frame numbers.
    """
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        return Video(path)
    if path.is_dir() and not any(p.name == 'metadata.yaml' or p.suffix in bags.SUFFIXES
                                 for p in path.iterdir()):
        try:
            return Folder(path, rate)
        except BagError as e:
            raise BagError(f'{path} is neither a bag nor a folder of images: {e}') from e
    return Bag(path)


@dataclass
class _Picture:
    """Loads a picture file, upright; `orientation`: what its EXIF data said then."""

    file: Path
    orientation: int = 1

    def __call__(self) -> np.ndarray:
        try:
            data = self.file.read_bytes()
            pixels = np.ascontiguousarray(pictures.decode(data, upright=True))
        except (OSError, PictureError) as e:
            raise BagError(f'{self.file.name} is not a readable image: {e}') from e
        self.orientation = pictures.orientation(data)
        return pixels


def _pixels(frame: Any) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        rgb = frame.to_ndarray(format='rgb24')
        # Phones film on their side and say so.
        turns = round(getattr(frame, 'rotation', 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
    return load
