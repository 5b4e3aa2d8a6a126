# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Captures calls as CUDA graphs, so that one that fails spoils nothing that comes after it."""
from collections.abc import Callable
from contextlib import suppress
import sys
import threading
from typing import Any

import torch

# Held by the one thread of the process that captures, and by whoever waits for a whole GPU or gives cached
# memory back: while a stream is captured, CUDA and torch allow neither, in no thread, and both sides fail.
alone = threading.RLock()
# Captures that failed and that torch must not take back: its allocator may still ask them.
_failed: list[torch.cuda.CUDAGraph] = []
_TORCH = tuple(int(number) for number in torch.__version__.split('.')[:2])


class CaptureError(RuntimeError):
    """A call that can't be captured; the text is the first line of the reason. It can still be run."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch means that the GPU's memory is used up; each library words it anew."""
    text = str(error).lower()
    return any(name in text for name in ('out of memory', 'alloc_failed', 'device_allocation_failed'))


def unusable(device: torch.device) -> str:
    """Run one small kernel: return '' if it works, else torch's reason, such as a GPU it has no code for."""
    try:
        return '' if float((torch.ones(8, device=device) * 2).sum()) == 16 else 'it computes wrong results'
    except RuntimeError as e:
        return (str(e).strip() or type(e).__name__).splitlines()[0]


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

    `CaptureError` where that fails; the next capture needs a new pool. What the failed one has taken is given
    back with the other graphs of its pool.
    """
    graph = torch.cuda.CUDAGraph()
    handled = sys.exc_info()[1]
    began = False
    with alone:
        try:
            # thread_local: what other threads do with CUDA meanwhile does not break the capture.
            # The outer one: where a capture ends with an error, torch leaves its stream the current one.
            with torch.cuda.stream(stream), torch.cuda.graph(
                    graph, pool=pool, stream=stream, capture_error_mode='thread_local'):
                began = True
                run()
            return graph
        except RuntimeError as e:
            failure = _first_cause(e, handled)
            _end_failed(graph, pool, began)
    # Outside of the `except`: the traceback of what failed keeps its tensors alive, and that of `failure`
    # keeps this frame with the graph.
    try:
        raise failure
    finally:
        del failure, graph


def _end_failed(graph: torch.cuda.CUDAGraph, pool: Any, began: bool) -> None:
    """
    Let torch forget a capture that failed.

    The allocator of torch up to 2.11 takes it for one in progress: it gives no memory back any more, and
    since each capture begins with that, none succeeds. Up to 2.13 the pool counts it for ever as a graph in
    use. The GPU's random numbers stay as they are during a capture, when no other call may draw any; a copy
    of their state is free of that.
    """
    device = torch.cuda.current_device()
    counted = began and (2, 12) <= _TORCH < (2, 14) and not _has_ended(graph)
    taken_back = False
    # Its name up to torch 2.7, and since.
    for name in '_cuda_endAllocateCurrentStreamToPool', '_cuda_endAllocateToPool':
        with suppress(AttributeError, RuntimeError):  # newer ones have ended it, and say so
            getattr(torch._C, name)(device, pool)
            taken_back, counted = True, _TORCH < (2, 14)
    if taken_back or counted:
        # Nor must any build of torch give the pool back a second time with the graph: that ends the process.
        _failed.append(graph)
    if counted:
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_releasePool(device, pool)
    with suppress(AttributeError, RuntimeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


def _has_ended(graph: torch.cuda.CUDAGraph) -> bool:
    """Return whether a capture came to its end, so that its pool forgets it together with the graph."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


def _first_cause(error: BaseException, handled: BaseException | None) -> BaseException:
    """
    Return what to raise for an error of a capture, whose end raises one that says less.

    That is a `CaptureError` with the first line of the first error since `handled`, or a Ctrl-C itself.
    """
    while error.__context__ not in (None, handled):
        assert error.__context__
        error = error.__context__
    if not isinstance(error, Exception):
        return error
    return CaptureError((str(error).strip() or type(error).__name__).splitlines()[0])
