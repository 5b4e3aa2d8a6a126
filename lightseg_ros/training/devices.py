# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run trains: its device, its precision there, and turns for what parallel runs would disturb."""
from collections.abc import Iterator
from contextlib import contextmanager
import fcntl
import functools
import logging
import os
import re

import torch

from .. import cuda_graphs, files, machine

log = logging.getLogger(__name__)


class TrainError(ValueError):
    """A training run that cannot start or continue; the text says why and what to do."""


def named_device(name: str) -> torch.device:
    """
    Return the device with a name; 'auto' is the GPU (under torchrun the process's own), else the CPU.

    `TrainError` where it is not there. Nothing is opened on a GPU.
    """
    if name == 'auto':
        name = f'cuda:{os.environ.get("LOCAL_RANK", 0)}' if torch.cuda.is_available() else 'cpu'
    if not re.fullmatch(r'cpu|cuda(:\d+)?', name):
        raise TrainError(f"device is {name!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if name == 'cpu':
        return torch.device(name)
    # Not torch's own number, of which it keeps 8 bits.
    index, count = int(name[5:] or 0), torch.cuda.device_count()
    if index >= count:
        raise TrainError(f'device is {name!r}, but torch {torch.__version__} sees {count} CUDA devices; use '
                         "'cpu' or 'auto', or install a torch build and a driver for the GPU")
    return torch.device('cuda', index)


def find_device(name: str) -> torch.device:
    """
    Return the device with a name after it has computed something; a GPU becomes the current one.

    `TrainError` where it is not there or can't be used. With 'auto' that is a warning, and the CPU.
    """
    device = named_device(name)
    if device.type != 'cuda':
        return device
    if reason := cuda_graphs.unusable(device):
        if name == 'auto' and 'WORLD_SIZE' not in os.environ:  # all processes of torchrun must be alike
            _warn_once(f"the GPU is left alone, since torch can't use it: {reason}")
            return torch.device('cpu')
        raise TrainError(f"device is '{device}', but torch {torch.__version__} can't use it: {reason}. "
                         "Install a torch build for this GPU and its driver, or choose 'cpu'")
    torch.cuda.set_device(device)
    return device


@functools.cache
def _warn_once(text: str) -> None:
    log.warning('%s', text)


def find_precision(name: str, device: torch.device) -> str:
    """Return the precision that 'auto' stands for; a CPU without instructions for bfloat16 is slow in it."""
    if name != 'auto':
        return name
    fast = torch.cuda.is_bf16_supported() if device.type == 'cuda' else machine.has_bfloat16()
    return 'bfloat16' if fast else 'float32'


def device_name(device: torch.device) -> str:
    """Return a GPU's name, or the number of threads of a CPU."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU, {torch.get_num_threads()} threads'


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process of this user at a time run the block; all of them, where no lock file can be made."""
    try:
        # In a folder that others can't enter: in /tmp they could put a link there.
        fd = os.open(files.own_dir() / 'measuring.lock', os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        log.warning('parallel runs may disturb the choice of a memory format: %s', e)
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
