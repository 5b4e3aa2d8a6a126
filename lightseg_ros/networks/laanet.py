# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
LAANet: lightweight attention-guided asymmetric network.

Zhang, Du, Wu, Wan, Neural Computing and Applications 34:3573-3587, 2022, doi 10.1007/s00521-022-06932-z.
No code was released and the figures of the paper's layer table are not public, so the layout is the one
that its text allows and its parameter count (0.67 M) leaves: 665,943 parameters with 19 classes. What the
text leaves open is an option below, with the choice that was made as its default.
"""
import torch
from torch import nn, Tensor

from .layers import (
    BNPReLU,
    check_choice,
    check_dilations,
    check_stages,
    conv,
    ConvBNPReLU,
    Down,
    global_mean,
    initialise,
    resize,
    Shuffle,
    upsample,
)

INTERACTIONS = ('cross', 'one_way', 'none')
POOLS = ('max', 'avg')
ATTENTIONS = ('full', 'ica', 'isa', 'none')


class EAB(nn.Module):
    """
    Efficient asymmetric bottleneck: (N, C, H, W) -> the same shape, 5 C^2 + 18 C parameters.

    A 3x3 convolution halves the channels; two depthwise 3x1, 1x3 paths, one of them dilated, exchange
    features between their halves; a pointwise convolution restores the channels; residual and shuffle.
    """

    def __init__(self, channels: int, dilation: int, interaction: str = 'cross'):
        super().__init__()
        h, d = channels // 2, dilation
        self.interaction = interaction
        self.pre = BNPReLU(channels)
        self.head = ConvBNPReLU(channels, h, 3)
        self.left_v = ConvBNPReLU(h, h, (3, 1), groups=h)
        self.right_v = ConvBNPReLU(h, h, (3, 1), dilation=(d, 1), groups=h)
        self.left_h = ConvBNPReLU(h, h, (1, 3), groups=h)
        self.right_h = ConvBNPReLU(h, h, (1, 3), dilation=(1, d), groups=h)
        self.merge = BNPReLU(h)
        self.restore = conv(h, channels, 1)
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.pre(x))
        left, right = self.left_v(y), self.right_v(y)
        if self.interaction == 'cross':
            left = right = left + right
        elif self.interaction == 'one_way':
            right = left + right
        y = self.left_h(left) + self.right_h(right)
        return self.shuffle(x + self.restore(self.merge(y)))


class ADPP(nn.Module):
    """
    Attention-guided dilated pyramid pooling: (N, C, H, W) -> (N, c, H, W).

    Three levels, each pooled by 2 (1/16, 1/32, 1/64 of the image), extracted by a dilated and refined by
    a plain 3x3 convolution (LiteSeg's DASPP). On the way up an attention map from the coarser level gates
    the finer one; the result multiplies a pointwise feature, and a global average path is added.
    """

    def __init__(self, c_in: int, c_out: int, width: int, dilations: tuple[int, int, int],
                 pool: str = 'max'):
        super().__init__()
        pooling = nn.MaxPool2d if pool == 'max' else nn.AvgPool2d
        self.pool = pooling(2, 2, ceil_mode=True)
        self.extract = nn.ModuleList(
            ConvBNPReLU(c_in if i == 0 else width, width, 3, dilation=d)
            for i, d in enumerate(dilations))
        self.refine = nn.ModuleList(ConvBNPReLU(width, width, 3) for _ in dilations)
        self.gate = nn.ModuleList(conv(width, width, 1, bias=True) for _ in dilations[1:])
        self.point = ConvBNPReLU(c_in, c_out, 1)
        self.top = ConvBNPReLU(width, c_out, 1)
        # Normalises a 1x1 map, so training needs two or more images a step.
        self.mean = ConvBNPReLU(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        features, f = [], x
        for extract, refine in zip(self.extract, self.refine):
            f = extract(self.pool(f))
            features.append(refine(f))
        t = features[-1]
        for g, gate in zip(features[-2::-1], self.gate):
            u = resize(t, g)
            t = u + g * torch.sigmoid(gate(u))
        return self.point(x) * resize(self.top(t), x) + self.mean(global_mean(x))


class AFFU(nn.Module):
    """
    Attention-guided feature fusion: low (N, c_low, H, W), high (N, c_high, h, w) -> (N, c, H, W).

    A spatial map from the low-level feature (ISA) gates the upsampled high-level one; a channel map from
    the high-level feature (ICA) gates the low-level one; their sum is the output.
    """

    def __init__(self, c_low: int, c_high: int, c_out: int, attention: str = 'full'):
        super().__init__()
        self.low = ConvBNPReLU(c_low, c_out, 1)
        self.high = ConvBNPReLU(c_high, c_out, 1)
        self.spatial = conv(1, 1, 7, bias=True) if attention in ('full', 'isa') else None
        self.channel = conv(c_out, c_out, 1, bias=True) if attention in ('full', 'ica') else None

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        low, high = self.low(low), self.high(high)
        up = resize(high, low)
        if self.spatial is not None:
            up = up * torch.sigmoid(self.spatial(low.mean(1, keepdim=True)))
        if self.channel is not None:
            low = low * torch.sigmoid(self.channel(global_mean(high)))
        return up + low


class LAANet(nn.Module):
    """
    RGB (N, 3, H, W), normalised float -> logits (N, num_classes, H, W), for H and W from 64 up.

    Options (the paper's ablations; none but `affu` changes a count): `dilations`: of the blocks at 1/4 and
    of those at 1/8, as many as there are (3 and 6); `interaction`: between the halves of a block, 'cross'
    (both paths take the sum), 'one_way' (the dilated path does) or 'none'; `adpp_pool`: 'max' or 'avg';
    `adpp_dilations`: of the three pyramid levels; `affu`: 'full', 'ica' (channel attention only), 'isa'
    (spatial attention only) or 'none'.
    """

    def __init__(self, num_classes: int, *,
                 dilations: tuple[tuple[int, ...], tuple[int, ...]] = ((2, 2, 2), (4, 4, 8, 8, 16, 16)),
                 interaction: str = 'cross', adpp_pool: str = 'max',
                 adpp_dilations: tuple[int, int, int] = (1, 2, 4), affu: str = 'full'):
        super().__init__()
        check_stages('dilations', dilations)
        check_dilations('adpp_dilations', adpp_dilations)
        if len(adpp_dilations) != 3:
            raise ValueError(f'adpp_dilations is {adpp_dilations!r}; expected three, one for each level')
        check_choice('interaction', interaction, INTERACTIONS)
        check_choice('adpp_pool', adpp_pool, POOLS)
        check_choice('affu', affu, ATTENTIONS)
        self.stem = nn.Sequential(
            ConvBNPReLU(3, 32, 3, stride=2), ConvBNPReLU(32, 32, 3), ConvBNPReLU(32, 32, 3))
        self.stage4 = nn.Sequential(
            Down(32, 64, BNPReLU(64)), *(EAB(64, d, interaction) for d in dilations[0]))
        self.stage8 = nn.Sequential(
            Down(64, 128, BNPReLU(128)), *(EAB(128, d, interaction) for d in dilations[1]))
        self.adpp = ADPP(128, 32, 8, adpp_dilations, adpp_pool)
        self.affu4 = AFFU(64, 32, 32, affu)
        self.affu2 = AFFU(32, 32, 32, affu)
        self.classifier = conv(32, num_classes, 1, bias=True)
        initialise(self)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return logits (N, K, H/2, W/2), before the last resize, and deepest features (N, 128, H/8, W/8).

        Training gives the deepest features a classifier of their own.
        """
        f2 = self.stem(x)
        f4 = self.stage4(f2)
        f8 = self.stage8(f4)
        y = self.affu4(f4, self.adpp(f8))
        y = self.affu2(f2, y)
        return self.classifier(y), f8

    def forward_logits(self, x: Tensor) -> Tensor:
        """Return the logits before the last resize, (N, num_classes, H/2, W/2)."""
        return self.logits_and_features(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        return upsample(self.forward_logits(x), x)
