# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks, one flat file a paper, and how to build one by name."""
import inspect
from typing import Any

from torch import nn

from .laanet import LAANet

NETWORKS = {
    'laanet': LAANet,
}


class NetworkError(ValueError):
    """A network or an option that does not exist, or a value that does not fit it."""


def options(name: str) -> dict[str, Any]:
    """Return the options of a network with their defaults; `NetworkError` if the name is unknown."""
    if name not in NETWORKS:
        raise NetworkError(f'unknown network {name!r}; known: {", ".join(NETWORKS)}')
    parameters = inspect.signature(NETWORKS[name]).parameters
    return {k: p.default for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def build(name: str, num_classes: int, **chosen: Any) -> nn.Module:
    """
    Build a network with random weights: RGB (N, 3, H, W) -> logits (N, num_classes, H, W).

    Lists are taken where an option wants tuples (JSON knows no tuples). `NetworkError` names what is known
    where the name, an option or its value is not.
    """
    known = options(name)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise NetworkError(f'{name} has no option {", ".join(map(repr, unknown))}; '
                           f'known: {", ".join(known) or "none"}')
    if not (isinstance(num_classes, int) and 1 <= num_classes <= 255):
        raise NetworkError(f'num_classes is {num_classes!r}; expected 1 to 255 (a label is one byte, '
                           '255 means unlabeled)')
    try:
        network = NETWORKS[name](num_classes, **{k: _tuples(v) for k, v in chosen.items()})
    except ValueError as e:
        raise NetworkError(f'{name}: {e}') from e
    initialise(network)
    return network


def initialise(network: nn.Module) -> None:
    """Kaiming-normal (fan-in) convolutions, zero biases; norms and PReLU keep torch's 1, 0 and 0.25."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='relu')
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
