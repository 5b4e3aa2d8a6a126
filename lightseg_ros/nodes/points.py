# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs a camera's labels with its depth by their stamps, and publishes both as a labelled point cloud."""
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from .. import images, points
from ..points import PointsError

# Depth may come in a burst while an image is on its way; labels may be a second behind.
DEPTH_QOS = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
INFO_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
POINTS_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
KEPT = 30


@dataclass
class Labelled:
    """The labels and confidence of an image, (H, W) uint8, with its header; palette (256, 3) uint8 RGB."""

    header: Header
    labels: np.ndarray
    confidence: np.ndarray
    palette: np.ndarray


class Points:
    """
    Subscribes to a camera's `depth` and `camera_info`, publishes `points` with the header of the depth.

    An image's labels go with the depth image whose stamp is nearest, if it is within `tolerance_s`; if there
    is none yet, they wait for the next one, until newer labels come. `wake` is then called from the executor
    when depth has come; `match` does the work, in the caller's thread, as `add` does.
    """

    def __init__(self, node: Node, prefix: str, tolerance_s: float, wake: Callable[[], None]):
        self._node, self._wake = node, wake
        self._tolerance_ns = round(1e9 * tolerance_s)
        self._kept: deque[Image] = deque(maxlen=KEPT)
        self._info: CameraInfo | None = None
        self._waiting: Labelled | None = None
        self._published = self._alone = self._failed = 0
        self._last_error = ''
        overriding = QoSOverridingOptions.with_default_policies()
        self._publisher = node.create_publisher(
            PointCloud2, f'~/{prefix}points', POINTS_QOS, qos_overriding_options=overriding)
        self._depth = node.create_subscription(
            Image, f'{prefix}depth', self._on_depth, DEPTH_QOS, qos_overriding_options=overriding)
        self._infos = node.create_subscription(
            CameraInfo, f'{prefix}camera_info', self._on_info, INFO_QOS, qos_overriding_options=overriding)

    def wanted(self) -> bool:
        return self._publisher.get_subscription_count() > 0

    def topics(self) -> list[str]:
        """Return the topics that are subscribed to."""
        return [self._depth.topic_name, self._infos.topic_name]

    def values(self) -> dict[str, str]:
        """Return counts for the diagnostics."""
        out = {'points published': str(self._published), 'labels without depth': str(self._alone),
               'points failed': str(self._failed)}
        return out | ({'last points error': self._last_error} if self._last_error else {})

    def add(self, labelled: Labelled) -> None:
        """Publish these labels as points, now or when their depth comes."""
        if self._waiting is not None:
            self._without_depth()
        self._waiting = labelled
        self.match()

    def match(self) -> None:
        """Publish the labels that wait if their depth is there; a failure is counted and logged."""
        labelled = self._waiting
        # Of a copy: the executor may add to it meanwhile.
        if labelled is None or not (kept := list(self._kept)):
            return
        near = min(kept, key=lambda depth: _apart_ns(depth.header, labelled.header))
        if _apart_ns(near.header, labelled.header) > self._tolerance_ns:
            return
        self._waiting = None
        try:
            if self._info is None:
                raise PointsError(f'no message on {self._infos.topic_name} yet')
            if near.header.frame_id != labelled.header.frame_id:
                self._node.get_logger().warning(
                    f'depth is in frame {near.header.frame_id!r}, the image in '
                    f'{labelled.header.frame_id!r}; points have wrong labels unless depth is registered to '
                    'the image', once=True)
            depth = images.decode_depth(near)
            camera = points.pinhole(self._info, *depth.shape)
            cloud = points.cloud(depth, camera, labelled.labels, labelled.confidence, labelled.palette)
            self._publisher.publish(points.encode(cloud, near.header, PointCloud2(), PointField))
            self._published += 1
        except Exception as e:  # bad depth, whatever is wrong with it, must not end the node
            if self._node.context.ok():  # else a signal shut it down under us
                self._failed += 1
                self._last_error = str(e)
                self._node.get_logger().error(f'no points: {e}', throttle_duration_sec=5.0)

    def _without_depth(self) -> None:
        self._alone += 1
        self._node.get_logger().warning(
            f'no points: no depth on {self._depth.topic_name} within {self._tolerance_ns / 1e6:g} ms of the '
            f'image (of the last {len(self._kept)}); see parameter depth_tolerance',
            throttle_duration_sec=5.0)

    def _on_depth(self, msg: Image) -> None:
        self._kept.append(msg)
        if self._waiting is not None:
            self._wake()

    def _on_info(self, msg: CameraInfo) -> None:
        self._info = msg


def _apart_ns(a: Header, b: Header) -> int:
    return abs((a.stamp.sec - b.stamp.sec) * 10 ** 9 + a.stamp.nanosec - b.stamp.nanosec)
