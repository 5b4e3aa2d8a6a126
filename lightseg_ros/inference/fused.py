# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Modules that are one Triton kernel each on CUDA, and how sequences of torch's modules become such.

A convolution takes with it the norm and activation before it and all that follows it. On a CPU these modules
compute the same by torch's own operations.
"""
from collections.abc import Callable
import copy
import logging
from typing import Any

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from ..networks.layers import global_mean, same_padding
from ..texts import error_line
from . import layer_kernels
from .folding import steps

log = logging.getLogger(__name__)


def by_kernel(x: Tensor) -> bool:
    """Whether a Triton kernel computes what is made of x."""
    return x.is_cuda


class _Launches(nn.Module):
    """A module that launches a Triton kernel, unless Triton can't compile it for this GPU."""

    compiles = True

    def launched(self, x: Tensor, launch: Callable[..., Tensor], *arguments: Any,
                 sums: list[Tensor] | None = None) -> Tensor | None:
        """
        Return what a kernel makes of x; None where torch's own operations have to.

        The first call with a shape, which compiles, is never within a capture.
        """
        if not by_kernel(x) or not self.compiles:
            return None
        count = len(sums or ())
        try:
            return launch(x, *arguments, sums)
        except Exception as e:  # such as more shared memory than the GPU has
            if not layer_kernels.failed_to_compile(e):
                raise
            self.compiles = False
            log.warning("Triton can't compile a kernel for %s of %s (%s): torch's own operations take its "
                        'place, which is slower', type(self).__name__, tuple(x.shape), error_line(e))
            if sums is not None:
                del sums[count:]  # nothing was written there
            return None


class _Fused(_Launches):
    """What runs in one Triton kernel on CUDA (`run`), and by torch's own operations elsewhere (`plain`)."""

    run: Callable[..., Tensor]
    plain: Callable[..., Tensor]

    def forward(self, x: Tensor, add: Tensor | None = None, into: Tensor | None = None,
                gate: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
        """
        `into`: where the result goes, such as some of the channels of a larger tensor.

        `sums`: a kernel that knows how adds what a `FusedGate` needs for the mean of the result.
        """
        y = self.launched(x, self.run, add, into, gate, sums=sums)
        if y is not None:
            return y
        y = self.plain(x, add, gate)
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
        assert not (self.depthwise and (norm or self.sigmoid)), 'no kernel exists for it'
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
        assert not self.depthwise or add is None or gate is None, 'the kernel multiplies `add`, not x'
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


class FusedNorm(_Launches):
    """A batch norm and a PReLU or ReLU in one kernel, (N, C, H, W)."""

    pre: Tensor

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module | None):
        super().__init__()
        self.register_buffer('pre', norm_figures(norm, act))

    def forward(self, x: Tensor, into: Tensor | None = None, sums: list[Tensor] | None = None) -> Tensor:
        y = self.launched(x, layer_kernels.norm, self.pre, into, sums=sums)
        if y is not None:
            return y
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


class FusedGate(_Launches):
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
        y = self.launched(x, layer_kernels.gate, self.convs, sums=sums or [])
        if y is None:
            y = self.convs(global_mean(x))
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


def fusible(module: nn.Module) -> bool:
    """Whether a module is a convolution that a kernel exists for."""
    if not isinstance(module, nn.Conv2d) or module.stride[0] != module.stride[1]:
        return False
    depthwise = module.groups == module.in_channels == module.out_channels
    kernel, dilation = module.kernel_size, module.dilation
    same = module.padding == same_padding((kernel[0], kernel[1]), (dilation[0], dilation[1]))
    # An even kernel has no middle.
    odd = kernel[0] % 2 == kernel[1] % 2 == 1
    return same and odd and module.padding_mode == 'zeros' and (module.groups == 1 or depthwise)


def fuse_sequence(sequence: nn.Sequential) -> None:
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
        # The depthwise kernel has no sigmoid.
        acts = (nn.PReLU, nn.ReLU, nn.Sigmoid) if conv.groups == 1 else (nn.PReLU, nn.ReLU)
        if at + 1 < len(found) and isinstance(found[at + 1][2], acts):
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


def fuse_steps(*modules: nn.Module) -> nn.Sequential:
    """Fuse what runs one after the other; the last convolution may be given what it adds."""
    together = nn.Sequential(*modules)
    fuse_sequence(together)
    return nn.Sequential(*(m for _, _, m in steps(together) if type(m) is not nn.Identity))


def fuse_one(*modules: nn.Module) -> Any:
    """Fuse what becomes a single convolution."""
    fused, = fuse_steps(*modules)
    return fused


def scaled(conv: nn.Conv2d, pre: Tensor) -> FusedConv:
    """Fold `pre`, as from `norm_figures`, into a convolution; its slope becomes the activation."""
    scale, shift, slope = pre
    folded = copy.deepcopy(conv)
    weight = conv.weight.to(scale.dtype) * scale.view(-1, 1, 1, 1)
    folded.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    fused = FusedConv(folded)
    fused.bias = fused.bias * scale + shift
    fused.slope = slope.clone()
    return fused


def room(like: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for (N, channels, H, W), channels-last, of the size and, if none is given, type of `like`."""
    n, _, height, width = like.shape
    return torch.empty((n, height, width, channels), dtype=dtype or like.dtype,
                       device=like.device).permute(0, 3, 1, 2)
