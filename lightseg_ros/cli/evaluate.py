# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg evaluate`: bags or a data set in, scores out."""
import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.evaluate import ModelSpec
    from ..evaluation.recordings import GroundTruthSource
    from ..evaluation.scores import Scores

HELP = ('Score a model, every frame, without ROS: on bags (rosbag2 sqlite3 and mcap, ROS 1), with ground '
        'truth from a label topic or a folder or without, or on a data set. Exit code 0: all was used; 3: '
        'something failed or was damaged, the output says what; 1: nothing could be scored.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bags', nargs='*', type=Path, metavar='BAG', help='bags, scored as one recording')
    add_model_arguments(parser)
    parser.add_argument('--batch', type=int, default=1, help='frames at once')
    add_truth_arguments(parser)
    group = parser.add_argument_group('results and workers, of bags')
    group.add_argument('--out', type=Path, metavar='BAG.mcap',
                       help='write label, overlay, confidence and diagnostics')
    group.add_argument('--workers', type=int, default=1, help='processes on this machine')
    group.add_argument('--dask', metavar='ADDRESS', help='scheduler of a Dask cluster, tcp://HOST:8786; bags '
                       'and weights must lie at the same paths there')
    group.add_argument('--frames-per-task', type=int, default=200, help='how fine work is cut for workers')
    group = parser.add_argument_group('data set')
    group.add_argument('--data', help='data set to score instead of bags: camvid, cityscapes, or folder '
                       '(your own)')
    group.add_argument('--data-root', help='its folder; default: where the data set is looked for')
    group.add_argument('--split', default='test', help='its split')
    group.add_argument('--record', action='store_true',
                       help="write mIoU and IoU into the weights file's card")
    add_output_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='laanet', help='packaged network, or the path of a weights file')
    parser.add_argument('--resolution', default='',
                        help='WxH that the network sees, or native; empty: that of the weights')
    parser.add_argument('--resize-mode', default='fit', choices=('fit', 'stretch'),
                        help='how a frame gets there')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, openvino:GPU')
    parser.add_argument('--backend', default='auto', help='what runs the network on a processor: auto, '
                        'openvino, onnxruntime, torch, torch-compile')
    parser.add_argument('--precision', default='auto', help='auto, float32, bfloat16 or float16')
    parser.add_argument('--threads', type=int, default=0, help='of the processor; 0: one for each core')


def add_truth_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('bags')
    group.add_argument('--image-topic', help='default: the only image topic')
    group.add_argument('--label-topic', help='topic with ground truth, mono8')
    group.add_argument('--label-dir', type=Path, help='folder of label images named by stamp or frame number')
    group.add_argument('--label-ids', choices=('class', 'source'),
                       help="what ground truth holds: class ids, or the data set's own; default: class for a "
                       'topic, source for a folder')
    group.add_argument('--tolerance', type=float, default=0.005, metavar='SECONDS',
                       help='how far the stamps of frame and label may differ')
    group.add_argument('--frame-rate', type=float, default=30.0, help='of a label folder with frame numbers')


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result as JSON')
    parser.add_argument('--report', type=Path, metavar='DIR', help='write report.html and result.json there')


def model_from(args: argparse.Namespace) -> 'ModelSpec':
    from ..evaluation.evaluate import ModelSpec
    return ModelSpec(args.model, args.device, args.resolution or None, args.resize_mode, args.backend,
                 args.precision, args.threads)


def truth_from(args: argparse.Namespace) -> 'GroundTruthSource':
    from ..evaluation.evaluate import EvaluationError
    from ..evaluation.recordings import GroundTruthSource
    if args.label_topic and args.label_dir:
        raise EvaluationError('ground truth comes from --label-topic or --label-dir, not from both')
    ids = args.label_ids or ('source' if args.label_dir else 'class')
    return GroundTruthSource(args.label_topic, args.label_dir, ids == 'source', round(args.tolerance * 1e9),
                 args.frame_rate)


def check_outputs(args: argparse.Namespace) -> None:
    """Make the folders that results go to, before hours of work; an OSError names one that can't be made."""
    for folder in (args.report, args.json and args.json.parent):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)


def write(result: dict, scores: 'Scores', args: argparse.Namespace) -> None:
    """Print a result, and write it where it was asked for."""
    from ..evaluation import html_report, text_report
    print(text_report.text(result))
    if args.json:
        text_report.write_json(result, args.json)
    if args.report:
        text_report.write_json(result, args.report / 'result.json')
        print(html_report.write_html(result, scores.best, scores.worst, args.report / 'report.html'))


def exit_code(result: dict) -> int:
    from ..evaluation import text_report
    return 3 if any(result['counts'].get(key) for key in text_report.TROUBLE) else 0


def run(args: argparse.Namespace) -> int:
    from .. import datasets
    from ..evaluation import evaluate
    if bool(args.bags) == bool(args.data):
        raise evaluate.EvaluationError('name bags, or a data set with --data; one of the two')
    if args.record and not args.data:
        raise evaluate.EvaluationError('--record writes what was measured on a data set: it wants --data')
    for name in ('batch', 'workers', 'frames_per_task'):
        if getattr(args, name) < 1:
            raise evaluate.EvaluationError(f'{name} is {getattr(args, name)}; expected 1 or more')
    check_outputs(args)
    model = model_from(args)
    if args.data:
        dataset = datasets.load(args.data, args.split, args.data_root)
        found = evaluate.evaluate_dataset(dataset, model.load(), batch=args.batch)
    else:
        found = evaluate.evaluate_bags(
            args.bags, model, image_topic=args.image_topic, truth=truth_from(args), batch=args.batch,
            workers=args.workers, dask=args.dask, frames_per_task=args.frames_per_task, out=args.out)
    result = found.result(vars(args))
    write(result, found.scores, args)
    if args.record:
        print(evaluate.record(model, dataset, result))
    return exit_code(result)
