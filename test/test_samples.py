# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training samples: crops show the pixels that they should, and every augmentation its own effect."""
import cv2
import numpy as np
import pytest
import torch

from lightseg_ros import datasets
from lightseg_ros.training import samples

DEVICES = ['cpu', pytest.param('cuda', marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')])]
MEAN = torch.tensor([10.0, 20.0, 30.0])


def test_camvid_statistics_are_the_published_ones(camvid):
    images, ids = samples.to_device(datasets.camvid('trainval', camvid), 'cpu')
    mean, _, frequency = samples.statistics(images, ids, 11)
    # FBSNet's statistics file says mean BGR 105.6578, 103.3298, 99.6254; the frequencies leave void out.
    assert mean.tolist() == pytest.approx([99.6254, 103.3298, 105.6578], abs=1e-3)
    assert frequency.tolist() == pytest.approx(
        [.15735, .24698, .00925, .32189, .05594, .11551, .01152, .01603, .05155, .00665, .00733], abs=1e-5)


def sample(device: str, n: int = 6, crop=(64, 96), size=(96, 128), **options):
    """Images whose red channel is the column, green the row, blue the label times 50, and a draw of them."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing='ij')
    ids = (columns // 32 + rows // 32) % 4
    image = torch.stack([columns, rows, ids * 50]).to(torch.uint8)
    ids[:, -4:] = 255
    images, ids = image.repeat(n, 1, 1, 1).to(device), ids.to(torch.uint8).repeat(n, 1, 1).to(device)
    drawn = samples.draw(n, n, torch.Generator().manual_seed(1), size=size, crop=crop, **options)
    drawn = drawn.map(lambda t: t.to(device))
    return images, ids, drawn, samples.augment(images, ids, drawn, crop=crop, mean=MEAN.to(device))


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
    blurred = samples._blur(x, torch.tensor([1.2, 0.05]))
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
        return samples.draw(10, 4, torch.Generator().manual_seed(seed), size=(96, 128), crop=(64, 64),
                         scale=(0.5, 2.0), color=0.2, blur=0.5, mix=0.5, num_classes=11)
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.theta, other.theta)
    assert len(first.chosen) == 8 and len(set(first.chosen.tolist())) == 8  # whole batches, no image twice
