# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The CUDA engine: what happens to a frame on the GPU is one captured graph, transfers run beside it.

`Frame` is the function that is captured; the engine copies frames into pinned memory, uploads, replays and
downloads on three streams, so that one frame may be uploaded while the one before is computed.
"""
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import functools
import logging
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .backends import compile_network, DeployModel
from .kernels import blend, brush, label, resize

log = logging.getLogger(__name__)

# Kinds of frames whose graphs are kept, or four for each size of a batch that has come, where that is more; a
# new one takes the place of the one used longest ago.
MAX_GRAPHS = 8


@dataclass(frozen=True)
class GraphKey:
    """What a graph is captured for: frames of one size, the network's size, and what is wanted of them."""

    batch: int
    height: int
    width: int
    size: tuple[int, int]
    reversed_channels: bool
    overlay: bool
    confidence: bool

    def __str__(self) -> str:
        wanted = ''.join(f', {k}' for k in ('overlay', 'confidence') if getattr(self, k))
        return f'{self.batch} x {self.width}x{self.height}{wanted}'


class Images(NamedTuple):
    """Labels (N, H, W), overlay (N, H, W, 3) RGB and confidence (N, H, W), uint8; None where not wanted."""

    labels: Tensor
    overlay: Tensor | None
    confidence: Tensor | None

    @staticmethod
    def empty(kind: GraphKey, device: torch.device | str, pinned: bool = False) -> 'Images':
        def image(*more: int) -> Tensor:
            return torch.empty((kind.batch, kind.height, kind.width, *more), dtype=torch.uint8, device=device,
                               pin_memory=pinned)
        return Images(image(), image(3) if kind.overlay else None, image() if kind.confidence else None)


class Frame:
    """
    The whole of a frame on its device: frames (N, H, W, 3) uint8 -> `Images`, written where they are wanted.

    `core`: in the network's type, on the device. With `fused`, Triton's kernels do what surrounds the
    network, else their twins in torch; with `compiled`, torch's compiler makes the network.
    `paint` and `keep` hold what the overlay is blended with: change them in place.
    """

    def __init__(self, core: DeployModel, palette: Tensor, *, fused: bool, compiled: bool = False):
        self.core = core
        self.fused = fused
        self.compiled: dict[tuple[int, ...], Callable[[Tensor], Tensor]] | None = {} if compiled else None
        self.paint, self.keep = brush(palette, 0.5)

    def __call__(self, frames: Tensor, kind: GraphKey, out: Images) -> None:
        core, reversed_channels = self.core, kind.reversed_channels
        normalise = kernels.fused_normalise if self.fused else kernels.normalise
        small = resize(frames, kind.size).contiguous()
        logits = self.logits(normalise(small, core.mean, core.std, core.dtype, reversed_channels))
        if self.fused:
            kernels.fused_finish(logits, frames, self.paint, self.keep, out.labels, out.overlay,
                                 out.confidence, reversed_channels)
            return
        labels, confidences = label(logits, (kind.height, kind.width), kind.confidence)
        out.labels.copy_(labels)
        if out.confidence is not None:
            out.confidence.copy_(confidences)
        if out.overlay is not None:
            out.overlay.copy_(blend(frames, labels, self.paint, self.keep, reversed_channels))

    def logits(self, x: Tensor) -> Tensor:
        """Run the network: (N, 3, h, w), normalised -> logits."""
        if self.compiled is None:
            return self.core.logits(x)
        if x.shape not in self.compiled:
            self.compiled[x.shape] = compile_network(self.core, x.shape)
        return self.compiled[x.shape](x)


class FrameBuffers:
    """A frame's static memory on both sides, its graph, and the events that order its stages."""

    def __init__(self, kind: GraphKey, device: torch.device):
        self.kind = kind
        shape = (kind.batch, kind.height, kind.width, 3)
        self.host_in = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.device_in = torch.empty(shape, dtype=torch.uint8, device=device)
        self.device_out = Images.empty(kind, device)
        self.host_out = Images.empty(kind, 'cpu', pinned=True)
        self.run: Callable[[], None]
        self.began, self.uploaded, self.computed, self.downloaded = (
            torch.cuda.Event(enable_timing=True) for _ in range(4))
        self.busy = False


class Engine:
    """
    Runs frames on a GPU; `graph` chooses between captured graphs and the same function called eagerly.

    `submit` starts a frame and returns at once; `collect` waits for it. Two may be under way at a time. Not
    thread-safe: one thread calls it.
    """

    def __init__(self, core: DeployModel, palette: Tensor, device: torch.device, *, graph: bool = True,
                 fused: bool = True, compiled: bool = False):
        self.device = device
        self.graph = graph
        self.frame = Frame(core, palette.to(device), fused=fused and kernels.available, compiled=compiled)
        self._upload, self._compute, self._download = (torch.cuda.Stream(device) for _ in range(3))
        self._pool = torch.cuda.graph_pool_handle()
        self._slots: OrderedDict[GraphKey, list[FrameBuffers]] = OrderedDict()
        # What was made on the default stream is there before another one uses it.
        torch.cuda.synchronize(device)

    def set_alpha(self, palette: Tensor, alpha: float) -> None:
        """Blend overlays with another share of the colours; graphs stay as they are."""
        with torch.cuda.stream(self._compute):
            for old, new in zip((self.frame.paint, self.frame.keep), brush(palette, alpha)):
                old.copy_(new)

    def submit(self, frames: Sequence[np.ndarray], kind: GraphKey) -> FrameBuffers:
        """Start frames (H, W, 3) uint8 as they lie in memory; `kind` says what they are."""
        slot = self._free(kind)
        staged = slot.host_in.numpy()
        for i, frame in enumerate(frames):
            np.copyto(staged[i], frame)
        slot.busy = True
        with torch.cuda.stream(self._upload):
            slot.began.record()
            slot.device_in.copy_(slot.host_in, non_blocking=True)
            slot.uploaded.record()
        self._compute.wait_event(slot.uploaded)
        with torch.cuda.stream(self._compute):
            slot.run()
            slot.computed.record()
        self._download.wait_event(slot.computed)
        with torch.cuda.stream(self._download):
            for source, target in zip(slot.device_out, slot.host_out):
                if source is not None and target is not None:
                    target.copy_(source, non_blocking=True)
            slot.downloaded.record()
        return slot

    def collect(self, slot: FrameBuffers) -> tuple[list[np.ndarray | None], dict[str, float]]:
        """Wait for a slot: labels, overlay, confidence (None where not wanted), and ms of its stages."""
        slot.downloaded.synchronize()
        slot.busy = False
        stage_ms = {'upload': slot.began.elapsed_time(slot.uploaded),
                    'device': slot.uploaded.elapsed_time(slot.computed),
                    'download': slot.computed.elapsed_time(slot.downloaded)}
        return [None if t is None else t.numpy().copy() for t in slot.host_out], stage_ms

    def network_alone(self, frames: Tensor) -> Callable[[], None]:
        """Return a call that runs the network alone on frames (N, h, w, 3) uint8 of its size, and waits."""
        core = self.frame.core
        with torch.inference_mode():
            x = kernels.normalise(frames.to(self.device), core.mean, core.std, core.dtype)
        run = self._captured(lambda: self.frame.logits(x))
        # A replay does not keep its input alive.
        return functools.partial(self._alone, run, x)

    def _alone(self, run: Callable[[], None], x: Tensor) -> None:
        with torch.cuda.stream(self._compute):
            run()
        self._compute.synchronize()

    def _free(self, kind: GraphKey) -> FrameBuffers:
        """Return a slot of that kind that is not under way; its graph is captured when it is first needed."""
        slots = self._slots.setdefault(kind, [])
        self._slots.move_to_end(kind)
        for slot in slots:
            if not slot.busy:
                return slot
        assert len(slots) < 2, 'collect a frame before submitting a third'
        began = perf_counter()
        slot = FrameBuffers(kind, self.device)
        slot.device_in.zero_()
        slot.run = self._captured(functools.partial(self.frame, slot.device_in, kind, slot.device_out))
        log.info('%s for %s made in %.1f s', 'graph' if self.graph else 'buffers', kind,
                 perf_counter() - began)
        slots.append(slot)
        while len(self._slots) > max(MAX_GRAPHS, 4 * max(k.batch for k in self._slots)):
            oldest = next(k for k, v in self._slots.items() if not any(s.busy for s in v))
            # Its memory may only be used anew when nothing on the GPU can touch it any more.
            torch.cuda.synchronize(self.device)
            del self._slots[oldest]
            log.info('what was made for %s is let go', oldest)
        return slot

    def _captured(self, run: Callable[[], Any]) -> Callable[[], None]:
        """Warm a call up, and capture it as a graph unless the engine is eager; returns its replay."""
        def eager() -> None:
            # float32 means float32; benchmark: cuDNN times its algorithms for each convolution once.
            with torch.inference_mode(), torch.backends.cudnn.flags(
                    enabled=True, benchmark=True, allow_tf32=False):
                run()

        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(self._compute):
            for _ in range(3):
                eager()
        torch.cuda.synchronize(self.device)
        if not self.graph:
            return eager
        graph = torch.cuda.CUDAGraph()
        # One pool for all: graphs run one at a time, on one stream, and leave their results outside of it.
        # thread_local: what other threads do with CUDA meanwhile does not break the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._compute,
                              capture_error_mode='thread_local'):
            eager()
        return graph.replay
