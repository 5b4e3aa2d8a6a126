# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Texts from outside as one line, and what an error is told as."""
import struct

import pytest

from lightseg_ros import cli
from lightseg_ros.texts import error_line, one_line


def test_one_line():
    assert one_line('  a\n\tb ') == 'a b' and one_line('Straße ü') == 'Straße ü'
    assert one_line('\x1b[2J\ud800\0') == r'\x1b[2J\ud800\x00'
    one_line('\ud800').encode()
    long = one_line('head ' + 'x' * 5_000_000 + ' tail')
    assert len(long) <= 1000 and long.startswith('head') and long.endswith('tail') and '5000010' in long


def test_errors():
    assert error_line(ValueError('size is 3;\nexpected 4')) == 'size is 3; expected 4'
    assert error_line(FileNotFoundError(2, 'No such file', 'a/b')) == 'a/b: No such file'
    assert error_line(OSError('cannot')) == 'cannot'
    assert error_line(MemoryError()) == '[MemoryError]'
    try:
        struct.unpack('<I', b'')
    except struct.error as e:
        assert error_line(e).endswith(f'[error in test_texts.py:{e.__traceback__.tb_lineno}]')


@pytest.mark.parametrize('content', ['3', '[1]', '{}', '{"kind": 1}', '[' * 10 ** 5, '{"scores": [1]}'])
def test_an_error_of_any_kind_is_one_line(tmp_path, capsys, content):
    (tmp_path / 'a.json').write_text(content)
    assert cli.main(['compare', str(tmp_path / 'a.json'), str(tmp_path / 'a.json')]) == 1
    error = capsys.readouterr().err
    assert error.startswith('ERROR: ') and error.count('\n') == 1
