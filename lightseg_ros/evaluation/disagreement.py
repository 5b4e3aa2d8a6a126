# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the labels of two evaluations disagree: without ground truth, what `--out` wrote is compared."""
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .. import images
from ..bags import Bag, BagError
from ..images import ImageError
from .scores import Album, APART_NS, FrameScore, Picture

LABEL, OVERLAY = '/segmentation/label', '/segmentation/overlay/compressed'
SWAPS = 5


class DisagreementError(ValueError):
    """Two results whose labels can't be compared; the text says what they lack."""


def results_bag(result: dict[str, Any], json_file: Path) -> Path:
    """Find the bag that an evaluation wrote: where it was, or beside its JSON file."""
    if not result.get('out'):
        raise DisagreementError(f'{json_file} names no bag with its labels: evaluate with --out BAG.mcap')
    named = Path(result['out'])
    for path in (named, json_file.parent / named.name):
        if path.exists():
            return path
    raise DisagreementError(f'{json_file} names {named} for its labels, which is not there')


def disagreement(first: Path, second: Path, names: Sequence[str], apart_ns: int = APART_NS,
                 rows: Sequence[dict[str, Any]] = ()) -> tuple[dict[str, Any], list[Picture]]:
    """
    Compare the labels of the frames that two bags of results share, by their stamps.

    `names`: of the classes. `rows`: the frames of the first result, by which the pictures are named: a bag of
    results may hold a part of a recording. Returns `frames`, `sizes_differ` (frames left out), `share`
    (percent of pixels with different labels), `per_class` (percent of the pixels that either calls so: on
    which both agree, and the class's share in each) and `swaps` (the most frequent pairs, percent of all
    pixels); and the frames that disagree most, with both overlays.
    `DisagreementError` if they share no frame.
    """
    k = len(names)
    counts = np.zeros((k + 1, k + 1), np.int64)
    album = Album(-1, apart_ns)
    places = {row['stamp_ns']: (row['source'], row['index']) for row in reversed(rows)}
    frames = sizes_differ = 0
    for number, (stamp, a, b, overlays) in enumerate(_pairs(first, second)):
        if a.shape != b.shape:
            sizes_differ += 1
            continue
        frames += 1
        counts += np.bincount(np.minimum(a, k).astype(np.int64).ravel() * (k + 1) + np.minimum(b, k).ravel(),
                              minlength=(k + 1) ** 2).reshape(k + 1, k + 1)
        share = 100 * float((a != b).mean())
        source, index = places.get(stamp, (first.name, number))
        if share and album.wants(FrameScore(source, index, stamp, ()), share):
            album.offer(Picture(source, index, stamp, share, _tiles(a, b, *overlays())))
    if not frames:
        raise DisagreementError(f'{first} and {second} have no frame in common')
    total = counts.sum()
    either = counts.sum(0) + counts.sum(1) - np.diag(counts)
    swaps = [(int(counts[i, j]), i, j) for i in range(k) for j in range(k) if i != j and counts[i, j]]
    return {
        'frames': frames, 'sizes_differ': sizes_differ, 'share': 100 * float(1 - np.trace(counts) / total),
        'per_class': {n: {'agree': 100 * float(counts[i, i] / either[i]) if either[i] else None,
                          'first': 100 * float(counts[i].sum() / total),
                          'second': 100 * float(counts[:, i].sum() / total)} for i, n in enumerate(names)},
        'swaps': [{'first': names[i], 'second': names[j], 'share': 100 * n / int(total)}
                  for n, i, j in sorted(swaps, reverse=True)[:SWAPS]]}, album.chosen()


def _pairs(first: Path, second: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray, Any]]:
    """Yield stamp, both labels (H, W) uint8, and a call that gives both overlays (H, W, 3) RGB."""
    with Bag(first) as a, Bag(second) as b:
        try:
            shared = set(_keys(a)) & set(_keys(b))
            for (stamp, *one), (other_stamp, *other) in zip(_read(a, shared), _read(b, shared), strict=True):
                if stamp != other_stamp:
                    raise DisagreementError(f'{first} and {second} hold their frames in different orders')
                yield (stamp, images.decode_labels(one[0].read()), images.decode_labels(other[0].read()),
                       lambda p=one, q=other: [images.decode(m[1].read()) for m in (p, q)])
        except (BagError, ImageError) as e:
            raise DisagreementError(f'the labels of {first} and {second} can not be compared: {e}') from e


def _keys(bag: Bag) -> list[tuple[int, int]]:
    """Return stamp and number among the frames of this stamp, for each frame."""
    seen: Counter[int] = Counter()
    out = []
    for message in bag.messages(LABEL):
        seen[message.time_ns] += 1
        out.append((message.time_ns, seen[message.time_ns]))
    return out


def _read(bag: Bag, shared: set[tuple[int, int]]) -> Iterator[tuple[int, Any, Any]]:
    seen: Counter[int] = Counter()
    for label, overlay in zip(bag.messages(LABEL), bag.messages(OVERLAY)):
        seen[label.time_ns] += 1
        if (label.time_ns, seen[label.time_ns]) in shared:
            yield label.time_ns, label, overlay


def _tiles(a: np.ndarray, b: np.ndarray, one: np.ndarray, other: np.ndarray) -> dict[str, bytes]:
    small = min(1.0, 480 / a.shape[1])
    size = round(a.shape[1] * small), max(1, round(a.shape[0] * small))
    tiles = [cv2.resize(cv2.cvtColor(np.ascontiguousarray(o), cv2.COLOR_RGB2BGR), size,
                        interpolation=cv2.INTER_AREA) for o in (one, other)]
    grey = cv2.cvtColor(cv2.cvtColor(tiles[0], cv2.COLOR_BGR2GRAY) // 2, cv2.COLOR_GRAY2BGR)
    differ = cv2.resize((a != b).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    grey[differ != 0] = (40, 40, 230)
    return {name: cv2.imencode('.jpg', tile)[1].tobytes()
            for name, tile in zip(('first', 'second', 'difference'), (*tiles, grey))}
