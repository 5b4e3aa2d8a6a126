# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg info`: shows the networks, their costs and the packaged weights."""
import argparse

from ..sizes import argument
from .numbers import json_object, whole

HELP = ("Show all networks with their parameters, multiply-accumulates and the papers' figures, and the "
        'packaged weights; or one network with its options and blocks; or the card (the metadata) of a '
        'weights file.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', nargs='?', metavar='NAME',
                        help='network, packaged weights, or path of a weights file')
    parser.add_argument('--classes', type=whole(1, 255), default=19, help='number of classes of the network')
    parser.add_argument('--resolution', type=argument, default='1024x512', metavar='WxH',
                        help='size of its input')
    parser.add_argument('--options', type=json_object, default={}, metavar='JSON',
                        help="the network's options, for example '{\"svn\": [8]}'")


def run(args: argparse.Namespace) -> None:
    from .. import info, networks, weights
    if not args.name:
        print(info.overview())
    elif args.name in networks.NETWORKS:
        print(info.page(args.name, info.describe(args.name, args.classes, args.resolution, **args.options)))
    else:
        try:
            path = weights.resolve(args.name)
        except weights.WeightsError as e:
            raise networks.NetworkError(
                f'{args.name!r} is not a network (known: {", ".join(networks.NETWORKS)}), and {e}') from e
        card = weights.read_card(path)
        print(info.card_page(path, card), end='\n\n')
        print(info.page(card.network, info.describe(
            card.network, len(card.labels), card.resolution, **card.options)))
