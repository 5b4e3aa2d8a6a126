# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""bench/first_gpu.sh keeps its time, also when a step ignores SIGTERM."""
from pathlib import Path
import re
import subprocess
import time

SCRIPT = (Path(__file__).parents[1] / 'bench/first_gpu.sh').read_text()


def test_a_step_that_ignores_sigterm_ends(tmp_path):
    step = re.search(r'^step\(\) \{.*?^\}', SCRIPT, re.M | re.S)[0]
    stubborn = """step 1 sh -c 'trap "" TERM; for i in 1 2 3 4 5 6; do sleep 1; done'"""
    began = time.monotonic()
    subprocess.run(['bash', '-uc', f'OUT={tmp_path}; failed=0; {step}\n{stubborn}'], check=True)
    assert time.monotonic() - began < 4.5


def test_all_steps_end_in_580_seconds():
    limits = [int(limit) for limit in re.findall(r'^ *step (\d+) ', SCRIPT, re.M)]
    assert len(limits) == 7
    grace = 1
    assert sum(limits) + 4 * 40 + (len(limits) + 4) * grace < 580
