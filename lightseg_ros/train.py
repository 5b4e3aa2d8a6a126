# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: data set and recipe in, a weights file with its card out; resumes where it stopped."""
from collections.abc import Callable
import csv
import dataclasses
from dataclasses import dataclass
import logging
import os
from pathlib import Path
import time
from typing import Any

import torch
from torch import nn, Tensor
from tqdm import tqdm

from . import data, losses, networks, weights
from .data import DataSet
from .metrics import ConfusionMatrix

log = logging.getLogger(__name__)


class TrainError(ValueError):
    """A training run that can't start or go on; the text says why and what to do."""


@dataclass(frozen=True)
class Recipe:
    """
    How a network is trained. Sizes in pixels (height, width), learning rate at its peak.

    `first_crop` is used for the first `first_share` of the epochs, `crop` afterwards: small crops first is what
    makes training on a CPU bearable. `scale`: zoom range, log-uniform. `color`: half-range of brightness,
    contrast and saturation. `ema`: decay of the averaged weights, which are what is kept; 0 keeps the raw ones.
    The learning rate warms up from a third over `warmup` steps, then falls as (1 - t)^`power`.
    """

    network: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 100
    batch: int = 8
    crop: tuple[int, int] = (360, 480)
    first_crop: tuple[int, int] = (240, 320)
    first_share: float = 0.0
    scale: tuple[float, float] = (0.5, 2.0)
    color: float = 0.2
    optimizer: str = 'adamw'
    lr: float = 3e-3
    weight_decay: float = 1e-2
    warmup: int = 100
    power: float = 0.9
    ema: float = 0.998
    smoothing: float = 0.0
    precision: str = 'bfloat16'
    seed: int = 1

    def __post_init__(self):
        for name in ('epochs', 'batch', 'lr'):
            if not getattr(self, name) > 0:
                raise TrainError(f'{name} is {getattr(self, name)!r}; expected more than 0')
        if self.batch < 2:
            raise TrainError('batch is 1; expected 2 or more, since LAANet normalises a global average')
        if self.optimizer not in OPTIMIZERS:
            raise TrainError(f'unknown optimizer {self.optimizer!r}; known: {", ".join(OPTIMIZERS)}')
        if self.precision not in ('float32', 'bfloat16'):
            raise TrainError(f'unknown precision {self.precision!r}; known: float32, bfloat16')


OPTIMIZERS: dict[str, Callable[[list[dict], Recipe], torch.optim.Optimizer]] = {
    'adamw': lambda groups, r: torch.optim.AdamW(groups, r.lr),
    'adam': lambda groups, r: torch.optim.Adam(groups, r.lr),
    'sgd': lambda groups, r: torch.optim.SGD(groups, r.lr, momentum=0.9),
}


class Average:
    """Exponential moving average of a network's parameters and statistics."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.steps += 1
        # The warm-up lets the average forget the random start.
        decay = min(self.decay, self.steps / (10 + self.steps))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)


def learning_rate(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of a step: linear warm-up from a third, then poly, (1 - t)^power."""
    warmup = min(recipe.warmup, total // 10)
    if step < warmup:
        return recipe.lr * (1 / 3 + (2 / 3) * step / warmup)
    return recipe.lr * (1 - (step - warmup) / max(1, total - warmup)) ** recipe.power


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """
    Return the layout to train in.

    On the CPU, torch 2.13 computes a garbage weight gradient for dilated depthwise convolutions in bfloat16
    channels-last (a test watches this), so bfloat16 trains in NCHW there.
    """
    if device.type == 'cpu' and precision == 'bfloat16':
        return torch.contiguous_format
    return torch.channels_last


@torch.no_grad()
def validate(network: nn.Module, images: Tensor, labels: Tensor, normalise: Callable[[Tensor], Tensor],
             num_classes: int, batch: int = 8) -> ConfusionMatrix:
    """Score at the images' own size: counts on the device, one transfer at the end."""
    network.eval()
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=images.device)
    for x, y in zip(images.split(batch), labels.split(batch)):
        prediction = network(normalise(x.float())).argmax(1)
        valid = y < num_classes
        counts += torch.bincount(y[valid].long() * num_classes + prediction[valid],
                                 minlength=num_classes * num_classes)
    matrix = ConfusionMatrix(num_classes)
    matrix.counts[:, :num_classes] = counts.view(num_classes, num_classes).cpu().numpy()
    return matrix


def train(recipe: Recipe, dataset: DataSet, out: str | Path, *, validation: DataSet | None = None,
          validate_every: int = 5, device: str = 'auto', resume: bool = False,
          time_limit_s: float = float('inf')) -> Path | None:
    """
    Train and write `<out>/<network>-<dataset>.safetensors`; returns its path.

    `out` also gets `last.pt` (the checkpoint, each epoch, atomically), `log.csv` and `curve.png`. With `resume`
    a checkpoint there is gone on from. None if `time_limit_s` ended the run early: resume it.
    `TrainError` where a checkpoint belongs to another recipe or exists and `resume` is not set.
    """
    began = time.monotonic()
    where = torch.device(('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / 'last.pt'
    if checkpoint.exists() and not resume:
        raise TrainError(f'{checkpoint} exists; go on with --resume, or choose another --out')
    if len(dataset) < recipe.batch:
        raise TrainError(f'{dataset.name} {dataset.split} has {len(dataset)} images, a batch {recipe.batch}')

    images, ids = data.to_device(dataset, where)
    held = data.to_device(validation, where) if validation else None
    num_classes = len(dataset.labels)
    mean, std, frequency = data.statistics(images, ids, num_classes)
    m, s = (t.view(1, 3, 1, 1).to(where) for t in (mean, std))
    layout = memory_format(where, recipe.precision)

    def normalise(x: Tensor) -> Tensor:
        return ((x - m) / s).contiguous(memory_format=layout)

    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = networks.build(recipe.network, num_classes, **recipe.options)
    network = network.to(where, memory_format=layout)
    average = Average(network, recipe.ema)
    averaged = networks.build(recipe.network, num_classes, **recipe.options).to(where, memory_format=layout)
    optimizer = OPTIMIZERS[recipe.optimizer](_groups(network, recipe.weight_decay), recipe)
    weight = losses.class_weights(frequency).to(where)
    steps = len(dataset) // recipe.batch
    total = steps * recipe.epochs
    first, rows = 0, []
    if checkpoint.exists():
        state = _read_checkpoint(checkpoint, recipe)
        network.load_state_dict(state['network'])
        average.state = {k: v.to(where) for k, v in state['average'].items()}
        average.steps = state['steps']
        optimizer.load_state_dict(state['optimizer'])
        generator.set_state(state['generator'])
        first, rows = state['epoch'], state['rows']

    bar = tqdm(total=total, initial=first * steps, unit='step', desc=recipe.network, dynamic_ncols=True)
    best = {'miou': max((r['miou'] for r in rows if r['miou'] is not None), default=None)}
    for epoch in range(first, recipe.epochs):
        network.train()
        crop = recipe.first_crop if epoch < recipe.first_share * recipe.epochs else recipe.crop
        losses_seen, at = torch.zeros((), device=where), time.monotonic()
        for i, chosen in enumerate(data.batches(len(dataset), recipe.batch, generator)):
            step = epoch * steps + i
            lr = learning_rate(step, total, recipe)
            for group in optimizer.param_groups:
                group['lr'] = lr
            chosen = chosen.to(where)
            x, y = data.augment(images[chosen], ids[chosen], generator, crop=crop, scale=recipe.scale,
                                color=recipe.color, mean=mean)
            with torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == 'bfloat16'):
                logits = network(normalise(x))
            loss = losses.cross_entropy(logits, y, weight, smoothing=recipe.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            average.update(network)
            losses_seen += loss.detach()
            bar.update()
        mean_loss = float(losses_seen) / steps
        if not mean_loss < float('inf'):
            raise TrainError(f'the loss is {mean_loss} in epoch {epoch + 1}: lower --lr, or train in float32')
        row = {'epoch': epoch + 1, 'loss': round(mean_loss, 4), 'lr': round(lr, 6), 'miou': None,
               'images_per_s': round(steps * recipe.batch / (time.monotonic() - at), 1)}
        last = epoch + 1 == recipe.epochs
        averaged.load_state_dict(average.state if recipe.ema else network.state_dict())
        if held and (last or (epoch + 1) % validate_every == 0):
            best['matrix'] = validate(averaged, *held, normalise, num_classes)
            row['miou'] = best['miou'] = round(best['matrix'].miou(), 2)
        rows.append(row)
        bar.set_postfix(epoch=epoch + 1, loss=row['loss'], miou=best['miou'])
        _write_checkpoint(checkpoint, {
            'recipe': _plain(recipe), 'epoch': epoch + 1, 'rows': rows, 'network': network.state_dict(),
            'average': average.state, 'steps': average.steps, 'optimizer': optimizer.state_dict(),
            'generator': generator.get_state()})
        _write_log(out / 'log.csv', rows)
        if not last and time.monotonic() - began > time_limit_s:
            bar.close()
            log.warning('stopped after epoch %d of %d at the time limit; go on with --resume', epoch + 1,
                        recipe.epochs)
            return None
    bar.close()
    _plot(out / 'curve.png', rows, recipe)
    averaged.load_state_dict(average.state if recipe.ema else network.state_dict())
    height, width = images.shape[2:]
    metrics: dict[str, Any] = {}
    if 'matrix' in best:
        metrics[validation.split] = {'miou': round(best['matrix'].miou(), 2)}
    card = weights.Card(
        network=recipe.network, options=recipe.options, labels=dataset.labels,
        mean=tuple(round(v, 4) for v in mean.tolist()), std=tuple(round(v, 4) for v in std.tolist()),
        resolution=(width, height), dataset=dataset.name, split=dataset.split,
        recipe=_plain(recipe) | {'device': _device_name(where), 'torch': torch.__version__},
        metrics=metrics, license=dataset.license, source=dataset.source)
    path = out / f'{recipe.network}-{dataset.name}.safetensors'
    weights.save(path, averaged, card)
    return path


def _groups(network: nn.Module, decay: float) -> list[dict]:
    """Weight decay acts on convolution weights, not on norms, PReLU slopes and biases."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    return [{'params': decayed, 'weight_decay': decay}, {'params': rest, 'weight_decay': 0.0}]


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'


def _read_checkpoint(path: Path, recipe: Recipe) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:
        raise TrainError(f'{path} is not a checkpoint that can be read ({e}); delete it to start anew') from e
    if state['recipe'] != _plain(recipe):
        differ = [k for k, v in _plain(recipe).items() if state['recipe'].get(k) != v]
        raise TrainError(f'{path} was made with another recipe ({", ".join(differ)} differ); resume with the '
                         'same arguments, or choose another --out')
    return state


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in one step: a kill leaves the old one or the new one, never half of it."""
    temporary = path.with_suffix('.tmp')
    with open(temporary, 'wb') as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def _write_log(path: Path, rows: list[dict]) -> None:
    with open(path, 'w', newline='') as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _plot(path: Path, rows: list[dict], recipe: Recipe) -> None:
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, loss = pyplot.subplots(figsize=(8, 4.5), layout='constrained')
    loss.plot([r['epoch'] for r in rows], [r['loss'] for r in rows], color='tab:gray')
    loss.set(xlabel='epoch', ylabel='training loss', title=f'{recipe.network}, {recipe.epochs} epochs')
    scored = [r for r in rows if r['miou'] is not None]
    if scored:
        miou = loss.twinx()
        miou.plot([r['epoch'] for r in scored], [r['miou'] for r in scored], color='tab:blue', marker='.')
        miou.set_ylabel('validation mIoU (%)', color='tab:blue')
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
