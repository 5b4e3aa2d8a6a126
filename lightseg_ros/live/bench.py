# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How fast the segmentation node is through DDS: latency, highest rate, CPU use and memory."""
from collections.abc import Callable, Sequence
import os
from pathlib import Path
import tempfile
from time import monotonic
from typing import Any

import cv2
import numpy as np
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from .. import images, weights
from ..benchmark import measure
from ..benchmark.measure import Contender
from ..machine import resident_mb
from ..metrics import LatencyStats
from ..synthetic.street import Street
from .probe import Diagnostics, isolate, NodeProcess, nodes, Probe, RELIABLE, Seen

SIZES = ((640, 480), (1280, 720), (1920, 1080))
RATES = (10.0, 30.0, 60.0)
# A rate is reached if fewer than this percentage of its frames are lost.
MAX_LOSS = 5.0
# What a subscriber to each of these costs the labels is measured, in turns, because a machine has moods.
OPTIONAL = {'none': None, 'confidence': Image, 'overlay': Image, 'points': PointCloud2}
TURNS = 3
LAZY = ('true', 'subscription', 'false')
IDLE_RATE = 30.0


def bench_ros(model: str, *, device: str = 'auto', contender: Contender = measure.AUTO, threads: int = 0,
              seconds: float = 5.0, sizes: Sequence[tuple[int, int]] = SIZES,
              overlays: Sequence[bool] = (False, True), rates: Sequence[float] = RATES,
              limit_hz: float = 240.0) -> dict[str, Any]:
    """
    Play frames to a segmentation node in its own process, for `seconds` at each of `rates` (Hz).

    This is done for every size (width, height), without and with a subscriber to the overlay; then the
    highest rate up to `limit_hz` is searched that loses less than `MAX_LOSS`. The latency of a frame is the
    time from its stamp to the arrival of its label in this process. The memory of the node is read before and
    after each rate; with `seconds` of 600 or more this is a soak test. At the first rate, the age of the
    labels is measured with and without a subscriber to each optional output, and at 30 Hz the CPU use of a
    node that nobody listens to. Returns a result for `measure.write`, with `ros_rows`, `ros_subscribers` and
    `ros_idle`; keys that ros2_benchmark also has are named as there. Errors: BenchError, WeightsError,
    ProbeError.
    """
    if not all(rate > 0 for rate in rates):
        raise measure.BenchError(f'rates are {", ".join(f"{rate:g}" for rate in rates)}; expected more '
                                 'than 0 Hz')
    isolate()
    rows: list[dict[str, Any]] = []
    subscribers: list[dict[str, Any]] = []
    idle: list[dict[str, Any]] = []
    parameters = {'device': device, 'backend': contender.backend, 'precision': contender.precision,
                  'threads': threads, 'weights': str(weights.resolve(model))}
    rclpy.init()
    try:
        for size in sizes:
            for overlay in overlays:
                rows += _bench_node(parameters, size, overlay, rates, seconds, limit_hz)
            subscribers += _bench_subscribers(parameters, size, rates[0], seconds)
            idle += _bench_idle(parameters, size, seconds)
    finally:
        rclpy.try_shutdown()
    return {**measure.environment(device), 'model': model, 'backend': contender.backend,
            'precision': contender.precision, 'ros_rows': rows, 'ros_subscribers': subscribers,
            'ros_idle': idle}


def _bench_node(parameters: dict[str, Any], size: tuple[int, int], overlay: bool, rates: Sequence[float],
                seconds: float, limit_hz: float) -> list[dict[str, Any]]:
    image = Street(640, 480).render(5.0)[0]
    frame = np.ascontiguousarray(cv2.resize(image, size))
    seen: list[Seen] = []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        node = NodeProcess('segmentation', Path(folder) / 'segmentation.log', parameters)
        with nodes(node):
            probe = Probe(lambda whole: seen.append(_times(whole)),
                          ('label', 'overlay') if overlay else ('label',))
            try:
                probe.wait_connected(120.0, node)
                # The first frame of a size is slow: the node prepares the network for it.
                for _ in range(5):
                    seen.clear()
                    probe.play(frame)
                    probe.wait(lambda: bool(seen), 60.0, node)
                for rate in rates:
                    row = _run(probe, node, frame, seen, rate, seconds)
                    row.update(size=f'{size[0]}x{size[1]}', overlay=overlay, stages=_stages(probe, node))
                    print(_line(row), flush=True)
                    rows.append(row)
                highest = _highest_rate(probe, node, frame, seen, min(seconds, 3.0), limit_hz)
                for row in rows:
                    row['highest_rate_hz'] = highest
                print(f'{rows[0]["size"]}{" with overlay" if overlay else ""}: highest rate with less than '
                      f'{MAX_LOSS:g} % loss {highest:.0f} Hz', flush=True)
            finally:
                probe.destroy_node()
    return rows


def _bench_subscribers(parameters: dict[str, Any], size: tuple[int, int], rate: float,
                       seconds: float) -> list[dict[str, Any]]:
    """Measure the latency of the labels while another output has a subscriber as well, and without."""
    width, height = size
    frame = np.ascontiguousarray(cv2.resize(Street(640, 480).render(5.0)[0], size))
    depth = images.encode(np.full((height, width), 2000, np.uint16), '16UC1', Header(frame_id='camera'),
                          Image())
    info = CameraInfo(width=width, height=height,
                      k=[500.0, 0.0, width / 2, 0.0, 500.0, height / 2, 0.0, 0.0, 1.0])
    seen: list[Seen] = []
    latency = {output: LatencyStats(100_000) for output in OPTIONAL}
    counts = dict.fromkeys(OPTIONAL, 0)
    with tempfile.TemporaryDirectory() as folder:
        node = NodeProcess('segmentation', Path(folder) / 'segmentation.log', {
            **parameters, 'publish_points': True, 'image_size': f'{width}x{height}'})
        with nodes(node):
            probe = Probe(lambda whole: seen.append(_times(whole)))
            publishers = [probe.create_publisher(kind, f'/{topic}', RELIABLE)
                          for kind, topic in ((Image, 'depth'), (CameraInfo, 'camera_info'))]

            def play() -> int:
                stamp_ns = probe.play(frame)
                depth.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
                publishers[0].publish(depth)
                return stamp_ns

            def count(output: str) -> None:
                counts[output] += 1

            try:
                probe.wait_connected(120.0, node)
                for output in list(OPTIONAL) * TURNS:
                    if kind := OPTIONAL[output]:
                        # Raw: this process would read a label late if it had 22 MB of points to convert.
                        subscription = probe.create_subscription(
                            kind, f'/segmentation/{output}', lambda _, output=output: count(output), RELIABLE,
                            raw=True)
                    for _ in range(10):  # until the new subscriber gets what it asks for
                        before = len(seen), counts[output]
                        publishers[1].publish(info)
                        play()
                        probe.wait(lambda: len(seen) > before[0] and (  # noqa: B023
                            not kind or counts[output] > before[1]), 1.0, node)  # noqa: B023
                    _run(probe, node, frame, seen, rate, max(1.0, seconds / TURNS), play)
                    for s in seen:
                        latency[output].add(s.latency_ms)
                    if kind:
                        probe.destroy_subscription(subscription)
            finally:
                probe.destroy_node()
    rows = []
    for output, stats in latency.items():
        if OPTIONAL[output] and not counts[output]:
            raise measure.BenchError(f'the node published nothing on {output}')
        rows.append({'size': f'{width}x{height}', 'rate_hz': rate, 'subscriber': output,
                     'latency_ms': stats.summary()})
        ms = stats.summary()
        print(f'{f"{width}x{height}":>9} at {rate:g} Hz, subscribers of label'
              f'{f" and {output}" if OPTIONAL[output] else ""}: age of labels p50 {ms["p50"]:.1f} p95 '
              f'{ms["p95"]:.1f} ms', flush=True)
    return rows


def _bench_idle(parameters: dict[str, Any], size: tuple[int, int], seconds: float) -> list[dict[str, Any]]:
    """Measure the CPU use of a node that nobody listens to, in each mode of its parameter `lazy`."""
    frame = np.ascontiguousarray(cv2.resize(Street(640, 480).render(5.0)[0], size))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        node = NodeProcess('segmentation', Path(folder) / 'segmentation.log', {
            **parameters, 'image_size': f'{size[0]}x{size[1]}'})
        with nodes(node):
            probe = Probe(lambda whole: None, ())
            client: Any = probe.create_client(SetParameters, '/segmentation/set_parameters')
            try:
                probe.wait_connected(120.0, node)
                for lazy in LAZY:
                    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=lazy)
                    answer = client.call_async(SetParameters.Request(parameters=[
                        Parameter(name='lazy', value=value)]))
                    probe.wait(answer.done, 30.0, node)
                    row = _run(probe, node, frame, [], IDLE_RATE, seconds)
                    rows.append({'size': f'{size[0]}x{size[1]}', 'rate_hz': IDLE_RATE, 'lazy': lazy,
                                 'cpu_percent': row['cpu_percent']})
                    print(f'{rows[-1]["size"]:>9} at {IDLE_RATE:g} Hz, nobody listens, lazy {lazy}: CPU '
                          f'{row["cpu_percent"]:.1f} %', flush=True)
            finally:
                probe.destroy_node()
    return rows


def _run(probe: Probe, node: NodeProcess, frame: np.ndarray, seen: list[Seen], rate: float,
         seconds: float, play: Callable[[], int] | None = None) -> dict[str, Any]:
    """Play at a rate, wait up to a second for the last labels, and count; `play` replaces probe.play."""
    seen.clear()
    sent: list[int] = []
    busy, before_mb, began = _cpu_seconds(node), resident_mb(node.process.pid), monotonic()
    for i in range(max(3, round(rate * seconds))):
        probe.wait(lambda: False, max(0.0, began + i / rate - monotonic()), node)
        sent.append(play() if play else probe.play(frame))
    took = monotonic() - began
    probe.wait(lambda: len(seen) == len(sent), 1.0, node)
    used, after_mb = 100 * (_cpu_seconds(node) - busy) / took, resident_mb(node.process.pid)
    latency = LatencyStats()
    for s in seen:
        latency.add(s.latency_ms)
    summary = latency.summary()
    arrived = np.array([s.arrived_s for s in seen])
    jitter = np.abs(np.diff(np.diff(arrived))) * 1e3
    playback = (len(sent) - 1) / ((sent[-1] - sent[0]) / 1e9)
    return {
        'rate_hz': rate, 'loss_percent': 100 * (1 - len(seen) / len(sent)), 'latency_ms': summary,
        'cpu_percent': used, 'memory_mb': after_mb, 'memory_growth_mb': after_mb - before_mb,
        'Mean Playback Frame Rate (fps)': playback,
        'Mean Frame Rate (fps)': (len(arrived) - 1) / np.ptp(arrived) if len(arrived) > 1 else 0.0,
        '# of Missed Frames': len(sent) - len(seen), '# of Frames Sent': len(sent),
        'First Frame End-to-end Latency (ms)': seen[0].latency_ms if seen else None,
        'Last Frame End-to-end Latency (ms)': seen[-1].latency_ms if seen else None,
        'Max. End-to-End Latency (ms)': summary['max'], 'Mean End-to-End Latency (ms)': summary['mean'],
        'Min. End-to-End Latency (ms)': min((s.latency_ms for s in seen), default=None),
        'Max. Frame-to-Frame Jitter (ms)': float(jitter.max()) if jitter.size else None,
        'Mean Frame-to-Frame Jitter (ms)': float(jitter.mean()) if jitter.size else None}


def _times(seen: Seen) -> Seen:
    """Return a copy without the images, which would fill the memory within an hour."""
    return Seen(seen.stamp_ns, latency_ms=seen.latency_ms, arrived_s=seen.arrived_s)


def _highest_rate(probe: Probe, node: NodeProcess, frame: np.ndarray, seen: list[Seen], seconds: float,
                  limit_hz: float) -> float:
    """Find the highest rate above 1 Hz that loses less than `MAX_LOSS`, by bisection, to within 10 %."""
    low, high = 1.0, limit_hz
    while high / low > 1.1:
        rate = (low * high) ** 0.5
        row = _run(probe, node, frame, seen, rate, seconds)
        # If this process cannot publish fast enough, the rate says nothing about the node.
        reached = row['loss_percent'] < MAX_LOSS and row['Mean Playback Frame Rate (fps)'] > 0.95 * rate
        low, high = (rate, high) if reached else (low, rate)
    return low


def _stages(probe: Probe, node: NodeProcess) -> dict[str, float]:
    """Return the medians of the node's stages over its last 300 frames, in ms, from its next diagnostics."""
    end = ' p50 (ms)'
    probe.diagnostics = Diagnostics()
    probe.wait(lambda: bool(probe.diagnostics.values), 3.0, node)
    return {k.removesuffix(end): float(v) for k, v in probe.diagnostics.values.items() if k.endswith(end)}


def _cpu_seconds(node: NodeProcess) -> float:
    """Return the CPU time that the process of a node has used, in seconds."""
    fields = Path(f'/proc/{node.process.pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _line(row: dict[str, Any]) -> str:
    ms = row['latency_ms']
    what = f'{row["size"]:>9}{" with overlay" if row["overlay"] else ""}'
    return (f'{what} at {row["rate_hz"]:g} Hz: latency p50 {ms["p50"]:.1f} p95 {ms["p95"]:.1f} p99 '
            f'{ms["p99"]:.1f} ms (network {row["stages"].get("network", 0):.1f}), lost '
            f'{row["loss_percent"]:.1f} %, CPU {row["cpu_percent"]:.0f} %, memory '
            f'{row["memory_mb"]:.0f} MB ({row["memory_growth_mb"]:+.0f})')
