# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a network is on this machine."""
