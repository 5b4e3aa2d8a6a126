# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import importlib
import subprocess
import sys

import pytest

from lightseg_ros import cli


@pytest.mark.parametrize('verb', cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, '--help'])
    assert end.value.code == 0
    module = importlib.import_module(f'lightseg_ros.cli.{verb.replace("-", "_")}')
    assert module.HELP[:40] in ' '.join(capsys.readouterr().out.split())


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


def test_a_missing_package_is_named():
    """A plain `pip install .` has no rosbags; the one line says what brings it."""
    code = ("import sys\nsys.modules['rosbags'] = None\nfrom lightseg_ros import cli\n"
            "sys.exit(cli.main(['bag', 'info', 'drive.mcap']))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 1 and done.stderr.count('\n') == 1, done.stderr
    assert done.stderr.startswith('ERROR: "lightseg bag" needs the Python package rosbags')
    assert done.stderr.endswith("pip install '.[all]'\n")


def test_help_imports_neither_torch_nor_ros():
    code = ("import sys\nfrom lightseg_ros import cli\n"
            "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
            "print('heavy:', sorted({'torch', 'rclpy', 'cv2'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.stdout.endswith('heavy: []\n'), done.stdout + done.stderr
