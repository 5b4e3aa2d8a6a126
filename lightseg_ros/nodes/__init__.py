# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes; the only modules that import rclpy and message packages."""
