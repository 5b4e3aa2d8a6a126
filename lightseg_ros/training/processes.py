# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Supervises several `lightseg train` processes that run side by side on this machine."""
from collections.abc import Callable, Sequence
import csv
from dataclasses import dataclass
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

from ..files import make_folder
from ..texts import one_line

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]  # holds the package, so that children find this copy of it
LOG = 'train.log'
GRACE_S = 20.0


@dataclass(frozen=True)
class Job:
    """
    A `lightseg train` process.

    `arguments`: all but --out and --resume. `folder`: --out; it also gets train.log, what the process prints.
    `retry`: further arguments for one more try after a failure; None: there is no second try.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    retry: tuple[str, ...] | None = None

    def finished(self) -> Path | None:
        """Return the weights file of a finished run."""
        return finished_weights(self.folder)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the run's log.csv; none before the first epoch ends."""
        path = self.folder / 'log.csv'
        if not path.is_file():
            return []
        with open(path, newline='') as f:
            return list(csv.DictReader(f))


def finished_weights(folder: Path) -> Path | None:
    """Return the weights file in the folder of a run; None if the run is not finished."""
    return next(iter(sorted(folder.glob('*.safetensors'))), None)


def run_side_by_side(jobs: Sequence[Job], *, at_once: int, threads: int, deadline: float = float('inf'),
                     reserve_s: float = 0.0, cores: Sequence[int] = (),
                     report: Callable[[], None] = lambda: None) -> list[str]:
    """
    Train the jobs that are not finished, `at_once` at a time; returns the names of those that failed.

    `threads`: of each process. `deadline`: on time.monotonic()'s clock; `reserve_s` before it the processes
    save their checkpoints and end, half of that before it they are killed. `cores`: each process is pinned to
    one of them; there must be `at_once` or more. `report` is called about twice a second. No process outlives
    this call, whichever way it ends.
    """
    running: list[_Process] = []
    # Without a handler SIGTERM would end this process before the `finally` below.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _supervise(list(jobs), running, at_once, threads, deadline, reserve_s, cores, report)
    except KeyboardInterrupt:
        # A Ctrl-C in a terminal reaches the children too: they save a checkpoint and end.
        ends = time.monotonic() + GRACE_S
        while time.monotonic() < ends and any(p.popen.poll() is None for p in running):
            time.sleep(0.1)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            process.kill()  # safe at any moment, because checkpoints are written whole


@dataclass
class _Process:
    job: Job
    popen: subprocess.Popen
    core: int | None
    is_retry: bool

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


def _supervise(jobs: list[Job], running: list[_Process], at_once: int, threads: int, deadline: float,
               reserve_s: float, cores: Sequence[int], report: Callable[[], None]) -> list[str]:
    waiting = [(job, False) for job in jobs if not job.finished()]
    failed: list[str] = []
    while waiting or running:
        while waiting and len(running) < at_once and time.monotonic() < deadline - reserve_s:
            free = [c for c in cores if c not in [p.core for p in running]]
            job, is_retry = waiting.pop(0)
            popen = _start(job, is_retry, threads, deadline - reserve_s, free[0] if free else None)
            running.append(_Process(job, popen, free[0] if free else None, is_retry))
        if not running:
            break
        time.sleep(0.5)
        report()
        late = time.monotonic() > deadline - reserve_s / 2
        for process in list(running):
            if late:
                process.kill()
            code = process.popen.poll()
            if code is None:
                continue
            running.remove(process)
            if code == 0 or late:
                continue
            job, reason = process.job, last_line(process.job.folder / LOG)
            if job.retry is not None and not process.is_retry:
                log.warning('%s failed (%s); second try with %s', job.name, reason, ' '.join(job.retry))
                waiting.insert(0, (job, True))
            else:
                log.error('%s failed: %s', job.name, reason)
                failed.append(job.name)
    return failed


def _start(job: Job, is_retry: bool, threads: int, ends: float, core: int | None) -> subprocess.Popen:
    make_folder(job.folder)
    command = [sys.executable, '-m', 'lightseg_ros.cli', 'train', '--out', str(job.folder), '--resume']
    if ends != float('inf'):
        command += ['--time-limit', f'{ends - time.monotonic():.1f}']
    command += [*job.arguments, *(job.retry or () if is_retry else ())]
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join(p for p in (str(ROOT), os.environ.get('PYTHONPATH')) if p),
        'OMP_NUM_THREADS': str(threads)}
    with open(job.folder / LOG, 'ab') as output:
        popen = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    if core is not None:
        os.sched_setaffinity(popen.pid, {core})
    return popen


def last_line(path: Path) -> str:
    """Return the last line of a process's output; progress bars separate lines by carriage returns."""
    lines = path.read_text(errors='replace').replace('\r', '\n').strip().splitlines()
    return one_line(lines[-1]) if lines else 'it printed nothing'


def describe(jobs: Sequence[Job]) -> str:
    """Return one line: the last row of each job's log."""
    parts = []
    for job in jobs:
        rows = job.rows()
        if rows:
            miou = next((f' mIoU {r["miou"]}' for r in reversed(rows) if r['miou']), '')
            parts.append(f'{job.name} epoch {rows[-1]["epoch"]} loss {rows[-1]["loss"]}{miou} '
                         f'{rows[-1]["images_per_s"]} images/s')
        else:
            parts.append(f'{job.name} starts')
    return ' | '.join(parts)
