# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`lightseg VERB`: imports the verb's module and runs it; an error is one line and exit code 1."""
import argparse
from collections.abc import Iterator
from contextlib import contextmanager
import importlib
import io
import logging
import os
import select
import signal
import sys
import threading

from .. import __version__
from ..texts import error_line
from .numbers import Help

# Each verb with its line in --help. The module lightseg_ros.cli.<verb> is imported when the verb is called.
VERBS = {
    'info': 'show the networks, the weights and their figures',
    'demo': 'run a camera node and a segmentation node through DDS; writes pictures and figures',
    'evaluate': 'score a network on every frame of a data set or of bags',
    'replay': 'play a bag live to a segmentation node and score its labels',
    'compare': 'show results of evaluate or replay side by side',
    'bag': 'show what is in a bag; make a bag from a folder of images',
    'data': 'check your own data set; make one from what an annotation tool exports',
    'train': 'train a network',
    'train-all': 'train all networks side by side, within a time limit',
    'folds': 'train once for each held-out sequence, to compare recipes on unseen drives',
    'average': 'average the weights of several files into one network',
    'recalibrate': 'recompute the batch-norm statistics of trained weights',
    'calibrate': 'fit the temperature that makes the confidence honest',
    'export': 'write a network as ONNX',
    'bench': 'measure how fast the networks run here, beside plain torch and the roofline',
}


def main(argv: list[str] | None = None) -> int:
    """Run a verb; return its exit code."""
    name = ''
    _open_streams()
    with _signals() as interrupted:
        try:
            args = _parser().parse_args((sys.argv[1:] if argv is None else argv)[:1])
            name = args.verb
            code = _run(name, sys.argv[2:] if argv is None else argv[1:])
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return 130
        except Exception as e:
            if interrupted.is_set():  # numpy, for one, makes an ImportError of a Ctrl-C while it is imported
                return 130
            if isinstance(e, BrokenPipeError) and _unread():
                return 141  # as of a program that SIGPIPE ends
            # Our own errors are ValueErrors whose text says what to do; a traceback would hide it.
            print(f'ERROR: {_missing(name, e) or error_line(e)}', file=sys.stderr)
            return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='lightseg', description='Lightweight semantic segmentation for ROS 2.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='verbs:\n' + '\n'.join(f'  {verb:<12}{text}' for verb, text in VERBS.items())
               + '\n\nlightseg VERB --help lists the arguments of a verb.')
    parser.add_argument('--version', action='version', version=f'lightseg_ros {__version__}')
    parser.add_argument('verb', choices=VERBS, metavar='VERB')
    return parser


def _run(name: str, arguments: list[str]) -> int:
    verb = importlib.import_module(f'.{name.replace("-", "_")}', __package__)
    parser = argparse.ArgumentParser(prog=f'lightseg {name}', description=verb.HELP,
                                     formatter_class=Help)
    verb.add_arguments(parser)
    # Libraries report each of their steps at level INFO.
    logging.basicConfig(level=logging.WARNING, format='%(levelname)s: %(message)s')
    logging.getLogger(__name__.partition('.')[0]).setLevel(logging.INFO)
    return verb.run(parser.parse_args(arguments)) or 0


def _open_streams() -> None:
    """Make sure that there are streams to print to, and that they take every text."""
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:  # the caller closed it; else the next file would get its descriptor
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be text, and a terminal may know ASCII only.
        sys.stdout.reconfigure(errors='backslashreplace')


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """
    Let SIGTERM end a verb as Ctrl-C does: what it began is removed, and its nodes and workers end.

    Yields an event that a Ctrl-C sets.
    """
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def end(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.signal(number, handler)
              for number, handler in ((signal.SIGINT, interrupt), (signal.SIGTERM, end))
              if signal.getsignal(number) != signal.SIG_IGN}  # as in the background of a shell
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _missing(verb: str, error: Exception) -> str:
    """Say which package a verb needs, if the error is that another one than ours is not installed."""
    package = (error.name or '').partition('.')[0] if isinstance(error, ModuleNotFoundError) else ''
    if package in ('', 'lightseg_ros'):
        return ''
    todo = "run in the checkout: pip install '.[all]'"
    if package == 'rclpy':
        todo = "source the setup.bash of ROS 2, or run in the checkout: pip install '.[all,ros]'"
    return f'"lightseg {verb}" needs the Python package {package}, which is not installed; {todo}'


def _unread() -> bool:
    """Whether the reader of the output has gone, as `head` does; if so, what is left goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
