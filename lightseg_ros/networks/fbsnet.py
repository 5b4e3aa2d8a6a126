# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
FBSNet: fast bilateral symmetrical network.

Gao, Xu, Li, Yu, Lu, Yang, IEEE Transactions on Multimedia, 2022, arXiv 2109.00699.

`FBSNet` is Table I and the text, read literally: 590,735 parameters with 19 classes, 590,215 with 11. The
paper prints 0.62 M (615,419 in Table II) and 9.7 G. Its Table II can't be had from its Table I: there the
detail branch costs 22,480 parameters, the one that the text describes 9,936. What neither states (norms
between the convolutions, kernel 3 in the channel attention, the width of the aggregation module) follows the
code that the authors released. `FBSNetReleased` is the network of that code: other block counts and
dilations, a 32-channel end of the decoder, full convolutions in the detail branch.

Not to be trained on crops lower or narrower than about 280 pixels: at 1/8 the dilation of 17 then reaches
beyond the map, the outer taps learn nothing, and on larger images they break the network (measured: trained
at 160x120, the features at 480x360 grow a million times).
"""
import torch
from torch import nn, Tensor
import torch.nn.functional as F

from .layers import (
    BNPReLU,
    check_choice,
    conv,
    ConvBNPReLU,
    crop,
    Down,
    global_mean,
    initialise,
    Shuffle,
    size,
)

FUSIONS = ('fam', 'concat', 'add')


class CAM(nn.Module):
    """Channel attention (ECA): a 3-tap convolution along the channels of the global mean; 3 parameters."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.conv(global_mean(x).flatten(2).transpose(1, 2)))
        return x * weights.transpose(1, 2).unsqueeze(3)


class SAM(nn.Module):
    """Spatial attention map from mean and maximum over channels: (N, C, H, W) -> (N, 1, H, W) in (0, 1)."""

    def __init__(self):
        super().__init__()
        self.conv = conv(2, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class FAM(nn.Module):
    """
    Feature aggregation module (coordinate attention): (N, C, H, W) -> the same shape.

    The means over each row and over each column, squeezed together, become a gate per row and one per column.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = max(8, channels // 4)
        self.squeeze = conv(channels, width, 1, bias=True)
        self.norm = nn.BatchNorm2d(width, eps=1e-3)
        self.rows = conv(width, channels, 1, bias=True)
        self.columns = conv(width, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = size(x)
        y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        y = F.hardswish(self.norm(self.squeeze(y)))
        rows = torch.sigmoid(self.rows(y[:, :, :h]))
        columns = torch.sigmoid(self.columns(y[:, :, h:])).transpose(2, 3)
        return x * rows * columns


class BRU(nn.Module):
    """
    Bottleneck residual unit: (N, C, H, W) -> the same shape, C^2 + 30 C + 12 parameters (equations 1 to 6).

    At half the channels a local (left) and a dilated (right) branch, each of two depthwise 3x1, 1x3 pairs;
    what each holds after its first pair, and the input under channel attention, are added to their sum.
    `left`: kernels of the second pair of the left branch; equation 3 has 3x1 then 1x3, the released code
    1x3 then 3x1.
    """

    def __init__(self, channels: int, dilation: int,
                 left: tuple[tuple[int, int], tuple[int, int]] = ((3, 1), (1, 3))):
        super().__init__()
        h = channels // 2

        def pair(kernels: tuple[tuple[int, int], ...], dilation: int) -> nn.Sequential:
            return nn.Sequential(*(ConvBNPReLU(h, h, k, dilation=dilation, groups=h) for k in kernels))

        self.reduce = nn.Sequential(BNPReLU(channels), ConvBNPReLU(channels, h, 1))
        self.left1 = nn.Sequential(pair(((3, 1), (1, 3)), 1), CAM())
        self.left2 = pair(left, 1)
        self.right1 = nn.Sequential(pair(((3, 1), (1, 3)), dilation), CAM())
        self.right2 = pair(((1, 3), (3, 1)), dilation)
        self.middle = CAM()
        self.restore = nn.Sequential(BNPReLU(h), conv(h, channels, 1), CAM())
        self.deinterleave = Shuffle(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        left, right = self.left1(y), self.right1(y)
        y = self.left2(left) + self.right2(right) + left + self.middle(y) + right
        return self.deinterleave(self.restore(y) + x)


class Up(nn.Module):
    """Transposed 3x3 convolution, batch norm, ReLU6: (N, c_in, h, w) -> (N, c_out, H, W) of `like`."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(c_in, c_out, 3, 2, 1, output_padding=1)
        self.norm = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        # Twice the size, of which an odd `like` needs one row or column less.
        return F.relu6(self.norm(crop(self.conv(x), like)))


def stem() -> nn.Sequential:
    """Initial block: RGB (N, 3, H, W) -> (N, 16, ceil(H/2), ceil(W/2))."""
    return nn.Sequential(
        ConvBNPReLU(3, 16, 3, stride=2), ConvBNPReLU(16, 16, 3), ConvBNPReLU(16, 16, 3), BNPReLU(16))


def stage(*blocks: nn.Module, channels: int, cam: bool = True) -> nn.Sequential:
    """Blocks, norm and activation, and (unless ablated) a channel attention."""
    return nn.Sequential(*blocks, BNPReLU(channels), *([CAM()] if cam else []))


class FBSNet(nn.Module):
    """
    RGB (N, 3, H, W), normalised float -> logits (N, num_classes, H, W), for H and W from 64 up.

    Options (Table II of the paper): `cam`: the six channel attentions between the stages (those inside the
    blocks always stay); `sdb`: the spatial detail branch, without which `sam` and `fusion` mean nothing;
    `sam`: its spatial attention; `fusion` of the branches: 'fam' (sum, then aggregation module), 'concat'
    or 'add'.
    """

    def __init__(self, num_classes: int, *, cam: bool = True, sdb: bool = True, sam: bool = True,
                 fusion: str = 'fam'):
        super().__init__()
        for option, value in (('cam', cam), ('sdb', sdb), ('sam', sam)):
            check_choice(option, value, (True, False))
        check_choice('fusion', fusion, FUSIONS)
        self.stem = stem()
        self.stage2 = nn.Sequential(
            *([CAM()] if cam else []), stage(*(BRU(16, 1) for _ in range(3)), channels=16, cam=cam))
        self.stage4 = stage(Down(16, 64, BNPReLU(64)), *(BRU(64, 1) for _ in range(3)), channels=64, cam=cam)
        self.stage8 = stage(Down(64, 128, BNPReLU(128)), *(BRU(128, d) for d in 4 * (1, 2, 5, 9, 17)),
                            channels=128, cam=cam)
        self.up4 = Up(128, 64)
        self.decode4 = stage(*(BRU(64, 1) for _ in range(3)), channels=64, cam=cam)
        self.up2 = Up(64, 16)
        self.decode2 = stage(*(BRU(16, 1) for _ in range(3)), channels=16, cam=cam)
        self.detail = nn.Sequential(
            ConvBNPReLU(16, 16, 3),
            ConvBNPReLU(16, 16, 3, groups=16), ConvBNPReLU(16, 64, 1),
            ConvBNPReLU(64, 64, 3, groups=64), ConvBNPReLU(64, 64, 1),
            ConvBNPReLU(64, 16, 1)) if sdb else None
        self.sam = SAM() if sdb and sam else None
        self.concat = sdb and fusion == 'concat'
        width = 32 if self.concat else 16
        self.norm = BNPReLU(width) if sdb else nn.Identity()
        self.fam = FAM(width) if sdb and fusion == 'fam' else nn.Identity()
        self.classifier = nn.ConvTranspose2d(width, num_classes, 2, 2)
        initialise(self)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return the logits, (N, K, H, W), and the deepest features, (N, 128, H/8, W/8).

        Training gives the deepest features a classifier of their own.
        """
        f2 = self.stem(x)
        s2 = self.stage2(f2)
        s4 = self.stage4(s2)
        s8 = self.stage8(s4)
        y = self.decode4(self.up4(s8, s4))
        y = self.decode2(self.up2(y, s2))
        if self.detail is not None:
            detail = self.detail(f2)
            if self.sam is not None:
                detail = detail * self.sam(detail)
            y = torch.cat([y, detail], 1) if self.concat else y + detail
        y = self.fam(self.norm(y))
        return crop(self.classifier(y), x), s8

    def forward_logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes, H, W): the last convolution brings them to full size."""
        return self.logits_and_features(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_logits(x)


class FBSNetReleased(nn.Module):
    """
    The network of the authors' code: RGB (N, 3, H, W) -> logits (N, num_classes, H, W), H and W from 64 up.

    607,103 parameters with 19 classes, 606,071 with 11; the released code also creates a norm of 96
    parameters that it never uses. Of the detail branch only its attention map is used, added to the
    decoder's features where the paper multiplies. Where H and W are multiples of 8, the only sizes that the
    released code takes, the result is the same.
    """

    def __init__(self, num_classes: int):
        super().__init__()

        def blocks(channels: int, *dilations: int) -> list[BRU]:
            return [BRU(channels, d, left=((1, 3), (3, 1))) for d in dilations]

        self.stem = stem()
        self.stage2 = nn.Sequential(CAM(), stage(*blocks(16, 1, 1, 1, 1, 1), channels=16))
        self.stage4 = stage(Down(16, 64, BNPReLU(64)), *blocks(64, 1, 2, 5, 9, 17), channels=64)
        self.stage8 = stage(Down(64, 128, BNPReLU(128)),
                            *blocks(128, 1, 2, 5, 9, 1, 2, 5, 9, 2, 5, 9, 17, 2, 5, 9, 17), channels=128)
        self.up4 = Up(128, 64)
        self.decode4 = stage(*blocks(64, 1, 1, 1), channels=64)
        self.up2 = Up(64, 32)
        self.decode2 = stage(*blocks(32, 1, 1, 1), channels=32)
        self.detail = nn.Sequential(
            ConvBNPReLU(16, 32, 3), ConvBNPReLU(32, 128, 3), ConvBNPReLU(128, 32, 3), SAM())
        self.norm = BNPReLU(32)
        self.fam = FAM(32)
        self.classifier = nn.ConvTranspose2d(32, num_classes, 2, 2)
        initialise(self)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return the logits, (N, K, H, W), and the deepest features, (N, 128, H/8, W/8).

        Training gives the deepest features a classifier of their own.
        """
        f2 = self.stem(x)
        s2 = self.stage2(f2)
        s4 = self.stage4(s2)
        s8 = self.stage8(s4)
        y = self.decode4(self.up4(s8, s4))
        y = self.decode2(self.up2(y, s2))
        y = self.fam(self.norm(y + self.detail(f2)))
        return crop(self.classifier(y), x), s8

    def forward_logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes, H, W): the last convolution brings them to full size."""
        return self.logits_and_features(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_logits(x)
