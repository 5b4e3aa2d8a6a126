# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation node: camera images in; label, overlay, confidence, points and diagnostics out."""
from dataclasses import replace
import json
import sys
from time import sleep

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from ..health import OK
from ..inference.segmenter import Segmenter
from .frames import FrameWorker
from .lifetime import run
from .live_segmenter import LiveSegmenter
from .outputs import CameraOutputs
from .parameters import declare, watch
from .segmentation_parameters import SegmentationParameters

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # vision_msgs is not on PyPI; without it the classes are published as JSON
    LabelInfo = None

# Depth 1: an image that waits in a queue is out of date when it is taken.
SENSOR_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
LATCHED_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                         durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
INPUTS = {'raw': (Image, 'image'), 'compressed': (CompressedImage, 'image/compressed')}


class SegmentationNode(Node):
    """
    Subscribes to `image` (or `image/compressed`), publishes `~/label`, `~/overlay` and `~/confidence`.

    With `depth` and `camera_info` it also publishes `~/points`. The executor only hands images to a
    `FrameWorker`. Parameters exchange the network while the node runs; a network that cannot be loaded is
    refused with the reason, and the old one stays in force.
    """

    def __init__(self) -> None:
        super().__init__('segmentation')
        self._settings = p = declare(self, SegmentationParameters)
        names = p.cameras.split() or ['']
        self._live = LiveSegmenter(p.network(), cameras=len(names), overlay_alpha=p.overlay_alpha)
        self._worker = FrameWorker(self, self._live, p)
        self._cameras = [CameraOutputs(self, name, p, self._worker.put_depth) for name in names]
        kind, topic = (String, '~/label_info_json') if LabelInfo is None else (LabelInfo, '~/label_info')
        self._label_info = self.create_publisher(kind, topic, LATCHED_QOS)
        self._publish_label_info(self._live.segmenter)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A steady clock: with use_sim_time and a paused bag the diagnostics must go on.
        self.create_timer(1 / p.diagnostics_rate, self._publish_diagnostics,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))
        watch(self, p, self._apply)
        self._worker.start()
        topics = [self._subscribe(camera) for camera in self._cameras]
        topics += [topic for camera in self._cameras if camera.points for topic in camera.points.topics()]
        self.get_logger().info(f'{self._live.segmenter.describe()}; waiting for {", ".join(topics)}')

    def destroy_node(self) -> None:
        """Let the worker finish its frame, then destroy publishers and subscriptions."""
        if hasattr(self, '_worker'):
            self._worker.stop()
        super().destroy_node()

    def _subscribe(self, camera: CameraOutputs) -> str:
        """Subscribe to the images of a camera; returns the topic."""
        kind, topic = INPUTS[self._settings.image_transport]
        subscription = self.create_subscription(
            kind, camera.prefix + topic, lambda msg: self._on_image(camera, msg), SENSOR_QOS,
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
        return subscription.topic_name

    def _on_image(self, camera: CameraOutputs, msg: Image | CompressedImage) -> None:
        if not self._settings.enabled:
            return
        camera.health.frame_received()
        self._worker.put_image(camera, msg)
        # Give the interpreter to the worker at once; otherwise it waits 0.4 ms for the executor.
        sleep(2e-4)

    def _apply(self, new: SegmentationParameters) -> None:
        network = new.network()
        if self._live.differs(network):
            try:
                self._live.change(network, self._publish_label_info)
            except Exception as e:  # whatever is wrong with the new network, the old one stays in force
                raise ValueError(f'{e}; {self._live.segmenter.card.network} stays in force') from e
            self.get_logger().info(f'now {self._live.segmenter.describe()}')
        elif new.model != self._settings.model and new.weights:
            self.get_logger().warning(f"model {new.model!r} has no effect yet: parameter 'weights' is "
                                      f"{new.weights!r}, which takes precedence until it is ''")
        self._live.overlay_alpha = new.overlay_alpha
        self._settings = self._worker.parameters = new

    def _publish_diagnostics(self) -> None:
        msg = DiagnosticArray()
        msg.header.stamp = self.get_clock().now().to_msg()
        topic = self._cameras[0].label.topic_name
        if self.count_publishers(topic) > 1:
            self.get_logger().warning(
                f'{topic} has another publisher: is this node running twice? Give each node its own name or '
                'namespace', throttle_duration_sec=60.0)
        network = self._live.segmenter
        # 'model' is the former name of 'network'; dashboards may read it.
        more = {'model': network.card.network, **network.identity(), **network.resources()}
        for camera in self._cameras:
            of_points = camera.points.values() if camera.points else {}
            status = camera.health.status(self._worker.dropped(camera), of_points | more)
            if not self._settings.enabled:
                status = replace(status, level=OK, summary="at rest: parameter 'enabled' is false")
            msg.status.append(DiagnosticStatus(
                level=bytes([status.level]), message=status.summary, hardware_id=str(network.device),
                name=f'{self.get_fully_qualified_name()[1:]}: {camera.name} frames'.replace('  ', ' '),
                values=[KeyValue(key=k, value=v) for k, v in status.values.items()]))
        self._diagnostics.publish(msg)

    def _publish_label_info(self, network: Segmenter) -> None:
        """Latch the classes: as vision_msgs/LabelInfo, or as JSON where that is missing."""
        if LabelInfo is None:
            self._label_info.publish(String(data=json.dumps(network.labels.to_dict())))
            return
        msg = LabelInfo(class_map=[VisionClass(class_id=i, class_name=name)
                                   for i, name in enumerate(network.labels.names)])
        msg.header.stamp = self.get_clock().now().to_msg()
        self._label_info.publish(msg)


def main() -> None:
    """Console script `segmentation_node`."""
    sys.exit(run(SegmentationNode))


if __name__ == '__main__':
    main()
