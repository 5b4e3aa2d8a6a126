# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
What is captured on CUDA, run without a GPU: on tensors that claim to be there and have no memory.

Each operation is looked at as it passes: none may wait for the GPU or touch the CPU, which a capture does not
allow, and their number and the bytes that they move stay within the budget beside each network. Run as a
script, this file prints them all.
"""
import collections
import contextlib
import functools
import shutil
import traceback
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightseg_ros import networks
from lightseg_ros.inference import cuda, folding, kernels, layer_kernels
from lightseg_ros.inference.backends import DeployModel
from lightseg_ros.inference.engine import GraphKey
from lightseg_ros.training import losses, recipes, samples, trainer
from lightseg_ros.training.learner import Learner, normaliser

# At 1024x512 in float16, labels alone: launches, and MB that they read and write.
BUDGETS = {'laanet': (101, 420), 'fbsnet': (347, 1800), 'lrnnet': (118, 615), 'elanet': (130, 685),
           'affnet': (116, 250)}
# The rest of a build for CUDA knows where its tensors lie; this one learns it here.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
static const bool registered = [] {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
  return true;
}();
"""
# Operations whose result the host must wait for.
WAITS = ('_local_scalar_dense', 'item', 'nonzero', 'masked_select', '_unique2', 'unique_dim', 'equal',
         'bincount', 'is_nonzero', 'repeat_interleave', 'lift_fresh', 'pin_memory', '_pin_memory')
# Operations that launch nothing.
FREE = ('empty', 'empty_strided', 'empty_like', 'new_empty', 'new_empty_strided', 'detach', '_unsafe_view')


class Watch(TorchDispatchMode):
    """Counts launches and bytes of every operation that passes; keeps what a capture does not allow."""

    def __init__(self):
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.forbidden: list[str] = []

    def count(self, name, tensors):
        self.launches[name] += 1
        self.bytes[name] += sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix('aten::')
        if name in WAITS:
            self.forbidden.append(f'{name} waits')
        out = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if any(t.device.type == 'cpu' for t in tensors):
            ours = [f'{f.filename}:{f.lineno}' for f in traceback.extract_stack()
                    if 'lightseg_ros' in f.filename]
            self.forbidden.append(f'{name} of {[(str(t.device), *t.shape) for t in tensors]} at {ours[-1:]}')
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if not (view or name in FREE or name.startswith('prim')):
            self.count(name, tensors)
            if name == 'convolution' and args[2] is not None:  # cuDNN's convolutions leave the bias to torch
                self.count('bias', [out, out.view(-1), args[2]])
        return out


class Launcher:
    """Stands where a Triton kernel is: `kernel[grid](...)` is counted and computes nothing."""

    def __init__(self, watch, name):
        self.watch, self.name = watch, name

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            tensors = [t for t in args if isinstance(t, torch.Tensor)]
            assert all(int(n) > 0 for n in grid) and all(t.is_cuda for t in tensors)
            self.watch.count(self.name, tensors)
        return launch


@pytest.fixture(scope='session')
def fake_cuda():
    load_guard()


def load_guard():
    if torch.cuda.is_available():
        return
    from torch.utils import cpp_extension
    if not shutil.which('c++') or not shutil.which('ninja'):
        pytest.skip('needs a C++ compiler and ninja, to build the device guard of a GPU that is not there')
    cpp_extension.load_inline('lightseg_fake_cuda', GUARD, is_python_module=False, no_implicit_headers=True)


def on_fake_cuda(module):
    """Move a module to a GPU that is not there; inside a FakeTensorMode."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(
                    torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device='cuda'), False)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = torch.empty_strided(b.shape, b.stride(), dtype=b.dtype, device='cuda')
    return module


@contextlib.contextmanager
def counted(fused):
    """Give a `Watch` that counts what passes, Triton's kernels too."""
    watch = Watch()
    patch = pytest.MonkeyPatch()
    patch.setattr(cuda, '_tensor_cores', lambda device: True)
    if fused:
        triton = SimpleNamespace(
            cdiv=lambda a, b: -(-a // b), next_power_of_2=lambda n: 1 << (n - 1).bit_length())
        for module, names in KERNELS.items():
            patch.setattr(module, 'triton', triton, raising=False)
            for name in names:
                patch.setattr(module, name, Launcher(watch, name), raising=False)
    try:
        with torch.no_grad(), watch:  # which, unlike inference_mode, takes operations apart
            yield watch
    finally:
        patch.undo()


KERNELS = {kernels: ('_normalise', '_finish'), layer_kernels: ('_depthwise', '_convolve', '_norm', '_gate')}


@functools.cache
def deployed(name, widen):
    folded = folding.fold(networks.build(name, 11).eval(), widen=widen)
    return DeployModel(folded, (100.0,) * 3, (70.0,) * 3)


def run_frame(name, precision, *, frame=(512, 1024), size=(512, 1024), batch=1, all_images=False, fused=True,
              warm=False, smoothing=False):
    """Run what is captured for a frame of (height, width); returns what was watched."""
    dtype = getattr(torch, precision)
    model = deployed(name, dtype != torch.float32).lowered(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_cuda(model)
        palette = torch.empty(256, 3, dtype=torch.uint8, device='cuda')
        with counted(fused):
            pipeline = cuda.FramePipeline(model, palette, fused=fused)
        pipeline.weight = torch.empty(1, dtype=torch.int16, device='cuda')
        key = GraphKey(batch, *frame, size, False, all_images, all_images, smoothing)
        past = None
        if smoothing:
            past = cuda.Past.__new__(cuda.Past)  # its constructor pins memory of the host
            past.weight, past.mean = torch.empty(batch, 1, 1, 1, dtype=dtype, device='cuda'), None
        out = cuda.Images.empty(key, 'cuda')
        frames = torch.empty(batch, *frame, 3, dtype=torch.uint8, device='cuda')
        order = torch.empty(3, dtype=torch.int32, device='cuda')
        for _ in range(1 + warm):  # what is captured after a warm-up lacks what depends on the size alone
            with counted(fused) as watch:
                pipeline(frames, order, key, out, past)
    return watch


# The released layouts are of the same blocks.
@pytest.mark.parametrize('precision, fused', [('float16', True), ('bfloat16', True), ('float32', False)])
@pytest.mark.parametrize('name', networks.PAPER_NETWORKS)
def test_a_frame_can_be_captured(fake_cuda, name, precision, fused):
    """Nothing waits and nothing touches the CPU: another size than the network's, in a batch, all images."""
    watch = run_frame(name, precision, frame=(721, 1283), size=(353, 480), batch=2, all_images=True,
                      fused=fused)
    assert sum(watch.launches.values()) > 50 and not watch.forbidden


@pytest.mark.parametrize('name', BUDGETS)
def test_launches_and_bytes_stay_within_the_budget(fake_cuda, name):
    watch = run_frame(name, 'float16', warm=True)
    launches, megabytes = sum(watch.launches.values()), sum(watch.bytes.values()) / 1e6
    print(f'{name}: {launches} launches, {megabytes:.0f} MB; {watch.launches.most_common(8)}')
    assert launches <= BUDGETS[name][0] and megabytes <= BUDGETS[name][1]


@pytest.mark.parametrize('name', ['fbsnet', 'affnet'])
def test_smoothing_is_one_launch(fake_cuda, name):
    """Classes as they are left: with sub-pixels in the channels, and with padding."""
    plain, smooth = (run_frame(name, 'float16', size=(353, 480), batch=2, warm=True, smoothing=smoothing)
                     for smoothing in (False, True))
    assert not smooth.forbidden
    assert smooth.launches - plain.launches == {'lerp': 1} and not plain.launches - smooth.launches


@pytest.mark.parametrize('name, changes', [
    ('lrnnet', {'loss': 'owfl'}), ('affnet', {'loss': 'ohem', 'auxiliary': 0.4, 'gamma': 0.3, 'noise': 5.0})])
def test_a_training_step_can_be_captured(fake_cuda, monkeypatch, name, changes):
    """
    Augmentation, forward pass in mixed precision and loss of what the trainer captures.

    Not the backward pass: torch's autograd asks a real GPU for its streams. It is made of torch's operations.
    """
    monkeypatch.setattr(torch.Tensor, 'backward', lambda loss: None)
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *_, **__: True)
    recipe, crop, device = recipes.load('best', name, **changes), (96, 128), torch.device('cuda')
    made = trainer.Trainer.__new__(trainer.Trainer)  # its constructor reads a data set and asks the GPU
    made.recipe, made.device, made.precision = recipe, device, 'bfloat16'
    made.layout, made.teachers = torch.channels_last, []
    learner = Learner(networks.build(name, 11).train(), 11, bool(recipe.auxiliary))
    drawn = samples.draw(
        8, 4, torch.Generator().manual_seed(0), size=(120, 160), crop=crop, scale=recipe.scale,
        num_classes=11, color=recipe.color, blur=recipe.blur, mix=recipe.mix, gamma=recipe.gamma,
        noise=recipe.noise)
    share = torch.full((11,), 1 / 11)
    found = samples.Statistics(torch.zeros(3), torch.ones(3), share, share)
    with FakeTensorMode(allow_non_fake_inputs=True):
        if recipe.loss == 'owfl':  # its terms are worked out on the CPU, once
            alpha, gamma = torch.empty(11, device=device), torch.empty(11, dtype=torch.int64, device=device)
            made.loss = lambda logits, y: losses.owfl(logits, y, alpha, gamma, highest_gamma=3)
        else:
            made.loss = losses.of_recipe(recipe, found, device)
        made.model = on_fake_cuda(learner)
        for p in learner.parameters():
            p.requires_grad_()
        made._normalise = normaliser([100.0] * 3, [70.0] * 3, device)
        made.fill = torch.empty(3, device=device)
        made.images = torch.empty(8, 3, 120, 160, dtype=torch.uint8, device=device)
        made.ids = torch.empty(8, 120, 160, dtype=torch.uint8, device=device)
        drawn = drawn.map(lambda t: torch.empty_like(t[:4], device=device))
        pattern = torch.empty(3, samples.PATTERN, samples.PATTERN, device=device)
        monkeypatch.setattr(samples, '_pattern', lambda _: pattern)  # the warm-up makes it
        watch = Watch()
        with watch:
            loss = made.forward_backward(drawn, crop)
    assert loss.is_cuda and sum(watch.launches.values()) > 100 and not watch.forbidden


def test_what_a_capture_does_not_allow_is_seen(fake_cuda):
    """The watch itself: an operation that waits, and a constant that is made on the CPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(4, device='cuda')
        with counted(False) as watch:
            torch.ones(3)
        assert len(watch.forbidden) == 1 and 'cpu' in watch.forbidden[0]
        with counted(False) as watch, contextlib.suppress(Exception):
            x.sum().item()
        assert watch.forbidden == ['_local_scalar_dense waits']


if __name__ == '__main__':
    load_guard()
    for each in BUDGETS:
        seen = run_frame(each, 'float16', warm=True)
        print(f'{each}: {sum(seen.launches.values())} launches, {sum(seen.bytes.values()) / 1e6:.0f} MB, '
              f'of which convolutions {seen.bytes["convolution"] / 1e6:.0f}; {seen.launches.most_common()}')
