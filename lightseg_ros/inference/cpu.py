# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The CPU engine: one frame after the other through a compiled network, with the same calls as the CUDA engine.

It also drives what OpenVINO reaches besides the CPU, such as Intel graphics.
"""
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging
import threading
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from . import backends, kernels
from .engine import GraphKey, NOT_FINITE, Result
from .smoothing import Smoother

log = logging.getLogger(__name__)

# Compiled networks that are kept, one per batch and frame size; the one unused for longest is evicted.
MAX_SIZES = 8


@dataclass
class Started:
    """A batch whose logits are computed; the frames, (N, H, W, 3), are kept for the overlay."""

    key: GraphKey
    frames: Tensor
    logits: Tensor
    stage_ms: dict[str, float]
    labels: Tensor | None = None


class CpuEngine:
    """
    Runs frames on a CPU by one of `backends`.

    `submit` runs the network, `labels` and `collect` do the rest: the calls are those of `CudaEngine`.
    Not thread-safe but for `prepare`: one thread calls it. `BackendError` where a network can't be compiled.
    """

    def __init__(self, backend: str, spec: backends.CompileSpec, palette: Tensor):
        self.backend, self.spec = backend, spec
        self.device_name = spec.target
        self.lookup, self.weight = kernels.overlay_lookup(palette, 0.5)
        self._models: OrderedDict[tuple[int, int, int], backends.CompiledModel] = OrderedDict()
        self._changing = threading.Lock()  # held while _models changes

    def set_alpha(self, palette: Tensor, alpha: float) -> None:
        """Blend overlays with another share of the colours."""
        self.lookup, self.weight = kernels.overlay_lookup(palette, alpha)

    def memory_mb(self) -> dict[str, float]:
        """Return the memory of devices other than the CPU, by what it is; there is none."""
        return {}

    @torch.inference_mode()
    def submit(self, frames: Sequence[np.ndarray], key: GraphKey,
               smoothers: Sequence[Smoother] = ()) -> Started:
        """Run the network on frames (H, W, 3) uint8 as they lie in memory; `key` says what they are."""
        model = self._model(key.batch, *key.size)
        marks = [perf_counter()]
        x = _stack(frames)
        small = kernels.resize(x, key.size)
        small = (small.flip(3) if key.reversed_channels else small).contiguous()
        marks.append(perf_counter())
        logits = model(small)
        # The sum of what is not finite is not finite either. By NumPy: 0.1 to 0.5 ms, no threads to wait for.
        with np.errstate(over='ignore', invalid='ignore'):
            finite = np.isfinite(logits.numpy().sum())
        if not finite:
            raise backends.BackendError(NOT_FINITE)
        if smoothers:
            logits = torch.cat([s.smoothed(logits[i:i + 1]) for i, s in enumerate(smoothers)])
        marks.append(perf_counter())
        stage_ms = {'preprocess': 1e3 * (marks[1] - marks[0]), 'network': 1e3 * (marks[2] - marks[1]),
                    'postprocess': 0.0}
        return Started(key, x, logits, stage_ms)

    @torch.inference_mode()
    def labels(self, started: Started) -> np.ndarray:
        """Compute the labels alone, in half the time of labels and confidence."""
        began = perf_counter()
        started.labels, _ = kernels.label(started.logits, (started.key.height, started.key.width),
                                          confidence=False)
        started.stage_ms['postprocess'] += 1e3 * (perf_counter() - began)
        return started.labels.numpy()

    @torch.inference_mode()
    def collect(self, started: Started) -> Result:
        """Compute what was asked for and does not exist yet."""
        began, key, overlay, confidence = perf_counter(), started.key, None, None
        labels = started.labels
        if labels is None or key.confidence:
            found, of_labels = kernels.label(started.logits, (key.height, key.width), key.confidence)
            labels = found if labels is None else labels
            confidence = of_labels.numpy() if key.confidence else None
        if key.overlay:
            overlay = kernels.blend(started.frames, labels, self.lookup, self.weight,
                                    key.reversed_channels).numpy()
        started.stage_ms['postprocess'] += 1e3 * (perf_counter() - began)
        return Result(labels.numpy(), overlay, confidence, started.stage_ms)

    def network_alone(self, frames: Tensor) -> Callable[[], None]:
        """Return a call that runs only the network, on frames (N, h, w, 3) uint8 of its input size."""
        model = self._model(frames.shape[0], frames.shape[1], frames.shape[2])

        def alone() -> None:
            model(frames)
        return alone

    @torch.inference_mode()
    def prepare(self, size: tuple[int, int]) -> None:
        """Compile for frames of (height, width), and run once; another thread may run frames meanwhile."""
        model = self._built(1, *size)
        model(torch.zeros((1, *size, 3), dtype=torch.uint8))
        self._keep((1, *size), model)

    def is_prepared(self, size: tuple[int, int]) -> bool:
        """Return whether single frames of (height, width) run without being compiled for."""
        return (1, *size) in self._models

    def is_kept(self, size: tuple[int, int]) -> bool:
        """Return whether no conversion is needed for single frames of (height, width)."""
        return backends.is_kept(self.backend, self.spec, 1, *size)

    def _model(self, batch: int, height: int, width: int) -> backends.CompiledModel:
        """Return the network compiled for a batch and size; it is compiled when it is first needed."""
        size = (batch, height, width)
        model = self._models.get(size) or self._built(*size)
        self._keep(size, model)
        return model

    def _built(self, batch: int, height: int, width: int) -> backends.CompiledModel:
        began = perf_counter()
        model = backends.build(self.backend, self.spec, batch, height, width)
        log.info('%s compiled for %d x %dx%d in %.1f s', self.backend, batch, width, height,
                 perf_counter() - began)
        return model

    def _keep(self, size: tuple[int, int, int], model: backends.CompiledModel) -> None:
        """Keep the model that is used now, and evict the one that was unused for longest."""
        with self._changing:
            self._models[size] = model
            self._models.move_to_end(size)
            if len(self._models) > MAX_SIZES:
                (batch, height, width), _ = self._models.popitem(last=False)
                log.info('%s for %d x %dx%d is evicted', self.backend, batch, width, height)


def _stack(frames: Sequence[np.ndarray]) -> Tensor:
    """Stack frames to (N, H, W, 3); a single frame that torch can take is not copied."""
    if len(frames) == 1:
        frame = frames[0]
        # torch takes no read-only memory (a bag's message) and no negative strides.
        if not frame.flags.writeable or min(frame.strides) < 0:
            frame = frame.copy()
        return torch.from_numpy(frame)[None]
    return torch.from_numpy(np.stack(frames))
