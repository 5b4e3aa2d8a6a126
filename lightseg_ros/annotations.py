# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What annotation tools export, as images and the codes of their pixels: masks, COCO, Labelme."""
import base64
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
import json
import os
from pathlib import Path
import re
from typing import Any

import cv2
import numpy as np

from . import labels as label_sets
from . import pictures
from .datasets import IMAGE_SUFFIXES
from .files import read_small
from .labels import LabelSet
from .pictures import PictureError
from .texts import one_line

# A pixel's code is the id that a mask stores, or this plus its colour, red * 65536 + green * 256 + blue.
COLOR = 1 << 24
MAX_JSON = 1 << 30  # bytes
FINE = 4
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
BACKGROUND = ('background', '_background_', '__background__', 'bg')
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


def recognise(root: Path, *, images: Path | None = None, labels: LabelSet | None = None,
              names: Sequence[str] = (), background: bool = True) -> Source:
    """
    Find out what a folder holds, and list its images with their labels.

    `images`: where the images are, if not in `root`. `labels`: the label set of masks. `names`: class names
    of masks, in the order of their ids. `background`: pixels outside of all polygons are a class, not void.
    `AnnotationError` if nothing is recognised.
    """
    if not root.is_dir():
        raise AnnotationError(f'no folder {root}')
    there = _Files(root, images)
    source = _coco(there, background) or _labelme(there, background)
    if source is None:
        source = _masks(there, labels, names)
    if not source.items and not source.left_out:
        kinds = Counter(p.suffix.lower() or 'no suffix' for p in there.all).most_common(4)
        found = ', '.join(f'{n} {suffix}' for suffix, n in kinds) or 'nothing'
        raise AnnotationError(
            f'{root} holds {found}; expected masks (images/ and labels/, JPEGImages/ and SegmentationClass/, '
            'X.jpg and X_mask.png, leftImg8bit/ and gtFine/), COCO or Labelme JSON')
    return source


class _Files:
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
                key, mask = _key(path.relative_to(root))
                (self.masks if mask else self.images).setdefault(key, []).append(path)
        if images is not None:
            self.images = {}
            for path in _walk(images):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    self.images.setdefault(_key(path.relative_to(images))[0], []).append(path)
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


def _key(path: Path) -> tuple[str, bool]:
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


def _placed(key: str) -> tuple[str, str]:
    """Return the split of a key and the name of a new file: folders stay as its beginning."""
    *folders, stem = key.split('/')
    split = next((SPLITS[f.lower()] for f in folders if f.lower() in SPLITS), '')
    folders = [f for f in folders if f.lower() not in SPLITS]
    # Roboflow's a_jpg.rf.0a1b would make each image a sequence of its own.
    stem = re.sub(r'_(jpe?g|png|bmp|webp)\.rf\.', '.rf.', stem)
    return split, '_'.join(['-'.join(folders), stem]) if folders else stem


# Masks.

def _masks(there: _Files, labels: LabelSet | None, names: Sequence[str]) -> Source:
    if labels is None and not names and (file := there.named('labels.yaml')):
        labels = label_sets.load(file)
    source, by_color = _named(there, labels)
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
        split, name = _placed(key)
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


def _named(there: _Files, labels: LabelSet | None) -> tuple[Source, bool]:
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


def _voc_splits(there: _Files) -> dict[str, str]:
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


# Polygons.

class _Shapes:
    """Areas of an image, drawn from the largest to the smallest: what lies on something stays visible."""

    def __init__(self, size: tuple[int, int] | None):
        self.size = size
        self.areas: list[tuple[int, Callable[[np.ndarray], np.ndarray]]] = []

    def codes(self, upright: tuple[int, int], outside: int) -> np.ndarray:
        size = self.size or upright
        if size[0] * size[1] > pictures.MAX_PIXELS:
            raise AnnotationError(f'annotations of {size[1]}x{size[0]}; expected {pictures.MAX_PIXELS} '
                                  'pixels at most')
        out = np.full(size, outside, np.int32)
        # Drawn twice: all areas of a picture at once may take gigabytes.
        pixels = [int(np.count_nonzero(draw(np.zeros(size, np.uint8)))) for _, draw in self.areas]
        for i in sorted(range(len(pixels)), key=lambda i: -pixels[i]):
            code, draw = self.areas[i]
            out[draw(np.zeros(size, np.uint8)) > 0] = code
        return out


def _polygon(points: Any, canvas: np.ndarray) -> np.ndarray:
    """
    Fill polygons, [x0, y0, x1, y1, ...] each, whose whole numbers are corners of pixels.

    OpenCV fills every pixel that an edge touches. So each pixel is cut into FINE x FINE parts, and one that
    is covered by half gets the class; what the edges add to its parts is taken off.
    """
    for polygon in points:
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
        if len(corners) < 3 or not np.isfinite(corners).all():
            continue
        most = np.array(canvas.shape[::-1])
        low = np.clip(np.floor(corners.min(0)), 0, most).astype(int)
        high = np.clip(np.ceil(corners.max(0)), 0, most).astype(int)
        if (low < high).all():
            (x0, y0), (x1, y1) = low, high
            parts = np.zeros(((y1 - y0) * FINE, (x1 - x0) * FINE), np.uint8)
            inside = np.clip((corners - low) * FINE - 0.5, -1e5, 1e5)
            cv2.fillPoly(parts, [np.round(inside).astype(np.int32)], 255)
            covered = cv2.resize(parts, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
            canvas[y0:y1, x0:x1] |= covered > 255 * (0.5 + 0.5 / FINE)
    return canvas


def _rle(segmentation: dict[str, Any], canvas: np.ndarray) -> np.ndarray:
    """Decode COCO's run lengths: columns from top to bottom, 0 and 1 in turns; as numbers or as text."""
    counts, (height, width) = segmentation['counts'], segmentation['size']
    if isinstance(counts, str):
        numbers: list[int] = []
        at = 0
        while at < len(counts):
            value = shift = 0
            more = True
            while more:
                c = ord(counts[at]) - 48
                value |= (c & 0x1F) << shift
                at, shift, more = at + 1, shift + 5, bool(c & 0x20)
                if not more and c & 0x10:
                    value |= -1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        counts = numbers
    runs = np.asarray(counts, np.int64)
    if (height, width) != canvas.shape or (runs < 0).any() or runs.sum() != canvas.size:
        raise AnnotationError(f'run lengths of {width}x{height} with {runs.sum()} pixels; expected '
                              f'{canvas.shape[1]}x{canvas.shape[0]}')
    return np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T.astype(np.uint8)


def _background(classes: list[Class], background: bool) -> tuple[list[Class], int, set[int]]:
    """Return the classes, the code of what no shape covers, and the codes that are void."""
    own = next((c for c in classes if c.name.lower() in BACKGROUND), None)
    outside = max((code for c in classes for code in c.codes), default=-1) + 1
    void = {code for c in classes if c.name.lower() in VOID for code in c.codes}
    classes = [c for c in classes if not c.codes <= void]
    if not background:
        return classes, outside, void | {outside}
    if own:
        return [own, *(c for c in classes if c is not own)], min(own.codes), void
    return [Class('background', (0, 0, 0), {outside}), *classes], outside, void


def _coco(there: _Files, background: bool) -> Source | None:
    classes: dict[str, Class] = {}
    rows: list[tuple[Path, dict[str, Any], _Shapes]] = []
    left_out: list[str] = []
    skipped: Counter = Counter()
    for path, tree in there.json():
        if not all(isinstance(tree.get(k), list) for k in ('images', 'annotations', 'categories')):
            continue
        try:
            codes = {}
            for c in tree['categories']:
                own = classes.setdefault(str(c['name']), Class(str(c['name'])))
                if not own.codes:
                    own.codes.add(len(classes) - 1)
                codes[c['id']] = min(own.codes)
            shapes = {image['id']: _Shapes((int(image['height']), int(image['width']))
                                           if 'height' in image and 'width' in image else None)
                      for image in tree['images']}
            for a in tree['annotations']:
                segmentation, code = a.get('segmentation'), codes[a['category_id']]
                if not segmentation:
                    skipped['boxes without an outline'] += 1
                elif a['image_id'] in shapes:
                    draw = partial(_rle if isinstance(segmentation, dict) else _polygon, segmentation)
                    shapes[a['image_id']].areas.append((code, draw))
            rows += [(path, image, shapes[image['id']]) for image in tree['images']]
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
            raise AnnotationError(f'{path} is damaged COCO: {one_line(repr(e), 200)}; expected images (id, '
                                  'file_name, height, width), annotations (image_id, category_id, '
                                  'segmentation) and categories (id, name)') from e
    if not rows:
        return None
    listed, outside, void = _background(list(classes.values()), background)
    source = Source('COCO', classes=listed, void=void)
    for path, image, shape in rows:
        name = str(image.get('file_name', '')).replace('\\', '/')
        key, _ = _key(Path(name))
        inside = path.relative_to(there.root)
        words = [*inside.parts[:-1], *re.findall('[a-z]+', path.stem.lower())]
        split = next((SPLITS[w.lower()] for w in words if w.lower() in SPLITS), '')
        try:
            found = there.beside(path, name) or there.image(key, split)
        except AnnotationError as e:
            left_out.append(f'{path}: {e}')
            continue
        own_split, name = _placed(key)
        source.items.append(Item(found, split or own_split, name, partial(_draw, shape, outside)))
    source.left_out = left_out + [f'{n} {what}' for what, n in skipped.items()]
    return source


def _draw(shapes: _Shapes, outside: int, upright: tuple[int, int]) -> np.ndarray:
    try:
        return shapes.codes(upright, outside)
    except (TypeError, ValueError, KeyError, IndexError, cv2.error) as e:
        raise AnnotationError(f'its annotations are damaged: {e}') from e


def _labelme(there: _Files, background: bool) -> Source | None:
    classes: dict[str, Class] = {}
    source = Source('Labelme')
    rows: list[tuple[Path, str, str, _Shapes]] = []
    skipped: Counter = Counter()
    for path, tree in there.json():
        if not isinstance(tree.get('shapes'), list) or 'imagePath' not in tree:
            continue
        height, width = tree.get('imageHeight'), tree.get('imageWidth')
        stated = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        shapes = _Shapes(stated)
        for shape in tree['shapes']:
            try:
                draw = _labelme_shape(shape)
                name = str(shape['label'])
            except (AttributeError, KeyError, IndexError, OverflowError, TypeError, ValueError) as e:
                skipped[f'shapes that are damaged ({path.name}: {one_line(repr(e), 200)})'] += 1
                continue
            if draw is None:
                skipped[f'shapes of the type {shape.get("shape_type")}, which has no area'] += 1
                continue
            own = classes.setdefault(name, Class(name))
            if not own.codes:
                own.codes.add(len(classes) - 1)
            shapes.areas.append((min(own.codes), draw))
        key, _ = _key(path.relative_to(there.root))
        image = str(tree['imagePath']).replace('\\', '/').rpartition('/')[2]
        rows.append((path, key, image, shapes))
    if not rows:
        return None
    named = sorted(classes.values(), key=lambda c: c.name)  # the files have no order
    source.classes, outside, source.void = _background(named, background)
    for path, key, image, shapes in rows:
        try:
            found = there.beside(path, image) or there.image(Path(image).stem)
        except AnnotationError as e:
            source.left_out.append(f'{path}: {e}')
            continue
        source.items.append(Item(found, *_placed(key), partial(_draw, shapes, outside)))
    source.left_out += [f'{n} {what}' for what, n in skipped.items()]
    return source


def _labelme_shape(shape: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return what draws a shape; None for one without an area."""
    kind, points = shape.get('shape_type') or 'polygon', np.asarray(shape['points'], np.float64)
    if kind == 'polygon':
        return partial(_polygon, [points])
    (x0, y0), (x1, y1) = (points.min(0), points.max(0)) if kind in ('rectangle', 'mask') else points[:2]
    if kind == 'rectangle':
        return partial(_polygon, [[x0, y0, x1, y0, x1, y1, x0, y1]])
    if kind == 'circle':
        turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        radius = np.hypot(x1 - x0, y1 - y0)
        return partial(_polygon, [np.stack([x0 + radius * np.cos(turn), y0 + radius * np.sin(turn)], 1)])
    if kind == 'mask':
        mask = pictures.decode_labels(base64.b64decode(shape['mask'], validate=True)) > 0
        return partial(_stamp, mask, int(x0), int(y0))
    return None


def _stamp(mask: np.ndarray, x: int, y: int, canvas: np.ndarray) -> np.ndarray:
    if x < 0 or y < 0:
        raise AnnotationError(f'a mask at {x}, {y}')
    part = canvas[y:y + mask.shape[0], x:x + mask.shape[1]]
    part |= mask[:part.shape[0], :part.shape[1]]
    return canvas
