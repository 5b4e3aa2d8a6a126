# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A mailbox of one item a sender: the newest wins, what it replaces is counted."""
from collections import Counter
import threading
from typing import Generic, TypeVar

T = TypeVar('T')


class Latest(Generic[T]):
    """
    Hands items from other threads to one that works, without a queue.

    For each sender `received` counts every item put, `dropped` those that a newer one replaced before they
    were taken; so received == taken + dropped + (1 if one is waiting).
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._items: dict[str, T] = {}
        self._closed = False
        self.received: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def put(self, item: T, sender: str = '') -> None:
        """Leave an item; never blocks. After `close` it is dropped."""
        with self._condition:
            self.received[sender] += 1
            if self._closed or sender in self._items:
                self.dropped[sender] += 1
            if not self._closed:
                self._items[sender] = item
                self._condition.notify()

    def take(self, timeout_s: float | None = None) -> dict[str, T]:
        """Wait for an item, take the newest of every sender; none after the timeout, or once closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._items or self._closed, timeout_s)
            items, self._items = self._items, {}
            return items

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End: whoever waits is woken with nothing, items still waiting count as dropped."""
        with self._condition:
            self._closed = True
            self.dropped.update(self._items.keys())
            self._items = {}
            self._condition.notify_all()
