# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg compare`: several results side by side."""
import argparse
from pathlib import Path
from typing import Any

from .numbers import real

HELP = ('Compare results of "lightseg evaluate --json" or "lightseg replay --json": figures side by side, '
        'and the paired difference of the frames that they share to the first, with its confidence interval. '
        'Where both were made with --out, it shows where their labels disagree, without ground truth.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('results', nargs='+', type=Path, metavar='RESULT.json',
                        help='the first is what the others are compared with')
    parser.add_argument('--html', type=Path, metavar='FILE', help='write the comparison with its plots')
    parser.add_argument('--apart', type=real(0), default=2.0, metavar='SECONDS',
                        help='least distance of the frames that are shown')


def run(args: argparse.Namespace) -> None:
    from ..evaluation import disagreement, html_report, scores, text_report
    from ..files import keep_inputs
    if len(args.results) < 2:
        raise text_report.ReportError('one result has nothing to be compared with; name two or more')
    keep_inputs([args.html], args.results)
    results = {}
    for path in args.results:
        result = text_report.read_json(path)
        name = path.parent.name if path.stem == 'result' and path.parent.name else path.stem
        results[name if name not in results else str(path)] = result
    first, *others = results
    paired = {name: scores.paired_difference(results[first]['frames'], results[name]['frames'])
              for name in others if any(results[n]['miou'] is not None for n in (first, name))}
    print(text_report.compare_text(results, paired))
    files = dict(zip(results, args.results))
    classes = [c['name'] for c in results[first]['labels']['classes']]
    differ: dict[str, tuple[dict[str, Any], list[scores.Picture]]] = {}
    for name in others:
        try:
            if [c['name'] for c in results[name]['labels']['classes']] != classes:
                raise disagreement.DisagreementError(f'{name} and {first} have different classes')
            one, other = (disagreement.results_bag(results[n], files[n]) for n in (first, name))
            differ[name] = disagreement.disagreement(one, other, classes, round(args.apart * 1e9),
                                                     results[first]['frames'])
        except ValueError as e:
            print(f'where the labels of {name} and {first} disagree is not known: {e}')
        else:
            print(text_report.disagreement_text(name, first, differ[name][0]))
    if args.html:
        print(html_report.write_comparison(results, paired, args.html, differ))
