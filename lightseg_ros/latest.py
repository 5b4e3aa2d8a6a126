# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A mailbox with one place per sender: a newer item replaces the one that waits, and that is counted."""
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
import threading
from typing import Any, Generic, TypeVar

T = TypeVar('T')


class Latest(Generic[T]):
    """
    Hands items from several threads to one worker thread, without a queue.

    For each sender, `received` counts the items that were put and `dropped` those that were replaced before
    the worker took them, so received == taken + dropped + (1 if one is waiting).
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._items: dict[Hashable, T] = {}
        self._closed = False
        self.received: Counter[Hashable] = Counter()
        self.dropped: Counter[Hashable] = Counter()

    def put(self, item: T, sender: Hashable = '') -> None:
        """Leave an item; never blocks. After `close` the item is dropped."""
        with self._condition:
            self.received[sender] += 1
            if self._closed or sender in self._items:
                self.dropped[sender] += 1
            if not self._closed:
                self._items[sender] = item
                self._condition.notify()

    def take(self, timeout_s: float | None = None) -> dict[Hashable, T]:
        """Wait for an item, then take the newest of every sender; empty after the timeout or once closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._items or self._closed, timeout_s)
            items, self._items = self._items, {}
            return items

    def put_back(self, items: Mapping[Any, T]) -> None:
        """Leave items that were taken; where a newer one waits, or after `close`, they count as dropped."""
        with self._condition:
            for sender, item in items.items():
                if self._closed or sender in self._items:
                    self.dropped[sender] += 1
                else:
                    self._items[sender] = item
            self._condition.notify()

    def discard(self, items: Iterable[Hashable]) -> None:
        """Count items that were taken, given by their senders, as dropped after all."""
        with self._condition:
            self.dropped.update(list(items))  # a mapping would be added up by its values

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Close the mailbox: wake the worker with nothing, and count the items that wait as dropped."""
        with self._condition:
            self._closed = True
            self.dropped.update(self._items.keys())
            self._items = {}
            self._condition.notify_all()
