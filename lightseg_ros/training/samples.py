# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training samples: a whole data set as uint8 tensors on the device, cropped and augmented there."""
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F
from tqdm import tqdm

from ..datasets import DataError, DataSet


def to_device(dataset: DataSet, device: str | torch.device, size: tuple[int, int] | None = None) \
        -> tuple[Tensor, Tensor]:
    """
    Read a whole data set to the device: images (N, 3, H, W) uint8 RGB, labels (N, H, W) uint8, void 255.

    `size`: (height, width) in pixels that every pair is resized to; without it all must have the same size.
    CamVid's 468 training images take 324 MB with their labels, Cityscapes' 2975 take 25 GB (6.2 GB at
    512x1024). `DataError` names a file that cannot be read or has another size.
    """
    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, ids = dataset.read(index)
        if size and image.shape[:2] != size:
            smaller = size[0] * size[1] < ids.size
            how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            image = cv2.resize(image, size[::-1], interpolation=how)
            ids = cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST)
        return image, ids

    height, width = size or dataset.read(0)[1].shape
    images = torch.empty(len(dataset), 3, height, width, dtype=torch.uint8, device=device)
    labels = torch.empty(len(dataset), height, width, dtype=torch.uint8, device=device)
    with ThreadPoolExecutor() as pool:
        rows = tqdm(pool.map(read, range(len(dataset))), f'{dataset.name} {dataset.split}', len(dataset),
                    leave=False, unit='img', disable=None)
        for i, (image, ids) in enumerate(rows):
            if ids.shape != (height, width):
                raise DataError(f'{dataset.pairs[i].image} is {ids.shape[1]}x{ids.shape[0]}, the first image '
                                f'{width}x{height}; training needs one size: choose it with --size')
            images[i] = torch.from_numpy(image).permute(2, 0, 1)
            labels[i] = torch.from_numpy(np.where(ids == dataset.labels.ignore_id, np.uint8(255), ids))
    return images, labels


def statistics(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and std, (3,) RGB on the 0-255 scale, and class frequencies (num_classes,) without void."""
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    counts = torch.zeros(256, dtype=torch.float64)
    for x, ids in zip(images.split(32), labels.split(32)):
        x = x.double()
        total += x.sum((0, 2, 3)).cpu()
        squares += (x * x).sum((0, 2, 3)).cpu()
        counts += torch.bincount(ids.flatten(), minlength=256).double().cpu()
    counts = counts[:num_classes]
    if not counts.sum():
        raise DataError('no pixel of the data set has a class: all its labels are void')
    n = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total / n
    # A constant channel has a std of 0, by which nothing can be divided.
    std = (squares / n - mean * mean).clamp_min(1e-2).sqrt()
    return mean.float(), std.float(), (counts / counts.sum()).float()


class AugmentParams(NamedTuple):
    """
    The random numbers of n training samples; a field is None where its augmentation is off.

    `chosen` (n,) int64: index of the image. `theta` (n, 2, 3): zoom, flip and position of the crop, as
    `F.affine_grid` takes them. `color` (n, 3): factors of brightness, contrast and saturation. `sigma` (n,):
    width of the blur in pixels. `paste` (n, K) bool: classes that are pasted in from the sample before.
    """

    chosen: Tensor
    theta: Tensor
    color: Tensor | None
    sigma: Tensor | None
    paste: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> 'AugmentParams':
        return AugmentParams(*(t if t is None else function(t) for t in self))  # type: ignore[arg-type]


def draw(count: int, batch: int, generator: torch.Generator, *, size: tuple[int, int], crop: tuple[int, int],
         scale: tuple[float, ...] = (1.0, 1.0), color: float = 0.0, blur: float = 0.0, mix: float = 0.0,
         num_classes: int = 255) -> AugmentParams:
    """
    Draw an epoch: `count` images in random order, as many as fill whole batches, and their augmentation.

    `size`, `crop`: (height, width) of the images and of the crops. `scale`: two numbers are a range of the
    zoom, drawn log-uniformly; more are a set. `color`: half-range of the factors. `blur`, `mix`: share of the
    samples. Everything is drawn on the CPU from the generator alone, so that every device and every resumed
    run trains on the same samples.
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
    return AugmentParams(chosen, theta, uniform(1 - color, 1 + color, 3) if color else None, sigma, paste)


def augment(images: Tensor, labels: Tensor, drawn: AugmentParams, *, crop: tuple[int, int], mean: Tensor,
            ignore_id: int = 255) -> tuple[Tensor, Tensor]:
    """
    Crop and augment the samples that were drawn, on the device that holds images and `drawn`.

    images (N, 3, H, W) uint8 -> (n, 3, h, w) float32, 0-255; labels (N, H, W) uint8 -> (n, h, w) int64.
    Pixels outside the image get the colour `mean` (RGB) and the label void. Images are interpolated
    bilinearly, labels by the nearest pixel, both with half-pixel centres.
    """
    x, y = images[drawn.chosen].float(), labels[drawn.chosen].float()
    n = len(x)
    grid = F.affine_grid(drawn.theta, [n, 1, *crop], align_corners=False)
    shift = mean.view(1, 3, 1, 1)
    x = F.grid_sample(x - shift, grid, 'bilinear', 'zeros', align_corners=False) + shift
    # grid_sample pads with 0, so ids are raised by one before it; 256 (void + 1) is exact in float32.
    y = F.grid_sample(y[:, None] + 1, grid, 'nearest', 'zeros', align_corners=False)[:, 0]
    y = torch.where(y < 0.5, float(ignore_id), y - 1).round().long()
    if drawn.paste is not None:
        other_x, other_y = x.roll(1, 0), y.roll(1, 0)
        known = other_y < drawn.paste.shape[1]
        pasted = drawn.paste.gather(1, other_y.where(known, 0).flatten(1)).view_as(y) & known
        x, y = torch.where(pasted.unsqueeze(1), other_x, x), torch.where(pasted, other_y, y)
    if drawn.sigma is not None:
        x = _blur(x, drawn.sigma)
    if drawn.color is not None:
        brightness, contrast, saturation = drawn.color.view(n, 3, 1, 1, 1).unbind(1)
        gray = 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]
        x = gray + (x - gray) * saturation
        level = x.mean((1, 2, 3), keepdim=True)
        x = ((x - level) * contrast + level * brightness).clamp(0, 255)
    return x, y


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own sigma (pixels): a Gaussian of 7 taps as two depthwise convolutions."""
    n, c, h, w = x.shape
    taps = torch.arange(-3, 4, device=x.device) / sigma.view(n, 1)
    kernel = torch.softmax(-0.5 * taps * taps, 1).unsqueeze(1).expand(n, c, 7).reshape(n * c, 7)
    x = F.pad(x.reshape(1, n * c, h, w), (3, 3, 3, 3), 'replicate')
    x = F.conv2d(x, kernel.view(n * c, 1, 7, 1), groups=n * c)
    return F.conv2d(x, kernel.view(n * c, 1, 1, 7), groups=n * c).view(n, c, h, w)
