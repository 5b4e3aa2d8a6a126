# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Counters and times of a running node, summed up as a diagnostic status; plain Python, no ROS types."""
from collections import deque
from dataclasses import dataclass
import threading
from time import monotonic

from .metrics import LatencyStats

OK, WARN, ERROR, STALE = 0, 1, 2, 3  # the levels of diagnostic_msgs/DiagnosticStatus


@dataclass(frozen=True)
class Status:
    """A level, one line of text, and key-value pairs."""

    level: int
    summary: str
    values: dict[str, str]


class Health:
    """
    Counts the frames of one camera and their times; any thread may call it.

    A frame is received, and then processed, dropped (because a newer one arrived) or failed. Rates cover the
    last `window_s` seconds, times the last `capacity` frames.
    """

    def __init__(self, window_s: float = 5.0, capacity: int = 300):
        self._lock = threading.Lock()
        self._window_s = window_s
        self._capacity = capacity
        self._began = monotonic()
        self._in: deque[float] = deque()
        self._out: deque[float] = deque()
        self._stages: dict[str, LatencyStats] = {}
        self._last_failed = float('-inf')
        self.received = self.processed = self.failed = 0
        self.last_error = ''

    def frame_received(self) -> None:
        with self._lock:
            self.received += 1
            self._in.append(monotonic())

    def frame_processed(self, stage_ms: dict[str, float]) -> None:
        """Count a frame whose label was published; `stage_ms`: milliseconds of each stage, and its age."""
        with self._lock:
            self.processed += 1
            self._out.append(monotonic())
            for stage, ms in stage_ms.items():
                self._stages.setdefault(stage, LatencyStats(self._capacity)).add(ms)

    def stage_took(self, stage: str, ms: float) -> None:
        """Add the time of a stage that runs after the label is published."""
        with self._lock:
            self._stages.setdefault(stage, LatencyStats(self._capacity)).add(ms)

    def frame_failed(self, error: str) -> None:
        with self._lock:
            self.failed += 1
            self.last_error = error
            self._last_failed = monotonic()

    def status(self, dropped: int, more: dict[str, str]) -> Status:
        """Sum up; `dropped`: the mailbox's count; `more`: values to add, such as model, device and memory."""
        with self._lock:
            now = monotonic()
            fps_in, fps_out = self._rate(self._in, now), self._rate(self._out, now)
            level, summary = OK, f'{fps_out:.1f} fps out, {fps_in:.1f} in'
            if not self.received:
                level = WARN
                summary = 'no image received yet: check the topic name and that the camera is running'
            elif now - self._last_failed < self._window_s:
                level, summary = ERROR, f'frames fail: {self.last_error}'
            elif fps_in and not fps_out and now - self._in[0] > 0.8 * self._window_s:
                level = ERROR
                summary = f'images arrive, but no label was published in the last {self._window_s:g} s'
            elif not fps_in:
                level, summary = STALE, f'no image in the last {self._window_s:g} s'
            values = {
                'fps in': f'{fps_in:.2f}', 'fps out': f'{fps_out:.2f}', 'received': str(self.received),
                'processed': str(self.processed), 'dropped': str(dropped), 'failed': str(self.failed)}
            if self.last_error:
                values['last error'] = self.last_error
            for stage, stats in self._stages.items():
                s = stats.summary()
                values.update({f'{stage} p50 (ms)': f'{s["p50"]:.2f}', f'{stage} p95 (ms)': f'{s["p95"]:.2f}',
                               f'{stage} max (ms)': f'{s["max"]:.2f}'})
            values.update(more)
            return Status(level, summary, values)

    def _rate(self, times: deque[float], now: float) -> float:
        while times and now - times[0] > self._window_s:
            times.popleft()
        return len(times) / max(1e-3, min(self._window_s, now - self._began))
