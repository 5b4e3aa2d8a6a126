# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The package as ROS builds it: colcon, the installed tree, the parameter and the launch file."""
import ast
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """Build and install a copy of the package with colcon; returns the install prefix."""
    colcon = shutil.which('colcon', path=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    if not colcon:
        pytest.skip('colcon is not installed: pip install colcon-common-extensions')
    folder = tmp_path_factory.mktemp('workspace')
    source = folder / 'src' / 'lightseg_ros'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
        '.*', 'out', 'runs', 'build', 'install', 'log', '*.egg-info', '__pycache__', 'shared'))
    done = subprocess.run([colcon, '--log-base', 'log', 'build', '--event-handlers', 'console_direct+'],
                          cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '1 package finished' in done.stdout
    return folder / 'install' / 'lightseg_ros'


def test_installed_tree(installed):
    share = installed / 'share' / 'lightseg_ros'
    for path in [ROOT / 'package.xml', *(ROOT / 'launch').glob('*.py'), *(ROOT / 'config').rglob('*.yaml'),
                 *(ROOT / 'config').glob('*.xml'), *(ROOT / 'weights').glob('*.safetensors'),
                 *(ROOT / 'rviz').iterdir(), *(ROOT / 'foxglove').iterdir()]:
        assert (share / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path
    assert (installed / 'share/ament_index/resource_index/packages/lightseg_ros').is_file()
    site, = installed.glob('lib/python*/site-packages/lightseg_ros')
    for path in (ROOT / 'lightseg_ros').rglob('*.py'):
        assert (site / path.relative_to(ROOT / 'lightseg_ros')).is_file(), path
    assert not list(site.parent.glob('test'))


def test_installed_scripts_run_from_anywhere(installed, tmp_path):
    """ros2 run finds executables in lib/<package>; the package finds its data without the source tree."""
    site, = installed.glob('lib/python*/site-packages')
    environment = os.environ | {'PYTHONPATH': str(site)}
    for name in ('segmentation_node', 'camera_node', 'lightseg'):
        script = installed / 'lib' / 'lightseg_ros' / name
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith('#!/usr/bin/env python3\n')
    done = subprocess.run(
        [sys.executable, '-c', 'import lightseg_ros, lightseg_ros.labels as l; '
         'print(lightseg_ros.share_dir(), l.available())'],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    share = installed / 'share' / 'lightseg_ros'
    assert done.stdout.strip() == f"{share} ['camvid', 'cityscapes']", done.stderr
    done = subprocess.run(
        [sys.executable, str(installed / 'lib/lightseg_ros/lightseg'), '--version'],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith('lightseg_ros ')


def test_a_ros_install_requires_nothing_of_pip(installed):
    """
    Scripts of a ROS install start without pip's packages.

    setuptools writes `__requires__` into them, and pkg_resources, where something imports it, refuses to load
    when a requirement's metadata is missing. apt's OpenCV and torch have none of these names.
    """
    site, = installed.glob('lib/python*/site-packages')
    distribution, = importlib.metadata.distributions(name='lightseg_ros', path=[str(site)])
    assert [r for r in distribution.requires or () if 'extra ==' not in r] == []


def test_pip_gets_the_requirements(installed):
    """The metadata that pip reads, made by the hook that it calls."""
    source = installed.parents[1] / 'src' / 'lightseg_ros'
    done = subprocess.run(
        [sys.executable, '-c', 'import setuptools.build_meta as b, sys; '
         'print(b.prepare_metadata_for_build_wheel(sys.argv[1]))', str(installed.parent)],
        cwd=source, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    folder = installed.parent / done.stdout.split()[-1]
    requires = importlib.metadata.Distribution.at(folder).requires or []
    names = {re.split(r'[^\w-]', r)[0] for r in requires if 'extra ==' not in r}
    assert names == {'numpy', 'onnx', 'onnxruntime', 'onnxscript', 'opencv-python-headless', 'pyyaml',
                     'safetensors', 'simplejpeg', 'torch', 'tqdm'}
    extras = set(re.findall(r"extra == [\"'](\w+)", ' '.join(requires)))
    assert extras == {'cpu', 'train', 'eval', 'ros', 'all'}
    # `make` installs all of them; of setup.py's packages, torch alone is repeated, to pin it.
    lines = [line for name in ('requirements.txt', 'requirements-dev.txt')
             for line in (source / name).read_text().splitlines() if line and line[0] != '#']
    assert '-e .[all,ros]' in lines
    known = {re.split(r'[^\w-]', r)[0] for r in requires} - {'torch'}
    assert not known & {re.split(r'[^\w-]', line)[0] for line in lines}


def test_the_lock_file_pins_all_requirements():
    packaging = pytest.importorskip('packaging.requirements', reason='packaging is not installed')
    pinned: dict[str, list[str]] = {}
    for entry in re.split(r'\n(?=[a-z])', (ROOT / 'requirements.lock').read_text()):
        found = re.match(r'([\w.-]+)==(\S+)', entry)
        if found:
            assert '--hash=sha256:' in entry, f'{found[1]} has no hash; run "make lock"'
            pinned.setdefault(found[1], []).append(found[2])
    setup = ast.parse((ROOT / 'setup.py').read_text())
    values = {node.targets[0].id: node.value for node in setup.body
              if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
    texts = ast.literal_eval(values['REQUIRED']) + sum(ast.literal_eval(values['EXTRAS']).values(), [])
    assert len(texts) > 20
    for text in texts:
        wanted = packaging.Requirement(text)
        versions = pinned.get(wanted.name.replace('.', '-'), [])
        assert versions and all(v in wanted.specifier for v in versions), f'{text}: run "make lock"'
    assert f'torch=={pinned["torch"][0]}\n' in (ROOT / 'requirements.txt').read_text()


def test_versions_agree():
    import lightseg_ros
    version = ElementTree.parse(ROOT / 'package.xml').findtext('version')
    assert version == lightseg_ros.__version__
    assert f"version='{version}'" in (ROOT / 'setup.py').read_text()
    assert f'\n{version} ' in (ROOT / 'CHANGELOG.rst').read_text()


def test_package_xml_names_what_the_code_imports():
    root = ElementTree.parse(ROOT / 'package.xml').getroot()
    named = {e.text for e in root if e.tag in ('exec_depend', 'depend')}
    assert root.get('format') == '3'
    # Checked where the import stands, so that a new one can't be forgotten.
    imported = set()
    for path in [*(ROOT / 'lightseg_ros').rglob('*.py'), *(ROOT / 'launch').glob('*.py')]:
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ('import', 'from') and not words[1].startswith('.'):
                imported.add(words[1].split('.')[0])
    ros = {'rclpy', 'cv_bridge', 'sensor_msgs', 'std_msgs', 'std_srvs', 'diagnostic_msgs', 'vision_msgs',
           'launch', 'launch_ros', 'rcl_interfaces', 'rosgraph_msgs', 'ament_index_python',
           'lifecycle_msgs', 'nav_msgs', 'geometry_msgs'}
    assert imported & ros <= named


def test_pip_installs_what_the_code_imports():
    """Every third-party import is a requirement of setup.py, or of one of its extras."""
    text = (ROOT / 'setup.py').read_text()
    names = {'cv2': 'opencv-python-headless', 'yaml': 'pyyaml', 'distributed': None, 'triton': None,
             'tensorrt': None, 'cv_bridge': None, 'vision_msgs': None, 'rcl_interfaces': None,
             'std_srvs': None, 'lifecycle_msgs': None, 'llvmlite': None,  # which Numba brings
             'compression': None}  # Python 3.14's own
    checked = 0
    for path in (ROOT / 'lightseg_ros').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {f.split('.')[0] for f in found} - sys.stdlib_module_names:
                wanted = names.get(name, name.replace('_', '-'))
                assert wanted is None or f"'{wanted}" in text or f"'ros-{wanted}" in text, (
                    f'{path.name} imports {name}, which setup.py does not name')
                checked += 1
    assert checked > 100


def test_parameter_file_equals_the_code():
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    from lightseg_ros.nodes.segmentation import SegmentationParameters
    with open(ROOT / 'config' / 'segmentation.yaml') as f:
        written = yaml.safe_load(f)['/**']['ros__parameters']
    assert written == dataclasses.asdict(SegmentationParameters())
    assert list(written) == [f.name for f in dataclasses.fields(SegmentationParameters)]
    for field in dataclasses.fields(SegmentationParameters):
        assert type(written[field.name]) is type(field.default) and field.metadata['description']


def test_shared_memory_profiles_hold_a_4k_image():
    for name in ('fastdds.xml', 'fastdds_localhost.xml'):
        tree = ElementTree.parse(ROOT / 'config' / name)
        size = int(tree.findtext('.//{*}segment_size'))
        assert size > 2 * 3840 * 2160 * 3
    assert [e.text for e in tree.iterfind('.//{*}interfaceWhiteList/{*}address')] == ['127.0.0.1']


def test_nav2_layer_knows_every_class():
    """Each class in one cost type, each cost type declared, and the groups those of the label set."""
    tree = yaml.safe_load((ROOT / 'config' / 'nav2_semantic_layer.yaml').read_text())
    camera = tree['local_costmap']['local_costmap']['ros__parameters']['semantic_layer']['camera']
    types = {name: value['classes'] for name, value in camera.items() if isinstance(value, dict)}
    assert list(types) == camera['class_types']
    labels = yaml.safe_load((ROOT / 'config' / 'labels' / 'camvid.yaml').read_text())
    assert sorted(sum(types.values(), [])) == sorted(c['name'] for c in labels['classes'])
    assert {name: labels['groups'][name] for name in ('traversable', 'static', 'dynamic')} == {
        name: types[name] for name in ('traversable', 'static', 'dynamic')}


def published() -> set[str]:
    """Topics of a node named segmentation."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    from lightseg_ros.nodes.outputs import OUTPUTS
    return {f'/segmentation/{output}' for output in (*OUTPUTS, 'points')} | {'/diagnostics'}


def test_rviz_layout():
    """Displays of rviz_default_plugins, whose topics the node publishes and the launch file remaps."""
    manager = yaml.safe_load((ROOT / 'rviz' / 'segmentation.rviz').read_text())['Visualization Manager']
    classes = [display['Class'].removeprefix('rviz_default_plugins/') for display in manager['Displays']]
    assert classes == ['Image', 'Image', 'PointCloud2', 'Grid', 'TF']
    topics = [d['Topic']['Value'] for d in manager['Displays'] if 'Topic' in d]
    assert set(topics) <= published() and len(set(topics)) == 3
    text = (ROOT / 'launch' / 'segment.launch.py').read_text()
    shown = re.search(r'SHOWN = \((.*)\)', text)[1]
    assert [f"'{topic.removeprefix('/segmentation/')}'" for topic in topics] == shown.split(', ')
    assert manager['Global Options']['Fixed Frame'] == 'world'


def test_foxglove_layout():
    """Every panel is placed once, and shows topics that the node publishes."""
    layout = json.loads((ROOT / 'foxglove' / 'segmentation.json').read_text())
    panels = layout['configById']
    placed = []

    def walk(part):
        if isinstance(part, str):
            placed.append(part)
        else:
            assert part['direction'] in ('row', 'column') and 0 < part['splitPercentage'] < 100
            walk(part['first'])
            walk(part['second'])

    walk(layout['layout'])
    assert sorted(placed) == sorted(panels)
    assert {name.split('!')[0] for name in panels} == {
        'Image', '3D', 'DiagnosticSummary', 'DiagnosticStatusPanel', 'Plot'}
    used = set(re.findall(r'"(/[a-z_/]+)[."]', json.dumps(panels)))
    assert used == {'/segmentation/overlay/compressed', '/segmentation/label_color', '/segmentation/points',
                    '/diagnostics'} <= published()


def test_docker_files():
    """What the image copies exists, and setup.py finds all that it installs; host network and memory."""
    ignored = (ROOT / '.dockerignore').read_text().split()  # for all three images
    assert ignored[0] == '*'
    copied = {line[1:] for line in ignored if line.startswith('!')}
    assert all((ROOT / name).exists() for name in copied)
    setup = (ROOT / 'setup.py').read_text()
    assert {pattern.split('/')[0] for pattern in re.findall(r"'([a-z*]+/[^']*\*[^']*)'", setup)} <= copied
    compose = yaml.safe_load((ROOT / 'docker' / 'compose.yaml').read_text())
    for service in compose['services'].values():
        assert (service['network_mode'], service['ipc'], service['stop_signal']) == ('host', 'host', 'SIGINT')
    extras = set(re.findall(r"^ +'(\w+)': \[", setup, re.MULTILINE))
    for path in (ROOT / 'docker').glob('*Dockerfile'):
        for line in path.read_text().splitlines():
            if line.startswith('COPY '):
                assert line.split()[1] in ('.', *copied), line
            assert {name for named in re.findall(r"'\.\[(.*?)\]'", line)
                    for name in named.split(',')} <= extras, line
    build = compose['services']['segmentation']['build']
    assert (ROOT / 'docker' / build['context'] / build['dockerfile']).is_file()
    profile = compose['x-ros']['environment']['FASTDDS_DEFAULT_PROFILES_FILE']
    assert (ROOT / 'config' / Path(profile).name).is_file()


def test_launch_file(installed, monkeypatch, tmp_path, capfd):
    """The arguments and nodes of the launch file, where launch and launch_ros are installed."""
    pytest.importorskip('launch_ros', reason='launch_ros comes with a ROS distribution, not from PyPI')
    pytest.importorskip('rclpy')
    monkeypatch.setenv('AMENT_PREFIX_PATH', os.pathsep.join(
        [str(installed), *filter(None, [os.environ.get('AMENT_PREFIX_PATH')])]))
    import importlib.util
    spec = importlib.util.spec_from_file_location('segment', ROOT / 'launch' / 'segment.launch.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import launch
    from launch.actions import DeclareLaunchArgument
    description = module.generate_launch_description()
    arguments = {e.name: e for e in description.entities if isinstance(e, DeclareLaunchArgument)}
    assert {'model', 'resolution', 'weights', 'device', 'backend', 'precision', 'cameras', 'image_topic',
            'image_transport', 'params_file', 'namespace', 'use_sim_time', 'log_level', 'use_respawn',
            'camera', 'depth_topic', 'camera_info_topic', 'compressed_topic', 'autostart', 'lazy',
            'image_size', 'rviz', 'rviz_frame', 'smoothing'} <= set(arguments)
    assert all(a.description for a in arguments.values())
    assert set(arguments['model'].choices) == {'', *(p.stem.removesuffix('-camvid') for p in (
        ROOT / 'weights').glob('*.safetensors'))}
    params = tmp_path / 'p.yaml'
    params.write_text('/**: {ros__parameters: {model: affnet}}')

    def started(**changed):
        """Return the nodes, and the arguments as they were understood."""
        context = launch.LaunchContext()
        context.launch_configurations.update(
            dict.fromkeys(arguments, ''), use_sim_time='false', log_level='info', use_respawn='false',
            camera='none', image_topic='image', params_file=str(params))
        context.launch_configurations.update(changed)
        return module.nodes(context), context.launch_configurations

    def executables(**changed):
        return [node.node_executable for node in started(**changed)[0]]

    assert executables(camera='synthetic') == ['segmentation_node', 'camera_node']
    assert executables() == ['segmentation_node']
    for cameras in ('front left', 'front,left', '[front, left]', "['front','left']"):
        assert executables(cameras=cameras, camera='synthetic') == [
            'segmentation_node', 'camera_node', 'camera_node']
        assert started(cameras=cameras)[1]['cameras'] == 'front left'
    for text in ('true', 'True', 'TRUE', '1', 'yes', 'on', 'y'):
        assert module.boolean('x', text) is True
    for text in ('false', 'False', '0', 'no', 'OFF', 'n', ''):
        assert module.boolean('x', text) is False
    with pytest.raises(ValueError, match="use_sim_time is 'maybe'; expected true or false"):
        started(use_sim_time='maybe')

    assert started(smoothing='0.2')[0] and module.number('smoothing', '0') == 0.0
    with pytest.raises(ValueError, match="smoothing is 'much'; expected a number"):
        started(smoothing='much')

    value = {'image_topic': '/cam/image_raw', 'compressed_topic': ''}
    both = [('image', '/cam/image_raw'), ('image/compressed', '/cam/image_raw/compressed')]
    assert module.image_remappings(value, '') == both
    assert module.image_remappings(value | {'image_topic': '/cam/image_raw/compressed'}, '') == both
    assert started(image_topic='/cam/image_raw/compressed')[1]['image_transport'] == 'compressed'
    assert module.image_remappings(value | {'compressed_topic': '/{camera}/jpeg'}, 'left') == [
        ('left/image/compressed', '/left/jpeg')]

    for text, words in (('a: [', 'is not YAML'),
                        ('driver: {ros__parameters: {a: 1}}', 'ros__parameters for /driver; expected the'),
                        ('camera: {ros__parameters: {rate: 5.0}}', 'has no parameters for /segmentation'),
                        ('model: laanet', 'it holds no ros__parameters')):
        params.write_text(text)
        with pytest.raises(ValueError, match=words):
            started()
    params.write_bytes(b'\xff\xfe')
    with pytest.raises(ValueError, match='p.yaml.* is not YAML'):
        started()
    params.write_text('camera_left: {ros__parameters: {rate: 5.0, loop: false, frame_id: "7"}}\n'
                      '/**: {ros__parameters: {cameras: [left], model: affnet}}')
    assert executables(camera='synthetic') == ['segmentation_node', 'camera_node']
    assert started()[1]['cameras'] == 'left'
    in_file = module.of_camera(module.read_parameters(str(params)), '/camera_left')
    assert in_file.pop('frame_id').evaluate(launch.LaunchContext()) == '7'
    assert in_file == {'rate': 5.0, 'loop': False}
    for text in ('segmentation: {ros__parameters: {}}', '/segmentation: {ros__parameters: {}}',
                 '/*: {ros__parameters: {}}', 'x: {ros__parameters: {}}\n/**: {ros__parameters: {}}'):
        params.write_text(text)
        assert executables() == ['segmentation_node']
    # RViz and the camera's pose, where their packages are installed; here they are empty ones.
    with pytest.raises(ValueError, match='the package rviz2 is not installed: sudo apt install'):
        started(rviz='true')
    for package in ('rviz2', 'tf2_ros'):
        mark = tmp_path / 'share/ament_index/resource_index/packages' / package
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        (tmp_path / 'share' / package).mkdir()
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{tmp_path}{os.pathsep}{os.environ["AMENT_PREFIX_PATH"]}')
    assert executables(camera='synthetic', depth_topic='depth', rviz='True') == [
        'segmentation_node', 'camera_node', 'static_transform_publisher', 'rviz2']
    assert executables(camera='synthetic') == ['segmentation_node', 'camera_node']

    params.write_text('robot: {segmentation: {ros__parameters: {}}}')
    assert executables(namespace='robot') == ['segmentation_node']
    with pytest.raises(ValueError, match='none.yaml.* cannot be read: No such file'):
        started(params_file=str(tmp_path / 'none.yaml'))
    assert module.topic_of('', '/a') == '/a' and module.topic_of('left', 'image') == 'left/image'
    assert module.topic_of('left', '/{camera}/image_raw') == '/left/image_raw'

    def depth_topics(camera='', **given):
        return module.depth_topics(camera, {'image_topic': 'image', 'compressed_topic': '', 'depth_topic': '',
                                            'camera_info_topic': '', **given})

    assert depth_topics() == [('camera_info', 'camera_info')]
    for given in ({'image_topic': '/cam/image_raw'}, {'image_topic': '/cam/image_raw/compressed'},
                  {'compressed_topic': '/cam/jpeg'}):
        assert depth_topics(**given) == [('camera_info', '/cam/camera_info')]
    assert depth_topics('left', image_topic='/{camera}/image_raw') == [('camera_info', '/left/camera_info')]
    assert depth_topics('left') == [('camera_info', 'left/camera_info')]

    def pairs(depth, info):
        return [('depth', depth), ('camera_info', info),
                ('depth/compressedDepth', f'{depth}/compressedDepth')]

    for topic in ('/cam/depth/image_raw', '/cam/depth/image_raw/compressedDepth'):
        assert depth_topics(depth_topic=topic) == pairs('/cam/depth/image_raw', '/cam/depth/camera_info')
    assert depth_topics('left', depth_topic='/{camera}/d', camera_info_topic='/{camera}/i') == pairs(
        '/left/d', '/left/i')
    assert depth_topics('left', depth_topic='depth') == pairs('left/depth', 'left/camera_info')
    params.write_text('/**: {ros__parameters: {}}')
    with pytest.raises(ValueError, match="image_topic is '/a'; expected {camera} in it"):
        started(cameras='left', image_topic='/a')

    capfd.readouterr()
    started(modle='affnet', image_topics='/x', use_rviz='true')
    assert re.findall('unknown argument .*', capfd.readouterr().out) == [
        "unknown argument 'modle' is ignored; did you mean 'model'?",
        "unknown argument 'image_topics' is ignored; did you mean 'image_topic'?"]


@pytest.mark.parametrize('node', ['segmentation_node', 'camera_node'])
@pytest.mark.parametrize('as_module', [False, True])
def test_ctrl_c_while_a_node_is_imported_is_no_error(node, as_module):
    """`ros2 launch` or `python -m`, and Ctrl-C before the node is there."""
    assert f"'{node} = lightseg_ros.nodes:{node}'" in (ROOT / 'setup.py').read_text()
    start = f"runpy.run_module('lightseg_ros.nodes.{node.removesuffix('_node')}', run_name='__main__')" \
        if as_module else f'nodes.{node}()'
    code = ("import runpy, signal, sys\nfrom lightseg_ros import nodes\n"
            "def interrupted(event, arguments):\n"
            "    if event == 'import' and arguments[0] == 'rclpy':\n"
            "        signal.raise_signal(signal.SIGINT)\n"
            f"sys.addaudithook(interrupted)\n{start}")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
                          check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, '', '')


def test_the_security_policy_has_the_form_of_sros2():
    """As its policy.xsd has it since ROS 2 Foxy; `ros2 security create_permission` takes nothing else."""
    policy = ElementTree.parse(ROOT / 'config' / 'segmentation.policy.xml').getroot()
    assert (policy.tag, policy.attrib) == ('policy', {'version': '0.2.0'})
    assert [child.tag for child in policy] == ['enclaves']
    enclave, = policy[0]
    assert (enclave.tag, enclave.attrib) == ('enclave', {'path': '/segmentation'})
    assert [child.tag for child in enclave] == ['profiles']
    profile, = enclave[0]
    assert (profile.tag, profile.attrib) == ('profile', {'ns': '/', 'node': 'segmentation'})
    rules = {('topics', 'publish'): 'topic', ('topics', 'subscribe'): 'topic',
             ('services', 'reply'): 'service'}
    assert len(profile) == len(rules)
    for group in profile:
        (action, value), = group.attrib.items()
        assert value == 'ALLOW' and {e.tag for e in group} == {rules[group.tag, action]}
