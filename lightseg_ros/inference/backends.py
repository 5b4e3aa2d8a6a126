# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The backends that run a network on a CPU: OpenVINO, ONNX Runtime, torch, or torch's compiler.

Every backend runs the same function, `DeployModel`: uint8 frames of the network's size in, logits before the
last upsampling out. Normalisation is inside; resizing bytes before it and upsampling with argmax after it are
torch's on every backend, since they are faster there (docs/performance.md has the figures).
"""
from collections.abc import Callable
import copy
from dataclasses import dataclass
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
from pathlib import Path
import sys
import tempfile
from typing import Any, TypeVar
import warnings

import torch
from torch import nn, Tensor

from ..cuda_graphs import out_of_memory
from ..files import own_dir
from . import cache
from .kernels import normalise

log = logging.getLogger(__name__)
T = TypeVar('T')

# Precision -> what OpenVINO calls it.
PRECISIONS = {'float32': 'FP32', 'bfloat16': 'BF16', 'float16': 'FP16'}
# Files of this folder whose code is traced into a converted model, or rewrites it.
TRACED = ('backends.py', 'export.py', 'folding.py', 'kernels.py', 'tensorrt.py')
# (N, h, w, 3) uint8 RGB -> (N, K, h', w') float, channels-last; valid until the next call.
CompiledModel = Callable[[Tensor], Tensor]


class BackendError(ValueError):
    """A backend that is not installed or can't do what is asked; the text says what to install or choose."""


class DeployModel(nn.Module):
    """
    Frames (N, h, w, 3) uint8 RGB -> logits (N, K, h', w'), those before the network's last resize.

    `mean`, `std`: as in a card. `dtype`: of the network, whose batch norms stay float32 in any.
    """

    network: Any  # one of networks.NETWORKS, perhaps folded
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.dtype = torch.float32
        self.register_buffer('mean', torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def lowered(self, dtype: torch.dtype, device: torch.device | str = 'cpu') -> 'DeployModel':
        """Return a copy on a device with a network of another type, channels-last."""
        model = copy.deepcopy(self).to(device)
        model.dtype = dtype
        model.network.to(dtype)
        for module in model.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, x: Tensor) -> Tensor:
        """Run the network alone: (N, 3, h, w), normalised, in `dtype`."""
        return self.network.forward_logits(x)

    def forward(self, frames: Tensor) -> Tensor:
        return self.logits(normalise(frames, self.mean, self.std, self.dtype))


@dataclass(frozen=True)
class CompileSpec:
    """
    What a backend is asked for.

    `model`: float32, on the CPU, norms folded. `key`: names the weights, for the cache on disk. `precision`:
    'float32' or 'bfloat16'. `threads`: 0 leaves it to the backend. `target`: OpenVINO's name of the device.
    """

    model: DeployModel
    key: str
    precision: str = 'float32'
    threads: int = 0
    target: str = 'CPU'


def digest(model: DeployModel) -> str:
    """Hexadecimal SHA-256 of all that a converted model holds: weights, mean and std, structure, our code."""
    sha = hashlib.sha256(f'{model!r} {torch.__version__}'.encode() + code_digest())
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


@functools.cache
def code_digest(package: Path = Path(__file__).parents[1]) -> bytes:
    """
    Return the SHA-256 of the modules that end up in a converted model.

    Their next version may compute otherwise, so it must not find models of this one in the cache. All of the
    files must be there: one that is passed over in silence would leave stale models.
    """
    files = [*sorted((package / 'networks').glob('*.py')), *(package / 'inference' / name for name in TRACED)]
    return hashlib.sha256(b''.join(f.read_bytes() for f in files)).digest()


def choose(backend: str, target: str = 'CPU') -> tuple[str, str]:
    """
    Check a backend's name and that it is installed; 'auto' is the fastest that is there.

    Returns its name and why it was taken. `BackendError` says what to install.
    """
    if backend != 'auto' and backend not in REQUIRES:
        raise BackendError(f'backend is {backend!r}; expected one of auto, {", ".join(REQUIRES)}')
    if target != 'CPU' and backend not in ('auto', 'openvino'):
        raise BackendError(f"backend is {backend!r}; on an Intel device {target} only 'openvino' runs")
    if backend == 'auto':
        if importlib.util.find_spec('openvino'):
            return 'openvino', 'taken as it is installed and the fastest on a CPU'
        if target == 'CPU':
            return 'torch', 'taken as openvino is not installed, which would be about twice as fast'
        backend = 'openvino'
    package = REQUIRES[backend]
    if not importlib.util.find_spec(package):
        raise BackendError(f'backend is {backend!r}, but {package} is not installed: pip install {package}, '
                           "or choose 'auto'")
    return backend, 'as asked for'


def version(backend: str) -> str:
    """Return the backend's name and the version of its package."""
    return f'{backend} {importlib.metadata.version(REQUIRES[backend])}'


def build(backend: str, spec: CompileSpec, batch: int, height: int, width: int) -> CompiledModel:
    """Compile the network for frames of one size; `backend` as `choose` returns it."""
    return BACKENDS[backend](spec, batch, height, width)


def is_kept(backend: str, spec: CompileSpec, batch: int, height: int, width: int) -> bool:
    """Return whether no conversion is needed: its result lies in the cache on disk, or there is none."""
    if backend not in ('openvino', 'onnxruntime'):
        return backend == 'torch'
    try:
        return any(own_dir().glob(f'{backend[:4]}*{spec.key}*-{batch}x{width}x{height}'))
    except OSError:
        return True  # nothing is kept


def openvino(spec: CompileSpec, batch: int, height: int, width: int) -> CompiledModel:
    """Build for OpenVINO; what is converted is kept on disk, and what it compiles beside it."""
    # OpenVINO's conversion reports to an analytics host, which can delay the end of the process by 20 s.
    # When this package cannot be imported, OpenVINO uses a stub that sends nothing.
    sys.modules['openvino_telemetry'] = None  # type: ignore[assignment]
    import openvino as ov
    runtime = ov.Core()
    found = runtime.available_devices
    if spec.target not in (*found, *(device.split('.')[0] for device in found)):
        raise BackendError(f'OpenVINO finds no device {spec.target}; it has {", ".join(found)}')
    known = runtime.get_property(spec.target, 'OPTIMIZATION_CAPABILITIES')
    if PRECISIONS[spec.precision] not in known:
        raise BackendError(f'precision is {spec.precision!r}, for which this {spec.target} has no '
                           f'instructions, only for {", ".join(known)}')

    def convert(folder: Path) -> None:
        # Traced, as OpenVINO's own conversion does it: an exported program has PReLU taken apart, which costs
        # a third of the speed, and takes three times as long to make.
        example = torch.zeros((batch, height, width, 3), dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            traced = torch.jit.trace(spec.model, example, check_trace=False)
            model = ov.convert_model(traced, input=[(list(example.shape), ov.Type.u8)])
        _pool_means(model)
        ov.save_model(model, folder / 'core.xml', compress_to_fp16=False)

    name = f'openvino-{ov.get_version().split("-")[0]}-{spec.key}-{batch}x{width}x{height}'

    def compiled(folder: Path) -> Any:
        model = runtime.read_model(folder / 'core.xml')
        # Channels last: what the network computes in, and what upsampling wants.
        prepost = ov.preprocess.PrePostProcessor(model)
        prepost.output().model().set_layout(ov.Layout('NCHW'))
        prepost.output().tensor().set_layout(ov.Layout('NHWC')).set_element_type(ov.Type.f32)
        options: dict[str, Any] = {
            'PERFORMANCE_HINT': 'LATENCY', 'CACHE_DIR': str(folder),
            'INFERENCE_PRECISION_HINT': PRECISIONS[spec.precision].lower().replace('fp', 'f')}
        if spec.threads and spec.target == 'CPU':
            options['INFERENCE_NUM_THREADS'] = spec.threads
        return runtime.compile_model(prepost.build(), spec.target, options)

    request = _cached(name, convert, compiled).create_infer_request()

    def run(frames: Tensor) -> Tensor:
        outputs = request.infer({0: frames.numpy()}, share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0]).permute(0, 3, 1, 2)
    return run


def _pool_means(model: Any) -> None:
    """Take means over whole maps by OpenVINO's pooling: three times as fast as its reduction."""
    from openvino import opset13 as ops
    for node in model.get_ordered_ops():
        if node.get_type_name() != 'ReduceMean' or not node.get_attributes()['keep_dims']:
            continue
        x, axes = node.input_value(0), node.input_value(1).get_node()
        if axes.get_type_name() == 'Constant' and len(x.get_shape()) == 4 \
                and {a % 4 for a in axes.data.flatten().tolist()} == {2, 3}:
            pool = ops.avg_pool(x, [1, 1], [0, 0], [0, 0], list(x.get_shape())[2:], exclude_pad=True)
            node.output(0).replace(pool.output(0))


def onnxruntime(spec: CompileSpec, batch: int, height: int, width: int) -> CompiledModel:
    """Build for ONNX Runtime, float32; the graph of each size is kept on disk."""
    import onnxruntime as ort
    ort.disable_telemetry_events()
    if spec.precision != 'float32':
        raise BackendError(f"precision is {spec.precision!r}; backend 'onnxruntime' has float32 only, "
                           "'openvino' and 'torch' have bfloat16 too")
    example = torch.zeros((batch, height, width, 3), dtype=torch.uint8)

    def convert(folder: Path) -> None:
        from .export import to_onnx
        (folder / 'core.onnx').write_bytes(to_onnx(spec.model, example).SerializeToString())

    name = f'onnx-{spec.key}-{torch.__version__}-{batch}x{width}x{height}'
    options = ort.SessionOptions()
    options.intra_op_num_threads = spec.threads
    session = _cached(name, convert, lambda folder: ort.InferenceSession(
        folder / 'core.onnx', options, providers=['CPUExecutionProvider']))
    name, = (i.name for i in session.get_inputs())

    def run(frames: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: frames.numpy()})[0])
    return run


def eager(spec: CompileSpec, batch: int, height: int, width: int) -> CompiledModel:
    """Build for torch: norms folded, channels-last; nothing is compiled."""
    model = spec.model.lowered(_dtype(spec))

    @torch.inference_mode()
    def run(frames: Tensor) -> Tensor:
        return model(frames).float()
    return run


def compiled(spec: CompileSpec, batch: int, height: int, width: int) -> CompiledModel:
    """Build for torch's compiler, which wants a C++ compiler; what it makes is kept on disk."""
    model = spec.model.lowered(_dtype(spec))
    fast = compile_network(model, (batch, 3, height, width))

    @torch.inference_mode()
    def run(frames: Tensor) -> Tensor:
        return fast(normalise(frames, model.mean, model.std, model.dtype)).float()
    return run


def compile_network(model: DeployModel, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Compile `model.logits` for inputs of a shape, by torch's compiler, and run it once."""
    try:
        kept = own_dir() / 'inductor'
        kept.mkdir(exist_ok=True)
        os.utime(kept)  # when it was used last
        os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(kept))
    except OSError as e:
        log.warning('compiled models are not kept: %s', e)
        os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', tempfile.mkdtemp(prefix='lightseg_ros.'))
    example = torch.zeros(shape, dtype=model.dtype, device=model.mean.device)
    example = example.contiguous(memory_format=torch.channels_last)

    try:
        with torch.inference_mode():
            fast = torch.compile(model.logits, dynamic=False)
            fast(example)
    except Exception as e:  # the compiler has many ways to fail, and a long text for each
        if out_of_memory(e):
            raise  # a smaller batch may fit
        said = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise BackendError(f"backend is 'torch-compile', but torch could not compile the network ({said}); a "
                           'CPU needs g++ or clang for it, Triton on CUDA') from e
    return fast


def _cached(name: str, make: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    try:
        return cache.load(name, make, read)
    except OSError as e:
        raise BackendError(str(e)) from e


def _dtype(spec: CompileSpec) -> torch.dtype:
    if spec.precision not in ('float32', 'bfloat16'):
        raise BackendError(f'precision is {spec.precision!r}; on a CPU torch has float32 and bfloat16')
    return getattr(torch, spec.precision)


BACKENDS: dict[str, Callable[[CompileSpec, int, int, int], CompiledModel]] = {
    'openvino': openvino, 'onnxruntime': onnxruntime, 'torch': eager, 'torch-compile': compiled}
# Those and what runs on CUDA only, and the package that each needs.
REQUIRES = {'openvino': 'openvino', 'onnxruntime': 'onnxruntime', 'torch': 'torch', 'torch-compile': 'torch',
            'tensorrt': 'tensorrt'}
