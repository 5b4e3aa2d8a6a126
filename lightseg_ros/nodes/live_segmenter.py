# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network that a node runs: loaded, warmed up, and exchanged for another while frames arrive; no ROS."""
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import gc
from pathlib import Path
import threading

import torch

from ..inference import segmenter
from ..inference.segmenter import Segmenter

# A new network is warmed up for this many of the image sizes that were segmented last.
KEPT_SIZES = 4
DEFAULT_SIZE = (480, 640)


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

    One thread segments, inside `use`; another one may call `change`. `cameras`: largest number of frames
    that arrive together. ValueErrors from loading pass through.
    """

    def __init__(self, choice: NetworkChoice, *, cameras: int = 1, overlay_alpha: float = 0.5):
        self._cameras = cameras
        self._overlay_alpha = overlay_alpha
        # Held while frames are segmented, and while another network is loaded: CUDA graphs must be captured
        # while nothing else runs.
        self._lock = threading.Lock()
        self._sizes: OrderedDict[tuple[int, int], None] = OrderedDict()  # (height, width), newest last
        self._ready: set[tuple[int, int]] = set()
        self._loaded = _identity(choice)
        self._segmenter = self._load(choice)

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
        return _batch_limit(self._segmenter, self._cameras)

    @property
    def overlay_alpha(self) -> float:
        """Share of the class colour in the overlay, 0 to 1."""
        return self._overlay_alpha

    @overlay_alpha.setter
    def overlay_alpha(self, alpha: float) -> None:
        self._overlay_alpha = self._segmenter.overlay_alpha = alpha

    @contextmanager
    def use(self) -> Iterator[Segmenter]:
        """Give the segmenter to the caller's thread; it is not exchanged before the end of the block."""
        with self._lock:
            yield self._segmenter

    def prepare(self, size: tuple[int, int]) -> None:
        """
        Note that frames of (height, width) arrive, and capture their CUDA graphs for every batch size.

        Call it inside `use`. Without it, each new combination of cameras would be captured on a later frame.
        """
        if self._segmenter.device.type == 'cuda' and size not in self._ready:
            self._warm_up(self._segmenter, size)
            self._ready.add(size)
        self._sizes[size] = None
        self._sizes.move_to_end(size)
        if len(self._sizes) > KEPT_SIZES:
            self._sizes.popitem(last=False)

    def differs(self, choice: NetworkChoice) -> bool:
        """Return whether `choice` is another network than the one in force, or its file was rewritten."""
        return _identity(choice) != self._loaded

    def change(self, choice: NetworkChoice, on_change: Callable[[Segmenter], None]) -> None:
        """
        Load and warm up another network and put it in force; frames wait meanwhile.

        `on_change` is called before the first frame of the new network. If loading fails, the old network
        stays in force.
        """
        with self._lock:
            identity = _identity(choice)
            new = self._load(choice)
            self._segmenter, self._loaded = new, identity
            on_change(new)
            if new.device.type == 'cuda':
                torch.cuda.empty_cache()  # frees the graphs of the old network

    def free(self) -> None:
        """Free the network and its buffers; the object cannot be used afterwards."""
        cuda = self._segmenter.device.type == 'cuda'
        del self._segmenter
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()

    def _load(self, choice: NetworkChoice) -> Segmenter:
        loaded = segmenter.load(
            choice.model, choice.device, choice.resolution, resize_mode=choice.resize_mode,
            overlay_alpha=self._overlay_alpha, backend=choice.backend, precision=choice.precision,
            threads=choice.threads)
        sizes = list(self._sizes) or [DEFAULT_SIZE]
        for size in sizes:
            self._warm_up(loaded, size)
        self._ready = set(sizes)
        return loaded

    def _warm_up(self, loaded: Segmenter, size: tuple[int, int]) -> None:
        """Warm up every batch size for this frame size."""
        for batch in range(1, _batch_limit(loaded, self._cameras) + 1):
            loaded.warm_up(*size, batch)


def _batch_limit(loaded: Segmenter, cameras: int) -> int:
    return cameras if loaded.device.type == 'cuda' else 1


def _identity(choice: NetworkChoice) -> tuple[NetworkChoice, int]:
    """Return the choice and when its weights file was written: a rewritten file is another network."""
    path = Path(choice.model)
    return choice, path.stat().st_mtime_ns if path.is_file() else 0
