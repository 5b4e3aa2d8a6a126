# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg calibrate`: fit the temperature that makes the confidence of trained weights honest."""
import argparse
from pathlib import Path

HELP = ('Fit one temperature on images with ground truth, so that of the pixels with a confidence of 80 % '
        'about 80 % are right. Labels stay the same; node, evaluation and ONNX files use the temperature. A '
        'training run with a validation does this at its end.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='packaged network, or path of a weights file')
    parser.add_argument('--data', default='camvid', help='data set, as in lightseg train')
    parser.add_argument('--data-root', help='as in lightseg train')
    parser.add_argument('--split', default='val', help='split; best one that was not trained on')
    parser.add_argument('--out', type=Path, help='weights file to write, which may be the same; without it '
                        'the result is only printed')
    parser.add_argument('--device', default='cpu', help='auto, cpu, cuda, cuda:1 ...')


def run(args: argparse.Namespace) -> None:
    from .. import datasets, files, weights
    from ..training import calibration
    dataset = datasets.load(args.data, args.split, args.data_root)
    if args.out:
        files.try_to_write(args.out)
    found = calibration.calibrate_weights(weights.resolve(args.model), dataset, args.out, device=args.device)
    print(calibration.text(found))
    if args.out:
        print(args.out)
