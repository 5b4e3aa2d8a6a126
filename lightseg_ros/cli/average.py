# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg average`: one network from the weights of several, for example before and after training on."""
import argparse
from pathlib import Path

HELP = ('Average the weights of files of one network, and recompute the batch-norm statistics. Where one '
        'file was trained from the other (--init), their mean often keeps most of what each is good at. It '
        'runs as fast as one of them. Score it: for files that do not come from one another it is worth '
        'nothing.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', nargs='+', metavar='MODEL',
                        help='two or more weights files, or names of packaged networks')
    parser.add_argument('--out', type=Path, required=True, help='weights file to write')
    parser.add_argument('--shares', type=float, nargs='+', default=[], metavar='SHARE',
                        help='how much each file counts; default: all count the same')
    parser.add_argument('--data', default='camvid', help='data set that was trained on, as in lightseg train')
    parser.add_argument('--data-root', help='as in lightseg train')
    parser.add_argument('--split', default='',
                        help='split that was trained on; empty: as stated in the first file')
    parser.add_argument('--device', default='cpu', help='auto, cpu, cuda, cuda:1 ...')


def run(args: argparse.Namespace) -> None:
    from .. import datasets, files, weights
    from ..training.averaging import average_weights
    paths = [weights.resolve(model) for model in args.models]
    files.keep_inputs([args.out], paths)
    files.try_to_write(args.out)
    split = args.split or weights.read_card(paths[0]).split
    try:
        dataset = datasets.load(args.data, split, args.data_root)
    except datasets.DataError as e:
        if args.split or split not in str(e):
            raise
        raise datasets.DataError(f'{e}; that split is the one in the card of {paths[0]}: name another with '
                                 '--split') from e
    average_weights(paths, args.shares, dataset, args.out, device=args.device)
    print(args.out)
