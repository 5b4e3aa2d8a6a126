# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments that `lightseg evaluate` and `lightseg replay` share, and how both write a result."""
import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation, ModelSpec
    from ..evaluation.recordings import GroundTruthSource


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='laanet', help='packaged network, or path of a weights file')
    parser.add_argument('--resolution', default='', metavar='WIDTHxHEIGHT',
                        help='size of the network\'s input, or "native"; empty: the size in the weights file')
    parser.add_argument('--resize-mode', default='fit', choices=('fit', 'stretch'),
                        help='fit: keep the aspect ratio of a frame; stretch: fill the input')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, openvino:GPU')
    parser.add_argument('--backend', default='auto', help='what runs the network on a CPU: auto, openvino, '
                        'onnxruntime, torch, torch-compile')
    parser.add_argument('--precision', default='auto', help='auto, float32, bfloat16 or float16')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0: one per core')


def add_truth_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group('topics and ground truth of a bag')
    group.add_argument('--image-topic', help='topic of the images; needed if the bag has several')
    group.add_argument('--label-topic', help='topic with ground truth: mono8, 8UC1, mono16, 16UC1 or PNG')
    group.add_argument('--label-dir', type=Path,
                       help='folder of label images that are named by stamp or by frame number')
    group.add_argument('--label-ids', choices=('class', 'source'),
                       help="ids in the ground truth: class ids, or the data set's own ids; default: class "
                       'for a topic, source for a folder')
    group.add_argument('--tolerance', type=float, default=0.005, metavar='SECONDS',
                       help='largest difference between the stamps of a frame and its label')
    group.add_argument('--frame-rate', type=float, default=30.0, metavar='HZ',
                       help='frame rate for label folders that are named by frame numbers')
    return group


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result as JSON')
    parser.add_argument('--report', type=Path, metavar='DIR',
                        help='write report.html and result.json to this folder')


def model_from(args: argparse.Namespace) -> 'ModelSpec':
    from ..evaluation.evaluate import ModelSpec
    return ModelSpec(args.model, args.device, args.resolution or None, args.resize_mode, args.backend,
                     args.precision, args.threads)


def truth_from(args: argparse.Namespace) -> 'GroundTruthSource':
    from ..evaluation.evaluate import EvaluationError
    from ..evaluation.recordings import GroundTruthSource
    if args.label_topic and args.label_dir:
        raise EvaluationError('ground truth comes from --label-topic or from --label-dir, not from both')
    ids = args.label_ids or ('source' if args.label_dir else 'class')
    return GroundTruthSource(args.label_topic, args.label_dir, ids == 'source', round(args.tolerance * 1e9),
                             args.frame_rate)


def check_outputs(args: argparse.Namespace) -> None:
    """Make the folders for the results before hours of work; an OSError names one that can't be made."""
    for folder in (args.report, args.json and args.json.parent):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)


def write(found: 'Evaluation', args: argparse.Namespace) -> int:
    """Print a result, write the files that were asked for, and return the exit code."""
    from ..evaluation import html_report, text_report
    result = found.result(vars(args))
    print(text_report.text(result))
    if args.json:
        text_report.write_json(result, args.json)
    if args.report:
        text_report.write_json(result, args.report / 'result.json')
        print(html_report.write_html(result, found.scores.best, found.scores.worst,
                                     args.report / 'report.html'))
    return text_report.exit_code(result)
