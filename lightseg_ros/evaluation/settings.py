# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is told: which network runs and how, and in which processes."""
from dataclasses import dataclass
from pathlib import Path
import platform

from .. import bags, weights
from ..inference import segmenter
from ..inference.segmenter import Segmenter
from .scores import APART_NS

FRAMES_PER_TASK = 200


class EvaluationError(ValueError):
    """An evaluation that can't start or has nothing to score; the text says what is missing."""


@dataclass(frozen=True)
class ModelSpec:
    """
    Which network runs how: the arguments of `Segmenter.load`.

    `digest` is checked where it is set. `smoothing`: share of the earlier frames in the labels, 0 to below 1.
    """

    name: str
    device: str = 'auto'
    resolution: str | None = None
    resize_mode: str = 'fit'
    backend: str = 'auto'
    precision: str = 'auto'
    threads: int = 0
    digest: str = ''
    smoothing: float = 0.0

    @property
    def path(self) -> Path:
        """Path of the weights file; `WeightsError` if a packaged one is not there."""
        return weights.resolve(self.name)

    def load(self) -> Segmenter:
        """Build the segmenter; `EvaluationError` if the file is not the one whose digest was given."""
        if self.digest and weights.digest(self.path) != self.digest:
            raise EvaluationError(f'{self.path} on {platform.node()} is another file than the one of the '
                                  'same name here (SHA-256 differs): copy it there')
        return segmenter.load(self.path, self.device, self.resolution, resize_mode=self.resize_mode,
                              backend=self.backend, precision=self.precision, threads=self.threads)


@dataclass(frozen=True)
class Run:
    """
    How an evaluation of recordings runs, and what it leaves behind.

    `batch`: frames that go through the network at once. `workers`: processes on this machine; `dask`: the
    address of a scheduler instead; `frames_per_task`: what a worker gets at once. `out`: a bag for the
    results, whose overlays are JPEGs of `jpeg_quality`. `parts`: a folder for what is done, from which an
    evaluation that was stopped goes on with `resume`; None: it can't. `apart_ns`: how far pictures in the
    report lie apart.
    """

    batch: int = 1
    workers: int = 1
    dask: str | None = None
    frames_per_task: int = FRAMES_PER_TASK
    out: Path | None = None
    jpeg_quality: int = 90
    parts: Path | None = None
    resume: bool = False
    apart_ns: int = APART_NS
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ('batch', 'workers', 'frames_per_task', 'jpeg_quality'):
            if getattr(self, name) < 1:
                raise EvaluationError(f'{name} is {getattr(self, name)}; expected 1 or more')
        if self.jpeg_quality > 100:
            raise EvaluationError(f'jpeg_quality is {self.jpeg_quality}; expected 1 to 100')
        if self.apart_ns < 0:
            raise EvaluationError(f'apart is {self.apart_ns / bags.NS:g} s; expected 0 or more')
        if self.resume and not self.parts:
            raise EvaluationError('--resume goes on with what --report, --json or --out left: name one')
