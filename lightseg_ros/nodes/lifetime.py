# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From init to shutdown: the main that the nodes share."""
from collections.abc import Callable
import signal
import sys

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


def run(make_node: Callable[[], Node], done: Callable[[Node], bool] = lambda node: False,
        args: list[str] | None = None) -> int:
    """
    Make a node, spin it until SIGINT, SIGTERM or `done`, clean up; returns the exit code.

    A ValueError while the node is made (all our errors are ones) is a line on stderr and exit code 1.
    """
    rclpy.init(args=args)
    # Not rclpy.spin_once(node), which adds and removes the node, and wakes up for each, at every message.
    # Made before the node: a signal that shuts the context down meanwhile would leave half an executor.
    executor = SingleThreadedExecutor()
    node = None
    try:
        node = make_node()
        executor.add_node(node)
        # A timeout, since `done` may change without an event, and since a signal must never hang the spin.
        while rclpy.ok() and not done(node):
            executor.spin_once(timeout_sec=0.5)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        # SIGTERM shuts the context down at once, maybe under a timer that is publishing: no error.
        if rclpy.ok():
            raise
    except ValueError as e:
        print(f'ERROR: {e}', file=sys.stderr)
        return 1
    finally:
        # Ctrl-C comes twice under ros2 launch, from the terminal and from launch; the clean-up runs once.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
