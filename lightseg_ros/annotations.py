# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What annotation tools export: which label belongs to which image, and masks as codes of their pixels."""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
import json
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from . import labels as label_sets
from . import pictures
from .datasets import IMAGE_SUFFIXES
from .files import read_small
from .labels import LabelSet
from .pictures import PictureError

# A pixel's code is the id that a mask stores, or this plus its colour, red * 65536 + green * 256 + blue.
COLOR = 1 << 24
MAX_JSON = 1 << 30  # bytes
# Folders and ends of names that say what a file is; what is left of its path tells which image belongs to it.
MASK_FOLDERS = {'labels', 'label', 'masks', 'mask', 'annotations', 'annotation', 'annots', 'annot', 'ann',
                'gt', 'ground_truth', 'gtfine', 'seg', 'segmentation', 'segmentations', 'segmentationclass',
                'segmentationclasspng', 'segmentationclassraw'}
IMAGE_FOLDERS = {'images', 'image', 'imgs', 'img', 'jpegimages', 'leftimg8bit', 'imgsfine', 'rgb'}
OTHER_FOLDERS = {'segmentationobject', 'segmentationobjectpng', 'segmentationclassvisualization',
                 'segmentationobjectvisualization', '__macosx'}
MASK_ENDS = ('_gtfine_labelids', '_labelids', '_mask', '-mask', '_masks', '_label', '_labels', '_gt', '_seg')
IMAGE_ENDS = ('_leftimg8bit', '_image', '_img', '_rgb')
OTHER_ENDS = ('_instanceids', '_color', '_labeltrainids', '_instancetrainids', '_consensus')
SPLITS = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val',
          'test': 'test', 'testing': 'test'}
VOID = ('void', 'ignore', '__ignore__', 'ignored', 'unlabeled', 'unlabelled', 'dontcare')


class AnnotationError(ValueError):
    """A folder that holds no annotations that are known, or damaged ones; the text says what is there."""


@dataclass
class Class:
    """A class of a source: its name, its colour (RGB) where it is known, and the codes of its pixels."""

    name: str
    color: tuple[int, int, int] | None = None
    codes: set[int] = field(default_factory=set)


@dataclass
class Item:
    """
    An image and its labels.

    `split`: '' where the source has none. `name`: for the new file, without suffix. `read((height, width))`
    of the upright image returns codes (H, W) int32; `PictureError` or `AnnotationError` if there are none.
    """

    image: Path
    split: str
    name: str
    read: Callable[[tuple[int, int]], np.ndarray]


@dataclass
class Source:
    """
    What a folder holds. `kind`: what it was taken for, in words. `classes`: None where no file names them.

    `labels`: the label set that the user or the source gave, whose classes are all kept. `names`: those that
    the user gave. `palette`: (N, 3) RGB, the colours of ids that have no names. `void`: codes of no class.
    `left_out`: what can't be converted.
    """

    kind: str
    items: list[Item] = field(default_factory=list)
    classes: list[Class] | None = None
    labels: LabelSet | None = None
    names: Sequence[str] = ()
    palette: np.ndarray | None = None
    void: set[int] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)


class Files:
    """The files below a folder, and the images among them by name."""

    def __init__(self, root: Path, images: Path | None):
        self.root = root
        self.all = [p for p in _walk(root) if not any(part.lower() in OTHER_FOLDERS
                                                      for part in p.relative_to(root).parts)]
        if images is not None and not images.is_dir():
            raise AnnotationError(f'no folder {images}')
        self.images: dict[str, list[Path]] = {}
        self.masks: dict[str, list[Path]] = {}
        for path in self.all:
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.stem.lower().endswith(OTHER_ENDS):
                key, mask = key_of(path.relative_to(root))
                (self.masks if mask else self.images).setdefault(key, []).append(path)
        if images is not None:
            self.images = {}
            for path in _walk(images):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    self.images.setdefault(key_of(path.relative_to(images))[0], []).append(path)
        self.known = {path for paths in self.images.values() for path in paths}
        self.by_stem: dict[str, list[Path]] = {}
        for key, paths in self.images.items():
            self.by_stem.setdefault(key.rpartition('/')[2], []).extend(paths)

    def image(self, name: str, split: str = '') -> Path:
        """Return the image of a path or name without suffix; `AnnotationError` for none, or for several."""
        found = (self.images.get(f'{split}/{name}') or self.images.get(name)
                 or self.by_stem.get(name.rpartition('/')[2], []))
        if len(found) != 1:
            raise AnnotationError(f'{len(found)} images are called {name}' if found else f'no image {name}')
        return found[0]

    def beside(self, path: Path, name: str) -> Path | None:
        """Return the image of a relative path from a JSON file's folder, if there is one below the root."""
        wanted = Path(os.path.normpath(path.parent / name))
        return wanted if wanted in self.known else None

    def named(self, *names: str) -> Path | None:
        """Return the first file of one of these names, nearest to the top."""
        found = [p for p in self.all if p.name.lower() in names]
        return min(found, key=lambda p: (names.index(p.name.lower()), len(p.parts)), default=None)

    def json(self) -> Iterable[tuple[Path, dict[str, Any]]]:
        """Read the JSON files that hold an object."""
        for path in self.all:
            if path.suffix.lower() == '.json':
                try:
                    tree = json.loads(read_small(path, MAX_JSON))
                except (OSError, ValueError, RecursionError):
                    continue
                if isinstance(tree, dict):
                    yield path, tree


def _walk(root: Path) -> list[Path]:
    """List the files below a folder, sorted, also below linked folders; hidden ones are passed over."""
    found, entered = [], set()
    for folder, below, names in os.walk(root, followlinks=True):
        inode = os.stat(folder)
        if (inode.st_dev, inode.st_ino) in entered:  # a link to a folder that was listed, perhaps its own
            below.clear()
            continue
        entered.add((inode.st_dev, inode.st_ino))
        below[:] = sorted(name for name in below if not name.startswith('.'))
        found += [Path(folder, name) for name in names if not name.startswith('.')]
    return sorted(p for p in found if p.is_file())


def key_of(path: Path) -> tuple[str, bool]:
    """
    Return what a mask and its image have in common in their paths, and whether this is a mask.

    images/train/a.jpg and labels/train/a.png, train/images/a.jpg and train/masks/a.png, trainannot/a.png,
    train/a.jpg and train/a_mask.png: all are train/a.
    """
    parts, mask = [], False
    for part in path.parts[:-1]:
        low = part.lower()
        if low in MASK_FOLDERS:
            mask = True
        elif low.endswith('annot'):
            mask = True
            parts.append(part[:-len('annot')])
        elif low not in IMAGE_FOLDERS:
            parts.append(part)
    stem = path.stem
    end = next((e for e in MASK_ENDS if stem.lower().endswith(e)), '')
    if end and (mask or path.suffix.lower() == '.png'):
        mask, stem = True, stem[:-len(end)]
    elif not mask:
        stem = stem[:len(stem) - len(next((e for e in IMAGE_ENDS if stem.lower().endswith(e)), ''))]
    return '/'.join([*parts, stem]), mask


def placed(key: str) -> tuple[str, str]:
    """Return the split of a key and the name of a new file: folders stay as its beginning."""
    *folders, stem = key.split('/')
    split = next((SPLITS[f.lower()] for f in folders if f.lower() in SPLITS), '')
    folders = [f for f in folders if f.lower() not in SPLITS]
    # Roboflow's a_jpg.rf.0a1b would make each image a sequence of its own.
    stem = re.sub(r'_(jpe?g|png|bmp|webp)\.rf\.', '.rf.', stem)
    return split, '_'.join(['-'.join(folders), stem]) if folders else stem


def masks(there: Files, labels: LabelSet | None, names: Sequence[str]) -> Source:
    """List images with masks; `labels` and `names`: the classes, if the user named them."""
    if labels is None and not names and (file := there.named('labels.yaml')):
        labels = label_sets.load(file)
    source, by_color = _named(there, labels, names)
    source.names = names
    if labels is not None:
        source.labels = labels
        own = {v for ids in labels.source_ids for v in ids}
        source.void = {*labels.void_source_ids, labels.ignore_id} - own
    else:
        source.void |= {code for c in source.classes or () if c.name.lower() in VOID for code in c.codes}
    if source.classes is not None:
        source.classes = [c for c in source.classes if not c.codes <= source.void]
    known = source.void | {code for c in source.classes or () for code in c.codes}
    listed = _voc_splits(there)
    for key, paths in there.masks.items():
        if len(paths) > 1:
            source.left_out.append(f'{paths[0]} and {paths[1]}: two labels of one image; keep one')
            continue
        try:
            image = there.image(key)
        except AnnotationError as e:
            source.left_out.append(f'{paths[0]}: {e}')
            continue
        split, name = placed(key)
        if listed and key not in listed:
            source.left_out.append(f'{paths[0]}: in none of the lists in ImageSets')
            continue
        source.items.append(Item(image, listed.get(key, split), name,
                                 partial(_read_mask, paths[0], known, by_color)))
    used = {item.image for item in source.items}
    missing = [p for paths in there.images.values() for p in paths if p not in used]
    if there.masks and missing:
        source.left_out.append(f'{len(missing)} images without a label, the first is {missing[0]}')
    if source.classes is None and there.masks:
        first = read_small(next(iter(there.masks.values()))[0], pictures.MAX_FILE)
        source.palette = pictures.png_palette(first)
    return source


def _named(there: Files, labels: LabelSet | None, names: Sequence[str]) -> tuple[Source, bool]:
    """Return a source with its classes, and whether a palette's colours tell them rather than its ids."""
    folders = {part.lower() for p in there.all for part in p.relative_to(there.root).parts[:-1]}
    if 'jpegimages' in folders or any(f.startswith('segmentationclass') for f in folders):
        kind = 'Pascal VOC'
    elif 'gtfine' in folders:
        kind = 'Cityscapes-style folders'
    else:
        apart = folders & MASK_FOLDERS or any(f.endswith('annot') for f in folders)
        kind = 'folders of images and masks' if apart else 'masks beside images'
    if labels is not None:
        rows = zip(labels.names, labels.colors, labels.source_ids)
        return Source(f'{kind}, classes of a YAML file',
                      classes=[Class(n, c, {*ids, COLOR | _code(c)}) for n, c, ids in rows]), False
    if names:
        return Source(f'{kind}, classes of --classes'), False
    if file := there.named('labelmap.txt'):  # CVAT: name:red,green,blue:parts:actions
        found = re.findall(r'^([^#:\n][^:\n]*):(\d+),(\d+),(\d+):', _text(file), re.MULTILINE)
        return Source(f'{kind} with labelmap.txt, as CVAT exports', classes=_colored(file, found)), True
    if file := there.named('label_colors.txt', 'label_colours.txt'):  # CVAT's Cityscapes and CamVid
        lines = re.findall(r'^(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)$', _text(file), re.MULTILINE)
        return Source(f'{kind} with {file.name}',
                      classes=_colored(file, [(name, *c) for *c, name in lines])), True
    if file := there.named('_classes.csv'):  # Pixel Value, Class
        pairs = re.findall(r'^\s*(\d+)\s*,\s*(\S.*?)\s*$', _text(file), re.MULTILINE)
        return Source('Roboflow masks with _classes.csv',
                      classes=[Class(name, None, {int(v)}) for v, name in pairs]), False
    if file := there.named('class_names.txt', 'classes.txt', 'labels.txt'):
        lines = [line.strip() for line in _text(file).splitlines()]
        lines = [line for line in lines if line not in ('', '__ignore__')]  # Labelme's -1
        return Source(f'{kind} with {file.name}',
                      classes=[Class(n, None, {i}) for i, n in enumerate(lines)]), False
    if 'gtfine' in folders:
        city = label_sets.load('cityscapes')
        rows = zip(city.names, city.colors, city.source_ids)
        return Source(f'{kind}, ids as in Cityscapes', void={*city.void_source_ids},
                      classes=[Class(n, c, {*ids}) for n, c, ids in rows]), False
    return Source(f'{kind} without names of classes'), False


def _colored(file: Path, rows: Iterable[tuple[str, ...]]) -> list[Class]:
    classes = []
    for i, (name, *numbers) in enumerate(rows):
        r, g, b = (int(v) for v in numbers)
        if max(r, g, b) > 255:
            raise AnnotationError(f'{file}: colour {r},{g},{b} of {name!r}; expected numbers from 0 to 255')
        classes.append(Class(name.strip(), (r, g, b), {i, COLOR | _code((r, g, b))}))
    if not classes:
        raise AnnotationError(f'{file} names no class')
    return classes


def _voc_splits(there: Files) -> dict[str, str]:
    """Return the splits of Pascal VOC's lists by key; empty where there are no two splits."""
    lists = {p.stem.lower(): p for p in there.all if p.suffix == '.txt' and 'ImageSets' in p.parts}
    found: dict[str, str] = {}
    for stem, path in lists.items():
        if stem in SPLITS:
            for line in _text(path).splitlines():
                if line.strip():
                    found[line.split()[0]] = SPLITS[stem]
    return found if len({*found.values()}) > 1 else {}


def _read_mask(path: Path, known: set[int], by_color: bool, _: tuple[int, int]) -> np.ndarray:
    data = read_small(path, pictures.MAX_FILE)
    kind = pictures.png_kind(data)
    if kind in (pictures.RGB, pictures.RGB_ALPHA) or not kind and path.suffix.lower() not in (
            '.png', '.tif', '.tiff'):
        if data.startswith(pictures.JPEG):
            raise AnnotationError(f'{path} is a JPEG, whose compression changes colours; export PNG')
        return _color_codes(pictures.read(path, upright=False))
    ids = pictures.read_labels(path).astype(np.int32)
    palette = pictures.png_palette(data)
    if palette is None:
        return ids
    codes = COLOR | _code(palette.astype(np.int32).T)
    there = np.unique(ids)
    if there[-1] >= len(codes):
        raise PictureError(f'{path}: index {there[-1]} in a palette of {len(codes)} colours')
    as_colors = {*codes[there].tolist()} <= known
    return codes[ids] if as_colors and (by_color or not {*there.tolist()} <= known | {255}) else ids


def _color_codes(rgb: np.ndarray) -> np.ndarray:
    return COLOR | _code(rgb.astype(np.int32).transpose(2, 0, 1))


def _code(rgb: Any) -> Any:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _text(path: Path) -> str:
    try:
        return read_small(path, 1 << 20).decode('utf-8-sig')
    except (OSError, ValueError) as e:
        raise AnnotationError(f'{path} cannot be read: {e}') from e
