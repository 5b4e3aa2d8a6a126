# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Our own operations where torch's are wrong or slow in training on a CPU, and a check of memory layouts."""
import math
from typing import Any

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from .cpu_kernels import depthwise_weight_gradient, norm_act


class GradientError(ValueError):
    """No memory layout gives correct gradients; the text says which precision to train in instead."""


def gradient_error(device: torch.device, dtype: torch.dtype, layout: torch.memory_format, *,
                   fast: bool = True) -> float:
    """
    Return the relative error of the weight gradient of dilated depthwise convolutions.

    The reference is float32 in NCHW. `fast`: on a CPU, measure our gradient (`use_fast_cpu_gradients`)
    instead of torch's. Rounding alone gives about 0.003 in bfloat16. On CPUs with bfloat16 instructions,
    torch 2.13's own gradient has an error of 1.4 or inf in bfloat16 channels-last, without any warning. The
    networks here consist mostly of such convolutions.
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
            if fast and device.type != 'cuda' and kind is dtype:
                use_fast_cpu_gradients(module)
            image, upper = (t.to(kind).contiguous(memory_format=form) for t in (x, g))
            found.append(torch.autograd.grad(module(image), module.weight, upper)[0].float())
        error = float((found[1] - found[0]).norm() / found[0].norm())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def correct_memory_formats(device: torch.device, precision: str) -> list[torch.memory_format]:
    """Return the memory layouts with correct gradients on this device; `GradientError` if there is none."""
    dtype = getattr(torch, precision)
    layouts = [layout for layout in (torch.channels_last, torch.contiguous_format)
               if gradient_error(device, dtype, layout) < 0.05]
    if not layouts:
        raise GradientError(f'torch {torch.__version__} computes wrong gradients of dilated depthwise '
                            f'convolutions in {precision} on {device}: train with --precision float32')
    return layouts


class _FastPReLU(torch.autograd.Function):
    """
    PReLU with one slope per channel, built from operations that torch vectorises on a CPU.

    A channels-last tensor (N, C, H, W) is viewed as (N * H, W * C), with the slopes repeated along each row.
    torch's own loops run over the 8 or 16 channels only, which takes ten times as long.
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
    """Return a view (N * H, W * C) of a channels-last tensor (N, C, H, W)."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).view(n * h, w * c)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """Return a channels-last view (N, C, H, W), the shape of `x`, of a tensor (N * H, W * C)."""
    n, c, h, w = x.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


class _PReLU(nn.PReLU):
    def forward(self, input: Tensor) -> Tensor:
        return _FastPReLU.apply(input, self.weight) if self.training else super().forward(input)


class _DilatedDepthwise(torch.autograd.Function):
    """
    A depthwise convolution of stride 1 with gradients that are fast and correct in every memory layout.

    The gradient of the input is the output's gradient convolved with the flipped kernel. The gradient of a
    weight is the sum, in float32 or wider, of the output's gradient times the input shifted by that tap.
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
        of_weight = depthwise_weight_gradient(x, g, (rows, columns), ctx.padding, ctx.dilation)
        if of_weight is None:
            h, w = g.shape[2:]
            wide = F.pad(x, (px, px, py, py))
            wider = torch.promote_types(x.dtype, torch.float32)
            of_weight = torch.stack(
                [(g * wide[:, :, dy * i:dy * i + h, dx * j:dx * j + w]).sum((0, 2, 3), dtype=wider)
                 for i in range(rows) for j in range(columns)], 1).view_as(weight)
        return of_input, of_weight.to(weight.dtype), None, None


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x, weight = input, self.weight
        if torch.is_autocast_enabled('cpu'):  # autocast converts torch's own convolution only
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        return _DilatedDepthwise.apply(x, weight, self.padding, self.dilation)


class _NormAct(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        norm: Any = self[0]
        activation = self[1]
        slope = activation.weight.expand(norm.num_features) if isinstance(activation, nn.PReLU) \
            else norm.weight.new_zeros(norm.num_features)
        y = norm_act(norm, slope, input) if self.training else None
        return super().forward(input) if y is None else y


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        y = norm_act(self, self.weight.new_ones(self.num_features), input) if self.training else None
        return super().forward(input) if y is None else y


def use_fast_cpu_gradients(network: nn.Module, *, fused_norms: bool = True) -> None:
    """
    Make a network use our PReLU, batch norm and dilated depthwise convolution; for training on a CPU.

    `fused_norms`: run a norm and its activation as one operation, which torch.compile could not look into.
    """
    # Swapping __class__ keeps the modules themselves: parameters and names in the state dict stay the same,
    # and the network files need not know about training. In evaluation mode torch's own forward runs.
    module: Any
    for module in network.modules():
        if type(module) is nn.PReLU and module.num_parameters > 1:
            module.__class__ = _PReLU
        if type(module) is nn.Conv2d and max(module.dilation) > 1 and module.stride == (1, 1) \
                and 1 < module.groups == module.in_channels == module.out_channels and module.bias is None:
            module.__class__ = _Conv2d
        if fused_norms and isinstance(module, nn.Sequential) and len(module) == 2 \
                and type(module).forward is nn.Sequential.forward \
                and type(module[0]) is nn.BatchNorm2d and isinstance(module[1], (nn.PReLU, nn.ReLU)):
            module.__class__ = _NormAct
        if fused_norms and type(module) is nn.BatchNorm2d and module.affine:
            module.__class__ = _BatchNorm2d
