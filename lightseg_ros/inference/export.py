# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A network as an ONNX graph with its card in the metadata, checked before it is kept."""
from collections.abc import Collection, Iterator
from contextlib import contextmanager
import copy
from dataclasses import dataclass
import logging
from pathlib import Path
from typing import Any
import warnings

import numpy as np
import torch
from torch import nn, Tensor

from .. import __version__, files, labels, networks
from ..texts import one_line
from ..weights import Card, FORMAT
from . import folding
from .kernels import normalise

TOLERANCE = 1e-4
# Open sizes are multiples of this: then all grids of all networks divide them.
MULTIPLE = 64
DYNAMIC = ('batch', 'size')
PRECISIONS = ('float32', 'float16')
# LRNNet's attention sums squares that half precision has no numbers for; no other network normalises.
FLOAT32 = ('ReduceL2', 'Clip', 'MatMul', 'Abs', 'ReduceMax', 'ReduceMean', 'Div')


class ExportError(ValueError):
    """A graph that can't be made, or that does not compute what the network does; the text says why."""


@dataclass(frozen=True)
class Report:
    """
    What was written, and what the check found.

    `difference`: the largest between the logits of onnxruntime and of torch in float32, on an image of noise;
    `largest`: the largest logit there. `allowed`: 1e-4, or more where the precision itself is rougher.
    """

    path: Path
    nodes: int
    difference: float
    allowed: float
    largest: float


def random_weights(name: str, label_set: str, resolution: tuple[int, int],
                   **options: Any) -> tuple[nn.Module, Card]:
    """
    Build a network that was never trained, for timing and conversion, and a card that says so.

    Its norms are set on noise, so that values keep a sane size through the depth of the network.
    """
    known = labels.load(label_set)
    torch.manual_seed(0)
    network = networks.build(name, len(known), **options)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    for weight in network.parameters():
        # LRNNet's attention starts silent; a check of the conversion has to hear it.
        if not weight.any() and weight.ndim == 4:
            nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        network.train()(torch.randn(2, 3, 192, 256))
    for norm in norms:
        norm.momentum = 0.1
    card = Card(name, known, (127.5, 127.5, 127.5), (73.6, 73.6, 73.6), resolution, options,
                source='random weights, seed 0, never trained: what they predict is noise')
    return network.eval(), card


class _OfBytes(nn.Module):
    """A network that takes frames (N, H, W, 3) uint8 RGB."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer('mean', mean)
        self.register_buffer('std', std)

    def forward(self, frames: Tensor) -> Tensor:
        return self.network(normalise(frames, self.mean, self.std, torch.float32))


def export(network: nn.Module, card: Card, path: str | Path, resolution: tuple[int, int] | None = None, *,
           argmax: bool = False, uint8: bool = False, precision: str = 'float32',
           dynamic: Collection[str] = ()) -> Report:
    """
    Write `path`, a graph for one image of `resolution` (width, height; default: that of the card).

    Input `image` (1, 3, H, W) float32, RGB, (rgb - mean) / std with the card's mean and std on the 0-255
    scale, or with `uint8` `frame` (1, H, W, 3) uint8 RGB. Output `logits` (1, classes, H, W) float32, whose
    softmax is the node's confidence, or with `argmax` `labels` (1, H, W) uint8 class ids. `precision`:
    'float16' computes in it, with float32 at input and output. `dynamic`: 'batch' and 'size' leave these open
    (a width and height of multiples of 64). Metadata: `format` and `card` as in a weights file, `resolution`
    ('WxH'), `producer`.

    The file appears whole, and only after onnxruntime's logits were compared with the network's: the largest
    difference must be below 1e-4, or below four times what the precision loses in torch on this network,
    float32 against float64 or float16 against float32, where that is more. Open sizes are compared at a
    second size. Else `ExportError`, as where a package is missing or the network does not allow an option.
    """
    path = Path(path)
    width, height = resolution or card.resolution
    if precision not in PRECISIONS or not set(dynamic) <= set(DYNAMIC):
        raise ExportError(f'precision is {precision!r} and dynamic {list(dynamic)}; expected '
                          f'{" or ".join(PRECISIONS)}, and {" and ".join(DYNAMIC)} or nothing')
    if 'size' in dynamic and (width % MULTIPLE or height % MULTIPLE):
        raise ExportError(f'resolution is {width}x{height}; with an open size it must be of multiples of '
                          f'{MULTIPLE}, as all sizes that the graph will get')
    network = copy.deepcopy(network).to('cpu', torch.float32).eval()
    folding.temper(network, card.temperature)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.mean, card.std))
    whole = _OfBytes(network, mean, std) if uint8 else network

    def noise(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the graph's input and the network's."""
        generator = torch.Generator().manual_seed(0)
        frames = torch.randint(0, 256, (batch, height, width, 3), generator=generator).byte()
        image = normalise(frames, mean, std, torch.float32).contiguous()
        return frames if uint8 else image, image

    # Where torch sees one image, or one row of multiples, it takes the number for a part of the program.
    least = 2 * MULTIPLE if 'size' in dynamic else 0
    example, _ = noise(2 if 'batch' in dynamic else 1, max(height, least), max(width, least))
    model = to_onnx(whole, example, dynamic)
    if precision == 'float16':
        model = _halved(model)
    sizes = [(1, height, width)]
    if dynamic:
        more = MULTIPLE if 'size' in dynamic else 0
        sizes.append((3 if 'batch' in dynamic else 1, height + more, width + 2 * more))
    for size in sizes:
        taken, image = noise(*size)
        with torch.inference_mode():
            expected = network(image)
        found = _run(model, taken)
        difference = float(np.abs(found - expected.numpy()).max())
        largest, allowed = float(expected.abs().max()), TOLERANCE
        if difference >= allowed:
            other = torch.float16 if precision == 'float16' else torch.float64
            with torch.inference_mode():
                rough = copy.deepcopy(network).to(other)(image.to(other))
            allowed = max(allowed, 4 * float((expected - rough).abs().max()))
        # Written so that a NaN fails.
        if not difference < allowed:
            raise ExportError(f'onnxruntime and torch {torch.__version__} differ by {difference:.1e}, '
                              f'allowed is {allowed:.1e}: the graph is not the network, and {path} was not '
                              'written; another version of torch may convert it right')
    if argmax:
        _append_argmax(model)
        if not np.array_equal(_run(model, taken), found.argmax(1)):
            raise ExportError(f'the argmax in the graph is not that of its logits; {path} was not written')
    _write(path, model, {
        'format': FORMAT, 'card': card.to_json(), 'resolution': f'{width}x{height}',
        'producer': f'lightseg_ros {__version__}'})
    return Report(path, len(model.graph.node), difference, allowed, largest)


def to_onnx(network: nn.Module, image: Tensor, dynamic: Collection[str] = ()) -> Any:
    """
    Convert to an `onnx.ModelProto`: `image` (N, 3, H, W) float32 -> `logits` (N, classes, H, W).

    Bytes (N, H, W, 3) are called `frame`. Static, but for what `dynamic` names: 'batch', 'size'.

    By torch's dynamo exporter: the older one needs torch.jit.trace, which Python 3.14 does not support.
    """
    of_bytes = image.dtype == torch.uint8
    axes: dict[int, Any] = {}
    if 'batch' in dynamic:
        axes[0] = torch.export.Dim('batch', min=1, max=1024)
    if 'size' in dynamic:
        high = torch.export.Dim('rows', min=1, max=128)
        wide = torch.export.Dim('columns', min=1, max=128)
        first = 1 if of_bytes else 2
        axes |= {first: MULTIPLE * high, first + 1: MULTIPLE * wide}
    try:
        # They report every pass of their optimisers, and that torchvision, which we don't use, is missing.
        with _silent('torch.onnx', 'torch._guards', 'onnxscript', 'onnx_ir'):
            program = torch.onnx.export(
                network, (image,), dynamo=True, verbose=False, dynamic_shapes=(axes,) if axes else None,
                input_names=['frame' if of_bytes else 'image'], output_names=['logits'])
    except ImportError as e:
        raise ExportError(f'{e.name} is not installed; pip install onnx onnxscript onnxruntime') from e
    except Exception as e:
        if not dynamic:
            raise
        raise ExportError(f'torch {torch.__version__} can not leave {" and ".join(dynamic)} of this network '
                          f'open ({one_line(e, 200)}); export one graph for each') from e
    assert program is not None
    model = program.model_proto
    # Each node carries the Python stack that made it, with paths of this machine.
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output,
                 *model.graph.initializer):
        del item.metadata_props[:]
    del model.graph.metadata_props[:]
    _without_expands(model.graph)
    if of_bytes and dynamic:
        _shapes_of_floats(model.graph)
    return model


@contextmanager
def _silent(*libraries: str) -> Iterator[None]:
    """Suppress warnings, and what these loggers say."""
    logs = [logging.getLogger(name) for name in libraries]
    levels = [log.level for log in logs]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for log in logs:
                log.setLevel(logging.CRITICAL)
            yield
    finally:
        for log, level in zip(logs, levels):
            log.setLevel(level)


def _shapes_of_floats(graph: Any) -> None:
    """Let nodes that read the shape of the bytes read that of their cast: nothing else may touch bytes."""
    name = graph.input[0].name
    cast = next(copy.deepcopy(n) for n in graph.node if n.op_type == 'Cast' and n.input[0] == name)
    graph.node.remove(cast)
    graph.node.insert(0, cast)
    for node in graph.node:
        if node.op_type == 'Shape' and node.input[0] == name:
            node.input[0] = cast.output[0]


def _without_expands(graph: Any) -> None:
    """Remove expansions before arithmetic, which expands by itself; OpenCV can't read LRNNet's."""
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    unused = set()
    for node in [n for n in graph.node if n.op_type == 'Expand']:
        after = users.get(node.output[0], [])
        if after and all(user.op_type == 'Div' and user.input[0] != node.output[0] for user in after):
            for user in after:
                user.input[1] = node.input[0]
            unused.add(node.input[1])
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name in unused - used]:
        graph.initializer.remove(tensor)


def _halved(model: Any) -> Any:
    """Return a model that computes in float16, with float32 at its input and output."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    normalises = any(node.op_type == 'ReduceL2' for node in model.graph.node)
    # It names each weight that is too small to matter, and those that two precisions share.
    with _silent('onnxruntime.transformers'):
        model = convert_float_to_float16(model, keep_io_types=True,
                                         op_block_list=list(FLOAT32) if normalises else [])
    del model.graph.value_info[:]  # it states float16 for what stays in float32, too
    # It appends its casts at the end; a graph lists each node behind those that it needs.
    graph = model.graph
    known = {'', *(value.name for value in (*graph.input, *graph.initializer))}
    waiting = [copy.deepcopy(node) for node in graph.node]
    del graph.node[:]
    while waiting:
        later = []
        for node in waiting:
            if known.issuperset(node.input):
                graph.node.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ExportError(f'the conversion to float16 left {len(later)} nodes without their inputs')
        waiting = later
    return model


def _append_argmax(model: Any) -> None:
    """Turn the output `logits` into `labels`, (N, H, W) uint8."""
    import onnx
    batch, _, height, width = (d.dim_param or d.dim_value
                               for d in model.graph.output[0].type.tensor_type.shape.dim)
    model.graph.node.extend([
        onnx.helper.make_node('ArgMax', ['logits'], ['ids'], axis=1, keepdims=0),
        # TensorRT makes bytes from floats only.
        onnx.helper.make_node('Cast', ['ids'], ['exact'], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node('Cast', ['exact'], ['labels'], to=onnx.TensorProto.UINT8)])
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info('labels', onnx.TensorProto.UINT8, (batch, height, width)))


def _run(model: Any, image: Tensor) -> np.ndarray:
    try:
        import onnxruntime
    except ImportError as e:
        raise ExportError('onnxruntime is not installed, and it checks the graph; pip install '
                          'onnxruntime') from e
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]


def _write(path: Path, model: Any, metadata: dict[str, str]) -> None:
    import onnx
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    files.write_whole(path, model.SerializeToString())
