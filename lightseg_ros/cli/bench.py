# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg bench`: measures how fast the networks run on this machine."""
import argparse
from pathlib import Path

from ..sizes import argument
from .numbers import real, whole

HELP = ('Measure how fast the networks run, and how much faster than plain torch, after a check that the '
        'labels agree. A line for each: network (input to logits, median), frame (image to labels on the '
        'host, median, p95 and p99), frames a second, CPU time summed over the threads, with how many times '
        'as fast as plain torch they are (x); roofline (what the hardware allows, and what limits it); the '
        'share of labels equal to those of plain torch; memory; trained or random weights. The last line is '
        'all of it as JSON. --ros measures the node through DDS instead. --plot and --table show results '
        'from files.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('networks', nargs='*', metavar='NETWORK',
                        help='packaged networks or paths of weights files; if none is given, all five, or '
                        'laanet with --ros')
    parser.add_argument('--resolutions', nargs='+', type=argument, metavar='WxH',
                        help='sizes of frames and network, 480x360 if not given; with --ros, sizes '
                        'of the images, 640x480 1280x720 1920x1080 if not given')
    parser.add_argument('--contenders', nargs='+', default=['auto:auto'], metavar='BACKEND:PRECISION',
                        help='pairs of backend and precision to measure, such as torch:float32 '
                        'openvino:bfloat16')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--threads', type=whole(0, 1024), default=0,
                        help='threads of the CPU; 0: one per core')
    parser.add_argument('--rounds', type=whole(1), default=10,
                        help='how often the contenders take turns, with five calls each time')
    parser.add_argument('--startup', action='store_true',
                        help='also measure the time from the start of a process to its first label')
    parser.add_argument('--ros', action='store_true',
                        help='measure the segmentation node through DDS: latency, loss, CPU and memory; what '
                        'subscribers to optional outputs cost the labels; and a node without subscribers')
    parser.add_argument('--rates', nargs='+', type=real(0.1, 1000), default=[10.0, 30.0, 60.0], metavar='HZ',
                        help='image rates of --ros')
    parser.add_argument('--seconds', type=real(0.1, 1e7), default=5.0,
                        help='length of each measurement of --ros; 600 or more make a soak test')
    parser.add_argument('--plot', nargs='+', type=Path, metavar='RESULT.json',
                        help='draw accuracy against speed and parameters to --out')
    parser.add_argument('--table', nargs='+', type=Path, metavar='RESULT.json',
                        help='print results as Markdown tables')
    parser.add_argument('--out', type=Path, help='file to write: the result as JSON, or the plot as PNG')


def run(args: argparse.Namespace) -> int | None:
    import json

    from .. import files, networks
    from ..benchmark import measure, report
    if args.table:
        print(report.table(args.table))
        return None
    if args.plot:
        print(report.plot(args.plot, args.out or Path('out/bench.png')))
        return None
    if args.out:
        files.try_to_write(args.out)
    contenders = [measure.parse_contender(c) for c in args.contenders]
    if args.ros:
        from ..live.bench import bench_ros, SIZES
        result = bench_ros((args.networks or ['laanet'])[0], device=args.device, contender=contenders[0],
                           threads=args.threads, seconds=args.seconds, sizes=args.resolutions or SIZES,
                           rates=args.rates)
    else:
        names = args.networks or networks.PAPER_NETWORKS
        result = measure.bench(names, args.resolutions or [(480, 360)], contenders, device=args.device,
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
