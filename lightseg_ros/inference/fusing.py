# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
For CUDA: the blocks of the networks, rewritten with the modules of `fused`.

`fuse` rewrites a folded network; what it returns computes the same, on a CPU too.
"""
import copy
from typing import Any

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from ..networks.affnet import CBAM, InvertedResidual, ShuffleDown, SPP
from ..networks.elanet import ECGDown, ECGResidual, ELANet, RFF
from ..networks.fbsnet import BRU, FAM, SAM, Up
from ..networks.laanet import EAB
from ..networks.layers import crop, Down, resize
from ..networks.lrnnet import FCB, SVN
from .folding import Gate, WholeFCB
from .fused import (
    fuse_one,
    fuse_sequence,
    fuse_steps,
    FusedBranches,
    FusedConv,
    FusedGate,
    FusedNorm,
    fusible,
    norm_figures,
    room,
    scaled,
)

NEVER = -6e4  # a logit that float16 holds and that no class is below


def fuse(network: nn.Module) -> nn.Module:
    """
    Return a copy of a folded network, in its precision and on its device, whose convolutions are fused.

    It may have more classes than the network; those are never the highest.
    """
    network = copy.deepcopy(network)
    if isinstance(network, ELANet):  # these norms become parts of the convolutions behind them
        for name, owner, conv in (('norm4', network.down8, 'head'), ('norm8', network.fusion, 'deep')):
            setattr(owner, conv, nn.Sequential(getattr(network, name), getattr(owner, conv)))
            setattr(network, name, nn.Identity())
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if type(module) in BLOCKS:
                setattr(parent, name, BLOCKS[type(module)](module))
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        fuse_sequence(sequence)
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if fusible(module):
                setattr(parent, name, FusedConv(module))  # type: ignore[arg-type]
    if hasattr(network, 'classifier'):
        _pad_classes(network)
    return network


def _pad_classes(network: Any) -> None:
    """
    Let the last convolution write a multiple of 8 channels, so that stores and loads can be wide.

    Those that are added are classes that are never the highest. FBSNet's classes have four channels each.
    """
    last = network.classifier[0] if isinstance(network.classifier, nn.Sequential) \
        and isinstance(network.classifier[-1], nn.PixelShuffle) else network.classifier
    conv = last[-1] if isinstance(last, nn.Sequential) else last
    assert isinstance(conv, FusedConv) and not conv.sigmoid
    more = -len(conv.bias) % 8
    conv.weight = F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, more))
    conv.taps = F.pad(conv.taps, (0, more))
    conv.bias, conv.slope = F.pad(conv.bias, (0, more), value=NEVER), F.pad(conv.slope, (0, more), value=1.0)


def leave_sub_pixels(network: Any) -> int:
    """
    Leave out the pixel shuffle at the end of a folded network (FBSNet), which is changed; returns its factor.

    The logits are then (N, K * factor^2, h, w), of which the pixels of a size times that are made. 1: there
    is no shuffle.
    """
    classifier = getattr(network, 'classifier', None)
    if isinstance(classifier, nn.Sequential) and isinstance(classifier[-1], nn.PixelShuffle):
        factor = classifier[-1].upscale_factor
        classifier[-1] = nn.Identity()
        return factor
    return 1


class FusedEAB(nn.Module):
    """`EAB` in four kernels, or six: each addition is part of the convolutions before it."""

    def __init__(self, block: Any):
        super().__init__()
        self.interaction = block.interaction
        self.head = fuse_one(block.pre, block.head)
        lines = [fuse_one(line) for line in (block.left_v, block.right_v, block.left_h, block.right_h)]
        if block.interaction == 'cross':
            self.vertical = FusedBranches(*lines[:2], together=True)
            self.horizontal = FusedBranches(*lines[2:], together=True)
        else:
            self.left_v, self.right_v, self.left_h, self.right_h = lines
        self.restore, self.shuffle = fuse_one(block.merge, block.restore), block.shuffle

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        if self.interaction == 'cross':
            return self.shuffle(self.restore(self.horizontal(self.vertical(y)), x))
        left = self.left_v(y)
        right = self.right_v(y, None if self.interaction == 'none' else left)
        y = self.right_h(right, self.left_h(left))
        return self.shuffle(self.restore(y, x))


class FusedInvertedResidual(nn.Module):
    """`InvertedResidual` in three kernels."""

    def __init__(self, block: Any):
        super().__init__()
        self.skip = block.skip
        self.expand, self.middle, self.restore = fuse_steps(block.body)

    def forward(self, x: Tensor) -> Tensor:
        return self.restore(self.middle(self.expand(x)), x if self.skip else None)


class FusedFCB(nn.Module):
    """`FCB`, or `WholeFCB`, in six kernels: both halves write into the tensor that the others read."""

    def __init__(self, block: Any):
        super().__init__()
        self.halves = isinstance(block, FCB)
        (self.left, self.left2), (self.right, self.right2) = fuse_steps(block.left), fuse_steps(block.right)
        self.middle = fuse_one(*block.join[:2])
        self.restore = FusedConv(block.join[2], act=nn.ReLU(), add_first=True)  # the block's own ReLU
        self.shuffle = block.shuffle if self.halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.halves else (x, x)
        y = room(x, x.shape[1])
        half = x.shape[1] // 2
        self.left2(self.left(left), into=y[:, :half])
        self.right2(self.right(right), into=y[:, half:])
        return self.shuffle(self.restore(self.middle(y), x))


class FusedDown(nn.Module):
    """`Down` in three kernels: the norm is folded into the convolution, and follows the pool."""

    def __init__(self, block: Any):
        super().__init__()
        norm, act = block.act
        made = block.conv.out_channels
        pre = norm_figures(norm, act)
        self.conv = scaled(block.conv, pre[:, :made])
        self.pool = block.pool
        self.norm = FusedNorm(norm, act)
        self.norm.pre = pre[:, made:].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        small = self.pool(x)
        made = len(self.conv.bias)
        y = room(small, made + small.shape[1])
        self.conv(x, into=y[:, :made])
        self.norm(small, into=y[:, made:])
        return y


class FusedECGDown(nn.Module):
    """`ECGDown` with fused convolutions."""

    def __init__(self, block: Any):
        super().__init__()
        self.body = nn.Sequential(fuse_steps(block.head), _context(block.context), fuse_steps(block.reduce))
        self.attention = FusedGate(block.attention)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * self.attention(y)


class FusedECGResidual(nn.Module):
    """`ECGResidual`: sums, concatenations and the norms around convolutions are parts of these."""

    def __init__(self, block: Any):
        super().__init__()
        channels = block.reduce1[0].in_channels
        self.reduce1 = fuse_one(block.reduce1)
        pre = norm_figures(*block.norm1)
        # norm(local + dilated) = norm(dilated) + scale * local
        local1 = scaled(block.context1.local, pre[:, channels:])
        local1.bias.zero_()
        local1.slope.fill_(1)
        dilated1 = scaled(block.context1.dilated, pre[:, channels:])
        dilated1.add_first = True
        self.context1 = FusedBranches(dilated1, local1, together=True, add_first=True)
        self.norm1 = FusedNorm(*block.norm1)
        self.norm1.pre = pre[:, :channels].contiguous()
        self.attention, self.reduce2 = FusedGate(block.attention), fuse_one(block.reduce2)
        self.context2 = _context(block.context2)
        self.restore = fuse_one(block.norm2, block.restore)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        y = self.reduce1(x)
        z = room(x, channels + y.shape[1])
        sums: list[Tensor] = []
        self.norm1(x, into=z[:, :channels], sums=sums)
        self.context1(y, into=z[:, channels:], sums=sums)
        return self.restore(self.context2(self.reduce2(z, gate=self.attention(z, sums=sums))), x)


class FusedRFF(nn.Module):
    """`RFF`: the first sum is part of a convolution, and what is gated goes straight into the last tensor."""

    def __init__(self, block: Any):
        super().__init__()
        self.a, self.b, self.shallow = fuse_steps(block.a), fuse_one(block.b), fuse_steps(block.shallow)
        self.deep, self.spatial = fuse_steps(block.deep), fuse_steps(block.spatial)
        self.channel, self.norm = FusedGate(block.channel), FusedNorm(*block.norm)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        first, last = self.a
        shallow = self.shallow(last(first(a), self.b(b)))
        deep = resize(self.deep(c), shallow)
        both = torch.cat([deep, shallow], 1)
        y, half = room(both, both.shape[1]), deep.shape[1]
        torch.addcmul(deep, deep, self.spatial(both), out=y[:, :half])
        torch.addcmul(shallow, shallow, self.channel(both), out=y[:, half:])
        return self.norm(y)


def _context(block: Any) -> FusedBranches:
    """Fuse a `LocalContext`: its two results are neighbours in one tensor, (N, 2 C, H, W)."""
    return FusedBranches(fuse_one(block.local), fuse_one(block.dilated))


class FusedCBAM(nn.Module):
    """`CBAM`: mean and maximum pass its first convolution together, and their sum the second."""

    def __init__(self, block: Any):
        super().__init__()
        first, _, second = block.channel
        self.channel, self.restore = FusedConv(first, act=nn.ReLU()), FusedConv(second, act=nn.Sigmoid())
        self.restore.bias *= 2
        self.spatial = FusedConv(block.spatial, act=nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        y = x.new_empty(2 * n, channels, 1, 1)
        torch.mean(x, (2, 3), True, out=y[:n])
        torch.amax(x, (2, 3), True, out=y[n:])
        y = self.channel(y)
        x = x * self.restore(y[:n] + y[n:])
        return x * self.spatial(_mean_and_maximum(x))


class FusedShuffleDown(nn.Module):
    """`ShuffleDown` behind a ReLU, as in AFFNet: what is pooled of it needs no other one."""

    def __init__(self, block: Any):
        super().__init__()
        self.pool, self.branch = block.pool, fuse_steps(block.branch, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.pool(x), self.branch(x)], 1)


class FusedSVN(SVN):
    """`SVN` with less between its products: vectors get their length once, at the end."""

    def __init__(self, block: Any):
        nn.Module.__init__(self)
        self.scales, self.keys = block.scales, block.keys
        self.iterations, self.norm = block.iterations, block.norm
        self.query, self.restore = FusedConv(block.query), FusedConv(block.restore)  # type: ignore[assignment]

    def attention(self, z: Tensor) -> Tensor:
        if self.keys == 'svn':  # the result does not depend on the scale, which is to be that of float32
            z = z / (torch.linalg.vector_norm(z, float('inf'), (1, 2, 3), keepdim=True) + 1e-6)
        return super().attention(z)

    def pool(self, a: Tensor) -> Tensor:
        if self.keys != 'svn' or self.iterations > 2:  # float32 has room for the square of a Gram matrix
            return super().pool(a)
        gram, u = a @ a.transpose(-1, -2), a.mean(-1, keepdim=True)
        for _ in range(self.iterations):
            u = gram @ u
        return F.normalize(u, dim=-2, eps=1e-30).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        z = room(x, len(self.query.weight), wide)
        self.query(x, into=z)
        rows = z.permute(0, 2, 3, 1)
        # The matrix is symmetric.
        y = (rows.flatten(1, 2) @ self.attention(z)).to(x.dtype)
        return self.restore(y.unflatten(1, rows.shape[1:3]).permute(0, 3, 1, 2), x)


class FusedSPP(SPP):
    """`SPP` whose matrices are made once for each size: they depend on nothing else."""

    def __init__(self, block: Any):
        nn.Module.__init__(self)
        self.row, self.rows = block.row, block.rows
        self.fuse = fuse_steps(block.fuse)  # type: ignore[assignment]
        self._made: dict[tuple[int, torch.dtype], Tensor] = {}

    def averages(self, length: int, dtype: torch.dtype) -> Tensor:
        if (length, dtype) not in self._made:
            self._made[length, dtype] = super().averages(length, dtype)
        return self._made[length, dtype]


def _mean_and_maximum(x: Tensor) -> Tensor:
    """Return mean and maximum over the channels, (N, 2, H, W)."""
    planes = room(x, 2)
    torch.mean(x, 1, True, out=planes[:, :1])
    torch.amax(x, 1, True, out=planes[:, 1:])
    return planes


class FusedBRU(nn.Module):
    """`BRU`: its two branches are one kernel each time, and one convolution makes the first gates."""

    def __init__(self, block: Any):
        super().__init__()
        self.reduce, self.restore = fuse_one(block.reduce), fuse_one(*block.restore[:2])
        sides = [[*fuse_steps(side1[0]), *fuse_steps(side2)] for side1, side2 in (
            (block.left1, block.left2), (block.right1, block.right2))]
        self.first, self.second, self.third, self.fourth = (
            FusedBranches(*pair, together=i == 3) for i, pair in enumerate(zip(*sides)))
        convs = [gate.convs[0] for gate in (block.middle, block.left1[1], block.right1[1])]
        together = nn.Conv2d(3 * convs[0].in_channels, 3 * convs[0].in_channels, 1, bias=False)
        weight = torch.block_diag(*(conv.weight.flatten(1) for conv in convs))
        together.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)
        self.gates, self.gate = FusedGate(Gate(together, gates=False)), FusedGate(block.restore[2])
        self.deinterleave = block.deinterleave

    def forward(self, x: Tensor) -> Tensor:
        half = len(self.reduce.bias)
        y = room(x, 3 * half)
        middle, sides = y[:, :half], y[:, half:]
        sums: list[Tensor] = []
        self.reduce(x, into=middle, sums=sums)
        self.second(self.first(middle), into=sides, sums=sums)
        gates = self.gates(y, sums=sums)
        z = self.fourth(self.third(sides, gate=gates[:, half:]), y, gate=gates)
        sums = []
        return self.deinterleave(self.gate(self.restore(z, sums=sums), x, sums))


class FusedUp(nn.Module):
    """`Up`, whose norm is folded away, in one layout."""

    def __init__(self, block: Any):
        super().__init__()
        self.conv = block.conv

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        y = crop(self.conv(x), like).contiguous(memory_format=torch.channels_last)
        return F.relu6(y, inplace=True)


class FusedSAM(nn.Module):
    """`SAM`: mean and maximum are written side by side."""

    def __init__(self, block: Any):
        super().__init__()
        self.conv = FusedConv(block.conv, act=nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_mean_and_maximum(x))


class FusedFAM(nn.Module):
    """`FAM`, whose norm is folded away: means of rows and columns lie side by side from the start."""

    def __init__(self, block: Any):
        super().__init__()
        self.squeeze = FusedConv(block.squeeze)
        self.rows, self.columns = (FusedConv(conv, act=nn.Sigmoid()) for conv in (block.rows, block.columns))

    def forward(self, x: Tensor) -> Tensor:
        n, channels, h, w = x.shape
        y = x.new_empty(n, h + w, 1, channels).permute(0, 3, 1, 2)
        torch.mean(x, 3, True, out=y[:, :, :h])
        torch.mean(x, 2, out=y[:, :, h:, 0])
        y = F.hardswish(self.squeeze(y))
        return x * self.rows(y[:, :, :h]) * self.columns(y[:, :, h:]).transpose(2, 3)


BLOCKS: dict[type, type] = {
    EAB: FusedEAB, InvertedResidual: FusedInvertedResidual, FCB: FusedFCB, WholeFCB: FusedFCB,
    Down: FusedDown, ECGDown: FusedECGDown, ECGResidual: FusedECGResidual, RFF: FusedRFF, BRU: FusedBRU,
    Gate: FusedGate, CBAM: FusedCBAM, SPP: FusedSPP, ShuffleDown: FusedShuffleDown, SVN: FusedSVN,
    Up: FusedUp, SAM: FusedSAM, FAM: FusedFAM}
