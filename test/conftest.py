# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests share: where CamVid lies, and a DDS graph of their own that no traffic leaves."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Before any test imports rclpy: own domain, loopback only, shared memory large enough for images.
os.environ.setdefault('ROS_DOMAIN_ID', str(30 + os.getpid() % 60))
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(ROOT / 'config' / 'fastdds_localhost.xml'))
# Threads that wait without spinning: test processes share a machine's cores with their nodes.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


@pytest.fixture(scope='session')
def camvid() -> Path:
    """Folder of CamVid, or a skip that says how to get it."""
    from lightseg_ros import data
    try:
        return data.camvid_root()
    except data.DataError as e:
        pytest.skip(str(e))
