# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of training share: a tiny recipe, and `lightseg train` as a command."""
import csv
import os
from pathlib import Path
import sys

import torch

from lightseg_ros import weights
from lightseg_ros.training.recipes import Recipe

ROOT = Path(__file__).resolve().parents[1]
TINY = Recipe('laanet', epochs=4, batch=4, crop=(64, 64), first_crop=(64, 64), scale=(0.8, 1.25), color=0.1,
              blur=0.3, mix=0.3, warmup=2, ema=0.5, precision='float32')


def arguments(scenes: Path, out: Path, recipe: Recipe = TINY, *more: str) -> list[str]:
    """`lightseg train` of a recipe like TINY."""
    return ['train', '--model', recipe.network, '--data', 'folder', '--data-root', str(scenes), '--device',
            'cpu', '--out', str(out), '--recipe', 'best', '--batch', '4',
            '--crop', '64x64', '--first-crop', '64x64',
            '--scale', '0.8', '1.25', '--color', '0.1', '--blur', '0.3', '--mix', str(recipe.mix),
            '--warmup', '2', '--ema', '0.5', '--precision', 'float32', '--lr', '0.003',
            '--weight-decay', '0.01', '--epochs', str(recipe.epochs), *more]


def command(*arguments: str) -> list[str]:
    return [sys.executable, '-m', 'lightseg_ros.cli', *arguments]


def environment() -> dict[str, str]:
    return os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': str(torch.get_num_threads())}


def rows_of(run: Path, name: str = 'log.csv') -> list[dict[str, str]]:
    with open(run / name, newline='') as f:
        return list(csv.DictReader(f))


def close(a: Path, b: Path) -> bool:
    """Whether two weights files hold the same weights up to rounding."""
    first, second = (weights.load(p)[0].state_dict() for p in (a, b))
    return all(torch.allclose(first[k], second[k], rtol=1e-3, atol=1e-5) for k in first)


def same(a: Path, b: Path) -> bool:
    first, second = (weights.load(p)[0].state_dict() for p in (a, b))
    return all(torch.equal(first[k], second[k]) for k in first)
