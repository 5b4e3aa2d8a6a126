# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Costs of the networks to the last multiply-accumulate, and what `lightseg info` says."""
import re

import pytest

from lightseg_ros import info, labels, networks, weights
from lightseg_ros.cli import main

# Multiply-accumulates of convolutions: 1024x512 with 19 classes, 480x360 with 11.
MACS = {
    'laanet': (9_634_469_888, 3_164_540_400),
    'fbsnet': (7_713_807_520, 2_520_332_832),
    'fbsnet_released': (17_467_855_848, 5_713_090_920),
    'elanet': (9_937_724_928, 3_264_386_432),
    'elanet_released': (9_295_978_752, 3_052_861_568),
    'lrnnet': (8_286_502_912, 2_730_456_000),
    'affnet': (5_208_193_280, 1_704_931_308),
}


@pytest.mark.parametrize('name', networks.NETWORKS)
def test_macs(name):
    found = info.describe(name, *info.CITYSCAPES), info.describe(name, *info.CAMVID)
    assert tuple(d.macs for d in found) == MACS[name]
    for d in found:
        assert sum(b.parameters for b in d.blocks) == d.parameters
        assert sum(b.macs for b in d.blocks) == d.macs
        assert all(b.shape for b in d.blocks)


@pytest.mark.parametrize('options, macs', [
    ({'svn': ()}, 8_219_394_048), ({'block': 'ss-nbt', 'svn': ()}, 11_482_562_560)])
def test_macs_of_lrnnets_models(options, macs):
    """Model A (8.219 G) and the SS-nbt baseline (11.483 G; with norms the paper's 11.7 G)."""
    assert info.describe('lrnnet', 19, (1024, 512), **options).macs == macs


def test_macs_by_hand():
    assert info.describe('laanet', 11, (480, 360)).blocks[0] == info.Block(
        'stem.0', 'ConvBNPReLU', (32, 180, 240), 960, 3 * 32 * 9 * 180 * 240)
    # A transposed convolution counts at the positions of its input.
    assert info.describe('fbsnet', 11, (480, 360)).blocks[-1] == info.Block(
        'classifier', 'ConvTranspose2d', (11, 360, 480), 65 * 11, 16 * 11 * 4 * 180 * 240)


def test_overview(capsys):
    assert main(['info']) == 0
    lines = capsys.readouterr().out.splitlines()
    row = {line.split()[0]: re.split(r'  +', line) for line in lines[2:2 + len(networks.NETWORKS)]}
    assert list(row) == list(networks.NETWORKS)
    assert row['laanet'][1:8] == ['665,943', '665,679', '9.634', '3.165', '0.67 M', '–', '67.9']
    assert row['fbsnet'][1:8] == ['590,735', '590,215', '7.714', '2.520', '0.62 M', '9.7 G', '68.9']
    for path, card in info.packaged().items():
        assert isinstance(card, weights.Card), card
        mine = next(line for line in lines if line.startswith(path.stem + ' '))
        assert card.dataset in mine and card.license in mine
        for measured in card.metrics.values():
            assert str(measured['miou']) in mine


def test_one_network(capsys):
    assert main(['info', 'lrnnet', '--classes', '11', '--resolution', '480x360', '--options',
                 '{"svn": [8]}']) == 0
    out = capsys.readouterr().out
    assert 'arXiv 2006.02706' in out and "block = 'fcb'" in out
    assert re.search(r'stage8\.8 +FCB +128x45x60 +67,584 +180\.1', out)
    assert re.search(r'sum +682,266 +2,730\.5', out)


def test_one_weights_file(tmp_path, capsys):
    path = tmp_path / 'mine.safetensors'
    card = weights.Card(
        'affnet', labels.load('camvid'), (100, 101, 102), (60, 61, 62), (128, 96),
        options={'fusion': 'ewa'}, dataset='camvid', split='train', license='CC BY-NC 4.0',
        metrics={'val': {'miou': 51.25, 'command': 'lightseg evaluate'}})
    weights.save(path, networks.build('affnet', 11, fusion='ewa'), card)
    assert main(['info', str(path)]) == 0
    out = capsys.readouterr().out
    for text in ("fusion = 'ewa'", 'camvid, split train', '51.25 %, by: lightseg evaluate', 'CC BY-NC 4.0',
                 weights.digest(path), '1,459,470'):
        assert text in out


def test_a_huge_licence_does_not_fill_the_screen(tmp_path, capsys):
    """A card is a stranger's text."""
    card = weights.Card('affnet', labels.load('camvid'), (100, 101, 102), (60, 61, 62), (128, 96),
                        license='all rights ' * 20_000)
    weights.save(tmp_path / 'mine.safetensors', networks.build('affnet', 11), card)
    assert main(['info', str(tmp_path / 'mine.safetensors')]) == 0
    out = capsys.readouterr().out
    assert 'all rights all rights' in out and max(len(line) for line in out.splitlines()) < 600


@pytest.mark.parametrize('corrupted', [
    None, 5, [], {}, *({'mean': v} for v in (None, True, 'a\nb', [1], float('nan'), 10**400))])
def test_odd_scores_of_worse_images_are_left_out(tmp_path, corrupted):
    card = weights.Card('affnet', labels.load('camvid'), (100, 101, 102), (60, 61, 62), (128, 96),
                        metrics={'test': {'miou': 'high\n\x1b[31m', 'corrupted': corrupted}})
    path = tmp_path / 'mine.safetensors'
    weights.save(path, networks.build('affnet', 11), card)
    page = info.card_page(path, weights.read_card(path))
    assert r'high \x1b[31m %' in page and 'worse images' not in page


def test_mistakes(tmp_path, capsys):
    for arguments, text in (
            (['unet'], "'unet' is not a network (known: laanet, fbsnet, "),
            (['lrnnet', '--options', '{"svn": [5]}'], 'svn is (5,); expected one of'),
            ([str(tmp_path / 'none.safetensors')], 'no such file')):
        assert main(['info', *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith('ERROR: ') and error.count('\n') == 1 and text in error
    with pytest.raises(SystemExit):
        main(['info', 'laanet', '--resolution', '48x48'])
    assert 'each 64 to 8192' in capsys.readouterr().err
