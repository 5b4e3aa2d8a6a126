# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of a recording or data set: they are kept as whole-number counts, so parts merge exactly."""
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
import math
import re
from typing import Any

import cv2
import numpy as np

from ..labels import LabelSet
from ..metrics import ConfusionMatrix, LatencyStats

CALIBRATION_BINS = 15
# Frames further apart say nothing about stability: the scene itself has changed.
MAX_GAP_NS = 500_000_000
PICTURES = 4


@dataclass(frozen=True)
class FrameScore:
    """
    The figures of one frame. `index`: its position on the source's image topic.

    `miou` and `accuracy` (percent) are None without ground truth; `consistency` (percent) is None without a
    frame shortly before. `confidence`: mean, 0 to 1. `shares`: number of pixels predicted as each class.
    `latency_ms`: from decoding to the result.
    """

    source: str
    index: int
    stamp_ns: int
    shares: tuple[int, ...]
    miou: float | None = None
    accuracy: float | None = None
    consistency: float | None = None
    confidence: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Picture:
    """A frame for the report: JPEGs of frame, truth and prediction, a PNG of the errors, its sort key."""

    source: str
    index: int
    value: float
    tiles: dict[str, bytes]


class Consistency:
    """
    Stability of the labels between frames, free of the camera's own motion.

    The previous labels are moved along the optical flow (DIS, Kroeger et al. 2016, on gray images) to where
    their pixels are now; the share that the network still calls the same is the frame's consistency. Frames
    of another size, more than half a second apart or back in time are not compared.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        # It makes the flow depend on the number of threads.
        self._flow.setUseSpatialPropagation(False)
        self._gray: np.ndarray | None = None
        self._labels: np.ndarray | None = None
        self._stamp_ns = 0

    def reset(self) -> None:
        self._gray = self._labels = None

    def update(self, rgb: np.ndarray, labels: np.ndarray, stamp_ns: int) -> tuple[int, int]:
        """Return how many pixels kept their label, and how many were compared (0 if there is nothing)."""
        height, width = labels.shape
        small = min(1.0, 480 / max(height, width))
        gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
        gray = cv2.resize(gray, None, fx=small, fy=small, interpolation=cv2.INTER_AREA) if small < 1 else gray
        before, known, gap = self._gray, self._labels, stamp_ns - self._stamp_ns
        self._gray, self._labels, self._stamp_ns = gray, labels, stamp_ns
        if before is None or known is None or known.shape != labels.shape or not 0 < gap <= MAX_GAP_NS \
                or min(gray.shape) < 16:
            return 0, 0
        flow = np.asarray(self._flow.calc(gray, before, np.empty(0)))
        flow = cv2.resize(flow, (width, height)) * np.float32(1 / small) if small < 1 else flow
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        outside = 254
        moved = cv2.remap(known, x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST,
                          borderMode=cv2.BORDER_CONSTANT, borderValue=outside)
        inside = moved != outside
        return int(np.count_nonzero(moved[inside] == labels[inside])), int(np.count_nonzero(inside))


@dataclass
class Scores:
    """
    Sums over frames: call `add` and `skip` while reading, `merge` to join parts, then `result`.

    `truth`: whether ground truth is expected. It decides which frames are kept as pictures: the best and the
    worst by mIoU, or by mean confidence where there is no ground truth.
    """

    labels: LabelSet
    truth: bool
    rows: list[FrameScore] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    latency: dict[str, LatencyStats] = field(default_factory=dict)
    best: list[Picture] = field(default_factory=list)
    worst: list[Picture] = field(default_factory=list)

    def __post_init__(self) -> None:
        k = len(self.labels)
        self.confusion = ConfusionMatrix(k, self.labels.ignore_id)
        # Per class: predicted boundary pixels, those near a true one; true ones, those near a predicted one.
        self.boundary = np.zeros((k, 4), np.int64)
        # Per confidence 0 to 255: pixels with ground truth, and how many of them are right.
        self.calibration = np.zeros((256, 2), np.int64)
        self.shares = np.zeros(k, np.int64)
        self.same = self.compared = 0

    def add(self, source: str, index: int, stamp_ns: int, rgb: np.ndarray, labels: np.ndarray,
            truth: np.ndarray | None = None, confidence: np.ndarray | None = None,
            stage_ms: dict[str, float] | None = None, consistency: tuple[int, int] = (0, 0)) -> None:
        """
        Count a frame: rgb (H, W, 3), class ids (H, W) predicted and true, confidence (H, W) 0-255, all uint8.

        `stage_ms`: times of its stages, with 'total'. `consistency`: what `Consistency.update` returned.
        """
        k, stage_ms = len(self.labels), stage_ms or {}
        shares = np.bincount(labels.ravel(), minlength=256)[:k]
        self.shares += shares
        self.same += consistency[0]
        self.compared += consistency[1]
        for stage, ms in stage_ms.items():
            self.latency.setdefault(stage, LatencyStats()).add(ms)
        self.counts['segmented'] += 1
        miou = accuracy = None
        if truth is not None:
            frame = ConfusionMatrix(k, self.labels.ignore_id)
            frame.update(truth, labels)
            self.confusion.merge(frame)
            miou, accuracy = frame.miou(), frame.accuracy()
            self.boundary += boundary_counts(truth, labels, k, self.labels.ignore_id)
            if confidence is not None:
                valid = truth != self.labels.ignore_id
                right = np.bincount(confidence[valid & (truth == labels)], minlength=256)
                self.calibration += np.stack((np.bincount(confidence[valid], minlength=256), right), 1)
            self.counts['scored'] += 1
        mean = float(confidence.mean()) / 255 if confidence is not None else None
        row = FrameScore(source, index, stamp_ns, tuple(int(s) for s in shares), _number(miou),
                         _number(accuracy), 100 * consistency[0] / consistency[1] if consistency[1] else None,
                         mean, stage_ms.get('total'))
        self.rows.append(row)
        value = row.miou if self.truth else row.confidence
        if value is not None:
            self._keep(row, value, rgb, labels, truth)

    def skip(self, what: str, reason: str) -> None:
        """Count what can't be used: `what` is 'failed', ...; the first reason is kept."""
        self.counts[what] += 1
        # Reasons that differ only in their numbers count as one, so a bag of garbage makes no long list.
        self._skip(re.sub(r'\d+', '#', f'{what}: {reason}'), {'what': what, 'count': 1, 'first': reason})

    def merge(self, other: 'Scores') -> None:
        """Add the scores of later frames: exact, except for latencies, which are as measured."""
        self.confusion.merge(other.confusion)
        self.boundary += other.boundary
        self.calibration += other.calibration
        self.shares += other.shares
        self.same += other.same
        self.compared += other.compared
        self.rows += other.rows
        self.counts.update(other.counts)
        for key, entry in other.skipped.items():
            self._skip(key, entry)
        for stage, stats in other.latency.items():
            self.latency.setdefault(stage, LatencyStats()).merge(stats)
        self.best = _first(self.best + other.best, -1)
        self.worst = _first(self.worst + other.worst, 1)

    def result(self) -> dict[str, Any]:
        """Return everything as plain numbers, percent from 0 to 100, None where nothing was measured."""
        names = self.labels.names
        iou, f1 = self.confusion.iou(), boundary_f1(self.boundary)
        scored = bool(self.counts['scored'])
        return {
            'miou': _number(self.confusion.miou()), 'accuracy': _number(self.confusion.accuracy()),
            'iou': {n: _number(v) for n, v in zip(names, iou)},
            'boundary_f1': _number(_mean(f1)),
            'boundary_f1_per_class': {n: _number(v) for n, v in zip(names, f1)},
            'confusion': self.confusion.counts.tolist() if scored else None,
            'ece': _number(expected_calibration_error(self.calibration)),
            'calibration': calibration_bins(self.calibration) if scored else None,
            'consistency': 100 * self.same / self.compared if self.compared else None,
            'shares': {n: 100 * int(v) / max(1, int(self.shares.sum())) for n, v in zip(names, self.shares)},
            'latency_ms': {stage: stats.summary() for stage, stats in self.latency.items()},
            'counts': dict(self.counts), 'skipped': list(self.skipped.values()),
            'labels': self.labels.to_dict(),
            'frames': [vars(row) | {'shares': list(row.shares)} for row in self.rows],
        }

    def _skip(self, key: str, entry: dict[str, Any]) -> None:
        known = self.skipped.setdefault(key, entry | {'count': 0})
        known['count'] += entry['count']

    def _keep(self, row: FrameScore, value: float, rgb: np.ndarray, labels: np.ndarray,
              truth: np.ndarray | None) -> None:
        low = len(self.worst) < PICTURES or value < self.worst[-1].value
        high = len(self.best) < PICTURES or value > self.best[-1].value
        if low or high:
            picture = Picture(row.source, row.index, value, _tiles(rgb, labels, truth, self.labels))
            if high:
                self.best = _first([*self.best, picture], -1)
            if low:
                self.worst = _first([*self.worst, picture], 1)


def boundary_counts(truth: np.ndarray, prediction: np.ndarray, num_classes: int,
                    ignore_id: int) -> np.ndarray:
    """
    Count boundary pixels of each class, (K, 4) int64, for `boundary_f1`.

    A boundary pixel of a class has a neighbour (of four) of another class; where the truth is void there is
    none. One is near another within 0.75 % of the image's diagonal (Csurka et al. 2013, What is a good
    evaluation measure for semantic segmentation?).
    """
    void = truth == ignore_id
    radius = max(1, round(0.0075 * math.hypot(*truth.shape)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    out = np.zeros((num_classes, 4), np.int64)
    present = np.bincount(truth.ravel(), minlength=256) + np.bincount(prediction.ravel(), minlength=256)
    for i in np.flatnonzero(present[:num_classes]):
        edges = []
        for ids in (prediction, truth):
            mask = ((ids == i) | void).astype(np.uint8)
            edges.append((mask - cv2.erode(mask, cross)) * ~void)
        mine, theirs = edges
        out[i] = [cv2.countNonZero(pixels) for pixels in (
            mine, mine & cv2.dilate(theirs, disk), theirs, theirs & cv2.dilate(mine, disk))]
    return out


def boundary_f1(counts: np.ndarray) -> np.ndarray:
    """F1 of each class's boundary in percent, (K,) float64, NaN for a class without any."""
    found, right, there, hit = counts.T.astype(np.float64)
    total = found + there
    precision = np.divide(right, found, out=np.zeros_like(right), where=found > 0)
    recall = np.divide(hit, there, out=np.zeros_like(hit), where=there > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return np.where(total > 0, 100 * f1, np.nan)


def calibration_bins(calibration: np.ndarray) -> list[dict[str, float]]:
    """Pixels, mean confidence and accuracy (0-1) of equal bins of confidence that hold any."""
    of = np.minimum(np.arange(256) * CALIBRATION_BINS // 255, CALIBRATION_BINS - 1)
    out = []
    for i in range(CALIBRATION_BINS):
        count, right = (int(v) for v in calibration[of == i].sum(0))
        if count:
            total = int((calibration[of == i, 0] * np.arange(256)[of == i]).sum())
            out.append({'low': i / CALIBRATION_BINS, 'high': (i + 1) / CALIBRATION_BINS, 'count': count,
                        'confidence': total / count / 255, 'accuracy': right / count})
    return out


def expected_calibration_error(calibration: np.ndarray) -> float:
    """Distance of confidence and accuracy, mean over the pixels, percent (Guo et al. 2017)."""
    bins = calibration_bins(calibration)
    total = sum(b['count'] for b in bins)
    return 100 * sum(b['count'] * abs(b['confidence'] - b['accuracy']) for b in bins) / total if total \
        else math.nan


def paired_difference(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], *,
                      draws: int = 2000) -> dict[str, Any]:
    """
    Compare the mIoU of the frames that two results share: second minus first, percentage points.

    Returns `frames`, `mean`, its 95 % confidence interval `low` and `high`, `better` and `worse` (frames),
    and each frame's difference. The interval is a moving-block bootstrap (Kuensch 1989): frames of a video
    resemble their neighbours, so whole runs of them are drawn, n^(1/3) frames long. None without shared
    frames.
    """
    def keyed(rows: Sequence[dict[str, Any]]) -> dict[tuple, float]:
        return {(r['source'], r['index'], r['stamp_ns']): r['miou'] for r in rows if r['miou'] is not None}

    a, b = keyed(first), keyed(second)
    shared = [k for k in a if k in b]
    differences = np.array([b[k] - a[k] for k in shared])
    n = len(shared)
    if not n:
        return {'frames': 0, 'mean': None, 'low': None, 'high': None, 'better': 0, 'worse': 0,
                'differences': []}
    block = max(1, round(n ** (1 / 3)))
    starts = np.random.default_rng(0).integers(0, n - block + 1, (draws, -(-n // block)))
    means = [differences[(s[:, None] + np.arange(block)).ravel()[:n]].mean() for s in starts]
    low, high = np.percentile(means, (2.5, 97.5))
    return {'frames': n, 'mean': float(differences.mean()), 'low': float(low), 'high': float(high),
            'better': int((differences > 0).sum()), 'worse': int((differences < 0).sum()),
            'differences': differences.tolist()}


def _first(pictures: list[Picture], sign: int) -> list[Picture]:
    return sorted(pictures, key=lambda p: (sign * p.value, p.source, p.index))[:PICTURES]


def _tiles(rgb: np.ndarray, labels: np.ndarray, truth: np.ndarray | None,
           label_set: LabelSet) -> dict[str, bytes]:
    """Frame, truth, prediction, error (red: wrong, gray: void) as files, at most 480 pixels wide."""
    small = min(1.0, 480 / labels.shape[1])
    size = (round(labels.shape[1] * small), max(1, round(labels.shape[0] * small)))
    palette = label_set.palette()[..., ::-1]
    frame = cv2.resize(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR), size,
                       interpolation=cv2.INTER_AREA)
    tiles = {'frame': cv2.imencode('.jpg', frame)[1].tobytes()}
    ids = {'truth': truth, 'prediction': labels}
    resized = {name: cv2.resize(i, size, interpolation=cv2.INTER_NEAREST) for name, i in ids.items()
               if i is not None}
    for name, i in resized.items():
        tiles[name] = cv2.imencode('.png', palette[i])[1].tobytes()
    if truth is not None:
        error = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) // 2, cv2.COLOR_GRAY2BGR)
        error[resized['truth'] != resized['prediction']] = (40, 40, 230)
        error[resized['truth'] == label_set.ignore_id] = (128, 128, 128)
        tiles['error'] = cv2.imencode('.jpg', error)[1].tobytes()
    return tiles


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
