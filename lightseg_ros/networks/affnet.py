# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
AFFNet: attention feature fusion network.

Kuang, Liu, Chen, Zhang, "Lightweight Semantic Segmentation Network based on Attention Feature Fusion", 2023.

No code was released. The layout is the text's with Fast-SCNN's widths and ShuffleNet's downsampler where it
is silent; it has 1,615,638 parameters with 19 classes, 1,606,414 with 11 (the paper: 1.62 M), and 5.208 G
multiply-accumulates in convolutions at 512x1024, 5.264 G with norms (the paper: 5.256 G). The paper's width
change "at the 6th" bottleneck is read as the 7th: the 6th would cost 0.13 M more than it prints.
"""
import torch
from torch import nn, Tensor

from .layers import check_choice, conv, Down, global_mean, initialise, resize, size, upsample

FUSIONS = ('concat+ewa', 'ewa', 'ewa+concat', 'concat')


class BNReLU(nn.Sequential):
    """Batch norm (torch's eps, as in Fast-SCNN), ReLU."""

    def __init__(self, channels: int):
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU())


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1):
        super().__init__(conv(c_in, c_out, kernel, stride=stride, groups=groups), BNReLU(c_out))


class ShuffleDown(nn.Module):
    """
    ShuffleNet's unit with stride 2: (N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2)).

    An average pool beside a 1x1, depthwise 3x3, 1x1 branch with a quarter of the channels in its middle,
    concatenated in that order.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        mid = c_out // 4
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.branch = nn.Sequential(
            ConvBNReLU(c_in, mid, 1), conv(mid, mid, 3, stride=2, groups=mid), nn.BatchNorm2d(mid),
            conv(mid, c_out - c_in, 1), nn.BatchNorm2d(c_out - c_in))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.cat([self.pool(x), self.branch(x)], 1))


class InvertedResidual(nn.Module):
    """MobileNetV2's bottleneck, expansion 6: (N, c_in, H, W) -> (N, c_out, H, W) / stride, rounded up."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        mid = 6 * c_in
        self.skip = stride == 1 and c_in == c_out
        self.body = nn.Sequential(
            ConvBNReLU(c_in, mid, 1), ConvBNReLU(mid, mid, 3, stride=stride, groups=mid),
            conv(mid, c_out, 1), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


class SPP(nn.Module):
    """
    PSPNet's pyramid pooling, bins 1, 2, 3, 6: (N, C, H, W) -> the same shape.

    Averaging a bin is linear in rows and in columns, so all bins are two products with matrices of 12 rows,
    one for each row of the four grids. That equals adaptive average pooling, which ONNX has no operator
    for.
    """

    BINS = (1, 2, 3, 6)
    row: Tensor
    rows: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer('row', torch.tensor([i for b in self.BINS for i in range(b)]), persistent=False)
        self.register_buffer('rows', torch.tensor([b for b in self.BINS for _ in range(b)]), persistent=False)
        self.fuse = ConvBNReLU(channels * (1 + len(self.BINS)), channels, 1)

    def averages(self, length: int, dtype: torch.dtype) -> Tensor:
        """Matrix (12, length) that averages the pixels which each row of the grids covers."""
        # Built on the device from the size alone: a copy from the host could not be captured in a CUDA graph.
        start = self.row * length // self.rows
        stop = ((self.row + 1) * length + self.rows - 1) // self.rows
        pixel = torch.arange(length, device=self.row.device)
        inside = (pixel >= start[:, None]) & (pixel < stop[:, None])
        return inside.to(dtype) / (stop - start)[:, None].to(dtype)

    def pool(self, x: Tensor) -> list[Tensor]:
        """Average the bins: (N, C, H, W) -> (N, C, b, b) for each b of BINS."""
        h, w = size(x)
        means = self.averages(h, x.dtype) @ x @ self.averages(w, x.dtype).T
        out, at = [], 0
        for b in self.BINS:
            out.append(means[:, :, at:at + b, at:at + b])
            at += b
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([x, *(resize(p, x) for p in self.pool(x))], 1))


class CBAM(nn.Module):
    """Convolutional block attention, channels then space (3x3 here): (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        mid = channels // 16
        self.channel = nn.Sequential(conv(channels, mid, 1), nn.ReLU(), conv(mid, channels, 1))
        self.spatial = conv(2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.channel(global_mean(x)) + self.channel(x.amax((2, 3), keepdim=True)))
        planes = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(planes))


class AFFM(nn.Module):
    """
    Attention feature fusion: features at 1/8, 1/16, 1/32, 1/32 -> (N, 128, H/8, W/8).

    An attention branch (each feature under CBAM, upsampled) and a pooling branch (each feature through 1x1
    and a 5x5 max-pool, upsampled), joined. How each branch fuses its four maps is the paper's ablation,
    concatenation or element-wise addition (EWA): 'concat+ewa' is attention by concatenation and pooling by
    addition, and so on. The four layouts are those that give the paper's four counts (1.46, 1.70, 1.62,
    1.62 M); no single definition of the two EWAs does.
    """

    def __init__(self, channels: tuple[int, ...], c_out: int, fusion: str):
        super().__init__()
        self.cbam = nn.ModuleList(CBAM(c) for c in channels)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.attend: nn.ModuleList | ConvBNReLU
        self.point: nn.ModuleList | ConvBNReLU
        if fusion in ('ewa', 'ewa+concat'):
            self.attend = nn.ModuleList(
                nn.Identity() if fusion == 'ewa' and c == c_out else ConvBNReLU(c, c_out, 3)
                for c in channels)
        else:
            self.attend = ConvBNReLU(sum(channels), c_out, 3)
        if fusion == 'ewa+concat':
            self.point = ConvBNReLU(sum(channels), c_out, 1)
        else:
            self.point = nn.ModuleList(ConvBNReLU(c, c_out, 1) for c in channels)
        self.join = ConvBNReLU(c_out * (1 + len(channels)), c_out, 1) if fusion == 'concat' else None

    def forward(self, features: list[Tensor]) -> Tensor:
        first = features[0]

        def up(maps: list[Tensor]) -> list[Tensor]:
            return maps[:1] + [resize(m, first) for m in maps[1:]]

        attended = up([cbam(f) for cbam, f in zip(self.cbam, features)])
        if isinstance(self.attend, nn.ModuleList):
            y = torch.stack([attend(a) for attend, a in zip(self.attend, attended)]).sum(0)
        else:
            y = self.attend(torch.cat(attended, 1))
        if not isinstance(self.point, nn.ModuleList):
            return y + self.point(torch.cat(up([self.pool(f) for f in features]), 1))
        pooled = up([self.pool(point(f)) for point, f in zip(self.point, features)])
        if self.join is not None:
            return self.join(torch.cat([y, *pooled], 1))
        for p in pooled:
            y = y + p
        return y


class AFFNet(nn.Module):
    """
    RGB (N, 3, H, W), normalised float -> logits (N, num_classes, H, W), for H and W from 64 up.

    Option `fusion`, of the attention and of the pooling branch: 'concat+ewa', 'ewa' (both), 'ewa+concat' or
    'concat' (both).
    """

    def __init__(self, num_classes: int, *, fusion: str = 'concat+ewa'):
        super().__init__()
        check_choice('fusion', fusion, FUSIONS)
        self.stage8 = nn.Sequential(Down(3, 32, BNReLU(32)), ShuffleDown(32, 48), ShuffleDown(48, 64))
        self.stage16 = nn.Sequential(
            InvertedResidual(64, 64, 2), InvertedResidual(64, 64), InvertedResidual(64, 64))
        self.stage32 = nn.Sequential(
            InvertedResidual(64, 96), InvertedResidual(96, 96, 2), InvertedResidual(96, 96))
        self.context = nn.Sequential(
            InvertedResidual(96, 128), InvertedResidual(128, 128), InvertedResidual(128, 128), SPP(128))
        self.fusion = AFFM((64, 64, 96, 128), 128, fusion)
        self.classifier = nn.Sequential(
            ConvBNReLU(128, 128, 3, groups=128), ConvBNReLU(128, 128, 1),
            ConvBNReLU(128, 128, 3, groups=128), ConvBNReLU(128, 128, 1),
            conv(128, num_classes, 3, bias=True))
        initialise(self)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return logits (N, K, H/8, W/8), before the last resize, and deepest features (N, 128, H/32, W/32).

        Training gives the deepest features a classifier of their own.
        """
        f1 = self.stage8(x)
        f2 = self.stage16(f1)
        f3 = self.stage32(f2)
        f4 = self.context(f3)
        return self.classifier(self.fusion([f1, f2, f3, f4])), f4

    def forward_logits(self, x: Tensor) -> Tensor:
        """Return the logits before the last resize, (N, num_classes, H/8, W/8)."""
        return self.logits_and_features(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        return upsample(self.forward_logits(x), x)
