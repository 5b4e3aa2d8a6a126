# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Depth, camera model and labels -> a labelled point cloud, as an array and as a serialized PointCloud2.

Messages are duck-typed, as in `images`. Depth must be registered to the labelled image: both show the same
view from the same position. Their resolutions may differ. They are rectified, or both have the distortion of
the lens, which is then undone.
"""
from collections.abc import Callable
import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

# One point, 24 bytes: x right, y down, z forward, in metres; rgb 0x00RRGGBB, the colour of the class. Names
# and types are those of PCL's PointXYZRGBL, plus confidence, 0 to 255.
POINT = np.dtype({'names': ['x', 'y', 'z', 'rgb', 'label', 'confidence'],
                  'formats': ['<f4', '<f4', '<f4', '<u4', '<u4', 'u1'],
                  'offsets': [0, 4, 8, 12, 16, 20], 'itemsize': 24})
# Datatypes of sensor_msgs/PointField. PCL declares rgb as a float, although it holds three bytes.
FIELD_TYPES = {'x': 7, 'y': 7, 'z': 7, 'rgb': 7, 'label': 6, 'confidence': 2}

# Number of coefficients of each distortion model of camera_info.
COEFFICIENTS = {'plumb_bob': 5, 'rational_polynomial': 8, 'equidistant': 4}
BLOCK_ROWS = 8  # rows that are filled together, few enough to stay in the CPU cache


class PointsError(ValueError):
    """Depth, camera model and labels that do not fit together; the text says what was found and expected."""


@dataclass(frozen=True)
class Pinhole:
    """
    Focal lengths and principal point in pixels; pixel centres have whole-number coordinates.

    `distortion`: model and coefficients of the lens, as in CameraInfo; without coefficients there is none.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    model: str = ''
    distortion: tuple[float, ...] = ()


def is_distorted(info: Any) -> bool:
    """Return whether a CameraInfo message tells of a distortion of the lens."""
    return any(info.d)


def pinhole(info: Any, height: int, width: int, distorted: bool = False) -> Pinhole:
    """
    Return the camera model of an image of height x width pixels from its CameraInfo message.

    For a rectified image it uses P if it is filled, otherwise K; for a `distorted` one K and D. It respects
    the region of interest and binning of the message. If the image is a scaled copy, such as decimated depth,
    the model is scaled too. `PointsError` if the camera is not calibrated, if its model of distortion is not
    known, or if message and image have different aspect ratios.
    """
    p, k = np.reshape(info.p, (3, 4)), np.reshape(info.k, (3, 3))
    m = p if p[0, 0] and not distorted else k
    model, d = '', tuple[float, ...]()
    if distorted and is_distorted(info):
        model, d = info.distortion_model, tuple(map(float, info.d))
        if len(d) != COEFFICIENTS.get(model):
            known = ', '.join(f'{name} ({count})' for name, count in COEFFICIENTS.items())
            raise PointsError(f'camera_info has the distortion model {model!r} with {len(d)} coefficients; '
                              f'expected {known}')
    if not (m[0, 0] > 0 and m[1, 1] > 0):
        raise PointsError(f'camera_info of {info.width}x{info.height} has no focal length: the camera is not '
                          'calibrated')
    if not np.isfinite([m[0, 0], m[1, 1], m[0, 2], m[1, 2], *d]).all():
        raise PointsError(f'camera_info of {info.width}x{info.height} holds NaN or infinity; expected the '
                          'numbers of a calibration')
    full_w, full_h = info.roi.width or info.width, info.roi.height or info.height
    # + 0.5: scale relative to the corner of the first pixel, not to its centre.
    left, top = m[0, 2] + 0.5 - info.roi.x_offset, m[1, 2] + 0.5 - info.roi.y_offset
    if not (full_w and full_h) or abs(full_w * height / (full_h * width) - 1) > 0.02:
        raise PointsError(f'camera_info is for {full_w}x{full_h} pixels, depth has {width}x{height}; '
                          'expected the same aspect ratio')
    # This includes binning: it makes the image smaller than the region that it shows.
    sx, sy = width / full_w, height / full_h
    return Pinhole(float(m[0, 0] * sx), float(m[1, 1] * sy), float(left * sx - 0.5), float(top * sy - 0.5),
                   model, d)


@lru_cache(maxsize=8)  # of each camera; undistorting a grid of 1280x720 takes 0.2 s
def directions(camera: Pinhole, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x / z and y / z for every pixel: two (H, W) float32 arrays, which must not be changed."""
    across = ((np.arange(width) - camera.cx) / camera.fx).astype(np.float32)[None]
    down = ((np.arange(height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
    if not camera.distortion:
        return np.broadcast_to(across, (height, width)), np.broadcast_to(down, (height, width))
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), 2).reshape(-1, 1, 2).astype(np.float64)
    distortion = np.array(camera.distortion)
    if camera.model == 'equidistant':
        found = cv2.fisheye.undistortPoints(grid, matrix, distortion)
    else:  # iterative; the default of five iterations leaves errors of some pixels at the edges
        found = cv2.undistortPointsIter(grid, matrix, distortion, np.eye(3), np.eye(3),
                                        (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-7))
    x, y = found.astype(np.float32).reshape(height, width, 2).transpose(2, 0, 1)
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def cloud(depth: np.ndarray, camera: Pinhole, labels: np.ndarray, confidence: np.ndarray,
          palette: np.ndarray) -> np.ndarray:
    """
    Turn every pixel of a depth image, (H, W) float32 in metres, into a `POINT`; returns (H, W), organised.

    x, y and z are NaN where depth is NaN. labels, confidence: (h, w) uint8 of the same view; if their size
    differs from that of depth, the nearest pixel is taken. palette: (256, 3) uint8 RGB. `PointsError` if
    labels and depth have different aspect ratios, which means that depth is not registered.
    """
    (height, width), (h, w) = depth.shape, labels.shape
    if abs(width * h / (height * w) - 1) > 0.02:
        raise PointsError(f'depth has {width}x{height} pixels, labels have {w}x{h}; expected depth that is '
                          'registered to the image, with the same aspect ratio')
    if (h, w) != (height, width):
        nearest = np.ix_((2 * np.arange(height) + 1) * h // (2 * height),
                         (2 * np.arange(width) + 1) * w // (2 * width))
        labels, confidence = labels[nearest], confidence[nearest]
    colors = palette.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    across, down = directions(camera, height, width)
    numbers = np.empty((height, width, POINT.itemsize // 4), '<f4')
    whole = numbers.view('<u4')
    for top in range(0, height, BLOCK_ROWS):
        rows = slice(top, top + BLOCK_ROWS)
        z = depth[rows]
        np.multiply(z, across[rows], out=numbers[rows, :, 0])
        np.multiply(z, down[rows], out=numbers[rows, :, 1])
        numbers[rows, :, 2] = z
        whole[rows, :, 3] = colors[labels[rows]]
        whole[rows, :, 4] = labels[rows]
        whole[rows, :, 5] = confidence[rows]  # the first byte; the other three are 0
    return numbers.view(POINT)[..., 0]


def serialized(points: np.ndarray, header: Any, msg: Any, field: Any,
               serialize: Callable[[Any], bytes]) -> bytes:
    """
    Return an (H, W) array of `POINT` as a serialized PointCloud2, for a publisher.

    `msg`: an empty message; `field` creates a PointField; `serialize`: rclpy's `serialize_message`. A message
    object with 22 MB would keep the interpreter from all other threads while it is filled and serialized;
    only what is small goes that way.
    """
    msg.header = header
    msg.height, msg.width = points.shape
    msg.fields = [field(name=name, offset=POINT.fields[name][1], datatype=kind, count=1)  # type: ignore[index]
                  for name, kind in FIELD_TYPES.items()]
    msg.is_bigendian, msg.is_dense = False, False
    msg.point_step, msg.row_step = POINT.itemsize, POINT.itemsize * points.shape[1]
    cdr, points = serialize(msg), np.ascontiguousarray(points)
    order: Any = 'little' if cdr[1] & 1 else 'big'
    # The row step is followed by the length of the data, 0 so far, the data, and is_dense, a byte.
    begin = cdr.rindex(msg.row_step.to_bytes(4, order)) + 4
    start, end = cdr[:begin] + points.nbytes.to_bytes(4, order), b'\0'
    out = bytes(len(start) + points.nbytes + len(end))
    # Nobody else has seen these bytes yet. memmove lets go of the interpreter; joining bytes does not.
    at = np.frombuffer(out, np.uint8).ctypes.data
    for part, size in ((start, len(start)), (points.ctypes.data, points.nbytes), (end, len(end))):
        ctypes.memmove(at, part, size)
        at += size
    return out
