# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation node: camera images in; label, overlay, confidence and diagnostics out."""
from dataclasses import dataclass
import json
import sys
import threading
from time import perf_counter, sleep

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from .. import images, segmenter
from ..health import Health
from ..latest import Latest
from .lifetime import run
from .parameters import declare, parameter, watch

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not on PyPI; then the classes go out as JSON
    LabelInfo = None

# The newest frame or none: what waits in a queue is old.
SENSOR_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
RESULT_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                         durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
INPUTS = {'raw': (Image, 'image'), 'compressed': (CompressedImage, 'image/compressed')}


@dataclass(frozen=True)
class SegmentationParameters:
    """Parameters of the node; `config/segmentation.yaml` holds the same, which a test checks."""

    model: str = parameter(
        'laanet', 'Network whose packaged weights are run, see "lightseg info".', read_only=True)
    weights: str = parameter(
        '', 'Path of a weights file; empty takes the packaged one of the model.', read_only=True)
    resolution: str = parameter(
        '', 'Size that the network sees: WIDTHxHEIGHT in pixels, "native" for that of the image, empty for '
        'the one that the weights were trained at.', read_only=True)
    resize_mode: str = parameter(
        'fit', 'fit: keep the aspect ratio within the resolution; stretch: take the resolution as it is.',
        choices=segmenter.RESIZE_MODES, read_only=True)
    device: str = parameter(
        'auto', 'auto (CUDA where there is one), cpu, cuda, cuda:N, or openvino:GPU for Intel graphics.',
        read_only=True)
    backend: str = parameter(
        'auto', 'What runs the network on a processor; auto takes openvino where it is installed.',
        choices=segmenter.BACKENDS, read_only=True)
    precision: str = parameter(
        'auto', 'auto is float32 on a processor and float16 on a GPU.', choices=segmenter.PRECISIONS,
        read_only=True)
    threads: int = parameter(
        0, 'Threads of the processor; 0 takes one for each core.', limits=(0, 1024), read_only=True)
    image_transport: str = parameter(
        'raw', 'raw subscribes to image, compressed to image/compressed.', choices=tuple(INPUTS),
        read_only=True)
    overlay_alpha: float = parameter(
        0.5, 'Share of the class colour in the overlay.', limits=(0.0, 1.0))
    publish_overlay: bool = parameter(True, 'Publish ~/overlay while somebody subscribes.')
    publish_confidence: bool = parameter(True, 'Publish ~/confidence while somebody subscribes.')
    diagnostics_rate: float = parameter(
        1.0, 'Messages a second on /diagnostics.', limits=(0.1, 100.0), read_only=True)


class SegmentationNode(Node):
    """
    Subscribes to `image` (or `image/compressed`), publishes `~/label`, `~/overlay`, `~/confidence`.

    The executor only puts the newest image into a mailbox; a worker thread decodes, segments and publishes.
    A frame that fails is counted, logged and forgotten.
    """

    def __init__(self) -> None:
        super().__init__('segmentation')
        self._settings = p = declare(self, SegmentationParameters)
        self._segmenter = segmenter.load(p.weights or p.model, p.device, p.resolution,
                                         resize_mode=p.resize_mode, overlay_alpha=p.overlay_alpha,
                                         backend=p.backend, precision=p.precision, threads=p.threads)
        self._segmenter.warm_up()
        self._health = Health()
        self._mailbox: Latest[Image | CompressedImage] = Latest()
        overriding = QoSOverridingOptions.with_default_policies()
        self._label, self._overlay, self._confidence = (
            self.create_publisher(Image, f'~/{name}', RESULT_QOS, qos_overriding_options=overriding)
            for name in ('label', 'overlay', 'confidence'))
        self._label_info = self._publish_label_info()
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Steady time: with use_sim_time and a paused bag the diagnostics must not stop.
        self.create_timer(1 / p.diagnostics_rate, self._publish_diagnostics,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))
        watch(self, p, self._apply)
        self._worker = threading.Thread(target=self._work, name='segmentation', daemon=True)
        self._worker.start()
        kind, topic = INPUTS[p.image_transport]
        self._subscription = self.create_subscription(
            kind, topic, self._on_image, SENSOR_QOS, qos_overriding_options=overriding)
        self.get_logger().info(f'{self._segmenter.describe()}; waiting for '
                               f'{self._subscription.topic_name}')

    def destroy_node(self) -> None:
        """Let the worker finish its frame, then take down publishers and subscription."""
        if hasattr(self, '_worker'):
            self._mailbox.close()
            self._worker.join(timeout=10.0)
        super().destroy_node()

    def _on_image(self, msg: Image | CompressedImage) -> None:
        self._health.frame_received()
        self._mailbox.put(msg)
        # Let the worker have the interpreter: else it waits 0.4 ms for the executor to prepare its next wait.
        sleep(2e-4)

    def _work(self) -> None:
        while not self._mailbox.closed:
            msg = self._mailbox.take()
            if msg is None:
                continue
            try:
                self._segment(msg)
            except Exception as e:  # one bad frame, whatever is wrong with it, must not end the node
                # A signal shuts the context down under us; a frame lost to that did not fail.
                if self.context.ok():
                    self._health.frame_failed(str(e))
                    self.get_logger().error(f'frame failed: {e}', throttle_duration_sec=5.0)

    def _segment(self, msg: Image | CompressedImage) -> None:
        p = self._settings
        began = perf_counter()
        frame = images.decode(msg)
        decoded = perf_counter()
        wanted = {self._overlay: p.publish_overlay, self._confidence: p.publish_confidence}
        overlay, confidence = (on and publisher.get_subscription_count() > 0
                               for publisher, on in wanted.items())
        prediction, = self._segmenter([frame], overlay=overlay, confidence=confidence)
        segmented = perf_counter()
        self._publish(self._label, prediction.labels, 'mono8', msg)
        self._publish(self._overlay, prediction.overlay, 'rgb8', msg)
        self._publish(self._confidence, prediction.confidence, 'mono8', msg)
        stage_ms = {'decode': 1e3 * (decoded - began), **prediction.stage_ms,
                    'publish': 1e3 * (perf_counter() - segmented), 'total': 1e3 * (perf_counter() - began)}
        stamp = Time.from_msg(msg.header.stamp, clock_type=self.get_clock().clock_type)
        if stamp.nanoseconds:
            stage_ms['age'] = (self.get_clock().now() - stamp).nanoseconds / 1e6
        self._health.frame_processed(stage_ms)

    @staticmethod
    def _publish(publisher: Publisher, array: np.ndarray | None, encoding: str,
                 source: Image | CompressedImage) -> None:
        if array is not None:
            publisher.publish(images.encode(array, encoding, source.header, Image()))

    def _apply(self, new: SegmentationParameters) -> None:
        self._segmenter.overlay_alpha = new.overlay_alpha
        self._settings = new

    def _publish_diagnostics(self) -> None:
        status = self._health.status(
            self._mailbox.dropped, {'model': self._segmenter.card.network, **self._segmenter.resources()})
        msg = DiagnosticArray()
        msg.header.stamp = self.get_clock().now().to_msg()
        msg.status.append(DiagnosticStatus(
            level=bytes([status.level]), message=status.summary,
            name=f'{self.get_fully_qualified_name()[1:]}: frames', hardware_id=str(self._segmenter.device),
            values=[KeyValue(key=k, value=v) for k, v in status.values.items()]))
        self._diagnostics.publish(msg)

    def _publish_label_info(self) -> Publisher:
        """Latch the classes: vision_msgs/LabelInfo, or the label set as JSON where that is missing."""
        label_set = self._segmenter.labels
        if LabelInfo is None:
            publisher = self.create_publisher(String, '~/label_info_json', LATCHED_QOS)
            publisher.publish(String(data=json.dumps(label_set.to_dict())))
            return publisher
        publisher = self.create_publisher(LabelInfo, '~/label_info', LATCHED_QOS)
        msg = LabelInfo(class_map=[VisionClass(class_id=i, class_name=name)
                                   for i, name in enumerate(label_set.names)])
        msg.header.stamp = self.get_clock().now().to_msg()
        publisher.publish(msg)
        return publisher


def main() -> None:
    """Console script `segmentation_node`."""
    sys.exit(run(SegmentationNode))


if __name__ == '__main__':
    main()
