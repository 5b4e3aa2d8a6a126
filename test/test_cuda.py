# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The CUDA engine's bookkeeping without a GPU: torch.cuda is replaced by a stand-in that counts captures.

Frames are really computed, on the CPU, so that results are compared too. What only a GPU can show is in the
tests marked `gpu`.
"""
from collections import Counter
import contextlib
import gc
import logging
from pathlib import Path
import re
import shlex
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightseg_ros import cuda_graphs
from lightseg_ros.inference import backends, cuda, kernels, segmenter
from lightseg_ros.inference.segmenter import Segmenter, SegmenterError, Smoother
from lightseg_ros.labels import load as load_labels
from lightseg_ros.weights import Card

SIZE = (96, 128)
ROOT = Path(__file__).resolve().parents[1]


class Event:
    recorded = False

    def record(self, *_):
        self.recorded = True

    def synchronize(self):
        assert self.recorded, 'never recorded'

    def elapsed_time(self, _):
        return 0.1


class Stream:
    def wait_event(self, event):
        assert event.recorded

    def synchronize(self):
        pass


class Gpu:
    """What the stand-in counts, and how it is told to fail."""

    def __init__(self):
        self.captured = 0
        self.pools = 0
        self.underway = []  # pools of captures that torch's allocator takes for unfinished ones
        self.graphs_of = Counter()  # pool -> graphs that it takes for living ones
        self.torch = 2, 11  # whose faults it has
        self.fail_capture = ''
        self.fail_replay = ''
        self.current = None
        self.own = threading.local()  # each thread has a current GPU and a current stream
        self.largest_batch = self.largest_graph = 99
        self.integrated = False
        self.pinned = self.blocking = 0
        self.lost = False
        self.capturing_randomness = False
        self.on_capture = self.on_frame = lambda: None

    @property
    def device(self):
        return getattr(self.own, 'device', None)

    @property
    def stream(self):
        return getattr(self.own, 'stream', None)

    def pool(self):
        self.pools += 1
        return self.pools

    def needs_all(self, *_):
        """What waits for a whole GPU, or gives memory back: an error in any thread while one captures."""
        if self.underway:
            raise RuntimeError('captures_underway.empty() INTERNAL ASSERT FAILED, please report a bug')

    def end(self, _, pool):
        if pool not in self.underway:
            raise RuntimeError('endAllocatePool: not currently recording to mempool_id')
        self.underway.remove(pool)

    def release(self, _, pool):
        self.graphs_of[pool] -= 1
        assert self.graphs_of[pool] >= 0, 'torch ends the process'

    def clone_state(self):
        return 'copied'

    def graphsafe_set_state(self, state):
        self.capturing_randomness = state != 'copied'


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()

    class Graph:
        calls = ()
        begun = ended = None  # the pool

        def pool(self):
            if self.ended is None:
                raise RuntimeError('Called CUDAGraph::pool() without a preceding successful capture.')
            return self.ended

        def __del__(self):
            forgotten = self.begun if gpu.torch >= (2, 14) else self.ended
            if forgotten is not None:
                gpu.release(0, forgotten)

        def replay(self):
            if gpu.fail_replay:
                raise RuntimeError(gpu.fail_replay)
            with torch.inference_mode():  # what a graph writes to was made there
                for pipeline, arguments in self.calls:
                    plain(pipeline, *arguments)

    @contextlib.contextmanager
    def graph(made, pool=None, stream=None, capture_error_mode='global'):
        assert gpu.device, 'a capture synchronises the current GPU, and opens a context there'
        assert pool == gpu.pools, 'the pool of a failed capture is used again'
        torch.cuda.empty_cache()
        gpu.underway.append(pool)
        gpu.graphs_of[pool] += 1
        made.begun = pool
        gpu.capturing_randomness = True
        gpu.current, made.calls = made, []
        gpu.on_capture()
        before, gpu.own.stream = gpu.stream, stream
        try:
            yield
            if gpu.fail_capture:
                raise RuntimeError(gpu.fail_capture)
        except (RuntimeError, KeyboardInterrupt) as e:
            # The end of the capture fails too, and what would come after it is left out.
            if gpu.torch >= (2, 12):
                gpu.end(0, pool)
            raise RuntimeError('CUDA error: failed due to a previous error during capture\nmore lines') from e
        finally:
            gpu.current = None
        gpu.own.stream = before
        gpu.end(0, pool)
        made.ended = pool
        gpu.capturing_randomness = False
        gpu.captured += 1

    @contextlib.contextmanager
    def device(chosen):
        before, gpu.own.device = gpu.device, chosen
        try:
            yield
        finally:
            gpu.own.device = before

    @contextlib.contextmanager
    def stream(chosen):
        before, gpu.own.stream = gpu.stream, chosen
        try:
            yield
        finally:
            gpu.own.stream = before

    plain = cuda.FramePipeline.__call__

    def recorded(self, *arguments):
        if gpu.current is not None:
            gpu.on_frame()
            if len(arguments[0]) > gpu.largest_graph:
                raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.\nmore lines')
            gpu.current.calls.append((self, arguments))
        plain(self, *arguments)

    empty, tensor = torch.empty, torch.tensor

    def on_host(shape, *, pin_memory=False, **k):
        gpu.pinned += pin_memory
        assert gpu.device or not pin_memory, 'pinned memory opens a context on the current GPU'
        if len(shape) > 2 and shape[0] > gpu.largest_batch:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.\nmore lines')
        return empty(shape, **k)

    monkeypatch.setattr(torch, 'empty', on_host)
    monkeypatch.setattr(torch, 'tensor', lambda *a, pin_memory=False, **k: tensor(*a, **k))
    monkeypatch.setattr(cuda.FramePipeline, '__call__', recorded)
    def event(enable_timing, blocking):
        gpu.blocking += blocking
        return Event()

    for name, stand_in in {
            'Stream': lambda *_, **__: Stream(), 'Event': event, 'CUDAGraph': Graph,
            'graph': graph, 'device': device,
            'stream': stream, 'synchronize': gpu.needs_all, 'current_device': lambda: 0,
            'graph_pool_handle': gpu.pool, 'get_device_name': lambda *_: 'stand-in',
            'memory_allocated': lambda *_: 5e6, 'memory_reserved': lambda *_: 7e6,
            'get_device_properties': lambda _: SimpleNamespace(is_integrated=gpu.integrated),
            'default_generators': [gpu], 'empty_cache': gpu.needs_all}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, '_cuda_endAllocateToPool', gpu.end)
    monkeypatch.setattr(torch._C, '_cuda_releasePool', gpu.release)
    monkeypatch.setattr(cuda_graphs, '_TORCH', gpu.torch, raising=False)
    monkeypatch.setattr(kernels, 'available', False)
    return gpu


class Tiny(nn.Sequential):
    """A network of our shape that runs in a moment: logits at a quarter of the size."""

    def forward_logits(self, x):
        return self(x)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    labels = load_labels('camvid')
    return Tiny(nn.Conv2d(3, 8, 3, 4, 1), nn.PReLU(8), nn.Conv2d(8, 11, 1)).eval(), Card(
        'affnet', labels, (100.0,) * 3, (70.0,) * 3, SIZE[::-1])


@pytest.fixture
def segment(model, gpu, monkeypatch):
    """A segmenter on the CPU that runs through the CUDA engine."""
    made = Segmenter(*model, 'cpu', backend='torch')
    made._engine = cuda.CudaEngine(made._engine.spec.model.lowered(torch.float32), made.palette,
                                   torch.device('cpu'))
    made.device = torch.device('cuda')
    monkeypatch.setattr(segmenter, 'unusable', lambda _: 'an illegal memory access' if gpu.lost else '')
    return made


@pytest.fixture
def live(segment, gpu, monkeypatch):
    """What a node with three cameras holds; each load gives the same segmenter, and can be made to fail."""
    live_segmenter = pytest.importorskip('lightseg_ros.nodes.live_segmenter')
    monkeypatch.setattr(live_segmenter.Segmenter, 'load', lambda *_, **__: segment)

    def make(**options):
        return live_segmenter.LiveSegmenter(live_segmenter.NetworkChoice('affnet', 'cuda'), cameras=3,
                                            **options)
    return make


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('overlay', [False, True])
@pytest.mark.parametrize('confidence', [False, True])
def test_no_camera_captures_after_the_warm_up(segment, model, gpu, overlay, confidence):
    """Whatever its channel order, and whoever subscribes to what."""
    segment.warm_up(120, 160)
    made = gpu.captured
    assert made == 4
    on_cpu = Segmenter(*model, 'cpu', backend='torch')
    rgb = picture(120, 160)
    for frame in (rgb, rgb[..., ::-1], rgb):
        found = segment(frame, overlay=overlay, confidence=confidence)
        expected = on_cpu(frame, overlay=overlay, confidence=confidence)
        assert (found.labels == expected.labels).mean() > 0.999
        if overlay:
            same = found.labels == expected.labels
            assert np.array_equal(found.overlay[same], expected.overlay[same])
        if confidence:
            assert np.abs(found.confidence.astype(int) - expected.confidence).max() <= 1
    assert gpu.captured == made


@pytest.mark.parametrize('cameras, sizes', [(2, 2), (4, 2), (3, 3), (6, 8)])
def test_what_was_prepared_is_kept(segment, gpu, cameras, sizes):
    """Several cameras of several sizes: each batch of each size is still there when the frames come."""
    of = [(64 + 8 * i, 96) for i in range(sizes)]
    for height, width in of:
        for batch in range(1, cameras + 1):
            segment.warm_up(height, width, batch)
    made = gpu.captured
    assert made == 4 * cameras * sizes
    for height, width in of:
        for batch in range(1, cameras + 1):
            segment([picture(height, width)] * batch, confidence=True)
    assert gpu.captured == made


def test_smoothing_is_that_of_a_cpu(model, segment, gpu, monkeypatch):
    """Each camera has its own average, alone and in a batch; what is not finite does not stay in it."""
    reference = Segmenter(*model, 'cpu', backend='torch')
    segment.warm_up(64, 96, 2, smoothing=True)
    segment.warm_up(64, 96, 1, smoothing=True)
    made = gpu.captured
    ours, theirs = ([Smoother(0.7), Smoother(0.7)] for _ in range(2))
    differ = 0
    for i, cameras in enumerate([(0, 1), (0,), (1, 0), (0, 1)]):
        frames = [picture(64, 96, 10 * i + camera) for camera in cameras]
        for smoother in (ours[1], theirs[1]):
            smoother.next(0, i // 3)  # starts anew with the last frame
        found, expected = (s(frames, confidence=True, smoothers=[of[camera] for camera in cameras])
                           for s, of in ((segment, ours), (reference, theirs)))
        for a, b, frame in zip(found, expected, frames):
            assert np.array_equal(a.labels, b.labels) and np.array_equal(a.confidence, b.confidence)
            differ += not np.array_equal(a.labels, segment(frame).labels)
    assert differ == 4  # all but the first frames of both cameras, and the one that starts anew
    assert gpu.captured == made + 1  # the labels alone of a single frame that nothing smooths
    with torch.inference_mode():
        for buffers in sum(segment._engine._buffers.values(), []):
            if buffers.past:
                buffers.past.mean.fill_(torch.nan)
    ours[0].forget()
    frame = picture(64, 96)
    assert np.array_equal(segment(frame, smoothers=[ours[0]]).labels, segment(frame).labels)


def test_smoothing_is_captured_beforehand(live, segment, gpu):
    node = live(sizes=[(64, 96)])
    assert node.is_ready((64, 96))
    node.smoothing = True
    assert not node.is_ready((64, 96))
    node.make_ready((64, 96))
    made = gpu.captured
    for count in (1, 2, 3):
        segment([picture(64, 96)] * count, confidence=True, smoothers=[Smoother(0.2) for _ in range(count)])
    assert gpu.captured == made
    node.free()


def test_sizes_beyond_the_limit_are_evicted(segment, gpu, caplog):
    caplog.set_level(logging.INFO)
    for i in range(cuda.MAX_SIZES + 1):
        segment(picture(64 + 8 * i, 96))
    assert '1 graphs for 96x64 are evicted' in caplog.text
    made = gpu.captured
    segment(picture(72, 96))
    assert gpu.captured == made
    segment(picture(64, 96))
    assert gpu.captured == made + 1


def test_a_size_that_can_t_be_captured_runs_eagerly(segment, gpu, caplog):
    """It computes the same, says so once, and does not spoil the memory pool of the others."""
    expected = segment(picture(64, 96)).labels
    gpu.fail_capture = 'operation not permitted when stream is capturing'
    frame = picture(80, 96)
    found = [segment(frame).labels for _ in range(3)]
    assert caplog.text.count('no CUDA graph: operation not permitted') == 1
    assert not gpu.capturing_randomness, 'no other call can draw random numbers'
    gpu.fail_capture = ''
    assert np.array_equal(found[0], found[2]) and len(np.unique(found[0])) > 1
    made = gpu.captured
    segment(picture(88, 96))
    assert gpu.captured == made + 1, 'the next size is captured again, on a new pool'
    assert np.array_equal(segment(picture(64, 96)).labels, expected)
    assert gpu.stream is None, 'the stream of the failed capture stays the current one'
    cuda_graphs.free_cache()  # as a change of the network does
    assert '\n' not in caplog.records[0].getMessage()


@pytest.mark.parametrize('version', [(2, 7), (2, 11), (2, 13), (2, 14)])
def test_a_failed_capture_keeps_no_pool(segment, gpu, monkeypatch, version):
    """Its memory is given back with that of the other graphs, whatever torch's version needs for that."""
    gpu.torch = version
    monkeypatch.setattr(cuda_graphs, '_TORCH', version, raising=False)
    if version < (2, 8):
        monkeypatch.delattr(torch._C, '_cuda_endAllocateToPool')
        monkeypatch.setattr(torch._C, '_cuda_endAllocateCurrentStreamToPool', gpu.end, raising=False)
    segment(picture(64, 96))
    gpu.fail_capture = 'operation not permitted when stream is capturing'
    segment(picture(80, 96))
    gpu.fail_capture = ''
    segment(picture(88, 96))
    assert gpu.captured == 2 and sum(gpu.graphs_of.values()) == 2 and not gpu.underway
    gc.disable()
    try:
        segment._engine._buffers.clear()
        assert not +gpu.graphs_of
    finally:
        gc.enable()


def test_a_capture_that_can_t_begin_leaves_its_pool_alone(segment, gpu, monkeypatch):
    """It is not counted there yet, but earlier graphs are."""
    gpu.torch = 2, 13
    monkeypatch.setattr(cuda_graphs, '_TORCH', gpu.torch, raising=False)
    segment(picture(64, 96))

    def fail():
        raise RuntimeError('CUDA error: unknown')

    with monkeypatch.context() as m:
        m.setattr(torch.cuda, 'empty_cache', fail)
        segment(picture(80, 96))
    assert sum(gpu.graphs_of.values()) == 1


def test_ctrl_c_in_a_capture_is_not_a_failed_one(segment, gpu):
    def interrupt():
        raise KeyboardInterrupt

    frame = picture(64, 96)
    plain, gpu.on_frame = segment(frame).labels, interrupt
    with pytest.raises(KeyboardInterrupt):
        segment(picture(80, 96))
    gpu.on_frame = lambda: None
    assert np.array_equal(segment(frame).labels, plain)
    assert segment(picture(80, 96)).labels.shape == (80, 96) and gpu.captured == 2


def test_threads_take_turns_to_capture(model, segment, gpu, caplog):
    """Two nodes of one process: while a stream is captured, no thread may wait for the whole GPU."""
    other = Segmenter(*model, 'cpu', backend='torch')
    frame = picture(64, 96)
    expected = other(frame).labels
    lowered = other._engine.spec.model.lowered(torch.float32)
    began, go_on = threading.Event(), threading.Event()

    def capture():
        began.set()
        assert go_on.wait(10)

    def second():
        other._engine = cuda.CudaEngine(lowered, other.palette, torch.device('cpu'))
        other.device = torch.device('cuda')
        cuda_graphs.free_cache()
        found.append(other(frame).labels)

    gpu.on_capture = capture
    found = []
    threads = [threading.Thread(target=lambda: found.append(segment(frame).labels)),
               threading.Thread(target=second)]
    threads[0].start()
    assert began.wait(10)
    threads[1].start()
    threads[1].join(0.3)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2
    assert all(record.levelno < logging.WARNING for record in caplog.records), caplog.text
    assert all(np.array_equal(labels, expected) for labels in found)


def test_failures_leave_no_buffers_busy(segment, gpu):
    frame = picture(64, 96)
    expected = segment(frame).labels
    gpu.fail_replay = 'CUDA error: out of memory'
    for _ in range(4):
        with pytest.raises(segmenter.OutOfMemory):
            segment(frame)
    gpu.fail_replay = ''
    assert np.array_equal(segment(frame).labels, expected)


def test_a_third_batch_waits_for_the_first(segment):
    """Whoever starts several batches of one kind gets each one's own result, in any order."""
    frames = [picture(64, 96, seed) for seed in range(5)]
    expected = [segment(frame, confidence=True) for frame in frames]
    started = [segment.start([frame], confidence=True) for frame in frames]
    for i in (3, 0, 4, 1, 2):
        assert np.array_equal(started[i].labels()[0], expected[i].labels)
        found, = started[i].finish()
        assert np.array_equal(found.labels, expected[i].labels)
        assert np.array_equal(found.confidence, expected[i].confidence)


def test_frames_whose_logits_are_not_finite_fail(segment, monkeypatch):
    """One by one, whatever is asked for; they hold no buffers, and what comes after them is right."""
    def marked(logits, size, confidence):  # as on a GPU; test_kernels.py compares the kernel with its twin
        labels, certainty = kernels.label(logits.nan_to_num(), size, confidence)
        return torch.where(logits.sum().isfinite(), labels, 255).to(torch.uint8), certainty

    monkeypatch.setattr(cuda, 'label', marked)
    frame, bias = picture(64, 96), segment._engine.pipeline.model.network[2].bias
    expected = segment(frame).labels
    right = bias.clone()
    bias[3] = torch.nan
    for _ in range(3):
        with pytest.raises(SegmenterError, match='not finite'):
            segment(frame, confidence=True)
        with pytest.raises(SegmenterError, match='not finite'):
            segment.start([frame]).labels()
        with pytest.raises(SegmenterError, match='not finite'):
            list(segment.stream([frame, frame]))
    started = [segment.start([frame]) for _ in range(3)]  # the third one needs the buffers of the first
    bias.copy_(right)
    assert np.array_equal(segment(frame).labels, expected)
    for pending in started:
        with pytest.raises(SegmenterError, match='not finite'):
            pending.finish()


def test_triton_that_can_t_compile_is_replaced(model, gpu, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError('Failed to find C compiler. Please specify via CC environment variable.')

    monkeypatch.setattr(kernels, 'available', True)
    monkeypatch.setattr(kernels, 'fused_normalise', broken)
    on_cpu = Segmenter(*model, 'cpu', backend='torch')
    engine = cuda.CudaEngine(on_cpu._engine.spec.model.lowered(torch.float32), on_cpu.palette,
                             torch.device('cpu'))
    assert not engine.pipeline.fused
    assert caplog.text.count('Failed to find C compiler') == 1
    assert 'install gcc and python3-dev' in caplog.text


def test_no_memory_for_triton_says_nothing_about_compilers(model, gpu, monkeypatch, caplog):
    def full(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB.')

    monkeypatch.setattr(kernels, 'available', True)
    monkeypatch.setattr(kernels, 'fused_normalise', full)
    on_cpu = Segmenter(*model, 'cpu', backend='torch')
    with pytest.raises(torch.OutOfMemoryError):
        cuda.CudaEngine(on_cpu._engine.spec.model.lowered(torch.float32), on_cpu.palette, torch.device('cpu'))
    assert 'gcc' not in caplog.text


def test_no_memory_for_what_is_compiled_is_no_failure_of_the_compiler(segment, gpu, monkeypatch, tmp_path):
    """So that a smaller batch is tried."""
    def compile_(logits, **_):
        def run(x):
            if len(x) > 2:
                raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.')
            return logits(x)
        return run

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(torch, 'compile', compile_)
    segment._engine.pipeline.compiler = backends.compile_network
    with pytest.raises(segmenter.OutOfMemory, match='no memory on the GPU for 3 x 96x64: CUDA out of memory'):
        segment([picture(64, 96)] * 3)
    assert len(segment([picture(64, 96)] * 2)) == 2

    def broken(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch, 'compile', broken)
    with pytest.raises(SegmenterError, match='could not compile the network .AssertionError.; a CPU needs'):
        segment(picture(64, 96))


@pytest.mark.parametrize('said', [
    'CUDA out of memory. Tried to allocate 20.00 MiB', 'CUDA error: out of memory',
    'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`',
    'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED',
    'Triton Error [CUDA]: out of memory'])
def test_errors_that_mean_no_memory(said):
    assert segmenter.out_of_memory(RuntimeError(said))
    assert not segmenter.out_of_memory(RuntimeError('CUDA error: an illegal memory access was encountered'))


def test_a_gpu_that_torch_can_t_use(model, monkeypatch, caplog):
    reason = 'CUDA error: no kernel image is available for execution on the device'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    ones = torch.ones

    def fail(*args, device=None, **kwargs):
        if device is not None and torch.device(device).type == 'cuda':
            raise RuntimeError(reason + '\nCUDA kernel errors might be asynchronously reported')
        return ones(*args, **kwargs)

    monkeypatch.setattr(torch, 'ones', fail)
    assert segmenter.parse_device('auto')[0].type == 'cpu'
    assert reason in caplog.text
    with pytest.raises(SegmenterError, match=f"device is 'cuda'.*{reason}. Install a torch build"):
        segmenter.parse_device('cuda')
    assert Segmenter(*model, 'auto', backend='torch').device.type == 'cpu'


def test_no_memory_for_the_network_is_one_line(model, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB.\nmore lines')

    monkeypatch.setattr(segmenter, 'parse_device', lambda name: (torch.device('cuda'), 'CPU'))
    monkeypatch.setattr(segmenter.backends.DeployModel, 'lowered', full)
    with pytest.raises(SegmenterError, match='does not run on cuda: CUDA out of memory.*Free memory') as e:
        Segmenter(*model, 'cuda')
    assert '\n' not in str(e.value) and e.value.__context__ is None, 'half a network stays alive'


@pytest.mark.parametrize('integrated', [False, True])
def test_a_jetson_waits_asleep_and_pins_nothing(model, gpu, integrated):
    gpu.integrated = integrated
    on_cpu = Segmenter(*model, 'cpu', backend='torch')
    lowered = on_cpu._engine.spec.model.lowered(torch.float32)
    rgb = picture(64, 96)
    expected = [on_cpu(frame).labels for frame in (rgb, rgb[..., ::-1])]
    on_cpu._engine = cuda.CudaEngine(lowered, on_cpu.palette, torch.device('cpu'))
    rgb.flags.writeable = False  # as a message's memory
    for frame, labels in zip((rgb, rgb[..., ::-1]), expected):
        assert (on_cpu(frame).labels == labels).mean() > 0.999
    assert (gpu.pinned > 0, gpu.blocking > 0) == (not integrated, integrated)


def test_memory_in_the_diagnostics(segment):
    assert segment.resources()['device memory (MB)'] == '5'
    assert segment.resources()['device memory reserved (MB)'] == '7'


def test_a_batch_that_never_fits_is_lowered(live, segment, gpu, caplog):
    """Three cameras, room for two: pairs are prepared and run, and nothing is tried again."""
    gpu.largest_batch = 2
    node = live(sizes=[(64, 96)])
    assert node.batch_limit == 2 and gpu.captured == 8
    assert caplog.text.count('no memory for a batch of 3 images; from now on 2 run together') == 1
    node.make_ready((80, 96))
    assert gpu.captured == 16 and node.is_ready((80, 96))
    assert caplog.text.count('no memory') == 1
    with pytest.raises(segmenter.OutOfMemory, match='no memory on the GPU for 3 x 96x64') as e:
        segment([picture(64, 96)] * 3)
    assert '\n' not in str(e.value) and e.value.__context__ is None, 'the failed buffers stay alive'


def test_a_batch_that_only_its_capture_has_no_memory_for(live, segment, gpu, caplog):
    """It is lowered too, since a smaller one runs as a graph; a single frame runs eagerly."""
    gpu.largest_graph = 2
    sizes = [(64, 96), (80, 96)]
    node = live(sizes=sizes)
    assert node.batch_limit == 2
    assert 'no CUDA graph' not in caplog.text
    made = gpu.captured
    assert set(+gpu.graphs_of) == {gpu.pools}, 'what the failed capture has taken is not given back'
    for size in sizes:
        segment([picture(*size)] * 2, confidence=True)
        segment(picture(*size), overlay=True)
    assert gpu.captured == made, 'the graphs that were given up for it are made again'
    with pytest.raises(segmenter.OutOfMemory, match='no memory on the GPU for 3 x 96x64') as e:
        segment([picture(64, 96)] * 3)
    assert '\n' not in str(e.value) and e.value.__context__ is None, 'the failed buffers stay alive'
    gpu.largest_graph = 0
    assert segment(picture(88, 96)).labels.shape == (88, 96)
    assert 'no CUDA graph: CUDA out of memory' in caplog.text


def test_sizes_without_memory_for_a_graph_are_tried_once(segment, gpu, caplog):
    """One does not make the other try again, frame by frame."""
    gpu.largest_graph = 0
    expected = [segment(picture(height, 96)).labels for height in (64, 80)]
    for _ in range(3):
        for height, labels in zip((64, 80), expected):
            assert np.array_equal(segment(picture(height, 96)).labels, labels)
    assert caplog.text.count('no CUDA graph: CUDA out of memory') == 2


def test_no_memory_at_all_is_one_line(live, gpu):
    gpu.largest_batch = 0
    with pytest.raises(SegmenterError, match='no memory on the GPU for 1 x 96x64: CUDA out of memory'):
        live(sizes=[(64, 96)])


@pytest.fixture
def worker(live, monkeypatch):
    """The thread that segments, without its thread and without DDS; what it publishes and logs is kept."""
    pytest.importorskip('rclpy')
    from lightseg_ros.nodes import frames
    said, published = [], []
    log = SimpleNamespace(info=said.append, fatal=said.append, error=lambda text, **_: said.append(text))
    node = SimpleNamespace(context=SimpleNamespace(ok=lambda: True), get_logger=lambda: log)

    def camera(name):
        return SimpleNamespace(
            name=name, wants_overlay=lambda _: False, wants_confidence=lambda _: False,
            wants_points=lambda: False, publish_label=lambda header, ids, plan: published.append(name),
            health=SimpleNamespace(frame_failed=said.append))

    def run(node_live, count=3):
        plan = SimpleNamespace(parameters=SimpleNamespace(smoothing=0.0), needs_confidence=False,
                               class_ids=lambda name, ids, *_: ids)
        made = frames.FrameWorker(node, node_live, plan)
        header = SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0))
        pixels = [picture(64, 96, i) for i in range(count)]
        batch = [frames.FrameInFlight(camera(f'c{i}'), header, p, p, 0.0) for i, p in enumerate(pixels)]
        published.clear()
        with node_live.use() as network:
            for i in range(0, count, node_live.batch_limit):
                for started in made._publish_labels(
                        plan, network, batch[i:i + node_live.batch_limit]):
                    started.pending.finish()
        return list(published)
    return SimpleNamespace(run=run, said=said, frames=frames)


def test_a_batch_that_no_longer_fits_runs_in_parts(live, worker, gpu, segment):
    """Something else has taken the memory since the start: every frame is still labelled."""
    node = live(sizes=[(64, 96)])
    assert node.batch_limit == 3
    segment._engine._buffers.clear()
    gpu.largest_batch = 2
    assert worker.run(node) == ['c0', 'c1', 'c2'] and node.batch_limit == 2
    assert worker.run(node) == ['c0', 'c1', 'c2'] and not [s for s in worker.said if 'fail' in s]


def test_a_lost_gpu_ends_the_process(live, worker, gpu, monkeypatch):
    """So that it can be started again (use_respawn); an error that passes does not end it."""
    node = live(sizes=[(64, 96)])
    ends = []
    monkeypatch.setattr(worker.frames.os, '_exit', ends.append)
    gpu.fail_replay = 'cuDNN error: CUDNN_STATUS_EXECUTION_FAILED'
    assert worker.run(node, 1) == [] and not ends
    gpu.lost = True
    assert worker.run(node, 1) == [] and ends == [1]
    assert any('is lost to this process: an illegal memory access' in line for line in worker.said)
    assert worker.said[-1] == 'the node ends, so that it can be started again'


def test_a_gpu_that_is_lost_while_it_computes(segment, gpu, monkeypatch):
    """The error comes up where the labels are waited for, and is told as what it is there."""
    pending = segment.start([picture(64, 96)])

    def fail(_):
        raise RuntimeError('CUDA error: an illegal memory access was encountered\nmore lines')

    monkeypatch.setattr(Event, 'synchronize', fail)
    gpu.lost = True
    with pytest.raises(segmenter.DeviceLost, match='is lost to this process: an illegal memory access'):
        pending.labels()
    with pytest.raises(segmenter.DeviceLost):
        pending.finish()


def test_a_gpu_that_is_lost_before_the_alpha_changes(segment, gpu, monkeypatch):
    """The new blend is the first call that meets the error; it is uploaded by the next call that can."""
    def fail(*_):
        raise RuntimeError('CUDA error: an illegal memory access was encountered\nmore lines')

    frame = picture(64, 96)
    before = segment(frame, overlay=True).overlay
    segment.overlay_alpha = 1.0
    with monkeypatch.context() as m:
        m.setattr(cuda, 'overlay_lookup', fail)
        gpu.lost = True
        with pytest.raises(segmenter.DeviceLost, match='is lost to this process: an illegal memory access'):
            segment(frame)
    gpu.lost = False
    assert not np.array_equal(segment(frame, overlay=True).overlay, before)


def test_engines_that_run_side_by_side_share_the_flags_of_cudnn(model, gpu):
    """They are the process's: float32 means float32 until the last engine ends, and then all is as before."""
    cudnn = torch.backends.cudnn
    warm, both = threading.Event(), threading.Event()
    seen = []

    def begins():
        assert not warm.is_set() or both.wait(10)

    def ends():
        if warm.is_set():
            both.set()
            threads[0].join(10)
            seen.append((cudnn.allow_tf32, cudnn.benchmark))

    lowered = Segmenter(*model, 'cpu', backend='torch')._engine.spec.model.lowered(torch.float32)
    palette = torch.from_numpy(model[1].labels.palette())
    threads = [threading.Thread(target=cuda.CudaEngine(lowered, palette, torch.device('cpu'), graph=False
                                                       )._captured(run)[0]) for run in (begins, ends)]
    before = cudnn.allow_tf32, cudnn.benchmark
    warm.set()
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(20)
    assert seen == [(False, True)] and before == (cudnn.allow_tf32, cudnn.benchmark) != seen[0]


def test_a_network_that_does_not_fit_beside_the_other_is_loaded_after_it(live, segment, monkeypatch, caplog):
    node = live()
    module = sys.modules[type(node).__module__]
    loads, freed = [], []
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: freed.append(len(loads)))

    def load(model, *_, **__):
        loads.append(model)
        if hasattr(node, '_segmenter') or model == 'huge':
            raise segmenter.OutOfMemory('no memory on the GPU for a network')
        return segment

    monkeypatch.setattr(module.Segmenter, 'load', load)
    other = module.NetworkChoice('elanet', 'cuda')
    node.prepare(other)
    told = []
    node.change(other, told.append)
    assert loads == ['elanet', 'elanet'] and freed[0] == 1 and told == [segment] and not node.differs(other)
    assert 'elanet is loaded after the network in force is freed, because both do not fit' in caplog.text
    with pytest.raises(segmenter.OutOfMemory):
        node.change(module.NetworkChoice('huge', 'cuda'), told.append)
    assert loads[2:] == ['huge', 'huge', 'elanet'] and told == [segment]
    with node.use() as network:
        assert network is segment, 'the old one is in force again'


def test_a_batch_that_does_not_fit_beside_the_other_network_stays(live, model, gpu, monkeypatch, caplog):
    """The lower batch would stay when the old network, which takes the memory, is long gone."""
    node = live(sizes=[(64, 96)])
    module = sys.modules[type(node).__module__]

    def load(*_, **__):
        made = Segmenter(*model, 'cpu', backend='torch')
        made._engine = cuda.CudaEngine(made._engine.spec.model.lowered(torch.float32), made.palette,
                                       torch.device('cpu'))
        made.device = torch.device('cuda')
        return made

    def release():
        gpu.largest_batch = 99
        before()

    before = node._release
    monkeypatch.setattr(module.Segmenter, 'load', load)
    monkeypatch.setattr(node, '_release', release)
    gpu.largest_batch = 2
    other = module.NetworkChoice('elanet', 'cuda')
    node.prepare(other)
    node.change(other, lambda _: None)
    assert node.batch_limit == 3 and 'elanet is loaded after the network in force is freed' in caplog.text


def test_a_shutdown_waits_for_the_capture_in_progress_and_begins_no_other(live, gpu):
    """A process that ends while it captures may crash."""
    node = live(sizes=[(64, 96)])
    began, go_on, order = threading.Event(), threading.Event(), []

    def capture():
        began.set()
        assert go_on.wait(10)
        order.append('captured')

    def prepare():
        with node.use(), pytest.raises(ValueError, match='shuts down'):
            node.make_ready((80, 96))

    gpu.on_capture = capture
    thread = threading.Thread(target=prepare)
    thread.start()
    assert began.wait(10)
    freeing = threading.Thread(target=lambda: (node.free(), order.append('freed')))
    freeing.start()
    while not node._closing.is_set():
        time.sleep(0.001)
    assert freeing.is_alive() and not order
    go_on.set()
    thread.join(20)
    freeing.join(20)
    assert order == ['captured'] * 4 + ['freed']


def test_the_first_commands_on_a_gpu():
    """bench/first_gpu.sh names tests that are there."""
    text = (ROOT / 'bench' / 'first_gpu.sh').read_text()
    named = re.findall(r'first_gpu.py tests (.*)', text)
    assert named
    for tests in named:
        arguments = shlex.split(tests)
        collect = [sys.executable, '-m', 'pytest', '--collect-only', '-m', 'gpu', *arguments]
        found = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=False).stdout
        for file in [a for a in arguments if a.endswith('.py')]:
            assert re.search(rf'{file}\b', found), f'{tests}: nothing of {file} in {found}'
