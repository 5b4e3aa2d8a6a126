# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes; the only modules that import rclpy and message packages."""
import atexit
from importlib import import_module
import os
import signal
import sys


def segmentation_node() -> int:
    """Console script `segmentation_node`."""
    return _run('segmentation')


def camera_node() -> int:
    """Console script `camera_node`."""
    return _run('camera')


def _run(module: str) -> int:
    """Import a node's module, which takes seconds, and run it; a Ctrl-C meanwhile ends it without a word."""
    code = [1]
    atexit.register(_leave, code)
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        # Not by its KeyboardInterrupt, of which numpy makes an ImportError while it is imported.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    main = import_module(f'.{module}', __name__).main
    signal.signal(signal.SIGINT, before)
    try:
        code[0] = main()
    except KeyboardInterrupt:
        code[0] = 130
    return code[0]


def _leave(code: list[int]) -> None:
    """
    End the process when all other exit functions have run: they run from the last one to the first.

    Python would go on to collect each object of torch and OpenVINO, for up to 19 s on a busy machine.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code[0])
