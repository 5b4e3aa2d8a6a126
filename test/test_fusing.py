# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Fused convolutions: a rewritten network computes the same, and so do the Triton kernels it runs on CUDA."""
import contextlib
import itertools
import os
import random
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch import nn

from lightseg_ros import networks
from lightseg_ros.inference import folding, fused, fusing, kernels, layer_kernels
from lightseg_ros.inference.fused import FusedConv
from lightseg_ros.networks import affnet, elanet, fbsnet, laanet, layers, lrnnet

# Kernel, dilation, stride, channels in and out, depthwise; channels that fill no block among them.
SHAPES = [
    ((3, 1), (1, 1), 1, 8, 8, True), ((1, 3), (1, 17), 1, 29, 29, True), ((3, 3), (8, 8), 1, 70, 70, True),
    ((3, 3), (1, 1), 2, 12, 12, True), ((7, 7), (1, 1), 1, 8, 8, True),
    ((1, 1), (1, 1), 1, 35, 11, False), ((3, 3), (1, 1), 2, 3, 32, False), ((3, 3), (4, 4), 1, 70, 19, False),
    ((3, 1), (1, 1), 1, 16, 24, False)]
# Channels of the map, and between the two convolutions of its gate.
GATES = [(24, 40), (192, 16)]
BLOCKS = 12  # see `blocks`
RANDOM = 60  # layers that are drawn


def conv_of(kernel, dilation, stride, channels, made, depthwise, bias=True):
    padding = tuple(d * (k // 2) for d, k in zip(dilation, kernel))
    return nn.Conv2d(channels, made, kernel, stride, padding, dilation, channels if depthwise else 1, bias)


def random_norms(network):
    """Norms and slopes as training leaves them, so that an order or a fold that is wrong shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for t in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(t, 0.5, 1.0)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.9)
    return network.eval()


@pytest.mark.parametrize('widen', [False, True])
@pytest.mark.parametrize('name', networks.NETWORKS)
def test_a_fused_network_computes_the_same(name, widen):
    torch.manual_seed(0)
    network = folding.fold(random_norms(networks.build(name, 11)), widen=widen).double()
    rewritten = fusing.fuse(network)
    assert not any(isinstance(m, nn.Conv2d) and fused.fusible(m) for m in rewritten.modules())
    x = torch.randn(1, 3, 67, 90, dtype=torch.float64)
    with torch.inference_mode():
        expected, found = network.forward_logits(x), rewritten.forward_logits(x)
    assert found.shape[1] % 8 == 0 or name.startswith('fbsnet') and found.shape[1] == 12
    assert (found[:, 11:] == fusing.NEVER).all()
    found = found[:, :11]
    # Norms and biases of a FusedConv are float32.
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.skipif(not kernels.available, reason='Triton is not installed')
@pytest.mark.parametrize('name', networks.NETWORKS)
def test_kernels_that_can_t_be_compiled_are_replaced(name, caplog, monkeypatch):
    """Here all of them: each layer says so once, and computes by torch's operations from then on."""
    torch.manual_seed(0)
    network = fusing.fuse(folding.fold(random_norms(networks.build(name, 11))))
    x = torch.randn(1, 3, 64, 72)
    calls = []

    def fails(x, *arguments):
        sums = arguments[-1]
        if sums is not None and len(sums) < 3:
            sums.append(torch.full((1, x.shape[1]), torch.nan))
        calls.append(x)
        raise kernels.triton.runtime.errors.OutOfResources(200_000, 101_376, 'shared memory')

    with torch.inference_mode():
        expected = network.forward_logits(x)
        monkeypatch.setattr(fused, 'by_kernel', lambda x: True)
        for kernel in 'depthwise', 'convolve', 'norm', 'gate':
            monkeypatch.setattr(layer_kernels, kernel, fails)
        for _ in range(2):
            assert torch.equal(network.forward_logits(x), expected)
    modules = [m for m in network.modules() if isinstance(m, fused._Launches) and not m.compiles]
    assert len(calls) == len(caplog.messages) == len(modules) > 20
    assert 'compile a kernel for FusedConv of (1, 3, 64, 72) (out of resource' in caplog.messages[0]


def test_other_errors_of_a_kernel_are_not_hidden(monkeypatch):
    def fails(*_):
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(fused, 'by_kernel', lambda x: True)
    monkeypatch.setattr(layer_kernels, 'convolve', fails)
    conv = FusedConv(nn.Conv2d(3, 8, 1))
    with pytest.raises(RuntimeError, match='illegal memory access'):
        conv(torch.zeros(1, 3, 4, 4))
    assert conv.compiles


def check(shape, dtype, device):
    """Compare the kernel with its twin in torch: with a norm, a gate, an addition after or before the end."""
    kernel, dilation, stride, channels, made, depthwise = shape
    generator = torch.Generator().manual_seed(channels)
    conv = conv_of(*shape)
    norm, before, after = nn.BatchNorm2d(channels), nn.PReLU(channels), nn.PReLU(made)
    random_norms(nn.Sequential(norm, before, after))
    x = torch.randn((2, channels, 9, 11), generator=generator).to(device, dtype)
    options = [(None, None, after, False), (None, None, None, False)]
    if not depthwise:
        options += [(norm, before, nn.Sigmoid(), False), (norm, before, nn.ReLU(), True)]
    for i, (a, b, act, add_first) in enumerate(options):
        module = FusedConv(conv, a, b, act, add_first).to(device)
        module.weight, module.taps = module.weight.to(dtype), module.taps.to(dtype)
        expected = module.plain(x)
        more = torch.randn(expected.shape, generator=generator).to(device, dtype)
        add = more if i else None
        gate = {} if depthwise or i % 2 else {'gate': torch.rand(
            (2, channels, 1, 1), generator=generator).to(device, dtype)}
        expected = module.plain(x, add, **gate).float()
        found = module.run(x, add, **gate).float()
        assert found.shape == expected.shape
        eps = torch.finfo(dtype).eps
        assert (found - expected).abs().max() < 8 * eps * expected.abs().max(), (shape, i)


def branches():
    """Return every use of `FusedBranches`, and the channels that it reads."""
    def of(channels, *kinds, **options):
        convs = [FusedConv(conv_of(kernel, dilation, 1, channels, channels, True),
                           act=nn.PReLU(channels, i / 4))
                 for i, (kernel, dilation) in enumerate(kinds)]
        if options.get('add_first'):
            convs[0].add_first = True
            convs[1].slope.fill_(1)
        return fused.FusedBranches(*convs, **options)

    lines = ((3, 1), (1, 1)), ((1, 3), (1, 9))
    squares = ((3, 3), (1, 1)), ((3, 3), (4, 4))
    yield 8, of(8, *lines)
    yield 16, of(8, *lines)
    yield 24, of(24, *lines)
    yield 70, of(70, *squares, together=True)
    yield 8, of(8, *squares, together=True, add_first=True)
    yield 24, of(12, *lines, together=True)


def check_branches(channels, module):
    module = module.half() if module.taps.is_floating_point() else module
    for t in ('bias', 'slope'):
        setattr(module, t, getattr(module, t).float())
    for conv in module.convs:
        conv.bias, conv.slope = conv.bias.float(), conv.slope.float()
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn((2, channels, 9, 11), generator=generator).half()
    expected = module.plain(x)
    one = torch.randn(expected.shape, generator=generator).half()
    three = torch.cat([one, -one, one.flip(1)], 1)
    for add in (None, one, three) if module.together else (None, one):
        for gate in (None, torch.rand((2, (x if add is None else add).shape[1], 1, 1)).half()):
            expected = module.plain(x, add, gate=gate).float()
            found = module.run(x, add, gate=gate).float()
            assert (found - expected).abs().max() < 8e-3 * expected.abs().max(), (channels, module)


def test_fused_convolutions_equal_their_twins_in_the_interpreter():
    """In a process of its own: Triton must be imported for the interpreter from the start."""
    if not kernels.available:
        pytest.skip('Triton is not installed; its kernels are for CUDA')
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=env, text=True, capture_output=True, timeout=500,
                          check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ['equal'] * (len(SHAPES) + BLOCKS + len(list(branches()))
                                                 + len(GATES) + RANDOM)


def test_what_no_kernel_computes_is_not_fused():
    """Even kernels, padding that is not zeros, several channels made of one; a depthwise one's sigmoid."""
    assert fused.fusible(nn.Conv2d(8, 8, 3, padding=1)) and fused.fusible(nn.Conv2d(8, 8, 1))
    for conv in (nn.Conv2d(8, 8, 2), nn.Conv2d(8, 8, 2, padding=1, dilation=2),
                 nn.Conv2d(8, 8, (3, 2), padding=(1, 0)), nn.Conv2d(8, 8, 3),
                 nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect'),
                 nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=4),
                 nn.Conv2d(8, 8, 3, (1, 2), 1)):
        assert not fused.fusible(conv), conv
    first, last = fused.fuse_steps(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Sigmoid())
    assert isinstance(first, FusedConv) and isinstance(last, nn.Sigmoid)
    only, = fused.fuse_steps(nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid())
    assert only.sigmoid


def test_a_result_is_never_written_to_a_copy():
    """Slices of channels, of maps of one row, column or pixel too; anything else is refused."""
    for n, height, width in (2, 3, 4), (2, 3, 1), (2, 1, 4), (2, 1, 1), (1, 3, 1), (1, 1, 1):
        y = torch.empty(n, height, width, 24).permute(0, 3, 1, 2)
        for part, row in (y, 24), (y[:, 3:11], 24), (y[:, :1], 24):
            out, found = layer_kernels._result(y, part.shape[1], 1, part)
            assert out is part and (found == row or n == height == width == 1)
    for wrong in torch.empty(2, 8, 3, 4), torch.empty(2, 3, 7, 8).permute(0, 3, 1, 2)[..., ::2], y:
        with pytest.raises(AssertionError, match='copy'):
            layer_kernels._result(torch.empty(2, 8, 3, 4), 8, 1, wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
def test_fused_convolutions_equal_their_twins_on_cuda(shape, dtype):
    check(shape, dtype, 'cuda')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('place', range(BLOCKS))
def test_fused_blocks_equal_their_twins_on_cuda(place):
    (channels, block), = itertools.islice(blocks(), place, place + 1)
    check_block(channels, block, 'cuda')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('sizes', GATES)
def test_gates_equal_their_twins_on_cuda(sizes):
    check_gate(*sizes, 'cuda')


class Fusion(nn.Module):
    """ELANet's `RFF`, of one input."""

    def __init__(self):
        super().__init__()
        self.fusion = elanet.RFF()

    def forward(self, x):
        b = torch.cat([x, -x], 1)[..., ::2, ::2]
        return self.fusion(x, b, b.repeat(1, 4, 1, 1)[..., ::2, ::2])


def blocks():
    """Return every kind of block that is rewritten, small."""
    yield 32, Fusion()
    yield 16, laanet.EAB(16, 2)
    yield 16, layers.Down(16, 24, layers.BNPReLU(24))
    yield 32, elanet.ECGResidual(32, 2)
    yield 16, elanet.ECGDown(16, 32, 2)
    yield 16, fbsnet.stage(fbsnet.BRU(16, 3), channels=16)
    yield 16, nn.Sequential(fbsnet.FAM(16), fbsnet.SAM())
    yield 16, lrnnet.FCB(16, 2)
    yield 16, affnet.InvertedResidual(16, 16)
    yield 8, nn.Sequential(nn.ReLU(), affnet.ShuffleDown(8, 16))
    yield 16, lrnnet.SVN(16, 8, (2, 1), 'svn', 2, True)
    yield 32, nn.Sequential(affnet.CBAM(32), affnet.SPP(32))


def check_block(channels, block, device):
    """Run a block by its kernels: slices of channels, chunks and shuffles reach them too."""
    torch.manual_seed(0)
    network = random_norms(nn.Sequential(nn.Conv2d(3, channels, 1), block))
    network = fusing.fuse(folding.fold(network).half().to(device))
    # Programs end with an image, or do not; maps of one column and of one pixel.
    for size in (2, 3, 11, 14), (2, 3, 8, 16), (1, 3, 11, 14), (2, 3, 9, 1), (1, 3, 2, 1), (2, 3, 1, 1):
        x = torch.randn(size).half().to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            with mock.patch.object(fused, 'by_kernel', lambda x: False):
                expected = network(x).float()
            with mock.patch.object(fused, 'by_kernel', lambda x: True), poisoned():
                found = network(x).float()
        assert (found - expected).norm() / expected.norm() < 3e-3, (block, size)


@contextlib.contextmanager
def poisoned():
    """Let new memory hold NaN: what no program writes is seen."""
    empty = torch.empty
    with mock.patch.object(torch, 'empty', lambda *size, **options: empty(*size, **options).fill_(torch.nan)):
        yield


def laid(draw, n, channels, height, width, dtype):
    """Draw a map: channels-last, some channels of a larger one, or one plane after the other."""
    layout = draw.choice(['last', 'slice', 'planes'])
    if layout == 'planes':
        return torch.randn(n, channels, height, width).to(dtype)
    before, after = (draw.randrange(9), draw.randrange(9)) if layout == 'slice' else (0, 0)
    x = torch.randn(n, height, width, before + channels + after).to(dtype).permute(0, 3, 1, 2)
    return x[:, before:before + channels]


def drawn_conv(draw, dtype, channels, dilation):
    """Return any `FusedConv`, the channels that it reads, and how many parts it may add."""
    depthwise = channels > 1 and draw.random() < 0.5
    made = channels if depthwise else draw.choice([1, 3, 11, 19, draw.randint(1, 90)])
    shape = (draw.choice([1, 3, 5, 7]), draw.choice([1, 3, 5])), dilation, draw.choice([1, 1, 2, 3])
    acts = [None, nn.PReLU(made), nn.PReLU(1), nn.ReLU()]
    norm = before = None
    if not depthwise:
        acts.append(nn.Sigmoid())
        if draw.random() < 0.5:
            norm, before = random_norms(nn.BatchNorm2d(channels)), nn.PReLU(channels)
    conv = conv_of(*shape, channels, made, depthwise, bias=draw.random() < 0.5).to(dtype)
    return FusedConv(conv, norm, before, draw.choice(acts), draw.random() < 0.5), channels, 1


def drawn_branches(draw, dtype, channels, dilation):
    """Return any `FusedBranches`, the channels that they read, and how many parts they may add."""
    channels = max(2, channels)
    shapes = draw.choice([[(3, 1), (1, 3)], [(3, 3)]])
    together, count = draw.random() < 0.5, draw.choice([2, 3])
    first = together and draw.random() < 0.5
    convs = []
    for i in range(count):
        conv = conv_of(draw.choice(shapes), draw.choice([(1, 1), dilation]), 1, channels, channels, True)
        act = None if first and i else nn.PReLU(channels, draw.random())
        convs.append(FusedConv(conv.to(dtype), act=act, add_first=first and i == 0))
    module = fused.FusedBranches(*convs, together=together, add_first=first)
    return module, draw.choice([1, count]) * channels, draw.choice([1, 2, 3]) if together else 1


def check_random(seed):
    """Compare a drawn layer with its twin in torch, in float32 or float16, on maps of any size and layout."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    dtype, n = draw.choice([torch.float16, torch.float32]), draw.choice([1, 1, 2, 3])
    channels = draw.choice([1, 2, 3, 11, 19, draw.randint(1, 90)])
    size = draw.randint(1, 13), draw.randint(1, 13)
    dilation = draw.choice([1, 1, 2, 5]), draw.choice([1, 1, 3, 17])
    if draw.random() < 0.2:
        norm = random_norms(nn.BatchNorm2d(channels))
        module, read, parts = fused.FusedNorm(norm, draw.choice([None, nn.PReLU(channels)])), channels, 0
    else:
        drawn = draw.choice([drawn_conv, drawn_conv, drawn_branches])
        module, read, parts = drawn(draw, dtype, channels, dilation)
    x, options = laid(draw, n, read, *size, dtype), {}
    with mock.patch.object(fused, 'by_kernel', lambda x: False):
        made, *out = module(x).shape[1:]
        if parts and draw.random() < 0.6:
            options['add'] = laid(draw, n, parts * made, *out, dtype)
        # A depthwise convolution multiplies what it adds, if it adds something.
        if parts and draw.random() < 0.5 and not (isinstance(module, FusedConv) and options):
            options['gate'] = torch.rand(n, options.get('add', x).shape[1], 1, 1).to(dtype)
        expected = module(x, **options)
    larger, sums = torch.full((n, *out, made + 11), 7.0, dtype=dtype).permute(0, 3, 1, 2), []
    into = draw.choice([None, larger[:, 4:4 + made]])
    with mock.patch.object(fused, 'by_kernel', lambda x: True), poisoned():
        found = module(x, into=into, sums=sums, **options)
    what = seed, module, x.shape, x.stride(), dtype, {k: v.shape for k, v in options.items()}
    if into is not None:
        assert torch.equal(found, into), what
        assert (larger[:, :4] == 7).all() and (larger[:, 4 + made:] == 7).all(), what
    assert found.shape == expected.shape and found.dtype == dtype
    close = 8 * torch.finfo(dtype).eps * max(float(expected.abs().max()), 0.1)
    assert (found.double() - expected.double()).abs().max() < close, what
    for each in sums:  # a row for each program, of one image
        total = each.unflatten(0, (n, -1)).double().sum(1)
        assert (total - found.double().sum((2, 3))).abs().max() < close * out[0] * out[1], what


def check_gate(channels, middle, device):
    """The mean of what one or two kernels have summed up while they wrote it, and of what none has."""
    torch.manual_seed(channels)
    first, last = nn.Conv2d(channels, middle, 1).half(), nn.Conv2d(middle, channels, 1, bias=False).half()
    conv = FusedConv(nn.Conv2d(3, channels - 8, 1).half()).to(device)
    norm = fused.FusedNorm(nn.BatchNorm2d(8).half().eval(), nn.ReLU()).to(device)
    calls, plain = [], torch.Tensor.sum

    def counting(*args, **options):
        calls.append(args)
        return plain(*args, **options)

    for convs in ([first, last], [nn.Conv2d(channels, channels, 1).half()]):
        gate = fused.FusedGate(folding.Gate(*convs, gates=False).half()).to(device)
        # 64 pixels are a program's: it fits, has a rest in a single image, or would take pixels of two.
        for n, height, width in (2, 8, 24), (1, 9, 15), (2, 9, 15):
            x = torch.randn(n, 11, height, width).half().to(device)
            y = torch.empty(n, height, width, channels, device=device).half().permute(0, 3, 1, 2)
            sums = []
            conv.run(x[:, :3], into=y[:, :channels - 8], sums=sums)
            layer_kernels.norm(x[:, 3:], norm.pre, y[:, channels - 8:], sums)
            assert len(sums) == (0 if n == 2 and width == 15 else 2)
            with mock.patch.object(fused, 'by_kernel', lambda x: True), \
                    mock.patch.object(torch.Tensor, 'sum', counting):
                found = gate(y, sums=sums).float()
            assert len(calls) == (not sums), 'torch adds up only what no kernel has'
            calls.clear()
            with mock.patch.object(fused, 'by_kernel', lambda x: False):
                expected = gate(y).float()
            assert found.shape == (n, channels, 1, 1) and (found - expected).abs().max() < 2e-3


def read_numbers():
    """Let the interpreter of Triton before 3.7 read numbers: numpy from 2.4 on makes none of an array."""
    from triton.runtime import interpreter
    plain = interpreter._patch_lang_tensor

    def patched(tensor, *scope):
        plain(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()
    interpreter._patch_lang_tensor = patched


if __name__ == '__main__':
    read_numbers()
    for each in range(RANDOM):
        check_random(each)
        print('equal')
    for each in branches():
        check_branches(*each)
        print('equal')
    for each in blocks():
        check_block(*each, 'cpu')
        print('equal')
    for each in SHAPES:
        check(each, torch.float16, 'cpu')
        print('equal')
    for each in GATES:
        check_gate(*each, 'cpu')
        print('equal')
