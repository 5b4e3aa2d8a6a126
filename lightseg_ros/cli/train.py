# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg train`: data set and recipe in, a weights file with its card out."""
import argparse
import dataclasses
import json
import os
import signal
import threading
import time
from typing import Any

from ..training.recipes import CHOICES, load, Recipe, RECIPES

HELP = 'Train a network; a run that was stopped or killed goes on with --resume.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', required=True, help='network, see "lightseg info"')
    parser.add_argument('--data', default='camvid', help='camvid, cityscapes, or folder (your own)')
    parser.add_argument('--data-root', help='its folder; CamVid is also looked for')
    parser.add_argument('--split', default='train', help='split to train on')
    parser.add_argument('--validate', default='', metavar='SPLIT', help='split to score while training')
    parser.add_argument('--validate-every', type=int, default=5, metavar='EPOCHS')
    parser.add_argument('--size', type=_size, metavar='WxH', help='resize all images and labels to this')
    parser.add_argument('--recipe', default='best', choices=RECIPES,
                        help="paper: the network's own; best: ours, for a GPU; cpu: an hour or two")
    parser.add_argument('--out', default='', help='folder of the run; default: runs/MODEL-DATA')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1 ...')
    parser.add_argument('--mode', default='auto', choices=('auto', 'eager', 'graph', 'compile'),
                        help='graph: the step as one CUDA graph; compile: that of a compiled network; auto: '
                             'graph on CUDA, else eager')
    parser.add_argument('--compile', dest='mode', action='store_const', const='compile',
                        default=argparse.SUPPRESS, help='--mode compile')
    parser.add_argument('--resume', action='store_true', help='go on from the checkpoint in --out, if any')
    parser.add_argument('--time-limit', type=float, default=float('inf'), metavar='SECONDS',
                        help='stop cleanly after this long, from the start of the program')
    parser.add_argument('--checkpoint-every', type=float, default=60.0, metavar='SECONDS')
    add_recipe_arguments(parser)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an argument for each number of a recipe, unset by default."""
    group = parser.add_argument_group('changes to the recipe')
    for field in dataclasses.fields(Recipe):
        if field.name in ('network', 'options'):
            continue
        kind: dict[str, Any] = {'type': type(field.default), 'metavar': type(field.default).__name__.upper()}
        if field.name in CHOICES:
            kind = {'choices': CHOICES[field.name]}
        elif isinstance(field.default, bool):
            kind = {'action': argparse.BooleanOptionalAction}
        elif field.name in ('crop', 'first_crop'):
            kind = {'type': _size, 'metavar': 'WxH'}
        elif field.name in ('scale', 'first_scale'):
            kind = {'type': float, 'nargs': '+', 'metavar': 'ZOOM'}
        elif field.name == 'teachers':
            kind = {'nargs': '+', 'metavar': 'FILE'}
        group.add_argument('--' + field.name.replace('_', '-'), default=argparse.SUPPRESS,
                           help=field.metadata['help'].replace('%', '%%'), **kind)
    group.add_argument('--options', type=json.loads, default=argparse.SUPPRESS, metavar='JSON',
                       help="the network's options")


def recipe(args: argparse.Namespace, network: str) -> Recipe:
    """Build the recipe that the arguments name, with their changes."""
    changes = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe) if hasattr(args, f.name)}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    return load(args.recipe, network, **changes)


def _size(text: str) -> tuple[int, int]:
    """Parse WxH into (height, width)."""
    width, height = (int(v) for v in text.lower().split('x'))
    return height, width


def run(args: argparse.Namespace) -> int | None:
    began = time.monotonic()
    from .. import datasets
    from ..training import trainer
    validation = datasets.load(args.data, args.validate, args.data_root) if args.validate else None
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        """Let the step end and save; a second Ctrl-C ends at once."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()

    before = signal.getsignal(signal.SIGINT)
    # Processes of torchrun would stop at different steps, and wait for each other.
    if 'WORLD_SIZE' not in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    try:
        path = trainer.train(
            recipe(args, args.model), datasets.load(args.data, args.split, args.data_root),
            args.out or f'runs/{args.model}-{args.data}', validation=validation,
            validate_every=args.validate_every, device=args.device, mode=args.mode, size=args.size,
            resume=args.resume, checkpoint_every_s=args.checkpoint_every,
            time_limit_s=args.time_limit - (time.monotonic() - began), stop=interrupted.is_set)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
    if interrupted.is_set() and not path:
        raise KeyboardInterrupt
    if path:
        print(path)
    return None
