# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
A synthetic British street, seen from a car that drives down it, with its exact label image.

Everything is drawn once at start as textures in metres (facades, ground, cars, people, trees); a frame warps them
through a pinhole camera, far to near, and writes colour and class id with the same mask. Where something is
seen through (leaves, railings), the id covers its outline as a whole, as CamVid's annotators did.

World: x to the right of our lane's centre, y up from the road, z along the street, in metres. The street
repeats every `PERIOD` metres. Traffic keeps left.
"""
from dataclasses import dataclass, field
import math

import cv2
import numpy as np
from numpy.random import Generator

SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
NOTHING = 255  # id of a texture's pixels where the texture is not

PERIOD = 240.0
GROUND_PERIOD = 60.0  # divides PERIOD
VISIBLE = 170.0  # beyond it haze and the backdrop close the street
NEAR = 0.5
CAMERA_HEIGHT = 1.4
LEFT_KERB, RIGHT_KERB = -4.3, 5.4
LEFT_WALL, RIGHT_WALL = -7.4, 8.6
HAZE = 224.0


@dataclass
class Texture:
    """
    A picture of something flat, `width` x `height` metres, at any smaller resolution on demand.

    color (h, w, 3) uint8 RGB. ids (h, w) uint8, `NOTHING` outside. see_through: None (solid where ids is), else
    (h, w, 3) uint8, what is left of the background, and color is premultiplied.
    """

    width: float
    height: float
    color: np.ndarray
    ids: np.ndarray
    see_through: np.ndarray | None = None
    _levels: dict = field(default_factory=dict)

    def level(self, kx: int, ky: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Halved kx times across and ky times down: (color, ids, see_through)."""
        key = kx, ky
        if key not in self._levels:
            h, w = self.ids.shape
            size = max(w >> kx, 2), max(h >> ky, 2)
            self._levels[key] = (
                cv2.resize(self.color, size, interpolation=cv2.INTER_AREA),
                cv2.resize(self.ids, size, interpolation=cv2.INTER_NEAREST_EXACT),
                None if self.see_through is None else
                cv2.resize(self.see_through, size, interpolation=cv2.INTER_AREA))
        return self._levels[key]


# ------------------------------------------------------------------------------------------ painting helpers

def _noise(rng: Generator, h: int, w: int, cell: float, amplitude: float = 1.0) -> np.ndarray:
    """Smooth noise (h, w) float32, about -1 to 1 times amplitude, with features of `cell` pixels."""
    small = rng.standard_normal((max(int(h / cell), 2), max(int(w / cell), 2))).astype(np.float32)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC) * (0.5 * amplitude)


def _grain(rng: Generator, h: int, w: int, amplitude: float) -> np.ndarray:
    """Noise of several scales (h, w, 1), for surfaces."""
    return (_noise(rng, h, w, 1, amplitude) + _noise(rng, h, w, 5, 0.8 * amplitude)
            + _noise(rng, h, w, 40, amplitude))[:, :, None]


def _fill(h: int, w: int, color) -> np.ndarray:
    return np.full((h, w, 3), color, np.float32)


def _u8(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 255).astype(np.uint8)


def _rect(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, color) -> None:
    """Fill a rectangle; pixel coordinates, cut to the image."""
    image[max(int(y0), 0):max(int(y1), 0), max(int(x0), 0):max(int(x1), 0)] = color


def _poly(image: np.ndarray, points, color) -> None:
    cv2.fillPoly(image, [np.round(np.asarray(points, np.float64) * 16).astype(np.int32)], color, cv2.LINE_AA, 4)


def _cutout(width: float, height: float, rgba: np.ndarray, class_id: int, threshold: int = 110) -> Texture:
    """Texture of a drawn figure, rgba float (h, w, 4), alpha 0-255; its id is where alpha reaches `threshold`."""
    rgba = np.clip(rgba, 0, 255)
    alpha = rgba[:, :, 3:] / 255
    ids = np.where(rgba[:, :, 3] >= threshold, class_id, NOTHING).astype(np.uint8)
    return Texture(width, height, _u8(rgba[:, :, :3] * alpha), ids, _u8(np.repeat(255 - 255 * alpha, 3, 2)))


# --------------------------------------------------------------------------------------------------- facades

PX = 40  # pixels a metre on facades
BRICKS = ((150, 92, 72), (196, 172, 130), (172, 140, 102), (136, 80, 66), (188, 160, 124))
RENDERS = ((226, 222, 210), (236, 234, 230), (205, 196, 176), (214, 206, 196), (190, 196, 196))
FASCIAS = ((28, 60, 110), (120, 24, 30), (24, 70, 50), (40, 40, 44), (200, 196, 190), (170, 130, 40), (40, 90, 150))


def _brickwork(rng: Generator, h: int, w: int, base) -> np.ndarray:
    wall = _fill(h, w, base)
    rows, cols = h // 3 + 1, w // 9 + 2
    tone = rng.normal(1.0, 0.13, (rows, cols, 1)).astype(np.float32)
    tint = rng.normal(0.0, 5.0, (rows, cols, 3)).astype(np.float32)
    y, x = np.mgrid[0:h, 0:w]
    row = y // 3
    col = (x + 4 * (row % 2)) // 9
    wall = wall * tone[row, col] + tint[row, col]
    joint = ((y % 3 == 0) | ((x + 4 * (row % 2)) % 9 == 0))
    wall[joint] = wall[joint] * 0.55 + np.float32((176, 170, 158)) * 0.38
    return wall


def _weather(rng: Generator, wall: np.ndarray, strength: float = 1.0) -> None:
    """Dirt: blotches, streaks below the eaves, a darker foot."""
    h, w = wall.shape[:2]
    streaks = cv2.resize(rng.standard_normal((3, max(w // 4, 2))).astype(np.float32), (w, h))
    tone = 1 + strength * (0.05 * streaks + _noise(rng, h, w, 60, 0.1) + _noise(rng, h, w, 12, 0.06))
    tone -= strength * 0.16 * np.clip((np.arange(h)[:, None] - h + PX * 0.8) / (PX * 0.8), 0, 1)
    wall *= tone[:, :, None].astype(np.float32)
    wall += _noise(rng, h, w, 1, 9 * strength)[:, :, None]


def _glass(rng: Generator, h: int, w: int) -> np.ndarray:
    """Dark panes that mirror some sky in their upper part, sometimes a curtain or a blind."""
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    dark = rng.uniform(16, 52)
    pane = _fill(h, w, (dark, dark * 1.05, dark * 1.12))
    if rng.random() < 0.5:
        pane += np.float32((120, 132, 142)) * rng.uniform(0.2, 0.9) * np.clip(1 - y * rng.uniform(0.9, 2.5), 0, 1)
    if rng.random() < 0.35:
        _rect(pane, 0, 0, w, h * rng.uniform(0.2, 0.5), np.float32((170, 166, 156)) * rng.uniform(0.5, 1))
    if rng.random() < 0.25:
        side = w * rng.uniform(0.15, 0.3)
        _rect(pane, 0, 0, side, h, (140, 132, 120))
        _rect(pane, w - side, 0, w, h, (140, 132, 120))
    return pane + _noise(rng, h, w, 6, 14)[:, :, None]


def _window(rng: Generator, wall: np.ndarray, x: float, y: float, w: float, h: float, style: str, frame) -> None:
    """A window with reveal shadow, lintel, frame, glazing bars and sill; metres from the texture's top left."""
    x0, y0, x1, y1 = (int(round(v * PX)) for v in (x, y, x + w, y + h))
    if style == 'sash':
        _rect(wall, x0 - 3, y0 - 9, x1 + 3, y0, np.float32((206, 198, 182)) * rng.uniform(0.8, 1.05))
    _rect(wall, x0 - 2, y0 - 2, x1 + 2, y1 + 1, (52, 50, 48))
    _rect(wall, x0, y0, x1, y1, frame)
    rows, cols = {'sash': (2, 1), 'cottage': (3, 2), 'modern': (1, 2), 'arched': (3, 2)}[style]
    bar = 3 if style != 'cottage' else 2
    for r in range(rows):
        for c in range(cols):
            left, right = x0 + bar + c * (x1 - x0 - bar) // cols, x0 + (c + 1) * (x1 - x0 - bar) // cols
            top, bottom = y0 + bar + r * (y1 - y0 - bar) // rows, y0 + (r + 1) * (y1 - y0 - bar) // rows
            target = wall[max(top, 0):bottom, max(left, 0):right]
            if target.size:
                target[:] = _glass(rng, *target.shape[:2])
    _rect(wall, x0 - 4, y1, x1 + 4, y1 + 4, (214, 208, 198))
    _rect(wall, x0 - 4, y1 + 4, x1 + 4, y1 + 9, wall[min(y1 + 12, len(wall) - 1), max(x0, 0)] * 0.62)


def _shopfront(rng: Generator, wall: np.ndarray, x0: float, x1: float, top: float) -> None:
    """Fascia with lettering, glass with goods behind it, a door; `top` metres from the texture's top."""
    h = len(wall)
    a, b, y = int(x0 * PX), int(x1 * PX), int(top * PX)
    color = np.float32(FASCIAS[rng.integers(len(FASCIAS))]) * rng.uniform(0.8, 1.2)
    frame = color * 0.7 if rng.random() < 0.6 else np.float32((60, 58, 56))
    _rect(wall, a, y, b, h, frame)
    panes = max(int((b - a) / (PX * 1.3)), 1)
    for i in range(panes):
        left, right = a + 4 + i * (b - a) // panes, a - 3 + (i + 1) * (b - a) // panes
        foot = h - int(PX * (0.1 if i == panes // 2 else rng.uniform(0.35, 0.6)))
        target = wall[y + 28:foot, left:right]
        if not target.size:
            continue
        target[:] = _glass(rng, *target.shape[:2]) * 0.8
        for _ in range(rng.integers(4, 10)):  # goods, posters, reflections
            gx, gy = rng.integers(0, target.shape[1]), rng.integers(target.shape[0] // 4, target.shape[0])
            shade = rng.uniform(40, 190) * rng.uniform(0.7, 1.2, 3)
            _rect(target, gx, gy, gx + rng.integers(4, 16), gy + rng.integers(5, 24), shade)
    _rect(wall, a, y, b, y + 24, color)
    _rect(wall, a, y + 24, b, y + 28, color * 0.45)
    text = ''.join(rng.choice(list('AEIORSTLNMCDHBK')) for _ in range(rng.integers(4, 9)))
    ink = (235, 230, 220) if color.mean() < 130 else (30, 30, 40)
    cv2.putText(wall, text, (a + int((b - a) * 0.15), y + 18), cv2.FONT_HERSHEY_DUPLEX, 0.55, ink, 1, cv2.LINE_AA)


def _door(rng: Generator, wall: np.ndarray, x: float) -> None:
    h, x0 = len(wall), int(x * PX)
    color = np.float32(FASCIAS[rng.integers(len(FASCIAS))])
    _rect(wall, x0 - 4, h - 2.5 * PX, x0 + PX + 4, h, (214, 208, 196))
    _rect(wall, x0, h - 2.1 * PX, x0 + PX, h - 4, color)
    _rect(wall, x0, h - 2.42 * PX, x0 + PX, h - 2.14 * PX, (50, 54, 60))
    for r in (1.9, 1.05):
        _rect(wall, x0 + 6, h - r * PX, x0 + PX - 6, h - (r - 0.7) * PX, color * 0.72)


def _facade(rng: Generator, length: float, kind: str, light: float) -> Texture:
    """
    A house front with its roof and chimneys, `length` metres; sunlit by the factor `light`.

    kind: 'terrace' (brick, sashes, doors), 'shops' (rendered or brick over shop windows), 'office', 'college'.
    """
    floors = {'terrace': int(rng.integers(2, 4)), 'shops': int(rng.integers(2, 5)),
              'office': int(rng.integers(3, 6)), 'college': 3}[kind]
    storey = {'terrace': 2.8, 'shops': 3.0, 'office': 3.3, 'college': 3.8}[kind]
    eaves = floors * storey + 0.5
    w, h = int(length * PX), int(eaves * PX)
    if kind == 'office':
        wall = _fill(h, w, RENDERS[rng.integers(len(RENDERS))]) * rng.uniform(0.55, 0.9)
    elif kind == 'college':
        wall = _brickwork(rng, h, w, (168, 156, 134)) * rng.uniform(0.6, 0.95)
    elif rng.random() < (0.3 if kind == 'terrace' else 0.5):
        wall = _fill(h, w, RENDERS[rng.integers(len(RENDERS))]) * rng.uniform(0.8, 1.0)
    else:
        wall = _brickwork(rng, h, w, BRICKS[rng.integers(len(BRICKS))])
    _weather(rng, wall)
    frame = np.float32((232, 230, 224)) if rng.random() < 0.75 else np.float32((60, 52, 48))
    style = {'terrace': 'sash', 'shops': 'cottage' if rng.random() < 0.4 else 'sash', 'office': 'modern',
             'college': 'arched'}[kind]
    spacing = {'terrace': 2.3, 'shops': 2.2, 'office': 1.6, 'college': 2.6}[kind] * rng.uniform(0.9, 1.2)
    ww, wh = {'sash': (0.95, 1.6), 'cottage': (1.1, 1.3), 'modern': (1.3, 1.7), 'arched': (1.2, 2.3)}[style]
    count = max(int(length / spacing), 1)
    for floor in range(floors):
        if kind == 'shops' and floor == 0:
            continue
        top = eaves - (floor + 1) * storey + 0.55
        for i in range(count):
            x = (i + 0.5) * length / count - ww / 2
            if kind == 'terrace' and floor == 0 and i % 3 == 1:
                _door(rng, wall, x)
            else:
                _window(rng, wall, x, top, ww, wh, style, frame)
        if kind == 'office':
            _rect(wall, 0, (top + wh + 0.25) * PX, w, (top + wh + 0.4) * PX, wall.mean((0, 1)) * 0.6)
    if kind == 'shops':
        x = 0.0
        while x < length - 2:
            end = min(x + rng.uniform(4.5, 7), length)
            end = length if length - end < 3 else end
            _shopfront(rng, wall, x + 0.1, end - 0.1, eaves - storey - 0.1)
            x = end
    for _ in range(max(int(length / 7), 1)):  # drainpipes
        x = int(rng.uniform(0.02, 0.98) * w)
        _rect(wall, x, 0, x + 4, h, (46, 44, 44))
        _rect(wall, x + 4, 0, x + 7, h, wall[:, x + 4:x + 7] * 0.72)
    _rect(wall, 0, 0, w, 5, (216, 210, 200))
    _rect(wall, 0, 5, w, 14, wall[5:14] * 0.45)  # shadow under the eaves
    if kind == 'office':
        rise, roof = 0.5, _fill(int(0.5 * PX), w, (120, 120, 120))
    else:
        rise = rng.uniform(1.2, 2.4)
        roof = _slates(rng, int(rise * PX), w)
    chimney = 1.3 if kind in ('terrace', 'shops') else 0.3
    air = int(chimney * PX)
    color = np.concatenate([_fill(air, w, 0), roof, wall]) * light
    ids = np.full(color.shape[:2], NOTHING, np.uint8)
    ids[air:] = BUILDING
    if kind in ('terrace', 'shops'):
        for i in range(max(int(length / 6), 1)):
            x = int((i + rng.uniform(0.2, 0.8)) * w / max(int(length / 6), 1))
            cw = int(rng.uniform(0.7, 1.3) * PX)
            stack = _brickwork(rng, air - 12 + 10, cw, BRICKS[rng.integers(len(BRICKS))]) * 0.8 * light
            part = color[12:air + 10, x:x + cw]
            part[:] = stack[:, :part.shape[1]]
            ids[12:air + 10, x:x + cw] = BUILDING
            for pot in range(x + 2, x + cw - 6, 11):
                _rect(color, pot, 0, pot + 7, 12, np.float32((150, 96, 70)) * light)
                _rect(ids, pot, 0, pot + 7, 12, BUILDING)
        for i in range(int(length / 5)):  # dormers
            if rng.random() < 0.3:
                x, y = (i + 0.3) * 5, chimney + rise * 0.3
                if x + 1.5 < length and rise > 1.6:
                    _rect(color, (x - 0.2) * PX, (y - 0.25) * PX, (x + 1.3) * PX, (chimney + rise) * PX,
                          np.float32((200, 196, 188)) * light)
                    pane = color[int(y * PX):int((y + 0.9) * PX), int(x * PX):int((x + 1.1) * PX)]
                    pane[:] = _glass(rng, *pane.shape[:2])
    return Texture(length, eaves + rise + chimney, _u8(color), ids)


def _slates(rng: Generator, h: int, w: int) -> np.ndarray:
    base = ((92, 92, 98), (112, 82, 68), (80, 78, 80))[rng.integers(3)]
    rows, cols = h // 5 + 1, w // 8 + 2
    y, x = np.mgrid[0:h, 0:w]
    tone = rng.normal(1.0, 0.12, (rows, cols, 1)).astype(np.float32)[y // 5, (x + 4 * (y // 5 % 2)) // 8]
    return _fill(h, w, base) * tone * np.where(y % 5 == 0, 0.75, 1.0)[:, :, None].astype(np.float32)


def _gable(rng: Generator, width: float, height: float, light: float) -> Texture:
    """The side wall of a house, which looks at us across a gap; pitched."""
    h, w = int(height * PX), int(width * PX)
    wall = _brickwork(rng, h, w, BRICKS[rng.integers(len(BRICKS))])
    _weather(rng, wall)
    for _ in range(2):
        _window(rng, wall, rng.uniform(0.5, width - 1.5), rng.uniform(height * 0.4, height * 0.7), 0.8, 1.3, 'sash',
                np.float32((225, 222, 216)))
    ids = np.full((h, w), BUILDING, np.uint8)
    pitch = int(2.0 * PX)
    slope = np.abs(np.linspace(-1, 1, w)) * pitch
    ids[np.arange(h)[:, None] < slope[None]] = NOTHING
    return Texture(width, height, _u8(wall * light), ids)


# ---------------------------------------------------------------------------------------------------- ground

GX0, GX1 = -16.0, 18.0  # span of the ground texture
GPX, GPZ = 48, 40  # pixels a metre across and along


def _ground(rng: Generator) -> Texture:
    """Road, markings, gutters, kerbs and pavements; row 0 is z = GROUND_PERIOD, the last row z = 0; wraps."""
    h, w = int(GROUND_PERIOD * GPZ), int((GX1 - GX0) * GPX)

    def col(x: float) -> int:
        return int((x - GX0) * GPX)

    def row(z: float) -> int:
        return int(h - z * GPZ)

    image = _fill(h, w, (96, 97, 99)) + _grain(rng, h, w, 13)
    speckle = rng.random((h, w)) < 0.02
    image[speckle] += 36
    across = np.arange(w) / GPX + GX0
    tracks = sum(np.exp(-((across - c) / 0.35) ** 2) for c in (-0.8, 0.8, 2.9, 4.4))
    image += 9 * tracks[None, :, None] - 7 * np.exp(-((across - 0.0) / 0.5) ** 2)[None, :, None]
    for _ in range(7):  # patches of newer tarmac
        x, z = rng.uniform(LEFT_KERB, RIGHT_KERB - 1), rng.uniform(3, GROUND_PERIOD - 8)
        _rect(image, col(x), row(z + rng.uniform(1.5, 7)), col(min(x + rng.uniform(0.6, 2.2), RIGHT_KERB)), row(z),
              np.float32((72, 73, 76)) + _grain(rng, 1, 1, 8)[0, 0])
    image[:, col(LEFT_KERB):col(RIGHT_KERB)] += _grain(rng, h, col(RIGHT_KERB) - col(LEFT_KERB), 5)
    for _ in range(26):  # cracks and sealed joints
        x, z = rng.uniform(LEFT_KERB, RIGHT_KERB), rng.uniform(0, GROUND_PERIOD)
        turn = rng.normal(0, 1.0)
        points = []
        for _ in range(rng.integers(8, 40)):
            points.append((col(x), row(z)))
            turn += rng.normal(0, 0.5)
            x, z = x + 0.12 * math.sin(turn), z + 0.12 * math.cos(turn)
        cv2.polylines(image, [np.int32(points)], False, (56, 57, 60), int(rng.integers(1, 3)), cv2.LINE_AA)
    for _ in range(4):
        x, z = rng.uniform(-1.5, 4), rng.uniform(2, GROUND_PERIOD - 2)
        _rect(image, col(x), row(z + 0.6), col(x + 0.6), row(z), (62, 60, 58))
        _rect(image, col(x) + 4, row(z + 0.6) + 4, col(x + 0.6) - 4, row(z) - 4, (84, 82, 80))

    def paint(x0, x1, z0, z1, color):
        part = image[row(z1):row(z0), col(x0):col(x1)]
        worn = np.clip(0.82 + _noise(rng, *part.shape[:2], 3, 0.25) + _noise(rng, *part.shape[:2], 25, 0.3), 0, 0.95)
        part[:] = part * (1 - worn[:, :, None]) + np.float32(color) * worn[:, :, None]

    white, yellow = (205, 205, 202), (188, 168, 104)
    for z in np.arange(0, GROUND_PERIOD, 6):
        paint(1.72, 1.84, z + 1, z + 4.2, white)
    for z in np.arange(0, GROUND_PERIOD, 1.0):
        paint(-2.2, -2.1, z, z + 0.55, white)  # edge of the parking bay
    paint(RIGHT_KERB - 0.5, RIGHT_KERB - 0.42, 0, GROUND_PERIOD, yellow)
    paint(RIGHT_KERB - 0.32, RIGHT_KERB - 0.24, 0, GROUND_PERIOD, yellow)
    for x in (LEFT_KERB, RIGHT_KERB - 0.2):
        image[:, col(x):col(x + 0.2)] *= 0.72
    ids = np.full((h, w), SIDEWALK, np.uint8)
    ids[:, col(LEFT_KERB):col(RIGHT_KERB)] = ROAD
    for x0, x1, tone in ((GX0, LEFT_KERB, (118, 116, 112)), (RIGHT_KERB, GX1, (132, 129, 123))):
        a, b = max(col(x0), 0), min(col(x1), w)
        slab = int(0.6 * GPX)
        y, x = np.mgrid[0:h, 0:b - a]
        tones = rng.normal(1, 0.07, (h // slab + 2, (b - a) // slab + 2, 1)).astype(np.float32)
        paving = _fill(h, b - a, tone) * tones[y // slab, x // slab] + _grain(rng, h, b - a, 11)
        paving[(y % slab < 2) | (x % slab < 2)] *= 0.72
        paving[rng.random((h, b - a)) < 0.002] *= 0.5
        image[:, a:b] = paving
    for x0, x1 in ((LEFT_KERB - 0.16, LEFT_KERB), (RIGHT_KERB, RIGHT_KERB + 0.16)):
        part = image[:, col(x0):col(x1)]
        part[:] = np.float32((158, 156, 150)) + _grain(rng, h, part.shape[1], 12)
        part[np.arange(h) % int(0.9 * GPZ) < 2] *= 0.6
        part[:, -2 if x0 < 0 else 0] *= 0.5
    # The houses on the left stand against the sun: their shadow lies on pavement and bay, with a ragged edge.
    edge = (LEFT_KERB + 1.4 + cv2.GaussianBlur(np.float32(rng.uniform(-1.6, 1.2, (12, 1))).repeat(h // 12, 0), (1, 1),
                                               0))
    shade = 1 - 0.42 / (1 + np.exp((across[None] - edge) * 8))
    image *= shade[:, :, None].astype(np.float32)
    image *= (1 + _noise(rng, h, w, 160, 0.1))[:, :, None]
    return Texture(GX1 - GX0, GROUND_PERIOD, _u8(image), ids)


# --------------------------------------------------------------------------------------------------- sprites

def _tree(rng: Generator, height: float, leaves: float) -> Texture:
    """A street tree: trunk, branches drawn recursively, and a share `leaves` (0 bare, 1 dense) of leaf clusters."""
    px = 56
    w, h = int(height * 0.78 * px), int(height * px)
    rgba = np.zeros((h, w, 4), np.float32)
    crown = np.zeros((h, w), np.uint8)
    tips = []

    def branch(x, y, angle, length, thick):
        x1, y1 = x + length * math.sin(angle), y - length * math.cos(angle)
        shade = rng.uniform(38, 74)
        cv2.line(rgba, (int(x), int(y)), (int(x1), int(y1)), (shade * 1.04, shade * 0.98, shade * 0.92, 255),
                 max(int(thick), 1), cv2.LINE_AA)
        if thick < 1.2 or length < 5:
            tips.append((x1, y1))
            return
        for _ in range(rng.integers(2, 4)):
            branch(x1, y1, angle * 0.9 + rng.normal(0, 0.45), length * rng.uniform(0.62, 0.86), thick * 0.66)

    trunk = 0.26 * height * px
    branch(w / 2, h, 0.0, trunk, height * 1.9)
    tips = [tips[i] for i in rng.permutation(len(tips))]
    points = np.array(tips)
    for x, y in tips:
        cv2.circle(crown, (int(x), int(y)), int(0.3 * px), 255, -1)
    dense = int(len(tips) * leaves)
    for x, y in sorted(tips[:dense], key=lambda p: -p[1]):
        lit = 0.55 + 0.6 * (1 - y / h) + 0.2 * (x / w - 0.5)
        for _ in range(26):
            dx, dy = rng.normal(0, 0.26 * px, 2)
            green = np.float32((70, 82, 48)) * lit * rng.uniform(0.35, 1.5)
            cv2.ellipse(rgba, (int(x + dx), int(y + dy)), (int(rng.integers(2, 5)), int(rng.integers(1, 4))),
                        float(rng.uniform(0, 180)), 0, 360, (*map(float, green), 255), -1, cv2.LINE_AA)
    crown = cv2.morphologyEx(crown, cv2.MORPH_CLOSE, np.ones((int(0.5 * px),) * 2, np.uint8))
    texture = _cutout(height * 0.78, height, rgba, TREE)
    texture.ids[crown > 0] = TREE
    del points
    return texture


def _hedge(rng: Generator, length: float, height: float, ivy: bool = False) -> Texture:
    """A strip of leaves, parallel to the street."""
    px = 40
    h, w = int(height * px), int(length * px)
    tone = 0.55 + _noise(rng, h, w, 2, 0.5) + _noise(rng, h, w, 8, 0.35) + _noise(rng, h, w, 40, 0.3)
    tone *= np.linspace(1.25, 0.6, h)[:, None]
    color = np.float32((84, 96, 54)) * np.clip(tone, 0.1, 2)[:, :, None] * 1.15
    top = (np.abs(_noise(rng, 1, w, 9, 0.35 * px)) + np.abs(_noise(rng, 1, w, 30, 0.3 * px)))[0]
    ids = np.where(np.arange(h)[:, None] >= top[None], TREE, NOTHING).astype(np.uint8)
    return Texture(length, height, _u8(color), ids)


def _railing(rng: Generator, length: float, height: float = 1.1) -> Texture:
    px = 60
    h, w = int(height * px), int(length * px)
    rgba = np.zeros((h, w, 4), np.float32)
    tone = rng.choice([34, 46, 120])
    for x in range(3, w, 7):
        _rect(rgba, x, 6, x + 2, h - 8, (tone, tone, tone * 1.02, 255))
    for x in range(0, w, 110):
        _rect(rgba, x, 0, x + 5, h, (tone * 0.9, tone * 0.9, tone * 0.9, 255))
    _rect(rgba, 0, 2, w, 7, (tone * 1.3, tone * 1.3, tone * 1.3, 255))
    _rect(rgba, 0, h - 11, w, h - 7, (tone, tone, tone, 255))
    texture = _cutout(length, height, rgba, FENCE)
    texture.ids[2:h - 2] = FENCE
    return texture


def _boards(rng: Generator, length: float, height: float = 1.7) -> Texture:
    """A wooden fence."""
    px = 40
    h, w = int(height * px), int(length * px)
    board = np.arange(w) // 5
    tone = rng.normal(1, 0.13, board[-1] + 1)[board][None, :, None]
    color = _fill(h, w, (118, 92, 68)) * tone + _grain(rng, h, w, 10)
    color[:, np.arange(w) % 5 == 0] *= 0.5
    for x in range(0, w, 72):
        _rect(color, x, 0, x + 5, h, (96, 84, 72))
    _rect(color, 0, 0, w, 3, (150, 130, 104))
    return Texture(length, height, _u8(color), np.full((h, w), FENCE, np.uint8))


def _person(rng: Generator, phase: float, look: Generator) -> Texture:
    """A walker seen from the front or behind at a phase (radians) of the stride; `look` draws the clothes."""
    px, height, width = 110, 1.78, 0.9
    h, w = int(height * px), int(width * px)
    rgba = np.zeros((h, w, 4), np.float32)
    coat = np.float32((look.uniform(14, 90),) * 3) * look.uniform(0.7, 1.3, 3)
    legs = np.float32((26, 28, 38)) * look.uniform(0.6, 1.8)
    skin, hair = np.float32((168, 126, 106)), np.float32((44, 34, 28)) * look.uniform(0.5, 2)
    long_coat, bag = look.random() < 0.4, look.random() < 0.5
    swing = math.sin(phase)

    def limb(points, thick, color):
        cv2.polylines(rgba, [np.int32(np.array(points) * px * 16)], False, (*map(float, color), 255),
                      int(thick * px), cv2.LINE_AA, 4)

    c = width / 2
    for side in (-1, 1):
        s = swing * side
        limb([(c + side * 0.08, 0.92), (c + side * 0.1 + 0.05 * s, 1.3), (c + side * 0.1 + 0.1 * s, 1.70 - 0.05 * max(s, 0))],
             0.14, legs * (1 + 0.15 * side))
        limb([(c + side * 0.09 + 0.1 * s, 1.73 - 0.05 * max(s, 0)), (c + side * 0.13 + 0.1 * s, 1.74 - 0.05 * max(s, 0))],
             0.08, (24, 22, 22))
        limb([(c + side * 0.2, 0.42), (c + side * 0.27, 0.68), (c + side * 0.24 - 0.06 * s, 0.94)], 0.1, coat * 0.8)
        cv2.circle(rgba, (int((c + side * 0.24 - 0.06 * s) * px), int(0.97 * px)), int(0.05 * px), (*map(float, skin), 255), -1,
                   cv2.LINE_AA)
    _poly_rgba(rgba, [(c - 0.2, 0.34), (c + 0.2, 0.34), (c + 0.23, 0.5), (c + 0.19, 1.2 if long_coat else 0.95),
                      (c - 0.19, 1.2 if long_coat else 0.95), (c - 0.23, 0.5)], px, coat)
    _poly_rgba(rgba, [(c + 0.02, 0.34), (c + 0.2, 0.36), (c + 0.2, 0.93), (c + 0.06, 0.93)], px, coat * 1.25)
    if bag:
        _poly_rgba(rgba, [(c + 0.2, 0.8), (c + 0.36, 0.8), (c + 0.34, 1.1), (c + 0.2, 1.1)], px, coat[::-1] * 0.8 + 20)
    limb([(c, 0.26), (c, 0.36)], 0.11, skin * 0.8)
    cv2.ellipse(rgba, (int(c * px), int(0.165 * px)), (int(0.085 * px), int(0.12 * px)), 0, 0, 360, (*map(float, skin), 255),
                -1, cv2.LINE_AA)
    cv2.ellipse(rgba, (int(c * px), int(0.125 * px)), (int(0.1 * px), int(0.1 * px)), 0, 0 if look.random() < 0.5 else 180, 360,
                (*map(float, hair), 255), -1, cv2.LINE_AA)
    rgba[:, :, :3] += _noise(rng, h, w, 4, 10)[:, :, None]
    return _cutout(width, height, rgba, PEDESTRIAN)


def _poly_rgba(rgba: np.ndarray, points, px: float, color) -> None:
    _poly(rgba, np.array(points) * px, (*map(float, np.clip(color, 0, 255)), 255))


def _cyclist(rng: Generator, phase: float) -> Texture:
    """A bicyclist from behind."""
    px, height, width = 110, 1.8, 0.9
    h, w = int(height * px), int(width * px)
    rgba = np.zeros((h, w, 4), np.float32)
    c = width / 2
    dark, jacket = np.float32((28, 28, 30)), np.float32((196, 204, 60))
    cv2.ellipse(rgba, (int(c * px), int(1.46 * px)), (int(0.035 * px), int(0.34 * px)), 0, 0, 360, (*map(float, dark), 255), -1,
                cv2.LINE_AA)
    _poly_rgba(rgba, [(c - 0.06, 1.0), (c + 0.06, 1.0), (c + 0.03, 1.3), (c - 0.03, 1.3)], px, (120, 30, 30))
    for side in (-1, 1):
        up = 0.12 * math.sin(phase) * side
        _poly_rgba(rgba, [(c + side * 0.05, 0.85), (c + side * 0.2, 0.88), (c + side * 0.19, 1.25 - up),
                          (c + side * 0.14, 1.55 - up), (c + side * 0.07, 1.55 - up)], px, (34, 36, 48))
        _poly_rgba(rgba, [(c + side * 0.05, 1.53 - up), (c + side * 0.18, 1.53 - up), (c + side * 0.18, 1.62 - up),
                          (c + side * 0.05, 1.62 - up)], px, dark)
        _poly_rgba(rgba, [(c + side * 0.16, 0.4), (c + side * 0.26, 0.42), (c + side * 0.34, 0.82),
                          (c + side * 0.27, 0.86)], px, jacket * 0.7)
    _poly_rgba(rgba, [(c - 0.19, 0.36), (c + 0.19, 0.36), (c + 0.24, 0.52), (c + 0.18, 0.93), (c - 0.18, 0.93),
                      (c - 0.24, 0.52)], px, jacket)
    _poly_rgba(rgba, [(c - 0.22, 0.58), (c + 0.22, 0.58), (c + 0.21, 0.66), (c - 0.21, 0.66)], px, (220, 220, 216))
    _poly_rgba(rgba, [(c - 0.15, 0.86), (c + 0.15, 0.86), (c + 0.16, 1.0), (c - 0.16, 1.0)], px, (30, 32, 42))
    cv2.ellipse(rgba, (int(c * px), int(0.2 * px)), (int(0.085 * px), int(0.12 * px)), 0, 0, 360, (96, 70, 58, 255), -1,
                cv2.LINE_AA)
    cv2.ellipse(rgba, (int(c * px), int(0.14 * px)), (int(0.11 * px), int(0.11 * px)), 0, 150, 390, (190, 190, 190, 255), -1,
                cv2.LINE_AA)
    rgba[:, :, :3] += _noise(rng, h, w, 4, 10)[:, :, None]
    return _cutout(width, height, rgba, BICYCLIST)


def _sign(kind: str) -> Texture:
    px, size = 120, 0.75
    n = int(size * px)
    rgba = np.zeros((n, n, 4), np.float32)
    c = n / 2
    if kind == 'limit':
        cv2.circle(rgba, (int(c), int(c)), int(c) - 2, (196, 30, 34, 255), -1, cv2.LINE_AA)
        cv2.circle(rgba, (int(c), int(c)), int(c * 0.72), (232, 232, 230, 255), -1, cv2.LINE_AA)
        cv2.putText(rgba, '30', (int(c * 0.45), int(c * 1.32)), cv2.FONT_HERSHEY_DUPLEX, 1.3, (20, 20, 20, 255), 3, cv2.LINE_AA)
    elif kind == 'warning':
        _poly(rgba, [(c, 3), (n - 2, n - 8), (2, n - 8)], (198, 34, 36, 255))
        _poly(rgba, [(c, 22), (n - 19, n - 17), (19, n - 17)], (232, 232, 228, 255))
        _rect(rgba, c - 3, n * 0.42, c + 4, n * 0.72, (20, 20, 20, 255))
    elif kind == 'blue':
        cv2.circle(rgba, (int(c), int(c)), int(c) - 2, (36, 84, 160, 255), -1, cv2.LINE_AA)
        _poly(rgba, [(c, n * 0.2), (n * 0.74, n * 0.5), (n * 0.58, n * 0.5), (n * 0.58, n * 0.8), (n * 0.42, n * 0.8),
                     (n * 0.42, n * 0.5), (n * 0.26, n * 0.5)], (230, 232, 236, 255))
    elif kind == 'board':
        _rect(rgba, 2, 12, n - 2, n - 12, (30, 76, 60, 255))
        cv2.putText(rgba, 'A14', (12, int(c * 1.2)), cv2.FONT_HERSHEY_DUPLEX, 1.0, (236, 232, 210, 255), 2, cv2.LINE_AA)
    else:  # back of a sign
        cv2.circle(rgba, (int(c), int(c)), int(c) - 2, (96, 98, 100, 255), -1, cv2.LINE_AA)
    return _cutout(size, size, rgba, SIGN)


def _traffic_light(state: int) -> Texture:
    px, width, height = 130, 0.42, 1.1
    h, w = int(height * px), int(width * px)
    rgba = np.zeros((h, w, 4), np.float32)
    _rect(rgba, 0, 0, w, h, (22, 23, 24, 255))
    for i, lamp in enumerate(((250, 60, 40), (250, 180, 60), (90, 250, 190))):
        on = i == state
        cv2.circle(rgba, (w // 2, int(h * (0.2 + 0.3 * i))), int(w * 0.28),
                   (*(float(v) if on else 18 + v * 0.14 for v in lamp), 255.0), -1, cv2.LINE_AA)
    return _cutout(width, height, rgba, SIGN)


# ------------------------------------------------------------------------------------------------------ cars

@dataclass(frozen=True)
class CarShape:
    """Side profile in metres: the rear is at 0, the front at `length`."""

    length: float
    width: float
    height: float
    waist: float
    rear_glass: tuple[float, float]  # z at the waist and at the roof
    front_glass: tuple[float, float]
    bonnet: float


SHAPES = {
    'hatch': CarShape(3.9, 1.68, 1.46, 0.92, (0.12, 0.5), (2.85, 2.1), 0.78),
    'saloon': CarShape(4.5, 1.74, 1.42, 0.92, (0.75, 1.3), (3.3, 2.6), 0.78),
    'estate': CarShape(4.5, 1.76, 1.55, 0.96, (0.1, 0.3), (3.3, 2.6), 0.84),
    'van': CarShape(4.9, 1.9, 2.05, 1.1, (0.02, 0.06), (4.3, 3.7), 1.0),
}
PAINTS = ((26, 28, 32), (150, 154, 160), (186, 190, 194), (226, 228, 228), (30, 44, 84), (128, 24, 28), (54, 60, 66),
          (88, 96, 106), (36, 66, 58), (150, 120, 66))
CAR_PX = 90


@dataclass(frozen=True)
class Car:
    """Textures of a car; the ends are split at the waist, so that the glass can lean."""

    shape: CarShape
    side_low: Texture
    side_high: Texture
    rear_low: Texture
    rear_high: Texture
    front_low: Texture
    front_high: Texture
    top: Texture


def _car(rng: Generator, kind: str) -> Car:
    shape = SHAPES[kind]
    paint = np.float32((232, 232, 230) if kind == 'van' else PAINTS[rng.integers(len(PAINTS))])
    px = CAR_PX

    def body(w: float, h: float, top: float, bottom: float) -> np.ndarray:
        """Paint with the sky mirrored in what faces up and the road in what faces down."""
        hh, ww = int(h * px), int(w * px)
        y = np.linspace(0, 1, hh, dtype=np.float32)[:, None, None]
        rgba = np.zeros((hh, ww, 4), np.float32)
        sheen = top + (bottom - top) * y
        rgba[:, :, :3] = paint * sheen + 26 * np.exp(-((y - 0.18) / 0.1) ** 2) + _noise(rng, hh, ww, 30, 7)[:, :, None]
        rgba[:, :, 3] = 255
        return rgba

    def glass(w: float, h: float, bright: float) -> np.ndarray:
        hh, ww = int(h * px), int(w * px)
        rgba = np.zeros((hh, ww, 4), np.float32)
        y = np.linspace(1, 0, hh, dtype=np.float32)[:, None, None]
        rgba[:, :, :3] = np.float32((30, 34, 38)) + np.float32((92, 104, 112)) * bright * y
        rgba[:, :, :3] += _noise(rng, hh, ww, 18, 16)[:, :, None]
        rgba[:, :, 3] = 255
        return rgba

    def texture(rgba: np.ndarray, w: float, h: float) -> Texture:
        return _cutout(w, h, rgba, CAR)

    length, width, waist = shape.length, shape.width, shape.waist
    upper = shape.height - waist
    # Side, lower half: sills, doors, wheels.
    low = body(length, waist, 1.0, 0.5)
    hh, ww = low.shape[:2]
    front_wheel, rear_wheel, radius = (length - 0.82) * px, 0.75 * px, 0.31 * px
    rise = np.zeros((hh, ww), np.uint8)
    _poly(rise, [(0, 0.1 * px), (shape.rear_glass[0] * px, 0), (shape.front_glass[0] * px, 0),
                 ((length - 0.12) * px, (waist - shape.bonnet + 0.04) * px), (ww, (waist - 0.5) * px), (ww, hh - 0.24 * px),
                 ((length - 0.1) * px, hh - 0.18 * px), (0.1 * px, hh - 0.18 * px), (0, hh - 0.26 * px)], 255)
    low[:, :, 3] = rise
    _rect(low[:, :, :3], 0, hh - 0.34 * px, ww, hh - 0.18 * px, (34, 34, 36))
    _rect(low[:, :, :3], 0, hh * 0.46, ww, hh * 0.5, paint * 0.5)
    for x in (shape.rear_glass[0] + 0.9, (shape.rear_glass[0] + shape.front_glass[0]) / 2 + 0.15, shape.front_glass[0] - 0.1):
        _rect(low[:, :, :3], x * px, 0, x * px + 2, hh - 0.3 * px, paint * 0.35)
        _rect(low[:, :, :3], (x - 0.24) * px, hh * 0.2, (x - 0.08) * px, hh * 0.25, paint * 0.45)
    _rect(low[:, :, :3], 0, hh * 0.16, 0.13 * px, hh * 0.42, (150, 20, 20))
    _rect(low[:, :, :3], ww - 0.3 * px, hh * 0.3, ww, hh * 0.48, (200, 204, 206))
    for x in (rear_wheel, front_wheel):
        for r, color in ((1.14, (14, 14, 14)), (1.0, (30, 30, 31)), (0.66, (128, 130, 134)), (0.56, (84, 86, 88)), (0.2, (140, 142, 144))):
            cv2.circle(low, (int(x * 16), int((hh - radius) * 16)), int(radius * r * 16), (*map(float, color), 255.0), -1,
                       cv2.LINE_AA, 4)
        for a in range(5):
            tip = (int((x + 0.6 * radius * math.cos(a * 1.257)) * 16), int((hh - radius + 0.6 * radius * math.sin(a * 1.257)) * 16))
            cv2.line(low, (int(x * 16), int((hh - radius) * 16)), tip, (150, 152, 156, 255), 3, cv2.LINE_AA, 4)
    # Side, upper half: windows between pillars.
    high = glass(length, upper, 0.35)
    hh, ww = high.shape[:2]
    outline = np.zeros((hh, ww), np.uint8)
    _poly(outline, [(shape.rear_glass[0] * px, hh), (shape.rear_glass[1] * px, 0.02 * px), (shape.rear_glass[1] * px + 12, 0),
                    (shape.front_glass[1] * px, 0), (shape.front_glass[0] * px, hh)], 255)
    high[:, :, 3] = outline
    rim = cv2.erode(outline, np.ones((9, 9), np.uint8)) == 0
    high[rim, :3] = paint * 0.95
    _rect(high[:, :, :3], 0, 0, ww, 0.07 * px, paint * 1.1)
    middle = (shape.rear_glass[0] + shape.front_glass[0]) / 2 + 0.15
    for x in (middle, shape.rear_glass[0] + 0.75):
        _rect(high[:, :, :3], (x - 0.05) * px, 0, (x + 0.05) * px, hh, paint * 0.3)
    if kind == 'van':
        _rect(high[:, :, :3], 0, 0, (shape.front_glass[1] - 0.6) * px, hh, paint * 0.86)
    # Ends, lower halves.
    ends = []
    for rear in (True, False):
        end = body(width, waist, 0.98 if rear else 1.02, 0.5)
        hh, ww = end.shape[:2]
        shell = np.zeros((hh, ww), np.uint8)
        _poly(shell, [(0.04 * px, 0.03 * px), (0.16 * px, 0), (ww - 0.16 * px, 0), (ww - 0.04 * px, 0.03 * px), (ww, 0.25 * px),
                      (ww, hh - 0.3 * px), (ww - 0.05 * px, hh - 0.2 * px), (0.05 * px, hh - 0.2 * px), (0, hh - 0.3 * px), (0, 0.25 * px)], 255)
        for x in (0.0, width - 0.22):
            _rect(shell, x * px + 2, hh - 0.3 * px, (x + 0.22) * px - 2, hh, 255)
        end[:, :, 3] = shell
        rgb = end[:, :, :3]
        _rect(rgb, 0, hh - 0.2 * px, ww, hh, (18, 18, 19))
        _rect(rgb, 0, hh - 0.34 * px, ww, hh - 0.2 * px, (40, 40, 42))
        _rect(rgb, 0, hh - 0.46 * px, ww, hh - 0.44 * px, paint * 0.4)
        if rear:
            for x in (0.03, width - 0.25):
                _rect(rgb, x * px, 0.1 * px, (x + 0.22) * px, 0.42 * px, (140, 22, 22))
                _rect(rgb, x * px, 0.14 * px, (x + 0.22) * px, 0.22 * px, (210, 50, 40))
                _rect(rgb, x * px, 0.3 * px, (x + 0.22) * px, 0.35 * px, (196, 150, 120))
            plate = (196, 176, 60)
            _rect(rgb, 0.25 * px, 0.02 * px, ww - 0.25 * px, 0.05 * px, paint * 0.5)
        else:
            _rect(rgb, 0.45 * px, 0.2 * px, ww - 0.45 * px, 0.38 * px, (24, 24, 26))
            for x in (0.06, width - 0.42):
                _rect(rgb, x * px, 0.16 * px, (x + 0.36) * px, 0.36 * px, (206, 212, 216))
                _rect(rgb, (x + 0.1) * px, 0.2 * px, (x + 0.26) * px, 0.33 * px, (120, 126, 132))
            plate = (226, 226, 220)
        _rect(rgb, ww / 2 - 0.27 * px, hh - 0.44 * px, ww / 2 + 0.27 * px, hh - 0.32 * px, plate)
        for i in range(7):
            _rect(rgb, ww / 2 - 0.23 * px + i * 6, hh - 0.42 * px, ww / 2 - 0.2 * px + i * 6, hh - 0.34 * px, (30, 30, 30))
        # The glass above it, narrower at the roof.
        pane = glass(width, upper, 0.75)
        gh, gw = pane.shape[:2]
        outline = np.zeros((gh, gw), np.uint8)
        inset = 0.03 if kind == 'van' else 0.17
        _poly(outline, [(0.04 * px, gh), (inset * px, 0.04 * px), ((inset + 0.08) * px, 0), (gw - (inset + 0.08) * px, 0),
                        (gw - inset * px, 0.04 * px), (gw - 0.04 * px, gh)], 255)
        pane[:, :, 3] = outline
        for x in (0.3, 0.7):  # head restraints
            cv2.ellipse(pane, (int(gw * x), int(gh * 0.75)), (int(0.13 * px), int(0.17 * px)), 0, 0, 360, (26, 27, 29, 255), -1)
        rim = cv2.erode(outline, np.ones((13, 13), np.uint8)) == 0
        pane[rim, :3] = paint * 0.9
        _rect(pane[:, :, :3], 0, 0, gw, 0.06 * px, paint * 1.1)
        if kind == 'van' and rear:
            pane[:, :, :3] = paint * 0.85
            for x in (0.16, 0.56):
                _rect(pane[:, :, :3], gw * x, gh * 0.2, gw * (x + 0.28), gh * 0.75, (40, 44, 48))
        ends += [texture(end, width, waist), texture(pane, width, upper)]
    top = _u8(_fill(8, 8, np.minimum(paint * 0.6 + 90, 235)))
    return Car(shape, texture(low, length, waist), texture(high, length, upper), *ends,
               Texture(1, 1, top, np.full((8, 8), CAR, np.uint8)))


# ------------------------------------------------------------------------------------------------- the scene

@dataclass(frozen=True)
class Wall:
    """A texture along the street, standing from z0 to z1 at x."""

    texture: Texture
    x: float
    z0: float
    z1: float


@dataclass(frozen=True)
class Board:
    """A texture across the street, its centre at x, its foot at y; several textures are the phases of a walk."""

    textures: tuple[Texture, ...]
    x: float
    z: float
    y: float = 0.0
    speed: float = 0.0  # m/s along z


@dataclass(frozen=True)
class Post:
    """A column, with an arm and lamp where `arm` (metres, signed) is not 0."""

    x: float
    z: float
    height: float
    radius: float
    tone: float
    arm: float = 0.0


@dataclass(frozen=True)
class Vehicle:
    """A car, its centre at x, its near end at z; `away`: we see its rear."""

    car: Car
    x: float
    z: float
    away: bool
    speed: float = 0.0
    follows: bool = False  # keeps its distance from us


class Street:
    """
    The street as a camera: `render(t)` gives the frame at t seconds, the same for the same size and seed.

    `matrix`: (3, 3) pinhole intrinsics in pixels; no distortion.
    """

    def __init__(self, width: int = 640, height: int = 480, seed: int = 0):
        if not (64 <= width <= 4096 and 64 <= height <= 4096):
            raise ValueError(f'a street of {width}x{height} pixels; expected 64 to 4096 each way')
        self.width, self.height = width, height
        focal = 0.9 * width
        self.matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        rng = np.random.default_rng(seed)
        self._ground = _ground(rng)
        self._sky, self._sky_ids = self._backdrop(rng)
        self._houses: list[tuple[Wall, Texture | None]] = []
        self._verges: list[Wall] = []
        self._things: list[Board | Post | Vehicle] = []
        self._build_sides(rng)
        self._furnish(rng)
        self._noise = np.clip(rng.normal(0, 2.6, (8, height, width, 3)).repeat(1, 0) + 64, 0, 128).astype(np.uint8)
        self._phases = rng.permutation(8)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        r2 = ((x - width / 2) ** 2 + (y - height / 2) ** 2) / (width ** 2 + height ** 2) * 4
        self._vignette = np.repeat(_u8(255 * (1 - 0.16 * r2))[:, :, None], 3, 2)

    # -- building it

    def _backdrop(self, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sky above and a far skyline of trees and roofs, wider than the image to leave room for the yaw."""
        w, h = int(self.width * 1.3), self.height
        horizon = h // 2
        y = np.linspace(0, 1, h, dtype=np.float32)[:, None]
        blue = np.float32((206, 228, 246))
        white = np.float32((252, 253, 254))
        cloud = np.clip(0.62 + _noise(rng, h, w, w / 5, 0.5) + _noise(rng, h, w, w / 14, 0.22) + 0.7 * y, 0, 1)[:, :, None]
        color = blue * (1 - cloud) + white * cloud
        ids = np.full((h, w), SKY, np.uint8)
        scale = self.width / 640
        top = horizon - scale * (13 + 9 * np.abs(_noise(rng, 1, w, 26 * scale, 1.6)[0]) + 4 * np.abs(_noise(rng, 1, w, 5 * scale, 1)[0]))
        trees = np.arange(h)[:, None] >= top[None]
        color[trees] = (np.float32((140, 146, 140)) + _noise(rng, h, w, 3 * scale, 26)[:, :, None])[trees]
        ids[trees] = TREE
        x = 0.0
        while x < w:
            x1 = x + scale * rng.uniform(16, 50)
            if rng.random() < 0.6:
                y0 = horizon - scale * rng.uniform(8, 22)
                tone = rng.uniform(120, 196)
                _rect(color, x, y0, x1, h, (tone, tone * 0.98, tone * 0.95))
                _rect(color, x, y0, x1, y0 + 3 * scale, (130, 128, 130))
                _rect(ids, x, y0, x1, h, BUILDING)
            x = x1
        return _u8(color), ids

    def _build_sides(self, rng: Generator) -> None:
        kinds = ('terrace', 'shops', 'terrace', 'shops', 'office', 'college')
        for side, x, light in ((-1, LEFT_WALL, 0.56), (1, RIGHT_WALL, 1.04)):
            z = 0.0
            while z < PERIOD - 9:
                length = min(float(rng.uniform(10, 19)), PERIOD - z)
                kind = kinds[rng.integers(len(kinds))]
                back = 4.5 if kind == 'terrace' and rng.random() < 0.45 else 0.0
                face = _facade(rng, length, kind, light * float(rng.uniform(0.88, 1.08)))
                gap = float(rng.uniform(3, 8)) if rng.random() < 0.4 else 0.0
                gable = _gable(rng, 9.0, face.height - 0.8, 0.62)
                self._houses.append((Wall(face, x + side * back, z, z + length), gable))
                if back:
                    kind = int(rng.integers(4))
                    make = (_railing, _boards, lambda r, n: _hedge(r, n, 1.5), _railing)[kind]
                    self._verges.append(Wall(make(rng, length), x, z, z + length))
                if gap:
                    make = _boards if rng.random() < 0.5 else (lambda r, n: _hedge(r, n, 2.6))
                    self._verges.append(Wall(make(rng, gap), x + side * 0.6, z + length, z + length + gap))
                z += length + gap

    def _furnish(self, rng: Generator) -> None:
        add = self._things.append
        trees = [_tree(rng, height, leaves) for height, leaves in ((8.5, 0.25), (7.0, 0.9), (9.5, 0.06), (6.0, 0.6))]
        signs = [_sign(k) for k in ('limit', 'warning', 'blue', 'board', 'back')]
        cars = [_car(rng, kind) for kind in ('hatch', 'saloon', 'hatch', 'estate', 'van', 'hatch', 'saloon', 'estate')]
        people = []
        for _ in range(6):
            look = int(rng.integers(1 << 30))
            people.append(tuple(_person(rng, p, np.random.default_rng(look)) for p in np.arange(0, 2 * math.pi, math.pi / 4)))
        rider = tuple(_cyclist(rng, p) for p in np.arange(0, 2 * math.pi, math.pi / 4))
        for z in np.arange(6, PERIOD, 26):  # lamp posts, both sides in turn
            add(Post(LEFT_KERB - 0.5, z, 7.5, 0.085, 96, 1.5))
            add(Post(RIGHT_KERB + 0.5, z + 13, 7.5, 0.085, 96, -1.5))
        for z in np.arange(9, PERIOD, 21):
            for x in (LEFT_KERB - 1.0, RIGHT_KERB + 1.1):
                if rng.random() < 0.55:
                    add(Board((trees[rng.integers(len(trees))],), x, float(z + rng.uniform(0, 8))))
        for z in np.arange(4, PERIOD, 17):
            side = rng.random() < 0.5
            x = LEFT_KERB - 0.45 if side else RIGHT_KERB + 0.45
            z = float(z + rng.uniform(0, 6))
            high = float(rng.uniform(2.1, 2.5))
            add(Post(x, z, high + 0.6, 0.035, 120))
            add(Board((signs[rng.integers(len(signs))],), x, z - 0.05, high))
            if rng.random() < 0.4:
                add(Board((signs[rng.integers(len(signs))],), x, z - 0.05, high - 0.8))
        for z, state in ((70.0, 2), (190.0, 0)):
            for x in (LEFT_KERB - 0.4, RIGHT_KERB + 0.4):
                add(Post(x, z, 2.3, 0.055, 60))
                add(Board((_traffic_light(state),), x, z - 0.1, 2.2))
        for z in np.arange(20, PERIOD, 1.8):  # bollards
            if 100 < z < 122:
                add(Post(RIGHT_KERB + 0.4, float(z), 1.0, 0.06, 40))
        z = 3.0
        while z < PERIOD - 6:  # the parking bay
            car = cars[rng.integers(len(cars))]
            if rng.random() < 0.55:
                add(Vehicle(car, -3.25 + float(rng.uniform(-0.1, 0.1)), z, away=rng.random() < 0.8))
            z += car.shape.length + float(rng.uniform(0.7, 2.5))
        add(Vehicle(cars[0], 0.05, 15.0, True, follows=True))
        add(Vehicle(cars[3], 0.0, 38.0, True, follows=True))
        for i in range(7):
            add(Vehicle(cars[(i * 3 + 1) % len(cars)], 3.5, i * PERIOD / 7 + float(rng.uniform(0, 15)), False, -8.0))
        for i in range(26):
            x = float(rng.uniform(LEFT_WALL + 0.7, LEFT_KERB - 0.8) if i % 2 else rng.uniform(RIGHT_KERB + 0.9, RIGHT_WALL - 0.5))
            speed = float(rng.uniform(1.0, 1.6)) * (1 if rng.random() < 0.5 else -1)
            add(Board(people[i % len(people)], x, float(rng.uniform(0, PERIOD)), 0.0, speed))
        for z in (30.0, 150.0):
            add(Board(rider, -1.45, z, 0.0, 5.2))

    # -- drawing it

    def render(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Frame at `t` seconds: (H, W, 3) uint8 RGB, and (H, W) uint8 CamVid class ids (no void).

        The arrays are the caller's; the next frame is drawn into new ones.
        """
        self._t = t
        self._s = 7.5 * t + 3.0 * math.sin(0.23 * t)
        self._x = 0.12 * math.sin(0.5 * t)
        self._y = CAMERA_HEIGHT + 0.012 * math.sin(7.1 * t)
        yaw, pitch = 0.012 * math.sin(0.31 * t), 0.0025 * math.sin(5.3 * t) + 0.001 * math.sin(11.7 * t)
        self._yaw = math.cos(yaw), math.sin(yaw)
        self._pitch = math.cos(pitch), math.sin(pitch)
        # The horizon moves by whole pixels: the backdrop is a plain copy.
        dx = int(round(0.15 * self.width + self.matrix[0, 0] * math.tan(yaw)))
        dy = int(round(self.matrix[1, 1] * math.tan(pitch)))
        self._rgb = np.roll(self._sky[:, dx:dx + self.width], dy, 0) if dy else self._sky[:, dx:dx + self.width].copy()
        self._ids = np.roll(self._sky_ids[:, dx:dx + self.width], dy, 0) if dy else self._sky_ids[:, dx:dx + self.width].copy()
        self._draw_ground()
        for z, wall, gable in sorted(((self._ahead(w.z0, w.z1 - w.z0), w, g) for w, g in self._houses),
                                     key=lambda item: -item[0]):
            if gable is not None and z > 4:
                out = 9.0 if wall.x > 0 else -9.0
                self._quad(gable, [(wall.x, gable.height, z), (wall.x + out, gable.height, z), (wall.x + out, 0, z), (wall.x, 0, z)])
            self._wall(wall, z)
        for z, wall in sorted(((self._ahead(w.z0, w.z1 - w.z0), w) for w in self._verges), key=lambda item: -item[0]):
            self._wall(wall, z)
        order = []
        for thing in self._things:
            if isinstance(thing, Vehicle):
                z = self._vehicle_z(thing)
            else:
                z = self._ahead(thing.z + getattr(thing, 'speed', 0.0) * t, 0.0)
            if NEAR < z < VISIBLE or (isinstance(thing, Vehicle) and z < VISIBLE):
                order.append((z, thing))
        for z, thing in sorted(order, key=lambda item: -item[0]):
            if isinstance(thing, Post):
                self._post(thing, z)
            elif isinstance(thing, Board):
                self._board(thing, z)
            else:
                self._vehicle(thing, z)
        return self._develop(), self._ids

    def _ahead(self, z: float, length: float) -> float:
        """Distance in front of us of what starts at z, as far as -length behind."""
        return (z - self._s + length) % PERIOD - length

    def _vehicle_z(self, v: Vehicle) -> float:
        if v.follows:
            return v.z + 0.25 * v.z * math.sin(0.17 * self._t + v.z)
        return self._ahead(v.z + v.speed * self._t, v.car.shape.length)

    def _project(self, points) -> np.ndarray:
        """World points relative to our place on the street (x, y, z) -> (N, 2) float32 pixels."""
        focal, cx, cy = self.matrix[0, 0], self.matrix[0, 2], self.matrix[1, 2]
        cos_yaw, sin_yaw = self._yaw
        cos_pitch, sin_pitch = self._pitch
        out = []
        for x, y, z in points:
            x, y = x - self._x, self._y - y
            x, z = x * cos_yaw - z * sin_yaw, x * sin_yaw + z * cos_yaw
            y, z = y * cos_pitch + z * sin_pitch, z * cos_pitch - y * sin_pitch
            out.append((cx + focal * x / z, cy + focal * y / z))
        return np.array(out, np.float32)

    def _draw_ground(self) -> None:
        """Warp the ground in bands of rows, each from the resolution that fits its distance."""
        focal = self.matrix[0, 0]
        horizon = float(self._project([(self._x, self._y, 1000.0)])[0, 1])
        bottom = self.height
        for z in (7.0, 12.0, 20.0, 34.0, 60.0, 110.0, 400.0):
            top = max(int(math.ceil(horizon + focal * CAMERA_HEIGHT / z)), 0)
            if top >= bottom:
                continue
            near = focal * CAMERA_HEIGHT / max(bottom - horizon, 1)
            middle = math.sqrt(near * z)
            kx = max(int(math.log2(max(GPX * middle / focal, 1))), 0)
            kz = max(int(math.log2(max(GPZ * middle ** 2 / (focal * CAMERA_HEIGHT), 1))), 0)
            kz = min(kz, 8)
            color, ids, _ = self._ground.level(kx, kz)
            h, w = ids.shape
            z0 = max(near * 0.9, NEAR)
            corners = [(GX0, 0, z0), (GX1, 0, z0), (GX1, 0, z), (GX0, 0, z)]
            # Texture row of z: the last row is z = 0, and z grows upward; BORDER_WRAP repeats it.
            rows = [h - (((self._s % GROUND_PERIOD) + c[2]) * h / GROUND_PERIOD) - 0.5 for c in corners]
            source = np.array([(-0.5, rows[0]), (w - 0.5, rows[1]), (w - 0.5, rows[2]), (-0.5, rows[3])], np.float32)
            target = self._project(corners) - np.float32((0, top))
            matrix = cv2.getPerspectiveTransform(target, source)
            size = self.width, bottom - top
            flags = cv2.WARP_INVERSE_MAP
            cv2.warpPerspective(color, matrix, size, self._rgb[top:bottom], flags | cv2.INTER_LINEAR, cv2.BORDER_WRAP)
            cv2.warpPerspective(ids, matrix, size, self._ids[top:bottom], flags | cv2.INTER_NEAREST, cv2.BORDER_WRAP)
            haze = self._haze(middle)
            if haze > 0.02:
                cv2.convertScaleAbs(self._rgb[top:bottom], self._rgb[top:bottom], 1 - haze, haze * HAZE)
            bottom = top

    @staticmethod
    def _haze(z: float) -> float:
        return 1 - math.exp(-max(z - 8, 0) / 330)

    def _wall(self, wall: Wall, z: float) -> None:
        """Draw a texture along the street from z on, cut where it passes us; its left edge is z0 on the left side."""
        length = wall.z1 - wall.z0
        z0, z1 = max(z, NEAR), min(z + length, VISIBLE + 30)
        if z0 >= z1:
            return
        near, far = (z0 - z) / length, (z1 - z) / length
        h = wall.texture.height
        if wall.x < 0:
            corners = [(wall.x, h, z0), (wall.x, h, z1), (wall.x, 0, z1), (wall.x, 0, z0)]
            self._quad(wall.texture, corners, near, far)
        else:
            corners = [(wall.x, h, z1), (wall.x, h, z0), (wall.x, 0, z0), (wall.x, 0, z1)]
            self._quad(wall.texture, corners, 1 - far, 1 - near)

    def _board(self, board: Board, z: float) -> None:
        textures = board.textures
        texture = textures[int(self._t * 6.0 + board.z * 3) % len(textures)]
        h, half = texture.height, texture.width / 2
        if board.speed and board.y == 0:
            self._shadow(board.x, z, 0.35, 0.25)
        self._quad(texture, [(board.x - half, board.y + h, z), (board.x + half, board.y + h, z),
                             (board.x + half, board.y, z), (board.x - half, board.y, z)])

    def _post(self, post: Post, z: float) -> None:
        x, r, tone = post.x, post.radius, post.tone
        haze = self._haze(z)
        for a, b, shade in ((-1.0, -0.2, 0.62), (-0.2, 0.5, 1.0), (0.5, 1.0, 1.35)):
            value = min(tone * shade, 255) * (1 - haze) + HAZE * haze
            self._flat([(x + a * r, 0, z), (x + b * r, 0, z), (x + b * r * 0.7, post.height, z), (x + a * r * 0.7, post.height, z)],
                       (value, value, value * 1.02), POLE)
        if post.arm:
            top, end = post.height, x + post.arm
            value = tone * 0.8 * (1 - haze) + HAZE * haze
            self._flat([(x, top - 0.05, z), (x, top + 0.03, z), (end, top + 0.28, z), (end, top + 0.2, z)], (value,) * 3, POLE)
            lamp = end + math.copysign(0.6, post.arm)
            self._flat([(end, top + 0.16, z), (end, top + 0.32, z), (lamp, top + 0.36, z), (lamp, top + 0.24, z)],
                       (value * 0.7,) * 3, POLE)

    def _vehicle(self, v: Vehicle, z: float) -> None:
        car, shape = v.car, v.car.shape
        half, waist, top = shape.width / 2, shape.waist, shape.height
        near, far = z, z + shape.length
        if far < NEAR + 0.5:
            return
        x0, x1 = v.x - half, v.x + half

        def along(d: float) -> float:
            """Distance of the point d metres from the car's rear."""
            return near + d if v.away else far - d

        self._shadow(v.x, (near + far) / 2, half * 1.12, shape.length / 2 + 0.15)
        rear_low, rear_high = along(shape.rear_glass[0]), along(shape.rear_glass[1])
        front_low, front_high = along(shape.front_glass[0]), along(shape.front_glass[1])
        clip = NEAR + 0.2
        # Faces up: boot and bonnet, when the camera is above them.
        if near > clip:
            a, b = (near + 0.1, rear_low) if v.away else (near + 0.12, front_low)
            edge = waist - 0.02 if v.away else shape.bonnet
            self._quad(car.top, [(x0 + 0.06, waist, b), (x1 - 0.06, waist, b), (x1 - 0.06, edge, a), (x0 + 0.06, edge, a)])
        # The side that looks at us.
        side = x1 if x1 < self._x else x0 if x0 > self._x else None
        if side is not None:
            lean = math.copysign(0.15, v.x - side)
            for texture, y0, y1, inset in ((car.side_low, 0.0, waist, 0.0), (car.side_high, waist, top, lean)):
                z0, z1 = max(near, clip), far
                u0, u1 = (z0 - near) / shape.length, 1.0
                if not v.away:
                    u0, u1 = 1 - u0, 0.0
                corners = [(side + inset, y1, z0), (side + inset, y1, z1), (side, y0, z1), (side, y0, z0)]
                self._quad(texture, corners, u0, u1)
        if near > clip:
            high, low = (car.rear_high, car.rear_low) if v.away else (car.front_high, car.front_low)
            foot, head = (rear_low, rear_high) if v.away else (front_low, front_high)
            self._quad(high, [(x0, top, head), (x1, top, head), (x1, waist, foot), (x0, waist, foot)])
            brow = waist if v.away else shape.bonnet + 0.04
            self._quad(low, [(x0, brow, near), (x1, brow, near), (x1, 0, near), (x0, 0, near)])

    def _shadow(self, x: float, z: float, half_x: float, half_z: float) -> None:
        """Darken the ground softly under something; the ids stay."""
        if z - half_z < NEAR + 0.3:
            half_z = max((z + half_z - NEAR - 0.3) / 2, 0.05)
            z = NEAR + 0.3 + half_z
        for grow, tone in ((1.25, 0.86), (1.1, 0.72), (0.98, 0.5)):
            points = [(x + grow * half_x * c, 0, z + grow * half_z * s) for c, s in
                      ((1, 0.8), (0.8, 1), (-0.8, 1), (-1, 0.8), (-1, -0.8), (-0.8, -1), (0.8, -1), (1, -0.8))]
            if any(p[2] < NEAR for p in points):
                continue
            quad = self._project(points)
            box = self._box(quad)
            if box is None:
                return
            left, up, right, down = box
            mask = np.zeros((down - up, right - left), np.uint8)
            cv2.fillConvexPoly(mask, np.round((quad - (left, up)) * 16).astype(np.int32), 255, cv2.LINE_8, 4)
            area = self._rgb[up:down, left:right]
            cv2.copyTo(cv2.convertScaleAbs(area, None, tone, 0), mask, area)

    def _flat(self, corners, color, class_id: int) -> None:
        points = np.round(self._project(corners) * 16)
        if np.abs(points).max() > 1 << 19:
            return
        points = points.astype(np.int32)
        cv2.fillConvexPoly(self._rgb, points, color, cv2.LINE_8, 4)
        cv2.fillConvexPoly(self._ids, points, class_id, cv2.LINE_8, 4)

    def _box(self, quad: np.ndarray) -> tuple[int, int, int, int] | None:
        """Pixels that a quadrangle may touch: left, top, right, bottom (exclusive); None when off the image."""
        (left, up), (right, down) = quad.min(0), quad.max(0)
        left, up = max(int(math.floor(left)), 0), max(int(math.floor(up)), 0)
        right, down = min(int(math.ceil(right)) + 1, self.width), min(int(math.ceil(down)) + 1, self.height)
        return (left, up, right, down) if left < right and up < down else None

    def _quad(self, texture: Texture, corners, u0: float = 0.0, u1: float = 1.0) -> None:
        """Draw columns u0 to u1 (0-1) of a texture onto the plane through four points, clockwise from its top left."""
        quad = self._project(corners)
        box = self._box(quad)
        if box is None:
            return
        left, up, right, down = box
        h, w = texture.ids.shape
        across = max(math.dist(quad[0], quad[1]), math.dist(quad[3], quad[2]), 0.5)
        along = max(math.dist(quad[0], quad[3]), math.dist(quad[1], quad[2]), 0.5)
        kx = max(min(int(math.log2(max(w * abs(u1 - u0) / across, 1)) + 0.35), 7), 0)
        ky = max(min(int(math.log2(max(h / along, 1)) + 0.35), 7), 0)
        color, ids, through = texture.level(kx, ky)
        h, w = ids.shape
        a, b = u0 * w - 0.5, u1 * w - 0.5
        source = np.array([(a, -0.5), (b, -0.5), (b, h - 0.5), (a, h - 0.5)], np.float32)
        matrix = cv2.getPerspectiveTransform(quad - np.float32((left, up)), source)
        size = right - left, down - up
        flags = cv2.WARP_INVERSE_MAP
        new_ids = cv2.warpPerspective(ids, matrix, size, None, flags | cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, NOTHING)
        mask = cv2.compare(new_ids, NOTHING, cv2.CMP_NE)
        area = self._rgb[up:down, left:right]
        haze = self._haze(sum(c[2] for c in corners) / 4)
        if through is None:
            new = cv2.warpPerspective(color, matrix, size, None, flags | cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
            if haze > 0.02:
                cv2.convertScaleAbs(new, new, 1 - haze, haze * HAZE)
            cv2.copyTo(new, mask, area)
        else:
            new = cv2.warpPerspective(color, matrix, size, None, flags | cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, 0)
            rest = cv2.warpPerspective(through, matrix, size, None, flags | cv2.INTER_LINEAR, cv2.BORDER_CONSTANT,
                                       (255, 255, 255))
            if haze > 0.02:
                new = cv2.addWeighted(new, 1 - haze, rest, -haze * HAZE / 255, haze * HAZE)
            cv2.add(cv2.multiply(area, rest, None, 1 / 255), new, area)
        cv2.copyTo(new_ids, mask, self._ids[up:down, left:right])

    def _develop(self) -> np.ndarray:
        """What lens and sensor add: a little blur, darker corners, noise."""
        rgb = cv2.GaussianBlur(self._rgb, (3, 3), 0.62)
        rgb = cv2.multiply(rgb, self._vignette, rgb, 1 / 255)
        noise = self._noise[int(self._t * 1000) % len(self._noise)]
        return cv2.addWeighted(rgb, 1, noise, 1, -64, rgb)
