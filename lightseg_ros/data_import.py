# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a data set for training from what an annotation tool exports: images/, labels/ and labels.yaml."""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
import os
from pathlib import Path
import random
import re
import shutil
from typing import Any, TypeVar
import zipfile
import zlib

import cv2
import numpy as np
from tqdm import tqdm
import yaml

from . import annotations, files, pictures, polygons
from . import labels as label_sets
from .annotations import AnnotationError, Class, COLOR, Item, Source
from .labels import LabelSet
from .pictures import PictureError

VOID = 255
TRIES = 300  # ways to split that are compared
BLOCKS = 10  # of consecutive images, where there are too few sequences to split by
T = TypeVar('T')


@dataclass
class Imported:
    """What was made of what. `counts`: images of each split; `left_out`: what could not be converted."""

    kind: str
    labels: LabelSet
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass
class _Seen:
    """What a first look at an item found: pixels of each code, and how its label has to be turned."""

    item: Item
    codes: Counter
    turn: int = 1


def convert(source: Path, out: Path, *, images: Path | None = None, labels: LabelSet | None = None,
            names: Sequence[str] = (), background: bool | None = None, share: float | None = None,
            seed: int = 0) -> Imported:
    """
    Convert a folder or a zip file; `out` appears whole or not at all.

    `images`: where the images are, if the source has none. `labels`, `names`: the classes of masks, as a
    label set, or as names in the order of their ids. `background`: whether what no polygon covers is a class
    (the default) or void; None for masks. `share`: of the images for training; the others are for
    validation, and consecutive images stay together. Without it the source's own splits are kept.

    `AnnotationError` if nothing is recognised or can be converted, or if `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise AnnotationError(f'{out} exists: choose another name')
    if share is not None and not 0 < share < 1:
        raise AnnotationError(f'split is {share:g}; expected a share for training, such as 0.8')
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise AnnotationError(f'{out} lies in {source}, and the next import would read it too: choose a '
                              'folder outside of it')
    if labels is not None and names:
        raise AnnotationError('--labels and --classes both name the classes; give one of the two')
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise AnnotationError(f'--classes names {twice[0]!r} twice; expected a name of its own for each')
    with files.in_folder(out.parent), _unpacked(source, out) as root, _appearing(out) as new:
        found = recognise(root, images=images, labels=labels, names=names, background=background)
        seen = _look(found)
        if not seen:
            raise AnnotationError(f'{source} was taken for {found.kind}, and nothing of it can be converted: '
                                  + '; '.join(found.left_out[:3]))
        notes: list[str] = []
        label_set, table = _classes(found, seen, out.name, notes)
        splits = [s.item.split for s in seen]
        if share is not None:
            splits = _split([s.item.name for s in seen],
                            [{int(table[c]) for c in s.codes} - {VOID} for s in seen], share, seed, notes)
        elif {'train', 'val', 'test'} & {*splits} and '' in splits:
            splits = [s or 'train' for s in splits]
            notes.append('images of no split were put into train')
        for folder in {*splits}:
            (new / 'images' / folder).mkdir(parents=True)
            (new / 'labels' / folder).mkdir(parents=True)
        _write(new, seen, splits, table, label_set.palette())
        files.write_whole(new / 'labels.yaml', _yaml(label_set))
        counts = dict(sorted(Counter(s or 'all' for s in splits).items()))
        left_out = [text.replace(str(root), str(source)) for text in found.left_out]
        return Imported(found.kind, label_set, counts, notes, left_out)


def recognise(root: Path, *, images: Path | None = None, labels: LabelSet | None = None,
              names: Sequence[str] = (), background: bool | None = None) -> Source:
    """
    Find out what a folder holds, and list its images with their labels.

    `images`: where the images are, if not in `root`. `labels`: the label set of masks. `names`: class names
    of masks, in the order of their ids. `background`: whether pixels outside of all polygons are a class (the
    default) or void. `AnnotationError` if nothing is recognised, or if an argument does not go with it.
    """
    if not root.is_dir():
        raise AnnotationError(f'no folder {root}')
    there = annotations.Files(root, images)
    outside = background is not False
    source = polygons.coco(there, outside) or polygons.labelme(there, outside)
    if source is None:
        source = annotations.masks(there, labels, names)
        if source.items and background is not None:
            raise AnnotationError(f'{root} was taken for {source.kind}; --unlabeled is for polygons, and '
                                  'every pixel of a mask has an id. To make one void, leave the option out, '
                                  'and write that id into void_source_ids of the new labels.yaml')
    elif labels is not None or names:
        raise AnnotationError(f'{root} was taken for {source.kind}, which names its classes itself; '
                              f'{"--classes" if names else "--labels"} is for masks. Leave it out, and '
                              'change the names in the new labels.yaml')
    if not source.items and not source.left_out:
        kinds = Counter(p.suffix.lower() or 'no suffix' for p in there.all).most_common(4)
        found = ', '.join(f'{n} {suffix}' for suffix, n in kinds) or 'nothing'
        raise AnnotationError(
            f'{root} holds {found}; expected masks (images/ and labels/, JPEGImages/ and SegmentationClass/, '
            'X.jpg and X_mask.png, leftImg8bit/ and gtFine/), COCO or Labelme JSON')
    return source


@contextmanager
def _unpacked(source: Path, out: Path) -> Iterator[Path]:
    """Yield the folder of a source; a zip file is unpacked beside `out` until the block ends."""
    if not source.is_file():
        yield source
        return
    folder = files.folder_beside(out)
    try:
        try:
            with zipfile.ZipFile(source) as packed:
                size, free = sum(f.file_size for f in packed.infolist()), shutil.disk_usage(folder).free
                if size > free / 2:
                    raise AnnotationError(f'{source} holds {size / 1e9:.1f} GB of files, and its data set '
                                          f'takes as much again; {folder.parent} has {free / 1e9:.1f} GB '
                                          'free')
                packed.extractall(folder)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as e:
            raise AnnotationError(f'{source} is no zip file that can be read: {e}; expected a folder or a '
                                  'zip file') from e
        except OSError as e:
            raise AnnotationError(f'{source} cannot be unpacked: {e}'.replace(f'{folder}/', '')) from e
        try:
            yield folder
        except ValueError as e:  # the folder will be gone when its path is read
            if str(folder) not in str(e):
                raise
            raise AnnotationError(str(e).replace(str(folder), str(source))) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Yield a folder that gets the name `out` when the block ends, and is removed if it raises."""
    folder = files.folder_beside(out)
    try:
        yield folder
        folder.chmod(0o777 & ~files.umask())
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _in_threads(function: Callable[[Any], T], items: Sequence[Any], title: str) -> Iterator[T]:
    with ThreadPoolExecutor() as pool:
        yield from tqdm(pool.map(function, items), title, len(items), leave=False, unit='img', disable=None)


def _look(source: Source) -> list[_Seen]:
    """Read everything once; what can't be read is added to `source.left_out`."""
    seen = []
    for found in _in_threads(_seen, source.items, f'reading {source.kind}'):
        if isinstance(found, _Seen):
            seen.append(found)
        else:
            source.left_out.append(found)
    return seen


def _seen(item: Item) -> _Seen | str:
    try:
        height, width = pictures.read(item.image).shape[:2]
        codes = item.read((height, width))
    except (PictureError, AnnotationError, OSError) as e:
        return str(e) if str(item.image.parent.parent) in str(e) else f'{item.image}: {e}'
    turn = pictures.orientation_of(item.image)
    if codes.shape == (height, width):
        turn = 1
    elif turn < 5 or codes.shape != (width, height):
        return (f'{item.image} is {width}x{height}, its label {codes.shape[1]}x{codes.shape[0]}; expected '
                'the same size')
    values, pixels = np.unique(codes, return_counts=True)
    return _Seen(item, Counter(dict(zip(values.tolist(), pixels.tolist()))), turn)


def _classes(source: Source, seen: Sequence[_Seen], name: str,
             notes: list[str]) -> tuple[LabelSet, np.ndarray]:
    """Return the new label set, and the table from codes to class ids, (2 * COLOR,) uint8, 255 for void."""
    used = sum((s.codes for s in seen), Counter())
    classes = source.classes
    if classes is None:
        classes = _made_up(used, source, notes)
    known = {code for c in classes for code in c.codes}
    grey = [c for c in used if c >= COLOR and c & 0xFF == c >> 8 & 0xFF == c >> 16 & 0xFF]
    if len(grey) == len(used) and not {*used} <= known:  # ids in all three channels
        for c in classes:
            c.codes |= {COLOR | v << 16 | v << 8 | v for v in c.codes if v < 256}
    if {*used} == {0, 255} and [c.codes & {0, 1, 255} for c in classes] == [{0}, {1}]:
        classes[1].codes.add(255)
        source.void.discard(255)
        notes.append(f'masks hold 0 and 255: 255 was taken for class {classes[1].name}')
    if source.labels is None:
        unused = [c.name for c in classes if not c.codes & used.keys()]
        classes = [c for c in classes if c.name not in unused]
        if unused:
            notes.append(f'without a pixel, so left out of labels.yaml: {", ".join(unused)}')
    table = np.full(2 * COLOR, VOID, np.uint8)
    for i, c in enumerate(classes[:VOID]):
        table[sorted(c.codes)] = i
    total = sum(used.values())
    unknown = [(n, code) for code, n in used.items()
               if table[code] == VOID and code != 255 and code not in source.void]
    listed = ', '.join(f'{_spelled(code)} ({100 * n / total:.2g} %)'
                       for n, code in sorted(unknown)[::-1][:5])
    if not used.keys() & {code for c in classes for code in c.codes}:
        raise AnnotationError(f'no pixel has a class: the masks hold {listed or "void"}; the classes are '
                              + ', '.join(f'{c.name} ({", ".join(map(_spelled, sorted(c.codes)))})'
                                          for c in (source.classes or [])[:8]))
    if unknown:
        more = f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''
        notes.append(f'of no class, so void: {listed}{more} of the pixels')
    label_set = source.labels
    if label_set is None:
        names = _unlike([c.name for c in classes])
        label_set = LabelSet(re.sub(r'[^\w.-]+', '_', name)[:label_sets.MAX_NAME], names, _colors(classes))
    return replace(label_set, ignore_id=VOID, void_source_ids=(),
                   source_ids=tuple((i,) for i in range(len(label_set)))), table


def _made_up(used: Counter, source: Source, notes: list[str]) -> list[Class]:
    """Make a class of each code, where no file names them; the user may have."""
    codes, names = sorted(used), list(source.names)
    if 255 in codes and codes != [0, 255]:
        codes.remove(255)
    if names and codes[-1] < len(names):
        return [Class(name, _rgb(i, source), {i}) for i, name in enumerate(names)]
    listed = ', '.join(_spelled(code) for code in codes[:12]) + ' ...' * (len(codes) > 12)
    if names and len(names) != len(codes):
        raise AnnotationError(f'the masks hold {len(codes)} ids or colours: {listed}; --classes names '
                              f'{len(names)}')
    if len(codes) > 64:
        raise AnnotationError(f'the masks hold {len(codes)} ids or colours: {listed}; name the classes with '
                              '--labels FILE.yaml, or with labelmap.txt beside the masks')
    if not names:
        names = ['background', 'foreground'] if codes == [0, 255] else [_spelled(code) for code in codes]
        notes.append(f'no file names the classes: they are called {", ".join(names)}; --classes names them')
    return [Class(name, _rgb(code, source), {code}) for name, code in zip(names, codes)]


def _spelled(code: int) -> str:
    return f'color_{code & 0xFFFFFF:06x}' if code >= COLOR else f'class_{code}'


def _rgb(code: int, source: Source) -> tuple[int, int, int] | None:
    if code >= COLOR:
        return code >> 16 & 0xFF, code >> 8 & 0xFF, code & 0xFF
    if source.palette is not None and code < len(source.palette):
        r, g, b = source.palette[code].tolist()
        return r, g, b
    return None


def _unlike(names: Sequence[str]) -> tuple[str, ...]:
    """Make names printable, and different from each other."""
    out: list[str] = []
    for name in names:
        name = ''.join(c for c in name.strip() if c.isprintable())[:90] or 'class'
        while name in out:
            name += '_'
        out.append(name)
    return tuple(out)


def _colors(classes: Sequence[Class]) -> tuple[tuple[int, int, int], ...]:
    """Return colours: a class's own, that of its name in a packaged label set, or one that no other has."""
    packaged: dict[str, tuple[int, int, int]] = {}
    for known in map(label_sets.load, label_sets.available()):
        packaged |= dict(zip(known.names, known.colors))
    out: list[tuple[int, int, int]] = []
    for i, c in enumerate(classes):
        hue = i * 0.618 % 1 * 180  # the golden ratio: neighbours differ most
        fresh = np.array([[[hue, 150 + i % 3 * 50, 240 - i % 4 * 40]]], np.uint8)
        r, g, b = cv2.cvtColor(fresh, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        known_color = c.color or packaged.get(c.name.lower())
        out.append((r, g, b) if known_color is None or known_color in out else known_color)
    return tuple(out)


def _split(names: Sequence[str], present: Sequence[set[int]], share: float, seed: int,
           notes: list[str]) -> list[str]:
    """
    Return 'train' or 'val' for each image.

    Sequences stay whole. Where there are too few of them, blocks of consecutive images do. Of many random
    ways the best one is taken: all classes in train, then in val, then the share.
    """
    groups: dict[str, list[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: _natural(names[i])):
        groups.setdefault(names[i].partition('_')[0] if '_' in names[i] else '', []).append(i)
    if len(groups) > len(names) / 2:  # a name for each image is no sequence
        groups = {'': sorted(range(len(names)), key=lambda i: _natural(names[i]))}
    units = list(groups.values())
    if len(units) < 4:
        size = max(1, round(len(names) / BLOCKS))
        units = [unit[i:i + size] for unit in units for i in range(0, len(unit), size)]
        how = f'{len(units)} blocks of consecutive images'
    else:
        how = f'{len(units)} sequences'
    if len(units) < 2:
        raise AnnotationError(f'a split of {len(names)} image; expected 2 or more')
    classes, wanted = set().union(*present), len(names) * (1 - share)
    generator = random.Random(seed)
    best: tuple[Any, set[int]] | None = None
    for _ in range(TRIES):
        order = generator.sample(units, len(units))
        held: set[int] = set()
        for unit in order[:-1]:
            if not held or abs(len(held) + len(unit) - wanted) < abs(len(held) - wanted):
                held |= {*unit}
        rest = {*range(len(names))} - held
        cost = (len(classes - set().union(*(present[i] for i in rest))),
                len(classes - set().union(*(present[i] for i in held))), abs(len(held) - wanted))
        if best is None or cost < best[0]:
            best = cost, held
    assert best
    notes.append(f'split by {how}, seed {seed}')
    return ['val' if i in best[1] else 'train' for i in range(len(names))]


def _natural(name: str) -> list[Any]:
    """Sort numbers in names by their value."""
    return [(0, int(part), '') if part.isdecimal() else (1, 0, part)
            for part in re.split(r'(\d+)', name) if part]


def _write(new: Path, seen: Sequence[_Seen], splits: Sequence[str], table: np.ndarray,
           palette: np.ndarray) -> None:
    palette = palette.copy()
    palette[VOID] = 255
    taken: set[tuple[str, str]] = set()
    rows = []
    for s, split in zip(seen, splits):
        name = s.item.name
        while (split, name) in taken:
            name += '-2'
        taken.add((split, name))
        rows.append((s, split, name))

    def write(row: tuple[_Seen, str, str]) -> None:
        s, split, name = row
        codes = s.item.read(pictures.read(s.item.image).shape[:2])
        ids = np.ascontiguousarray(pictures.turned(table[codes], s.turn))
        shutil.copyfile(s.item.image, new / 'images' / split / (name + s.item.image.suffix.lower()))
        (new / 'labels' / split / f'{name}.png').write_bytes(pictures.encode_labels(ids, palette))

    for _ in _in_threads(write, rows, 'writing'):
        pass


def _yaml(labels: LabelSet) -> str:
    text = ('# source_id: the number of a class in the label pictures; 255 is void there. To merge classes,\n'
            '# make one line of them: {name: vehicle, color: [0, 0, 142], source_id: [2, 5]}. To drop one,\n'
            '# take its line out and write its source_id into void_source_ids.\n')
    text += yaml.safe_dump({'name': labels.name, 'void_source_ids': []}, sort_keys=False, allow_unicode=True)
    text += 'classes:\n'
    for i, (name, color) in enumerate(zip(labels.names, labels.colors)):
        row = {'name': name, 'color': list(color), 'source_id': i}
        text += '  - ' + yaml.safe_dump(row, sort_keys=False, width=1000, default_flow_style=True,
                                        allow_unicode=True)
    if labels.groups:
        text += yaml.safe_dump({'groups': {k: list(v) for k, v in labels.groups.items()}}, sort_keys=False,
                               allow_unicode=True)
    return text
