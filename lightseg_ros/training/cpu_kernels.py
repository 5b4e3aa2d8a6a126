# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Numba kernels for training on a CPU: batch norm with its activation, and gradients of depthwise kernels.

torch runs a norm, its activation and their gradients as a dozen operations, each of which reads and writes
the whole feature map. That was 40 % of a training step of FBSNet; here it is two passes each way.
"""
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from llvmlite import ir
    import numba
    from numba.core import types
    from numba.extending import intrinsic, overload

    from ..compiled import compiled
except ImportError:
    numba = None  # type: ignore[assignment]

    def compiled(function: Any) -> Any:
        """Leave it as it is: without Numba torch runs instead."""
        return function

# Elements that one step of the inner loops handles: some vectors of the widest instructions.
WIDTH = 128
# Rows that are added up in float32 before the sum moves on to float64.
BLOCK = 64


def _load(v: Any) -> Any:
    """Return the float32 of an element of a feature map: of a float32, or of a bfloat16 as int16."""
    raise NotImplementedError('compiled code has it')


def _element(v: Any, out: Any) -> Any:
    """Return a float32 as an element of `out`; rounds to the nearest, and half to even, as torch does."""
    raise NotImplementedError('compiled code has it')


if numba:
    @intrinsic
    def _as_float(context: Any, bits: Any) -> Any:  # the float32 with these 32 bits
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], ir.FloatType())
        return types.float32(types.uint32), generate

    @intrinsic
    def _as_bits(context: Any, value: Any) -> Any:  # the 32 bits of a float32
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], ir.IntType(32))
        return types.uint32(types.float32), generate

    @overload(_load, inline='always')
    def _load_of(v):
        if v == types.int16:
            return lambda v: _as_float(np.uint32(np.uint16(v)) << np.uint32(16))  # type: ignore[call-arg]
        return lambda v: v

    @overload(_element, inline='always')
    def _element_of(v, out):
        if out.dtype != types.int16:
            return lambda v, out: np.float32(v)

        def rounded(v, out):
            bits: Any = _as_bits(np.float32(v))  # type: ignore[call-arg]
            even = (bits >> np.uint32(16)) & np.uint32(1)
            return np.int16((bits + np.uint32(0x7fff) + even) >> np.uint32(16))
        return rounded


@compiled
def _taps(x, g, height, padding, dilation, kernel, first, last, total):
    """
    Sums of the gradient times the input that each tap of the kernel sees.

    x (N, H, W, C) and g (N * height, w, C); `first` and `last` are rows of g. total (taps, C).
    """
    channels = x.shape[3]
    part = np.empty((len(total), g.shape[1] * channels), np.float32)
    for start in range(first, last, BLOCK):
        part[:] = 0
        for row in range(start, min(start + BLOCK, last)):
            upper = g[row].reshape(-1)
            for i in range(kernel[0]):
                y = row % height + dilation[0] * i - padding[0]
                if y < 0 or y >= x.shape[1]:
                    continue
                seen = x[row // height, y].reshape(-1)
                for j in range(kernel[1]):
                    shift = dilation[1] * j - padding[1]
                    left, right = max(0, -shift), min(g.shape[1], x.shape[2] - shift)
                    if right <= left:  # the tap lies outside of the image; a negative index would wrap
                        continue
                    # Slices that start at 0 need no check for negative indices in the inner loop.
                    a = upper[left * channels:right * channels]
                    b = seen[(left + shift) * channels:(right + shift) * channels]
                    sums = part[i * kernel[1] + j, left * channels:right * channels]
                    for k in range(len(sums)):
                        sums[k] += _load(a[k]) * _load(b[k])
        for t in range(len(total)):
            for k in range(part.shape[1]):
                total[t, k % channels] += part[t, k]


@compiled
def _moments(x, first, last, total):
    """Sums of x and of its square."""
    width = x.shape[1]
    part = np.empty((2, width), np.float32)
    for start in range(first, last, BLOCK):
        part[:] = 0
        for i in range(start, min(start + BLOCK, last)):
            for j in range(width):
                v = _load(x[i, j])
                part[0, j] += v
                part[1, j] += v * v
        total += part


@compiled
def _normalisation(total, count, weight, bias, slope, eps):
    """Return mean, variance and 1 / std of each channel; and scale, shift and slope, by width."""
    channels, width = weight.size, total.shape[1]
    statistics, vectors = np.zeros((3, channels)), np.empty((3, width), np.float32)
    for j in range(width):
        statistics[0, j % channels] += total[0, j] / count
        statistics[1, j % channels] += total[1, j] / count
    for c in range(channels):
        mean = statistics[0, c]
        statistics[1, c] = max(statistics[1, c] - mean * mean, 0)
        statistics[2, c] = 1 / np.sqrt(statistics[1, c] + eps)
    for j in range(width):
        c = j % channels
        scale = weight[c] * statistics[2, c]
        vectors[0, j], vectors[1, j], vectors[2, j] = scale, bias[c] - statistics[0, c] * scale, slope[c]
    return statistics, vectors


@compiled
def _forward(x, out, vectors, first, last, total):
    scale, shift, slope = vectors[0], vectors[1], vectors[2]
    for i in range(first, last):
        for j in range(x.shape[1]):
            y = _load(x[i, j]) * scale[j] + shift[j]
            out[i, j] = _element(y if y > 0 else y * slope[j], out)


@compiled
def _gradients(x, g, vectors, first, last, total):
    """Sums of the norm's gradient, of that times x, and of the slope's gradient."""
    scale, shift, slope = vectors[0], vectors[1], vectors[2]
    width = x.shape[1]
    part = np.empty((3, width), np.float32)
    for start in range(first, last, BLOCK):
        part[:] = 0
        for i in range(start, min(start + BLOCK, last)):
            for j in range(width):
                v, upper = _load(x[i, j]), _load(g[i, j])
                y = v * scale[j] + shift[j]
                of_norm = upper if y > 0 else upper * slope[j]
                part[0, j] += of_norm
                part[1, j] += of_norm * v
                part[2, j] += np.float32(0) if y > 0 else upper * y
        total += part


@compiled
def _coefficients(total, count, statistics, vectors):
    """Return the gradients of weight, bias and slope; and factor and constant of x's, by width."""
    channels, width = statistics.shape[1], total.shape[1]
    parameters, lines = np.zeros((3, channels)), np.empty((2, width), np.float32)
    for j in range(width):
        c = j % channels
        parameters[0, c] += (total[1, j] - statistics[0, c] * total[0, j]) * statistics[2, c]
        parameters[1, c] += total[0, j]
        parameters[2, c] += total[2, j]
    for j in range(width):
        c = j % channels
        of_x = -vectors[0, j] * statistics[2, c] * parameters[0, c] / count
        lines[0, j] = of_x
        lines[1, j] = -vectors[0, j] * parameters[1, c] / count - of_x * statistics[0, c]
    return parameters.astype(np.float32), lines


@compiled
def _backward(x, g, out, vectors, lines, first, last, total):
    scale, shift, slope, of_x, constant = vectors[0], vectors[1], vectors[2], lines[0], lines[1]
    for i in range(first, last):
        for j in range(x.shape[1]):
            v, upper = _load(x[i, j]), _load(g[i, j])
            of_norm = upper if v * scale[j] + shift[j] > 0 else upper * slope[j]
            out[i, j] = _element(of_norm * scale[j] + v * of_x[j] + constant[j], out)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, 'train')


def _split(rows: int, shape: tuple[int, ...], call: Callable[[int, int, np.ndarray], Any]) -> np.ndarray:
    """
    Call `call(first, last, total)` for all rows, on torch's number of threads.

    Returns the sum of the `total`s, float64 arrays of a shape that start at 0.
    """
    threads = max(1, min(torch.get_num_threads(), rows // BLOCK))
    totals = np.zeros((threads, *shape))
    if threads == 1:
        call(0, rows, totals[0])
        return totals[0]
    edges = [rows * i // threads for i in range(threads + 1)]
    list(_pool(threads).map(call, edges, edges[1:], totals))
    return totals.sum(0)


def _wide(x: Tensor) -> np.ndarray:
    """View a channels-last tensor (N, C, H, W) as an array (rows, a multiple of C); bfloat16 as int16."""
    channels, count = x.shape[1], x.numel()
    pixels, repeats = count // channels, 1
    while repeats * 2 * channels <= WIDTH and pixels % (repeats * 2) == 0:
        repeats *= 2
    width = repeats * channels
    rows = x.as_strided((count // width, width), (width, 1))
    return (rows.view(torch.int16) if x.dtype == torch.bfloat16 else rows).numpy()


def _suits(x: Tensor) -> bool:
    return bool(numba) and x.dtype in (torch.float32, torch.bfloat16) and x.device.type == 'cpu' \
        and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class _NormAct(torch.autograd.Function):
    """Batch norm in training mode, then y if y > 0 else slope * y; returns also the mean and the variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, eps: float) -> Any:
        rows, y = _wide(x), torch.empty_like(x)
        count = x.numel() // x.shape[1]
        total = _split(len(rows), (2, rows.shape[1]), partial(_moments, rows))
        statistics, vectors = _normalisation(
            total, count, weight.numpy(), bias.numpy(), slope.numpy(), eps)
        _split(len(rows), (), partial(_forward, rows, _wide(y), vectors))
        ctx.save_for_backward(x)
        ctx.numbers = count, statistics, vectors
        found = torch.from_numpy(statistics)
        ctx.mark_non_differentiable(found)
        return y, found

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> Any:
        x, = ctx.saved_tensors
        count, statistics, vectors = ctx.numbers
        g = upper[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        rows, above = _wide(x), _wide(g)
        out = torch.empty_like(x)
        total = _split(len(rows), (3, rows.shape[1]), partial(_gradients, rows, above, vectors))
        parameters, lines = _coefficients(total, count, statistics, vectors)
        _split(len(rows), (), partial(_backward, rows, above, _wide(out), vectors, lines))
        return out, *torch.from_numpy(parameters), None


def norm_act(norm: Any, slope: Tensor, x: Tensor) -> Tensor | None:
    """
    Run a batch norm and its activation (y if y > 0 else slope * y); update the running statistics.

    `norm`: an nn.BatchNorm2d in training mode. `slope`: (C,) float32. x: (N, C, H, W), float32 or bfloat16,
    channels-last, on a CPU. Returns the same shape and data type, or None where torch must run instead: for
    another layout or type, or without Numba.
    """
    if not _suits(x) or norm.momentum is None or norm.running_mean is None \
            or norm.weight.dtype != torch.float32:
        return None
    y, statistics = _NormAct.apply(x, norm.weight, norm.bias, slope, norm.eps)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        norm.running_mean.lerp_(statistics[0].float(), norm.momentum)
        norm.running_var.lerp_(statistics[1].float() * (count / (count - 1)), norm.momentum)
        norm.num_batches_tracked.add_(1)
    return y


def depthwise_weight_gradient(x: Tensor, g: Tensor, kernel: tuple[int, int], padding: tuple[int, int],
                              dilation: tuple[int, int]) -> Tensor | None:
    """
    Return the gradient of the weight of a depthwise convolution of stride 1.

    x: the input (N, C, H, W); g: the gradient of the output (N, C, h, w), of the same data type. Returns
    (C, 1, *kernel) float32, or None where torch must run instead, as in `norm_act`.
    """
    if not _suits(x) or g.dtype != x.dtype:
        return None
    n, c, h, w = g.shape
    last = torch.channels_last
    image, upper = (t.detach().contiguous(memory_format=last).permute(0, 2, 3, 1) for t in (x, g))
    if x.dtype == torch.bfloat16:
        image, upper = image.view(torch.int16), upper.view(torch.int16)
    total = _split(n * h, (kernel[0] * kernel[1], c), partial(
        _taps, image.numpy(), upper.numpy().reshape(n * h, w, c), h, padding,
        dilation, kernel))
    return torch.from_numpy(total.T.reshape(c, 1, *kernel)).float()
