# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import importlib
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from lightseg_ros import cli
from lightseg_ros.inference.segmenter import parse_device, SegmenterError
from lightseg_ros.training.recipes import Recipe, RecipeError


@pytest.mark.parametrize('verb', cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, '--help'])
    assert end.value.code == 0
    module = importlib.import_module(f'lightseg_ros.cli.{verb.replace("-", "_")}')
    said = ' '.join(capsys.readouterr().out.split())
    assert module.HELP[:40] in said and 'default: None' not in said


def test_verbs_are_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(['--help'])
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)
    with pytest.raises(SystemExit) as end:
        cli.main(['segment'])
    assert end.value.code == 2


def test_our_errors_are_one_line(capsys):
    assert cli.main(['evaluate', '--model', 'segnet', '--data', 'camvid']) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: no packaged weights for 'segnet'") and error.count('\n') == 1


@pytest.mark.parametrize('arguments', [
    'evaluate a --frame-rate 0', 'evaluate a --tolerance inf', 'evaluate a --tolerance nan',
    'evaluate a --workers 0', 'evaluate a --batch -1', 'evaluate a --threads 999999', 'bench --rounds 0',
    'bench --rates 1e-9', 'bench --seconds inf', 'demo --rate 0', 'demo --seconds nan',
    'bag from-folder a b --rate 0',
    'replay a --rate 5e-324', 'info --classes 256', 'info --options [1]', 'export a.onnx --options 3',
    'export a.onnx --options {', 'train --model laanet --size 0x0',
    'train --model laanet --validate-every 0', 'train --model laanet --time-limit nan',
    'train --model laanet --options []', 'train-all --parallel -1',
    'train-all --part-mib 0', 'folds --parallel -1 --out a -- x', f'evaluate a --workers {"9" * 5000}'])
def test_numbers_have_limits(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'expected' in error or 'is not JSON' in error
    assert len(error) < 300


@pytest.mark.parametrize('change', [{'seed': -1}, {'lr': float('nan')}, {'lr': float('inf')},
                                    {'batch': 10 ** 9}, {'noise': -1}, {'clip': float('nan')},
                                    {'warmup': -1}])
def test_numbers_of_a_recipe_have_limits(change):
    with pytest.raises(RecipeError, match='expected'):
        Recipe('laanet', **change)


def test_a_missing_package_is_named():
    """A plain `pip install .` has no rosbags; the one line says what brings it."""
    code = ("import sys\nsys.modules['rosbags'] = None\nfrom lightseg_ros import cli\n"
            "sys.exit(cli.main(['bag', 'info', 'drive.mcap']))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 1 and done.stderr.count('\n') == 1, done.stderr
    assert done.stderr.startswith('ERROR: "lightseg bag" needs the Python package rosbags')
    assert done.stderr.endswith("pip install '.[all]'\n")


def test_ctrl_c_while_modules_are_imported_is_no_error():
    """Numpy turns it into an ImportError whose text is 30 lines long, if it comes at the right moment."""
    code = ("import os, signal, sys\nfrom lightseg_ros import cli\n"
            "def interrupted(event, *_):\n"
            "    if event == 'import' and _[0][0] == sys.argv[1]:\n"
            "        signal.raise_signal(signal.SIGINT)\n"
            "sys.addaudithook(interrupted)\nsys.exit(cli.main(['info', 'laanet']))")
    for module in ('datetime', 'numpy._core._multiarray_umath', 'torch'):
        done = subprocess.run([sys.executable, '-c', code, module], capture_output=True, text=True,
                              timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (130, '', ''), module


def test_help_imports_neither_torch_nor_ros():
    code = ("import sys\nfrom lightseg_ros import cli\n"
            "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
            "print('heavy:', sorted({'torch', 'rclpy', 'cv2'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.stdout.endswith('heavy: []\n'), done.stdout + done.stderr


def test_a_device_of_a_large_number_is_not_another_one():
    """Torch keeps eight bits of the number: cuda:256 would be cuda:0."""
    for device in ('cuda:256', 'cuda:999', 'cuda:99999999999999999999'):
        with pytest.raises(SegmenterError, match=f'device is {device!r}'):
            parse_device(device)


@pytest.mark.parametrize('option', ['-u', '-B'])
def test_a_reader_that_has_seen_enough_is_no_error(option):
    """`lightseg info laanet | head -1`, with and without PYTHONUNBUFFERED."""
    with subprocess.Popen([sys.executable, option, '-m', 'lightseg_ros.cli', 'info', 'laanet'],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.wait(120) == 141 and run.stderr.read() == b''


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-'])
def test_closed_streams_are_no_error(tmp_path, closed):
    """As of a job without a terminal; and a name that is no text can be printed."""
    code = ("import sys; from lightseg_ros.cli import main; "
            "sys.exit(main(['bag', 'from-folder', *sys.argv[1:]]))")
    cv2.imwrite(str(tmp_path / '1.png'), np.zeros((8, 8), np.uint8))
    command = f'{sys.executable} -c "$0" "$1" "$2" {closed}'
    out = os.fsencode(tmp_path) + b'/a\xff.mcap'
    done = subprocess.run(['bash', '-c', command, code, str(tmp_path), out], check=False, capture_output=True)
    assert done.returncode == 0 and os.path.exists(out), done.stderr
