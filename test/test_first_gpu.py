# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""bench/first_gpu.sh keeps its time, also when a step ignores signals; what fails costs only itself."""
import os
from pathlib import Path
import re
import subprocess
import sys
import time

import pytest
import torch

from lightseg_ros import networks
from lightseg_ros.inference import folding, fusing
from lightseg_ros.inference.fused import FusedBranches

BENCH = Path(__file__).parents[1] / 'bench'
SCRIPT = (BENCH / 'first_gpu.sh').read_text()


def run(*arguments, **env):
    """Run first_gpu.py, where torch sees no GPU, and return its exit status and what it prints."""
    env = {'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': os.pathsep.join(sys.path), **env}
    done = subprocess.run([sys.executable, BENCH / 'first_gpu.py', *map(str, arguments)], text=True,
                          check=False, env=os.environ | env, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=120)
    return done.returncode, done.stdout


def step(command, out, **env):
    """Let the function `step` of the script run a command."""
    function = re.search(r'^step\(\) \{.*?^\}', SCRIPT, re.M | re.S)[0]
    export = re.search(r'^ulimit.*\nexport (?:.*\\\n)*.*', SCRIPT, re.M)[0]
    subprocess.run(['bash', '-uc', f'OUT={out}; failed=0; {export}\n{function}\n{command}'], check=True,
                   env=os.environ | env)
    return (out / 'log.txt').read_text()


def test_a_step_that_ignores_signals_ends(tmp_path):
    began = time.monotonic()
    step("""step 1 sh -c 'trap "" ABRT INT TERM; for i in 1 2 3 4 5 6 7; do sleep 1; done'""", tmp_path)
    assert time.monotonic() - began < 5.5


def test_all_steps_end_in_580_seconds():
    limits = [int(limit) for limit in re.findall(r'^ *step (\d+) ', SCRIPT, re.M)]
    assert len(limits) == 6
    steps, grace, last = len(limits) + 4, 2, 50
    assert sum(limits) + 4 * 40 + steps * grace + last < 580
    ends, = re.findall(r'^step \$\(\((\d+) - SECONDS\)\)', SCRIPT, re.M)
    assert int(ends) + grace < 580


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_the_script_says_so_and_ends(tmp_path):
    """In one line, after the first steps; and at once where the Python has no torch."""
    env = os.environ | {'OUT': str(tmp_path), 'PYTHON': sys.executable}
    command = ['bash', BENCH / 'first_gpu.sh']
    done = subprocess.run(command, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 1 and re.search(
        r"^torch \S+ can't use a GPU here \(.*\): install .* see docs/gpu.md\n\Z", done.stdout, re.M)
    assert done.stdout.count('== ') == 2 and 'Traceback' not in (tmp_path / 'log.txt').read_text()
    bare = tmp_path / 'python'
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    done = subprocess.run(command, env=env | {'PYTHON': str(bare)}, text=True, capture_output=True,
                          check=False)
    assert done.returncode == 1 and done.stdout.startswith(f'{bare} has no torch: install it')
    assert done.stdout.count('\n') == 1 and not done.stderr


def test_what_a_killed_step_has_printed_is_kept(tmp_path):
    code = "import os; print('so far'); os.kill(os.getpid(), 9)"
    log = step(f'step 20 "{sys.executable}" -c "{code}"', tmp_path)
    assert 'so far' in log and 'rc 137' in log


def test_a_step_that_hangs_says_where(tmp_path):
    (tmp_path / 'hangs.py').write_text('import time\n\n\ndef wait():\n    time.sleep(60)\n\n\nwait()\n')
    log = step(f'step 2 "{sys.executable}" "{tmp_path}/hangs.py"', tmp_path)
    assert re.search(r'hangs.py", line 5 in wait', log) and not list(tmp_path.glob('core*'))


def test_tests_that_hang_say_where(tmp_path):
    (tmp_path / 'test_hangs.py').write_text("""
import time
import pytest

@pytest.mark.gpu
def test_one():
    time.sleep(60)

@pytest.mark.gpu
def test_two():
    time.sleep(60)
""")
    (tmp_path / 'run.py').write_text(f"""
import os
import sys
sys.path.insert(0, '{BENCH}')
import first_gpu
os.sched_getaffinity = lambda process: range(4)  # two processes share the tests
# With this root, a test's name and with it its process is the same everywhere.
first_gpu.tests('{tmp_path}/test_hangs.py', '--rootdir={tmp_path}')
""")
    log = step(f'step 30 "{sys.executable}" "{tmp_path}/run.py"', tmp_path)
    assert re.search(r'^1\|.*test_hangs.py", line 7 in test_one$', log, re.M), log
    assert re.search(r'^0\|.*test_hangs.py", line 11 in test_two$', log, re.M), log
    assert log.count('Fatal Python error: Aborted') == 2 and 'rc 124' in log, log


def test_packages_beside_the_checkout_are_found(tmp_path):
    (tmp_path / 'beside.py').write_text("print('found')")
    log = step(f'step 20 "{sys.executable}" -c "import beside, lightseg_ros"', tmp_path,
               PYTHONPATH=str(tmp_path))
    assert 'found' in log and 'Error' not in log


def test_a_lost_gpu_costs_one_test(tmp_path):
    (tmp_path / 'test_three.py').write_text("""
import sys
import pytest
pytestmark = pytest.mark.gpu

def test_first():
    pass

def test_loses_the_gpu():
    sys.modules['__main__'].unusable = lambda: 'an illegal memory access'
    raise RuntimeError('CUDA error')

def test_last():
    assert sys.modules['__main__'].unusable() == ''
""")
    status, said = run('tests', tmp_path / 'test_three.py')
    assert status == 1
    assert 'RuntimeError: CUDA error' in said and 'the GPU is lost: an illegal memory access' in said
    assert said.count('== test session starts ==') >= 2, 'the last one runs in a new process'
    for name, outcome in ('first', 'PASSED'), ('loses_the_gpu', 'FAILED'), ('last', 'PASSED'):
        assert said.count(f'::test_{name} {outcome}') == 1, said


def test_kernels_are_compared_without_packages_that_they_do_not_need(tmp_path):
    for package in 'cv2', 'safetensors', 'yaml', 'numba':
        (tmp_path / f'{package}.py').write_text("raise ImportError('not here')")
    status, said = run('tests', 'test/test_kernels.py', 'test/test_fusing.py', '--collect-only',
                       PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert status == 0, said
    assert 'test_fused_kernels_equal_their_twins_on_cuda' in said
    assert 'test_fused_convolutions_equal_their_twins_on_cuda' in said
    status, said = run('versions', PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert 'safetensors can not be imported: not here' in said


def test_a_file_that_can_not_be_imported_costs_only_its_own_tests(tmp_path):
    (tmp_path / 'test_broken.py').write_text('import no_such_package')
    (tmp_path / 'test_whole.py').write_text(
        'import pytest\n\n@pytest.mark.gpu\ndef test_whole():\n    pass\n')
    status, said = run('tests', tmp_path / 'test_broken.py', tmp_path / 'test_whole.py')
    assert status == 1 and 'no_such_package' in said and '::test_whole PASSED' in said, said


def test_without_pytest_kernels_are_compared_all_the_same(tmp_path):
    """Here every comparison fails, for there is no GPU, and the next one is tried."""
    (tmp_path / 'pytest.py').write_text("raise ImportError('not here')")
    status, said = run('tests', 'test/test_kernels.py', 'test/test_fusing.py',
                       PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    tried = re.findall(r'^(.*): FAILED: ', said, re.M)
    assert status == 1 and 'pytest is not installed' in said
    for kind in 'before and after a network', 'convolution', 'block: EAB', 'gate':
        assert any(t.startswith(kind) for t in tried), said


def test_what_ours_is_timed_against_computes_the_same(monkeypatch):
    """Every kind of convolution of the networks, without and with an addition."""
    monkeypatch.syspath_prepend(BENCH)
    import first_gpu
    torch.manual_seed(0)
    kinds = {}
    for name in networks.PAPER_NETWORKS:
        network = fusing.fuse(folding.fold(networks.build(name, 11).eval(), widen=True).half())
        for module in network.modules():
            if isinstance(module, first_gpu.Fused):
                kinds[tuple(first_gpu.described(module).values()), module.add_first] = module
    assert any(first for _, first in kinds)
    for conv in kinds.values():
        branches = isinstance(conv, FusedBranches)
        x = torch.randn(1, len(conv.convs[0].bias) if branches else conv.weight.shape[1] * conv.groups, 6, 7)
        x = x.half()
        for add in None, torch.randn_like(conv.plain(x)):
            expected = conv.plain(x, add).float()
            found = first_gpu.by_torch(conv, x, add).float()
            assert (found - expected).norm() <= 3e-3 * expected.norm(), (conv, add is None)
