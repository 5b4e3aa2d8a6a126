# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The backend `tensorrt` as far as it goes without a GPU: its graph, the engine's place, and its errors.

TensorRT itself can't even be imported without NVIDIA's driver: a stand-in takes its calls.
"""
import ctypes
from importlib.machinery import ModuleSpec
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightseg_ros import networks
from lightseg_ros.cli import main
from lightseg_ros.inference import backends, folding, segmenter, tensorrt
from lightseg_ros.inference.backends import BackendError, DeployModel
from lightseg_ros.inference.export import to_onnx
from lightseg_ros.inference.segmenter import Segmenter, SegmenterError
from lightseg_ros.labels import load as load_labels
from lightseg_ros.weights import Card

# Of the operators that TensorRT 10 documents (onnx-tensorrt, docs/operators.md), those that graphs may have.
KNOWN = {
    'Abs', 'Add', 'AveragePool', 'Cast', 'Clip', 'Concat', 'Constant', 'Conv', 'ConvTranspose',
    'DepthToSpace', 'Div', 'Expand', 'Gather', 'GlobalAveragePool', 'HardSwish', 'Identity', 'MatMul',
    'Max', 'MaxPool', 'Mul', 'PRelu', 'Pad', 'ReduceL2', 'ReduceMax', 'ReduceMean', 'ReduceSum', 'Relu',
    'Reshape', 'Resize', 'Sigmoid', 'Slice', 'Split', 'Sqrt', 'Squeeze', 'Sub', 'Transpose', 'Unsqueeze'}


class Tiny(nn.Sequential):
    """A network of our shape: logits at a quarter of the size, and a norm that no convolution takes in."""

    def forward_logits(self, x):
        return self(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = Tiny(nn.Conv2d(3, 8, 3, 4, 1), nn.PReLU(8), nn.BatchNorm2d(8), nn.PReLU(8),
                   nn.Conv2d(8, 11, 1)).eval()
    network[2].running_mean.uniform_(-1, 1)
    network[2].running_var.uniform_(1, 2)
    return network, Card('affnet', load_labels('camvid'), (100.0,) * 3, (70.0,) * 3, (128, 96))


@pytest.mark.parametrize('name', ['laanet', 'elanet', 'lrnnet', 'affnet'])
def test_graphs_hold_what_tensorrt_knows(name):
    """Known operators, no doubles, and one type for all operands, as a strongly typed network wants them."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    network = folding.fold(networks.build(name, 11).eval(), widen=True)
    core = tensorrt.Core(DeployModel(network, (100.0,) * 3, (70.0,) * 3).lowered(torch.float16).network)
    graph = to_onnx(core, torch.zeros(1, 3, 96, 128).half())
    onnx.checker.check_model(graph, full_check=True)
    found = {n.op_type for n in graph.graph.node}
    assert found <= KNOWN, found - KNOWN
    kind = onnx.TensorProto
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in inferred.initializer}
    assert set(types.values()) <= {kind.FLOAT16, kind.FLOAT, kind.INT64}
    assert [types[v] for v in ('image', 'logits')] == [kind.FLOAT16] * 2
    for node in inferred.node:
        if node.op_type in ('Add', 'Sub', 'Mul', 'Div', 'MatMul', 'Conv', 'PRelu', 'Concat'):
            assert len({types[v] for v in (*node.input, *node.output) if v}) == 1, node
        if node.op_type in ('Conv', 'ConvTranspose'):
            assert types[node.output[0]] == kind.FLOAT16, 'a convolution that is not in half precision'


def test_the_graph_computes_what_the_network_does(model):
    core = tensorrt.Core(model[0])
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert (core(x.half()).float() - model[0](x)).abs().max() < 0.02
    assert core.network[2].scale.dtype == torch.float16 and isinstance(model[0][2], nn.BatchNorm2d)


def test_an_engine_fits_one_version_gpu_network_batch_and_size():
    right = ('10.3.0', 'NVIDIA H100 80GB HBM3', 'laanet-0123', (1, 3, 512, 1024))
    assert tensorrt.entry(*right) == 'tensorrt-10.3.0-NVIDIA_H100_80GB_HBM3-laanet-0123-1x1024x512'
    others = ('10.4.0', 'Orin (nvgpu)', 'laanet-4567', (2, 3, 512, 1024))
    names = {tensorrt.entry(*right[:i], other, *right[i + 1:]) for i, other in enumerate(others)}
    names |= {tensorrt.entry(*right[:3], (1, 3, *size)) for size in ((256, 1024), (512, 512), (1024, 512))}
    assert len(names) == 7 and tensorrt.entry(*right) not in names
    assert not any('/' in n or ' ' in n for n in names)


@pytest.fixture
def trt(monkeypatch, tmp_path):
    """Stand-in: it notes calls, hands the graph on as the plan, and runs what it is given on the CPU."""
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    calls = SimpleNamespace(built=0, timings=[], streams=[], refuse='')

    class Context:
        def __init__(self, plan):
            self.session, self.at = onnxruntime.InferenceSession(plan, providers=['CPUExecutionProvider']), {}

        def set_tensor_address(self, name, address):
            self.at[name] = address
            return True

        def execute_async_v3(self, stream):
            calls.streams.append(stream)
            x, y = view(self.at['image'], (1, 3, 64, 96)), view(self.at['logits'], (1, 11, 16, 24))
            y[:] = self.session.run(None, {'image': x})[0]
            return calls.refuse != 'run'

    def view(address, shape):
        memory = (ctypes.c_char * (2 * int(np.prod(shape)))).from_address(address)
        return np.frombuffer(memory, np.float16).reshape(shape)

    class Builder:
        def __init__(self, logger):
            pass

        def create_network(self, flags):
            assert flags == 1 << 3
            return SimpleNamespace()

        def create_builder_config(self):
            config = SimpleNamespace(create_timing_cache=lambda known: calls.timings.append(known) or known,
                                     get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b'timings'))
            config.set_timing_cache = lambda known, ignore_mismatch: True
            return config

        def build_serialized_network(self, network, config):
            calls.built += 1
            return None if calls.refuse == 'build' else network.graph

    class Parser:
        num_errors = 1

        def __init__(self, network, logger):
            self.network = network

        def parse(self, graph):
            self.network.graph = graph
            return calls.refuse != 'parse'

        def get_error(self, i):
            return 'no importer for Frobnicate\nmore lines'

    def logger(level):
        return level

    logger.WARNING = 2
    monkeypatch.setitem(sys.modules, 'tensorrt', SimpleNamespace(
        __version__='10.3.0', __spec__=ModuleSpec('tensorrt', None), Logger=logger, Builder=Builder,
        OnnxParser=Parser,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=3),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: SimpleNamespace(
            create_execution_context=lambda: Context(plan), get_tensor_shape=lambda name: (1, 11, 16, 24)))))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda _: 'stand-in')
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda _: SimpleNamespace(cuda_stream=77))
    return calls


def test_an_engine_is_built_once_and_runs_on_the_current_stream(trt, model):
    deployed = DeployModel(model[0], (100.0,) * 3, (70.0,) * 3).lowered(torch.float16)
    x = torch.randn(1, 3, 64, 96).half().contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        run = tensorrt.compile_network(deployed, (1, 3, 64, 96), 'tiny-1')
        assert (run(x).float() - model[0](x.float())).abs().max() < 0.02
    assert trt.built == 1 and trt.streams == [77, 77]
    tensorrt.compile_network(deployed, (1, 3, 64, 96), 'tiny-2')
    assert trt.built == 2 and trt.timings == [b'', b'timings'], 'what was measured is not used again'


@pytest.mark.parametrize('refuse, said', [
    ('parse', "can't read the network's graph .no importer for Frobnicate.; choose backend 'torch'"),
    ('build', 'could not build an engine')])
def test_what_tensorrt_refuses_is_said_in_a_line(trt, model, refuse, said):
    trt.refuse = refuse
    with pytest.raises(BackendError, match=said) as e:
        tensorrt.compile_network(DeployModel(model[0], (1.0,) * 3, (1.0,) * 3), (1, 3, 64, 96), 'tiny')
    assert '\n' not in str(e.value)


def test_a_run_that_fails_is_an_error(trt, model):
    run = tensorrt.compile_network(DeployModel(model[0], (1.0,) * 3, (1.0,) * 3), (1, 3, 64, 96), 'tiny')
    trt.refuse = 'run'
    with pytest.raises(RuntimeError, match='could not run its engine'):
        run(torch.zeros(1, 3, 64, 96).half())


@pytest.mark.parametrize('version, said', [
    ('', "can't be imported .libnvinfer.so.10: cannot open shared object file.: install it again"),
    ('8.6.2', 'TensorRT is 8.6.2; expected 10 or newer')])
def test_one_that_can_t_be_used_is_said_in_a_line(model, monkeypatch, tmp_path, version, said):
    """Without its libraries, or as JetPack 6.0 has it."""
    text = f'__version__ = {version!r}' if version else \
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    (tmp_path / 'tensorrt.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'tensorrt', raising=False)
    with pytest.raises(BackendError, match=f"is 'tensorrt', but .*{said}.*choose backend 'torch'") as e:
        tensorrt.compile_network(DeployModel(model[0], (1.0,) * 3, (1.0,) * 3), (1, 3, 64, 96), 'tiny')
    assert '\n' not in str(e.value)
    sys.modules.pop('tensorrt', None)


def test_engines_for_several_cameras_are_those_of_fewer_too(monkeypatch, capsys):
    """A node with two cameras runs one frame where only one has arrived."""
    built = []
    segment = SimpleNamespace(resolution=(480, 360), describe=lambda: 'laanet',
                              warm_up=lambda *batch: built.append(batch))
    monkeypatch.setattr(segmenter, 'load', lambda *_, **__: segment)
    assert main(['export', '--tensorrt', '--batch', '2']) == 0
    assert built == [(360, 480, 1), (360, 480, 2)] and 'up to 2 x 480x360' in capsys.readouterr().out


def test_where_it_is_missing(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    with pytest.raises(SegmenterError, match="'tensorrt', which runs on NVIDIA's GPUs only"):
        Segmenter(*model, 'cpu', backend='tensorrt')
    with pytest.raises(BackendError, match='tensorrt is not installed: pip install tensorrt'):
        backends.choose('tensorrt')
    monkeypatch.setattr(segmenter, 'parse_device', lambda _: (torch.device('cuda'), 'CPU'))
    with pytest.raises(SegmenterError, match='tensorrt is not installed: pip install tensorrt'):
        Segmenter(*model, 'cuda', backend='tensorrt')
    with pytest.raises(SegmenterError, match="precision is 'float32'; backend 'tensorrt' has float16 only"):
        Segmenter(*model, 'cuda', backend='tensorrt', precision='float32')
    for arguments, text in (['--tensorrt', 'x.onnx'], 'writes no file'), ([], 'no file was named'):
        assert main(['export', *arguments]) == 1
        assert text in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_labels_are_those_of_torch():
    pytest.importorskip('tensorrt')
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    plain, engine = (Segmenter.load('laanet', 'cuda', backend=b)(frame).labels for b in ('torch', 'tensorrt'))
    assert (plain == engine).mean() > 0.995
