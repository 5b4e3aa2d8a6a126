# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments that `lightseg evaluate` and `lightseg replay` share, and how both write a result."""
import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from ..files import is_stream, keep_inputs, try_to_write
from .numbers import real, whole

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.recordings import GroundTruthSource, Selection
    from ..evaluation.requirements import Requirement
    from ..evaluation.settings import ModelSpec


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='laanet', help='packaged network, or path of a weights file')
    parser.add_argument('--resolution', default='', metavar='WIDTHxHEIGHT',
                        help='size of the network\'s input, or "native"; empty: the size in the weights file')
    parser.add_argument('--resize-mode', default='fit', choices=('fit', 'stretch'),
                        help='fit: keep the aspect ratio of a frame; stretch: fill the input')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, openvino:GPU')
    parser.add_argument('--backend', default='auto', help='what runs the network on a CPU: auto, openvino, '
                        'onnxruntime, torch, torch-compile, tensorrt')
    parser.add_argument('--precision', default='auto', help='auto, float32, bfloat16 or float16')
    parser.add_argument('--threads', type=whole(0, 1024), default=0, help='CPU threads; 0: one per core')


def add_smoothing_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--smoothing', type=real(0, 0.9), default=0.0, metavar='SHARE', help='share of the '
                        'earlier frames in the labels, so that they flicker less, such as 0.1')


def add_truth_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group('topics and ground truth of a bag')
    group.add_argument('--image-topic', help='topic of the images; needed if the bag has several')
    group.add_argument('--label-topic', help='topic with ground truth: mono8, 8UC1, mono16, 16UC1 or PNG')
    group.add_argument('--label-dir', type=Path,
                       help='folder of label images that are named by stamp or by frame number')
    group.add_argument('--label-ids', choices=('class', 'source'),
                       help="ids in the ground truth: class ids, or the data set's own ids; default: class "
                       'for a topic, source for a folder')
    group.add_argument('--tolerance', type=real(0, 1e6), default=0.005, metavar='SECONDS',
                       help='largest difference between the stamps of a frame and its label')
    group.add_argument('--frame-rate', type=real(1e-3), default=30.0, metavar='HZ',
                       help='frame rate for label folders that are named by frame numbers')
    return group


def add_selection_arguments(group: argparse._ActionsContainer) -> None:
    group.add_argument('--start', type=real(0), default=0.0, metavar='SECONDS',
                       help='leave out the first seconds of each recording')
    group.add_argument('--duration', type=real(1e-3), metavar='SECONDS',
                       help='use so much of each recording')
    group.add_argument('--every', metavar='STEP',
                       help='use one frame in so many seconds (0.5), or of so many frames (10f)')


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result as JSON')
    parser.add_argument('--report', type=Path, metavar='DIR',
                        help='write report.html and result.json to this folder')
    parser.add_argument('--require', action='append', default=[], metavar='FIGURE=LIMIT',
                        help='exit code 4 if it is missed; at least: miou=0.65, accuracy, boundary_f1, '
                        'consistency, confidence, iou.CLASS or iou.GROUP; at most: ece=0.05, p50, p95, max '
                        '(milliseconds)')


def model_from(args: argparse.Namespace) -> 'ModelSpec':
    from ..evaluation.settings import ModelSpec
    return ModelSpec(args.model, args.device, args.resolution or None, args.resize_mode, args.backend,
                     args.precision, args.threads, smoothing=getattr(args, 'smoothing', 0.0))


def truth_from(args: argparse.Namespace) -> 'GroundTruthSource':
    from ..evaluation.recordings import GroundTruthSource
    from ..evaluation.settings import EvaluationError
    if args.label_topic and args.label_dir:
        raise EvaluationError('ground truth comes from --label-topic or from --label-dir, not from both')
    ids = args.label_ids or ('source' if args.label_dir else 'class')
    return GroundTruthSource(args.label_topic, args.label_dir, ids == 'source', round(args.tolerance * 1e9),
                             args.frame_rate)


def selection_from(args: argparse.Namespace, every: str = '1f') -> 'Selection':
    """Parse --start, --duration and --every; `every`: what is meant where --every is not given."""
    from ..evaluation.recordings import Selection
    from ..evaluation.settings import EvaluationError
    every = args.every or every
    number, frames = (every[:-1], True) if every.endswith('f') else (every, False)
    try:
        step = int(number) if frames else float(number)
    except ValueError:
        step = 0
    if not 1e-9 <= step < 1e9:
        raise EvaluationError(f'every is {every!r}; expected seconds such as 0.5, or frames such as 10f')
    return Selection(round(args.start * 1e9), None if args.duration is None else round(args.duration * 1e9),
                     0 if frames else round(step * 1e9), int(step) if frames else 1)


def parts_folder(args: argparse.Namespace) -> Path | None:
    """Return where an evaluation keeps what is done until its result is written; None without a file."""
    if args.report:
        return args.report / 'parts'
    file = next((f for f in (args.json, args.out) if f and not is_stream(f)), None)
    return file.with_name(file.name + '.parts') if file else None


def check_outputs(args: argparse.Namespace) -> None:
    """Write a little where the results will lie, before hours of work; no input is replaced."""
    out = getattr(args, 'out', None)
    keep_inputs((args.json, out), (*getattr(args, 'bags', ()), getattr(args, 'bag', None), args.model))
    if out and out.is_dir():  # refused later, or written anew with --resume
        out = None
    for path in (args.report and args.report / 'report.html', args.json, out):
        if path:
            try_to_write(path)


def requirements_from(args: argparse.Namespace, has_truth: bool) -> 'list[Requirement]':
    from .. import weights
    from ..evaluation import requirements
    if not args.require:
        return []
    return requirements.parse(args.require, weights.read_card(weights.resolve(args.model)).labels, has_truth)


def write(found: 'Evaluation', args: argparse.Namespace, required: 'Sequence[Requirement]' = ()) -> int:
    """Print a result, write the files that were asked for, and return the exit code."""
    from ..evaluation import html_report, text_report
    result = found.result(vars(args))
    result['required'] = [r.check(result) for r in required]
    if out := getattr(args, 'out', None):
        result['out'] = str(out.absolute())
    text = text_report.text(result)
    if sys.stdout.isatty():
        text = text.replace('\nMISSED: ', '\n\033[31mMISSED\033[0m: ')
    print(text)
    if left := result['counts'].get('not_reached'):
        done = result['counts']['read'] - left
        print(f'stopped after {done} of {result["counts"]["read"]} frames'
              + ('; the same command with --resume goes on' if found.parts and parts_folder(args) else ''))
    if args.json:
        text_report.write_json(result, args.json)
    if args.report:
        text_report.write_json(result, args.report / 'result.json')
        print(html_report.write_html(result, found.scores.pictures(), args.report / 'report.html'))
    return text_report.exit_code(result)
