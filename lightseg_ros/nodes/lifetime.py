# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The main function that the nodes share: init, spin, shut down."""
from collections.abc import Callable
import os
import signal
import sys
import threading
import time
from typing import TypeVar

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ..texts import error_line, one_line
from .parameters import warn_of_unused_files

N = TypeVar('N', bound=Node)


def run(make_node: Callable[[], N], done: Callable[[N], bool] = lambda node: False, usage: str = '') -> int:
    """
    Create a node, spin it until SIGINT, SIGTERM or `done`, and clean up; returns the exit code.

    With `--help` or `-h` among the arguments it prints `usage` instead.

    An error while the node is made, and one that `done` raises, become one line on stderr and exit code 1. An
    error in a callback is logged, and the node goes on.
    """
    if {'-h', '--help'} & set(sys.argv[1:]):
        print(usage)
        return 0
    try:
        rclpy.init()
    except Exception as e:  # a parameter file or a remapping that cannot be parsed
        print(f'ERROR: {one_line(e)}', file=sys.stderr)
        return 1
    # Not rclpy.spin_once(node), which adds and removes the node for every message and wakes up each time.
    # Created before the node: a signal that shuts the context down during creation would break the executor.
    executor = SingleThreadedExecutor()
    node, failed = None, False
    try:
        node = make_node()
        warn_of_unused_files(node, sys.argv)
        executor.add_node(node)
        # With a timeout, because `done` may change without an event and a signal must not hang the spin.
        while rclpy.ok() and not done(node):
            _spin(executor, node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception as e:
        # SIGTERM shuts the context down at once, possibly while a timer publishes: not an error.
        if rclpy.ok():
            print(f'ERROR: {error_line(e)}', file=sys.stderr)
            failed = True
    finally:
        # Under ros2 launch, Ctrl-C arrives twice: from the terminal and from launch. Clean up only once.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    _leave_threads(int(failed))
    return int(failed)


def _leave_threads(code: int) -> None:
    """
    End the process if a thread is still at work in a library, such as one that compiles a network.

    It cannot be stopped, and Python would crash when it returns to an interpreter that is being shut down.
    """
    if any(thread.is_alive() for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _spin(executor: Executor, node: Node) -> None:
    """Run the next callback; whatever one message or request causes, the node goes on."""
    try:
        executor.spin_once(timeout_sec=0.5)
    except ExternalShutdownException:
        raise
    except Exception as e:
        if not rclpy.ok():
            raise
        node.get_logger().error(f'a callback failed: {error_line(e)}', throttle_duration_sec=5.0)
        time.sleep(0.01)  # an error that returns at once leaves the worker its processor
