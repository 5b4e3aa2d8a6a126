# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg evaluate`: score a model on bags or on a data set."""
import argparse
from pathlib import Path

from . import scoring
from .numbers import whole

HELP = ('Score a model on every frame, without ROS: on bags (rosbag2 sqlite3 and mcap, ROS 1), with ground '
        'truth from a label topic or a folder, or without; or on a data set. Exit code 0: everything was '
        'used; 3: something failed or was damaged, the output says what; 1: nothing could be scored.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bags', nargs='*', type=Path, metavar='BAG',
                        help='bags; several are scored as one recording')
    scoring.add_model_arguments(parser)
    parser.add_argument('--batch', type=whole(1, 1024), default=1,
                        help='frames that go through the network together')
    group = scoring.add_truth_arguments(parser)
    group.add_argument('--value-range', default='full', metavar='RANGE', help='what becomes 0 to 255 in '
                       '16-bit images: full (0 to 65535), auto (1st to 99th percentile of each frame), or '
                       'MIN:MAX')
    group = parser.add_argument_group('results and workers, for bags')
    group.add_argument('--out', type=Path, metavar='BAG.mcap',
                       help='write labels, overlays, confidence and diagnostics to a bag')
    group.add_argument('--workers', type=whole(1, 1024), default=1, help='processes on this machine')
    group.add_argument('--dask', metavar='ADDRESS', help='scheduler of a Dask cluster, tcp://HOST:8786; bags '
                       'and weights must be at the same paths on its workers')
    group.add_argument('--frames-per-task', type=whole(1), default=200,
                       help='frames that a worker gets at once')
    group = parser.add_argument_group('data set')
    group.add_argument('--data', help='data set to score instead of bags: camvid, cityscapes, or folder '
                       '(your own)')
    group.add_argument('--data-root', help='folder of the data set; default for CamVid: LIGHTSEG_CAMVID, '
                       'or ../shared/data/camvid')
    group.add_argument('--split', default='test', help='split of the data set')
    group.add_argument('--corrupt', action='store_true', help='score the split also in darkness, fog, '
                       'noise, motion blur and JPEG, in three strengths each, and print a table')
    group.add_argument('--record', action='store_true',
                       help="write mIoU and IoU into the weights file's card")
    scoring.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from .. import datasets, images
    from ..evaluation import corruptions, evaluate
    if bool(args.bags) == bool(args.data):
        raise evaluate.EvaluationError('name bags, or a data set with --data; one of the two')
    if args.record and not args.data:
        raise evaluate.EvaluationError('--record writes the scores of a data set: name one with --data')
    if args.corrupt and not args.data:
        raise evaluate.EvaluationError('--corrupt scores a data set: name one with --data')
    for name in ('batch', 'workers', 'frames_per_task'):
        if getattr(args, name) < 1:
            raise evaluate.EvaluationError(f'{name} is {getattr(args, name)}; expected 1 or more')
    scoring.check_outputs(args)
    model = scoring.model_from(args)
    if args.data:
        dataset = datasets.load(args.data, args.split, args.data_root)
        segment = model.load()
        found = evaluate.evaluate_dataset(dataset, segment, batch=args.batch)
    else:
        found = evaluate.evaluate_bags(
            args.bags, model, image_topic=args.image_topic, truth=scoring.truth_from(args),
            value_range=images.parse_range(args.value_range), batch=args.batch, workers=args.workers,
            dask=args.dask, frames_per_task=args.frames_per_task, out=args.out)
    code = scoring.write(found, args)
    if args.corrupt:
        print(corruptions.robustness(dataset, segment, found, batch=args.batch).table())
    if args.record:
        print(evaluate.record(model, dataset, found.scores.result()))
    return code
