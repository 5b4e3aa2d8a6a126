# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: data set and recipe in, a weights file with its card out; resumes where it stopped."""
from collections.abc import Callable, Sequence
import copy
import csv
import fcntl
import logging
import math
import operator
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

import torch
from torch import distributed, nn, Tensor
from tqdm import tqdm

from .. import datasets, networks, weights
from ..datasets import AugmentParams, DataSet
from ..metrics import ConfusionMatrix
from ..networks.layers import upsample
from . import gradients, losses
from .recipes import Recipe

log = logging.getLogger(__name__)

MODES = ('auto', 'eager', 'graph', 'compile')
Normalise = Callable[[Tensor], Tensor]


class TrainError(ValueError):
    """A training run that can't start or go on; the text says why and what to do."""


def learning_rate(step: int, position: float, total: int, recipe: Recipe) -> float:
    """
    Learning rate at a step: linear warm-up from a third of the peak, then poly, (1 - t)^power.

    `position`: the step that the schedule is at; with a budget of time it runs ahead of `step`.
    """
    warmup = min(recipe.warmup, total // 10)
    if step < warmup:
        return recipe.lr * (1 / 3 + (2 / 3) * step / warmup)
    return recipe.lr * (1 - min(1.0, (position - warmup) / max(1, total - warmup))) ** recipe.power


@torch.no_grad()
def validate(network: nn.Module, images: Tensor, labels: Tensor, normalise: Normalise, num_classes: int,
             batch: int = 8) -> ConfusionMatrix:
    """
    Score a network in eval mode at the images' own size: counts on the device, one transfer at the end.

    images (N, 3, H, W) uint8 RGB, labels (N, H, W) uint8 with ids from `num_classes` on as void.
    """
    k = num_classes
    counts = torch.zeros(k * k + 1, dtype=torch.int64, device=images.device)
    for x, y in zip(images.split(batch), labels.split(batch)):
        pair = y.long() * k + network(normalise(x.float())).argmax(1)
        counts += torch.bincount(pair.where(y < k, k * k).flatten(), minlength=k * k + 1)
    matrix = ConfusionMatrix(k)
    matrix.counts[:, :k] = counts[:-1].view(k, k).cpu().numpy()
    return matrix


class _Learner(nn.Module):
    """
    What is trained: a network and, if asked for, a second classifier, of its deepest features.

    (N, 3, H, W) -> the network's logits (N, K, H, W), and those of the second one (N, K, h, w) or None.
    """

    network: Any  # one of networks.NETWORKS

    def __init__(self, network: nn.Module, num_classes: int, auxiliary: bool):
        super().__init__()
        self.network = network
        self.head: nn.Conv2d | None = None
        if auxiliary:
            with torch.no_grad():
                _, deepest = self.network.eval().logits_and_features(
                    next(network.parameters()).new_zeros(1, 3, 64, 64))
            network.train()
            self.head = nn.Conv2d(deepest.shape[1], num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, deepest = self.network.logits_and_features(x)
        full = logits if logits.shape[2:] == x.shape[2:] else upsample(logits, x)
        return full, None if self.head is None else self.head(deepest)


class Trainer:
    """
    A network, its data on the device and everything that a step needs; `step` is the whole state of time.

    `mode`: 'eager'; 'graph', which replays forward and backward pass as one CUDA graph; 'compile', which
    compiles the network first (and is a graph too on CUDA); 'auto' is 'graph' on CUDA and 'eager' elsewhere.
    Under torchrun every process takes its share of each batch, and mode is 'eager'.
    """

    def __init__(self, recipe: Recipe, dataset: DataSet, *, device: str = 'auto', mode: str = 'auto',
                 size: tuple[int, int] | None = None):
        if mode not in MODES:
            raise TrainError(f'unknown mode {mode!r}; known: {", ".join(MODES)}')
        self.rank, self.world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
        self.device = _device(device)
        # Sizes never change in a run, so cuDNN may time its kernels once.
        torch.backends.cudnn.benchmark = True
        if self.world > 1:
            if recipe.batch % self.world or recipe.batch < 2 * self.world:
                raise TrainError(f'a batch of {recipe.batch} over {self.world} processes; expected the same '
                                 'number for each, 2 or more')
            if not distributed.is_initialized():
                distributed.init_process_group('cpu:gloo,cuda:nccl' if self.device.type == 'cuda' else 'gloo')
        if len(dataset) < recipe.batch:
            raise TrainError(f'{dataset.name} {dataset.split} has {len(dataset)} images, fewer than a batch '
                             f'of {recipe.batch}')
        self.recipe, self.dataset = recipe, dataset
        self.step = 0
        self.steps = len(dataset) // recipe.batch
        self.total = self.steps * recipe.epochs
        self.num_classes = len(dataset.labels)

        self.images, self.ids = datasets.to_device(dataset, self.device, size)
        self.data = {'name': dataset.name, 'split': dataset.split, 'images': len(dataset),
                     'size': list(self.images.shape[2:]), 'classes': list(dataset.labels.names)}
        mean, std, frequency = datasets.statistics(self.images, self.ids, self.num_classes)
        self.mean = [round(v, 4) for v in mean.tolist()]
        self.std = [round(v, 4) for v in std.tolist()] if recipe.divide_std else [1.0, 1.0, 1.0]
        self.loss = _loss(recipe, frequency, self.device)
        self.teachers = [self._teacher(path) for path in recipe.teachers]

        torch.manual_seed(recipe.seed)
        network = networks.build(recipe.network, self.num_classes, **recipe.options)
        # Read once: the file may be gone, or replaced by what it led to, when the run ends.
        self.start = _start_from(recipe, network, dataset.labels.names) if recipe.init else None
        if self.start:  # its weights expect its statistics of the images
            self.mean, self.std = list(self.start.mean), list(self.start.std)
        self.fill = torch.tensor(self.mean, device=self.device)
        self.network = network.to(self.device).train()
        cuda = self.device.type == 'cuda'
        self.mode = ('graph' if cuda else 'eager') if mode == 'auto' else mode
        if self.world > 1:
            self.mode = 'eager'
        if self.mode == 'graph' and not cuda:
            raise TrainError(f'mode graph needs a CUDA device, found {self.device}; use eager or compile')
        if not cuda:
            gradients.use_fast_cpu_gradients(self.network)
        layouts = gradients.correct_memory_formats(self.device, recipe.precision)
        self.learner = _Learner(self.network, self.num_classes, bool(recipe.auxiliary)).to(self.device)
        self.model: nn.Module = self.learner
        self._place(layouts[0])
        if cuda and len(layouts) > 1 and self.world == 1:  # several processes must agree on one
            # One process of train-all at a time, so that they don't slow each other's down.
            with open(Path(tempfile.gettempdir()) / f'lightseg-{os.getuid()}.lock', 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._place(min(layouts, key=self._seconds_in))
        if self.mode == 'compile':
            self.model = torch.compile(self.learner, dynamic=False)  # type: ignore[assignment]
        if self.world > 1:
            self.model = nn.parallel.DistributedDataParallel(self.learner)
        self.averaged = copy.deepcopy(self.network).eval() if recipe.ema else self.network
        mine, new = self.averaged.state_dict(), self.network.state_dict()
        real = [k for k, v in new.items() if v.is_floating_point()]
        self._real = [mine[k] for k in real], [new[k] for k in real]
        self._whole = [mine[k] for k in new if k not in real], [new[k] for k in new if k not in real]
        self.optimizer = _optimizer(self.learner, recipe, self.device)
        self._steps: dict[tuple[int, int], Callable[[AugmentParams], Tensor]] = {}

    def draw(self, epoch: int, crop: tuple[int, int], *, first: bool = False) -> AugmentParams:
        """
        Draw the samples of an epoch that this process trains on; they depend on seed and epoch alone.

        `first`: of the recipe's first part.
        """
        r = self.recipe
        generator = torch.Generator().manual_seed(r.seed * 1_000_003 + epoch)
        size = (self.images.shape[2], self.images.shape[3])
        drawn = datasets.draw(len(self.dataset), r.batch, generator, size=size, crop=crop,
                          scale=(first and r.first_scale) or r.scale, color=r.color, blur=r.blur, mix=r.mix,
                          num_classes=self.num_classes)
        return drawn.map(lambda t: t[self.rank::self.world].to(self.device))

    def forward_backward(self, draw: AugmentParams, crop: tuple[int, int]) -> Tensor:
        """Compute the gradients of a batch; returns its loss. Device work alone: a graph can hold it."""
        x, y = datasets.augment(self.images, self.ids, draw, crop=crop, mean=self.fill)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == 'bfloat16'):
            logits, deep = self.model(self.normalise(x))
            with torch.no_grad():
                taught = [teacher(x).float().softmax(1) for teacher in self.teachers]
        loss = self.loss(logits, y)
        if deep is not None:
            small = nn.functional.interpolate(y.unsqueeze(1).float(), deep.shape[2:], mode='nearest-exact')
            loss = loss + self.recipe.auxiliary * self.loss(deep, small.squeeze(1).long())
        if taught:
            target = torch.stack(taught).mean(0)
            loss = loss + self.recipe.distill * losses.distillation(logits, y, target)
        loss.backward()
        return loss.detach()

    def train_step(self, draw: AugmentParams, crop: tuple[int, int], position: float) -> Tensor:
        """Learn from a batch; returns its loss, on the device. `position`: step of the schedule."""
        if crop not in self._steps:
            self._steps[crop] = self._prepare(draw, crop)
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.step, position, self.total, self.recipe)
        loss = self._steps[crop](draw)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        if self.averaged is not self.network:
            self._average()
        return loss

    def normalise(self, x: Tensor) -> Tensor:
        return self._normalise(x).contiguous(memory_format=self.layout)

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {'recipe': self.recipe.plain(), 'data': self.data, 'step': self.step,
                'learner': self.learner.state_dict(),
                'average': self.averaged.state_dict() if self.recipe.ema else None,
                'optimizer': self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step = state['step']
        self.learner.load_state_dict(state['learner'])
        if self.recipe.ema:
            self.averaged.load_state_dict(state['average'])
        self.optimizer.load_state_dict(state['optimizer'])
        # Moments lie in memory as their weights do; the run that is resumed may have used the other layout.
        for parameter, moments in self.optimizer.state.items():
            moments.update({k: torch.empty_like(parameter).copy_(v) for k, v in moments.items()
                            if isinstance(v, Tensor) and v.shape == parameter.shape})

    def card(self, metrics: dict[str, Any]) -> weights.Card:
        d, r = self.dataset, self.recipe
        made = {'device': _device_name(self.device), 'processes': self.world, 'torch': torch.__version__}
        mean, std = ((float(a), float(b), float(c)) for a, b, c in (self.mean, self.std))
        return weights.Card(
            network=r.network, options=r.options, labels=d.labels, mean=mean, std=std,
            resolution=(self.images.shape[3], self.images.shape[2]), dataset=d.name, split=d.split,
            recipe=r.plain() | {'steps': self.step} | made | self._sources(), metrics=metrics,
            license=d.license, source=d.source)

    def _sources(self) -> dict[str, Any]:
        """Name the weights files that were learned from, wherever they lay; how the first was trained too."""
        r = self.recipe
        found: dict[str, Any] = {'teachers': [Path(teacher).name for teacher in r.teachers]}
        if self.start:
            found |= {'init': Path(r.init).name, 'init_recipe': self.start.recipe}
        return found

    def _prepare(self, draw: AugmentParams, crop: tuple[int, int]) -> Callable[[AugmentParams], Tensor]:
        """Return `forward_backward` for a crop, eager or as a CUDA graph that does the same in one launch."""
        def eager(drawn: AugmentParams) -> Tensor:
            self.learner.zero_grad(set_to_none=True)
            return self.forward_backward(drawn, crop)

        if self.device.type != 'cuda' or self.mode == 'eager':
            return eager
        static = draw.map(torch.clone)
        before = copy.deepcopy(self.network.state_dict())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # lets cuDNN choose its kernels, and compiles
                eager(static)
        torch.cuda.current_stream().wait_stream(side)
        # Gradients that are None while capturing are written by each replay, not added to.
        self.learner.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.forward_backward(static, crop)
        self.network.load_state_dict(before)  # the warm-up moved the statistics of the norms
        # A graph writes into its own gradients; another crop's has others.
        gradients_of = [(p, p.grad) for p in self.learner.parameters()]

        def replay(drawn: AugmentParams) -> Tensor:
            for p, gradient in gradients_of:
                p.grad = gradient
            for to, source in zip(static, drawn):
                if to is not None and source is not None:
                    to.copy_(source)
            graph.replay()
            return loss

        return replay

    def _place(self, layout: torch.memory_format) -> None:
        self.layout = layout
        self.network.to(memory_format=layout)  # type: ignore[call-overload]
        self._normalise = _normaliser(self.mean, self.std, self.device)

    def _seconds_in(self, layout: torch.memory_format) -> float:
        """Seconds of ten steps in a layout, as a graph on CUDA: which is faster depends on GPU and cuDNN."""
        self._place(layout)
        draw = self.draw(0, self.recipe.crop).map(lambda t: t[:self.recipe.batch])
        before = copy.deepcopy(self.network.state_dict())
        step = self._prepare(draw, self.recipe.crop)
        step(draw)
        torch.cuda.synchronize()
        began = time.monotonic()
        for _ in range(10):
            step(draw)
        torch.cuda.synchronize()
        seconds = time.monotonic() - began
        self.network.load_state_dict(before)
        self.learner.zero_grad(set_to_none=True)
        log.info('%s: %.1f images/s in %s', self.recipe.network, 10 * len(draw.chosen) / seconds, layout)
        return seconds

    @torch.no_grad()
    def _average(self) -> None:
        # The warm-up lets the average forget the random start.
        decay = min(self.recipe.ema, self.step / (10 + self.step))
        torch._foreach_lerp_(*self._real, 1 - decay)
        if self._whole[0]:
            torch._foreach_copy_(*self._whole)

    def _teacher(self, path: str) -> Normalise:
        network, card = weights.load(path)
        if card.labels.names != self.dataset.labels.names:
            raise TrainError(f'{path} knows {", ".join(card.labels.names)}; a teacher needs the classes of '
                             f'{self.dataset.name}: {", ".join(self.dataset.labels.names)}')
        network = network.to(self.device).requires_grad_(False)
        normalise = _normaliser(card.mean, card.std, self.device)
        return lambda x: network(normalise(x))


def train(recipe: Recipe, dataset: DataSet, out: str | Path, *, validation: DataSet | None = None,
          validate_every: int = 5, device: str = 'auto', mode: str = 'auto',
          size: tuple[int, int] | None = None, resume: bool = False,
          time_limit_s: float = math.inf, checkpoint_every_s: float = 60.0,
          stop: Callable[[], bool] = lambda: False) -> Path | None:
    """
    Train and write `<out>/<network>-<dataset>.safetensors`; returns its path.

    `out` also gets `last.pt` (the checkpoint, each `checkpoint_every_s`, atomically), `log.csv` and
    `curve.png`. With `resume` a checkpoint there is gone on from, to the same result up to rounding (and to
    dropout, which only ablations have). None if `time_limit_s`, or `stop`, which is asked before every step,
    ended the run early: resume it. `size`: (height, width) that all images are resized to. Under torchrun all
    processes call this, and `out` lies where all of them read it; the first one writes. `TrainError` where a
    checkpoint belongs to another recipe or other data, or exists and `resume` is not set.
    """
    began = time.monotonic()
    out = Path(out)
    checkpoint = out / 'last.pt'
    if checkpoint.exists() and not resume:
        raise TrainError(f'{checkpoint} exists; go on with --resume, or choose another --out')
    trainer = Trainer(recipe, dataset, device=device, mode=mode, size=size)
    out.mkdir(parents=True, exist_ok=True)
    where, total, steps, first = trainer.device, trainer.total, trainer.steps, trainer.rank == 0
    held = datasets.to_device(validation, where, size) if validation and first else None
    rows: list[dict[str, Any]] = []
    loss_sum, counted, before = torch.zeros((), device=where), 0, 0.0
    if checkpoint.exists():
        state = _read_checkpoint(checkpoint, recipe, trainer.data)
        trainer.load_state(state)
        rows, before, counted = state['rows'], state['seconds'], state['counted']
        loss_sum += state['loss_sum']
    miou = next((r['miou'] for r in reversed(rows) if r['miou'] is not None), None)
    done, opened = 0, time.monotonic()
    epoch_began = opened

    def clock() -> tuple[float, float]:
        """Seconds of training over all runs, and of this call; under torchrun those of the first process."""
        now = time.monotonic()
        seconds = torch.tensor([before + now - opened, now - began], dtype=torch.float64)
        if trainer.world > 1:
            distributed.broadcast(seconds, 0)
        return float(seconds[0]), float(seconds[1])

    def position(step: int, seconds: float) -> float:
        return max(step, total * seconds / recipe.budget_s) if recipe.budget_s else step

    def save(seconds: float) -> None:
        if first:
            _write_checkpoint(checkpoint, trainer.state() | {
                'rows': rows, 'seconds': seconds, 'counted': counted, 'loss_sum': float(loss_sum)})
            if rows:
                _write_log(out / 'log.csv', rows)

    def end_epoch(epoch: int, at: float, seconds: float) -> None:
        """Write a row of the log; validate if it is time to."""
        nonlocal counted, miou
        queued = time.monotonic()
        mean_loss = float(loss_sum) / counted  # waits for the device
        ended = time.monotonic()
        if not math.isfinite(mean_loss):
            raise TrainError(f'the loss is {mean_loss} in epoch {epoch + 1}: lower --lr, or train with '
                             '--precision float32')
        due = (epoch + 1) % validate_every == 0
        if held and due:
            miou = round(validate(trainer.averaged.eval(), *held, trainer.normalise,
                                  trainer.num_classes).miou(), 2)
            trainer.network.train()
        rows.append({
            'epoch': epoch + 1, 'loss': round(mean_loss, 4), 'miou': miou if due else None,
            'lr': round(learning_rate(trainer.step, at, total, recipe), 6), 'seconds': round(seconds, 1),
            'images_per_s': round(done * recipe.batch / (ended - epoch_began), 1),
            'waited': round((ended - queued) / (ended - epoch_began), 2)})
        loss_sum.zero_()
        counted = 0
        bar.set_postfix(epoch=epoch + 1, loss=rows[-1]['loss'], miou=miou, img_s=rows[-1]['images_per_s'])

    # In seconds where these end the run: steps of the schedule would not be those that were done.
    length, unit = (round(recipe.budget_s), 's') if recipe.budget_s else (total, 'step')
    reached = min(length, round(length * position(trainer.step, before) / total))
    bar = tqdm(total=length, initial=reached, unit=unit, desc=recipe.network, dynamic_ncols=True,
               disable=not first, mininterval=0.5 if sys.stderr.isatty() else 30)
    share = recipe.batch // trainer.world
    drawn, saved = None, opened
    while True:
        epoch, i = divmod(trainer.step, steps)
        seconds, spent = clock()
        at = position(trainer.step, seconds)
        bar.update(min(length, round(length * at / total)) - bar.n)
        if at >= total:
            if counted:
                end_epoch(epoch, at, seconds)
            break
        if spent > time_limit_s or stop():
            save(seconds)
            if rows and first:
                _plot(out / 'curve.png', rows, recipe)
            bar.close()
            log.warning('%s: stopped in epoch %d, %s; go on with --resume', recipe.network, epoch + 1,
                        'at the time limit' if spent > time_limit_s else 'as asked')
            _leave(trainer)
            return None
        if drawn is None or i == 0:
            early = position(epoch * steps, seconds) < recipe.first_share * total
            crop = recipe.first_crop if early else recipe.crop
            drawn, done, epoch_began = trainer.draw(epoch, crop, first=early), 0, time.monotonic()
        batch = slice(i * share, (i + 1) * share)
        loss_sum += trainer.train_step(drawn.map(operator.itemgetter(batch)), crop, at)
        counted, done = counted + 1, done + 1
        if i + 1 == steps:
            end_epoch(epoch, at, seconds)
        if time.monotonic() - saved > checkpoint_every_s:
            save(seconds)
            saved = time.monotonic()
    bar.close()
    if not rows:
        raise TrainError(f'budget_s is {recipe.budget_s}, which ended before the first step')

    path = out / f'{recipe.network}-{dataset.name}.safetensors'
    if first:
        metrics = {}
        if held and validation:
            matrix = validate(trainer.averaged.eval(), *held, trainer.normalise, trainer.num_classes)
            rows[-1]['miou'] = round(matrix.miou(), 2)
            metrics[validation.split] = _metrics(matrix, recipe.network, validation)
        save(seconds)
        weights.save(path, trainer.averaged, trainer.card(metrics))
        _plot(out / 'curve.png', rows, recipe)
        log.info('%s: %d epochs, %.0f s, %s', recipe.network, rows[-1]['epoch'], seconds, _speed(rows))
    _leave(trainer)
    return path


def _speed(rows: list[dict[str, Any]]) -> str:
    """How many images a second, and what bounds that: the device, if the host waited for it."""
    recent = rows[-20:]
    waited = sum(r['waited'] for r in recent) / len(recent)
    bound = 'the device' if waited > 0.05 else 'the host (on a CPU they are one)'
    return f'{sum(r["images_per_s"] for r in recent) / len(recent):.1f} images/s, bound by {bound}'


def _leave(trainer: Trainer) -> None:
    """Under torchrun, wait until the first process has written its files, and part."""
    if trainer.world > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def _device(name: str) -> torch.device:
    """Find a device; under torchrun 'auto' is the process's own GPU."""
    if name == 'auto':
        name = f'cuda:{os.environ.get("LOCAL_RANK", 0)}' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise TrainError(f'{name!r} is no device: {e}') from e
    if device.type != 'cuda':
        return device
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise TrainError(f'device {name!r} is not there; torch {torch.__version__} sees {count} CUDA devices')
    torch.cuda.set_device(index)
    return torch.device('cuda', index)


def _device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU, {torch.get_num_threads()} threads'


def _start_from(recipe: Recipe, network: nn.Module, names: tuple[str, ...]) -> weights.Card:
    """Take the tensors of `recipe.init`, but where its classes are others not those that depend on them."""
    source, card = weights.load(recipe.init)
    if (card.network, card.options) != (recipe.network, recipe.options):
        raise TrainError(f'{recipe.init} holds {card.network} with options {card.options}; this run trains '
                         f'{recipe.network} with options {recipe.options}: start from the same network')
    new = network.state_dict()
    anew: list[str] = []
    if card.labels.names != names:
        one_more = networks.build(recipe.network, len(names) + 1, **recipe.options).state_dict()
        anew = [k for k, v in one_more.items() if v.shape != new[k].shape]
    network.load_state_dict(new | {k: v for k, v in source.state_dict().items() if k not in anew})
    log.info('%s starts from %s; random: %s', recipe.network, recipe.init, ', '.join(anew) or 'nothing')
    return card


def _normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Normalise:
    m, s = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
    return lambda x: (x - m) / s


def _loss(recipe: Recipe, frequency: Tensor, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    weight = losses.class_weights(frequency).to(device) if recipe.class_weights else None
    if recipe.loss == 'ohem':
        return lambda logits, y: losses.ohem(logits, y, weight)
    if recipe.loss == 'owfl':
        alpha, gamma = losses.focal_terms(frequency)
        highest = int(gamma.max())
        alpha, gamma = alpha.to(device), gamma.to(device)
        return lambda logits, y: losses.owfl(logits, y, alpha, gamma, highest_gamma=highest)
    return lambda logits, y: losses.cross_entropy(logits, y, weight, smoothing=recipe.smoothing)


def _optimizer(network: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimiser; unless the recipe says so, norms, PReLU slopes and biases are not decayed."""
    decayed = [p for p in network.parameters() if p.ndim > 1 or recipe.decay_all]
    rest = [p for p in network.parameters() if p.ndim <= 1 and not recipe.decay_all]
    groups: list[dict[str, Any]] = [{'params': decayed, 'weight_decay': recipe.weight_decay}]
    if rest:
        groups.append({'params': rest, 'weight_decay': 0.0})
    fused = device.type == 'cuda'
    if recipe.optimizer == 'sgd':
        return torch.optim.SGD(groups, recipe.lr, momentum=0.9, fused=fused)
    if recipe.optimizer == 'adam':
        return torch.optim.Adam(groups, recipe.lr, fused=fused)
    return torch.optim.AdamW(groups, recipe.lr, fused=fused)


def _metrics(matrix: ConfusionMatrix, network: str, dataset: DataSet) -> dict[str, Any]:
    iou = {name: round(float(v), 2) for name, v in zip(dataset.labels.names, matrix.iou()) if v == v}
    return {'miou': round(matrix.miou(), 2), 'iou': iou, 'command': dataset.command(network)}


def _read_checkpoint(path: Path, recipe: Recipe, trained_on: dict[str, Any]) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        found, data_found = state['recipe'], state['data']
    except Exception as e:
        raise TrainError(f'{path} is not a checkpoint that can be read ({e}); delete it to start anew') from e
    differ = [k for k, v in recipe.plain().items() if found.get(k) != v]
    if differ:
        raise TrainError(f'{path} was made with another recipe ({", ".join(differ)} differ); resume with the '
                         'same arguments, or choose another --out')
    differ = [f'{k} {data_found[k]!r}, not {v!r}' for k, v in trained_on.items() if data_found[k] != v]
    if differ:
        raise TrainError(f'{path} was trained on other data ({"; ".join(differ)}); resume with the same, or '
                         'choose another --out')
    return state


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in one step: a kill leaves the old one or the new one, never half of it."""
    temporary = path.with_suffix('.tmp')
    with open(temporary, 'wb') as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def _write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix('.tmp')
    with open(temporary, 'w', newline='') as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _plot(path: Path, rows: list[dict[str, Any]], recipe: Recipe) -> None:
    try:
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot
    except ImportError as e:
        log.warning('no %s: %s', path, e)
        return
    figure, loss = pyplot.subplots(figsize=(8, 4.5), layout='constrained')
    loss.plot([r['epoch'] for r in rows], [r['loss'] for r in rows], color='tab:gray')
    loss.set(xlabel='epoch', ylabel='training loss', title=recipe.network)
    scored = [r for r in rows if r['miou'] is not None]
    if scored:
        miou = loss.twinx()
        miou.plot([r['epoch'] for r in scored], [r['miou'] for r in scored], color='tab:blue', marker='.')
        miou.set_ylabel('validation mIoU (%)', color='tab:blue')
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
