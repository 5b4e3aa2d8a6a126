# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Who may know whom: one way only."""
import ast
from pathlib import Path
import subprocess
import sys

import lightseg_ros

ROOT = Path(lightseg_ros.__file__).parent
ROS = {'rclpy', 'sensor_msgs', 'std_msgs', 'std_srvs', 'diagnostic_msgs', 'rcl_interfaces', 'vision_msgs',
       'rosgraph_msgs', 'geometry_msgs', 'nav_msgs', 'launch', 'launch_ros', 'ament_index_python'}
# What each module may import of the package; nodes and cli may import everything below them.
MAY = {
    'labels': set(), 'images': set(), 'latest': set(), 'metrics': set(), 'painting': set(),
    'street': {'painting'}, 'sources': {'bags', 'images', 'labels', 'street'},
    'health': {'metrics'}, 'bags': {'images', 'labels'}, 'recordings': {'bags', 'images', 'labels'},
    'scores': {'labels', 'metrics'}, 'report': {'scores'},
    'points': {'images'},
    'networks': set(), 'losses': set(), 'gradients': set(), 'weights': {'networks', 'labels'},
    'folding': {'networks'},
    'segmenter': {'weights', 'labels', 'networks', 'backends', 'kernels', 'engine', 'folding'},
    'data': {'labels'},
}
# Neither ROS nor torch: what a tool without a network needs must start fast and run anywhere.
LIGHT = ('labels', 'images', 'latest', 'health', 'metrics', 'painting', 'street', 'sources',
         'bags', 'recordings', 'scores', 'report', 'points')


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules of the package (first name), and top-level packages, that a file imports anywhere."""
    own, foreign = set(), set()
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level == depth:
                names = [node.module] if node.module else [a.name for a in node.names]
                own.update(n.split('.')[0] for n in names if n != '__version__' and n != 'share_dir')
        elif isinstance(node, ast.ImportFrom):
            foreign.add(node.module.split('.')[0])
        elif isinstance(node, ast.Import):
            foreign.update(a.name.split('.')[0] for a in node.names)
    return own, foreign


def test_directions():
    checked = 0
    for path in sorted(ROOT.rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        module = parts[0]
        own, foreign = imports(path)
        if module != 'nodes':
            assert not foreign & ROS, f'{path.name} imports {foreign & ROS}; only nodes/ may'
        if module not in ('nodes', 'cli', '__init__'):
            assert not own & {'nodes', 'cli'}, f'{path.name} imports {own & {"nodes", "cli"}}'
        if module in MAY:
            assert own - {module} <= MAY[module], f'{path.name} imports {own - MAY[module] - {module}}'
            checked += 1
        if module in LIGHT:
            assert 'torch' not in foreign, f'{path.name} imports torch'
    assert checked >= len(MAY) - 4


def test_everything_but_the_nodes_imports_without_ros():
    modules = [
        '.'.join(('lightseg_ros', *p.relative_to(ROOT).with_suffix('').parts)).removesuffix('.__init__')
        for p in sorted(ROOT.rglob('*.py')) if 'nodes' not in p.parts and p.name != '__main__.py']
    code = (f'import importlib, sys\nfor name in {sorted(ROS)!r}:\n    sys.modules[name] = None\n'
            f'for name in {modules!r}:\n    importlib.import_module(name)\nprint(len({modules!r}))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules) > 10
