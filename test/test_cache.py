# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The cache of converted models: whole, checked, bounded, private, and never a condition."""
import errno
import os
from pathlib import Path
import shutil
import stat
import subprocess
import sys
import threading

import pytest

from lightseg_ros.inference import cache


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr('tempfile.tempdir', None)
    return tmp_path / 'lightseg_ros'


def write(text):
    return lambda folder: (folder / 'file').write_text(text) and None


def read(folder):
    return (folder / 'file').read_text()


def test_made_once_and_found_again(root):
    assert cache.load('a', write('1'), read) == '1'
    assert cache.load('a', write('2'), read) == '1'
    assert sorted(os.listdir(root / 'a')) == ['file', cache.SUMS] and os.listdir(root) == ['a']
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def damage_bit(entry):
    path = entry / 'file'
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]))


@pytest.mark.parametrize('damage', [
    damage_bit,
    lambda entry: (entry / 'file').unlink(),
    lambda entry: (entry / 'file').write_text(''),
    lambda entry: (entry / 'blob').write_text('planted'),
    lambda entry: (entry / cache.SUMS).unlink(),
    lambda entry: (entry / cache.SUMS).write_text('['),
    lambda entry: (entry / cache.SUMS).unlink() or os.mkfifo(entry / cache.SUMS),
    lambda entry: (entry / 'folder').mkdir(),
    lambda entry: (entry / 'link').symlink_to('file'),
], ids=['bit', 'missing', 'empty', 'added', 'no-sums', 'broken-sums', 'pipe', 'folder', 'link'])
def test_what_is_damaged_is_made_anew(root, damage, caplog):
    cache.load('a', write('1'), read)
    damage(root / 'a')
    assert cache.load('a', write('2'), read) == '2' and 'made anew' in caplog.text
    assert cache.load('a', write('3'), read) == '2'
    assert os.listdir(root) == ['a']


def test_an_entry_under_the_name_of_another_is_made_anew(root, caplog):
    cache.load('a', write('1'), read)
    cache.load('b', write('2'), read)
    shutil.rmtree(root / 'a')
    (root / 'b').rename(root / 'a')
    assert cache.load('a', write('1'), read) == '1' and 'another entry' in caplog.text


def test_what_cannot_be_read_is_made_anew(root):
    """A library may refuse what has the right checksum, such as a model of its next version."""
    cache.load('a', write('old'), read)

    def of_new_version(folder):
        if (text := read(folder)) == 'old':
            raise RuntimeError('unknown opset')
        return text

    assert cache.load('a', write('new'), of_new_version) == 'new'


def test_what_reading_adds_is_checked_too(root):
    def compiles(folder):
        if not (folder / 'blob').exists():
            (folder / 'blob').write_text('b')
        return (folder / 'blob').read_text()

    cache.load('a', write('1'), read)
    assert cache.load('a', write('1'), compiles) == 'b' and cache.load('a', write('2'), compiles) == 'b'
    assert read(root / 'a') == '1'
    (root / 'a' / 'blob').write_text('c')
    assert cache.load('a', write('2'), compiles) == 'b' and read(root / 'a') == '2'


def test_an_entry_appears_whole(root):
    def fail(folder):
        (folder / 'half').write_text('')
        raise RuntimeError('stopped')

    with pytest.raises(RuntimeError, match='stopped'):
        cache.load('a', fail, read)
    assert not os.listdir(root)
    barrier, found = threading.Barrier(2), []

    def make(folder):
        barrier.wait(10)
        (folder / 'file').write_text('x')

    threads = [threading.Thread(target=lambda: found.append(cache.load('a', make, read))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == ['x', 'x'] and os.listdir(root) == ['a']


def test_the_oldest_go_without_a_word(root, monkeypatch, caplog):
    caplog.set_level('INFO')
    monkeypatch.setattr(cache, 'LIMIT_BYTES', 3000)
    for i in range(4):
        cache.load(f'{i}', write('x' * 800), read)
        os.utime(root / f'{i}', (i, i))
        cache.load('0', write(''), read)  # is used all the time
    (root / '.9.dead').mkdir()
    os.utime(root / '.9.dead', (0, 0))
    cache.load('4', write('x' * 800), read)
    assert sorted(os.listdir(root)) == ['0', '3', '4'] and not caplog.records


@pytest.mark.parametrize('fault', ['file', 'unwritable', 'others', 'full', 'no home'])
def test_a_cache_that_cannot_be_used_costs_only_time(root, fault, monkeypatch, caplog):
    make = write('1')
    if fault == 'file':
        root.write_text('a file where the folder should be')
    elif fault == 'unwritable':
        monkeypatch.setenv('XDG_CACHE_HOME', '/proc/1')
    elif fault == 'others':
        root.mkdir()
        root.chmod(0o777)
    elif fault == 'no home':
        monkeypatch.delenv('XDG_CACHE_HOME')
        monkeypatch.setenv('HOME', '/proc/no-such-home')
    else:
        def make(folder: Path) -> None:
            if folder.parent == root:
                raise OSError(errno.ENOSPC, 'No space left on device')
            (folder / 'file').write_text('1')
    assert cache.load('a', make, read) == '1' and 'not kept' in caplog.text
    assert not (root / 'a').exists()


def test_no_space_anywhere_is_said(root):
    """A limit on the size of files, as a full disk would, stops the writing in every folder."""
    code = ('import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n'
            'from lightseg_ros.inference import cache\n'
            'cache.load("a", lambda folder: 1, lambda folder: 1)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
                          check=False)
    assert 'OSError: no folder for a converted model, 32 MB' in done.stderr
    assert not list(root.glob('*')) and not list(root.parent.glob('tmp/*'))
