# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A few of the faults that `make soak` goes on with for as long as it is told."""
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

import soak  # noqa: E402


def test_nodes_recover_from_faults_and_lose_no_count(ros, tmp_path):
    tested = soak.Soak(tmp_path, seed=0)
    faults = ['camera_returns', 'listener_dies', 'camera_dies', 'clock_jumps', 'storm', 'freeze', 'garbage',
              'cycle']
    try:
        tested.run(faults)
        tested.report()
        assert tested.events == faults and set(tested.recovery) == set(faults)
        assert all(target.counted['processed'] for target in tested.targets)
    finally:
        tested.close()
