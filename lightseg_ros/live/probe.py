# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the nodes as processes, publishes frames to them, and collects the results by stamp."""
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
from time import monotonic
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from .. import files, images, share_dir
from ..labels import LabelSet

try:
    from vision_msgs.msg import LabelInfo
except ImportError:  # not on PyPI; nodes then publish the label set as JSON
    LabelInfo = None

RELIABLE = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                     durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


class ProbeError(ValueError):
    """A node that did not start, or died; the text quotes the end of its log."""


def isolate() -> None:
    """
    Keep the DDS traffic of this process and its children on this machine, and let images fit into it.

    Call it before `rclpy.init`. Variables that are already set in the environment keep their values.
    """
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    # Not the default 0, where the nodes of a robot may run. 101 is the highest safe domain.
    os.environ.setdefault('ROS_DOMAIN_ID', str(50 + os.getpid() % 50))
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE',
                          str(share_dir() / 'config' / 'fastdds_localhost.xml'))


class NodeProcess:
    """One of the nodes in its own process, with its output in a log file."""

    def __init__(self, module: str, log: Path, parameters: dict[str, Any] | None = None,
                 remap: dict[str, str] | None = None):
        self.name = module
        self.log = log
        command = [sys.executable, '-m', f'lightseg_ros.nodes.{module}', '--ros-args']
        for key, value in (parameters or {}).items():
            command += ['-p', f'{key}:={_yaml(value)}']
        for key, value in (remap or {}).items():
            command += ['-r', f'{key}:={value}']
        files.make_folder(log.parent)
        with open(log, 'w') as f:
            self.process = subprocess.Popen(command, stdout=f, stderr=subprocess.STDOUT)

    def check(self) -> None:
        """Raise `ProbeError` with the end of the log if the node has ended with an error."""
        if self.process.poll() not in (None, 0):
            raise ProbeError(f'node {self.name} ended with exit code {self.process.returncode}; it said: '
                             f'{self.last_words(8)}')

    def last_words(self, lines: int) -> str:
        """Return the last lines of the log as one line."""
        return ' | '.join(self.log.read_text().strip().splitlines()[-lines:])

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """Send SIGINT, and SIGKILL if the node does not end within 15 s; returns the exit code."""
        if self.running:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


@contextmanager
def nodes(*processes: NodeProcess) -> Iterator[tuple[NodeProcess, ...]]:
    """Stop the processes at the end of the block, also after an exception."""
    try:
        yield processes
    finally:
        for process in processes:
            process.stop()


@dataclass
class Seen:
    """
    The messages of one frame: (H, W, 3) or (H, W) uint8 images, None if they have not arrived.

    `latency_ms`: time from the stamp of the image to the arrival of its label in this process. `arrived_s`:
    time of that arrival on the monotonic clock.
    """

    stamp_ns: int
    frame: np.ndarray | None = None
    truth: np.ndarray | None = None
    label: np.ndarray | None = None
    overlay: np.ndarray | None = None
    confidence: np.ndarray | None = None
    latency_ms: float = 0.0
    arrived_s: float = 0.0

    def has(self, parts: tuple[str, ...]) -> bool:
        return all(getattr(self, part) is not None for part in parts)


@dataclass
class Diagnostics:
    """The status that a segmentation node published last."""

    summary: str = ''
    values: dict[str, str] = field(default_factory=dict)


class Probe(Node):
    """
    Collects the results of a segmentation node by the stamp of their frame; can publish the frames as well.

    `parts`: those of 'frame', 'truth', 'label', 'overlay', 'confidence' that make a frame complete.
    `optional`: parts that are kept if they arrive before the frame is complete. Both are subscribed to.
    `on_complete` is called with each complete `Seen`; at most `keep` incomplete ones are kept. `plays`:
    message type of the frames to publish; None, and always if 'frame' is collected: only listen.
    """

    def __init__(self, on_complete: Callable[[Seen], None], parts: tuple[str, ...] = ('label',), *,
                 optional: tuple[str, ...] = (), segmentation: str = '/segmentation',
                 image_topic: str = '/image', truth_topic: str = '/camera/ground_truth', keep: int = 60,
                 plays: type | None = Image):
        super().__init__(f'probe_of_{segmentation.strip("/").replace("/", "_")}')
        self._on_complete = on_complete
        self._parts = parts
        self._keep = keep
        self._pending: OrderedDict[int, Seen] = OrderedDict()
        self._status_name = f'{segmentation.lstrip("/")}: frames'
        self.diagnostics = Diagnostics()
        self.counts = dict.fromkeys(parts + optional, 0)
        topics = {'frame': image_topic, 'truth': truth_topic, 'label': f'{segmentation}/label',
                  'overlay': f'{segmentation}/overlay', 'confidence': f'{segmentation}/confidence'}
        self._subscriptions_of = {
            part: self.create_subscription(
                Image, topics[part], lambda msg, part=part: self._on_image(part, msg), RELIABLE)
            for part in parts + optional}
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self.class_names: tuple[str, ...] = ()
        self.create_subscription(String, f'{segmentation}/label_info_json', self._on_label_set, LATCHED)
        if LabelInfo is not None:
            self.create_subscription(LabelInfo, f'{segmentation}/label_info', self._on_label_info, LATCHED)
        self._publisher: Any = None
        if plays and 'frame' not in parts:
            self._publisher = self.create_publisher(plays, image_topic, RELIABLE)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def play(self, rgb: np.ndarray, stamp_ns: int | None = None, encoding: str = 'rgb8') -> int:
        """Publish a frame, with the current time unless a stamp is given; returns the stamp in ns."""
        if self._publisher is None:
            raise ProbeError("a probe that collects 'frame' listens to a camera and cannot publish frames")
        msg = images.encode(rgb, encoding, Header(frame_id='camera'), Image())
        # Stamped last: the time to fill the message in Python does not belong to the node's latency.
        stamp = self.get_clock().now() if stamp_ns is None else Time(nanoseconds=stamp_ns)
        msg.header.stamp = stamp.to_msg()
        self._publisher.publish(msg)
        return stamp.nanoseconds

    def play_raw(self, cdr: bytes) -> None:
        """Publish a serialized message."""
        assert self._publisher is not None
        self._publisher.publish(cdr)

    def connected(self) -> bool:
        """Return whether the node subscribes to the frames and publishes every required part."""
        if self._publisher is not None and not self._publisher.get_subscription_count():
            return False
        return not self._unpublished()

    def wait(self, until: Callable[[], bool], timeout_s: float, *processes: NodeProcess) -> bool:
        """Spin until a condition holds; False after the timeout. `ProbeError` if a process has died."""
        end = monotonic() + timeout_s
        while not until():
            if monotonic() > end or not rclpy.ok():
                return False
            self._executor.spin_once(timeout_sec=min(0.1, max(0.0, end - monotonic())))
            for process in processes:
                process.check()
        return True

    def wait_connected(self, timeout_s: float, *processes: NodeProcess) -> None:
        """Wait until `connected`; `ProbeError` says which topic is not connected."""
        if not self.wait(self.connected, timeout_s, *processes):
            unpublished = self._unpublished()
            missing = f'publishes {", ".join(unpublished)}' if unpublished else 'subscribes to the image'
            words = ''.join(f'; log of {p.name}: {p.last_words(2) or "(empty)"}' for p in processes)
            raise ProbeError(f'after {timeout_s:g} s no node {missing} in ROS_DOMAIN_ID '
                             f'{os.environ.get("ROS_DOMAIN_ID", "0")}{words}')

    def _unpublished(self) -> list[str]:
        topics = [self._subscriptions_of[part].topic_name for part in self._parts]
        return [topic for topic in topics if not self.count_publishers(topic)]

    def _on_image(self, part: str, msg: Image) -> None:
        arrived = self.get_clock().now().nanoseconds
        self.counts[part] += 1
        # Not rclpy's Time, which raises on the negative stamps of a camera with a broken clock.
        stamp_ns = msg.header.stamp.sec * 10 ** 9 + msg.header.stamp.nanosec
        seen = self._pending.setdefault(stamp_ns, Seen(stamp_ns))
        decoded = images.decode(msg)
        setattr(seen, part, decoded[..., 0] if msg.encoding == 'mono8' else decoded)
        if part == 'label':
            seen.latency_ms, seen.arrived_s = (arrived - stamp_ns) / 1e6, monotonic()
        if seen.has(self._parts):
            del self._pending[stamp_ns]
            self._on_complete(seen)
        while len(self._pending) > self._keep:
            self._pending.popitem(last=False)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name == self._status_name:
                self.diagnostics = Diagnostics(status.message, {v.key: v.value for v in status.values})


    def _on_label_set(self, msg: String) -> None:
        self.class_names = LabelSet.from_dict(json.loads(msg.data)).names

    def _on_label_info(self, msg: Any) -> None:
        self.class_names = tuple(c.class_name for c in sorted(msg.class_map, key=lambda c: c.class_id))


def _yaml(value: Any) -> str:
    """Write a value so that ROS parses it with the same type: '' and '10' stay strings."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(value)
