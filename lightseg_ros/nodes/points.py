# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs the labels of a camera with its depth by their stamps, and publishes labelled point clouds."""
from collections import deque
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
import os
import threading
from time import monotonic, perf_counter

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import serialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from .. import images, points
from ..health import Health
from ..points import PointsError
from ..texts import error_line
from .inputs import CameraInfoInput, WhileWanted
from .segmentation_parameters import SegmentationParameters

# Several depth images may arrive while one image is segmented.
DEPTH_QOS = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
POINTS_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
# Message and topic of each depth_transport; a depth image that is compressed is decoded when it is used.
DEPTHS = {'raw': (Image, 'depth'), 'compressedDepth': (CompressedImage, 'depth/compressedDepth')}
KEPT_NS = 2 * 10 ** 9  # depth is kept this long: labels of a slow network may be a second later
MAX_WAITING = 10  # labels that wait for depth, which takes time to be registered to the image
LOG_PERIOD_S = 5.0
# This many labels in a row without depth are logged. Fewer are normal with a slower depth camera or at the
# start.
MISSES_LOGGED = 10


@dataclass
class LabelledImage:
    """Labels and confidence of an image, (H, W) uint8, with its header; palette: (256, 3) uint8 RGB."""

    header: Header
    labels: np.ndarray
    confidence: np.ndarray
    palette: np.ndarray


class Points:
    """
    Subscribes to a camera's `depth` and `camera_info`, publishes `points` with the header of the depth.

    The labels of an image are combined with the depth image whose stamp is nearest, if the stamps differ by
    at most `tolerance_s`. The nearest one is known once depth with the image's stamp or a later one has
    arrived; until then the labels wait. A thread makes the points, so that no image waits for them. If it is
    slower than the camera, the newest labels win.
    """

    def __init__(self, node: Node, prefix: str, parameters: SegmentationParameters, health: Health,
                 events: PublisherEventCallbacks | None):
        self._node, self._health = node, health
        self._undistort = parameters.undistort_points
        self._tolerance_ns = round(1e9 * parameters.depth_tolerance)
        self._changed = threading.Condition()  # protects _kept, _waiting and _closed
        self._publishing = threading.Lock()  # held while points are made and published
        self._closed = False
        self._kept: deque[Image | CompressedImage] = deque()
        self._waiting: deque[LabelledImage] = deque()
        self._used_ns = -1
        self._published = self._missed = self._missed_in_a_row = self._failed = self._dropped = 0
        self._last_error = ''
        self._logged_s = self._failed_s = float('-inf')  # time of the last log; of points that failed last
        self._warned_of_frame = self._warned_of_distortion = False
        self._depth_kind, self._depth_name = DEPTHS[parameters.depth_transport]
        self._depth_topic = node.resolve_topic_name(f'{prefix}{self._depth_name}')
        self._depth: Subscription | None = None
        self._group = WhileWanted()
        self.info = CameraInfoInput(node, f'{prefix}camera_info', self._group)
        self._publisher = node.create_publisher(
            PointCloud2, f'~/{prefix}points', copy(POINTS_QOS), event_callbacks=events,
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
        self._prefix = prefix
        self._thread = threading.Thread(target=self._work, name='points', daemon=True)
        self._thread.start()

    def subscribe(self) -> None:
        """Subscribe to depth and camera_info, unless that is done."""
        if self._depth is None:
            self._depth = self._node.create_subscription(
                self._depth_kind, f'{self._prefix}{self._depth_name}', self._on_depth, copy(DEPTH_QOS),
                callback_group=self._group,
                qos_overriding_options=QoSOverridingOptions.with_default_policies())
        self.info.subscribe()

    def take(self) -> None:
        """Take depth and camera_info only while somebody subscribes to the points."""
        self._group.wanted = self.wanted()

    def unsubscribe(self) -> None:
        """Undo `subscribe`; nothing is published afterwards."""
        with self._changed:
            self._waiting.clear()
            self._kept.clear()
        with self._publishing:
            pass
        if self._depth is not None:
            self._node.destroy_subscription(self._depth)
            self._depth = None
        self.info.unsubscribe()

    def destroy(self) -> None:
        """Destroy the publisher and the subscriptions, and end the thread."""
        self.unsubscribe()
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._node.destroy_publisher(self._publisher)

    def wanted(self) -> bool:
        """Return whether anybody subscribes to the points."""
        return self._publisher.get_subscription_count() > 0

    def topics(self) -> list[str]:
        """Return the topics of depth and camera_info."""
        return [self._depth_topic, self.info.topic]

    def values(self) -> dict[str, str]:
        """Return counts for the diagnostics."""
        out = {'points published': str(self._published), 'points dropped': str(self._dropped),
               'points failed': str(self._failed), 'labels without depth': str(self._missed)}
        return out | ({'last points error': self._last_error} if self._last_error else {})

    def failure(self) -> str:
        """Return why there are no points now, else ''."""
        return f'no points: {self._last_error}' if monotonic() - self._failed_s < LOG_PERIOD_S else ''

    def add(self, labelled: LabelledImage) -> None:
        """Leave labels for the thread, which publishes them as points once their depth has arrived."""
        with self._changed:
            self._waiting.append(labelled)
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._without_depth()
            self._changed.notify()

    def _work(self) -> None:
        # On Linux of this thread alone: the next labels are worth more than these points.
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            with self._changed:
                pair = None
                while not self._closed and (pair := self._newest_pair()) is None:
                    self._changed.wait()
                if pair is None:
                    return
                self._publishing.acquire()  # before `unsubscribe` may take it
            try:
                self._publish(*pair)
            except Exception as e:  # whatever is wrong with one depth image must not end the thread
                if self._node.context.ok():  # otherwise a signal shut the context down during publishing
                    self._failed, self._failed_s = self._failed + 1, monotonic()
                    self._last_error = error_line(e)
                    self._log(f'no points: {self._last_error}')
            finally:
                self._publishing.release()

    def _newest_pair(self) -> tuple[Image | CompressedImage, LabelledImage] | None:
        """Return the last depth that has labels, and these; the labels before them are taken and counted."""
        pair = None
        while self._waiting and self._kept:
            stamp_ns = _ns(self._waiting[0].header)
            if max(_ns(depth.header) for depth in self._kept) < stamp_ns:
                break
            near = min(self._kept, key=lambda depth: abs(_ns(depth.header) - stamp_ns))
            labelled, near_ns = self._waiting.popleft(), _ns(near.header)
            # Each depth image is published once: if two images share one, the first image labels it.
            if abs(near_ns - stamp_ns) > self._tolerance_ns or near_ns == self._used_ns:
                self._without_depth()
                continue
            self._used_ns, self._missed_in_a_row = near_ns, 0
            self._dropped += pair is not None
            pair = near, labelled
        return pair

    def _publish(self, near: Image | CompressedImage, labelled: LabelledImage) -> None:
        began = perf_counter()
        info = self.info.latest
        if info is None:
            raise PointsError(f'no message on {self.info.topic} yet')
        frames = near.header.frame_id, labelled.header.frame_id
        if frames[0] != frames[1] and not self._warned_of_frame:
            self._warned_of_frame = True
            self._node.get_logger().warning(
                f'{self._depth_topic} has frame_id {frames[0]!r}, the image has {frames[1]!r}; the '
                'labels of the points are wrong unless depth is registered to the image')
        if points.is_distorted(info) and not self._undistort and not self._warned_of_distortion:
            self._warned_of_distortion = True
            self._node.get_logger().warning(
                f'{self.info.topic} describes a lens with distortion. The points are right if image and '
                'depth are rectified; if they are not, set the parameter undistort_points to true')
        depth = images.decode_depth(near)
        height, width = depth.shape
        camera = points.pinhole(info, height, width, distorted=self._undistort)
        cloud = points.cloud(depth, camera, labelled.labels, labelled.confidence, labelled.palette)
        self._publisher.publish(points.serialized(cloud, near.header, PointCloud2(), PointField,
                                                  serialize_message))
        self._published, self._failed_s = self._published + 1, float('-inf')
        self._health.stage_took('points', 1e3 * (perf_counter() - began))

    def _without_depth(self) -> None:
        self._missed += 1
        self._missed_in_a_row += 1
        if self._missed_in_a_row >= MISSES_LOGGED:
            self._log(f'no points: no depth on {self._depth_topic} within '
                      f'{self._tolerance_ns / 1e6:g} ms of the image; see parameter depth_tolerance')

    def _log(self, text: str) -> None:
        # Not rclpy's throttle, which all cameras would share.
        if monotonic() - self._logged_s > LOG_PERIOD_S:
            self._logged_s = monotonic()
            self._node.get_logger().error(text)

    def _on_depth(self, msg: Image | CompressedImage) -> None:
        wanted = self.wanted()
        with self._changed:
            if wanted:
                self._kept.append(msg)
            # abs: a clock that is set back, or a bag that starts again, empties the queue too.
            while self._kept and (not wanted or abs(_ns(msg.header) - _ns(self._kept[0].header)) > KEPT_NS):
                self._kept.popleft()
            self._changed.notify()


def _ns(header: Header) -> int:
    return header.stamp.sec * 10 ** 9 + header.stamp.nanosec
