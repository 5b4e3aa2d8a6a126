# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and sizes as people write them."""
import os
import threading

import pytest

from lightseg_ros.files import replacing, write_whole
from lightseg_ros.sizes import parse_size, SizeError


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    write_whole(path, 'one')
    with replacing(path) as temporary:
        temporary.write_text('two')
        assert path.read_text() == 'one'
    assert path.read_text() == 'two' and os.listdir(path.parent) == ['a.txt']


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'a.txt'
    write_whole(path, b'old')
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.txt']


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / 'a', '')
    finally:
        os.umask(before)
    assert (tmp_path / 'a').stat().st_mode & 0o777 == 0o640


def test_links_and_pipes_are_not_replaced(tmp_path):
    write_whole(tmp_path / 'target', 'old')
    (tmp_path / 'link').symlink_to(tmp_path / 'target')
    write_whole(tmp_path / 'link', 'new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'target').read_text() == 'new'
    os.mkfifo(tmp_path / 'pipe')
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / 'pipe').read_text()))
    reader.start()
    write_whole(tmp_path / 'pipe', 'through')
    reader.join(10)
    assert read == ['through'] and (tmp_path / 'pipe').is_fifo()


def test_sizes():
    assert parse_size('1024x512') == (1024, 512) and parse_size(' 64X8192 ') == (64, 8192)
    for text in ('', '12x', '63x64', '64x8193', '1x2x3', '-64x64', '64.0x64', '9' * 400 + 'x64', '٦٤x٦٤٠'):
        with pytest.raises(SizeError, match='expected WIDTHxHEIGHT in pixels, each 64 to 8192'):
            parse_size(text)
