# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What `make demo` does, for a few seconds: two node processes on a DDS graph, watched by a third."""
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
from lightseg_ros.live import demo  # noqa: E402


def lightseg(*arguments, timeout=120):
    return subprocess.run([sys.executable, '-m', 'lightseg_ros.cli', *map(str, arguments)],
                          capture_output=True, text=True, timeout=timeout, check=False)


def test_demo(tmp_path):
    done = lightseg('demo', '--seconds', 5, '--rate', 10, '--out', tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / 'summary.json').read_text())
    assert result['exit_codes'] == {'camera': 0, 'segmentation': 0}
    assert result['frames_complete'] > 3 and len(result['classes_seen']) >= 4
    assert result['latency_ms']['p50'] > 0 and result['node']['failed'] == '0'
    received, processed, dropped, failed = (int(result['node'][k]) for k in demo.COUNTS)
    assert received == processed + dropped + failed and processed >= result['frames_complete']
    assert f'received {received}, processed {processed}, dropped {dropped}, failed 0' in done.stdout
    # A network trained on real streets must make sense of the synthetic one.
    assert result['ground_truth']['pixel_accuracy'] > 60 and result['ground_truth']['miou'] > 20
    sheet = cv2.imread(str(tmp_path / 'contact_sheet.png'))
    assert sheet.shape[1] == 3 * 480 and sheet.std() > 10
    video = cv2.VideoCapture(str(tmp_path / 'demo.webm'))
    whole, frame = video.read()
    assert whole and frame.shape[1] == 2 * 480
    # Left half the camera's frame, right half the same frame with colours over it.
    left, right = frame[:, :480].astype(float), frame[:, 480:].astype(float)
    assert np.abs(left - right).mean() > 5 and np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.5


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--model', 'segnet'], "no packaged weights for 'segnet'"),
    (['--input', 'nowhere'], 'nowhere'),
])
def test_errors_are_one_line(tmp_path, arguments, message):
    done = lightseg('demo', '--out', tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[0].startswith('ERROR: ') or 'ERROR: ' in done.stderr
    assert message in done.stderr and 'Traceback' not in done.stderr
