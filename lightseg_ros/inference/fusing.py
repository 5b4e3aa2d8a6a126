# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
For CUDA: a convolution with the norm and activation before it and all that follows it in one Triton kernel.

`fuse` rewrites a folded network so that each convolution is a `FusedConv`. On a CPU a `FusedConv` computes
the same by torch's own operations.
"""
from collections.abc import Callable
import copy
from typing import Any

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from ..networks.affnet import CBAM, InvertedResidual, ShuffleDown, SPP
from ..networks.elanet import ECGDown, ECGResidual, ELANet, RFF
from ..networks.fbsnet import BRU, FAM, SAM, Up
from ..networks.laanet import EAB
from ..networks.layers import crop, Down, global_mean, resize, same_padding
from ..networks.lrnnet import FCB, SVN
from . import layer_kernels
from .folding import Gate, steps, WholeFCB

NEVER = -6e4  # a logit that float16 holds and that no class is below


def by_kernel(x: Tensor) -> bool:
    """Whether a Triton kernel computes what is made of x."""
    return x.is_cuda


class _Fused(nn.Module):
    """What runs in one Triton kernel on CUDA (`run`), and by torch's own operations elsewhere (`plain`)."""

    run: Callable[..., Tensor]
    plain: Callable[..., Tensor]

    def forward(self, x: Tensor, add: Tensor | None = None, into: Tensor | None = None,
                sums: list[Tensor] | None = None, **options: Tensor) -> Tensor:
        """
        `into`: where the result goes, such as some of the channels of a larger tensor.

        `sums`: a kernel that knows how adds what a `FusedGate` needs for the mean of the result.
        """
        if by_kernel(x):
            return self.run(x, add, into, sums=sums, **options)
        y = self.plain(x, add, **options)
        return y if into is None else into.copy_(y)


class FusedConv(_Fused):
    """
    y = act(conv(pre(x) * gate) + bias) + add, on (N, C, H, W), channels-last on CUDA.

    `conv`: with "same" padding, and either dense or depthwise. `norm`, `before`: batch norm and PReLU that
    make `pre`, only for dense ones. `act`: PReLU, ReLU, sigmoid or nothing. With `add_first` the activation
    comes after the addition. `gate`: (N, C, 1, 1). Figures of the channels are float32, weights have the type
    of the network.
    """

    weight: Tensor
    bias: Tensor
    slope: Tensor
    taps: Tensor
    steps: Tensor
    pre: Tensor | None
    together = False

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, before: nn.PReLU | None = None,
                 act: nn.Module | None = None, add_first: bool = False):
        super().__init__()
        out = conv.out_channels
        self.dilation, self.stride = conv.dilation, conv.stride[0]
        self.kernel, self.padding = conv.kernel_size, conv.padding
        self.depthwise = conv.groups > 1
        self.groups = conv.groups
        self.sigmoid = isinstance(act, nn.Sigmoid)
        self.add_first = add_first
        assert not (self.depthwise and norm), 'no kernel exists for it'
        self.register_buffer('weight', conv.weight.detach())
        # (taps, C) where it is depthwise, else (taps, C, out): as the kernels read them.
        taps = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1)
        self.register_buffer('taps', taps.contiguous().squeeze(1) if self.depthwise else taps.contiguous())
        bias = conv.weight.new_zeros(out) if conv.bias is None else conv.bias.detach()
        self.register_buffer('bias', bias.float())
        self.register_buffer('slope', _slopes(act, bias))
        # Of a line, (3, 1) or (1, 3), the step across it is 0.
        steps = [d if k > 1 else 0 for d, k in zip(conv.dilation, conv.kernel_size)]
        self.register_buffer('steps', torch.tensor([steps], dtype=torch.int32, device=bias.device))
        pre = None if norm is None else norm_figures(norm, before)
        self.register_buffer('pre', pre)

    def run(self, x: Tensor, add: Tensor | None = None, into: Tensor | None = None,
            gate: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
        """Compute it in one Triton kernel."""
        kernel = layer_kernels.depthwise if self.depthwise else layer_kernels.convolve
        return kernel(x, self, add, into, gate, sums)

    def plain(self, x: Tensor, add: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """Compute the same by torch's own operations."""
        dtype = x.dtype
        wide = torch.promote_types(dtype, torch.float32)
        if self.pre is not None:
            x = _normed(x, self.pre)
        if gate is not None:
            x = x * gate
        y = F.conv2d(x, self.weight, self.bias.to(dtype), self.stride, self.padding, self.dilation,
                     self.groups).to(wide)
        if self.add_first and add is not None:
            y = y + add
        y = torch.sigmoid(y) if self.sigmoid else torch.where(y > 0, y, y * self.slope.view(1, -1, 1, 1))
        if not self.add_first and add is not None:
            y = y + add
        return y.to(dtype)


class FusedBranches(_Fused):
    """
    Depthwise `FusedConv`s in one kernel: (N, C, H, W) -> results side by side, or `together`: their sum.

    All read the same C channels, or, if there are as many as all have, each its own. With `add_first` the
    first one's activation follows the sum and the addition, and the others have none. `gate`, (N, c, 1, 1):
    x, or `add` if it is given, is multiplied by it first; `add` may be several parts, side by side.
    """

    taps: Tensor
    bias: Tensor
    slope: Tensor
    steps: Tensor
    stride = 1

    def __init__(self, *convs: FusedConv, together: bool = False, add_first: bool = False):
        super().__init__()
        self.convs: Any = nn.ModuleList(convs)
        self.together, self.add_first = together, add_first
        self.kernel = convs[0].kernel
        for name, dim in (('taps', 1), ('bias', 0), ('slope', 0), ('steps', 0)):
            self.register_buffer(name, torch.cat([getattr(conv, name) for conv in convs], dim))

    def run(self, x: Tensor, add: Tensor | None = None, into: Tensor | None = None,
            gate: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
        """Compute it in one Triton kernel."""
        return layer_kernels.depthwise(x, self, add, into, gate, sums)

    def plain(self, x: Tensor, add: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """Compute the same by torch's own operations."""
        each = len(self.convs[0].bias)
        if gate is not None:
            x, add = (x * gate, None) if add is None else (x, add * gate)
        parts = x.split(each, 1) if x.shape[1] > each else len(self.convs) * [x]
        if not self.together:
            y = torch.cat([conv.plain(part) for conv, part in zip(self.convs, parts)], 1)
            return y if add is None else y + add
        rest = [conv.plain(part) for conv, part in zip(self.convs, parts)][self.add_first:]
        total = torch.stack([*rest, *(() if add is None else add.split(each, 1))]).sum(0)
        return self.convs[0].plain(parts[0], total) if self.add_first else total


class FusedNorm(nn.Module):
    """A batch norm and a PReLU or ReLU in one kernel, (N, C, H, W)."""

    pre: Tensor

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module | None):
        super().__init__()
        self.register_buffer('pre', norm_figures(norm, act))

    def forward(self, x: Tensor, into: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
        if by_kernel(x):
            return layer_kernels.norm(x, self.pre, into, sums)
        y = _normed(x, self.pre)
        return y if into is None else into.copy_(y)


def norm_figures(norm: nn.BatchNorm2d, act: nn.Module | None) -> Tensor:
    """Return scale, shift and slope of a batch norm and what follows it, (3, C) float32."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight.float() / torch.sqrt(norm.running_var.float() + norm.eps)
    return torch.stack([scale, norm.bias.float() - norm.running_mean.float() * scale,
                        _slopes(act, scale)]).detach()


def _normed(x: Tensor, pre: Tensor) -> Tensor:
    scale, shift, slope = (t.view(1, -1, 1, 1) for t in pre)
    y = x.to(torch.promote_types(x.dtype, torch.float32)) * scale + shift
    return torch.where(y > 0, y, y * slope).to(x.dtype)


def _slopes(act: nn.Module | None, like: Tensor) -> Tensor:
    """Return what negative values are multiplied by, (C,) float32: an activation is that and nothing else."""
    if isinstance(act, nn.PReLU):
        return act.weight.detach().float().expand(len(like)).contiguous()
    return torch.full_like(like, 0.0 if isinstance(act, nn.ReLU) else 1.0, dtype=torch.float32)


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
        _sequence(sequence)
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


def fusible(module: nn.Module) -> bool:
    """Whether a module is a convolution that a kernel exists for."""
    if not isinstance(module, nn.Conv2d) or module.stride[0] != module.stride[1]:
        return False
    depthwise = module.groups == module.in_channels == module.out_channels
    kernel, dilation = module.kernel_size, module.dilation
    same = module.padding == same_padding((kernel[0], kernel[1]), (dilation[0], dilation[1]))
    return same and (module.groups == 1 or depthwise)


def _sequence(sequence: nn.Sequential) -> None:
    """Fuse [batch norm, PReLU], convolution, [activation] wherever they follow each other in a sequence."""
    found = [s for s in steps(sequence) if type(s[2]) is not nn.Identity]
    for at, (owner, i, conv) in enumerate(found):
        if not fusible(conv):
            continue
        norm = before = act = None
        if conv.groups == 1 and at >= 2 and isinstance(found[at - 2][2], nn.BatchNorm2d) \
                and isinstance(found[at - 1][2], nn.PReLU):
            (a, j, norm), (b, k, before) = found[at - 2:at]
            a[j], b[k] = nn.Identity(), nn.Identity()
        if at + 1 < len(found) and isinstance(found[at + 1][2], (nn.PReLU, nn.ReLU, nn.Sigmoid)):
            a, j, act = found[at + 1]
            a[j] = nn.Identity()
        owner[i] = FusedConv(conv, norm, before, act)  # type: ignore[arg-type]
    left = [s for s in steps(sequence) if type(s[2]) is not nn.Identity]
    for (owner, i, norm), (b, k, act) in zip(left, left[1:]):
        if isinstance(norm, nn.BatchNorm2d) and isinstance(act, (nn.PReLU, nn.ReLU)):
            owner[i], b[k] = FusedNorm(norm, act), nn.Identity()
    left = [s for s in steps(sequence) if type(s[2]) is not nn.Identity]
    for (owner, i, norm), (b, k, gate) in zip(left, left[1:]):
        if isinstance(norm, FusedNorm) and isinstance(gate, FusedGate):
            owner[i], b[k] = FusedNormGate(norm, gate), nn.Identity()


def _fused(*modules: nn.Module) -> nn.Sequential:
    """Fuse what runs one after the other; the last convolution may be given what it adds."""
    together = nn.Sequential(*modules)
    _sequence(together)
    return nn.Sequential(*(m for _, _, m in steps(together) if type(m) is not nn.Identity))


def _one(*modules: nn.Module) -> Any:
    """Fuse what becomes a single convolution."""
    fused, = _fused(*modules)
    return fused


class FusedEAB(nn.Module):
    """`EAB` in four kernels, or six: each addition is part of the convolutions before it."""

    def __init__(self, block: Any):
        super().__init__()
        self.interaction = block.interaction
        self.head = _one(block.pre, block.head)
        lines = [_one(line) for line in (block.left_v, block.right_v, block.left_h, block.right_h)]
        if block.interaction == 'cross':
            self.vertical = FusedBranches(*lines[:2], together=True)
            self.horizontal = FusedBranches(*lines[2:], together=True)
        else:
            self.left_v, self.right_v, self.left_h, self.right_h = lines
        self.restore, self.shuffle = _one(block.merge, block.restore), block.shuffle

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
        self.expand, self.middle, self.restore = _fused(block.body)

    def forward(self, x: Tensor) -> Tensor:
        return self.restore(self.middle(self.expand(x)), x if self.skip else None)


class FusedFCB(nn.Module):
    """`FCB`, or `WholeFCB`, in six kernels: both halves write into the tensor that the others read."""

    def __init__(self, block: Any):
        super().__init__()
        self.halves = isinstance(block, FCB)
        (self.left, self.left2), (self.right, self.right2) = _fused(block.left), _fused(block.right)
        self.middle = _one(*block.join[:2])
        self.restore = FusedConv(block.join[2], act=nn.ReLU(), add_first=True)  # the block's own ReLU
        self.shuffle = block.shuffle if self.halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.halves else (x, x)
        y = _empty(x, x.shape[1])
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
        self.conv = _scaled(block.conv, pre[:, :made])
        self.pool = block.pool
        self.norm = FusedNorm(norm, act)
        self.norm.pre = pre[:, made:].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        small = self.pool(x)
        made = len(self.conv.bias)
        y = _empty(small, made + small.shape[1])
        self.conv(x, into=y[:, :made])
        self.norm(small, into=y[:, made:])
        return y


class FusedECGDown(nn.Module):
    """`ECGDown` with fused convolutions."""

    def __init__(self, block: Any):
        super().__init__()
        self.body = nn.Sequential(_fused(block.head), _context(block.context), _fused(block.reduce))
        self.attention = FusedGate(block.attention)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * self.attention(y)


class FusedECGResidual(nn.Module):
    """`ECGResidual`: sums, concatenations and the norms around convolutions are parts of these."""

    def __init__(self, block: Any):
        super().__init__()
        channels = block.reduce1[0].in_channels
        self.reduce1 = _one(block.reduce1)
        pre = norm_figures(*block.norm1)
        # norm(local + dilated) = norm(dilated) + scale * local
        local1 = _scaled(block.context1.local, pre[:, channels:])
        local1.bias.zero_()
        local1.slope.fill_(1)
        dilated1 = _scaled(block.context1.dilated, pre[:, channels:])
        dilated1.add_first = True
        self.context1 = FusedBranches(dilated1, local1, together=True, add_first=True)
        self.norm1 = FusedNorm(*block.norm1)
        self.norm1.pre = pre[:, :channels].contiguous()
        self.attention, self.reduce2 = FusedGate(block.attention), _one(block.reduce2)
        self.context2 = _context(block.context2)
        self.restore = _one(block.norm2, block.restore)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        y = self.reduce1(x)
        z = _empty(x, channels + y.shape[1])
        sums: list[Tensor] = []
        self.norm1(x, into=z[:, :channels], sums=sums)
        self.context1(y, into=z[:, channels:], sums=sums)
        return self.restore(self.context2(self.reduce2(z, gate=self.attention(z, sums=sums))), x)


class FusedRFF(nn.Module):
    """`RFF`: the first sum is part of a convolution, and what is gated goes straight into the last tensor."""

    def __init__(self, block: Any):
        super().__init__()
        self.a, self.b, self.shallow = _fused(block.a), _one(block.b), _fused(block.shallow)
        self.deep, self.spatial = _fused(block.deep), _fused(block.spatial)
        self.channel, self.norm = FusedGate(block.channel), FusedNorm(*block.norm)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        first, last = self.a
        shallow = self.shallow(last(first(a), self.b(b)))
        deep = resize(self.deep(c), shallow)
        both = torch.cat([deep, shallow], 1)
        y, half = _empty(both, both.shape[1]), deep.shape[1]
        torch.addcmul(deep, deep, self.spatial(both), out=y[:, :half])
        torch.addcmul(shallow, shallow, self.channel(both), out=y[:, half:])
        return self.norm(y)


def _context(block: Any) -> FusedBranches:
    """Fuse a `LocalContext`: its two results are neighbours in one tensor, (N, 2 C, H, W)."""
    return FusedBranches(_one(block.local), _one(block.dilated))


class FusedGate(nn.Module):
    """
    `Gate`: the mean, its convolutions, ReLU and sigmoid are one kernel. `add` is added to what is gated.

    `sums`: what the kernels that have written x left of it, so that the mean need not read it again.
    """

    def __init__(self, gate: Any):
        super().__init__()
        *first, last = gate.convs
        self.convs = nn.Sequential(*(FusedConv(conv, act=nn.ReLU()) for conv in first),
                                   FusedConv(last, act=nn.Sigmoid()))
        self.gates = gate.gates

    def forward(self, x: Tensor, add: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
        y = layer_kernels.gate(x, self.convs, sums or []) if by_kernel(x) else self.convs(global_mean(x))
        if add is not None:
            return torch.addcmul(add, x, y)
        return x * y if self.gates else y


class FusedNormGate(nn.Module):
    """A `FusedNorm` and the `FusedGate` behind it."""

    def __init__(self, norm: FusedNorm, gate: FusedGate):
        super().__init__()
        self.norm, self.gate = norm, gate

    def forward(self, x: Tensor) -> Tensor:
        sums: list[Tensor] = []
        return self.gate(self.norm(x, sums=sums), sums=sums)


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
        self.pool, self.branch = block.pool, _fused(block.branch, nn.ReLU())

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
        z = _empty(x, len(self.query.weight), wide)
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
        self.fuse = _fused(block.fuse)  # type: ignore[assignment]
        self._made: dict[tuple[int, torch.dtype], Tensor] = {}

    def averages(self, length: int, dtype: torch.dtype) -> Tensor:
        if (length, dtype) not in self._made:
            self._made[length, dtype] = super().averages(length, dtype)
        return self._made[length, dtype]


def _scaled(conv: nn.Conv2d, pre: Tensor) -> FusedConv:
    """Fold `pre`, as from `norm_figures`, into a convolution; its slope becomes the activation."""
    scale, shift, slope = pre
    folded = copy.deepcopy(conv)
    weight = conv.weight.to(scale.dtype) * scale.view(-1, 1, 1, 1)
    folded.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    fused = FusedConv(folded)
    fused.bias = fused.bias * scale + shift
    fused.slope = slope.clone()
    return fused


def _mean_and_maximum(x: Tensor) -> Tensor:
    """Return mean and maximum over the channels, (N, 2, H, W)."""
    planes = _empty(x, 2)
    torch.mean(x, 1, True, out=planes[:, :1])
    torch.amax(x, 1, True, out=planes[:, 1:])
    return planes


def _empty(like: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for (N, channels, H, W), channels-last, of the size and, if none is given, type of `like`."""
    n, _, height, width = like.shape
    return torch.empty((n, height, width, channels), dtype=dtype or like.dtype,
                       device=like.device).permute(0, 3, 1, 2)


class FusedBRU(nn.Module):
    """`BRU`: its two branches are one kernel each time, and one convolution makes the first gates."""

    def __init__(self, block: Any):
        super().__init__()
        self.reduce, self.restore = _one(block.reduce), _one(*block.restore[:2])
        sides = [[*_fused(side1[0]), *_fused(side2)] for side1, side2 in (
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
        y = _empty(x, 3 * half)
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
