# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests share: where CamVid lies, and a DDS graph of their own that no traffic leaves."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ROOT.parent / 'shared' / 'data' / 'camvid'
# Before any test imports rclpy: own domain, loopback only, shared memory large enough for images.
os.environ.setdefault('ROS_DOMAIN_ID', str(30 + os.getpid() % 50))
if 'PYTEST_XDIST_WORKER' in os.environ:  # gw0, gw1 ...: each needs a domain beside the one that it inherits
    number = int(os.environ['PYTEST_XDIST_WORKER'][2:])
    os.environ['ROS_DOMAIN_ID'] = str(int(os.environ['ROS_DOMAIN_ID']) + 1 + number)
    # The workers share the cores: threads that wait for each other on busy cores take twice the CPU time.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(ROOT / 'config' / 'fastdds_localhost.xml'))
# Threads that wait without spinning: test processes share a machine's cores with their nodes.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


@pytest.fixture(scope='session')
def camvid() -> Path:
    """Return the folder of CamVid; skip where there is none, fail where it is there and is not found."""
    from lightseg_ros import datasets
    try:
        return datasets.camvid_root()
    except datasets.DataError as e:
        if BESIDE.is_dir():
            pytest.fail(f'CamVid lies in {BESIDE}, but {e}')
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
def scenes(tmp_path_factory) -> Path:
    """Make a data set: eight images of 64x64 for training, four for validation, classes differ in colour."""
    import cv2
    import numpy as np
    import yaml
    root = tmp_path_factory.mktemp('scenes')
    rng = np.random.default_rng(0)
    colors = np.array([[200, 80, 60], [60, 180, 70], [70, 90, 210]])
    for split, count in (('train', 8), ('val', 4)):
        for kind in ('images', 'labels'):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            ids = np.zeros((64, 64), np.uint8)
            ids[int(rng.integers(20, 44)):] = 1
            x, y = rng.integers(0, 40, 2)
            ids[y:y + 24, x:x + 24] = 2
            image = np.clip(colors[ids] + rng.normal(0, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
            ids[:2] = 255
            cv2.imwrite(str(root / 'images' / split / f'{i}.png'), image)
            cv2.imwrite(str(root / 'labels' / split / f'{i}.png'), ids)
    (root / 'labels.yaml').write_text(yaml.safe_dump({
        'name': 'scenes', 'classes': [{'id': i, 'name': n, 'color': c.tolist()}
                                      for i, (n, c) in enumerate(zip(('sky', 'floor', 'box'), colors))]}))
    return root


@pytest.fixture(scope='module')
def sequences(scenes, tmp_path_factory) -> Path:
    """Copy the training images of `scenes` into two sequences, north (3 images) and south (5)."""
    root = tmp_path_factory.mktemp('sequences')
    for path in scenes.rglob('train/*.png'):
        name = 'north' if int(path.stem) < 3 else 'south'
        copy = root / path.parent.relative_to(scenes) / name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (root / 'labels.yaml').write_bytes((scenes / 'labels.yaml').read_bytes())
    return root


@pytest.fixture(autouse=True)
def same_threads():
    """Give torch its number of threads back: a segmenter sets it, and the bits of a training depend on it."""
    import torch
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def ros():
    """Initialise rclpy for a module of tests."""
    rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
