# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The built-in street: rendered frames with exact labels and depth."""
