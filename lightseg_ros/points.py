# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Depth, camera model and labels -> a labelled point cloud, as an array and as a PointCloud2 message.

Messages are duck-typed, as in `images`. Depth must be registered to the image that was labelled: seen from
the same place, in the same directions, and rectified; its resolution may be another one.
"""
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import images

# A point, 24 bytes: x right, y down, z forward, in metres; rgb 0x00RRGGBB, the class's colour. Names and
# types are as PCL reads a PointXYZRGBL; confidence, 0 to 255, comes on top.
POINT = np.dtype({'names': ['x', 'y', 'z', 'rgb', 'label', 'confidence'],
                  'formats': ['<f4', '<f4', '<f4', '<u4', '<u4', 'u1'],
                  'offsets': [0, 4, 8, 12, 16, 20], 'itemsize': 24})
# Numbers of sensor_msgs/PointField. PCL calls rgb a float, though its bits are three bytes.
FIELD_TYPES = {'x': 7, 'y': 7, 'z': 7, 'rgb': 7, 'label': 6, 'confidence': 2}

ROWS = 8  # that stay in the cache while their points are filled


class PointsError(ValueError):
    """Depth, camera model and labels that make no cloud; the text says what was found and expected."""


@dataclass(frozen=True)
class Pinhole:
    """Focal lengths and principal point in pixels; a pixel's centre is a whole number."""

    fx: float
    fy: float
    cx: float
    cy: float


def pinhole(info: Any, height: int, width: int) -> Pinhole:
    """
    Return the camera of a rectified image of that size from its CameraInfo message.

    P where it is filled, else K; region of interest and binning as the message defines them. Where the image
    is a scaled copy, such as decimated depth, the camera is scaled with it. `PointsError` where the message
    is not calibrated, or of another shape than the image.
    """
    p, k = np.reshape(info.p, (3, 4)), np.reshape(info.k, (3, 3))
    m = p if p[0, 0] else k
    if not (m[0, 0] > 0 and m[1, 1] > 0):
        raise PointsError(f'camera_info of {info.width}x{info.height} has no focal length: the camera is not '
                          'calibrated')
    full_w, full_h = info.roi.width or info.width, info.roi.height or info.height
    # By pixel corners, not centres: those scale with the image.
    left, top = m[0, 2] + 0.5 - info.roi.x_offset, m[1, 2] + 0.5 - info.roi.y_offset
    if not (full_w and full_h) or abs(full_w * height / (full_h * width) - 1) > 0.02:
        raise PointsError(f'camera_info is of {full_w}x{full_h} pixels, depth of {width}x{height}; expected '
                          'the same shape')
    # Binning, if any, is part of how much smaller the image is than the region that it shows.
    sx, sy = width / full_w, height / full_h
    return Pinhole(float(m[0, 0] * sx), float(m[1, 1] * sy), float(left * sx - 0.5), float(top * sy - 0.5))


def cloud(depth: np.ndarray, camera: Pinhole, labels: np.ndarray, confidence: np.ndarray,
          palette: np.ndarray) -> np.ndarray:
    """
    Lift every pixel of a depth image, (H, W) float32 metres, to a `POINT`; returns (H, W), organised.

    Where depth is NaN, so are x, y and z. labels, confidence: (h, w) uint8 of the same view, taken from the
    nearest pixel where their size is another one. palette: (256, 3) uint8 RGB. `PointsError` where labels and
    depth have different shapes, so that they can't be registered.
    """
    (height, width), (h, w) = depth.shape, labels.shape
    if abs(width * h / (height * w) - 1) > 0.02:
        raise PointsError(f'depth of {width}x{height} and labels of {w}x{h} pixels; expected depth that is '
                          'registered to the image, so of the same shape')
    if (h, w) != (height, width):
        nearest = np.ix_((2 * np.arange(height) + 1) * h // (2 * height),
                         (2 * np.arange(width) + 1) * w // (2 * width))
        labels, confidence = labels[nearest], confidence[nearest]
    colors = palette.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    across = (np.arange(width, dtype=np.float32) - camera.cx) / camera.fx
    down = ((np.arange(height, dtype=np.float32) - camera.cy) / camera.fy)[:, None]
    numbers = np.empty((height, width, POINT.itemsize // 4), '<f4')
    whole = numbers.view('<u4')
    for top in range(0, height, ROWS):
        rows = slice(top, top + ROWS)
        z = depth[rows]
        np.multiply(z, across, out=numbers[rows, :, 0])
        np.multiply(z, down[rows], out=numbers[rows, :, 1])
        numbers[rows, :, 2] = z
        whole[rows, :, 3] = colors[labels[rows]]
        whole[rows, :, 4] = labels[rows]
        whole[rows, :, 5] = confidence[rows]  # the first byte; the other three are 0
    return numbers.view(POINT)[..., 0]


def encode(points: np.ndarray, header: Any, msg: Any, field: Any) -> Any:
    """Fill an empty PointCloud2 message with (H, W) of `POINT`, and return it; `field` makes a PointField."""
    msg.header = header
    msg.height, msg.width = points.shape
    msg.fields = [field(name=name, offset=POINT.fields[name][1], datatype=kind, count=1)  # type: ignore[index]
                  for name, kind in FIELD_TYPES.items()]
    msg.is_bigendian, msg.is_dense = False, False
    msg.point_step, msg.row_step = POINT.itemsize, POINT.itemsize * points.shape[1]
    images.fill(msg, np.ascontiguousarray(points).view(np.uint8))
    return msg
