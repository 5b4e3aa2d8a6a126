# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The whole zoo: the papers' counts and equations, any size, gradients, half precision, every ablation."""
import copy

import numpy as np
import pytest
import torch
from torch import nn
import torch.nn.functional as F

from lightseg_ros import datasets, networks, weights
from lightseg_ros.inference.export import random_weights
from lightseg_ros.networks import affnet, elanet, fbsnet, laanet, layers, lrnnet

# Parameters with 19 and 11 classes, and buffers (statistics of the norms).
COUNTS = {
    'laanet': (665_943, 665_679, 8_881),
    'fbsnet': (590_735, 590_215, 38_629),
    'fbsnet_released': (607_103, 606_071, 34_978),
    'elanet': (756_744, 755_720, 17_333),
    'elanet_released': (674_860, 673_836, 15_019),
    'lrnnet': (682_530, 682_266, 8_056),
    'affnet': (1_615_638, 1_606_414, 23_772),
}
# Network, options, parameters with 19 classes.
ABLATIONS = [
    ('laanet', {'interaction': 'one_way'}, 665_943),
    ('laanet', {'interaction': 'none'}, 665_943),
    ('laanet', {'dilations': [[1, 1, 1], [1, 2, 5, 9, 5, 17]]}, 665_943),
    ('laanet', {'dilations': [[1, 1, 1], [2, 2, 4, 4, 8, 8]]}, 665_943),
    ('laanet', {'adpp_pool': 'avg', 'adpp_dilations': [3, 6, 9]}, 665_943),
    ('laanet', {'affu': 'ica'}, 665_843),
    ('laanet', {'affu': 'isa'}, 663_831),
    ('laanet', {'affu': 'none'}, 663_731),
    ('fbsnet', {'cam': False, 'sdb': False}, 580_243),
    ('fbsnet', {'sdb': False}, 580_261),
    ('fbsnet', {'sam': False, 'fusion': 'add'}, 590_197),
    ('fbsnet', {'sam': False, 'fusion': 'concat'}, 591_461),
    ('fbsnet', {'sam': False}, 590_637),
    ('elanet', {'dilations': [[2], [4, 8]], 'dropout': 0.1}, 756_744 - 11_254 - 9 * 40_942),
    ('lrnnet', {'svn': []}, 674_178),
    ('lrnnet', {'svn': [8]}, 682_530),
    ('lrnnet', {'svn': [8, 4, 2]}, 682_530),
    ('lrnnet', {'svn': [16]}, 682_530),
    ('lrnnet', {'svn': [4]}, 682_530),
    ('lrnnet', {'keys': 'max'}, 682_530),
    ('lrnnet', {'keys': 'avg'}, 682_530),
    ('lrnnet', {'keys': 'full', 'norm': False}, 682_530),
    ('lrnnet', {'iterations': 0, 'dropout': [0.03, 0.3]}, 682_530),
    ('lrnnet', {'block': 'ss-nbt', 'svn': []}, 948_866),
    ('affnet', {'fusion': 'ewa'}, 1_468_694),
    ('affnet', {'fusion': 'ewa+concat'}, 1_615_638),
    ('affnet', {'fusion': 'concat'}, 1_697_814),
]
MISFITS = [
    ('laanet', {'affu': 'both'}, "affu is 'both'; expected one of 'full', 'ica', 'isa', 'none'"),
    ('laanet', {'adpp_pool': 'mean'}, "expected one of 'max', 'avg'"),
    ('laanet', {'dilations': [2, 4]}, 'dilations, whole numbers from 1 to 256'),
    ('laanet', {'dilations': 3}, 'expected two lists'),
    ('laanet', {'adpp_dilations': [1, 2]}, 'expected three'),
    ('fbsnet', {'fusion': 'fma'}, "expected one of 'fam', 'concat', 'add'"),
    ('fbsnet', {'sam': 'yes'}, 'expected one of True, False'),
    ('fbsnet_released', {'sam': False}, "no option 'sam'; known: none"),
    ('elanet', {'dilations': [[2, 0], [4]]}, 'whole numbers from 1 to 256'),
    ('elanet', {'dropout': 'much'}, 'elanet: '),
    ('lrnnet', {'svn': [7]}, r'expected one of \(\), \(8,\), \(8, 4\), \(8, 4, 2\), \(16,\), \(4,\)'),
    ('lrnnet', {'keys': 'svd'}, "expected one of 'svn', 'max', 'avg', 'full'"),
    ('lrnnet', {'block': 'dab'}, "expected one of 'fcb', 'ss-nbt'"),
    ('lrnnet', {'iterations': -1}, 'whole number from 0 to 100'),
    ('lrnnet', {'dropout': 0.1}, 'expected two'),
    ('affnet', {'fusion': 'sum'}, r"expected one of 'concat\+ewa', 'ewa', 'ewa\+concat', 'concat'"),
]
# Share of labels on which half precision agrees with float32 with random weights, which amplify rounding
# far more than trained ones: measured on four frames at 240x180, less a margin.
RANDOM_AGREEMENT = {
    'laanet': 0.99, 'fbsnet': 0.93, 'fbsnet_released': 0.8, 'elanet': 0.97, 'elanet_released': 0.97,
    'lrnnet': 0.83, 'affnet': 0.99,
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope='module', params=networks.NETWORKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope='module')
def network(name) -> nn.Module:
    """Return a network with random weights and norms that fit them, in eval mode."""
    return random_weights(name, 'camvid', (480, 360))[0]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The zoo.

def test_counts(name):
    many, few, buffers = COUNTS[name]
    assert count(networks.build(name, 19)) == many
    built = networks.build(name, 11)
    assert count(built) == few
    assert sum(v.numel() for v in built.state_dict().values()) == few + buffers

@pytest.mark.parametrize('name', networks.NETWORKS)
def test_features_stay_in_half_precision(name):
    """Under autocast an image is float32, and a sum with it would be, up to the deepest features."""
    network, found = networks.build(name, 11).train(), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.PReLU)):
            module.register_forward_hook(lambda module, inputs, y: found.append((y.dtype, inputs[0].dtype)))
    with torch.autocast('cpu', torch.bfloat16):
        network.logits_and_features(torch.randn(2, 3, 64, 96))
    inputs = [dtype for _, dtype in found]
    assert {y for y, _ in found} == {torch.bfloat16}
    assert inputs.count(torch.float32) <= 2, 'only the image is float32'


def test_blocks_have_the_papers_formulas():
    for c in (32, 64, 128):
        assert count(laanet.EAB(c, 4)) == 5 * c * c + 18 * c
        assert count(lrnnet.FCB(c, 5)) == 4 * c * c + 16 * c
        assert count(lrnnet.SSnbt(c, 5)) == 6 * c * c + 8 * c
        assert count(fbsnet.BRU(c, 9)) == c * c + 30 * c + 12
    assert count(lrnnet.SVN(128, 32, (8, 4), 'svn', 2, True)) == 8_352
    assert count(fbsnet.FAM(16)), count(fbsnet.FAM(32)) == (440, 856)
    assert count(elanet.ECGDown(32, 64, 2)) == 32_654 and count(elanet.ECGDown(128, 128, 4)) == 200_478
    assert count(elanet.ECGResidual(64, 2)) == 11_254 and count(elanet.ECGResidual(128, 4)) == 40_942
    assert count(elanet.RFF()) == 27_478
    assert count(affnet.InvertedResidual(64, 64)) == 54_272 and count(affnet.SPP(128)) == 82_176
    assert count(affnet.AFFM((64, 64, 96, 128), 128, 'concat+ewa')) == 456_136


@pytest.mark.parametrize('size', [(64, 64), (65, 99), (97, 70), (120, 160)])
def test_any_size(network, size):
    with torch.inference_mode():
        y = network(noise(1, 3, *size))
    assert y.shape == (1, 11, *size) and y.isfinite().all()
    assert y.std() > 1e-3


@pytest.mark.parametrize('shape', [(2, 3, 353, 477)])
def test_a_batch_equals_its_images(network, shape):
    x = noise(*shape)
    with torch.inference_mode():
        together = network(x)
        alone = torch.cat([network(image[None]) for image in x])
    error = (together - alone).abs().max() / together.std()
    print(f'{error:.1e} of the spread')
    assert error < 2e-3
    assert (together.argmax(1) == alone.argmax(1)).float().mean() > 0.9999


def test_same_seed_same_network_same_result(name):
    def run() -> torch.Tensor:
        torch.manual_seed(3)
        with torch.inference_mode():
            return networks.build(name, 5).eval()(noise(1, 3, 64, 72))
    assert torch.equal(run(), run())


def test_every_parameter_has_a_gradient(network):
    # In eval mode: a norm in training takes out what a bias before it adds, so that its gradient is 0.
    trained = copy.deepcopy(network)
    trained(noise(2, 3, 96, 80)).square().mean().backward()
    for key, p in trained.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
        assert p.grad.any(), f'{key} has no influence'


def test_trains(name):
    torch.manual_seed(0)
    network = networks.build(name, 3).train()
    x, y = noise(2, 3, 64, 64), torch.arange(2).view(2, 1, 1).expand(2, 64, 64)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and min(losses[2:]) < losses[0]
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize('which, options, expected', ABLATIONS,
                         ids=[f'{n}-{o}' for n, o, _ in ABLATIONS])
def test_ablation(which, options, expected):
    network = networks.build(which, 19, **options)
    assert count(network) == expected
    x = noise(2, 3, 65, 80)
    network.train()(x)
    with torch.inference_mode():
        y = network.eval()(x)
    assert y.shape == (2, 19, 65, 80) and y.isfinite().all()
    # It is another network: with the default's own weights where they fit, the result differs.
    default = networks.build(which, 19).eval()
    own = default.state_dict()
    default.load_state_dict({k: v for k, v in network.state_dict().items()
                             if k in own and v.shape == own[k].shape}, strict=False)
    if which == 'lrnnet' and options.get('block') != 'ss-nbt':
        for module in (network, default):
            if isinstance(module.svn, lrnnet.SVN):
                nn.init.constant_(module.svn.restore.weight, 0.1)
    with torch.inference_mode():
        assert not torch.equal(network(x), default(x))


@pytest.mark.parametrize('which, options, text', MISFITS, ids=[f'{n}-{o}' for n, o, _ in MISFITS])
def test_misfit_says_what_fits(which, options, text):
    with pytest.raises(networks.NetworkError, match=text):
        networks.build(which, 11, **options)


def test_unknown_network_and_class_count():
    with pytest.raises(networks.NetworkError, match='known: laanet, fbsnet, fbsnet_released, elanet'):
        networks.build('unet', 11)
    with pytest.raises(networks.NetworkError, match='num_classes is 256'):
        networks.build('laanet', 256)


def test_initialisation():
    for which in networks.NETWORKS:
        network = networks.build(which, 11)
        for key, m in network.named_modules():
            if isinstance(m, nn.Conv2d) and key != 'svn.restore' and m.weight.numel() > 2000:
                fan = m.weight[0].numel()
                assert m.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1), (which, key)
            if isinstance(m, nn.Conv2d) and m.bias is not None:
                assert not m.bias.any()


def real_frames(root, mean, std, size=None, indices=(0, 60, 120, 180)) -> torch.Tensor:
    frames = datasets.load('camvid', 'test', root)
    x = torch.from_numpy(np.stack([frames.read(i)[0] for i in indices])).permute(0, 3, 1, 2).float()
    if size:
        x = F.interpolate(x, size=size, mode='area')
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    return (x - m) / s


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_loses_no_more_than_rounding(network, dtype):
    """
    On random weights the error of a dtype, over its machine epsilon, is the network's own gain.

    That gain is what float32 has against float64; where half precision were unsafe (an overflow, a sum
    that loses its addends), its error would be far beyond. Untrained networks amplify up to a thousandfold,
    so that there is nothing to compare in bfloat16 but that results are finite and of the right size.
    """
    x = noise(1, 3, 96, 128)
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(x.double())
        single = network(x)
        half = copy.deepcopy(network).to(dtype)(x.to(dtype))
    assert half.dtype == dtype and half.isfinite().all()
    spread = exact.std()
    gain = ((single - exact).abs().mean() / spread / torch.finfo(torch.float32).eps)
    predicted = float(gain * torch.finfo(dtype).eps)
    error = float((half.double() - exact).abs().mean() / spread)
    print(f'error {error:.4f} of the spread, predicted {predicted:.4f}')
    assert error < max(3 * predicted, 0.01)
    assert 0.3 < float(half.double().std() / spread) < 3


def test_half_precision_on_real_frames(name, network, camvid):
    """
    Labels agree with float32: 99.5 % with trained weights at full size.

    For a network without packaged weights: RANDOM_AGREEMENT with random weights, in float16, at half size.
    """
    try:
        network, card = weights.load(weights.find(name))
        x, least = real_frames(camvid, card.mean, card.std)[:2], 0.995
    except weights.WeightsError:
        x = real_frames(camvid, (127.5,) * 3, (73.6,) * 3, size=(180, 240))
        least = RANDOM_AGREEMENT[name]
    with torch.inference_mode():
        half = copy.deepcopy(network).half()(x.half())
        agreement = float((half.argmax(1) == network(x).argmax(1)).float().mean())
    print(f'{name}: {agreement:.2%}, expected {least:.1%}')
    assert half.isfinite().all() and agreement >= least


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_graph(network):
    """Capture fails on a host sync or a copy from the host; the replay must give the eager result."""
    device = torch.device('cuda')
    module = copy.deepcopy(network).to(device, torch.float16, memory_format=torch.channels_last)
    x = noise(1, 3, 353, 480).to(device, torch.float16).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(x)
        other = noise(1, 3, 353, 480, seed=1).to(device, torch.float16)
        x.copy_(other)
        graph.replay()
        expected = module(x)
    assert (out.float() - expected.float()).abs().max() <= 2e-2 * expected.float().std()


# Layers and equations.

def test_shuffles():
    x = torch.arange(8.).view(1, 8, 1, 1)
    assert layers.Shuffle(2)(x).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert layers.Shuffle(0)(x).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    # While training, channels-last stays channels-last.
    image = torch.randn(2, 8, 3, 5)
    for groups in (0, 2):
        shuffle = layers.Shuffle(groups)
        last = shuffle(image.contiguous(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(last, shuffle(image)) and torch.equal(last, shuffle.eval()(image))


def test_downsamplers_agree_on_odd_sizes():
    for h, w in ((7, 8), (9, 5)):
        x = noise(1, 32, h, w)
        for down in (layers.Down(32, 64, nn.Identity()), affnet.ShuffleDown(32, 48),
                     elanet.ECGDown(32, 64, 2)):
            assert down(x).shape[2:] == ((h + 1) // 2, (w + 1) // 2)


def test_fbsnet_is_the_specification_where_sizes_are_multiples_of_8(monkeypatch):
    for which in ('fbsnet', 'fbsnet_released'):
        network = random_weights(which, 'camvid', (480, 360))[0]
        x = noise(1, 3, 72, 64)
        with torch.inference_mode():
            ours = network(x)
            # The papers' layers: pooling that rounds down, no cropping.
            for m in network.modules():
                if isinstance(m, nn.MaxPool2d):
                    m.ceil_mode = False
            monkeypatch.setattr(fbsnet, 'crop', lambda x, like: x)
            assert torch.equal(network(x), ours)
            monkeypatch.undo()


def test_cam_is_a_convolution_along_the_channels():
    cam = fbsnet.CAM()
    x = noise(2, 6, 4, 5)
    a, b, c = cam.conv.weight.flatten()
    mean = x.mean((2, 3))
    padded = F.pad(mean, (1, 1))
    gate = torch.sigmoid(a * padded[:, :-2] + b * padded[:, 1:-1] + c * padded[:, 2:])
    torch.testing.assert_close(cam(x), x * gate[:, :, None, None])


def test_fam_gates_rows_and_columns():
    fam = fbsnet.FAM(16).eval()
    layers.initialise(fam)
    x = noise(2, 16, 5, 7)

    def squeeze(v):
        return F.hardswish(fam.norm(fam.squeeze(v)))
    rows = torch.sigmoid(fam.rows(squeeze(x.mean(3)[..., None])))
    columns = torch.sigmoid(fam.columns(squeeze(x.mean(2)[..., None]))).transpose(2, 3)
    torch.testing.assert_close(fam(x), x * rows * columns)


def test_bru_equations():
    """Equations 1 to 6 of FBSNet, spelt out with functional calls."""
    c, d = 16, 5
    bru = fbsnet.BRU(c, d).eval()
    layers.initialise(bru)
    for p in bru.parameters():
        if p.ndim == 1:
            nn.init.uniform_(p, 0.2, 1.0)
    x = noise(1, c, 12, 14)

    def na(module, v):
        return F.prelu(F.batch_norm(v, module[0].running_mean, module[0].running_var, module[0].weight,
                                    module[0].bias, eps=1e-3), module[1].weight)

    def dw(block, v, kernel, dilation=1):
        assert block[0].weight.shape == (c // 2, 1, *kernel)
        pad = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
        return na(block[1], F.conv2d(v, block[0].weight, padding=pad, dilation=dilation, groups=c // 2))

    o = na(bru.reduce[1][1], F.conv2d(na(bru.reduce[0], x), bru.reduce[1][0].weight))
    a = bru.left1[1](dw(bru.left1[0][1], dw(bru.left1[0][0], o, (3, 1)), (1, 3)))
    b = bru.right1[1](dw(bru.right1[0][1], dw(bru.right1[0][0], o, (3, 1), d), (1, 3), d))
    y1 = dw(bru.left2[1], dw(bru.left2[0], a, (3, 1)), (1, 3))
    y2 = dw(bru.right2[1], dw(bru.right2[0], b, (1, 3), d), (3, 1), d)
    y3 = a + bru.middle(o) + b
    z = F.conv2d(na(bru.restore[0], y1 + y2 + y3), bru.restore[1].weight)
    v = bru.restore[2](z) + x
    torch.testing.assert_close(bru(x), torch.cat([v[:, 0::2], v[:, 1::2]], 1))
    # The released code turns the second pair of the left branch around; no count changes.
    assert count(fbsnet.BRU(c, d, left=((1, 3), (3, 1)))) == count(bru)


def test_cca_keeps_its_length():
    for c_in, c_out, kernel in ((64, 64, 7), (96, 96, 11), (128, 128, 15), (192, 192, 23), (128, 64, 15)):
        cca = elanet.CCA(c_in, c_out)
        assert cca.conv1.kernel_size == cca.conv2.kernel_size == (kernel,)
        gate = cca(noise(2, c_in, 3, 3))
        assert gate.shape == (2, c_out, 1, 1) and (gate > 0).all() and (gate < 1).all()


def test_spp_is_adaptive_average_pooling():
    spp = affnet.SPP(4)
    for h, w in ((12, 15), (2, 2), (3, 5), (23, 30)):
        x = noise(2, 4, h, w)
        for b, pooled in zip(spp.BINS, spp.pool(x)):
            torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x, b), atol=1e-6, rtol=1e-5)


# LRNNet's singular vectors.

def cosines(a: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    truth = torch.linalg.svd(a.double())[0][..., 0]
    return (truth * u).sum(-1).abs()


def test_singular_vectors_against_svd():
    generator = torch.Generator().manual_seed(0)
    # A vector of their own and noise, as cells of a feature map are; more or less noise, one to another.
    noisy = 4 * torch.rand(400, 1, 1, generator=generator) * torch.randn(400, 32, 48, generator=generator)
    a = torch.randn(400, 32, 1, generator=generator) + noisy
    values = torch.linalg.svdvals(a)
    clear = values[:, 0] > 2 * values[:, 1]
    assert 100 < clear.sum() < 400
    assert cosines(a, lrnnet.singular_vector(a))[clear].min() > 0.999
    # Where two iterations from the mean are not enough, more are.
    b = torch.rand(50, 32, 20, generator=generator, dtype=torch.float64) - 0.4
    errors = [float((1 - cosines(b, lrnnet.singular_vector(b, t))).max()) for t in (0, 1, 2, 8, 300)]
    assert errors == sorted(errors, reverse=True) and errors[2] > 0.01 and errors[-1] < 1e-6


def test_singular_vectors_of_feature_maps():
    network = random_weights('lrnnet', 'camvid', (480, 360))[0]
    with torch.inference_mode():
        f8 = network.stage8(network.stage4(network.stage2(noise(2, 3, 128, 256))))
        a = lrnnet.cells(network.svn.query(f8), 4)
    u = lrnnet.singular_vector(a)
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(2, 16))
    values = torch.linalg.svdvals(a.double())
    clear = values[..., 0] > 2 * values[..., 1]
    assert clear.any() and cosines(a, u)[clear].min() > 0.999


def test_singular_vectors_do_not_depend_on_order_padding_scale_or_sign():
    a = torch.rand(5, 32, 24, generator=torch.Generator().manual_seed(1))
    u = lrnnet.singular_vector(a)
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(5))
    for same in (a[..., torch.randperm(24, generator=torch.Generator().manual_seed(2))], F.pad(a, (0, 9)),
                 1e3 * a, -a, F.pad(a, (0, 9)).half().float() * 1e4):
        torch.testing.assert_close(lrnnet.singular_vector(same).abs(), u.abs(), atol=2e-4, rtol=0)
    assert not lrnnet.singular_vector(torch.zeros(3, 32, 8)).any()


def test_singular_vector_gradients():
    a = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lrnnet.singular_vector, (a,))
    zero = torch.zeros(1, 6, 9, requires_grad=True)
    (lrnnet.singular_vector(zero) ** 2).sum().backward()
    assert zero.grad is not None and not zero.grad.any()


def svn(**options) -> lrnnet.SVN:
    options = {'scales': (8, 4), 'keys': 'svn', 'iterations': 2, 'norm': True} | options
    torch.manual_seed(0)
    module = lrnnet.SVN(128, 32, **options)
    layers.initialise(module)
    return module


def test_svn_is_the_sum_over_cells():
    module = svn()
    x = noise(2, 128, 13, 17)
    q = module.query(x)
    padded = F.pad(q, (0, 7, 0, 3))
    u = []
    for image in padded.detach():
        vectors = []
        for k in (8, 4):
            h, w = 16 // k, 24 // k
            for i in range(k):
                for j in range(k):
                    cell = image[:, i * h:(i + 1) * h, j * w:(j + 1) * w].flatten(1)
                    g = cell @ cell.T
                    v = g @ (g @ cell.mean(1))
                    vectors.append(v / v.norm() if v.norm() > 0 else v)
        u.append(torch.stack(vectors))
    keys = torch.stack(u)
    assert keys.shape == (2, 80, 32)
    o = torch.einsum('nchw,nsc,nsd->ndhw', q, keys, keys) / 80
    torch.testing.assert_close(module(x), x + module.restore(o), atol=1e-4, rtol=1e-4)


def test_svn_in_half_precision():
    for options in ({}, {'scales': (16,)}):
        module = svn(**options)
        x = noise(1, 128, 23, 30) * 1e3
        expected = module(x) - x
        half = copy.deepcopy(module).half()
        y = half(x.half())
        assert y.isfinite().all()
        error = (y.float() - x.half() - expected).abs().max() / expected.abs().max()
        assert error < 0.01
        # Squares of such features overflow, so that the product must run in float32 under autocast too.
        with torch.autocast('cpu', torch.bfloat16):
            matrix = module.attention(module.query(x))
        assert matrix.dtype == torch.float32
        torch.testing.assert_close(matrix, module.attention(module.query(x)), atol=0.02, rtol=0)


def test_svn_keys():
    z = noise(1, 32, 16, 16)
    for keys, pool in (('max', F.adaptive_max_pool2d), ('avg', F.adaptive_avg_pool2d)):
        k = torch.cat([pool(z, g).flatten(2) for g in (8, 4)], 2)
        torch.testing.assert_close(svn(keys=keys).attention(z), k @ k.transpose(1, 2) / 80)
    k = z.flatten(2)
    torch.testing.assert_close(svn(keys='full').attention(z), k @ k.transpose(1, 2) / 256)
    torch.testing.assert_close(svn(norm=False).attention(z), 80 * svn().attention(z))
    # Padding doesn't hide a negative maximum.
    torch.testing.assert_close(svn(keys='max').attention(-1 - z.abs()[:, :, :15, :15]),
                               svn(keys='max').attention(F.pad(-1 - z.abs()[:, :, :15, :15], (0, 1, 0, 1),
                                                               mode='replicate')))


def test_lrnnet_starts_as_model_a():
    x = noise(1, 3, 72, 100)
    for scales in ((8,), (8, 4)):
        c = networks.build('lrnnet', 11, svn=scales).eval()
        assert not c.svn.restore.weight.any()
        a = networks.build('lrnnet', 11, svn=()).eval()
        a.load_state_dict({k: v for k, v in c.state_dict().items() if not k.startswith('svn.')})
        with torch.inference_mode():
            assert torch.equal(a(x), c(x))
