# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The CUDA engine: one captured graph does all of a frame's work on the GPU, transfers run beside it.

`FramePipeline` is the function that is captured. The engine copies frames into pinned memory, uploads,
replays and downloads on three streams, so one frame can be uploaded while the previous one is computed.
"""
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
import functools
import logging
import threading
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn, Tensor

from .. import cuda_graphs
from . import fusing, kernels, layer_kernels
from .backends import BackendError, DeployModel
from .engine import GraphKey, NOT_FINITE, Result
from .fused import FusedConv
from .kernels import blend, label, overlay_lookup, resize
from .smoothing import Smoother

log = logging.getLogger(__name__)

# Frame sizes whose graphs are kept, however many of each; the size that was unused for longest is evicted.
MAX_SIZES = 8
# A network and the shape of its input, (N, 3, h, w) -> what computes its logits there.
Compiler = Callable[[DeployModel, tuple[int, ...]], Callable[[Tensor], Tensor]]


class Images(NamedTuple):
    """Labels (N, H, W), overlay (N, H, W, 3) RGB and confidence (N, H, W), uint8; None where not wanted."""

    labels: Tensor
    overlay: Tensor | None
    confidence: Tensor | None

    @staticmethod
    def empty(key: GraphKey, device: torch.device | str, pinned: bool = False) -> 'Images':
        def image(*more: int) -> Tensor:
            return torch.empty((key.batch, key.height, key.width, *more), dtype=torch.uint8, device=device,
                               pin_memory=pinned)
        return Images(image(), image(3) if key.overlay else None, image() if key.confidence else None)


class Past:
    """
    The average of earlier frames' logits, for each frame of a batch, in memory that a graph can hold.

    `mean`: (N, K, h, w) in the network's precision, and as it leaves them; made by the first call.
    """

    def __init__(self, batch: int, dtype: torch.dtype, device: torch.device):
        # 0 where there is no earlier frame.
        self.host_weight = torch.empty((batch, 1, 1, 1), dtype=dtype, pin_memory=True)
        self.weight = torch.zeros((batch, 1, 1, 1), dtype=dtype, device=device)
        self.mean: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the average with new logits; it stays in `mean`."""
        if self.mean is None:
            self.mean = torch.zeros_like(logits)
        return torch.lerp(logits, self.mean, self.weight, out=self.mean)

    @torch.inference_mode()
    def load(self, smoothers: Sequence[Smoother]) -> None:
        """Take over the averages of cameras, as far as they have one."""
        assert self.mean is not None
        for mean, smoother in zip(self.mean, smoothers):
            # Zeros, because what is left there may be infinite, and no weight makes that 0.
            mean.zero_() if smoother.mean is None else mean.copy_(smoother.mean)

    @torch.inference_mode()
    def store(self, smoothers: Sequence[Smoother]) -> None:
        """Give the averages back to the cameras."""
        assert self.mean is not None
        for mean, smoother in zip(self.mean, smoothers):
            smoother.mean = mean.clone()


class FramePipeline:
    """
    All work on a frame on its device: frames (N, H, W, 3) uint8 -> `Images`, written in place.

    `order`: (3,) int32, where red, green and blue lie in the frames.

    `model`: in the network's precision, on the device; it is changed in place. With `fused`, Triton kernels
    do what comes before and after the network, and in half precision its convolutions with all that
    surrounds them; else their twins in torch do. With a `compiler`, what it makes runs the network.
    `lookup` and `weight` are what the overlay is blended with: change them in place. `past`: what logits are
    averaged with, where `key.smoothing`.
    """

    def __init__(self, model: DeployModel, palette: Tensor, *, fused: bool, compiler: Compiler | None = None):
        if fused and compiler is None and model.dtype != torch.float32 and _tensor_cores(palette.device):
            model.network = fusing.fuse(model.network)
        # What labels the pixels finds the sub-pixels where the last convolution has left them.
        self.factor = fusing.leave_sub_pixels(model.network) if fused and compiler is None else 1
        self.model = model
        self.fused = fused
        self.compiler = compiler
        self.compiled: dict[tuple[int, ...], Callable[[Tensor], Tensor]] = {}
        self.lookup, self.weight = overlay_lookup(palette, 0.5)

    def __call__(self, frames: Tensor, order: Tensor, key: GraphKey, out: Images,
                 past: Past | None = None) -> None:
        model = self.model
        small = resize(frames, key.size).contiguous()
        if self.fused:
            x = kernels.fused_normalise(small, model.mean, model.std, model.dtype, order)
            logits = self.logits(x)
            kernels.fused_finish(past(logits) if past else logits, frames, self.lookup, self.weight, order,
                                 out.labels, out.overlay, out.confidence, self.factor,
                                 key.size if self.factor > 1 else None)
            return
        small = small.index_select(3, order)
        logits = self.logits(kernels.normalise(small, model.mean, model.std, model.dtype))
        labels, confidence = label(past(logits) if past else logits, (key.height, key.width), key.confidence)
        out.labels.copy_(labels)
        if out.confidence is not None:
            out.confidence.copy_(confidence)
        if out.overlay is not None:
            out.overlay.copy_(blend(frames.index_select(3, order), labels, self.lookup, self.weight))

    def logits(self, x: Tensor) -> Tensor:
        """Run the network: (N, 3, h, w), normalised -> logits."""
        if self.compiler is None:
            return self.model.logits(x)
        if x.shape not in self.compiled:
            self.compiled[x.shape] = self.compiler(self.model, x.shape)
        return self.compiled[x.shape](x)


class FrameBuffers:
    """The static memory of a batch on host and device, its graph, and the events that order its stages."""

    def __init__(self, key: GraphKey, device: torch.device, integrated: bool, dtype: torch.dtype):
        self.key = key
        shape = (key.batch, key.height, key.width, 3)
        self.host_in = None if integrated else torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.device_in = torch.empty(shape, dtype=torch.uint8, device=device)
        # Their channel order is data: one graph serves cameras of both orders.
        self.host_order = torch.tensor(kernels.channel_order(False), dtype=torch.int32, pin_memory=True)
        self.order = self.host_order.to(device)
        self.past = Past(key.batch, dtype, device) if key.smoothing else None
        self.device_out = Images.empty(key, device)
        self.host_out = Images.empty(key, 'cpu', pinned=not integrated)
        self.run: Callable[[], None]
        self.captured = False  # whether that is the replay of a graph
        self.began, self.uploaded, self.computed, self.downloaded = (
            torch.cuda.Event(enable_timing=True, blocking=integrated) for _ in range(4))
        self.serves: Started | None = None  # the batch that is in flight


class Started:
    """A batch in flight, or its result, where its buffers were needed before it was collected."""

    def __init__(self, buffers: FrameBuffers):
        self.buffers = buffers
        self.result: Result | None = None


def _finite(labels: np.ndarray) -> np.ndarray:
    """Return labels, unless some are 255: those of logits that are not finite. 16 µs a megapixel."""
    if labels.max() == 255:
        raise BackendError(NOT_FINITE)
    return labels


class _CudnnFlags:
    """
    Lets cuDNN time its algorithms for each convolution once, and float32 mean float32.

    These flags are those of the process. Engines may run eagerly in several threads, so the first one sets
    them and the last one puts back what was there.
    """

    def __init__(self) -> None:
        self._change = threading.Lock()
        self._users = 0

    @staticmethod
    def _new() -> AbstractContextManager[None]:
        return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)

    def __enter__(self) -> None:
        with self._change:
            if not self._users:
                self._flags = self._new()
                self._flags.__enter__()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._users -= 1
            if not self._users:
                self._flags.__exit__(None, None, None)


_cudnn_flags = _CudnnFlags()


def _tensor_cores(device: torch.device) -> bool:
    """Whether Triton reaches the tensor cores: on GPUs before Ampere (8.0) its products spill registers."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _triton_works(device: torch.device) -> bool:
    """Run the Triton kernels once: they are compiled here, which needs a C compiler and Python's headers."""
    try:
        frames = torch.zeros((1, 16, 16, 3), dtype=torch.uint8, device=device)
        order = torch.tensor(kernels.channel_order(False), dtype=torch.int32, device=device)
        lookup = overlay_lookup(torch.zeros((256, 3), dtype=torch.uint8, device=device), 0.5)
        ones = torch.ones((1, 3, 1, 1), device=device)
        kernels.fused_normalise(frames, ones, ones, torch.float16, order)
        labels, overlay, confidence = frames[..., 0].clone(), frames.clone(), frames[..., 0].clone()
        logits = torch.zeros((1, 2, 8, 8), dtype=torch.float16, device=device)
        kernels.fused_finish(logits, frames, *lookup, order, labels, overlay, confidence)
        if _tensor_cores(device):
            x = torch.zeros((1, 16, 8, 8), dtype=torch.float16, device=device)
            sums: list[Tensor] = []
            for groups in 1, 16:
                conv = nn.Conv2d(16, 16, 3, padding=1, groups=groups).to(device, torch.float16)
                FusedConv(conv).run(x, sums=sums)
            point = FusedConv(nn.Conv2d(16, 16, 1).to(device, torch.float16))
            layer_kernels.gate(x, [point], sums[:1])
        cuda_graphs.synchronize(device)
    except torch.OutOfMemoryError:
        raise  # it says nothing about the compiler
    except Exception as e:  # a compiler, a linker, a driver: each has errors of its own
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        log.warning("Triton can't compile its kernels (%s): install gcc and python3-dev. Until then torch's "
                    'own operations take their place, which is slower', reason)
        return False
    return True


def _on_device(method: Callable[..., Any]) -> Callable[..., Any]:
    """
    Let a method of the engine run with its GPU as the current one, which is a property of each thread.

    Pinned memory, events and captures open a context on the current GPU; on one that is not in use it would
    take hundreds of MB.
    """
    @functools.wraps(method)
    def run(self: 'CudaEngine', *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device(self.device):
            return method(self, *args, **kwargs)
    return run


class CudaEngine:
    """
    Runs frames on a GPU; `graph` chooses between captured graphs and the same function called eagerly.

    `submit` starts a batch and returns at once; `collect` waits for it. Two batches of one key are in flight
    at most: a third one waits for the first. Not thread-safe: one thread calls it.
    """

    def __init__(self, model: DeployModel, palette: Tensor, device: torch.device, *, graph: bool = True,
                 fused: bool = True, compiler: Compiler | None = None):
        self.device = device
        self.graph = graph
        self._set_up(model, palette, fused, compiler)

    @_on_device
    def _set_up(self, model: DeployModel, palette: Tensor, fused: bool,
                compiler: Compiler | None) -> None:
        device = self.device
        self.device_name = torch.cuda.get_device_name(device)
        # A Jetson's GPU shares the host's memory, where a pinned copy is one copy more, and its few cores are
        # needed for other things than to wait in a loop.
        self._integrated = bool(getattr(torch.cuda.get_device_properties(device), 'is_integrated', False))
        fused = fused and kernels.available and _triton_works(device)
        self.pipeline = FramePipeline(model, palette.to(device), fused=fused, compiler=compiler)
        self._upload, self._compute, self._download = (torch.cuda.Stream(device) for _ in range(3))
        self._pool = torch.cuda.graph_pool_handle()
        self._buffers: OrderedDict[GraphKey, list[FrameBuffers]] = OrderedDict()
        # Wait for what was made on the default stream before another stream uses it.
        cuda_graphs.synchronize(device)

    @_on_device
    def set_alpha(self, palette: Tensor, alpha: float) -> None:
        """Blend overlays with another share of the colours; captured graphs stay valid."""
        with torch.cuda.stream(self._compute):
            for old, new in zip((self.pipeline.lookup, self.pipeline.weight), overlay_lookup(palette, alpha)):
                old.copy_(new)

    def memory_mb(self) -> dict[str, float]:
        """Return the MB that torch has allocated and reserved on the GPU."""
        return {'device memory (MB)': torch.cuda.memory_allocated(self.device) / 1e6,
                'device memory reserved (MB)': torch.cuda.memory_reserved(self.device) / 1e6}

    @_on_device
    def submit(self, frames: Sequence[np.ndarray], key: GraphKey,
               smoothers: Sequence[Smoother] = ()) -> Started:
        """Start frames (H, W, 3) uint8 as they lie in memory; `key` says what they are."""
        buffers = self._free(replace(key, reversed_channels=False))
        buffers.host_order.copy_(torch.tensor(kernels.channel_order(key.reversed_channels)))
        if buffers.host_in is not None:
            staged = buffers.host_in.numpy()
            for i, frame in enumerate(frames):
                np.copyto(staged[i], frame)
        past = buffers.past
        if past:
            past.host_weight.copy_(torch.tensor(
                [0.0 if s.mean is None else s.weight for s in smoothers]).view(-1, 1, 1, 1))
        started = buffers.serves = Started(buffers)
        try:
            with torch.cuda.stream(self._upload):
                buffers.began.record()
                if buffers.host_in is not None:
                    buffers.device_in.copy_(buffers.host_in, non_blocking=True)
                else:
                    for image, frame in zip(buffers.device_in, frames):
                        image.copy_(torch.from_numpy(np.require(frame, requirements=['C', 'W'])))
                buffers.order.copy_(buffers.host_order, non_blocking=True)
                if past:
                    past.weight.copy_(past.host_weight, non_blocking=True)
                buffers.uploaded.record()
            self._compute.wait_event(buffers.uploaded)
            with torch.cuda.stream(self._compute):
                if past:
                    past.load(smoothers)
                buffers.run()
                if past:
                    past.store(smoothers)
                buffers.computed.record()
            self._download.wait_event(buffers.computed)
            with torch.cuda.stream(self._download):
                for source, target in zip(buffers.device_out, buffers.host_out):
                    if source is not None and target is not None:
                        target.copy_(source, non_blocking=True)
                buffers.downloaded.record()
        except BaseException:
            # Nobody will collect it: without this, two failures would leave no free buffers.
            buffers.serves = None
            raise
        return started

    def labels(self, started: Started) -> np.ndarray:
        """Wait for a batch that `submit` started; its images arrive together. Errors as in `collect`."""
        if started.result:
            return _finite(started.result.labels)
        started.buffers.downloaded.synchronize()
        return _finite(started.buffers.host_out.labels.numpy().copy())

    def collect(self, started: Started) -> Result:
        """Wait for a batch that `submit` started; `BackendError` where the logits were not finite."""
        if started.result is None:
            started.result = self._collected(started.buffers)
        _finite(started.result.labels)
        return started.result

    def _collected(self, buffers: FrameBuffers) -> Result:
        try:
            buffers.downloaded.synchronize()
        finally:
            buffers.serves = None
        stage_ms = {'upload': buffers.began.elapsed_time(buffers.uploaded),
                    'device': buffers.uploaded.elapsed_time(buffers.computed),
                    'download': buffers.computed.elapsed_time(buffers.downloaded)}
        labels, overlay, confidence = (None if t is None else t.numpy().copy() for t in buffers.host_out)
        assert labels is not None
        return Result(labels, overlay, confidence, stage_ms)

    @_on_device
    def network_alone(self, frames: Tensor) -> Callable[[], None]:
        """Return a call that runs only the network, on frames (N, h, w, 3) uint8 of its size, and waits."""
        model = self.pipeline.model
        with torch.inference_mode():
            x = kernels.normalise(frames.to(self.device), model.mean, model.std, model.dtype)
        run, _ = self._captured(lambda: self.pipeline.logits(x))
        # A replay does not keep its input alive.
        return functools.partial(self._alone, run, x)

    @_on_device
    def _alone(self, run: Callable[[], None], x: Tensor) -> None:
        with torch.cuda.stream(self._compute):
            run()
        self._compute.synchronize()

    def _free(self, key: GraphKey) -> FrameBuffers:
        """Return buffers of a key that are not in flight; their graph is captured when they are made."""
        made = self._buffers.setdefault(key, [])
        self._buffers.move_to_end(key)
        for buffers in made:
            if buffers.serves is None:
                return buffers
        if len(made) == 2:
            oldest = made.pop(0)
            made.append(oldest)
            before = oldest.serves
            assert before
            before.result = self._collected(oldest)
            return oldest
        began = perf_counter()
        buffers = FrameBuffers(key, self.device, self._integrated, self.pipeline.model.dtype)
        buffers.device_in.zero_()
        buffers.run, buffers.captured = self._captured(
            functools.partial(self.pipeline, buffers.device_in, buffers.order, key, buffers.device_out,
                              buffers.past), key.batch)
        log.info('%s for %s made in %.1f s', 'graph' if self.graph else 'buffers', key,
                 perf_counter() - began)
        made.append(buffers)
        self._evict()
        return buffers

    def _evict(self) -> None:
        """Drop the graphs of the frame sizes that were unused for longest, beyond `MAX_SIZES` of them."""
        recent: dict[tuple[int, int], None] = {}
        for key in reversed(self._buffers):
            recent.setdefault((key.height, key.width))
        for height, width in list(recent)[MAX_SIZES:]:
            keys = [k for k in self._buffers if (k.height, k.width) == (height, width)]
            if any(b.serves for k in keys for b in self._buffers[k]):
                continue
            # Their memory may only be reused when nothing on the GPU can touch it any more.
            cuda_graphs.synchronize(self.device)
            for key in keys:
                del self._buffers[key]
            log.info('%d graphs for %dx%d are evicted', len(keys), width, height)

    def _captured(self, run: Callable[[], Any], batch: int = 1) -> tuple[Callable[[], None], bool]:
        """
        Warm up a call, and capture it as a graph unless the engine is eager.

        Returns its replay, and True; else the call itself, and False.

        A call that can't be captured runs eagerly from then on, which is slower but computes the same. For
        want of memory only a single frame does so: a smaller batch fits as a graph, which is faster. All
        graphs are given up then, since the failed one leaves what it has taken to their pool: nothing else
        would have memory any more.
        """
        def eager() -> None:
            with torch.inference_mode(), _cudnn_flags:
                run()

        # The warm-up too: cuDNN, which times its algorithms there, waits for the whole GPU.
        with cuda_graphs.alone:
            torch.cuda.synchronize(self.device)
            with torch.cuda.stream(self._compute):
                for _ in range(3):
                    eager()
            torch.cuda.synchronize(self.device)
            if not self.graph:
                return eager, False
            try:
                # One pool for all: graphs run one at a time, on one stream, and their results lie outside it.
                return cuda_graphs.capture(eager, self._compute, self._pool).replay, True
            except cuda_graphs.CaptureError as e:
                reason, full = str(e), cuda_graphs.out_of_memory(e)
            self._pool = torch.cuda.graph_pool_handle()
            if full:
                # What runs eagerly stays: two sizes without memory for graphs would try it again in turns.
                for made in self._buffers.values():
                    made[:] = [buffers for buffers in made if not buffers.captured]
                cuda_graphs.free_cache()
        if full and batch > 1:
            raise cuda_graphs.CaptureError(reason)
        log.warning('no CUDA graph: %s; this frame size runs eagerly, which is slower', reason)
        return eager, False
