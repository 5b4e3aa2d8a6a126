# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg data`: check a data set, or make one of what an annotation tool exports."""
import argparse
from pathlib import Path
import shlex
from typing import TYPE_CHECKING

from .numbers import Help, real, whole

if TYPE_CHECKING:
    from ..data_check import Report

HELP = 'Check your own data set (check), or make one of what an annotation tool exports (import).'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest='what', required=True, metavar='WHAT')
    check = verbs.add_parser(
        'check', help='read every file, count the classes, draw a contact sheet',
        formatter_class=Help,
        description='Read every image and label once; print the share of every class and all that is wrong; '
        'draw a contact sheet: image, labels and blend of the images that show most of the rarest classes. '
        'Exit code 0: this can be trained on; 1: training would refuse it, the output says why.')
    check.add_argument('folder', type=Path, help='data set: images/, labels/ and labels.yaml')
    check.add_argument('--data', default='folder', help='layout: folder, camvid or cityscapes')
    check.add_argument('--split', nargs='+', default=[], help='default for folder: all that there are')
    check.add_argument('--sheet', type=Path, metavar='FILE.png', default=argparse.SUPPRESS,
                       help='contact sheet; default: FOLDER-check.png, here')
    check.add_argument('--rows', type=whole(1, 1000), default=12, help='images on the contact sheet')
    take = verbs.add_parser(
        'import', help='make a data set of what an annotation tool exports',
        formatter_class=Help,
        description='Recognise what a folder or zip file holds, and make a data set of it: masks (palette, '
        'RGB or ids) in images/ and labels/ or beside the images, Pascal VOC, CVAT, Roboflow, '
        'Cityscapes-style folders, COCO (polygons and run lengths), Labelme. Exit code 0: everything was '
        'converted; 3: something was left out, the output says what; 1: nothing was made.')
    take.add_argument('source', type=Path, help='folder or zip file')
    take.add_argument('out', type=Path, metavar='DEST', help='folder to make')
    take.add_argument('--images', type=Path, metavar='FOLDER',
                      help='where the images are, if the source holds labels only')
    take.add_argument('--labels', type=Path, metavar='FILE.yaml', help='classes of masks, as in '
                      'config/labels/camvid.yaml; default: what lies beside the masks')
    take.add_argument('--classes', nargs='+', default=[], metavar='NAME',
                      help='names of the classes of masks, in the order of their ids')
    take.add_argument('--unlabeled', choices=('background', 'void'), default=argparse.SUPPRESS,
                      help='what no polygon covers: a class of its own, the default, or void, which training '
                      'passes over')
    take.add_argument('--split', type=real(0, 1), metavar='SHARE',
                      help='share of the images for train, the rest is val; sequences, or blocks of '
                      'consecutive images, stay whole; default: the splits of the source')
    take.add_argument('--seed', type=whole(0), default=argparse.SUPPRESS,
                      help='of --split: another one sets other images apart; default: 0')


def run(args: argparse.Namespace) -> int:
    return _check(args) if args.what == 'check' else _import(args)


def _import(args: argparse.Namespace) -> int:
    from .. import data_import, labels
    unlabeled, seed = getattr(args, 'unlabeled', None), getattr(args, 'seed', None)
    if seed is not None and args.split is None:
        raise data_import.AnnotationError('--seed is of --split; give --split too, such as --split 0.8')
    done = data_import.convert(
        args.source, args.out, images=args.images, labels=labels.load(args.labels) if args.labels else None,
        names=args.classes, share=args.split, seed=seed or 0,
        background=None if unlabeled is None else unlabeled == 'background')
    print(f'{args.source}: {done.kind}')
    for note in done.notes:
        print(f'note: {note}')
    for text in done.left_out[:10]:
        print(f'left out: {text}')
    if done.left_out[10:]:
        print(f'left out: {len(done.left_out) - 10} more')
    print(f'{args.out}: {", ".join(f"{n} images in {split}" for split, n in done.counts.items())}; classes: '
          f'{", ".join(done.labels.names)}')
    print(f'next: lightseg data check {shlex.quote(str(args.out))}')
    return 3 if done.left_out else 0


def _check(args: argparse.Namespace) -> int:
    from .. import contact_sheet, data_check, datasets
    own = args.data == 'folder'
    reports = []
    splits = args.split or (datasets.splits(args.folder) if own else ['trainval']) or ['all']
    # A folder in images/, or a link to one, may be there for another purpose.
    others = [s for s in splits if own and not args.split and s != 'all'
              and not (args.folder / 'labels' / s).is_dir()]
    for split in [s for s in splits if s not in others] or splits:
        faults = datasets.Faults()
        dataset = datasets.folder(split, args.folder, faults) if own else \
            datasets.load(args.data, split, args.folder)
        reports.append(data_check.check(dataset, faults=faults))
    print(data_check.table(reports))
    # Splits beside the one that is trained on need not show every class.
    trained = [r for r in reports if r.dataset.split.split(':')[0] in ('train', 'trainval', 'all')] or reports
    problems = [text for r in reports for text in r.problems]
    warnings = [f'images/{s} is left out: there is no labels/{s}' for s in others]
    warnings += data_check.alike(reports[0].dataset.labels) + data_check.shared(reports)
    for r in reports:
        (problems if r in trained else warnings).extend(f'{r.dataset.split}: {text}' for text in r.empty)
        warnings += [f'{r.dataset.split}: {text}' for text in (r.mixed(), *r.warnings) if text]
    for kind, texts in (('PROBLEM', problems), ('warning', warnings)):
        for text in texts:
            print(f'{kind}: {text}')
    if any(r.pairs for r in reports):
        # Not by the name in labels.yaml, which several imports of one export share.
        path = getattr(args, 'sheet', None) or Path(f'{args.folder.resolve().name}-check.png')
        contact_sheet.write(reports, path, args.rows)
        print(f'contact sheet: {path}')
    print(_next(args, reports, problems))
    return int(bool(problems))


def _next(args: argparse.Namespace, reports: 'list[Report]', problems: list[str]) -> str:
    """Say what to do next."""
    folder = shlex.quote(str(args.folder))
    if any('coloured PNG' in text or 'turns such labels' in text for text in problems):
        return f'next: lightseg data import {folder} NEW_FOLDER converts such labels'
    if problems:
        return f'next: correct {len(problems)} problem{"s" * (len(problems) > 1)}; training refuses to start'
    splits = [r.dataset.split for r in reports]
    split = next((s for s in ('train', 'trainval', 'all') if s in splits), splits[0])
    # Few images: start from what the packaged weights know of edges and textures.
    start = ' --init laanet --lr 1e-3' if args.data == 'folder' else ''
    command = f'lightseg train --model laanet{start} --data {args.data} --data-root {folder} --split {split}'
    held = next((s for s in ('val', 'test') if s in splits and s != split), None)
    trained = reports[splits.index(split)]
    sequences = trained.dataset.sequences
    if held:
        command += f' --validate {held}'
    elif len(sequences) > 1:
        command += f' --hold-out {min(sequences, key=lambda name: sequences[name]) or "SEQUENCE"}'
    else:
        return (f'next: lightseg data import {folder} NEW_FOLDER --split 0.8 sets images for validation '
                'apart')
    used = [r for r in reports if r.dataset.split in (split, held)]
    if any(r.mixed() for r in used):
        command += f' {trained.size()}'
        return f'next: {command} (or another size: images are scaled to fit into it, nothing is stretched)'
    return f'next: {command}'
