# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Live replay: plays a bag's images over DDS to a segmentation node and scores what comes back."""
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
import logging
import os
from pathlib import Path
import shutil
import signal
import struct
import subprocess
import tempfile
from time import monotonic
from typing import Any

import numpy as np
import rclpy
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from tqdm import tqdm

from .. import bag_writer, bags, images, weights
from ..bags import Bag, NS
from ..evaluation import recordings
from ..evaluation.evaluate import choose_samples, Evaluation
from ..evaluation.recordings import GroundTruthSource, RecordedFrame, Recording, Selection
from ..evaluation.scores import APART_NS, Consistency, Scores
from ..evaluation.settings import EvaluationError, ModelSpec
from ..footage import Footage, open_recording
from ..labels import LabelSet
from ..metrics import LatencyStats
from .probe import isolate, NodeProcess, nodes, Probe, Seen

log = logging.getLogger(__name__)

CLOCK_PERIOD_S = 0.01
COUNTERS = ('received', 'processed', 'dropped', 'failed')


@dataclass
class Live:
    """
    What a live replay is told.

    `rate`: 2.0 plays twice as fast as it was recorded. `node`: name of a running node; '' starts one.
    `use_sim_time`: publish /clock and keep the bag's stamps; else each frame is stamped when it is played, as
    a camera does. `player`: 'own', or 'ros2' for `ros2 bag play`. `deadline_s`: a label that comes later
    after its frame counts as late.
    """

    rate: float = 1.0
    node: str = ''
    use_sim_time: bool = False
    player: str = 'own'
    deadline_s: float = 0.1

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise EvaluationError(f'rate is {self.rate:g}; expected more than 0')
        if self.player not in ('own', 'ros2'):
            raise EvaluationError(f"player is {self.player!r}; expected 'own' or 'ros2'")
        if self.player == 'ros2' and not shutil.which('ros2'):
            raise EvaluationError('--player ros2 needs "ros2 bag play", and there is no ros2 here: source '
                                  'the ROS distribution, or use the own player')


@dataclass
class Collected:
    """Which frames were played when, and the results, on disk since a long bag's do not fit into memory."""

    writer: bag_writer.Writer
    index_of: dict[int, int] = field(default_factory=dict)
    played_s: dict[int, float] = field(default_factory=dict)
    latency_ms: dict[int, float] = field(default_factory=dict)

    def played(self, stamp_ns: int, index: int) -> None:
        self.index_of[stamp_ns] = index
        self.played_s[index] = monotonic()

    def returned(self, seen: Seen) -> None:
        """Keep a result; its place in the bag is the time that it is written with."""
        index = self.index_of.get(seen.stamp_ns)
        if index is None or index not in self.played_s or index in self.latency_ms:
            return  # of another player, or of a second frame with the same stamp
        self.latency_ms[index] = 1e3 * (seen.arrived_s - self.played_s[index])
        for topic, array in (('label', seen.label), ('confidence', seen.confidence)):
            assert array is not None
            self.writer.write(topic, bags.image(array, 'mono8', bags.header(seen.stamp_ns)), index)


@dataclass(frozen=True)
class LiveEvaluation(Evaluation):
    """
    What came back from a node, and the account of every frame.

    `account`: `played` is the sum of `returned`, `dropped` (by the node, for a newer one), `failed` (in the
    node), `not_received` (lost on the wire, or replaced in the node's queue of one before it looked) and
    `not_returned` (processed, but the result was lost).
    """

    account: dict[str, Any]

    def result(self, options: dict[str, Any]) -> dict[str, Any]:
        return super().result(options) | {'live': self.account}


def replay(path: Path, model: ModelSpec, live: Live, *, image_topic: str | None = None,
           truth: GroundTruthSource | None = None, selection: Selection | None = None, quiet: bool = False,
           log: Path | None = None) -> LiveEvaluation:
    """
    Play a bag, or the frames of it that `selection` names, to a node in real time; score what comes back.

    The network that the result names is the one that the node's diagnostics name, never the one that `model`
    would load here. `EvaluationError` or `ProbeError` if there is nothing to play or nobody to play to.
    """
    labels = weights.read_card(model.path).labels
    selection = selection or Selection()
    if live.player == 'ros2' and selection != Selection():
        raise EvaluationError('"ros2 bag play" plays every frame; --start, --duration and --every need the '
                              'own player')
    recording = recordings.index_bag(path, image_topic, truth, selection)
    if not recording.times:
        raise EvaluationError(f'no frames in {path}: {recording.topic} holds no message')
    if not recording.chosen:
        raise EvaluationError(f'{path} has no frame from {selection.start_ns / NS:g} s on')
    choose_samples([recording], APART_NS)
    with open_recording(path, recording.truth.rate) as bag:
        kind = bag.image_topic(recording.topic).type  # what the messages are read and sent as
        if live.player == 'ros2' and (isinstance(bag, Footage) or kind != bag.topics[recording.topic].type):
            raise EvaluationError(f'--player ros2 plays topics of Image and CompressedImage, and {path} has '
                                  'others: use the own player, which turns them into Images')
        compressed = kind.endswith('CompressedImage')
    if not live.node:
        isolate()
    rclpy.init()
    try:
        with tempfile.TemporaryDirectory(prefix='lightseg_') as folder:
            kept = Path(folder) / 'results.mcap'
            with bag_writer.Writer(kept) as writer:
                collected = Collected(writer)
                account, identity, device = _play(recording, model, live, compressed, collected, quiet,
                                                  log or Path(folder) / 'segmentation.log')
            scores = _score(recording, collected, kept, labels, quiet)
    finally:
        rclpy.try_shutdown()
    latency = LatencyStats()
    for ms in collected.latency_ms.values():
        latency.add(ms)
    late = sum(ms > 1e3 * live.deadline_s for ms in collected.latency_ms.values())
    account |= {'late': late, 'deadline_ms': 1e3 * live.deadline_s, 'rate': live.rate,
                'use_sim_time': live.use_sim_time, 'player': live.player, 'node': live.node or 'started here',
                'end_to_end': latency.summary()}
    return LiveEvaluation(scores, [recording.describe()], identity, device, account)


def _play(recording: Recording, model: ModelSpec, live: Live, compressed: bool, collected: Collected,
          quiet: bool, log: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """Play everything, wait for the last results; returns all counts, the node's network and its device."""
    topic, name = recording.topic, live.node
    processes = []
    if not live.node:
        # Names of its own, so that a node that runs already is neither fed nor listened to.
        name = f'/replay_{os.getpid()}'
        if live.player == 'own':
            topic = f'{name}/image'
        parameters: dict[str, Any] = {
            'weights': str(model.path), 'device': model.device, 'resolution': model.resolution or '',
            'resize_mode': model.resize_mode, 'backend': model.backend, 'precision': model.precision,
            'threads': model.threads, 'smoothing': model.smoothing, 'diagnostics_rate': 10.0,
            'use_sim_time': live.use_sim_time, 'image_transport': 'compressed' if compressed else 'raw'}
        remap = {'image/compressed' if compressed else 'image': topic, '__node': name.strip('/')}
        processes.append(NodeProcess('segmentation', log, parameters, remap))
    kind = CompressedImage if compressed else Image
    with nodes(*processes):
        probe = Probe(collected.returned, ('label', 'confidence'), segmentation=name,
                      image_topic=topic, plays=kind if live.player == 'own' else None)
        try:
            probe.wait_connected(60.0, *processes)
            if not probe.wait(lambda: bool(probe.diagnostics.values), 15.0, *processes):
                raise EvaluationError('the node publishes no diagnostics, by which frames are accounted for')
            identity, device = _identity(probe, name)
            _check_classes(probe, name, weights.read_card(model.path).labels, processes)
            before = _counters(probe)
            if live.player == 'own':
                _play_own(recording, live, probe, collected, quiet, processes)
            else:
                _play_ros2(recording, live, probe, collected, kind, processes)
            _settle(probe, collected, before, processes)
            node = {k: v - before[k] for k, v in _counters(probe).items()}
        finally:
            probe.destroy_node()
    played, returned = len(collected.played_s), len(collected.latency_ms)
    return {'played': played, 'returned': returned, 'dropped': node['dropped'], 'failed': node['failed'],
            'not_received': played - node['received'],
            'not_returned': node['processed'] - returned}, identity, device


def _identity(probe: Probe, name: str) -> tuple[dict[str, str], str]:
    """Return which network a node runs and where, from its diagnostics; 'unknown' for what they don't say."""
    values = probe.diagnostics.values
    keys = ('network', 'dataset', 'weights', 'sha256', 'resolution', 'resize_mode', 'precision', 'backend')
    missing = [key for key in keys if key not in values]
    if missing:
        log.warning('the diagnostics of %s do not say its %s: the result calls these unknown', name,
                    ', '.join(missing))
    identity = {key: values.get(key, 'unknown') for key in keys}
    if values.get('smoothing', '0') != '0':
        identity['smoothing'] = values['smoothing']
    return identity, values.get('device', 'unknown')


def _check_classes(probe: Probe, name: str, labels: LabelSet, processes: list[NodeProcess]) -> None:
    """Refuse a node whose classes are not those that its labels will be scored by."""
    if not probe.wait(lambda: bool(probe.class_names), 5.0, *processes):
        raise EvaluationError(f'{name} publishes no label_info, so nobody knows what its labels mean')
    if probe.class_names != labels.names:
        raise EvaluationError(f'{name} has the classes {", ".join(probe.class_names)}; --model has '
                              f'{", ".join(labels.names)}: name the weights that the node runs')


def _play_own(recording: Recording, live: Live, probe: Probe, collected: Collected, quiet: bool,
              processes: list[NodeProcess]) -> None:
    clock = probe.create_publisher(Clock, '/clock', 10) if live.use_sim_time else None
    chosen = set(recording.chosen)
    began, first = monotonic(), recording.times[recording.chosen[0]]
    next_tick = 0.0

    def tick() -> bool:
        """Publish /clock if it is time to."""
        nonlocal next_tick
        now = monotonic() - began
        if clock and now >= next_tick:
            next_tick = now + CLOCK_PERIOD_S
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(first + int(now * live.rate * NS), NS)
            clock.publish(message)
        return False

    bar = tqdm(total=len(chosen), unit='frame', disable=quiet or None)
    with open_recording(recording.path, recording.truth.rate) as bag, bar:
        # One message beyond the last good one may be where a damaged bag breaks off.
        for index, message in enumerate(islice(bag.messages(recording.topic), recording.chosen[-1] + 1)):
            if index not in chosen:
                continue
            due = began + (message.time_ns - first) / NS / live.rate
            while (left := due - monotonic()) > 0:
                tick()
                probe.wait(tick, min(left, CLOCK_PERIOD_S) if clock else left, *processes)
            tick()
            bar.update()
            try:
                raw, stamp_ns = message.cdr(), message.stamp_ns()
                if not live.use_sim_time:
                    stamp_ns = probe.get_clock().now().nanoseconds
                    raw = _stamped(raw, stamp_ns)
            except (bags.BagError, struct.error, IndexError):
                continue  # too broken to be sent; counted when the bag is read for its scores
            collected.played(stamp_ns, index)
            probe.play_raw(raw)


def _play_ros2(recording: Recording, live: Live, probe: Probe, collected: Collected, kind: type,
               processes: list[NodeProcess]) -> None:
    """Let `ros2 bag play` play; a frame counts as played when it arrives here."""
    places: dict[int, int] = {}
    for index, stamp_ns in enumerate(recording.stamps):
        places.setdefault(stamp_ns, index)

    def on_frame(raw: bytes) -> None:
        stamp_ns = bags.Recorded(recording.topic, '', 0, raw).stamp_ns()
        if stamp_ns in places:
            collected.played(stamp_ns, places.pop(stamp_ns))

    probe.create_subscription(kind, recording.topic, on_frame, QoSProfile(
        depth=100, reliability=QoSReliabilityPolicy.BEST_EFFORT), raw=True)
    command = ['ros2', 'bag', 'play', str(recording.path), '--rate', f'{live.rate:g}',
               *(['--clock', '100'] if live.use_sim_time else []), '--topics', recording.topic]
    player = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while player.poll() is None:
            probe.wait(lambda: player.poll() is not None, 1.0, *processes)
    finally:
        if player.poll() is None:
            player.send_signal(signal.SIGINT)
        player.wait(15)
    if player.returncode:
        raise EvaluationError(f'"{" ".join(command)}" ended with exit code {player.returncode}; see its '
                              'output')


def _settle(probe: Probe, collected: Collected, before: dict[str, int],
            processes: list[NodeProcess]) -> None:
    """Wait until the node is done with every frame and its last results are here, at most half a minute."""
    for _ in range(2):
        last = probe.diagnostics
        probe.wait(lambda: probe.diagnostics is not last, 3.0, *processes)  # noqa: B023

    def done() -> bool:
        now = _counters(probe)
        return now['received'] == now['processed'] + now['dropped'] + now['failed']

    probe.wait(done, 30.0, *processes)
    probe.wait(lambda: len(collected.latency_ms) >= _counters(probe)['processed'] - before['processed'], 2.0,
               *processes)


def _counters(probe: Probe) -> dict[str, int]:
    return {k: int(probe.diagnostics.values.get(k, 0)) for k in COUNTERS}


def _stamped(cdr: bytes, stamp_ns: int) -> bytes:
    """Return a serialized message with another stamp in its header, which it begins with."""
    out = bytearray(cdr)
    struct.pack_into('<iI' if out[1] & 1 else '>iI', out, 4, *divmod(stamp_ns, NS))
    return bytes(out)


def _score(recording: Recording, collected: Collected, kept: Path, labels: LabelSet, quiet: bool) -> Scores:
    """Read the bag again, with its ground truth, beside the results, both in the bag's order."""
    scores = Scores(labels, bool(recording.truth))
    scores.counts.update(recording.counts)
    for note in recording.notes:
        scores.skip(recordings.kind_of(note), note)
    consistency = Consistency()
    task, = recording.tasks(len(recording.chosen))
    with Bag(kept) as results:
        returned = _results(results)
        result = next(returned, None)
        for item in tqdm(recordings.read(task, labels), 'scoring', len(recording.chosen), unit='frame',
                         disable=quiet or None):
            if not isinstance(item, RecordedFrame):
                scores.skip(item.what, item.reason)
            elif result and item.index == result[0]:
                index, ids, confidence = result
                stable = consistency.update(item.rgb, ids, item.stamp_ns)
                scores.add(item.source, index, item.stamp_ns, item.rgb, ids, item.truth, confidence,
                           {'total': collected.latency_ms[index]}, stable, item.sample)
                result = next(returned, None)
            else:
                scores.counts['missing'] += 1
    return scores


def _results(bag: Bag) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield place in the played bag, label and confidence, (H, W) uint8, of each result."""
    for pair in zip(bag.messages('label'), bag.messages('confidence')):
        label, confidence = (images.decode(message.read())[..., 0] for message in pair)
        yield pair[0].time_ns, label, confidence
