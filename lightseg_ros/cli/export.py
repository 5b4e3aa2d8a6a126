# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg export`: weights in, a checked ONNX file out."""
import argparse
import json

HELP = ('Write a network as a static ONNX graph with its card in the metadata, and check it with '
        'onnxruntime. Input: image (1, 3, H, W) float32, RGB, (rgb - mean) / std as the card says.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('out', metavar='OUT.onnx')
    parser.add_argument('--model', default='laanet', help='packaged network, or the path of a weights file')
    parser.add_argument('--resolution', default='', metavar='WxH', help='empty: that of the weights')
    parser.add_argument('--argmax', action='store_true', help='class ids, uint8, instead of logits')
    parser.add_argument('--random', action='store_true',
                        help='random weights, for timing and conversion: what they predict is noise')
    parser.add_argument('--labels', default='camvid', help='label set of --random: a name, or a YAML file')
    parser.add_argument('--options', type=json.loads, default={}, metavar='JSON',
                        help="the network's options with --random")


def run(args: argparse.Namespace) -> None:

    from .. import weights
    from ..inference import export
    from ..inference.segmenter import parse_resolution
    if args.random:
        network, card = export.random_weights(args.model, args.labels, (480, 360), **args.options)
        print(f'WARNING: {card.source}')
    elif args.options:
        raise export.ExportError('--options goes with --random; weights name their own')
    else:
        path = weights.resolve(args.model)
        network, card = weights.load(path)
    resolution = parse_resolution(args.resolution, card)
    if resolution is None:
        raise export.ExportError("a graph has one size: give it as --resolution WIDTHxHEIGHT, not 'native'")
    report = export.export(network, card, args.out, resolution, argmax=args.argmax)
    print(f'{report.path}: {report.nodes} nodes, {report.path.stat().st_size / 1e6:.1f} MB, '
          f'{"labels" if args.argmax else "logits"} for {resolution[0]}x{resolution[1]}')
    why = ', four times what float32 loses on this network' if report.allowed > export.TOLERANCE else ''
    print(f'checked with onnxruntime: the largest difference from torch is {report.difference:.1e}, allowed '
          f'is {report.allowed:.1e}{why}; logits go up to {report.largest:.1f}')
