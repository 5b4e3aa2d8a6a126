# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How far a long evaluation is, and the signals that end it early."""
from collections.abc import Iterator
from contextlib import contextmanager
import logging
import signal
import sys
import threading
from time import monotonic
from types import FrameType

from tqdm import tqdm

log = logging.getLogger(__name__)
# Without a terminal, how often a line says how far the evaluation is.
LINE_S = 60.0


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
def until_stopped() -> Iterator[threading.Event]:
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
