# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What this machine is: CPU, instructions, resident memory, versions; and the stamp of every result."""
from datetime import datetime, timezone
import importlib.metadata
import os
from pathlib import Path
import platform
from typing import Any

from . import __version__

# Names on PyPI of the packages whose versions change results or speed.
PACKAGES = ('torch', 'numpy', 'opencv-python-headless', 'opencv-python', 'openvino', 'onnxruntime', 'triton')


def processor_name() -> str:
    """Return the name that the CPU gives itself, such as 'AMD EPYC 9654'; else the architecture's."""
    for line in _cpuinfo().splitlines():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AVX512-BF16 or AMX), as Linux tells."""
    flags = _cpuinfo().split()
    return 'avx512_bf16' in flags or 'amx_bf16' in flags


def resident_mb(process: int | str = 'self') -> float:
    """Return the MB of memory (10^6 bytes) that this process, or the one with that number, has in RAM."""
    with open(f'/proc/{process}/statm') as f:
        return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def free_bytes() -> int:
    """
    Return the bytes of memory that a process can still have without swapping.

    It is what Linux calls available, or less where a container has a limit of its own (cgroup 2).
    """
    free = int(_field('/proc/meminfo', 'MemAvailable') or 1 << 52) * 1024
    try:
        limit = Path('/sys/fs/cgroup/memory.max').read_text().strip()
        used = int(Path('/sys/fs/cgroup/memory.current').read_text())
    except (OSError, ValueError):
        return free
    cached = int(_field('/sys/fs/cgroup/memory.stat', 'inactive_file') or 0)  # given back when it is needed
    return min(free, int(limit) - used + cached) if limit.isdigit() else free


def _field(path: str, name: str) -> str:
    """Return the first word behind a name in a file of such lines; '' where it is not there."""
    try:
        for line in Path(path).read_text().splitlines():
            words = line.replace(':', ' ').split()
            if words[:1] == [name]:
                return words[1]
    except OSError:
        pass
    return ''


def versions() -> dict[str, str]:
    """Return the versions of lightseg_ros, Python, the system and those of PACKAGES that are installed."""
    out = {'lightseg_ros': __version__, 'python': platform.python_version(),
           'system': f'{platform.system()} {platform.machine()}'}
    for package in PACKAGES:
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def stamp(device: str = '') -> dict[str, Any]:
    """
    Return what every result is stamped with, so that two of them can be compared fairly.

    `date` (UTC, ISO 8601), `device` (the name given, or the CPU's), `processor`, `cores` that this process
    may use, `load` (runnable processes, mean of the last minute) and `versions`.
    """
    return {'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
            'device': device if device not in ('', 'CPU') else processor_name(),
            'processor': processor_name(),
            'cores': len(os.sched_getaffinity(0)), 'load': round(os.getloadavg()[0], 2),
            'versions': versions()}


def _cpuinfo() -> str:
    try:
        return Path('/proc/cpuinfo').read_text()
    except OSError:
        return ''
