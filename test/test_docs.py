# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation says what the code does: generated blocks, links, examples."""
import importlib.util
import os
from pathlib import Path
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')])


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'docs' / f'{name}.py')
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def update():
    return script('update')


@pytest.mark.parametrize('page, block', [
    ('README.md', 'networks'), ('docs/networks.md', 'counts'), ('docs/node.md', 'parameters'),
    ('CONTRIBUTING.md', 'tree'), ('docs/training.md', 'classes'), ('docs/training.md', 'worse')])
def test_generated_blocks_are_up_to_date(update, page, block):
    if block == 'parameters':
        pytest.importorskip('rclpy', reason='rclpy is not installed')
    before, after = update.updated(page, block)
    assert before == after, f'{page}: run "make docs"'


def test_pictures_can_be_redrawn(update, tmp_path, monkeypatch):
    pictures = script('pictures')
    monkeypatch.setattr(pictures.networks, 'PAPER_NETWORKS', ('affnet',))
    monkeypatch.setattr(pictures, 'SHOTS', ((0, 1.0),))
    pictures.draw_networks(tmp_path / 'networks.png')
    found = cv2.imread(str(tmp_path / 'networks.png'))
    assert found.shape[1] == 320 and len(np.unique(found.reshape(-1, 3), axis=0)) > 1000
    pictures.draw_speed(tmp_path / 'speed.png')
    assert cv2.imread(str(tmp_path / 'speed.png')).std() > 10


def test_every_block_is_checked(update):
    marks = {(str(p.relative_to(ROOT)), name) for p in PAGES
             for name in re.findall(r'<!-- (\w+) -->', p.read_text())}
    assert marks == set(update.BLOCKS)


def test_links_lead_somewhere():
    checked = 0
    for page in PAGES:
        for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
            if '://' in target:
                continue
            name, _, anchor = target.partition('#')
            other = (page.parent / name).resolve() if name else page
            assert other.exists(), f'{page.name} links to {target}'
            if anchor:
                heads = re.findall(r'^#+ (.+)$', other.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in heads}, target
            checked += 1
    assert checked > 20


def test_the_readme_is_short():
    text = (ROOT / 'README.md').read_text()
    text = re.sub(r'<!-- networks -->.*<!-- /networks -->', '', text, flags=re.DOTALL)
    assert len(text.split()) < 1100


def blocks():
    return re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'library.md').read_text(), re.DOTALL)


def run_example(block, folder, environment):
    """Run a block of docs/library.md, as it stands there, in a process of its own; returns its output."""
    (folder / 'example.py').write_text(block)
    cv2.imwrite(str(folder / 'street.jpg'), np.full((240, 320, 3), 128, np.uint8))
    done = subprocess.run([sys.executable, 'example.py'], cwd=folder, capture_output=True, text=True,
                          timeout=300, check=False,
                          env=environment | {'HOME': str(folder)})
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr
    return done.stdout


def test_the_library_s_example_runs(tmp_path):
    out = run_example(blocks()[0], tmp_path, {'PYTHONPATH': str(ROOT), 'PATH': ''})
    assert cv2.imread(str(tmp_path / 'overlay.png')).shape == (240, 320, 3)
    assert 'sky' in out


def test_the_example_of_the_node_runs(tmp_path):
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    out = run_example(blocks()[1], tmp_path, os.environ | {'PYTHONPATH': path})
    assert out.count('% of the image is traversable') == 3
