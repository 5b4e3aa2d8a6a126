# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Programs that run the nodes as processes and measure them through DDS."""
