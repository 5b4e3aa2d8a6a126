# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
A synthetic British street, seen from a car that drives down it, with its exact label image and depth.

Each frame warps textures through a pinhole camera, from far to near. Colour, class id and distance are
written with the same mask. Things with gaps (twigs, railings) get their class id over their whole outline, as
in CamVid's annotations.

World coordinates in metres: x to the right of our lane's centre, y up from the road, z along the street. The
street repeats every `PERIOD` metres. Traffic keeps left.
"""
from dataclasses import dataclass
import math
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator

from . import cars, houses, roadside
from .cars import Car
from .painting import NOTHING, POLE, Texture
from .roadside import LEFT_KERB, RIGHT_KERB

PERIOD = 4 * roadside.GROUND_PERIOD
VISIBLE = 170.0  # metres; the backdrop shows what lies beyond
NEAR = 0.7  # metres; nothing is drawn nearer than this
CAMERA_HEIGHT = 1.4
LEFT_WALL, RIGHT_WALL = -7.4, 8.6
HAZE = 224.0
Point: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Wall:
    """A texture along the street, from z to z + its width, at x."""

    texture: Texture
    x: float
    z: float


@dataclass(frozen=True)
class BuiltHouse:
    """The front of a house, and its side wall if a gap or a lower neighbour makes that visible."""

    front: Wall
    side: Texture | None


@dataclass(frozen=True)
class Board:
    """
    A texture across the street, its centre at x, its foot at y.

    Several textures are the phases of a movement, shown in turn.
    """

    textures: tuple[Texture, ...]
    x: float
    z: float
    y: float = 0.0
    speed: float = 0.0  # m/s along z


@dataclass(frozen=True)
class Post:
    """A grey column. An `arm` (metres, signed) other than 0 carries a lamp."""

    x: float
    z: float
    height: float
    radius: float
    tone: float
    arm: float = 0.0


@dataclass(frozen=True)
class Vehicle:
    """
    A car, its centre at x, its near end at z.

    `away`: we see its rear. `follows`: it drives in front of us, and z is its distance from us.
    """

    car: Car
    x: float
    z: float
    away: bool
    speed: float = 0.0
    follows: bool = False


class Street:
    """
    The street as a camera sees it: `render(t)` draws the frame at t seconds.

    The same size and seed give the same frames. `matrix`: (3, 3) pinhole intrinsics in pixels; there is no
    distortion. With `with_depth`, `depth` is the distance along the optical axis in the frame drawn last,
    (H, W) float32 metres, 0 for the sky; otherwise it is None. `ValueError` for a size out of range.
    """

    def __init__(self, width: int = 640, height: int = 480, seed: int = 0, *, with_depth: bool = False):
        if not (64 <= width <= 4096 and 64 <= height <= 4096):
            raise ValueError(f'a street of {width}x{height} pixels; expected 64 to 4096 each way')
        self.width, self.height = width, height
        focal = 0.9 * width
        self.matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        self._focal, self._cx, self._cy = focal, (width - 1) / 2, (height - 1) / 2
        rng = np.random.default_rng(seed)
        self._ground = roadside.ground(rng)
        # Wider and higher than the image, because the camera turns.
        self._margin = width // 16
        self._sky, self._sky_ids = houses.backdrop(
            rng, width + 2 * self._margin, height + 2 * self._margin, width / 640)
        self._houses: list[BuiltHouse] = []
        self._verges: list[Wall | Board] = []
        self._things: list[Wall | Board | Post | Vehicle] = []
        trees = [roadside.tree(rng, height, leaves) for height, leaves in
                 ((7.5, 0.5), (6.5, 1.0), (8.5, 0.03), (5.5, 0.9), (8.0, 0.2), (8.5, 1.0))]
        self._build(rng, trees)
        self._furnish(rng, trees)
        self._class_of = [np.full((height, width), i, np.uint8) for i in range(11)]
        noise = rng.standard_normal((height + 64, width + 64, 3), np.float32) * 2.6 + 64
        self._grain = np.clip(noise, 0, 128).astype(np.uint8)
        y, x = np.mgrid[-1:1:1j * height, -1:1:1j * width].astype(np.float32)
        corner = 255 * (1 - 0.08 * (x * x + y * y))
        self._vignette = np.repeat(corner[:, :, None].astype(np.uint8), 3, 2)
        self._t = self._s = self._x = 0.0
        self._y = CAMERA_HEIGHT
        self._yaw = self._pitch = 1.0, 0.0
        self._rgba, self._ids = self._sky, self._sky_ids
        self.depth = np.zeros((height, width), np.float32) if with_depth else None

    # ------------------------------------------------------------------------------------------ the scene

    def _build(self, rng: Generator, trees: list[Texture]) -> None:
        """Place two rows of houses with gaps and gardens. Some houses stand back behind a fence or hedge."""
        kinds = ('terrace', 'shops', 'terrace', 'shops', 'cottages', 'office', 'college', 'garden')
        for side, x, light in ((-1, LEFT_WALL, 0.56), (1, RIGHT_WALL, 1.04)):
            z, neighbour = 0.0, None  # the house before this one, if they touch
            while z < PERIOD - 9:
                length = min(rng.uniform(10, 19), PERIOD - z)
                kind = kinds[rng.integers(len(kinds))]
                gap = rng.uniform(3, 9) if rng.random() < 0.45 else 0.0
                back = 4.5 if kind in ('terrace', 'cottages') and rng.random() < 0.5 else 0.0
                if kind == 'garden':
                    gap, neighbour = 0.0, None
                    for at in np.arange(z + 2, z + length - 1, 4.5):
                        self._verges.append(Board((trees[rng.integers(len(trees))],),
                                                  x + side * rng.uniform(3, 7), at))
                else:
                    front = houses.facade(rng, length, kind, light * rng.uniform(0.88, 1.08))
                    gable = None
                    if neighbour is None or abs(neighbour.x) > abs(x + side * back) \
                            or neighbour.texture.height < front.height:
                        gable = houses.gable(rng, 9.0, front.height - 0.8, 0.62)
                    wall = Wall(front, x + side * back, z)
                    self._houses.append(BuiltHouse(wall, gable))
                    neighbour = None if gap else wall
                if back or kind == 'garden':
                    self._verges.append(Wall(self._fence(rng, length, 1.5), x, z))
                if gap:
                    self._verges.append(Wall(self._fence(rng, gap, 2.6), x + side * 0.6, z + length))
                z += length + gap

    @staticmethod
    def _fence(rng: Generator, length: float, hedge: float) -> Texture:
        choice = rng.random()
        if choice < 0.4:
            return roadside.railing(rng, length)
        return roadside.boards(rng, length) if choice < 0.65 else roadside.hedge(rng, length, hedge)

    def _furnish(self, rng: Generator, trees: list[Texture]) -> None:
        """Place everything that stands or moves in front of the houses."""
        add = self._things.append
        signs = [roadside.sign(kind) for kind in ('limit', 'warning', 'blue', 'board', 'parking')]
        paints = [cars.PAINTS[i] for i in rng.permutation(len(cars.PAINTS))]
        kinds = ('hatch', 'saloon', 'hatch', 'estate', 'hatch', 'saloon', 'estate', 'hatch')
        models = [cars.car(rng, kind, paint) for kind, paint in zip(kinds, paints)]
        van = cars.car(rng, 'van', (226, 226, 222))
        people = [roadside.walker(rng) for _ in range(6)]
        riders = [roadside.cyclist(rng, jacket) for jacket in ((52, 60, 84), (150, 156, 60))]
        for z in np.arange(6.0, PERIOD, 30):  # lamp posts, each side in turn
            add(Post(LEFT_KERB - 0.5, z, 7.5, 0.085, 96, 1.5))
            add(Post(RIGHT_KERB + 0.5, z + 15, 7.5, 0.085, 96, -1.5))
        for z in np.arange(9.0, PERIOD, 20):
            for x in (LEFT_KERB - 1.2, RIGHT_KERB + 1.2):
                if rng.random() < 0.6:
                    add(Board((trees[rng.integers(len(trees))],), x, z + rng.uniform(0, 8)))
        for z in np.arange(4.0, PERIOD, 18):
            x = LEFT_KERB - 0.45 if rng.random() < 0.5 else RIGHT_KERB + 0.45
            at, high = z + rng.uniform(0, 6), rng.uniform(2.1, 2.5)
            add(Post(x, at, high + 0.6, 0.04, 120))
            add(Board((signs[rng.integers(len(signs))],), x, at - 0.05, high))
            if rng.random() < 0.4:
                add(Board((signs[rng.integers(len(signs))],), x, at - 0.05, high - 0.8))
        for z, lit in ((70.0, 2), (190.0, 0)):
            for x in (LEFT_KERB - 0.4, RIGHT_KERB + 0.4):
                add(Post(x, z, 2.3, 0.055, 60))
                add(Board((roadside.traffic_light(lit),), x, z - 0.1, 2.2))
        rail = roadside.railing(rng, 3.0)  # short pieces, so that sorting by distance works
        for x, first, last in ((RIGHT_KERB + 0.35, 48, 68), (RIGHT_KERB + 0.35, 150, 186),
                               (LEFT_KERB - 0.35, 96, 120)):
            for z in np.arange(first, last, 3.0):
                add(Wall(rail, x, z))
        for z in np.arange(104.0, 124.0, 1.8):
            add(Post(RIGHT_KERB + 0.4, z, 1.0, 0.06, 40))
        z = 3.0
        while z < PERIOD - 6:  # the parking bay
            parked = van if rng.random() < 0.06 else models[rng.integers(len(models))]
            if rng.random() < 0.5:
                add(Vehicle(parked, -3.25 + rng.uniform(-0.1, 0.1), z, away=rng.random() < 0.8))
            z += parked.shape.length + rng.uniform(0.7, 2.5)
        add(Vehicle(models[0], 0.05, 15.0, True, follows=True))
        add(Vehicle(models[3], 0.0, 38.0, True, follows=True))
        for i in range(7):
            oncoming = van if i == 4 else models[(3 * i + 1) % len(models)]
            add(Vehicle(oncoming, 3.5, i * PERIOD / 7 + rng.uniform(0, 15), False, -8.0))
        for i in range(28):
            x = (rng.uniform(LEFT_WALL + 0.7, LEFT_KERB - 0.8) if i % 2 else
                 rng.uniform(RIGHT_KERB + 0.9, RIGHT_WALL - 0.5))
            speed = rng.uniform(1.0, 1.6) * (1 if rng.random() < 0.5 else -1)
            add(Board(people[i % len(people)], x, rng.uniform(0, PERIOD), 0.0, speed))
        for i, z in enumerate((24.0, 95.0, 170.0)):
            add(Board(riders[i % 2], -1.45, z, 0.0, 5.2))

    # ------------------------------------------------------------------------------------------- the camera

    def render(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw the frame at `t` seconds: (H, W, 3) uint8 RGB, and (H, W) uint8 CamVid class ids, without void.

        Each call returns new arrays.
        """
        self._t = t
        self._s = 7.5 * t + 3.0 * math.sin(0.23 * t)
        self._x = 0.12 * math.sin(0.5 * t)
        self._y = CAMERA_HEIGHT + 0.012 * math.sin(7.1 * t)
        yaw = 0.012 * math.sin(0.31 * t)
        pitch = 0.0025 * math.sin(5.3 * t) + 0.001 * math.sin(11.7 * t)
        self._yaw = math.cos(yaw), math.sin(yaw)
        self._pitch = math.cos(pitch), math.sin(pitch)
        # The backdrop is infinitely far away, so turning the camera only shifts it.
        left = self._margin + round(self._focal * math.tan(yaw))
        up = self._margin + round(self._focal * math.tan(pitch))
        view = np.s_[up:up + self.height, left:left + self.width]
        self._rgba, self._ids = self._sky[view].copy(), self._sky_ids[view].copy()
        if self.depth is not None:
            self.depth = np.zeros_like(self.depth)
        self._draw_ground()
        for z, house in self._far_to_near([(self._ahead(h.front), h) for h in self._houses]):
            side, x = house.side, house.front.x
            if side is not None and z > NEAR:
                out = x + math.copysign(side.width, x)
                self._quad(side, ((x, side.height, z), (out, side.height, z), (out, 0, z), (x, 0, z)))
            self._wall(house.front, z)
        for layer in (self._verges, self._things):
            for z, thing in self._far_to_near([(self._ahead(w), w) for w in layer]):
                if isinstance(thing, Vehicle):
                    self._vehicle(thing, z)
                elif isinstance(thing, Wall):
                    self._wall(thing, z)
                elif z < NEAR or abs(thing.x) > 0.8 * z + 6:
                    continue  # behind us, or outside the image
                elif isinstance(thing, Post):
                    self._post(thing, z)
                elif thing.textures[0].height * self._focal > 5 * z:  # five pixels
                    self._board(thing, z)
        return self._develop(), self._ids

    def _ahead(self, thing: Wall | Board | Post | Vehicle) -> float:
        """Return the distance to the near end of a thing; negative, down to its length, while we pass it."""
        length, z = 0.0, thing.z - self._s
        if isinstance(thing, Wall):
            length = thing.texture.width
        elif isinstance(thing, Vehicle):
            length = thing.car.shape.length
            if thing.follows:
                return thing.z * (1 + 0.25 * math.sin(0.17 * self._t + thing.z))
        if isinstance(thing, (Board, Vehicle)):
            z += thing.speed * self._t
        return (z + length) % PERIOD - length

    @staticmethod
    def _far_to_near(things: list) -> list:
        return sorted((t for t in things if t[0] < VISIBLE), key=lambda t: -t[0])

    def _project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Return the pixel (u, v) of a point whose z is relative to the camera."""
        x, y, z = self._turned(x, y, z)
        return self._cx + self._focal * x / z, self._cy + self._focal * y / z

    def _turned(self, x: float, y: float, z: float) -> Point:
        """Return a point in camera axes (right, down, forward); its z is relative to the camera."""
        x, y = x - self._x, self._y - y
        (cos, sin), (cos_pitch, sin_pitch) = self._yaw, self._pitch
        x, z = x * cos - z * sin, x * sin + z * cos
        return x, y * cos_pitch + z * sin_pitch, z * cos_pitch - y * sin_pitch

    @staticmethod
    def _haze(z: float) -> float:
        return 1 - math.exp(-max(z - 8, 0) / 330)

    def _draw_ground(self) -> None:
        """Warp the ground in bands of rows. Each band uses the texture resolution that fits its distance."""
        period = roadside.GROUND_PERIOD
        horizon = self._project(self._x, self._y, 1000.0)[1]
        rise = self._focal * CAMERA_HEIGHT
        bottom = self.height
        for far in (7.0, 12.0, 20.0, 34.0, 60.0, 110.0, 400.0):
            top = max(math.ceil(horizon + rise / far), 0)
            if top >= bottom:
                continue
            near = rise / max(bottom - horizon, 1)
            middle = math.sqrt(near * far)
            kx = max(int(math.log2(max(roadside.GROUND_X * middle / self._focal, 1))), 0)
            kz = min(max(int(math.log2(max(roadside.GROUND_Z * middle ** 2 / rise, 1))), 0), 8)
            rgba, ids = self._ground.level(kx, kz)
            assert ids is not None
            rgba, ids = rgba[1:-1, 1:-1], ids[1:-1, 1:-1]  # the texture repeats, so it has no margin
            h, w = ids.shape
            near = max(0.9 * near, NEAR)
            corners = ((0, near), (w, near), (w, far), (0, far))
            left, right = roadside.GROUND_LEFT, roadside.GROUND_RIGHT
            target = np.array([self._project(right if u else left, 0, z) for u, z in corners], np.float32)
            target[:, 1] -= top
            # The last row of the texture is z = 0, and z grows upwards. BORDER_WRAP repeats the texture.
            source = np.array([(u - 0.5, h - 0.5 - (self._s % period + z) * h / period)
                               for u, z in corners], np.float32)
            matrix = cv2.getPerspectiveTransform(target, source)
            size = self.width, bottom - top
            area = self._rgba[top:bottom]
            cv2.warpPerspective(rgba, matrix, size, area, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                cv2.BORDER_WRAP)
            cv2.warpPerspective(ids, matrix, size, self._ids[top:bottom],
                                cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, cv2.BORDER_WRAP)
            haze = self._haze(middle)
            if haze > 0.02:
                cv2.convertScaleAbs(area, area, 1 - haze, haze * HAZE)
            if self.depth is not None:  # `_turned`, solved for the z of the ground plane
                cos, sin = self._pitch
                rows = (np.arange(top, bottom) - self._cy) / self._focal * cos - sin
                self.depth[top:bottom] = (self._y / rows)[:, None]
            bottom = top

    def _wall(self, wall: Wall, z: float) -> None:
        """Draw a texture along the street from z on; the part behind us is cut off."""
        length, x, h = wall.texture.width, wall.x, wall.texture.height
        z0, z1 = max(z, NEAR), z + length
        if z0 >= z1:
            return
        cut = (z0 - z) / length
        if x < 0:  # z grows rightwards
            self._quad(wall.texture, ((x, h, z0), (x, h, z1), (x, 0, z1), (x, 0, z0)), cut, 1.0)
        else:
            self._quad(wall.texture, ((x, h, z1), (x, h, z0), (x, 0, z0), (x, 0, z1)), 0.0, 1 - cut)

    def _board(self, board: Board, z: float) -> None:
        texture = board.textures[int(self._t * 6.0 + board.z * 3) % len(board.textures)]
        x0, x1 = board.x - texture.width / 2, board.x + texture.width / 2
        top = board.y + texture.height
        if board.speed and z < 40:
            self._shadow(board.x - 0.3, board.x + 0.3, z - 0.2, z + 0.2)
        self._quad(texture, ((x0, top, z), (x1, top, z), (x1, board.y, z), (x0, board.y, z)))

    def _post(self, post: Post, z: float) -> None:
        x, r, h = post.x, post.radius, post.height
        haze = self._haze(z)
        # Three stripes of light make a wide post look round.
        stripes = ((-1.0, -0.2, 0.62), (-0.2, 0.5, 1.0), (0.5, 1.0, 1.35))
        for a, b, shade in stripes if self._focal * r / z > 1 else ((-1.0, 1.0, 0.95),):
            tone = min(post.tone * shade, 255) * (1 - haze) + HAZE * haze
            a, b = a * r, b * r
            self._flat(((x + a, 0, z), (x + b, 0, z), (x + 0.7 * b, h, z), (x + 0.7 * a, h, z)), tone)
        if post.arm and z < 110:
            tone = 0.8 * post.tone * (1 - haze) + HAZE * haze
            end, lamp = x + post.arm, x + post.arm + math.copysign(0.6, post.arm)
            self._flat(((x, h - 0.05, z), (x, h + 0.03, z), (end, h + 0.28, z), (end, h + 0.2, z)), tone)
            self._flat(((end, h + 0.16, z), (end, h + 0.32, z), (lamp, h + 0.36, z), (lamp, h + 0.24, z)),
                       0.7 * tone)

    def _vehicle(self, v: Vehicle, near: float) -> None:
        shape = v.car.shape
        far, half, waist, roof = near + shape.length, shape.width / 2, shape.waist, shape.height
        if far < NEAR + 0.5 or abs(v.x) > 0.8 * far + 3:
            return
        x0, x1 = v.x - half, v.x + half
        if near < 60:
            self._shadow(x0 - 0.1, x1 + 0.1, near - 0.1, far + 0.1)
        ends, glass = (v.car.rear, shape.rear_glass) if v.away else (v.car.front, shape.front_glass)
        brow = waist if v.away else shape.bonnet
        # Where the glass of this end begins, at the waist and at the roof.
        foot, head = (near + g if v.away else far - g for g in glass)
        if near > NEAR:
            self._quad(v.car.top, ((x0, waist, foot), (x1, waist, foot), (x1, brow, near), (x0, brow, near)))
        side = x1 if x1 < self._x else x0
        # The side that faces us, unless it is too narrow to see.
        if (x1 < self._x or x0 > self._x) and abs(side) * shape.length * self._focal > 1.5 * near * far:
            z0, lean = max(near, NEAR), math.copysign(0.15, v.x - side)
            u0, u1 = (z0 - near) / shape.length, 1.0
            if not v.away:
                u0, u1 = 1 - u0, 0.0
            for texture, low, high, a, b in ((v.car.side[0], 0.0, waist, side, side),
                                             (v.car.side[1], waist, roof, side, side + lean)):
                self._quad(texture, ((b, high, z0), (b, high, far), (a, low, far), (a, low, z0)), u0, u1)
        if near > NEAR:
            self._quad(ends[1], ((x0, roof, head), (x1, roof, head), (x1, waist, foot), (x0, waist, foot)))
            self._quad(ends[0], ((x0, brow, near), (x1, brow, near), (x1, 0, near), (x0, 0, near)))

    # ------------------------------------------------------------------------------------------ the picture

    def _box(self, points: list[tuple[float, float]]) -> tuple[int, int, int, int] | None:
        """Return the box of a polygon: left, top, right, bottom (exclusive). None if it is off the image."""
        us, vs = [p[0] for p in points], [p[1] for p in points]
        left, right = max(math.floor(min(us)), 0), min(math.ceil(max(us)) + 1, self.width)
        top, bottom = max(math.floor(min(vs)), 0), min(math.ceil(max(vs)) + 1, self.height)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def _quad(self, texture: Texture, corners: tuple[Point, Point, Point, Point], u0: float = 0.0,
              u1: float = 1.0) -> None:
        """Draw columns u0 to u1 (0-1) of a texture between four corners, clockwise from its top left."""
        quad = [self._project(*c) for c in corners]
        box = self._box(quad)
        if box is None:
            return
        left, top, right, bottom = box
        h, w = texture.rgba.shape[:2]
        across = max(math.dist(quad[0], quad[1]), math.dist(quad[3], quad[2]), 0.5)
        along = max(math.dist(quad[0], quad[3]), math.dist(quad[1], quad[2]), 0.5)
        kx = min(int(math.log2(max(w * abs(u1 - u0) / across, 1)) + 0.35), 7)
        ky = min(int(math.log2(max(h / along, 1)) + 0.35), 7)
        rgba, ids = texture.level(kx, ky)
        h, w = rgba.shape[0] - 2, rgba.shape[1] - 2
        # Pixel centres are whole numbers. The picture begins after the margin of one pixel, at 0.5.
        a, b = u0 * w + 0.5, u1 * w + 0.5
        source = np.array(((a, 0.5), (b, 0.5), (b, h + 0.5), (a, h + 0.5)), np.float32)
        target = np.array([(u - left, v - top) for u, v in quad], np.float32)
        matrix = cv2.getPerspectiveTransform(target, source)
        size = right - left, bottom - top
        new = cv2.warpPerspective(rgba, matrix, size, None, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        cover = cv2.extractChannel(new, 3)
        haze = self._haze((corners[0][2] + corners[1][2]) / 2)
        area, area_ids = self._rgba[top:bottom, left:right], self._ids[top:bottom, left:right]
        if ids is None:
            if haze > 0.02:
                cv2.convertScaleAbs(new, new, 1 - haze, haze * HAZE)
            _, mask = cv2.threshold(cover, 127, 255, cv2.THRESH_BINARY)
            cv2.copyTo(new, mask, area)
            cv2.copyTo(self._class_of[texture.class_id][:size[1], :size[0]], mask, area_ids)
            self._measure(corners, mask, left, top)
        else:
            rest = cv2.cvtColor(cv2.bitwise_not(cover), cv2.COLOR_GRAY2RGBA)
            if haze > 0.02:
                new = cv2.addWeighted(new, 1 - haze, rest, -haze * HAZE / 255, haze * HAZE)
            cv2.add(cv2.multiply(area, rest, None, 1 / 255), new, area)
            new_ids = cv2.warpPerspective(ids, matrix, size, None, cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                                          cv2.BORDER_CONSTANT, NOTHING)
            mask = cv2.bitwise_not(cv2.inRange(new_ids, NOTHING, NOTHING))
            cv2.copyTo(new_ids, mask, area_ids)
            self._measure(corners, mask, left, top)

    def _flat(self, corners: tuple[Point, ...], tone: float) -> None:
        """Fill a polygon of a post with one grey tone."""
        points = np.array([self._project(*c) for c in corners])
        if np.abs(points).max() < 1 << 14:  # the range of OpenCV's fixed-point numbers
            points = np.round(points * 16).astype(np.int32)
            cv2.fillConvexPoly(self._rgba, points, (tone, tone, tone, 255), cv2.LINE_8, 4)
            cv2.fillConvexPoly(self._ids, points, POLE, cv2.LINE_8, 4)
            if self.depth is not None and (box := self._box([(u / 16, v / 16) for u, v in points])):
                left, top, right, bottom = box
                mask = np.zeros((bottom - top, right - left), np.uint8)
                cv2.fillConvexPoly(mask, points - 16 * np.array((left, top)), 255, cv2.LINE_8, 4)
                self._measure(corners, mask, left, top)

    def _measure(self, corners: tuple[Point, ...], mask: np.ndarray, left: int, top: int) -> None:
        """Write the depth of a plane's pixels; the inverse depth of a plane is linear in pixels."""
        if self.depth is None:
            return
        at = np.array([self._turned(*c) for c in corners])
        near, far = at[:, 2].min(), at[:, 2].max()
        pixels = np.column_stack((self._cx + self._focal * at[:, 0] / at[:, 2],
                                  self._cy + self._focal * at[:, 1] / at[:, 2], np.ones(len(at))))
        (du, dv, one), *_ = np.linalg.lstsq(pixels, 1 / at[:, 2], rcond=None)
        h, w = mask.shape
        inverse = du * np.arange(left, left + w) + (dv * np.arange(top, top + h) + one)[:, None]
        cv2.copyTo((1 / inverse.clip(1 / far, 1 / near)).astype(np.float32), mask,
                   self.depth[top:top + h, left:left + w])

    def _shadow(self, x0: float, x1: float, z0: float, z1: float) -> None:
        """Darken the ground under an object; the class ids stay."""
        z0 = max(z0, NEAR)
        for grow, tone in ((0.12, 0.8), (0.0, 0.55)):
            left_x, right_x, end = x0 - grow, x1 + grow, z1 + grow
            points = [self._project(x, 0, z) for x, z in
                      ((left_x, z0), (right_x, z0), (right_x, end), (left_x, end))]
            box = self._box(points)
            if box is None:
                return
            left, top, right, bottom = box
            mask = np.zeros((bottom - top, right - left), np.uint8)
            polygon = np.round((np.array(points) - (left, top)) * 16).astype(np.int32)
            cv2.fillConvexPoly(mask, polygon, 255, cv2.LINE_8, 4)
            area = self._rgba[top:bottom, left:right]
            cv2.copyTo(cv2.convertScaleAbs(area, None, tone, 0), mask, area)

    def _develop(self) -> np.ndarray:
        """Apply what lens and sensor do: slight blur, darker corners, noise."""
        rgb = cv2.GaussianBlur(cv2.cvtColor(self._rgba, cv2.COLOR_RGBA2RGB), (3, 3), 0.62)
        cv2.multiply(rgb, self._vignette, rgb, 1 / 255)
        x, y = int(self._t * 997) % 64, int(self._t * 1409) % 64
        return cv2.addWeighted(rgb, 1, self._grain[y:y + self.height, x:x + self.width], 1, -64, rgb)
