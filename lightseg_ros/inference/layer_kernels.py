# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Triton kernels for the layers of a network on CUDA: convolutions, norms and gates.

Each does in one launch what takes torch several. Its twin in torch stands in `fused`, beside the module that
launches it. All tensors are channels-last.
"""
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    pass
else:
    @triton.jit
    def _places(rows: tl.constexpr, stride: tl.constexpr, height, out_height, out_width):
        """Return the program's pixels, where in the input they lie (y, x), and their image's first row."""
        p = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
        y = (p // out_width % out_height) * stride
        return p, y, (p % out_width) * stride, p // (out_width * out_height) * height

    @triton.jit
    def _leave_sums(sums, value, mask, c, channels):
        """Leave the sums of the channels `c` over the program's pixels in its row of `sums`."""
        row = sums + tl.program_id(0).to(tl.int64) * channels
        tl.store(row + c, tl.sum(tl.where(mask, value, 0.0), 0), mask=c < channels)

    @triton.jit
    def _depthwise(x, taps, bias, slope, steps, add, gate, out, sums, x_row, add_row, gate_row, out_row,
                   height, width, out_height, out_width, pixels, made: tl.constexpr, figures: tl.constexpr,
                   channels: tl.constexpr, taps_y: tl.constexpr, taps_x: tl.constexpr, line: tl.constexpr,
                   stride: tl.constexpr, shared: tl.constexpr, together: tl.constexpr, added: tl.constexpr,
                   add_first: tl.constexpr, gated: tl.constexpr, summed: tl.constexpr, rows: tl.constexpr,
                   block: tl.constexpr):
        """
        A program takes `rows` pixels and `block` channels: neighbouring channels are one wide load.

        `made` channels come of branches of `channels` each, `together` of which are summed up; their figures
        lie side by side, `figures` in all. `steps`: from tap to tap, (y, x) for each branch; the taps of a
        `line` go along both. `shared`: all branches read the same channels. `x_row`, `add_row`, `out_row`:
        values from a pixel to the next, more than there are channels in a slice. `added` parts of `add` lie
        side by side. `gate`, (N, `gate_row`): what is read, or with `added` what is added, is multiplied.
        `summed`: each program also leaves the sums of its channels in its row of `sums`, (programs, `made`).
        """
        p, y, left, image = _places(rows, stride, height, out_height, out_width)
        o = tl.program_id(1) * block + tl.arange(0, block)
        known = o < made
        inside = p < pixels
        n = image // height
        total = tl.zeros((rows, block), tl.float32)
        for branch in tl.static_range(together):
            figure = branch * made + o
            c = o % channels if shared else figure
            step = steps + (tl.program_id(1) * block // channels + branch) * 2
            step_y, step_x = tl.load(step), tl.load(step + 1)
            result = tl.zeros((rows, block), tl.float32)
            result += tl.load(bias + figure, mask=known, other=0.0)[None, :]
            for i in tl.static_range(taps_y):
                for j in tl.static_range(taps_x):
                    from_y = y + (i - taps_y // 2) * step_y
                    from_x = left + ((i - taps_y // 2) if line else (j - taps_x // 2)) * step_x
                    there = inside & (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
                    at = ((image + from_y) * width + from_x) * x_row
                    mask = there[:, None] & known[None, :]
                    value = tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0)
                    if gated and not added:
                        share = tl.load(gate + (n * gate_row)[:, None] + c[None, :], mask=mask, other=0.0)
                        value = (value.to(tl.float32) * share.to(tl.float32)).to(value.dtype)
                    tap = tl.load(taps + (i * taps_x + j) * figures + figure, mask=known, other=0.0)
                    result += value.to(tl.float32) * tap.to(tl.float32)[None, :]
            if not add_first:
                negative = tl.load(slope + figure, mask=known, other=0.0)[None, :]
                result = tl.where(result > 0, result, result * negative)
            total += result
        mask = inside[:, None] & known[None, :]
        for part in tl.static_range(added):
            from_c = (part * made + o)[None, :]
            value = tl.load(add + p[:, None] * add_row + from_c, mask=mask, other=0.0).to(tl.float32)
            if gated:
                value *= tl.load(gate + (n * gate_row)[:, None] + from_c, mask=mask, other=0.0).to(tl.float32)
            total += value
        if add_first:
            total = tl.where(total > 0, total, total * tl.load(slope + o, mask=known, other=0.0)[None, :])
        tl.store(out + p[:, None] * out_row + o[None, :], total.to(out.dtype.element_ty), mask=mask)
        if summed:
            _leave_sums(sums, total, mask, o, made)

    @triton.jit
    def _convolve(x, taps, pre, bias, slope, add, gate, out, sums, x_row, add_row, gate_row, out_row,
                  height, width, out_height, out_width, pixels, channels: tl.constexpr, made: tl.constexpr,
                  taps_y: tl.constexpr, taps_x: tl.constexpr, step_y: tl.constexpr, step_x: tl.constexpr,
                  stride: tl.constexpr, normed: tl.constexpr, gated: tl.constexpr, added: tl.constexpr,
                  add_first: tl.constexpr, sigmoid: tl.constexpr, summed: tl.constexpr, rows: tl.constexpr,
                  block: tl.constexpr, depth: tl.constexpr):
        """
        A program takes `rows` pixels and `block` output channels, and reads `depth` channels at a time.

        `gate`, (N, `gate_row`): what is read is multiplied by it. `summed`: as in `_depthwise`.
        """
        p, y, left, image = _places(rows, stride, height, out_height, out_width)
        o = tl.program_id(1) * block + tl.arange(0, block)
        wanted = o < made
        inside = p < pixels
        result = tl.zeros((rows, block), tl.float32)
        for tap in range(taps_y * taps_x):
            from_y = y + (tap // taps_x - taps_y // 2) * step_y
            from_x = left + (tap % taps_x - taps_x // 2) * step_x
            there = inside & (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
            at = ((image + from_y) * width + from_x) * x_row
            for first in range(0, channels, depth):
                c = first + tl.arange(0, depth)
                known = c < channels
                mask = there[:, None] & known[None, :]
                value = tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0)
                if normed:
                    scale = tl.load(pre + c, mask=known, other=0.0)[None, :]
                    shift = tl.load(pre + channels + c, mask=known, other=0.0)[None, :]
                    negative = tl.load(pre + 2 * channels + c, mask=known, other=0.0)[None, :]
                    normal = value.to(tl.float32) * scale + shift
                    normal = tl.where(normal > 0, normal, normal * negative)
                    # The border is padded with zeros after the norm, not before it.
                    value = tl.where(mask, normal, 0.0).to(value.dtype)
                if gated:
                    share = tl.load(gate + (image // height * gate_row)[:, None] + c[None, :], mask=mask,
                                    other=0.0)
                    value = (value.to(tl.float32) * share.to(tl.float32)).to(value.dtype)
                weights = tl.load(taps + (tap * channels + c)[:, None] * made + o[None, :],
                                  mask=known[:, None] & wanted[None, :], other=0.0)
                result += tl.dot(value, weights)
        result += tl.load(bias + o, mask=wanted, other=0.0)[None, :]
        mask = inside[:, None] & wanted[None, :]
        if added and add_first:
            result += tl.load(add + p[:, None] * add_row + o[None, :], mask=mask, other=0.0).to(tl.float32)
        if sigmoid:
            result = 1 / (1 + tl.exp(-result))
        else:
            negative = tl.load(slope + o, mask=wanted, other=0.0)[None, :]
            result = tl.where(result > 0, result, result * negative)
        if added and not add_first:
            result += tl.load(add + p[:, None] * add_row + o[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(out + p[:, None] * out_row + o[None, :], result.to(out.dtype.element_ty), mask=mask)
        if summed:
            _leave_sums(sums, result, mask, o, made)

    @triton.jit
    def _norm(x, pre, out, sums, x_row, out_row, pixels, channels: tl.constexpr, summed: tl.constexpr,
              rows: tl.constexpr, block: tl.constexpr):
        """A program takes `rows` pixels and `block` channels: scale, shift and PReLU, as in `_convolve`."""
        p = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
        c = tl.program_id(1) * block + tl.arange(0, block)
        known = c < channels
        mask = (p < pixels)[:, None] & known[None, :]
        value = tl.load(x + p[:, None] * x_row + c[None, :], mask=mask, other=0.0).to(tl.float32)
        value = value * tl.load(pre + c, mask=known, other=0.0)[None, :]
        value += tl.load(pre + channels + c, mask=known, other=0.0)[None, :]
        negative = tl.load(pre + 2 * channels + c, mask=known, other=0.0)[None, :]
        value = tl.where(value > 0, value, value * negative)
        tl.store(out + p[:, None] * out_row + c[None, :], value.to(out.dtype.element_ty), mask=mask)
        if summed:
            _leave_sums(sums, value, mask, c, channels)

    @triton.jit
    def _add_up(sums, n, parts, channels, c, rows: tl.constexpr, block: tl.constexpr):
        """Add up the rows of image `n` in `sums`, (N * parts, channels): (block,), 0 for other `c`."""
        total = tl.zeros((block,), tl.float32)
        known = (c >= 0) & (c < channels)
        for first in range(0, parts, rows):
            part = first + tl.arange(0, rows)
            row = (n * parts + part)[:, None] * channels
            mask = (part < parts)[:, None] & known[None, :]
            total += tl.sum(tl.load(sums + row + c[None, :], mask=mask, other=0.0), 0)
        return total

    @triton.jit
    def _product(x, c, channels, taps, bias, slope, out, made, sigmoid: tl.constexpr, step: tl.constexpr):
        """Write act(x W + b): x (block,), W (channels, made), `out` (made,); `step` columns at a time."""
        for first in range(0, made, step):
            o = first + tl.arange(0, step)
            wanted = o < made
            weights = tl.load(taps + c[:, None] * made + o[None, :],
                              mask=(c < channels)[:, None] & wanted[None, :], other=0.0)
            y = tl.sum(x[:, None] * weights.to(tl.float32), 0) + tl.load(bias + o, mask=wanted, other=0.0)
            if sigmoid:
                y = 1 / (1 + tl.exp(-y))
            else:
                y = tl.where(y > 0, y, y * tl.load(slope + o, mask=wanted, other=0.0))
            tl.store(out + o, y.to(out.dtype.element_ty), mask=wanted)

    @triton.jit
    def _gate(sums, more, taps, bias, slope, taps2, bias2, slope2, middle, out, parts, more_parts, channels,
              more_channels, made, made2, pixels, both: tl.constexpr, two: tl.constexpr,
              sigmoid: tl.constexpr, rows: tl.constexpr, step: tl.constexpr, block: tl.constexpr,
              step2: tl.constexpr, block2: tl.constexpr):
        """
        A program takes an image: the mean of its channels, and one or `two` pointwise convolutions of it.

        `sums`, and with `both` also `more`, whose channels are the next ones: what the programs of other
        kernels have left, see `_add_up`. `sigmoid`: at the end; before the second convolution is `slope`.
        """
        n = tl.program_id(0).to(tl.int64)
        c = tl.arange(0, block)
        x = _add_up(sums, n, parts, channels, c, rows, block)
        if both:
            x += _add_up(more, n, more_parts, more_channels, c - channels, rows, block)
        x /= pixels
        all_channels = channels + more_channels
        if two:
            _product(x, c, all_channels, taps, bias, slope, middle + n * made, made, False, step)
            tl.debug_barrier()  # other threads of the program have written what is read here
            c2 = tl.arange(0, block2)
            x2 = tl.load(middle + n * made + c2, mask=c2 < made, other=0.0)
            _product(x2, c2, made, taps2, bias2, slope2, out + n * made2, made2, sigmoid, step2)
        else:
            _product(x, c, all_channels, taps, bias, slope, out + n * made, made, sigmoid, step)

# Values that `_gate` reads at a time: 32 registers of each of its 256 threads.
GATE_TILE = 8192


def failed_to_compile(error: Exception) -> bool:
    """Whether a kernel has failed before it ran: Triton, its LLVM or its assembler could not make it."""
    return isinstance(error, triton.runtime.errors.TritonError) or 'PassManager' in str(error)


def depthwise(x: Tensor, conv: Any, add: Tensor | None, into: Tensor | None = None,
              gate: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
    """
    Run a depthwise `fused.FusedConv` or `FusedBranches` in one kernel: x (N, C, H, W) -> the same.

    All are channels-last. `add`: of the result's shape, or several of them side by side. `into`: where the
    result goes, such as some channels of a larger tensor. `gate`, (N, c, 1, 1): `add`, or x if there is none,
    is multiplied by it first. `sums`: gets what `gate` adds up for the mean of the result. Any size, dilation
    and stride; padding is "same".
    """
    figures, branches = len(conv.bias), len(conv.steps)
    channels, made = figures // branches, figures // branches if conv.together else figures
    x, x_row = _rows(x)
    add, add_row = (x, x_row) if (absent := add is None) else _rows(add)
    out, out_row = _result(x, made, conv.stride, into)
    line = min(conv.kernel) == 1
    taps_y, taps_x = (max(conv.kernel), 1) if line else conv.kernel
    # Many taps of many pixels would take all registers. The channels of a program belong to one branch.
    rows = 64 if taps_y * taps_x <= 3 else 32
    block = min(64, triton.next_power_of_2(channels) if made == channels else channels & -channels)
    n, _, height, width = out.shape
    pixels = n * height * width
    partial = _sums(sums, out, rows)
    _depthwise[(triton.cdiv(pixels, rows), triton.cdiv(made, block))](
        x, conv.taps, conv.bias, conv.slope, conv.steps, add, x if gate is None else gate, out,
        x if partial is None else partial, x_row, add_row, 0 if gate is None else gate.stride(0), out_row,
        *x.shape[2:], height, width, pixels, made=made, figures=figures, channels=channels, taps_y=taps_y,
        taps_x=taps_x, line=line, stride=conv.stride, shared=x.shape[1] < figures,
        together=branches if conv.together else 1, added=0 if absent else add.shape[1] // made,
        add_first=conv.add_first, gated=gate is not None, summed=partial is not None, rows=rows, block=block)
    return out


def convolve(x: Tensor, conv: Any, add: Tensor | None, into: Tensor | None = None,
             gate: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
    """
    Run a dense `fused.FusedConv` in one kernel: x (N, C, H, W), channels-last, half precision -> the same.

    The arguments are those of `depthwise`. `gate`: (N, C, 1, 1), x is multiplied by it first.
    """
    channels, made = conv.taps.shape[1:]
    x, x_row = _rows(x)
    add, add_row = (x, x_row) if (absent := add is None) else _rows(add)
    out, out_row = _result(x, made, conv.stride, into)
    # Tensor cores want at least 16 of each.
    rows, block = 64, max(16, min(64, triton.next_power_of_2(made)))
    depth = max(16, min(64, triton.next_power_of_2(channels)))
    n, _, height, width = out.shape
    pixels = n * height * width
    partial = _sums(sums, out, rows)
    _convolve[(triton.cdiv(pixels, rows), triton.cdiv(made, block))](
        x, conv.taps, conv.bias if conv.pre is None else conv.pre, conv.bias, conv.slope, add,
        x if gate is None else gate, out, x if partial is None else partial, x_row, add_row,
        0 if gate is None else gate.stride(0), out_row, *x.shape[2:], height, width, pixels,
        channels=channels, made=made,
        taps_y=conv.kernel[0], taps_x=conv.kernel[1], step_y=conv.dilation[0], step_x=conv.dilation[1],
        stride=conv.stride, normed=conv.pre is not None, gated=gate is not None, added=not absent,
        add_first=conv.add_first, sigmoid=conv.sigmoid, summed=partial is not None, rows=rows, block=block,
        depth=depth)
    return out


def norm(x: Tensor, pre: Tensor, into: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
    """
    Scale, shift, PReLU in one kernel: x (N, C, H, W), `pre` (3, C) float32.

    `into` and `sums` are those of `depthwise`.
    """
    channels = x.shape[1]
    x, x_row = _rows(x)
    out, out_row = _result(x, channels, 1, into)
    rows, block = 64, min(64, triton.next_power_of_2(channels))
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    partial = _sums(sums, out, rows)
    _norm[(triton.cdiv(pixels, rows), triton.cdiv(channels, block))](
        x, pre, out, x if partial is None else partial, x_row, out_row, pixels, channels=channels,
        summed=partial is not None, rows=rows, block=block)
    return out


def gate(x: Tensor, convs: Any, sums: list[Tensor]) -> Tensor:
    """
    Run one or two pointwise `fused.FusedConv`s on the global mean of x in one kernel: (N, c, 1, 1).

    `sums`: what one or two kernels have left while they wrote x, (N * parts, C) float32 each, the channels of
    the second behind those of the first. If they do not cover x, torch adds it up in a launch of its own.
    """
    n, channels, height, width = x.shape
    assert len(sums) <= 2 and len(convs) <= 2, 'the kernel takes no more'
    if sum(s.shape[1] for s in sums) != channels:
        sums = [x.sum((2, 3), dtype=torch.float32)]
    first, last = convs[0], convs[-1]
    made, made2 = len(first.bias), len(last.bias)
    out = torch.empty((n, made2, 1, 1), dtype=x.dtype, device=x.device)
    middle = torch.empty((n, made), dtype=torch.float32, device=x.device) if len(convs) > 1 else out
    block, block2 = triton.next_power_of_2(channels), triton.next_power_of_2(made)
    _gate[(n,)](
        sums[0], sums[-1], first.taps, first.bias, first.slope, last.taps, last.bias, last.slope, middle, out,
        len(sums[0]) // n, len(sums[-1]) // n, sums[0].shape[1], channels - sums[0].shape[1], made, made2,
        height * width, both=len(sums) > 1, two=len(convs) > 1, sigmoid=last.sigmoid,
        rows=max(1, GATE_TILE // block), step=min(triton.next_power_of_2(made), max(1, GATE_TILE // block)),
        block=block, step2=min(triton.next_power_of_2(made2), max(1, GATE_TILE // block2)), block2=block2,
        num_warps=8)
    return out


def _sums(sums: list[Tensor] | None, out: Tensor, rows: int) -> Tensor | None:
    """
    Make a row for each program of `rows` pixels that writes `out`, and put it on the list.

    There is none if nobody asked, or if a program would take pixels of two images.
    """
    n, channels, height, width = out.shape
    if sums is None or n > 1 and height * width % rows:
        return None
    sums.append(torch.empty((triton.cdiv(n * height * width, rows), channels), dtype=torch.float32,
                            device=out.device))
    return sums[-1]


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """Return x, channels-last, and the values from a pixel to the next: slices of channels are not copied."""
    n, channels, height, width = x.shape
    # Where a size is 1, its stride says nothing.
    row = x.stride(3) if width > 1 else x.stride(2) if height > 1 else x.stride(0) if n > 1 else channels
    if (channels == 1 or x.stride(1) == 1) and (height == 1 or x.stride(2) == width * row) \
            and (n == 1 or x.stride(0) == height * width * row):
        return x, row
    return x.contiguous(memory_format=torch.channels_last), channels


def _result(x: Tensor, channels: int, stride: int, into: Tensor | None) -> tuple[Tensor, int]:
    """Return where the result of a convolution goes, channels-last, and its values from pixel to pixel."""
    n, _, height, width = x.shape
    shape = n, -(-height // stride), -(-width // stride), channels
    if into is None:
        return torch.empty(shape, dtype=x.dtype, device=x.device).permute(0, 3, 1, 2), channels
    out, row = _rows(into)
    assert out is into and (n, *into.shape[2:], into.shape[1]) == shape, 'a copy would be written'
    return out, row
