# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg replay`: play a bag live to a segmentation node and score what comes back."""
import argparse
from pathlib import Path

from . import scoring
from .numbers import real

HELP = ('Play a recording in real time over DDS to a segmentation node and score the labels that come back: '
        'the figures of "lightseg evaluate", the latency from frame to label, and an account of every frame '
        'that was dropped, late or lost. Exit code 0: every frame came back, or the node dropped it for a '
        'newer one; 3: frames failed, did not reach the node or did not come back, or the recording is '
        'damaged; 1: nothing could be scored; 4: a --require is missed.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bag', type=Path, metavar='BAG', help='bag, video or folder of images to play')
    scoring.add_model_arguments(parser)
    scoring.add_smoothing_argument(parser)
    scoring.add_selection_arguments(scoring.add_truth_arguments(parser))
    parser.add_argument('--rate', type=real(0.01, 1000), default=1.0, help='playback speed; 2: twice as fast')
    parser.add_argument('--node', default='', help='a running node, such as /segmentation, with the classes '
                        'of --model; empty: start one')
    parser.add_argument('--use-sim-time', action='store_true',
                        help="publish /clock and keep the bag's stamps; otherwise frames get the time at "
                        'which they are played')
    parser.add_argument('--player', default='own', choices=('own', 'ros2'), help='ros2: use "ros2 bag play"')
    parser.add_argument('--deadline', type=real(0, 1e6), default=0.1, metavar='SECONDS',
                        help='a label that takes longer counts as late')
    scoring.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..live import replay
    live = replay.Live(args.rate, args.node, args.use_sim_time, args.player, args.deadline)
    truth, selection = scoring.truth_from(args), scoring.selection_from(args)
    required = scoring.requirements_from(args, bool(truth))
    scoring.check_outputs(args)
    found = replay.replay(args.bag, scoring.model_from(args), live, image_topic=args.image_topic,
                          truth=truth, selection=selection)
    return scoring.write(found, args, required)
