# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: all the numbers that a training run depends on, and presets for each network."""
import dataclasses
from dataclasses import dataclass
import logging
from typing import Any

log = logging.getLogger(__name__)


class RecipeError(ValueError):
    """A recipe that does not exist, or values that do not fit; the text lists what is possible."""


CHOICES = {
    'loss': ('ce', 'ohem', 'owfl'),
    'optimizer': ('adamw', 'adam', 'sgd'),
    'precision': ('auto', 'float32', 'bfloat16'),
    'weighting': ('log', 'median'),
    'padding': ('mean', 'reflect'),
    'keep': ('last', 'best'),
}
# Networks that normalise one value for each image and channel, LAANet's global mean: one image has no spread.
NEED_TWO = ('laanet',)


# The largest values of the numbers that are no shares.
LIMITS = {'epochs': 1e7, 'batch': 65536, 'lr': 10, 'budget_s': 1e9, 'aspect': 10, 'gamma': 10, 'noise': 255,
          'auxiliary': 1000, 'distill': 1000, 'weight_decay': 10, 'warmup': 1e9, 'power': 100, 'clip': 1e9,
          'seed': 2 ** 31, 'freeze': 1000, 'patience': 1e6}


def _number(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={'help': text})


@dataclass(frozen=True)
class Recipe:
    """
    How a network is trained. The card of its weights stores all fields.

    The learning rate rises from a third of its peak during the warm-up, then falls as (1 - t)^power, where t
    goes from 0 to 1 over the run. This is the schedule of FBSNet and DABNet, which use power 0.9. Sizes are
    (height, width) in pixels.
    """

    network: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = _number(100, 'passes over the data set')
    budget_s: float = _number(0.0, 'end the schedule after this many seconds of training, in all resumed '
                                   'calls together, unless the epochs end before; 0: no time budget')
    batch: int = _number(8, 'images per step, of all processes together')
    crop: tuple[int, int] = _number((360, 480), 'size of the crops')
    first_crop: tuple[int, int] = _number((240, 320), 'size of the crops in the first part of the run')
    first_scale: tuple[float, ...] = _number((), 'zoom of the first part; default: as in the rest')
    first_share: float = _number(0.0, 'length of the first part, as a share of the run, 0 to 1')
    scale: tuple[float, ...] = _number((0.5, 2.0), 'zoom: two numbers are a range (log-uniform), more a set')
    color: float = _number(0.2, 'half-range of the factors of brightness, contrast and saturation')
    blur: float = _number(0.0, 'share of the images that are blurred, 0 to 1')
    mix: float = _number(0.0, 'share of the images with classes of another image pasted in, 0 to 1')
    aspect: float = _number(0.0, 'widths are scaled by up to 1 + this or down to 1 / (1 + this)')
    edges: float = _number(0.0, 'share of the crops that lie in a corner of the image and so show its real '
                                'edges, 0 to 1')
    padding: str = _number('mean', 'what crops show outside the image: the mean colour or the '
                                   'reflected image; the label is void')
    gamma: float = _number(0.0, 'brightness exponents are up to 1 + this or down to 1 / (1 + this)')
    dusk: float = _number(0.0, 'share of the images that are darkened and tinted like at dusk, 0 to 1')
    fog: float = _number(0.0, 'share of the images behind a light grey veil as in fog, 0 to 1')
    noise: float = _number(0.0, 'largest standard deviation of the noise, on the scale of 0 to 255')
    erase: float = _number(0.0, 'share of the images with a rectangle erased, its label void, 0 to 1')
    recolor: float = _number(0.0, 'share of the images in which classes get random colours and brightness, '
                                  'and of those with a gradient of brightness, 0 to 1')
    street_share: float = _number(0.0, 'share of the samples from the built-in synthetic street, 0 to 1')
    loss: str = _number('ce', 'ce: cross entropy; ohem: ce of the hard pixels; owfl: OWFL + 0.5 ce (AFFNet)')
    class_weights: bool = _number(True, 'weight classes in ce and ohem')
    weighting: str = _number('log', 'log: 1 / ln(1.10 + frequency); median: median frequency / frequency')
    smoothing: float = _number(0.0, 'label smoothing of ce')
    init: str = _number('', 'start from a weights file or a packaged network (laanet) instead of random '
                           'weights; its classes may differ')
    freeze: int = _number(0, 'first stages of the network (lightseg info lists them) that keep the weights '
                             'of --init')
    dropout: float = _number(0.0, 'share of the channels that are dropped before the classifier, 0 to 1')
    auxiliary: float = _number(0.0, 'weight of the loss of a second classifier on the deepest '
                                    'features; the finished weights are without it')
    teachers: tuple[str, ...] = _number((), 'weights files whose mean prediction is a further target')
    distill: float = _number(1.0, 'weight of the loss of the teachers')
    optimizer: str = _number('adamw', 'adamw, adam (L2 decay) or sgd (momentum 0.9, L2 decay)')
    lr: float = _number(3e-3, 'highest learning rate')
    weight_decay: float = _number(1e-2, 'weight decay of convolutions')
    decay_all: bool = _number(False, 'decay norms, PReLU slopes and biases too')
    warmup: int = _number(100, 'steps of warm-up')
    power: float = _number(0.9, 'exponent of the poly schedule')
    clip: float = _number(5.0, 'largest norm of the gradient; 0: no limit')
    ema: float = _number(0.998, 'decay of the averaged weights, the result; 0: no average')
    swa: float = _number(0.0, 'share of the run, at its end, whose weights are averaged equally; 0: none')
    keep: str = _number('last', 'the result is the last weights, or those of the best validation')
    patience: int = _number(0, 'stop after this many validations without a better mIoU; 0: never')
    recalibrate: bool = _number(True, 'at the end, recompute the batch-norm statistics over the whole '
                                      'training images')
    divide_std: bool = _number(True, 'divide by std after subtracting the mean')
    precision: str = _number('auto', 'of the forward pass; auto: bfloat16 on GPUs and on CPUs with '
                                     'instructions for it, else float32; weights stay in float32')
    seed: int = _number(1, 'seed of weights, order and augmentation')

    def __post_init__(self):
        for name in ('epochs', 'batch', 'lr'):
            if not getattr(self, name) > 0:
                raise RecipeError(f'{name} is {getattr(self, name)!r}; expected more than 0')
        for name, high in LIMITS.items():
            if not 0 <= getattr(self, name) <= high:
                raise RecipeError(f'{name} is {getattr(self, name)!r}; expected 0 to {high:g}')
        check_batch(self.network, self.batch)
        if self.freeze and not self.init:
            raise RecipeError(f'freeze is {self.freeze} without init: random weights would stay random; name '
                              'the weights to start from with --init')
        for name in ('first_share', 'blur', 'mix', 'smoothing', 'ema', 'color', 'edges', 'dusk', 'erase',
                     'fog', 'recolor', 'street_share', 'dropout', 'swa'):
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
        for name in ('aspect', 'gamma', 'noise'):
            if getattr(self, name) < 0:
                raise RecipeError(f'{name} is {getattr(self, name)!r}; expected 0 or more')
        if self.ema and self.swa:
            raise RecipeError(f'ema is {self.ema} and swa {self.swa}; expected one of the two to be 0')
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise RecipeError(f'unknown {name} {getattr(self, name)!r}; known: {", ".join(known)}')

    def plain(self) -> dict[str, Any]:
        """Return all fields as JSON has them: lists instead of tuples."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_plain(cls, fields: dict[str, Any]) -> 'Recipe':
        """Build a recipe from what `plain` returned; fields that did not exist then have their defaults."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


def check_batch(network: str, batch: int, processes: int = 1) -> None:
    """Raise `RecipeError` if a process gets fewer images per step than the network can train on."""
    least = 2 if network in NEED_TWO else 1
    if batch < least * processes:
        raise RecipeError(f'batch is {batch}' + f' for {processes} processes' * (processes > 1)
                          + f'; {network} needs {least * processes} or more, since it normalises a global '
                          f'mean; every network but {", ".join(NEED_TWO)} trains on single images')


# For a few CPU cores. Most epochs see whole images at about half their size, a quarter of the pixels; the
# others see the full size. Learning rate, decay, second classifier and no averaging were best on CamVid val
# (docs/training.md): in so few steps the average lags behind the weights.
CPU: dict[str, Any] = {
    'epochs': 64, 'batch': 4, 'first_crop': (180, 240), 'first_scale': (0.45, 0.8), 'first_share': 0.7,
    'scale': (0.6, 1.6), 'color': 0.25, 'lr': 6e-3, 'weight_decay': 5e-2, 'ema': 0.0,
    'auxiliary': 0.4}

# What FBSNet, ELANet and the DABNet family share on CamVid: only the mean is subtracted, scales come from a
# set, no colour augmentation, Adam with L2 decay on all parameters, the last weights are the result. The
# papers of LAANet and AFFNet give no numbers for CamVid.
DABNET: dict[str, Any] = {
    'epochs': 1000, 'batch': 8, 'scale': (0.75, 1.0, 1.25, 1.5, 1.75, 2.0), 'color': 0.0,
    'optimizer': 'adam', 'lr': 1e-3, 'weight_decay': 2e-4, 'decay_all': True, 'warmup': 100, 'clip': 0.0,
    'ema': 0.0, 'divide_std': False}
PAPER: dict[str, dict[str, Any]] = {
    'laanet': DABNET,
    'fbsnet': DABNET | {'batch': 6},
    # The learning rate for CamVid is not documented, so this is the family's.
    'elanet': DABNET | {'warmup': 500},
    # 250,000 steps of batch 8, poly decay from 0.01. The paper does not state optimiser, weight decay,
    # augmentation and loss.
    'lrnnet': DABNET | {'epochs': 5450, 'optimizer': 'sgd', 'lr': 1e-2, 'weight_decay': 1e-4},
    # The numbers for Cityscapes. A crop of an unscaled image is its random translation by up to 2 pixels.
    'affnet': DABNET | {'epochs': 150, 'batch': 10, 'lr': 5e-4, 'weight_decay': 1e-4, 'scale': (1.0, 1.0),
                        'crop': (358, 478), 'loss': 'owfl'},
}
PAPER |= {'fbsnet_released': PAPER['fbsnet'], 'elanet_released': PAPER['elanet']}
# Networks whose recipe in the table is not their paper's own, and why.
BORROWED = {'laanet': 'its paper names SGD without a number, so this is the recipe of its family (DABNet, '
                      'FBSNet, ELANet)',
            'affnet': 'its paper has no result on CamVid, so these are its numbers for Cityscapes'}

# Ours, the same for all networks: AdamW without decay of the norms, averaged weights, more augmentation.
BEST: dict[str, Any] = {
    'epochs': 1000, 'batch': 16, 'scale': (0.5, 2.0), 'color': 0.3, 'blur': 0.2, 'mix': 0.25, 'lr': 4e-3,
    'weight_decay': 2e-2, 'warmup': 300, 'ema': 0.999}

RECIPES = ('paper', 'best', 'cpu')


def load(name: str, network: str, **changes: Any) -> Recipe:
    """Build a network's recipe by name, with `changes` to its fields; `RecipeError` lists what exists."""
    if name not in RECIPES:
        raise RecipeError(f'unknown recipe {name!r}; known: {", ".join(RECIPES)}')
    if name == 'paper' and network not in PAPER:
        raise RecipeError(f'there is no recipe of a paper for {network!r}; there is for {", ".join(PAPER)}: '
                          'choose --recipe best or cpu')
    if name == 'paper' and network in BORROWED:
        log.warning('%s, recipe paper: %s', network, BORROWED[network])
    preset = {'paper': PAPER.get(network, {}), 'best': BEST, 'cpu': CPU}[name]
    known = [f.name for f in dataclasses.fields(Recipe)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise RecipeError(f'a recipe has no {", ".join(unknown)}; it has {", ".join(known)}')
    return Recipe(network, **(preset | changes))
