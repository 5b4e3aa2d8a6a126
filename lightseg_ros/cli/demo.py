# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg demo`: runs a camera node and a segmentation node, and watches them through DDS."""
import argparse
from pathlib import Path

from .numbers import real

HELP = ('Run a camera node and a segmentation node as separate processes that talk through DDS, and write a '
        'video, a contact sheet and a summary of what they published.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--input', default='synthetic',
                        help="'synthetic' (built-in street), a folder of images, a video, a bag, a device")
    parser.add_argument('--image-topic', default='', help='image topic of a bag; needed if it has several')
    parser.add_argument('--model', default='laanet', help='packaged network, or the path of a weights file')
    parser.add_argument('--resolution', default='', help="size of the network's input; empty: the "
                        'size that the weights were trained at')
    parser.add_argument('--device', default='auto', help='auto, cpu or cuda')
    parser.add_argument('--rate', type=real(0.1, 1000), default=15.0, help='frames per second of the camera')
    parser.add_argument('--seconds', type=real(1, 1e7), default=30.0, help='how long the nodes run')
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='folder for the results')


def run(args: argparse.Namespace) -> int:
    from ..live.demo import demo
    return demo(args.input, args.model, args.out, image_topic=args.image_topic, resolution=args.resolution,
                device=args.device, rate=args.rate, seconds=args.seconds)
