# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Lightweight semantic segmentation for ROS 2."""
import os
from pathlib import Path
from typing import Any

__version__ = '0.1.0'

# torch's threads (GNU OpenMP) spin for milliseconds after an operation, on the core that OpenVINO then wants.
# Less of it takes a tenth off a frame on two cores; none at all would make plain torch far slower
# (docs/performance.md). Must be set before torch is loaded.
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '100000')

# ONNX Runtime sends telemetry from the moment that it is loaded, before its own function can turn that off.
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')


def share_dir() -> Path:
    """
    Return the folder that holds `config/`, `launch/` and `weights/`.

    In a checkout (also one installed with `pip install -e` or `colcon build --symlink-install`) that
    is the repository's root; in an installed tree it is `<prefix>/share/lightseg_ros`, found by walking
    up from this file, so that neither ament nor an environment variable is needed.
    """
    here = Path(__file__).resolve()
    root = here.parents[1]
    if (root / 'package.xml').is_file() and (root / 'config').is_dir():
        return root
    for parent in here.parents:
        if (parent / 'share' / 'lightseg_ros' / 'config').is_dir():
            return parent / 'share' / 'lightseg_ros'
    raise FileNotFoundError(
        f'no share/lightseg_ros/config above {here}: the package is installed without its data files; '
        'install it with colcon or pip')


def __getattr__(name: str) -> Any:
    """Import `Segmenter` and `Prediction` when they are first used: torch takes a second to load."""
    if name in ('Segmenter', 'Prediction'):
        from .inference import segmenter
        return getattr(segmenter, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
