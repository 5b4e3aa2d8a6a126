# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes; the only modules that import rclpy and message packages."""
from importlib import import_module
import os
import signal
import sys


def segmentation_node() -> None:
    """Console script `segmentation_node`."""
    _run('segmentation')


def camera_node() -> None:
    """Console script `camera_node`."""
    _run('camera')


def _run(module: str) -> None:
    """Import a node's module, which takes seconds, and run it; a Ctrl-C meanwhile ends it without a word."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        # Not by its KeyboardInterrupt, of which numpy makes an ImportError while it is imported.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    main = import_module(f'.{module}', __name__).main
    signal.signal(signal.SIGINT, before)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
