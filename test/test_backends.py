# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every backend computes what plain torch computes; what is compiled is kept; what can't be done is said."""
import copy
import importlib.util
import inspect
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightseg_ros import networks
from lightseg_ros.inference import backends, export, folding, kernels
from lightseg_ros.inference.backends import BackendError, CompileSpec, DeployModel

NETWORKS = ('laanet', 'fbsnet', 'lrnnet', 'elanet', 'affnet')
MEAN, STD = (100.0, 110.0, 120.0), (70.0, 71.0, 72.0)
HEIGHT, WIDTH = 96, 131  # odd, and no multiple of 8


class Tiny(nn.Module):
    """A network of our shape that compiles in a moment: logits at half the size, resized to the input's."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(8)))
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Conv2d(8, 4, 1)

    def forward_logits(self, x):
        return self.classifier(self.norm(self.body(x)))

    def forward(self, x):
        return nn.functional.interpolate(
            self.forward_logits(x), size=x.shape[2:], mode='bilinear', align_corners=False)


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    network = Tiny()
    network(torch.randn(4, 3, 16, 16))
    return network.eval()


@pytest.fixture(scope='module')
def trained_size():
    """Networks with random weights, built once."""
    known: dict[str, nn.Module] = {}

    def get(name):
        if name not in known:
            known[name] = export.random_weights(name, 'camvid', (480, 360))[0]
        return known[name]
    return get


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    """A cache of this module's own."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp('cache')
    patch.setenv('XDG_CACHE_HOME', str(folder))
    yield folder / 'lightseg_ros'
    patch.undo()


def frames(batch=1, height=HEIGHT, width=WIDTH, seed=0):
    """Smooth noise, (N, H, W, 3) uint8: white noise is nothing that a network ever sees."""
    coarse = torch.rand((batch, 3, 7, 9), generator=torch.Generator().manual_seed(seed)) * 255
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode='bicubic').clamp(0, 255)
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def plan(network, precision='float32', threads=0):
    key = f'test-{backends.digest(network)[:16]}'
    return CompileSpec(DeployModel(folding.fold(network), MEAN, STD), key, precision, threads)


def reference(network, x):
    with torch.inference_mode():
        return DeployModel(network, MEAN, STD)(x)


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_before_the_last_resize(name, trained_size):
    network = trained_size(name)
    x = torch.randn(1, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        logits, full = network.forward_logits(x), network(x)
        resized = nn.functional.interpolate(logits, size=full.shape[2:], mode='bilinear', align_corners=False)
    assert error(resized, full) < 1e-6
    # FBSNet ends with a transposed convolution at the full size, the others at 1/2 to 1/8.
    assert (logits.shape[2:] == full.shape[2:]) == (name == 'fbsnet')


@pytest.mark.parametrize('name', NETWORKS)
def test_openvino_computes_what_torch_computes(name, trained_size, cache):
    pytest.importorskip('openvino')
    network, x = trained_size(name), frames(2)
    run = backends.build('openvino', plan(network), 2, HEIGHT, WIDTH)
    found, expected = run(x), reference(network, x)
    assert found.shape == expected.shape and found.is_contiguous(memory_format=torch.channels_last)
    difference = error(found, expected)
    print(f'{name}: relative difference {difference:.1e}')
    # Untrained networks lose this much in float32 themselves.
    assert difference < 1e-3
    assert (found.argmax(1) == expected.argmax(1)).double().mean() >= 0.999


@pytest.mark.parametrize('backend', backends.BACKENDS)
def test_backends_agree(backend, tiny, cache):
    if not importlib.util.find_spec(backends.REQUIRES[backend]):
        pytest.skip(f'{backend} is not installed')
    x = frames()
    run = backends.build(backend, plan(tiny), 1, HEIGHT, WIDTH)
    expected = reference(tiny, x)
    assert error(run(x), expected) < 1e-5
    assert error(run(frames(seed=1)), reference(tiny, frames(seed=1))) < 1e-5, 'the second call differs'
    assert error(run(x), expected) < 1e-5


@pytest.mark.parametrize('backend', ['openvino', 'torch'])
def test_bfloat16_is_near(backend, tiny, cache):
    if backend == 'openvino':
        ov = pytest.importorskip('openvino')
        if 'BF16' not in ov.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
            pytest.skip('this CPU has no bfloat16')
    run = backends.build(backend, plan(tiny, 'bfloat16'), 1, HEIGHT, WIDTH)
    difference = error(run(frames()), reference(tiny, frames()))
    # Eight bits of mantissa: clearly not float32, clearly not broken.
    assert 1e-5 < difference < 2e-2


def test_converted_models_are_found_again(tiny, cache):
    pytest.importorskip('openvino')
    chosen = plan(tiny)
    backends.build('openvino', chosen, 1, 64, 64)
    folder, = cache.glob(f'openvino-*-{chosen.key}-1x64x64')
    written = (folder / 'core.xml').stat().st_mtime_ns
    # A core that can't be traced shows that it is not.
    lame = CompileSpec(DeployModel(nn.Identity(), MEAN, STD), chosen.key)
    run = backends.build('openvino', lame, 1, 64, 64)
    x = frames(1, 64, 64)
    assert error(run(x), reference(tiny, x)) < 1e-5
    assert (folder / 'core.xml').stat().st_mtime_ns == written


@pytest.mark.parametrize('file', ['core.bin', 'core.xml', '*.blob'])
def test_a_damaged_model_is_converted_anew(tiny, cache, file):
    """OpenVINO and the compiled code that it keeps have no checksums: a flipped bit gave other labels."""
    pytest.importorskip('openvino')
    chosen, x = plan(tiny), frames(1, 64, 64)
    backends.build('openvino', chosen, 1, 64, 64)
    folder, = cache.glob(f'openvino-*-{chosen.key}-1x64x64')
    for path in folder.glob(file):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 64
        path.write_bytes(data)
    assert error(backends.build('openvino', chosen, 1, 64, 64)(x), reference(tiny, x)) < 1e-5
    # The compiled code is found again under the entry's own name: nothing is added.
    files = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert any(name.endswith('.blob') for name in files)
    backends.build('openvino', chosen, 1, 64, 64)
    assert files == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_changed_code_has_another_key(tmp_path):
    """What is traced into a converted model is part of its key, and must be there to be hashed."""
    package = tmp_path / 'lightseg_ros'
    shutil.copytree(Path(backends.__file__).parents[1], package)
    key = backends.code_digest(package)
    assert key == backends.code_digest()
    traced = {Path(inspect.getsourcefile(f)).relative_to(Path(backends.__file__).parents[1]) for f in (
        kernels.normalise, folding.fold, export.to_onnx, DeployModel, networks.build)}
    backends.code_digest.cache_clear()
    for name in sorted(traced):
        source = (package / name).read_text()
        (package / name).write_text(source + '# changed\n')
        assert backends.code_digest(package) != key, name
        (package / name).write_text(source)
        backends.code_digest.cache_clear()
    (package / 'inference' / 'kernels.py').unlink()
    with pytest.raises(FileNotFoundError):
        backends.code_digest(package)


def test_other_weights_have_another_key(tiny):
    other = copy.deepcopy(tiny)
    other.classifier.bias.data += 1
    key = backends.digest(DeployModel(tiny, MEAN, STD))
    assert key == backends.digest(DeployModel(copy.deepcopy(tiny), MEAN, STD))
    # A converted model holds the normalisation too: a card that was corrected must not find the old one.
    others = [DeployModel(other, MEAN, STD), DeployModel(tiny, STD, STD), DeployModel(tiny, MEAN, MEAN)]
    assert len({key, *map(backends.digest, others)}) == 4


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch, tiny, caplog):
    pytest.importorskip('openvino')
    (tmp_path / 'lightseg_ros').write_text('a file where the folder should be')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    x = frames(1, 64, 64)
    assert error(backends.build('openvino', plan(tiny), 1, 64, 64)(x), reference(tiny, x)) < 1e-5
    assert 'not kept' in caplog.text


def test_means_over_whole_maps_are_pooled():
    ov = pytest.importorskip('openvino')
    ops = ov.opset13
    x = ops.parameter([2, 5, 6, 7], ov.Type.f32)
    whole, rows, flat = (ops.reduce_mean(x, axes, keep) for axes, keep in (([-1, 2], True), ([3], True),
                                                                           ([2, 3], False)))
    model = ov.Model([whole, rows, flat], [x])
    image = torch.randn(2, 5, 6, 7)
    backends._pool_means(model)
    kinds = [op.get_type_name() for op in model.get_ordered_ops()]
    assert (kinds.count('AvgPool'), kinds.count('ReduceMean')) == (1, 2)
    found = ov.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})([image.numpy()])
    means = image.mean((2, 3), keepdim=True), image.mean(3, keepdim=True), image.mean((2, 3))
    for output, expected in zip(found.values(), means):
        assert torch.allclose(torch.from_numpy(output.copy()), expected, atol=1e-6)


def test_auto_says_what_it_took_and_why(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda n: None if n == 'openvino' else find(n))
    name, why = backends.choose('auto')
    assert name == 'torch' and 'openvino is not installed' in why
    with pytest.raises(BackendError, match='pip install openvino'):
        backends.choose('openvino')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda n: object())
    assert backends.choose('auto') == ('openvino', 'taken as it is installed and the fastest on a CPU')


def test_what_cannot_be_done_is_said(tiny, cache):
    with pytest.raises(BackendError, match="'openvinoo'; expected one of auto, openvino"):
        backends.choose('openvinoo')
    with pytest.raises(BackendError, match="only 'openvino' runs"):
        backends.choose('torch', 'GPU')
    with pytest.raises(BackendError, match='on a CPU torch has float32 and bfloat16'):
        backends.build('torch', plan(tiny, 'float16'), 1, 64, 64)
    if importlib.util.find_spec('onnxruntime'):
        with pytest.raises(BackendError, match='has float32 only'):
            backends.build('onnxruntime', plan(tiny, 'bfloat16'), 1, 64, 64)
    if importlib.util.find_spec('openvino'):
        with pytest.raises(BackendError, match='finds no device NPU.7; it has CPU'):
            backends.build('openvino', CompileSpec(plan(tiny).model, 'k', 'float32', 0, 'NPU.7'), 1, 64, 64)


@pytest.mark.parametrize('what', ['openvino', 'onnxruntime', 'export'])
def test_no_host_is_looked_up(what, tmp_path):
    """
    Telemetry is off: no process of a conversion or a run looks up a host or connects.

    It runs in a new process, because OpenVINO binds its telemetry at the first import. Telemetry sends from a
    forked child, so what is tried goes to a file. It is silent where CI is set or consent was refused, so
    neither may reach this process. Libraries that are not Python are watched by strace, where it is there.
    """
    for package in (what,) if what != 'export' else ('onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(package)
    tried, calls = tmp_path / 'tried', tmp_path / 'calls'
    script = f"""
import socket, time
def refuse(*args, **kwargs):
    with open({str(tried)!r}, 'a') as f:
        f.write(repr(args))
    raise OSError('no network in this test')
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = socket.socket.connect = refuse
import torch
from lightseg_ros import labels, weights
from lightseg_ros.inference import backends, export
class Tiny(torch.nn.Conv2d):
    forward_logits = torch.nn.Conv2d.forward
network = Tiny(3, 2, 3, padding=1).eval()
if {what!r} == 'export':
    two = labels.LabelSet('two', ('road', 'other'), ((0, 0, 0), (255, 255, 255)))
    export.export(network, weights.Card('affnet', two, (90., 90., 90.), (60., 60., 60.), (64, 64)), 'x.onnx')
else:
    model = backends.DeployModel(network, (100., 110., 120.), (70., 71., 72.)).eval()
    run = backends.build({what!r}, backends.CompileSpec(model, 'tiny'), 1, 64, 64)
    run(torch.zeros((1, 64, 64, 3), dtype=torch.uint8))
time.sleep(2)
print('converted')
"""
    trace = ['strace', '-f', '-qq', '-o', str(calls), '-e', 'trace=connect,sendto,sendmsg,sendmmsg']
    if not shutil.which('strace') or subprocess.run([*trace, 'true'], capture_output=True).returncode:
        trace = []
    env = {k: os.environ[k] for k in ('PATH', 'LD_LIBRARY_PATH', 'PYTHONPATH') if k in os.environ}
    env |= {'PYTHONPATH': os.pathsep.join(sys.path), 'HOME': str(tmp_path), 'XDG_CACHE_HOME': str(tmp_path)}
    done = subprocess.run([*trace, sys.executable, '-c', script], capture_output=True, text=True, timeout=300,
                          env=env, cwd=tmp_path)
    assert done.stdout.endswith('converted\n'), done.stderr
    assert not tried.exists(), tried.read_text()
    if trace:
        assert 'AF_INET' not in calls.read_text(), calls.read_text()
