# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""uint8 frames in, class ids, overlay and confidence out; everything in between happens on the device."""
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
import logging
from pathlib import Path
import re
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn, Tensor

from .. import machine, weights
from ..sizes import parse_size, SizeError
from ..weights import Card
from . import backends, folding
from .cuda import Engine, FrameBuffers, GraphKey
from .kernels import postprocess, preprocess, resize

__all__ = [
    'load', 'parse_device', 'parse_resolution', 'postprocess', 'Prediction', 'preprocess',
    'Segmenter', 'SegmenterError']

log = logging.getLogger(__name__)

RESIZE_MODES = ('fit', 'stretch')
PRECISIONS = ('auto', *backends.PRECISIONS)
BACKENDS = ('auto', *backends.BACKENDS)
# Sizes of frames that are kept ready; a new one takes the place of the one used longest ago.
MAX_SIZES = 8


class SegmenterError(ValueError):
    """A device, resolution or frame that can't be used; the text says what was found and expected."""


@dataclass(frozen=True)
class Prediction:
    """
    What one frame gave, in host memory of its own.

    `labels`: (H, W) uint8 class ids at the frame's size. `overlay`: (H, W, 3) uint8 RGB, the classes' colours
    blended over the frame. `confidence`: (H, W) uint8, round(255 * highest softmax). `stage_ms`: milliseconds
    of each stage of the call that the frame was part of.
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
    A network ready to run: load, place, warm up; then call it with frames.

    `device`: 'auto' (CUDA where there is one), 'cpu', 'cuda', 'cuda:N', or an Intel device as OpenVINO calls
    it, 'openvino:GPU'. `resolution`: 'WxH' that the network sees, 'native' (the frame's own), or None for the
    one that the weights were trained at. `resize_mode`: 'fit' scales a frame to fit into the resolution and
    keeps its aspect ratio, 'stretch' takes the resolution as it is; both go back to the frame's own size
    exactly. `backend`: what runs the network on a processor, see `backends`; 'auto' is the fastest that is
    installed; on CUDA 'torch', or 'torch-compile' for torch's compiler. `precision`: 'auto' is float32 on a
    processor, float16 elsewhere. `threads`: of the processor, 0 takes one for each core; other than 0 it
    holds for all that torch does in this process. `graph`: on CUDA, replay captured graphs; False runs the
    same kernels one by one, for comparison.
    Not thread-safe: one thread calls it.
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
        self.device, target = parse_device(device)
        self.resolution = parse_resolution(resolution, card)
        self.resize_mode = resize_mode
        self.overlay_alpha = overlay_alpha
        self.threads = threads
        on_cpu = self.device.type == 'cpu' and target == 'CPU'
        self.precision = ('float32' if on_cpu else 'float16') if precision == 'auto' else precision
        self.dtype = getattr(torch, self.precision)
        if threads:
            torch.set_num_threads(threads)
        try:
            self.backend, self._why = self._choose(backend, target)
        except backends.BackendError as e:
            raise SegmenterError(str(e)) from e
        folded = folding.fold(network, widen=self.precision != 'float32')
        core = backends.DeployModel(folded, card.mean, card.std)
        key = f'{card.network}-{backends.digest(core)[:16]}'
        self._plan = backends.CompileSpec(core, key, self.precision, threads, target)
        self._programs: OrderedDict[tuple[int, int, int], backends.CompiledModel] = OrderedDict()
        self.palette = torch.from_numpy(card.labels.palette())
        self._alpha: float | None = None
        self._engine = Engine(
            core.lowered(self.dtype, self.device), self.palette, self.device, graph=graph,
            compiled=self.backend == 'torch-compile') if self.device.type == 'cuda' else None

    def _choose(self, backend: str, target: str) -> tuple[str, str]:
        if self.device.type == 'cuda':
            if backend not in ('auto', 'torch', 'torch-compile'):
                raise SegmenterError(f"backend is {backend!r}; on CUDA 'torch' and 'torch-compile' run")
            if backend == 'auto':
                return 'torch', 'with CUDA graphs'
        name, why = backends.choose(backend, target)
        if (name, target) == ('openvino', 'CPU') and self.precision == 'float32' and machine.has_bfloat16():
            why += "; precision 'bfloat16' would be about twice as fast here"
        return name, why

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network sees of a frame of that height and width."""
        if self.resolution is None:
            return max(height, 64), max(width, 64)
        target_w, target_h = self.resolution
        if self.resize_mode == 'stretch':
            return target_h, target_w
        scale = min(target_w / width, target_h / height)
        return max(64, round(height * scale)), max(64, round(width * scale))

    def warm_up(self, height: int = 480, width: int = 640, batch: int = 1) -> float:
        """
        Run frames of that size until buffers and kernels are made; milliseconds of the last call.

        For labels alone, with the overlay, and for all that there is.
        """
        frames = [np.zeros((height, width, 3), np.uint8)] * batch
        for overlay, confidence in 2 * ((False, False),) + 2 * ((True, False),) + 2 * ((True, True),):
            began = perf_counter()
            self(frames, overlay=overlay, confidence=confidence)
        return 1e3 * (perf_counter() - began)

    def network_alone(self, frame: np.ndarray) -> Callable[[], None]:
        """Return a call that runs the network alone, frame at its size to logits, and waits for its end."""
        size = self.network_size(*frame.shape[:2])
        small = resize(torch.from_numpy(frame.copy())[None], size).contiguous()
        if self._engine is not None:
            return self._engine.network_alone(small)
        program = self._program(1, *size)

        def alone() -> None:
            program(small)
        return alone

    def describe(self) -> str:
        """Say in one line what runs where, and why with that backend."""
        size = 'native size' if self.resolution is None else '{}x{}'.format(*self.resolution)
        return (f'{self.card.network} ({self.card.dataset}, {len(self.labels)} classes) at {size} on '
                f'{self.device_name()}, {self.precision}, {backends.version(self.backend)} ({self._why})')

    def device_name(self) -> str:
        """Name of the device as its maker calls it, 'CPU' for the processor, 'GPU' for Intel's."""
        return torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else self._plan.target

    def resources(self) -> dict[str, str]:
        """Device and memory: resident set of the process, and what torch holds on the GPU, in MB."""
        out = {'device': self.device_name(), 'memory (MB)': f'{machine.resident_mb():.0f}'}
        if self.device.type == 'cuda':
            out['device memory (MB)'] = f'{torch.cuda.memory_allocated(self.device) / 1e6:.0f}'
        return out

    def __call__(self, frames: Sequence[np.ndarray], *, overlay: bool = False,
                 confidence: bool = False) -> list[Prediction]:
        """
        Segment frames, (H, W, 3) uint8 RGB each, of any sizes; frames of one size run as one batch.

        A frame whose last axis is reversed in memory (a view on BGR) is uploaded as it lies and
        flipped on the device. `SegmenterError` for what is no such frame.
        """
        results: dict[int, Prediction] = {}
        batches: dict[tuple, list[int]] = {}
        for i, frame in enumerate(frames):
            _check(frame)
            batches.setdefault((frame.shape, frame.strides[2] < 0), []).append(i)
        for (_, reversed_channels), members in batches.items():
            started = self._start([frames[i] for i in members], reversed_channels, overlay, confidence)
            results.update(zip(members, self._finish(started)))
        return [results[i] for i in range(len(frames))]

    def stream(self, frames: Iterable[np.ndarray], *, overlay: bool = False,
               confidence: bool = False) -> Iterator[Prediction]:
        """
        Segment frames one after the other, each as `__call__` does.

        On CUDA a frame is uploaded while the one before is computed: more frames a second, but each is later.
        """
        waiting: FrameBuffers | list[Prediction] | None = None
        try:
            for frame in frames:
                _check(frame)
                started = self._start([frame], frame.strides[2] < 0, overlay, confidence)
                before, waiting = waiting, started
                if before is not None:
                    yield from self._finish(before)
        finally:
            # A frame under way is waited for, whatever ended the loop: its memory is used again.
            last = self._finish(waiting) if waiting is not None else []
        yield from last

    def _start(self, frames: list[np.ndarray], reversed_channels: bool, overlay: bool,
               confidence: bool) -> FrameBuffers | list[Prediction]:
        """Start frames of one size; what a processor runs is finished at once."""
        if reversed_channels:
            frames = [frame[..., ::-1] for frame in frames]
        size = self.network_size(*frames[0].shape[:2])
        if self._engine is None:
            return self._run(frames, size, reversed_channels, overlay, confidence)
        if self._alpha != self.overlay_alpha:
            self._alpha = self.overlay_alpha
            self._engine.set_alpha(self.palette, self._alpha)
        height, width = frames[0].shape[:2]
        kind = GraphKey(len(frames), height, width, size, reversed_channels, overlay, confidence)
        try:
            return self._engine.submit(frames, kind)
        except backends.BackendError as e:
            raise SegmenterError(str(e)) from e

    def _finish(self, started: FrameBuffers | list[Prediction]) -> list[Prediction]:
        if self._engine is None or isinstance(started, list):
            assert isinstance(started, list)
            return started
        (labels, blended, confidences), stage_ms = self._engine.collect(started)
        assert labels is not None
        return [Prediction(
            labels[i], None if blended is None else blended[i],
            None if confidences is None else confidences[i], stage_ms) for i in range(len(labels))]

    @torch.inference_mode()
    def _run(self, frames: list[np.ndarray], size: tuple[int, int], reversed_channels: bool, overlay: bool,
             confidence: bool) -> list[Prediction]:
        """Run frames (H, W, 3) as they lie in memory on a processor."""
        program = self._program(len(frames), *size)
        marks = [perf_counter()]
        x = _stack(frames)
        small = resize(x, size)
        small = (small.flip(3) if reversed_channels else small).contiguous()
        marks.append(perf_counter())
        logits = program(small)
        marks.append(perf_counter())
        labels, blended, confidences = (t.numpy() for t in postprocess(
            logits, x, self.palette, self.overlay_alpha, overlay=overlay, confidence=confidence,
            reversed_channels=reversed_channels))
        marks.append(perf_counter())
        stage_ms = {stage: 1e3 * (b - a) for stage, a, b in
                    zip(('preprocess', 'network', 'postprocess'), marks, marks[1:])}
        return [Prediction(labels[i], blended[i] if overlay else None,
                           confidences[i] if confidence else None, stage_ms) for i in range(len(frames))]

    def _program(self, batch: int, height: int, width: int) -> backends.CompiledModel:
        """Return what runs frames of that size of the network, made when it is first asked for."""
        key = (batch, height, width)
        if key in self._programs:
            self._programs.move_to_end(key)
            return self._programs[key]
        began = perf_counter()
        try:
            program = backends.build(self.backend, self._plan, *key)
        except backends.BackendError as e:
            raise SegmenterError(str(e)) from e
        log.info('%s for %d x %dx%d made in %.1f s', self.backend, batch, width, height,
                 perf_counter() - began)
        self._programs[key] = program
        if len(self._programs) > MAX_SIZES:
            (batch, height, width), _ = self._programs.popitem(last=False)
            log.info('%s for %d x %dx%d is let go', self.backend, batch, width, height)
        return program


def load(model: str | Path, device: str = 'auto', resolution: str | None = None,
         **options: Any) -> Segmenter:
    """Make a segmenter from a packaged network's name ('laanet') or the path of a weights file."""
    return Segmenter(*weights.load(weights.resolve(model)), device, resolution, **options)


def parse_device(name: str) -> tuple[torch.device, str]:
    """Return torch's device, and OpenVINO's where that is another than the processor."""
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu'), 'CPU'
    match = re.fullmatch(r'cpu|cuda(:\d+)?|openvino:([A-Z]+(\.\d+)?)', name)
    if not match:
        raise SegmenterError(f"device is {name!r}; expected 'auto', 'cpu', 'cuda', 'cuda:N' or "
                             "'openvino:GPU'")
    if match[2]:
        return torch.device('cpu'), match[2]
    device = torch.device(name)
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise SegmenterError(f'device is {name!r}, but torch {torch.__version__} sees '
                             f"{torch.cuda.device_count()} CUDA devices; use 'cpu' or 'auto', or install a "
                             'torch build and a driver for the GPU')
    return device, 'CPU'


def _check(frame: np.ndarray) -> None:
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
            and frame.shape[2] == 3 and frame.size):
        found = f'{frame.dtype} {frame.shape}' if isinstance(frame, np.ndarray) else type(frame).__name__
        raise SegmenterError(f'a frame is {found}; expected a numpy array (H, W, 3) uint8, RGB, not empty')


def _stack(frames: list[np.ndarray]) -> Tensor:
    """Stack frames to (N, H, W, 3); a single one that torch can take is not copied."""
    if len(frames) == 1:
        frame = frames[0]
        # torch takes no read-only memory (a bag's message) and no negative strides.
        if not frame.flags.writeable or min(frame.strides) < 0:
            frame = frame.copy()
        return torch.from_numpy(frame)[None]
    return torch.from_numpy(np.stack(frames))
