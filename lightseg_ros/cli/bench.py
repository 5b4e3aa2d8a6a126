# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg bench`: how fast the networks run here, and how fast they could."""
import argparse
from pathlib import Path

HELP = ('Measure the networks beside plain torch, after comparing their labels; the last line is JSON. With '
        '--ros, measure the node through DDS; with --plot or --table, show results that were written.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('networks', nargs='*', metavar='NETWORK',
                        help='packaged networks or paths of weights files; none: all five, laanet with --ros')
    parser.add_argument('--resolutions', nargs='+', metavar='WxH',
                        help='of frames and network, 480x360 if not given; with --ros of images')
    parser.add_argument('--contenders', nargs='+', default=['auto:auto'], metavar='BACKEND:PRECISION',
                        help='openvino, onnxruntime, torch, torch-compile; float32, bfloat16, float16')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--threads', type=int, default=0, help='of the processor, 0: one for each core')
    parser.add_argument('--rounds', type=int, default=10, help='how often the contenders take turns')
    parser.add_argument('--startup', action='store_true', help='measure process start to first label as well')
    parser.add_argument('--ros', action='store_true', help='measure the segmentation node through DDS')
    parser.add_argument('--rates', nargs='+', type=float, default=[10.0, 30.0, 60.0], metavar='HZ',
                        help='of images with --ros')
    parser.add_argument('--seconds', type=float, default=5.0,
                        help='of each measurement with --ros; some hundreds with one rate are a soak test')
    parser.add_argument('--plot', nargs='+', type=Path, metavar='RESULT.json',
                        help='draw accuracy against speed against parameters, to --out')
    parser.add_argument('--table', nargs='+', type=Path, metavar='RESULT.json',
                        help='print results as Markdown tables')
    parser.add_argument('--out', type=Path, help='file for the result (JSON), or for the drawing (PNG)')


def run(args: argparse.Namespace) -> int | None:
    import json

    from .. import networks
    from ..benchmark import measure, report
    if args.table:
        print(report.table(args.table))
        return None
    if args.plot:
        print(report.plot(args.plot, args.out or Path('out/bench.png')))
        return None
    from ..sizes import parse_size
    sizes = [parse_size(r) for r in args.resolutions or ()]
    contenders = [measure.parse_contender(c) for c in args.contenders]
    if args.ros:
        from ..live.bench import bench_ros, SIZES
        result = bench_ros((args.networks or ['laanet'])[0], device=args.device, contender=contenders[0],
                           threads=args.threads, seconds=args.seconds, sizes=sizes or SIZES, rates=args.rates)
    else:
        names = args.networks or networks.PAPER_NETWORKS
        result = measure.bench(names, sizes or [(480, 360)], contenders, device=args.device,
                             threads=args.threads, rounds=args.rounds, out=args.out)
        print('\n'.join(report.means(result)))
        if args.startup:
            first = contenders[0]
            result['startup_s'] = measure.startup(names[0], device=args.device, backend=first.backend,
                                                precision=first.precision)
    if args.out:
        report.write(result, args.out)
    print(json.dumps(result))
    return None
