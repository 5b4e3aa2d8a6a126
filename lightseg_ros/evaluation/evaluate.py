# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of bags and data sets: every frame, in order, without ROS, on one machine or on many."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
import json
import multiprocessing
import os
from pathlib import Path
import platform
import threading
from time import perf_counter
from typing import Any

import cv2
from tqdm import tqdm

from .. import bags, machine, weights
from ..bags import BagError
from ..datasets import DataSet
from ..health import Health
from ..images import Range
from ..inference import segmenter
from ..inference.segmenter import Prediction, Segmenter
from ..labels import LabelSet
from . import recordings, text_report
from .recordings import GroundTruthSource, RecordedFrame, Recording, Skip, Task
from .scores import Consistency, Scores

FRAMES_PER_TASK = 200
DASK_TIMEOUT_S = 10.0


class EvaluationError(ValueError):
    """An evaluation that can't start or has nothing to score; the text says what is missing."""


@dataclass(frozen=True)
class ModelSpec:
    """Which network runs how: the arguments of `Segmenter.load`. `digest` is checked where it is set."""

    name: str
    device: str = 'auto'
    resolution: str | None = None
    resize_mode: str = 'fit'
    backend: str = 'auto'
    precision: str = 'auto'
    threads: int = 0
    digest: str = ''

    @property
    def path(self) -> Path:
        """Path of the weights file; `WeightsError` if a packaged one is not there."""
        return weights.resolve(self.name)

    def load(self) -> Segmenter:
        """Build the segmenter; `EvaluationError` if the file is not the one whose digest was given."""
        if self.digest and weights.digest(self.path) != self.digest:
            raise EvaluationError(f'{self.path} on {platform.node()} is another file than the one of the '
                                  'same name here (SHA-256 differs): copy it there')
        return segmenter.load(self.path, self.device, self.resolution, resize_mode=self.resize_mode,
                              backend=self.backend, precision=self.precision, threads=self.threads)


@dataclass(frozen=True)
class Evaluation:
    """
    What was measured, and of what.

    `sources`: the description of each bag or data set. `model`: the network and how it ran, from
    `Segmenter.identity`. `device`: where it ran, from `Segmenter.device_name`.
    """

    scores: Scores
    sources: list[dict[str, Any]]
    model: dict[str, str]
    device: str

    def result(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the result as reports take it, stamped; `options`: what the user asked for."""
        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [str(v) for v in value]
            return value if isinstance(value, (int, float)) else str(value)

        asked = {k: plain(v) for k, v in options.items() if v not in (None, '', [], False)}
        return {'format': text_report.FORMAT, **machine.stamp(self.device), 'options': asked,
                'model': self.model, 'sources': self.sources} | self.scores.result()


def read_dataset(dataset: DataSet) -> Iterator[RecordedFrame]:
    """Read a data set's pairs by the stamps that `bags.from_folder` gives them."""
    stamps = bags.folder_stamps([p.image for p in dataset.pairs], 30.0)
    for i in sorted(range(len(dataset)), key=lambda i: stamps[i]):
        began = perf_counter()
        rgb, truth = dataset.read(i)
        yield RecordedFrame(f'{dataset.name}-{dataset.split}', i, stamps[i], rgb, truth,
                    1e3 * (perf_counter() - began))


def score(frames: Iterable[RecordedFrame | Skip], segment: Segmenter, scores: Scores, *, batch: int = 1,
          done: Callable[[RecordedFrame, Prediction], None] | None = None,
          progress: Callable[[int], Any] = lambda n: None) -> Scores:
    """
    Segment frames in order and add them to the scores, which are returned.

    `batch`: how many go through the network at once. `done` gets every result, with overlay and confidence.
    """
    consistency = Consistency()
    waiting: list[RecordedFrame] = []
    sizes: set[tuple[int, ...]] = set()

    def flush() -> None:
        # Compiling and allocating for a new size does not count as a frame's latency.
        if new := {f.rgb.shape for f in waiting} - sizes:
            segment([f.rgb for f in waiting], overlay=done is not None, confidence=True)
            sizes.update(new)
        began = perf_counter()
        predictions = segment([f.rgb for f in waiting], overlay=done is not None, confidence=True)
        each_ms = 1e3 * (perf_counter() - began) / max(1, len(waiting))
        for frame, p in zip(waiting, predictions):
            stable = consistency.update(frame.rgb, p.labels, frame.stamp_ns)
            if frame.counted:
                if frame.note:
                    scores.skip('narrow_range', frame.note)
                stage_ms = {'decode': frame.decode_ms} | {k: v / len(waiting) for k, v in p.stage_ms.items()}
                p = replace(p, stage_ms=stage_ms | {'total': frame.decode_ms + each_ms})
                scores.add(frame.source, frame.index, frame.stamp_ns, frame.rgb, p.labels, frame.truth,
                           p.confidence, p.stage_ms, stable)
                if done:
                    done(frame, p)
                progress(1)
        waiting.clear()

    for frame in frames:
        if isinstance(frame, RecordedFrame):
            waiting.append(frame)
            if len(waiting) == batch:
                flush()
        elif frame.what == 'truth_failed':
            scores.skip(frame.what, frame.reason)
        else:
            flush()
            consistency.reset()
            if frame.what == 'failed':
                scores.skip(frame.what, frame.reason)
                progress(1)
    flush()
    return scores


def check_classes(dataset: DataSet, segment: Segmenter) -> None:
    """Raise `EvaluationError` if the weights know other classes than the data set has."""
    if segment.labels.names != dataset.labels.names:
        raise EvaluationError(f'the weights know {", ".join(segment.labels.names)}; {dataset.name} has '
                              f'{", ".join(dataset.labels.names)}')


def evaluate_dataset(dataset: DataSet, segment: Segmenter, *, batch: int = 1,
                     quiet: bool = False) -> Evaluation:
    """Score a data set's split; `EvaluationError` if the weights know other classes."""
    check_classes(dataset, segment)
    scores = Scores(segment.labels, truth=True)
    scores.counts['read'] = len(dataset)
    title = f'{dataset.name} {dataset.split}'
    with tqdm(total=len(dataset), desc=title, unit='frame', disable=quiet or None) as bar:
        score(read_dataset(dataset), segment, scores, batch=batch, progress=bar.update)
    sources: list[dict[str, Any]] = [{'name': title, 'frames': len(dataset)}]
    return Evaluation(scores, sources, segment.identity(), segment.device_name())


def evaluate_bags(paths: Sequence[str | Path], model: ModelSpec, *, image_topic: str | None = None,
                  truth: GroundTruthSource | None = None, value_range: Range = 'full',
                  batch: int = 1, workers: int = 1,
                  dask: str | None = None,
                  frames_per_task: int = FRAMES_PER_TASK, out: Path | None = None,
                  quiet: bool = False) -> Evaluation:
    """
    Score bags, one after the other.

    With `workers` or the address of a `dask` scheduler the bags are cut into tasks that run elsewhere; the
    scores are the same. `out`: an mcap bag for the results (this process only). A bag that can't be read is
    named and left out; `EvaluationError` if none is left.
    """
    if out and (workers > 1 or dask):
        raise EvaluationError('--out writes frames in order, with one worker: leave out --workers and --dask')
    truth = truth or GroundTruthSource()
    found, sources, errors = [], [], []
    for path in paths:
        try:
            found.append(recordings.index_bag(path, image_topic, truth))
            sources.append(found[-1].describe())
        except BagError as e:
            errors.append(str(e))
            sources.append({'name': Path(path).name, 'path': str(path), 'frames': 0, 'error': str(e)})
    total = sum(len(r.times) for r in found)
    if not total:
        raise EvaluationError('; '.join(errors) or f'no frames in {", ".join(str(p) for p in paths)}: '
                          'the image topics hold no message')
    if truth and not any(p is not None for r in found for p in r.partners):
        raise EvaluationError(_no_truth(found, truth))
    segment = model.load()
    scores = Scores(segment.labels, bool(truth))
    for text in errors:
        scores.skip('bags_failed', text)
    for recording in found:
        scores.counts.update(recording.counts)
        for note in recording.notes:
            scores.skip('bags_damaged', note)
    with tqdm(total=total, unit='frame', disable=quiet or None) as bar:
        if workers > 1 or dask:
            model = replace(model, digest=weights.digest(model.path))
            tasks = [t for r in found for t in r.tasks(frames_per_task, value_range)]
            for part in _on_dask(dask, tasks, model, batch, bar) if dask \
                    else _on_processes(workers, tasks, model, batch, bar):
                scores.merge(part)
        else:
            with _Recorder(out, segment.labels, model.name) if out else nullcontext() as done:
                for recording in found:
                    for task in recording.tasks(max(1, len(recording.times)), value_range):
                        score(recordings.read(task, segment.labels), segment, scores, batch=batch, done=done,
                              progress=bar.update)
    if not scores.counts['segmented']:
        reasons = '; '.join(s['first'] for s in scores.skipped.values() if s['what'] == 'failed')
        raise EvaluationError(f'none of the {total} frames could be used, the first because of: {reasons}')
    return Evaluation(scores, sources, segment.identity(), segment.device_name())


def score_task(task: Task, model: ModelSpec, batch: int = 1) -> Scores:
    """Score a task in a worker; the segmenter is made once and kept."""
    if model.threads:
        cv2.setNumThreads(model.threads)
    if _WORKER.model != model:
        _WORKER.segmenter, _WORKER.model = model.load(), model
    segment = _WORKER.segmenter
    assert segment is not None
    scores = Scores(segment.labels, bool(task.truth))
    return score(recordings.read(task, segment.labels), segment, scores, batch=batch)


def record(model: ModelSpec, dataset: DataSet, result: dict[str, Any]) -> str:
    """Write what was measured on a split into the card of the weights file; return a line about it."""
    network, card = weights.load(model.path)
    split, command = dataset.split, dataset.command(card.network)
    if model.resolution:
        command += f' --resolution {model.resolution}'
    measured = {'miou': round(result['miou'], 2), 'command': command,
                'iou': {name: round(v, 2) for name, v in result['iou'].items() if v is not None}}
    weights.save(model.path, network, replace(card, metrics={**card.metrics, split: measured}))
    return f'{model.path}: metrics.{split}.miou = {measured["miou"]}'


class _Worker(threading.local):
    """What a worker thread keeps between tasks: a segmenter serves one thread, Dask's workers have many."""

    model: ModelSpec | None = None
    segmenter: Segmenter | None = None


_WORKER = _Worker()


def _on_processes(workers: int, tasks: list[Task], model: ModelSpec, batch: int,
                  bar: tqdm) -> Iterator[Scores]:
    model = replace(model, threads=model.threads or max(1, (os.cpu_count() or 1) // workers))
    # A forked child can't use CUDA, and torch's threads don't survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context('spawn')) as pool:
        futures = [pool.submit(score_task, t, model, batch) for t in tasks]
        of: dict[Future, Task] = dict(zip(futures, tasks))
        try:
            for future in as_completed(futures):
                future.result()
                bar.update(of[future].last - of[future].first)
            for future in futures:
                yield future.result()
        except BrokenProcessPool as e:
            raise EvaluationError('a worker process died, probably for want of memory: give fewer '
                                  '--workers') from e
        finally:
            pool.shutdown(cancel_futures=True)


def _on_dask(address: str, tasks: list[Task], model: ModelSpec, batch: int, bar: tqdm) -> Iterator[Scores]:
    try:
        import distributed
    except ImportError as e:
        raise EvaluationError(f'--dask needs distributed ({e}): pip install "dask[distributed]"') from e
    try:
        client = distributed.Client(address, timeout=DASK_TIMEOUT_S)
    except (OSError, ValueError) as e:
        raise EvaluationError(f'no Dask scheduler at {address} ({e}): start one with "dask scheduler", and '
                          'workers with "dask worker ADDRESS"') from e
    with client:
        if not client.scheduler_info()['workers']:
            raise EvaluationError(f'the Dask scheduler at {address} has no workers: "dask worker {address}"')
        # The scheduler gives the tasks of a lost worker, and its results not yet fetched, to another one.
        futures = [client.submit(score_task, t, model, batch, pure=False) for t in tasks]
        of = {f.key: t for f, t in zip(futures, tasks)}
        try:
            for future in distributed.as_completed(futures):
                bar.update(of[future.key].last - of[future.key].first)
            for future in futures:
                yield future.result()
        except distributed.KilledWorker as e:
            raise EvaluationError(f'a task brought down its Dask workers one after the other: {e}') from e


def _no_truth(found: list[Recording], truth: GroundTruthSource) -> str:
    stamps = [s for r in found for s in r.stamps]
    return (f'no label of {truth.topic or truth.folder} lies within {truth.tolerance_ns / 1e6:g} ms of a '
            f'frame; the frames are stamped {min(stamps) / 1e9:.3f} to {max(stamps) / 1e9:.3f} s. Give '
            '--tolerance, or name the files by stamp in ns')


@dataclass
class _Recorder:
    """Writes results as the node publishes them, with their frames' stamps; a context manager."""

    path: Path
    labels: LabelSet
    model: str
    health: Health = field(default_factory=Health)
    last_status_ns: int | None = None

    def __enter__(self) -> Callable[[RecordedFrame, Prediction], None]:
        self.writer = bags.Writer(self.path)
        self.writer.__enter__()
        return self.write

    def __exit__(self, *error: Any) -> None:
        self.writer.__exit__(*error)

    def write(self, frame: RecordedFrame, prediction: Prediction) -> None:
        stamp = frame.stamp_ns
        head = bags.header(stamp, frame.frame_id)
        if self.last_status_ns is None:
            classes = bags.TYPES['std_msgs/msg/String'](json.dumps(self.labels.to_dict()))
            self.writer.write('/segmentation/label_info_json', classes, stamp)
        for topic, array, encoding in (('label', prediction.labels, 'mono8'),
                                       ('overlay/compressed', prediction.overlay, 'jpeg'),
                                       ('confidence', prediction.confidence, 'mono8')):
            assert array is not None
            self.writer.write(f'/segmentation/{topic}', bags.image(array, encoding, head), stamp)
        self.health.frame_received()
        self.health.frame_processed(prediction.stage_ms)
        if self.last_status_ns is None or abs(stamp - self.last_status_ns) >= bags.NS:
            self.last_status_ns = stamp
            status = self.health.status(0, {'model': self.model})
            value = bags.TYPES['diagnostic_msgs/msg/KeyValue']
            entry = bags.TYPES['diagnostic_msgs/msg/DiagnosticStatus'](
                status.level, 'segmentation: frames', status.summary, '',
                [value(k, v) for k, v in status.values.items()])
            message = bags.TYPES['diagnostic_msgs/msg/DiagnosticArray'](head, [entry])
            self.writer.write('/diagnostics', message, stamp)
