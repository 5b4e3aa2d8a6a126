# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg recalibrate`: batch-norm statistics over whole training images, for finished or stopped runs."""
import argparse
from pathlib import Path

HELP = ('Recompute the batch-norm statistics of trained weights over whole training images. A run does this '
        'at its end; the command is for older weights, and for the checkpoint of an unfinished run.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', type=Path,
                        help='weights file (.safetensors), or checkpoint of a run (last.pt)')
    parser.add_argument('--out', type=Path, required=True, help='weights file to write')
    parser.add_argument('--data', default='camvid', help='data set that was trained on, as in lightseg train')
    parser.add_argument('--data-root', help='as in lightseg train')
    parser.add_argument('--split', default='',
                        help='split that was trained on; empty: as stated in the source')
    parser.add_argument('--device', default='cpu', help='auto, cpu, cuda, cuda:1 ...')


def run(args: argparse.Namespace) -> None:
    from .. import datasets, files, weights
    from ..training import checkpoint, recalibration
    files.try_to_write(args.out)
    if args.source.suffix == '.safetensors':
        split, function = weights.read_card(args.source).split, recalibration.recalibrate_weights
    else:
        split = checkpoint.read(args.source)['data']['split']
        function = recalibration.weights_of_checkpoint
    dataset = datasets.load(args.data, args.split or split, args.data_root)
    function(args.source, dataset, args.out, device=args.device)
    print(args.out)
