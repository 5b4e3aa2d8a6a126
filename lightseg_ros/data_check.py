# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checks a data set before it is trained on: reads every file once, counts classes, says what is wrong."""
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from . import pictures
from .datasets import DataError, DataSet, Faults, Pair
from .labels import LabelError, LabelSet
from .pictures import PictureError

RARE_SHARE, RARE_IMAGES = 0.001, 3  # of the labelled pixels, and images
NAMED = 3  # files that a line names; the others are counted


class _File(NamedTuple):
    """What one pair holds. `shares`: (K,) of its pixels; `raw`: pixels of each id in the label file."""

    shares: np.ndarray
    raw: Counter
    size: tuple[int, int]  # width, height
    turned: bool  # by EXIF, and its size does not tell whether the label is, too
    digest: bytes  # of the image's pixels; empty if it was not read


class _Fault(NamedTuple):
    path: Path
    why: str


@dataclass
class Report:
    """
    What a split holds, and what is wrong with it.

    `pixels`, `present`: (K,) pixels of each class, and images that show it. `void`: pixels of no class.
    `raw`: pixels of each id in the label files. `shares`: (N, K) of the images of `pairs`, those without a
    fault. `problems` are what training refuses, `empty` the classes without a pixel, `warnings` all else.
    """

    dataset: DataSet
    pairs: list[Pair] = field(default_factory=list)
    shares: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0))
    present: np.ndarray = field(default_factory=lambda: np.zeros(0))
    void: int = 0
    raw: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    digests: dict[bytes, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return int(self.pixels.sum()) + self.void

    def mixed(self) -> str:
        """Say of which sizes the images are; '' if all have one."""
        listed = ', '.join(f'{w}x{h} ({n})' for (w, h), n in self.sizes.most_common(5))
        return f'images of {len(self.sizes)} sizes: {listed}' if len(self.sizes) > 1 else ''

    def size(self) -> str:
        """Return the --size for `lightseg train` where images differ: the size that most of them have."""
        (width, height), _ = max(self.sizes.items(), key=lambda item: (item[1], item[0]))
        return f'--size {width}x{height}'


def check(dataset: DataSet, *, images: bool = True, faults: Faults | None = None) -> Report:
    """
    Read every label of a split and, with `images`, every image; each file once.

    `faults`: what is already known about the names of its files.
    """
    report = Report(dataset)
    if faults:
        report.problems += faults.problems
        report.warnings += faults.warnings
    found: list[_File] = []
    faulty: dict[str, list[Path]] = {}
    title = f'checking {dataset.name} {dataset.split}'
    with ThreadPoolExecutor() as pool:
        rows = pool.map(lambda pair: _read(pair, dataset.labels, images), dataset.pairs)
        rows = tqdm(rows, title, len(dataset), leave=False, unit='img', disable=None)
        for pair, row in zip(dataset.pairs, rows):
            if isinstance(row, _Fault):
                faulty.setdefault(row.why, []).append(row.path)
            else:
                found.append(row)
                report.pairs.append(pair)
    for why, paths in faulty.items():  # one line for each fault, however many files have it
        named = ', '.join([str(paths[0]), *(p.name for p in paths[1:NAMED])])
        more = f' and {len(paths) - NAMED} more' if len(paths) > NAMED else ''
        each = ': each' if len(paths) > 1 and why.startswith(' is ') else ''
        report.problems.append(f'{named}{more}{each}{why}')
    report.shares = np.stack([f.shares for f in found]) if found else np.zeros((0, len(dataset.labels)))
    areas = np.array([f.size[0] * f.size[1] for f in found], np.int64)
    counts = np.round(report.shares * areas[:, None]).astype(np.int64)
    report.pixels, report.present = counts.sum(0), (counts > 0).sum(0)
    report.void = int(areas.sum() - report.pixels.sum())
    for f in found:
        report.raw.update(f.raw)
    report.sizes = Counter(f.size for f in found)
    _classes(report)
    _pictures(report, found)
    return report


def before_training(dataset: DataSet, *, allow_empty: bool = False, scaled: bool = False) -> list[str]:
    """
    Check the labels of a split that is trained on; returns warnings.

    `DataError` for a file with a fault, for images of several sizes unless they will be `scaled` to one, and
    for classes without a pixel unless `allow_empty`, or the split is a part of another one (`train:-monday`),
    which need not show all. Images are left to whoever reads them.
    """
    report = check(dataset, images=False)
    if report.problems:
        raise DataError(f'{report.problems[0]} (all that is wrong: lightseg data check)')
    if report.sizes and report.mixed() and not scaled:
        raise DataError(f'{dataset.name} {dataset.split}: {report.mixed()}; expected one size: give '
                        f'{report.size()} or another; images are scaled to fit into it, not stretched')
    if report.empty and not allow_empty and ':' not in dataset.split:
        raise DataError(f'{dataset.name} {dataset.split}: {"; ".join(report.empty)} '
                        '(--allow-empty-classes trains all the same)')
    return [f'{dataset.name} {dataset.split}: {text}' for text in report.empty + report.warnings]


def _read(pair: Pair, labels: LabelSet, images: bool) -> _File | _Fault:
    rgb = None
    try:
        ids = pictures.read_labels(pair.label)
        if images:
            rgb = pictures.read(pair.image)
    except PictureError as e:
        path = pair.image if str(e).startswith(str(pair.image)) else pair.label
        return _Fault(path, str(e).removeprefix(str(path)))
    if rgb is not None and rgb.shape[:2] != ids.shape:
        text = pictures.other_size(pair.image, pair.label, rgb.shape[:2], ids.shape)
        return _Fault(pair.label, text.removeprefix(str(pair.label)))
    counts = np.bincount(ids.ravel())
    there = np.flatnonzero(counts)
    try:
        own = labels.from_source(there)
    except LabelError as e:
        return _Fault(pair.label, f': {e}')
    shares = np.bincount(own, counts[there], 256)[:len(labels)] / ids.size
    turned, digest = False, b''
    if rgb is not None:
        digest = hashlib.blake2b(rgb.data, digest_size=16).digest()
        turned = pictures.keeps_size(pictures.orientation_of(pair.image), *ids.shape)
    raw = Counter(dict(zip(there.tolist(), counts[there].tolist())))
    return _File(shares, raw, ids.shape[::-1], turned, digest)


def _classes(report: Report) -> None:
    """Say which classes are missing or rare, and how much is void."""
    labels, total = report.dataset.labels, report.total
    if not report.pairs:
        return
    known = report.pixels.sum()
    few = len(report.pairs) < RARE_IMAGES
    if few:
        report.warnings.append(f'a split of {len(report.pairs)} image{"s" * (len(report.pairs) > 1)}: scores '
                               'on it say little, and training on it teaches little')
    for i, name in enumerate(labels.names):
        if not report.pixels[i]:
            report.empty.append(f'class {name} has no pixel: {_likely(report, i)}')
        elif report.pixels[i] < RARE_SHARE * known or not few and report.present[i] < RARE_IMAGES:
            report.warnings.append(f'class {name} is rare: {percent(report.pixels[i] / known)} of the '
                                   f'labelled pixels, in {report.present[i]} of {len(report.pairs)} images; '
                                   'label more of it, or merge it with another class')
    if report.void > 0.5 * total:
        report.warnings.append(f'{percent(report.void / total)} of the pixels are void, which training '
                               'passes over')
    if nothing := int((report.shares.sum(1) == 0).sum()):
        report.warnings.append(f'{nothing} of {len(report.pairs)} images are void in every pixel')


def _likely(report: Report, missing: int) -> str:
    """Say why a class may have no pixel."""
    labels, there = report.dataset.labels, sorted(report.raw)
    listed = ', '.join(map(str, there[:-1])) + ' and ' * (len(there) > 1) + str(there[-1])
    name, void = labels.names[missing], labels.ignore_id
    if len(there) > 12:
        listed = f'{len(there)} ids from {there[0]} to {there[-1]}'
    text = f'label pictures hold {listed}'
    by_name = all(void not in ids for ids in (*labels.source_ids, labels.void_source_ids))
    if void in there and by_name and len(there) <= len(labels):
        return f'{text}; {void} is void: give class {name} source_id: {void} in labels.yaml'
    ids = labels.source_ids[missing]
    wanted = f'its id is {ids[0]}' if len(ids) == 1 else f'its ids are {list(ids)}'
    return f'{text}, {wanted}: correct its source_id, or take the class out of labels.yaml'


def _pictures(report: Report, found: Sequence[_File]) -> None:
    """Say what the images have that is no fault, but may hurt."""
    turned = [pair.image for pair, f in zip(report.pairs, found) if f.turned]
    if turned:
        report.warnings.append(f'{len(turned)} images are turned by their EXIF orientation, and the size of '
                               'their labels does not tell whether these are, too: look at the contact '
                               f'sheet; the first is {turned[0]}')
    copies = []
    for pair, f in zip(report.pairs, found):
        if f.digest and report.digests.setdefault(f.digest, pair.image) != pair.image:
            copies.append((pair.image, report.digests[f.digest]))
    if copies:
        report.warnings.append(f'{len(copies)} images are copies of others, the first is {copies[0][0]} of '
                               f'{copies[0][1]}')


def shared(reports: Sequence[Report]) -> list[str]:
    """Say which splits have images in common: the score of such a split means nothing."""
    said = []
    for i, a in enumerate(reports):
        for b in reports[i + 1:]:
            if both := a.digests.keys() & b.digests.keys():
                first = min(a.digests[d] for d in both)
                said.append(f'{len(both)} images are in {a.dataset.split} and in {b.dataset.split}, the '
                            f'first is {first}: a score on them means nothing')
    return said


def alike(labels: LabelSet) -> list[str]:
    """Say which classes have one colour: no picture of labels tells them apart."""
    names: dict[tuple[int, ...], list[str]] = {}
    for name, color in zip(labels.names, labels.colors):
        names.setdefault(color, []).append(name)
    return [f'{", ".join(some[:-1])} and {some[-1]} have the same color {list(color)} in labels.yaml: no '
            'picture of labels or predictions tells them apart; give each its own'
            for color, some in names.items() if len(some) > 1]


def table(reports: Sequence[Report]) -> str:
    """
    Return a table by split: each class's share of the labelled pixels, and how many images show it.

    The share of void is of all pixels, and its row says so.
    """
    labels = reports[0].dataset.labels
    rows = [['class', 'in files as'],
            *([name, ' '.join(map(str, ids))] for name, ids in zip(labels.names, labels.source_ids)),
            ['void, of all pixels', '']]
    for report in reports:
        n = len(report.pairs)
        rows[0] += [f'{report.dataset.split}: of labelled', f'images of {n}']
        known = max(1, report.pixels.sum())
        for i in range(len(labels)):
            rows[i + 1] += [percent(report.pixels[i] / known), f'{report.present[i]}']
        rows[-1] += [percent(report.void / max(1, report.total)),
                     str(int((report.shares.sum(1) < 1 - 1e-9).sum()))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join('  '.join(cell.rjust(w) if i > 1 else cell.ljust(w)
                               for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows)


def percent(share: float) -> str:
    """Spell a share as per cent, with two digits or more that say something."""
    if not share:
        return '0 %'
    return f'{100 * share:.1f} %' if share >= 0.001 else f'{100 * share:.2g} %'
