# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags played over DDS to a real node in a process of its own: every frame is accounted for and scored."""
from dataclasses import replace
from fractions import Fraction
import json
import os
from pathlib import Path
import sys

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('rosbags', reason='rosbags is not installed')

from lightseg_ros import bag_writer, bags, weights  # noqa: E402
from lightseg_ros.bags import NS  # noqa: E402
from lightseg_ros.cli import main  # noqa: E402
from lightseg_ros.evaluation import evaluate as offline  # noqa: E402
from lightseg_ros.evaluation.recordings import GroundTruthSource, Selection  # noqa: E402
from lightseg_ros.evaluation.settings import EvaluationError, ModelSpec, Run  # noqa: E402
from lightseg_ros.live import replay as live  # noqa: E402
from lightseg_ros.live.probe import NodeProcess, nodes, ProbeError  # noqa: E402
from lightseg_ros.weights import WeightsError  # noqa: E402

COUNT = 15
LABEL = '/camera/label'

# Stands in for `ros2 bag play`, which PyPI does not have: plays a bag's topic as it is, with /clock if asked.
PLAYER = """#!{python}
import argparse, sys, time
sys.path.insert(0, {root!r})
import rclpy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from lightseg_ros import bag_writer, bags
parser = argparse.ArgumentParser()
parser.add_argument('words', nargs=2)
parser.add_argument('bag')
parser.add_argument('--rate', type=float)
parser.add_argument('--clock', type=float)
parser.add_argument('--topics', nargs='+')
args = parser.parse_args()
assert args.words == ['bag', 'play'] and args.clock == 100
rclpy.init()
node = rclpy.create_node('player')
publisher = node.create_publisher(CompressedImage, args.topics[0], 10)
clock = node.create_publisher(Clock, '/clock', 10)
while publisher.get_subscription_count() < 2:  # the node, and what times the frames
    time.sleep(0.05)
time.sleep(1)
with bags.Bag(args.bag) as bag:
    for message in bag.messages(args.topics[0]):
        tick = Clock()
        tick.clock.sec, tick.clock.nanosec = divmod(message.time_ns, 10 ** 9)
        clock.publish(tick)
        publisher.publish(message.raw)
        time.sleep(0.1 / args.rate)
time.sleep(1)
rclpy.shutdown()
"""


def write_bag(path, encoding, bad=()):
    """A bag of 15 frames at 10 Hz with labels; frames whose number is in `bad` hold too little data."""
    rng = np.random.default_rng(5)
    topic = '/camera/image_raw' + ('/compressed' if encoding == 'png' else '')
    with bag_writer.Writer(path) as writer:
        for i in range(COUNT):
            stamp = 1000 * NS + i * NS // 10
            head = bags.header(stamp, 'camera')
            rgb = rng.integers(0, 256, (6, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            msg = bags.image(rgb, encoding, head)
            msg.data = msg.data[:100] if i in bad else msg.data
            writer.write(topic, msg, stamp)
            ids = rng.integers(0, 11, (6, 9), np.uint8).repeat(8, 0).repeat(8, 1)
            writer.write(LABEL, bags.image(ids, 'mono8', head), stamp)
    return path


@pytest.fixture(scope='module')
def model(random_weights):
    return ModelSpec(str(random_weights), 'cpu', '96x64', threads=1)


@pytest.fixture(scope='module')
def compressed(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('bags') / 'compressed', 'png')


@pytest.fixture(scope='module')
def running_node(model, tmp_path_factory):
    """A segmentation node that runs on simulated time, on the compressed topic."""
    node = NodeProcess('segmentation', tmp_path_factory.mktemp('node') / 'log', {
        'weights': model.name, 'device': 'cpu', 'resolution': '96x64', 'threads': 1, 'use_sim_time': True,
        'image_transport': 'compressed', 'diagnostics_rate': 5.0},
        {'image/compressed': '/camera/image_raw/compressed'})
    with nodes(node):
        yield node


def check(result, account, path, model):
    """Every frame is accounted for, and those that came back score what they score offline."""
    assert account['played'] == COUNT
    fates = ('returned', 'dropped', 'failed', 'not_received', 'not_returned')
    assert sum(account[k] for k in fates) == COUNT
    assert account['returned'] == result['counts']['segmented'] >= 1  # how many is the machine's business
    assert account['end_to_end']['count'] == account['returned'] and 0 < account['end_to_end']['p50'] < 5000
    alone = offline.evaluate_bags([path], model, truth=GroundTruthSource(topic=LABEL),
                                  run=Run(quiet=True))
    expected = {f['index']: f for f in alone.scores.result()['frames']}
    for frame in result['frames']:
        for key in ('stamp_ns', 'miou', 'accuracy', 'shares', 'confidence'):
            assert frame[key] == expected[frame['index']][key]
        assert frame['latency_ms'] > 0


def test_own_node(model, tmp_path):
    """A node is started, gets one frame that it can't read among the others, and is stopped again."""
    path = write_bag(tmp_path / 'bag', 'rgb8', bad=(6,))
    found = live.replay(path, model, live.Live(deadline_s=0.0), truth=GroundTruthSource(topic=LABEL),
                        quiet=True, log=tmp_path / 'node.log')
    result, account = found.result({}), found.account
    check(result, account, path, model)
    assert result['model'] == model.load().identity() and result['live'] == account
    assert account['failed'] <= 1 and account['late'] == account['returned'], 'all are later than 0 ms'
    assert result['counts']['failed'] == 1 and result['counts'].get('missing', 0) == 14 - account['returned']
    assert found.sources[0]['frames'] == COUNT
    assert f'waiting for /replay_{os.getpid()}/image' in (tmp_path / 'node.log').read_text()


def test_video(model, tmp_path, monkeypatch):
    """Packets of H.264 in a CompressedImage are decoded here and sent as Images."""
    av = pytest.importorskip('av', reason='av is not installed')
    context = av.CodecContext.create('libx264', 'w')
    context.width, context.height, context.pix_fmt, context.time_base = 128, 96, 'yuv420p', Fraction(1, 10)
    context.options = {'tune': 'zerolatency'}
    with bag_writer.Writer(tmp_path / 'bag.mcap') as writer:
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), 40 * i, np.uint8), 'rgb24')
            frame.pts = i
            data = np.frombuffer(b''.join(bytes(p) for p in context.encode(frame)), np.uint8)
            stamp = 1000 * NS + i * NS // 5
            writer.write('/camera/h264', bags.TYPES['sensor_msgs/msg/CompressedImage'](
                bags.header(stamp, 'camera'), 'h264', data), stamp)
    found = live.replay(tmp_path / 'bag.mcap', model, live.Live(), quiet=True)
    assert found.account['played'] == 6 and found.account['returned'] >= 1 and not found.account['failed']
    monkeypatch.setattr(live.Live, '__post_init__', lambda self: None)  # it asks for a ros2 command
    with pytest.raises(EvaluationError, match='--player ros2 plays topics of Image'):
        live.replay(tmp_path / 'bag.mcap', model, live.Live(player='ros2'), quiet=True)


def test_running_node_on_simulated_time(model, compressed, running_node, tmp_path, capsys):
    code = main(['replay', str(compressed), '--label-topic', LABEL, '--model', model.name, '--resolution',
                 '96x64', '--device', 'cpu', '--node', '/segmentation', '--use-sim-time', '--rate', '2',
                 '--json', str(tmp_path / 'r.json'), '--report', str(tmp_path / 'report')])
    said = capsys.readouterr().out
    result = json.loads((tmp_path / 'r.json').read_text())
    lost = [k for k in ('failed', 'not_received', 'not_returned') if result['live'][k]]
    assert code == (3 if lost else 0), 'a loaded machine may lose frames'
    assert f'{COUNT} played' in said and 'frame to label: p50' in said
    check(result, result['live'], compressed, model)
    assert result['live']['use_sim_time'] and result['live']['node'] == '/segmentation'
    assert 'not received' in (tmp_path / 'report' / 'report.html').read_text()
    assert running_node.running, 'a node that was there before stays'


def test_a_part_of_a_recording(model, compressed, running_node, tmp_path):
    """Frames 3 to 11, each fourth: what --start, --duration and --every say in evaluate, too."""
    out = tmp_path / 'r.json'
    main(['replay', str(compressed), '--model', model.name, '--resolution', '96x64', '--device', 'cpu',
          '--node', '/segmentation', '--use-sim-time', '--start', '0.3', '--duration', '0.9', '--every', '4f',
          '--label-topic', LABEL, '--json', str(out)])
    result = json.loads(out.read_text())
    assert result['live']['played'] == result['counts']['read'] == 3
    assert {f['index'] for f in result['frames']} <= {3, 7, 11} and result['frames']
    with pytest.raises(EvaluationError, match='has no frame from 60 s on'):
        live.replay(compressed, model, live.Live(), truth=GroundTruthSource(topic=LABEL),
                    selection=Selection(60 * NS), quiet=True)


def test_the_result_names_the_network_of_the_node(model, compressed, running_node, tmp_path):
    """What a running node runs stands in the result, not what --model would load here."""
    network, card = weights.load(model.name)
    other = tmp_path / 'other.safetensors'
    weights.save(other, network, replace(card, dataset='elsewhere', source='the same tensors, another card'))
    told = live.Live(node='/segmentation', use_sim_time=True, rate=4.0)
    found = live.replay(compressed, ModelSpec(str(other), 'cpu', precision='bfloat16'), told,
                        image_topic='/camera/image_raw/compressed', quiet=True)
    node = found.result({})['model']
    assert (node['weights'], node['sha256']) == (Path(model.name).name, weights.digest(model.name))
    assert (node['precision'], node['resolution'], node['dataset']) == ('float32', '96x64', card.dataset)


def test_a_node_with_other_classes_is_refused(model, compressed, running_node, tmp_path):
    _, card = weights.load(model.name)
    labels = replace(card.labels, names=('nothing', *card.labels.names[1:]), groups={})
    other = tmp_path / 'other.safetensors'
    weights.save(other, weights.load(model.name)[0], replace(card, labels=labels))
    with pytest.raises(EvaluationError, match='/segmentation has the classes .*; --model has nothing, '):
        live.replay(compressed, ModelSpec(str(other), 'cpu'),
                    live.Live(node='/segmentation', use_sim_time=True),
                    image_topic='/camera/image_raw/compressed', quiet=True)


def test_ros2_bag_play(model, compressed, running_node, tmp_path, monkeypatch):
    """Frames that another player plays are timed when they come by."""
    player = tmp_path / 'ros2'
    player.write_text(PLAYER.format(python=sys.executable, root=str(Path(__file__).resolve().parents[1])))
    player.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    told = live.Live(node='/segmentation', player='ros2', use_sim_time=True)
    truth = GroundTruthSource(topic=LABEL)
    found = live.replay(compressed, model, told, truth=truth, quiet=True)
    check(found.scores.result(), found.account, compressed, model)


def test_what_is_refused(model, compressed, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(EvaluationError, match='there is no ros2 here'):
        live.Live(player='ros2')
    with pytest.raises(EvaluationError, match='rate is 0; expected more'):
        live.Live(rate=0)
    with pytest.raises(WeightsError, match='no such file'):
        live.replay(compressed, ModelSpec('nothing.safetensors'), live.Live())
    with pytest.raises(ProbeError, match="ended with exit code 1; it said: .*device is 'nonsense'"):
        live.replay(compressed, ModelSpec(model.name, 'nonsense'), live.Live(),
                    truth=GroundTruthSource(topic=LABEL))


def test_launch_file(tmp_path, monkeypatch):
    """What the launch file starts, where launch and launch_ros are installed."""
    pytest.importorskip('launch_ros', reason='launch_ros comes with a ROS distribution, not from PyPI')
    import importlib.util

    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, ExecuteProcess
    root = Path(__file__).resolve().parents[1]
    index = tmp_path / 'share' / 'ament_index' / 'resource_index' / 'packages'
    index.mkdir(parents=True)
    (index / 'lightseg_ros').touch()
    (tmp_path / 'share' / 'lightseg_ros').symlink_to(root)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    spec = importlib.util.spec_from_file_location('replay_launch', root / 'launch' / 'replay.launch.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entities = module.generate_launch_description().entities
    arguments = [e for e in entities if isinstance(e, DeclareLaunchArgument)]
    assert all(a.description for a in arguments)
    context = LaunchContext()
    context.launch_configurations.update({
        a.name: ''.join(s.text for s in a.default_value or []) for a in arguments} | {
        'bag': 'drive', 'image_topic': '/cam/compressed', 'use_sim_time': 'true', 'report': 'out'})
    segment, player = module.actions(context)
    assert dict(segment.launch_arguments).items() >= {
        'image_topic': '/cam', 'image_transport': 'compressed', 'use_sim_time': 'true'}.items()
    assert isinstance(player, ExecuteProcess)
    words = [''.join(s.text for s in word) for word in player.cmd]
    assert words[0] == str(tmp_path / 'lib' / 'lightseg_ros' / 'lightseg')
    # The command line takes them.
    import argparse

    from lightseg_ros.cli import replay as verb
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    args = parser.parse_args(words[2:])
    assert (str(args.bag), args.node, args.image_topic, str(args.report)) == (
        'drive', '/segmentation', '/cam/compressed', 'out')
    assert args.use_sim_time and args.model == 'laanet' and args.rate == 1.0 and args.player == 'own'
