# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Blocks that two or more of the networks share to the letter."""
import torch
from torch import nn, Tensor
import torch.nn.functional as F


def check_choice(option: str, value: object, choices: tuple) -> None:
    """Raise `ValueError` naming the choices where `value` is none of them."""
    if value not in choices:
        raise ValueError(f'{option} is {value!r}; expected one of {", ".join(map(repr, choices))}')


def check_dilations(option: str, value: object) -> None:
    """Raise `ValueError` where `value` is no tuple of dilations."""
    if not (isinstance(value, tuple) and len(value) <= 64
            and all(type(v) is int and 1 <= v <= 256 for v in value)):
        raise ValueError(f'{option} is {value!r}; expected up to 64 dilations, whole numbers from 1 to 256')


def check_stages(option: str, value: object) -> None:
    """Raise `ValueError` where `value` is not two tuples of dilations: of the blocks at 1/4 and at 1/8."""
    if not (isinstance(value, tuple) and len(value) == 2):
        raise ValueError(f'{option} is {value!r}; expected two lists, for the blocks at 1/4 and at 1/8')
    for stage in value:
        check_dilations(option, stage)


def initialise(network: nn.Module) -> None:
    """
    Kaiming-normal (fan-in) 2-D convolutions with zero biases; all else keeps torch's defaults.

    Every network calls it at the end of its constructor; what a paper wants otherwise follows there.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='relu')
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def same_padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Padding per axis that keeps the size of a stride-1 convolution with odd kernels."""
    return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2


def conv(c_in: int, c_out: int, kernel: int | tuple[int, int], *, stride: int = 1,
         dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """Convolution with "same" padding, (N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
    k = (kernel, kernel) if isinstance(kernel, int) else kernel
    d = (dilation, dilation) if isinstance(dilation, int) else dilation
    return nn.Conv2d(c_in, c_out, k, stride, same_padding(k, d), d, groups, bias)


class BNPReLU(nn.Sequential):
    """Batch norm (eps 1e-3, as in the LEDNet / DABNet lineage), then PReLU with a slope per channel."""

    def __init__(self, channels: int):
        super().__init__(nn.BatchNorm2d(channels, eps=1e-3), nn.PReLU(channels))


class ConvBNPReLU(nn.Sequential):
    """Convolution without bias, batch norm (eps 1e-3), PReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int], *, stride: int = 1,
                 dilation: int | tuple[int, int] = 1, groups: int = 1):
        super().__init__(
            conv(c_in, c_out, kernel, stride=stride, dilation=dilation, groups=groups),
            BNPReLU(c_out))


class Down(nn.Module):
    """
    ENet's downsampler: a 3x3 stride-2 convolution beside a 2x2 max-pool, concatenated in that order.

    (N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2)). The pool rounds up so that both branches agree
    on odd sizes; `act` (norm and activation, c_out channels) follows the concatenation.
    """

    def __init__(self, c_in: int, c_out: int, act: nn.Module):
        super().__init__()
        self.conv = conv(c_in, c_out - c_in, 3, stride=2)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y, small = self.conv(x), self.pool(x)
        if small.dtype != y.dtype:  # an image under autocast: all that is added to it would be float32, too
            small = small.to(y.dtype)
        return self.act(torch.cat([y, small], 1))


class Shuffle(nn.Module):
    """Channel shuffle (ShuffleNet): view (groups, C / groups), transpose, flatten; 0 groups: C / 2 of two."""

    def __init__(self, groups: int):
        super().__init__()
        self.shape = (groups, -1) if groups else (-1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not x.is_contiguous():  # channels-last stays so; below it would end
            last = x.permute(0, 2, 3, 1).unflatten(3, self.shape).transpose(3, 4).flatten(3, 4)
            return last.permute(0, 3, 1, 2)
        return x.unflatten(1, self.shape).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f'{self.shape}'


def size(x: Tensor) -> tuple[int, int]:
    """
    Height and width of (N, C, H, W), as plain numbers also where a graph is traced: graphs are static.

    Where a program is exported with sizes left open, they are torch's symbols for them.
    """
    h, w = x.shape[2:]
    return (int(h), int(w)) if torch.jit.is_tracing() else (h, w)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize (half-pixel centres) to the height and width of `like`."""
    return F.interpolate(x, size=size(like), mode='bilinear', align_corners=False)


def upsample(logits: Tensor, like: Tensor) -> Tensor:
    """
    Resize logits to `like`, in float32 while training in mixed precision.

    CUDA adds up the gradient of a resize in the type of its input: in bfloat16, eight times upsampled, 2.6 %
    of it are lost.
    """
    mixed = logits.requires_grad and logits.dtype in (torch.bfloat16, torch.float16)
    return resize(logits.float() if mixed else logits, like)


def crop(x: Tensor, like: Tensor) -> Tensor:
    """Leave out rows at the bottom and columns on the right that `like` does not have."""
    h, w = size(like)
    return x if size(x) == (h, w) else x[:, :, :h, :w]


def global_mean(x: Tensor) -> Tensor:
    """Mean over height and width, (N, C, H, W) -> (N, C, 1, 1)."""
    if x.requires_grad:
        # The gradient of a mean is a whole map in NCHW, and adding it to a map in channels-last is 15 times
        # slower than adding the gradient of a sum, which is one number per channel.
        return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    return x.mean((2, 3), keepdim=True)
