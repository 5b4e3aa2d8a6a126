# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A folded network computes the same, to the rounding of float64, with nothing left to fold."""
import copy

import pytest
import torch
from torch import nn

from lightseg_ros import networks
from lightseg_ros.inference import folding
from lightseg_ros.networks import elanet, fbsnet, layers

CASES = [
    ('laanet', {}), ('laanet', {'interaction': 'none', 'affu': 'none', 'adpp_pool': 'avg'}),
    ('fbsnet', {}), ('fbsnet', {'fusion': 'concat'}), ('fbsnet', {'fusion': 'add', 'sam': False}),
    ('fbsnet', {'sdb': False}), ('fbsnet', {'cam': False}), ('fbsnet_released', {}),
    ('lrnnet', {}), ('lrnnet', {'svn': ()}), ('lrnnet', {'block': 'ss-nbt'}),
    ('elanet', {}), ('elanet_released', {}), ('affnet', {})]


def unlike(name: str, options: dict) -> nn.Module:
    """Build a network in float64 whose channels all differ: norms, slopes and biases are random."""
    torch.manual_seed(0)
    network = networks.build(name, 11, **options).double().eval()
    for key, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if key.endswith(('weight', 'var')) else tensor.uniform_(-0.3, 0.3)
        elif key == 'svn.restore.weight':  # starts as zeros
            tensor.normal_(0, 0.1)
    return network


@pytest.mark.parametrize('widen', [False, True])
@pytest.mark.parametrize(('name', 'options'), CASES)
def test_folding_is_exact(name, options, widen):
    network = unlike(name, options)
    before = copy.deepcopy(network.state_dict())
    folded = folding.fold(network, widen=widen)
    x = torch.randn(2, 3, 96, 112, dtype=torch.float64)
    with torch.inference_mode():
        expected = network(x)
        # Random weights amplify rounding: the gain is what float32 makes of it, in units of its epsilon.
        gain = float((network.float()(x.float()) - expected).norm()) / torch.finfo(torch.float32).eps
        network.double().load_state_dict(before)
        assert float((folded(x) - expected).norm()) < 10 * gain * torch.finfo(torch.float64).eps
    kinds = [{type(m) for m in n.modules()} for n in (network, folded)]
    norms, left = (sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (network, folded))
    assert left < norms
    assert not kinds[1] & {fbsnet.CAM, elanet.CCA}
    keeps = name == 'lrnnet' and (not widen or options.get('block') == 'ss-nbt')
    assert (layers.Shuffle in kinds[1]) == keeps


def test_the_original_is_left_alone():
    network = unlike('fbsnet', {})
    before = copy.deepcopy(network.state_dict())
    folding.fold(network)
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, before[k]) for k, v in after.items())


def test_norms_that_follow_no_convolution_stay():
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(8))), nn.BatchNorm2d(8))
    folded = folding.fold(network)
    assert isinstance(folded[1], nn.BatchNorm2d) and isinstance(folded[0][1][0], nn.Identity)
