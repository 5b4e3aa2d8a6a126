# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Results of `lightseg bench`: their rows, their file, and how they are shown as lines, tables and a plot."""
from collections.abc import Sequence
from dataclasses import dataclass, field
import json
import math
from pathlib import Path
from typing import Any

from ..files import replacing, write_whole

FORMAT = 'lightseg-bench-2'


class ReportError(ValueError):
    """A file that is not a result of `lightseg bench`, or results without anything to draw."""


@dataclass
class BenchRow:
    """
    The figures of one network at one resolution, run by one contender; times are in ms.

    `weights`: 'trained' or 'random'. `miou`: per cent, from the card. `agreement`: per cent of pixels with
    the reference's label. `roofline_ms`: the network can't be faster than this, since the hardware limits
    `bound` ('operations' or 'bytes'). `memory_mb`: growth of the process (CPU), or torch's peak (CUDA).

    `network_ms`: input tensor to logits. `frame_ms`: uint8 frame on the host to uint8 labels on the host.
    `fps`: frames per second at the median of `frame_ms`. `stream_fps`: frames per second where one frame is
    uploaded while another is computed (CUDA). `engine_percent`: share of a frame that is not the network.
    `cpu_ms`: CPU time of a frame, summed over all threads.

    `rounds`: how many rounds the times come from; fewer than were asked for where the run was cut short.
    `eager_...`: median of the reference, plain torch. `..._speedup`: its ratio to ours, median over the
    rounds. The speedup in CPU time is the one to trust on a busy machine.
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
    roofline_ms: float
    bound: str
    memory_mb: float
    network_ms: dict[str, float] = field(default_factory=dict)
    frame_ms: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    fps: float = 0.0
    stream_fps: float | None = None
    engine_percent: float = 0.0
    cpu_ms: float = 0.0
    eager_network_ms: float = 0.0
    eager_frame_ms: float = 0.0
    eager_cpu_ms: float = 0.0
    network_speedup: float = 0.0
    frame_speedup: float = 0.0
    cpu_speedup: float = 0.0


def line(row: BenchRow) -> str:
    """Return a row as one line for a terminal."""
    return (f'{row.network:<8} {row.resolution:>9} {row.backend:>13} {row.precision:<8}  network '
            f'{row.network_ms["p50"]:7.2f} ms ({row.network_speedup:5.2f} x)  frame p50 '
            f'{row.frame_ms["p50"]:7.2f} p95 {row.frame_ms["p95"]:7.2f} p99 {row.frame_ms["p99"]:7.2f} ms '
            f'({row.frame_speedup:5.2f} x) {row.fps:7.1f} fps  CPU {row.cpu_ms:7.2f} ms '
            f'({row.cpu_speedup:5.2f} x)  roofline {row.roofline_ms:6.2f} ms ({row.bound})  '
            f'equal {row.agreement:.3f} %  {row.memory_mb:.0f} MB  {row.weights}')


def means(result: dict[str, Any]) -> list[str]:
    """Return the geometric mean of the networks' speedups: one line per resolution and contender."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in result['rows']:
        groups.setdefault((row['resolution'], row['backend'], row['precision']), []).append(row)
    out = []
    for (resolution, backend, precision), rows in groups.items():
        network, frame, cpu = (
            math.exp(sum(math.log(r[f'{k}_speedup']) for r in rows) / len(rows))
            for k in ('network', 'frame', 'cpu'))
        out.append(f'{resolution} {backend} {precision}: {len(rows)} networks, geometric mean over plain '
                   f'torch float32: network {network:.2f} x, frame {frame:.2f} x, CPU time {cpu:.2f} x')
    return out


def plot(paths: Sequence[Path], out: Path) -> Path:
    """
    Draw accuracy against speed, with one disc per row whose area is the number of parameters.

    `paths`: files that `write` made; rows without a measured mIoU are left out. `ReportError` if no row is
    left.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot, ticker
    rows = []
    for path in paths:
        result = read(path)
        rows += [r | {'device': result['device']} for r in result.get('rows', []) if r['miou'] is not None]
    if not rows:
        raise ReportError('no row of these results has an mIoU: write it into the weights with '
                          '"lightseg evaluate --record", then measure again')
    kinds = sorted({(r['device'], r['resolution'], r['backend'], r['precision']) for r in rows})
    figure, axes = pyplot.subplots(figsize=(9, 6), layout='constrained')
    for i, kind in enumerate(kinds):
        chosen = [r for r in rows if (r['device'], r['resolution'], r['backend'], r['precision']) == kind]
        axes.scatter([r['fps'] for r in chosen], [r['miou'] for r in chosen], alpha=0.6, color=f'C{i}',
                     s=[r['parameters'] / 3000 for r in chosen], label=', '.join(kind))
    for name, miou in sorted({(r['network'], r['miou']) for r in rows}):
        speeds = [r['fps'] for r in rows if (r['network'], r['miou']) == (name, miou)]
        axes.plot(speeds, [miou] * len(speeds), color='0.8', zorder=0)
        # Above the slowest disc, since another network's disc may lie beside it.
        axes.annotate(name, (min(speeds), miou), (0, 16), textcoords='offset points', ha='center')
    axes.set_xlim(0.7 * min(r['fps'] for r in rows), 1.4 * max(r['fps'] for r in rows))
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel('frames per second, uint8 image to uint8 labels (median)')
    axes.set_ylabel('mIoU, % (from the weights file)')
    axes.margins(y=0.15)
    legend = figure.legend(loc='outside lower center', ncols=2, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]
    axes.set_title('accuracy against speed; the area of a disc is the number of parameters')
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=120, format=out.suffix.lstrip('.') or 'png')
    pyplot.close(figure)
    return out


def table(paths: Sequence[Path]) -> str:
    """Return results as Markdown tables: the networks, then the node through DDS."""
    results = [read(path) for path in paths]
    lines = []
    for result in results:
        lines += [f'{result["device"]}, {result["cores"]} cores, {result["date"][:10]}, '
                  + ', '.join(f'{k} {v}' for k, v in result['versions'].items()), '']
        if result.get('rows'):
            lines += ['| network | size | backend | precision | network ms | frame ms p50 / p95 / p99 | fps '
                      '| faster than plain torch | roofline ms | equal labels % |', '|---' * 10 + '|']
        for r in result.get('rows', []):
            ms = r['frame_ms']
            name = r['network'] + ('' if r['weights'] == 'trained' else ' (random weights)')
            if r.get('rounds', 0) < result.get('rounds', 0):
                name += f' ({r["rounds"]} of {result["rounds"]} rounds)'
            lines.append(
                f'| {name} | {r["resolution"]} | {r["backend"]} | {r["precision"]} | '
                f'{r["network_ms"]["p50"]:.1f} | {ms["p50"]:.1f} / {ms["p95"]:.1f} / {ms["p99"]:.1f} | '
                f'{r["fps"]:.0f} | {r["frame_speedup"]:.1f} x | {r["roofline_ms"]:.1f} ({r["bound"]}) | '
                f'{r["agreement"]:.2f} |')
        if result.get('ros_rows'):
            lines += ['| image | overlay | Hz | latency ms p50 / p95 / p99 | network ms | lost % '
                      '| CPU % | memory MB | highest Hz |', '|---' * 9 + '|']
        for r in result.get('ros_rows', []):
            ms = r['latency_ms']
            memory = f'{r["memory_mb"]:.0f} ({r["memory_growth_mb"]:+.0f})' if 'memory_mb' in r else ''
            lines.append(
                f'| {r["size"]} | {"yes" if r["overlay"] else ""} | {r["rate_hz"]:g} | {ms["p50"]:.1f} / '
                f'{ms["p95"]:.1f} / {ms["p99"]:.1f} | {r["stages"].get("network", 0):.1f} | '
                f'{r["loss_percent"]:.1f} | {r["cpu_percent"]:.0f} | {memory} | '
                f'{r["highest_rate_hz"]:.0f} |')
        if result.get('ros_subscribers'):
            lines += ['', '| image | Hz | subscriber besides the label | age of labels ms p50 / p95 |',
                      '|---' * 4 + '|']
        for r in result.get('ros_subscribers', []):
            ms = r['latency_ms']
            lines.append(f'| {r["size"]} | {r["rate_hz"]:g} | {r["subscriber"]} | {ms["p50"]:.1f} / '
                         f'{ms["p95"]:.1f} |')
        if result.get('ros_idle'):
            lines += ['', '| image | Hz | lazy | CPU % without a subscriber |', '|---' * 4 + '|']
        for r in result.get('ros_idle', []):
            lines.append(f'| {r["size"]} | {r["rate_hz"]:g} | {r["lazy"]} | {r["cpu_percent"]:.1f} |')
        lines.append('')
    return '\n'.join(lines)


def read(path: Path) -> dict[str, Any]:
    """Read a result that `write` made; `ReportError` for any other file."""
    try:
        result = json.loads(path.read_text())
    except ValueError as e:
        raise ReportError(f'{path} is not a result of "lightseg bench": {e}') from e
    found = result.get('format') if isinstance(result, dict) else None
    if found != FORMAT:
        raise ReportError(f'{path} is not a result of this version of "lightseg bench": its format is '
                          f'{found!r}, expected {FORMAT!r}; measure again')
    return result


def write(result: dict[str, Any], path: Path) -> None:
    """Write a result as indented JSON."""
    write_whole(path, json.dumps(result, indent=1) + '\n')
