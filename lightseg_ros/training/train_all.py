# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg train-all`: all networks side by side on one machine, and what must travel there and back."""
import argparse
import csv
from dataclasses import dataclass
import hashlib
import io
import os
from pathlib import Path
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any, IO

from ..training.recipes import RECIPES

HELP = 'Train all networks as parallel processes; a call that ran out of time is gone on with by the next.'
RESERVE_S = 20.0  # what runs need at their end for their checkpoints, and we for what is left of them
PART = '{}-of-{}.runs.tar'


class TravelError(ValueError):
    """Networks that are not known, or parts of an archive that are not whole; the text says which."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--networks', nargs='+', metavar='NAME', help='default: those of the five papers')
    parser.add_argument('--data', default='camvid', help='camvid, cityscapes, or folder (your own)')
    parser.add_argument('--data-root', help='its folder, or the archive that --pack made')
    parser.add_argument('--split', default='trainval', help='split to train on')
    parser.add_argument('--validate', default='', metavar='SPLIT', help='split to score while training')
    parser.add_argument('--test', default='', metavar='SPLIT',
                        help='split to score finished weights on, once; goes into their cards')
    parser.add_argument('--recipe', default='best', choices=RECIPES)
    parser.add_argument('--out', type=Path, default=Path('runs'), help='gets a folder for each')
    parser.add_argument('--device', default='auto', help='as in lightseg train')
    parser.add_argument('--mode', default='auto', choices=('auto', 'eager', 'graph', 'compile'),
                        help='as in lightseg train; a run that fails in it is tried again in eager')
    parser.add_argument('--parallel', type=int, default=0, metavar='N', help='processes at a time; 0: all')
    parser.add_argument('--time-limit', type=float, default=float('inf'), metavar='SECONDS',
                        help='training and --leave end within this; --test comes on top')
    travel = parser.add_argument_group('to and from a machine')
    travel.add_argument('--pack', type=Path, metavar='FILE', help='only write the data set into FILE')
    travel.add_argument('--max-mib', type=float, default=60.0, help='size that it may have')
    travel.add_argument('--from', dest='come', type=Path, metavar='DIR', help='begin with what --leave left')
    travel.add_argument('--leave', type=Path, metavar='DIR',
                        help='leave finished weights and the checkpoints of the others there, in parts')
    travel.add_argument('--part-mib', type=float, default=15.0, help='size of a part')
    parser.add_argument('train', nargs='*', metavar='-- ARGUMENT', help='more arguments for lightseg train')


def run(args: argparse.Namespace) -> int | None:
    deadline = time.monotonic() + args.time_limit
    args.reserve_s = min(RESERVE_S, args.time_limit / 4)
    if args.leave:
        import torch  # noqa: F401, now: at the end every second counts
    if args.pack:
        from .. import datasets
        splits = [s for s in (args.split, args.validate, args.test) if s]
        note = datasets.pack(args.data, args.data_root, splits, args.pack, int(args.max_mib * 2 ** 20))
        print(f'{args.pack}: {args.pack.stat().st_size / 2 ** 20:.1f} MiB, {note}')
        return None
    from .. import networks
    args.networks = args.networks or list(networks.PAPER_NETWORKS)
    if unknown := [n for n in args.networks if n not in networks.NETWORKS]:
        raise TravelError(f'unknown networks {", ".join(unknown)}; known: {", ".join(networks.NETWORKS)}')
    args.out.mkdir(parents=True, exist_ok=True)
    if args.come:
        unpack(args.come, args.out)
    with tempfile.TemporaryDirectory() as scratch:
        if args.data_root and Path(args.data_root).is_file():
            with tarfile.open(args.data_root) as tar:
                tar.extractall(scratch, filter='data')
            args.data_root = scratch
        try:
            failed = train_side_by_side(args, deadline)
            if args.test:
                failed += score(args)
        finally:  # whatever went wrong, what was trained comes home
            if args.leave:
                parts = leave(args.out, args.leave, int(args.part_mib * 2 ** 20))
                mib = sum(p.stat().st_size for p in parts) / 2 ** 20
                print(f'{len(parts)} parts in {args.leave}, {mib:.1f} MiB')
    finished = [n for n in args.networks if weights_file(args.out, n)]
    open_ones = [n for n in args.networks if n not in finished]
    print(f'finished: {", ".join(finished) or "none"}; to be gone on with by the same command: '
          f'{", ".join(open_ones) or "none"}')
    return 1 if failed else 0


@dataclass
class Process:
    """`lightseg train` of one network."""

    network: str
    popen: subprocess.Popen
    log: IO[bytes]
    mode: str


def train_side_by_side(args: argparse.Namespace, deadline: float) -> list[str]:
    """Train what is not finished; returns the networks whose training failed. None outlives the call."""
    running: list[Process] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _train(args, deadline, running)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            process.popen.kill()  # the checkpoint is whole at any moment
            process.popen.wait()
            process.log.close()


def _train(args: argparse.Namespace, deadline: float, running: list[Process]) -> list[str]:
    waiting = [n for n in args.networks if not weights_file(args.out, n)]
    at_once = args.parallel or len(waiting) or 1
    failed: list[str] = []
    told, said = time.monotonic(), ''
    while waiting or running:
        while waiting and len(running) < at_once and time.monotonic() < deadline - args.reserve_s:
            running.append(start(args, waiting.pop(0), args.mode, deadline, at_once))
        if not running:
            break
        time.sleep(0.5)
        late = time.monotonic() > deadline - args.reserve_s / 2
        for process in list(running):
            if late:
                process.popen.kill()
                process.popen.wait()
            code = process.popen.poll()
            if code is None:
                continue
            process.log.close()
            running.remove(process)
            if code == 0 or late:
                continue
            reason = last_line(args.out / process.network / 'train.log')
            if process.mode != 'eager':
                print(f'{process.network} failed in mode {process.mode} ({reason}); again in mode eager',
                      flush=True)
                running.append(start(args, process.network, 'eager', deadline, at_once))
            else:
                print(f'{process.network} failed: {reason}', flush=True)
                failed.append(process.network)
        if time.monotonic() - told > 10 or not running:
            told, lines = time.monotonic(), progress(args)
            if lines != said:
                print(lines, flush=True)
            said = lines
    return failed


def start(args: argparse.Namespace, network: str, mode: str, deadline: float, at_once: int) -> Process:
    folder = args.out / network
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', __package__, 'train', '--model', network, '--data', args.data,
               '--split', args.split, '--recipe', args.recipe, '--out', str(folder), '--device', args.device,
               '--mode', mode, '--resume']
    for name in ('validate', 'data_root'):
        if getattr(args, name):
            command += ['--' + name.replace('_', '-'), getattr(args, name)]
    left = deadline - time.monotonic() - args.reserve_s
    if left != float('inf'):
        command += ['--time-limit', f'{left:.1f}']
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join(p for p in (root, os.environ.get('PYTHONPATH')) if p),
        'OMP_NUM_THREADS': str(max(1, (os.cpu_count() or 1) // at_once))}
    log = open(folder / 'train.log', 'ab')  # noqa: SIM115, closed when the process ends
    return Process(network, subprocess.Popen(command + args.train, stdout=log, stderr=log, env=environment),
                   log, mode)


def progress(args: argparse.Namespace) -> str:
    """One line: the last row of each network's log."""
    parts = []
    for network in args.networks:
        rows: list[dict[str, Any]] = []
        path = args.out / network / 'log.csv'
        if path.is_file():
            with open(path, newline='') as f:
                rows = list(csv.DictReader(f))
        if rows:
            miou = next((f' mIoU {r["miou"]}' for r in reversed(rows) if r['miou']), '')
            parts.append(f'{network} epoch {rows[-1]["epoch"]} loss {rows[-1]["loss"]}{miou} '
                         f'{rows[-1]["images_per_s"]} images/s')
        else:
            parts.append(f'{network} starts')
    return ' | '.join(parts)


def last_line(log: Path) -> str:
    lines = log.read_text(errors='replace').replace('\r', '\n').strip().splitlines()
    return lines[-1].strip() if lines else 'it said nothing'


def weights_file(out: Path, network: str) -> Path | None:
    """Find the finished weights of a network, if there are."""
    return next(iter(sorted((out / network).glob(f'{network}-*.safetensors'))), None)


def score(args: argparse.Namespace) -> list[str]:
    """
    Score finished weights that have not been yet, into their cards; print the cards as Markdown.

    Returns the networks that could not be scored.
    """
    from .. import weights
    from . import main
    rows: list[str] = []
    failed: list[str] = []
    for network in args.networks:
        path = weights_file(args.out, network)
        if not path:
            continue
        if args.test not in weights.read_card(path).metrics:
            main(['evaluate', '--model', str(path), '--data', args.data, '--split', args.test, '--record',
                  '--device', args.device] + (['--data-root', args.data_root] if args.data_root else []))
        card = weights.read_card(path)
        found = card.metrics.get(args.test)
        if found is None:
            failed.append(network)  # evaluate has said why
            continue
        iou = ' | '.join(f'{found["iou"].get(name, float("nan")):.1f}' for name in card.labels.names)
        if not rows:
            rows = [f'| network | recipe | epochs | {args.test} mIoU | {" | ".join(card.labels.names)} |',
                    '|---' * (4 + len(card.labels)) + '|']
        rows.append(f'| {network} | {args.recipe} | {card.recipe["epochs"]} | {found["miou"]:.2f} | {iou} |')
    print('\n'.join(rows), flush=True)
    return failed


def leave(out: Path, to: Path, part_bytes: int) -> list[Path]:
    """
    Write finished weights, logs and curves, and the checkpoints of unfinished runs, as one archive in parts.

    A checkpoint's optimiser moments travel in bfloat16, which makes it a quarter smaller and a resumed run
    differ by that rounding. The archive's last 32 bytes are the SHA-256 of those before.
    """
    import torch
    to.mkdir(parents=True, exist_ok=True)
    for old in to.glob(PART.format('*', '*')):
        old.unlink()
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode='w') as tar:
            for folder in sorted(p for p in out.iterdir() if p.is_dir()):
                done = weights_file(out, folder.name)
                for path in sorted(folder.iterdir()):
                    if path.suffix in ('.safetensors', '.csv', '.png', '.log'):
                        tar.add(path, path.relative_to(out))
                checkpoint = folder / 'last.pt'
                if checkpoint.is_file() and not done:
                    state = torch.load(checkpoint, map_location='cpu', weights_only=True)
                    for moments in state['optimizer']['state'].values():
                        moments.update({k: v.bfloat16() for k, v in moments.items() if k != 'step'
                                        and isinstance(v, torch.Tensor) and v.is_floating_point()})
                    with tempfile.NamedTemporaryFile() as small:
                        torch.save(state, small)
                        small.flush()
                        tar.add(small.name, checkpoint.relative_to(out))
        whole.seek(0)
        sha = hashlib.sha256()
        while piece := whole.read(2 ** 20):
            sha.update(piece)
        whole.write(sha.digest())
        count = -(-whole.tell() // part_bytes)
        whole.seek(0)
        parts = [to / PART.format(i + 1, count) for i in range(count)]
        for part in parts:
            part.write_bytes(whole.read(part_bytes))
    return parts


def unpack(come: Path, out: Path) -> None:
    """
    Join the parts that `leave` left and unpack them into the folders of the runs, whole or not at all.

    A run that is further here than there stays as it is. `TravelError` if a part is missing or damaged.
    """
    found = sorted(p.name for p in come.glob(PART.format('*', '*')))
    count = int(found[0].split('.')[0].split('-of-')[1]) if found else 1
    parts = [come / PART.format(i + 1, count) for i in range(count)]
    if found != sorted(p.name for p in parts):
        raise TravelError(f'{come} holds {", ".join(found) or "no part"}; expected '
                          f'{", ".join(p.name for p in parts)}')
    archive = b''.join(part.read_bytes() for part in parts)
    if hashlib.sha256(archive[:-32]).digest() != archive[-32:]:
        raise TravelError(f'the parts in {come}, {len(archive)} bytes, are not what was left: copy them '
                          'again')
    with tempfile.TemporaryDirectory(dir=out, prefix='.unpack') as scratch:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(scratch, filter='data')
        for folder in sorted(Path(scratch).iterdir()):
            here = out / folder.name
            if _steps(here) > _steps(folder):
                print(f'{here} is further than what {come} holds: left as it is')
                continue
            here.mkdir(exist_ok=True)
            for path in folder.iterdir():
                os.replace(path, here / path.name)


def _steps(folder: Path) -> float:
    """How far a run is: the step of its checkpoint, infinity once it has weights, -1 before."""
    import torch
    if weights_file(folder.parent, folder.name):
        return float('inf')
    try:
        return float(torch.load(folder / 'last.pt', map_location='cpu', weights_only=True)['step'])
    except Exception:  # none, or one that can't be read
        return -1.0
