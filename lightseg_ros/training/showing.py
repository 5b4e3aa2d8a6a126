# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a training run shows of itself: its logs, its curve, its predictions, and how long it will take."""
from collections.abc import Sequence
import csv
import io
import logging
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .. import files
from ..labels import LabelSet

log = logging.getLogger(__name__)

COLUMNS = ('epoch', 'loss', 'miou', 'train_miou', 'lr', 'seconds', 'images_per_s', 'waited')
TILE, NARROW = 480, 160  # largest and smallest width of an image in predictions.png
HEAD, GAP = 24, 6  # white pixels above its images, for the titles, and between them
# From so many seconds on, the expected time comes with what would shorten it.
LONG_S = 3600


def write_logs(folder: Path, rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """
    Write `log.csv`, one row per epoch, and `iou.csv`, the IoU of each class at each validation.

    The rows of checkpoints of older versions lack `train_miou` and `iou`.
    """
    _write_csv(folder / 'log.csv', COLUMNS, [{k: r.get(k) for k in COLUMNS} for r in rows])
    scored = [{'epoch': r['epoch'], **dict(zip(classes, r['iou']))} for r in rows if r.get('iou')]
    if scored:
        _write_csv(folder / 'iou.csv', ('epoch', *classes), scored)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    files.write_whole(path, text.getvalue())


def worst_classes(iou: Sequence[float | None], classes: Sequence[str], count: int = 2) -> str:
    """Name the classes of the lowest IoU (percent, None where a class does not occur) with their values."""
    known = sorted((v, name) for v, name in zip(iou, classes) if v is not None)
    return ', '.join(f'{name} {v:.0f}' for v, name in known[:count])


def plot(path: Path, rows: Sequence[dict[str, Any]], labels: LabelSet, title: str) -> None:
    """Draw the loss and the mIoU over the epochs, and beside them the IoU of each class in its colour."""
    try:
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot, ticker
    except ImportError as e:
        log.warning('no %s: %s', path, e)
        return
    by_class = [r for r in rows if r.get('iou')]
    figure, axes = pyplot.subplots(1, 2 if by_class else 1, figsize=(14 if by_class else 8, 4.5),
                                   layout='constrained', squeeze=False)
    loss = axes[0, 0]
    # A dot for each epoch, since a line of one point is invisible.
    lines = loss.plot([r['epoch'] for r in rows], [r['loss'] for r in rows], color='tab:gray',
                      marker='.' if len(rows) < 50 else '', label='training loss')
    loss.set(xlabel='epoch', ylabel='training loss', title=title)
    scored = [r for r in rows if r['miou'] is not None]
    if scored:
        miou = loss.twinx()
        for key, label, style in (('miou', 'mIoU of the validation', '.-'),
                                  ('train_miou', 'mIoU of training images', 'x:')):
            values = [r.get(key) or math.nan for r in scored]
            lines += miou.plot([r['epoch'] for r in scored], values, style, color='tab:blue', label=label)
        miou.set_ylabel('mIoU (%)', color='tab:blue')
    # Below the axes, where no line runs.
    figure.legend(handles=lines, loc='outside lower left', ncols=3, fontsize='small')
    if by_class:
        classes = axes[0, 1]
        for i, name in enumerate(labels.names):
            values = [math.nan if r['iou'][i] is None else r['iou'][i] for r in by_class]
            # A pale colour would not show on white.
            color = np.minimum(np.array(labels.colors[i]) / 255, 0.85)
            classes.plot([r['epoch'] for r in by_class], values, marker='.', color=color, label=name)
        classes.set(xlabel='epoch', ylabel='IoU of the validation (%)', ylim=(-2, 102))
        classes.legend(loc='center left', bbox_to_anchor=(1, 0.5), fontsize='small')
    for axis in axes[0]:
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        # Around a single epoch matplotlib shows a tenth of one.
        axis.set_xlim(rows[0]['epoch'] - 0.5, rows[-1]['epoch'] + 0.5)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def draw_predictions(path: Path, images: np.ndarray, truth: np.ndarray, prediction: np.ndarray,
                     labels: LabelSet, title: str) -> None:
    """
    Write a picture with a row for each image: image, ground truth, prediction; void is black.

    images (N, H, W, 3) uint8 RGB; truth and prediction (N, H, W) uint8.
    """
    height, width = truth.shape[1:]
    scale = min(1.0, TILE / width)
    if width < NARROW:  # a small image is enlarged, so that its title has room
        scale = -(-NARROW // width)
    size = (round(width * scale), max(1, round(height * scale)))
    palette = labels.palette()
    rows = []
    for rgb, *ids in zip(images, truth, prediction):
        tiles = [cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale <= 1 else cv2.INTER_NEAREST)]
        tiles += [palette[cv2.resize(i, size, interpolation=cv2.INTER_NEAREST)] for i in ids]
        rows.append(tiles)
    step_x, step_y = size[0] + GAP, size[1] + GAP
    picture = np.full((HEAD + len(rows) * step_y - GAP, 3 * step_x - GAP, 3), 255, np.uint8)
    for i, text in enumerate((f'image, {title}', 'ground truth', 'prediction')):
        cv2.putText(picture, text, (i * step_x + 6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1,
                    cv2.LINE_AA)
        for j, tiles in enumerate(rows):
            picture[HEAD + j * step_y:, i * step_x:][:size[1], :size[0]] = tiles[i]
    files.write_whole(path, cv2.imencode('.png', picture[..., ::-1])[1].tobytes())


def duration(seconds: float) -> str:
    """Say a time in words: '50 seconds', '40 minutes', '3.5 hours'."""
    if seconds < 90:
        return counted(max(1, round(seconds)), 'second')
    return f'{round(seconds / 60)} minutes' if seconds < 5400 else f'{seconds / 3600:.1f} hours'


def counted(number: int, thing: str) -> str:
    """Spell a number of things: '1 epoch', '0 epochs'."""
    return f'{number} {thing}' + ('s' if number != 1 else '')


def planned(network: str, epochs: int, images: int, steps: int, batch: int, budget_s: float = 0) -> str:
    """Say what a run is going to do, before it is known how long that takes."""
    text = (f'{counted(epochs, "epoch")} of {counted(images, "image")}, {counted(steps, "step")} of {batch}; '
            'how long they take is said after the first ones')
    return f'{network}: ' + (f'at most {duration(budget_s)}, or ' if budget_s else '') + text


def expected(network: str, left_s: float, epochs: int, images: int, batch: int, step_s: float) -> str:
    """Say how long a run will take, and how to shorten it where that is long."""
    text = (f'{network}: about {duration(left_s)} for {counted(epochs, "epoch")} of '
            f'{counted(images, "image")}: {step_s:.2g} s a step of {batch}, validation comes on top')
    return text + ('; --epochs, --budget-s or --size make it shorter' if left_s > LONG_S else '')
