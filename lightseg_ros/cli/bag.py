# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg bag`: what is in a bag, and bags from folders."""
import argparse
from pathlib import Path

HELP = 'Show what is in a bag (info), or make one from a folder of images (from-folder).'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest='what', required=True, metavar='WHAT')
    info = verbs.add_parser('info', help='list topics', description='List the topics of a bag, without ROS.')
    info.add_argument('bag', type=Path, help='bag to read')
    make = verbs.add_parser(
        'from-folder', help='make a bag', formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Make a bag with image, camera_info and label topics. The last number in a file name is '
        'the frame number, which gives the stamp with --rate. A number of 16 digits or more is the stamp '
        'itself, in ns.')
    make.add_argument('images', type=Path, help='folder of images')
    make.add_argument('out', type=Path, help='bag to write: NAME.mcap for one file, else a folder')
    make.add_argument('--label-dir', type=Path,
                      help="folder of label images with the names of the images, in the data set's own ids")
    make.add_argument('--labels', default='camvid', help='label set of --label-dir: a name, or a YAML file')
    make.add_argument('--rate', type=float, default=30.0, help='frame numbers per second')
    make.add_argument('--image-topic', default='/camera/image_raw', help='topic of the images')
    make.add_argument('--label-topic', default='/camera/label', help='topic of the label images')
    make.add_argument('--encoding', default='rgb8', choices=('rgb8', 'bgr8', 'mono8', 'png', 'jpeg'),
                      help='encoding of the images; png and jpeg make CompressedImage')
    make.add_argument('--storage', default='mcap', choices=('mcap', 'sqlite3'),
                      help='storage format if OUT is a folder')
    make.add_argument('--frame-id', default='camera', help='frame_id of all headers')


def run(args: argparse.Namespace) -> None:
    from .. import bags, labels
    if args.what == 'info':
        with bags.Bag(args.bag) as bag:
            for topic in bag.topics.values():
                print(f'{topic.count:>8}  {topic.type:<34}  {topic.name}')
            for note in bag.notes:
                print(note)
        return
    if args.rate <= 0:
        raise bags.BagError(f'rate is {args.rate:g}; expected more than 0')
    count = bags.from_folder(
        args.images, args.out, truth=args.label_dir, labels=labels.load(args.labels), rate=args.rate,
        image_topic=args.image_topic, label_topic=args.label_topic, encoding=args.encoding,
        storage=args.storage, frame_id=args.frame_id)
    print(f'{args.out}: {count} frames')
