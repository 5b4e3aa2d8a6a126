# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg compare`: several results side by side."""
import argparse
from pathlib import Path

HELP = ('Compare results of "lightseg evaluate --json" or "lightseg replay --json": figures side by side, '
        'and the paired difference to the first result on the frames that both have, with its confidence '
        'interval.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('results', nargs='+', type=Path, metavar='RESULT.json',
                        help='the first is what the others are compared with')
    parser.add_argument('--html', type=Path, metavar='FILE', help='write the comparison with its plots')


def run(args: argparse.Namespace) -> None:
    from ..evaluation import html_report, scores, text_report
    if len(args.results) < 2:
        raise text_report.ReportError('one result has nothing to be compared with; name two or more')
    results = {}
    for path in args.results:
        result = text_report.read_json(path)
        name = path.parent.name if path.stem == 'result' and path.parent.name else path.stem
        results[name if name not in results else str(path)] = result
    first, *others = results
    paired = {name: scores.paired_difference(results[first]['frames'], results[name]['frames'])
              for name in others}
    print(text_report.compare_text(results, paired))
    if args.html:
        print(html_report.write_comparison(results, paired, args.html))
