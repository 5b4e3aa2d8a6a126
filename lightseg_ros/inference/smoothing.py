# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Smoothing over time: the average of one camera's logits over its frames, so that labels flicker less."""
from collections.abc import Hashable

import torch
from torch import Tensor

# Frames that lie further apart show another scene.
MAX_GAP_NS = 500_000_000


class Smoother:
    """
    Averages the logits of one camera's frames, each at the network's size; nothing follows the motion.

    The average until the last frame counts `weight`, 0 to below 1, and the new frame the rest. It starts anew
    with another network, size or view, and with a stamp that is earlier than the last one or more than half a
    second later. `mean`: the average as the engine keeps it, None before the first frame.
    """

    def __init__(self, weight: float):
        if not 0 <= weight < 1:
            raise ValueError(f'smoothing is {weight:g}; expected 0 or more, and less than 1')
        self.weight = weight
        self.mean: Tensor | None = None
        self._stamp_ns = 0
        self._view: Hashable = None
        self._source: Hashable = None

    def forget(self) -> None:
        """Start anew with the next frame."""
        self.mean = None

    def next(self, stamp_ns: int, view: Hashable = None) -> 'Smoother':
        """Announce the next frame, by its stamp and by what part of the camera's image it shows."""
        if not 0 <= stamp_ns - self._stamp_ns <= MAX_GAP_NS or view != self._view:
            self.forget()
        self._stamp_ns, self._view = stamp_ns, view
        return self

    def comes_from(self, source: Hashable) -> None:
        """Say which network sees the next frame, and at which sizes."""
        if source != self._source:
            self.forget()
        self._source = source

    def smoothed(self, logits: Tensor) -> Tensor:
        """Return the average with a frame's logits, (1, K, h, w), which are not kept."""
        # A copy: the memory of the logits belongs to the backend, which uses it again.
        self.mean = logits.clone() if self.mean is None else torch.lerp(logits, self.mean, self.weight)
        return self.mean
