# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A training run: the loop over epochs, with log, checkpoints and validation, up to a weights file."""
from collections.abc import Callable
from dataclasses import replace
import json
import logging
import math
import operator
import os
from pathlib import Path
import sys
import time
from typing import Any

import torch
from torch import distributed, nn, Tensor
from tqdm import tqdm

from .. import cuda_graphs, data_check, files, weights
from ..datasets import DataSet
from ..metrics import ConfusionMatrix
from . import calibration, checkpoint, samples, showing
from .devices import TrainError
from .learner import Normalise
from .recalibration import recalibrate
from .recipes import Recipe
from .trainer import learning_rate, Trainer

log = logging.getLogger(__name__)

CONFUSION = 'confusion.json'
SHOWN = 4  # validation images in predictions.png
# The expected time is told after so many steps or seconds, the first step left out: it compiles.
TIMED_STEPS, TIMED_S = 10, 3.0


def train(recipe: Recipe, dataset: DataSet, out: str | Path, *, validation: DataSet | None = None,
          validate_every: int = 5, device: str = 'auto', mode: str = 'auto',
          size: tuple[int, int] | None = None, resume: bool = False,
          time_limit_s: float = math.inf, checkpoint_every_s: float = 60.0, allow_empty: bool = False,
          stop: Callable[[], bool] = lambda: False) -> Path | None:
    """
    Train and write `<out>/<network>-<dataset>.safetensors`; returns its path.

    `out` also gets `last.pt` (the checkpoint, every `checkpoint_every_s`), `log.csv`, `curve.png` and, with
    `validation`, `iou.csv`, `predictions.png` and `confusion.json`, its confusion matrix. With `resume`, a
    run continues from the checkpoint in `out`, if there is one. On a CPU the result has the same bits as that
    of an uninterrupted run; on a GPU it differs by rounding. `size`: (height, width) in pixels that all
    images are resized to.

    `validation` is scored every `validate_every` epochs and at the end, and so is a sample of training images
    of the same number, always the same ones; the gap between the two scores is overfitting. The recipe's
    `keep` and `patience` need it. At the end it gives the temperature of the confidence, too.

    The data is checked first, see `data_check.before_training`; `allow_empty` lets classes have no pixel.

    Returns None if `time_limit_s` passed, or if `stop` returned true, which is called before every step;
    resume such a run to finish it. Under torchrun all processes call this with an `out` that all of them can
    read; the first process writes. `TrainError` if a checkpoint belongs to another recipe or other data, or
    exists and `resume` is not set.
    """
    began = time.monotonic()
    out = Path(out)
    path = out / 'last.pt'
    if path.exists() and not resume:
        raise TrainError(f'{path} exists; continue with --resume, or choose another --out')
    if (recipe.keep == 'best' or recipe.patience) and not validation:
        raise TrainError('--keep best and --patience go by the validation: give --validate or --hold-out too')
    if not path.exists() and int(os.environ.get('RANK', 0)) == 0:
        for warning in data_check.before_training(dataset, allow_empty=allow_empty, scaled=bool(size)):
            log.warning('%s', warning)
        both = {p.image for p in dataset.pairs} & {p.image for p in validation.pairs} if validation else ()
        if both and validation:
            log.warning('%d of the %d images of the validation are trained on: its score and the temperature '
                        'say nothing about other images', len(both), len(validation))
    state = checkpoint.read(path) if path.exists() else {}
    trainer = Trainer(recipe, dataset, device=device, mode=mode, size=size, layout=state.get('layout', ()))
    files.make_folder(out)
    held = None
    if validation and trainer.rank == 0:
        held = samples.to_device(validation, trainer.device, size)
    run = _Run(trainer, out, validation, held, validate_every, began)
    if state:
        run.restore(path, state)
    result = run.loop(time_limit_s, checkpoint_every_s, stop)
    if trainer.world > 1:  # until the first process has written its files
        distributed.barrier()
        distributed.destroy_process_group()
    return result


@torch.no_grad()
def validate(network: nn.Module, images: Tensor, labels: Tensor, normalise: Normalise, num_classes: int,
             batch: int = 8) -> ConfusionMatrix:
    """
    Score a network in eval mode at the images' own size, at most `batch` images at a time.

    images (N, 3, H, W) uint8 RGB, labels (N, H, W) uint8; ids from `num_classes` on are void. The counts stay
    on the device until the end, so that only one transfer waits for it.
    """
    k = num_classes
    counts = torch.zeros(k * k + 1, dtype=torch.int64, device=images.device)
    done = 0
    while done < len(images):
        x, y = images[done:done + batch], labels[done:done + batch]
        try:
            pair = y.long() * k + network(normalise(x.float())).argmax(1)
            counts += torch.bincount(pair.where(y < k, k * k).flatten(), minlength=k * k + 1)
        except RuntimeError as e:
            if len(x) == 1 or not cuda_graphs.out_of_memory(e):
                raise
        else:
            done += len(x)
            continue
        # The GPU has no memory for so many beside the training step. Outside of the `except`, whose error
        # keeps what it has computed.
        batch = len(x) // 2
        cuda_graphs.free_cache()
    matrix = ConfusionMatrix(k)
    matrix.counts[:, :k] = counts[:-1].view(k, k).cpu().numpy()
    return matrix


class _Run:
    """
    What a run keeps beside its trainer: the rows of its log, its clock and the loss of the current epoch.

    `held`: images and labels of the validation split on the device, in the first process only. `seen`: as
    many of the training images.
    """

    def __init__(self, trainer: Trainer, out: Path, validation: DataSet | None,
                 held: tuple[Tensor, Tensor] | None, validate_every: int, began: float):
        self.trainer, self.recipe, self.out, self.began = trainer, trainer.recipe, out, began
        self.validation, self.held, self.validate_every = validation, held, validate_every
        self.first = trainer.rank == 0
        self.seen = self._sample(len(held[0])) if held else None
        self.rows: list[dict[str, Any]] = []
        self.seconds_before = 0.0  # of training in earlier calls of a resumed run
        self.opened = self.epoch_began = time.monotonic()
        self.loss_sum, self.counted = torch.zeros((), device=trainer.device), 0
        self.done = 0  # steps of this epoch in this call
        self.miou: float | None = None
        self.train_miou: float | None = None
        self.worst: str | None = None  # the classes of the lowest IoU
        self.best: dict[str, Any] | None = None  # epoch, mIoU and weights of the best validation
        self.plateau = False
        self.timed_steps, self.timed_s = -1, 0.0  # of this call; -1 before the first step

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        checkpoint.check(path, state, self.recipe, self.trainer.data)
        self.trainer.load_state(state)
        self.rows, self.seconds_before, self.counted = state['rows'], state['seconds'], state['counted']
        self.loss_sum += state['loss_sum']
        scored: dict[str, Any] = next((r for r in reversed(self.rows) if r['miou'] is not None), {})
        self.miou, self.train_miou = scored.get('miou'), scored.get('train_miou')
        self.best = state.get('best')
        self.plateau = self._no_better()

    def loop(self, time_limit_s: float, checkpoint_every_s: float, stop: Callable[[], bool]) -> Path | None:
        """Train to the end of the schedule, or until it is time to stop."""
        trainer, recipe, total = self.trainer, self.recipe, self.trainer.total
        self.opened = self.epoch_began = saved = time.monotonic()
        if self.first and (left := total - trainer.step) > 0:
            budget = max(0.0, recipe.budget_s - self.seconds_before)
            epochs = math.ceil(left / trainer.steps)
            log.info('%s', showing.planned(recipe.network, epochs, len(trainer.dataset), left, recipe.batch,
                                           budget))
        # With a time budget the bar counts seconds, since the number of steps is not known.
        length, unit = (round(recipe.budget_s), 's') if recipe.budget_s else (total, 'step')
        reached = min(length, round(length * self._position(trainer.step, self.seconds_before) / total))
        self.bar = tqdm(total=length, initial=reached, unit=unit, desc=recipe.network, dynamic_ncols=True,
                        disable=not self.first, mininterval=0.5 if sys.stderr.isatty() else 30)
        share = recipe.batch // trainer.world
        drawn = None
        while True:
            epoch, i = divmod(trainer.step, trainer.steps)
            seconds, spent = self._clock()
            at = self._position(trainer.step, seconds)
            self.bar.update(min(length, round(length * at / total)) - self.bar.n)
            if at >= total or self.plateau:
                break
            if spent > time_limit_s or stop():
                why = 'the time limit' if spent > time_limit_s else 'request'
                self._stop_early(epoch, seconds, why)
                return None
            if drawn is None or i == 0:
                early = self._position(epoch * trainer.steps, seconds) < recipe.first_share * total
                crop = recipe.first_crop if early else recipe.crop
                drawn = trainer.draw(epoch, crop, first=early)
                self.done, self.epoch_began = 0, time.monotonic()
            batch = slice(i * share, (i + 1) * share)
            began = time.monotonic()
            self.loss_sum += trainer.train_step(drawn.map(operator.itemgetter(batch)), crop, at)
            self._time(time.monotonic() - began, crop, seconds)
            self.counted, self.done = self.counted + 1, self.done + 1
            if i + 1 == trainer.steps:
                self._end_epoch(epoch, at, seconds)
            if time.monotonic() - saved > checkpoint_every_s:
                self._save(seconds)
                saved = time.monotonic()
        if self.counted:
            self._end_epoch(epoch, at, seconds)
        self.bar.close()
        if not self.rows:
            raise TrainError(f'budget_s is {recipe.budget_s}, which passed before the first step; raise it')
        return self._finish(seconds)

    def _clock(self) -> tuple[float, float]:
        """Return seconds of training in all calls, and seconds of this call; rank 0's under torchrun."""
        now = time.monotonic()
        seconds = torch.tensor([self.seconds_before + now - self.opened, now - self.began],
                               dtype=torch.float64)
        if self.trainer.world > 1:
            distributed.broadcast(seconds, 0)
        return float(seconds[0]), float(seconds[1])

    def _position(self, step: int, seconds: float) -> float:
        """Return the step of the schedule; a time budget may move it ahead of the steps that are done."""
        budget = self.recipe.budget_s
        return max(step, self.trainer.total * seconds / budget) if budget else step

    def _time(self, step_s: float, crop: tuple[int, int], seconds: float) -> None:
        """Add up the time of a call's first steps, and tell how long the rest will take; once."""
        if self.timed_steps >= TIMED_STEPS:
            return
        began = time.monotonic()
        last = self.timed_steps == TIMED_STEPS - 1 or self.timed_s + step_s > TIMED_S
        if self.timed_steps < 0 or last:
            float(self.loss_sum)  # waits for the device
        if self.timed_steps >= 0:
            self.timed_s += step_s + time.monotonic() - began
        self.timed_steps += 1
        if self.timed_steps and last:
            each, trainer, recipe = self.timed_s / self.timed_steps, self.trainer, self.recipe
            self.timed_steps = TIMED_STEPS
            left = self._left(each, crop)
            epochs = math.ceil((trainer.total - trainer.step) / trainer.steps)
            if recipe.budget_s and left > recipe.budget_s - seconds:
                epochs = math.ceil(epochs * (recipe.budget_s - seconds) / left)
                left = recipe.budget_s - seconds
            if self.first and epochs > 0:
                self.bar.clear()
                log.info('%s', showing.expected(recipe.network, left, epochs, len(trainer.dataset),
                                                recipe.batch, each))

    def _left(self, step_s: float, crop: tuple[int, int]) -> float:
        """Return the seconds of the steps to come, if steps on `crop` take `step_s`: pixels cost time."""
        trainer, recipe = self.trainer, self.recipe
        first = trainer.steps * math.ceil(recipe.first_share * recipe.epochs)
        small = max(0, first - trainer.step)
        pixels = small * math.prod(recipe.first_crop) + (
            trainer.total - trainer.step - small) * math.prod(recipe.crop)
        return step_s * pixels / math.prod(crop)

    def _end_epoch(self, epoch: int, at: float, seconds: float) -> None:
        """Add a row to the log, and validate if it is time to."""
        trainer, recipe = self.trainer, self.recipe
        queued = time.monotonic()
        mean_loss = float(self.loss_sum) / self.counted  # waits for the device
        ended = time.monotonic()
        if not math.isfinite(mean_loss):
            raise TrainError(f'the loss is {mean_loss} in epoch {epoch + 1}: lower --lr, or train with '
                             '--precision float32')
        due = (epoch + 1) % self.validate_every == 0
        iou = None
        if self.held and due:
            iou = _iou(self._validate(epoch + 1))
            self.worst = showing.worst_classes(iou, trainer.dataset.labels.names)
            self._keep(epoch + 1, self.miou)
            trainer.training_mode()
        row = {'epoch': epoch + 1, 'loss': round(mean_loss, 4), 'miou': self.miou if due else None,
               'train_miou': self.train_miou if due else None, 'iou': iou,
               'lr': round(learning_rate(trainer.step, at, trainer.total, recipe), 6),
               'seconds': round(seconds, 1),
               'images_per_s': round(self.done * recipe.batch / (ended - self.epoch_began), 1),
               'waited': round((ended - queued) / (ended - self.epoch_began), 2)}
        self.rows.append(row)
        self.loss_sum.zero_()
        self.counted = 0
        self.bar.set_postfix(epoch=epoch + 1, loss=row['loss'], miou=self.miou, train_miou=self.train_miou,
                             worst=self.worst, img_s=row['images_per_s'])
        if recipe.patience:
            self.plateau = self._no_better()

    def _no_better(self) -> bool:
        """Whether the last `patience` validations were not better than the best one before them."""
        scores = [r['miou'] for r in self.rows if r['miou'] is not None]
        patience = self.recipe.patience
        found = bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience
        if self.trainer.world > 1:  # only the first process validates
            told = torch.tensor(found, dtype=torch.uint8)
            distributed.broadcast(told, 0)
            found = bool(told)
        return found

    def _keep(self, epoch: int, miou: float | None) -> None:
        """Keep the weights if their score is the best so far, and if the best are wanted."""
        if self.recipe.keep == 'best' and miou is not None and (not self.best or miou > self.best['miou']):
            kept = {k: v.detach().to('cpu', copy=True) for k, v in self.trainer.averaged.state_dict().items()}
            self.best = {'epoch': epoch, 'miou': miou, 'weights': kept}

    def _sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Choose training images to score; they depend on the seed only."""
        trainer = self.trainer
        generator = torch.Generator().manual_seed(self.recipe.seed)
        chosen = torch.randperm(len(trainer.dataset), generator=generator)[:count].to(trainer.device)
        return trainer.images[chosen], trainer.ids[chosen]

    def _validate(self, epoch: int) -> ConfusionMatrix:
        """Score the validation split, and the sample of training images, with the weights as they are."""
        assert self.held and self.seen
        self._draw(epoch)
        matrix = self._score(*self.held)
        self.miou, self.train_miou = round(matrix.miou(), 2), round(self._score(*self.seen).miou(), 2)
        return matrix

    @torch.no_grad()
    def _draw(self, epoch: int) -> None:
        """Write predictions.png: the same few validation images each time, spread over the split."""
        assert self.held
        trainer, (images, ids) = self.trainer, self.held
        chosen = torch.linspace(0, len(images) - 1, min(SHOWN, len(images))).round().long().to(images.device)
        network = trainer.averaged.eval()
        found = torch.cat([network(trainer.normalise(images[i:i + 1].float())).argmax(1).byte()
                           for i in chosen.tolist()])
        showing.draw_predictions(
            self.out / 'predictions.png', images[chosen].permute(0, 2, 3, 1).cpu().numpy(),
            ids[chosen].cpu().numpy(), found.cpu().numpy(), trainer.dataset.labels, f'epoch {epoch}')

    def _score(self, images: Tensor, labels: Tensor) -> ConfusionMatrix:
        trainer = self.trainer
        return validate(trainer.averaged.eval(), images, labels, trainer.normalise, trainer.num_classes)

    def _save(self, seconds: float) -> None:
        if not self.first:
            return
        checkpoint.write(self.out / 'last.pt', self.trainer.state() | {
            'rows': self.rows, 'seconds': seconds, 'counted': self.counted, 'best': self.best,
            'loss_sum': float(self.loss_sum)})
        if self.rows:
            self._write_logs()

    def _write_logs(self) -> None:
        showing.write_logs(self.out, self.rows, self.trainer.dataset.labels.names)

    def _plot(self) -> None:
        showing.plot(self.out / 'curve.png', self.rows, self.trainer.dataset.labels, self.recipe.network)

    def _stop_early(self, epoch: int, seconds: float, why: str) -> None:
        self._save(seconds)
        if self.rows and self.first:
            self._plot()
        self.bar.close()
        log.warning('%s: stopped in epoch %d by %s; continue with --resume', self.recipe.network, epoch + 1,
                    why)

    def _recalibrate(self) -> dict[str, int]:
        """
        Recompute the batch norms' statistics, unless the validation is better with those of the training.

        It is where crops are larger than the images, so that all the training was on images with a margin.
        Returns what the card says of the recipe then.
        """
        trainer, network = self.trainer, self.trainer.averaged
        before = self._score(*self.held).miou() if self.held else -math.inf
        old = {k: v.clone() for k, v in network.state_dict().items()}
        count = recalibrate(network, trainer.images[:len(trainer.dataset)], trainer.normalise)
        after = self._score(*self.held).miou() if self.held else math.inf
        name, change = self.recipe.network, f': mIoU {before:.2f} -> {after:.2f}' if self.held else ''
        if after < before:
            network.load_state_dict(old)
            log.warning('%s: recalibrating %d batch norms made the validation worse%s; those of the training '
                        'are kept', name, count, change)
            return {'recalibrate': False}
        log.info('%s: recalibrated %d batch norms%s', name, count, change)
        return {}

    def _finish(self, seconds: float) -> Path:
        """Score the finished network, and write weights, log, checkpoint and curve."""
        trainer, recipe = self.trainer, self.recipe
        path = self.out / f'{recipe.network}-{trainer.dataset.name}.safetensors'
        if not self.first:
            return path
        # The checkpoint keeps the statistics of training, so that resuming a finished run changes nothing.
        self._save(seconds)
        if self.plateau:
            log.info('%s: the last %d validations were not better than the best: stopped after epoch %d',
                     recipe.network, recipe.patience, self.rows[-1]['epoch'])
        metrics: dict[str, Any] = {}
        calibrated: dict[str, Any] = {}
        kept: dict[str, int] = {}
        if self.held and recipe.keep == 'best':
            last = self.rows[-1]['epoch']
            if self.rows[-1]['miou'] is None:  # the last weights may be the best ones
                self._keep(last, round(self._score(*self.held).miou(), 2))
            assert self.best
            trainer.averaged.load_state_dict(self.best['weights'])
            kept = {'kept_epoch': self.best['epoch']}
            log.info('%s: the weights of epoch %d of %d are kept, mIoU %.2f', recipe.network,
                     self.best['epoch'], last, self.best['miou'])
        if recipe.recalibrate:
            kept |= self._recalibrate()
        if self.held and self.validation:
            epoch = kept.get('kept_epoch', self.rows[-1]['epoch'])
            matrix = self._validate(epoch)
            row = next(r for r in self.rows if r['epoch'] == epoch)
            row.update(miou=self.miou, train_miou=self.train_miou, iou=_iou(matrix))
            self._write_logs()
            metrics[self.validation.split] = _metrics(matrix, recipe.network, self.validation)
            calibrated = calibration.calibrate(trainer.averaged, *self.held, trainer.normalise,
                                               trainer.num_classes)
            if calibrated:
                calibrated['data'] = f'{self.validation.name} {self.validation.split}'
                log.info('%s: %s', recipe.network, calibration.text(calibrated))
            files.write_whole(self.out / CONFUSION, json.dumps(metrics[self.validation.split] | {
                'split': self.validation.split, 'classes': trainer.dataset.labels.names,
                'train_miou': self.train_miou, 'counts': matrix.counts.tolist()}, indent=1) + '\n')
        card = trainer.card(metrics)
        weights.save(path, trainer.averaged, replace(
            card, recipe=card.recipe | kept, calibration=calibrated))
        self._plot()
        epochs = showing.counted(self.rows[-1]['epoch'], 'epoch')
        log.info('%s: %s, %.0f s, %s', recipe.network, epochs, seconds, _speed(self.rows))
        return path


def _speed(rows: list[dict[str, Any]]) -> str:
    """Say how many images per second were trained and the limit: the host waits for a busy device."""
    recent = rows[-20:]
    waited = sum(r['waited'] for r in recent) / len(recent)
    limit = 'the device' if waited > 0.05 else 'the host (on a CPU they are the same)'
    return f'{sum(r["images_per_s"] for r in recent) / len(recent):.1f} images/s, limited by {limit}'


def _iou(matrix: ConfusionMatrix) -> list[float | None]:
    return [round(float(v), 2) if math.isfinite(v) else None for v in matrix.iou()]


def _metrics(matrix: ConfusionMatrix, network: str, dataset: DataSet) -> dict[str, Any]:
    """Return what a card says about a score; a class that does not occur has no IoU."""
    iou = {name: v for name, v in zip(dataset.labels.names, _iou(matrix)) if v is not None}
    return {'miou': round(matrix.miou(), 2), 'iou': iou, 'command': dataset.command(network)}
