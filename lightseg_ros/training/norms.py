# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Batch norm with its activation for training on a CPU: two passes forward and two backward, by Numba.

torch runs the norm, the activation and their gradients as a dozen operations, each of which reads and writes
the whole feature map. That is 40 % of a training step of FBSNet.
"""
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from llvmlite import ir
    import numba
    from numba.core import types
    from numba.extending import intrinsic
except ImportError:
    numba = None  # type: ignore[assignment]

# Elements that one step of the inner loops handles: some vectors of the widest instructions.
WIDTH = 128
# Rows that are added up in float32 before the sum moves on to float64.
BLOCK = 64

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


@cache
def _kernels(bfloat16: bool) -> dict[str, Any]:
    """
    Compile the passes over a feature map, and what lies between them, for one data type.

    Feature maps are arrays (rows, width) of float32, or of bfloat16 as int16. A row holds several pixels,
    and what belongs to a channel is repeated to its width. `first` and `last` are the rows of a call.
    `total` gets the sums of a pass, in float64.
    """
    jit = numba.njit(nogil=True, error_model='numpy', fastmath={'contract'})
    if bfloat16:
        @numba.njit(inline='always')
        def load(v):
            return _as_float(np.uint32(np.uint16(v)) << np.uint32(16))  # type: ignore[call-arg]

        @numba.njit(inline='always')
        def store(v):  # rounds to the nearest, and half to even, as torch does
            bits: Any = _as_bits(np.float32(v))  # type: ignore[call-arg]
            return np.int16((bits + np.uint32(0x7fff) + ((bits >> np.uint32(16)) & np.uint32(1)))
                            >> np.uint32(16))
    else:
        @numba.njit(inline='always')
        def load(v):
            return v

        @numba.njit(inline='always')
        def store(v):
            return np.float32(v)

    @jit
    def moments(x, first, last, total):
        """Sums of x and of its square."""
        width = x.shape[1]
        part = np.empty((2, width), np.float32)
        for start in range(first, last, BLOCK):
            part[:] = 0
            for i in range(start, min(start + BLOCK, last)):
                for j in range(width):
                    v = load(x[i, j])
                    part[0, j] += v
                    part[1, j] += v * v
            total += part

    @jit
    def normalisation(total, count, weight, bias, slope, eps):
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

    @jit
    def forward(x, out, first, last, vectors):
        scale, shift, slope = vectors[0], vectors[1], vectors[2]
        for i in range(first, last):
            for j in range(x.shape[1]):
                y = load(x[i, j]) * scale[j] + shift[j]
                out[i, j] = store(y if y > 0 else y * slope[j])

    @jit
    def gradients(x, g, first, last, vectors, total):
        """Sums of the norm's gradient, of that times x, and of the slope's gradient."""
        scale, shift, slope = vectors[0], vectors[1], vectors[2]
        width = x.shape[1]
        part = np.empty((3, width), np.float32)
        for start in range(first, last, BLOCK):
            part[:] = 0
            for i in range(start, min(start + BLOCK, last)):
                for j in range(width):
                    v, upper = load(x[i, j]), load(g[i, j])
                    y = v * scale[j] + shift[j]
                    of_norm = upper if y > 0 else upper * slope[j]
                    part[0, j] += of_norm
                    part[1, j] += of_norm * v
                    part[2, j] += np.float32(0) if y > 0 else upper * y
            total += part

    @jit
    def coefficients(total, count, statistics, vectors):
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

    @jit
    def backward(x, g, out, first, last, vectors, lines):
        scale, shift, slope, of_x, constant = vectors[0], vectors[1], vectors[2], lines[0], lines[1]
        for i in range(first, last):
            for j in range(x.shape[1]):
                v, upper = load(x[i, j]), load(g[i, j])
                of_norm = upper if v * scale[j] + shift[j] > 0 else upper * slope[j]
                out[i, j] = store(of_norm * scale[j] + v * of_x[j] + constant[j])

    return {'moments': moments, 'normalisation': normalisation, 'forward': forward, 'gradients': gradients,
            'coefficients': coefficients, 'backward': backward}


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, 'norms')


def _run(kernel: Any, arrays: tuple[np.ndarray, ...], *rest: Any, sums: int = 0) -> Any:
    """Run a pass over all rows on torch's number of threads; return its sums, (sums, width)."""
    rows, width = arrays[0].shape
    threads = max(1, min(torch.get_num_threads(), rows // BLOCK))
    if threads == 1:
        total = np.zeros((sums, width))
        kernel(*arrays, 0, rows, *rest, *([total] if sums else []))
        return total
    totals = np.zeros((threads, sums, width))
    edges = [rows * i // threads for i in range(threads + 1)]
    parts = [(*arrays, a, b, *rest, *([total] if sums else []))
             for a, b, total in zip(edges, edges[1:], totals)]
    list(_pool(threads).map(lambda part: kernel(*part), parts))
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


class _NormAct(torch.autograd.Function):
    """Batch norm in training mode, then y if y > 0 else slope * y; returns also the mean and the variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, eps: float) -> Any:
        kernels, rows, y = _kernels(x.dtype == torch.bfloat16), _wide(x), torch.empty_like(x)
        count = x.numel() // x.shape[1]
        total = _run(kernels['moments'], (rows,), sums=2)
        statistics, vectors = kernels['normalisation'](
            total, count, weight.numpy(), bias.numpy(), slope.numpy(), eps)
        _run(kernels['forward'], (rows, _wide(y)), vectors)
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
        kernels, rows, above = _kernels(x.dtype == torch.bfloat16), _wide(x), _wide(g)
        out = torch.empty_like(x)
        total = _run(kernels['gradients'], (rows, above), vectors, sums=3)
        parameters, lines = kernels['coefficients'](total, count, statistics, vectors)
        _run(kernels['backward'], (rows, above, _wide(out)), vectors, lines)
        return out, *torch.from_numpy(parameters), None


def norm_act(norm: Any, slope: Tensor, x: Tensor) -> Tensor | None:
    """
    Run a batch norm and its activation (y if y > 0 else slope * y); update the running statistics.

    `norm`: an nn.BatchNorm2d in training mode. `slope`: (C,) float32. x: (N, C, H, W), float32 or bfloat16,
    channels-last, on a CPU. Returns the same shape and data type, or None where torch must run instead: for
    another layout or type, or without Numba.
    """
    last = torch.channels_last
    if not numba or x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != 'cpu' \
            or not x.is_contiguous(memory_format=last) or x.is_contiguous() \
            or norm.momentum is None or norm.running_mean is None or norm.weight.dtype != torch.float32:
        return None
    y, statistics = _NormAct.apply(x, norm.weight, norm.bias, slope, norm.eps)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        norm.running_mean.lerp_(statistics[0].float(), norm.momentum)
        norm.running_var.lerp_(statistics[1].float() * (count / (count - 1)), norm.momentum)
        norm.num_batches_tracked.add_(1)
    return y
