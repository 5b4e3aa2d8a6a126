# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""docs/own-data.md from its first command to its last, as they stand there, on 16 small pictures."""
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile

import cv2
import numpy as np
import pytest

from lightseg_ros import bag_writer, cli, labels, weights

ROOT = Path(__file__).resolve().parents[1]
COLORS = np.array([[128, 128, 128], [128, 64, 128], [64, 0, 128]], np.uint8)  # sky, road, car
NAMES = 'sky', 'road', 'car'
# A few steps on small crops, where the page trains for hours.
SHORT = ['--epochs', '1', '--batch', '6', '--crop', '64x64', '--first-crop', '64x64', '--device', 'cpu',
         '--precision', 'float32', '--no-recalibrate']


def commands() -> list[list[str]]:
    """The indented commands of the page's numbered steps."""
    steps = (ROOT / 'docs/own-data.md').read_text().split('\n## ')[0]
    lines = re.findall(r'^    +(.+)$', steps.replace('\\\n', ' '), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def record(folder: Path, out: str) -> None:
    """Play `ros2 bag record`: a drive of 16 frames, one a second."""
    (folder / 'camera').mkdir()
    for i in range(16):
        ids = np.zeros((72, 96), np.uint8)
        ids[30 + i % 5:] = 1
        ids[40:60, 4 * i:4 * i + 24] = 2
        cv2.imwrite(str(folder / f'camera/{i}.png'), COLORS[ids][..., ::-1])
    bag_writer.from_folder(folder / 'camera', folder / out, labels=labels.load('camvid'), rate=1.0)


def annotate(frames: Path, archive: Path) -> None:
    """Play CVAT: its export "Segmentation mask 1.1", which holds no images."""
    with zipfile.ZipFile(archive, 'w') as packed:
        rows = ''.join(f'{n}:{",".join(map(str, c))}::\n' for n, c in zip(NAMES, COLORS))
        packed.writestr('labelmap.txt', '# label:color_rgb:parts:actions\n' + rows)
        for path in frames.iterdir():
            packed.writestr(f'SegmentationClass/{path.stem}.png', path.read_bytes())
        packed.writestr('ImageSets/Segmentation/default.txt', '\n'.join(p.stem for p in frames.iterdir()))


def launch(arguments: list[str]) -> None:
    """Play `ros2 launch`, which is not here: its arguments exist, and the node starts with these weights."""
    given = dict(text.split(':=') for text in arguments)
    known = (ROOT / 'launch/segment.launch.py').read_text()
    assert all(f"    '{name}': (" in known for name in given), given
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    command = [sys.executable, '-m', 'lightseg_ros.nodes.segmentation', '--ros-args', '-p',
               f'weights:={given["weights"]}', '-r', f'image:={given["image_topic"]}']
    with open('node.log', 'w') as log:
        node = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT,
                                env=os.environ | {'PYTHONPATH': path})
    try:
        until = time.monotonic() + 120
        while 'active; waiting for' not in (said := Path('node.log').read_text()):
            assert node.poll() is None and time.monotonic() < until, said
            time.sleep(0.1)
        assert 'laanet' in said
    finally:
        node.send_signal(signal.SIGINT)
        assert node.wait(30) == 0


def test_every_command_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights').symlink_to(ROOT / 'weights')
    ran = []
    for command in commands():
        verb = ' '.join(command[:3 if command[1] in ('bag', 'data') else 2])
        ran.append(verb)
        if verb == 'ros2 bag record':
            record(tmp_path, command[command.index('-o') + 1])
        elif verb == 'ros2 launch':
            launch(command[4:])
        else:
            if verb == 'lightseg data import':
                annotate(tmp_path / 'frames/images', tmp_path / command[3])
            code = cli.main(command[1:] + SHORT * (verb == 'lightseg train'))
            said = capsys.readouterr()
            assert code == 0, (command, said)
            if verb == 'lightseg data import':
                assert '12 images in train, 4 images in val; classes: sky, road, car' in said.out
    assert ran == ['ros2 bag record', 'lightseg bag to-folder', 'lightseg data import', 'lightseg data check',
                   'lightseg train', 'lightseg evaluate', 'lightseg evaluate', 'ros2 launch',
                   'lightseg export']
    card = weights.read_card(tmp_path / 'runs/yard/laanet-yard.safetensors')
    assert card.labels.names == NAMES and card.labels.colors == tuple(map(tuple, COLORS.tolist()))
    for made in ('yard-check.png', 'out/yard/report.html', 'out/drive/report.html', 'yard.onnx'):
        assert (tmp_path / made).stat().st_size > 1000, made
