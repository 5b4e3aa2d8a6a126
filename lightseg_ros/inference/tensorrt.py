# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The backend `tensorrt`: a network as an engine of NVIDIA's TensorRT, in half precision."""
from collections.abc import Callable
from contextlib import suppress
import copy
from pathlib import Path
import re
from typing import Any

import torch
from torch import nn, Tensor

from .. import files
from ..texts import one_line
from . import cache, fused
from .backends import BackendError, DeployModel
from .export import ExportError, to_onnx

TIMINGS_BYTES = 64 * 2 ** 20  # a larger file of timings is not read


class Core(nn.Module):
    """
    What TensorRT is given: image (N, 3, h, w), normalised -> the network's logits, all in float16.

    A strongly typed engine computes in the types of the graph. Norms that no convolution has taken in become
    a product and a sum, since theirs would have weights of another type than their input.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network: Any = copy.deepcopy(network).cpu().float()
        for parent in list(self.network.modules()):
            for name, module in list(parent.named_children()):
                if isinstance(module, nn.BatchNorm2d):
                    setattr(parent, name, Affine(module))
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_logits(x)


class Affine(nn.Module):
    """A batch norm as it is after training: scale and shift."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        scale, shift, _ = fused.norm_figures(norm, None)
        self.register_buffer('scale', scale.view(1, -1, 1, 1))
        self.register_buffer('shift', shift.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def entry(version: str, gpu: str, key: str, shape: tuple[int, ...]) -> str:
    """
    Return an engine's name in the cache: it fits one version of TensorRT, one GPU, weights, batch and size.

    `key`: names the weights, as in `backends.CompileSpec`. `shape`: (N, 3, h, w).
    """
    n, _, height, width = shape
    return f'tensorrt-{version}-{re.sub("[^A-Za-z0-9]+", "_", gpu)}-{key}-{n}x{width}x{height}'


def compile_network(model: DeployModel, shape: tuple[int, ...], key: str) -> Callable[[Tensor], Tensor]:
    """
    Return what runs `model.logits` for inputs of a shape on the current stream, (N, 3, h, w) float16.

    The engine is built, which takes minutes, or read from the cache. `BackendError` where it can't be.
    """
    trt = _tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    gpu = torch.cuda.get_device_name(model.mean.device)

    def make(folder: Path) -> None:
        plan = _build(trt, logger, model, shape, _timings(trt.__version__, gpu))
        (folder / 'engine.plan').write_bytes(plan)

    def read(folder: Path) -> Any:
        engine = trt.Runtime(logger).deserialize_cuda_engine((folder / 'engine.plan').read_bytes())
        if engine is None:
            raise BackendError(f'TensorRT {trt.__version__} can not read the engine that it built')
        return engine

    try:
        engine = cache.load(entry(trt.__version__, gpu, key, shape), make, read)
    except (OSError, ExportError) as e:
        raise BackendError(str(e)) from e
    context = engine.create_execution_context()
    if context is None:
        raise RuntimeError('CUDA out of memory: TensorRT can not create what an engine runs in')
    made = tuple(engine.get_tensor_shape('logits'))

    def run(x: Tensor) -> Tensor:
        x = x.contiguous()  # one plane after the other
        logits = torch.empty(made, dtype=torch.float16, device=x.device)
        # A captured graph keeps the addresses, and torch keeps its memory for it.
        taken = context.set_tensor_address('image', x.data_ptr()) \
            and context.set_tensor_address('logits', logits.data_ptr()) \
            and context.execute_async_v3(torch.cuda.current_stream(x.device).cuda_stream)
        if not taken:
            raise RuntimeError('TensorRT could not run its engine; its log says why')
        return logits
    return run


def _tensorrt() -> Any:
    """Import TensorRT; `BackendError` where that fails, or it is too old for strongly typed networks."""
    try:
        import tensorrt as trt
    except (ImportError, OSError) as e:  # the package may be there without its or the driver's libraries
        raise BackendError(f"backend is 'tensorrt', but tensorrt can't be imported ({one_line(e, 300)}): "
                           "install it again with NVIDIA's driver in place, or choose backend 'torch'") from e
    if int(trt.__version__.partition('.')[0]) < 10:
        raise BackendError(f"backend is 'tensorrt', but TensorRT is {trt.__version__}; expected 10 or newer: "
                           "install that (JetPack 6.1 brings it), or choose backend 'torch'")
    return trt


def _timings(version: str, gpu: str) -> Path | None:
    """Return the file of the times that TensorRT measured on this GPU, which spare most of a next build."""
    try:
        return files.own_dir() / (entry(version, gpu, 'timings', (0, 0, 0, 0)) + '.cache')
    except OSError:
        return None


def _build(trt: Any, logger: Any, model: DeployModel, shape: tuple[int, ...], timings: Path | None) -> bytes:
    """Return the serialized engine of a network for inputs of a shape."""
    graph = to_onnx(Core(model.network), torch.zeros(shape, dtype=torch.float16)).SerializeToString()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        found = '; '.join(str(parser.get_error(i)).splitlines()[0] for i in range(parser.num_errors))
        raise BackendError(f"TensorRT {trt.__version__} can't read the network's graph ({found}); choose "
                           "backend 'torch'")
    config = builder.create_builder_config()
    known = b''
    if timings is not None:
        with suppress(OSError):
            known = files.read_small(timings, TIMINGS_BYTES)
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f'TensorRT {trt.__version__} could not build an engine; its log says why. Free '
                           "memory on the GPU, or choose backend 'torch'")
    if timings is not None:
        with suppress(OSError):
            files.write_whole(timings, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)
