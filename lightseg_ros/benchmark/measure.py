# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
What is timed: network alone and frame to labels, beside plain torch in the same run and the roofline.

Contenders and reference take turns in short blocks, so that whatever else the machine does hits all of them;
ratios are medians over these rounds. Before anything is timed, labels are compared with the reference's.
"""
from collections.abc import Callable, Sequence
import copy
from dataclasses import asdict, dataclass
import functools
import logging
import math
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from time import perf_counter, process_time
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn, Tensor

from .. import datasets, info, machine, networks, weights
from ..inference import export, segmenter
from ..inference.segmenter import Segmenter
from ..metrics import LatencyStats
from ..weights import Card
from . import first_label, report
from .report import BenchRow

log = logging.getLogger(__name__)

# Share of pixels with the reference's label, in percent, that a precision must reach with trained weights.
AGREEMENT = {'float32': 99.99, 'float16': 99.8, 'bfloat16': 98.5}


class BenchError(ValueError):
    """A benchmark that can't be run, or a contender whose labels are not the reference's."""


@dataclass(frozen=True)
class Contender:
    """A way to run a network; `backend` and `precision` as `Segmenter` takes them."""

    backend: str
    precision: str


AUTO = Contender('auto', 'auto')


def parse_contender(text: str) -> Contender:
    """Parse 'backend:precision'."""
    backend, found, precision = text.partition(':')
    if not found:
        raise BenchError(f"contender is {text!r}; expected BACKEND:PRECISION, such as 'openvino:bfloat16'")
    return Contender(backend, precision)


def bench(names: Sequence[str] = networks.PAPER_NETWORKS,
          resolutions: Sequence[tuple[int, int]] = ((480, 360),),
          contenders: Sequence[Contender] = (AUTO,), *, device: str = 'auto',
          threads: int = 0, rounds: int = 10, each: int = 5, strict: bool = True,
          out: Path | None = None) -> dict[str, Any]:
    """
    Measure every combination; returns a result as `write` takes it.

    `names`: packaged networks or paths of weights files; one without packaged weights runs with random ones,
    which the row says. `resolutions`: (width, height) of frames and network alike. `rounds` of `each` calls.
    With `strict`, labels that differ from the reference's more than `AGREEMENT` allows raise `BenchError`.
    `out`: a file that is written after every network, so that an aborted run keeps what it measured.
    """
    rows: list[BenchRow] = []
    rates: dict[str, dict[str, float]] = {}
    result: dict[str, Any] = {**environment(device), 'rates': rates}
    for name in names:
        network, card, kind = _load(name)
        for resolution in resolutions:
            rows += _bench_network(network, card, kind, _frames(resolution), contenders, device=device,
                                   threads=threads, rounds=rounds, each=each, rates=rates, strict=strict)
            for row in rows[-len(contenders):]:
                print(report.line(row), flush=True)
        result['rows'] = [asdict(r) for r in rows]
        if out:
            report.write(result, out)
    return result


def environment(device: str = 'auto') -> dict[str, Any]:
    """Return the format and stamp of a result that is measured on `device`."""
    where, _ = segmenter.parse_device(device)
    name = torch.cuda.get_device_name(where) if where.type == 'cuda' else ''
    return {'format': report.FORMAT, **machine.stamp(name)}


def startup(model: str, *, device: str = 'auto', backend: str = 'auto', precision: str = 'auto',
            repeats: int = 5) -> dict[str, float]:
    """
    Seconds from the start of a Python process to its first label of a 640x480 frame.

    `first`: with an empty cache, where the network is converted and compiled; `p50`, `max`: of `repeats`
    processes after it, which find it on disk.
    """
    command = [sys.executable, '-m', first_label.__name__, model, device, backend, precision]
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        caches = {'XDG_CACHE_HOME': cache, 'NUMBA_CACHE_DIR': f'{cache}/numba',
                  'TRITON_CACHE_DIR': f'{cache}/triton', 'TORCHINDUCTOR_CACHE_DIR': f'{cache}/inductor'}
        for _ in range(1 + repeats):
            began = perf_counter()
            with subprocess.Popen(command, text=True, env=os.environ | caches, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) as process:
                assert process.stdout and process.stderr
                said = process.stdout.readline()
                seconds.append(perf_counter() - began)
                if said.strip() != first_label.DONE:
                    raise BenchError(f'no label of {model}: {process.stderr.read().strip()[-500:]}')
    return {'first': seconds[0], 'p50': float(np.median(seconds[1:])), 'max': max(seconds[1:])}


def cost(network: nn.Module, card: Card, resolution: tuple[int, int], itemsize: int) -> tuple[float, float]:
    """
    Return the operations and bytes that a network needs at least, for an image of (width, height).

    Operations: two for each multiply-accumulate of a convolution. Bytes: every convolution reads its input
    and weights and writes its output once, everything between them is free.
    """
    macs = info.describe(card.network, len(card.labels), resolution, **card.options).macs
    moved = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        weight = module.get_parameter('weight')
        moved += itemsize * (inputs[0].numel() + output.numel() + weight.numel())

    meta = copy.deepcopy(network).to('meta')
    for module in meta.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(count)
    with torch.inference_mode():
        meta(torch.empty(1, 3, resolution[1], resolution[0], device='meta'))
    return 2.0 * macs, float(moved)


def rates_of(device: torch.device, precision: str) -> dict[str, float]:
    """
    Measure what the device can do: `flops` a second of a matrix product, `bytes` a second of a copy.

    The copy counts what is read and what is written. On CUDA it is larger than any cache; on a processor it
    is 8 MB, about a feature map, which the last-level cache holds.
    """
    dtype = getattr(torch, precision)
    n, size = (8192, 1 << 30) if device.type == 'cuda' else (1024, 1 << 23)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _fastest(lambda: torch.mm(a, b), device)
    copy = _fastest(lambda: target.copy_(source), device)
    return {'flops': 2 * n ** 3 / product, 'bytes': 2 * size / copy}


def _fastest(run: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """Seconds of the fastest of some calls, after three to warm up: a ceiling has no median."""
    best = math.inf
    for i in range(3 + repeats):
        _finish(device)
        began = perf_counter()
        run()
        _finish(device)
        if i >= 3:
            best = min(best, perf_counter() - began)
    return best


def _finish(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


class Reference:
    """The reference: the network as its file has it, float32, NCHW, nothing folded or compiled."""

    def __init__(self, network: nn.Module, card: Card, device: torch.device):
        self.device = device
        self.network = copy.deepcopy(network).to(device, torch.float32).eval()
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (card.mean, card.std))

    @torch.inference_mode()
    def prepare(self, frame: np.ndarray) -> Tensor:
        """Frame (H, W, 3) uint8 RGB -> what the network takes, (1, 3, H, W) float32."""
        x = torch.from_numpy(frame).to(self.device)[None].permute(0, 3, 1, 2).contiguous().float()
        return (x - self.mean) / self.std

    @torch.inference_mode()
    def run(self, x: Tensor) -> Tensor:
        return self.network(x)

    def labels(self, frame: np.ndarray) -> np.ndarray:
        """Frame (H, W, 3) uint8 RGB -> class ids (H, W) uint8."""
        # max, since argmax takes ten times as long on a processor.
        return self.run(self.prepare(frame)).max(1)[1].to(torch.uint8)[0].cpu().numpy()


def _bench_network(network: nn.Module, card: Card, kind: str, frames: list[np.ndarray],
                   contenders: Sequence[Contender], *, device: str, threads: int, rounds: int,
                   each: int, rates: dict[str, dict[str, float]], strict: bool) -> list[BenchRow]:
    where, _ = segmenter.parse_device(device)
    height, width = frames[0].shape[:2]
    resolution = f'{width}x{height}'
    if threads:
        torch.set_num_threads(threads)
    eager = Reference(network, card, where)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # torch's float32 is TF32 unless told
        truth = [eager.labels(frame) for frame in frames]
    rows: list[BenchRow] = []
    runs: list[tuple[Callable[[], None], Callable[[np.ndarray], Any]]] = [
        (_network_alone(eager.run, eager.prepare(frames[0]), where), eager.labels)]
    for contender in contenders:
        before = _memory(where, start=True)
        segment = Segmenter(network, card, device, 'native', backend=contender.backend,
                            precision=contender.precision, threads=threads)
        found = [segment([frame])[0].labels for frame in frames]
        memory = _memory(where) - before
        agreement = 100 * float(np.mean([a == b for a, b in zip(found, truth)]))
        allowed = AGREEMENT[segment.precision]
        if strict and kind == 'trained' and not agreement >= allowed:
            raise BenchError(f'{card.network} at {resolution} on {segment.backend} {segment.precision} has '
                             f'{agreement:.3f} % of the labels of plain torch; expected {allowed} % or more')
        if segment.precision not in rates:
            rates[segment.precision] = rates_of(where, segment.precision)
        rate = rates[segment.precision]
        operations, moved = cost(network, card, (width, height), segment.dtype.itemsize)
        rooflines = {'operations': 1e3 * operations / rate['flops'], 'bytes': 1e3 * moved / rate['bytes']}
        bound = max(rooflines, key=lambda k: rooflines[k])
        runs.append((segment.network_alone(frames[0]), functools.partial(_segment, segment)))
        rows.append(BenchRow(
            card.network, kind, sum(p.numel() for p in network.parameters()), _miou(card), resolution,
            segment.backend, segment.precision, threads or torch.get_num_threads(), agreement,
            rooflines[bound], bound, memory))
        if where.type == 'cuda':
            rows[-1].stream_fps = _stream_fps(segment, frames, rounds * each)
    times = _take_turns(runs, frames, where, rounds, each)
    for row, own in zip(rows, times[1:]):
        row.network_ms, row.frame_ms = _summary(own[0]), _summary(own[1])
        row.fps = 1e3 / row.frame_ms['p50']
        row.engine_percent = 100 * (1 - row.network_ms['p50'] / row.frame_ms['p50'])
        row.processor_ms = float(np.median(own[2]))
        row.eager_network_ms, row.eager_frame_ms, row.eager_processor_ms = (
            float(np.median(t)) for t in times[0])
        row.network_speedup, row.frame_speedup, row.processor_speedup = (
            float(np.median(np.median(theirs, 1) / np.median(ours, 1)))
            for theirs, ours in zip(times[0], own))
    return rows


def _network_alone(run: Callable[[Tensor], Any], x: Tensor, device: torch.device) -> Callable[[], None]:
    def alone() -> None:
        run(x)
        _finish(device)
    return alone


def _stream_fps(segment: Segmenter, frames: list[np.ndarray], count: int) -> float:
    for _ in segment.stream(frames[i % len(frames)] for i in range(4)):
        pass  # what a second frame under way needs is made
    began = perf_counter()
    done = sum(1 for _ in segment.stream(frames[i % len(frames)] for i in range(count)))
    return done / (perf_counter() - began)


def _segment(segment: Segmenter, frame: np.ndarray) -> None:
    segment([frame])


def _take_turns(runs: list[tuple[Callable[[], None], Callable[[np.ndarray], Any]]], frames: list[np.ndarray],
                device: torch.device, rounds: int, each: int) -> list[tuple[np.ndarray, ...]]:
    """
    Time blocks of calls in turns.

    For each contender ms of network alone, of the frame, and of processor time for the frame, (rounds, each).
    """
    times = [tuple(np.zeros((rounds, each)) for _ in range(3)) for _ in runs]
    for alone, whole in runs:
        for frame in frames:
            alone()
            whole(frame)
    for i in range(rounds):
        for (alone, whole), (network_ms, frame_ms, processor_ms) in zip(runs, times):
            # The first call finds the caches full of another contender's data.
            alone()
            for j in range(each):
                began = perf_counter()
                alone()
                network_ms[i, j] = 1e3 * (perf_counter() - began)
            whole(frames[0])
            for j in range(each):
                busy, began = process_time(), perf_counter()
                whole(frames[j % len(frames)])
                frame_ms[i, j] = 1e3 * (perf_counter() - began)
                processor_ms[i, j] = 1e3 * (process_time() - busy)
    _finish(device)
    return times


def _summary(ms: np.ndarray) -> dict[str, float]:
    stats = LatencyStats()
    for value in ms.flat:
        stats.add(float(value))
    return {k: round(v, 3) for k, v in stats.summary().items()}


def _load(name: str) -> tuple[nn.Module, Card, str]:
    """Return network, card and 'trained' or 'random'."""
    if name.endswith('.safetensors'):
        return *weights.load(name), 'trained'
    try:
        return *weights.load(weights.find(name)), 'trained'
    except weights.WeightsError:
        if name not in networks.NETWORKS:
            raise
        log.warning('no trained weights for %s: random ones, whose labels are noise', name)
        return *export.random_weights(name, 'camvid', (480, 360)), 'random'


def _frames(resolution: tuple[int, int], count: int = 4) -> list[np.ndarray]:
    """Return CamVid test images, or the synthetic street where there is no CamVid, at (width, height)."""
    try:
        dataset = datasets.load('camvid', 'test', None)
        images = [dataset.read(i)[0] for i in range(0, len(dataset), len(dataset) // count)][:count]
    except datasets.DataError:
        from ..synthetic.street import Street
        street = Street(*resolution)
        images = [street.render(t)[0] for t in range(count)]
    return [np.ascontiguousarray(cv2.resize(image, resolution, interpolation=cv2.INTER_AREA))
            for image in images]


def _miou(card: Card) -> float | None:
    for split in ('test', 'val'):
        if split in card.metrics:
            return card.metrics[split].get('miou')
    return None


def _memory(device: torch.device, *, start: bool = False) -> float:
    """MB: peak that torch held on a GPU since `start`, or the process's resident set."""
    if device.type == 'cuda':
        if start:
            torch.cuda.reset_peak_memory_stats(device)
            return torch.cuda.memory_allocated(device) / 1e6
        return torch.cuda.max_memory_allocated(device) / 1e6
    return machine.resident_mb()
