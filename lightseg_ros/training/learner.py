# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a run trains: a network, its second classifier and dropout; weights it starts from; its teachers."""
from collections.abc import Callable, Sequence
import logging
from typing import Any

import torch
from torch import nn, Tensor

from .. import networks, weights
from ..networks.layers import upsample
from .devices import TrainError
from .recipes import Recipe

log = logging.getLogger(__name__)

Normalise = Callable[[Tensor], Tensor]


def normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Normalise:
    """Return the function that subtracts `mean` from (N, 3, H, W) float RGB, 0-255, and divides by `std`."""
    m, s = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
    return lambda x: (x - m) / s


class Learner(nn.Module):
    """
    The network to train, with an optional second classifier on its deepest features.

    `dropout`: share of the channels that are dropped before the network's classifier, in training mode.
    Input (N, 3, H, W). Returns the network's logits (N, K, H, W), and the second classifier's logits
    (N, K, h, w) at the size of the features, or None.
    """

    network: Any  # one of networks.NETWORKS

    def __init__(self, network: nn.Module, num_classes: int, auxiliary: bool, dropout: float = 0.0):
        super().__init__()
        self.network = network
        self.head: nn.Conv2d | None = None
        if auxiliary:
            with torch.no_grad():
                _, deepest = self.network.eval().logits_and_features(
                    next(network.parameters()).new_zeros(1, 3, 64, 64))
            network.train()
            self.head = nn.Conv2d(deepest.shape[1], num_classes, 1)
        if dropout:
            _drop_before_classifier(self.network, dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, deepest = self.network.logits_and_features(x)
        full = logits if logits.shape[2:] == x.shape[2:] else upsample(logits, x)
        return full, None if self.head is None else self.head(deepest)


def _drop_before_classifier(network: Any, share: float) -> None:
    """Drop channels of the classifier's input in training mode; a hook adds no name to the state dict."""
    last = network.classifier[-1] if isinstance(network.classifier, nn.Sequential) else network.classifier
    last.register_forward_pre_hook(
        lambda module, inputs: (nn.functional.dropout2d(inputs[0], share, module.training),))


def freeze(network: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Let the first stages of a network keep their weights; returns these stages."""
    stages = dict(network.named_children())
    if recipe.freeze >= len(stages):
        raise TrainError(f'freeze is {recipe.freeze}; {recipe.network} has the stages {", ".join(stages)}, '
                         f'of which {len(stages) - 1} or fewer can be frozen')
    frozen = list(stages.values())[:recipe.freeze]
    for stage in frozen:
        stage.requires_grad_(False)
    return frozen


def start_from(recipe: Recipe, network: nn.Module, names: tuple[str, ...]) -> weights.Card:
    """
    Load the weights of `recipe.init` into the network and return their card.

    Where the classes differ, tensors whose shape depends on the number of classes keep their random values.
    """
    source, card = weights.load(weights.resolve(recipe.init))
    if (card.network, card.options) != (recipe.network, recipe.options):
        raise TrainError(f'{recipe.init} holds {card.network} with options {card.options}; this run trains '
                         f'{recipe.network} with options {recipe.options}: start from the same network')
    new = network.state_dict()
    random: list[str] = []
    if card.labels.names != names:
        one_more = networks.build(recipe.network, len(names) + 1, **recipe.options).state_dict()
        random = [k for k, v in one_more.items() if v.shape != new[k].shape]
    network.load_state_dict(new | {k: v for k, v in source.state_dict().items() if k not in random})
    log.info('%s starts from %s; random: %s', recipe.network, recipe.init, ', '.join(random) or 'nothing')
    return card


def teacher(path: str, names: tuple[str, ...], device: torch.device) -> Normalise:
    """Load weights that teach: returns a function of images (N, 3, H, W) RGB, 0-255, that gives logits."""
    network, card = weights.load(path)
    if card.labels.names != names:
        raise TrainError(f'teacher {path} has the classes {", ".join(card.labels.names)}; it needs those of '
                         f'the data: {", ".join(names)}')
    network = network.to(device).requires_grad_(False)
    normalise = normaliser(card.mean, card.std, device)
    return lambda x: network(normalise(x))
