# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a data set and a recipe to a weights file."""
