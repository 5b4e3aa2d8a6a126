# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Which part of a camera's image the network sees, and which way up; the way back for all that it finds.

The network sees the region of interest, turned upright. Labels, confidence and overlay come back at the size
and orientation of the camera's image: whoever has its camera_info can use them.
"""
from dataclasses import dataclass
from pathlib import Path
import re

import cv2
import numpy as np

from . import pictures
from .files import read_small
from .pictures import PictureError

MAX_FILE = 1 << 26  # bytes of a mask
VOID = 255  # the label of a pixel that nothing is said about
ROTATIONS = (0, 90, 180, 270)
TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


class FramingError(ValueError):
    """A rotation, region or mask that is invalid or does not fit the image; the text says what fits."""


@dataclass(frozen=True)
class Region:
    """A rectangle in an image: its left upper corner and its size in pixels."""

    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        return f'{self.width}x{self.height}+{self.x}+{self.y}'


def parse_region(text: str) -> Region | None:
    """Parse 'WIDTHxHEIGHT+X+Y' in pixels, or '' for the whole image; `FramingError` for anything else."""
    if not text.strip():
        return None
    match = re.fullmatch(r'([0-9]{1,5})[xX]([0-9]{1,5})\+([0-9]{1,5})\+([0-9]{1,5})', text.strip())
    if not match or not (int(match[1]) and int(match[2])):
        raise FramingError(f"roi is {text!r}; expected WIDTHxHEIGHT+X+Y in pixels, for example "
                           "'1280x420+0+300'")
    width, height, x, y = map(int, match.groups())
    return Region(x, y, width, height)


def parse_rotation(text: str) -> int:
    """Parse 0, 90, 180 or 270; `FramingError` for anything else."""
    if text.strip() not in map(str, ROTATIONS):
        raise FramingError(f'rotation is {text!r}; expected one of {", ".join(map(str, ROTATIONS))}')
    return int(text)


class Framing:
    """
    The view of one camera.

    `rotation`: degrees by which the image is turned clockwise so that it is upright. `region`: the part that
    the network sees; None for all. `mask`: path of a picture of the camera image's shape that is white where
    labels are wanted and black where not; '' for none. `FramingError` if it cannot be read.
    """

    def __init__(self, rotation: int = 0, region: Region | None = None, mask: str = ''):
        self._rotation, self._region = rotation, region
        self._mask_path = mask
        self._mask: np.ndarray | None = None  # (H, W) uint8: 255 where no label is wanted
        self._scaled: np.ndarray | None = None  # the same at the size of the last image
        if mask:
            try:
                picture = pictures.decode(read_small(Path(mask).expanduser(), MAX_FILE), upright=True)
            except OSError as e:
                raise FramingError(f'mask {mask!r} cannot be read: {e.strerror or e}') from e
            except PictureError as e:
                raise FramingError(f'mask {mask!r} is no picture: {e}') from e
            white = picture >= 32768 if picture.ndim == 2 else picture.max(2) >= 128  # 16 or 8 bits
            self._mask = np.where(white, 0, VOID).astype(np.uint8)

    @property
    def changes_labels(self) -> bool:
        """Return whether some pixels get no label because of the region or the mask."""
        return self._region is not None or self._mask is not None

    @property
    def view(self) -> tuple[int, Region | None]:
        """What part of the image the network sees, and which way up; equal for equal views."""
        return self._rotation, self._region

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of what the network sees of an image of this height and width."""
        if self._region:
            height, width = self._region.height, self._region.width
        return (width, height) if self._rotation in (90, 270) else (height, width)

    def check(self, height: int, width: int) -> None:
        """Raise a `FramingError` if region or mask do not fit images of this height and width."""
        if (r := self._region) and (r.x + r.width > width or r.y + r.height > height):
            raise FramingError(f'roi {r} is not within the image of {width}x{height}')
        if self._mask is not None:
            h, w = self._mask.shape
            if abs(width * h / (height * w) - 1) > 0.02:
                raise FramingError(f'mask {self._mask_path!r} has {w}x{h} pixels, the image '
                                   f'{width}x{height}; expected the same aspect ratio')

    def seen(self, frame: np.ndarray) -> np.ndarray:
        """
        Return what the network sees of a frame, (H, W, 3) uint8: a view if the frame need not be turned.

        `FramingError` if region or mask do not fit the frame.
        """
        self.check(*frame.shape[:2])
        if r := self._region:
            frame = frame[r.y:r.y + r.height, r.x:r.x + r.width]
        return _turned(frame, self._rotation)

    def labels(self, labels: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return labels of what was seen, (h, w) uint8, for the whole image: 255 where nothing was seen."""
        out = self._back(labels, np.full((height, width), VOID, np.uint8) if self._region else None)
        void = self._void(height, width)
        return out if void is None else cv2.bitwise_or(out, void)

    def confidence(self, confidence: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return confidence of what was seen, (h, w) uint8, for the whole image: 0 where nothing was seen."""
        out = self._back(confidence, np.zeros((height, width), np.uint8) if self._region else None)
        void = self._void(height, width)
        return out if void is None else cv2.bitwise_and(out, cv2.bitwise_not(void))

    def overlay(self, overlay: np.ndarray, frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """
        Return the overlay of what was seen, (h, w, 3) uint8 RGB, for the whole frame, (H, W, 3) uint8 RGB.

        The frame shows through where `labels`, (H, W) uint8, are 255.
        """
        rgb = _contiguous(frame)
        out = self._back(overlay, rgb.copy() if self._region else None)
        return cv2.copyTo(rgb, cv2.threshold(labels, VOID - 1, 255, cv2.THRESH_BINARY)[1], out)

    def turned_back(self, image: np.ndarray) -> np.ndarray:
        """Return an image of the whole frame that has no region or mask, in the camera's orientation."""
        return self._back(image, None)

    def _back(self, image: np.ndarray, whole: np.ndarray | None) -> np.ndarray:
        image = _turned(image, -self._rotation % 360)
        if whole is None or not (r := self._region):
            return image
        whole[r.y:r.y + r.height, r.x:r.x + r.width] = image
        return whole

    def _void(self, height: int, width: int) -> np.ndarray | None:
        """Return the mask at the size of the image."""
        if self._mask is None:
            return None
        if self._scaled is None or self._scaled.shape != (height, width):
            self._scaled = cv2.resize(self._mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return self._scaled


def _turned(image: np.ndarray, degrees: int) -> np.ndarray:
    """Turn an image clockwise; a view on BGR stays one."""
    if not degrees:
        return image
    if image.ndim == 3 and image.strides[2] < 0:
        return _turned(image[..., ::-1], degrees)[..., ::-1]
    return cv2.rotate(np.ascontiguousarray(image), TURNS[degrees])


def _contiguous(frame: np.ndarray) -> np.ndarray:
    """Return an RGB frame without gaps between its pixels; OpenCV swaps channels faster than NumPy."""
    if frame.strides[2] < 0:
        return cv2.cvtColor(np.ascontiguousarray(frame[..., ::-1]), cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(frame)
