# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of bags and data sets: every frame, in order, without ROS, on one machine or on many."""
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
import logging
import multiprocessing
import os
from pathlib import Path
import platform
import signal
import sys
import tempfile
import threading
from time import monotonic, perf_counter
from types import FrameType
from typing import Any

import cv2
from tqdm import tqdm

from .. import __version__, bags, files, image_folders, machine, weights
from ..bags import BagError
from ..datasets import DataSet
from ..images import Range
from ..inference import segmenter
from ..inference.segmenter import Segmenter, Smoother
from . import recordings, text_report
from .parts import Part, Parts, Recorder
from .recordings import GroundTruthSource, RecordedFrame, Recording, Selection, Skip, Task
from .scores import APART_NS, Consistency, SAMPLES, Scores

log = logging.getLogger(__name__)
FRAMES_PER_TASK = 200
DASK_TIMEOUT_S = 10.0
# In one process a part ends after so long. The first one is shorter: it tells whether the disk has room.
PART_S, FIRST_PART_S = 60.0, 10.0
# Without a terminal, how often a line says how far the evaluation is.
LINE_S = 60.0


class EvaluationError(ValueError):
    """An evaluation that can't start or has nothing to score; the text says what is missing."""


@dataclass(frozen=True)
class ModelSpec:
    """
    Which network runs how: the arguments of `Segmenter.load`.

    `digest` is checked where it is set. `smoothing`: share of the earlier frames in the labels, 0 to below 1.
    """

    name: str
    device: str = 'auto'
    resolution: str | None = None
    resize_mode: str = 'fit'
    backend: str = 'auto'
    precision: str = 'auto'
    threads: int = 0
    digest: str = ''
    smoothing: float = 0.0

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
class Run:
    """
    How an evaluation of recordings runs, and what it leaves behind.

    `batch`: frames that go through the network at once. `workers`: processes on this machine; `dask`: the
    address of a scheduler instead; `frames_per_task`: what a worker gets at once. `out`: a bag for the
    results, whose overlays are JPEGs of `jpeg_quality`. `parts`: a folder for what is done, from which an
    evaluation that was stopped goes on with `resume`; None: it can't. `apart_ns`: how far pictures in the
    report lie apart.
    """

    batch: int = 1
    workers: int = 1
    dask: str | None = None
    frames_per_task: int = FRAMES_PER_TASK
    out: Path | None = None
    jpeg_quality: int = 90
    parts: Path | None = None
    resume: bool = False
    apart_ns: int = APART_NS
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ('batch', 'workers', 'frames_per_task', 'jpeg_quality'):
            if getattr(self, name) < 1:
                raise EvaluationError(f'{name} is {getattr(self, name)}; expected 1 or more')
        if self.jpeg_quality > 100:
            raise EvaluationError(f'jpeg_quality is {self.jpeg_quality}; expected 1 to 100')
        if self.apart_ns < 0:
            raise EvaluationError(f'apart is {self.apart_ns / bags.NS:g} s; expected 0 or more')
        if self.resume and not self.parts:
            raise EvaluationError('--resume goes on with what --report, --json or --out left: name one')


@dataclass(frozen=True)
class Evaluation:
    """
    What was measured, and of what.

    `sources`: the description of each bag or data set. `model`: the network and how it ran, from
    `Segmenter.identity`. `device`: where it ran, from `Segmenter.device_name`. `parts`: what an evaluation
    that was stopped goes on with; remove them when the result is written.
    """

    scores: Scores
    sources: list[dict[str, Any]]
    model: dict[str, str]
    device: str
    parts: Parts | None = field(default=None, kw_only=True)

    def result(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the result as reports take it, stamped; `options`: what the user asked for."""
        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [str(v) for v in value]
            return value if isinstance(value, (int, float)) else str(value)

        asked = {k: plain(v) for k, v in options.items() if v not in (None, '', [], False)}
        return {'format': text_report.FORMAT, **machine.stamp(self.device), 'options': asked,
                'model': self.model, 'sources': self.sources} | self.scores.result()


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


class Scorer:
    """
    Segments frames in order and adds them to `scores`.

    `batch`: how many go through the network at once. `recorder` gets every result. `smoothing`: share of the
    earlier frames in the labels; only with a batch of 1.
    """

    def __init__(self, segment: Segmenter, scores: Scores, batch: int = 1, recorder: Recorder | None = None,
                 smoothing: float = 0.0):
        self.segment, self.scores, self.batch, self.recorder = segment, scores, batch, recorder
        self._smoothers = [Smoother(smoothing)] if smoothing else []
        self._consistency = Consistency()
        self._waiting: list[RecordedFrame] = []
        self._sizes: set[tuple[int, ...]] = set()

    def add(self, item: RecordedFrame | Skip) -> None:
        """Take the next frame, or what came in place of one."""
        if isinstance(item, RecordedFrame):
            self._waiting.append(item)
            if len(self._waiting) == self.batch:
                self.flush()
        elif item.what == 'truth_failed':
            self.scores.skip(item.what, item.reason)
        else:
            self.flush()
            self._consistency.reset()
            for smoother in self._smoothers:
                smoother.forget()
            if item.what == 'failed':
                self.scores.skip(item.what, item.reason)

    @property
    def idle(self) -> bool:
        """Whether no frame waits for its batch to be full."""
        return not self._waiting

    def flush(self) -> None:
        """Segment the frames that wait for their batch to be full."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        overlay = self.recorder is not None
        frames = [f.rgb for f in waiting]
        # Compiling and allocating for a new size does not count as a frame's latency.
        if new := {f.shape for f in frames} - self._sizes:
            self.segment(frames, overlay=overlay, confidence=True)
            self._sizes.update(new)
        for smoother in self._smoothers:
            smoother.next(waiting[0].stamp_ns)
        began = perf_counter()
        started = self.segment.start(frames, overlay=overlay, confidence=True, smoothers=self._smoothers)
        started.labels()
        labels_ms = 1e3 * (perf_counter() - began) / len(waiting)
        predictions = started.finish()
        all_ms = 1e3 * (perf_counter() - began) / len(waiting)
        for frame, p in zip(waiting, predictions):
            stability = self._consistency.update(frame.rgb, p.labels, frame.stamp_ns)
            if not frame.counted:
                continue
            if frame.note:
                self.scores.skip(frame.note.what, frame.note.reason)
            p = replace(p, stage_ms={'decode': frame.decode_ms}
                        | {k: v / len(waiting) for k, v in p.stage_ms.items()}
                        | {'total': frame.decode_ms + labels_ms,
                           'with confidence': frame.decode_ms + all_ms})
            self.scores.add(frame.source, frame.index, frame.stamp_ns, frame.rgb, p.labels, frame.truth,
                            p.confidence, p.stage_ms, stability, frame.sample)
            if self.recorder:
                self.recorder.write(frame, p)


def score(frames: Iterable[RecordedFrame | Skip], segment: Segmenter, scores: Scores, *, batch: int = 1,
          recorder: Recorder | None = None, progress: Callable[[int], Any] = lambda n: None) -> Scores:
    """Segment frames in order and add them to the scores, which are returned; see `Scorer`."""
    scorer = Scorer(segment, scores, batch, recorder)
    for frame in frames:
        scorer.add(frame)
        progress(frame.counted)
    scorer.flush()
    return scores


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
    with Progress(len(dataset), title, quiet) as progress, _until_stopped() as stopped:
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
        with Progress(total, '', run.quiet, parts.frames()) as progress, _until_stopped() as stopped:
            if run.dask or run.workers > 1:
                tasks = {}
                for i, r in enumerate(found):
                    for first, last in parts.missing(i, len(r.chosen)):
                        for task in r.tasks(run.frames_per_task, value_range, first, last):
                            tasks[Part(i, first, first + len(task.numbers))] = task
                            first += len(task.numbers)
                share = _on_dask if run.dask else _on_processes
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


def score_task(task: Task, model: ModelSpec, run: Run) -> tuple[Scores, bytes | None]:
    """Score a task in a worker; returns the results too, as a bag, if they are wanted."""
    if model.threads:
        cv2.setNumThreads(model.threads)
    if _WORKER.model != model:
        _WORKER.segmenter, _WORKER.model = model.load(), model
    segment = _WORKER.segmenter
    assert segment is not None
    scores = Scores(segment.labels, bool(task.truth), run.apart_ns)
    frames = recordings.read(task, segment.labels)
    if not run.out:
        return score(frames, segment, scores, batch=run.batch), None
    with tempfile.TemporaryDirectory(prefix='lightseg_') as folder:
        bag = Path(folder) / 'results.mcap'
        with Recorder(bag, segment.labels, model.name, run.jpeg_quality) as recorder:
            score(frames, segment, scores, batch=run.batch, recorder=recorder)
        return scores, bag.read_bytes()


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


class Progress:
    """
    How far an evaluation is: a bar on a terminal, a line in the log each minute elsewhere.

    Use it in a `with` statement. `done`: of the `total` frames, how many an earlier run has scored.
    """

    def __init__(self, total: int, title: str = '', quiet: bool = False, done: int = 0):
        self._total, self._done, self._before, self._quiet = total, done, done, quiet
        self._bar = tqdm(total=total, desc=title, unit='frame', initial=done, disable=quiet or None)
        self._began = self._said = monotonic()

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        """Count frames."""
        self._done += count
        self._bar.update(count)
        now = monotonic()
        if self._bar.disable and not self._quiet and now - self._said >= LINE_S:
            self._said = now
            rate = max(1e-9, (self._done - self._before) / (now - self._began))
            minutes = (self._total - self._done) / rate / 60
            log.info('%d of %d frames, %.1f a second, %s left', self._done, self._total, rate,
                     f'{minutes / 60:.1f} hours' if minutes > 90 else f'{minutes:.0f} minutes')


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets; the second one ends the program as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may catch signals
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        print('\nstopping after the frames in progress; once more: at once', file=sys.stderr, flush=True)

    # A background job of a script ignores SIGINT, and does so here too.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
              if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _on_processes(tasks: dict[Part, Task], model: ModelSpec, run: Run,
                  stopped: threading.Event) -> Iterator[tuple[Part, Scores, bytes | None]]:
    model = replace(model, threads=model.threads or max(1, (os.cpu_count() or 1) // run.workers))
    # A forked child can't use CUDA, and torch's threads don't survive a fork. A Ctrl-C reaches the workers
    # too: they finish their tasks.
    pool = ProcessPoolExecutor(run.workers, multiprocessing.get_context('spawn'), signal.signal,
                               (signal.SIGINT, signal.SIG_IGN))
    waiting, running = iter(tasks.items()), dict[Future, Part]()

    def submit() -> None:
        # Not all at once: a task in the pool's queue can't be taken back when the evaluation is stopped.
        while len(running) < run.workers and not stopped.is_set() and (item := next(waiting, None)):
            running[pool.submit(score_task, item[1], model, run)] = item[0]

    with pool:
        try:
            submit()
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    part = running.pop(future)
                    submit()
                    yield part, *future.result()
        except BrokenProcessPool as e:
            if stopped.is_set():
                return  # `timeout`, systemd and others send SIGTERM to the workers too: they die
            raise EvaluationError('a worker process died, probably for want of memory: give fewer '
                                  '--workers') from e
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _on_dask(tasks: dict[Part, Task], model: ModelSpec, run: Run,
             stopped: threading.Event) -> Iterator[tuple[Part, Scores, bytes | None]]:
    address = run.dask
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
        futures = {client.submit(score_task, t, model, run, pure=False): p for p, t in tasks.items()}
        try:
            while futures and not stopped.is_set():
                try:
                    done = distributed.wait(list(futures), 0.5, return_when='FIRST_COMPLETED').done
                except distributed.TimeoutError:
                    continue
                for future in done:
                    yield futures.pop(future), *future.result()
        except distributed.KilledWorker as e:
            raise EvaluationError(f'a task brought down its Dask workers one after the other: {e}') from e
        finally:
            client.cancel(list(futures))


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
