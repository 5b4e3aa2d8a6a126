# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg folds`: which recipe is better on drives that were not trained on."""
import argparse
from pathlib import Path

from . import train
from .numbers import whole

HELP = ('For each sequence, train without it and score on it. Print the mean of the scores, and the mIoU of '
        'the pooled confusion matrices. The runs share the cores, one thread each. The same command, given '
        'again, continues unfinished runs.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--sequences', nargs='+', default=[], metavar='NAME',
                        help='sequences to hold out in turn; if none is given, all of the split')
    parser.add_argument('--out', type=Path, required=True,
                        help='gets one folder per sequence, and folds.json')
    parser.add_argument('--parallel', type=whole(0, 1024), default=0, metavar='N',
                        help='runs at a time; 0: one per core')
    parser.add_argument('arguments', nargs='+', metavar='-- ARGUMENT',
                        help='arguments for lightseg train, for example -- --model affnet --recipe cpu '
                        '--split trainval')


def run(args: argparse.Namespace) -> int | None:
    parser = argparse.ArgumentParser(prog='lightseg folds ... --')
    train.add_arguments(parser)
    parsed = parser.parse_args(args.arguments)
    from .. import datasets
    from ..training.folds import FoldsError, run_folds
    for name in ('out', 'hold_out', 'validate'):
        if getattr(parsed, name):
            raise FoldsError(f'--{name.replace("_", "-")} belongs to each fold; leave it out behind the --')
    dataset = datasets.load(parsed.data, parsed.split, parsed.data_root)
    result = run_folds(train.recipe(parsed, parsed.model), dataset, args.sequences, args.out, args.arguments,
                       parallel=args.parallel)
    if result is None:
        print('some folds are not finished; the same command continues')
        return 1
    print(result.text())
    return None
