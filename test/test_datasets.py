# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets and augmentation: layouts, errors that name the file, samples that show what they should."""
from pathlib import Path
import tarfile

import cv2
import numpy as np
import pytest
import torch
import yaml

from lightseg_ros import datasets, labels

DEVICES = ['cpu', pytest.param('cuda', marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')])]
MEAN = torch.tensor([10.0, 20.0, 30.0])


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
    assert datasets.to_device(dataset, 'cpu')[1].unique().tolist() == [0, 1, 2, 255]
    assert dataset.command('laanet') == ('lightseg evaluate --model laanet-orchard.safetensors --data folder '
                                         f'--data-root {tmp_path.name} --split all')


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


def test_camvid_is_the_papers_split(camvid):
    counts = {split: len(datasets.camvid(split, camvid)) for split in ('train', 'val', 'trainval', 'test')}
    assert counts == {'train': 367, 'val': 101, 'trainval': 468, 'test': 233}
    rgb, ids = datasets.camvid('test', camvid).read(0)
    assert rgb.shape == (360, 480, 3) and rgb.dtype == np.uint8
    assert ids.shape == (360, 480) and set(np.unique(ids)) <= {*range(11), 255}


def test_camvid_statistics_are_the_published_ones(camvid):
    images, ids = datasets.to_device(datasets.camvid('trainval', camvid), 'cpu')
    mean, _, frequency = datasets.statistics(images, ids, 11)
    # FBSNet's statistics file says mean BGR 105.6578, 103.3298, 99.6254; the frequencies leave void out.
    assert mean.tolist() == pytest.approx([99.6254, 103.3298, 105.6578], abs=1e-3)
    assert frequency.tolist() == pytest.approx(
        [.15735, .24698, .00925, .32189, .05594, .11551, .01152, .01603, .05155, .00665, .00733], abs=1e-5)


def test_cityscapes_ids_become_train_ids(tmp_path):
    known = labels.load('cityscapes')
    ids = np.resize(np.array(known.source_ids + (0, 3, 14, 255), np.uint8), (64, 92))
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
    images, ids = datasets.to_device(dataset, 'cpu', (64, 64))
    assert images.shape == (4, 3, 64, 64) and ids.unique().tolist() == [0, 1, 2, 255]


def spoil_image(root):
    (root / 'images/train/1.png').write_bytes(b'no image')


def spoil_label(root):
    (root / 'labels/train/1.png').write_bytes(b'no image')


def color_label(root):
    cv2.imwrite(str(root / 'labels/train/1.png'), np.zeros((96, 128, 3), np.uint8))


def strange_id(root):
    cv2.imwrite(str(root / 'labels/train/1.png'), np.full((96, 128), 7, np.uint8))


def other_size(root):
    cv2.imwrite(str(root / 'labels/train/1.png'), np.zeros((96, 64), np.uint8))


def other_size_of_pair(root):
    write_pair(root / 'images/train/1.png', root / 'labels/train/1.png', blocks(64))


@pytest.mark.parametrize('damage, expected', [
    (spoil_image, r'images/train/1.png is not a readable image'),
    (spoil_label, r'labels/train/1.png is unreadable'),
    (color_label, r'labels/train/1.png is uint8 \(96, 128, 3\); expected one uint8 channel'),
    (strange_id, r"labels/train/1.png: ids \[7\] are not in label set 'orchard'"),
    (other_size, r'labels/train/1.png is 64x96, its image 128x96'),
    (other_size_of_pair, r'1.png is 128x64, the first image 128x96; .*--size'),
])
def test_errors_name_the_file(own, damage, expected):
    damage(own)
    with pytest.raises(datasets.DataError, match=expected):
        datasets.to_device(datasets.load('folder', 'train', own), 'cpu')


def test_errors_name_what_is_missing(own):
    (own / 'labels/train/2.png').unlink()
    with pytest.raises(datasets.DataError, match=r'1 images in .*train have no label .* the first is 2.png'):
        datasets.load('folder', 'train', own)
    with pytest.raises(datasets.DataError, match=r'no folder .*images/test; splits there: train'):
        datasets.load('folder', 'test', own)
    with pytest.raises(datasets.DataError, match='known: camvid, cityscapes, folder'):
        datasets.load('kitti', 'train', own)
    (own / 'labels.yaml').write_text('classes: 3')
    with pytest.raises(datasets.DataError, match='labels.yaml'):
        datasets.load('folder', 'train', own)


def sample(device: str, n: int = 6, crop=(64, 96), size=(96, 128), **options):
    """Images whose red channel is the column, green the row, blue the label times 50, and a draw of them."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing='ij')
    ids = (columns // 32 + rows // 32) % 4
    image = torch.stack([columns, rows, ids * 50]).to(torch.uint8)
    ids[:, -4:] = 255
    images, ids = image.repeat(n, 1, 1, 1).to(device), ids.to(torch.uint8).repeat(n, 1, 1).to(device)
    drawn = datasets.draw(n, n, torch.Generator().manual_seed(1), size=size, crop=crop, **options)
    drawn = drawn.map(lambda t: t.to(device))
    return images, ids, drawn, datasets.augment(images, ids, drawn, crop=crop, mean=MEAN.to(device))


@pytest.mark.parametrize('device', DEVICES)
def test_a_crop_shows_the_pixels_themselves(device):
    images, ids, _, (x, y) = sample(device)
    flipped = 0
    for image, label in zip(x.cpu(), y.cpu()):
        # With zoom 1 a crop lies between pixels by a constant fraction: steps of 1, or -1 where flipped.
        steps = image[0].diff(dim=1)
        assert (steps - steps[0, 0]).abs().max() < 1e-2 and abs(abs(steps[0, 0]) - 1) < 1e-2
        flipped += int(steps[0, 0] < 0)
        assert (image[1].diff(dim=0) - 1).abs().max() < 1e-2
        column, row = image[0].round().long(), image[1].round().long()
        expected = ids[0].cpu().long()[row, column]
        assert (label == expected).float().mean() > 0.98  # half a pixel may round to the other side
    assert 0 < flipped < len(x)


@pytest.mark.parametrize('device', DEVICES)
def test_outside_is_mean_and_void(device):
    _, _, drawn, (x, y) = sample(device, crop=(96, 128), scale=(0.5, 0.5))
    inside = (y != 255).cpu()
    # The image, less its void columns, is a quarter of each crop.
    assert all(0.2 < share < 0.25 for share in inside.float().mean((1, 2)))
    # Those columns are 2 pixels wide here, so what is 5 away from any class is outside.
    outside = torch.nn.functional.max_pool2d(inside.float(), 9, 1, 4) == 0
    assert (x.cpu().permute(0, 2, 3, 1)[outside] - MEAN).abs().max() < 1e-3
    assert drawn.theta[:, :, 2].cpu().std(0).min() > 0.1  # it lies anywhere


@pytest.mark.parametrize('device', DEVICES)
def test_zoom_stays_in_its_range_or_set(device):
    drawn = sample(device, n=64, scale=(0.5, 2.0))[2]
    zoom = 64 / (96 * drawn.theta[:, 1, 1].cpu())
    assert 0.499 < zoom.min() < 0.7 and 1.5 < zoom.max() < 2.001
    drawn = sample(device, n=64, scale=(0.75, 1.0, 1.5))[2]
    zoom = 64 / (96 * drawn.theta[:, 1, 1].cpu())
    assert sorted({round(float(z), 4) for z in zoom}) == [0.75, 1.0, 1.5]


@pytest.mark.parametrize('device', DEVICES)
def test_color_and_blur_leave_labels_alone(device):
    _, _, _, (x, y) = sample(device)
    _, _, _, (x2, y2) = sample(device, color=0.4, blur=0.5)
    assert torch.equal(y, y2) and x2.min() >= 0 and x2.max() <= 255
    assert not torch.allclose(x, x2, atol=5)


def test_blur_is_gaussian():
    x = torch.rand(2, 3, 40, 50)
    blurred = datasets._blur(x, torch.tensor([1.2, 0.05]))
    expected = cv2.GaussianBlur(x[0].permute(1, 2, 0).numpy(), (7, 7), 1.2, borderType=cv2.BORDER_REPLICATE)
    assert np.abs(blurred[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5
    assert torch.allclose(blurred[1], x[1], atol=1e-6)


@pytest.mark.parametrize('device', DEVICES)
def test_pasted_pixels_come_with_their_labels(device):
    _, _, drawn, (x, y) = sample(device, n=8, mix=1.0, num_classes=4)
    _, _, _, (x0, y0) = sample(device, n=8)
    moved = drawn.paste.gather(1, y0.roll(1, 0).clamp_max(3).flatten(1)).view_as(y) & (y0.roll(1, 0) < 4)
    assert 0.2 < moved.float().mean() < 0.8
    assert torch.equal(y, torch.where(moved, y0.roll(1, 0), y0))
    assert torch.equal(x, torch.where(moved.unsqueeze(1), x0.roll(1, 0), x0))


def test_a_draw_depends_on_its_generator_alone():
    def drawn(seed):
        return datasets.draw(10, 4, torch.Generator().manual_seed(seed), size=(96, 128), crop=(64, 64),
                         scale=(0.5, 2.0), color=0.2, blur=0.5, mix=0.5, num_classes=11)
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.theta, other.theta)
    assert len(first.chosen) == 8 and len(set(first.chosen.tolist())) == 8  # whole batches, no image twice


def test_packing_keeps_files_that_fit(own, tmp_path_factory):
    out = tmp_path_factory.mktemp('packed')
    note = datasets.pack('folder', own, ['train'], out / 'a.tar', 10_000_000)
    with tarfile.open(out / 'a.tar') as tar:
        tar.extractall(out / 'a')
    assert note == 'images as they were'
    packed, original = datasets.load('folder', 'train', out / 'a'), datasets.load('folder', 'train', own)
    assert 'as they were' in packed.source
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
