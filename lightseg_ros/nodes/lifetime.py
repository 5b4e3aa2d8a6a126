# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The main function that the nodes share: init, spin, shut down."""
from collections.abc import Callable
import signal
import sys

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


def run(make_node: Callable[[], Node], done: Callable[[Node], bool] = lambda node: False,
        args: list[str] | None = None) -> int:
    """
    Create a node, spin it until SIGINT, SIGTERM or `done`, and clean up; returns the exit code.

    A ValueError, which is the base of all errors of this package, becomes one line on stderr and exit code 1.
    """
    try:
        rclpy.init(args=args)
    except RuntimeError as e:  # a parameter file or a remapping that cannot be parsed
        print(f'ERROR: {" ".join(str(e).split())}', file=sys.stderr)
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
            executor.spin_once(timeout_sec=0.5)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        # SIGTERM shuts the context down at once, possibly while a timer publishes: not an error.
        if rclpy.ok():
            raise
    except ValueError as e:
        print(f'ERROR: {e}', file=sys.stderr)
        return 1
    finally:
        # Under ros2 launch, Ctrl-C arrives twice: from the terminal and from launch. Clean up only once.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
