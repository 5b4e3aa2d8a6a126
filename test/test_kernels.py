# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What surrounds the network: the bands on a CPU and the Triton kernels against plain torch."""
import os
from pathlib import Path
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
import torch.nn.functional as F

from lightseg_ros.inference import kernels, layer_kernels
from lightseg_ros.inference.fused import FusedBranches, FusedConv
from lightseg_ros.networks.layers import same_padding

PALETTE = torch.randint(0, 256, (256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((100.0, 110.0, 120.0), (50.0, 60.0, 70.0)))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Batch, classes, size of the logits, size of the frames; smaller, equal, no multiple of a band or block.
SIZES = [(1, 11, 23, 31, 45, 62), (2, 19, 12, 16, 12, 16), (1, 3, 10, 9, 65, 140)]


def scene(n, classes, h, w, height, width, dtype=torch.float32):
    """Logits that vary smoothly, as a network's do, and frames of noise."""
    generator = torch.Generator().manual_seed(classes)
    coarse = 4 * torch.randn((n, classes, 5, 6), generator=generator)
    logits = F.interpolate(coarse, size=(h, w), mode='bicubic').to(dtype)
    frames = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    return logits.contiguous(memory_format=torch.channels_last), frames


def plain(logits, size):
    """Labels and confidence as the textbook has them."""
    upsampled = F.interpolate(logits.double(), size=size, mode='bilinear', align_corners=False)
    highest = torch.softmax(upsampled, 1).amax(1)
    return upsampled.argmax(1), 255 * highest


@pytest.mark.parametrize('shape', SIZES)
def test_bands_are_upsampling_and_argmax(shape):
    logits, _ = scene(*shape)
    labels, confidence = kernels._label_in_bands(logits.float(), shape[4:], True)
    expected, certainty = plain(logits, shape[4:])
    assert labels.dtype == confidence.dtype == torch.uint8
    assert (labels == expected).double().mean() >= 0.9999
    assert (confidence.double() - certainty).abs().max() <= 0.51
    assert len(labels.unique()) > 2


@pytest.mark.parametrize('noise', [False, True])
@pytest.mark.parametrize('shape', [
    (1, 11, 90, 120, 180, 241), (2, 5, 60, 64, 200, 129), (1, 3, 50, 50, 31, 33), (1, 19, 40, 30, 40, 30)])
def test_compiled_labels_are_upsampling_and_argmax(shape, noise):
    """Whether classes meet in few cells or in all of them; larger, smaller, and of the same size."""
    logits = torch.randn(shape[:4]) if noise else scene(*shape)[0]
    size = shape[4:]
    expected, highest = plain(logits, size)
    found, none = kernels._label_compiled(logits, size, False)
    assert found.dtype == torch.uint8 and len(found.unique()) > 2 and not none.numel()
    assert (found == expected).double().mean() >= 0.9999
    both, confidence = kernels.label(logits, size, True)
    assert torch.equal(both, kernels._label_compiled(logits, size, True)[0])
    assert (both == expected).double().mean() >= 0.9999
    difference = float((confidence.double() - highest).abs().max())
    print(f'largest difference of the confidence: {difference:.4f} of 255')
    assert difference <= 0.53, 'more than rounding and what the exponentials are off by'
    assert torch.equal(kernels.label(logits, size, False)[0], found)
    assert (found == kernels._label_in_bands(logits, size, False)[0]).double().mean() >= 0.9999


def test_confidence_of_logits_that_are_far_apart():
    """Certain pixels are 255, equal classes share the certainty, and huge logits overflow nothing."""
    pytest.importorskip('numba')
    for scale in (1e-3, 1.0, 1e3):
        logits = torch.randn(1, 11, 30, 40, generator=torch.Generator().manual_seed(0)) * scale
        confidence = kernels.label(logits, (120, 160), True)[1]
        assert (confidence.double() - plain(logits, (120, 160))[1]).abs().max() <= 0.53, scale
    assert (kernels.label(torch.zeros(1, 4, 8, 8), (16, 16), True)[1] == 64).all()


def test_threads_share_an_image():
    """Each begins at a row of its own; the first of equal classes wins."""
    pytest.importorskip('numba')
    logits, before = scene(2, 11, 23, 31, 45, 62)[0], torch.get_num_threads()
    logits[:, 7] = logits[:, 4]
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append([kernels.label(logits, (45, 62), wanted) for wanted in (False, True)])
    finally:
        torch.set_num_threads(before)
    for alone, both in found:
        assert torch.equal(alone[0], found[0][0][0]) and torch.equal(alone[0], both[0])
        assert torch.equal(both[1], found[0][1][1])
    assert 4 in alone[0] and 7 not in alone[0]


def test_labels_without_numba(monkeypatch):
    logits, _ = scene(*SIZES[0])
    expected = kernels.label(logits, SIZES[0][4:], False)[0]
    monkeypatch.setattr(kernels, '_label_rows', None)
    assert torch.equal(kernels.label(logits, SIZES[0][4:], False)[0], expected)


def test_255_classes():
    """Every id that a byte has room for, but 255."""
    logits = torch.full((1, 255, 8, 16), -1.0)
    for i in range(128):
        logits[0, 127 + i, i // 16, i % 16] = 1.0
    labels = kernels.label(logits, (64, 128), False)[0]
    assert labels[0, 4::8, 4::8].flatten().tolist() == list(range(127, 255))
    flat = torch.zeros((1, 255, 8, 16))
    flat[:, 254] = 1.0
    assert (kernels.label(flat, (64, 128), False)[0] == 254).all()


def test_labels_do_not_depend_on_what_else_is_wanted():
    logits, frames = scene(*SIZES[0])
    alone = kernels.postprocess(logits, frames, PALETTE, 0.5, overlay=False, confidence=False)
    all_three = kernels.postprocess(logits, frames, PALETTE, 0.5, overlay=True, confidence=True)
    assert (alone[0] == all_three[0]).double().mean() >= 0.9999
    assert alone[1].numel() == alone[2].numel() == 0


@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_overlay_is_the_blend_to_the_byte(alpha, monkeypatch):
    """Compiled by Numba, and in torch."""
    check_overlay(alpha)
    monkeypatch.setattr(kernels, '_blend_pixels', None)
    check_overlay(alpha)


def check_overlay(alpha):
    logits, frames = scene(*SIZES[0])
    labels, overlay, _ = kernels.postprocess(logits, frames, PALETTE, alpha, overlay=True, confidence=False)
    share = round(alpha * 128) / 128
    exact = (1 - share) * frames.double() + share * PALETTE[labels.long()].double()
    assert torch.equal(overlay.double(), torch.floor(exact + 0.5))
    turned = kernels.postprocess(logits, frames.flip(3), PALETTE, alpha, overlay=True, confidence=False,
                                 reversed_channels=True)[1]
    assert torch.equal(turned, overlay)


def test_preprocess_normalises_and_turns_channels():
    frames = torch.randint(0, 256, (1, 20, 30, 3), dtype=torch.uint8)
    x = kernels.preprocess(frames, (20, 30), MEAN, STD, torch.float32)
    expected = (frames.numpy().astype(np.float64) - [100, 110, 120]) / [50, 60, 70]
    assert np.abs(x.numpy().transpose(0, 2, 3, 1) - expected).max() < 1e-6
    assert x.is_contiguous(memory_format=torch.channels_last)
    turned = kernels.preprocess(frames.flip(3), (20, 30), MEAN, STD, torch.float32, reversed_channels=True)
    assert torch.equal(turned, x)


def test_resize_keeps_the_mean_of_fine_stripes():
    # Without antialias a camera's fine texture would alias: every second column is 0, the others 200.
    frames = torch.zeros((1, 90, 120, 3), dtype=torch.uint8)
    frames[:, :, ::2] = 200
    small = kernels.resize(frames, (30, 40)).float()
    assert small.shape == (1, 30, 40, 3)
    assert (small[:, 1:-1, 1:-1] - 100).abs().max() < 40
    assert kernels.resize(frames, (90, 120)) is frames


def beyond_the_cpu(logits, size):
    """Return the labels of `label` as it makes them on devices other than a CPU."""
    class Elsewhere(torch.Tensor):
        device = torch.device('cuda')
    return kernels.label(logits.float().as_subclass(Elsewhere), size, False)[0].as_subclass(torch.Tensor)


def check_broken(logits, frames, lookup, order, labels):
    """Logits that are not finite become 255, and no others."""
    broken, only = logits.clone(), torch.full_like(labels, 77)
    for k, value in ((0, torch.nan), (1, torch.inf), (2, -torch.inf)):
        broken[-1, k, k, 2 * k] = value
    expected = kernels.label(broken, labels.shape[1:], False)[0] if broken.is_cuda else \
        beyond_the_cpu(broken, labels.shape[1:])
    kernels.fused_finish(broken, frames, *lookup, order, only, None, None)
    # The kernel multiplies neighbours by a share of zero too, which NaN survives.
    assert (expected == 255).any() and (only[expected == 255] == 255).all()
    assert (only != 255).any() and torch.equal(only[only != 255], labels[only != 255])


def check_fused(shape, dtype, device):
    """Compare the fused kernels with their twins; outputs are poisoned before."""
    reversed_channels = shape[0] == 2
    logits, frames = (t.to(device) for t in scene(*shape, dtype=dtype))
    palette = PALETTE.to(device)
    expected = kernels.postprocess(logits, frames, palette, 0.3, overlay=True, confidence=True,
                                   reversed_channels=reversed_channels)
    found = tuple(torch.full_like(t, 77) for t in expected)
    order = torch.tensor(kernels.channel_order(reversed_channels), dtype=torch.int32, device=device)
    lookup = kernels.overlay_lookup(palette, 0.3)
    kernels.fused_finish(logits, frames, *lookup, order, *found)
    labels, overlay, confidence = found
    same = labels == expected[0]
    assert same.double().mean() >= 0.9999
    assert torch.equal(overlay[same], expected[1][same])
    assert (confidence.int() - expected[2].int()).abs().max() <= 1

    only = torch.full_like(labels, 77)
    kernels.fused_finish(logits, frames, *lookup, order, only, None, None)
    assert torch.equal(only, labels)

    if dtype == torch.float16:
        # The same before a pixel shuffle, of which the last row and column may be cut off.
        h, w = logits.shape[2:]
        shuffled = F.pixel_unshuffle(F.pad(logits, (0, w % 2, 0, h % 2), value=9e3), 2)
        kernels.fused_finish(shuffled, frames, *lookup, order, only, None, None, 2, (h, w))
        assert torch.equal(only, labels)
        check_broken(logits, frames, lookup, order, labels)

    mean, std = MEAN.to(device), STD.to(device)
    x = kernels.fused_normalise(frames, mean, std, dtype, order)
    twin = kernels.normalise(frames, mean, std, dtype, reversed_channels)
    assert x.shape == twin.shape and x.stride() == twin.stride()
    # One step of the type: the interpreter rounds bfloat16 towards zero.
    assert (x.float() - twin.float()).abs().max() <= 4 * torch.finfo(dtype).eps


def interpreted(*what):
    """Run this file in a process of its own: Triton must be imported for the interpreter from the start."""
    if not kernels.available:
        pytest.skip('Triton is not installed; its kernels are for CUDA')
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__, *what], env=env, text=True, capture_output=True,
                          timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_fused_kernels_equal_their_twins_in_the_interpreter():
    assert interpreted() == ['equal'] * (len(SIZES) + len(DTYPES) - 1)


def test_no_index_overflows():
    """At 8192x8192, and in tensors of more than 2^31 values: their last pixels, alone."""
    assert interpreted('large') == ['equal'] * 4


def check_large():
    """
    Run the last program of each kernel alone, on tensors of which only the last pixels are ever touched.

    With 32-bit indices they would read and write somewhere else.
    """
    from triton.runtime.interpreter import interpreter_builder
    program, plain = [0, 0, 0], type(interpreter_builder).create_get_program_id

    def shifted(self, axis):
        handle = plain(self, axis)
        handle.data = handle.data + np.int32(program[axis])
        return handle

    type(interpreter_builder).create_get_program_id = shifted

    def last(name, *at):
        """Let a kernel run one program, that of these coordinates."""
        module = home(name)
        kernel = getattr(module, name)

        class One:
            def __getitem__(self, grid):
                program[:] = [count - 1 if one is None else one
                              for count, one in zip((*grid, 1, 1), (*at, 0, 0))]
                return kernel[(1, 1, 1)]
        setattr(module, name, One())
        return lambda: setattr(module, name, kernel)

    order = torch.tensor(kernels.channel_order(False), dtype=torch.int32)
    frames = torch.empty((11, 8192, 8192, 3), dtype=torch.uint8)
    frames[-1, -1, -400:] = 170
    undo = last('_normalise', None)
    x = kernels.fused_normalise(frames, MEAN, STD, torch.float16, order)
    assert torch.allclose(x[-1, :, -1, -1].float(), (170 - MEAN.flatten()) / STD.flatten(), atol=1e-2)
    undo()
    print('equal')

    logits = torch.empty((1, 40, 8192, 8192), dtype=torch.float16)  # one plane after the other, as FBSNet's
    logits[0, :, -1, -200:] = 0
    logits[0, 35, -1, -200:] = 5
    labels = torch.empty((11, 8192, 8192), dtype=torch.uint8)
    undo = last('_finish', None, None, 0)
    kernels.fused_finish(logits, frames, *kernels.overlay_lookup(PALETTE, 0.0), order, labels[:1], None, None)
    assert (labels[0, -1, -32:] == 35).all()
    undo()
    print('equal')

    x = torch.empty((1, 5792, 5800, 64), dtype=torch.float16).permute(0, 3, 1, 2)  # 2^31 values and some
    x[:, :, -3:, -70:] = 1
    conv = FusedConv(nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False).half())
    for name, made in (('_depthwise', conv), ('_convolve', FusedConv(nn.Conv2d(64, 8, 3, padding=1).half()))):
        undo = last(name, None, None)
        found = made.run(x)[0, :, -1, -20:]
        expected = made.plain(x[:, :, -3:, -70:])[0, :, -1, -20:]
        assert (found - expected).abs().max() < 1e-2, name
        undo()
        print('equal')


def home(name):
    """Return the module that a Triton kernel is in."""
    return kernels if hasattr(kernels, name) else layer_kernels


def launches():
    """Return what the networks launch, as (kernel, positional and keyword arguments); nothing runs."""
    found = []
    patch = pytest.MonkeyPatch()
    for name in ('_normalise', '_finish', '_depthwise', '_convolve', '_norm', '_gate'):
        kernel = getattr(home(name), name)

        class Recorder:
            def __class_getitem__(cls, grid, kernel=kernel):
                return lambda *args, **kwargs: found.append((kernel, args, kwargs))
        patch.setattr(home(name), name, Recorder)
    with torch.device('meta'):
        half = torch.float16
        order, lookup = torch.empty(3, dtype=torch.int32), torch.empty((256, 3), dtype=torch.int16)
        frames = torch.empty((1, 512, 1024, 3), dtype=torch.uint8)
        kernels.fused_normalise(frames, torch.empty(3), torch.empty(3), half, order)
        for classes in (11, 150):
            logits = torch.empty((1, 256, 512, classes), dtype=half).permute(0, 3, 1, 2)
            bytes_out = frames[..., 0].contiguous()
            kernels.fused_finish(logits, frames, lookup, lookup[0], order, bytes_out, frames, bytes_out)
        x = torch.empty((1, 64, 128, 128), dtype=half).permute(0, 3, 1, 2)
        for kernel, dilation, c in ((3, 1), (16, 1), 64), ((3, 3), (8, 8), 128), ((7, 7), (1, 1), 8):
            conv = nn.Conv2d(c, c, kernel, 1, same_padding(kernel, dilation), dilation, c).half()
            FusedConv(conv).run(x[:, :c], x[:, :c])
        for kernel, together in ((3, 1), False), ((3, 3), False), ((3, 1), True), ((3, 3), True):
            two = [FusedConv(nn.Conv2d(64, 64, kernel, 1, same_padding(kernel, (1, 1)), 1, 64).half())
                   for _ in range(2)]
            FusedBranches(*two, together=together).run(x[:, :64])
        FusedBranches(*two, together=True).run(x, torch.cat([x, x[:, :64]], 1), gate=x[..., :1, :1])
        norm = nn.BatchNorm2d(128).half(), nn.PReLU(128).half()
        FusedConv(nn.Conv2d(128, 64, 3, padding=1).half(), *norm).run(x)
        FusedConv(nn.Conv2d(128, 128, 1).half(), *norm).run(x, x)
        FusedConv(nn.Conv2d(128, 64, 1).half()).run(x, gate=x[..., :1, :1])
        FusedConv(nn.Conv2d(3, 32, 3, 2, 1).half(), act=nn.Sigmoid()).run(x[:, :3])
        for c, made in (128, 128), (192, 192), (24, 24), (128, 8):
            first, last = (FusedConv(nn.Conv2d(*sizes, 1).half()) for sizes in ((c, made), (made, c)))
            x, sums = torch.empty((1, 64, 128, c), dtype=half).permute(0, 3, 1, 2), []
            layer_kernels.norm(x, torch.empty(3, c), sums=sums)
            FusedConv(nn.Conv2d(c, c, 1).half()).run(x, sums=sums)
            lines = FusedConv(nn.Conv2d(c, c, (3, 1), padding=(1, 0), groups=c).half())
            FusedBranches(lines, lines).run(x, sums=sums)
            layer_kernels.gate(x, (first, last), sums[:1])
            layer_kernels.gate(torch.cat([x, x], 1), (FusedConv(nn.Conv2d(2 * c, made, 1).half()),), sums[:2])
        for size in (1, 1, 1, 1), (2, 7, 1, 16), (2, 1, 5, 3):  # Triton takes each 1 as a constant
            x, c = torch.empty(size, dtype=half).permute(0, 3, 1, 2), size[3]
            layer_kernels.norm(x, torch.empty(3, c), sums=[])
            point = FusedConv(nn.Conv2d(c, 1, 1).half())
            FusedConv(nn.Conv2d(c, 1, 3, padding=1).half(), act=nn.Sigmoid()).run(x, gate=x[..., :1, :1])
            layer_kernels.gate(x, (point, FusedConv(nn.Conv2d(1, c, 1).half())), [])
            if c > 1:
                FusedConv(nn.Conv2d(c, c, 3, padding=1, groups=c).half()).run(x, x)
    patch.undo()
    return found


KINDS = {torch.uint8: '*u8', torch.int16: '*i16', torch.int32: '*i32', torch.float16: '*fp16',
         torch.float32: '*fp32'}


@pytest.mark.parametrize('capability', [75, 80, 87, 89, 90, 100, 120])
def test_kernels_compile_for_every_gpu_without_spills(capability, tmp_path, monkeypatch):
    triton = pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    binaries = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
    if not (binaries / 'cuobjdump').exists():
        pytest.skip('this Triton comes without cuobjdump')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    for function, args, kwargs in launches():
        options = {'num_warps': kwargs.pop('num_warps')} if 'num_warps' in kwargs else {}
        name = function.__name__
        if name == '_convolve' and capability < 80:
            continue  # see `cuda._tensor_cores`
        if capability != 90 and kwargs.get('taps_x') != 3:
            continue  # all of them take a minute
        types, constants, aligned = {}, {}, {}
        for i, (argument, value) in enumerate(zip(function.arg_names, [*args, *kwargs.values()])):
            if isinstance(value, torch.Tensor):
                types[argument] = KINDS[value.dtype]
            elif argument in kwargs or value == 1:  # Triton takes a 1 as a constant
                types[argument], constants[i,] = 'constexpr', value
            else:
                types[argument] = 'i32' if value < 2 ** 31 else 'i64'
            if isinstance(value, torch.Tensor) or types[argument] != 'constexpr' and value % 16 == 0:
                aligned[i,] = [['tt.divisibility', 16]]
        source = ASTSource(fn=function, signature=types, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
        (tmp_path / 'kernel').write_bytes(compiled.asm['cubin'])
        # What a program may take on 8.6, 8.9 and 12.0, and on 7.5.
        assert compiled.metadata.shared <= (99 if capability >= 80 else 64) * 1024, (name, kwargs)
        used = subprocess.run([binaries / 'cuobjdump', '-res-usage', tmp_path / 'kernel'], text=True,
                              capture_output=True, check=True).stdout
        print(name, kwargs, re.search(r'REG:.*', used)[0])
        # 8 bytes are what one of the layers with a single channel takes on 8.0; no network has such.
        assert re.search(r'STACK:[08]\b', used) and re.search(r'LOCAL:0\b', used), (name, kwargs, used)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [*SIZES, (1, 19, 256, 512, 512, 1024), (1, 150, 64, 64, 480, 640)])
def test_fused_kernels_equal_their_twins_on_cuda(shape, dtype):
    if not kernels.available:
        pytest.skip('Triton is not installed')
    check_fused(shape, dtype, 'cuda')


if __name__ == '__main__':
    if sys.argv[1:] == ['large']:
        check_large()
        sys.exit()
    # All types at one size, all sizes with one type.
    for size, kind in [*((size, DTYPES[0]) for size in SIZES), *((SIZES[0], kind) for kind in DTYPES[1:])]:
        check_fused(size, kind, 'cpu')
        print('equal')
