# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The segmenter: uint8 frames in; class ids, overlay and confidence out."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
import functools
import logging
from pathlib import Path
import re
import sys
from time import perf_counter
from typing import Any, overload, TypeVar

import numpy as np
import torch
from torch import nn

from .. import machine, weights
from ..cuda_graphs import out_of_memory, unusable
from ..sizes import parse_size, SizeError
from ..weights import Card
from . import backends, folding
from .cpu import CpuEngine
from .cuda import Compiler, CudaEngine
from .engine import Engine, GraphKey
from .kernels import postprocess, preprocess, resize
from .smoothing import Smoother

__all__ = [
    'DeviceLost', 'load', 'OutOfMemory', 'parse_device', 'parse_resolution', 'postprocess', 'Prediction',
    'preprocess', 'Segmenter', 'SegmenterError', 'Smoother']

log = logging.getLogger(__name__)
T = TypeVar('T')

ON_CUDA = ('torch', 'torch-compile', 'tensorrt')
RESIZE_MODES = ('fit', 'stretch')
PRECISIONS = ('auto', *backends.PRECISIONS)
BACKENDS = ('auto', *backends.REQUIRES)


class SegmenterError(ValueError):
    """A device, resolution or frame that can't be used; the text says what was found and expected."""


class OutOfMemory(SegmenterError):  # noqa: N818
    """The GPU has no room for a batch; a smaller one may fit."""


class DeviceLost(RuntimeError):  # noqa: N818
    """A CUDA error that stays: every later call fails, and only a new process can use the GPU again."""


@dataclass(frozen=True)
class Prediction:
    """
    The result for one frame, in host memory of its own.

    `labels`: (H, W) uint8 class ids at the frame's size. `overlay`: (H, W, 3) uint8 RGB, the classes' colours
    blended over the frame. `confidence`: (H, W) uint8, round(255 * highest softmax). Overlay and confidence
    are None where they were not asked for. `stage_ms`: milliseconds of each stage of the call that the frame
    was part of.
    """

    labels: np.ndarray
    overlay: np.ndarray | None
    confidence: np.ndarray | None
    stage_ms: dict[str, float]


def parse_resolution(text: str | None, card: Card) -> tuple[int, int] | None:
    """
    Parse 'WxH' to (width, height), 'native' to None, and '' or None to the resolution of the card.

    `SegmenterError` says what is expected.
    """
    if not text:
        return card.resolution
    if text == 'native':
        return None
    try:
        return parse_size(text)
    except SizeError as e:
        raise SegmenterError(f"resolution is {text!r}; expected WIDTHxHEIGHT in pixels, each 64 to 8192, for "
                             "example '1024x512', or 'native', or nothing for that of the weights") from e


class Segmenter:
    """
    A network ready to run: call it with frames.

        segment = Segmenter.load('laanet')      # a packaged network, or the path of a weights file
        prediction = segment(frame)             # (H, W, 3) uint8 RGB -> Prediction

    `device`: 'auto' (CUDA where there is one), 'cpu', 'cuda', 'cuda:N', or an Intel device as OpenVINO calls
    it, 'openvino:GPU'. `resolution`: 'WxH' that the network sees, 'native' (the frame's own), or None for the
    one that the weights were trained at. `resize_mode`: 'fit' scales a frame to fit into the resolution and
    keeps its aspect ratio, 'stretch' scales it to exactly the resolution; labels come back at the frame's own
    size either way. `backend`: what runs the network on a CPU, see `backends`; 'auto' takes the fastest that
    is installed; on CUDA 'torch', 'torch-compile' for torch's compiler, or 'tensorrt'. `precision`: 'auto' is
    float32 on a CPU and float16 elsewhere. `threads`: number of CPU threads, 0 for one per core; another
    number holds for all that torch does in this process. `graph`: on CUDA, replay captured graphs; False runs
    the same kernels one by one, for comparison.

    Not thread-safe: one thread calls it. `SegmenterError` where an argument does not fit.
    """

    def __init__(self, network: nn.Module, card: Card, device: str = 'auto', resolution: str | None = None,
                 *, resize_mode: str = 'fit', overlay_alpha: float = 0.5, backend: str = 'auto',
                 precision: str = 'auto', threads: int = 0, graph: bool = True):
        for name, value, choices in (('resize_mode', resize_mode, RESIZE_MODES),
                                     ('precision', precision, PRECISIONS)):
            if value not in choices:
                raise SegmenterError(f'{name} is {value!r}; expected one of {", ".join(choices)}')
        if threads < 0:
            raise SegmenterError(f'threads is {threads}; expected 0 (one for each core) or more')
        self.card = card
        self.labels = card.labels
        self.weights = self.sha256 = ''  # name and digest of the file, where it was loaded from one
        self.device, target = parse_device(device)
        self.resolution = parse_resolution(resolution, card)
        self.resize_mode = resize_mode
        self.overlay_alpha = overlay_alpha
        self.threads = threads
        self.largest_batch = sys.maxsize  # that the GPU has memory for, as far as its user has found out
        on_cpu = self.device.type == 'cpu' and target == 'CPU'
        self.precision = ('float32' if on_cpu else 'float16') if precision == 'auto' else precision
        self.dtype = getattr(torch, self.precision)
        if threads:
            torch.set_num_threads(threads)
        try:
            self.backend, self._why = self._choose(backend, target)
        except backends.BackendError as e:
            raise SegmenterError(str(e)) from e
        self.palette = torch.from_numpy(card.labels.palette())
        self._alpha: float | None = None
        self._network_id = object()  # tells a smoother one network from another
        folded = folding.fold(network, widen=self.precision != 'float32', temperature=card.temperature)
        model = backends.DeployModel(folded, card.mean, card.std)
        key = f'{card.network}-{backends.digest(model)[:16]}'
        self._engine: Engine
        if self.device.type == 'cuda':
            failure = None
            try:
                self._engine = CudaEngine(model.lowered(self.dtype, self.device), self.palette, self.device,
                                          graph=graph, compiler=self._compiler(key))
            except RuntimeError as e:  # what CUDA raises, for want of memory above all
                kind = OutOfMemory if out_of_memory(e) else SegmenterError
                failure = kind(f'{card.network} does not run on {device}: {_first_line(e)}. Free memory on '
                               "the GPU, or choose device 'cpu'")
            if failure:  # outside of the `except`, whose error keeps half a network on the GPU
                raise failure
        else:
            spec = backends.CompileSpec(model, key, self.precision, threads, target)
            self._engine = CpuEngine(self.backend, spec, self.palette)

    @classmethod
    def load(cls, model: str | Path, device: str = 'auto', resolution: str | None = None,
             **options: Any) -> 'Segmenter':
        """
        Make a segmenter from a packaged network's name ('laanet') or the path of a weights file.

        `options`: the keyword arguments of the class. `WeightsError` where the file is missing or damaged.
        """
        path = weights.resolve(model)
        segment = cls(*weights.load(path), device, resolution, **options)
        segment.weights, segment.sha256 = path.name, weights.digest(path)
        return segment

    def _choose(self, backend: str, target: str) -> tuple[str, str]:
        """Return the name of the backend and why it was taken."""
        if self.device.type == 'cuda':
            if backend not in ('auto', *ON_CUDA):
                raise SegmenterError(f"backend is {backend!r}; on CUDA {', '.join(map(repr, ON_CUDA))} run")
            if backend == 'auto':
                return 'torch', 'with CUDA graphs'
            if backend == 'tensorrt' and self.precision != 'float16':
                raise SegmenterError(f"precision is {self.precision!r}; backend 'tensorrt' has float16 only")
        elif backend == 'tensorrt':
            raise SegmenterError("backend is 'tensorrt', which runs on NVIDIA's GPUs only; on a CPU 'auto' "
                                 "takes the fastest")
        name, why = backends.choose(backend, target)
        if (name, target) == ('openvino', 'CPU') and self.precision == 'float32' and machine.has_bfloat16():
            why += "; precision 'bfloat16' would be about twice as fast here"
        return name, why

    def _compiler(self, key: str) -> Compiler | None:
        """Return what compiles the network for the GPU; None: its kernels run as they are."""
        if self.backend == 'tensorrt':
            from .tensorrt import compile_network
            return functools.partial(compile_network, key=key)
        return backends.compile_network if self.backend == 'torch-compile' else None

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) at which the network sees a frame of that height and width."""
        if self.resolution is None:
            return max(height, 64), max(width, 64)
        target_w, target_h = self.resolution
        if self.resize_mode == 'stretch':
            return target_h, target_w
        scale = min(target_w / width, target_h / height)
        return max(64, round(height * scale)), max(64, round(width * scale))

    def warm_up(self, height: int = 480, width: int = 640, batch: int = 1, *,
                smoothing: bool = False) -> float:
        """
        Run black frames of a size until buffers and kernels exist; returns the milliseconds of the last call.

        It runs them with and without overlay and confidence, in every combination. `smoothing`: as frames run
        that have smoothers.
        """
        frames = [np.zeros((height, width, 3), np.uint8)] * batch
        # Twice each, since the first call compiles or captures. All combinations, whatever is subscribed to.
        for overlay, confidence in 2 * [(o, c) for o in (False, True) for c in (False, True)]:
            began = perf_counter()
            self(frames, overlay=overlay, confidence=confidence,
                 smoothers=[Smoother(0.5) for _ in frames] if smoothing else ())
        return 1e3 * (perf_counter() - began)

    def prepare(self, height: int, width: int) -> None:
        """On a CPU, compile for frames of a size; another thread may segment frames meanwhile."""
        assert isinstance(self._engine, CpuEngine)
        self._engine.prepare(self.network_size(height, width))

    def is_prepared(self, height: int, width: int) -> bool:
        """Return whether frames of a size need no compilation on a CPU."""
        return isinstance(self._engine, CpuEngine) and self._engine.is_prepared(
            self.network_size(height, width))

    def is_kept(self, height: int, width: int) -> bool:
        """Return whether what frames of a size need on a CPU lies in the cache on disk, or is never there."""
        return not isinstance(self._engine, CpuEngine) or self._engine.is_kept(
            self.network_size(height, width))

    def network_alone(self, frame: np.ndarray) -> Callable[[], None]:
        """Return a call that runs only the network on a frame, resized already, and waits for its end."""
        size = self.network_size(*frame.shape[:2])
        return self._engine.network_alone(resize(torch.from_numpy(frame.copy())[None], size).contiguous())

    def describe(self) -> str:
        """Say in one line which network runs where, and why with that backend."""
        size = 'native size' if self.resolution is None else '{}x{}'.format(*self.resolution)
        classes = f'{self.card.dataset or self.labels.name}, {len(self.labels)} classes'
        return (f'{self.card.network} ({classes}) at {size} on {self.device_name()}, '
                f'{self.precision}, {backends.version(self.backend)} ({self._why})')

    def device_name(self) -> str:
        """Return the device's name as its maker calls it; 'CPU' for a CPU, 'GPU' for Intel graphics."""
        return self._engine.device_name

    def identity(self) -> dict[str, str]:
        """Return which network this is and how it runs, as a result and the node's diagnostics state it."""
        return {'network': self.card.network, 'dataset': self.card.dataset, 'weights': self.weights,
                'sha256': self.sha256, 'resize_mode': self.resize_mode, 'precision': self.precision,
                'resolution': '{}x{}'.format(*self.resolution) if self.resolution else 'native',
                'backend': backends.version(self.backend)}

    def resources(self) -> dict[str, str]:
        """Return device and memory in MB: the process's resident set, and what the engine holds on a GPU."""
        return {'device': self.device_name(), 'memory (MB)': f'{machine.resident_mb():.0f}'} | {
            name: f'{mb:.0f}' for name, mb in self._engine.memory_mb().items()}

    @overload
    def __call__(self, frames: np.ndarray, *, overlay: bool = ...,
                 confidence: bool = ..., smoothers: Sequence[Smoother] = ...) -> Prediction: ...

    @overload
    def __call__(self, frames: Sequence[np.ndarray], *, overlay: bool = ...,
                 confidence: bool = ..., smoothers: Sequence[Smoother] = ...) -> list[Prediction]: ...

    def __call__(self, frames: np.ndarray | Sequence[np.ndarray], *, overlay: bool = False,
                 confidence: bool = False, smoothers: Sequence[Smoother] = ()
                 ) -> Prediction | list[Prediction]:
        """
        Segment one frame, (H, W, 3) uint8 RGB, or a list of frames of any sizes.

        One frame gives one prediction, a list gives a list in the same order. Frames of one size run as one
        batch. A frame whose last axis is reversed in memory (a view on BGR, `frame[..., ::-1]`) is uploaded
        as it lies and flipped on the device. `smoothers`: the one of each frame's camera, if labels are to be
        smoothed over time. `SegmenterError` where a frame is something else.
        """
        if isinstance(frames, np.ndarray) and frames.ndim == 3:
            return self([frames], overlay=overlay, confidence=confidence, smoothers=smoothers)[0]
        results: dict[int, Prediction] = {}
        for members, started in self._start_all(frames, overlay, confidence, smoothers):
            results.update(zip(members, self._finish(started)))
        return [results[i] for i in range(len(frames))]

    def start(self, frames: Sequence[np.ndarray], *, overlay: bool = False, confidence: bool = False,
              smoothers: Sequence[Smoother] = ()) -> 'Pending':
        """
        Segment a list of frames as `__call__` does, in two steps: the labels first, then all the rest.

        On a CPU labels and confidence take twice as long as labels alone, which need not wait for it. Finish
        what was started before you start the next frames.
        """
        return Pending(self, list(self._start_all(frames, overlay, confidence, smoothers)))

    def stream(self, frames: Iterable[np.ndarray], *, overlay: bool = False,
               confidence: bool = False) -> Iterator[Prediction]:
        """
        Segment frames one after the other, each as `__call__` does.

        On CUDA a frame is uploaded while the previous one is computed: more frames per second, but each is
        later.
        """
        waiting: Any = None
        try:
            for frame in frames:
                _check(frame)
                started = self._start([frame], frame.strides[2] < 0, overlay, confidence)
                before, waiting = waiting, started
                if before is not None:
                    yield from self._finish(before)
        finally:
            # Whatever ended the loop, wait for the frame in flight: its memory is used again.
            last = self._finish(waiting) if waiting is not None else []
        yield from last

    def _start_all(self, frames: np.ndarray | Sequence[np.ndarray], overlay: bool, confidence: bool,
                   smoothers: Sequence[Smoother]) -> Iterator[tuple[list[int], Any]]:
        """Start frames of any sizes, batch by batch; yields places and what `_start` returns of each."""
        if smoothers and (count := len({*map(id, smoothers)})) != len(frames):
            raise SegmenterError(f'{len(frames)} frames have {count} smoothers; expected one for each, '
                                 'because frames of one camera follow each other')
        for members, reversed_channels in _batches(frames):
            yield members, self._start([frames[i] for i in members], reversed_channels, overlay, confidence,
                                       [smoothers[i] for i in members] if smoothers else [])

    def _start(self, frames: list[np.ndarray], reversed_channels: bool, overlay: bool, confidence: bool,
               smoothers: Sequence[Smoother] = ()) -> Any:
        """Start frames of one size; returns what `_finish` takes."""
        if reversed_channels:
            frames = [frame[..., ::-1] for frame in frames]
        height, width = frames[0].shape[:2]
        key = GraphKey(len(frames), height, width, self.network_size(height, width), reversed_channels,
                       overlay, confidence, bool(smoothers))
        for smoother in smoothers:
            smoother.comes_from((self._network_id, height, width, key.size))
        try:
            if self._alpha != self.overlay_alpha:
                self._engine.set_alpha(self.palette, self.overlay_alpha)
                self._alpha = self.overlay_alpha
            return self._engine.submit(frames, key, smoothers)
        except backends.BackendError as e:
            raise SegmenterError(str(e)) from e
        except RuntimeError as e:
            failure = self._explained(e, str(key))
        # Outside of the `except`: the traceback of what CUDA raised keeps the buffers of the failed batch.
        raise failure

    def _finish(self, started: Any) -> list[Prediction]:
        return self._predictions(*self._waited(self._engine.collect, started))

    def _waited(self, wait: Callable[[Any], T], started: Any) -> T:
        """Return what the engine gives for a batch; errors of its work on the GPU come up here."""
        try:
            return wait(started)
        except backends.BackendError as e:
            raise SegmenterError(str(e)) from e
        except RuntimeError as e:
            failure = self._explained(e, 'a batch')
        raise failure

    def _explained(self, error: RuntimeError, what: str) -> Exception:
        """Return what to raise for an error of torch: no memory, a GPU that is lost, or the error itself."""
        if self.device.type != 'cuda':
            return error
        if out_of_memory(error):
            return OutOfMemory(f'no memory on the GPU for {what}: {_first_line(error)}')
        if reason := unusable(self.device):
            return DeviceLost(f'the GPU {self.device_name()} is lost to this process: {reason}')
        return error

    @staticmethod
    def _predictions(labels: np.ndarray, overlay: np.ndarray | None, confidence: np.ndarray | None,
                     stage_ms: dict[str, float]) -> list[Prediction]:
        return [Prediction(labels[i], None if overlay is None else overlay[i],
                           None if confidence is None else confidence[i], stage_ms)
                for i in range(len(labels))]


class Pending:
    """Frames that `Segmenter.start` has started: `labels`, then `finish`, once each, in the frames' order."""

    def __init__(self, segmenter: Segmenter, batches: list[tuple[list[int], Any]]):
        self._segmenter = segmenter
        self._batches = batches

    def labels(self) -> list[np.ndarray]:
        """Wait for the labels alone, (H, W) uint8 class ids for each frame."""
        labels: dict[int, np.ndarray] = {}
        for members, started in self._batches:
            segment = self._segmenter
            labels.update(zip(members, segment._waited(segment._engine.labels, started)))
        return [labels[i] for i in range(len(labels))]

    def finish(self) -> list[Prediction]:
        """Wait for overlay and confidence, where they were asked for."""
        results: dict[int, Prediction] = {}
        for members, started in self._batches:
            results.update(zip(members, self._segmenter._finish(started)))
        return [results[i] for i in range(len(results))]


load = Segmenter.load


def _batches(frames: np.ndarray | Sequence[np.ndarray]) -> list[tuple[list[int], bool]]:
    """Return the indices of frames that can run together, and whether their channels are reversed."""
    batches: dict[tuple, list[int]] = {}
    if not isinstance(frames, (np.ndarray, Sequence)):
        _check(frames)
    for i, frame in enumerate(frames):
        _check(frame)
        batches.setdefault((frame.shape, frame.strides[2] < 0), []).append(i)
    return [(members, reversed_channels) for (_, reversed_channels), members in batches.items()]


def parse_device(name: str) -> tuple[torch.device, str]:
    """Return torch's device, and OpenVINO's name of its device ('CPU' unless another one was asked for)."""
    if name == 'auto':
        if torch.cuda.is_available():
            reason = unusable(torch.device('cuda'))
            if not reason:
                return torch.device('cuda'), 'CPU'
            log.warning("the GPU is left alone, since torch can't use it: %s", reason)
        return torch.device('cpu'), 'CPU'
    match = re.fullmatch(r'cpu|cuda(:\d+)?|openvino:([A-Z]+(\.\d+)?)', name)
    if not match:
        raise SegmenterError(f"device is {name!r}; expected 'auto', 'cpu', 'cuda', 'cuda:N' or "
                             "'openvino:GPU'")
    if match[2]:
        return torch.device('cpu'), match[2]
    # Not torch's own number: it keeps 8 bits of it, so 'cuda:256' would be 'cuda:0'.
    if name.startswith('cuda') and int((match[1] or ':0')[1:5]) >= torch.cuda.device_count():
        raise SegmenterError(f'device is {name!r}, but torch {torch.__version__} sees '
                             f"{torch.cuda.device_count()} CUDA devices; use 'cpu' or 'auto', or install a "
                             'torch build and a driver for the GPU')
    device = torch.device(name)
    if device.type == 'cuda' and (reason := unusable(device)):
        raise SegmenterError(f"device is {name!r}, but torch {torch.__version__} can't use it: {reason}. "
                             "Install a torch build for this GPU and its driver, or choose 'cpu'")
    return device, 'CPU'


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def _check(frame: np.ndarray) -> None:
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
            and frame.shape[2] == 3 and frame.size):
        found = f'{frame.dtype} {frame.shape}' if isinstance(frame, np.ndarray) else type(frame).__name__
        raise SegmenterError(f'a frame is {found}; expected a numpy array (H, W, 3) uint8, RGB, not empty')
