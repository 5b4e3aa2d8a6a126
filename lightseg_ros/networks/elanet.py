# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
ELANet: effective lightweight attention-guided network.

Yi, Dai, Shi, Huang, Luo, Neural Processing Letters 55:6425-6442, 2023, doi 10.1007/s11063-023-11145-z.

The code that the authors released has 9 blocks at 1/8 (`elanet_released`: 674,860 parameters with 19 classes,
673,836 with 11); the 0.76 M and 10.34 G that the paper prints are those of 11 blocks (`ELANet`: 756,744 and
755,720; its 9.94 G are convolutions only, 10.34 G counts norms and activations too). The dilations of the 11
are not published: 4 five times, then 8 six times, of which the released list is the beginning.
"""
import torch
from torch import nn, Tensor

from .layers import BNPReLU, check_stages, conv, ConvBNPReLU, global_mean, initialise, resize, upsample


class CCA(nn.Module):
    """
    Channel attention weights: (N, c_in, H, W) -> (N, c_out, 1, 1) in (0, 1).

    Two convolutions along the channels of the global mean, the first with stride c_in / c_out. Their kernel,
    floor(c_in / 8) - 1, is odd only for multiples of 16, without which the length would shrink.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        assert c_in % 16 == 0 and c_in % c_out == 0, (c_in, c_out)
        kernel, padding = c_in // 8 - 1, (c_in // 8 - 2) // 2
        self.conv1 = nn.Conv1d(1, 1, kernel, c_in // c_out, padding, bias=False)
        self.conv2 = nn.Conv1d(1, 1, kernel, 1, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.conv1(global_mean(x).flatten(2).transpose(1, 2))))
        return torch.sigmoid(y).transpose(1, 2).unsqueeze(3)


class LocalContext(nn.Module):
    """A depthwise 3x3 convolution and a dilated one of the same input, (N, C, H, W) each, no norm."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.local = conv(channels, channels, 3, groups=channels)
        self.dilated = conv(channels, channels, 3, dilation=dilation, groups=channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.local(x), self.dilated(x)


class ECGDown(nn.Module):
    """Effective context guidance, downsampling: (N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2))."""

    def __init__(self, c_in: int, c_out: int, dilation: int):
        super().__init__()
        self.head = nn.Sequential(ConvBNPReLU(c_in, c_out, 3, stride=2), ConvBNPReLU(c_out, c_out, 1))
        self.context = LocalContext(c_out, dilation)
        self.reduce = nn.Sequential(BNPReLU(2 * c_out), conv(2 * c_out, c_out, 1))
        self.attention = CCA(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(torch.cat(self.context(self.head(x)), 1))
        return y * self.attention(y)


class ECGResidual(nn.Module):
    """Effective context guidance, residual: (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        n = channels // 2
        self.reduce1 = ConvBNPReLU(channels, n, 1)
        self.context1 = LocalContext(n, dilation)
        self.norm1 = BNPReLU(channels + n)
        self.attention = CCA(channels + n, channels + n)
        self.reduce2 = ConvBNPReLU(channels + n, n, 1)
        self.context2 = LocalContext(n, dilation)
        self.norm2 = BNPReLU(channels)
        self.restore = ConvBNPReLU(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        local, dilated = self.context1(self.reduce1(x))
        y = self.norm1(torch.cat([x, local + dilated], 1))
        y = self.reduce2(y * self.attention(y))
        y = self.norm2(torch.cat(self.context2(y), 1))
        return x + self.restore(y)


class RFF(nn.Module):
    """
    Refined feature fusion: a at 1/2, b at 1/4 and c at 1/8 -> 128 channels at 1/4.

    The shallow path is refined from a and b, the deep one resized from c. Dual attention: the spatial map,
    one for each channel, gates the deep path and the channel weights the shallow one.
    """

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(
            ConvBNPReLU(32, 32, 3, stride=2, groups=32), conv(32, 64, 1, bias=True), BNPReLU(64))
        self.b = ConvBNPReLU(64, 64, 3, groups=64)
        self.shallow = nn.Sequential(
            ConvBNPReLU(64, 64, 3, groups=64), conv(64, 64, 1, bias=True), BNPReLU(64))
        self.deep = conv(256, 64, 1, bias=True)
        self.channel = CCA(128, 64)
        self.spatial = nn.Sequential(
            ConvBNPReLU(128, 8, 1), ConvBNPReLU(8, 8, 7, groups=8), conv(8, 64, 1, bias=True), nn.Sigmoid())
        self.norm = BNPReLU(128)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        shallow = self.shallow(self.a(a) + self.b(b))
        deep = resize(self.deep(c), shallow)
        both = torch.cat([deep, shallow], 1)
        return self.norm(torch.cat([deep * (1 + self.spatial(both)), shallow * (1 + self.channel(both))], 1))


class ELANet(nn.Module):
    """
    RGB (N, 3, H, W), normalised float -> logits (N, num_classes, H, W), for H and W from 64 up.

    Options: `dilations` of the residual blocks at 1/4 and at 1/8, as many as there are; `dropout` before the
    classifier (the released code knows 0.1, off by default).
    """

    def __init__(self, num_classes: int, *,
                 dilations: tuple[tuple[int, ...], tuple[int, ...]] = ((2, 2), 5 * (4,) + 6 * (8,)),
                 dropout: float = 0.0):
        super().__init__()
        check_stages('dilations', dilations)
        if not (type(dropout) in (int, float) and 0 <= dropout < 1):
            raise ValueError(f'dropout is {dropout!r}; expected a share below 1')
        self.stem = nn.Sequential(
            ConvBNPReLU(3, 32, 3, stride=2), ConvBNPReLU(32, 32, 3), ConvBNPReLU(32, 32, 3), BNPReLU(32))
        self.down4 = ECGDown(32, 64, 2)
        self.stage4 = nn.Sequential(*(ECGResidual(64, d) for d in dilations[0]))
        self.norm4 = BNPReLU(128)
        self.down8 = ECGDown(128, 128, 4)
        self.stage8 = nn.Sequential(*(ECGResidual(128, d) for d in dilations[1]))
        self.norm8 = BNPReLU(256)
        self.fusion = RFF()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = conv(128, num_classes, 1)
        initialise(self)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return logits (N, K, H/4, W/4), before the last resize, and deepest features (N, 128, H/8, W/8).

        Training gives the deepest features a classifier of their own.
        """
        a = self.stem(x)
        b0 = self.down4(a)
        b = self.stage4(b0)
        c0 = self.down8(self.norm4(torch.cat([b, b0], 1)))
        c1 = self.stage8(c0)
        c = self.norm8(torch.cat([c0, c1], 1))
        y = self.fusion(a, b, c)
        return self.classifier(self.dropout(y)), c1

    def forward_logits(self, x: Tensor) -> Tensor:
        """Return the logits before the last resize, (N, num_classes, H/4, W/4)."""
        return self.logits_and_features(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        return upsample(self.forward_logits(x), x)


def elanet_released(num_classes: int, *,
                    dilations: tuple[tuple[int, ...], tuple[int, ...]] = ((2, 2), 5 * (4,) + 4 * (8,)),
                    dropout: float = 0.0) -> ELANet:
    """Build ELANet with the 9 blocks at 1/8 of the authors' code."""
    return ELANet(num_classes, dilations=dilations, dropout=dropout)
