# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Averages the weights of several trained files into one network, which costs no more to run than any of them.

Source: Wortsman et al., "Model soups" (ICML 2022) and "Robust fine-tuning of zero-shot models" (CVPR 2022).
"""
from collections.abc import Iterable, Sequence
from dataclasses import replace
import math
from pathlib import Path

import torch

from .. import weights
from ..datasets import DataSet
from ..weights import Card
from .devices import TrainError
from .recalibration import frozen_stages, save_recalibrated

# What the parts must have in common, or their weights do not mean the same; and what to do otherwise.
START = 'Train one file on from the other (--init), or both from a third'
SAME = {'network': START, 'options': START,
        'classes': 'Train one file on from the other (--init) with the same classes',
        'mean': START, 'std': START,
        'resolution': 'Train one file on from the other (--init) at the same resolution (--size)'}


def average_weights(paths: Sequence[Path], shares: Sequence[float], dataset: DataSet, out: Path, *,
                    device: str = 'cpu') -> None:
    """
    Write the weighted mean of the weights files to `out`, its batch-norm statistics recomputed.

    `shares`: the weight of each file, 0 or more; they are divided by their sum. Empty: all are equal.
    The card has no metrics and no temperature: they belong to the parts.
    `dataset`: what the statistics are computed over, with the classes of the files. The mean of files that do
    not come from one another, or from one start, is worth nothing, and no error can tell: score the result.
    `TrainError` if the files do not fit together; `weights.WeightsError` if one can't be read.
    """
    if len(paths) < 2:
        raise TrainError(f'{len(paths)} weights file; expected two or more to average')
    shares = list(shares) or [1.0] * len(paths)
    if len(shares) != len(paths):
        raise TrainError(f'{len(shares)} shares for {len(paths)} weights files; expected one for each')
    if min(shares) < 0 or not 0 < sum(shares) < math.inf:  # not so with nan, either
        raise TrainError(f'the shares are {", ".join(f"{s:g}" for s in shares)}; expected numbers of 0 or '
                         'more, with a finite sum above 0')
    shares = [s / sum(shares) for s in shares]
    loaded = [weights.load(path) for path in paths]
    network, card = loaded[0]
    for path, (_, other) in zip(paths[1:], loaded[1:]):
        _check(paths[0], card, path, other)
    states = [part.state_dict() for part, _ in loaded]
    network.load_state_dict({key: _mean([state[key] for state in states], shares) for key in states[0]})
    cards = [part for _, part in loaded]
    recipes = [{'file': path.name, 'sha256': weights.digest(path), 'share': share, 'recipe': part.recipe}
               for path, share, part in zip(paths, shares, cards)]
    frozen = min(frozen_stages(part, path) for path, part in zip(paths, cards))
    dataset_name, split, license, source = (
        _joined(getattr(part, name) for part in cards) for name in ('dataset', 'split', 'license', 'source'))
    card = replace(card, dataset=dataset_name, split=split, license=license, source=source,
                   recipe={'average_of': recipes, 'freeze': frozen})
    save_recalibrated(network, card, dataset, out, name=paths[0], device=device)


def _check(first: Path, card: Card, path: Path, other: Card) -> None:
    for name, todo in SAME.items():
        expected, found = _of(card, name), _of(other, name)
        if found != expected:
            raise TrainError(f'{path} can not be averaged with {first}; {name}: {found}, not {expected}. '
                             f'{todo}')


def _of(card: Card, name: str) -> object:
    if name == 'resolution':
        return 'x'.join(map(str, card.resolution))
    return ', '.join(card.labels.names) if name == 'classes' else getattr(card, name)


def _mean(values: Sequence[torch.Tensor], shares: Sequence[float]) -> torch.Tensor:
    """Return the weighted mean, computed in float64; of what is not a float (counters), the first."""
    if not values[0].is_floating_point():
        return values[0]
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value, share in zip(values, shares):
        total += value.double() * share
    return total.to(values[0].dtype)


def _joined(texts: Iterable[str]) -> str:
    """Join the different ones of several texts. That of an average is joined already: its parts count."""
    return ' + '.join(dict.fromkeys(part for text in texts if text for part in text.split(' + ')))
