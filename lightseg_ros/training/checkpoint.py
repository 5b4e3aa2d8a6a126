# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: written whole or not at all, and checked before a run continues from one."""
import dataclasses
from pathlib import Path
from typing import Any

import torch

from .. import files
from .devices import TrainError
from .recipes import Recipe

# Fields of a recipe that may change between two calls of a run.
MAY_DIFFER = ('precision', 'recalibrate', 'patience')


def write(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in one step: after a kill the file holds the old state or the new one."""
    with files.replacing(path) as temporary:
        torch.save(state, temporary)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; tensors are on the CPU. `TrainError` if the file is not a whole checkpoint."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        state['recipe'], state['data'], state['step'], state['learner']
    except Exception as e:
        raise TrainError(f'{path} is not a readable checkpoint ({e}); delete it to start again') from e
    return state


def check(path: Path, state: dict[str, Any], recipe: Recipe, data: dict[str, Any]) -> None:
    """
    Compare a checkpoint with the run that wants to continue from it; `TrainError` names what differs.

    `data`: the run's `Trainer.data`.
    """
    if differ := differing(recipe, state['recipe']):
        raise TrainError(f'{path} was made with another recipe ({", ".join(differ)} differ); resume with the '
                         'same arguments, or choose another --out')
    differ = [f'{k} {state["data"][k]!r}, not {v!r}' for k, v in data.items() if state['data'][k] != v]
    if differ:
        raise TrainError(f'{path} was trained on other data ({"; ".join(differ)}); resume with the same, or '
                         'choose another --out')


def differing(recipe: Recipe, other: dict[str, Any]) -> list[str]:
    """
    Return the names of the fields in which a recipe differs from another, a dict as `Recipe.plain` makes it.

    A recipe from before a field existed counts as having that field's default. The precision may differ,
    because it changes the rounding only.
    """
    before = {f.name: f.default for f in dataclasses.fields(Recipe)} | other
    return [k for k, v in recipe.plain().items() if k not in MAY_DIFFER and _plain(before.get(k)) != v]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
