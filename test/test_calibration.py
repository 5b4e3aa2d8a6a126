# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The temperature: found where it is known, kept in the card, used by every confidence."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lightseg_ros import labels, networks, weights
from lightseg_ros.cli import main
from lightseg_ros.inference import folding
from lightseg_ros.inference.segmenter import Segmenter
from lightseg_ros.training import calibration


def test_the_temperature_of_samples_is_found():
    """Labels drawn from softmax(z): for logits that are z times three, the temperature is three."""
    torch.manual_seed(0)
    z = 2 * torch.randn(40_000, 5)
    truth = torch.multinomial(z.softmax(1), 1)[:, 0]
    for factor in (0.5, 1.0, 3.0):
        assert calibration.fit(factor * z, truth) == pytest.approx(factor, rel=0.03)
    before, after = (calibration.measure(3 * z / t, truth) for t in (1.0, 3.0))
    assert after['nll'] < before['nll'] and after['ece'] < 1 < 10 < before['ece']
    # What is always right, or always wrong, has no best temperature but the limits of a card.
    right = z.argmax(1)
    assert calibration.fit(z, right) == pytest.approx(0.05)
    assert calibration.fit(z, (right + 1) % 5) == pytest.approx(20)


def test_an_error_that_grows_is_explained_and_a_temperature_that_improves_nothing_is_one():
    """One pixel in 100 is wrong with great confidence: the likelihood wants doubt of all the others."""
    def found(z, right):
        z = torch.tensor(z).view(1, 2, 10, 10)
        return calibration.calibrate(nn.Identity(), z, torch.tensor(right).view(1, 10, 10), lambda x: x, 2)

    z = np.zeros((2, 100), np.float32)
    z[0], z[0, 0] = 4, 30
    worse = found(z, np.uint8([1] + 99 * [0]))
    assert worse['temperature'] > 1 and worse['nll_after'] < worse['nll_before']
    assert worse['ece_after'] > worse['ece_before']
    assert calibration.text(worse | {'data': 'd'}).endswith('on other images with "lightseg evaluate"')
    z[:] = 0
    z[0] = np.log(3)
    same = found(z, np.uint8(25 * [1] + 75 * [0]))
    assert same['temperature'] == 1 and same['ece_after'] == same['ece_before']
    assert 'although' not in calibration.text(same | {'data': 'd'})


@pytest.mark.parametrize('truth, limit, reason', [
    (0, 0.05, 'the network is right at nearly every pixel of these labels; likely it was trained on them'),
    (1, 20, 'the network is hardly better than chance on these labels; likely its classes are not')])
def test_a_temperature_at_the_limit_is_told(truth, limit, reason):
    z = torch.tensor([4.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 10, 10)
    labels = torch.full((1, 10, 10), truth, dtype=torch.uint8)
    found = calibration.calibrate(nn.Identity(), z, labels, lambda x: x, 2)
    said = calibration.text(found | {'data': 'd'})
    assert found['temperature'] == limit
    assert f'is the limit of the search, no best one was found: {reason}' in said


@pytest.mark.parametrize('name', networks.NETWORKS)
def test_all_logits_are_divided(name):
    torch.manual_seed(0)
    network, x = networks.build(name, 4).eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network(x) / 2.5
        found = folding.fold(network, temperature=2.5)(x)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    plain, same = (folding.fold(network, **o).state_dict() for o in ({}, {'temperature': 1.0}))
    assert all(torch.equal(plain[k], same[k]) for k in plain)


def test_the_segmenter_s_confidence_uses_it(random_weights):
    network, card = weights.load(random_weights)
    hot = replace(card, calibration={'temperature': 0.2})
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    first, second = (Segmenter(network, c, 'cpu', '160x120', backend='torch')(frame, confidence=True)
                     for c in (card, hot))
    assert (first.labels == second.labels).mean() > 0.9999
    with torch.inference_mode():
        x = (torch.from_numpy(frame).permute(2, 0, 1)[None].float()
             - torch.tensor(card.mean).view(1, 3, 1, 1)) / torch.tensor(card.std).view(1, 3, 1, 1)
        expected = (network(x) / 0.2).softmax(1).amax(1)[0]
    assert np.abs(second.confidence / 255 - expected.numpy()).max() < 0.01
    assert second.confidence.mean() > first.confidence.mean() + 5


def test_calibrate_on_the_command_line(scenes, tmp_path, capsys, caplog):
    known = labels.load(scenes / 'labels.yaml')
    torch.manual_seed(0)
    card = weights.Card('affnet', known, (110.0,) * 3, (60.0,) * 3, (64, 64), dataset='scenes', split='train')
    path, out = tmp_path / 'a.safetensors', tmp_path / 'b.safetensors'
    weights.save(path, networks.build('affnet', 3), card)
    data = ['calibrate', str(path), '--data', 'folder', '--data-root', str(scenes)]
    assert main([*data, '--split', 'val']) == 0 and not out.exists()
    assert main([*data, '--split', 'val', '--out', str(out)]) == 0
    said = capsys.readouterr().out
    found = weights.read_card(out).calibration
    assert found['data'] == 'scenes val' and found['pixels'] == 4 * 62 * 64
    assert found['nll_after'] < found['nll_before']
    assert weights.read_card(out).temperature == found['temperature']
    assert f'temperature {found["temperature"]:.3f} from scenes val: ECE' in said and str(out) in said
    first, second = (weights.load(p)[0].state_dict() for p in (path, out))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not caplog.records
    assert main([*data, '--split', 'train']) == 0
    assert 'was trained on train, which holds train' in caplog.text
    caplog.clear()
    network, card = weights.load(path)
    weights.save(out, network, replace(card, dataset='camvid + scenes', split='trainval + train'))
    assert main(['calibrate', str(out), *data[2:], '--split', 'train']) == 0
    assert 'was trained on trainval + train, which holds train' in caplog.text
    for command in data, ['recalibrate', str(path), *data[2:], '--out', str(tmp_path / 'c.safetensors')]:
        assert main([*command, '--device', 'cuda:77']) == 1
        assert "device is 'cuda:77', but torch" in capsys.readouterr().err
    assert main(['calibrate', str(path), '--data', 'camvid']) == 1
    error = capsys.readouterr().err
    assert 'name a data set with the same classes' in error or 'no CamVid in' in error


@pytest.mark.parametrize('temperature', [0.0, -1, 100, float('nan'), '2', True, None])
def test_a_card_with_another_temperature_is_refused(random_weights, temperature):
    card = weights.read_card(random_weights)
    assert card.temperature == 1 and 'calibration' not in card.to_json()
    text = replace(card, calibration={'temperature': temperature}).to_json()
    with pytest.raises(weights.WeightsError, match='temperature is .*; expected a number from 0.05 to 20'):
        weights.Card.from_json(text)
