# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The textures of the synthetic street, painted once at start: houses, ground, trees, cars, people, signs.

Every texture is flat; sizes are in metres. Colours are RGB, 0-255, as CamVid's camera shows a British street
under thin cloud. A random generator chooses the variants.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
import math
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator

SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)  # CamVid's ids
NOTHING = 255  # in `Texture.ids`: outside the figure

# Edges of the road and of the ground, x in metres from the centre of our lane.
LEFT_KERB, RIGHT_KERB = -4.3, 5.4
GROUND_LEFT, GROUND_RIGHT = -16.0, 18.0
GROUND_PERIOD = 60.0
GROUND_X, GROUND_Z = 48, 40  # pixels a metre across and along
WALL = 40  # pixels a metre on houses

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


# ---------------------------------------------------------------------------------------------------- brushes

def _noise(rng: Generator, h: int, w: int, cell: float, amplitude: float = 1.0) -> np.ndarray:
    """Return smooth noise, (h, w) float32: features of `cell` pixels, standard deviation `amplitude` / 2."""
    small = rng.standard_normal((max(int(h / cell), 2), max(int(w / cell), 2)), np.float32)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC) * np.float32(0.5 * amplitude)


def _grain(rng: Generator, h: int, w: int, amplitude: float) -> np.ndarray:
    """Return noise of several scales, (h, w, 1), for surfaces."""
    return (_noise(rng, h, w, 1, amplitude) + _noise(rng, h, w, 5, 0.8 * amplitude)
            + _noise(rng, h, w, 40, amplitude))[:, :, None]


def _rgb(color: Color) -> np.ndarray:
    return np.asarray(color, np.float32)


def _plain(h: int, w: int, color: Color | float) -> np.ndarray:
    return np.full((h, w, 3), color, np.float32)


def _rect(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, color: Color | float) -> None:
    """Fill a rectangle given in pixels, clipped to the image."""
    image[max(int(y0), 0):max(int(y1), 0), max(int(x0), 0):max(int(x1), 0)] = color


def _fixed(points: Sequence | np.ndarray, scale: float) -> np.ndarray:
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
        cv2.fillPoly(self.rgba, [_fixed(points, self.scale)], self._ink(color), cv2.LINE_AA, 4)

    def rect(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def line(self, points: Sequence, thickness: float, color: Color) -> None:
        cv2.polylines(self.rgba, [_fixed(points, self.scale)], False, self._ink(color),
                      max(round(thickness * self.scale), 1), cv2.LINE_AA, 4)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, start: float = 0,
                end: float = 360) -> None:
        (cx, cy, ax, ay), = _fixed([(x, y, rx, ry)], self.scale)
        cv2.ellipse(self.rgba, (int(cx), int(cy)), (int(ax), int(ay)), 0, start, end, self._ink(color), -1,
                    cv2.LINE_AA, 4)

    def text(self, text: str, x: float, y: float, size: float, thickness: int, color: Color) -> None:
        cv2.putText(self.rgba, text, (round(x * self.scale), round(y * self.scale)), cv2.FONT_HERSHEY_DUPLEX,
                    size, self._ink(color), thickness, cv2.LINE_AA)

    def cut(self, points: Sequence) -> None:
        """Make the polygon opaque and everything outside it transparent."""
        mask = np.zeros(self.rgba.shape[:2], np.uint8)
        cv2.fillPoly(mask, [_fixed(points, self.scale)], 255, cv2.LINE_AA, 4)
        self.rgba[:, :, 3] = mask

    def texture(self, class_id: int) -> Texture:
        """Return the drawing as a solid figure; uncovered pixels get its mean colour, to hide edges."""
        cover = self.rgba[:, :, 3:]
        color = np.where(cover > 8, self.rgba[:, :, :3], 0)
        inside = cover[:, :, 0] > 250
        color = np.where(cover > 250, color, color[inside].mean(0))
        return _solid(self.width, self.height, color, class_id, cover)


def _solid(width: float, height: float, color: np.ndarray, class_id: int,
           cover: np.ndarray | None = None) -> Texture:
    if cover is None:
        cover = np.full((*color.shape[:2], 1), 255, np.float32)
    rgba = np.concatenate([color, cover.reshape(*color.shape[:2], 1)], 2)
    return Texture(width, height, np.clip(rgba, 0, 255).astype(np.uint8), class_id)


# ----------------------------------------------------------------------------------------------------- houses

BRICKS = ((150, 92, 72), (196, 172, 130), (172, 140, 102), (136, 80, 66), (188, 160, 124))
RENDERS = ((226, 222, 210), (236, 234, 230), (205, 196, 176), (214, 206, 196), (190, 196, 196))
SHOPS = ((28, 60, 110), (120, 24, 30), (24, 70, 50), (40, 40, 44), (200, 196, 190), (170, 130, 40),
         (40, 90, 150))


def _brickwork(rng: Generator, h: int, w: int, base: Color) -> np.ndarray:
    rows, columns = h // 3 + 1, w // 9 + 2
    tone = rng.normal(1.0, 0.13, (rows, columns, 1)).astype(np.float32)
    tint = rng.normal(0.0, 5.0, (rows, columns, 3)).astype(np.float32)
    row = np.arange(h)[:, None] // 3
    shifted = np.arange(w)[None] + 4 * (row % 2)
    wall = (_rgb(base) * tone + tint)[row, shifted // 9]
    joint = (np.arange(h)[:, None] % 3 == 0) | (shifted % 9 == 0)
    wall[joint] = wall[joint] * 0.55 + _rgb((67, 65, 60))
    return wall


def _slates(rng: Generator, h: int, w: int) -> np.ndarray:
    base = _rgb(((92, 92, 98), (112, 82, 68), (80, 78, 80))[rng.integers(3)])
    tone = rng.normal(1.0, 0.12, (h // 5 + 1, w // 8 + 2, 1)).astype(np.float32)
    row = np.arange(h)[:, None] // 5
    slates = (base * tone)[row, (np.arange(w)[None] + 4 * (row % 2)) // 8]
    slates[::5] *= 0.75
    return slates


def _weather(rng: Generator, wall: np.ndarray) -> None:
    """Add blotches, streaks below the eaves and a darker foot to a wall."""
    h, w = wall.shape[:2]
    streaks = cv2.resize(rng.standard_normal((3, max(w // 4, 2)), np.float32), (w, h))
    foot = np.clip((np.arange(h, dtype=np.float32)[:, None] - h) / (0.8 * WALL) + 1, 0, 1)
    tone = 1 + 0.05 * streaks + _noise(rng, h, w, 60, 0.1) + _noise(rng, h, w, 12, 0.06) - 0.16 * foot
    wall *= tone[:, :, None]
    wall += _noise(rng, h, w, 1, 9)[:, :, None]


def _glass(rng: Generator, h: int, w: int) -> np.ndarray:
    """Paint a dark pane, often with the sky reflected in its upper part, sometimes with blind or curtains."""
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    dark = rng.uniform(16, 52)
    pane = _plain(h, w, (dark, dark * 1.05, dark * 1.12))
    if rng.random() < 0.5:
        mirrored = np.clip(1 - y * rng.uniform(0.9, 2.5), 0, 1) * rng.uniform(0.2, 0.9)
        pane += _rgb((120, 132, 142)) * mirrored
    if rng.random() < 0.35:
        _rect(pane, 0, 0, w, h * rng.uniform(0.2, 0.5), _rgb((170, 166, 156)) * rng.uniform(0.5, 1))
    if rng.random() < 0.25:
        side = w * rng.uniform(0.15, 0.3)
        _rect(pane, 0, 0, side, h, (140, 132, 120))
        _rect(pane, w - side, 0, w, h, (140, 132, 120))
    return pane + _noise(rng, h, w, 6, 14)[:, :, None]


# style -> panes down, panes across, thickness of the bars in pixels
WINDOWS = {'sash': (2, 1, 3), 'cottage': (3, 2, 2), 'modern': (1, 2, 3), 'mullioned': (3, 2, 3)}


def _window(rng: Generator, wall: np.ndarray, x: float, y: float, w: float, h: float, style: str,
            frame: Color) -> None:
    """Paint a window with lintel, frame, panes, sill and shadow; metres from the wall's top left."""
    x0, y0, x1, y1 = (round(v * WALL) for v in (x, y, x + w, y + h))
    if style == 'sash':
        _rect(wall, x0 - 3, y0 - 9, x1 + 3, y0, _rgb((206, 198, 182)) * rng.uniform(0.8, 1.05))
    _rect(wall, x0 - 2, y0 - 2, x1 + 2, y1 + 1, (52, 50, 48))
    _rect(wall, x0, y0, x1, y1, frame)
    rows, columns, bar = WINDOWS[style]
    for r in range(rows):
        for c in range(columns):
            left, right = (x0 + (bar if i == c else 0) + i * (x1 - x0 - bar) // columns for i in (c, c + 1))
            top, bottom = (y0 + (bar if i == r else 0) + i * (y1 - y0 - bar) // rows for i in (r, r + 1))
            pane = wall[max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
            if pane.size:
                pane[:] = _glass(rng, *pane.shape[:2])
    below = wall[min(y1 + 12, len(wall) - 1), min(max(x0, 0), wall.shape[1] - 1)] * 0.62
    _rect(wall, x0 - 4, y1, x1 + 4, y1 + 4, (214, 208, 198))
    _rect(wall, x0 - 4, y1 + 4, x1 + 4, y1 + 9, below)


def _shopfront(rng: Generator, wall: np.ndarray, x0: float, x1: float, top: float) -> None:
    """Paint a lettered fascia and windows with goods, from `top` metres below the wall's top down."""
    h = len(wall)
    a, b, y = int(x0 * WALL), int(x1 * WALL), int(top * WALL)
    color = _rgb(SHOPS[rng.integers(len(SHOPS))]) * rng.uniform(0.8, 1.2)
    _rect(wall, a, y, b, h, color * 0.7 if rng.random() < 0.6 else (60, 58, 56))
    panes = max(int((b - a) / (1.3 * WALL)), 1)
    for i in range(panes):
        foot = h - int(WALL * (0.1 if i == panes // 2 else rng.uniform(0.35, 0.6)))
        pane = wall[y + 28:foot, a + 4 + i * (b - a) // panes:a - 3 + (i + 1) * (b - a) // panes]
        if not pane.size:
            continue
        pane[:] = _glass(rng, *pane.shape[:2]) * 0.8
        for _ in range(rng.integers(4, 10)):
            x, at = rng.uniform(0, pane.shape[1]), rng.uniform(pane.shape[0] / 4, pane.shape[0])
            _rect(pane, x, at, x + rng.uniform(4, 16), at + rng.uniform(5, 24),
                  rng.uniform(40, 190) * rng.uniform(0.7, 1.2, 3))
    _rect(wall, a, y, b, y + 24, color)
    _rect(wall, a, y + 24, b, y + 28, color * 0.45)
    name = ''.join(rng.choice(list('AEIORSTLNMCDHBK')) for _ in range(rng.integers(4, 9)))
    ink = (235, 230, 220) if color.mean() < 130 else (30, 30, 40)
    cv2.putText(wall, name, (a + int((b - a) * 0.15), y + 18), cv2.FONT_HERSHEY_DUPLEX, 0.55, ink, 1,
                cv2.LINE_AA)


def _door(rng: Generator, wall: np.ndarray, x: float) -> None:
    h, x0 = len(wall), int(x * WALL)
    color = _rgb(SHOPS[rng.integers(len(SHOPS))])
    _rect(wall, x0 - 4, h - 2.5 * WALL, x0 + WALL + 4, h, (214, 208, 196))
    _rect(wall, x0, h - 2.1 * WALL, x0 + WALL, h - 4, color)
    _rect(wall, x0, h - 2.42 * WALL, x0 + WALL, h - 2.14 * WALL, (50, 54, 60))
    for r in (1.9, 1.05):
        _rect(wall, x0 + 6, h - r * WALL, x0 + WALL - 6, h - (r - 0.7) * WALL, color * 0.72)


@dataclass(frozen=True)
class HouseStyle:
    """Number of floors (fewest, most), their height, and the windows' style, spacing and size, in metres."""

    floors: tuple[int, int]
    storey: float
    window: str
    spacing: float
    size: tuple[float, float]
    rendered: float  # share of houses with plaster instead of brick


HOUSE_STYLES = {
    'terrace': HouseStyle((2, 3), 2.8, 'sash', 2.3, (0.95, 1.6), 0.3),
    'shops': HouseStyle((2, 4), 3.0, 'sash', 2.2, (0.95, 1.6), 0.5),
    'cottages': HouseStyle((2, 2), 2.6, 'cottage', 2.4, (1.1, 1.2), 0.6),
    'office': HouseStyle((3, 5), 3.3, 'modern', 1.6, (1.3, 1.7), 1.0),
    'college': HouseStyle((3, 3), 3.8, 'mullioned', 2.6, (1.2, 2.3), 0.0),
}


def facade(rng: Generator, length: float, kind: str, light: float) -> Texture:
    """
    Paint a house's front with roof and chimneys, `length` metres; `kind` is a key of `HOUSE_STYLES`.

    `light`: 1 for a wall in the sun, about 0.5 for one in the shade.
    """
    house = HOUSE_STYLES[kind]
    floors = int(rng.integers(house.floors[0], house.floors[1] + 1))
    eaves = floors * house.storey + 0.5
    w, h = int(length * WALL), int(eaves * WALL)
    if rng.random() < house.rendered:
        shade = rng.uniform(0.55, 0.9) if kind == 'office' else rng.uniform(0.8, 1.0)
        wall = _plain(h, w, RENDERS[rng.integers(len(RENDERS))]) * np.float32(shade)
    elif kind == 'college':
        wall = _brickwork(rng, h, w, (168, 156, 134)) * np.float32(rng.uniform(0.6, 0.95))
    else:
        wall = _brickwork(rng, h, w, BRICKS[rng.integers(len(BRICKS))])
    _weather(rng, wall)
    frame = (232, 230, 224) if rng.random() < 0.75 else (60, 52, 48)
    count = max(int(length / (house.spacing * rng.uniform(0.9, 1.2))), 1)
    width, height = house.size
    for floor in range(1 if kind == 'shops' else 0, floors):
        top = eaves - (floor + 1) * house.storey + 0.55
        for i in range(count):
            x = (i + 0.5) * length / count - width / 2
            if floor == 0 and kind in ('terrace', 'cottages') and i % 3 == 1:
                _door(rng, wall, x)
            else:
                _window(rng, wall, x, top, width, height, house.window, frame)
        if kind == 'office':
            below = top + height
            _rect(wall, 0, (below + 0.25) * WALL, w, (below + 0.4) * WALL, wall.mean((0, 1)) * 0.6)
    if kind == 'shops':
        shops = max(round(length / 5.5), 1)
        for i in range(shops):
            _shopfront(rng, wall, i * length / shops + 0.1, (i + 1) * length / shops - 0.1,
                       eaves - house.storey - 0.1)
    for _ in range(max(int(length / 7), 1)):  # drainpipes and their shadows
        x = int(rng.uniform(0.02, 0.97) * w)
        _rect(wall, x, 0, x + 4, h, (46, 44, 44))
        wall[:, x + 4:x + 7] *= 0.72
    _rect(wall, 0, 0, w, 5, (216, 210, 200))
    wall[5:14] *= 0.45  # shadow of the eaves
    rise = 0.5 if kind == 'office' else rng.uniform(1.2, 2.4)
    roof_rows = int(rise * WALL)
    roof = _plain(roof_rows, w, (120, 120, 120)) if kind == 'office' else _slates(rng, roof_rows, w)
    air = int((0.3 if kind in ('office', 'college') else 1.3) * WALL)
    color = np.concatenate([_plain(air, w, 100), roof, wall])
    cover = np.zeros(color.shape[:2], np.float32)
    cover[air:] = 255
    if air > WALL:
        stacks = max(int(length / 6), 1)
        for i in range(stacks):
            _chimney(rng, color, cover, int((i + rng.uniform(0.2, 0.8)) * w / stacks), air)
        for i in range(int(length / 5)):
            if rise > 1.6 and rng.random() < 0.3:
                _dormer(rng, color, i * 5 + 1.5, (air + 0.3 * roof_rows) / WALL, (air + roof_rows) / WALL)
    return _solid(length, len(color) / WALL, color * np.float32(light), BUILDING, cover)


def _chimney(rng: Generator, color: np.ndarray, cover: np.ndarray, x: int, air: int) -> None:
    wide = int(rng.uniform(0.7, 1.3) * WALL)
    part = color[12:air + 10, x:x + wide]
    part[:] = _brickwork(rng, air - 2, wide, BRICKS[rng.integers(len(BRICKS))])[:, :part.shape[1]] * 0.8
    cover[12:air + 10, x:x + wide] = 255
    for pot in range(x + 2, x + wide - 6, 11):
        _rect(color, pot, 0, pot + 7, 12, (150, 96, 70))
        _rect(cover, pot, 0, pot + 7, 12, 255)


def _dormer(rng: Generator, color: np.ndarray, x: float, top: float, bottom: float) -> None:
    _rect(color, (x - 0.2) * WALL, (top - 0.25) * WALL, (x + 1.3) * WALL, bottom * WALL, (200, 196, 188))
    pane = color[int(top * WALL):int((top + 0.9) * WALL), int(x * WALL):int((x + 1.1) * WALL)]
    if pane.size:
        pane[:] = _glass(rng, *pane.shape[:2])


def gable(rng: Generator, width: float, height: float, light: float) -> Texture:
    """Paint the side wall of a house, which we see across a gap."""
    h, w = int(height * WALL), int(width * WALL)
    wall = _brickwork(rng, h, w, BRICKS[rng.integers(len(BRICKS))])
    _weather(rng, wall)
    for _ in range(2):
        _window(rng, wall, rng.uniform(0.5, width - 1.5), rng.uniform(height * 0.4, height * 0.7), 0.8, 1.3,
                'sash', (225, 222, 216))
    slope = np.abs(np.linspace(-1, 1, w)) * 2.0 * WALL
    cover = np.where(np.arange(h)[:, None] < slope[None], 0, 255).astype(np.float32)
    return _solid(width, height, wall * np.float32(light), BUILDING, cover)


def backdrop(rng: Generator, width: int, height: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Paint the sky above a far skyline of trees and roofs: (H, W, 4) uint8 RGBA and (H, W) uint8 ids.

    The horizon is at half the height. `scale`: size of the details, 1 for an image 640 pixels wide.
    """
    horizon = height // 2
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    cloud = 0.62 + _noise(rng, height, width, width / 5, 0.5) + _noise(rng, height, width, width / 14, 0.22)
    cloud = np.clip(cloud + 0.7 * y, 0, 1)[:, :, None]
    color = _rgb((206, 228, 246)) * (1 - cloud) + _rgb((252, 253, 254)) * cloud
    ids = np.full((height, width), SKY, np.uint8)
    rise = 13 + 14 * np.abs(_noise(rng, 1, width, 26 * scale)) + 4 * np.abs(_noise(rng, 1, width, 5 * scale))
    trees = np.arange(height)[:, None] >= horizon - scale * rise
    leaves = _rgb((140, 146, 140)) + _noise(rng, height, width, max(3 * scale, 1), 26)[:, :, None]
    color[trees] = leaves[trees]
    ids[trees] = TREE
    x = 0.0
    while x < width:
        x1 = x + scale * rng.uniform(16, 50)
        if rng.random() < 0.6:
            top, tone = horizon - scale * rng.uniform(8, 22), rng.uniform(120, 196)
            _rect(color, x, top, x1, height, (tone, tone * 0.98, tone * 0.95))
            _rect(color, x, top, x1, top + 3 * scale, (130, 128, 130))
            _rect(ids, x, top, x1, height, BUILDING)
        x = x1
    rgba = np.dstack([color, np.full((height, width), 255, np.float32)])
    return np.clip(rgba, 0, 255).astype(np.uint8), ids


# ----------------------------------------------------------------------------------------------------- ground

def ground(rng: Generator) -> Texture:
    """
    Paint road, markings, gutters, kerbs and pavements from GROUND_LEFT to GROUND_RIGHT.

    Row 0 is z = GROUND_PERIOD, the last row is z = 0. The texture repeats along the street without a seam.
    """
    h, w = int(GROUND_PERIOD * GROUND_Z), int((GROUND_RIGHT - GROUND_LEFT) * GROUND_X)

    def col(x: float) -> int:
        return int((x - GROUND_LEFT) * GROUND_X)

    def row(z: float) -> int:
        return int(h - z * GROUND_Z)

    left, right = col(LEFT_KERB), col(RIGHT_KERB)
    across = np.arange(w, dtype=np.float32) / GROUND_X + GROUND_LEFT
    image = np.empty((h, w, 3), np.float32)
    image[:, :left] = _paving(rng, h, left, (118, 116, 112))
    image[:, right:] = _paving(rng, h, w - right, (132, 129, 123))
    road = _plain(h, right - left, (96, 97, 99)) + _grain(rng, h, right - left, 14)
    road[rng.random((h, right - left), np.float32) < 0.02] += 36
    lane = across[left:right]
    for c, width, tone in ((-0.8, 0.35, 9), (0.8, 0.35, 9), (2.9, 0.35, 9), (4.4, 0.35, 9), (0.0, 0.5, -7)):
        road += (tone * np.exp(-((lane - c) / width) ** 2))[None, :, None]  # tyres polish, oil darkens
    image[:, left:right] = road
    for _ in range(6):  # newer tarmac
        x, z = rng.uniform(LEFT_KERB, RIGHT_KERB - 1), rng.uniform(3, GROUND_PERIOD - 8)
        x1, z1 = min(x + rng.uniform(0.6, 2.2), RIGHT_KERB - 0.3), z + rng.uniform(1.5, 7)
        part = image[row(z1):row(z), col(x):col(x1)]
        part[:] = _rgb((80, 81, 84)) + _grain(rng, part.shape[0], part.shape[1], 9)
    for _ in range(30):  # cracks
        x, z, turn = rng.uniform(LEFT_KERB, RIGHT_KERB), rng.uniform(0, GROUND_PERIOD), rng.normal(0, 1.0)
        points = []
        for _ in range(rng.integers(8, 40)):
            points.append((col(x), row(z)))
            turn += rng.normal(0, 0.5)
            x, z = x + 0.08 * math.sin(turn), z + 0.16 * math.cos(turn)
        cv2.polylines(image, [np.array(points, np.int32)], False, (70, 71, 74), 1, cv2.LINE_AA)
    for _ in range(3):  # manholes
        x, z = rng.uniform(-1.5, 4), rng.uniform(2, GROUND_PERIOD - 2)
        _rect(image, col(x), row(z + 0.6), col(x + 0.6), row(z), (66, 64, 62))
        _rect(image, col(x) + 4, row(z + 0.6) + 4, col(x + 0.6) - 4, row(z) - 4, (86, 84, 82))

    def paint(x0: float, x1: float, z0: float, z1: float, color: Color) -> None:
        part = image[row(z1):row(z0), col(x0):col(x1)]
        ph, pw = part.shape[:2]
        worn = 0.82 + _noise(rng, ph, pw, 3, 0.25) + _noise(rng, ph, pw, 25, 0.3)
        worn = np.clip(worn, 0, 0.95)[:, :, None]
        part[:] = part * (1 - worn) + _rgb(color) * worn

    for z in np.arange(0, GROUND_PERIOD, 6):
        paint(1.72, 1.84, z + 1, z + 4.2, (205, 205, 202))
    for z in np.arange(0, GROUND_PERIOD, 1.0):  # the parking bay's edge
        paint(-2.2, -2.1, z, z + 0.55, (205, 205, 202))
    for x in (RIGHT_KERB - 0.5, RIGHT_KERB - 0.32):
        paint(x, x + 0.08, 0, GROUND_PERIOD, (188, 168, 104))
    for x in (LEFT_KERB, RIGHT_KERB - 0.2):
        image[:, col(x):col(x + 0.2)] *= 0.72
    for x in (LEFT_KERB - 0.16, RIGHT_KERB):
        part = image[:, col(x):col(x + 0.16)]
        part[:] = _rgb((158, 156, 150)) + _grain(rng, h, part.shape[1], 12)
        part[np.arange(h) % int(0.9 * GROUND_Z) < 2] *= 0.6
        part[:, -2 if x < 0 else 0] *= 0.5
    # The houses on the left hide the sun: their shadow falls on the pavement and the parking bay.
    edge = LEFT_KERB + 1.4 + rng.uniform(-1.6, 1.2, 12).astype(np.float32).repeat(h // 12)[:, None]
    image *= (1 - 0.42 * np.clip(0.5 - 4 * (across[None] - edge), 0, 1))[:, :, None]
    image *= 1 + _noise(rng, h, w, 160, 0.1)[:, :, None]
    ids = np.full((h, w), SIDEWALK, np.uint8)
    ids[:, left:right] = ROAD
    texture = _solid(GROUND_RIGHT - GROUND_LEFT, GROUND_PERIOD, image, NOTHING)
    texture.ids = ids
    return texture


def _paving(rng: Generator, h: int, w: int, tone: Color) -> np.ndarray:
    slab = int(0.6 * GROUND_X)
    y, x = np.arange(h)[:, None], np.arange(w)[None]
    tones = rng.normal(1, 0.07, (h // slab + 1, w // slab + 1, 1)).astype(np.float32)
    paving = (_rgb(tone) * tones)[y // slab, x // slab] + _grain(rng, h, w, 11)
    paving[(y % slab < 2) | (x % slab < 2)] *= 0.72
    paving[rng.random((h, w), np.float32) < 0.002] *= 0.5
    return paving


# ------------------------------------------------------------------------------------------ trees and fences

def tree(rng: Generator, height: float, leaves: float) -> Texture:
    """Paint a street tree of about `height` metres. `leaves`: share of its twigs in leaf (0: winter)."""
    scale = 48
    size = int(1.5 * height * scale)
    rgba = np.zeros((size, size, 4), np.float32)
    tips: list[tuple[float, float]] = []

    def branch(x: float, y: float, angle: float, length: float, thick: float) -> None:
        x1, y1 = x + length * math.sin(angle), y - length * math.cos(angle)
        shade = rng.uniform(46, 84)
        cv2.line(rgba, (round(x), round(y)), (round(x1), round(y1)),
                 (shade * 1.04, shade * 0.98, shade * 0.92, 255), max(round(thick), 1), cv2.LINE_AA)
        if thick < 0.9:
            tips.append((x1, y1))
            return
        for _ in range(3 if thick > 5 else rng.integers(2, 4)):
            branch(x1, y1, 0.75 * angle + rng.normal(0, 0.5), length * rng.uniform(0.66, 0.86), thick * 0.62)

    branch(size / 2, size - 1, 0.0, 0.26 * height * scale, 1.6 * height)
    for x, y in tips:  # twigs
        for dx, dy in rng.normal(0, 0.24 * scale, (4, 2)):
            shade = rng.uniform(60, 110)
            cv2.line(rgba, (round(x), round(y)), (round(x + dx), round(y - abs(dy))),
                     (shade, shade * 0.96, shade * 0.92, 190), 1, cv2.LINE_AA)
    clusters = [tips[i] for i in rng.permutation(len(tips))[:min(int(len(tips) * leaves), 260)]]
    for dark in (0.5, 1.0):  # first the inner leaves, which are darker
        for x, y in clusters:
            lit = dark * (0.75 + 0.5 * (1 - y / size) + 0.3 * (x / size - 0.5))
            for dx, dy in rng.normal(0, 0.24 * scale, (16, 2)):
                green = np.array((74, 84, 50)) * lit * rng.uniform(0.35, 1.5)
                axes = int(rng.integers(2, 6)), int(rng.integers(2, 4))
                cv2.ellipse(rgba, (round(x + dx), round(y + dy)), axes, rng.uniform(0, 180), 0, 360,
                            (*map(float, green), 255), -1)
    crown = np.zeros((size, size), np.uint8)
    for x, y in tips:
        cv2.circle(crown, (round(x), round(y)), round(0.28 * scale), 255, -1)
    outline = cv2.morphologyEx(crown, cv2.MORPH_CLOSE, np.ones((scale // 2, scale // 2), np.uint8))
    outline[rgba[:, :, 3] > 128] = 255
    # Crop to the figure and keep the trunk in the middle.
    rows, columns = np.nonzero(outline.any(1))[0], np.nonzero(outline.any(0))[0]
    half = int(max(size // 2 - columns[0], columns[-1] - size // 2)) + 1
    view = np.s_[int(rows[0]):, max(size // 2 - half, 0):size // 2 + half]
    # OpenCV draws antialiased lines on a transparent ground, so their colour is premultiplied already.
    rgba = np.clip(rgba[view], 0, 255)
    rgba[:, :, :3] = np.minimum(rgba[:, :, :3], rgba[:, :, 3:])
    ids = np.where(outline[view] > 0, TREE, NOTHING).astype(np.uint8)
    return Texture(ids.shape[1] / scale, ids.shape[0] / scale, rgba.astype(np.uint8), ids=ids)


def hedge(rng: Generator, length: float, height: float) -> Texture:
    """Paint a hedge along the street."""
    scale = 40
    h, w = int(height * scale), int(length * scale)
    tone = 0.55 + _noise(rng, h, w, 2, 0.5) + _noise(rng, h, w, 8, 0.35) + _noise(rng, h, w, 40, 0.3)
    tone = np.clip(tone * np.linspace(1.25, 0.6, h)[:, None], 0.1, 2)
    top = np.abs(_noise(rng, 1, w, 9, 0.35 * scale)) + np.abs(_noise(rng, 1, w, 30, 0.3 * scale))
    cover = np.where(np.arange(h)[:, None] >= top, 255, 0).astype(np.float32)
    return _solid(length, height, _rgb((97, 110, 62)) * tone[:, :, None], TREE, cover)


def railing(rng: Generator, length: float) -> Texture:
    """Paint iron railings. Everything inside their outline is fence."""
    scale, height = 60, 1.1
    h, w = int(height * scale), int(length * scale)
    rgba = np.zeros((h, w, 4), np.uint8)
    tone = int(rng.choice([34, 46, 120]))
    rgba[6:h - 8, np.arange(w) % 7 < 2] = (tone, tone, tone, 255)
    rgba[:, np.arange(w) % 110 < 5] = (tone, tone, tone, 255)
    rgba[2:7] = (int(tone * 1.3),) * 3 + (255,)
    rgba[h - 11:h - 7] = (tone, tone, tone, 255)
    ids = np.full((h, w), NOTHING, np.uint8)
    ids[2:h - 2] = FENCE
    return Texture(length, height, rgba, ids=ids)


def boards(rng: Generator, length: float) -> Texture:
    """Paint a wooden fence."""
    scale, height = 40, 1.7
    h, w = int(height * scale), int(length * scale)
    board = np.arange(w) // 5
    tone = rng.normal(1, 0.13, board[-1] + 1).astype(np.float32)[board][None, :, None]
    color = _plain(h, w, (118, 92, 68)) * tone + _grain(rng, h, w, 10)
    color[:, np.arange(w) % 5 == 0] *= 0.5
    color[:, np.arange(w) % 72 < 5] = (96, 84, 72)
    color[:3] = (150, 130, 104)
    return _solid(length, height, color, FENCE)


# ------------------------------------------------------------------------------------------- people and signs

def walker(rng: Generator) -> tuple[Texture, ...]:
    """Paint a pedestrian from the front or from behind, in eight phases of the stride."""
    coat = rng.uniform(14, 90) * rng.uniform(0.7, 1.3, 3)
    trousers = np.array((26, 28, 38)) * rng.uniform(0.6, 1.8)
    skin, hair = np.array((168, 126, 106)), np.array((44, 34, 28)) * rng.uniform(0.5, 2)
    long_coat, bag, faces_us = rng.random(3) < (0.4, 0.5, 0.5)
    hem, c = (1.2 if long_coat else 0.95), 0.45
    phases = []
    for phase in range(8):
        f = Figure(2 * c, 1.78, 110)
        for side in (-1, 1):
            s = math.sin(phase * math.pi / 4) * side
            lift = 0.05 * max(s, 0)
            f.line([(c + side * 0.08, 0.92), (c + side * 0.1 + 0.05 * s, 1.3),
                    (c + side * 0.1 + 0.1 * s, 1.70 - lift)], 0.14, trousers * (1 + 0.15 * side))
            f.line([(c + side * 0.09 + 0.1 * s, 1.73 - lift), (c + side * 0.13 + 0.1 * s, 1.74 - lift)], 0.08,
                   (24, 22, 22))
            f.line([(c + side * 0.2, 0.42), (c + side * 0.27, 0.68), (c + side * 0.24 - 0.06 * s, 0.94)], 0.1,
                   coat * 0.8)
            f.ellipse(c + side * 0.24 - 0.06 * s, 0.97, 0.05, 0.05, skin)
        f.polygon([(c - 0.2, 0.34), (c + 0.2, 0.34), (c + 0.23, 0.5), (c + 0.19, hem), (c - 0.19, hem),
                   (c - 0.23, 0.5)], coat)
        f.polygon([(c + 0.02, 0.34), (c + 0.2, 0.36), (c + 0.2, 0.93), (c + 0.06, 0.93)], 1.25 * coat)
        if bag:
            f.polygon([(c + 0.2, 0.8), (c + 0.36, 0.8), (c + 0.34, 1.1), (c + 0.2, 1.1)],
                      coat[::-1] * 0.8 + 20)
        f.line([(c, 0.26), (c, 0.36)], 0.11, skin * 0.8)
        f.ellipse(c, 0.165, 0.085, 0.12, skin)
        f.ellipse(c, 0.125, 0.1, 0.1, hair, 180 if faces_us else 0, 360)
        f.rgba[:, :, :3] += _noise(rng, *f.rgba.shape[:2], 4, 10)[:, :, None]
        phases.append(f.texture(PEDESTRIAN))
    return tuple(phases)


def cyclist(rng: Generator, jacket: Color) -> tuple[Texture, ...]:
    """Paint a cyclist from behind, in eight phases of the pedals."""
    coat, dark, c = np.array(jacket, float), (28, 28, 30), 0.45
    phases = []
    for phase in range(8):
        f = Figure(2 * c, 1.8, 110)
        f.ellipse(c, 1.46, 0.045, 0.34, dark)
        f.line([(c, 1.12), (c, 1.4)], 0.07, (70, 72, 76))  # mudguard
        f.line([(c - 0.3, 0.83), (c + 0.3, 0.83)], 0.04, dark)
        f.rect(c - 0.26, 1.12, c - 0.08, 1.42, (40, 42, 46))  # a pannier
        for side in (-1, 1):
            up = 0.12 * math.sin(phase * math.pi / 4) * side
            f.polygon([(c + side * 0.05, 0.85), (c + side * 0.2, 0.88), (c + side * 0.19, 1.25 - up),
                       (c + side * 0.14, 1.55 - up), (c + side * 0.07, 1.55 - up)], (34, 36, 48))
            f.rect(c + side * 0.11 - 0.07, 1.53 - up, c + side * 0.11 + 0.07, 1.62 - up, dark)
            f.line([(c + side * 0.2, 0.44), (c + side * 0.29, 0.66), (c + side * 0.26, 0.84)], 0.1,
                   coat * 0.75)
        f.polygon([(c - 0.19, 0.36), (c + 0.19, 0.36), (c + 0.23, 0.52), (c + 0.18, 0.93), (c - 0.18, 0.93),
                   (c - 0.23, 0.52)], coat)
        f.polygon([(c - 0.03, 0.36), (c + 0.03, 0.36), (c + 0.05, 0.93), (c - 0.05, 0.93)], coat * 0.8)
        f.ellipse(c, 0.94, 0.16, 0.12, (30, 32, 42))
        f.rect(c - 0.05, 1.05, c + 0.05, 1.11, (190, 30, 26))
        f.ellipse(c, 0.2, 0.085, 0.12, (96, 70, 58))
        f.ellipse(c, 0.15, 0.115, 0.1, (150, 150, 152), 150, 390)
        f.rgba[:, :, :3] += _noise(rng, *f.rgba.shape[:2], 4, 7)[:, :, None]
        phases.append(f.texture(BICYCLIST))
    return tuple(phases)


def sign(kind: str) -> Texture:
    """Paint a traffic sign: 'limit', 'warning', 'blue', 'board' or 'parking'."""
    n = 0.75
    f, c = Figure(n, n, 120), n / 2
    if kind == 'limit':
        f.ellipse(c, c, c * 0.95, c * 0.95, (190, 34, 38))
        f.ellipse(c, c, c * 0.7, c * 0.7, (228, 228, 226))
        f.text('30', c * 0.45, c * 1.32, 1.3, 3, (20, 20, 20))
    elif kind == 'warning':
        f.polygon([(c, 0.03), (n - 0.02, n - 0.07), (0.02, n - 0.07)], (192, 38, 40))
        f.polygon([(c, 0.19), (n - 0.16, n - 0.14), (0.16, n - 0.14)], (228, 228, 224))
        f.rect(c - 0.03, n * 0.42, c + 0.03, n * 0.72, (20, 20, 20))
    elif kind == 'blue':
        f.ellipse(c, c, c * 0.95, c * 0.95, (40, 84, 152))
        f.polygon([(c, n * 0.2), (n * 0.74, n * 0.5), (n * 0.58, n * 0.5), (n * 0.58, n * 0.8),
                   (n * 0.42, n * 0.8), (n * 0.42, n * 0.5), (n * 0.26, n * 0.5)], (226, 228, 232))
    elif kind == 'board':
        f.rect(0.02, 0.1, n - 0.02, n - 0.1, (34, 74, 60))
        f.text('A14', 0.1, c * 1.2, 1.0, 2, (232, 228, 206))
    else:
        f.rect(0.15, 0.02, n - 0.15, n - 0.02, (226, 228, 230))
        f.rect(0.18, 0.05, n - 0.18, n * 0.6, (40, 84, 152))
        f.text('P', c * 0.68, n * 0.52, 1.5, 4, (226, 228, 232))
        f.rect(0.22, n * 0.7, n - 0.22, n * 0.74, (60, 60, 64))
        f.rect(0.22, n * 0.82, n - 0.25, n * 0.86, (60, 60, 64))
    return f.texture(SIGN)


def traffic_light(lit: int) -> Texture:
    """Paint a traffic light with lamp 0 (red), 1 or 2 (green) on. CamVid labels it as a sign."""
    f = Figure(0.42, 1.1, 130)
    f.rect(0, 0, 0.42, 1.1, (22, 23, 24))
    for i, color in enumerate(((250, 60, 40), (250, 180, 60), (90, 250, 190))):
        f.ellipse(0.21, 0.22 + 0.33 * i, 0.12, 0.12, color if i == lit else 18 + 0.14 * np.array(color))
    return f.texture(SIGN)


# ------------------------------------------------------------------------------------------------------- cars

@dataclass(frozen=True)
class CarShape:
    """
    Side profile in metres: the rear is at 0, the front at `length`.

    `rear_glass`, `front_glass`: where the glass ends at the waist and at the roof.
    """

    length: float
    width: float
    height: float
    waist: float
    bonnet: float
    rear_glass: tuple[float, float]
    front_glass: tuple[float, float]


SHAPES = {
    'hatch': CarShape(3.9, 1.68, 1.46, 0.92, 0.8, (0.12, 0.5), (2.85, 2.1)),
    'saloon': CarShape(4.5, 1.74, 1.42, 0.92, 0.8, (0.75, 1.3), (3.3, 2.6)),
    'estate': CarShape(4.5, 1.76, 1.55, 0.96, 0.86, (0.1, 0.3), (3.3, 2.6)),
    'van': CarShape(4.9, 1.9, 2.05, 1.1, 1.02, (0.02, 0.06), (4.3, 3.7)),
}
PAINTS = ((26, 28, 32), (150, 154, 160), (186, 190, 194), (222, 224, 224), (30, 44, 84), (128, 24, 28),
          (54, 60, 66), (88, 96, 106), (36, 66, 58), (150, 120, 66))
DARK, TYRE, PLATE_REAR, PLATE_FRONT = (24, 24, 26), (30, 30, 31), (196, 176, 60), (226, 226, 220)


@dataclass(frozen=True)
class Car:
    """Textures of a car. Sides and ends are split at the waist, so that the upper half can lean inwards."""

    shape: CarShape
    side: tuple[Texture, Texture]  # lower and upper half; the rear is on the left
    rear: tuple[Texture, Texture]
    front: tuple[Texture, Texture]
    top: Texture


def car(rng: Generator, kind: str, paint: Color) -> Car:
    """Paint a car: `kind` is a key of `SHAPES`."""
    shape, body = SHAPES[kind], np.array(paint, np.float32)
    top = _solid(1, 1, _plain(8, 8, np.minimum(body * 0.6 + 90, 235)), CAR)
    return Car(shape, (_side_low(rng, shape, body), _side_high(rng, shape, body, kind == 'van')),
               (_end_low(rng, shape, body, True), _end_high(rng, shape, body, True, kind == 'van')),
               (_end_low(rng, shape, body, False), _end_high(rng, shape, body, False, kind == 'van')), top)


def _bodywork(rng: Generator, f: Figure, paint: np.ndarray) -> None:
    """Fill with paint that reflects the sky at the top and the road at the bottom."""
    h, w = f.rgba.shape[:2]
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    f.rgba[:, :, :3] = paint * (1 - 0.5 * y) + 26 * np.exp(-((y - 0.18) / 0.1) ** 2)
    f.rgba[:, :, :3] += _noise(rng, h, w, 27, 7)[:, :, None]
    f.rgba[:, :, 3] = 255


def _windscreen(rng: Generator, f: Figure, bright: float) -> None:
    h, w = f.rgba.shape[:2]
    y = np.linspace(1, 0, h, dtype=np.float32)[:, None, None]
    f.rgba[:, :, :3] = _rgb((30, 34, 38)) + _rgb((92, 104, 112)) * bright * y
    f.rgba[:, :, :3] += _noise(rng, h, w, 16, 16)[:, :, None]
    f.rgba[:, :, 3] = 255


def _side_low(rng: Generator, s: CarShape, paint: np.ndarray) -> Texture:
    f = Figure(s.length, s.waist, 90)
    _bodywork(rng, f, paint)
    n, h = s.length, s.waist
    f.rect(0, h - 0.34, n, h, (34, 34, 36))
    f.rect(0, 0.46 * h, n, 0.5 * h, paint * 0.5)
    for x in (s.rear_glass[0] + 0.9, (s.rear_glass[0] + s.front_glass[0]) / 2 + 0.15, s.front_glass[0] - 0.1):
        f.rect(x, 0, x + 0.02, h - 0.3, paint * 0.35)  # doors and handles
        f.rect(x - 0.24, 0.2 * h, x - 0.08, 0.25 * h, paint * 0.45)
    f.rect(0, 0.16 * h, 0.13, 0.42 * h, (150, 20, 20))
    f.rect(n - 0.3, h - s.bonnet + 0.14, n, h - s.bonnet + 0.3, (200, 204, 206))
    f.cut([(0, 0.06), (0.06, 0), (s.front_glass[0], 0), (n, h - s.bonnet), (n, h - 0.24),
           (n - 0.08, h - 0.18), (0.08, h - 0.18), (0, h - 0.24)])
    radius = 0.31
    for x in (0.75, n - 0.82):
        for r, color in ((1.14, (14, 14, 14)), (1.0, TYRE), (0.66, (128, 130, 134)), (0.56, (84, 86, 88)),
                         (0.2, (140, 142, 144))):
            f.ellipse(x, h - radius, radius * r, radius * r, color)
        for a in range(5):
            angle = a * 2 * math.pi / 5
            f.line([(x, h - radius), (x + 0.6 * radius * math.cos(angle),
                                      h - radius + 0.6 * radius * math.sin(angle))], 0.035, (150, 152, 156))
    return f.texture(CAR)


def _side_high(rng: Generator, s: CarShape, paint: np.ndarray, van: bool) -> Texture:
    f = Figure(s.length, s.height - s.waist, 90)
    _windscreen(rng, f, 0.35)
    h = f.height
    f.cut([(s.rear_glass[0], h), (s.rear_glass[1], 0.02), (s.rear_glass[1] + 0.12, 0), (s.front_glass[1], 0),
           (s.front_glass[0], h)])
    rim = cv2.erode(f.rgba[:, :, 3], np.ones((9, 9))) < 255
    f.rgba[rim, :3] = paint * 0.95
    middle = (s.rear_glass[0] + s.front_glass[0]) / 2 + 0.15
    for x in (middle, s.rear_glass[0] + 0.75):
        _rect(f.rgba[:, :, :3], (x - 0.05) * 90, 0, (x + 0.05) * 90, h * 90, paint * 0.3)
    if van:
        _rect(f.rgba[:, :, :3], 0, 0, (s.front_glass[1] - 0.6) * 90, h * 90, paint * 0.86)
    _rect(f.rgba[:, :, :3], 0, 0, s.length * 90, 6, paint * 1.1)
    return f.texture(CAR)


def _end_low(rng: Generator, s: CarShape, paint: np.ndarray, rear: bool) -> Texture:
    w, h = s.width, s.waist if rear else s.bonnet
    f = Figure(w, h, 90)
    _bodywork(rng, f, paint)
    f.rect(0, h - 0.34, w, h - 0.2, (40, 40, 42))
    f.rect(0, h - 0.46, w, h - 0.44, paint * 0.4)
    f.rect(0, h - 0.2, w, h, (18, 18, 19))
    if rear:
        f.rect(0.25, 0.02, w - 0.25, 0.05, paint * 0.5)
        for x in (0.03, w - 0.25):
            f.rect(x, 0.1, x + 0.22, 0.42, (140, 22, 22))
            f.rect(x, 0.14, x + 0.22, 0.22, (210, 50, 40))
            f.rect(x, 0.3, x + 0.22, 0.35, (196, 150, 120))
    else:
        f.rect(0.45, 0.12, w - 0.45, 0.28, DARK)
        for x in (0.06, w - 0.42):
            f.rect(x, 0.1, x + 0.36, 0.28, (206, 212, 216))
            f.rect(x + 0.1, 0.13, x + 0.26, 0.25, (120, 126, 132))
    f.rect(w / 2 - 0.27, h - 0.44, w / 2 + 0.27, h - 0.32, PLATE_REAR if rear else PLATE_FRONT)
    for i in range(7):
        x = w / 2 - 0.23 + 0.067 * i
        f.rect(x, h - 0.42, x + 0.035, h - 0.34, (30, 30, 30))
    f.cut([(0, 0.05), (0.1, 0), (w - 0.1, 0), (w, 0.05), (w, h - 0.28), (w - 0.05, h - 0.2), (w - 0.05, h),
           (w - 0.25, h), (w - 0.25, h - 0.2), (0.25, h - 0.2), (0.25, h), (0.05, h), (0.05, h - 0.2),
           (0, h - 0.28)])
    return f.texture(CAR)


def _end_high(rng: Generator, s: CarShape, paint: np.ndarray, rear: bool, van: bool) -> Texture:
    w, h = s.width, s.height - s.waist
    f = Figure(w, h, 90)
    _windscreen(rng, f, 0.75)
    for x in (0.3 * w, 0.7 * w):  # head restraints
        f.ellipse(x, 0.75 * h, 0.13, 0.17, (27, 28, 30))
    inset = 0.03 if van else 0.17
    f.cut([(0, h), (inset, 0.04), (inset + 0.08, 0), (w - inset - 0.08, 0), (w - inset, 0.04), (w, h)])
    rim = cv2.erode(f.rgba[:, :, 3], np.ones((13, 13))) < 255
    if van and rear:
        f.rgba[:, :, :3] = paint * 0.85
        for x in (0.16 * w, 0.56 * w):
            _rect(f.rgba[:, :, :3], x * 90, 18 * h, (x + 0.28 * w) * 90, 68 * h, (40, 44, 48))
    else:
        f.rgba[rim, :3] = paint * 0.9
    _rect(f.rgba[:, :, :3], 0, 0, w * 90, 5, paint * 1.1)
    return f.texture(CAR)
