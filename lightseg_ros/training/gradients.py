# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where torch's gradients are wrong or slow on a processor: our own, and which layouts to train in."""
import math
from typing import Any

import torch
from torch import nn, Tensor
import torch.nn.functional as F


class GradientError(ValueError):
    """No memory layout has right gradients; the text says in which precision to train instead."""


def gradient_error(device: torch.device, dtype: torch.dtype, layout: torch.memory_format, *,
                   quick: bool = True) -> float:
    """
    Relative error of the weight gradient of dilated depthwise convolutions, against float32 in NCHW.

    Rounding gives some 0.003 in bfloat16. torch 2.13's own gradient (`quick=False`) is off by 1.4 or inf on a
    CPU in bfloat16 channels-last, in silence, and these networks are full of such convolutions.
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for kernel, dilation in (((3, 3), (2, 2)), ((3, 1), (4, 1)), ((1, 3), (1, 4))):
        x, g = (torch.randn(2, 32, 24, 32, generator=generator).to(device) for _ in range(2))
        w = torch.randn(32, 1, *kernel, generator=generator).to(device)
        padding = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
        found = []
        for kind, form in ((torch.float32, torch.contiguous_format), (dtype, layout)):
            module = nn.Conv2d(32, 32, kernel, padding=padding, dilation=dilation, groups=32, bias=False)
            module = module.to(device, kind)
            module.weight.data.copy_(w)
            if quick and device.type != 'cuda' and kind is dtype:
                use_fast_cpu_gradients(module)
            image, upper = (t.to(kind).contiguous(memory_format=form) for t in (x, g))
            found.append(torch.autograd.grad(module(image), module.weight, upper)[0].float())
        error = float((found[1] - found[0]).norm() / found[0].norm())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def correct_memory_formats(device: torch.device, precision: str) -> list[torch.memory_format]:
    """Memory layouts whose gradients are right on this device and this torch; `GradientError` if none is."""
    dtype = getattr(torch, precision)
    layouts = [layout for layout in (torch.channels_last, torch.contiguous_format)
               if gradient_error(device, dtype, layout) < 0.05]
    if not layouts:
        raise GradientError(f'torch {torch.__version__} computes wrong gradients of dilated depthwise '
                            f'convolutions in {precision} on {device}: train with --precision float32')
    return layouts


class _QuickPReLU(torch.autograd.Function):
    """
    PReLU with a slope for each channel, by what torch vectorises on a processor.

    Channels-last (N, C, H, W) is taken as (N * H, W * C), with the slopes repeated along a row: torch's loops
    over eight or sixteen channels take ten times as long as those over rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(x, slopes)
        a = slopes.to(x.dtype)
        return _like(F.prelu(_rows(x), a.repeat(x.shape[3])), x) if _channels_last(x) else F.prelu(x, a)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (x, slopes), g = ctx.saved_tensors, gradients[0]
        a = slopes.to(x.dtype).view(1, -1, 1, 1)
        last = _channels_last(x)
        if last:
            g = _rows(g.contiguous(memory_format=torch.channels_last))
            x, a, shaped = _rows(x), a.flatten().repeat(x.shape[3]), x
        above = torch.ops.aten.threshold_backward(g, x, 0)  # g where x > 0, else 0
        of_input, below = torch.lerp(above, g, a), x.clamp_max(0).mul_(g)
        if last:
            of_slopes = below.sum(0).view(-1, len(slopes)).sum(0)
            return _like(of_input, shaped), of_slopes.to(slopes.dtype)
        return of_input, below.sum((2, 3)).sum(0).to(slopes.dtype)


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels-last -> a view, (N * H, W * C)."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).view(n * h, w * c)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """(N * H, W * C) -> a view in channels-last, (N, C, H, W) of `x`."""
    n, c, h, w = x.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


class _PReLU(nn.PReLU):
    def forward(self, input: Tensor) -> Tensor:
        return _QuickPReLU.apply(input, self.weight) if self.training else super().forward(input)


class _DilatedDepthwise(torch.autograd.Function):
    """
    A depthwise convolution of stride 1 whose gradients are what torch does quickly, and right, in any layout.

    The gradient of the input is a convolution of the upper gradient with the kernel turned round; that of a
    weight is the upper gradient times the input shifted by its tap, summed up in float32 or wider.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int],
                dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, None, 1, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x, weight), g = ctx.saved_tensors, gradients[0]
        rows, columns = weight.shape[2:]
        (py, px), (dy, dx) = ctx.padding, ctx.dilation
        of_input = F.conv2d(g, weight.flip(2, 3), None, 1, (dy * (rows - 1) - py, dx * (columns - 1) - px),
                            ctx.dilation, len(weight))
        h, w = g.shape[2:]
        wide = F.pad(x, (px, px, py, py))
        wider = torch.promote_types(x.dtype, torch.float32)
        of_taps = [(g * wide[:, :, dy * i:dy * i + h, dx * j:dx * j + w]).sum((0, 2, 3), dtype=wider)
                   for i in range(rows) for j in range(columns)]
        return of_input, torch.stack(of_taps, 1).view_as(weight).to(weight.dtype), None, None


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x, weight = input, self.weight
        if torch.is_autocast_enabled('cpu'):  # knows torch's own convolution only
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        return _DilatedDepthwise.apply(x, weight, self.padding, self.dilation)


def use_fast_cpu_gradients(network: nn.Module) -> None:
    """
    Give a network that is trained on a processor our gradients of PReLU and dilated depthwise convolutions.

    With torch 2.13's a step takes 1.2 to 1.5 times as long, and channels-last can't be used in bfloat16.
    """
    for module in network.modules():
        if type(module) is nn.PReLU and module.num_parameters > 1:
            module.__class__ = _PReLU
        if type(module) is nn.Conv2d and max(module.dilation) > 1 and module.stride == (1, 1) \
                and 1 < module.groups == module.in_channels == module.out_channels and module.bias is None:
            module.__class__ = _Conv2d
