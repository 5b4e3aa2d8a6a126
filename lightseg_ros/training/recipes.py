# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: every number that a training run depends on, and presets of them for each network."""
import dataclasses
from dataclasses import dataclass
from typing import Any


class RecipeError(ValueError):
    """A recipe that does not exist or does not fit together; the text lists what is known."""


CHOICES = {
    'loss': ('ce', 'ohem', 'owfl'),
    'optimizer': ('adamw', 'adam', 'sgd'),
    'precision': ('float32', 'bfloat16'),
}


def _number(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={'help': text})


@dataclass(frozen=True)
class Recipe:
    """
    How a network is trained; stored in the card of its weights.

    The learning rate rises from a third of its peak over the warm-up, then falls as (1 - t)^power, where t
    goes from 0 to 1 over the run (FBSNet's and DABNet's schedule, there with power 0.9).
    """

    network: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = _number(100, 'passes over the data set')
    budget_s: float = _number(0.0, 'end the schedule after this many seconds of training (all resumed runs '
                                   'together) unless the epochs end it before; 0: no such end')
    batch: int = _number(8, 'images a step, over all processes together')
    crop: tuple[int, int] = _number((360, 480), 'size of the crops')
    first_crop: tuple[int, int] = _number((240, 320), 'crops of the first part of the run')
    first_scale: tuple[float, ...] = _number((), 'zoom of that first part; none: as in the rest')
    first_share: float = _number(0.0, 'how much of the run that first part is, 0 to 1')
    scale: tuple[float, ...] = _number((0.5, 2.0), 'zoom: a range (two numbers, log-uniform) or a set (more)')
    color: float = _number(0.2, 'half-range of the factors of brightness, contrast and saturation')
    blur: float = _number(0.0, 'share of the images that are blurred, 0 to 1')
    mix: float = _number(0.0, 'share of the images that get classes of another one pasted in, 0 to 1')
    loss: str = _number('ce', 'ce: cross entropy; ohem: of the hard pixels; owfl: OWFL + 0.5 CE (AFFNet)')
    class_weights: bool = _number(True, 'weigh classes by 1 / ln(1.10 + frequency) in ce and ohem')
    smoothing: float = _number(0.0, 'label smoothing of ce')
    init: str = _number('', 'weights file to start from instead of random weights; its classes may be others')
    auxiliary: float = _number(0.0, 'weight of the loss of a second classifier, of the deepest features, '
                                    'that only training knows')
    teachers: tuple[str, ...] = _number((), 'weights files whose mean prediction is learned too')
    distill: float = _number(1.0, 'weight of that loss')
    optimizer: str = _number('adamw', 'adamw, adam (decay as L2) or sgd (momentum 0.9, decay as L2)')
    lr: float = _number(3e-3, 'highest learning rate')
    weight_decay: float = _number(1e-2, 'weight decay of convolutions')
    decay_all: bool = _number(False, 'decay norms, slopes and biases as well')
    warmup: int = _number(100, 'steps of warm-up')
    power: float = _number(0.9, 'exponent of the poly schedule')
    clip: float = _number(5.0, 'longest gradient; 0: any')
    ema: float = _number(0.998, 'decay of the averaged weights, which are kept; 0: keep the last ones')
    divide_std: bool = _number(True, 'normalise by mean and std; else subtract the mean only')
    precision: str = _number('bfloat16', 'of the forward pass: bfloat16 or float32; weights stay float32')
    seed: int = _number(1, 'of weights, order and augmentation')

    def __post_init__(self):
        for name in ('epochs', 'batch', 'lr'):
            if not getattr(self, name) > 0:
                raise RecipeError(f'{name} is {getattr(self, name)!r}; expected more than 0')
        if self.batch < 2:
            raise RecipeError('batch is 1; expected 2 or more, since LAANet normalises a global average')
        for name in ('first_share', 'blur', 'mix', 'smoothing', 'ema', 'color'):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f'{name} is {getattr(self, name)!r}; expected 0 to 1')
        for name in ('crop', 'first_crop'):
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 64:
                raise RecipeError(f'{name} is {getattr(self, name)!r}; expected height and width, each 64 or '
                                  'more')
        for name in ('scale', 'first_scale'):
            zooms = getattr(self, name)
            if (zooms or name == 'scale') and (len(zooms) < 2 or min(zooms) <= 0):
                raise RecipeError(f'{name} is {zooms!r}; expected two or more numbers above 0')
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise RecipeError(f'unknown {name} {getattr(self, name)!r}; known: {", ".join(known)}')

    def plain(self) -> dict[str, Any]:
        """As JSON knows it: lists, no tuples."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


# What a few CPU cores can do in an hour or two: most epochs on whole images at about half their size, a
# quarter of the pixels, the rest at full size. Rate, decay, second classifier, no average: best on CamVid val
# (docs/training.md): in so few steps an average lags behind weights that the schedule brings to rest.
CPU: dict[str, Any] = {
    'epochs': 64, 'batch': 4, 'first_crop': (180, 240), 'first_scale': (0.45, 0.8), 'first_share': 0.7,
    'scale': (0.6, 1.6), 'color': 0.25, 'lr': 6e-3, 'weight_decay': 5e-2, 'ema': 0.0,
    'auxiliary': 0.4}

# What FBSNet, ELANet and the DABNet family share on CamVid: mean subtraction alone, scales from a set, no
# colour, Adam with L2 decay on everything, the last weights. The papers of LAANet and AFFNet give no numbers
# for CamVid.
DABNET: dict[str, Any] = {
    'epochs': 1000, 'batch': 8, 'scale': (0.75, 1.0, 1.25, 1.5, 1.75, 2.0), 'color': 0.0,
    'optimizer': 'adam', 'lr': 1e-3, 'weight_decay': 2e-4, 'decay_all': True, 'warmup': 100, 'clip': 0.0,
    'ema': 0.0, 'divide_std': False}
PAPER: dict[str, dict[str, Any]] = {
    # SGD on both data sets, but every number of it is lost: the family's recipe instead.
    'laanet': DABNET,
    'fbsnet': DABNET | {'batch': 6},
    # The learning rate for CamVid is not documented: the family's.
    'elanet': DABNET | {'warmup': 500},
    # 250,000 steps of batch 8, poly from 0.01; optimiser, decay, augmentation and loss are not stated.
    'lrnnet': DABNET | {'epochs': 5450, 'optimizer': 'sgd', 'lr': 1e-2, 'weight_decay': 1e-4},
    # Cityscapes' numbers. Random translation by up to 2 pixels is a crop of an image that is not scaled.
    'affnet': DABNET | {'epochs': 150, 'batch': 10, 'lr': 5e-4, 'weight_decay': 1e-4, 'scale': (1.0, 1.0),
                        'crop': (358, 478), 'loss': 'owfl'},
}

# Ours, the same for all: AdamW that leaves norms alone, averaged weights, more augmentation.
BEST: dict[str, Any] = {
    'epochs': 1000, 'batch': 16, 'scale': (0.5, 2.0), 'color': 0.3, 'blur': 0.2, 'mix': 0.25, 'lr': 4e-3,
    'weight_decay': 2e-2, 'warmup': 300, 'ema': 0.999}

RECIPES = ('paper', 'best', 'cpu')


def load(name: str, network: str, **changes: Any) -> Recipe:
    """Build a recipe by its name for a network, with `changes`; `RecipeError` lists what is known."""
    if name not in RECIPES:
        raise RecipeError(f'unknown recipe {name!r}; known: {", ".join(RECIPES)}')
    preset = {'paper': PAPER.get(network, DABNET), 'best': BEST, 'cpu': CPU}[name]
    known = [f.name for f in dataclasses.fields(Recipe)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise RecipeError(f'a recipe has no {", ".join(unknown)}; it has {", ".join(known)}')
    return Recipe(network, **(preset | changes))
