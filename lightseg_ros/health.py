# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Counters and times of a running node, summed up as a diagnostic status; plain Python, no ROS types."""
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
import threading
from time import monotonic

import numpy as np

from .metrics import LatencyStats

OK, WARN, ERROR, STALE = 0, 1, 2, 3  # the levels of diagnostic_msgs/DiagnosticStatus


@dataclass(frozen=True)
class Status:
    """A level, one line of text, and key-value pairs."""

    level: int
    summary: str
    values: dict[str, str]


# A larger share of dropped or lost frames is a warning.
MAX_MISSING = 0.2
# Ages outside these limits, in ms, cannot be: the stamps come from another clock. Clocks of machines that are
# synchronised differ by less than the first; a network that is being compiled delays a frame by less than the
# second.
POSSIBLE_AGE_MS = -50.0, 60e3


def is_possible(age_ms: float) -> bool:
    """Return whether a label can have this age, which is else the difference of two clocks."""
    return POSSIBLE_AGE_MS[0] <= age_ms <= POSSIBLE_AGE_MS[1]


class Health:
    """
    Counts the frames of one camera and their times; any thread may call it.

    A frame is received, and then processed, dropped (because a newer one arrived) or failed. Frames that the
    middleware lost were never received. Rates, shares and the age that is warned of cover the last `window_s`
    seconds, times the last `capacity` frames.
    """

    def __init__(self, window_s: float = 5.0, capacity: int = 300):
        self._lock = threading.Lock()
        self._window_s = window_s
        self._capacity = capacity
        self._began = monotonic()
        self._in: deque[float] = deque()
        self._out: deque[float] = deque()
        self._ages: deque[tuple[float, float]] = deque()  # when a label was published, and its age in ms
        # When; and how many were received, dropped, lost and left out until then.
        self._counts: deque[tuple[float, int, int, int, int]] = deque()
        self._stages: dict[str, LatencyStats] = {}
        self._last_failed = float('-inf')
        self.received = self.processed = self.failed = self.lost = 0
        self.last_error = ''

    def frame_received(self) -> None:
        with self._lock:
            self.received += 1
            self._in.append(monotonic())

    def frames_lost(self, count: int) -> None:
        """Count frames that the middleware lost."""
        with self._lock:
            self.lost += count

    def frame_processed(self, stage_ms: dict[str, float]) -> None:
        """Count a frame whose label was published; `stage_ms`: milliseconds of each stage, and its age."""
        with self._lock:
            self.processed += 1
            now = monotonic()
            self._out.append(now)
            for stage, ms in stage_ms.items():
                if stage == 'age':
                    self._ages.append((now, ms))
                    if not is_possible(ms):
                        continue  # not a time, so it does not belong in the figures
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

    def status(self, dropped: int, more: dict[str, str], *, left_out: int = 0, max_age_s: float = 0.0,
               sim_time: bool = False) -> Status:
        """
        Sum up.

        `dropped`: the mailbox's count; `left_out`: frames that arrived and were not wanted; `more`: values to
        add, such as model, device and memory; `max_age_s`: a higher median age is a warning, 0: none is;
        `sim_time`: whether the ages are by the clock of a simulation or recording.
        """
        with self._lock:
            now = monotonic()
            fps_in, fps_out = self._rate(self._in, now), self._rate(self._out, now)
            dropped_share, lost_share, left_out = self._recently(dropped, left_out, now)
            age_ms = self._age_ms(now)
            level, summary = OK, f'{fps_out:.1f} fps out, {fps_in:.1f} in'
            if not self.received:
                level = WARN
                summary = 'no image received yet: check the topic name and that the camera is running'
            elif now - self._last_failed < self._window_s:
                level, summary = ERROR, f'frames fail: {self.last_error}'
            elif fps_in and not fps_out and now - self._in[0] > 0.8 * self._window_s:
                level = ERROR
                summary = f'images arrive, but no label was published in the last {self._window_s:g} s'
            elif not fps_in and not left_out:
                level, summary = STALE, f'no image in the last {self._window_s:g} s'
            elif warnings := _warnings(dropped_share, lost_share, age_ms, max_age_s, sim_time):
                level, summary = WARN, '; '.join([*warnings, summary])
            values = {
                'fps in': f'{fps_in:.2f}', 'fps out': f'{fps_out:.2f}', 'received': str(self.received),
                'processed': str(self.processed), 'dropped': str(dropped), 'failed': str(self.failed),
                'lost': str(self.lost)}
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

    def _recently(self, dropped: int, left_out: int, now: float) -> tuple[float, float, int]:
        """Return which share of the received frames was dropped, of all lost, and how many were left out."""
        self._counts.append((now, self.received, dropped, self.lost, left_out))
        # One that is older than the window stays: it is where the window begins.
        while len(self._counts) > 2 and now - self._counts[1][0] >= self._window_s:
            self._counts.popleft()
        received, drops, lost, left = (last - first for first, last in zip(self._counts[0][1:],
                                                                           self._counts[-1][1:]))
        return drops / max(1, received), lost / max(1, received + left + lost), left

    def _age_ms(self, now: float) -> float:
        """Return the median age of the labels, NaN without any."""
        while self._ages and now - self._ages[0][0] > self._window_s:
            self._ages.popleft()
        return float(np.median([ms for _, ms in self._ages])) if self._ages else float('nan')


def _warnings(dropped: float, lost: float, age_ms: float, max_age_s: float, sim_time: bool) -> list[str]:
    out = []
    if age_ms < POSSIBLE_AGE_MS[0]:
        out.append(f'stamps are of another clock, {_duration(-age_ms / 1e3)} ahead of this one: '
                   + ('set use_sim_time to false for a live camera' if sim_time else
                      'synchronise the clocks of the two machines (chrony)'))
    elif age_ms > POSSIBLE_AGE_MS[1]:
        out.append(f'stamps are of another clock, {_duration(age_ms / 1e3)} behind this one: '
                   + ('the recording does not belong to this /clock' if sim_time else
                      'for a recording or a simulation set use_sim_time to true and publish /clock; for a '
                      "camera, make its driver stamp with the system's time"))
    elif max_age_s and age_ms > 1e3 * max_age_s:
        out.append(f'labels are {age_ms / 1e3:.2f} s old, more than max_age_warning')
    if dropped > MAX_MISSING:
        out.append(f'{100 * dropped:.0f} % of the images are dropped, because the network is slower than the '
                   'camera')
    if lost > MAX_MISSING:
        out.append(f'{100 * lost:.0f} % of the images are lost before they reach the node: see the '
                   'troubleshooting page')
    return out


def _duration(seconds: float) -> str:
    """Return a time in the unit that is read most easily: recordings are years old, clocks differ by ms."""
    for unit, length in (('days', 86400.0), ('hours', 3600.0), ('minutes', 60.0)):
        if seconds >= 2 * length:
            return f'{seconds / length:,.0f} {unit}'
    return f'{seconds:.2f} s'


def without_stale(statuses: Sequence[Status]) -> list[Status]:
    """
    Make a camera that has died an ERROR while others of the node live.

    STALE is the highest level. Whoever looks at the highest one of a node would otherwise take the whole node
    for silent, and miss the errors of other cameras.
    """
    if all(status.level == STALE for status in statuses):
        return list(statuses)
    return [replace(status, level=ERROR) if status.level == STALE else status for status in statuses]
