# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the segmentation node publishes for one camera: label, overlay, confidence, and labelled points."""
from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from .. import images
from ..health import Health
from ..inference.segmenter import Prediction
from .points import LabelledImage, Points
from .segmentation_parameters import SegmentationParameters

RESULT_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)


class CameraOutputs:
    """
    The publishers of one camera, and the health of its frames.

    `name`: '' for a single camera, whose topics have no prefix. `wake` is called when depth arrives that
    labels are waiting for.
    """

    def __init__(self, node: Node, name: str, parameters: SegmentationParameters,
                 wake: Callable[['CameraOutputs'], None]):
        self._node = node
        self.name = name
        self.prefix = f'{name}/' if name else ''
        self.health = Health()
        overriding = QoSOverridingOptions.with_default_policies()
        self.label, self.overlay, self.confidence = (
            node.create_publisher(Image, f'~/{self.prefix}{kind}', RESULT_QOS,
                                  qos_overriding_options=overriding)
            for kind in ('label', 'overlay', 'confidence'))
        self.points = Points(node, self.prefix, parameters.depth_tolerance, self.health,
                             lambda: wake(self)) if parameters.publish_points else None

    def destroy(self) -> None:
        """Destroy the publishers and subscriptions."""
        for publisher in (self.label, self.overlay, self.confidence):
            self._node.destroy_publisher(publisher)
        if self.points:
            self.points.destroy()

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
