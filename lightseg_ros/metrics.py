# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scores and latencies: one definition for node, replay, bench and trainer."""
from collections import deque

import numpy as np


class ConfusionMatrix:
    """
    Counts of (truth, prediction) pixel pairs; percentages are 0-100.

    `counts`: (K, K + 1) int64, row = truth, column = prediction, last column = predicted "unlabeled".
    Pixels whose truth is `ignore_id` are not counted. IoU is TP / (TP + FP + FN). A class that occurs in the
    truth or the prediction and is never hit counts as 0; one that occurs in neither is NaN and is left out of
    the mean.
    """

    def __init__(self, num_classes: int, ignore_id: int = 255):
        self.num_classes = num_classes
        self.ignore_id = ignore_id
        self.counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Add a pair of label images, uint8, same shape; `ValueError` for ids that are no class."""
        if truth.shape != prediction.shape:
            raise ValueError(f'truth is {truth.shape}, prediction {prediction.shape}; expected one shape')
        k = self.num_classes
        valid = truth != self.ignore_id
        t, p = truth[valid].astype(np.int64), prediction[valid].astype(np.int64)
        p[p == self.ignore_id] = k
        for what, ids, limit in (('truth', t, k - 1), ('prediction', p, k)):
            if ids.size and (ids.max() > limit or ids.min() < 0):
                raise ValueError(f'{what} holds id {ids.max()}; expected 0 to {k - 1}, or '
                                 f'{self.ignore_id} for unlabeled')
        self.counts += np.bincount(t * (k + 1) + p, minlength=k * (k + 1)).reshape(k, k + 1)

    def merge(self, other: 'ConfusionMatrix') -> None:
        """Add another matrix's counts (exact, in any order)."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(f'{other.num_classes} classes do not fit {self.num_classes}')
        self.counts += other.counts

    def iou(self) -> np.ndarray:
        """IoU per class in percent, (K,) float64, NaN for a class in neither truth nor prediction."""
        hit = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(1) + self.counts[:, :-1].sum(0) - hit
        return 100 * np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)

    def miou(self) -> float:
        """Mean IoU in percent; NaN if nothing was counted."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float('nan')

    def accuracy(self) -> float:
        """Pixel accuracy in percent; NaN if nothing was counted."""
        total = self.counts.sum()
        return float(100 * np.trace(self.counts) / total) if total else float('nan')


class LatencyStats:
    """
    Milliseconds of the last `capacity` frames (None: of all frames), and the count of all frames.

    No outlier is removed before the maximum is taken.
    """

    def __init__(self, capacity: int | None = None):
        self._values: deque[float] = deque(maxlen=capacity)
        self.count = 0

    def add(self, ms: float) -> None:
        self._values.append(ms)
        self.count += 1

    def values(self) -> list[float]:
        """Return the kept frames' milliseconds, in their order."""
        return list(self._values)

    def merge(self, other: 'LatencyStats') -> None:
        """Add another's frames."""
        self._values.extend(other._values)
        self.count += other.count

    def summary(self) -> dict[str, float]:
        """`count`, and `mean`, `p50`, `p95`, `p99`, `max` in ms (0 where there is no frame yet)."""
        values = np.fromiter(self._values, np.float64)
        if not values.size:
            return {'count': 0, 'mean': 0.0, 'p50': 0.0, 'p95': 0.0, 'p99': 0.0, 'max': 0.0}
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        return {'count': self.count, 'mean': float(values.mean()), 'p50': float(p50), 'p95': float(p95),
                'p99': float(p99), 'max': float(values.max())}
