# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients on a CPU: ours are those of torch in float64, and wrong ones are found."""
import pytest
import torch

from lightseg_ros import machine
from lightseg_ros.training import gradients

DEVICES = ['cpu', pytest.param('cuda', marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')])]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_dilated_gradients_are_right_in_the_layout_that_is_used(device, precision):
    where = torch.device(device)
    for layout in gradients.correct_memory_formats(where, precision):
        assert gradients.gradient_error(where, getattr(torch, precision), layout) < 0.02


def test_the_check_finds_wrong_gradients():
    """Those of torch 2.13 are, where the CPU has bfloat16 instructions; with ours all layouts are right."""
    where = torch.device('cpu')
    if torch.__version__.startswith('2.13') and machine.has_bfloat16():
        assert gradients.gradient_error(where, torch.bfloat16, torch.channels_last, fast=False) > 0.5
    assert len(gradients.correct_memory_formats(where, 'bfloat16')) == 2


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_the_fast_gradient_of_prelu_is_prelu_s(dtype, layout):
    torch.manual_seed(0)
    inputs, upper = (torch.randn(3, 5, 7, 9).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    inputs[0, 0, 0] = 0
    found = []
    for fast in (False, True):
        module = torch.nn.Sequential(torch.nn.PReLU(5)).to(dtype).train()
        module[0].weight.data.uniform_(-0.5, 1.5, generator=torch.Generator().manual_seed(1))
        if fast:
            gradients.use_fast_cpu_gradients(module)
        x = inputs.clone().requires_grad_()  # keeps the layout
        y = module(x)
        found.append((y.detach(), *torch.autograd.grad(y, (x, module[0].weight), upper)))
    for plain, fast in zip(*found):
        assert torch.allclose(plain, fast, rtol=1e-2 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kernel, dilation, padding', [((3, 3), (2, 2), (2, 2)), ((3, 1), (5, 1), (5, 0)),
                                                       ((1, 3), (1, 17), (0, 17)), ((3, 3), (2, 4), (1, 3))])
def test_the_fast_gradient_of_a_dilated_depthwise_convolution_is_torch_s(kernel, dilation, padding, layout):
    torch.manual_seed(0)
    found = []
    for fast in (False, True):
        module = torch.nn.Conv2d(6, 6, kernel, padding=padding, dilation=dilation, groups=6, bias=False)
        module = module.double()
        module.weight.data = torch.randn(6, 1, *kernel, generator=torch.Generator().manual_seed(1)).double()
        if fast:
            gradients.use_fast_cpu_gradients(module)
            assert type(module) is not torch.nn.Conv2d
        x = torch.randn(3, 6, 11, 20, generator=torch.Generator().manual_seed(2)).double()
        x = x.contiguous(memory_format=layout).requires_grad_()
        y = module(x)
        found.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, module.weight))))
    for plain, fast in zip(*found):
        assert torch.allclose(plain, fast, rtol=1e-10)
