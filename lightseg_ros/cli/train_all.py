# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg train-all`: all networks side by side on one machine, within a time limit."""
import argparse
from pathlib import Path

from ..training.recipes import RECIPES
from .numbers import real, whole

HELP = ('Train all networks as parallel processes within a time limit. The same command continues runs that '
        'are not finished.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--networks', nargs='+', metavar='NAME',
                        help='networks to train; if not given, all five')
    parser.add_argument('--data', default='camvid', help='camvid, cityscapes, or folder (your own data)')
    parser.add_argument('--data-root', help='folder of the data set, or the archive that --pack wrote')
    parser.add_argument('--split', default='trainval', help='split to train on')
    parser.add_argument('--validate', default='', metavar='SPLIT', help='split to score during training')
    parser.add_argument('--test', default='', metavar='SPLIT',
                        help='split to score finished weights on, once; the score goes into their cards')
    parser.add_argument('--recipe', default='best', choices=RECIPES, help='as in lightseg train')
    parser.add_argument('--out', type=Path, default=Path('runs'),
                        help='parent folder of the runs, one per network')
    parser.add_argument('--device', default='auto', help='as in lightseg train')
    parser.add_argument('--mode', default='auto', choices=('auto', 'eager', 'graph', 'compile'),
                        help='as in lightseg train; a run that fails gets a second try in mode eager')
    parser.add_argument('--parallel', type=whole(0, 1024), default=0, metavar='N',
                        help='processes at a time; 0: all')
    parser.add_argument('--time-limit', type=real(0, 1e9), default=float('inf'), metavar='SECONDS',
                        help='training and --leave end within this time; --test comes on top')
    travel = parser.add_argument_group('to and from another machine')
    travel.add_argument('--pack', type=Path, metavar='FILE', help='only write the data set to FILE')
    travel.add_argument('--max-mib', type=real(0.1), default=60.0, help='largest size of that file')
    travel.add_argument('--from', dest='source', type=Path, metavar='DIR',
                        help='continue the runs that --leave wrote to DIR')
    travel.add_argument('--leave', type=Path, metavar='DIR',
                        help='write finished weights and the checkpoints of unfinished runs to DIR, in parts')
    travel.add_argument('--part-mib', type=real(0.1), default=15.0, help='largest size of a part')
    parser.add_argument('arguments', nargs='*', metavar='-- ARGUMENT',
                        help='more arguments for lightseg train')


def run(args: argparse.Namespace) -> int | None:
    from .. import datasets
    from ..training import train_all
    if args.pack:
        splits = [s for s in (args.split, args.validate, args.test) if s]
        note = datasets.pack(args.data, args.data_root, splits, args.pack, int(args.max_mib * 2 ** 20))
        print(f'{args.pack}: {args.pack.stat().st_size / 2 ** 20:.1f} MiB, {note}')
        return None
    options = {k: v for k, v in vars(args).items() if k in train_all.Plan.__dataclass_fields__}
    summary = train_all.train_all(train_all.Plan(**options | {
        'time_limit_s': args.time_limit, 'part_bytes': int(args.part_mib * 2 ** 20)}))
    if summary.table:
        print(summary.table)
    if args.leave:
        mib = sum(p.stat().st_size for p in summary.parts) / 2 ** 20
        print(f'{len(summary.parts)} parts in {args.leave}, {mib:.1f} MiB')
    print(f'finished: {", ".join(summary.finished) or "none"}; unfinished, the same command continues: '
          f'{", ".join(summary.unfinished) or "none"}')
    return 1 if summary.failed else 0
