# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
import torch

from lightseg_ros import labels, networks, weights
from lightseg_ros.weights import Card, WeightsError


@pytest.fixture
def card():
    return Card('laanet', labels.load('camvid'), (105.0, 103.5, 99.6), (71.0, 71.6, 67.8), (480, 360),
                options={'affu': 'ica'}, metrics={'test': {'miou': 61.25}}, license='CC BY-NC 4.0')


@pytest.fixture
def path(tmp_path, card):
    path = tmp_path / 'laanet-camvid.safetensors'
    weights.save(path, networks.build('laanet', 11, affu='ica'), card)
    return path


def rewrite(path, change_state=lambda s: s, change_metadata=lambda m: m):
    """Write the file anew with something changed."""
    from safetensors import safe_open
    with safe_open(path, 'pt') as f:
        metadata = f.metadata()
    save_file(change_state(load_file(path)), path, change_metadata(metadata))


def change_card(**changes):
    return lambda m: m | {'card': json.dumps(json.loads(m['card']) | changes)}


def test_round_trip(tmp_path, card):
    network = networks.build('laanet', 11, affu='ica').eval()
    path = tmp_path / 'deep' / 'x.safetensors'
    weights.save(path, network, card)
    loaded, read = weights.load(path)
    assert read == card and weights.read_card(path) == card
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
    assert not loaded.training
    assert [p.name for p in path.parent.iterdir()] == ['x.safetensors']  # no temporary file is left


def test_half_precision_is_stored_as_fp32(tmp_path, card):
    weights.save(tmp_path / 'x.safetensors', networks.build('laanet', 11, affu='ica').half(), card)
    network, _ = weights.load(tmp_path / 'x.safetensors')
    assert next(network.parameters()).dtype == torch.float32


def test_save_refuses_another_network(tmp_path, card):
    with pytest.raises(WeightsError, match='tensors are missing'):
        weights.save(tmp_path / 'x.safetensors', networks.build('laanet', 11), card)
    with pytest.raises(WeightsError, match='classifier'):
        weights.save(tmp_path / 'x.safetensors', networks.build('laanet', 19, affu='ica'), card)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('share', [0.0, 0.001, 0.5, 0.999])
def test_truncated(path, share):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(WeightsError, match='cut short'):
        weights.load(path)


def test_foreign_files(tmp_path):
    with pytest.raises(WeightsError, match='no such file'):
        weights.load(tmp_path / 'none.safetensors')
    pickle = tmp_path / 'x.safetensors'
    torch.save({'a': torch.zeros(1)}, pickle)
    with pytest.raises(WeightsError, match='not a whole safetensors file'):
        weights.load(pickle)
    save_file({'a': torch.zeros(1)}, pickle)
    with pytest.raises(WeightsError, match='not one of ours'):
        weights.load(pickle)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda s: {k: v for k, v in s.items() if 'adpp' not in k}, 'tensors are missing'),
    (lambda s: s | {'extra': torch.zeros(1)}, "1 are not the network's"),
    (lambda s: s | {'classifier.bias': torch.zeros(19)}, r'classifier.bias is torch.float32 \(19,\)'),
    (lambda s: s | {'classifier.bias': torch.zeros(11).half()}, 'torch.float16'),
    (lambda s: s | {'classifier.bias': torch.full((11,), torch.nan)}, 'not finite'),
    (lambda s: {k: -v if k.endswith('running_var') else v for k, v in s.items()}, 'negative variances'),
])
def test_wrong_tensors(path, change, message):
    rewrite(path, change_state=change)
    with pytest.raises(WeightsError, match=message):
        weights.load(path)


@pytest.mark.parametrize(('change', 'message'), [
    (change_card(network='segnet'), "unknown network 'segnet'; known: laanet"),
    (change_card(options={'depth': 3}), "no option 'depth'"),
    (change_card(mean=[1, 2]), 'its card'),
    (change_card(std=[1, 0, 1]), 'three positive numbers'),
    (change_card(channel_order='bgr'), 'channel_order'),
    (change_card(resolution=[480, 10]), 'from 64 to 8192'),
    (change_card(resolution=[10 ** 9, 480]), 'from 64 to 8192'),
    (change_card(resolution=[True, 480]), 'from 64 to 8192'),
    (change_card(mean=[10 ** 400, 1, 1]), 'mean is'),
    (change_card(mean=[float('nan'), 1, 1]), 'mean is'),
    (change_card(std=[1, 1, float('inf')]), 'std is'),
    (change_card(network=['laanet']), 'network is a list'),
    (change_card(dataset=3), 'dataset is a int'),
    (change_card(license='\x1b[2J'), 'license holds characters that can not be printed'),
    (change_card(options=[1]), 'options is a list'),
    (change_card(recipe={'note': '\ud800'}), 'surrogates not allowed'),
    (change_card(recipe={'note': 'x' * 2 ** 20}), 'characters; expected 1048576 at most'),
    (change_card(network='lrnnet', options={'iterations': 10 ** 9}), 'whole number from 0 to 100'),
    (change_card(network='elanet', options={'dilations': [[2] * 10 ** 4, [2]]}), 'up to 64 dilations'),
    (lambda m: m | {'card': '[' * 10 ** 5}, 'not one of ours'),
    (change_card(surprise=1), 'surprise'),
    (lambda m: m | {'card': '{'}, 'not one of ours'),
    (lambda m: m | {'format': 'lightseg-9'}, "expected 'lightseg-1'"),
])
def test_wrong_cards(path, change, message):
    rewrite(path, change_metadata=change)
    with pytest.raises(WeightsError, match=message) as error:
        weights.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('name', ['\ud800', 'a\x1b[2J', '', 'x' * 101, 7, ['a'], None])
def test_names_that_no_message_can_carry(path, name):
    """A lone surrogate passes JSON and ends whatever publishes or logs it."""
    def change(metadata):
        d = json.loads(metadata['card'])
        d['labels']['classes'][0]['name'] = name
        return metadata | {'card': json.dumps(d)}
    rewrite(path, change_metadata=change)
    with pytest.raises(WeightsError, match='printable characters|surrogates not allowed'):
        weights.load(path)


@pytest.mark.parametrize('name', ['x' * 300 + '.safetensors', 'a/' + 'x' * 300, 'x' * 300, 'a\0/b',
                                  '~nobody-here/x'])
def test_names_that_no_file_can_have(name):
    with pytest.raises(WeightsError):
        weights.load(weights.resolve(name))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'x.safetensors')
    with pytest.raises(WeightsError, match='not a regular file'):
        weights.load(tmp_path / 'x.safetensors')


def test_a_path_object_is_a_path(tmp_path, monkeypatch):
    """Path('./best') has lost its './', and is not the name of packaged weights all the same."""
    monkeypatch.chdir(tmp_path)
    assert weights.resolve(weights.resolve('./best')) == Path('best')


def test_find():
    assert weights.find('laanet').name == 'laanet-camvid.safetensors'
    assert weights.find('laanet-camvid') == weights.find('laanet')
    with pytest.raises(WeightsError, match="for 'laanet-robuts'; did you mean 'laanet-robust'"):
        weights.find('laanet-robuts')
    with pytest.raises(WeightsError, match="for 'FBSNet'; did you mean 'fbsnet'"):
        weights.find('FBSNet')  # as its paper spells it
    with pytest.raises(WeightsError, match=r"for 'segnet'; packaged: .*laanet-camvid.*train --model segnet"):
        weights.find('segnet')


def test_packaged_weights_load_and_say_what_they_are():
    folder = weights.find('laanet').parent
    for path in folder.glob('*.safetensors'):
        network, card = weights.load(path)
        name, dataset = path.stem.rsplit('-', 1)
        assert dataset == card.dataset and name.split('-')[0] == card.network
        assert weights.find(name) == weights.find(path.stem) == path
        assert card.license and card.source
        assert all(part['recipe']['epochs'] > 0 for part in card.recipe.get('average_of', [vars(card)]))
        assert 0 < card.metrics['test']['miou'] < 100
        command = f'lightseg evaluate --model {name} --data camvid --split test'
        assert card.metrics['test']['command'].removesuffix(' --corrupt') == command
        assert card == weights.read_card(path)
        assert not any(torch.isnan(p).any() for p in network.parameters())


def test_what_the_network_has_not_is_not_read(path):
    """A tensor that takes no room on the disk, as a sparse file, once took gigabytes of memory."""
    data, size = path.read_bytes(), 3 << 30
    head = json.loads(data[8:8 + int.from_bytes(data[:8], 'little')])
    body = data[8 + int.from_bytes(data[:8], 'little'):]

    def write(**more):
        text = json.dumps(head | more).encode()
        path.write_bytes(len(text).to_bytes(8, 'little') + text + body)

    write(extra={'dtype': 'U8', 'shape': [size], 'data_offsets': [len(body), len(body) + size]})
    os.truncate(path, path.stat().st_size + size)
    with pytest.raises(WeightsError, match='32[0-9][0-9] MB; the network of its card has'):
        weights.load(path)
    write(**{'x' * weights.MAX_HEAD: {'dtype': 'U8', 'shape': [0], 'data_offsets': [len(body)] * 2}})
    for read in (weights.load, weights.read_card):
        with pytest.raises(WeightsError, match='its head has'):
            read(path)
