# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Losses against slow twins and against the numbers of AFFNet's paper; gradients finite everywhere."""
import numpy as np
import pytest
import torch

from lightseg_ros.training import losses

DEVICES = ['cpu', pytest.param('cuda', marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')])]
# Pixel frequencies of the 19 classes in Cityscapes' fine training labels.
CITYSCAPES = {
    'road': .36880, 'sidewalk': .06085, 'building': .22824, 'wall': .00656, 'fence': .00878, 'pole': .01228,
    'traffic light': .00208, 'traffic sign': .00552, 'vegetation': .15931, 'terrain': .01158, 'sky': .04016,
    'person': .01218, 'rider': .00135, 'car': .06994, 'truck': .00267, 'bus': .00235, 'train': .00233,
    'motorcycle': .00099, 'bicycle': .00414}
ALPHA = [.063, .267, .094, .792, .732, .654, .951, .824, .126, .668, .356, .656, .983, .241, .926, .939, .940,
         1, .871]


def batch(seed: int = 0, device: str = 'cpu', k: int = 5):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, k, 6, 7, generator=generator)
    labels = torch.randint(0, k, (2, 6, 7), generator=generator)
    labels[0, :2] = 255
    weight = torch.rand(k, generator=generator) + 0.5
    return logits.to(device), labels.to(device), weight.to(device)


def probabilities(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, float]]:
    """(class, probability) of each valid pixel, by loops."""
    p = logits.double().softmax(1).cpu().numpy()
    y = labels.cpu().numpy()
    return [(int(y[i]), float(p[i[0], y[i], i[1], i[2]])) for i in np.ndindex(y.shape) if y[i] != 255]


def test_class_weights_are_the_familys():
    f = torch.tensor([.17538, .24215, .01023, .32960])
    expected = [4.111152, 3.398229, 9.562954, 2.798049]
    assert losses.class_weights(f).tolist() == pytest.approx(expected, rel=1e-4)


def test_median_weights_balance_around_the_median():
    found = losses.median_weights(torch.tensor([0.5, 0.1, 0.2, 0.0]))
    assert found.tolist() == pytest.approx([0.4, 2.0, 1.0, 1.0])


@pytest.mark.parametrize('device', DEVICES)
def test_cross_entropy_is_the_weighted_mean(device):
    logits, labels, weight = batch(device=device)
    pixels = probabilities(logits, labels)
    w = weight.tolist()
    expected = sum(-w[c] * np.log(p) for c, p in pixels) / sum(w[c] for c, _ in pixels)
    assert float(losses.cross_entropy(logits, labels, weight)) == pytest.approx(expected, rel=1e-5)
    reference = torch.nn.functional.cross_entropy(logits, labels, weight, ignore_index=255)
    assert float(losses.cross_entropy(logits, labels, weight)) == pytest.approx(float(reference), rel=1e-5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('threshold, kept', [(0.7, 1 / 16), (0.05, 1 / 4), (0.05, 1.0)])
def test_ohem_keeps_the_hard_pixels(device, threshold, kept):
    logits, labels, weight = batch(device=device)
    pixels = probabilities(logits, labels)
    number = int(labels.numel() * kept)
    hardest = sorted(p for _, p in pixels)
    # Where valid pixels are fewer than are to be kept, all of them stay.
    limit = max(threshold, hardest[number - 1]) if number <= len(pixels) else 1.0
    chosen = [(c, p) for c, p in pixels if p <= limit + 1e-9]
    w = weight.tolist()
    expected = sum(-w[c] * np.log(p) for c, p in chosen) / sum(w[c] for c, _ in chosen)
    found = losses.ohem(logits, labels, weight, threshold=threshold, kept=kept)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert kept == 1.0 or len(chosen) < len(pixels)


def test_gamma_groups_are_the_papers():
    frequency = torch.tensor(list(CITYSCAPES.values()), dtype=torch.float64)
    assert float(frequency.sum()) == pytest.approx(1, abs=2e-3)
    alpha, gamma = losses.focal_terms(frequency)
    groups = {g: {n for n, v in zip(CITYSCAPES, gamma.tolist()) if v == g} for g in (0, 1, 2)}
    assert groups[2] == {'road', 'building', 'vegetation'}
    assert groups[1] == {'sidewalk', 'pole', 'terrain', 'sky', 'person', 'car'}
    assert len(groups[0]) == 10
    assert alpha.tolist() == pytest.approx(ALPHA, abs=2e-3)


def test_gamma_on_camvid():
    f = torch.tensor([.1533, .2370, .0095, .3104, .0538, .1115, .0111, .0155, .0498, .0064, .0417])
    alpha, gamma = losses.focal_terms(f)
    assert gamma.tolist() == [1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert alpha.tolist() == pytest.approx(
        [.163, .114, .898, .091, .366, .211, .851, .748, .387, 1, .435], abs=2e-3)


def test_a_class_that_never_occurs_is_not_damped():
    alpha, gamma = losses.focal_terms(torch.tensor([0.9, 0.1, 0.0]))
    assert gamma.tolist() == [0, 0, 0] and alpha.tolist()[2] == 1


@pytest.mark.parametrize('device', DEVICES)
def test_owfl_is_the_papers_sum(device):
    logits, labels, _ = batch(device=device)
    frequency = torch.tensor([0.5, 0.388, 0.102, 0.009, 0.001])
    alpha, gamma = (t.to(device) for t in losses.focal_terms(frequency))
    assert gamma.tolist() == [2, 2, 2, 0, 0]
    pixels = probabilities(logits, labels)
    a, g = alpha.tolist(), gamma.tolist()
    focal = [-a[c] * (1 - p) ** g[c] * np.log(p) for c, p in pixels]
    plain = [-np.log(p) for _, p in pixels]
    found = losses.owfl(logits, labels, alpha, gamma, highest_gamma=max(g))
    assert float(found) == pytest.approx(np.mean(focal) + 0.5 * np.mean(plain), rel=1e-5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('height', [0.0, 1.0, 40.0, 1e4])
def test_gradients_are_finite(device, height):
    """Also where the true class has probability 1 or 0 to the last bit."""
    labels = torch.tensor([[[0, 1], [2, 255]]], device=device)
    weight = torch.ones(3, device=device)
    alpha, gamma = torch.ones(3, device=device), torch.tensor([0, 1, 2], device=device)
    target = torch.full((1, 3, 2, 2), 1 / 3, device=device)
    for sign in (1, -1):
        for loss in (lambda x: losses.cross_entropy(x, labels, weight, smoothing=0.1),
                     lambda x: losses.ohem(x, labels, weight),
                     lambda x: losses.owfl(x, labels, alpha, gamma, highest_gamma=2),
                     lambda x: losses.distillation(x, labels, target)):
            right = torch.nn.functional.one_hot(labels.where(labels != 255, 0), 3).permute(0, 3, 1, 2).float()
            logits = (sign * height * right).requires_grad_()
            value = loss(logits)
            value.backward()
            assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
            assert (logits.grad[:, :, 1, 1] == 0).all()  # void teaches nothing


def test_a_batch_of_void_alone_is_zero():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.full((1, 4, 4), 255)
    one, gamma = torch.ones(3), torch.zeros(3, dtype=torch.long)
    for value in (losses.cross_entropy(logits, labels, one), losses.ohem(logits, labels, one),
                  losses.owfl(logits, labels, one, gamma, highest_gamma=0),
                  losses.distillation(logits, labels, logits.detach().softmax(1))):
        assert value.item() == 0
        value.backward()
        assert (logits.grad == 0).all()


def test_distillation_is_lowest_at_the_teacher():
    logits, labels, _ = batch()
    target = logits.softmax(1)
    best = losses.distillation(logits, labels, target)
    assert all(losses.distillation(logits + 0.3 * torch.randn_like(logits), labels, target) > best
               for _ in range(5))
