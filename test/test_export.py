# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files: graphs that compute what the network does, with their card, or no file at all."""
import copy
from dataclasses import replace
import io
import json
import re
import warnings

import cv2
import numpy as np
import pytest
import torch

from lightseg_ros import labels, networks, weights
from lightseg_ros.cli import main
from lightseg_ros.inference.backends import DeployModel
import lightseg_ros.inference.export as module
from lightseg_ros.inference.export import export, ExportError, random_weights

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

# The released layouts are of the same blocks; FBSNet, whose 1,900 nodes take half a minute, has a test below.
DYNAMO = ('laanet', 'elanet', 'lrnnet', 'affnet')


def run(path, image: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]


def opencv_labels(path, image: torch.Tensor) -> np.ndarray:
    """Class ids (N, H, W) of a graph with logits, by OpenCV."""
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(image.numpy())
    return network.forward().argmax(1)


@pytest.mark.parametrize('name', DYNAMO)
def test_export(tmp_path, name, capsys):
    path = tmp_path / 'sub' / f'{name}.onnx'
    assert main(['export', '--model', name, '--random', '--resolution', '131x97', str(path)]) == 0
    said = capsys.readouterr().out
    print(said)
    assert 'WARNING: random weights, seed 0, never trained' in said
    found = re.search(r'the largest difference from torch is (\S+), allowed is ([^\s;,]+)', said)
    assert float(found[1]) < float(found[2]) < 1e-3
    model = onnx.load(path)
    assert [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in
            (*model.graph.input, *model.graph.output)] == [[1, 3, 97, 131], [1, 11, 97, 131]]
    # Static: nothing is decided, or measured, at run time.
    assert not {n.op_type for n in model.graph.node} & {'If', 'Loop', 'Scan', 'Shape', 'NonZero', 'Range'}
    assert str(torch.__path__[0]) not in str(model), 'the graph holds paths of the machine that made it'
    # On another image than the one of the check.
    network, card = random_weights(name, 'camvid', (480, 360))
    image = torch.rand(1, 3, 97, 131) * 3 - 1.5
    with torch.inference_mode():
        expected = network(image)
    logits = run(path, image)
    assert np.abs(logits - expected.numpy()).max() < 2 * float(found[2])
    assert (opencv_labels(path, image) == logits.argmax(1)).mean() > 0.999
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata['resolution'] == '131x97' and metadata['format'] == weights.FORMAT
    again = weights.Card.from_json(metadata['card'])
    assert again == card and 'never trained' in again.source and not again.metrics


def test_fbsnet_with_fewer_blocks(tmp_path):
    """One or two blocks of each stage: the whole network converts as well, but for half a minute."""
    network, card = random_weights('fbsnet', 'camvid', (131, 97))
    for stage in (network.stage8, network.stage4, network.decode4, network.decode2):
        # What follows the first block, and, after the downsampler of an encoder, the second one.
        del stage[2:-2]
    path = tmp_path / 'fbsnet.onnx'
    report = export(network, card, path)
    print(report)
    assert report.difference < report.allowed < 1e-3
    image = torch.rand(1, 3, 97, 131) * 3 - 1.5
    assert (opencv_labels(path, image) == run(path, image).argmax(1)).mean() > 0.999
    ops = {n.op_type for n in onnx.load(path).graph.node}
    assert 'ConvTranspose' in ops and not ops & {'If', 'Loop', 'Shape', 'Range'}


@pytest.mark.parametrize('name', networks.PAPER_NETWORKS)
def test_the_older_exporter_takes_the_networks_too(name):
    network, _ = random_weights(name, 'camvid', (131, 97))
    image, file = torch.rand(1, 3, 97, 131) * 3 - 1.5, io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter('ignore')
        torch.onnx.export(network, (image,), file, dynamo=False, input_names=['image'])
        expected = network(image)
        own = float((expected - network.double()(image.double())).abs().max())
    assert not {n.op_type for n in onnx.load_from_string(file.getvalue()).graph.node} & {'If', 'Loop'}
    found = onnxruntime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    difference = np.abs(found.run(None, {'image': image.numpy()})[0] - expected.numpy()).max()
    assert difference < max(1e-4, 4 * own)


@pytest.fixture
def saved(tmp_path):
    """Weights of a small network for two classes, as a file."""
    known = labels.LabelSet('two', ('road', 'other'), ((0, 0, 0), (255, 255, 255)))
    torch.manual_seed(0)
    network = networks.build('affnet', 2, fusion='ewa').eval()
    card = weights.Card('affnet', known, (90, 100, 110), (60, 70, 80), (80, 64), options={'fusion': 'ewa'},
                        dataset='mine', license='CC0')
    path = tmp_path / 'two.safetensors'
    weights.save(path, network, card)
    return path


def casts_of_bytes(model):
    """TensorRT's rule for uint8: it only enters or leaves a graph, next to a cast from or to floats."""
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    kind, found = onnx.TensorProto, 0
    for node in model.graph.node:
        touched = {types[v] for v in (*node.input, *node.output) if v}
        if kind.UINT8 in touched:
            assert node.op_type == 'Cast' and touched - {kind.UINT8} <= {kind.FLOAT, kind.FLOAT16}, node
            found += 1
    return found


def test_command_with_argmax(tmp_path, saved, capsys):
    out = tmp_path / 'two.onnx'
    assert main(['export', '--model', str(saved), '--resolution', '96x72', '--argmax', str(out)]) == 0
    said = capsys.readouterr().out
    assert 'labels for 96x72' in said and 'checked with onnxruntime: the largest difference' in said
    network, card = weights.load(saved)
    image = torch.randn(1, 3, 72, 96)
    ids = run(out, image)
    assert ids.shape == (1, 72, 96) and ids.dtype == np.uint8
    with torch.inference_mode():
        assert (ids == network(image).argmax(1).numpy()).mean() > 0.9999
    model = onnx.load(out)
    assert casts_of_bytes(model) == 1
    metadata = {p.key: p.value for p in model.metadata_props}
    assert weights.Card.from_json(metadata['card']) == card
    assert json.loads(metadata['card'])['license'] == 'CC0'


def test_half_precision(tmp_path, caplog):
    """LRNNet's attention stays in float32: it sums up squares that float16 has no numbers for."""
    network, card = random_weights('lrnnet', 'camvid', (131, 97))
    path = tmp_path / 'half.onnx'
    with caplog.at_level('INFO'):
        report = export(network, card, path, precision='float16')
    assert [r for r in caplog.records if r.levelname != 'DEBUG'] == []
    print(report)
    assert 1e-4 < report.difference < report.allowed < 0.5 * report.largest
    image = torch.rand(1, 3, 97, 131) * 3 - 1.5
    with torch.inference_mode():
        expected = network(image)
    logits = run(path, image)
    assert np.abs(logits - expected.numpy()).mean() < 0.1 * float(expected.std())
    assert (opencv_labels(path, image) == logits.argmax(1)).mean() > 0.98
    graph = onnx.load(path).graph
    types = {t.data_type for t in graph.initializer if len(t.dims) == 4}
    assert types == {onnx.TensorProto.FLOAT16}
    kinds = {t.name: t.data_type for t in graph.initializer}
    values = onnx.shape_inference.infer_shapes(onnx.load(path)).graph.value_info
    kinds |= {v.name: v.type.tensor_type.elem_type for v in values}
    assert {kinds[n.input[0]] for n in graph.node if n.op_type == 'ReduceL2'} == {onnx.TensorProto.FLOAT}
    with pytest.raises(ExportError, match="precision is 'int8'.*expected float32 or float16"):
        export(network, card, path, precision='int8')


def test_bytes_in_and_out_at_open_sizes(tmp_path, saved, capsys):
    out = tmp_path / 'open.onnx'
    arguments = ['export', '--model', str(saved), '--uint8', '--argmax', '--dynamic', 'batch', 'size']
    assert main([*arguments, '--resolution', '96x72', str(out)]) == 1
    assert 'resolution is 96x72; with an open size it must be of multiples of 64' in capsys.readouterr().err
    assert main([*arguments, '--resolution', '128x64', str(out)]) == 0
    assert 'labels for 128x64, any batch, any size' in capsys.readouterr().out
    network, card = weights.load(saved)
    frames = torch.randint(0, 256, (2, 128, 192, 3), dtype=torch.uint8)
    ids = run(out, frames)
    assert ids.shape == (2, 128, 192) and ids.dtype == np.uint8
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.mean, card.std))
    with torch.inference_mode():
        expected = network((frames.permute(0, 3, 1, 2).float() - mean) / std).argmax(1).numpy()
    assert (ids == expected).mean() > 0.9999
    assert casts_of_bytes(onnx.load(out)) == 2


def test_logits_have_the_card_s_temperature(tmp_path, saved):
    network, card = weights.load(saved)
    image = torch.randn(1, 3, 64, 80)
    export(network, replace(card, calibration={'temperature': 2.0}), tmp_path / 'hot.onnx')
    with torch.inference_mode():
        expected = network(image).numpy() / 2
    assert np.abs(run(tmp_path / 'hot.onnx', image) - expected).max() < 1e-4


def test_bytes_meet_nothing_but_a_cast():
    """Neither in the graph of a whole frame; that of `export` is checked with its argmax, above."""
    class Tiny(torch.nn.Conv2d):
        forward_logits = torch.nn.Conv2d.forward

    for dtype in (torch.float32, torch.float16):
        model = DeployModel(Tiny(3, 4, 3), (100.0,) * 3, (70.0,) * 3).lowered(dtype)
        assert casts_of_bytes(module.to_onnx(model, torch.zeros((1, 64, 80, 3), dtype=torch.uint8))) == 1


def test_a_graph_that_is_not_the_network_is_not_written(tmp_path, saved, monkeypatch):
    network, card = weights.load(saved)
    path = tmp_path / 'wrong.onnx'
    right = module.to_onnx(network, torch.zeros(1, 3, 64, 80))
    for wrong in (1.01, float('nan')):
        def spoilt(network, image, dynamic=(), wrong=wrong):
            model = copy.deepcopy(right)
            weight = next(t for t in model.graph.initializer if list(t.dims) == [2, 128, 3, 3])
            weight.CopyFrom(onnx.numpy_helper.from_array(
                onnx.numpy_helper.to_array(weight) * np.float32(wrong), weight.name))
            return model
        monkeypatch.setattr(module, 'to_onnx', spoilt)
        with pytest.raises(ExportError, match=r'is not the network, and .*wrong\.onnx was not written'):
            export(network.train(), card, path)
        assert network.training, "the caller's network was touched"
    assert sorted(p.name for p in tmp_path.iterdir()) == ['two.safetensors']
    monkeypatch.setattr(module, 'to_onnx', lambda network, image, dynamic=(): copy.deepcopy(right))
    export(network, card, path)
    assert path.exists()


def test_mistakes(tmp_path, saved, capsys):
    out = str(tmp_path / 'x.onnx')
    for arguments, text in (
            (['--model', 'nothing'], "no packaged weights for 'nothing'"),
            (['--model', 'unet', '--random'], "unknown network 'unet'; known: laanet"),
            (['--model', str(saved), '--resolution', 'native'], 'an ONNX graph has one size'),
            (['--model', str(saved), '--resolution', '32x32'], 'each 64 to 8192'),
            (['--model', str(saved), '--options', '{"fusion": "concat"}'], '--options needs --random'),
            (['--model', str(saved), '--labels', 'cityscapes'], '--labels needs --random'),
            (['--model', str(saved), '--batch', '2'], '--batch is of --tensorrt; a graph takes one image')):
        assert main(['export', *arguments, out]) == 1
        error = capsys.readouterr().err
        assert error.startswith('ERROR: ') and error.count('\n') == 1 and text in error
    assert not (tmp_path / 'x.onnx').exists()
