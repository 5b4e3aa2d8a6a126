# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A network run on frames: uint8 images in, class ids out, on a CPU or on CUDA. Nothing here knows ROS."""
