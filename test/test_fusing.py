# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Fused convolutions: a rewritten network computes the same, and so do the Triton kernels it runs on CUDA."""
import os
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
    assert done.stdout.split() == ['equal'] * (len(SHAPES) + len(list(blocks())) + len(list(branches()))
                                                 + len(GATES))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
def test_fused_convolutions_equal_their_twins_on_cuda(shape, dtype):
    check(shape, dtype, 'cuda')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_fused_blocks_equal_their_twins_on_cuda():
    for channels, block in blocks():
        check_block(channels, block, 'cuda')
    for sizes in GATES:
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
    for size in (2, 3, 11, 14), (2, 3, 8, 16), (1, 3, 11, 14):  # programs end with an image, or do not
        x = torch.randn(size).half().to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            with mock.patch.object(fused, 'by_kernel', lambda x: False):
                expected = network(x).float()
            with mock.patch.object(fused, 'by_kernel', lambda x: True):
                found = network(x).float()
        assert (found - expected).norm() / expected.norm() < 3e-3, (block, size)


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


if __name__ == '__main__':
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
