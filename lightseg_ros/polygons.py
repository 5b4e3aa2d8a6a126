# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Outlines and run lengths that annotation tools export, drawn as codes of pixels: COCO and Labelme."""
import base64
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
import re
from typing import Any

import cv2
import numpy as np

from . import pictures
from .annotations import AnnotationError, Class, Files, Item, key_of, placed, Source, SPLITS, VOID
from .texts import one_line

FINE = 4  # parts of a pixel's side, of which half must lie inside of a polygon
BACKGROUND = ('background', '_background_', '__background__', 'bg')


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


@np.errstate(over='ignore')  # corners far outside of any picture may overflow; they are clipped
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


def coco(there: Files, background: bool) -> Source | None:
    """List the images of COCO files, None if there are none; `background`: a class of its own, or void."""
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
            # Files that were joined without new ids: nothing tells whose annotations these are.
            files: dict[Any, set[str]] = {}
            for image in tree['images']:
                files.setdefault(image['id'], set()).add(str(image.get('file_name')))
            for a in tree['annotations']:
                segmentation, code = a.get('segmentation'), codes.get(a['category_id'])
                if not segmentation:
                    skipped['boxes without an outline'] += 1
                elif code is None:
                    unknown = one_line(repr(a['category_id']), 40)
                    skipped[f'annotations of category {unknown}, which {path.name} does not name'] += 1
                elif a['image_id'] in shapes:
                    draw = partial(_rle if isinstance(segmentation, dict) else _polygon, segmentation)
                    shapes[a['image_id']].areas.append((code, draw))
                else:
                    skipped[f'annotations of images that {path.name} does not list'] += 1
            for image in tree['images']:
                if len(files[image['id']]) > 1:
                    skipped[f'images that have the id of another one in {path.name}'] += 1
                else:
                    rows.append((path, image, shapes[image['id']]))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
            raise AnnotationError(f'{path} is damaged COCO: {one_line(repr(e), 200)}; expected images (id, '
                                  'file_name, height, width), annotations (image_id, category_id, '
                                  'segmentation) and categories (id, name)') from e
    if not rows and not skipped:
        return None
    listed, outside, void = _background(list(classes.values()), background)
    source = Source('COCO', classes=listed, void=void)
    for path, image, shape in rows:
        name = str(image.get('file_name', '')).replace('\\', '/')
        key, _ = key_of(Path(name))
        inside = path.relative_to(there.root)
        words = [*inside.parts[:-1], *re.findall('[a-z]+', path.stem.lower())]
        split = next((SPLITS[w.lower()] for w in words if w.lower() in SPLITS), '')
        try:
            found = there.beside(path, name) or there.image(key, split)
        except AnnotationError as e:
            left_out.append(f'{path}: {e}')
            continue
        own_split, name = placed(key)
        source.items.append(Item(found, split or own_split, name, partial(_draw, shape, outside)))
    source.left_out = left_out + [f'{n} {what}' for what, n in skipped.items()]
    return source


def _draw(shapes: _Shapes, outside: int, upright: tuple[int, int]) -> np.ndarray:
    try:
        return shapes.codes(upright, outside)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, cv2.error) as e:
        raise AnnotationError(f'its annotations are damaged: {e}') from e


def labelme(there: Files, background: bool) -> Source | None:
    """List the images of Labelme files as `coco` does."""
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
        key, _ = key_of(path.relative_to(there.root))
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
        source.items.append(Item(found, *placed(key), partial(_draw, shapes, outside)))
    source.left_out += [f'{n} {what}' for what, n in skipped.items()]
    return source


@np.errstate(over='ignore', invalid='ignore')  # a circle of infinite radius is no area: see _polygon
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
