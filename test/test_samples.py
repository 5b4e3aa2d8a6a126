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
    mean, _, frequency, _ = samples.statistics(images, ids, 11)
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
                         scale=(0.5, 2.0), color=0.2, blur=0.5, mix=0.5, num_classes=11, gamma=0.2,
                         noise=5.0, erase=0.5, edges=0.5, aspect=0.1, dusk=0.5, extra=5,
                         extra_share=0.5, recolor=0.5, fog=0.5)
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.theta, other.theta)
    chosen = [i for i in first.chosen.tolist() if i < 10]
    assert len(first.chosen) == 8 and len(set(chosen)) == len(chosen)  # whole batches, no image twice


def test_options_that_are_off_draw_nothing():
    """A recipe without the newer options sees the samples that it always saw."""
    def drawn(**options):
        return samples.draw(8, 4, torch.Generator().manual_seed(1), size=(96, 128), crop=(64, 64),
                            scale=(0.5, 2.0), color=0.2, blur=0.5, mix=0.5, num_classes=11, **options)
    plain = drawn()
    assert plain[5:] == (None,) * 6
    every = drawn(aspect=0.2, edges=0.5, gamma=0.3, dusk=0.5, noise=9.0, erase=0.5, recolor=0.5, fog=0.5)
    assert all(torch.equal(getattr(plain, name), getattr(every, name))
               for name in ('chosen', 'color', 'sigma', 'paste'))


@pytest.mark.parametrize('device', DEVICES)
def test_aspect_changes_widths_only(device):
    drawn = sample(device, n=64, aspect=0.5, scale=(2.0, 2.0))[2]
    zoom = [length / (whole * drawn.theta[:, i, i].abs().cpu())
            for i, (length, whole) in enumerate(((96, 128), (64, 96)))]
    assert 1.33 < zoom[0].min() < 1.5 and 2.7 < zoom[0].max() < 3.01
    assert torch.allclose(zoom[1], torch.full((64,), 2.0))
    # Crops still lie inside the image.
    reach = drawn.theta[:, (0, 1), (0, 1)].abs() + drawn.theta[:, :, 2].abs()
    assert reach.max() < 1.0001


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('zoom', [0.5, 1.5])
def test_edges_puts_crops_into_corners(device, zoom):
    """A corner of the crop is a corner of the image, whichever of the two is larger."""
    images, ids, drawn, _ = sample(device, n=32, scale=(zoom, zoom), edges=1.0)
    x, _ = samples.augment(images, ids, drawn, crop=(64, 96), mean=MEAN.to(device), sharp=True)
    corners = set()
    for image in x.cpu():
        # Red is the column and green the row, so the corners of the image have known colours.
        for name, row, column in (('top left', 0, 0), ('top right', 0, -1), ('bottom left', -1, 0),
                                  ('bottom right', -1, -1)):
            red, green, _ = image[:, row, column].tolist()
            if min(red, 127 - red) < 2 and min(green, 95 - green) < 2:
                corners.add((name, red > 64, green > 48))
                break
        else:
            raise AssertionError('a crop without a corner')
    # Four corners, and both ways round, because half of the crops are mirrored.
    assert len(corners) == 8
    inner = sample(device, n=32, scale=(zoom, zoom), edges=0.0)[3][0][:, 0, 0, 0]
    assert ((inner > 2) & (inner < 125)).any()


@pytest.mark.parametrize('device', DEVICES)
def test_reflected_padding_shows_the_image_again_as_void(device):
    images, ids, drawn, (x, y) = sample(device, crop=(96, 128), scale=(0.5, 0.5))
    x2, y2 = samples.augment(images, ids, drawn, crop=(96, 128), mean=MEAN.to(device), reflect=True)
    assert torch.equal(y, y2)
    inside = torch.nn.functional.avg_pool2d((y != 255).float(), 7, 1, 3) == 1
    assert torch.allclose(x.permute(0, 2, 3, 1)[inside], x2.permute(0, 2, 3, 1)[inside], atol=1e-3)
    # Columns and rows change by two per pixel in the image and its reflection, never by a jump to the mean.
    assert x2[:, 0].diff(dim=2).abs().max() < 4 and x2[:, 1].diff(dim=1).abs().max() < 4
    assert x[:, 0].diff(dim=2).abs().max() > 20


@pytest.mark.parametrize('device', DEVICES)
def test_gamma_and_dusk_change_the_tone(device):
    _, _, _, (x, y) = sample(device, n=64)
    _, _, drawn, (bent, y2) = sample(device, n=64, gamma=0.5)
    exponent = drawn.tone[:, 1].cpu()
    assert 0.66 < exponent.min() < 0.8 and 1.25 < exponent.max() < 1.51
    expected = 255 * (x.clamp(0, 255) / 255) ** drawn.tone[:, 1].view(-1, 1, 1, 1)
    assert torch.allclose(bent, expected, atol=1e-2)
    _, _, drawn, (dark, y3) = sample(device, n=64, dusk=0.5)
    share = dark.mean((1, 2, 3)) / x.mean((1, 2, 3))
    night = (drawn.tone != 1).any(1)
    assert torch.allclose(dark[~night], x[~night], atol=1e-3) and 16 < int(night.sum()) < 48
    assert float(share[night].max()) < 0.9 and 0.02 < float(share[night].min()) < 0.3
    tint = dark[night].mean((2, 3)) / x[night].mean((2, 3))
    assert (tint.max(1).values / tint.min(1).values).max() > 1.1
    assert torch.equal(y, y2) and torch.equal(y, y3)


@pytest.mark.parametrize('device', DEVICES)
def test_fog_lays_a_grey_veil_over_some_images(device):
    _, _, _, (x, y) = sample(device, n=64)
    _, _, drawn, (veiled, y2) = sample(device, n=64, fog=0.5)
    assert torch.equal(y, y2)
    seen, level = drawn.veil[:, 0], drawn.veil[:, 1]
    foggy = seen < 1
    assert torch.equal(veiled[~foggy], x[~foggy]) and 16 < int(foggy.sum()) < 48
    assert 0.3 <= seen.min() < 0.5 and 0.7 < seen[foggy].max() < 0.9
    assert level[foggy].min() >= 160 and level.max() < 240
    # All is nearer to the grey level by the same share, so contrast falls and colours fade.
    level, seen = level.view(-1, 1, 1, 1), seen.view(-1, 1, 1, 1)
    assert torch.allclose((veiled - level)[foggy], ((x - level) * seen)[foggy], atol=1e-3)


@pytest.mark.parametrize('device', DEVICES)
def test_recolor_gives_each_class_a_colour_of_its_own(device):
    _, _, _, (x, y) = sample(device, n=64)
    _, _, drawn, (changed, y2) = sample(device, n=64, recolor=0.5)
    assert torch.equal(y, y2)
    void = drawn.tints.shape[1] - 1
    assert torch.all(drawn.tints[:, void] == 1)
    # The reference, pixel by pixel: the factor of the class, and a shade that is linear in the logarithm.
    n, _, height, width = x.shape
    u, v = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)
    tints, shade, ids = drawn.tints.cpu(), drawn.shade.cpu(), y.cpu()
    expected = x.cpu().clone()
    for i in range(n):
        for k in ids[i].unique().tolist():
            here = ids[i] == k
            expected[i][:, here] *= tints[i, min(k, void)].view(3, 1)
        expected[i] *= (shade[i, 0] * u + shade[i, 1] * v.view(-1, 1)).exp()
    assert torch.allclose(changed.cpu(), expected.clamp(0, 255), atol=1e-2)
    plain = (tints == 1).all(2).all(1)
    assert 16 < int(plain.sum()) < 48, 'about half of the images keep the colours of their classes'


@pytest.mark.parametrize('device', DEVICES)
def test_noise_has_the_drawn_strength_and_no_pattern(device):
    images, ids, drawn, (x, y) = sample(device, n=8)
    images, ids = torch.full_like(images, 128), ids
    drawn = drawn._replace(noise=torch.tensor([[i, 37.5 * i, 500.0 + i] for i in range(8)], device=device))
    gray = torch.full((3,), 128.0, device=device)
    noisy, y2 = samples.augment(images, ids, drawn, crop=(64, 96), mean=gray)
    spread = (noisy - 128).std((1, 2, 3)).cpu()
    assert torch.allclose(spread, torch.arange(8.0), rtol=0.05, atol=1e-3) and torch.equal(y, y2)
    one, other = (noisy[i].flatten() - 128 for i in (3, 4))
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.05
    assert sample(device, n=64, noise=10.0)[2].noise[:, 0].max() <= 10


@pytest.mark.parametrize('device', DEVICES)
def test_erased_rectangles_are_mean_and_void(device):
    _, _, _, (x, y) = sample(device, n=32)
    _, _, drawn, (x2, y2) = sample(device, n=32, erase=0.5)
    changed = ((x != x2).any(1) | (y != y2)).cpu()
    hit = (drawn.box[:, 2] > 0).cpu()
    assert 8 < int(hit.sum()) < 24 and not changed[~hit].any()
    for i in torch.nonzero(hit).flatten().tolist():
        rows, columns = torch.nonzero(changed[i]).unbind(1)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        assert 0.08 < float(bottom - top) / 64 < 0.42 and 0.08 < float(right - left) / 96 < 0.42
        assert (x2[i].permute(1, 2, 0)[top:bottom, left:right].cpu() == MEAN).all()
        assert (y2[i, top:bottom, left:right] == 255).all()


def test_synthetic_images_take_the_place_of_others():
    def drawn(**options):
        return samples.draw(400, 4, torch.Generator().manual_seed(1), size=(96, 128), crop=(64, 64),
                            **options)
    plain, mixed = drawn(), drawn(extra=40, extra_share=0.25)
    synthetic = mixed.chosen >= 400
    assert 70 < int(synthetic.sum()) < 130 and int(mixed.chosen.max()) < 440
    assert torch.equal(mixed.chosen[~synthetic], plain.chosen[~synthetic])
    assert torch.equal(mixed.theta, plain.theta)
    assert (mixed.tone[~synthetic] == 1).all() and float(mixed.tone[synthetic].std(0).min()) > 0.05


def test_frequencies_where_a_class_is_present():
    images = torch.zeros(3, 3, 2, 4, dtype=torch.uint8)
    ids = torch.tensor([[[0] * 4, [1] * 4], [[0] * 4, [0, 0, 0, 255]], [[0] * 4, [0] * 4]], dtype=torch.uint8)
    found = samples.statistics(images, ids, 3)
    assert found.frequency.tolist() == pytest.approx([19 / 23, 4 / 23, 0])
    assert found.present_frequency.tolist() == pytest.approx([19 / 23, 4 / 8, 0])


def test_other_sizes_are_scaled_to_fit_never_stretched():
    image = np.full((40, 20, 3), 90, np.uint8)
    image[:, :4] = 250
    ids = np.ones((40, 20), np.uint8)
    out, labels = samples.fit(image, ids, (20, 32), 255)
    assert out.shape == (20, 32, 3) and labels.shape == (20, 32)
    assert (labels[:, 11:21] == 1).all() and (labels == 1).sum() == 200 and (labels[labels != 1] == 255).all()
    assert (out[:, 11:13] == 250).all() and (out[:, 13:21] == 90).all()
    assert (out[:, 25:] == 122).all()  # the image's mean
    assert samples.fit(image, ids, (40, 20), 255)[0] is image
