# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Corruptions: worse with strength, repeatable, and scored on a whole split."""
import re

import cv2
import numpy as np
import pytest

from lightseg_ros import cli
from lightseg_ros.evaluation.corruptions import corrupt, CORRUPTIONS, STRENGTHS


@pytest.fixture(scope='module')
def rgb():
    """A smooth image with edges; noise and JPEG show on smooth parts, blur at edges."""
    y, x = np.mgrid[:90, :300]
    image = np.stack([y + 40, x // 3 + 60, 200 - y], -1).astype(np.uint8)
    return cv2.rectangle(image, (30, 20), (70, 60), (20, 200, 40), -1)


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_each_strength_is_worse_than_the_one_before(rgb, name):
    before = rgb.copy()
    errors = []
    for strength in STRENGTHS:
        worse = corrupt(rgb, name, strength)
        assert worse.shape == rgb.shape and worse.dtype == np.uint8
        assert np.array_equal(worse, corrupt(rgb, name, strength)), 'the same seed gives the same image'
        errors.append(np.abs(worse.astype(int) - rgb).mean())
    assert 0 < errors[0] < errors[1] < errors[2]
    assert np.array_equal(rgb, before)


def test_what_each_one_does(rgb):
    assert corrupt(rgb, 'darkness', 3).mean() < 0.4 * rgb.mean()
    assert corrupt(rgb, 'fog', 3).std() < 0.5 * rgb.std() and corrupt(rgb, 'fog', 3).mean() > rgb.mean()
    flat = np.full((200, 200, 3), 128, np.uint8)
    assert abs(corrupt(flat, 'noise', 2).std() - 20) < 0.5
    bar = np.zeros((20, 100, 3), np.uint8)
    bar[:, 50:] = 255
    assert len(np.unique(corrupt(bar, 'motion blur', 3)[10, :, 0])) > 3
    assert np.array_equal(corrupt(bar.transpose(1, 0, 2)[:, :20], 'motion blur', 1)[:, 0, 0],
                          bar[0, :, 0]), 'it blurs along rows only'


@pytest.mark.parametrize('name, strength', [('rain', 1), ('fog', 0), ('fog', 4)])
def test_what_does_not_exist_is_named(rgb, name, strength):
    with pytest.raises(ValueError, match=re.escape(f'corruption {name!r} of strength {strength}; expected')):
        corrupt(rgb, name, strength)


def test_a_split_is_scored_in_each(scenes, random_weights, tmp_path, capsys):
    from lightseg_ros import datasets, networks, weights
    known = datasets.load('folder', 'val', scenes).labels
    path = tmp_path / 'three.safetensors'
    card = weights.Card('affnet', known, (100.0, 100.0, 100.0), (70.0, 70.0, 70.0), (64, 64))
    weights.save(path, networks.build('affnet', 3), card)
    arguments = ['evaluate', '--model', str(path), '--device', 'cpu', '--backend', 'torch']
    data = ['--data', 'folder', '--data-root', str(scenes), '--split', 'val']
    assert cli.main([*arguments, *data, '--corrupt']) == 0
    printed = capsys.readouterr().out
    miou = float(re.search(r'mIoU +([\d.]+)', printed)[1])
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in printed.splitlines()
             if line.startswith('|')]
    rows = {name: [float(v) for v in values if v] for name, *values in cells[2:]}
    assert rows['none'] == [pytest.approx(miou, abs=0.06)]
    assert [len(rows[name]) for name in CORRUPTIONS] == [3] * 5
    every = [v for name in CORRUPTIONS for v in rows[name]]
    assert rows['mean of all 15'] == [pytest.approx(sum(every) / 15, abs=0.06)]
    assert cli.main([*arguments, '--corrupt', str(tmp_path)]) == 1
    assert 'name one with --data' in capsys.readouterr().err
