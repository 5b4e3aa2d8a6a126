# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network that a node runs: loaded, warmed up, and exchanged for another while frames arrive; no ROS."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
import gc
import json
import logging
import os
from pathlib import Path
import subprocess
import sys
import threading

import numpy as np

from .. import machine
from ..cuda_graphs import free_cache
from ..inference.segmenter import OutOfMemory, Segmenter
from ..sizes import parse_size
from ..texts import error_line

log = logging.getLogger(__name__)

# A new network is warmed up for this many of the image sizes that were segmented last.
KEPT_SIZES = 4
DEFAULT_SIZE = (480, 640)
TRACED_HERE = 4  # image sizes that come later and are compiled in this process
# MB (10^6 bytes) for each megapixel that a network sees on a CPU, while it is compiled: a conversion traces
# torch's pass through the network. Measured at 1024x1024: 240 (AFFNet) to 460 (FBSNet).
MB_PER_MEGAPIXEL = 500
FITS_MB = 1000  # what fits everywhere, whatever the system says about its memory


@dataclass(frozen=True)
class NetworkChoice:
    """
    What makes one segmenter different from another; the fields are the arguments of `segmenter.load`.

    `model`: a packaged network or the path of a weights file.
    """

    model: str
    device: str = 'auto'
    resolution: str = ''
    resize_mode: str = 'fit'
    backend: str = 'auto'
    precision: str = 'auto'
    threads: int = 0


class LiveSegmenter:
    """
    Holds the segmenter of a node and exchanges it on request.

    One thread segments, inside `use`. Another one calls `change`; a third one may call `prepare` before, so
    that nobody waits for the new network. `cameras`: largest number of frames that arrive together.
    `smoothing`: whether frames come with smoothers. `sizes`: (height, width) of the images to warm up for.
    ValueErrors from loading pass through.
    """

    def __init__(self, choice: NetworkChoice, *, cameras: int = 1, overlay_alpha: float = 0.5,
                 smoothing: bool = False, sizes: Sequence[tuple[int, int]] = ()):
        self._cameras = cameras
        self._overlay_alpha = overlay_alpha
        self._smoothing = smoothing
        self._lock = threading.Lock()  # held while frames are segmented
        self._loading = threading.Lock()  # held while a network is loaded or exchanged
        self._sizes = tuple(sizes)  # of the images, newest last; replaced, never changed in place
        self._ready: set[tuple[int, int]] = set()
        self._closing = threading.Event()
        self._children: set[subprocess.Popen] = set()
        self._traced = 0  # sizes that were compiled in this process
        self._prepared: tuple[tuple, Segmenter | Exception] | None = None
        self._loaded = _identity(choice)
        self._segmenter = self._load(choice)
        self._ready = set(self._sizes)

    @property
    def segmenter(self) -> Segmenter:
        """The network in force; call it only inside `use`."""
        return self._segmenter

    @property
    def batch_limit(self) -> int:
        """
        Number of frames that run as one batch.

        CUDA runs the frames of all cameras together. A CPU takes one after the other, so that the first
        camera's label does not wait for the last one's.
        """
        return self._limit(self._segmenter)

    def lower_batch(self, failed: int) -> None:
        """Run fewer than `failed` frames as one batch from now on: the GPU has no memory for that many."""
        _lower_batch(self._segmenter, failed)
        self._ready = set()

    @property
    def overlay_alpha(self) -> float:
        """Share of the class colour in the overlay, 0 to 1."""
        return self._overlay_alpha

    @overlay_alpha.setter
    def overlay_alpha(self, alpha: float) -> None:
        self._overlay_alpha = self._segmenter.overlay_alpha = alpha

    @property
    def smoothing(self) -> bool:
        """Whether frames come with smoothers, for which CUDA captures graphs of their own."""
        return self._smoothing

    @smoothing.setter
    def smoothing(self, smoothing: bool) -> None:
        if smoothing != self._smoothing:
            self._smoothing, self._ready = smoothing, set()

    @contextmanager
    def use(self) -> Iterator[Segmenter]:
        """Give the segmenter to the caller's thread; it is not exchanged before the end of the block."""
        with self._lock:
            yield self._segmenter

    def is_ready(self, size: tuple[int, int]) -> bool:
        """Return whether frames of (height, width) run at full speed; the first one of a size does not."""
        if self._segmenter.device.type == 'cpu':
            return self._segmenter.is_prepared(*size)
        return size in self._ready

    def make_ready(self, size: tuple[int, int]) -> None:
        """Compile or capture what frames of (height, width) need; call it inside `use`."""
        if self._segmenter.device.type == 'cpu' and not self._segmenter.is_kept(*size):
            # Tracing a network leaves 20 MB behind that torch never frees; a process that ends does, but its
            # start takes seconds, and frames wait for it.
            if self._traced < TRACED_HERE:
                self._traced += 1
            else:
                self._compile_in_child(self._loaded[0], self._segmenter, [size], priority=0)
        limit = self.batch_limit
        self._warm_up(self._segmenter, size, first_only=self._segmenter.device.type != 'cuda')
        if self.batch_limit < limit:
            self._ready = set()
        self._ready.add(size)

    def prepare_beside(self, size: tuple[int, int]) -> None:
        """Compile for frames of (height, width) on a CPU, outside of `use`; what fails is only logged."""
        self.note(size)
        with self._loading:  # of the network in force, even if its file was rewritten
            self._prepare_sizes(self._loaded[0], [size])

    def takes_long(self, size: tuple[int, int]) -> bool:
        """Return whether the first frame of (height, width) waits for a compilation of seconds, on a CPU."""
        return self._segmenter.device.type == 'cpu' and not (
            self._segmenter.is_prepared(*size) or self._segmenter.is_kept(*size))

    def note(self, size: tuple[int, int]) -> None:
        """Note that frames of (height, width) arrive: the next network is warmed up for them."""
        self._sizes = (*(other for other in self._sizes if other != size), size)[-KEPT_SIZES:]

    def differs(self, choice: NetworkChoice) -> bool:
        """Return whether `choice` is another network than the one in force, or its file was rewritten."""
        return _identity(choice) != self._loaded

    def prepare(self, choice: NetworkChoice, sizes: Sequence[tuple[int, int]] = ()) -> None:
        """
        Load a network for `change` while the one in force goes on; `change` raises what goes wrong.

        `sizes`: (height, width) of the images that will come. If the network is the one in force, it is
        prepared for them.
        """
        for size in sizes:
            self.note(size)
        with self._loading:
            if not self.differs(choice):
                self._prepare_sizes(choice, sizes)
                return
            identity = _identity(choice)
            try:
                self._go_on()
                loaded = self._open(choice)
                if loaded.device.type == 'cpu':
                    self._compile_in_child(choice, loaded, self._sizes)
                self._warm_up_all(loaded, beside=True)
                self._prepared = identity, loaded
            except Exception as e:  # without its traceback, which keeps half a network alive
                self._prepared = identity, e.with_traceback(None)

    def change(self, choice: NetworkChoice, before_first: Callable[[Segmenter], None]) -> None:
        """
        Put another network in force between two frames; it is loaded first unless `prepare` has done that.

        `before_first` is called with the new network before its first frame. If that or loading fails, the
        old network stays in force.
        """
        identity = _identity(choice)
        prepared, self._prepared = self._prepared, None
        new = prepared[1] if prepared and prepared[0] == identity else None
        if new is None:
            with self._loading:
                try:
                    new = self._load(choice, beside=True)
                except OutOfMemory as e:
                    new = e.with_traceback(None)
        if isinstance(new, OutOfMemory) and self._segmenter.device.type == 'cuda':
            with self._loading:
                self._load_after(choice, identity, before_first, new)
            return
        if isinstance(new, Exception):
            raise new
        # Not inside `_loading`, which another thread may hold for a minute.
        new.overlay_alpha = self._overlay_alpha
        with self._lock:
            before_first(new)
            self._segmenter, self._loaded = new, identity
            self._ready = set(self._sizes)
            if new.device.type == 'cuda':
                free_cache()  # frees the graphs of the old network

    def free(self) -> None:
        """
        Free the network and its buffers; the object cannot be used afterwards.

        On CUDA a capture in progress ends first, and no other one begins: a process that ends in one may
        crash. Nothing waits for a compiler on a CPU, which may take a minute.
        """
        self.close()
        self._prepared = None
        if self._segmenter.device.type == 'cuda':
            with self._loading, self._lock:
                self._release()
                self._prepared = None
        else:
            self._release()

    def close(self) -> None:
        """Begin no capture or compilation any more; whoever waits for one gets a ValueError."""
        self._closing.set()
        for child in tuple(self._children):
            child.kill()

    def _release(self) -> None:
        """Free the network in force."""
        cuda = self._segmenter.device.type == 'cuda'
        del self._segmenter
        gc.collect()
        if cuda:
            free_cache()

    def _load_after(self, choice: NetworkChoice, identity: tuple, before_first: Callable[[Segmenter], None],
                    reason: Exception) -> None:
        """Put a network in force that does not fit beside the old one: free that first; frames wait."""
        log.warning('%s is loaded after the network in force is freed, because both do not fit: %s',
                    choice.model, reason)
        before, failure = self._loaded[0], None
        with self._lock:
            self._release()
            try:
                new = self._load(choice)
            except Exception as e:
                failure = e.with_traceback(None)
            if failure:
                self._segmenter = self._load(before)
                raise failure
            new.overlay_alpha = self._overlay_alpha
            before_first(new)
            self._segmenter, self._loaded = new, identity
            self._ready = set(self._sizes)

    def _prepare_sizes(self, choice: NetworkChoice, sizes: Sequence[tuple[int, int]]) -> None:
        """Prepare the network in force for more sizes, while frames of other sizes go on."""
        try:
            self._go_on()
            network = self._segmenter
            sizes = [size for size in sizes if not self.is_ready(size)]
            if network.device.type == 'cpu':
                self._compile_in_child(choice, network, sizes)
                for size in sizes:
                    self._go_on()
                    network.prepare(*size)
            else:
                for size in sizes:
                    with self._lock:
                        self.make_ready(size)
        except Exception as e:  # it is found again, and counted, with the first frame of such a size
            if self._closing.is_set():
                return
            log.warning('the network could not be prepared beforehand: %s', error_line(e))

    def _compile_in_child(self, choice: NetworkChoice, loaded: Segmenter,
                          images: Sequence[tuple[int, int]], priority: int = 5) -> None:
        """
        Compile a network in a process of its own; from its cache on disk it loads without a pause.

        Compiling holds Python's interpreter lock for seconds, and would compete for the CPU with the network
        in force. `priority`: niceness of the process. Whatever goes wrong is found again, and reported, when
        the network is loaded here.
        """
        images = [image for image in images or (DEFAULT_SIZE,) if not loaded.is_kept(*image)]
        for image in images:
            check_memory(loaded, image)
        sizes = [f'{width}x{height}' for height, width in images]
        if not sizes:
            return
        self._go_on()
        child = subprocess.Popen(
            [sys.executable, '-m', __name__, json.dumps(asdict(choice)), str(priority), *sizes],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._children.add(child)
        if self._closing.is_set():  # `close` has not seen this child
            child.kill()
        child.wait()
        self._children.discard(child)

    def _load(self, choice: NetworkChoice, *, beside: bool = False) -> Segmenter:
        """Load and warm up a network; `beside`: another thread segments meanwhile."""
        loaded = self._open(choice)
        self._warm_up_all(loaded, beside=beside)
        return loaded

    def _open(self, choice: NetworkChoice) -> Segmenter:
        """Load a network; nothing is compiled yet."""
        return Segmenter.load(
            choice.model, choice.device, choice.resolution, resize_mode=choice.resize_mode,
            overlay_alpha=self._overlay_alpha, backend=choice.backend, precision=choice.precision,
            threads=choice.threads)

    def _warm_up_all(self, loaded: Segmenter, *, beside: bool) -> None:
        """Warm up a network for the sizes that arrive; `beside`: another thread segments meanwhile."""
        # CUDA graphs must be captured while nothing else runs; frames run between two sizes.
        exclusive = self._lock if beside and loaded.device.type == 'cuda' else nullcontext()
        limit = None
        while limit != self._limit(loaded):  # again for all sizes where a batch has not fitted
            limit = self._limit(loaded)
            for size in self._sizes or (DEFAULT_SIZE,):
                with exclusive:
                    self._warm_up(loaded, size, first_only=beside and loaded.device.type == 'cpu',
                                  lower=not beside)

    def _warm_up(self, loaded: Segmenter, size: tuple[int, int], first_only: bool = False,
                 lower: bool = True) -> None:
        """
        Warm up every batch size for this frame size; `first_only`: only what the first label needs.

        Where a batch does not fit, it is lowered, and the smaller ones are warmed up again: their graphs may
        have been given up for it, and those of other sizes too. Without `lower` that is an error, since it
        may fit once the network in force is freed.
        """
        if loaded.device.type == 'cpu' and not loaded.is_prepared(*size):
            check_memory(loaded, size)
        if first_only:
            self._go_on()
            loaded(np.zeros((*size, 3), np.uint8))
            return
        batch = 1
        while batch <= self._limit(loaded):
            self._go_on()
            try:
                loaded.warm_up(*size, batch, smoothing=self._smoothing)
            except OutOfMemory:
                if batch == 1 or not lower:
                    raise
                failed = batch
            else:
                batch += 1
                continue
            _lower_batch(loaded, failed)
            batch = 1

    def _limit(self, loaded: Segmenter) -> int:
        return min(self._cameras, loaded.largest_batch) if loaded.device.type == 'cuda' else 1

    def _go_on(self) -> None:
        if self._closing.is_set():
            raise ValueError('the node shuts down')


def check_memory(loaded: Segmenter, size: tuple[int, int]) -> None:
    """Raise a ValueError if a CPU has no memory to compile a network for images of (height, width)."""
    height, width = loaded.network_size(*size)
    needed_mb, available_mb = MB_PER_MEGAPIXEL * height * width / 1e6, machine.free_bytes() / 1e6
    if needed_mb > max(FITS_MB, available_mb):
        raise ValueError(f'{loaded.card.network} at {width}x{height} needs about {needed_mb / 1e3:.1f} GB of '
                         f'memory, and {available_mb / 1e3:.1f} GB are available: choose a smaller '
                         'resolution')


def _lower_batch(loaded: Segmenter, failed: int) -> None:
    loaded.largest_batch = min(loaded.largest_batch, failed - 1)
    log.warning('the GPU has no memory for a batch of %d images; from now on %d run together', failed,
                loaded.largest_batch)
    free_cache()  # what the failed batch has left


def _identity(choice: NetworkChoice) -> tuple[NetworkChoice, int]:
    """Return the choice and when its weights file was written: a rewritten file is another network."""
    try:
        return choice, Path(choice.model).stat().st_mtime_ns
    except (OSError, ValueError):  # no such file, or a name that no file can have: loading says so
        return choice, 0


if __name__ == '__main__':  # the process of _compile_in_child
    os.nice(int(sys.argv[2]))
    LiveSegmenter(NetworkChoice(**json.loads(sys.argv[1])), sizes=[
        parse_size(size)[::-1] for size in sys.argv[3:]])
