# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One training step: a network, its data on the device, loss, optimiser and learning rate."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
import copy
import logging
import os
from pathlib import Path
import time
from typing import Any

import numpy as np
import torch
from torch import distributed, nn, Tensor
from tqdm import tqdm

from .. import cuda_graphs, labels, networks, weights
from ..datasets import DataSet
from ..labels import LabelSet
from ..synthetic.street import Street
from ..texts import one_line
from . import gradients, losses, samples
from .devices import device_name, find_device, find_precision, one_at_a_time, TrainError
from .learner import freeze, Learner, normaliser, start_from, teacher
from .recipes import check_batch, Recipe
from .samples import AugmentParams

log = logging.getLogger(__name__)

MODES = ('auto', 'eager', 'graph', 'compile')
FRAMES_PER_STREET = 20


def learning_rate(step: int, position: float, total: int, recipe: Recipe) -> float:
    """
    Return the learning rate: linear warm-up from a third of the peak, then poly decay, (1 - t)^power.

    `step`: optimiser steps done so far; the warm-up follows it. `position`: the step that the schedule has
    reached; with a time budget it differs from `step`. `total`: steps of the whole schedule.
    """
    warmup = min(recipe.warmup, total // 10)
    if step < warmup:
        return recipe.lr * (1 / 3 + (2 / 3) * step / warmup)
    return recipe.lr * (1 - min(1.0, (position - warmup) / max(1, total - warmup))) ** recipe.power


class Trainer:
    """
    A network, its data on the device, and everything that a training step needs.

    `step` is the only progress counter: samples, learning rate and averages depend on it and on the seed.
    `size`: (height, width) in pixels that all images are resized to. `mode`: 'eager' runs plain torch.
    'graph' replays the forward and backward pass as one CUDA graph. 'compile' compiles the network first, and
    uses a graph too on CUDA. 'auto' is 'graph' on CUDA and 'eager' elsewhere. Under torchrun each process
    takes its share of every batch, and the mode is always 'eager'. `layout`: what `state` of an earlier run
    said, so that the choice is not timed again. `TrainError` if the device, the batch or the mode does not
    fit.
    """

    def __init__(self, recipe: Recipe, dataset: DataSet, *, device: str = 'auto', mode: str = 'auto',
                 size: tuple[int, int] | None = None, layout: Sequence[str] = ()):
        if mode not in MODES:
            raise TrainError(f'unknown mode {mode!r}; known: {", ".join(MODES)}')
        self.rank, self.world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
        self.device = find_device(device)
        # The sizes stay the same during a run, so cuDNN times its kernels once and keeps the fastest.
        torch.backends.cudnn.benchmark = True
        if self.world > 1:
            if recipe.batch % self.world:
                raise TrainError(f'a batch of {recipe.batch} on {self.world} processes; expected a multiple '
                                 f'of {self.world}')
            check_batch(recipe.network, recipe.batch, self.world)
            if not distributed.is_initialized():
                distributed.init_process_group('cpu:gloo,cuda:nccl' if self.device.type == 'cuda' else 'gloo')
        if len(dataset) < recipe.batch:
            raise TrainError(f'{dataset.name} {dataset.split} has {len(dataset)} images, fewer than a batch '
                             f'of {recipe.batch}; give --batch {len(dataset)} or less')
        self.recipe, self.dataset = recipe, dataset
        self.step = 0
        self.steps = len(dataset) // recipe.batch
        self.total = self.steps * recipe.epochs
        self.num_classes = len(dataset.labels)

        self.precision = find_precision(recipe.precision, self.device)
        self.precisions = [self.precision]  # of this run so far, in order of use
        self.images, self.ids = samples.to_device(dataset, self.device, size)
        self.data = {'name': dataset.name, 'split': dataset.split, 'images': len(dataset),
                     'size': list(self.images.shape[2:]), 'classes': list(dataset.labels.names)}
        found = samples.statistics(self.images, self.ids, self.num_classes)
        self.mean = [round(v, 4) for v in found.mean.tolist()]
        self.std = [round(v, 4) for v in found.std.tolist()] if recipe.divide_std else [1.0, 1.0, 1.0]
        self.loss = losses.of_recipe(recipe, found, self.device)
        if recipe.street_share:
            self._add_street()
        self.teachers = [teacher(path, dataset.labels.names, self.device) for path in recipe.teachers]

        torch.manual_seed(recipe.seed)
        network = networks.build(recipe.network, self.num_classes, **recipe.options)
        # Read the file now: at the end of the run it may be gone, or be replaced by the result of this run.
        self.start = start_from(recipe, network, dataset.labels.names) if recipe.init else None
        if self.start:  # its weights were trained with these statistics
            self.mean, self.std = list(self.start.mean), list(self.start.std)
        self.fill = torch.tensor(self.mean, device=self.device)
        self.network = network.to(self.device)
        self.frozen = freeze(network, recipe)
        cuda = self.device.type == 'cuda'
        self.mode = ('graph' if cuda else 'eager') if mode == 'auto' else mode
        if self.world > 1:
            self.mode = 'eager'
        if self.mode == 'graph' and not cuda:
            raise TrainError(f'mode graph needs a CUDA device, found {self.device}; use eager or compile')
        if not cuda:
            gradients.use_fast_cpu_gradients(self.network, fused_norms=self.mode != 'compile')
        layouts = gradients.correct_memory_formats(self.device, self.precision)
        self.learner = Learner(self.network, self.num_classes, bool(recipe.auxiliary),
                                recipe.dropout).to(self.device)
        self.model: nn.Module = self.learner
        self.training_mode()
        self._place(layouts[0])
        before = [form for form in layouts if [device_name(self.device), str(form)] == list(layout)]
        if before:
            self._place(before[0])
        elif cuda and len(layouts) > 1 and self.world == 1:  # under torchrun all must use the same layout
            # The lock lets one process at a time measure, so that parallel runs do not disturb each other.
            with one_at_a_time():
                self._place(min(layouts, key=self._seconds_in))
        if self.mode == 'compile':
            self.model = torch.compile(self.learner, dynamic=False)  # type: ignore[assignment]
        if self.world > 1:
            self.model = nn.parallel.DistributedDataParallel(self.learner)
        # The weights that are the result of the run.
        self.averaged = copy.deepcopy(self.network).eval() if recipe.ema or recipe.swa else self.network
        self.averages = 0  # weights in the equal average so far
        self.drops = any(isinstance(m, (nn.Dropout, nn.Dropout2d)) and m.p for m in self.network.modules())
        mine, new = self.averaged.state_dict(), self.network.state_dict()
        real = [k for k, v in new.items() if v.is_floating_point()]
        self._real = [mine[k] for k in real], [new[k] for k in real]
        self._whole = [mine[k] for k in new if k not in real], [new[k] for k in new if k not in real]
        self.optimizer = _optimizer(self.learner, recipe, self.device)
        self._steps: dict[tuple[int, int], Callable[[AugmentParams], Tensor]] = {}

    def training_mode(self) -> None:
        """Put the network into training mode, without its frozen stages."""
        self.learner.train()
        for stage in self.frozen:
            stage.eval()

    def draw(self, epoch: int, crop: tuple[int, int], *, first: bool = False) -> AugmentParams:
        """
        Draw this process's samples of an epoch. They depend on the seed and the epoch only.

        `crop`: (height, width). `first`: use the zoom of the recipe's first part.
        """
        r = self.recipe
        generator = torch.Generator().manual_seed(r.seed * 1_000_003 + epoch)
        size = (self.images.shape[2], self.images.shape[3])
        drawn = samples.draw(len(self.dataset), r.batch, generator, size=size, crop=crop,
                             scale=(first and r.first_scale) or r.scale, color=r.color, blur=r.blur,
                             mix=r.mix, num_classes=self.num_classes, aspect=r.aspect, edges=r.edges,
                             gamma=r.gamma, dusk=r.dusk, fog=r.fog, noise=r.noise, erase=r.erase,
                             extra=len(self.images) - len(self.dataset), extra_share=r.street_share,
                             recolor=r.recolor)
        return drawn.map(lambda t: t[self.rank::self.world].to(self.device))

    def forward_backward(self, drawn: AugmentParams, crop: tuple[int, int]) -> Tensor:
        """Compute gradients and loss of a batch; runs on the device only, so that a graph can hold it."""
        x, y = samples.augment(self.images, self.ids, drawn, crop=crop, mean=self.fill,
                               reflect=self.recipe.padding == 'reflect', sharp=self.recipe.edges > 0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bfloat16'):
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

    def train_step(self, drawn: AugmentParams, crop: tuple[int, int], position: float) -> Tensor:
        """Train on a batch and return its loss, on the device. `position`: as in `learning_rate`."""
        with self._explained(len(drawn.chosen), crop):
            loss = self._updated(drawn, crop, position)
        self.step += 1
        if self.averaged is not self.network:
            self._average(position)
        return loss

    @contextmanager
    def _explained(self, count: int, crop: tuple[int, int]) -> Iterator[None]:
        """Say in one line what is to be done where a step has no memory, or torch's compiler fails."""
        try:
            yield
        except RuntimeError as e:
            if cuda_graphs.out_of_memory(e):
                raise TrainError(f'no memory on {device_name(self.device)} for {count} crops of '
                                 f'{crop[1]}x{crop[0]} pixels: {one_line(e)}. Give a smaller --batch or '
                                 '--crop, or free memory there') from e
            if type(e).__module__.startswith(('torch._dynamo.', 'torch._inductor.')):
                said = str(e).strip().splitlines()
                raise TrainError(f"mode is 'compile', but torch could not compile a training step "
                                 f"({one_line(said[0], 300) if said else type(e).__name__}): choose mode "
                                 f"'{'graph' if self.device.type == 'cuda' else 'eager'}'") from e
            raise

    def _updated(self, drawn: AugmentParams, crop: tuple[int, int], position: float) -> Tensor:
        """Update the weights with a batch and return its loss."""
        if crop not in self._steps:
            # Crops grow once in a run and never shrink again: what the first graph holds is not needed.
            self._steps.clear()
            self.learner.zero_grad(set_to_none=True)
            self._steps[crop] = self._prepare(drawn, crop)
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.step, position, self.total, self.recipe)
        if self.drops or self.recipe.dropout:  # the same channels in a resumed run
            torch.manual_seed((self.recipe.seed * 1_000_003 + self.step) * self.world + self.rank)
        loss = self._steps[crop](drawn)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.clip)
        self.optimizer.step()
        return loss

    def normalise(self, x: Tensor) -> Tensor:
        return self._normalise(x).contiguous(memory_format=self.layout)

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as a dict that torch.save can write."""
        return {'recipe': self.recipe.plain(), 'data': self.data, 'step': self.step,
                'learner': self.learner.state_dict(),
                'average': None if self.averaged is self.network else self.averaged.state_dict(),
                'averages': self.averages, 'precisions': self.precisions,
                'layout': [device_name(self.device), str(self.layout)],
                'optimizer': self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.step = state['step']
        self.learner.load_state_dict(state['learner'])
        if self.averaged is not self.network:
            self.averaged.load_state_dict(state['average'])
        # Older checkpoints have neither of the two.
        self.averages = state.get('averages', 0)
        used = state.get('precisions', [state['recipe']['precision']])
        self.precisions = used if used[-1] == self.precision else [*used, self.precision]
        self.optimizer.load_state_dict(state['optimizer'])
        # Moments must have the memory layout of their weights; the earlier run may have used another layout.
        for parameter, moments in self.optimizer.state.items():
            moments.update({k: torch.empty_like(parameter).copy_(v) for k, v in moments.items()
                            if isinstance(v, Tensor) and v.shape == parameter.shape})

    def card(self, metrics: dict[str, Any]) -> weights.Card:
        """Describe the weights: how they were trained, on what, and what was measured."""
        d, r = self.dataset, self.recipe
        made = {'device': device_name(self.device), 'processes': self.world, 'torch': torch.__version__,
                'precisions': self.precisions}
        mean, std = ((float(a), float(b), float(c)) for a, b, c in (self.mean, self.std))
        return weights.Card(
            network=r.network, options=r.options, labels=d.labels, mean=mean, std=std,
            resolution=(self.images.shape[3], self.images.shape[2]), dataset=d.name, split=d.split,
            recipe=r.plain() | {'steps': self.step} | made | self._sources(), metrics=metrics,
            license=d.license, source=d.source)

    def _sources(self) -> dict[str, Any]:
        """Return the names of the weights files that this run learned from, and the recipe of the first."""
        r = self.recipe
        found: dict[str, Any] = {'teachers': [Path(teacher).name for teacher in r.teachers]}
        if self.start:
            found |= {'init': Path(r.init).name, 'init_recipe': self.start.recipe}
        return found

    def _prepare(self, drawn: AugmentParams, crop: tuple[int, int]) -> Callable[[AugmentParams], Tensor]:
        """Return `forward_backward` for a crop size: eager, or as a CUDA graph of one launch."""
        def eager(batch: AugmentParams) -> Tensor:
            self.learner.zero_grad(set_to_none=True)
            return self.forward_backward(batch, crop)

        if self.device.type != 'cuda' or self.mode == 'eager':
            return eager
        static = drawn.map(torch.clone)
        before = copy.deepcopy(self.network.state_dict())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles, and lets cuDNN choose its kernels, before the capture
                eager(static)
        torch.cuda.current_stream().wait_stream(side)
        # Where a gradient is None during the capture, each replay overwrites it instead of adding to it.
        self.learner.zero_grad(set_to_none=True)
        kept: list[Tensor] = []
        try:
            graph = cuda_graphs.capture(lambda: kept.append(self.forward_backward(static, crop)), side,
                                        torch.cuda.graph_pool_handle())
        except cuda_graphs.CaptureError as e:
            log.warning('no CUDA graph: %s; the training steps run eagerly, which is slower', e)
            return eager
        finally:
            self.network.load_state_dict(before)  # the warm-up changed the running statistics
        # Each graph writes into gradient tensors of its own, and there is one graph per crop size.
        gradients_of = [(p, p.grad) for p in self.learner.parameters()]

        def replay(batch: AugmentParams) -> Tensor:
            for p, gradient in gradients_of:
                p.grad = gradient
            for to, source in zip(static, batch):
                if to is not None and source is not None:
                    to.copy_(source)
            graph.replay()
            return kept[0]

        return replay

    def _place(self, layout: torch.memory_format) -> None:
        self.layout = layout
        self.network.to(memory_format=layout)  # type: ignore[call-overload]
        self._normalise = normaliser(self.mean, self.std, self.device)

    def _seconds_in(self, layout: torch.memory_format) -> float:
        """Return the seconds that ten steps take in a layout; the faster one depends on the GPU and cuDNN."""
        self._place(layout)
        drawn = self.draw(0, self.recipe.crop).map(lambda t: t[:self.recipe.batch])
        before = copy.deepcopy(self.network.state_dict())
        with self._explained(len(drawn.chosen), self.recipe.crop):
            step = self._prepare(drawn, self.recipe.crop)
            step(drawn)
            torch.cuda.synchronize()
            began = time.monotonic()
            for _ in range(10):
                step(drawn)
            torch.cuda.synchronize()
            seconds = time.monotonic() - began
        self.network.load_state_dict(before)
        self.learner.zero_grad(set_to_none=True)
        log.info('%s: %.1f images/s in %s', self.recipe.network, 10 * len(drawn.chosen) / seconds, layout)
        return seconds

    @torch.no_grad()
    def _average(self, position: float) -> None:
        if self.recipe.swa:
            # Before the last part of the run the average is a copy of the weights.
            self.averages += position >= (1 - self.recipe.swa) * self.total
            decay = 1 - 1 / max(1, self.averages)
        else:
            # A lower decay in the first steps removes the random start from the average.
            decay = min(self.recipe.ema, self.step / (10 + self.step))
        torch._foreach_lerp_(*self._real, 1 - decay)
        if self._whole[0]:
            torch._foreach_copy_(*self._whole)

    def _add_street(self) -> None:
        """Append frames of the synthetic street to the images, as many as the data set has."""
        height, width = self.images.shape[2:]
        ids_of = _translation(labels.load('camvid'), self.dataset.labels)
        count = len(self.dataset)
        samples.check_room(self.device, 3 * count, height, width, 'the synthetic street')  # with torch.cat
        frames, ids = torch.empty_like(self.images), torch.empty_like(self.ids)
        for i in tqdm(range(count), 'synthetic street', leave=False, unit='img', disable=None):
            place, shot = divmod(i, FRAMES_PER_STREET)
            if not shot:
                street = Street(width, height, self.recipe.seed * 10_007 + place)
            rgb, found = street.render(13.0 * shot)
            frames[i] = torch.from_numpy(rgb).permute(2, 0, 1)
            ids[i] = torch.from_numpy(ids_of[found])
        self.images, self.ids = torch.cat([self.images, frames]), torch.cat([self.ids, ids])



def _translation(source: LabelSet, target: LabelSet) -> np.ndarray:
    """Return a table (256,) uint8 from class ids of one label set to another's, void where missing."""
    table = np.full(256, 255, np.uint8)
    shared = [name for name in source.names if name in target.names]
    if not shared:
        raise TrainError(f'label set {target.name!r} has none of the classes of the synthetic street '
                         f'({", ".join(source.names)}): leave out --street-share')
    for name in shared:
        table[source.names.index(name)] = target.names.index(name)
    return table


def _optimizer(network: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimiser. Weight decay applies to convolutions only, unless the recipe has `decay_all`."""
    learned = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in learned if p.ndim > 1 or recipe.decay_all]
    rest = [p for p in learned if p.ndim <= 1 and not recipe.decay_all]
    groups: list[dict[str, Any]] = [{'params': decayed, 'weight_decay': recipe.weight_decay}]
    if rest:
        groups.append({'params': rest, 'weight_decay': 0.0})
    fused = device.type in ('cpu', 'cuda')  # one call for all parameters, not a dozen for each
    if recipe.optimizer == 'sgd':
        return torch.optim.SGD(groups, recipe.lr, momentum=0.9, fused=fused)
    if recipe.optimizer == 'adam':
        return torch.optim.Adam(groups, recipe.lr, fused=fused)
    return torch.optim.AdamW(groups, recipe.lr, fused=fused)
