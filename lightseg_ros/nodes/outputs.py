# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the segmentation node publishes for one camera: label, overlay, confidence, and labelled points."""
from collections.abc import Callable
import inspect
from typing import Any

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from .. import images
from ..health import Health
from ..inference.segmenter import Prediction
from .points import LabelledImage, Points
from .segmentation_parameters import SegmentationParameters

# Depth 1: an image that waits in a queue is out of date when it is taken.
SENSOR_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
# Whether a publisher reports its subscribers as they come and go, which Humble's rclpy cannot.
MATCHED_EVENTS = 'matched' in inspect.signature(PublisherEventCallbacks).parameters
RESULT_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)


class CameraOutputs:
    """
    The publishers of one camera, and the health of its frames.

    `name`: '' for a single camera, whose topics have no prefix. `wake` is called when depth arrives that
    labels are waiting for, `on_match` when a subscriber of an output appears or leaves.
    """

    def __init__(self, node: Node, name: str, parameters: SegmentationParameters,
                 wake: Callable[['CameraOutputs'], None], on_match: Callable[[], None]):
        self._node = node
        self.name = name
        self.prefix = f'{name}/' if name else ''
        self.health = Health()
        self.images: Subscription | None = None  # while the node listens to the camera
        overriding = QoSOverridingOptions.with_default_policies()
        events = PublisherEventCallbacks(matched=lambda _: on_match()) if MATCHED_EVENTS else None
        self.label, self.overlay, self.confidence = (
            node.create_publisher(Image, f'~/{self.prefix}{kind}', RESULT_QOS,
                                  qos_overriding_options=overriding, event_callbacks=events)
            for kind in ('label', 'overlay', 'confidence'))
        self.points = Points(node, self.prefix, parameters.depth_tolerance, self.health,
                             lambda: wake(self), events) if parameters.publish_points else None

    def subscribe(self, kind: type, topic: str, on_image: Callable[[Any], None]) -> None:
        """Subscribe to the images, and to depth and camera_info if points are to be published."""
        if self.images is None:
            self.images = self._node.create_subscription(
                kind, self.prefix + topic, on_image, SENSOR_QOS,
                qos_overriding_options=QoSOverridingOptions.with_default_policies())
            if self.points:
                self.points.subscribe()

    def unsubscribe(self) -> None:
        """Undo `subscribe`."""
        if self.images is not None:
            self._node.destroy_subscription(self.images)
            self.images = None
            if self.points:
                self.points.unsubscribe()

    def topics(self) -> list[str]:
        """Return the topics that the node subscribes to."""
        points = self.points.topics() if self.points else []
        return [self.images.topic_name, *points] if self.images is not None else points

    def destroy(self) -> None:
        """Destroy the publishers and subscriptions."""
        self.unsubscribe()
        for publisher in (self.label, self.overlay, self.confidence):
            self._node.destroy_publisher(publisher)
        if self.points:
            self.points.destroy()

    def has_listener(self, parameters: SegmentationParameters) -> bool:
        """Return whether anything that the node makes of the camera's images has a subscriber."""
        return (_has_subscriber(self.label) or self.wants_overlay(parameters)
                or self.wants_confidence(parameters) or self.wants_points())

    def wants_overlay(self, parameters: SegmentationParameters) -> bool:
        return parameters.publish_overlay and _has_subscriber(self.overlay)

    def wants_confidence(self, parameters: SegmentationParameters) -> bool:
        return parameters.publish_confidence and _has_subscriber(self.confidence)

    def wants_points(self) -> bool:
        return self.points is not None and self.points.wanted()

    def publish_label(self, header: Header, labels: np.ndarray) -> None:
        """Publish labels, (H, W) uint8, with the header of their frame."""
        self.label.publish(images.encode(labels, 'mono8', header, Image()))

    def publish_rest(self, header: Header, prediction: Prediction, palette: np.ndarray,
                     parameters: SegmentationParameters) -> bool:
        """Publish what has a subscriber besides the label; returns whether anything had."""
        published = False
        if prediction.overlay is not None and self.wants_overlay(parameters):
            self.overlay.publish(images.encode(prediction.overlay, 'rgb8', header, Image()))
            published = True
        if prediction.confidence is not None and self.wants_confidence(parameters):
            self.confidence.publish(images.encode(prediction.confidence, 'mono8', header, Image()))
            published = True
        if prediction.confidence is not None and self.points and self.points.wanted():
            self.points.add(LabelledImage(header, prediction.labels, prediction.confidence, palette))
            published = True
        return published


def _has_subscriber(publisher: Publisher) -> bool:
    return publisher.get_subscription_count() > 0
