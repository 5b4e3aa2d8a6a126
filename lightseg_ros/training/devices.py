# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run trains: its device, its precision there, and turns for what parallel runs would disturb."""
from collections.abc import Iterator
from contextlib import contextmanager
import fcntl
import logging
import os
import re

import torch

from .. import files, machine

log = logging.getLogger(__name__)


class TrainError(ValueError):
    """A training run that cannot start or continue; the text says why and what to do."""


def find_device(name: str) -> torch.device:
    """Return the device with a name; 'auto' is the GPU (under torchrun the process's own), else the CPU."""
    if name == 'auto':
        name = f'cuda:{os.environ.get("LOCAL_RANK", 0)}' if torch.cuda.is_available() else 'cpu'
    try:
        if re.fullmatch(r'cuda:\d{3,}', name):
            raise RuntimeError('no machine has so many')  # and torch would take 8 bits of the number
        device = torch.device(name)
    except RuntimeError as e:
        raise TrainError(f'{name!r} is not a device: {e}') from e
    if device.type != 'cuda':
        return device
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise TrainError(f'device {name!r} does not exist; torch {torch.__version__} finds {count} CUDA '
                         'devices')
    torch.cuda.set_device(index)
    return torch.device('cuda', index)


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
