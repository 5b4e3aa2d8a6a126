# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
How scores fall when images get worse: darkness, fog, noise, motion blur and JPEG, in three strengths.

The kinds are those of Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations", 2019; the strengths are ours, for images of about 480x360.
"""
from collections.abc import Iterator
from dataclasses import replace
import itertools
from typing import Any

import cv2
import numpy as np

from ..datasets import DataSet
from ..inference.segmenter import Segmenter
from .evaluate import check_classes, read_dataset
from .progress import Progress, until_stopped
from .recordings import RecordedFrame
from .scorer import score
from .scores import Scores


def darkness(rgb: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Let a third, a tenth or a thirtieth of the light in, with the noise of a sensor that counts photons."""
    photons = (rgb / 255.0) ** 2.2 * (300, 100, 30)[strength - 1]
    return _bytes(255 * (rng.poisson(photons) / 1000) ** (1 / 2.2))


def fog(rgb: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Lay a light grey veil over the image, which leaves 70, 50 or 30 % of it."""
    seen = (0.7, 0.5, 0.3)[strength - 1]
    return _bytes(rgb * seen + 220 * (1 - seen))


def noise(rgb: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise with a standard deviation of 10, 20 or 40, on the scale of 0 to 255."""
    return _bytes(rgb + rng.normal(0, (10, 20, 40)[strength - 1], rgb.shape))


def motion_blur(rgb: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Average over 1, 2 or 4 % of the width, as when the camera turns during the exposure."""
    length = max(2, round(rgb.shape[1] * (0.01, 0.02, 0.04)[strength - 1]))
    return _bytes(cv2.blur(rgb.astype(np.float32), (length, 1)))  # on uint8, cv2.blur can turn 0 into 1


def jpeg(rgb: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Compress and decompress with a JPEG quality of 30, 15 or 7."""
    _, coded = cv2.imencode('.jpg', rgb[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, (30, 15, 7)[strength - 1]))
    return cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type]


CORRUPTIONS = {'darkness': darkness, 'fog': fog, 'noise': noise, 'motion blur': motion_blur, 'JPEG': jpeg}
STRENGTHS = (1, 2, 3)


def corrupt(rgb: np.ndarray, name: str, strength: int, seed: int = 0) -> np.ndarray:
    """
    Return a worse image: uint8 RGB (H, W, 3) to the same shape and type; the same one for the same seed.

    `strength`: 1 to 3. `ValueError` if there is no such corruption or strength.
    """
    if name not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(f'corruption {name!r} of strength {strength!r}; expected one of '
                         f'{", ".join(CORRUPTIONS)}, of strength 1 to 3')
    return CORRUPTIONS[name](rgb, strength, np.random.default_rng(seed))


def robustness(dataset: DataSet, segment: Segmenter, *, batch: int = 1,
               quiet: bool = False) -> dict[str, Any]:
    """
    Score a split under every corruption and strength.

    Returns mIoU in per cent: a list by strength for each name in CORRUPTIONS, and the `mean` of all. SIGINT
    and SIGTERM raise `KeyboardInterrupt` after the frame in progress, the second one at once.
    """
    check_classes(dataset, segment)
    found: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    total = len(CORRUPTIONS) * len(STRENGTHS) * len(dataset)
    with Progress(total, 'corrupted', quiet) as progress, until_stopped() as stopped:
        def done(count: int) -> None:
            progress.update(count)
            if stopped.is_set():
                raise KeyboardInterrupt

        for name, strength in itertools.product(CORRUPTIONS, STRENGTHS):
            scores = score(_corrupted(dataset, name, strength), segment, Scores(segment.labels, truth=True),
                           batch=batch, progress=done)
            found[name].append(scores.confusion.miou())
    return {'mean': float(np.mean(list(found.values())))} | found


def _corrupted(dataset: DataSet, name: str, strength: int) -> Iterator[RecordedFrame]:
    for frame in read_dataset(dataset):
        yield replace(frame, rgb=corrupt(frame.rgb, name, strength, seed=frame.index))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
