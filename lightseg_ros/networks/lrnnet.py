# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
LRNNet: light-weighted network with efficient reduced non-local operation.

Jiang et al., IEEE ICME Workshops, 2020, arXiv 2006.02706.

No code was released. Encoder widths, repeats and dilations are LEDNet's, which the paper builds on; with them
its table comes out: model C 682,530 parameters with 19 classes (682,266 with 11; the paper: 0.68 M), model A,
without the reduced non-local module, 674,178 (0.67 M), the SS-nbt baseline 948,866 (0.95 M). Its 8.58 G count
norms, biases and the attention product too; convolutions alone are 8.29 G.
"""
import torch
from torch import nn, Tensor
import torch.nn.functional as F

from .layers import check_choice, conv, Down, initialise, Shuffle, size, upsample

SCALES = ((), (8,), (8, 4), (8, 4, 2), (16,), (4,))
KEYS = ('svn', 'max', 'avg', 'full')
BLOCKS = ('fcb', 'ss-nbt')


class BNReLU(nn.Sequential):
    """Batch norm (eps 1e-3, as in LEDNet), ReLU."""

    def __init__(self, channels: int):
        super().__init__(nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU())


class FCB(nn.Module):
    """
    Factorised convolution block: (N, C, H, W) -> the same shape, 4 C^2 + 16 C parameters.

    Each half of the channels passes a pair of dense 1-D convolutions, in opposite orders; a depthwise 3x3
    with the dilation and a pointwise convolution join them; residual and shuffle.
    """

    def __init__(self, channels: int, dilation: int, dropout: float = 0.0):
        super().__init__()
        h = channels // 2

        def half(first: tuple[int, int], second: tuple[int, int]) -> nn.Sequential:
            return nn.Sequential(conv(h, h, first, bias=True), nn.ReLU(), conv(h, h, second), BNReLU(h))

        self.left = half((3, 1), (1, 3))
        self.right = half((1, 3), (3, 1))
        self.join = nn.Sequential(
            conv(channels, channels, 3, dilation=dilation, groups=channels), BNReLU(channels),
            conv(channels, channels, 1), nn.BatchNorm2d(channels, eps=1e-3))
        self.dropout = nn.Dropout2d(dropout)
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = self.join(torch.cat([self.left(left), self.right(right)], 1))
        return self.shuffle(torch.relu(x + self.dropout(y)))


class SSnbt(nn.Module):
    """LEDNet's split-shuffle non-bottleneck, the paper's baseline: 6 C^2 + 8 C parameters."""

    def __init__(self, channels: int, dilation: int, dropout: float = 0.0):
        super().__init__()
        h = channels // 2

        def half(first: tuple[int, int], second: tuple[int, int]) -> nn.Sequential:
            return nn.Sequential(
                conv(h, h, first, bias=True), nn.ReLU(), conv(h, h, second, bias=True), BNReLU(h),
                conv(h, h, first, dilation=dilation, bias=True), nn.ReLU(),
                conv(h, h, second, dilation=dilation, bias=True), nn.BatchNorm2d(h, eps=1e-3))

        self.left = half((3, 1), (1, 3))
        self.right = half((1, 3), (3, 1))
        self.dropout = nn.Dropout2d(dropout)
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([self.left(left), self.right(right)], 1)
        return self.shuffle(torch.relu(x + self.dropout(y)))


def cells(x: Tensor, grid: int) -> Tensor:
    """Split (N, C, H, W), H and W multiples of `grid`, into grid^2 equal cells: (N, grid^2, C, pixels)."""
    x = x.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(1, 2)


def singular_vector(a: Tensor, iterations: int = 2) -> Tensor:
    """
    First left singular vectors by power iteration: (..., C, n) -> (..., C), of length 1, or 0 for zeros.

    Works on the Gram matrix (C x C), from the mean of the columns, which on feature maps is already close
    (|cos| with the true vector after two iterations is 0.9995 or more). In float32 or float64 only: squared
    sums of half-precision features overflow. The scale is exact without a gradient, since the vector does not
    depend on it.
    """
    a = a / (a.detach().abs().amax((-2, -1), keepdim=True) + 1e-6)
    gram = a @ a.transpose(-1, -2)
    u = F.normalize(a.mean(-1, keepdim=True), dim=-2, eps=1e-6)
    for _ in range(iterations):
        u = F.normalize(gram @ u, dim=-2, eps=1e-6)
    return u.squeeze(-1)


class SVN(nn.Module):
    """
    Reduced non-local module: (N, 128, H, W) -> the same shape, 8,352 parameters (equation 4).

    Keys and values are the dominant singular vectors u_r of the cells that the map is split into, on each
    grid of `scales`. There is no softmax, so the sum over r of (q . u_r) u_r is M q, with one 32x32 matrix
    M an image: the cost does not depend on the number of keys, nor the result on the sign of u_r. `norm`
    divides by that number, which the paper does not, but without it the branch starts a hundred times
    louder than the identity (the convolution behind it absorbs the factor).

    `keys`: 'svn'; 'max' or 'avg', the pooled vectors of the cells; 'full', every position (non-local
    without softmax). The map is padded on the right and at the bottom so that cells are equal: with zeros,
    which leave singular vectors as they are, for 'max' with its border.
    """

    def __init__(self, channels: int, width: int, scales: tuple[int, ...], keys: str, iterations: int,
                 norm: bool):
        super().__init__()
        self.scales, self.keys, self.iterations, self.norm = scales, keys, iterations, norm
        self.query = conv(channels, width, 1, bias=True)
        self.restore = conv(width, channels, 1, bias=True)

    def attention(self, z: Tensor) -> Tensor:
        """Matrix M: (N, C, H, W) -> (N, C, C), in float32 where z is in half precision."""
        # Autocast would take the products back to half precision; "meta" (shapes only) knows no autocast.
        with torch.autocast('cuda' if z.is_cuda else 'cpu', enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            if self.keys == 'full':
                k = z.flatten(2)
            else:
                (h, w), m = size(z), max(8, *self.scales)
                z = F.pad(z, (0, -w % m, 0, -h % m), mode='replicate' if self.keys == 'max' else 'constant')
                k = torch.cat([self.pool(cells(z, grid)) for grid in self.scales], 1).transpose(1, 2)
            matrix = k @ k.transpose(1, 2)
            return matrix / k.shape[2] if self.norm else matrix

    def pool(self, a: Tensor) -> Tensor:
        """Cells (N, S, C, n) -> keys (N, S, C)."""
        if self.keys == 'max':
            return a.amax(-1)
        return a.mean(-1) if self.keys == 'avg' else singular_vector(a, self.iterations)

    def forward(self, x: Tensor) -> Tensor:
        z = self.query(x)
        y = self.attention(z).to(z.dtype) @ z.flatten(2)
        return x + self.restore(y.unflatten(2, size(z)))


class LRNNet(nn.Module):
    """
    RGB (N, 3, H, W), normalised float -> logits (N, num_classes, H, W), for H and W from 64 up.

    Options: `svn`: the grids that keys are taken from: () is model A (no module), (8,) model B, (8, 4)
    model C; also (8, 4, 2), (16,), (4,). `keys`: 'svn', 'max', 'avg', 'full'; `iterations` of the power
    method; `norm`: whether the attention is divided by the number of keys; `block`: 'fcb' or 'ss-nbt';
    `dropout` in the blocks at 1/2 and 1/4, and at 1/8 (LEDNet has 0.03, 0.3; the paper is silent).
    """

    def __init__(self, num_classes: int, *, svn: tuple[int, ...] = (8, 4), keys: str = 'svn',
                 iterations: int = 2, norm: bool = True, block: str = 'fcb',
                 dropout: tuple[float, float] = (0.0, 0.0)):
        super().__init__()
        check_choice('svn', svn, SCALES)
        check_choice('keys', keys, KEYS)
        check_choice('block', block, BLOCKS)
        check_choice('norm', norm, (True, False))
        if type(iterations) is not int or not 0 <= iterations <= 100:
            raise ValueError(f'iterations is {iterations!r}; expected a whole number from 0 to 100')
        if not (isinstance(dropout, tuple) and len(dropout) == 2
                and all(type(p) in (int, float) and 0 <= p < 1 for p in dropout)):
            raise ValueError(f'dropout is {dropout!r}; expected two shares below 1, at 1/2 and 1/4, and '
                             'at 1/8')
        make = FCB if block == 'fcb' else SSnbt
        self.stage2 = nn.Sequential(Down(3, 32, BNReLU(32)), *(make(32, 1, dropout[0]) for _ in range(3)))
        self.stage4 = nn.Sequential(Down(32, 64, BNReLU(64)), *(make(64, 1, dropout[0]) for _ in range(2)))
        self.stage8 = nn.Sequential(Down(64, 128, BNReLU(128)),
                                    *(make(128, d, dropout[1]) for d in (1, 2, 5, 9, 2, 5, 9, 17)))
        self.svn = SVN(128, 32, svn, keys, iterations, norm) if svn else nn.Identity()
        self.classifier = nn.Sequential(conv(128, 32, 3), BNReLU(32), conv(32, num_classes, 1, bias=True))
        initialise(self)
        if isinstance(self.svn, SVN):
            # Training starts from model A, to the bit.
            nn.init.zeros_(self.svn.restore.weight)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return logits (N, K, H/8, W/8), before the last resize, and deepest features (N, 128, H/8, W/8).

        Training gives the deepest features a classifier of their own.
        """
        f8 = self.stage8(self.stage4(self.stage2(x)))
        return self.classifier(self.svn(f8)), f8

    def forward_logits(self, x: Tensor) -> Tensor:
        """Return the logits before the last resize, (N, num_classes, H/8, W/8)."""
        return self.logits_and_features(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        return upsample(self.forward_logits(x), x)
