# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where torch's gradients are wrong or slow on a processor: which layouts to train in, and a quick PReLU."""
import math
from typing import Any

import torch
from torch import nn, Tensor
import torch.nn.functional as F


class GradientError(ValueError):
    """No memory layout has right gradients; the text says in which precision to train instead."""


def gradient_error(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> float:
    """
    Relative error of the weight gradient of dilated depthwise convolutions, against float32 in NCHW.

    Rounding gives some 0.003 in bfloat16. torch 2.13 gives 1.4 or inf on a CPU in bfloat16 channels-last, in
    silence, and these networks are full of such convolutions.
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for kernel, dilation in (((3, 3), (2, 2)), ((3, 1), (4, 1)), ((1, 3), (1, 4))):
        x, g = (torch.randn(2, 32, 24, 32, generator=generator).to(device) for _ in range(2))
        w = torch.randn(32, 1, *kernel, generator=generator).to(device)
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation)]
        gradients = []
        for kind, form in ((torch.float32, torch.contiguous_format), (dtype, layout)):
            leaf = w.to(kind).requires_grad_()
            image, upper = (t.to(kind).contiguous(memory_format=form) for t in (x, g))
            y = F.conv2d(image, leaf, padding=padding, dilation=dilation, groups=32)
            gradients.append(torch.autograd.grad(y, leaf, upper)[0].float())
        error = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def right_layouts(device: torch.device, precision: str) -> list[torch.memory_format]:
    """Memory layouts whose gradients are right on this device and this torch; `GradientError` if none is."""
    dtype = getattr(torch, precision)
    layouts = [layout for layout in (torch.channels_last, torch.contiguous_format)
               if gradient_error(device, dtype, layout) < 0.05]
    if not layouts:
        raise GradientError(f'torch {torch.__version__} computes wrong gradients of dilated depthwise '
                            f'convolutions in {precision} on {device}: train with --precision float32')
    return layouts


class _QuickPReLU(torch.autograd.Function):
    """PReLU with a slope for each channel, whose gradient uses only what torch vectorises on a processor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(x, slopes)
        return F.prelu(x, slopes.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, slopes = ctx.saved_tensors
        g, a = gradients[0], slopes.to(x.dtype).view(1, -1, 1, 1)
        above = torch.ops.aten.threshold_backward(g, x, 0)  # g where x > 0, else 0
        of_slopes = x.clamp_max(0).mul_(g).sum((2, 3)).sum(0)
        return torch.lerp(above, g, a), of_slopes.to(slopes.dtype)


class _PReLU(nn.PReLU):
    def forward(self, input: Tensor) -> Tensor:
        return _QuickPReLU.apply(input, self.weight) if self.training else super().forward(input)


def quicken(network: nn.Module) -> None:
    """Give every PReLU the quick gradient: torch 2.13's makes a step a tenth longer."""
    for module in network.modules():
        if type(module) is nn.PReLU and module.num_parameters > 1:
            module.__class__ = _PReLU
