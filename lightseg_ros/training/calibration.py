# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
One temperature that makes confidence mean what it says: logits are divided by it before the softmax.

Guo et al., "On calibration of modern neural networks", 2017. Labels stay the same.
"""
from dataclasses import replace
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn, Tensor

from .. import weights
from ..datasets import DataSet
from ..evaluation.scores import expected_calibration_error
from . import samples
from .devices import find_device, TrainError
from .learner import Normalise, normaliser

log = logging.getLogger(__name__)

PIXELS = 2_000_000  # used at most: every pixel of few images, a regular grid of many
# What it likely means if the best temperature lies beyond the lowest or the highest one.
LIMITS = dict(zip(weights.TEMPERATURES, (
    'the network is right at nearly every pixel of these labels; likely it was trained on them: take others',
    'the network is hardly better than chance on these labels; likely its classes are not those of the label '
    'files (source_id in labels.yaml), or it was trained on other scenes')))
STEPS = 30  # of the bisection; the last one changes the temperature by less than 1e-6


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor, labels: Tensor, normalise: Normalise,
              num_classes: int) -> dict[str, Any]:
    """
    Fit a temperature, and return what a card says about it.

    The network is in eval mode; images (N, 3, H, W) uint8 RGB, labels (N, H, W) uint8, ids from `num_classes`
    on are void. Returns `temperature`, `pixels`, and before and after `nll` (negative log-likelihood) and
    `ece` (in percent, as `lightseg evaluate` computes it). The temperature is 1 where none improves either.
    Empty if all labels are void.
    """
    step = max(1, math.ceil(math.sqrt(labels.numel() / PIXELS)))
    grid = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
    found = []
    for x, y in zip(images.split(8), labels.split(8)):
        y = y[grid]
        logits = network(normalise(x.float())).float().permute(0, 2, 3, 1)[grid]
        found.append((logits[y < num_classes].cpu(), y[y < num_classes].long().cpu()))
    z, truth = (torch.cat(parts) for parts in zip(*found))
    if not len(truth):
        return {}
    temperature = round(fit(z, truth), 4)
    before, after = ({name: round(value, 4) for name, value in measure(z / t, truth).items()}
                     for t in (1.0, temperature))
    if all(after[name] >= before[name] for name in before):
        temperature, after = 1.0, before
    return {'temperature': temperature, 'pixels': len(truth),
            **{f'{name}_before': value for name, value in before.items()},
            **{f'{name}_after': value for name, value in after.items()}}


def fit(logits: Tensor, truth: Tensor) -> float:
    """
    Return the temperature of the lowest negative log-likelihood: logits (n, K) float, truth (n,) int64.

    The likelihood is concave in 1 / temperature, so that a bisection of its slope finds the only maximum, or
    the limit that a card allows where the maximum lies beyond.
    """
    right = float(logits.gather(1, truth[:, None]).double().mean())
    low, high = (math.log(1 / t) for t in reversed(weights.TEMPERATURES))
    for _ in range(STEPS):
        middle = (low + high) / 2
        expected = ((logits * math.exp(middle)).softmax(1) * logits).sum(1).double().mean()
        low, high = (low, middle) if expected > right else (middle, high)
    return math.exp(-(low + high) / 2)


def measure(logits: Tensor, truth: Tensor) -> dict[str, float]:
    """Return `nll` and `ece` (percent, confidence in 256 levels as the node publishes it)."""
    confidence, label = logits.softmax(1).max(1)
    level = (255 * confidence).round().long().numpy()
    counts = np.stack([np.bincount(level, minlength=256),
                       np.bincount(level[(label == truth).numpy()], minlength=256)], 1)
    return {'nll': float(nn.functional.cross_entropy(logits, truth)),
            'ece': expected_calibration_error(counts)}


def calibrate_weights(path: Path, dataset: DataSet, out: Path | None, *,
                      device: str = 'cpu') -> dict[str, Any]:
    """
    Fit the temperature of a weights file on a data set, and write both to `out` (None: write nothing).

    Images are resized to the resolution in the card. `TrainError` if the classes differ.
    """
    network, card = weights.load(path)
    if card.labels.names != dataset.labels.names:
        raise TrainError(f'{path} has the classes {", ".join(card.labels.names)}; {dataset.name} has '
                         f'{", ".join(dataset.labels.names)}: name a data set with the same classes')
    # An average names the data sets of all its parts.
    if dataset.name in card.dataset.split(' + ') and dataset.split in card.split:
        log.warning('%s was trained on %s, which holds %s: a network is surer of images that it has seen, so '
                    'the temperature comes out too low', path.name, card.split, dataset.split)
    where = find_device(device)
    images, labels = samples.to_device(dataset, where, card.resolution[::-1])
    found = calibrate(network.to(where), images, labels, normaliser(card.mean, card.std, where),
                      len(card.labels))
    if not found:
        raise TrainError(f'no pixel of {dataset.name} {dataset.split} has a class: all its labels are void')
    found |= {'data': f'{dataset.name} {dataset.split}'}
    if out:
        weights.save(out, network, replace(card, calibration=found))
    return found


def text(found: dict[str, Any]) -> str:
    """Say in one line what a calibration found."""
    line = (f'temperature {found["temperature"]:.3f} from {found["data"]}: ECE {found["ece_before"]:.2f} -> '
            f'{found["ece_after"]:.2f} %, negative log-likelihood {found["nll_before"]:.4f} -> '
            f'{found["nll_after"]:.4f}')
    if found['ece_after'] > found['ece_before']:
        line += ('. The likelihood decides: it is better with this temperature, although the ECE is worse. '
                 'Measure the ECE on other images with "lightseg evaluate"')
    if why := LIMITS.get(found['temperature']):
        line += f'. This temperature is the limit of the search, no best one was found: {why}'
    return line
