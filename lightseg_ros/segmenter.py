# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""uint8 frames in, class ids, overlay and confidence out; everything in between happens on the device."""
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging
import os
from pathlib import Path
import re
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

from . import backends, weights
from .weights import Card

log = logging.getLogger(__name__)

RESIZE_MODES = ('fit', 'stretch')
PRECISIONS = ('auto', *backends.PRECISIONS)
BACKENDS = ('auto', *backends.BACKENDS)
# Sizes of frames that are kept ready; a new one takes the place of the one used longest ago.
MAX_SIZES = 8
# Rows that the processor upsamples at a time: as many as its second-level cache holds.
BAND = 32


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
    return parse_size(text)


def parse_size(text: str) -> tuple[int, int]:
    """Parse 'WxH' to (width, height); `SegmenterError` says what is expected."""
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match or not all(64 <= int(v) <= 8192 for v in match.groups()):
        raise SegmenterError(f'resolution is {text!r}; expected WIDTHxHEIGHT in pixels, each 64 to 8192, '
                             "for example '1024x512', or 'native', or nothing for that of the weights")
    return int(match[1]), int(match[2])


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """
    Resize bytes, (N, H, W, 3) uint8 -> (N, h, w, 3) uint8, bilinear.

    With antialias, since a camera is often more than twice the network's size.
    """
    if frames.shape[1:3] == size:
        return frames
    x = frames.permute(0, 3, 1, 2)
    if x.device.type == 'cpu':
        # The CPU resizes bytes as they are, several times faster than floats.
        x = F.interpolate(x, size=size, mode='bilinear', align_corners=False, antialias=True)
    else:
        x = F.interpolate(x.float(), size=size, mode='bilinear', align_corners=False, antialias=True)
        x = x.round_().to(torch.uint8)
    return x.permute(0, 2, 3, 1)


def preprocess(frames: Tensor, size: tuple[int, int], mean: Tensor, std: Tensor, dtype: torch.dtype,
               reversed_channels: bool = False) -> Tensor:
    """
    Resize and normalise: (N, H, W, 3) uint8 -> (N, 3, h, w) `dtype`, channels-last.

    `mean`, `std`: (1, 3, 1, 1), RGB, 0-255 scale. With `reversed_channels` the frames are BGR.
    """
    x = resize(frames, size).permute(0, 3, 1, 2)
    if reversed_channels:
        x = x.flip(1)
    return ((x.to(dtype) - mean) / std).contiguous(memory_format=torch.channels_last)


def postprocess(logits: Tensor, frames: Tensor, palette: Tensor, alpha: float, *, overlay: bool,
                confidence: bool, reversed_channels: bool = False) -> tuple[Tensor, ...]:
    """
    Turn logits (N, K, h, w) and frames (N, H, W, 3) uint8 into uint8 images of the frames' size.

    Returns (labels (N, H, W), overlay (N, H, W, 3) RGB or empty, confidence (N, H, W) or empty). The
    logits are upsampled, never the ids: an id between two classes does not exist.
    """
    size = (frames.shape[1], frames.shape[2])
    if logits.device.type == 'cpu':
        labels, certainty = _classify_in_bands(logits, size, confidence)
    else:
        labels, certainty = _classify(logits, size, confidence)
    blended = frames.new_empty(0)
    if overlay:
        rgb = frames.flip(3) if reversed_channels else frames
        # In 1/128 steps and whole numbers: every device gives the same bytes, and int16 is wide enough.
        share = round(alpha * 128)
        painted = F.embedding(labels.int(), palette.to(torch.int16) * share + 64)
        blended = (painted.add_(rgb, alpha=128 - share) >> 7).to(torch.uint8)
    return labels, blended, certainty


def _classify(logits: Tensor, size: tuple[int, int], confidence: bool) -> tuple[Tensor, Tensor]:
    """Upsample and classify: logits (N, K, h, w) -> labels and, if wanted, confidence, (N, *size) uint8."""
    logits = logits.float()
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=False)
    highest, labels = logits.max(1)
    certainty = labels.new_empty(0, dtype=torch.uint8)
    if confidence:
        # The highest softmax is 1 / sum(exp(logit - highest)).
        total = (logits - highest.unsqueeze(1)).exp_().sum(1)
        certainty = (255 / total).round_().to(torch.uint8)
    return labels.to(torch.uint8), certainty


def _classify_in_bands(logits: Tensor, size: tuple[int, int], confidence: bool) -> tuple[Tensor, Tensor]:
    """
    Do what `_classify` does, some rows at a time, so that what is upsampled stays in the processor's cache.

    First along the rows, then, band by band, between them: 5 ms instead of 7 at 640x480 with 11 classes on
    one core, 33 instead of 81 at 1920x1080.
    """
    height, width = size
    n, _, h, w = logits.shape
    if w != width:
        logits = F.interpolate(logits, size=(h, width), mode='bilinear', align_corners=False)
    x = logits.permute(0, 2, 3, 1).contiguous()
    # Half-pixel centres, as F.interpolate has them.
    position = ((torch.arange(height) + 0.5) * (h / height) - 0.5).clamp_(0, h - 1)
    above = position.long()
    below = (above + 1).clamp_(max=h - 1)
    share = (position - above).view(1, height, 1, 1)
    labels = torch.empty((n, height, width), dtype=torch.uint8)
    certainty = torch.empty_like(labels) if confidence else labels.new_empty(0)
    for first in range(0, height, BAND):
        rows = slice(first, first + BAND)
        band = x[:, rows] if h == height else torch.lerp(x[:, above[rows]], x[:, below[rows]], share[:, rows])
        highest, ids = band.max(3)
        labels[:, rows] = ids
        if confidence:
            total = (band - highest.unsqueeze(3)).exp_().sum(3)
            certainty[:, rows] = (255 / total).round_()
    return labels, certainty


class Segmenter:
    """
    A network ready to run: load, place, warm up; then call it with frames.

    `device`: 'auto' (CUDA where there is one), 'cpu', 'cuda', 'cuda:N', or an Intel device as OpenVINO calls
    it, 'openvino:GPU'. `resolution`: 'WxH' that the network sees, 'native' (the frame's own), or None for the
    one that the weights were trained at. `resize_mode`: 'fit' scales a frame to fit into the resolution and
    keeps its aspect ratio, 'stretch' takes the resolution as it is; both go back to the frame's own size
    exactly. `backend`: what runs the network on a processor, see `backends`; 'auto' is the fastest that is
    installed. `precision`: 'auto' is float32 on a processor, float16 elsewhere. `threads`: of the processor,
    0 takes one for each core; other than 0 it holds for all that torch does in this process.
    Not thread-safe: one thread calls it.
    """

    def __init__(self, network: nn.Module, card: Card, device: str = 'auto', resolution: str | None = None,
                 *, resize_mode: str = 'fit', overlay_alpha: float = 0.5, backend: str = 'auto',
                 precision: str = 'auto', threads: int = 0):
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
        key = f'{card.network}-{backends.digest(network)[:16]}'
        core = backends.Core(backends.fold(network), card.mean, card.std)
        self._plan = backends.Plan(core, key, self.precision, threads, target)
        self._programs: OrderedDict[tuple[int, int, int], backends.Program] = OrderedDict()
        self.palette = torch.from_numpy(card.labels.palette()).to(self.device)

    def _choose(self, backend: str, target: str) -> tuple[str, str]:
        if self.device.type == 'cuda':
            if backend not in ('auto', 'torch'):
                raise SegmenterError(f"backend is {backend!r}; on CUDA 'auto' and 'torch' run")
            return 'torch', 'as always on CUDA'
        return backends.choose(backend, target)

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network sees of a frame of that height and width."""
        if self.resolution is None:
            return max(height, 64), max(width, 64)
        target_w, target_h = self.resolution
        if self.resize_mode == 'stretch':
            return target_h, target_w
        scale = min(target_w / width, target_h / height)
        return max(64, round(height * scale)), max(64, round(width * scale))

    def warm_up(self, height: int = 480, width: int = 640) -> float:
        """Run frames of that size until buffers and kernels are made; milliseconds of the last."""
        frame = np.zeros((height, width, 3), np.uint8)
        for _ in range(2):
            began = perf_counter()
            self([frame], overlay=True, confidence=True)
        return 1e3 * (perf_counter() - began)

    def network_alone(self, frame: np.ndarray) -> Callable[[], None]:
        """Return a call that runs the network alone, frame at its size to logits, and waits for its end."""
        size = self.network_size(*frame.shape[:2])
        program = self._program(1, *size)
        small = resize(torch.from_numpy(frame.copy()).to(self.device)[None], size).contiguous()

        def alone() -> None:
            program(small)
            if self.device.type == 'cuda':
                torch.cuda.synchronize(self.device)
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
        out = {'device': self.device_name(), 'memory (MB)': f'{resident_mb():.0f}'}
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
            batch = self._run([frames[i] for i in members], reversed_channels, overlay, confidence)
            results.update(zip(members, batch))
        return [results[i] for i in range(len(frames))]

    @torch.inference_mode()
    def _run(self, frames: list[np.ndarray], reversed_channels: bool, overlay: bool,
             confidence: bool) -> list[Prediction]:
        program = self._program(len(frames), *self.network_size(*frames[0].shape[:2]))
        clock = _Clock(self.device)
        clock.mark('upload')
        x = _upload(frames, reversed_channels).to(self.device)
        clock.mark('preprocess')
        small = resize(x, self.network_size(*frames[0].shape[:2]))
        small = (small.flip(3) if reversed_channels else small).contiguous()
        clock.mark('network')
        logits = program(small)
        clock.mark('postprocess')
        outputs = postprocess(logits, x, self.palette, self.overlay_alpha, overlay=overlay,
                              confidence=confidence, reversed_channels=reversed_channels)
        clock.mark('download')
        labels, blended, certainty = (t.cpu().numpy() for t in outputs)
        stage_ms = clock.stop()
        return [Prediction(labels[i], blended[i] if overlay else None,
                           certainty[i] if confidence else None, stage_ms) for i in range(len(frames))]

    def _program(self, batch: int, height: int, width: int) -> backends.Program:
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
    path = Path(model) if str(model).endswith('.safetensors') else weights.find(str(model))
    return Segmenter(*weights.load(path), device, resolution, **options)


class _Clock:
    """Milliseconds between marks; CUDA events on a GPU, so that marking does not wait for it."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == 'cuda'
        self.marks: list[tuple[str, Any]] = []

    def mark(self, stage: str) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((stage, event))
        else:
            self.marks.append((stage, perf_counter()))

    def stop(self) -> dict[str, float]:
        self.mark('')
        if self.cuda:
            torch.cuda.synchronize()
            return {a: t.elapsed_time(u) for (a, t), (_, u) in zip(self.marks, self.marks[1:])}
        return {a: 1e3 * (u - t) for (a, t), (_, u) in zip(self.marks, self.marks[1:])}


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


def resident_mb() -> float:
    """MB of memory that this process has in RAM."""
    with open('/proc/self/statm') as f:
        return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def _upload(frames: list[np.ndarray], reversed_channels: bool) -> Tensor:
    """Stack frames to (N, H, W, 3) as they lie in memory; a single writable frame is not copied."""
    if reversed_channels:
        frames = [f[..., ::-1] for f in frames]
    if len(frames) == 1:
        frame = frames[0]
        # torch takes no read-only memory (a bag's message) and no negative strides.
        if not frame.flags.writeable or min(frame.strides) < 0:
            frame = frame.copy()
        return torch.from_numpy(frame)[None]
    return torch.from_numpy(np.stack(frames))
