# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg train`: data set and recipe in, a weights file with its card out."""
import argparse
import dataclasses
import logging
import os
import shlex
import signal
import threading
import time
from typing import Any

from .. import sizes
from ..training.recipes import CHOICES, load, Recipe, RECIPES
from .numbers import json_object, real, whole

log = logging.getLogger(__name__)

HELP = 'Train a network. --resume continues a run that was stopped or killed.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', required=True, help='network; "lightseg info" lists them')
    parser.add_argument('--data', default='camvid', help='camvid, cityscapes, or folder (your own data)')
    parser.add_argument('--data-root', help='folder of the data set; default for CamVid: LIGHTSEG_CAMVID, or '
                        '../shared/data/camvid')
    parser.add_argument('--split', default='train', help='split to train on')
    parser.add_argument('--validate', default='', metavar='SPLIT', help='split to score during training')
    parser.add_argument('--hold-out', nargs='+', default=[], metavar='SEQUENCE',
                        help='train without these sequences of the split, and score them during training; '
                             'in CamVid a sequence is a drive, for example 0006R0')
    parser.add_argument('--validate-every', type=whole(1), default=5, metavar='EPOCHS',
                        help='epochs between two scores')
    parser.add_argument('--size', type=_size, metavar='WIDTHxHEIGHT',
                        help='scale all images and labels to fit into this size; the rest is void')
    parser.add_argument('--allow-empty-classes', action='store_true',
                        help='train although a class has no pixel: with --init, to keep its classes')
    parser.add_argument('--recipe', choices=RECIPES,
                        help="paper: the network's own; best: ours, for a GPU; cpu: ours, for a few cores; "
                             'default: best on a GPU, cpu without one')
    parser.add_argument('--license', type=_line, default='', metavar='TEXT',
                        help='licence of the data, for the card of the weights')
    parser.add_argument('--source', type=_line, default='', metavar='TEXT',
                        help='where the data comes from, for the card of the weights')
    parser.add_argument('--out', default='',
                        help='folder that gets weights, checkpoint and log; empty: runs/MODEL-DATA')
    parser.add_argument('--device', default='auto',
                        help='auto, cpu, cuda, cuda:1 ...; auto: a GPU if there is one')
    parser.add_argument('--mode', default='auto', choices=('auto', 'eager', 'graph', 'compile'),
                        help='eager: plain torch; graph: each step is one CUDA graph; compile: compile the '
                             'network too; auto: graph on CUDA, else eager')
    parser.add_argument('--compile', dest='mode', action='store_const', const='compile',
                        default=argparse.SUPPRESS, help='--mode compile')
    parser.add_argument('--resume', action='store_true',
                        help='continue from the checkpoint in --out, if there is one')
    parser.add_argument('--time-limit', type=real(0, 1e9), default=float('inf'), metavar='SECONDS',
                        help='save a checkpoint and stop after this time, from the start of the program')
    parser.add_argument('--checkpoint-every', type=real(0, 1e9), default=60.0, metavar='SECONDS',
                        help='time between two checkpoints')
    add_recipe_arguments(parser)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one argument per field of a recipe; without it the recipe's own value holds."""
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
            kind = {'type': _size, 'metavar': 'WIDTHxHEIGHT'}
        elif field.name in ('scale', 'first_scale'):
            kind = {'type': float, 'nargs': '+', 'metavar': 'ZOOM'}
        elif field.name == 'teachers':
            kind = {'nargs': '+', 'metavar': 'FILE'}
        group.add_argument('--' + field.name.replace('_', '-'), default=argparse.SUPPRESS,
                           help=field.metadata['help'].replace('%', '%%'), **kind)
    group.add_argument('--options', type=json_object, default=argparse.SUPPRESS, metavar='JSON',
                       help='options of the network, for example \'{"dropout": 0.1}\'')


def recipe(args: argparse.Namespace, network: str) -> Recipe:
    """Build the recipe that --recipe names, or that fits the device, changed by the other arguments."""
    from .. import networks, weights
    from ..training.devices import find_device
    if network not in networks.NETWORKS:
        try:
            known = weights.read_card(weights.resolve(network)).network
        except weights.WeightsError:
            pass  # not weights either: the network's own error follows
        else:
            raise weights.WeightsError(f'--model {network} names weights; expected a network. To train on '
                                       f'from these weights: --model {known} --init {shlex.quote(network)}')
    changes = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe) if hasattr(args, f.name)}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    name = args.recipe or ('cpu' if find_device(args.device).type == 'cpu' else 'best')
    return load(name, network, **changes)


def _size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT to the (height, width) that the trainer uses."""
    width, height = sizes.argument(text)
    return height, width


def _line(text: str) -> str:
    if not text.isprintable() or len(text) > 1000:
        raise argparse.ArgumentTypeError('expected one line of at most 1000 printable characters')
    return text


def run(args: argparse.Namespace) -> int | None:
    began = time.monotonic()
    from .. import datasets
    from ..training.run import train
    dataset = datasets.load(args.data, args.split, args.data_root)
    validation = datasets.load(args.data, args.validate, args.data_root) if args.validate else None
    if args.hold_out:
        if validation:
            raise datasets.DataError('--hold-out and --validate both name what to score; give one of the two')
        dataset, validation = datasets.hold_out(dataset, args.hold_out)
    dataset = dataclasses.replace(dataset, license=args.license or dataset.license,
                                  source=args.source or dataset.source)
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        """Let the current step end and save a checkpoint; a second Ctrl-C ends the program at once."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()

    before = signal.getsignal(signal.SIGINT)
    # Under torchrun the processes would stop at different steps and wait for each other forever.
    if 'WORLD_SIZE' not in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    try:
        path = train(
            recipe(args, args.model), dataset, args.out or f'runs/{args.model}-{args.data}',
            validation=validation,
            validate_every=args.validate_every, device=args.device, mode=args.mode, size=args.size,
            resume=args.resume, checkpoint_every_s=args.checkpoint_every,
            allow_empty=args.allow_empty_classes,
            time_limit_s=args.time_limit - (time.monotonic() - began), stop=interrupted.is_set)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
    if interrupted.is_set() and not path:
        raise KeyboardInterrupt
    if path:
        log.info('next: %s', _next(str(path), args, validation.split if validation else ''))
        print(path)
    return None


def _next(path: str, args: argparse.Namespace, split: str) -> str:
    """Say how finished weights are scored, on the split of the validation or on a recording, and run."""
    root = ['--data-root', args.data_root] if args.data_root else []
    data = ['--data', args.data, *root, '--split', split]
    command = ['lightseg', 'evaluate', *(data if split else ['drive.mcap']), '--model', path,
               '--report', 'out/report']
    return f'{shlex.join(command)}; on a robot: ros2 launch lightseg_ros segment.launch.py ' \
        f'{shlex.join([f"weights:={path}"])} image_topic:=/camera/image_raw'
