# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels for training on a CPU compute what torch computes in float64."""
import copy

import pytest
import torch
from torch import nn

from lightseg_ros.training import cpu_kernels, gradients

pytest.importorskip('numba')
LAST = torch.channels_last
ACTIVATIONS = {'prelu': nn.PReLU, 'one slope': lambda channels: nn.PReLU(),
               'relu': lambda channels: nn.ReLU(), 'none': None}


def module(activation: str, channels: int) -> nn.Sequential:
    torch.manual_seed(1)
    make = ACTIVATIONS[activation]
    made = nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3), *([make(channels)] if make else []))
    for parameter in made.parameters():
        nn.init.uniform_(parameter, -0.5, 1.5)
    return made.train()


def outcome(layer: nn.Module, x: torch.Tensor, upper: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()  # keeps the layout
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), upper)]


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', [(3, 5, 7, 9), (2, 64, 33, 20), (4, 8, 32, 32)])
def test_a_norm_and_its_activation(shape, dtype, activation, threads):
    plain = module(activation, shape[1])
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    gradients.use_fast_cpu_gradients(ours)
    assert type(ours[0]) is not nn.BatchNorm2d
    x, upper = ((torch.randn(shape) * 2 + 0.7).to(dtype).contiguous(memory_format=LAST) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = outcome(ours, x, upper)
    finally:
        torch.set_num_threads(before)
    expected = outcome(exact, x.double(), upper.double())
    assert found[0].dtype is found[1].dtype is dtype
    assert all(t.is_contiguous(memory_format=LAST) for t in found[:2])
    for i, (a, b) in enumerate(zip(found, expected)):  # only what is as large as x is rounded to bfloat16
        error = (a.double() - b).norm() / b.norm()
        assert error < (4e-3 if dtype is torch.bfloat16 and i < 2 else 1e-5), (i, error)
    for name, value in exact[0].named_buffers():
        assert torch.allclose(ours[0].get_buffer(name).double(), value.double(), rtol=1e-5), name


@pytest.mark.parametrize('x', [
    torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8).double().contiguous(memory_format=LAST),
    torch.randn(2, 4, 1, 1)])
def test_torch_runs_where_it_must(x):
    norm = nn.BatchNorm2d(4).to(x.dtype).train()
    assert cpu_kernels.norm_act(norm, torch.ones(4), x) is None
    plain, ours = copy.deepcopy(norm), copy.deepcopy(norm)
    gradients.use_fast_cpu_gradients(ours)
    assert torch.equal(plain(x), ours(x))


def test_in_evaluation_nothing_changes():
    plain = module('prelu', 4).eval()
    ours = copy.deepcopy(plain)
    gradients.use_fast_cpu_gradients(ours)
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=LAST)
    assert torch.equal(plain(x), ours(x)) and not ours[0].num_batches_tracked


def test_a_gradient_that_arrives_in_another_layout_is_the_same():
    layer = module('prelu', 4)
    gradients.use_fast_cpu_gradients(layer)
    x, upper = (torch.randn(2, 4, 8, 8).contiguous(memory_format=LAST) for _ in range(2))
    for a, b in zip(outcome(layer, x, upper), outcome(layer, x, upper.contiguous())):
        assert torch.equal(a, b)
    upper = torch.ones(2, 4, 1, 1).expand(2, 4, 8, 8)  # of a sum
    for a, b in zip(outcome(layer, x, upper), outcome(layer, x, upper.contiguous())):
        assert torch.equal(a, b)


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('kernel, padding, dilation', [
    ((3, 1), (5, 0), (5, 1)), ((1, 3), (0, 17), (1, 17)), ((3, 3), (2, 4), (2, 4)), ((3, 3), (0, 3), (1, 2)),
    ((1, 3), (0, 27), (1, 27)), ((3, 1), (90, 0), (90, 1))])  # taps outside of the image
def test_the_weight_gradient_of_a_depthwise_convolution(kernel, padding, dilation, dtype, threads):
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 6, kernel, padding=padding, dilation=dilation, groups=6, bias=False).double()
    x = torch.randn(3, 6, 70, 20).to(dtype).contiguous(memory_format=LAST)
    y = convolution(x.double())
    upper = torch.randn(y.shape).to(dtype).contiguous(memory_format=LAST)
    expected = torch.autograd.grad(y, convolution.weight, upper.double())[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = cpu_kernels.depthwise_weight_gradient(x, upper, kernel, padding, dilation)
    finally:
        torch.set_num_threads(before)
    assert found is not None and torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-3)
