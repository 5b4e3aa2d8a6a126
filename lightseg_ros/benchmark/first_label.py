# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
A process that loads a network, labels one frame and says so: what `measure.startup` times.

    python -m lightseg_ros.benchmark.first_label MODEL DEVICE BACKEND PRECISION
"""
import sys

import numpy as np

from ..inference.segmenter import Segmenter

DONE = 'labelled'


def main(model: str, device: str, backend: str, precision: str) -> None:
    """Label a black frame of 640x480; print `DONE`."""
    segment = Segmenter.load(model, device, backend=backend, precision=precision)
    segment(np.zeros((480, 640, 3), np.uint8))
    print(DONE, flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
