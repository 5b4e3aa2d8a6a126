# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scores parts of recordings elsewhere: in processes of this machine, or on a Dask cluster."""
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
import multiprocessing
import os
from pathlib import Path
import signal
import tempfile
import threading

import cv2

from ..inference.segmenter import Segmenter
from . import recordings
from .parts import Part, Recorder
from .recordings import Task
from .scorer import score
from .scores import Scores
from .settings import EvaluationError, ModelSpec, Run

DASK_TIMEOUT_S = 10.0


def on_processes(tasks: dict[Part, Task], model: ModelSpec, run: Run,
                 stopped: threading.Event) -> Iterator[tuple[Part, Scores, bytes | None]]:
    """
    Score tasks in `run.workers` processes; yields each part when it is done, with its scores and results.

    `stopped`: when it is set, the tasks that run are finished, and no more are begun.
    """
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


def on_dask(tasks: dict[Part, Task], model: ModelSpec, run: Run,
            stopped: threading.Event) -> Iterator[tuple[Part, Scores, bytes | None]]:
    """
    Score tasks on the Dask cluster `run.dask`; yields each part when it is done, with its scores and results.

    `stopped`: when it is set, the tasks that are not done are given up.
    """
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


class _Worker(threading.local):
    """What a worker thread keeps between tasks: a segmenter serves one thread, Dask's workers have many."""

    model: ModelSpec | None = None
    segmenter: Segmenter | None = None


_WORKER = _Worker()
