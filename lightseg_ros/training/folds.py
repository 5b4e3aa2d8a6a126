# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Folds compare recipes on unseen sequences: each run leaves out one sequence and is scored on it.

A sequence may lack a class, or show few pixels of it, so that the mean of the folds' mIoU says little. The
mIoU of the pooled confusion matrices counts each pixel of the data set once.
"""
from collections.abc import Sequence
from dataclasses import dataclass
import json
import os
from pathlib import Path
import statistics
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import files, weights
from ..datasets import DataSet, hold_out
from ..metrics import ConfusionMatrix
from .checkpoint import differing
from .processes import finished_weights, Job, run_side_by_side
from .recipes import Recipe
from .run import CONFUSION


class FoldsError(ValueError):
    """Folds that cannot be run or do not belong together; the text says why."""


@dataclass(frozen=True)
class Result:
    """
    Scores of all folds in percent.

    `folds`: for each sequence what its confusion.json holds. `mean`, `spread`: of their mIoU; the spread is
    the standard deviation of a sample. `pooled`: the sum of their confusion matrices.
    """

    classes: tuple[str, ...]
    folds: dict[str, dict[str, Any]]
    mean: float
    spread: float
    pooled: ConfusionMatrix

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers."""
        return {'mean': self.mean, 'spread': self.spread, 'pooled': self.pooled.miou(),
                'iou': {n: float(v) for n, v in zip(self.classes, self.pooled.iou()) if v == v},
                'folds': self.folds}

    def text(self) -> str:
        """Return a Markdown table: one row per fold, then the pooled confusion matrices."""
        def row(name: str, miou: float, train: float | None, iou: dict[str, float]) -> str:
            values = [f'{iou[c]:.1f}' if c in iou else '' for c in self.classes]
            return f'| {name} | {miou:.2f} | {f"{train:.2f}" if train else ""} | {" | ".join(values)} |'

        rows = [f'| held out | mIoU | training images | {" | ".join(self.classes)} |',
                '|---' * (3 + len(self.classes)) + '|']
        rows += [row(name, f['miou'], f['train_miou'], f['iou']) for name, f in self.folds.items()]
        pooled = self.to_dict()
        rows.append(row('all, pooled', pooled['pooled'], None, pooled['iou']))
        return '\n'.join(rows) + f'\n\nmean {self.mean:.2f}, spread {self.spread:.2f}, ' \
                                 f'pooled {pooled["pooled"]:.2f} % mIoU'


def run_folds(recipe: Recipe, dataset: DataSet, sequences: Sequence[str], out: Path,
              arguments: Sequence[str], *, parallel: int = 0) -> Result | None:
    """
    Train one network per sequence without it, score it there, and write `<out>/folds.json`.

    Each run is a `lightseg train` process with one thread, pinned to a core of its own. Its folder is
    `<out>/<sequence>`. `sequences`: empty for all of them. `arguments`: those of `lightseg train` that
    give `recipe` and `dataset`. `parallel`: runs at a time; 0: one per core. The same call continues folds
    that are not finished. Returns None if some are still unfinished. `FoldsError` if a run failed, or if
    finished folds have another recipe; `DataError` for an unknown sequence.
    """
    sequences = list(sequences or dataset.sequences)
    for name in sequences:
        hold_out(dataset, [name])  # a DataError now, not from each process
    jobs = [Job(name, out / name, (*arguments, '--hold-out', name)) for name in sequences]
    for job in jobs:
        if done := job.finished():
            differ = differing(recipe, weights.read_card(done).recipe)
            if differ:
                raise FoldsError(f'{done} was trained with another recipe ({", ".join(differ)} differ); '
                                 'choose another --out')
    cores = sorted(os.sched_getaffinity(0))
    at_once = min(parallel or len(cores), len(cores))
    with _Progress(jobs, recipe) as bar:
        failed = run_side_by_side(jobs, at_once=at_once, threads=1, cores=cores, report=bar.update)
    if failed:
        raise FoldsError(f'{", ".join(failed)} failed; {out}/SEQUENCE/train.log says why, and the same '
                         'command continues')
    if not all(job.finished() for job in jobs):
        return None
    result = pool({job.name: json.loads((job.folder / CONFUSION).read_text()) for job in jobs})
    files.write_whole(out / 'folds.json', json.dumps(result.to_dict(), indent=1) + '\n')
    return result


def pool(folds: dict[str, dict[str, Any]]) -> Result:
    """Add up the confusion matrices of folds, each as in confusion.json."""
    classes = tuple(next(iter(folds.values()))['classes'])
    pooled = ConfusionMatrix(len(classes))
    for fold in folds.values():
        pooled.counts += np.array(fold['counts'], np.int64)
    scores = [fold['miou'] for fold in folds.values()]
    return Result(classes, folds, statistics.mean(scores),
                  statistics.stdev(scores) if len(scores) > 1 else 0.0, pooled)


class _Progress:
    """A progress bar over the epochs of all folds, or over their seconds with a time budget."""

    def __init__(self, jobs: Sequence[Job], recipe: Recipe):
        self.jobs, self.recipe = jobs, recipe
        self.each = recipe.budget_s or recipe.epochs

    def __enter__(self) -> '_Progress':
        self.bar = tqdm(total=len(self.jobs) * self.each, unit='s' if self.recipe.budget_s else 'epoch',
                        desc=f'{self.recipe.network} folds', dynamic_ncols=True,
                        mininterval=0.5 if sys.stderr.isatty() else 30)
        self.update()
        return self

    def __exit__(self, *error: Any) -> None:
        self.update()
        self.bar.close()

    def update(self) -> None:
        done, scores = 0.0, {}
        for job in self.jobs:
            rows = job.rows()
            if finished_weights(job.folder):
                done += self.each
            elif rows:
                done += min(self.each, float(rows[-1]['seconds' if self.recipe.budget_s else 'epoch']))
            if scored := [r['miou'] for r in rows if r['miou']]:
                scores[job.name] = scored[-1]
        self.bar.set_postfix(scores, refresh=False)
        self.bar.update(done - self.bar.n)
