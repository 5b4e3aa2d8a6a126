# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of a recording or data set: they are kept as whole-number counts, so parts merge exactly."""
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
import json
import math
from pathlib import Path
import re
from typing import Any

import cv2
import numpy as np

from ..files import replacing
from ..labels import LabelSet
from ..metrics import ConfusionMatrix, LatencyStats
from ..texts import one_line

CALIBRATION_BINS = 15
# Frames further apart say nothing about stability: the scene itself has changed.
MAX_GAP_NS = 500_000_000
PICTURES, SAMPLES = 4, 6
# Two pictures that are `apart` rule out at most their neighbours: three times as many are enough to choose.
KEPT = 3 * PICTURES
APART_NS = 2_000_000_000
CONFIDENCE_BINS = 20


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
    """
    A frame for the report.

    `tiles`: JPEG and PNG files of frame, overlay, confidence, and with ground truth truth and error. `value`:
    what it was chosen by, mIoU or mean confidence, percent.
    """

    source: str
    index: int
    stamp_ns: int
    value: float
    tiles: dict[str, bytes]


@dataclass
class Album:
    """
    The frames with the lowest values (`sign` 1) or the highest ones (-1), not many of one scene.

    Of each `apart_ns` of a source only the first by value is kept, and of these the first KEPT: so albums of
    parts merge to the album of the whole.
    """

    sign: int
    apart_ns: int
    kept: dict[tuple[str, int], Picture] = field(default_factory=dict)

    def wants(self, row: FrameScore, value: float) -> bool:
        """Whether a frame would be kept; its picture need not be made otherwise."""
        picture = Picture(row.source, row.index, row.stamp_ns, value, {})
        known = self.kept.get(self._place(picture))
        if known:
            return self._key(picture) < self._key(known)
        return len(self.kept) < KEPT or self._key(picture) < max(map(self._key, self.kept.values()))

    def offer(self, *pictures: Picture) -> None:
        """Keep pictures that are among the first."""
        for picture in pictures:
            place = self._place(picture)
            if place not in self.kept or self._key(picture) < self._key(self.kept[place]):
                self.kept[place] = picture
        first = sorted(self.kept.items(), key=lambda item: self._key(item[1]))[:KEPT]
        self.kept = dict(first)

    def chosen(self) -> list[Picture]:
        """Return the first PICTURES pictures, each at least `apart_ns` from those before it."""
        out: list[Picture] = []
        for p in sorted(self.kept.values(), key=self._key):
            if len(out) < PICTURES and all(
                    p.source != o.source or abs(p.stamp_ns - o.stamp_ns) >= self.apart_ns for o in out):
                out.append(p)
        return out

    def _place(self, picture: Picture) -> tuple[str, int]:
        return picture.source, picture.stamp_ns // self.apart_ns if self.apart_ns else picture.index

    def _key(self, picture: Picture) -> tuple:
        return self.sign * picture.value, picture.source, picture.index


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

    def update(self, rgb: np.ndarray, labels: np.ndarray, stamp_ns: int) -> np.ndarray:
        """
        Compare labels (H, W) uint8 with the previous frame's.

        Returns (256, 2) int64: for each id of the previous frame, how many of its pixels were compared, and
        how many of them kept their label; all 0 if there is nothing to compare.
        """
        height, width = labels.shape
        small = min(1.0, 480 / max(height, width))
        gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
        gray = cv2.resize(gray, None, fx=small, fy=small, interpolation=cv2.INTER_AREA) if small < 1 else gray
        before, known, gap = self._gray, self._labels, stamp_ns - self._stamp_ns
        self._gray, self._labels, self._stamp_ns = gray, labels, stamp_ns
        if before is None or known is None or known.shape != labels.shape or not 0 < gap <= MAX_GAP_NS \
                or min(gray.shape) < 16:
            return np.zeros((256, 2), np.int64)
        flow = np.asarray(self._flow.calc(gray, before, np.empty(0)))
        flow = cv2.resize(flow, (width, height)) * np.float32(1 / small) if small < 1 else flow
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        outside = 254
        moved = cv2.remap(known, x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST,
                          borderMode=cv2.BORDER_CONSTANT, borderValue=outside)
        compared = np.bincount(moved.ravel(), minlength=256)
        compared[outside] = 0
        return np.stack((compared, np.bincount(moved[moved == labels], minlength=256)), 1)


@dataclass
class Scores:
    """
    Sums over frames: call `add` and `skip` while reading, `merge` to join parts, then `result`.

    `truth`: whether ground truth is expected. `apart_ns`: how far the pictures of the report lie apart.
    """

    labels: LabelSet
    truth: bool
    apart_ns: int = APART_NS
    rows: list[FrameScore] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    latency: dict[str, LatencyStats] = field(default_factory=dict)
    sampled: list[Picture] = field(default_factory=list)

    def __post_init__(self) -> None:
        k = len(self.labels)
        self.confusion = ConfusionMatrix(k, self.labels.ignore_id)
        # Per class: predicted boundary pixels, those near a true one; true ones, those near a predicted one.
        self.boundary = np.zeros((k, 4), np.int64)
        # Per confidence 0 to 255: pixels with ground truth, and how many of them are right.
        self.calibration = np.zeros((256, 2), np.int64)
        # Per predicted class and confidence: pixels.
        self.confidence = np.zeros((k, 256), np.int64)
        self.shares = np.zeros(k, np.int64)
        # Per id of the frame before: pixels compared, and how many of them kept their label.
        self.stability = np.zeros((256, 2), np.int64)
        self.albums = {'unsure': Album(1, self.apart_ns)}
        if self.truth:
            self.albums |= {'worst': Album(1, self.apart_ns), 'best': Album(-1, self.apart_ns)}

    def add(self, source: str, index: int, stamp_ns: int, rgb: np.ndarray, labels: np.ndarray,
            truth: np.ndarray | None = None, confidence: np.ndarray | None = None,
            stage_ms: dict[str, float] | None = None, stability: np.ndarray | None = None,
            sample: bool = False) -> None:
        """
        Count a frame: rgb (H, W, 3), class ids (H, W) predicted and true, confidence (H, W) 0-255, all uint8.

        `stage_ms`: times of its stages, with 'total'. `stability`: what `Consistency.update` returned.
        `sample`: the report shows this frame.
        """
        k, stage_ms = len(self.labels), stage_ms or {}
        shares = np.bincount(labels.ravel(), minlength=256)[:k]
        self.shares += shares
        compared = kept = 0
        if stability is not None:
            self.stability += stability
            compared, kept = (int(n) for n in stability.sum(0))
        for stage, ms in stage_ms.items():
            self.latency.setdefault(stage, LatencyStats()).add(ms)
        self.counts['segmented'] += 1
        miou = accuracy = mean = None
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
        if confidence is not None:
            mean = float(confidence.mean()) / 255
            # Counts of float32 are exact up to 2^24 pixels a cell.
            self.confidence += cv2.calcHist([np.ascontiguousarray(labels), np.ascontiguousarray(confidence)],
                                            [0, 1], None, [k, 256], [0, k, 0, 256]).astype(np.int64)
        row = FrameScore(source, index, stamp_ns, tuple(int(s) for s in shares), _number(miou),
                         _number(accuracy), 100 * kept / compared if compared else None, mean,
                         stage_ms.get('total'))
        self.rows.append(row)
        values = {'unsure': None if mean is None else 100 * mean, 'worst': row.miou, 'best': row.miou}
        wanted = {name: v for name, album in self.albums.items()
                  if (v := values[name]) is not None and album.wants(row, v)}
        if wanted or sample:
            tiles = _tiles(rgb, labels, truth, confidence, self.labels)
            for name, value in wanted.items():
                self.albums[name].offer(Picture(source, index, stamp_ns, value, tiles))
            if sample:
                shown = row.miou if row.miou is not None else values['unsure'] or 0.0
                self.sampled.append(Picture(source, index, stamp_ns, shown, tiles))

    def pictures(self) -> dict[str, list[Picture]]:
        """Return the report's pictures: frames spread evenly, the unsure, and the worst and best by mIoU."""
        return {'sampled': self.sampled} | {name: a.chosen() for name, a in self.albums.items()}

    def skip(self, what: str, reason: str) -> None:
        """Count what can't be used: `what` is 'failed', ...; the first reason is kept."""
        self.counts[what] += 1
        reason = one_line(reason)  # it names files and topics, which may hold anything
        # Reasons that differ only in their numbers count as one, so a bag of garbage makes no long list.
        self._skip(re.sub(r'\d+', '#', f'{what}: {reason}'), {'what': what, 'count': 1, 'first': reason})

    def merge(self, other: 'Scores') -> None:
        """Add the scores of later frames: exact, except for latencies, which are as measured."""
        self.confusion.merge(other.confusion)
        for mine, theirs in zip(self._sums(), other._sums()):
            mine += theirs
        self.rows += other.rows
        self.counts.update(other.counts)
        for key, entry in other.skipped.items():
            self._skip(key, entry)
        for stage, stats in other.latency.items():
            self.latency.setdefault(stage, LatencyStats()).merge(stats)
        self.sampled += other.sampled
        for name, album in other.albums.items():
            self.albums[name].offer(*album.kept.values())

    def save(self, path: Path) -> None:
        """Write everything to a .npz file, whole or not at all; `load` gives the same scores."""
        albums = {'sampled': self.sampled} | {n: list(a.kept.values()) for n, a in self.albums.items()}
        pictures = [(name, p) for name, kept in albums.items() for p in kept]
        facts = {'rows': [asdict(r) for r in self.rows], 'counts': self.counts, 'skipped': self.skipped,
                 'latency': {stage: stats.values() for stage, stats in self.latency.items()},
                 'pictures': [(name, p.source, p.index, p.stamp_ns, p.value) for name, p in pictures]}
        arrays = {f'sum{i}': a for i, a in enumerate((self.confusion.counts, *self._sums()))}
        arrays |= {f'tile{i} {name}': np.frombuffer(data, np.uint8)
                   for i, (_, p) in enumerate(pictures) for name, data in p.tiles.items()}
        with replacing(path) as temporary, open(temporary, 'wb') as file:
            arrays['facts'] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stubs take it for allow_pickle

    @classmethod
    def load(cls, path: Path, labels: LabelSet, truth: bool, apart_ns: int = APART_NS) -> 'Scores':
        """Read what `save` wrote of scores with the same arguments."""
        out = cls(labels, truth, apart_ns)
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(file['facts'].tobytes())
            for i, total in enumerate((out.confusion.counts, *out._sums())):
                total += file[f'sum{i}']
            tiles: dict[str, dict[str, bytes]] = {}
            for key in file.files:
                if key.startswith('tile'):
                    number, _, name = key.partition(' ')
                    tiles.setdefault(number, {})[name] = file[key].tobytes()
        out.rows = [FrameScore(**r | {'shares': tuple(r['shares'])}) for r in facts['rows']]
        out.counts, out.skipped = Counter(facts['counts']), facts['skipped']
        for stage, values in facts['latency'].items():
            out.latency[stage] = LatencyStats()
            for ms in values:
                out.latency[stage].add(ms)
        for i, (name, source, index, stamp_ns, value) in enumerate(facts['pictures']):
            picture = Picture(source, index, stamp_ns, value, tiles[f'tile{i}'])
            if name == 'sampled':
                out.sampled.append(picture)
            else:
                out.albums[name].offer(picture)
        return out

    def _sums(self) -> tuple[np.ndarray, ...]:
        return self.boundary, self.calibration, self.confidence, self.shares, self.stability

    def result(self) -> dict[str, Any]:
        """Return everything as plain numbers, percent from 0 to 100, None where nothing was measured."""
        names = self.labels.names
        iou, f1 = self.confusion.iou(), boundary_f1(self.boundary)
        scored = bool(self.counts['scored'])
        levels = np.arange(256)
        pixels, stability = int(self.confidence.sum()), self.stability[:len(names)]
        compared, kept = (int(n) for n in self.stability.sum(0))
        return {
            'miou': _number(self.confusion.miou()), 'accuracy': _number(self.confusion.accuracy()),
            'iou': {n: _number(v) for n, v in zip(names, iou)},
            'group_iou': {g: _number(group_iou(self.confusion.counts, self.labels.group_ids(g)))
                          for g in self.labels.groups},
            'boundary_f1': _number(_mean(f1)),
            'boundary_f1_per_class': {n: _number(v) for n, v in zip(names, f1)},
            'confusion': self.confusion.counts.tolist() if scored else None,
            'ece': _number(expected_calibration_error(self.calibration)),
            'calibration': calibration_bins(self.calibration) if scored else None,
            'consistency': 100 * kept / compared if compared else None,
            'consistency_per_class': {n: 100 * int(b) / int(a) if a else None
                                      for n, (a, b) in zip(names, stability)},
            'confidence': 100 * int((self.confidence * levels).sum()) / pixels / 255 if pixels else None,
            'confidence_per_class': {n: 100 * int((row * levels).sum()) / int(row.sum()) / 255
                                     if row.any() else None for n, row in zip(names, self.confidence)},
            'confidence_shares': confidence_shares(self.confidence.sum(0)) if pixels else None,
            'shares': {n: 100 * int(v) / max(1, int(self.shares.sum())) for n, v in zip(names, self.shares)},
            'latency_ms': {stage: stats.summary() for stage, stats in self.latency.items()},
            'counts': dict(self.counts), 'skipped': list(self.skipped.values()),
            'labels': self.labels.to_dict(),
            'frames': [vars(row) | {'shares': list(row.shares)} for row in self.rows],
        }

    def _skip(self, key: str, entry: dict[str, Any]) -> None:
        known = self.skipped.setdefault(key, entry | {'count': 0})
        known['count'] += entry['count']


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


def group_iou(counts: np.ndarray, ids: Sequence[int]) -> float:
    """IoU in percent of several classes taken as one, of a confusion matrix; NaN if none of them occurs."""
    rows = list(ids)
    hit = counts[np.ix_(rows, rows)].sum()
    union = counts[rows].sum() + counts[:, rows].sum() - hit
    return float(100 * hit / union) if union else math.nan


def confidence_shares(pixels: np.ndarray) -> list[float]:
    """Percent of pixels in equal bins of confidence; `pixels`: (256,) for each confidence from 0 to 255."""
    of = np.arange(256) * CONFIDENCE_BINS // 256
    total = np.bincount(of, pixels, CONFIDENCE_BINS)
    return (100 * total / total.sum()).tolist()


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


def _tiles(rgb: np.ndarray, labels: np.ndarray, truth: np.ndarray | None, confidence: np.ndarray | None,
           label_set: LabelSet) -> dict[str, bytes]:
    """
    Draw a frame as files, at most 480 pixels wide: frame, overlay, confidence, truth, error.

    Confidence: dark blue is 0, yellow is 1 (viridis). Error: red is wrong, grey is void.
    """
    small = min(1.0, 480 / labels.shape[1])
    size = (round(labels.shape[1] * small), max(1, round(labels.shape[0] * small)))
    palette = label_set.palette()[..., ::-1]

    def resized(ids: np.ndarray) -> np.ndarray:
        return cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)

    frame = cv2.resize(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR), size,
                       interpolation=cv2.INTER_AREA)
    tiles = {'frame': frame, 'overlay': cv2.addWeighted(frame, 0.5, palette[resized(labels)], 0.5, 0)}
    if confidence is not None:
        area = cv2.resize(np.ascontiguousarray(confidence), size, interpolation=cv2.INTER_AREA)
        tiles['confidence'] = cv2.applyColorMap(area, cv2.COLORMAP_VIRIDIS)
    if truth is not None:
        known = resized(truth)
        tiles['truth'] = cv2.addWeighted(frame, 0.5, palette[known], 0.5, 0)
        error = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) // 2, cv2.COLOR_GRAY2BGR)
        error[known != resized(labels)] = (40, 40, 230)
        error[known == label_set.ignore_id] = (128, 128, 128)
        tiles['error'] = error
    return {name: cv2.imencode('.jpg', tile)[1].tobytes() for name, tile in tiles.items()}


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
