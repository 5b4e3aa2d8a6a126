# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
How the textures of the synthetic street are painted: what a texture is, and brushes for it.

Every texture is flat; sizes are in metres. Colours are RGB, 0-255, as CamVid's camera shows a British street
under thin cloud. A random generator chooses the variants.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator

SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)  # CamVid's ids
NOTHING = 255  # in `Texture.ids`: outside the figure

Color: TypeAlias = Sequence[float] | np.ndarray


@dataclass
class Texture:
    """
    A flat picture, `width` x `height` metres, which can be asked for at lower resolutions.

    rgba (h, w, 4) uint8: colour and coverage of each pixel. A solid figure (`ids` is None) has one class,
    `class_id`, wherever at least half of a pixel is covered. A figure with gaps has its colour premultiplied
    by the coverage, and `ids` (h, w) uint8 holds the class of each pixel, or `NOTHING`.
    """

    width: float
    height: float
    rgba: np.ndarray
    class_id: int = NOTHING
    ids: np.ndarray | None = None
    _levels: dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)

    def level(self, kx: int, ky: int) -> tuple[np.ndarray, np.ndarray | None]:
        """
        Return (rgba, ids), halved kx times across and ky times down, with an uncovered margin of one pixel.

        The margin of a solid figure repeats the colour of its edge, so that only the coverage fades there.
        """
        if (kx, ky) not in self._levels:
            h, w = self.rgba.shape[:2]
            size = max(w >> kx, 2), max(h >> ky, 2)
            rgba = cv2.resize(self.rgba, size, interpolation=cv2.INTER_AREA)
            if self.ids is None:
                rgba = cv2.copyMakeBorder(rgba, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
                rgba[[0, -1], :, 3] = rgba[:, [0, -1], 3] = 0
                self._levels[kx, ky] = rgba, None
            else:
                ids = cv2.resize(self.ids, size, interpolation=cv2.INTER_NEAREST_EXACT)
                self._levels[kx, ky] = (
                    cv2.copyMakeBorder(rgba, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0)),
                    cv2.copyMakeBorder(ids, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(NOTHING,)))
        return self._levels[kx, ky]


def noise(rng: Generator, h: int, w: int, cell: float, amplitude: float = 1.0) -> np.ndarray:
    """Return smooth noise, (h, w) float32: features of `cell` pixels, standard deviation `amplitude` / 2."""
    small = rng.standard_normal((max(int(h / cell), 2), max(int(w / cell), 2)), np.float32)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC) * np.float32(0.5 * amplitude)


def grain(rng: Generator, h: int, w: int, amplitude: float) -> np.ndarray:
    """Return noise of several scales, (h, w, 1), for surfaces."""
    return (noise(rng, h, w, 1, amplitude) + noise(rng, h, w, 5, 0.8 * amplitude)
            + noise(rng, h, w, 40, amplitude))[:, :, None]


def rgb(color: Color) -> np.ndarray:
    return np.asarray(color, np.float32)


def plain(h: int, w: int, color: Color | float) -> np.ndarray:
    return np.full((h, w, 3), color, np.float32)


def rect(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, color: Color | float) -> None:
    """Fill a rectangle given in pixels, clipped to the image."""
    image[max(int(y0), 0):max(int(y1), 0), max(int(x0), 0):max(int(x1), 0)] = color


def fixed(points: Sequence | np.ndarray, scale: float) -> np.ndarray:
    """Return points times scale in OpenCV's fixed point with 4 fractional bits, for sub-pixel drawing."""
    return np.round(np.asarray(points, np.float64) * scale * 16).astype(np.int32)


class Figure:
    """A drawing on a transparent ground, in metres from its top left, `scale` pixels per metre."""

    def __init__(self, width: float, height: float, scale: int):
        self.width, self.height, self.scale = width, height, scale
        self.rgba = np.zeros((round(height * scale), round(width * scale), 4), np.float32)

    @staticmethod
    def _ink(color: Color) -> list[float]:
        return [*map(float, np.clip(color, 0, 255)), 255.0]

    def polygon(self, points: Sequence, color: Color) -> None:
        cv2.fillPoly(self.rgba, [fixed(points, self.scale)], self._ink(color), cv2.LINE_AA, 4)

    def rect(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def line(self, points: Sequence, thickness: float, color: Color) -> None:
        cv2.polylines(self.rgba, [fixed(points, self.scale)], False, self._ink(color),
                      max(round(thickness * self.scale), 1), cv2.LINE_AA, 4)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, start: float = 0,
                end: float = 360) -> None:
        (cx, cy, ax, ay), = fixed([(x, y, rx, ry)], self.scale)
        cv2.ellipse(self.rgba, (int(cx), int(cy)), (int(ax), int(ay)), 0, start, end, self._ink(color), -1,
                    cv2.LINE_AA, 4)

    def text(self, text: str, x: float, y: float, size: float, thickness: int, color: Color) -> None:
        cv2.putText(self.rgba, text, (round(x * self.scale), round(y * self.scale)), cv2.FONT_HERSHEY_DUPLEX,
                    size, self._ink(color), thickness, cv2.LINE_AA)

    def cut(self, points: Sequence) -> None:
        """Make the polygon opaque and everything outside it transparent."""
        mask = np.zeros(self.rgba.shape[:2], np.uint8)
        cv2.fillPoly(mask, [fixed(points, self.scale)], 255, cv2.LINE_AA, 4)
        self.rgba[:, :, 3] = mask

    def texture(self, class_id: int) -> Texture:
        """Return the drawing as a solid figure; uncovered pixels get its mean colour, to hide edges."""
        cover = self.rgba[:, :, 3:]
        color = np.where(cover > 8, self.rgba[:, :, :3], 0)
        inside = cover[:, :, 0] > 250
        color = np.where(cover > 250, color, color[inside].mean(0))
        return solid(self.width, self.height, color, class_id, cover)


def solid(width: float, height: float, color: np.ndarray, class_id: int,
           cover: np.ndarray | None = None) -> Texture:
    if cover is None:
        cover = np.full((*color.shape[:2], 1), 255, np.float32)
    rgba = np.concatenate([color, cover.reshape(*color.shape[:2], 1)], 2)
    return Texture(width, height, np.clip(rgba, 0, 255).astype(np.uint8), class_id)
