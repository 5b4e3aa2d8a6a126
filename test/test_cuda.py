# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The CUDA engine's bookkeeping without a GPU: torch.cuda is replaced by a stand-in that counts captures.

Frames are really computed, on the CPU, so that results are compared too. What only a GPU can show is in the
tests marked `gpu`.
"""
import contextlib
import logging

import numpy as np
import pytest
import torch

from lightseg_ros import networks
from lightseg_ros.inference import cuda, kernels, segmenter
from lightseg_ros.inference.segmenter import Segmenter, SegmenterError
from lightseg_ros.labels import load as load_labels
from lightseg_ros.weights import Card

SIZE = (96, 128)


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
        self.fail_capture = ''
        self.fail_replay = ''
        self.current = None

    def pool(self):
        self.pools += 1
        return self.pools


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()

    class Graph:
        calls = ()

        def replay(self):
            if gpu.fail_replay:
                raise RuntimeError(gpu.fail_replay)
            for pipeline, arguments in self.calls:
                plain(pipeline, *arguments)

    @contextlib.contextmanager
    def graph(made, pool=None, stream=None, capture_error_mode='global'):
        assert pool == gpu.pools, 'the pool of a failed capture is used again'
        gpu.current, made.calls = made, []
        try:
            yield
            if gpu.fail_capture:
                raise RuntimeError(gpu.fail_capture)
        finally:
            gpu.current = None
        gpu.captured += 1

    plain = cuda.FramePipeline.__call__

    def recorded(self, *arguments):
        if gpu.current is not None:
            gpu.current.calls.append((self, arguments))
        plain(self, *arguments)

    empty, tensor = torch.empty, torch.tensor
    monkeypatch.setattr(torch, 'empty', lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr(torch, 'tensor', lambda *a, pin_memory=False, **k: tensor(*a, **k))
    monkeypatch.setattr(cuda.FramePipeline, '__call__', recorded)
    for name, stand_in in {
            'Stream': lambda *_, **__: Stream(), 'Event': lambda *_, **__: Event(), 'CUDAGraph': Graph,
            'graph': graph,
            'stream': lambda _: contextlib.nullcontext(), 'synchronize': lambda *_: None,
            'graph_pool_handle': gpu.pool, 'get_device_name': lambda *_: 'stand-in',
            'memory_allocated': lambda *_: 0, 'memory_reserved': lambda *_: 0}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(kernels, 'available', False)
    return gpu


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    labels = load_labels('camvid')
    return networks.build('affnet', 11).eval(), Card('affnet', labels, (100.0,) * 3, (70.0,) * 3, SIZE[::-1])


@pytest.fixture
def segment(model, gpu, monkeypatch):
    """A segmenter on the CPU that runs through the CUDA engine."""
    made = Segmenter(*model, 'cpu', backend='torch')
    made._engine = cuda.CudaEngine(made._engine.spec.model.lowered(torch.float32), made.palette,
                                   torch.device('cpu'))
    return made


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
    gpu.fail_capture = ''
    assert np.array_equal(found[0], found[2]) and len(np.unique(found[0])) > 1
    made = gpu.captured
    segment(picture(88, 96))
    assert gpu.captured == made + 1, 'the next size is captured again, on a new pool'
    assert np.array_equal(segment(picture(64, 96)).labels, expected)


def test_failures_leave_no_buffers_busy(segment, gpu):
    frame = picture(64, 96)
    expected = segment(frame).labels
    gpu.fail_replay = 'CUDA error: out of memory'
    for _ in range(4):
        with pytest.raises(RuntimeError, match='out of memory'):
            segment(frame)
    gpu.fail_replay = ''
    assert np.array_equal(segment(frame).labels, expected)


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
    assert '\n' not in str(e.value)
