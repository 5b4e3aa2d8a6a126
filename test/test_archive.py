# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Archives from elsewhere: what leads out of the folder is refused, and nothing is written there."""
import io
import os
import tarfile

import pytest

from lightseg_ros.training.archive import ArchiveError, PART, read_parts, unpack


def entry(name, kind=tarfile.REGTYPE, content=b'x', link=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
    return info, content


def archive(*entries, mode='w'):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content) if info.size else None)
    file.seek(0)
    return file


def realpath_overflow():
    """The archive of CVE-2025-4517: names so long that os.path.realpath gives up before it meets a link."""
    entries, step, path = [], 'd' * 247, ''
    for letter in 'abcdefghijklmnop':
        entries.append(entry(path + step, tarfile.DIRTYPE))
        entries.append(entry(path + letter, tarfile.SYMTYPE, link=step))
        path += f'{step}/'
    long = '/'.join('abcdefghijklmnop') + '/' + 'l' * 254
    entries.append(entry(long, tarfile.SYMTYPE, link='../' * 16))
    entries.append(entry('escape', tarfile.SYMTYPE, link=long + '/../outside'))
    entries.append(entry('escape/evil'))
    return entries


@pytest.mark.parametrize('entries', [
    [entry('/tmp/evil')], [entry('../evil')], [entry('a/../../evil')], [entry('a\x1b[2J')],
    [entry('a', tarfile.SYMTYPE, link='..'), entry('a/evil')],
    [entry('a', tarfile.LNKTYPE, link='/etc/passwd')], [entry('a', tarfile.FIFOTYPE)],
    [entry('a', tarfile.CHRTYPE)], [entry('a'), entry('a')], [entry('a'), entry('a/b')],
    realpath_overflow()])
def test_what_leads_elsewhere(tmp_path, entries):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'outside').mkdir()
    with pytest.raises(ArchiveError):
        unpack(archive(*entries), tmp_path / 'in')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in', 'outside']
    assert not list((tmp_path / 'outside').iterdir())
    assert not any(p.is_symlink() for p in (tmp_path / 'in').rglob('*'))


def test_files_and_only_those_that_are_wanted(tmp_path):
    unpack(archive(entry('a b/ü.png', content=b'1'), entry('empty', content=b'')), tmp_path)
    assert (tmp_path / 'a b' / 'ü.png').read_bytes() == b'1' and (tmp_path / 'empty').read_bytes() == b''
    with pytest.raises(ArchiveError, match='run.sh, which does not belong there'):
        unpack(archive(entry('run.sh')), tmp_path, lambda path: path.suffix == '.csv')


def test_no_archives(tmp_path):
    whole = archive(entry('a', content=bytes(5000))).getvalue()
    for data in (b'', b'x' * 2000, whole[:3000], archive(entry('a'), mode='w:gz').getvalue()):
        with pytest.raises(ArchiveError, match='can not be unpacked'):
            unpack(io.BytesIO(data), tmp_path)


def test_parts_whose_names_ask_for_much(tmp_path):
    """A count of 10^9 once filled the memory, and a pipe was waited for."""
    for count in ('999999999', 'x', '-1', '0'):
        (tmp_path / PART.format(1, count)).touch()
        with pytest.raises(ArchiveError, match='expected 1-of-1.runs.tar'):
            read_parts(tmp_path, tmp_path)
        (tmp_path / PART.format(1, count)).unlink()
    os.mkfifo(tmp_path / PART.format(1, 1))
    with pytest.raises(ArchiveError, match='not a regular file'):
        read_parts(tmp_path, tmp_path)
