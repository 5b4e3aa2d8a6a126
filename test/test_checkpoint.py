# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole files, clear errors, and checkpoints of older versions that still load."""
from dataclasses import replace

import pytest
import torch
from training_runs import same, TINY

from lightseg_ros import datasets, weights
from lightseg_ros.training import checkpoint
from lightseg_ros.training.devices import TrainError
from lightseg_ros.training.run import train


@pytest.fixture
def stopped(scenes, tmp_path):
    """Return a run that stopped after five steps."""
    calls = iter(range(1000))
    dataset = datasets.load('folder', 'train', scenes)
    assert train(TINY, dataset, tmp_path / 'run', device='cpu', stop=lambda: next(calls) == 5) is None
    return tmp_path / 'run'


def test_errors_say_what_differs(scenes, stopped):
    dataset = datasets.load('folder', 'train', scenes)
    with pytest.raises(TrainError, match='continue with --resume'):
        train(TINY, dataset, stopped, device='cpu')
    with pytest.raises(TrainError, match=r'another recipe \(lr, seed differ\)'):
        train(replace(TINY, lr=1.0, seed=2), dataset, stopped, device='cpu', resume=True)
    other = replace(dataset, split='val')
    with pytest.raises(TrainError, match="other data .split 'train', not 'val'"):
        train(TINY, other, stopped, device='cpu', resume=True)
    (stopped / 'last.pt').write_bytes(b'PK no checkpoint')
    with pytest.raises(TrainError, match='not a readable checkpoint'):
        train(TINY, dataset, stopped, device='cpu', resume=True)


def test_a_checkpoint_is_whole_or_as_before(tmp_path):
    path = tmp_path / 'last.pt'
    checkpoint.write(path, {'recipe': {}, 'data': {}, 'step': 1, 'learner': {}})
    with pytest.raises(Exception, match='pickle'):
        checkpoint.write(path, {'step': 2, 'function': lambda: None})
    assert checkpoint.read(path)['step'] == 1 and [p.name for p in tmp_path.iterdir()] == ['last.pt']


def test_a_checkpoint_from_before_a_field_existed_still_resumes(scenes, tmp_path, stopped):
    """Such a run was trained with the default of that field, so only another value differs."""
    dataset = datasets.load('folder', 'train', scenes)
    whole = train(TINY, dataset, tmp_path / 'whole', device='cpu')
    state = torch.load(stopped / 'last.pt', weights_only=True)
    del state['recipe']['smoothing'], state['recipe']['first_scale']
    torch.save(state, stopped / 'last.pt')
    with pytest.raises(TrainError, match=r'another recipe \(smoothing differ\)'):
        train(replace(TINY, smoothing=0.1), dataset, stopped, device='cpu', resume=True)
    assert same(whole, train(TINY, dataset, stopped, device='cpu', resume=True))


def test_a_run_continues_in_another_precision_and_its_card_says_so(scenes, stopped):
    dataset = datasets.load('folder', 'train', scenes)
    path = train(replace(TINY, precision='bfloat16'), dataset, stopped, device='cpu', resume=True)
    assert weights.read_card(path).recipe['precisions'] == ['float32', 'bfloat16']
