# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training: turns a data set and a recipe into a weights file."""
