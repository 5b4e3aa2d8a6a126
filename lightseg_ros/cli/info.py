# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg info`: what the networks cost, and which weights are at hand."""
import argparse
import json

from ..sizes import argument

HELP = ("Show all networks (parameters, multiply-accumulates, the papers' figures) and the packaged "
        'weights; or one network with its options and blocks; or what a weights file says about itself.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', nargs='?', metavar='NAME',
                        help='network, packaged weights, or the path of a weights file')
    parser.add_argument('--classes', type=int, default=19, help='of the network that is shown')
    parser.add_argument('--resolution', type=argument, default='1024x512', metavar='WxH',
                        help='that it is shown at')
    parser.add_argument('--options', type=json.loads, default={}, metavar='JSON',
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
                f'{args.name!r} is no network (known: {", ".join(networks.NETWORKS)}), and {e}') from e
        card = weights.read_card(path)
        print(info.card_page(path, card), end='\n\n')
        print(info.page(card.network, info.describe(
            card.network, len(card.labels), card.resolution, **card.options)))
