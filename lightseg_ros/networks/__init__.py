# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks, one flat file a paper, and how to build one by name."""
from collections.abc import Callable
from difflib import get_close_matches
import inspect
from typing import Any

from torch import nn

from .affnet import AFFNet
from .elanet import ELANet, elanet_released
from .fbsnet import FBSNet, FBSNetReleased
from .laanet import LAANet
from .lrnnet import LRNNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    'laanet': LAANet,
    'fbsnet': FBSNet,
    'fbsnet_released': FBSNetReleased,
    'elanet': ELANet,
    'elanet_released': elanet_released,
    'lrnnet': LRNNet,
    'affnet': AFFNet,
}

# The network of each paper, in the order in which every table lists them.
PAPER_NETWORKS = ('laanet', 'fbsnet', 'lrnnet', 'elanet', 'affnet')


class NetworkError(ValueError):
    """A network or an option that does not exist, or a value that does not fit it."""


def options(name: str) -> dict[str, Any]:
    """Return the options of a network with their defaults; `NetworkError` if the name is unknown."""
    if name not in NETWORKS:
        near = get_close_matches(name[:100].lower(), NETWORKS, 1, 0.75)
        meant = f', did you mean {near[0]!r}?' if near else ';'
        raise NetworkError(f'unknown network {name!r}{meant} known: {", ".join(NETWORKS)}')
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
        return NETWORKS[name](num_classes, **{k: _tuples(v) for k, v in chosen.items()})
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as e:
        raise NetworkError(f'{name}: {e}') from e


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
