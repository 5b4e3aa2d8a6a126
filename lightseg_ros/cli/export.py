# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg export`: writes a network as an ONNX file and checks it."""
import argparse

from .numbers import json_object, whole

HELP = ('Write a network as an ONNX graph, with its card as metadata, and check it with onnxruntime. Its '
        'input is an image (1, 3, H, W) float32, RGB, normalised as (rgb - mean) / std with the figures of '
        'the card, its output logits (1, classes, H, W). The options change that. --tensorrt '
        "builds the engine of the backend 'tensorrt' instead, which takes minutes, and keeps it for the "
        'node.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('out', metavar='OUT.onnx', nargs='?', help='ONNX file to write; none with --tensorrt')
    parser.add_argument('--model', default='laanet', help='packaged network, or the path of a weights file')
    parser.add_argument('--resolution', default='', metavar='WxH',
                        help='size of the input; empty: the size that the weights were trained at')
    parser.add_argument('--argmax', action='store_true', help='write class ids (uint8) instead of logits')
    parser.add_argument('--uint8', action='store_true',
                        help='take a frame (1, H, W, 3) uint8 RGB and normalise it in the graph')
    parser.add_argument('--precision', default='float32', choices=('float32', 'float16'),
                        help='what the graph computes in; its input and output stay as they are')
    parser.add_argument('--dynamic', nargs='+', default=[], choices=('batch', 'size'),
                        help='leave the number of images, or width and height (multiples of 64), open')
    parser.add_argument('--tensorrt', action='store_true',
                        help='build the TensorRT engine for frames of --resolution on this GPU')
    parser.add_argument('--batch', type=whole(1, 64), default=argparse.SUPPRESS,
                        help='largest number of frames that run together, with --tensorrt: that of the '
                        'cameras; an engine is built for each number up to it; default: 1')
    parser.add_argument('--random', action='store_true',
                        help='use random weights, to time or convert a network that is not trained')
    parser.add_argument('--labels', default=argparse.SUPPRESS,
                        help='label set for --random: a name, or a YAML file; default: camvid')
    parser.add_argument('--options', type=json_object, default={}, metavar='JSON',
                        help="the network's options for --random")


def run(args: argparse.Namespace) -> None:
    from .. import files, weights
    from ..inference import export
    from ..inference.segmenter import parse_resolution
    if args.tensorrt:
        build_engine(args)
        return
    if args.out is None:
        raise export.ExportError('no file was named; give OUT.onnx, or --tensorrt')
    if hasattr(args, 'batch'):
        raise export.ExportError('--batch is of --tensorrt; a graph takes one image, or with --dynamic batch '
                                 'any number')
    for option, given in (('options', args.options), ('labels', hasattr(args, 'labels'))):
        if given and not args.random:
            raise export.ExportError(f'--{option} needs --random; a weights file states its own {option}')
    files.keep_inputs([args.out], [args.model])
    files.try_to_write(args.out)
    if args.random:
        network, card = export.random_weights(args.model, getattr(args, 'labels', 'camvid'), (480, 360),
                                              **args.options)
        print(f'WARNING: {card.source}')
    else:
        path = weights.resolve(args.model)
        network, card = weights.load(path)
    resolution = parse_resolution(args.resolution, card)
    if resolution is None:
        raise export.ExportError("resolution is 'native'; an ONNX graph has one size, so give WIDTHxHEIGHT")
    report = export.export(network, card, args.out, resolution, argmax=args.argmax, uint8=args.uint8,
                           precision=args.precision, dynamic=args.dynamic)
    print(f'{report.path}: {report.nodes} nodes, {report.path.stat().st_size / 1e6:.1f} MB, '
          f'{"labels" if args.argmax else "logits"} for {resolution[0]}x{resolution[1]}'
          + ''.join(f', any {name}' for name in args.dynamic))
    why = f', four times what {args.precision} loses on this network' \
        if report.allowed > export.TOLERANCE else ''
    print(f'checked with onnxruntime: the largest difference from torch is {report.difference:.1e}, allowed '
          f'is {report.allowed:.1e}{why}; logits go up to {report.largest:.1f}')


def build_engine(args: argparse.Namespace) -> None:
    """Build the engine where the node looks for it, by all that the node does before its first frame."""
    from time import perf_counter

    from ..inference import export, segmenter
    if (args.out or args.random or args.argmax or args.uint8 or args.dynamic or args.precision != 'float32'
            or args.options or hasattr(args, 'labels')):
        raise export.ExportError('--tensorrt writes no file and takes packaged or trained weights; it goes '
                                 'with --model, --resolution and --batch only')
    began = perf_counter()
    segment = segmenter.load(args.model, 'cuda', args.resolution, backend='tensorrt')
    if segment.resolution is None:
        raise export.ExportError("resolution is 'native'; an engine has one size, so give WIDTHxHEIGHT")
    width, height = segment.resolution
    batch = getattr(args, 'batch', 1)
    for frames in range(1, batch + 1):  # a node prepares all of them
        segment.warm_up(height, width, frames)
    print(f'{segment.describe()}: ready for {"up to " if batch > 1 else ""}{batch} x {width}x{height} after '
          f'{perf_counter() - began:.0f} s')
