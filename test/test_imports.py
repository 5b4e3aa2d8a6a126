# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which part of the package may import which: imports go one way only."""
import ast
from pathlib import Path
import subprocess
import sys

import lightseg_ros

ROOT = Path(lightseg_ros.__file__).parent
ROS = {'rclpy', 'sensor_msgs', 'std_msgs', 'std_srvs', 'diagnostic_msgs', 'rcl_interfaces', 'vision_msgs',
       'rosgraph_msgs', 'geometry_msgs', 'nav_msgs', 'lifecycle_msgs', 'launch', 'launch_ros',
       'ament_index_python'}
# Folders whose modules may import ROS.
WITH_ROS = ('nodes', 'live')
# What each part may import of the package, besides `texts`. A part is a folder, or a module at the top.
MAY = {
    'texts': set(), 'files': set(), 'latest': set(), 'machine': set(), 'metrics': set(), 'sizes': set(),
    'pictures': {'files'}, 'images': {'pictures'},
    'labels': {'files'},
    'health': {'metrics'},
    'points': {'images'},
    'framing': {'files', 'pictures'},
    'bag_files': set(), 'foxglove': set(), 'video': {'images'},
    'bags': {'bag_files', 'files', 'foxglove', 'images', 'video'},
    'image_folders': {'bags'},
    'bag_writer': {'bags', 'files', 'image_folders', 'labels', 'pictures'},
    'footage': {'bags', 'image_folders', 'pictures'},
    'networks': {'sizes'},
    'weights': {'files', 'labels', 'networks', 'sizes'},
    'datasets': {'files', 'labels', 'pictures', 'sizes'},
    'data_check': {'datasets', 'labels', 'pictures'},
    'annotations': {'datasets', 'files', 'labels', 'pictures'},
    'polygons': {'annotations', 'pictures'},
    'data_import': {'annotations', 'datasets', 'files', 'labels', 'pictures', 'polygons'},
    'contact_sheet': {'data_check', 'datasets', 'files', 'labels'},
    'info': {'labels', 'networks', 'sizes', 'weights'},
    'compiled': set(), 'cuda_graphs': set(),
    'synthetic': set(),
    'sources': {'bags', 'images', 'labels', 'pictures', 'sizes', 'synthetic'},
    'inference': {'compiled', 'cuda_graphs', 'files', 'labels', 'machine', 'networks', 'sizes', 'weights'},
    'training': {'compiled', 'cuda_graphs', 'data_check', 'datasets', 'evaluation', 'files', 'labels',
                 'machine', 'metrics', 'networks', 'sizes', 'synthetic', 'weights'},
    'evaluation': {'bag_writer', 'bags', 'datasets', 'files', 'footage', 'health', 'image_folders',
                   'images', 'inference', 'labels', 'machine', 'metrics', 'networks', 'pictures',
                   'sizes', 'weights'},
    'benchmark': {'datasets', 'files', 'inference', 'info', 'labels', 'machine', 'metrics', 'networks',
                  'sizes', 'synthetic', 'weights'},
    'nodes': {'cuda_graphs', 'files', 'framing', 'health', 'images', 'inference', 'labels', 'latest',
              'machine', 'metrics', 'points', 'sizes', 'sources', 'weights'},
    'live': {'bag_writer', 'bags', 'benchmark', 'datasets', 'evaluation', 'files', 'footage', 'health',
             'images', 'inference', 'labels', 'machine', 'metrics', 'nodes', 'sizes', 'sources', 'synthetic',
             'weights'},
    'cli': {'bag_writer', 'bags', 'benchmark', 'contact_sheet', 'data_check', 'data_import', 'datasets',
            'evaluation', 'files', 'images', 'inference', 'info', 'labels', 'live', 'machine', 'networks',
            'sizes', 'synthetic', 'training', 'weights'},
}
# Neither ROS nor torch: what a tool without a network needs must start fast and run anywhere.
LIGHT = ('texts', 'files', 'labels', 'images', 'pictures', 'latest', 'health', 'machine', 'bag_files',
         'metrics', 'sizes', 'sources', 'bags', 'bag_writer', 'image_folders', 'footage', 'points',
         'framing', 'datasets', 'data_check',
         'contact_sheet', 'annotations', 'polygons', 'data_import', 'synthetic',
         'evaluation.recordings', 'evaluation.scores', 'evaluation.text_report', 'evaluation.html_report')


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below lightseg_ros."""
    return {'.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): p
            for p in sorted(ROOT.rglob('*.py')) if p != ROOT / '__init__.py'}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Rooms of the package, and top-level packages, that a file imports anywhere in its code."""
    folder = list(path.relative_to(ROOT).parts[:-1])
    own, foreign = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[:len(folder) - node.level + 1] + (node.module.split('.') if node.module else [])
            if base:
                own.add(base[0])
            else:
                own.update(a.name for a in node.names if a.name not in ('__version__', 'share_dir'))
        elif isinstance(node, ast.ImportFrom):
            foreign.add(node.module.split('.')[0])
        elif isinstance(node, ast.Import):
            foreign.update(a.name.split('.')[0] for a in node.names)
    return own, foreign


def test_every_room_is_bound():
    parts = {name.split('.')[0] for name in modules()}
    assert parts <= set(MAY), f'no rule for {parts - set(MAY)}: say in MAY what they may import'


def test_directions():
    for name, path in modules().items():
        part = name.split('.')[0]
        own, foreign = imports(path)
        assert 'lightseg_ros' not in foreign, f'{name} imports the package by its name; use a relative import'
        own -= {part, 'texts'}
        assert own <= MAY[part], f'{name} imports {own - MAY[part]}'
        if part not in WITH_ROS:
            assert not foreign & ROS, f'{name} imports {foreign & ROS}; only {", ".join(WITH_ROS)} may'
        if name in LIGHT or part in LIGHT:
            assert 'torch' not in foreign, f'{name} imports torch'


def test_no_circle_among_the_parts():
    """If A may import B, B may not import A, over any number of steps."""
    rank: dict[str, int] = {}

    def height(part: str, above: tuple[str, ...] = ()) -> int:
        assert part not in above, f'circle: {" -> ".join((*above, part))}'
        if part not in rank:
            rank[part] = 1 + max((height(r, (*above, part)) for r in MAY[part]), default=0)
        return rank[part]

    assert max(height(part) for part in MAY) > 3


def test_everything_but_nodes_and_live_imports_without_ros():
    names = [f'lightseg_ros.{name}' for name in modules()
             if name.split('.')[0] not in WITH_ROS and not name.endswith('__main__')]
    code = (f'import importlib, sys\nfor name in {sorted(ROS)!r}:\n    sys.modules[name] = None\n'
            f'for name in {names!r}:\n    importlib.import_module(name)\nprint(len({names!r}))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(names) > 40
