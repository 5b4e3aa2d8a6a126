# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training samples: a whole data set as uint8 tensors on the device, cropped and augmented there."""
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F
from tqdm import tqdm

from .. import machine
from ..datasets import DataError, DataSet

PATTERN = 512  # side of the tile of noise, in pixels
# Ranges of what happens to an image at dusk, and of the sides of an erased rectangle.
DUSK_GAIN, DUSK_EXPONENT, DUSK_TINT = (0.25, 0.8), (1.0, 1.5), (0.8, 1.1)
ERASED = (0.1, 0.4)
# Ranges of the veil of fog: share of the image that is left, and its grey level.
FOG_SEEN, FOG_LEVEL = (0.3, 0.9), (160.0, 240.0)
# Ranges of what recolours a class: brightness, and factors of red, green and blue; and of the shade, as the
# natural logarithm of the factor at an edge of the crop.
CLASS_GAIN, CLASS_TINT, SHADE = (0.4, 1.4), (0.7, 1.2), 0.4


def to_device(dataset: DataSet, device: str | torch.device, size: tuple[int, int] | None = None) \
        -> tuple[Tensor, Tensor]:
    """
    Read a whole data set to the device: images (N, 3, H, W) uint8 RGB, labels (N, H, W) uint8, void 255.

    `size`: (height, width) in pixels that every pair is made to `fit`; without it all must have one size.
    CamVid's 468 training images take 324 MB with their labels, Cityscapes' 2975 take 25 GB (6.2 GB at
    512x1024). `DataError` names a file that cannot be read or has another size, and says before reading
    if the memory is too small.
    """
    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, ids = dataset.read(index)
        return fit(image, ids, size, dataset.labels.ignore_id) if size else (image, ids)

    height, width = size or dataset.read(0)[1].shape
    check_room(device, len(dataset), height, width, f'{dataset.name} {dataset.split}')
    images = torch.empty(len(dataset), 3, height, width, dtype=torch.uint8, device=device)
    labels = torch.empty(len(dataset), height, width, dtype=torch.uint8, device=device)
    with ThreadPoolExecutor() as pool:
        rows = tqdm(pool.map(read, range(len(dataset))), f'{dataset.name} {dataset.split}', len(dataset),
                    leave=False, unit='img', disable=None)
        for i, (image, ids) in enumerate(rows):
            if ids.shape != (height, width):
                raise DataError(f'{dataset.pairs[i].image} is {ids.shape[1]}x{ids.shape[0]}, the first image '
                                f'{width}x{height}; training needs one: give the --size that "lightseg data '
                                'check" names, or another one')
            images[i] = torch.from_numpy(image).permute(2, 0, 1)
            labels[i] = torch.from_numpy(np.where(ids == dataset.labels.ignore_id, np.uint8(255), ids))
    return images, labels


def check_room(device: str | torch.device, count: int, height: int, width: int, what: str) -> None:
    """Raise `DataError` if the device has no room for `count` more images of this size and their labels."""
    where = torch.device(device)
    if where.type not in ('cpu', 'cuda'):
        return
    free = torch.cuda.mem_get_info(where)[0] if where.type == 'cuda' else machine.free_bytes()
    needed = 4 * count * height * width
    if needed > free:
        raise DataError(f'{what}: {count} images of {width}x{height} take {needed / 1e9:.1f} GB, and '
                        f'{free / 1e9:.1f} GB are free on {where}; choose a smaller --size, such as '
                        f'{width // 2}x{height // 2}, which takes a quarter')


def fit(image: np.ndarray, ids: np.ndarray, size: tuple[int, int],
        void: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Scale image (H, W, 3) and labels (H, W) to fit into `size` (height, width); the aspect ratio stays.

    The rest, half of it on each side, has the label `void` and the image's mean colour.
    """
    if ids.shape == size:
        return image, ids
    scale = min(size[0] / ids.shape[0], size[1] / ids.shape[1])
    height, width = (max(1, min(most, round(side * scale))) for side, most in zip(ids.shape, size))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    out = np.empty((*size, 3), np.uint8)
    out[:] = image.mean((0, 1)).round()
    labels = np.full(size, void, ids.dtype)
    y, x = (size[0] - height) // 2, (size[1] - width) // 2
    out[y:y + height, x:x + width] = cv2.resize(image, (width, height), interpolation=how)
    labels[y:y + height, x:x + width] = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST)
    return out, labels


class Statistics(NamedTuple):
    """
    What a data set looks like; void pixels are left out of the frequencies.

    `mean`, `std`: (3,) RGB on the 0-255 scale. `frequency`: (K,) share of each class. `present_frequency`:
    (K,) share of each class among the pixels of those images that contain it, 0 for a class in no image.
    """

    mean: Tensor
    std: Tensor
    frequency: Tensor
    present_frequency: Tensor


def statistics(images: Tensor, labels: Tensor, num_classes: int) -> Statistics:
    """Compute the statistics of images (N, 3, H, W) uint8 and labels (N, H, W) uint8."""
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    counts, present = torch.zeros(num_classes, dtype=torch.float64), torch.zeros(num_classes)
    for x, ids in zip(images.split(32), labels.split(32)):
        x, n = x.double(), len(x)
        total += x.sum((0, 2, 3)).cpu()
        squares += (x * x).sum((0, 2, 3)).cpu()
        image = 256 * torch.arange(n, device=ids.device).view(n, 1, 1)
        each = torch.bincount((ids + image).flatten(), minlength=256 * n).view(n, 256)[:, :num_classes]
        each = each.double().cpu()
        counts += each.sum(0)
        present += ((each > 0) * each.sum(1, keepdim=True)).sum(0)
    if not counts.sum():
        raise DataError('no pixel of the data set has a class: all its labels are void')
    n = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total / n
    # A constant channel has a std of 0, by which nothing can be divided.
    std = (squares / n - mean * mean).clamp_min(1e-2).sqrt()
    return Statistics(mean.float(), std.float(), (counts / counts.sum()).float(),
                      (counts / present.clamp_min(1)).float())


class AugmentParams(NamedTuple):
    """
    The random numbers of n training samples; a field is None where its augmentation is off.

    `chosen` (n,) int64: index of the image. `theta` (n, 2, 3): zoom, flip and position of the crop, as
    `F.affine_grid` takes them. `color` (n, 3): factors of brightness, contrast and saturation. `sigma` (n,):
    width of the blur in pixels. `paste` (n, K) bool: classes that are pasted in from the sample before.
    `tone` (n, 5): gain, exponent, and the factors of red, green and blue. `noise` (n, 3): standard deviation
    on the 0-255 scale, and row and column in the pattern of noise. `box` (n, 4): top, left, bottom and right
    of the rectangle that is erased, as fractions of the crop; all 0 where nothing is erased. `tints`
    (n, K + 1, 3): factors of red, green and blue for the pixels of each class, the last row for void. `shade`
    (n, 2): natural logarithm of the brightness factor at the right and bottom edge; it is linear in between,
    and has the other sign at the left and top edge. `veil` (n, 2): share of the image that is seen through
    fog, and the fog's grey level.
    """

    chosen: Tensor
    theta: Tensor
    color: Tensor | None
    sigma: Tensor | None
    paste: Tensor | None
    tone: Tensor | None = None
    noise: Tensor | None = None
    box: Tensor | None = None
    tints: Tensor | None = None
    shade: Tensor | None = None
    veil: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> 'AugmentParams':
        return AugmentParams(*(t if t is None else function(t) for t in self))  # type: ignore[arg-type]


def draw(count: int, batch: int, generator: torch.Generator, *, size: tuple[int, int], crop: tuple[int, int],
         scale: tuple[float, ...] = (1.0, 1.0), color: float = 0.0, blur: float = 0.0, mix: float = 0.0,
         num_classes: int = 255, aspect: float = 0.0, edges: float = 0.0, gamma: float = 0.0,
         dusk: float = 0.0, noise: float = 0.0, erase: float = 0.0, extra: int = 0,
         extra_share: float = 0.0, recolor: float = 0.0, fog: float = 0.0) -> AugmentParams:
    """
    Draw an epoch: `count` images in random order, as many as fill whole batches, and their augmentation.

    `size`, `crop`: (height, width) of the images and of the crops. `scale`: two numbers are a range of the
    zoom, drawn log-uniformly; more are a set. `color`: half-range of the factors. `blur`, `mix`, `edges`,
    `dusk`, `fog`, `erase`, `recolor`: share of the samples. `aspect`, `gamma`: largest factor, less 1.
    `noise`: largest standard deviation. The share `extra_share` of the samples is replaced by synthetic
    images, which follow the others: indices `count` to `count + extra - 1`. Their colours vary more.
    Everything is drawn on the CPU from the generator alone, so that every device and every resumed run trains
    on the same samples.
    """
    n = count // batch * batch

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape).uniform_(low, high, generator=generator)

    chosen = torch.randperm(count, generator=generator)[:n]
    if len(scale) == 2:
        zoom = uniform(math.log(scale[0]), math.log(scale[1])).exp()
    else:
        zoom = torch.tensor(scale)[torch.randint(len(scale), (n,), generator=generator)]
    mirrored = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    # In grid_sample's coordinates the image covers [-1, 1], and the crop covers the fraction `span` of it.
    # The crop's centre moves within the rest. Where the crop is larger, the formula moves the image in it.
    theta = torch.zeros(n, 2, 3)
    for row, axis in enumerate((1, 0)):
        span = crop[axis] / (size[axis] * zoom)
        theta[:, row, row] = span
        theta[:, row, 2] = (1 - span).abs() * uniform(-1, 1)
    theta[:, 0, 0] *= mirrored
    sigma = torch.where(uniform(0, 1) < blur, uniform(0.3, 1.5), 0.05) if blur else None
    paste = (uniform(0, 1, num_classes) < 0.5) & (uniform(0, 1, 1) < mix) if mix else None
    factors = uniform(1 - color, 1 + color, 3) if color else None
    # What came later is drawn last, so that a recipe without it sees the same samples as before.
    if aspect:
        _widen(theta, uniform(-math.log1p(aspect), math.log1p(aspect)).exp())
    if edges:
        # The centre of a crop in a corner is as far from the image's centre as it can be.
        corner = (1 - theta[:, (0, 1), (0, 1)].abs()).abs() * torch.where(uniform(0, 1, 2) < 0.5, -1.0, 1.0)
        theta[:, :, 2] = torch.where(uniform(0, 1, 1) < edges, corner, theta[:, :, 2])
    tone = torch.ones(n, 5) if gamma or dusk or extra_share else None
    if tone is not None and gamma:
        tone[:, 1] = uniform(-math.log1p(gamma), math.log1p(gamma)).exp()
    if tone is not None and dusk:
        dark = torch.cat([uniform(*DUSK_GAIN, 1), tone[:, 1:2] * uniform(*DUSK_EXPONENT, 1),
                          uniform(*DUSK_TINT, 3)], 1)
        tone = torch.where(uniform(0, 1, 1) < dusk, dark, tone)
    spread = torch.stack([uniform(0, noise), uniform(0, PATTERN), uniform(0, PATTERN)], 1) if noise else None
    box = None
    if erase:
        extent = uniform(*ERASED, 2)
        start = uniform(0, 1, 2) * (1 - extent)
        box = torch.cat([start, start + extent], 1) * (uniform(0, 1, 1) < erase)
    if tone is not None and extra_share:
        synthetic = uniform(0, 1) < extra_share
        chosen = torch.where(synthetic, count + torch.randint(extra, (n,), generator=generator), chosen)
        wild = torch.cat([uniform(0.6, 1.2, 1), uniform(-0.4, 0.4, 1).exp(), uniform(0.75, 1.25, 3)], 1)
        tone = torch.where(synthetic[:, None], wild, tone)
    tints = shade = None
    if recolor:
        gain = uniform(math.log(CLASS_GAIN[0]), math.log(CLASS_GAIN[1]), num_classes, 1).exp()
        tints = gain * uniform(*CLASS_TINT, num_classes, 3)
        changed = (uniform(0, 1, num_classes, 1) < 0.5) & (uniform(0, 1, 1, 1) < recolor)
        tints = F.pad(torch.where(changed, tints, 1.0), (0, 0, 0, 1), value=1.0)
        shade = uniform(-SHADE, SHADE, 2) * (uniform(0, 1, 1) < recolor)
    veil = None
    if fog:
        thick = torch.cat([uniform(*FOG_SEEN, 1), uniform(*FOG_LEVEL, 1)], 1)
        veil = torch.where(uniform(0, 1, 1) < fog, thick, torch.tensor([1.0, 0.0]))
    return AugmentParams(chosen, theta, factors, sigma, paste, tone, spread, box, tints, shade, veil)


def _widen(theta: Tensor, factor: Tensor) -> None:
    """Scale the image's width by a factor (n,), and keep the crop's position in the room that is left."""
    span = theta[:, 0, 0].abs()
    place = theta[:, 0, 2] / (1 - span).abs().clamp_min(1e-6)
    theta[:, 0, 0] /= factor
    theta[:, 0, 2] = place.clamp(-1, 1) * (1 - span / factor).abs()


def augment(images: Tensor, labels: Tensor, drawn: AugmentParams, *, crop: tuple[int, int], mean: Tensor,
            ignore_id: int = 255, reflect: bool = False, sharp: bool = False) -> tuple[Tensor, Tensor]:
    """
    Crop and augment the samples that were drawn, on the device that holds images and `drawn`.

    images (N, 3, H, W) uint8 -> (n, 3, h, w) float32, 0-255; labels (N, H, W) uint8 -> (n, h, w) int64.
    Pixels outside the image get the label void and the colour `mean` (RGB), or, with `reflect`, that of the
    reflected image. Images are interpolated bilinearly, labels by the nearest pixel, both with half-pixel
    centres. At the edge of the image, the interpolation mixes in `mean`, unless it is `sharp`.
    """
    x, y = images[drawn.chosen].float(), labels[drawn.chosen].float()
    n = len(x)
    grid = F.affine_grid(drawn.theta, [n, 1, *crop], align_corners=False)
    shift = mean.view(1, 3, 1, 1)
    outside = 'reflection' if reflect else 'border' if sharp else 'zeros'
    x = F.grid_sample(x - shift, grid, 'bilinear', outside, align_corners=False) + shift
    if sharp and not reflect:
        x = torch.where((grid.abs() > 1).any(3).unsqueeze(1), shift, x)
    # grid_sample pads with 0, so ids are raised by one before it; 256 (void + 1) is exact in float32.
    y = F.grid_sample(y[:, None] + 1, grid, 'nearest', 'zeros', align_corners=False)[:, 0]
    y = torch.where(y < 0.5, float(ignore_id), y - 1).round().long()
    if drawn.paste is not None:
        other_x, other_y = x.roll(1, 0), y.roll(1, 0)
        known = other_y < drawn.paste.shape[1]
        pasted = drawn.paste.gather(1, other_y.where(known, 0).flatten(1)).view_as(y) & known
        x, y = torch.where(pasted.unsqueeze(1), other_x, x), torch.where(pasted, other_y, y)
    if drawn.tints is not None and drawn.shade is not None:
        void = drawn.tints.shape[1] - 1
        factors = drawn.tints.gather(1, y.clamp(max=void).view(n, -1, 1).expand(-1, -1, 3))
        right, bottom = (torch.linspace(-1, 1, v, device=x.device) for v in (crop[1], crop[0]))
        slope = drawn.shade[:, 0].view(n, 1, 1) * right + drawn.shade[:, 1].view(n, 1, 1) * bottom.view(-1, 1)
        x = (x * factors.mT.reshape(x.shape) * slope.exp().unsqueeze(1)).clamp(0, 255)
    if drawn.sigma is not None:
        x = _blur(x, drawn.sigma)
    if drawn.color is not None:
        brightness, contrast, saturation = drawn.color.view(n, 3, 1, 1, 1).unbind(1)
        gray = 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]
        x = gray + (x - gray) * saturation
        level = x.mean((1, 2, 3), keepdim=True)
        x = ((x - level) * contrast + level * brightness).clamp(0, 255)
    if drawn.tone is not None:
        gain, exponent, tint = drawn.tone.view(n, 5, 1, 1).split((1, 1, 3), 1)
        x = 255 * (x * (gain * tint / 255)).clamp(0, 1) ** exponent
    if drawn.veil is not None:
        seen, level = drawn.veil.view(n, 2, 1, 1, 1).unbind(1)
        x = x * seen + level * (1 - seen)
    if drawn.noise is not None:
        x = (x + drawn.noise[:, 0].view(n, 1, 1, 1) * _noise(drawn.noise[:, 1:], crop)).clamp(0, 255)
    if drawn.box is not None:
        row, column = (((torch.arange(v, device=x.device) + 0.5) / v).view(1, -1) for v in crop)
        top, left, bottom, right = drawn.box.unsqueeze(2).unbind(1)
        rows, columns = (row > top) & (row < bottom), (column > left) & (column < right)
        erased = rows.unsqueeze(2) & columns.unsqueeze(1)
        x, y = torch.where(erased.unsqueeze(1), shift, x), y.masked_fill(erased, ignore_id)
    return x, y


def _noise(place: Tensor, crop: tuple[int, int]) -> Tensor:
    """Cut noise of standard deviation 1, (n, 3, h, w), from a fixed pattern that repeats; `place` (n, 2)."""
    pattern = _pattern(str(place.device))
    row, column = ((torch.arange(v, device=place.device) + p.long().view(-1, 1)) % PATTERN
                   for v, p in zip(crop, place.unbind(1)))
    return pattern[:, row.unsqueeze(2), column.unsqueeze(1)].transpose(0, 1)


@cache
def _pattern(device: str) -> Tensor:
    """
    Return a tile of Gaussian noise, (3, PATTERN, PATTERN).

    A fixed pattern at random places needs no random numbers on the device, so that a resumed run, and the
    replay of a CUDA graph, sees the noise that was drawn.
    """
    return torch.randn(3, PATTERN, PATTERN, generator=torch.Generator().manual_seed(0)).to(device)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own sigma (pixels): a Gaussian of 7 taps as two depthwise convolutions."""
    n, c, h, w = x.shape
    taps = torch.arange(-3, 4, device=x.device) / sigma.view(n, 1)
    kernel = torch.softmax(-0.5 * taps * taps, 1).unsqueeze(1).expand(n, c, 7).reshape(n * c, 7)
    x = F.pad(x.reshape(1, n * c, h, w), (3, 3, 3, 3), 'replicate')
    x = F.conv2d(x, kernel.view(n * c, 1, 7, 1), groups=n * c)
    return F.conv2d(x, kernel.view(n * c, 1, 1, 7), groups=n * c).view(n, c, h, w)
