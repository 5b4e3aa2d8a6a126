# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The main function that the nodes share: init, spin, shut down."""
from collections.abc import Callable
import signal
import sys
import time

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ..texts import error_line, one_line


def run(make_node: Callable[[], Node], done: Callable[[Node], bool] = lambda node: False,
        args: list[str] | None = None) -> int:
    """
    Create a node, spin it until SIGINT, SIGTERM or `done`, and clean up; returns the exit code.

    An error while the node is made, and one that `done` raises, become one line on stderr and exit code 1. An
    error in a callback is logged, and the node goes on.
    """
    try:
        rclpy.init(args=args)
    except Exception as e:  # a parameter file or a remapping that cannot be parsed
        print(f'ERROR: {one_line(e)}', file=sys.stderr)
        return 1
    # Not rclpy.spin_once(node), which adds and removes the node for every message and wakes up each time.
    # Created before the node: a signal that shuts the context down during creation would break the executor.
    executor = SingleThreadedExecutor()
    node = None
    try:
        node = make_node()
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
            return 1
    finally:
        # Under ros2 launch, Ctrl-C arrives twice: from the terminal and from launch. Clean up only once.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


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
