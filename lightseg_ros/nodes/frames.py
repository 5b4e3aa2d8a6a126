# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The way of a frame through the segmentation node: mailbox, decoding, segmentation, publishing."""
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
import os
import threading
from time import perf_counter

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from .. import images
from ..framing import Framing
from ..inference.segmenter import DeviceLost, OutOfMemory, Pending, Prediction, Segmenter, Smoother
from ..latest import Latest
from ..texts import error_line
from .live_segmenter import LiveSegmenter
from .outputs import CameraOutputs
from .plan import Plan

# The size of an image that is older than this may not be that of the next one.
RECENT_S = 5.0
# This many 16-bit images of each camera are looked at for what they use of their range.
RANGE_CHECKS = 100


@dataclass(frozen=True)
class NewImage:
    """An image of a camera has arrived."""

    camera: CameraOutputs
    msg: Image | CompressedImage


@dataclass
class FrameInFlight:
    """
    A frame on its way through the node.

    `pixels`: (H, W, 3) uint8 RGB; `seen`: what the network sees of it. `began`, `published`: perf_counter
    when the frame was taken from the mailbox, and when its label was published. `stage_ms`: milliseconds of
    each stage so far. `ids`: class of each pixel, (H, W) uint8.
    """

    camera: CameraOutputs
    header: Header
    pixels: np.ndarray
    seen: np.ndarray
    began: float
    stage_ms: dict[str, float] = field(default_factory=dict)
    published: float | None = None
    ids: np.ndarray | None = None


@dataclass
class StartedBatch:
    """Frames whose labels are published and whose other outputs are not; `predictions`: if they exist."""

    frames: list[FrameInFlight]
    pending: Pending
    predictions: list[Prediction] | None


class FrameWorker:
    """
    Segments the newest image of each camera in a thread of its own, so that the executor stays free.

    An image that is still in the mailbox when the next one arrives is dropped and counted. An image that
    fails is counted and logged; the thread goes on. `plan` may be exchanged at any time.
    """

    def __init__(self, node: Node, live: LiveSegmenter, plan: Plan):
        self.plan = plan
        self._ranges_checked: Counter[str] = Counter()
        self._smoothers: dict[str, Smoother] = {}  # of each camera, while labels are smoothed
        self.image_sizes: dict[str, list[tuple[int, int]]] = {}  # (height, width) of each camera's last image
        self._decoded_s: dict[str, float] = {}  # perf_counter of each camera's last image
        self.preparing = ''  # size of the images that the network is being prepared for
        # Images of new sizes that wait, by their cameras, and for which size a thread prepares the network.
        self._waiting: dict[str, NewImage] = {}
        self._beside: tuple[int, int] | None = None
        self._tried: set[tuple[int, int]] = set()  # sizes for which that has failed
        self._node = node
        self._live = live
        self._mailbox: Latest[NewImage] = Latest()
        self._running = threading.Event()
        self._processing = threading.Lock()  # held while the thread processes what it took from the mailbox
        self._thread = threading.Thread(target=self._work, name='segmentation', daemon=True)

    def start(self) -> None:
        """Start the thread; it drops images until `resume`."""
        self._thread.start()

    def resume(self) -> None:
        """Process images from now on."""
        self._running.set()

    def stop_soon(self) -> None:
        """Drop images from now on; those that are being processed may still be published."""
        self._running.clear()

    def wait(self) -> None:
        """Wait until the frames that are being processed are finished."""
        with self._processing:
            pass

    def pause(self) -> None:
        """Finish the frames in flight and drop images from now on; nothing is published after the return."""
        self.stop_soon()
        self.wait()

    def stop(self) -> None:
        """Let the thread finish its frame, then end it; it may outlive this if it is compiling a network."""
        self._live.close()
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)  # ros2 launch kills what has not ended after 5 s

    def put_image(self, camera: CameraOutputs, msg: Image | CompressedImage) -> None:
        """Leave an image for the thread; never blocks."""
        self._mailbox.put(NewImage(camera, msg), camera.name)

    def check_framings(self, framings: Mapping[str, Framing]) -> None:
        """Raise a `FramingError` if a camera whose images arrive would fail with its new region or mask."""
        now = perf_counter()
        for name, framing in framings.items():
            if now - self._decoded_s.get(name, float('-inf')) < RECENT_S:
                for size in self.image_sizes[name]:
                    framing.check(*size)

    def dropped(self, camera: CameraOutputs) -> int:
        """Return how many images of the camera were replaced by a newer one before they were segmented."""
        return self._mailbox.dropped[camera.name]

    def _work(self) -> None:
        while not self._mailbox.closed:
            items = self._mailbox.take()
            with self._processing:
                if self._running.is_set():
                    try:
                        self._process(list(items.values()))
                    except Exception as e:  # each frame's errors are counted in there; the thread goes on
                        with suppress(Exception):
                            self._node.get_logger().error(f'the worker failed: {error_line(e)}',
                                                          throttle_duration_sec=5.0)
                else:
                    self._mailbox.discard(items)

    def _process(self, items: list[NewImage]) -> None:
        with self._live.use() as segmenter:
            plan = self.plan  # the same for all that is made of these images
            frames: list[FrameInFlight] = []
            for item in items:
                if self._waiting.pop(item.camera.name, None):
                    self._mailbox.discard([item.camera.name])
                for frame in self._decode(plan, item):
                    if self._must_wait(frame, plan):
                        self._waiting[item.camera.name] = item
                    else:
                        frames.append(frame)
            # The other outputs take longer than the labels: first the labels of all cameras.
            count = self._live.batch_limit
            started: list[StartedBatch] = []
            for i in range(0, len(frames), count):
                started += self._publish_labels(plan, segmenter, frames[i:i + count])
            for batch in started:
                self._publish_more(plan, batch)
            for batch in started:
                self._publish_rest(plan, batch)

    def _must_wait(self, frame: FrameInFlight, plan: Plan) -> bool:
        """
        Return whether a frame waits until the network is compiled for its size, so that other cameras go on.

        If that fails, the frame is tried as one of a single camera is, which tells and counts the error.
        """
        size = frame.seen.shape[:2]
        if len(plan.framings) == 1 or size != self._beside and not self._live.takes_long(size):
            return False
        if not self._beside:
            if size in self._tried:
                return False
            self._tried.add(size)
            self._beside = size
            threading.Thread(target=self._prepare_beside, args=(size,), name='preparing', daemon=True).start()
        return True

    def _prepare_beside(self, size: tuple[int, int]) -> None:
        try:
            with self._announced(size):
                self._live.prepare_beside(size)
        finally:
            with self._processing:
                self._beside = None
                waiting, self._waiting = self._waiting, {}
                self._mailbox.put_back(waiting)

    def _decode(self, plan: Plan, item: NewImage) -> list[FrameInFlight]:
        """Return the image as a frame, or nothing if it cannot be decoded."""
        began = perf_counter()
        try:
            value_range = plan.value_ranges[item.camera.name]
            pixels = images.decode(item.msg, value_range, plan.parameters.max_pixels)
            self.image_sizes[item.camera.name] = [pixels.shape[:2]]
            self._decoded_s[item.camera.name] = began
            if value_range == 'full':
                self._check_range(item)
            seen = plan.framing(item.camera.name).seen(pixels)
        except Exception as e:  # whatever is wrong with one image must not end the thread
            self._failed(item.camera, e)
            return []
        stage_ms = {'decode': 1e3 * (perf_counter() - began)}
        return [FrameInFlight(item.camera, item.msg.header, pixels, seen, began, stage_ms)]

    def _check_range(self, item: NewImage) -> None:
        """Say once if a camera's 16-bit images use so little of their range that little is seen in them."""
        name = item.camera.name
        if self._ranges_checked[name] < RANGE_CHECKS and images.is_16_bit(item.msg):
            self._ranges_checked[name] += 1
            if narrow := images.narrow_range(item.msg):
                self._ranges_checked[name] = RANGE_CHECKS
                self._node.get_logger().warning(
                    f'{name} images: {narrow}; parameter value_range "auto" spreads them'.lstrip())

    def _publish_labels(self, plan: Plan, segmenter: Segmenter,
                        frames: list[FrameInFlight]) -> list[StartedBatch]:
        """Segment frames as one batch and publish their labels; returns what is left to do."""
        pending, predictions = None, None
        smoothers = self._smoothers_of(plan, frames)
        try:
            self._make_ready(frames)
            cameras = [frame.camera for frame in frames]
            pending = segmenter.start(
                [frame.seen for frame in frames],
                overlay=any(camera.wants_overlay(plan.parameters) for camera in cameras),
                confidence=plan.needs_confidence or any(
                    camera.wants_confidence(plan.parameters) or camera.wants_points() for camera in cameras),
                smoothers=smoothers)
            if plan.needs_confidence:
                predictions = pending.finish()
                labels = [prediction.labels for prediction in predictions]
            else:
                labels = pending.labels()
        except Exception as e:
            if pending:
                with suppress(Exception):  # its buffers are used again only once it is finished
                    pending.finish()
            for smoother in smoothers:  # what failed may be part of the averages
                smoother.forget()
            if len(frames) == 1:
                self._failed(frames[0].camera, e)
                return []
            if isinstance(e, OutOfMemory):
                self._live.lower_batch(len(frames))
            pending = None
        if pending is None:
            # One by one, to find the bad frame. Not inside the `except`, whose error keeps what it has failed
            # to compute alive.
            return [batch for frame in frames for batch in self._publish_labels(plan, segmenter, [frame])]
        for i, frame in enumerate(frames):
            began = perf_counter()
            try:
                frame.ids = plan.class_ids(frame.camera.name, labels[i],
                                           predictions[i].confidence if predictions else None,
                                           frame.pixels.shape[:2])
                frame.camera.publish_label(frame.header, frame.ids, plan)
                frame.published = perf_counter()
                frame.stage_ms['publish'] = 1e3 * (frame.published - began)
                frame.stage_ms['total'] = 1e3 * (frame.published - frame.began)
                self._add_age(frame)
            except Exception as e:
                self._failed(frame.camera, e)
        return [StartedBatch(frames, pending, predictions)]

    def _smoothers_of(self, plan: Plan, frames: list[FrameInFlight]) -> list[Smoother]:
        """Return the smoother of each frame's camera, if labels are smoothed."""
        weight = plan.parameters.smoothing
        if not weight:
            self._smoothers.clear()
            return []
        smoothers = []
        for frame in frames:
            smoother = self._smoothers.setdefault(frame.camera.name, Smoother(weight))
            smoother.weight = weight
            smoothers.append(smoother.next(_ns(frame.header), plan.framing(frame.camera.name).view))
        return smoothers

    def _make_ready(self, frames: list[FrameInFlight]) -> None:
        """Prepare the network for frames of new sizes, which takes seconds; the diagnostics say so."""
        for size in {frame.seen.shape[:2] for frame in frames}:
            self._live.note(size)
            if not self._live.is_ready(size):
                with self._announced(size):
                    self._live.make_ready(size)

    @contextmanager
    def _announced(self, size: tuple[int, int]) -> Iterator[None]:
        """Say in log and diagnostics that the network is being prepared for images of (height, width)."""
        self.preparing = text = f'{size[1]}x{size[0]}'
        began = perf_counter()
        try:
            self._node.get_logger().info(f'preparing the network for images of {text}')
            yield
            if not self._mailbox.closed and self._live.is_ready(size):
                self._node.get_logger().info(
                    f'ready for images of {text} after {perf_counter() - began:.1f} s')
                self._tried.discard(size)
        finally:
            self.preparing = ''

    def _publish_more(self, plan: Plan, batch: StartedBatch) -> None:
        """Publish what is made of the labels alone, of frames whose labels are published."""
        for frame in batch.frames:
            if frame.published is None or frame.ids is None:
                continue
            try:
                if frame.camera.publish_more(frame.header, frame.ids, plan):
                    frame.stage_ms['rest'] = 1e3 * (perf_counter() - frame.published)
            except Exception as e:
                self._failed(frame.camera, e)
                frame.published = None

    def _publish_rest(self, plan: Plan, batch: StartedBatch) -> None:
        """Publish overlay, confidence and points of frames whose labels are published."""
        try:
            predictions = batch.predictions or batch.pending.finish()
        except Exception as e:
            for frame in batch.frames:
                if frame.published is not None:  # otherwise it has failed already
                    self._failed(frame.camera, e)
            return
        for frame, prediction in zip(batch.frames, predictions):
            if frame.published is None or frame.ids is None:
                continue  # failed already
            frame.stage_ms = prediction.stage_ms | frame.stage_ms
            try:
                if frame.camera.publish_rest(frame.header, frame.pixels, frame.ids, prediction, plan):
                    frame.stage_ms['rest'] = 1e3 * (perf_counter() - frame.published)
                frame.camera.publish_times(frame.header, frame.stage_ms)
                frame.camera.health.frame_processed(frame.stage_ms)
            except Exception as e:
                self._failed(frame.camera, e)

    def _add_age(self, frame: FrameInFlight) -> None:
        if (stamp_ns := _ns(frame.header)) > 0:
            frame.stage_ms['age'] = (self._node.get_clock().now().nanoseconds - stamp_ns) / 1e6

    def _failed(self, camera: CameraOutputs, error: Exception) -> None:
        # A signal shuts the context down at any time; a frame that is lost to that did not fail.
        if self._node.context.ok():
            camera.health.frame_failed(error_line(error))
            self._node.get_logger().error(f'{camera.name} frame failed: {error_line(error)}'.lstrip(),
                                          throttle_duration_sec=5.0)
            if isinstance(error, DeviceLost):
                # Nothing can be freed on such a GPU, and only a new process can use it: see `use_respawn`.
                self._node.get_logger().fatal('the node ends, so that it can be started again')
                os._exit(1)


def _ns(header: Header) -> int:
    # Not rclpy's Time, which raises on the negative stamps of a camera with a broken clock.
    return header.stamp.sec * 10 ** 9 + header.stamp.nanosec
