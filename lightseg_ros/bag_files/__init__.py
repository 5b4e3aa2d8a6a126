# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
The files that bags consist of (mcap, sqlite3, ROS 1), read as far as they are whole.

Recorders that are killed leave files without an index, cut short, or with messages in a journal beside them.
Whatever can still be read is read, `notes` says what can't, and the user's files are never changed.
"""
from pathlib import Path
from typing import TypeAlias

from .mcap import MCAP, McapFile
from .ros1 import ROS1, Ros1File
from .sqlite import SQLITE, SqliteFile

BagFile: TypeAlias = McapFile | Ros1File | SqliteFile


def kind(path: Path) -> type[BagFile] | None:
    """Tell from a file's first bytes what reads it; None if it is no part of a bag."""
    with open(path, 'rb') as f:
        start = f.read(16)
    if start.startswith(MCAP):
        return McapFile
    if start == SQLITE:
        return SqliteFile
    return Ros1File if start.startswith(ROS1) else None
