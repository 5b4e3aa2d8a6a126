# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What lies and stands in the synthetic street but houses and cars: ground, trees, fences, people, signs."""
import math

import cv2
import numpy as np
from numpy.random import Generator

from .painting import (
    BICYCLIST,
    Color,
    FENCE,
    Figure,
    grain,
    noise,
    NOTHING,
    PEDESTRIAN,
    plain,
    rect,
    rgb,
    ROAD,
    SIDEWALK,
    SIGN,
    solid,
    Texture,
    TREE,
)

# Edges of the road and of the ground, x in metres from the centre of our lane.
LEFT_KERB, RIGHT_KERB = -4.3, 5.4
GROUND_LEFT, GROUND_RIGHT = -16.0, 18.0
GROUND_PERIOD = 60.0
GROUND_X, GROUND_Z = 48, 40  # pixels a metre across and along

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
    road = plain(h, right - left, (96, 97, 99)) + grain(rng, h, right - left, 14)
    road[rng.random((h, right - left), np.float32) < 0.02] += 36
    lane = across[left:right]
    for c, width, tone in ((-0.8, 0.35, 9), (0.8, 0.35, 9), (2.9, 0.35, 9), (4.4, 0.35, 9), (0.0, 0.5, -7)):
        road += (tone * np.exp(-((lane - c) / width) ** 2))[None, :, None]  # tyres polish, oil darkens
    image[:, left:right] = road
    for _ in range(6):  # newer tarmac
        x, z = rng.uniform(LEFT_KERB, RIGHT_KERB - 1), rng.uniform(3, GROUND_PERIOD - 8)
        x1, z1 = min(x + rng.uniform(0.6, 2.2), RIGHT_KERB - 0.3), z + rng.uniform(1.5, 7)
        part = image[row(z1):row(z), col(x):col(x1)]
        part[:] = rgb((80, 81, 84)) + grain(rng, part.shape[0], part.shape[1], 9)
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
        rect(image, col(x), row(z + 0.6), col(x + 0.6), row(z), (66, 64, 62))
        rect(image, col(x) + 4, row(z + 0.6) + 4, col(x + 0.6) - 4, row(z) - 4, (86, 84, 82))

    def paint(x0: float, x1: float, z0: float, z1: float, color: Color) -> None:
        part = image[row(z1):row(z0), col(x0):col(x1)]
        ph, pw = part.shape[:2]
        worn = 0.82 + noise(rng, ph, pw, 3, 0.25) + noise(rng, ph, pw, 25, 0.3)
        worn = np.clip(worn, 0, 0.95)[:, :, None]
        part[:] = part * (1 - worn) + rgb(color) * worn

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
        part[:] = rgb((158, 156, 150)) + grain(rng, h, part.shape[1], 12)
        part[np.arange(h) % int(0.9 * GROUND_Z) < 2] *= 0.6
        part[:, -2 if x < 0 else 0] *= 0.5
    # The houses on the left hide the sun: their shadow falls on the pavement and the parking bay.
    edge = LEFT_KERB + 1.4 + rng.uniform(-1.6, 1.2, 12).astype(np.float32).repeat(h // 12)[:, None]
    image *= (1 - 0.42 * np.clip(0.5 - 4 * (across[None] - edge), 0, 1))[:, :, None]
    image *= 1 + noise(rng, h, w, 160, 0.1)[:, :, None]
    ids = np.full((h, w), SIDEWALK, np.uint8)
    ids[:, left:right] = ROAD
    texture = solid(GROUND_RIGHT - GROUND_LEFT, GROUND_PERIOD, image, NOTHING)
    texture.ids = ids
    return texture


def _paving(rng: Generator, h: int, w: int, tone: Color) -> np.ndarray:
    slab = int(0.6 * GROUND_X)
    y, x = np.arange(h)[:, None], np.arange(w)[None]
    tones = rng.normal(1, 0.07, (h // slab + 1, w // slab + 1, 1)).astype(np.float32)
    paving = (rgb(tone) * tones)[y // slab, x // slab] + grain(rng, h, w, 11)
    paving[(y % slab < 2) | (x % slab < 2)] *= 0.72
    paving[rng.random((h, w), np.float32) < 0.002] *= 0.5
    return paving


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
    tone = 0.55 + noise(rng, h, w, 2, 0.5) + noise(rng, h, w, 8, 0.35) + noise(rng, h, w, 40, 0.3)
    tone = np.clip(tone * np.linspace(1.25, 0.6, h)[:, None], 0.1, 2)
    top = np.abs(noise(rng, 1, w, 9, 0.35 * scale)) + np.abs(noise(rng, 1, w, 30, 0.3 * scale))
    cover = np.where(np.arange(h)[:, None] >= top, 255, 0).astype(np.float32)
    return solid(length, height, rgb((97, 110, 62)) * tone[:, :, None], TREE, cover)


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
    color = plain(h, w, (118, 92, 68)) * tone + grain(rng, h, w, 10)
    color[:, np.arange(w) % 5 == 0] *= 0.5
    color[:, np.arange(w) % 72 < 5] = (96, 84, 72)
    color[:3] = (150, 130, 104)
    return solid(length, height, color, FENCE)


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
        f.rgba[:, :, :3] += noise(rng, *f.rgba.shape[:2], 4, 10)[:, :, None]
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
        f.rgba[:, :, :3] += noise(rng, *f.rgba.shape[:2], 4, 7)[:, :, None]
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
