# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A mailbox of one: the newest item wins, what it replaces is counted."""
import threading
from typing import Generic, TypeVar

T = TypeVar('T')


class Latest(Generic[T]):
    """
    Hands items from one thread to another without a queue.

    `received` counts every item put, `dropped` those that a newer one replaced before they were taken; so
    received == taken + dropped + (1 if one is waiting).
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self.received = 0
        self.dropped = 0

    def put(self, item: T) -> None:
        """Leave an item; never blocks. After `close` it is dropped."""
        with self._condition:
            self.received += 1
            if self._closed or self._item is not None:
                self.dropped += 1
            if not self._closed:
                self._item = item
                self._condition.notify()

    def take(self, timeout_s: float | None = None) -> T | None:
        """Wait for the newest item and take it; None after the timeout, or once closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._item is not None or self._closed, timeout_s)
            if self._closed:
                return None
            item, self._item = self._item, None
            return item

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End: whoever waits is woken with None, an item still waiting counts as dropped."""
        with self._condition:
            self._closed = True
            if self._item is not None:
                self._item = None
                self.dropped += 1
            self._condition.notify_all()
