# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Corruptions: worse with strength, repeatable, and scored on a whole split."""
from dataclasses import replace
import json
import re
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from training_runs import environment

from lightseg_ros import cli, datasets, networks, weights
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


@pytest.fixture
def arguments(scenes, tmp_path):
    """Arguments of an evaluation of three classes by weights that are not trained."""
    path = tmp_path / 'three.safetensors'
    known = datasets.load('folder', 'val', scenes).labels
    card = weights.Card('affnet', known, (100.0, 100.0, 100.0), (70.0, 70.0, 70.0), (64, 64))
    weights.save(path, networks.build('affnet', 3), card)
    return ['evaluate', '--model', str(path), '--device', 'cpu', '--backend', 'torch', '--data', 'folder',
            '--data-root', str(scenes), '--split', 'val']


def test_a_split_is_scored_in_each(arguments, tmp_path, capsys):
    assert cli.main([*arguments, '--corrupt', '--record', '--report', str(tmp_path / 'report')]) == 0
    printed = capsys.readouterr().out
    miou = float(re.search(r'mIoU +([\d.]+)', printed)[1])
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in printed.splitlines()
             if line.startswith('|')]
    rows = {name: [float(v) for v in values if v] for name, *values in cells[2:]}
    assert rows['as they are'] == [pytest.approx(miou, abs=0.06)]
    assert [len(rows[name]) for name in CORRUPTIONS] == [3] * 5
    every = [v for name in CORRUPTIONS for v in rows[name]]
    assert rows['mean of all 15'] == [pytest.approx(sum(every) / 15, abs=0.06)]
    result = json.loads((tmp_path / 'report' / 'result.json').read_text())['corrupted']
    assert {name: np.round(v, 1).tolist() for name, v in result.items()} == {
        'mean': rows['mean of all 15'][0], **{name: rows[name] for name in CORRUPTIONS}}
    assert 'Worse images' in (tmp_path / 'report' / 'report.html').read_text()
    card = weights.read_card(arguments[2]).metrics['val']
    assert card['corrupted'] == {name: np.round(v, 2).tolist() for name, v in result.items()}
    assert card['command'].endswith(' --split val --corrupt')
    assert cli.main([*arguments, '--record']) == 0, 'another score without them does not remove them'
    assert weights.read_card(arguments[2]).metrics['val'] == card
    assert cli.main(['info', arguments[2]]) == 0
    assert f'worse images  {card["corrupted"]["mean"]} %' in capsys.readouterr().out
    assert cli.main([*arguments, '--record', '--resolution', '96x64']) == 0
    assert 'corrupted' not in weights.read_card(arguments[2]).metrics['val'], 'another resolution'


STOPPED = """
import signal
import sys
from lightseg_ros import cli
from lightseg_ros.evaluation import corruptions

def corrupt(rgb, *_, **__):
    signal.raise_signal(int(sys.argv[1]))
    return rgb

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
corruptions.corrupt = corrupt
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_when_they_are_stopped_is_kept(arguments, tmp_path, number):
    """In a process of its own, as a signal would end that of the tests if it came at another time."""
    done = subprocess.run([sys.executable, '-c', STOPPED, str(int(number)), *arguments, '--corrupt', '--json',
                           str(tmp_path / 'r.json')], env=environment(), text=True, capture_output=True,
                          check=False, timeout=120)
    assert done.returncode == 130, done.stderr
    assert 'stopped before all worse images were scored' in done.stdout
    result = json.loads((tmp_path / 'r.json').read_text())
    assert result['counts']['scored'] > 0 and 'corrupted' not in result


def test_without_a_labelled_pixel_there_is_nothing_to_compare(arguments, scenes, tmp_path, capsys):
    root = shutil.copytree(scenes, tmp_path / 'void')
    for path in (root / 'labels' / 'val').iterdir():
        cv2.imwrite(str(path), np.full((64, 64), 255, np.uint8))
    arguments[arguments.index(str(scenes))] = str(root)
    assert cli.main([*arguments, '--corrupt']) == 0
    assert 'mIoU –' in capsys.readouterr().out
    assert cli.main([*arguments, '--record']) == 1
    assert 'no labelled pixel' in capsys.readouterr().err


def test_a_card_edited_by_hand_takes_new_scores(arguments):
    network, card = weights.load(arguments[2])
    weights.save(arguments[2], network, replace(card, metrics={'val': 5}))
    assert cli.main([*arguments, '--record']) == 0
    assert weights.read_card(arguments[2]).metrics['val']['miou'] >= 0


def test_they_need_a_data_set(tmp_path, capsys):
    assert cli.main(['evaluate', '--corrupt', str(tmp_path)]) == 1
    assert 'name one with --data' in capsys.readouterr().err
