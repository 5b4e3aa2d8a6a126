# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Fold norms, channel shuffles and channel attentions into the weights of a finished network, exactly.

A shuffle moves every byte of a feature map only to permute its channels. The weights around it can do that
for free: features stay in the order in which they are, and every convolution, norm and slope that reads or
writes them is permuted instead. Below, an `order` means that y = x[:, order] is kept where the network has x.
"""
from collections.abc import Iterator
import copy
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..networks.elanet import CCA
from ..networks.fbsnet import BRU, CAM, FBSNet, FBSNetReleased
from ..networks.laanet import LAANet
from ..networks.layers import Down, global_mean, Shuffle
from ..networks.lrnnet import FCB, LRNNet, SVN


def fold(network: nn.Module, *, widen: bool = False, temperature: float = 1.0) -> nn.Module:
    """
    Return a copy in eval mode that computes the same with less work, up to rounding.

    Batch norms that directly follow a convolution are folded into it: w' = w * g / sqrt(v + eps),
    b' = b + (bias - mean) * g / sqrt(v + eps). Norms after anything else (a sum, a concatenation) stay.
    1-D convolutions along the channels become dense pointwise ones. The shuffles of LAANet and FBSNet
    disappear, those of LRNNet only if `widen`: its halves then read all channels with weights that are zero
    for the other half, a third more operations, which pays where those are cheap (half precision). All
    logits are divided by `temperature`.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    if temperature != 1:
        temper(network, temperature)
    _norms(network)
    _attentions(network)
    if isinstance(network, LAANet):
        _laanet(network)
    elif isinstance(network, (FBSNet, FBSNetReleased)):
        _fbsnet(network)
    elif isinstance(network, LRNNet) and widen:
        _lrnnet(network)
    return network


def temper(network: Any, temperature: float) -> None:
    """Divide the weights and the bias of the last convolution, and with them all logits."""
    if temperature == 1:
        return
    last = network.classifier[-1] if isinstance(network.classifier, nn.Sequential) else network.classifier
    with torch.no_grad():
        for parameter in last.parameters():
            parameter /= temperature


def _norms(network: nn.Module) -> None:
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        found = list(steps(sequence))
        for (a, i, conv), (b, j, norm) in zip(found, found[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                a[i] = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
                b[j] = nn.Identity()


def steps(sequence: nn.Sequential) -> Iterator[tuple[nn.Sequential, int, nn.Module]]:
    """What a sequence runs, in order, sequences in it unrolled: (its sequence, index there, module)."""
    for i, module in enumerate(sequence):
        if isinstance(module, nn.Sequential):
            yield from steps(module)
        else:
            yield sequence, i, module


class Gate(nn.Module):
    """`CAM` or `CCA` with pointwise convolutions: (N, C, H, W) -> gated features, or (N, c, 1, 1) weights."""

    def __init__(self, *convs: nn.Conv2d, gates: bool):
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[0](global_mean(x))
        for conv in self.convs[1:]:
            y = conv(torch.relu(y))
        return x * torch.sigmoid(y) if self.gates else torch.sigmoid(y)


def _attentions(network: nn.Module) -> None:
    """Replace each `CAM` and `CCA` by a `Gate`; how many channels each one sees a run tells."""
    channels: dict[nn.Module, int] = {}
    known = [m for m in network.modules() if isinstance(m, (CAM, CCA))]
    if not known:
        return
    handles = [m.register_forward_pre_hook(lambda m, inputs: channels.update({m: inputs[0].shape[1]}))
               for m in known]
    parameter = next(network.parameters())
    with torch.inference_mode():
        network(torch.zeros(1, 3, 64, 64, dtype=parameter.dtype, device=parameter.device))
    for handle in handles:
        handle.remove()
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, CAM):
                setattr(parent, name, Gate(_dense(module.conv, channels[module]), gates=True))
            elif isinstance(module, CCA):
                first = _dense(module.conv1, channels[module])
                setattr(parent, name, Gate(first, _dense(module.conv2, first.out_channels), gates=False))


def _dense(conv: nn.Conv1d, channels: int) -> nn.Conv2d:
    """Return the pointwise convolution of (N, C, 1, 1) that `conv` of (N, 1, C) is."""
    unit = torch.eye(channels, dtype=conv.weight.dtype, device=conv.weight.device)
    with torch.no_grad():
        weight = conv(unit[:, None])[:, 0].T
    dense = nn.Conv2d(channels, len(weight), 1, bias=False)
    dense.weight = nn.Parameter(weight[:, :, None, None].contiguous(), requires_grad=False)
    return dense


def _take(module: nn.Module, name: str, order: Tensor, axis: int = 0) -> None:
    tensor = getattr(module, name, None)
    if tensor is not None:
        tensor.data = tensor.data.index_select(axis, order.to(tensor.device))


def _inputs(conv: nn.Module, order: Tensor) -> None:
    """Let a convolution read channels in an order."""
    _take(conv, 'weight', order, 0 if isinstance(conv, nn.ConvTranspose2d) else 1)


def _outputs(module: nn.Module, order: Tensor) -> None:
    """Let a convolution write channels in an order, or norms and slopes find them in it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            _take(part, 'weight', order)
            _take(part, 'bias', order)
        elif isinstance(part, (nn.BatchNorm2d, nn.PReLU)):
            for name in ('weight', 'bias', 'running_mean', 'running_var'):
                _take(part, name, order)


def _gate(gate: Gate, order: Tensor) -> None:
    conv = gate.convs[0]
    _inputs(conv, order)
    _outputs(conv, order)


def _after(shuffle: Shuffle, order: Tensor) -> Tensor:
    """Return the order of what a shuffle that is left out would have returned."""
    moved = shuffle(torch.arange(len(order)).view(1, -1, 1, 1).float()).flatten().long()
    return moved.argsort()[order]


def _down(down: Down, order: Tensor) -> Tensor:
    """A downsampler reads an order; the pooled half of its output is in it."""
    _inputs(down.conv, order)
    made = down.conv.out_channels
    order = torch.cat([torch.arange(made), made + order])
    _outputs(down.act, order)
    return order


# Modules below are typed as Any: what nn.Module and nn.Sequential hold is known by name only.
def _laanet(network: Any) -> None:
    order = torch.arange(network.stem[-1][0].out_channels)
    orders = []
    for stage in (network.stage4, network.stage8):
        for block in stage:
            if isinstance(block, Down):
                order = _down(block, order)
                continue
            _outputs(block.pre, order)
            _inputs(block.head[0], order)
            _outputs(block.restore, order)
            order = _after(block.shuffle, order)
            block.shuffle = nn.Identity()
        orders.append(order)
    _inputs(network.affu4.low[0], orders[0])
    for conv in (network.adpp.extract[0][0], network.adpp.point[0], network.adpp.mean[0]):
        _inputs(conv, orders[1])


def _fbsnet(network: Any) -> None:
    def block(block: Any, order: Tensor) -> Tensor:
        _outputs(block.reduce[0], order)
        _inputs(block.reduce[1][0], order)
        _outputs(block.restore[1], order)
        _gate(block.restore[2], order)
        order = _after(block.deinterleave, order)
        block.deinterleave = nn.Identity()
        return order

    def stage(modules: nn.Sequential, order: Tensor) -> Tensor:
        for module in modules:
            if isinstance(module, Down):
                order = _down(module, order)
            elif isinstance(module, BRU):
                order = block(module, order)
            elif isinstance(module, Gate):
                _gate(module, order)
            else:
                _outputs(module, order)
        return order

    order = torch.arange(16)
    for part in (network.stage2[-1], network.stage4, network.stage8):
        order = stage(part, order)
    for up, part in ((network.up4, network.decode4), (network.up2, network.decode2)):
        up.conv, up.norm = fuse_conv_bn_eval(up.conv, up.norm, transpose=True), nn.Identity()
        _inputs(up.conv, order)
        order = stage(part, torch.arange(up.conv.out_channels))
    if isinstance(network, FBSNet) and network.detail is not None:
        _outputs(network.detail[-1], order)
    width = network.classifier.in_channels
    if width > len(order):  # the details are concatenated
        order = torch.cat([order, len(order) + order])
    _outputs(network.norm, order)
    if hasattr(network.fam, 'squeeze'):
        network.fam.squeeze = fuse_conv_bn_eval(network.fam.squeeze, network.fam.norm)
        network.fam.norm = nn.Identity()
        _inputs(network.fam.squeeze, order)
        _outputs(network.fam.rows, order)
        _outputs(network.fam.columns, order)
    _inputs(network.classifier, order)
    network.classifier = _pixel_shuffled(network.classifier)


def _pixel_shuffled(conv: nn.ConvTranspose2d) -> nn.Sequential:
    """
    Return a transposed convolution of kernel 2 and stride 2 as a pointwise one and a pixel shuffle.

    OpenVINO keeps in float32 what lies between the output and the last convolutions before it, and a
    transposed one is none to it: FBSNet's features, which are added up from the first block to the last.
    """
    point = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 1)
    point.weight = nn.Parameter(conv.weight.detach().flatten(1).T[:, :, None, None].contiguous(), False)
    assert conv.bias is not None
    point.bias = nn.Parameter(conv.bias.detach().repeat_interleave(4), False)
    return nn.Sequential(point, nn.PixelShuffle(2))


class WholeFCB(nn.Module):
    """`FCB` without split and shuffle: both of its paths read all channels."""

    def __init__(self, left: nn.Sequential, right: nn.Sequential, join: nn.Sequential):
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.join(torch.cat([self.left(x), self.right(x)], 1)))


def _lrnnet(network: Any) -> None:
    order = torch.arange(3)
    for stage in (network.stage2, network.stage4, network.stage8):
        for i, block in enumerate(stage):
            if isinstance(block, Down):
                order = _down(block, order)
            elif isinstance(block, FCB):
                half = len(order) // 2
                where = order.argsort()
                block.left[0] = _widened(block.left[0], where[:half], len(order))
                block.right[0] = _widened(block.right[0], where[half:], len(order))
                _outputs(block.join[2], order)
                stage[i] = WholeFCB(block.left, block.right, block.join)
                order = _after(block.shuffle, order)
            else:  # the paper's baseline has eight convolutions a block: too many to widen
                assert torch.equal(order, torch.arange(len(order)))
    if isinstance(network.svn, SVN):
        _inputs(network.svn.query, order)
        _outputs(network.svn.restore, order)
    _inputs(network.classifier[0], order)


def _widened(conv: Any, where: Tensor, channels: int) -> nn.Conv2d:
    """Return a convolution of `channels` that reads only those at `where`."""
    wide = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    weight = conv.weight.new_zeros(conv.out_channels, channels, *conv.kernel_size)
    weight[:, where.to(weight.device)] = conv.weight.detach()
    wide.weight = nn.Parameter(weight, requires_grad=False)
    wide.bias = conv.bias
    return wide
