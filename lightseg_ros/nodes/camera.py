# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The camera node: publishes a folder, a video, a bag, a device or the synthetic street as a camera topic."""
if __name__ == '__main__':  # before the imports, so that Ctrl-C while they run ends the node quietly
    from . import camera_node
    raise SystemExit(camera_node())
from copy import copy
from dataclasses import dataclass
import os
import threading
from time import monotonic

import cv2
import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from .. import images
from ..sources import open_source, SourceFrame
from .lifetime import run
from .parameters import (
    declare,
    parameter,
    ParameterError,
    usage,
    warn_of_unused_qos_overrides,
    watch,
)

QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
OUTPUTS = {'raw': (Image, 'image'), 'compressed': (CompressedImage, 'image/compressed')}


@dataclass(frozen=True)
class CameraParameters:
    """Parameters of the camera node."""

    source: str = parameter(
        'synthetic', "Source of the images: 'synthetic' (the built-in street), a folder of images, a video, "
        "a bag, or a device such as '/dev/video0' or its number.", read_only=True)
    topic: str = parameter('', 'Image topic of a bag. Empty: its only image topic.', read_only=True)
    rate: float = parameter(
        0.0, 'Images per second. 0: the rate of the source (of the video, the stamps of the bag, every '
        'image of the device, 10 for a folder, 15 for the street).', limits=(0.0, 1000.0))
    width: int = parameter(
        0, 'Width of the image in pixels. 0: as the source, or according to the height.',
        limits=(0, 16384), read_only=True)
    height: int = parameter(
        0, 'Height of the image in pixels. 0: as the source, or according to the width.',
        limits=(0, 16384), read_only=True)
    loop: bool = parameter(False, 'Start again after the last frame.')
    count: int = parameter(0, 'Exit after this many frames. 0: never.', limits=(0, 2 ** 62), read_only=True)
    frame_id: str = parameter('camera', 'frame_id of all headers.')
    encoding: str = parameter('rgb8', 'Encoding of raw images.', choices=('rgb8', 'bgr8'), read_only=True)
    image_transport: str = parameter(
        'raw', 'raw: publish image; compressed: publish image/compressed, as JPEG.', choices=tuple(OUTPUTS),
        read_only=True)
    depth: bool = parameter(
        False, 'Also publish depth, in millimetres. Only the synthetic street has depth.', read_only=True)
    seed: int = parameter(0, 'Random seed of the synthetic street.', limits=(0, 2 ** 31), read_only=True)

    def __post_init__(self) -> None:
        if 0 < self.rate < 1e-3:
            raise ParameterError(f"parameter 'rate' is {self.rate!r}; expected 0, or 0.001 to 1000")


class CameraNode(Node):
    """
    Publishes `image` (or `image/compressed`) and `camera_info`.

    If the source has them, it also publishes `~/ground_truth` and, on request, `depth`. All messages of a
    frame have the same header, stamped with the time of publishing. A thread reads and publishes, so that a
    slow source does not block the executor. After a pause, frames continue at their rate, without a burst.
    """

    def __init__(self) -> None:
        super().__init__('camera')
        self._settings = p = declare(self, CameraParameters)
        log = self.get_logger()
        self._source = open_source(os.path.expanduser(p.source), topic=p.topic, rate=p.rate, width=p.width,
                                   height=p.height, seed=p.seed, depth=p.depth,
                                   warn=lambda text: log.warning(text))
        kind, topic = OUTPUTS[p.image_transport]
        overriding = QoSOverridingOptions.with_default_policies()
        self._image = self.create_publisher(kind, topic, copy(QOS), qos_overriding_options=overriding)
        self._camera_info = self.create_publisher(
            CameraInfo, 'camera_info', copy(QOS), qos_overriding_options=overriding)
        self._truth = self.create_publisher(
            Image, '~/ground_truth', copy(QOS), qos_overriding_options=overriding)
        self._depth = self.create_publisher(Image, 'depth', copy(QOS), qos_overriding_options=overriding) \
            if p.depth else None
        warn_of_unused_qos_overrides(self)
        watch(self, p, self._apply)
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name='camera', daemon=True)
        self._thread.start()
        log.info(f'{self._source.description}: publishing {self._image.topic_name}')

    def destroy_node(self) -> None:
        """Let the thread finish its frame, then destroy the publishers."""
        if hasattr(self, '_thread'):
            self._stop.set()
            # Reading from a device may block for seconds. The thread is a daemon and ends with the process.
            self._thread.join(timeout=2.0)
        super().destroy_node()

    def done(self) -> bool:
        """Return whether the last frame was published; raises the error that ended the source, if any."""
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def _apply(self, new: CameraParameters) -> None:
        self._settings = new

    def _work(self) -> None:
        try:
            count = self._play()
        except Exception as e:
            # SIGTERM shuts the context down at once, possibly while a frame is published: not an error.
            if self.context.ok():
                self._error = e
            return
        if not self._stop.is_set():
            self._image.wait_for_all_acked(Duration(seconds=2))
            self._truth.wait_for_all_acked(Duration(seconds=2))
            self.get_logger().info(f'{count} frames published; the source has no more')

    def _play(self) -> int:
        """Publish until the source ends or `_stop` is set; returns the number of frames."""
        count = 0
        due = monotonic()
        while True:
            last_ns = None
            for frame in self._source.frames():
                period = self._period(frame, last_ns) if count else 0.0
                last_ns = frame.stamp_ns
                # A delay of up to one period is made up for; a longer one is not, which would cause a burst.
                next_due = max(due + period, monotonic() - period)
                if self._source.live and monotonic() < next_due - period / 4:
                    continue  # the device is faster than the requested rate
                due = next_due
                if self._stop.wait(max(due - monotonic(), 0.0)):
                    return count
                self._publish(frame)
                count += 1
                if count == self._settings.count:
                    return count
            if not self._settings.loop:
                return count

    def _period(self, frame: SourceFrame, last_ns: int | None) -> float:
        """Return the time between the frame and the one before it, in seconds."""
        rate = self._settings.rate or self._source.rate
        if rate:
            return 1 / rate
        if frame.stamp_ns is None or last_ns is None:
            return 0.0
        return max(frame.stamp_ns - last_ns, 0) / 1e9

    def _publish(self, frame: SourceFrame) -> None:
        p = self._settings
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=p.frame_id)
        # The image comes last: a subscriber that waits for it has received the rest by then.
        if frame.truth is not None and self._truth.get_subscription_count():
            self._truth.publish(images.encode(frame.truth, 'mono8', header, Image()))
        if self._depth and frame.depth is not None:
            # 16 bits hold up to 65.5 m; a depth camera does not measure further either.
            millimetres = (1e3 * np.where(frame.depth < 65.5, frame.depth, 0)).round().astype(np.uint16)
            self._depth.publish(images.encode(millimetres, '16UC1', header, Image()))
        height, width = frame.rgb.shape[:2]
        info = CameraInfo(header=header, height=height, width=width)  # all zeros means not calibrated
        if frame.calibration is not None:
            c = frame.calibration
            info.k, info.r, info.p = c.k.ravel(), c.r.ravel(), c.p.ravel()
            info.d, info.distortion_model = list(c.d), c.model
        self._camera_info.publish(info)
        if p.image_transport == 'compressed':
            self._image.publish(images.encode(frame.rgb, 'jpeg', header, CompressedImage()))
        else:
            rgb = frame.rgb if p.encoding == 'rgb8' else frame.rgb[..., ::-1]
            self._image.publish(images.encode(rgb, p.encoding, header, Image()))


def main() -> int:
    """Run the node until a signal ends it; returns the exit code."""
    cv2.setNumThreads(1)  # leave the other cores to the network
    return run(CameraNode, lambda node: isinstance(node, CameraNode) and node.done(), usage(
        'camera_node: publishes a folder, a video, a device, a bag or the built-in street as image and '
        'camera_info.\nMore: docs/node.md', CameraParameters,
        'camera_node --ros-args -p source:=images/ -p rate:=5 -p loop:=true -r image:=/camera/image_raw'))
