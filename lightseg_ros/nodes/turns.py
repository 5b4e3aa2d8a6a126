# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Coroutines of an executor that take turns: each begins when the one before it has ended."""
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
import threading

from rclpy.executors import Executor
from rclpy.task import Future


class Turns:
    """Turns are given in the order in which they are asked for; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Future | None = None  # done when the last turn ends

    @asynccontextmanager
    async def next(self, executor: Executor | None) -> AsyncIterator[None]:
        """Wait for a turn, which lasts until the end of the block; `executor`: the one that runs it."""
        mine: Future = Future(executor=executor)
        with self._lock:
            before, self._last = self._last, mine
        try:
            if before is not None:
                await before
            yield
        finally:
            mine.set_result(None)
            with suppress(Exception):  # the executor was shut down meanwhile
                if executor is not None:
                    executor.wake()  # it does not notice a future that is done
