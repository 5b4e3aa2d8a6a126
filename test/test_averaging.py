# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The mean of several weights files: what it holds, what its card says, and what can't be averaged."""
from dataclasses import replace

import pytest
import torch
from training_runs import close, TINY

from lightseg_ros import datasets, networks, weights
from lightseg_ros.cli import main
from lightseg_ros.training.averaging import average_weights
from lightseg_ros.training.devices import TrainError
from lightseg_ros.training.recalibration import recalibrate_weights
from lightseg_ros.training.run import train


@pytest.fixture(scope='module')
def parts(scenes, tmp_path_factory):
    """Train a network, and train it on for another epoch; return both files."""
    folder = tmp_path_factory.mktemp('parts')
    dataset = datasets.load('folder', 'train', scenes)
    first = train(replace(TINY, epochs=2), dataset, folder / 'first', device='cpu')
    again = replace(TINY, epochs=1, init=str(first), seed=7, lr=1e-3)
    return first, train(again, dataset, folder / 'second', device='cpu')


def learned(path):
    """Return what was trained, without the statistics of the norms."""
    return {k: v for k, v in weights.load(path)[0].state_dict().items()
            if not k.endswith(('running_mean', 'running_var', 'num_batches_tracked'))}


@pytest.mark.parametrize('shares, expected', [([], (0.5, 0.5)), ([1, 3], (0.25, 0.75))])
def test_the_mean_of_two_files(scenes, parts, tmp_path, shares, expected):
    out, dataset = tmp_path / 'mean.safetensors', datasets.load('folder', 'train', scenes)
    average_weights(parts, shares, dataset, out)
    a, b, mean = map(learned, (*parts, out))
    assert any(not torch.equal(a[k], b[k]) for k in a)
    for key in a:
        assert torch.allclose(mean[key], expected[0] * a[key] + expected[1] * b[key], rtol=1e-5, atol=1e-7)
    # The statistics are those of the new weights over the images.
    recalibrate_weights(out, dataset, again := tmp_path / 'again.safetensors')
    assert close(out, again)
    card = weights.read_card(out)
    found = card.recipe['average_of']
    assert [p['share'] for p in found] == list(expected)
    assert [(p['file'], p['sha256']) for p in found] == [(p.name, weights.digest(p)) for p in parts]
    assert [p['recipe'].get('init', '') for p in found] == ['', parts[0].name]
    assert (card.dataset, card.split, card.metrics) == ('scenes', 'train', {})


def test_one_file_twice_is_that_file(scenes, parts, tmp_path):
    out = tmp_path / 'same.safetensors'
    average_weights([parts[0]] * 3, [1, 0, 5], datasets.load('folder', 'train', scenes), out)
    assert close(out, parts[0])


def test_files_of_two_data_sets_say_both(scenes, parts, tmp_path):
    network, card = weights.load(parts[1])
    other = tmp_path / 'other.safetensors'
    weights.save(other, network, replace(card, dataset='mine', license='CC0'))
    out, dataset = tmp_path / 'mean.safetensors', datasets.load('folder', 'train', scenes)
    average_weights([parts[0], other], [], dataset, out)
    card = weights.read_card(out)
    assert (card.dataset, card.split) == ('scenes + mine', 'train') and card.license.endswith('CC0')
    average_weights([out, parts[0], other], [], dataset, again := tmp_path / 'again.safetensors')
    assert weights.read_card(again).dataset == 'scenes + mine'


def test_what_does_not_fit_together_is_refused(scenes, parts, tmp_path):
    dataset, out = datasets.load('folder', 'train', scenes), tmp_path / 'out.safetensors'
    network, card = weights.load(parts[0])
    other = tmp_path / 'other.safetensors'
    weights.save(other, network, replace(card, mean=(1.0, 2.0, 3.0)))
    with pytest.raises(TrainError, match=r'can not be averaged with .*; mean: \(1\.0, 2\.0, 3\.0\), not'):
        average_weights([parts[0], other], [], dataset, out)
    weights.save(other, network, replace(card, resolution=(480, 360)))
    with pytest.raises(TrainError, match=r'; resolution: 480x360, not 64x64\. .* \(--size\)'):
        average_weights([parts[0], other], [], dataset, out)
    for freeze in '2', None, -1, 1.5, [1]:
        weights.save(other, network, replace(card, recipe={'freeze': freeze}))
        with pytest.raises(TrainError, match=r'other\.safetensors: freeze in the recipe .* expected a whole'):
            average_weights([parts[0], other], [], dataset, out)
        with pytest.raises(TrainError, match=r'other\.safetensors: freeze in the recipe .* expected a whole'):
            recalibrate_weights(other, dataset, out)
    weights.save(other, networks.build('affnet', 3), replace(card, network='affnet', options={}))
    with pytest.raises(TrainError, match='; network: affnet, not laanet. Train one file on'):
        average_weights([parts[0], other], [], dataset, out)
    with pytest.raises(TrainError, match='1 weights file; expected two or more'):
        average_weights(parts[:1], [], dataset, out)
    with pytest.raises(TrainError, match='3 shares for 2 weights files'):
        average_weights(parts, [1, 1, 1], dataset, out)
    for shares in [0, 0], [-1, 2], [float('nan'), 1], [1, float('nan')], [float('inf'), 1], [1e308, 1e308]:
        with pytest.raises(TrainError, match='the shares are .*; expected numbers of 0 or more'):
            average_weights(parts, shares, dataset, out)
    assert not out.exists()


def test_average_on_the_command_line(scenes, parts, tmp_path, capsys):
    out = tmp_path / 'mean.safetensors'
    data = ['--data', 'folder', '--data-root', str(scenes)]
    assert main(['average', *map(str, parts), *data, '--shares', '1', '0', '--out', str(out)]) == 0
    assert str(out) in capsys.readouterr().out and close(out, parts[0])
    assert main(['info', str(out)]) == 0
    assert f'average of   {parts[0].name} (1), {parts[1].name} (0)\n' in capsys.readouterr().out
    out.unlink()
    before = parts[1].read_bytes()
    assert main(['average', *map(str, parts), *data, '--out', str(parts[1])]) == 1
    assert f'{parts[1]} would replace {parts[1]}, ' in capsys.readouterr().err
    assert parts[1].read_bytes() == before
    assert main(['average', 'laanet', str(parts[0]), *data, '--out', str(out)]) == 1
    error = capsys.readouterr().err
    assert 'splits there: train, val' in error and ': name another with --split' in error
    assert main(['average', 'laanet', str(parts[0]), *data, '--split', 'train', '--out', str(out)]) == 1
    assert '; classes: sky, floor, box, not sky, building, ' in capsys.readouterr().err and not out.exists()


def test_info_takes_odd_averages(parts, tmp_path, capsys):
    """A card may be edited by hand."""
    network, card = weights.load(parts[0])
    odd = tmp_path / 'odd.safetensors'
    for found in 'abc', [], [3, {}, {'file': 'a', 'share': 10 ** 400}]:
        weights.save(odd, network, replace(card, recipe={'average_of': found}))
        assert main(['info', str(odd)]) == 0 and 'average of' not in capsys.readouterr().out
    weights.save(odd, network, replace(card, recipe={'average_of': [{'file': '\x1b[2J', 'share': 1 / 3}]}))
    assert main(['info', str(odd)]) == 0
    assert 'average of   \\x1b[2J (0.333)\n' in capsys.readouterr().out
