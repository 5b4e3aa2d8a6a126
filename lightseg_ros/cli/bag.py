# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg bag`: what is in a bag, bags from folders, and folders from bags."""
import argparse
from pathlib import Path

from . import scoring
from .numbers import Help, real, whole

HELP = ('Look into a bag (info), make one from a folder of images (from-folder), or write frames of one as '
        'images to be annotated (to-folder).')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest='what', required=True, metavar='WHAT')
    info = verbs.add_parser('info', help='list topics', description='List the topics of a bag, without ROS.')
    info.add_argument('bag', type=Path, help='bag to read')
    make = verbs.add_parser(
        'from-folder', help='make a bag', formatter_class=Help,
        description='Make a bag with image, camera_info and label topics. The last number in a file name is '
        'the frame number, which gives the stamp with --rate. A number of 16 digits or more is the stamp '
        'itself, in ns.')
    make.add_argument('images', type=Path, help='folder of images')
    make.add_argument('out', type=Path, help='bag to write: NAME.mcap for one file, else a folder')
    make.add_argument('--label-dir', type=Path,
                      help="folder of label images with the names of the images, in the data set's own ids")
    make.add_argument('--labels', default='camvid', help='label set of --label-dir: a name, or a YAML file')
    make.add_argument('--rate', type=real(1e-3), default=30.0, help='frame numbers a second')
    make.add_argument('--image-topic', default='/camera/image_raw', help='its topic')
    make.add_argument('--label-topic', default='/camera/label', help='its topic')
    make.add_argument('--encoding', default='rgb8', choices=('rgb8', 'bgr8', 'mono8', 'png', 'jpeg'),
                      help='png and jpeg make CompressedImage')
    make.add_argument('--storage', default='mcap', choices=('mcap', 'sqlite3'), help='of a folder')
    make.add_argument('--frame-id', default='camera', help='of the headers')
    take = verbs.add_parser(
        'to-folder', help='write frames as images', formatter_class=Help,
        description='Write frames of a bag, a video or a folder to OUT/images, named by their stamps, so '
        'that labels of the same names are found by "lightseg evaluate --label-dir": one frame a second, or '
        'those of the lowest confidence. --prelabel writes labels to start with to OUT/labels. Exit code 3: '
        'frames or files were left out, which the output names.')
    take.add_argument('bag', type=Path, metavar='RECORDING')
    take.add_argument('out', type=Path, help='folder to write')
    take.add_argument('--image-topic', help='default: the only image topic')
    take.add_argument('--value-range', default='full', metavar='RANGE',
                      help='what becomes 0 to 255 in 16-bit images: full, auto or MIN:MAX')
    scoring.add_selection_arguments(take)
    take.add_argument('--lowest-confidence', type=whole(0), default=0, metavar='COUNT',
                      help='so many frames whose mean confidence is lowest, searched in all frames, or in '
                      'those of --every')
    take.add_argument('--apart', type=real(0), default=2.0, metavar='SECONDS',
                      help='of --lowest-confidence: least distance of two frames')
    take.add_argument('--prelabel', action='store_true',
                      help="write the network's labels too, in the data set's own ids")
    scoring.add_model_arguments(take)


def run(args: argparse.Namespace) -> int:
    from .. import bag_writer, bags, labels
    if args.what == 'info':
        with bags.Bag(args.bag) as bag:
            for topic in bag.topics.values():
                print(f'{topic.count:>8}  {topic.type:<34}  {topic.name}')
            for note in bag.notes:
                print(note)
        return 0
    if args.what == 'to-folder':
        return _to_folder(args)
    if args.rate <= 0:
        raise bags.BagError(f'rate is {args.rate:g}; expected more than 0')
    notes: list[str] = []
    count = bag_writer.from_folder(
        args.images, args.out, truth=args.label_dir, labels=labels.load(args.labels), rate=args.rate,
        image_topic=args.image_topic, label_topic=args.label_topic, encoding=args.encoding,
        storage=args.storage, frame_id=args.frame_id, notes=notes)
    print(f'{args.out}: {count} frames', *notes, sep='\n')
    return 0


def _to_folder(args: argparse.Namespace) -> int:
    from .. import images
    from ..evaluation import extract
    lowest = args.lowest_confidence
    model = scoring.model_from(args) if lowest or args.prelabel else None
    count, failed, notes = extract.to_folder(
        args.bag, args.out, image_topic=args.image_topic,
        selection=scoring.selection_from(args, '1f' if lowest else '1.0'),
        value_range=images.parse_range(args.value_range), model=model, lowest=lowest,
        apart_ns=round(args.apart * 1e9), prelabel=args.prelabel)
    for text in (*notes, *failed[:5]):
        print(text)
    if failed[5:]:
        print(f'and {len(failed) - 5} more')
    print(f'{args.out / "images"}: {count} frames'
          + (f'; {args.out / "labels"}: labels to correct' if args.prelabel else ''))
    topic = f' --image-topic {args.image_topic}' if args.image_topic else ''
    print('next: annotate them; then, to train: lightseg data import EXPORT NEW_FOLDER --images '
          f'{args.out / "images"}; to score: lightseg evaluate {args.bag}{topic} --label-dir '
          f'{args.out / "labels"}')
    return 3 if failed else 0
