# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of bags and data sets: every frame, in order, without ROS, on one machine or on many."""
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
import logging
import os
from pathlib import Path
import tempfile
import threading
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from .. import __version__, bags, files, image_folders, machine, weights
from ..bags import BagError
from ..datasets import DataSet
from ..images import Range
from ..inference.segmenter import Segmenter
from . import recordings, text_report, workers
from .parts import Part, Parts, Recorder
from .progress import Progress, until_stopped
from .recordings import GroundTruthSource, RecordedFrame, Recording, Selection, Task
from .scorer import Scorer
from .scores import APART_NS, SAMPLES, Scores
from .settings import EvaluationError, ModelSpec, Run

log = logging.getLogger(__name__)
# In one process a part ends after so long. The first one is shorter: it tells whether the disk has room.
PART_S, FIRST_PART_S = 60.0, 10.0


@dataclass(frozen=True)
class Evaluation:
    """
    What was measured, and of what.

    `sources`: the description of each bag or data set. `model`: the network and how it ran, from
    `Segmenter.identity`. `device`: where it ran, from `Segmenter.device_name`. `parts`: what an evaluation
    that was stopped goes on with; remove them when the result is written. `corrupted`: what the split scores
    on worse images, from `corruptions.robustness`.
    """

    scores: Scores
    sources: list[dict[str, Any]]
    model: dict[str, str]
    device: str
    parts: Parts | None = field(default=None, kw_only=True)
    corrupted: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def result(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the result as reports take it, stamped; `options`: what the user asked for."""
        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [str(v) for v in value]
            return value if isinstance(value, (int, float)) else str(value)

        asked = {k: plain(v) for k, v in options.items() if v not in (None, '', [], False)}
        return {'format': text_report.FORMAT, **machine.stamp(self.device), 'options': asked,
                'model': self.model, 'sources': self.sources} | self.scores.result() | (
                    {'corrupted': self.corrupted} if self.corrupted else {})


def read_dataset(dataset: DataSet, apart_ns: int = APART_NS) -> Iterator[RecordedFrame]:
    """Read a data set's pairs by the stamps that `bag_writer.from_folder` gives them."""
    stamps = image_folders.folder_stamps([p.image for p in dataset.pairs], 30.0)
    order = sorted(range(len(dataset)), key=lambda i: stamps[i])
    samples = {order[k] for k in recordings.spread([('', stamps[i]) for i in order], SAMPLES, apart_ns)}
    for i in order:
        began = perf_counter()
        rgb, truth = dataset.read(i)
        yield RecordedFrame(f'{dataset.name}-{dataset.split}', i, stamps[i], rgb, truth,
                            1e3 * (perf_counter() - began), sample=i in samples)


def check_classes(dataset: DataSet, segment: Segmenter) -> None:
    """Raise `EvaluationError` if the weights know other classes than the data set has."""
    if segment.labels.names != dataset.labels.names:
        raise EvaluationError(f'the weights know {", ".join(segment.labels.names)}; {dataset.name} has '
                              f'{", ".join(dataset.labels.names)}')


def evaluate_dataset(dataset: DataSet, segment: Segmenter, *, batch: int = 1, apart_ns: int = APART_NS,
                     quiet: bool = False, smoothing: float = 0.0) -> Evaluation:
    """
    Score a data set's split; `EvaluationError` if the weights know other classes.

    `batch`, `smoothing`: see `Scorer`.
    """
    check_classes(dataset, segment)
    scores = Scores(segment.labels, truth=True, apart_ns=apart_ns)
    scores.counts['read'] = len(dataset)
    title = f'{dataset.name} {dataset.split}'
    scorer = Scorer(segment, scores, batch, smoothing=smoothing)
    with Progress(len(dataset), title, quiet) as progress, until_stopped() as stopped:
        for done, frame in enumerate(read_dataset(dataset, apart_ns), 1):
            scorer.add(frame)
            progress.update(1)
            if stopped.is_set():
                scores.counts['not_reached'] = len(dataset) - done
                break
    scorer.flush()
    sources: list[dict[str, Any]] = [{'name': title, 'frames': len(dataset)}]
    return Evaluation(scores, sources, _identity(segment, smoothing), segment.device_name())


def evaluate_bags(paths: Sequence[str | Path], model: ModelSpec, *, image_topic: str | None = None,
                  truth: GroundTruthSource | None = None, value_range: Range = 'full',
                  selection: Selection | None = None, run: Run | None = None) -> Evaluation:
    """
    Score bags, one after the other.

    The bags are scored in parts, here or by workers; the scores are the same. The first SIGINT or SIGTERM
    ends the evaluation after the frames in progress: the scores are those of the frames so far, and
    `counts['not_reached']` says how many are missing. A bag that can't be read is named and left out;
    `EvaluationError` if none is left.
    """
    run, truth = run or Run(), truth or GroundTruthSource()
    if model.smoothing and (run.batch > 1 or run.workers > 1 or run.dask or run.resume):
        raise EvaluationError('--smoothing needs every frame in its order, so it works without --batch, '
                              '--workers, --dask and --resume')
    for missing in (p for p in map(Path, paths) if not p.exists()):
        raise EvaluationError(f'{missing} does not exist')
    if twice := [p for p, n in Counter(map(os.path.realpath, paths)).items() if n > 1]:
        raise EvaluationError(f'{twice[0]} is named twice, and its frames would count twice')
    segment = model.load()
    found, sources, errors = [], [], []
    for path in paths:
        try:
            found.append(recordings.index_bag(path, image_topic, truth, selection))
            sources.append(found[-1].describe())
        except BagError as e:
            errors.append(str(e))
            sources.append({'name': recordings.named(path).name, 'path': str(path), 'frames': 0,
                            'error': str(e)})
    total = sum(len(r.chosen) for r in found)
    if not total:
        raise EvaluationError('; '.join(errors) or _no_frames(found, paths))
    for text in errors:
        log.warning('%s', text)
    if truth and not any(r.partners[n] is not None for r in found for n in r.chosen):
        raise EvaluationError(_no_truth(found, truth))
    choose_samples(found, run.apart_ns)
    model = replace(model, digest=weights.digest(model.path))
    # Not what follows from the selection, which is named by itself.
    own = [{k: v for k, v in s.items() if k not in ('frames', 'notes')} for s in sources]
    identity = {'version': __version__, 'sources': own, 'value_range': value_range,
                '--start, --duration or --every': asdict(selection or Selection()),
                'truth': asdict(truth), 'batch': run.batch,
                'model': asdict(replace(model, threads=0)) | segment.identity(), 'apart': run.apart_ns,
                'jpeg_quality': run.jpeg_quality}
    with nullcontext(run.parts) if run.parts else _temporary(run.out) as folder, \
            Parts(Path(folder), identity, total, out=run.out, resume=run.resume) as parts:
        with Progress(total, '', run.quiet, parts.frames()) as progress, until_stopped() as stopped:
            if run.dask or run.workers > 1:
                tasks = {}
                for i, r in enumerate(found):
                    for first, last in parts.missing(i, len(r.chosen)):
                        for task in r.tasks(run.frames_per_task, value_range, first, last):
                            tasks[Part(i, first, first + len(task.numbers))] = task
                            first += len(task.numbers)
                share = workers.on_dask if run.dask else workers.on_processes
                for part, scores, results in share(tasks, model, run, stopped):
                    parts.add(part, scores, results)
                    progress.update(part.last - part.first)
            else:
                for i, r in enumerate(found):
                    for first, last in parts.missing(i, len(r.chosen)):
                        task, = r.tasks(last - first, value_range, first, last)
                        _here(Part(i, first, last), task, segment, model, run, parts, progress, stopped)
        scores = Scores(segment.labels, bool(truth), run.apart_ns)
        for text in errors:
            scores.skip('bags_failed', text)
        for recording in found:
            scores.counts.update(recording.counts)
            for note in recording.notes:
                scores.skip(recordings.kind_of(note), note)
        parts.join(scores)
    if left := total - parts.frames():
        scores.counts['not_reached'] = left
    if not scores.counts['segmented']:
        if left:
            raise KeyboardInterrupt
        parts.remove()  # to go on from them would give nothing, either
        reasons = '; '.join(s['first'] for s in scores.skipped.values() if s['what'] == 'failed')
        raise EvaluationError(f'none of the {total} frames could be used, the first because of: {reasons}')
    return Evaluation(scores, sources, _identity(segment, model.smoothing), segment.device_name(),
                      parts=parts)


def choose_samples(found: Sequence[Recording], apart_ns: int) -> None:
    """Choose the frames that the report shows because they are spread evenly over all recordings."""
    frames = [(r, n) for r in found for n in r.chosen]
    for place in recordings.spread([(str(r.path), r.stamps[n]) for r, n in frames], SAMPLES, apart_ns):
        recording, number = frames[place]
        recording.samples.add(number)


def record(model: ModelSpec, dataset: DataSet, result: dict[str, Any]) -> str:
    """
    Write what was measured on a split into the card of the weights file; return a line about it.

    `result`: from `Evaluation.result`. Without scores of worse images, the card keeps those that were made
    with the same settings.
    """
    if result['miou'] is None:
        raise EvaluationError(f'no labelled pixel in {dataset.name} {dataset.split}: nothing to record')
    network, card = weights.load(model.path)
    split, before = dataset.split, card.metrics.get(dataset.split)
    file = Path(model.path)
    packaged = file.stem.removesuffix(f'-{dataset.name}')  # the name that the file has among packaged weights
    here = file.name if weights.is_path(file.name) else f'./{file.name}'  # or it would be a packaged name
    command = dataset.command(model.name if not weights.is_path(model.name) else
                              packaged if packaged != file.stem else here)
    if model.resolution:
        command += f' --resolution {model.resolution}'
    if model.precision != 'auto':
        command += f' --precision {model.precision}'
    measured = {'miou': round(result['miou'], 2), 'command': command,
                'iou': {name: round(v, 2) for name, v in result['iou'].items() if v is not None}}
    with_worse = command + ' --corrupt'
    if corrupted := result.get('corrupted'):
        corrupted = {k: np.round(v, 2).tolist() for k, v in corrupted.items()}
    elif isinstance(before, dict) and before.get('command') == with_worse:
        corrupted = before.get('corrupted')
    if corrupted:
        measured |= {'corrupted': corrupted, 'command': with_worse}
    weights.save(model.path, network, replace(card, metrics={**card.metrics, split: measured}))
    return f'{model.path}: metrics.{split}.miou = {measured["miou"]}'


def _here(run_of: Part, task: Task, segment: Segmenter, model: ModelSpec, run: Run, parts: Parts,
          progress: Progress, stopped: threading.Event) -> None:
    """Score a task in this process; what is done becomes a part each minute, and when it is stopped."""
    scorer = Scorer(segment, Scores(segment.labels, bool(task.truth), run.apart_ns), run.batch,
                    smoothing=model.smoothing)
    at = run_of.first
    items = recordings.read(task, segment.labels)
    while at < run_of.last and not stopped.is_set():
        first, scores = at, Scores(segment.labels, bool(task.truth), run.apart_ns)
        ends = monotonic() + (PART_S if parts.done else FIRST_PART_S)
        bag = parts.bag() if run.out else None
        with Recorder(bag, segment.labels, model.name, run.jpeg_quality) if bag else nullcontext() \
                as recorder:
            scorer.scores, scorer.recorder = scores, recorder
            for item in items:
                scorer.add(item)
                if item.counted:
                    at += 1
                    progress.update(1)
                    # Not within a batch: the same frames go through the network together each time.
                    if scorer.idle and (stopped.is_set() or monotonic() > ends):
                        break
            else:
                at = run_of.last
            scorer.flush()
        parts.add(replace(run_of, first=first, last=at), scores, bag)


def _identity(segment: Segmenter, smoothing: float) -> dict[str, str]:
    return segment.identity() | ({'smoothing': f'{smoothing:g}'} if smoothing else {})


def _temporary(out: Path | None) -> tempfile.TemporaryDirectory:
    """Make a folder for the parts, beside the bag that they become."""
    if out:
        files.make_folder(out.parent)
    return tempfile.TemporaryDirectory(prefix='.lightseg_', dir=out.parent if out else None)


def _no_frames(found: list[Recording], paths: Sequence[str | Path]) -> str:
    names = ', '.join(str(p) for p in paths)
    spans = [(max(r.times) - min(r.times)) / bags.NS for r in found if r.times]
    if not spans:
        return f'no frames in {names}: the image topics hold no message'
    return f'no frames in {names} at --start: the longest of them lasts {max(spans):.1f} s'


def _no_truth(found: list[Recording], truth: GroundTruthSource) -> str:
    stamps = [s for r in found for s in r.stamps]
    return (f'no label of {truth.topic or truth.folder} lies within {truth.tolerance_ns / 1e6:g} ms of a '
            f'frame; the frames are stamped {min(stamps) / 1e9:.3f} to {max(stamps) / 1e9:.3f} s. Give '
            '--tolerance, or name the files by stamp in ns')
