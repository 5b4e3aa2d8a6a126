# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A network as a static ONNX graph with its card in the metadata, checked before it is kept."""
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
from ..weights import Card, FORMAT

TOLERANCE = 1e-4


class ExportError(ValueError):
    """A graph that can't be made, or that does not compute what the network does; the text says why."""


@dataclass(frozen=True)
class Report:
    """
    What was written, and what the check found.

    `difference`: the largest between the logits of onnxruntime and of torch, both float32, on an image of
    noise; `largest`: the largest logit there. `allowed`: 1e-4, or more where float32 itself is rougher.
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


def export(network: nn.Module, card: Card, path: str | Path, resolution: tuple[int, int] | None = None, *,
           argmax: bool = False) -> Report:
    """
    Write `path`, a graph for one image of `resolution` (width, height; default: that of the card).

    Input `image` (1, 3, H, W) float32, RGB, (rgb - mean) / std with the card's mean and std on the 0-255
    scale. Output `logits` (1, classes, H, W) float32, or with `argmax` `labels` (1, H, W) uint8 class ids.
    Metadata: `format` and `card` as in a weights file, `resolution` ('WxH'), `producer`.

    The file appears whole, and only after onnxruntime's logits were compared with the network's: the
    largest difference must be below 1e-4, or below four times what float32 loses against float64 on this
    network where that is more (untrained networks can be that rough). Else `ExportError`, as where a
    package is missing.
    """
    path = Path(path)
    width, height = resolution or card.resolution
    network = copy.deepcopy(network).to('cpu', torch.float32).eval()
    noise = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.mean, card.std))
    image = (noise - mean) / std
    with torch.inference_mode():
        expected = network(image)

    model = to_onnx(network, image)
    found = _run(model, image)
    difference = float(np.abs(found - expected.numpy()).max())
    allowed = TOLERANCE
    if difference >= allowed:
        with torch.inference_mode():
            exact = copy.deepcopy(network).double()(image.double())
        allowed = max(allowed, 4 * float((expected - exact).abs().max()))
    # Written so that a NaN fails.
    if not difference < allowed:
        raise ExportError(f'onnxruntime and torch {torch.__version__} differ by {difference:.1e}, allowed is '
                          f'{allowed:.1e}: the graph is not the network, and {path} was not written; '
                          'another version of torch may convert it right')
    if argmax:
        _append_argmax(model)
        if not np.array_equal(_run(model, image), found.argmax(1)):
            raise ExportError(f'the argmax in the graph is not that of its logits; {path} was not written')
    _write(path, model, {
        'format': FORMAT, 'card': card.to_json(), 'resolution': f'{width}x{height}',
        'producer': f'lightseg_ros {__version__}'})
    return Report(path, len(model.graph.node), difference, allowed, float(expected.abs().max()))


def to_onnx(network: nn.Module, image: Tensor) -> Any:
    """
    Convert to an `onnx.ModelProto`: `image` (1, 3, H, W) float32 -> `logits` (1, classes, H, W), static.

    By torch's dynamo exporter: the older one needs torch.jit.trace, which Python 3.14 does not support.
    """
    # They report every pass of their optimisers, and that torchvision, which we don't use, is missing.
    logs = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [log.level for log in logs]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for log in logs:
                log.setLevel(logging.ERROR)
            program = torch.onnx.export(network, (image,), dynamo=True, verbose=False, input_names=['image'],
                                        output_names=['logits'])
    except ImportError as e:
        raise ExportError(f'{e.name} is not installed; pip install onnx onnxscript onnxruntime') from e
    finally:
        for log, level in zip(logs, levels):
            log.setLevel(level)
    assert program is not None
    model = program.model_proto
    # Each node carries the Python stack that made it, with paths of this machine.
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output,
                 *model.graph.initializer):
        del item.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


def _append_argmax(model: Any) -> None:
    """Turn the output `logits` into `labels`, (1, H, W) uint8."""
    import onnx
    _, _, height, width = (d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim)
    model.graph.node.extend([
        onnx.helper.make_node('ArgMax', ['logits'], ['ids'], axis=1, keepdims=0),
        # TensorRT makes bytes from floats only.
        onnx.helper.make_node('Cast', ['ids'], ['exact'], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node('Cast', ['exact'], ['labels'], to=onnx.TensorProto.UINT8)])
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info('labels', onnx.TensorProto.UINT8, (1, height, width)))


def _run(model: Any, image: Tensor) -> np.ndarray:
    try:
        import onnxruntime
    except ImportError as e:
        raise ExportError('onnxruntime is not installed, and it checks the graph; pip install '
                          'onnxruntime') from e
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, {'image': image.numpy()})[0]


def _write(path: Path, model: Any, metadata: dict[str, str]) -> None:
    import onnx
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    files.write_whole(path, model.SerializeToString())
