# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the segmentation node publishes for one camera: labels, and all that is made of them."""
from collections.abc import Callable
from copy import copy
import inspect
from time import monotonic
from typing import Any

import cv2
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Float32MultiArray, Float64, Header, MultiArrayDimension

from .. import images
from ..health import Health, is_possible
from ..inference.segmenter import Prediction
from .inputs import CameraInfoInput, Images
from .plan import Plan
from .points import LabelledImage, Points
from .segmentation_parameters import SegmentationParameters

# Whether a publisher reports its subscribers as they come and go, which Humble's rclpy cannot.
MATCHED_EVENTS = 'matched' in inspect.signature(PublisherEventCallbacks).parameters
RESULT_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
OUTPUTS = {
    'label': Image, 'label_color': Image, 'groups': Image, 'overlay': Image, 'confidence': Image,
    'label/compressed': CompressedImage, 'overlay/compressed': CompressedImage,
    'class_fractions': Float32MultiArray, 'camera_info': CameraInfo,
    'debug/latency_ms': Float64, 'debug/stages_ms': DiagnosticArray}
# A camera that is connected and whose images do not arrive is worth a hint after this time.
SILENT_S = 5.0
# How long a frame took.
OF_TIMES = ('debug/latency_ms', 'debug/stages_ms')
# What is made of the labels alone.
OF_LABELS = ('groups', 'camera_info', 'class_fractions', 'label_color', 'label/compressed')


class RateLimit:
    """Leaves images alone that exceed a rate, and counts them in `left_out`."""

    def __init__(self) -> None:
        self.left_out = 0
        self._max_rate = self._due_s = 0.0

    def is_due(self, max_rate: float, now_s: float) -> bool:
        """Return whether the image that arrives now is to be segmented; `max_rate`: in Hz, 0 for all."""
        if max_rate != self._max_rate:
            self._max_rate, self._due_s = max_rate, now_s
        if not max_rate:
            return True
        if now_s < self._due_s:
            self.left_out += 1
            return False
        # From the time when it was due, not from now: the mean rate is then max_rate for every camera rate.
        self._due_s = max(self._due_s + 1 / max_rate, now_s)
        return True


class CameraOutputs:
    """
    The publishers of one camera, and the health of its frames.

    `name`: '' for a single camera, whose topics have no prefix. `on_match` is called when a subscriber of an
    output appears or leaves.
    """

    def __init__(self, node: Node, name: str, parameters: SegmentationParameters,
                 on_match: Callable[[], None]):
        self._node = node
        self.name = name
        self.prefix = f'{name}/' if name else ''
        self.health = Health()
        self.rate = RateLimit()
        self.images = Images(node, self.health.frames_lost)
        self._info = CameraInfoInput(node, f'{self.prefix}camera_info')
        self._arrived = -1  # images until the last call of `silence`
        self._silent_s = self._looked_s = float('-inf')  # since when none has arrived; time of that call
        overriding = QoSOverridingOptions.with_default_policies()
        events = PublisherEventCallbacks(matched=lambda _: on_match()) if MATCHED_EVENTS else None
        self._publishers = {
            output: node.create_publisher(kind, f'~/{self.prefix}{output}', copy(RESULT_QOS),
                                          qos_overriding_options=overriding, event_callbacks=events)
            for output, kind in OUTPUTS.items()}
        self.points = Points(node, self.prefix, parameters, self.health,
                             events) if parameters.publish_points else None

    @property
    def label(self) -> Publisher:
        """The publisher of the labels."""
        return self._publishers['label']

    def subscribe(self, kind: type, topic: str, on_image: Callable[[Any], None]) -> None:
        """Subscribe to the images and to what the wanted outputs need besides."""
        self.images.subscribe(kind, self.prefix + topic, on_image)
        if self.points:
            self.points.subscribe()
        if self._has_subscriber('camera_info'):
            self._info.subscribe()
        else:
            self._info.unsubscribe()

    def take(self, wanted: bool) -> None:
        """Take the images that arrive from now on, or leave them in the middleware."""
        self.images.take(wanted)
        if self.points:
            self.points.take()

    def unsubscribe(self) -> None:
        """Undo `subscribe`."""
        self.images.unsubscribe()
        if self.points:
            self.points.unsubscribe()
        self._info.unsubscribe()

    def look(self) -> None:
        """Look for latched messages that are still missing; call it about once a second."""
        self._info.look()
        if self.points:
            self.points.info.look()

    def silence(self) -> str:
        """
        Return what may be wrong if a camera is connected and its images do not arrive, else ''.

        Call it about once a second while images are taken. Fast DDS says nothing of a message that does not
        fit into its shared memory; camera_info, which does fit, tells how large the images are.
        """
        now, before_s, topic = monotonic(), self._looked_s, self.images.topic
        arrived = self.health.received + self.health.lost + self.rate.left_out
        self._looked_s = now
        if arrived != self._arrived or now - before_s > SILENT_S or topic is None \
                or not self._node.count_publishers(topic):
            if now - self._silent_s > SILENT_S / 2 and not self._has_subscriber('camera_info'):
                self._info.unsubscribe()  # it was for the hint
            self._arrived, self._silent_s = arrived, now
        if 'fastrtps' not in get_rmw_implementation_identifier() or now - self._silent_s < SILENT_S / 2:
            return ''
        self._info.subscribe()
        if now - self._silent_s < SILENT_S:
            return ''
        info = self._info.latest
        if info is None or now - self._info.latest_s > SILENT_S:
            return (f'{topic} has a publisher, but no image arrives: if the camera is running, its images '
                    'may be larger than the shared memory of Fast DDS, see config/fastdds.xml')
        return (f'camera_info arrives, but no image on {topic}: {info.width}x{info.height} in three colours '
                f'is {3 * info.width * info.height / 1e6:.1f} MB, and the segment_size of Fast DDS must be '
                'larger, for the camera too: see config/fastdds.xml')

    def topics(self) -> list[str]:
        """Return the topics that the node subscribes to."""
        points = self.points.topics() if self.points else []
        return [self.images.topic, *points] if self.images.topic else points

    def destroy(self) -> None:
        """Destroy the publishers and subscriptions."""
        self.unsubscribe()
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        if self.points:
            self.points.destroy()

    def has_listener(self, parameters: SegmentationParameters) -> bool:
        """Return whether anything that the node makes of the camera's images has a subscriber."""
        return (any(self._has_subscriber(output) for output in (
                    'label', *OF_LABELS, *OF_TIMES))
                or self.wants_overlay(parameters) or self.wants_confidence(parameters) or self.wants_points())

    def wants_overlay(self, parameters: SegmentationParameters) -> bool:
        return parameters.publish_overlay and (self._has_subscriber('overlay')
                                               or self._has_subscriber('overlay/compressed'))

    def wants_confidence(self, parameters: SegmentationParameters) -> bool:
        return parameters.publish_confidence and self._has_subscriber('confidence')

    def wants_points(self) -> bool:
        return self.points is not None and self.points.wanted()

    def publish_label(self, header: Header, ids: np.ndarray, plan: Plan) -> None:
        """Publish labels with the header of their frame; `ids`: class of each pixel, (H, W) uint8."""
        self._publish_image('label', header, plan.label(ids), 'mono8')

    def publish_more(self, header: Header, ids: np.ndarray, plan: Plan) -> bool:
        """Publish what has a subscriber of all that is made of labels; returns whether anything had."""
        wanted = [output for output in OF_LABELS if self._has_subscriber(output)]
        if 'groups' in wanted and plan.groups is not None:
            self._publish_image('groups', header, plan.group_ids(ids), 'mono8')
        if 'camera_info' in wanted and (info := self._info.latest) is not None:
            self._publishers['camera_info'].publish(with_header(info, header))
        if 'class_fractions' in wanted:
            self._publishers['class_fractions'].publish(fractions(plan.label(ids), plan.labels.names))
        if 'label_color' in wanted:
            # OpenCV maps to three channels in the palette's order, whatever it calls them.
            color = cv2.applyColorMap(plan.label(ids), plan.labels.palette()[:, None])
            self._publish_image('label_color', header, color, 'rgb8')
        if 'label/compressed' in wanted:
            self._publish_image('label/compressed', header, plan.label(ids), 'png')
        return bool(wanted)

    def publish_rest(self, header: Header, frame: np.ndarray, ids: np.ndarray, prediction: Prediction,
                     plan: Plan) -> bool:
        """
        Publish what has a subscriber of overlay, confidence and points; returns whether anything had.

        `frame`: (H, W, 3) uint8 RGB. `prediction`: what the network found in its part of the frame.
        """
        published = False
        framing = plan.framing(self.name)
        confidence = None
        if prediction.confidence is not None:
            confidence = framing.confidence(prediction.confidence, *frame.shape[:2])
        if prediction.overlay is not None and self.wants_overlay(plan.parameters):
            overlay = plan.overlay(self.name, prediction.overlay, frame, ids)
            for output, encoding in (('overlay', 'rgb8'), ('overlay/compressed', 'jpeg')):
                if self._has_subscriber(output):
                    self._publish_image(output, header, overlay, encoding)
                    published = True
        if confidence is not None and self.wants_confidence(plan.parameters):
            self._publish_image('confidence', header, confidence, 'mono8')
            published = True
        if confidence is not None and self.points and self.points.wanted():
            self.points.add(LabelledImage(header, plan.label(ids), confidence, plan.labels.palette()))
            published = True
        return published

    def publish_times(self, header: Header, stage_ms: dict[str, float]) -> None:
        """Publish the age of a frame's label and the milliseconds of its stages, if somebody subscribes."""
        age_ms = stage_ms.get('age')
        if age_ms is not None and is_possible(age_ms) and self._has_subscriber('debug/latency_ms'):
            self._publishers['debug/latency_ms'].publish(Float64(data=age_ms))
        if self._has_subscriber('debug/stages_ms'):
            values = [KeyValue(key=stage, value=f'{ms:.3f}')
                      for stage, ms in stage_ms.items() if stage != 'age']
            self._publishers['debug/stages_ms'].publish(DiagnosticArray(
                header=header, status=[DiagnosticStatus(name='stages (ms)', values=values)]))

    def _has_subscriber(self, output: str) -> bool:
        return self._publishers[output].get_subscription_count() > 0

    def _publish_image(self, output: str, header: Header, image: np.ndarray, encoding: str) -> None:
        self._publishers[output].publish(images.encode(image, encoding, header, OUTPUTS[output]()))


def with_header(info: CameraInfo, header: Header) -> CameraInfo:
    """Return a copy of a camera's calibration with another header."""
    fields = ('height', 'width', 'distortion_model', 'd', 'k', 'r', 'p', 'binning_x', 'binning_y', 'roi')
    return CameraInfo(header=header, **{name: getattr(info, name) for name in fields})


def fractions(labels: np.ndarray, names: tuple[str, ...]) -> Float32MultiArray:
    """Return the share of the pixels of (H, W) uint8 labels that each class has, in the order of its id."""
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256])[:len(names), 0]
    msg = Float32MultiArray(data=(counts / labels.size).tolist())
    msg.layout.dim = [MultiArrayDimension(label=','.join(names), size=len(names), stride=len(names))]
    return msg
