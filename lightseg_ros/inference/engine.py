# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The calls that the CPU's and CUDA's engine share, what they are asked for and what they return."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from .smoothing import Smoother

NOT_FINITE = ('the network computes values that are not finite: its weights do not fit its precision, or are '
              'not those of a trained network')


@dataclass(frozen=True)
class GraphKey:
    """
    What a frame needs: its size and the network's (height, width), and which images are wanted of it.

    CUDA captures one graph per key, hence its name.
    """

    batch: int
    height: int
    width: int
    size: tuple[int, int]
    reversed_channels: bool
    overlay: bool
    confidence: bool
    smoothing: bool = False

    def __str__(self) -> str:
        wanted = ''.join(f', {k}' for k in ('overlay', 'confidence', 'smoothing') if getattr(self, k))
        return f'{self.batch} x {self.width}x{self.height}{wanted}'


class Result(NamedTuple):
    """
    What became of a batch, uint8: labels (N, H, W), overlay (N, H, W, 3) RGB and confidence (N, H, W).

    Overlay and confidence are None where they were not wanted. `stage_ms`: milliseconds of each stage.
    """

    labels: np.ndarray
    overlay: np.ndarray | None
    confidence: np.ndarray | None
    stage_ms: dict[str, float]


class Engine(Protocol):
    """Runs a network on frames of any size; one thread calls it. `device_name`: as its maker calls it."""

    device_name: str

    def submit(self, frames: Sequence[np.ndarray], key: GraphKey, smoothers: Sequence[Smoother]) -> Any:
        """
        Start frames (H, W, 3) uint8 as they lie in memory; returns what `collect` takes.

        `smoothers`: one for each frame, if `key.smoothing`.
        """

    def labels(self, started: Any) -> np.ndarray:
        """Wait for the labels of what `submit` started; overlay and confidence may take longer."""

    def collect(self, started: Any) -> Result:
        """Wait for all of what `submit` started."""

    def network_alone(self, frames: Tensor) -> Callable[[], None]:
        """Return a call that runs only the network, on frames (N, h, w, 3) uint8 of its size, and waits."""

    def set_alpha(self, palette: Tensor, alpha: float) -> None:
        """Blend overlays with another share of the classes' colours, (256, 3) uint8 RGB."""

    def memory_mb(self) -> dict[str, float]:
        """Return the memory that the engine holds on a device of its own, by what it is."""
