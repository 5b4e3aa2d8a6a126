# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The cars of the synthetic street as textures."""
from dataclasses import dataclass
import math

import cv2
import numpy as np
from numpy.random import Generator

from .painting import CAR, Color, Figure, noise, plain, rect, rgb, solid, Texture


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
    top = solid(1, 1, plain(8, 8, np.minimum(body * 0.6 + 90, 235)), CAR)
    return Car(shape, (_side_low(rng, shape, body), _side_high(rng, shape, body, kind == 'van')),
               (_end_low(rng, shape, body, True), _end_high(rng, shape, body, True, kind == 'van')),
               (_end_low(rng, shape, body, False), _end_high(rng, shape, body, False, kind == 'van')), top)


def _bodywork(rng: Generator, f: Figure, paint: np.ndarray) -> None:
    """Fill with paint that reflects the sky at the top and the road at the bottom."""
    h, w = f.rgba.shape[:2]
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    f.rgba[:, :, :3] = paint * (1 - 0.5 * y) + 26 * np.exp(-((y - 0.18) / 0.1) ** 2)
    f.rgba[:, :, :3] += noise(rng, h, w, 27, 7)[:, :, None]
    f.rgba[:, :, 3] = 255


def _windscreen(rng: Generator, f: Figure, bright: float) -> None:
    h, w = f.rgba.shape[:2]
    y = np.linspace(1, 0, h, dtype=np.float32)[:, None, None]
    f.rgba[:, :, :3] = rgb((30, 34, 38)) + rgb((92, 104, 112)) * bright * y
    f.rgba[:, :, :3] += noise(rng, h, w, 16, 16)[:, :, None]
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
        rect(f.rgba[:, :, :3], (x - 0.05) * 90, 0, (x + 0.05) * 90, h * 90, paint * 0.3)
    if van:
        rect(f.rgba[:, :, :3], 0, 0, (s.front_glass[1] - 0.6) * 90, h * 90, paint * 0.86)
    rect(f.rgba[:, :, :3], 0, 0, s.length * 90, 6, paint * 1.1)
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
            rect(f.rgba[:, :, :3], x * 90, 18 * h, (x + 0.28 * w) * 90, 68 * h, (40, 44, 48))
    else:
        f.rgba[rim, :3] = paint * 0.9
    rect(f.rgba[:, :, :3], 0, 0, w * 90, 5, paint * 1.1)
    return f.texture(CAR)
