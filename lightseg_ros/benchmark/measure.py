# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Measures how fast networks run here, beside plain torch in the same run and the roofline of the hardware.

Two things are timed: the network alone, and a whole frame from uint8 image to uint8 labels. Contenders and
reference take turns in short blocks, so that other load on the machine hits all of them alike. Speedups are
medians over these rounds. Nothing is timed before its labels agree with the reference's.
"""
from collections.abc import Callable, Iterator, Sequence
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

# How many pixels must have the reference's label, in per cent, for trained weights in each precision.
AGREEMENT = {'float32': 99.99, 'float16': 99.8, 'bfloat16': 98.5}


class BenchError(ValueError):
    """A benchmark that can't be run, or a contender whose labels differ from the reference's."""


@dataclass(frozen=True)
class Contender:
    """A way to run a network: a backend and a precision, as `Segmenter` takes them."""

    backend: str
    precision: str


AUTO = Contender('auto', 'auto')


def parse_contender(text: str) -> Contender:
    """Parse 'BACKEND:PRECISION'; `BenchError` lists the known ones."""
    backend, _, precision = text.partition(':')
    if backend not in segmenter.BACKENDS or precision not in segmenter.PRECISIONS:
        raise BenchError(f"contender is {text!r}; expected BACKEND:PRECISION, such as 'openvino:bfloat16': "
                         f'one of {", ".join(segmenter.BACKENDS)}, and one of '
                         f'{", ".join(segmenter.PRECISIONS)}')
    return Contender(backend, precision)


def bench(names: Sequence[str] = networks.PAPER_NETWORKS,
          resolutions: Sequence[tuple[int, int]] = ((480, 360),),
          contenders: Sequence[Contender] = (AUTO,), *, device: str = 'auto',
          threads: int = 0, rounds: int = 10, each: int = 5, strict: bool = True,
          out: Path | None = None) -> dict[str, Any]:
    """
    Measure every combination of network, resolution and contender; return a result for `report.write`.

    `names`: packaged networks, or paths of weights files. A network without packaged weights runs with random
    ones, and its row says so. `resolutions`: (width, height), both of the frames and of the network's input.
    `rounds`: how often the contenders take turns, with `each` calls in a block. With `strict`, `BenchError`
    is raised where fewer labels agree with the reference's than `AGREEMENT` asks for. `out`: a file that is
    written whenever a contender has been tried and after each of its rounds, so that an aborted run keeps
    what it measured.
    """
    rows: list[BenchRow] = []
    rates: dict[str, dict[str, float]] = {}
    result: dict[str, Any] = {**environment(device), 'rounds': rounds, 'rates': rates}
    for name in names:
        network, card, kind = _load(name)
        for resolution in resolutions:
            new: list[BenchRow] = []
            for new in _bench_network(network, card, kind, _frames(resolution), contenders, device=device,
                                      threads=threads, rounds=rounds, each=each, rates=rates, strict=strict):
                result['rows'] = [asdict(r) for r in (*rows, *new)]
                if out:
                    report.write(result, out)
            rows += new
            for row in new:
                print(report.line(row), flush=True)
    return result


def environment(device: str = 'auto') -> dict[str, Any]:
    """Return the file format and the stamp of a result that is measured on `device`."""
    where, _ = segmenter.parse_device(device)
    name = torch.cuda.get_device_name(where) if where.type == 'cuda' else ''
    return {'format': report.FORMAT, **machine.stamp(name)}


def startup(model: str, *, device: str = 'auto', backend: str = 'auto', precision: str = 'auto',
            repeats: int = 5) -> dict[str, float]:
    """
    Measure the seconds from the start of a Python process to its first label of a 640x480 frame.

    `first` is the first process, which has empty caches, so that it converts and compiles the network. `p50`
    and `max` are of `repeats` processes after it, which find the compiled network on disk.
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

    Operations: two per multiply-accumulate of a convolution. Bytes, at `itemsize` per value: every
    convolution reads its input and weights once and writes its output once; all other layers count nothing.
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
    Measure the device's limits: `flops` per second of a matrix product, `bytes` per second of a copy.

    The copy counts both the bytes read and the bytes written. On CUDA it is larger than any cache. On a CPU
    it is 8 MB, about the size of a feature map, which the last-level cache holds.
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
    """Return the seconds of the fastest call, since a limit is wanted; three calls warm up."""
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
    """Plain torch: the network as its weights file has it, float32, NCHW, nothing folded or compiled."""

    def __init__(self, network: nn.Module, card: Card, device: torch.device):
        self.device = device
        self.network = copy.deepcopy(network).to(device, torch.float32).eval()
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (card.mean, card.std))

    @torch.inference_mode()
    def prepare(self, frame: np.ndarray) -> Tensor:
        """Normalise a frame, (H, W, 3) uint8 RGB, to the network's input, (1, 3, H, W) float32."""
        x = torch.from_numpy(frame).to(self.device)[None].permute(0, 3, 1, 2).contiguous().float()
        return (x - self.mean) / self.std

    @torch.inference_mode()
    def run(self, x: Tensor) -> Tensor:
        """Return the logits (1, K, H, W) of an input."""
        return self.network(x)

    def labels(self, frame: np.ndarray) -> np.ndarray:
        """Return the class ids, (H, W) uint8, of a frame (H, W, 3) uint8 RGB."""
        # torch's argmax takes ten times as long as its max on a CPU.
        return self.run(self.prepare(frame)).max(1)[1].to(torch.uint8)[0].cpu().numpy()


def _bench_network(network: nn.Module, card: Card, kind: str, frames: list[np.ndarray],
                   contenders: Sequence[Contender], *, device: str, threads: int, rounds: int,
                   each: int, rates: dict[str, dict[str, float]], strict: bool) -> Iterator[list[BenchRow]]:
    """Measure a network at one resolution; yields the rows as they are so far, at last all of them whole."""
    where, _ = segmenter.parse_device(device)
    height, width = frames[0].shape[:2]
    resolution = f'{width}x{height}'
    if threads:
        torch.set_num_threads(threads)
    reference = Reference(network, card, where)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the default is TF32
        truth = [reference.labels(frame) for frame in frames]
    rows: list[BenchRow] = []
    runs: list[tuple[Callable[[], None], Callable[[np.ndarray], Any]]] = [
        (_network_alone(reference.run, reference.prepare(frames[0]), where), reference.labels)]
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
        # One call, to be kept in case the next contender takes too long to be compiled.
        for times in _take_turns([runs[0], runs[-1]], frames[:1], where, 1, 1):
            _fill(rows[-1:], times)
            yield rows
    for times in _take_turns(runs, frames, where, rounds, each):
        _fill(rows, times)
        yield rows


def _fill(rows: list[BenchRow], times: list[tuple[np.ndarray, ...]]) -> None:
    """Fill in the times that `_take_turns` has taken of the reference and the rows' contenders."""
    for row, own in zip(rows, times[1:], strict=True):
        row.rounds = len(own[0])
        row.network_ms, row.frame_ms = _summary(own[0]), _summary(own[1])
        row.fps = 1e3 / row.frame_ms['p50']
        row.engine_percent = 100 * (1 - row.network_ms['p50'] / row.frame_ms['p50'])
        row.cpu_ms = float(np.median(own[2]))
        row.eager_network_ms, row.eager_frame_ms, row.eager_cpu_ms = (
            float(np.median(t)) for t in times[0])
        row.network_speedup, row.frame_speedup, row.cpu_speedup = (
            float(np.median(np.median(theirs, 1) / np.median(ours, 1)))
            for theirs, ours in zip(times[0], own))


def _network_alone(run: Callable[[Tensor], Any], x: Tensor, device: torch.device) -> Callable[[], None]:
    def alone() -> None:
        run(x)
        _finish(device)
    return alone


def _stream_fps(segment: Segmenter, frames: list[np.ndarray], count: int) -> float:
    for _ in segment.stream(frames[i % len(frames)] for i in range(4)):
        pass  # the first frames allocate the buffers
    began = perf_counter()
    done = sum(1 for _ in segment.stream(frames[i % len(frames)] for i in range(count)))
    return done / (perf_counter() - began)


def _segment(segment: Segmenter, frame: np.ndarray) -> None:
    segment([frame])


def _take_turns(runs: list[tuple[Callable[[], None], Callable[[np.ndarray], Any]]], frames: list[np.ndarray],
                device: torch.device, rounds: int, each: int) -> Iterator[list[tuple[np.ndarray, ...]]]:
    """
    Time blocks of calls in turns.

    Yields after each round, for each contender, three arrays (rounds so far, each) of ms: the network alone,
    the frame, and the CPU time of the frame over all threads.
    """
    times = [tuple(np.zeros((rounds, each)) for _ in range(3)) for _ in runs]
    for alone, whole in runs:
        for frame in frames:
            alone()
            whole(frame)
    for i in range(rounds):
        for (alone, whole), (network_ms, frame_ms, cpu_ms) in zip(runs, times):
            # The first call is not timed: the CPU's caches still hold another contender's data.
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
                cpu_ms[i, j] = 1e3 * (process_time() - busy)
        _finish(device)
        yield [tuple(ms[:i + 1] for ms in own) for own in times]


def _summary(ms: np.ndarray) -> dict[str, float]:
    stats = LatencyStats()
    for value in ms.flat:
        stats.add(float(value))
    return {k: round(v, 3) for k, v in stats.summary().items()}


def _load(name: str) -> tuple[nn.Module, Card, str]:
    """Return the network, its card, and 'trained' or 'random'."""
    if name.endswith('.safetensors'):
        return *weights.load(name), 'trained'
    try:
        return *weights.load(weights.find(name)), 'trained'
    except weights.WeightsError:
        if name not in networks.NETWORKS:
            raise
        log.warning('%s has no packaged weights: it runs with random ones, and its labels are noise', name)
        return *export.random_weights(name, 'camvid', (480, 360)), 'random'


def _frames(resolution: tuple[int, int], count: int = 4) -> list[np.ndarray]:
    """Return test images of CamVid, or of the synthetic street if CamVid is missing, at (width, height)."""
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
    """Return MB (10^6 bytes): torch's peak on a GPU since `start`, or the process's memory in RAM."""
    if device.type == 'cuda':
        if start:
            torch.cuda.reset_peak_memory_stats(device)
            return torch.cuda.memory_allocated(device) / 1e6
        return torch.cuda.max_memory_allocated(device) / 1e6
    return machine.resident_mb()
