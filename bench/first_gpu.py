# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What `first_gpu.sh` runs on a GPU: versions, tests, faults made on purpose, every convolution timed."""
import importlib
import itertools
import json
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any
from unittest import mock
import zlib

import numpy as np
import torch
import torch.nn.functional as F

from lightseg_ros import networks
from lightseg_ros.inference import folding, fusing, kernels
from lightseg_ros.inference.fused import FusedBranches, FusedConv

OUT = Path(os.environ.get('OUT', '.'))
SIZE = (512, 1024)
Fused = FusedConv | FusedBranches


def versions() -> None:
    """Print what the figures depend on; the exit status is 3 where torch can't use a GPU."""
    import sysconfig
    print('torch', torch.__version__, 'CUDA', torch.version.cuda, 'cuDNN', torch.backends.cudnn.version())
    print('Triton', kernels.available and kernels.triton.__version__,
          'Python headers', Path(sysconfig.get_paths()['include'], 'Python.h').exists())
    for package in 'numpy', 'cv2', 'safetensors', 'yaml', 'pytest', 'numba':
        try:
            print(package, getattr(importlib.import_module(package), '__version__', ''))
        except ImportError as e:
            print(f'{package} can not be imported: {e}')
    for i in range(torch.cuda.device_count()):
        print(i, torch.cuda.get_device_properties(i))
    try:
        torch.cuda.init()
        reason = unusable()
    except (AssertionError, RuntimeError) as e:  # torch for a CPU, or no driver
        reason = str(e).splitlines()[0]
    if reason:
        print(f"torch {torch.__version__} can't use a GPU here ({reason}): install a torch build with CUDA, "
              "and the GPU's driver, see docs/gpu.md")
        sys.exit(3)
    print('the GPU computes')


def faults() -> None:
    """Make what a robot meets: BGR after the warm-up, full memory, a second GPU, captures that fail."""
    from lightseg_ros.inference import segmenter
    from lightseg_ros.inference.cuda import CudaEngine
    from lightseg_ros.synthetic.street import Street
    segment = segmenter.load('laanet', 'cuda')
    report = Report()
    with report('warm-up at 640x480'):
        segment.warm_up(480, 640)
    engine = segment._engine
    assert isinstance(engine, CudaEngine)
    frame = Street(640, 480).render(3.0)[0]
    made = sum(len(b) for b in engine._buffers.values())
    with report('the first BGR frame after it captures nothing'):
        segment(frame[..., ::-1])
        assert sum(len(b) for b in engine._buffers.values()) == made
    expected = segment(frame).labels
    with report('captured equals eager'):
        eager = segmenter.load('laanet', 'cuda', graph=False)(frame).labels
        same_labels(eager, expected, 0.9999)
    with report('fused, in float16, equals torch in float32'):
        plain = segmenter.load('laanet', 'cuda', precision='float32', graph=False)(frame).labels
        same_labels(plain, expected, 0.995)
    bias = engine.pipeline.model.network.classifier.bias
    before = bias.clone()
    with report('a frame whose logits are not finite fails, and the next one is right'):
        bias[0] = torch.nan
        torch.cuda.synchronize()  # the engine's streams do not wait for the default one
        try:
            segment(frame)
            raise AssertionError('labels of NaN were given')
        except segmenter.SegmenterError as e:
            print(e)
        finally:
            bias.copy_(before)
            torch.cuda.synchronize()
        same_labels(segment(frame).labels, expected)
    with report('memory is limited to 300 MB more'):
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
    print({name: f'{mb:.0f}' for name, mb in engine.memory_mb().items()}, flush=True)
    failing_capture(report, segment, frame, expected)
    sys.exit(min(report.failed, 1))


def failing_capture(report: 'Report', segment: Any, frame: np.ndarray,
                    expected: np.ndarray) -> None:
    """The last of the faults, since torch may keep something of a capture that failed."""
    pipeline = segment._engine.pipeline
    logits, warnings = pipeline.logits, Warnings()
    logging.getLogger('lightseg_ros').addHandler(warnings)

    def waits(x: torch.Tensor) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            x.sum().item()
        return logits(x)

    pipeline.logits = waits
    with report('a size whose capture fails runs eagerly, and says so'):
        segment(frame[:96, :128])
        assert warnings.texts, 'the capture has not failed'
    del pipeline.logits
    warnings.texts.clear()
    with report('the next size is captured'):
        segment(frame[:128, :128])
        assert not warnings.texts, warnings.texts
    with report('the first size is still right'):
        same_labels(segment(frame).labels, expected)
    with report('cached memory can be given back'):
        torch.cuda.empty_cache()


class Warnings(logging.Handler):
    """Keeps what is logged at its level or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def same_labels(found: np.ndarray, expected: np.ndarray, least: float = 1.0) -> None:
    """Fail, and say how many are equal, unless at least that share is."""
    share = float((found == expected).mean())
    print(f'{100 * share:.4f} % of the labels are equal')
    assert share >= least, f'expected {100 * least:.2f} % or more'


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


def convolutions(seconds: str) -> None:
    """
    Time each kind of convolution of the networks: ours, and cuDNN's with torch's operations around it.

    It stops itself so many seconds after the start of the process.
    """
    rows: list[dict] = []
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
                if age() > float(seconds):
                    break
                rows.append({'network': name, 'count': count, 'x': shape, **described(conv), 'add': added,
                             **timed(conv, shape, out if added else None)})
                (OUT / 'convolutions.json').write_text(json.dumps(rows, indent=1))
        mine = [r for r in rows if r['network'] == name and 'failed' not in r]
        ours, nhwc, best = (sum(r['count'] * r[k] for r in mine) / 1e3 for k in ('ours', 'nhwc', 'best'))
        print(f'{name}: {len(mine)} of {len(kinds)} kinds of convolutions: {ours:.3f} ms fused, '
              f'{nhwc:.3f} by cuDNN and torch, {best:.3f} the best of both', flush=True)


def age() -> float:
    """Return how many seconds ago this process began."""
    ticks = int(Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')


def described(conv: Fused) -> dict[str, object]:
    """Return what the time of a convolution depends on; of branches, the steps of each."""
    if isinstance(conv, FusedBranches):
        return {'weight': (*conv.taps.shape,), 'dilation': str(conv.steps.tolist()), 'stride': 1,
                'norm': False, 'branches': 'summed' if conv.together else 'side by side'}
    return {'weight': (*conv.weight.shape,), 'dilation': conv.dilation, 'stride': conv.stride,
            'norm': conv.pre is not None, 'branches': ''}


def timed(conv: Fused, shape: tuple, added: tuple | None) -> dict[str, Any]:
    """Return the microseconds of a convolution of (N, C, H, W) by our kernel and by cuDNN in both layouts."""
    try:
        return measured(conv, shape, added)
    except Exception as e:
        if unusable():
            raise
        print(f'{shape}, {described(conv)}: {type(e).__name__} {e}', flush=True)
        return {'failed': str(e)}


def measured(conv: Fused, shape: tuple, added: tuple | None) -> dict[str, Any]:
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
        found = [by_torch(c, part, None) for c, part in zip(conv.convs, parts)][conv.add_first:]
        y = sum(found[1:], found[0]) if conv.together else torch.cat(found, 1)
        y = y if add is None else y + add
        return by_torch(conv.convs[0], parts[0], y) if conv.add_first else y
    if conv.pre is not None:
        scale, shift, slope = (t.half() for t in conv.pre)
        x = F.prelu(torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1)), slope)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        y = F.conv2d(x, conv.weight, conv.bias.half(), conv.stride, conv.padding, conv.dilation, conv.groups)
    if add is not None and conv.add_first:
        y = y + add
    y = torch.sigmoid(y) if conv.sigmoid else F.prelu(y, conv.slope.half())
    return y if add is None or conv.add_first else y + add


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


def unusable() -> str:
    """Return why every later call of CUDA in this process fails; '' while that is not so."""
    if not torch.cuda.is_initialized():
        return ''
    try:
        return '' if float((torch.ones(8, device='cuda') * 2).sum()) == 16 else 'it computes wrong results'
    except RuntimeError as e:
        return str(e).splitlines()[0]


class AtOnce:
    """
    A plugin of pytest: prints what fails at once, and stops when the GPU is lost to the process.

    Of `count` processes that share the tests, this is the one at `place`.
    """

    def __init__(self, place: int, count: int) -> None:
        self.place, self.count = place, count
        self.done: list[str] = []
        self.lost = self.failed = False

    def pytest_sessionstart(self, session: Any) -> None:
        self.session = session

    def pytest_collection_modifyitems(self, config: Any, items: list) -> None:
        # By name and not by place in the list, which gets shorter when a process goes on after another one.
        items[:] = [item for item in items if zlib.crc32(item.nodeid.encode()) % self.count == self.place]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = True
            print(f'\nFAILED {report.nodeid}\n{report.longreprtext}', flush=True)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.done.append(nodeid)
        if self.failed and (reason := unusable()):
            print(f'the GPU is lost: {reason}', flush=True)
            self.lost, self.session.shouldstop = True, reason


def tests(*arguments: str) -> None:
    """
    Run tests marked `gpu`; `arguments` are pytest's. Without pytest, kernels are compared with their twins.

    A CUDA error that stays costs one test: those after it run in a new process.
    """
    try:
        import pytest
    except ImportError:
        print('pytest is not installed: only kernels are compared with their twins', flush=True)
        twins([Path(a).stem for a in arguments if a.endswith('.py')])
        return
    share = os.environ.get('SHARE')
    if share is None:
        sys.exit(in_processes(arguments))
    plugin = AtOnce(*map(int, share.split('/')))
    code = pytest.main(['-m', 'gpu', '-vv', '-p', 'no:cacheprovider', '--tb=short',
                        '--continue-on-collection-errors', '-o', 'faulthandler_timeout=40', *arguments],
                       [plugin])
    if not plugin.lost:
        none = code == pytest.ExitCode.NO_TESTS_COLLECTED
        sys.exit(1 if 'FAILED' in os.environ else 0 if none else code)
    os.environ['FAILED'] = '1'
    sys.stdout.flush()
    left = [f'--deselect={name}' for name in plugin.done]
    os.execv(sys.executable, [sys.executable, __file__, 'tests', *arguments, *left])


def in_processes(arguments: tuple[str, ...]) -> int:
    """Let processes share the tests, which is mostly Triton's compiler; return how many failed."""
    count = max(1, min(6, len(os.sched_getaffinity(0)) // 2))
    processes = [subprocess.Popen(
        [sys.executable, __file__, 'tests', *arguments], env=os.environ | {'SHARE': f'{i}/{count}'},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace') for i in range(count)]
    # At the limit of the step SIGABRT reaches every process. This one has nothing to say of itself, and stays
    # to relay where the others hang.
    signal.signal(signal.SIGABRT, signal.SIG_IGN)

    def relay(place: int, stream: Any) -> None:
        for line in stream:
            # Whole lines, so that those of two processes do not mix within a line.
            sys.stdout.write(line if count == 1 else f'{place}| {line}')

    threads = [threading.Thread(target=relay, args=(i, p.stdout)) for i, p in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(p.wait() != 0 for p in processes)


def twins(names: list[str]) -> None:
    """Compare kernels with their twins, by what test_kernels.py and test_fusing.py have for it."""
    sys.modules['pytest'] = mock.MagicMock()
    sys.path.insert(0, str(Path(__file__).parents[1] / 'test'))
    report = Report()
    if 'test_kernels' in names:
        import test_kernels
        for shape, dtype in itertools.product(test_kernels.SIZES, test_kernels.DTYPES):
            with report(f'before and after a network: {shape}, {dtype}'):
                test_kernels.check_fused(shape, dtype, 'cuda')
    if 'test_fusing' in names:
        import test_fusing
        for shape, dtype in itertools.product(test_fusing.SHAPES, (torch.float16, torch.bfloat16)):
            with report(f'convolution: {shape}, {dtype}'):
                test_fusing.check(shape, dtype, 'cuda')
        for channels, block in test_fusing.blocks():
            with report(f'block: {type(block).__name__}, {channels} channels'):
                test_fusing.check_block(channels, block, 'cuda')
        for sizes in test_fusing.GATES:
            with report(f'gate: {sizes}'):
                test_fusing.check_gate(*sizes, 'cuda')
    sys.exit(min(report.failed, 1))


if __name__ == '__main__':
    {'versions': versions, 'tests': tests, 'faults': faults,
     'convolutions': convolutions}[sys.argv[1]](*sys.argv[2:])
