# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg replay`: a bag played live to a segmentation node, and what comes back scored."""
import argparse
from pathlib import Path

from . import evaluate

HELP = ('Play a bag in real time over DDS to a segmentation node and score the labels that come back: the '
        'figures of "lightseg evaluate", latency from frame to label, and an account of every frame that was '
        'dropped, late or lost. Exit code 0: every frame came back or gave way to a newer one; 3: frames or '
        'results failed or were lost.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bag', type=Path, metavar='BAG', help='bag to play')
    evaluate.add_model_arguments(parser)
    evaluate.add_truth_arguments(parser)
    parser.add_argument('--rate', type=float, default=1.0, help='times as fast as it was recorded')
    parser.add_argument('--node', default='', help='a running node, such as /segmentation, with the classes '
                        'of --model; empty: start one')
    parser.add_argument('--use-sim-time', action='store_true',
                        help="publish /clock and keep the bag's stamps; else frames are stamped when played")
    parser.add_argument('--player', default='own', choices=('own', 'ros2'), help='ros2: "ros2 bag play"')
    parser.add_argument('--deadline', type=float, default=0.1, metavar='SECONDS',
                        help='a label that comes later counts as late')
    evaluate.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..live import replay as live_replay
    live = live_replay.Live(args.rate, args.node, args.use_sim_time, args.player, args.deadline)
    evaluate.check_outputs(args)
    model = evaluate.model_from(args)
    found = live_replay.replay(args.bag, model, live, image_topic=args.image_topic,
                               truth=evaluate.truth_from(args))
    result = found.result(vars(args))
    evaluate.write(result, found.scores, args)
    account = found.account
    return 3 if account['failed'] or account['not_returned'] else evaluate.exit_code(result)
