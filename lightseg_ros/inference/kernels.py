# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Before a network: resize and normalise. After it: upsampling, argmax, confidence and overlay.

They are written in torch for every device, fused into two Triton kernels for CUDA, and compiled by Numba for
a CPU. Tests compare these with their twins in torch, which run where Triton or Numba is missing. `available`:
Triton is installed; its interpreter (TRITON_INTERPRET=1) runs its kernels on a CPU.
"""
from concurrent.futures import ThreadPoolExecutor
import functools
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:
    available = False
else:
    available = True

    @triton.jit
    def _normalise(frames, mean, std, order, out, size, block: tl.constexpr):
        """A program takes `block` bytes of (pixels, 3) uint8 and writes as many values of the same layout."""
        # 64 bits: a batch of large frames has more than 2^31 bytes.
        i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = i < size
        channel = i % 3
        source = i - channel + tl.load(order + channel)
        x = tl.load(frames + source, mask=inside, other=0).to(tl.float32)
        x -= tl.load(mean + channel, mask=inside, other=0.0)
        x /= tl.load(std + channel, mask=inside, other=1.0)
        tl.store(out + i, x.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _finish(logits, frames, lookup, weight, order, labels_out, overlay_out, confidence_out, h, w, height,
                width, logits_n, logits_k, logits_y, logits_x, classes: tl.constexpr, factor: tl.constexpr,
                padded: tl.constexpr, block: tl.constexpr, overlay: tl.constexpr, confidence: tl.constexpr):
        """
        A program takes `block` pixels of one row: 4 taps of all classes, their mixture, its maximum.

        `padded`: the number of classes rounded up to a power of two. What is upsampled lives in registers.
        `h`, `w`: of the logits once their `factor`^2 sub-pixels are in place, which lie in channels.
        """
        x = tl.program_id(0) * block + tl.arange(0, block)
        y = tl.program_id(1)
        n = tl.program_id(2).to(tl.int64)
        k = tl.arange(0, padded)
        inside = x < width
        # Half-pixel centres, as F.interpolate has them.
        source_y = tl.maximum((y + 0.5) * (h / height) - 0.5, 0.0)
        source_x = tl.maximum((x + 0.5) * (w / width) - 0.5, 0.0)
        above = tl.minimum(source_y.to(tl.int32), h - 1)
        left = tl.minimum(source_x.to(tl.int32), w - 1)
        share_y = source_y - above
        share_x = (source_x - left)[:, None]
        below = tl.minimum(above + 1, h - 1)
        right = tl.minimum(left + 1, w - 1)
        base = logits + n * logits_n + k.to(tl.int64)[None, :] * (logits_k * factor * factor)
        known = (k < classes)[None, :]
        top = base + (above // factor).to(tl.int64) * logits_y
        top += (above % factor * factor).to(tl.int64) * logits_k
        bottom = base + (below // factor).to(tl.int64) * logits_y
        bottom += (below % factor * factor).to(tl.int64) * logits_k
        # A plane of more than 2^31 values is not in sight, but all planes together are.
        at_left = (left // factor * logits_x + (left % factor).to(tl.int64) * logits_k)[:, None]
        at_right = (right // factor * logits_x + (right % factor).to(tl.int64) * logits_k)[:, None]
        # Pixels outside the row read its last column: no need to mask them here.
        a = tl.load(top + at_left, mask=known, other=0.0).to(tl.float32)
        b = tl.load(top + at_right, mask=known, other=0.0).to(tl.float32)
        c = tl.load(bottom + at_left, mask=known, other=0.0).to(tl.float32)
        d = tl.load(bottom + at_right, mask=known, other=0.0).to(tl.float32)
        upper = a * (1 - share_x) + b * share_x
        lower = c * (1 - share_x) + d * share_x
        mixed = tl.where(known, upper * (1 - share_y) + lower * share_y, float('-inf'))
        highest = tl.max(mixed, 1)
        label = tl.argmax(mixed, 1)
        # No class has the id 255: it tells the host that a logit is not finite.
        broken = tl.max((known & ~(tl.abs(mixed) < float('inf'))).to(tl.int32), 1)
        label = tl.where(broken > 0, 255, label)
        pixel = (n * height + y) * width + x
        tl.store(labels_out + pixel, label.to(tl.uint8), mask=inside)
        if confidence:
            # The highest softmax is 1 / sum(exp(logit - highest)).
            total = tl.sum(tl.exp(mixed - highest[:, None]), 1)
            tl.store(confidence_out + pixel, (255 / total + 0.5).to(tl.int32).to(tl.uint8), mask=inside)
        if overlay:
            rest = tl.load(weight).to(tl.int32)
            for channel in tl.static_range(3):
                source = tl.load(order + channel)
                value = tl.load(frames + pixel * 3 + source, mask=inside, other=0).to(tl.int32)
                colour = tl.load(lookup + label * 3 + channel, mask=inside, other=0).to(tl.int32)
                blended = ((value * rest + colour) >> 7).to(tl.uint8)
                tl.store(overlay_out + pixel * 3 + channel, blended, mask=inside)


try:
    from ..compiled import compiled
except ImportError:
    _label_rows: Any = None
    _blend_pixels: Any = None
else:
    @compiled
    def _across(row, left, share, size, out):
        """Interpolate logits (K, w) at n columns, right of those at `left` by `share`: `out` (K, n)."""
        for k in range(len(row)):
            value, to = row[k], out[k]
            for x in range(size):
                a = value[left[x]]
                to[x] = a + share[x] * (value[left[x] + np.uint64(1)] - a)

    # Loops over x become vector instructions if arrays are whole rows (the first `size` values count), if
    # what is written does not lie where it was read (masked writes are slow), and if few arrays may overlap.
    @compiled
    def _between(top, bottom, share, size, mixed, highest):
        """Interpolate two rows (K, n): `mixed`, and `highest[0]` (n,) of it."""
        classes = len(mixed)
        for k in range(classes):
            a, b, out, before, after = top[k], bottom[k], mixed[k], highest[(k + 1) % 2], highest[k % 2]
            for x in range(size):
                value = a[x] + share * (b[x] - a[x])
                out[x] = value
                after[x] = value if k == 0 or value > before[x] else before[x]
        if classes % 2 == 0:
            for x in range(size):
                highest[0, x] = highest[1, x]

    @compiled
    def _winners(mixed, highest, size, ids):
        """Find which class is the highest, the first of equal ones: `ids[0]` (n,)."""
        for x in range(size):
            ids[len(mixed) % 2, x] = 0
        for k in range(len(mixed) - 1, -1, -1):
            value, before, after = mixed[k], ids[(k + 1) % 2], ids[k % 2]
            for x in range(size):
                after[x] = np.int32(k) if value[x] >= highest[x] else before[x]

    @compiled
    def _add_powers(mixed, highest, size, total):
        """
        Add up exp(logit - highest) over the classes: `total` (n,), of logits divided by 16.

        exp(16 t) is a polynomial that is close to exp(t), squared four times: compilers turn that into vector
        instructions. Its coefficients leave the smallest error, 8e-6. What is below -16 counts as that.
        """
        one, linear, square, cubic = (np.float32(1), np.float32(0.99998816), np.float32(0.49867904),
                                      np.float32(0.15117256))
        for x in range(size):
            total[x] = 0
        for k in range(len(mixed)):
            value = mixed[k]
            for x in range(size):
                t = max(value[x] - highest[x], np.float32(-1))
                power = one + t * (linear + t * (square + t * cubic))
                power *= power
                power *= power
                power *= power
                total[x] += power * power

    @compiled
    def _between_classes(coarse, first, plain, columns):
        """
        Return how many columns between two rows of `coarse` (2, w) class ids need mixing, and write which.

        In all others the four ids around are the same; it is written to `plain` (W,).
        """
        count, w = 0, coarse.shape[1]
        for j in range(w):
            right = min(j + 1, w - 1)
            label = coarse[0, j]
            same = label == coarse[0, right] and label == coarse[1, j] and label == coarse[1, right]
            for x in range(first[j], first[j + 1]):
                plain[x] = label
                if not same:
                    columns[count] = x
                    count += 1
        return count

    @compiled
    def _label_rows(logits, above, share_y, left, share_x, first, labels, wanted, confidence, begin, end):
        """
        Upsample (N, h, w, K) float32 bilinearly, take the highest: writes `labels` (N, H, W) uint8.

        With `wanted`, also writes `confidence` (N, H, W) uint8. Row y lies below logits' row above[y] by
        share_y[y]; column x lies right of logits' column left[x] by share_x[x]; columns first[j] to
        first[j + 1] lie right of column j. Only rows `begin` to `end` are written, so that several threads
        can share an image.

        Columns are mixed a class after the other, many pixels at a time. For labels alone, only those where
        classes meet: a class that is highest in four logits is highest in every mixture of them.
        """
        n, h, w, classes = logits.shape
        width = labels.shape[2]
        everywhere = wanted or (h == labels.shape[1] and w == width)
        longest = max(w, width)
        planes, rows = np.empty((2, classes, w + 1), np.float32), np.empty((2, classes, width), np.float32)
        mixed, total = np.empty((classes, longest), np.float32), np.empty(longest, np.float32)
        highest, ids = np.empty((2, longest), np.float32), np.empty((2, longest), np.int32)
        coarse, plain = np.empty((2, w), np.uint8), np.empty(width, np.uint8)
        columns, at = np.empty(width, np.int32), np.empty(width, np.uint64)
        share, count = np.empty(width, np.float32), width
        for i in range(n):
            known = -1  # the last row of logits that is prepared, beside the one before it
            for y in range(begin, end):
                top = np.int64(above[y])
                bottom = min(top + 1, h - 1)
                new_cells = y == begin or top != above[y - 1]
                for row in range(top, bottom + 1):
                    if row <= known:
                        continue
                    plane = planes[row % 2]
                    for x in range(w):
                        for k in range(classes):
                            plane[k, x] = logits[i, row, x, k] * np.float32(1 / 16)
                    for k in range(classes):
                        plane[k, w] = plane[k, w - 1]  # the last one has no neighbour
                    if everywhere:
                        _across(plane, left, share_x, width, rows[row % 2])
                    else:
                        _between(plane, plane, np.float32(0), w, mixed, highest)
                        _winners(mixed, highest[0], w, ids)
                        for x in range(w):
                            coarse[row % 2, x] = ids[0, x]
                known = bottom
                if new_cells and not everywhere:
                    count = _between_classes(coarse, first, plain, columns)
                    for c in range(count):
                        at[c], share[c] = left[columns[c]], share_x[columns[c]]
                    for row in range(top, bottom + 1):
                        _across(planes[row % 2], at, share, count, rows[row % 2])
                _between(rows[top % 2], rows[bottom % 2], share_y[y], count, mixed, highest)
                _winners(mixed, highest[0], count, ids)
                found = labels[i, y]
                if everywhere:
                    for x in range(width):
                        found[x] = ids[0, x]
                else:
                    for x in range(width):
                        found[x] = plain[x]
                    for c in range(count):
                        found[columns[c]] = ids[0, c]
                if wanted:
                    _add_powers(mixed, highest[0], count, total)
                    certainty = confidence[i, y]
                    for x in range(width):
                        certainty[x] = np.uint8(np.float32(255) / total[x] + np.float32(0.5))

    @compiled
    def _blend_pixels(frames, labels, lookup, weight, reversed_channels, blended):
        """Write `blended` (N, H, W, 3) uint8 RGB, what `blend` returns, in one pass."""
        n, h, w = labels.shape
        red, step = (2, -1) if reversed_channels else (0, 1)
        for i in range(n):
            for y in range(h):
                for x in range(w):
                    label = labels[i, y, x]
                    for channel in range(3):
                        value = np.int32(frames[i, y, x, red + step * channel])
                        blended[i, y, x, channel] = (value * weight + lookup[label, channel]) >> 7


# Rows that a CPU upsamples at a time: as many as its second-level cache holds.
BAND = 32


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """
    Resize bytes, (N, H, W, 3) uint8 -> (N, h, w, 3) uint8, bilinear.

    With antialias, since a camera is often more than twice the network's size.
    """
    if frames.shape[1:3] == size:
        return frames
    x = frames.permute(0, 3, 1, 2)
    if x.device.type == 'cpu':
        # The CPU resizes bytes as they are, several times faster than floats.
        x = F.interpolate(x, size=size, mode='bilinear', align_corners=False, antialias=True)
    else:
        x = F.interpolate(x.float(), size=size, mode='bilinear', align_corners=False, antialias=True)
        x = x.round_().to(torch.uint8)
    return x.permute(0, 2, 3, 1)


def normalise(frames: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype,
              reversed_channels: bool = False) -> Tensor:
    """
    Normalise: (N, H, W, 3) uint8 -> (N, 3, H, W) `dtype`, RGB, channels-last.

    `mean`, `std`: (1, 3, 1, 1) float32, RGB, 0-255 scale. With `reversed_channels` the frames are BGR.
    """
    x = frames.flip(3) if reversed_channels else frames
    # First the cast: in an ONNX graph for TensorRT nothing else may touch bytes.
    x = ((x.float().permute(0, 3, 1, 2) - mean) / std).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def preprocess(frames: Tensor, size: tuple[int, int], mean: Tensor, std: Tensor, dtype: torch.dtype,
               reversed_channels: bool = False) -> Tensor:
    """Resize to `size` (h, w) and normalise: (N, H, W, 3) uint8 -> (N, 3, h, w) `dtype`, channels-last."""
    return normalise(resize(frames, size), mean, std, dtype, reversed_channels)


def postprocess(logits: Tensor, frames: Tensor, palette: Tensor, alpha: float, *, overlay: bool,
                confidence: bool, reversed_channels: bool = False) -> tuple[Tensor, ...]:
    """
    Turn logits (N, K, h, w) and frames (N, H, W, 3) uint8 into uint8 images of the frames' size.

    Returns (labels (N, H, W), overlay (N, H, W, 3) RGB or empty, confidence (N, H, W) or empty). The
    logits are upsampled, never the ids: an id between two classes does not exist.
    """
    labels, confidences = label(logits, (frames.shape[1], frames.shape[2]), confidence)
    blended = frames.new_empty(0)
    if overlay:
        blended = blend(frames, labels, *overlay_lookup(palette, alpha), reversed_channels)
    return labels, blended, confidences


def label(logits: Tensor, size: tuple[int, int], confidence: bool) -> tuple[Tensor, Tensor]:
    """
    Upsample to `size` (H, W), take the highest: class ids and, if wanted, confidence, (N, H, W) uint8.

    Off the CPU a pixel is 255 where a logit is not finite; on a CPU the engine looks at the logits.
    """
    logits = logits.float()
    if logits.device.type == 'cpu':
        if _label_rows is not None:
            return _label_compiled(logits, size, confidence)
        return _label_in_bands(logits, size, confidence)
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=False)
    highest, labels = logits.max(1)
    confidences = labels.new_empty(0, dtype=torch.uint8)
    if confidence:
        # The highest softmax is 1 / sum(exp(logit - highest)).
        total = (logits - highest.unsqueeze(1)).exp_().sum(1)
        confidences = (255 / total).round_().to(torch.uint8)
    # The sum of what is not finite is not finite either. No class has the id 255.
    return torch.where(logits.sum(1).isfinite(), labels, 255).to(torch.uint8), confidences


@lru_cache(64)
def _taps(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    For `m` values made of `n`: the two that each is between, and the share of the second.

    Half-pixel centres, as F.interpolate has them.
    """
    position = np.clip((np.arange(m, dtype=np.float32) + np.float32(0.5)) * np.float32(n / m)
                       - np.float32(0.5), 0, n - 1)
    first = position.astype(np.int32)
    return first, np.minimum(first + 1, n - 1), position - first.astype(np.float32)


@lru_cache(1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(3, 'labels')


def _label_compiled(logits: Tensor, size: tuple[int, int], confidence: bool) -> tuple[Tensor, Tensor]:
    """Label in one pass, compiled by Numba; several threads share the rows."""
    n, _, h, w = logits.shape
    labels = np.empty((n, *size), np.uint8)
    confidences = np.empty((n, *size) if confidence else (0, 0, 0), np.uint8)
    values = logits.permute(0, 2, 3, 1).contiguous().numpy()
    (above, _, share_y), (left, _, share_x) = _taps(h, size[0]), _taps(w, size[1])
    first = np.searchsorted(left, np.arange(w + 1, dtype=np.int32))
    work = functools.partial(_label_rows, values, above, share_y, left.astype(np.uint64), share_x, first,
                             labels, confidence, confidences)
    parts = min(torch.get_num_threads(), 4)
    bounds = np.linspace(0, size[0], parts + 1).astype(np.int64)
    others = [_threads().submit(work, *bounds[i:i + 2]) for i in range(1, parts)]
    work(*bounds[:2])
    for other in others:
        other.result()
    return torch.from_numpy(labels), torch.from_numpy(confidences)


def _label_in_bands(logits: Tensor, size: tuple[int, int], confidence: bool) -> tuple[Tensor, Tensor]:
    """
    Label some rows at a time, so that what is upsampled stays in the CPU's cache.

    First along the rows, then, band by band, between them: 5.5 ms instead of 7 at 640x480 with 11 classes on
    one core, 35 instead of 81 at 1920x1080.
    """
    height, width = size
    n, _, h, w = logits.shape
    if w != width:
        logits = F.interpolate(logits, size=(h, width), mode='bilinear', align_corners=False)
    x = logits.permute(0, 2, 3, 1).contiguous()
    above, below, share = (torch.from_numpy(t) for t in _taps(h, height))
    share = share.view(1, height, 1, 1)
    labels = torch.empty((n, height, width), dtype=torch.uint8)
    confidences = torch.empty_like(labels) if confidence else labels.new_empty(0)
    for first in range(0, height, BAND):
        rows = slice(first, first + BAND)
        band = x[:, rows] if h == height else torch.lerp(x[:, above[rows]], x[:, below[rows]], share[:, rows])
        highest, ids = band.max(3)
        labels[:, rows] = ids
        if confidence:
            total = (band - highest.unsqueeze(3)).exp_().sum(3)
            confidences[:, rows] = (255 / total).round_()
    return labels, confidences


def overlay_lookup(palette: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """
    Return what an overlay is blended with: `lookup` (256, 3), one row per class id, and `weight` (1,), int16.

    A pixel becomes (rgb * weight + lookup[id]) >> 7. These are whole numbers in steps of 1/128, so every
    device gives the same bytes.
    """
    share = round(alpha * 128)
    return palette.to(torch.int16) * share + 64, torch.tensor([128 - share], dtype=torch.int16,
                                                              device=palette.device)


def blend(frames: Tensor, labels: Tensor, lookup: Tensor, weight: Tensor,
          reversed_channels: bool = False) -> Tensor:
    """Blend the colours of labels (N, H, W) uint8 over frames (N, H, W, 3) uint8: RGB of that shape."""
    if frames.device.type == 'cpu' and _blend_pixels is not None:
        blended = torch.empty(frames.shape, dtype=torch.uint8)
        _blend_pixels(frames.numpy(), labels.numpy(), lookup.numpy(), np.int32(weight.item()),
                      reversed_channels, blended.numpy())
        return blended
    rgb = frames.flip(3) if reversed_channels else frames
    return ((rgb * weight).add_(F.embedding(labels.int(), lookup)) >> 7).to(torch.uint8)


def channel_order(reversed_channels: bool) -> list[int]:
    """Return where red, green and blue lie in a frame."""
    return [2, 1, 0] if reversed_channels else [0, 1, 2]


def fused_normalise(frames: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype, order: Tensor) -> Tensor:
    """
    Do what `normalise` does in one kernel; the frames are contiguous.

    `order`: (3,) int32 on the device, see `channel_order`. It is data, not code, so that one captured graph
    serves cameras of both orders.
    """
    out = torch.empty(frames.shape, dtype=dtype, device=frames.device)
    block = 1024
    _normalise[(triton.cdiv(frames.numel(), block),)](
        frames, mean, std, order, out, frames.numel(), block=block)
    return out.permute(0, 3, 1, 2)


def fused_finish(logits: Tensor, frames: Tensor, lookup: Tensor, weight: Tensor, order: Tensor,
                 labels: Tensor, overlay: Tensor | None, confidence: Tensor | None, factor: int = 1,
                 size: tuple[int, int] | None = None) -> None:
    """
    Do what `label` and `blend` do in one kernel: no (K, H, W) array is ever written.

    Logits (N, K, h, w), or before a pixel shuffle by `factor` and a crop to `size` (h, w), and frames
    (N, H, W, 3) uint8; writes `labels` (N, H, W), and where they are given `overlay` (N, H, W, 3) and
    `confidence` (N, H, W). All but the logits are contiguous. A pixel is 255 where a logit is not finite.
    `order`: as in `fused_normalise`.
    """
    n, classes, h, w = logits.shape
    classes //= factor ** 2
    h, w = size or (h * factor, w * factor)
    height, width = labels.shape[1:]
    padded = max(2, triton.next_power_of_2(classes))
    block = max(16, min(128, 2048 // padded))
    _finish[(triton.cdiv(width, block), height, n)](
        logits, frames, lookup, weight, order, labels, labels if overlay is None else overlay,
        labels if confidence is None else confidence, h, w, height, width, *logits.stride(), classes=classes,
        factor=factor, padded=padded, block=block, overlay=overlay is not None,
        confidence=confidence is not None)
