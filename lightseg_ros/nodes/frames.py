# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The way of a frame through the segmentation node: mailbox, decoding, segmentation, publishing."""
from dataclasses import dataclass, field
import threading
from time import perf_counter

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from .. import images
from ..inference.segmenter import Prediction, Segmenter
from ..latest import Latest
from .live_segmenter import LiveSegmenter
from .outputs import CameraOutputs
from .points import LabelledImage, Points
from .segmentation_parameters import SegmentationParameters


@dataclass(frozen=True)
class NewImage:
    """An image of a camera has arrived."""

    camera: CameraOutputs
    msg: Image | CompressedImage


@dataclass(frozen=True)
class NewDepth:
    """Depth of a camera has arrived that labels are waiting for."""

    camera: CameraOutputs


@dataclass
class FrameInFlight:
    """
    A frame on its way through the node.

    `pixels`: (H, W, 3) uint8 RGB. `began`: perf_counter when the frame was taken from the mailbox.
    `stage_ms`: milliseconds of each stage so far.
    """

    camera: CameraOutputs
    header: Header
    pixels: np.ndarray
    began: float
    stage_ms: dict[str, float] = field(default_factory=dict)


class FrameWorker:
    """
    Segments the newest image of each camera in a thread of its own, so that the executor stays free.

    An image that is still in the mailbox when the next one arrives is dropped and counted. An image that
    fails is counted and logged; the thread goes on. `parameters` may be exchanged at any time.
    """

    def __init__(self, node: Node, live: LiveSegmenter, parameters: SegmentationParameters):
        self.parameters = parameters
        self._node = node
        self._live = live
        self._mailbox: Latest[NewImage | NewDepth] = Latest()
        self._running = threading.Event()
        self._processing = threading.Lock()  # held while the thread processes what it took from the mailbox
        self._thread = threading.Thread(target=self._work, name='segmentation', daemon=True)

    def start(self) -> None:
        """Start the thread; it drops images until `resume`."""
        self._thread.start()

    def resume(self) -> None:
        """Process images from now on."""
        self._running.set()

    def pause(self) -> None:
        """Finish the frames in flight and drop images from now on; nothing is published after the return."""
        self._running.clear()
        with self._processing:
            pass

    def stop(self) -> None:
        """Let the thread finish its frame, then end it."""
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    def put_image(self, camera: CameraOutputs, msg: Image | CompressedImage) -> None:
        """Leave an image for the thread; never blocks."""
        self._mailbox.put(NewImage(camera, msg), (NewImage, camera.name))

    def put_depth(self, camera: CameraOutputs) -> None:
        """Make the thread match waiting labels with depth; never blocks."""
        self._mailbox.put(NewDepth(camera), (NewDepth, camera.name))

    def dropped(self, camera: CameraOutputs) -> int:
        """Return how many images of the camera were replaced by a newer one before they were segmented."""
        return self._mailbox.dropped[NewImage, camera.name]

    def _work(self) -> None:
        while not self._mailbox.closed:
            items = self._mailbox.take()
            with self._processing:
                if self._running.is_set():
                    self._process(list(items.values()))
                else:
                    self._mailbox.discard(items)

    def _process(self, items: list[NewImage | NewDepth]) -> None:
        frames: list[FrameInFlight] = []
        for item in items:
            if isinstance(item, NewImage):
                frames += self._decode(item)
            elif item.camera.points:
                item.camera.points.match()
        labelled: list[tuple[Points, LabelledImage]] = []
        while frames:
            with self._live.use() as segmenter:
                count = self._live.batch_limit
                labelled += self._segment(segmenter, frames[:count])
            frames = frames[count:]
        for points, one in labelled:  # after every camera has its label
            points.add(one)

    def _decode(self, item: NewImage) -> list[FrameInFlight]:
        """Return the image as a frame, or nothing if it cannot be decoded."""
        began = perf_counter()
        try:
            pixels = images.decode(item.msg)
        except Exception as e:  # whatever is wrong with one image must not end the thread
            self._failed(item.camera, e)
            return []
        stage_ms = {'decode': 1e3 * (perf_counter() - began)}
        return [FrameInFlight(item.camera, item.msg.header, pixels, began, stage_ms)]

    def _segment(self, segmenter: Segmenter,
                 frames: list[FrameInFlight]) -> list[tuple[Points, LabelledImage]]:
        """Segment frames as one batch and publish the results; returns the labels that become points."""
        p = self.parameters
        try:
            self._live.prepare(frames[0].pixels.shape[:2])
            cameras = [frame.camera for frame in frames]
            predictions = segmenter(
                [frame.pixels for frame in frames],
                overlay=any(camera.wants_overlay(p) for camera in cameras),
                confidence=any(camera.wants_confidence(p) or camera.wants_points() for camera in cameras))
        except Exception as e:
            if len(frames) == 1:
                self._failed(frames[0].camera, e)
                return []
            # Retry one by one to find the bad frame.
            return [one for frame in frames for one in self._segment(segmenter, [frame])]
        palette = segmenter.labels.palette()
        labelled = []
        for frame, prediction in zip(frames, predictions):
            try:
                self._publish(frame, prediction)
            except Exception as e:
                self._failed(frame.camera, e)
            points = frame.camera.points
            if points and prediction.confidence is not None and points.wanted():
                labelled.append((points, LabelledImage(
                    frame.header, prediction.labels, prediction.confidence, palette)))
        return labelled

    def _publish(self, frame: FrameInFlight, prediction: Prediction) -> None:
        segmented = perf_counter()
        frame.camera.publish(frame.header, prediction, self.parameters)
        done = perf_counter()
        frame.stage_ms |= prediction.stage_ms
        frame.stage_ms |= {'publish': 1e3 * (done - segmented), 'total': 1e3 * (done - frame.began)}
        # Not rclpy's Time, which raises on the negative stamps of a camera with a broken clock.
        stamp = frame.header.stamp
        if (stamp_ns := stamp.sec * 10 ** 9 + stamp.nanosec) > 0:
            frame.stage_ms['age'] = (self._node.get_clock().now().nanoseconds - stamp_ns) / 1e6
        frame.camera.health.frame_processed(frame.stage_ms)

    def _failed(self, camera: CameraOutputs, error: Exception) -> None:
        # A signal shuts the context down at any time; a frame that is lost to that did not fail.
        if self._node.context.ok():
            camera.health.frame_failed(str(error))
            self._node.get_logger().error(f'{camera.name} frame failed: {error}'.lstrip(),
                                          throttle_duration_sec=5.0)
