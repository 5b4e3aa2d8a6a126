# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg evaluate`: score a model on bags or on a data set."""
import argparse
from dataclasses import replace
from pathlib import Path

from ..files import try_to_write
from . import scoring
from .numbers import real, whole

HELP = ('Score a model on every frame, without ROS: on recordings (rosbag2 sqlite3 and mcap, ROS 1, videos, '
        'folders of images), with ground truth from a label topic or a folder, or without; or on a data set. '
        'Exit code 0: everything was used; 3: something failed or was damaged, the output says what; 1: '
        'nothing could be scored; 4: a --require is missed; 130: it was stopped (Ctrl-C), and the result is '
        'that of the frames so far.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bags', nargs='*', type=Path, metavar='RECORDING', help='bags, videos and '
                        'folders of images; several are scored as one recording')
    scoring.add_model_arguments(parser)
    scoring.add_smoothing_argument(parser)
    parser.add_argument('--batch', type=whole(1, 1024), default=1,
                        help='frames that go through the network together')
    group = scoring.add_truth_arguments(parser)
    group.add_argument('--value-range', default='full', metavar='RANGE', help='what becomes 0 to 255 in '
                       '16-bit images: full (0 to 65535), auto (1st to 99th percentile of each frame), or '
                       'MIN:MAX')
    scoring.add_selection_arguments(group)
    group = parser.add_argument_group('results and workers, for bags')
    group.add_argument('--resume', action='store_true', help='go on with an evaluation that was stopped: '
                       'the same command, with --report, --json or --out')
    group.add_argument('--out', type=Path, metavar='BAG.mcap',
                       help='write labels, overlays, confidence and diagnostics to a bag')
    group.add_argument('--jpeg-quality', type=whole(1, 100), default=90, metavar='1-100',
                       help='of the overlays in --out')
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
    group.add_argument('--record', action='store_true', help="write mIoU and IoU into the weights file's "
                       'card; with --corrupt also those of worse images')
    parser.add_argument('--apart', type=real(0), default=2.0, metavar='SECONDS',
                        help='least distance of frames that the report shows')
    scoring.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from .. import datasets, images, weights
    from ..evaluation import corruptions, evaluate
    from ..evaluation.settings import EvaluationError, Run
    if bool(args.bags) == bool(args.data):
        raise EvaluationError('name bags, or a data set with --data; one of the two')
    if args.record and not args.data:
        raise EvaluationError('--record writes the scores of a data set: name one with --data')
    if args.corrupt and not args.data:
        raise EvaluationError('--corrupt scores a data set: name one with --data')
    if args.smoothing and (args.corrupt or args.record or args.data and args.batch > 1):
        raise EvaluationError('--smoothing averages over frames in their order, so it works '
                              'without --batch, --corrupt and --record')
    if args.resume and args.data:
        raise EvaluationError('--resume is for bags; a data set is scored from the start')
    # All that can be wrong with the arguments is said before anything is read.
    run = Run(args.batch, args.workers, args.dask, args.frames_per_task, args.out, args.jpeg_quality,
              scoring.parts_folder(args), args.resume, round(args.apart * 1e9))
    truth, selection = scoring.truth_from(args), scoring.selection_from(args)
    value_range, model = images.parse_range(args.value_range), scoring.model_from(args)
    required = scoring.requirements_from(args, bool(truth or args.data))
    weights.resolve(args.model)
    scoring.check_outputs(args)
    if args.data:
        dataset = datasets.load(args.data, args.split, args.data_root)
        segment = model.load()
        if args.record:
            try_to_write(model.path)
        found = evaluate.evaluate_dataset(dataset, segment, batch=args.batch, apart_ns=run.apart_ns,
                                          smoothing=args.smoothing)
    else:
        found = evaluate.evaluate_bags(args.bags, model, image_topic=args.image_topic, truth=truth,
                                       value_range=value_range, selection=selection, run=run)
    stopped = False
    # The mIoU is NaN where no pixel is labelled; then there is nothing to compare with.
    if args.corrupt and not found.scores.counts['not_reached'] and found.scores.confusion.miou() >= 0:
        try:
            found = replace(found, corrupted=corruptions.robustness(dataset, segment, batch=args.batch))
        except KeyboardInterrupt:
            stopped = True  # the result of the images as they are is still written
    code = scoring.write(found, args, required)
    if found.parts and code != 130:
        found.parts.remove()
    if args.record and code != 130:
        print(evaluate.record(model, dataset, found.result(vars(args))))
    if stopped:
        print('stopped before all worse images were scored; their scores are left out')
    return 130 if stopped else code
