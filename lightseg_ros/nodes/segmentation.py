# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation node: camera images in; label, overlay, confidence, points and diagnostics out."""
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
import json
from pathlib import Path
import re
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
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
import torch

from .. import images
from ..health import Health, OK
from ..inference import segmenter
from ..latest import Latest
from .lifetime import run
from .parameters import declare, parameter, watch
from .points import Labelled, Points

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not on PyPI; then the classes go out as JSON
    LabelInfo = None

# The newest frame or none: what waits in a queue is old.
SENSOR_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
RESULT_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                         durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
# Of so many image sizes the newest are ready when another network begins.
SIZES = 4
INPUTS = {'raw': (Image, 'image'), 'compressed': (CompressedImage, 'image/compressed')}


@dataclass(frozen=True)
class SegmentationParameters:
    """Parameters of the node; `config/segmentation.yaml` holds the same, which a test checks."""

    model: str = parameter('laanet', 'Network whose packaged weights are run, see "lightseg info".')
    weights: str = parameter('', 'Path of a weights file; empty takes the packaged one of the model.')
    resolution: str = parameter(
        '', 'Size that the network sees: WIDTHxHEIGHT in pixels, "native" for that of the image, empty for '
        'the one that the weights were trained at.')
    resize_mode: str = parameter(
        'fit', 'fit: keep the aspect ratio within the resolution; stretch: take the resolution as it is.',
        choices=segmenter.RESIZE_MODES)
    device: str = parameter(
        'auto', 'auto (CUDA where there is one), cpu, cuda, cuda:N, or openvino:GPU for Intel graphics.',
        read_only=True)
    backend: str = parameter(
        'auto', 'What runs the network on a processor; auto takes openvino where it is installed.',
        choices=segmenter.BACKENDS)
    precision: str = parameter(
        'auto', 'auto is float32 on a processor and float16 on a GPU.', choices=segmenter.PRECISIONS)
    threads: int = parameter(
        0, 'Threads of the processor; 0 takes one for each core.', limits=(0, 1024), read_only=True)
    cameras: str = parameter(
        '', 'Names of several cameras, such as "front left": subscribes to front/image, publishes '
        '~/front/label, and so on; empty for one camera without a name.', read_only=True)
    image_transport: str = parameter(
        'raw', 'raw subscribes to image, compressed to image/compressed.', choices=tuple(INPUTS),
        read_only=True)
    enabled: bool = parameter(
        True, 'Segment what comes; false lets the network rest while a robot waits.')
    overlay_alpha: float = parameter(
        0.5, 'Share of the class colour in the overlay.', limits=(0.0, 1.0))
    publish_overlay: bool = parameter(True, 'Publish ~/overlay while somebody subscribes.')
    publish_confidence: bool = parameter(True, 'Publish ~/confidence while somebody subscribes.')
    publish_points: bool = parameter(
        False, 'Subscribe to depth, registered to the rectified image, and to camera_info; publish ~/points '
        'while somebody subscribes.', read_only=True)
    depth_tolerance: float = parameter(
        0.02, 'Seconds that the stamps of an image and of its depth may differ by.', limits=(0.0, 10.0),
        read_only=True)
    diagnostics_rate: float = parameter(
        1.0, 'Messages a second on /diagnostics.', limits=(0.1, 100.0), read_only=True)

    def __post_init__(self) -> None:
        names = self.cameras.split()
        if len(set(names)) < len(names) or not all(re.fullmatch('[A-Za-z][A-Za-z0-9_]*', n) for n in names):
            raise ValueError(f"parameter 'cameras' is {self.cameras!r}; expected names of letters, digits "
                             'and _ that start with a letter, each once, separated by spaces')


@dataclass
class Camera:
    """Where the results of a camera go, what is known of its frames; an only one has an empty name."""

    name: str
    label: Publisher
    overlay: Publisher
    confidence: Publisher
    points: Points | None
    health: Health


@dataclass
class Frame:
    """A frame under way: its message, its pixels (H, W, 3) uint8 RGB, when it was taken, milliseconds."""

    camera: Camera
    msg: Image | CompressedImage
    pixels: np.ndarray
    began: float
    stage_ms: dict[str, float]


class SegmentationNode(Node):
    """
    Subscribes to `image` (or `image/compressed`), publishes `~/label`, `~/overlay`, `~/confidence`.

    With `depth` and `camera_info` also `~/points`. The executor only puts the newest image into a mailbox; a
    worker thread decodes, segments and publishes. A frame that fails is counted, logged and forgotten. Of
    several cameras, CUDA runs what has come as one batch; a processor takes one frame after the other, so
    that the first one's label need not wait. Parameters choose another network while it runs: it is loaded
    and warmed up while frames wait, and if that fails the parameter is refused and nothing changes.
    """

    def __init__(self) -> None:
        super().__init__('segmentation')
        self._settings = p = declare(self, SegmentationParameters)
        names = p.cameras.split() or ['']
        self._sizes: OrderedDict[tuple[int, int], None] = OrderedDict()  # of the frames that were segmented
        self._prepared: set[tuple[int, int]] = set()
        self._batch = len(names)
        self._loaded = self._key(p)
        self._segmenter = self._load(p)
        # Held while frames are segmented, and while another segmenter is made: CUDA captures graphs alone.
        self._segmenting = threading.Lock()
        # None from a camera's points: depth has come that its labels waited for.
        self._mailbox: Latest[Image | CompressedImage | None] = Latest()
        overriding = QoSOverridingOptions.with_default_policies()
        self._cameras: dict[str, Camera] = {}
        for name in names:
            label, overlay, confidence = (
                self.create_publisher(Image, f'~/{_inside(name)}{kind}', RESULT_QOS,
                                      qos_overriding_options=overriding)
                for kind in ('label', 'overlay', 'confidence'))
            health = Health()
            points = Points(self, _inside(name), p.depth_tolerance, health, partial(
                self._mailbox.put, None, f'{name}/depth')) if p.publish_points else None
            self._cameras[name] = Camera(name, label, overlay, confidence, points, health)
        kind, topic = (String, '~/label_info_json') if LabelInfo is None else (LabelInfo, '~/label_info')
        self._label_info = self.create_publisher(kind, topic, LATCHED_QOS)
        self._publish_label_info()
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Steady time: with use_sim_time and a paused bag the diagnostics must not stop.
        self.create_timer(1 / p.diagnostics_rate, self._publish_diagnostics,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))
        watch(self, p, self._apply)
        self._worker = threading.Thread(target=self._work, name='segmentation', daemon=True)
        self._worker.start()
        kind, topic = INPUTS[p.image_transport]
        images_of = [self.create_subscription(
            kind, _inside(name) + topic, lambda msg, camera=camera: self._on_image(camera, msg), SENSOR_QOS,
            qos_overriding_options=overriding) for name, camera in self._cameras.items()]
        topics = [subscription.topic_name for subscription in images_of]
        topics += [topic for camera in self._cameras.values() if camera.points
                   for topic in camera.points.topics()]
        self.get_logger().info(f'{self._segmenter.describe()}; waiting for {", ".join(topics)}')

    def destroy_node(self) -> None:
        """Let the worker finish its frame, then take down publishers and subscription."""
        if hasattr(self, '_worker'):
            self._mailbox.close()
            self._worker.join(timeout=10.0)
        super().destroy_node()

    def _on_image(self, camera: Camera, msg: Image | CompressedImage) -> None:
        if not self._settings.enabled:
            return
        camera.health.frame_received()
        self._mailbox.put(msg, camera.name)
        # Let the worker have the interpreter: else it waits 0.4 ms for the executor to prepare its next wait.
        sleep(2e-4)

    def _work(self) -> None:
        while not self._mailbox.closed:
            frames: list[Frame] = []
            for name, msg in self._mailbox.take().items():
                camera, began = self._cameras[name.removesuffix('/depth')], perf_counter()
                if msg is None:
                    assert camera.points
                    camera.points.match()
                    continue
                try:
                    pixels = images.decode(msg)
                    stage_ms = {'decode': 1e3 * (perf_counter() - began)}
                    frames.append(Frame(camera, msg, pixels, began, stage_ms))
                except Exception as e:  # one bad frame, whatever is wrong with it, must not end the node
                    self._failed(camera, e)
            labelled: list[tuple[Points, Labelled]] = []
            while frames:
                with self._segmenting:
                    together = self._together(self._segmenter)
                    batch, frames = frames[:together], frames[together:]
                    labelled += self._segment(batch)
            for points, one in labelled:  # once every camera has its label
                points.add(one)

    def _together(self, of: segmenter.Segmenter) -> int:
        """Return how many frames of several cameras are run as one batch."""
        return self._batch if of.device.type == 'cuda' else 1

    def _load(self, p: SegmentationParameters) -> segmenter.Segmenter:
        loaded = segmenter.load(p.weights or p.model, p.device, p.resolution, resize_mode=p.resize_mode,
                                overlay_alpha=p.overlay_alpha, backend=p.backend, precision=p.precision,
                                threads=p.threads)
        sizes = list(self._sizes) or [(480, 640)]
        for size in sizes:
            self._prepare(loaded, size)
        self._prepared = set(sizes)
        return loaded

    @staticmethod
    def _key(p: SegmentationParameters) -> tuple:
        """Return what makes one segmenter another; a file that was written anew is another."""
        written_ns = Path(p.weights).stat().st_mtime_ns if p.weights and Path(p.weights).exists() else 0
        return (p.weights or p.model, written_ns, p.resolution, p.resize_mode, p.backend, p.precision)

    def _prepare(self, what: segmenter.Segmenter, size: tuple[int, int]) -> None:
        """Make at once what frames of a size need, however many come together, and not one by one later."""
        for batch in range(1, self._together(what) + 1):
            what.warm_up(*size, batch)
        self._prepared.add(size)

    def _failed(self, camera: Camera, error: Exception) -> None:
        # A signal shuts the context down under us; a frame lost to that did not fail.
        if self.context.ok():
            camera.health.frame_failed(str(error))
            self.get_logger().error(f'{camera.name} frame failed: {error}'.lstrip(),
                                    throttle_duration_sec=5.0)

    def _segment(self, frames: list[Frame]) -> list[tuple[Points, Labelled]]:
        """Segment frames as one batch and publish; returns what is to become points."""
        p = self._settings
        try:
            size = frames[0].pixels.shape[:2]
            if self._segmenter.device.type == 'cuda' and size not in self._prepared:
                self._prepare(self._segmenter, size)
            overlay = p.publish_overlay and any(_wanted(frame.camera.overlay) for frame in frames)
            confidence = any(p.publish_confidence and _wanted(frame.camera.confidence)
                             or frame.camera.points and frame.camera.points.wanted() for frame in frames)
            predictions = self._segmenter([frame.pixels for frame in frames], overlay=overlay,
                                          confidence=confidence)
        except Exception as e:
            if len(frames) == 1:
                self._failed(frames[0].camera, e)
                return []
            # Which of them it was shows when each is alone.
            return [one for frame in frames for one in self._segment([frame])]
        labelled = []
        for frame, prediction in zip(frames, predictions):
            try:
                self._publish(frame, prediction)
            except Exception as e:
                self._failed(frame.camera, e)
            self._sizes[frame.pixels.shape[:2]] = None
            self._sizes.move_to_end(frame.pixels.shape[:2])
            if len(self._sizes) > SIZES:
                self._sizes.popitem(last=False)
            points = frame.camera.points
            if points and prediction.confidence is not None and points.wanted():
                labelled.append((points, Labelled(frame.msg.header, prediction.labels, prediction.confidence,
                                                  self._segmenter.labels.palette())))
        return labelled

    def _publish(self, frame: Frame, prediction: segmenter.Prediction) -> None:
        p, segmented, camera, header = self._settings, perf_counter(), frame.camera, frame.msg.header
        camera.label.publish(images.encode(prediction.labels, 'mono8', header, Image()))
        for publisher, array, encoding, on in (
                (camera.overlay, prediction.overlay, 'rgb8', p.publish_overlay),
                (camera.confidence, prediction.confidence, 'mono8', p.publish_confidence)):
            if array is not None and on and _wanted(publisher):
                publisher.publish(images.encode(array, encoding, header, Image()))
        done = perf_counter()
        stage_ms = {**frame.stage_ms, **prediction.stage_ms, 'publish': 1e3 * (done - segmented),
                    'total': 1e3 * (done - frame.began)}
        # By hand: a camera whose clock is broken may send what rclpy's Time refuses.
        if (stamp_ns := header.stamp.sec * 10 ** 9 + header.stamp.nanosec) > 0:
            stage_ms['age'] = (self.get_clock().now().nanoseconds - stamp_ns) / 1e6
        camera.health.frame_processed(stage_ms)

    def _apply(self, new: SegmentationParameters) -> None:
        key = self._key(new)
        if key != self._loaded:
            with self._segmenting:
                try:
                    self._segmenter = self._load(new)
                except Exception as e:  # whatever is wrong with it, the old one goes on
                    raise ValueError(f'{e}; {self._segmenter.card.network} goes on') from e
                self._loaded = key
                self._publish_label_info()
                if self._segmenter.device.type == 'cuda':
                    torch.cuda.empty_cache()  # the graphs of the old one
            self.get_logger().info(f'now {self._segmenter.describe()}')
        elif new.model != self._settings.model and new.weights:
            self.get_logger().warning(f"model {new.model!r} waits: parameter 'weights' is {new.weights!r}, "
                                      "which wins until it is ''")
        self._segmenter.overlay_alpha = new.overlay_alpha
        self._settings = new

    def _publish_diagnostics(self) -> None:
        msg = DiagnosticArray()
        msg.header.stamp = self.get_clock().now().to_msg()
        topic = next(iter(self._cameras.values())).label.topic_name
        if self.count_publishers(topic) > 1:
            self.get_logger().warning(
                f'{topic} has another publisher: is this node running twice? Give each a name or a namespace',
                throttle_duration_sec=60.0)
        # 'model' is what 'network' was called first; dashboards may read it.
        more = {'model': self._segmenter.card.network, **self._segmenter.identity(),
                **self._segmenter.resources()}
        for name, camera in self._cameras.items():
            of_points = camera.points.values() if camera.points else {}
            status = camera.health.status(self._mailbox.dropped[name], of_points | more)
            if not self._settings.enabled:
                status = replace(status, level=OK, summary="at rest: parameter 'enabled' is false")
            msg.status.append(DiagnosticStatus(
                level=bytes([status.level]), message=status.summary, hardware_id=str(self._segmenter.device),
                name=f'{self.get_fully_qualified_name()[1:]}: {name} frames'.replace('  ', ' '),
                values=[KeyValue(key=k, value=v) for k, v in status.values.items()]))
        self._diagnostics.publish(msg)

    def _publish_label_info(self) -> None:
        """Latch the classes: vision_msgs/LabelInfo, or the label set as JSON where that is missing."""
        label_set = self._segmenter.labels
        if LabelInfo is None:
            self._label_info.publish(String(data=json.dumps(label_set.to_dict())))
            return
        msg = LabelInfo(class_map=[VisionClass(class_id=i, class_name=name)
                                   for i, name in enumerate(label_set.names)])
        msg.header.stamp = self.get_clock().now().to_msg()
        self._label_info.publish(msg)


def _inside(camera: str) -> str:
    """Return the start of the names of a camera's topics."""
    return f'{camera}/' if camera else ''


def _wanted(publisher: Publisher) -> bool:
    return publisher.get_subscription_count() > 0


def main() -> None:
    """Console script `segmentation_node`."""
    sys.exit(run(SegmentationNode))


if __name__ == '__main__':
    main()
