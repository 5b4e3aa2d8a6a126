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
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from . import backends, kernels
from .engine import GraphKey, Result

log = logging.getLogger(__name__)

# Compiled networks that are kept, one per batch and frame size; the one unused for longest is evicted.
MAX_SIZES = 8


@dataclass
class Labelled:
    """A batch whose labels exist; frames (N, H, W, 3) and logits are kept for overlay and confidence."""

    key: GraphKey
    frames: Tensor
    logits: Tensor
    labels: Tensor
    stage_ms: dict[str, float]


class CpuEngine:
    """
    Runs frames on a CPU by one of `backends`.

    `submit` computes the labels of a batch, `collect` what else was asked for: the calls are `CudaEngine`'s.
    Not thread-safe: one thread calls it. `BackendError` where a network can't be compiled.
    """

    def __init__(self, backend: str, spec: backends.CompileSpec, palette: Tensor):
        self.backend, self.spec = backend, spec
        self.device_name = spec.target
        self.lookup, self.weight = kernels.overlay_lookup(palette, 0.5)
        self._models: OrderedDict[tuple[int, int, int], backends.CompiledModel] = OrderedDict()

    def set_alpha(self, palette: Tensor, alpha: float) -> None:
        """Blend overlays with another share of the colours."""
        self.lookup, self.weight = kernels.overlay_lookup(palette, alpha)

    def memory_mb(self) -> dict[str, float]:
        """Return the memory of devices other than the CPU, by what it is; there is none."""
        return {}

    @torch.inference_mode()
    def submit(self, frames: Sequence[np.ndarray], key: GraphKey) -> Labelled:
        """Label frames (H, W, 3) uint8 as they lie in memory; `key` says what they are."""
        model = self._model(key.batch, *key.size)
        marks = [perf_counter()]
        x = _stack(frames)
        small = kernels.resize(x, key.size)
        small = (small.flip(3) if key.reversed_channels else small).contiguous()
        marks.append(perf_counter())
        logits = model(small)
        marks.append(perf_counter())
        labels, _ = kernels.label(logits, (key.height, key.width), confidence=False)
        marks.append(perf_counter())
        stage_ms = {stage: 1e3 * (b - a) for stage, a, b in
                    zip(('preprocess', 'network', 'postprocess'), marks, marks[1:])}
        return Labelled(key, x, logits, labels, stage_ms)

    def labels(self, started: Labelled) -> np.ndarray:
        """Return the labels that `submit` computed."""
        return started.labels.numpy()

    @torch.inference_mode()
    def collect(self, started: Labelled) -> Result:
        """Compute overlay and confidence, if they were asked for; returns them with the labels."""
        began, key, overlay, confidence = perf_counter(), started.key, None, None
        if key.overlay:
            overlay = kernels.blend(started.frames, started.labels, self.lookup, self.weight,
                                    key.reversed_channels).numpy()
        if key.confidence:
            confidence = kernels.label(started.logits, (key.height, key.width), confidence=True)[1].numpy()
        stage_ms = dict(started.stage_ms)
        stage_ms['postprocess'] += 1e3 * (perf_counter() - began)
        return Result(started.labels.numpy(), overlay, confidence, stage_ms)

    def network_alone(self, frames: Tensor) -> Callable[[], None]:
        """Return a call that runs only the network, on frames (N, h, w, 3) uint8 of its input size."""
        model = self._model(frames.shape[0], frames.shape[1], frames.shape[2])

        def alone() -> None:
            model(frames)
        return alone

    def _model(self, batch: int, height: int, width: int) -> backends.CompiledModel:
        """Return the network compiled for a batch and size; it is compiled when it is first needed."""
        size = (batch, height, width)
        if size in self._models:
            self._models.move_to_end(size)
            return self._models[size]
        began = perf_counter()
        model = backends.build(self.backend, self.spec, *size)
        log.info('%s compiled for %d x %dx%d in %.1f s', self.backend, batch, width, height,
                 perf_counter() - began)
        self._models[size] = model
        if len(self._models) > MAX_SIZES:
            (batch, height, width), _ = self._models.popitem(last=False)
            log.info('%s for %d x %dx%d is evicted', self.backend, batch, width, height)
        return model


def _stack(frames: Sequence[np.ndarray]) -> Tensor:
    """Stack frames to (N, H, W, 3); a single frame that torch can take is not copied."""
    if len(frames) == 1:
        frame = frames[0]
        # torch takes no read-only memory (a bag's message) and no negative strides.
        if not frame.flags.writeable or min(frame.strides) < 0:
            frame = frame.copy()
        return torch.from_numpy(frame)[None]
    return torch.from_numpy(np.stack(frames))
