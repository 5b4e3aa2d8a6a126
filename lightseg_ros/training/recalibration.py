# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Recomputes the batch-norm statistics of a trained network over whole, unaugmented training images.

During training the running statistics are those of augmented crops, and they lag behind the weights (or, for
averaged weights, belong to other weights). Inference sees whole images.
"""
from dataclasses import replace
import logging
from pathlib import Path

import torch
from torch import nn, Tensor

from .. import weights
from ..datasets import DataSet
from ..texts import one_line
from ..weights import Card
from . import checkpoint, samples
from .devices import find_device, TrainError
from .learner import Normalise, normaliser
from .recipes import Recipe
from .trainer import Trainer

log = logging.getLogger(__name__)

BATCH = 16


@torch.no_grad()
def recalibrate(network: nn.Module, images: Tensor, normalise: Normalise) -> int:
    """
    Replace all running means and variances by their averages over images (N, 3, H, W) uint8 RGB.

    The batches are random, since neighbouring frames of a video hardly differ, and always the same. The
    network is left in eval mode. Norms whose weights are frozen keep their statistics. Returns the number of
    batch norms.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats
             and (m.weight is None or m.weight.requires_grad)]
    momenta = [m.momentum for m in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an equal average over all batches
        norm.train()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for part in order.tensor_split(max(1, len(images) // BATCH)):
        network(normalise(images[part.to(images.device)].float()))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()
    return len(norms)


def recalibrate_weights(path: Path, dataset: DataSet, out: Path, *, device: str = 'cpu') -> None:
    """
    Recalibrate a weights file on the data set that it was trained on, and write the result to `out`.

    Images are resized to the resolution in the card. The card's metrics and temperature are removed, because
    they were measured before: score and calibrate the file again. `TrainError` if the classes differ.
    """
    network, card = weights.load(path)
    save_recalibrated(network, card, dataset, out, name=path, device=device)


def save_recalibrated(network: nn.Module, card: Card, dataset: DataSet, out: Path, *, name: str | Path,
                      device: str = 'cpu') -> None:
    """Do what `recalibrate_weights` does to a network and its card; errors call it `name`."""
    if card.labels.names != dataset.labels.names:
        raise TrainError(f'{name} has the classes {", ".join(card.labels.names)}; {dataset.name} has '
                         f'{", ".join(dataset.labels.names)}: name the data set that it was trained on')
    frozen = frozen_stages(card, name)
    where = find_device(device)
    images, _ = samples.to_device(dataset, where, card.resolution[::-1])
    for stage in list(network.children())[:frozen]:
        stage.requires_grad_(False)
    recalibrate(network.to(where), images, normaliser(card.mean, card.std, where))
    weights.save(out, network, replace(
        card, metrics={}, calibration={}, recipe=card.recipe | {'recalibrate': True}))


def frozen_stages(card: Card, name: str | Path) -> int:
    """Return how many first stages were frozen; `TrainError`, which calls it `name`, if its card is odd."""
    found = card.recipe.get('freeze', 0)
    if type(found) is not int or found < 0:  # a card may be edited by hand
        raise TrainError(f'{name}: freeze in the recipe of its card is {one_line(repr(found), 80)}; expected '
                         'a whole number, 0 or more: write the number of frozen stages there')
    return found


def weights_of_checkpoint(path: Path, dataset: DataSet, out: Path, *, device: str = 'cpu') -> None:
    """
    Write the recalibrated weights of a run that may be unfinished, from its checkpoint, to `out`.

    `dataset`: what the run trains on. `TrainError` if it is other data.
    """
    state = checkpoint.read(path)
    recipe = Recipe.from_plain(state['recipe'])
    height, width = state['data']['size']
    trainer = Trainer(recipe, dataset, device=device, mode='eager', size=(height, width))
    checkpoint.check(path, state, recipe, trainer.data)
    trainer.load_state(state)
    recalibrate(trainer.averaged, trainer.images[:len(dataset)], trainer.normalise)
    weights.save(out, trainer.averaged, trainer.card({}))
