# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and sizes as people write them."""
import json
import os
from pathlib import Path
import subprocess
import sys
import threading

import pytest

from lightseg_ros.files import (
    FileError,
    keep_inputs,
    make_folder,
    read_small,
    replacing,
    try_to_write,
    write_whole,
)
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
    for place in (path, tmp_path / 'new/folder/b.txt'):
        with pytest.raises(RuntimeError), replacing(place) as temporary:
            temporary.write_text('half')
            raise RuntimeError
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.txt']


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / 'file').write_text('mine')
    for path, text in ((tmp_path, 'is a folder; expected a file to write: give a name in it, such as'),
                       (tmp_path / 'file/a.txt', 'file is a file; expected a folder: choose another place'),
                       (tmp_path / ('x' * 300), 'cannot be written: File name too long; choose another'),
                       (Path('/proc/a.txt'), '/proc/a.txt cannot be written: No such file or directory')):
        for call in (lambda p: write_whole(p, 'new'), try_to_write):
            with pytest.raises(FileError, match=text):
                call(path)
    with pytest.raises(FileError, match='file is a file; expected a folder for .*file/a/b: choose another'):
        make_folder(tmp_path / 'file/a/b')
    with pytest.raises(FileError, match='a.txt cannot be written: No space left on device; make room'), \
            replacing(tmp_path / 'a.txt') as temporary:
        Path('/dev/full').write_text('x')
        temporary.touch()
    try_to_write(tmp_path / 'new/folder/a.txt')
    assert os.listdir(tmp_path) == ['file'] and (tmp_path / 'file').read_text() == 'mine'


def test_what_is_open_already_is_not_emptied(tmp_path):
    """`lightseg evaluate --json /dev/stdout > file`: what is printed before and after stays."""
    code = ("from lightseg_ros.files import try_to_write, write_whole\nprint('before')\n"
            "try_to_write('/dev/stdout')\nwrite_whole('/dev/stdout', 'content\\n')\n"
            "write_whole('/dev/fd/1', 'more\\n')\nprint('after')")
    with open(tmp_path / 'out', 'w') as out:
        subprocess.run([sys.executable, '-c', code], stdout=out, check=True, timeout=60)
    assert (tmp_path / 'out').read_text() == 'before\ncontent\nmore\nafter\n'
    assert os.listdir(tmp_path) == ['out']


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
    before = (tmp_path / 'target').stat().st_ino
    write_whole(tmp_path / 'link', 'new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'target').read_text() == 'new'
    assert (tmp_path / 'target').stat().st_ino == before, 'whoever has it open would not see it'
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


def test_names_as_long_as_they_may_be(tmp_path):
    write_whole(tmp_path / ('x' * 251 + '.txt'), 'a')
    assert len(os.listdir(tmp_path)) == 1


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / 'a').write_bytes(b'12345')
    os.mkfifo(tmp_path / 'pipe')
    assert read_small(tmp_path / 'a', 5) == b'12345'
    for path, text in ((tmp_path / 'pipe', 'not a regular file'), ('/dev/zero', 'not a regular file'),
                       (tmp_path, 'Is a directory|not a regular file')):
        with pytest.raises(OSError, match=text):
            read_small(path, 5)
    with pytest.raises(OSError, match='longer than 4 bytes'):
        read_small(tmp_path / 'a', 4)


def test_a_name_that_is_no_text_does_not_cost_the_content(tmp_path):
    write_whole(tmp_path / 'a.json', json.dumps({'name': 'a\udcff.mcap'}, ensure_ascii=False))
    assert json.loads((tmp_path / 'a.json').read_text()) == {'name': 'a\udcff.mcap'}


def test_an_output_replaces_no_input(tmp_path):
    (tmp_path / 'in.mcap').write_text('frames')
    (tmp_path / 'link.json').symlink_to('in.mcap')
    keep_inputs([tmp_path / 'out.json', None, '/dev/stdout'],
                [tmp_path / 'in.mcap', None, 'laanet', tmp_path])
    for outputs in (['in.mcap'], ['link.json'], ['new', 'new'], [f'../{tmp_path.name}/in.mcap']):
        with pytest.raises(FileError, match='would replace'):
            keep_inputs([tmp_path / name for name in outputs], [tmp_path / 'in.mcap'])
