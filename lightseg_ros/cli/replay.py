# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg replay`: play a bag live to a segmentation node and score what comes back."""
import argparse
from pathlib import Path

from . import scoring

HELP = ('Play a bag in real time over DDS to a segmentation node and score the labels that come back: the '
        'figures of "lightseg evaluate", the latency from frame to label, and an account of every frame that '
        'was dropped, late or lost. Exit code 0: every frame came back or was replaced by a newer one; 3: '
        'frames or results failed or were lost.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bag', type=Path, metavar='BAG', help='bag to play')
    scoring.add_model_arguments(parser)
    scoring.add_truth_arguments(parser)
    parser.add_argument('--rate', type=float, default=1.0, help='playback speed; 2: twice as fast')
    parser.add_argument('--node', default='', help='a running node, such as /segmentation, with the classes '
                        'of --model; empty: start one')
    parser.add_argument('--use-sim-time', action='store_true',
                        help="publish /clock and keep the bag's stamps; otherwise frames get the time at "
                        'which they are played')
    parser.add_argument('--player', default='own', choices=('own', 'ros2'),
                        help='own: our player; ros2: "ros2 bag play"')
    parser.add_argument('--deadline', type=float, default=0.1, metavar='SECONDS',
                        help='a label that takes longer counts as late')
    scoring.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..live import replay
    live = replay.Live(args.rate, args.node, args.use_sim_time, args.player, args.deadline)
    scoring.check_outputs(args)
    found = replay.replay(args.bag, scoring.model_from(args), live, image_topic=args.image_topic,
                          truth=scoring.truth_from(args))
    return scoring.write(found, args)
