# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Captures calls as CUDA graphs, so that one that fails spoils nothing that comes after it."""
from collections.abc import Callable
from contextlib import suppress
import threading
from typing import Any

import torch

# Held by the one thread of the process that captures, and by whoever waits for a whole GPU or gives cached
# memory back: while a stream is captured, CUDA and torch allow neither, in no thread, and both sides fail.
alone = threading.RLock()
# Captures that failed and that torch can't take back: its allocator still asks them.
_failed: list[torch.cuda.CUDAGraph] = []


class CaptureError(RuntimeError):
    """A call that can't be captured; the text is the first line of the reason. It can still be run."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch means that the GPU's memory is used up; each library words it anew."""
    text = str(error).lower()
    return any(name in text for name in ('out of memory', 'alloc_failed', 'device_allocation_failed'))


def free_cache() -> None:
    """Give memory that no tensor uses back to the GPU, once no thread captures any more."""
    with alone:
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait for all work on a GPU, once no thread captures any more."""
    with alone:
        torch.cuda.synchronize(device)


def capture(run: Callable[[], Any], stream: torch.cuda.Stream, pool: Any) -> torch.cuda.CUDAGraph:
    """
    Capture a call on a stream of the current GPU and return its graph, whose memory comes from a pool.

    `CaptureError` where that fails. What the failed one has taken of the pool is not given back, so the next
    capture needs a new pool.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: what other threads do with CUDA meanwhile does not break the capture.
        # The outer one: where a capture ends with an error, torch leaves its stream the current one.
        with alone, torch.cuda.stream(stream), torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode='thread_local'):
            run()
        return graph
    except RuntimeError as e:
        _end_failed(graph, pool)
        failure = CaptureError(_first_cause(e))
    # Outside of the `except`: the traceback of what failed keeps its tensors alive.
    raise failure


def _end_failed(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """
    Let torch forget a capture that failed.

    The allocator of torch up to 2.11 takes it for one in progress: it gives no memory back any more, and
    since each capture begins with that, none succeeds. The GPU's random numbers stay as they are during a
    capture, when no other call may draw any; a copy of their state is free of that.
    """
    device = torch.cuda.current_device()
    with suppress(AttributeError, RuntimeError):  # newer ones have ended it, and say that nothing is captured
        torch._C._cuda_endAllocateToPool(device, pool)
        _failed.append(graph)
    with suppress(AttributeError, RuntimeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


def _first_cause(error: BaseException) -> str:
    """Return the first line of what has made a capture fail; its end raises an error that says less."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
