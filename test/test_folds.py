# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Folds: each sequence is held out once; confusion matrices are pooled; unfinished folds continue."""
import json
import os
import subprocess
import time

import numpy as np
import pytest
from training_runs import command, environment

from lightseg_ros import weights
from lightseg_ros.cli import main
from lightseg_ros.training import folds


def arguments(root, out, *more: str, epochs: int = 2) -> list[str]:
    return ['folds', '--out', str(out), *more, '--', '--model', 'affnet', '--data', 'folder', '--data-root',
            str(root), '--split', 'train', '--recipe', 'cpu', '--device', 'cpu', '--crop', '64x64',
            '--first-crop', '64x64', '--batch', '2', '--epochs', str(epochs), '--checkpoint-every', '0']


def fold(counts: list[list[int]]) -> dict:
    matrix = folds.ConfusionMatrix(2)
    matrix.counts += np.array(counts)
    return {'classes': ['road', 'rider'], 'counts': counts, 'miou': matrix.miou(), 'train_miou': 90.0,
            'iou': {n: v for n, v in zip(('road', 'rider'), matrix.iou()) if v == v}}


def test_pooling_counts_each_pixel_once():
    """A drive with ten pixels of a class must not weigh as much as one with a thousand."""
    result = folds.pool({'a': fold([[900, 100, 0], [0, 1000, 0]]), 'b': fold([[990, 0, 0], [10, 0, 0]]),
                         'c': fold([[500, 0, 0], [0, 0, 0]])})
    assert result.folds['c']['miou'] == 100 and 'rider' not in result.folds['c']['iou']
    assert result.pooled.miou() == pytest.approx(100 * (2390 / 2500 + 1000 / 1110) / 2)
    scores = [f['miou'] for f in result.folds.values()]
    assert result.mean == pytest.approx(np.mean(scores))
    assert result.spread == pytest.approx(np.std(scores, ddof=1))
    lines = result.text().splitlines()
    assert lines[4] == '| c | 100.00 | 90.00 | 100.0 |  |'
    assert lines[5].startswith('| all, pooled | 92.85 |  |')


def test_folds_hold_out_each_sequence(sequences, tmp_path, capsys):
    assert main(arguments(sequences, tmp_path)) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / 'folds.json').read_text())
    assert list(result['folds']) == ['north', 'south'] and f'pooled {result["pooled"]:.2f} % mIoU' in out
    total = sum(np.array(f['counts']) for f in result['folds'].values())
    assert total.sum() == 8 * 62 * 64  # every image once, without its two rows of void
    for name in ('north', 'south'):
        card = weights.read_card(tmp_path / name / 'affnet-scenes.safetensors')
        assert card.split == f'train:-{name}' and '1 threads' in card.recipe['device']
    stamps = [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob('*.safetensors'))]
    assert main(arguments(sequences, tmp_path)) == 0  # finished folds are not trained again
    assert stamps == [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob('*.safetensors'))]
    assert main(arguments(sequences, tmp_path, epochs=3)) == 1
    assert 'was trained with another recipe (epochs differ)' in capsys.readouterr().err
    assert main(arguments(sequences, tmp_path / 'x', '--sequences', 'west')) == 1
    assert 'no sequence west; its sequences: north (3), south (5)' in capsys.readouterr().err
    assert main([*arguments(sequences, tmp_path / 'x'), '--hold-out', 'north']) == 1
    assert '--hold-out belongs to each fold' in capsys.readouterr().err


def test_killed_folds_continue(sequences, tmp_path):
    def steps() -> int:
        return sum(len(p.read_text().splitlines()) for p in tmp_path.glob('*/log.csv'))

    process = subprocess.Popen(command(*arguments(sequences, tmp_path, epochs=7)), env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while steps() < 5 and process.poll() is None:
        time.sleep(0.02)
    affinities = [os.sched_getaffinity(int(p.parent.name)) for p in children(tmp_path)]
    process.terminate()
    process.communicate(timeout=60)
    assert not list(tmp_path.glob('*/*.safetensors')) and not children(tmp_path)
    assert affinities and all(len(cores) == 1 for cores in affinities)
    before = steps()
    assert main(arguments(sequences, tmp_path, epochs=7)) == 0
    # The rows that were there are continued, not trained again.
    assert before > 3 and steps() == 2 * 8


def children(folder):
    found = []
    for path in folder.__class__('/proc').glob('[0-9]*/cmdline'):
        try:
            if f'{folder}/'.encode() in path.read_bytes() and b'--hold-out' in path.read_bytes():
                found.append(path)
        except OSError:  # the process has ended
            continue
    return found
