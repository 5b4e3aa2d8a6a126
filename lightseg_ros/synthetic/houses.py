# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The houses of the synthetic street, and the skyline behind them, as textures."""
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from .painting import BUILDING, Color, noise, plain, rect, rgb, SKY, solid, Texture, TREE

WALL = 40  # pixels a metre on houses

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
    wall = (rgb(base) * tone + tint)[row, shifted // 9]
    joint = (np.arange(h)[:, None] % 3 == 0) | (shifted % 9 == 0)
    wall[joint] = wall[joint] * 0.55 + rgb((67, 65, 60))
    return wall


def _slates(rng: Generator, h: int, w: int) -> np.ndarray:
    base = rgb(((92, 92, 98), (112, 82, 68), (80, 78, 80))[rng.integers(3)])
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
    tone = 1 + 0.05 * streaks + noise(rng, h, w, 60, 0.1) + noise(rng, h, w, 12, 0.06) - 0.16 * foot
    wall *= tone[:, :, None]
    wall += noise(rng, h, w, 1, 9)[:, :, None]


def _glass(rng: Generator, h: int, w: int) -> np.ndarray:
    """Paint a dark pane, often with the sky reflected in its upper part, sometimes with blind or curtains."""
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    dark = rng.uniform(16, 52)
    pane = plain(h, w, (dark, dark * 1.05, dark * 1.12))
    if rng.random() < 0.5:
        mirrored = np.clip(1 - y * rng.uniform(0.9, 2.5), 0, 1) * rng.uniform(0.2, 0.9)
        pane += rgb((120, 132, 142)) * mirrored
    if rng.random() < 0.35:
        rect(pane, 0, 0, w, h * rng.uniform(0.2, 0.5), rgb((170, 166, 156)) * rng.uniform(0.5, 1))
    if rng.random() < 0.25:
        side = w * rng.uniform(0.15, 0.3)
        rect(pane, 0, 0, side, h, (140, 132, 120))
        rect(pane, w - side, 0, w, h, (140, 132, 120))
    return pane + noise(rng, h, w, 6, 14)[:, :, None]


# style -> panes down, panes across, thickness of the bars in pixels
WINDOWS = {'sash': (2, 1, 3), 'cottage': (3, 2, 2), 'modern': (1, 2, 3), 'mullioned': (3, 2, 3)}


def _window(rng: Generator, wall: np.ndarray, x: float, y: float, w: float, h: float, style: str,
            frame: Color) -> None:
    """Paint a window with lintel, frame, panes, sill and shadow; metres from the wall's top left."""
    x0, y0, x1, y1 = (round(v * WALL) for v in (x, y, x + w, y + h))
    if style == 'sash':
        rect(wall, x0 - 3, y0 - 9, x1 + 3, y0, rgb((206, 198, 182)) * rng.uniform(0.8, 1.05))
    rect(wall, x0 - 2, y0 - 2, x1 + 2, y1 + 1, (52, 50, 48))
    rect(wall, x0, y0, x1, y1, frame)
    rows, columns, bar = WINDOWS[style]
    for r in range(rows):
        for c in range(columns):
            left, right = (x0 + (bar if i == c else 0) + i * (x1 - x0 - bar) // columns for i in (c, c + 1))
            top, bottom = (y0 + (bar if i == r else 0) + i * (y1 - y0 - bar) // rows for i in (r, r + 1))
            pane = wall[max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
            if pane.size:
                pane[:] = _glass(rng, *pane.shape[:2])
    below = wall[min(y1 + 12, len(wall) - 1), min(max(x0, 0), wall.shape[1] - 1)] * 0.62
    rect(wall, x0 - 4, y1, x1 + 4, y1 + 4, (214, 208, 198))
    rect(wall, x0 - 4, y1 + 4, x1 + 4, y1 + 9, below)


def _shopfront(rng: Generator, wall: np.ndarray, x0: float, x1: float, top: float) -> None:
    """Paint a lettered fascia and windows with goods, from `top` metres below the wall's top down."""
    h = len(wall)
    a, b, y = int(x0 * WALL), int(x1 * WALL), int(top * WALL)
    color = rgb(SHOPS[rng.integers(len(SHOPS))]) * rng.uniform(0.8, 1.2)
    rect(wall, a, y, b, h, color * 0.7 if rng.random() < 0.6 else (60, 58, 56))
    panes = max(int((b - a) / (1.3 * WALL)), 1)
    for i in range(panes):
        foot = h - int(WALL * (0.1 if i == panes // 2 else rng.uniform(0.35, 0.6)))
        pane = wall[y + 28:foot, a + 4 + i * (b - a) // panes:a - 3 + (i + 1) * (b - a) // panes]
        if not pane.size:
            continue
        pane[:] = _glass(rng, *pane.shape[:2]) * 0.8
        for _ in range(rng.integers(4, 10)):
            x, at = rng.uniform(0, pane.shape[1]), rng.uniform(pane.shape[0] / 4, pane.shape[0])
            rect(pane, x, at, x + rng.uniform(4, 16), at + rng.uniform(5, 24),
                  rng.uniform(40, 190) * rng.uniform(0.7, 1.2, 3))
    rect(wall, a, y, b, y + 24, color)
    rect(wall, a, y + 24, b, y + 28, color * 0.45)
    name = ''.join(rng.choice(list('AEIORSTLNMCDHBK')) for _ in range(rng.integers(4, 9)))
    ink = (235, 230, 220) if color.mean() < 130 else (30, 30, 40)
    cv2.putText(wall, name, (a + int((b - a) * 0.15), y + 18), cv2.FONT_HERSHEY_DUPLEX, 0.55, ink, 1,
                cv2.LINE_AA)


def _door(rng: Generator, wall: np.ndarray, x: float) -> None:
    h, x0 = len(wall), int(x * WALL)
    color = rgb(SHOPS[rng.integers(len(SHOPS))])
    rect(wall, x0 - 4, h - 2.5 * WALL, x0 + WALL + 4, h, (214, 208, 196))
    rect(wall, x0, h - 2.1 * WALL, x0 + WALL, h - 4, color)
    rect(wall, x0, h - 2.42 * WALL, x0 + WALL, h - 2.14 * WALL, (50, 54, 60))
    for r in (1.9, 1.05):
        rect(wall, x0 + 6, h - r * WALL, x0 + WALL - 6, h - (r - 0.7) * WALL, color * 0.72)


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
        wall = plain(h, w, RENDERS[rng.integers(len(RENDERS))]) * np.float32(shade)
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
            rect(wall, 0, (below + 0.25) * WALL, w, (below + 0.4) * WALL, wall.mean((0, 1)) * 0.6)
    if kind == 'shops':
        shops = max(round(length / 5.5), 1)
        for i in range(shops):
            _shopfront(rng, wall, i * length / shops + 0.1, (i + 1) * length / shops - 0.1,
                       eaves - house.storey - 0.1)
    for _ in range(max(int(length / 7), 1)):  # drainpipes and their shadows
        x = int(rng.uniform(0.02, 0.97) * w)
        rect(wall, x, 0, x + 4, h, (46, 44, 44))
        wall[:, x + 4:x + 7] *= 0.72
    rect(wall, 0, 0, w, 5, (216, 210, 200))
    wall[5:14] *= 0.45  # shadow of the eaves
    rise = 0.5 if kind == 'office' else rng.uniform(1.2, 2.4)
    roof_rows = int(rise * WALL)
    roof = plain(roof_rows, w, (120, 120, 120)) if kind == 'office' else _slates(rng, roof_rows, w)
    air = int((0.3 if kind in ('office', 'college') else 1.3) * WALL)
    color = np.concatenate([plain(air, w, 100), roof, wall])
    cover = np.zeros(color.shape[:2], np.float32)
    cover[air:] = 255
    if air > WALL:
        stacks = max(int(length / 6), 1)
        for i in range(stacks):
            _chimney(rng, color, cover, int((i + rng.uniform(0.2, 0.8)) * w / stacks), air)
        for i in range(int(length / 5)):
            if rise > 1.6 and rng.random() < 0.3:
                _dormer(rng, color, i * 5 + 1.5, (air + 0.3 * roof_rows) / WALL, (air + roof_rows) / WALL)
    return solid(length, len(color) / WALL, color * np.float32(light), BUILDING, cover)


def _chimney(rng: Generator, color: np.ndarray, cover: np.ndarray, x: int, air: int) -> None:
    wide = int(rng.uniform(0.7, 1.3) * WALL)
    part = color[12:air + 10, x:x + wide]
    part[:] = _brickwork(rng, air - 2, wide, BRICKS[rng.integers(len(BRICKS))])[:, :part.shape[1]] * 0.8
    cover[12:air + 10, x:x + wide] = 255
    for pot in range(x + 2, x + wide - 6, 11):
        rect(color, pot, 0, pot + 7, 12, (150, 96, 70))
        rect(cover, pot, 0, pot + 7, 12, 255)


def _dormer(rng: Generator, color: np.ndarray, x: float, top: float, bottom: float) -> None:
    rect(color, (x - 0.2) * WALL, (top - 0.25) * WALL, (x + 1.3) * WALL, bottom * WALL, (200, 196, 188))
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
    return solid(width, height, wall * np.float32(light), BUILDING, cover)


def backdrop(rng: Generator, width: int, height: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Paint the sky above a far skyline of trees and roofs: (H, W, 4) uint8 RGBA and (H, W) uint8 ids.

    The horizon is at half the height. `scale`: size of the details, 1 for an image 640 pixels wide.
    """
    horizon = height // 2
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    cloud = 0.62 + noise(rng, height, width, width / 5, 0.5) + noise(rng, height, width, width / 14, 0.22)
    cloud = np.clip(cloud + 0.7 * y, 0, 1)[:, :, None]
    color = rgb((206, 228, 246)) * (1 - cloud) + rgb((252, 253, 254)) * cloud
    ids = np.full((height, width), SKY, np.uint8)
    rise = 13 + 14 * np.abs(noise(rng, 1, width, 26 * scale)) + 4 * np.abs(noise(rng, 1, width, 5 * scale))
    trees = np.arange(height)[:, None] >= horizon - scale * rise
    leaves = rgb((140, 146, 140)) + noise(rng, height, width, max(3 * scale, 1), 26)[:, :, None]
    color[trees] = leaves[trees]
    ids[trees] = TREE
    x = 0.0
    while x < width:
        x1 = x + scale * rng.uniform(16, 50)
        if rng.random() < 0.6:
            top, tone = horizon - scale * rng.uniform(8, 22), rng.uniform(120, 196)
            rect(color, x, top, x1, height, (tone, tone * 0.98, tone * 0.95))
            rect(color, x, top, x1, top + 3 * scale, (130, 128, 130))
            rect(ids, x, top, x1, height, BUILDING)
        x = x1
    rgba = np.dstack([color, np.full((height, width), 255, np.float32)])
    return np.clip(rgba, 0, 255).astype(np.uint8), ids
