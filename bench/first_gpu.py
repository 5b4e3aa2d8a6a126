# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What `first_gpu.sh` runs on a GPU: versions, faults made on purpose, every convolution timed."""
import json
import os
from pathlib import Path
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from lightseg_ros import networks
from lightseg_ros.inference import folding, fusing, kernels, segmenter
from lightseg_ros.inference.fused import FusedBranches, FusedConv

OUT = Path(os.environ.get('OUT', '.'))
SIZE = (512, 1024)
Fused = FusedConv | FusedBranches


def versions() -> None:
    """Print what the figures depend on."""
    import sysconfig
    print('torch', torch.__version__, 'CUDA', torch.version.cuda, 'cuDNN', torch.backends.cudnn.version())
    print('Triton', kernels.available and kernels.triton.__version__,
          'Python headers', Path(sysconfig.get_paths()['include'], 'Python.h').exists())
    for i in range(torch.cuda.device_count()):
        print(i, torch.cuda.get_device_properties(i))
    print('the GPU', segmenter.parse_device('cuda')[0], 'computes')


def faults() -> None:
    """Make what a robot meets: BGR after the warm-up, captures that fail, full memory, a second GPU."""
    segment = segmenter.load('laanet', 'cuda')
    report = Report()
    with report('warm-up at 640x480'):
        segment.warm_up(480, 640)
    engine = segment._engine
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    made = sum(map(len, engine._buffers.values()))
    with report('the first BGR frame after it captures nothing'):
        segment(frame[..., ::-1])
        assert sum(map(len, engine._buffers.values())) == made
    expected = segment(frame).labels
    logits = engine.pipeline.logits

    def waits(x: torch.Tensor) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            x.sum().item()
        return logits(x)

    engine.pipeline.logits = waits
    with report('a size whose capture fails runs eagerly'):
        segment(frame[:96, :128])
    engine.pipeline.logits = logits
    with report('the next size is captured, and the first one still right'):
        segment(frame[:128, :128])
        assert np.array_equal(segment(frame).labels, expected)
    with report('captured equals eager'):
        eager = segmenter.load('laanet', 'cuda', graph=False)(frame).labels
        assert (eager == expected).mean() > 0.9999
    with report('fused, in float16, equals torch in float32'):
        plain = segmenter.load('laanet', 'cuda', precision='float32', graph=False)(frame).labels
        assert (plain == expected).mean() > 0.995, (plain == expected).mean()
    bias = engine.pipeline.model.network.classifier.bias
    before = bias.clone()
    with report('a frame whose logits are not finite fails, and the next one is right'):
        bias[0] = torch.nan
        try:
            segment(frame)
            raise AssertionError('labels of NaN were given')
        except segmenter.SegmenterError as e:
            print(e)
        bias.copy_(before)
        torch.cuda.synchronize()
        assert np.array_equal(segment(frame).labels, expected)
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + 3e8) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    large = np.zeros((1080, 1920, 3), np.uint8)
    with report('a batch that does not fit is said so'):
        try:
            segment([large] * 64)
            print('it fits')
        except segmenter.OutOfMemory as e:
            print(e)
    with report('and a single frame runs after it'):
        segment(large)
    torch.cuda.set_per_process_memory_fraction(1.0)
    if torch.cuda.device_count() > 1:
        with report('cuda:1 leaves GPU 0 alone'):
            used = torch.cuda.memory_reserved(0)
            segmenter.load('laanet', 'cuda:1')(frame)
            assert torch.cuda.memory_reserved(0) == used
    print({name: f'{mb:.0f}' for name, mb in engine.memory_mb().items()})
    sys.exit(report.failed)


class Report:
    """Prints what was tried, how long it took and what went wrong; counts what did."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, what: str) -> 'Report':
        self.what = what
        return self

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> bool:
        seconds = time.monotonic() - self.began
        wrong = isinstance(error, Exception)
        self.failed += wrong
        outcome = f'FAILED: {kind.__name__ if kind else ""} {error}' if wrong else 'ok'
        print(f'{self.what}: {outcome} ({1e3 * seconds:.0f} ms)', flush=True)
        return wrong


def convolutions() -> None:
    """Time each kind of convolution of the networks: ours, and cuDNN's with torch's operations around it."""
    rows, began = [], time.monotonic()
    for name in networks.PAPER_NETWORKS:
        network = folding.fold(networks.build(name, 11).eval(), widen=True).half().cuda()
        network = fusing.fuse(network).to(memory_format=torch.channels_last)
        kinds: dict[tuple, list] = {}

        def note(conv: Fused, args: tuple, out: torch.Tensor, kinds: dict = kinds) -> None:
            added = len(args) > 1 and args[1] is not None
            key = (tuple(args[0].shape), *described(conv).values(), added)
            kinds.setdefault(key, [conv, out.shape, 0])[2] += 1

        for module in network.modules():
            if isinstance(module, Fused):
                module.register_forward_hook(note)
        with torch.inference_mode():
            x = torch.randn(1, 3, *SIZE, device='cuda').half().contiguous(memory_format=torch.channels_last)
            network.forward_logits(x)
            for (shape, *_, added), (conv, out, count) in kinds.items():
                if time.monotonic() - began > 110:
                    break
                rows.append({'network': name, 'count': count, 'x': shape, **described(conv), 'add': added,
                             **timed(conv, shape, out if added else None)})
        mine = [r for r in rows if r['network'] == name]
        ours, nhwc, best = (sum(r['count'] * r[k] for r in mine) / 1e3 for k in ('ours', 'nhwc', 'best'))
        print(f'{name}: convolutions {ours:.3f} ms fused, {nhwc:.3f} by cuDNN and torch, {best:.3f} the best '
              'of both', flush=True)
        (OUT / 'convolutions.json').write_text(json.dumps(rows, indent=1))


def described(conv: Fused) -> dict[str, object]:
    """Return what the time of a convolution depends on; of branches, the steps of each."""
    if isinstance(conv, FusedBranches):
        return {'weight': (*conv.taps.shape,), 'dilation': str(conv.steps.tolist()), 'stride': 1,
                'norm': False, 'branches': 'summed' if conv.together else 'side by side'}
    return {'weight': (*conv.weight.shape,), 'dilation': conv.dilation, 'stride': conv.stride,
            'norm': conv.pre is not None, 'branches': ''}


def timed(conv: Fused, shape: tuple, added: tuple | None) -> dict[str, float]:
    """Return the microseconds of a convolution of (N, C, H, W) by our kernel and by cuDNN in both layouts."""
    x = torch.randn(shape, device='cuda').half()
    last = x.contiguous(memory_format=torch.channels_last)
    add = None if added is None else torch.randn(added, device='cuda').half()
    add_last = None if add is None else add.contiguous(memory_format=torch.channels_last)
    found = {'ours': microseconds(lambda: conv.run(last, add_last)),
             'nhwc': microseconds(lambda: by_torch(conv, last, add_last)),
             'nchw': microseconds(lambda: by_torch(conv, x, add))}
    return found | {'best': min(found['ours'], found['nhwc'])}


def by_torch(conv: Fused, x: torch.Tensor, add: torch.Tensor | None) -> torch.Tensor:
    """What `conv` computes, by cuDNN and torch's own operations in half precision."""
    if isinstance(conv, FusedBranches):
        each = len(conv.convs[0].bias)
        parts = x.split(each, 1) if x.shape[1] > each else len(conv.convs) * [x]
        found = [by_torch(c, part, None) for c, part in zip(conv.convs, parts)]
        y = found[0] + found[1] if conv.together else torch.cat(found, 1)
        return y if add is None else y + add
    if conv.pre is not None:
        scale, shift, slope = (t.half() for t in conv.pre)
        x = F.prelu(torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1)), slope)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        y = F.conv2d(x, conv.weight, conv.bias.half(), conv.stride, conv.padding, conv.dilation, conv.groups)
    y = torch.sigmoid(y) if conv.sigmoid else F.prelu(y, conv.slope.half())
    return y if add is None else y + add


def microseconds(run: object, count: int = 20) -> float:
    """The shortest of five replays of a graph that holds a call `count` times, for each of them."""
    assert callable(run)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(count):
            run()
    best = float('inf')
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3 / count)
    return best


if __name__ == '__main__':
    {'versions': versions, 'faults': faults, 'convolutions': convolutions}[sys.argv[1]]()
