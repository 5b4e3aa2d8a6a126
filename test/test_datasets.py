# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets: layouts, sequences, packing, and errors that name the file."""
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import yaml

import lightseg_ros
from lightseg_ros import datasets, labels
from lightseg_ros.training import samples


def write_pair(image: Path, label: Path, ids: np.ndarray, seed: int = 0) -> None:
    image.parent.mkdir(parents=True, exist_ok=True)
    label.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*ids.shape, 3), np.uint8)
    assert cv2.imwrite(str(image), pixels) and cv2.imwrite(str(label), ids)


def test_void_is_255_on_the_device_whatever_the_files_have(tmp_path):
    write_pair(tmp_path / 'images/x.png', tmp_path / 'labels/x.png', np.where(blocks() == 255, 100, blocks()))
    (tmp_path / 'labels.yaml').write_text(yaml.safe_dump({
        'name': 'orchard', 'ignore_id': 100, 'classes': [
            {'id': i, 'name': n, 'color': [i, i, i]} for i, n in enumerate(('grass', 'tree', 'sky'))]}))
    dataset = datasets.load('folder', 'all', tmp_path)
    assert samples.to_device(dataset, 'cpu')[1].unique().tolist() == [0, 1, 2, 255]
    assert dataset.command('laanet') == ('lightseg evaluate --model laanet-orchard.safetensors --data folder '
                                         f'--data-root {tmp_path.name} --split all')
    assert " --model 'my best.safetensors' " in dataset.command('my best.safetensors')


def blocks(height: int = 96, width: int = 128) -> np.ndarray:
    """Label image with classes 0, 1, 2 and void as vertical bands."""
    ids = np.repeat(np.array([0, 1, 2, 255], np.uint8), width // 4)
    return np.tile(ids, (height, 1))


@pytest.fixture
def own(tmp_path) -> Path:
    """A data set of one's own: four pairs of three classes in images/train."""
    for i in range(4):
        write_pair(tmp_path / f'images/train/{i}.png', tmp_path / f'labels/train/{i}.png', blocks(), i)
    (tmp_path / 'labels.yaml').write_text(yaml.safe_dump({
        'name': 'orchard', 'classes': [{'id': i, 'name': n, 'color': [i, i, i]}
                                       for i, n in enumerate(('grass', 'tree', 'sky'))]}))
    return tmp_path


def test_camvid_beside_a_checkout_is_found(tmp_path):
    """The fixture `camvid` would skip its tests if the package moved and looked in another place."""
    package = Path(lightseg_ros.__file__).parent
    shutil.copytree(package, tmp_path / 'checkout/lightseg_ros', ignore=shutil.ignore_patterns('__pycache__'))
    beside = tmp_path / 'shared/data/camvid'
    (beside / 'train').mkdir(parents=True)
    code = 'from lightseg_ros import datasets; print(datasets.camvid_root())'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path / 'checkout', capture_output=True,
                          text=True, env={'PATH': ''}, check=True)
    assert Path(done.stdout.strip()) == beside


def test_camvid_is_the_papers_split(camvid):
    counts = {split: len(datasets.camvid(split, camvid)) for split in ('train', 'val', 'trainval', 'test')}
    assert counts == {'train': 367, 'val': 101, 'trainval': 468, 'test': 233}
    rgb, ids = datasets.camvid('test', camvid).read(0)
    assert rgb.shape == (360, 480, 3) and rgb.dtype == np.uint8
    assert ids.shape == (360, 480) and set(np.unique(ids)) <= {*range(11), 255}


def test_cityscapes_ids_become_train_ids(tmp_path):
    known = labels.load('cityscapes')
    ids = np.resize(np.array([*(own[0] for own in known.source_ids), 0, 3, 14, 255], np.uint8), (64, 92))
    for city, frame in (('ulm', 1), ('bonn', 0)):
        stem = f'{city}_00000{frame}_000019'
        write_pair(tmp_path / f'leftImg8bit/val/{city}/{stem}_leftImg8bit.png',
                   tmp_path / f'gtFine/val/{city}/{stem}_gtFine_labelIds.png', ids)
    dataset = datasets.load('cityscapes', 'val', tmp_path)
    assert [p.image.parent.name for p in dataset.pairs] == ['bonn', 'ulm']
    _, found = dataset.read(0)
    assert found[0, :23].tolist() == [*range(19), 255, 255, 255, 255]
    with pytest.raises(datasets.DataError, match=r'no folder .*leftImg8bit/train'):
        datasets.load('cityscapes', 'trainval', tmp_path)
    dataset.pairs[1].label.unlink()
    with pytest.raises(datasets.DataError, match='ulm_000001_000019_gtFine_labelIds'):
        datasets.load('cityscapes', 'val', tmp_path)


def test_own_data_set(own):
    dataset = datasets.load('folder', 'train', own)
    assert (dataset.name, len(dataset), dataset.labels.names) == ('orchard', 4, ('grass', 'tree', 'sky'))
    images, ids = samples.to_device(dataset, 'cpu', (64, 64))
    assert images.shape == (4, 3, 64, 64) and ids.unique().tolist() == [0, 1, 2, 255]


def test_camvid_s_sequences_are_its_drives(camvid):
    assert datasets.camvid('trainval', camvid).sequences == {'0001TP': 62, '0006R0': 101, '0016E5': 305}
    assert datasets.camvid('test', camvid).sequences == {'0001TP': 62, 'Seq05VD': 171}
    rest, held = datasets.hold_out(datasets.camvid('train', camvid), ['0006R0'])
    assert (rest.split, len(rest), held.split, len(held)) == ('train:-0006R0', 266, 'train:0006R0', 101)
    assert held.command('laanet').endswith('--data camvid --split train:0006R0')
    for part in (rest, held):  # the command finds the same images
        assert datasets.load('camvid', part.split, camvid) == part


def test_sequences_of_an_own_data_set(own):
    """They are sub-folders, or what stands before the first underscore of a file name."""
    for sequence, name in (('monday', '0'), ('monday', '1'), ('tuesday', '0')):
        write_pair(own / f'images/train/{sequence}/{name}.png', own / f'labels/train/{sequence}/{name}.png',
                   blocks(), 9)
    write_pair(own / 'images/train/drive7_b_0001.png', own / 'labels/train/drive7_b_0001.png', blocks(), 10)
    dataset = datasets.load('folder', 'train', own)
    assert dataset.sequences == {'': 4, 'drive7': 1, 'monday': 2, 'tuesday': 1}
    rest, held = datasets.hold_out(dataset, ['monday', 'drive7'])
    assert len(rest) == 5 and [p.sequence for p in held.pairs] == ['drive7', 'monday', 'monday']
    assert all(p.image.stem == p.label.stem and p.image.parent.name == p.label.parent.name
               for p in dataset.pairs)
    with pytest.raises(datasets.DataError, match=r'no sequence sunday; its sequences: .*monday \(2\)'):
        datasets.load('folder', 'train:-sunday', own)
    with pytest.raises(datasets.DataError, match=r'no other sequence than monday \(2\); expected two'):
        datasets.hold_out(held.__class__('x', 'y', held.pairs[1:], dataset.labels), ['monday'])
    (own / 'labels/train/tuesday/0.png').unlink()
    with pytest.raises(datasets.DataError, match='the first is tuesday/0.png'):
        datasets.load('folder', 'train', own)


def spoil_image(root):
    (root / 'images/train/1.png').write_bytes(b'no image')


def spoil_label(root):
    (root / 'labels/train/1.png').write_bytes(b'no image')


def color_label(root):
    cv2.imwrite(str(root / 'labels/train/1.png'), np.full((96, 128, 3), (0, 1, 2), np.uint8))


def strange_id(root):
    cv2.imwrite(str(root / 'labels/train/1.png'), np.full((96, 128), 7, np.uint8))


def other_size(root):
    cv2.imwrite(str(root / 'labels/train/1.png'), np.zeros((96, 64), np.uint8))


def other_size_of_pair(root):
    write_pair(root / 'images/train/1.png', root / 'labels/train/1.png', blocks(64))


def two_labels(root):
    (root / 'labels/train/1.tif').write_bytes(b'x')


def two_images(root):
    (root / 'images/train/1.bmp').write_bytes(b'x')


@pytest.mark.parametrize('damage, expected', [
    (spoil_image, r'images/train/1.png is not a readable image'),
    (two_labels, r'labels/train/1.png and 1.tif have the same stem; expected one label of that name'),
    (two_images, r'images/train/1.bmp and 1.png have the same stem; expected one image'),
    (spoil_label, r'labels/train/1.png is not a label picture: 8 bytes'),
    (color_label, r'labels/train/1.png is not a label picture: a coloured PNG; expected one class id'),
    (strange_id, r"labels/train/1.png: ids \[7\] are not in label set 'orchard'"),
    (other_size, r'labels/train/1.png is 64x96, its image 128x96'),
    (other_size_of_pair, r'1.png is 128x64, the first image 128x96; .*--size'),
])
def test_errors_name_the_file(own, damage, expected):
    damage(own)
    with pytest.raises(datasets.DataError, match=expected):
        samples.to_device(datasets.load('folder', 'train', own), 'cpu')


def test_hidden_files_are_passed_over(own):
    for name in ('images/train/._1.png', 'labels/train/._1.png', 'images/train/Thumbs.db', 'labels/.DS_Store',
                 'images/train/.trash/9.png'):
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_bytes(b'x')
    assert len(datasets.load('folder', 'train', own)) == 4
    assert datasets.splits(own) == ['train']


def test_errors_name_what_is_missing(own):
    (own / 'labels/train/2.png').unlink()
    with pytest.raises(datasets.DataError, match=r'1 images in .*train have no label .* the first is 2.png'):
        datasets.load('folder', 'train', own)
    with pytest.raises(datasets.DataError, match=r'no folder .*images/test; splits there: train'):
        datasets.load('folder', 'test', own)
    with pytest.raises(datasets.DataError, match='known: camvid, cityscapes, folder'):
        datasets.load('kitti', 'train', own)
    (own / 'labels.yaml').write_text('classes: 3')
    once = r'labels\.yaml: not .* expected name, classes[^;]*\(an example: '
    with pytest.raises(datasets.DataError, match=once):
        datasets.load('folder', 'train', own)


def test_packing_keeps_files_that_fit(own, tmp_path_factory):
    out = tmp_path_factory.mktemp('packed')
    note = datasets.pack('folder', own, ['train'], out / 'a.tar', 10_000_000)
    with tarfile.open(out / 'a.tar') as tar:
        tar.extractall(out / 'a')
    assert note == 'images unchanged'
    packed, original = datasets.load('folder', 'train', out / 'a'), datasets.load('folder', 'train', own)
    assert 'unchanged' in packed.source
    for i in range(4):
        assert all(np.array_equal(a, b) for a, b in zip(packed.read(i), original.read(i)))


def test_packing_says_what_it_lost(own, tmp_path_factory):
    out = tmp_path_factory.mktemp('packed')
    whole = sum(p.stat().st_size for p in own.rglob('*.png'))
    note = datasets.pack('folder', own, ['train'], out / 'a.tar', whole * 3 // 4)
    assert (out / 'a.tar').stat().st_size <= whole * 3 // 4
    with tarfile.open(out / 'a.tar') as tar:
        tar.extractall(out / 'a')
    packed, original = datasets.load('folder', 'train', out / 'a'), datasets.load('folder', 'train', own)
    assert 'JPEG' in note and note in packed.source
    for i in range(4):
        (x, y), (x0, y0) = packed.read(i), original.read(i)
        assert np.array_equal(y, y0)
        assert 0 < np.abs(x.astype(int) - x0).mean() < 15
    with pytest.raises(datasets.DataError, match=r'takes \d+ bytes even as JPEG'):
        datasets.pack('folder', own, ['train'], out / 'b.tar', 1000)
    assert not (out / 'b.tar').exists()
