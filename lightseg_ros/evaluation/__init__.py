# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How good a network is on data sets and recordings, and the report of it."""
