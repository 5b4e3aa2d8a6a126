# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
How fast: network alone and frame to labels, beside plain torch in the same run and the floor of the hardware.

Contenders and reference take turns in short blocks, so that whatever else the machine does hits all of them;
ratios are medians over these rounds. Before anything is timed, labels are compared with the reference's.
"""
from collections.abc import Callable, Sequence
import copy
from dataclasses import asdict, dataclass, field
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
from time import perf_counter, process_time
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn, Tensor

from .. import __version__, datasets, info, machine, networks, weights
from ..inference import export, segmenter
from ..inference.segmenter import Segmenter
from ..metrics import LatencyStats
from ..weights import Card

log = logging.getLogger(__name__)

FORMAT = 'lightseg-bench-1'
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


@dataclass
class Row:
    """
    What was measured of one network, resolution and contender.

    Times in ms; `network_ms`: input tensor to logits, `frame_ms`: uint8 frame on the host to uint8 labels on
    the host, `fps`: one such frame after the other, `stream_fps`: with one uploaded while another is
    computed (CUDA), `engine_percent`: share of a frame that is not the network, `processor_ms`: what a frame
    costs all cores together, `eager_...`: the reference's median, `..._speedup`: median ratio to it over the
    rounds (of processor time too, which other load does not touch).
    `agreement`: percent of pixels with the reference's label. `floor_ms`: no version of the network is
    faster than this, for `bound` ('operations' or 'bytes'). `memory_mb`: what the process grew by (CPU), or
    the peak that torch held (CUDA).
    """

    network: str
    weights: str
    parameters: int
    miou: float | None
    resolution: str
    backend: str
    precision: str
    threads: int
    agreement: float
    floor_ms: float
    bound: str
    memory_mb: float
    network_ms: dict[str, float] = field(default_factory=dict)
    frame_ms: dict[str, float] = field(default_factory=dict)
    fps: float = 0.0
    stream_fps: float | None = None
    engine_percent: float = 0.0
    processor_ms: float = 0.0
    eager_network_ms: float = 0.0
    eager_frame_ms: float = 0.0
    eager_processor_ms: float = 0.0
    network_speedup: float = 0.0
    frame_speedup: float = 0.0
    processor_speedup: float = 0.0


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
    `out`: file that is written after every network, so that what ends the run does not take all with it.
    """
    rows: list[Row] = []
    rates: dict[str, dict[str, float]] = {}
    result: dict[str, Any] = {**environment(device), 'rates': rates}
    for name in names:
        network, card, kind = _load(name)
        for resolution in resolutions:
            rows += _bench_network(network, card, kind, _frames(resolution), contenders, device=device,
                                   threads=threads, rounds=rounds, each=each, rates=rates, strict=strict)
            for row in rows[-len(contenders):]:
                print(line(row), flush=True)
        result['rows'] = [asdict(r) for r in rows]
        if out:
            write(result, out)
    return result


def line(row: Row) -> str:
    """Spell a row for a terminal."""
    return (f'{row.network:<8} {row.resolution:>9} {row.backend:>13} {row.precision:<8}  network '
            f'{row.network_ms["p50"]:7.2f} ms ({row.network_speedup:5.2f} x)  frame p50 '
            f'{row.frame_ms["p50"]:7.2f} p95 {row.frame_ms["p95"]:7.2f} p99 {row.frame_ms["p99"]:7.2f} ms '
            f'({row.frame_speedup:5.2f} x) {row.fps:7.1f} fps  processor {row.processor_ms:7.2f} ms '
            f'({row.processor_speedup:5.2f} x)  floor {row.floor_ms:6.2f} ms ({row.bound})  '
            f'equal {row.agreement:.3f} %  {row.memory_mb:.0f} MB  {row.weights}')


def means(result: dict[str, Any]) -> list[str]:
    """Geometric means over the networks of the speedups, a line for each resolution and contender."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in result['rows']:
        groups.setdefault((row['resolution'], row['backend'], row['precision']), []).append(row)
    out = []
    for (resolution, backend, precision), rows in groups.items():
        network, frame, processor = (
            math.exp(sum(math.log(r[f'{k}_speedup']) for r in rows) / len(rows))
            for k in ('network', 'frame', 'processor'))
        out.append(f'{resolution} {backend} {precision}: {len(rows)} networks, geometric mean over plain '
                   f'torch float32: network {network:.2f} x, frame {frame:.2f} x, processor time '
                   f'{processor:.2f} x')
    return out


def environment(device: str = 'auto') -> dict[str, Any]:
    """Return what a result is stamped with: device, versions, date, load of the machine."""
    where, _ = segmenter.parse_device(device)
    versions = {'lightseg_ros': __version__, 'python': platform.python_version(), 'torch': torch.__version__}
    for package in ('openvino', 'onnxruntime', 'triton'):
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package)
    return {
        'format': FORMAT, 'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'device': torch.cuda.get_device_name(where) if where.type == 'cuda' else machine.processor_name(),
        'cores': len(os.sched_getaffinity(0)), 'load': round(os.getloadavg()[0], 2), 'versions': versions}


def plot(paths: Sequence[Path], out: Path) -> Path:
    """
    Draw accuracy against speed, a disc as large as the network, as the papers' first figures do.

    `paths`: results as `write` leaves them; rows without an accuracy are left out. `BenchError` if none is
    left.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot, ticker
    rows = []
    for path in paths:
        result = _read(path)
        rows += [r | {'device': result['device']} for r in result.get('rows', []) if r['miou'] is not None]
    if not rows:
        raise BenchError('no row of these results has an accuracy: their weights do not name one')
    kinds = sorted({(r['device'], r['resolution'], r['backend'], r['precision']) for r in rows})
    figure, axes = pyplot.subplots(figsize=(9, 6), layout='constrained')
    for i, kind in enumerate(kinds):
        chosen = [r for r in rows if (r['device'], r['resolution'], r['backend'], r['precision']) == kind]
        axes.scatter([r['fps'] for r in chosen], [r['miou'] for r in chosen], alpha=0.6, color=f'C{i}',
                     s=[r['parameters'] / 3000 for r in chosen], label=', '.join(kind))
    for name, miou in sorted({(r['network'], r['miou']) for r in rows}):
        speeds = [r['fps'] for r in rows if (r['network'], r['miou']) == (name, miou)]
        axes.plot(speeds, [miou] * len(speeds), color='0.8', zorder=0)
        # Above its slowest disc: beside it, another's may lie.
        axes.annotate(name, (min(speeds), miou), (0, 16), textcoords='offset points', ha='center')
    axes.set_xlim(0.7 * min(r['fps'] for r in rows), 1.4 * max(r['fps'] for r in rows))
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel('frames a second, uint8 frame to uint8 labels (median)')
    axes.set_ylabel('mIoU, % (as the weights name it)')
    axes.margins(y=0.15)
    legend = figure.legend(loc='outside lower center', ncols=2, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]
    axes.set_title('accuracy against speed; a disc is as large as the network has parameters')
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    return out


def table(paths: Sequence[Path]) -> str:
    """Spell results as Markdown tables: networks first, then the node through DDS."""
    results = [_read(path) for path in paths]
    lines = []
    for result in results:
        lines += [f'{result["device"]}, {result["cores"]} cores, {result["date"][:10]}, '
                  + ', '.join(f'{k} {v}' for k, v in result['versions'].items()), '']
        if result.get('rows'):
            lines += ['| network | size | backend | precision | network ms | frame ms p50 / p95 / p99 | fps '
                      '| faster than plain torch | floor ms | equal labels % |', '|---' * 10 + '|']
        for r in result.get('rows', []):
            ms = r['frame_ms']
            name = r['network'] + ('' if r['weights'] == 'trained' else ' (random weights)')
            lines.append(
                f'| {name} | {r["resolution"]} | {r["backend"]} | {r["precision"]} | '
                f'{r["network_ms"]["p50"]:.1f} | {ms["p50"]:.1f} / {ms["p95"]:.1f} / {ms["p99"]:.1f} | '
                f'{r["fps"]:.0f} | {r["frame_speedup"]:.1f} x | {r["floor_ms"]:.1f} ({r["bound"]}) | '
                f'{r["agreement"]:.2f} |')
        if result.get('ros_rows'):
            lines += ['| image | overlay | Hz | latency ms p50 / p95 / p99 | network ms | lost % '
                      '| processor % | memory MB | highest Hz |', '|---' * 9 + '|']
        for r in result.get('ros_rows', []):
            ms = r['latency_ms']
            memory = f'{r["memory_mb"]:.0f} ({r["memory_growth_mb"]:+.0f})' if 'memory_mb' in r else ''
            lines.append(
                f'| {r["size"]} | {"yes" if r["overlay"] else ""} | {r["rate_hz"]:g} | {ms["p50"]:.1f} / '
                f'{ms["p95"]:.1f} / {ms["p99"]:.1f} | {r["stages"].get("network", 0):.1f} | '
                f'{r["loss_percent"]:.1f} | {r["processor_percent"]:.0f} | {memory} | '
                f'{r["highest_rate_hz"]:.0f} |')
        lines.append('')
    return '\n'.join(lines)


def _read(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text())
    if result.get('format') != FORMAT:
        raise BenchError(f'{path} is no result of "lightseg bench": format {result.get("format")!r}, '
                         f'expected {FORMAT!r}')
    return result


def write(result: dict[str, Any], path: Path) -> None:
    """Write a result as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n')


def startup(model: str, *, device: str = 'auto', backend: str = 'auto', precision: str = 'auto',
            repeats: int = 5) -> dict[str, float]:
    """
    Seconds from the start of a Python process to its first label of a 640x480 frame.

    `first`: with an empty cache, where the network is converted and compiled; `p50`, `max`: of `repeats`
    processes after it, which find it on disk.
    """
    code = ('import sys, numpy as np\nfrom lightseg_ros.inference import segmenter\n'
            'model, device, backend, precision = sys.argv[1:]\n'
            's = segmenter.load(model, device=device, backend=backend, precision=precision)\n'
            's([np.zeros((480, 640, 3), np.uint8)])\nprint("done", flush=True)\n')
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        caches = {'XDG_CACHE_HOME': cache, 'NUMBA_CACHE_DIR': f'{cache}/numba',
                  'TRITON_CACHE_DIR': f'{cache}/triton', 'TORCHINDUCTOR_CACHE_DIR': f'{cache}/inductor'}
        for _ in range(1 + repeats):
            began = perf_counter()
            with subprocess.Popen([sys.executable, '-c', code, model, device, backend, precision], text=True,
                                  env=os.environ | caches, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) as process:
                assert process.stdout and process.stderr
                said = process.stdout.readline()
                seconds.append(perf_counter() - began)
                if said.strip() != 'done':
                    raise BenchError(f'no label of {model}: {process.stderr.read().strip()[-500:]}')
    return {'first': seconds[0], 'p50': float(np.median(seconds[1:])), 'max': max(seconds[1:])}


def cost(network: nn.Module, card: Card, resolution: tuple[int, int], itemsize: int) -> tuple[float, float]:
    """
    Operations and bytes that a network can't do without, for an image of (width, height).

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


class Eager:
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
                   each: int, rates: dict[str, dict[str, float]], strict: bool) -> list[Row]:
    where, _ = segmenter.parse_device(device)
    height, width = frames[0].shape[:2]
    resolution = f'{width}x{height}'
    if threads:
        torch.set_num_threads(threads)
    eager = Eager(network, card, where)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # torch's float32 is TF32 unless told
        truth = [eager.labels(frame) for frame in frames]
    rows: list[Row] = []
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
        floors = {'operations': 1e3 * operations / rate['flops'], 'bytes': 1e3 * moved / rate['bytes']}
        bound = max(floors, key=lambda k: floors[k])
        runs.append((segment.network_alone(frames[0]), functools.partial(_segment, segment)))
        rows.append(Row(
            card.network, kind, sum(p.numel() for p in network.parameters()), _miou(card), resolution,
            segment.backend, segment.precision, threads or torch.get_num_threads(), agreement,
            floors[bound], bound, memory))
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
