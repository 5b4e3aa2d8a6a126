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
    from lightseg_ros import datasets
    try:
        return datasets.camvid_root()
    except datasets.DataError as e:
        pytest.skip(str(e))


@pytest.fixture(scope='session')
def random_weights(tmp_path_factory) -> Path:
    """A LAANet that was never trained, as a weights file: enough wherever labels need not make sense."""
    import torch

    from lightseg_ros import labels, networks, weights
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'laanet-camvid.safetensors'
    card = weights.Card('laanet', labels.load('camvid'), (105.0, 103.0, 100.0), (71.0, 71.0, 68.0),
                        (480, 360))
    weights.save(path, networks.build('laanet', 11), card)
    return path


@pytest.fixture(scope='module')
def ros():
    """Initialise rclpy for a module of tests."""
    rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
