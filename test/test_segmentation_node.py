# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node in a process of its own, fed by real publishers over DDS."""
import json
from pathlib import Path
import re
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue  # noqa: E402
from rcl_interfaces.srv import GetParameters, SetParameters  # noqa: E402
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from rclpy.time import Time  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402

from lightseg_ros import images, labels  # noqa: E402
from lightseg_ros.inference import segmenter  # noqa: E402
from lightseg_ros.live.probe import NodeProcess, nodes  # noqa: E402
from lightseg_ros.nodes import announcements  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RELIABLE = QoSProfile(depth=20, reliability=QoSReliabilityPolicy.RELIABLE)
DEEP = QoSProfile(depth=100, reliability=QoSReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                     durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


class Peer:
    """A node of the test's own, that publishes images and keeps what comes back."""

    def __init__(self, process, name='segmentation', kind=Image, topic='/image', qos=RELIABLE, camera=''):
        self.process = process
        self.name = f'{name}/{camera}' if camera else name
        status = f'{name}: {camera} frames' if camera else f'{name}: frames'
        self.node = rclpy.create_node('tester')
        self.publisher = self.node.create_publisher(kind, topic, qos)
        self.got = {'label': [], 'overlay': [], 'confidence': []}
        self.status = []
        self.subscribe('label')
        self.node.create_subscription(
            DiagnosticArray, '/diagnostics',
            lambda m: self.status.extend(s for s in m.status if s.name == status), 10)
        self.spin(self.publisher.get_subscription_count, 60)
        # Both ends have to find each other, in both directions; until then frames and labels may be lost.
        self.sent = 0
        frame = images.encode(picture(), 'rgb8' if kind is Image else 'png', self.header(), kind())
        end = time.monotonic() + 30
        while not self.got['label']:
            assert time.monotonic() < end, process.log.read_text()
            self.publisher.publish(frame)
            self.sent += 1
            for _ in range(10):
                rclpy.spin_once(self.node, timeout_sec=0.03)

    def subscribe(self, output):
        return self.node.create_subscription(
            Image, f'/{self.name}/{output}', self.got[output].append, RELIABLE)

    def spin(self, until, timeout_s=60.0):
        end = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < end, f'nothing in {timeout_s} s; log: {self.process.log.read_text()}'
            self.process.check()
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def header(self, frame_id='cam'):
        return Header(stamp=self.node.get_clock().now().to_msg(), frame_id=frame_id)

    def send(self, msg, output='label'):
        """Publish and wait for the answer to just this message."""
        self.publisher.publish(msg)
        self.spin(lambda: any(m.header == msg.header for m in self.got[output]))
        return next(m for m in self.got[output] if m.header == msg.header)

    def values(self):
        """Diagnostics made after this call."""
        self.status.clear()
        self.spin(lambda: len(self.status) >= 2)
        return {v.key: v.value for v in self.status[-1].values}

    def close(self):
        self.node.destroy_node()


@pytest.fixture(scope='module')
def process(ros, random_weights, tmp_path_factory):
    with nodes(NodeProcess('segmentation', tmp_path_factory.mktemp('log') / 'node.log', {
            'weights': str(random_weights), 'resolution': '128x96', 'diagnostics_rate': 10,
            'overlay_alfa': 0.3})) as (process,):
        yield process
    assert process.process.returncode == 0


def own(name, folder, parameters):
    """Start a node beside the module's one, under another name and on topics of its own."""
    remap = {'__node': name, 'image': f'/{name}/image', 'image/compressed': f'/{name}/image/compressed'}
    return NodeProcess('segmentation', folder / 'node.log', parameters, remap)


@pytest.fixture
def tester(process):
    tester = Peer(process)
    yield tester
    tester.close()


@pytest.fixture(scope='module')
def reference(random_weights):
    """The same network in this process."""
    return segmenter.load(random_weights, resolution='128x96')


def picture(height=120, width=160, seed=0):
    """Smooth noise, so that neighbouring pixels belong together."""
    import cv2
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_label_is_the_network_s_and_the_header_the_input_s(tester, reference):
    frame = picture()
    sent = images.encode(frame, 'rgb8', tester.header('front_camera'), Image())
    label = tester.send(sent)
    assert label.header == sent.header and label.header.frame_id == 'front_camera'
    assert (label.encoding, label.height, label.width, label.step) == ('mono8', 120, 160, 160)
    expected = reference([frame])[0].labels
    assert (images.decode(label)[..., 0] == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize(('height', 'width', 'padding', 'encoding'), [
    (121, 163, 0, 'rgb8'), (120, 160, 32, 'rgb8'), (121, 163, 5, 'bgr8'), (75, 200, 3, 'mono8')])
def test_odd_sizes_and_padded_steps(tester, reference, height, width, padding, encoding):
    frame = picture(height, width, seed=1)
    pixels = frame if encoding == 'rgb8' else frame[..., ::-1] if encoding == 'bgr8' else frame[..., 0]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    msg = Image(header=tester.header(), height=height, width=width, encoding=encoding,
                step=rows.shape[1] + padding)
    # Padding of another colour: whoever ignores `step` sees a skewed image.
    msg.data.frombytes(np.pad(rows, ((0, 0), (0, padding)), constant_values=255).tobytes())
    label = images.decode(tester.send(msg))[..., 0]
    expected = frame if encoding != 'mono8' else np.repeat(frame[..., :1], 3, 2)
    assert label.shape == (height, width)
    assert (label == reference([expected])[0].labels).mean() > 0.999


def test_bad_frames_are_counted_and_forgotten(tester):
    before = tester.values()
    bad = Image(header=tester.header(), height=10, width=10, encoding='jp2', step=30)
    tester.publisher.publish(bad)
    tester.spin(lambda: tester.status and int(dict_of(tester.status[-1])['failed'])
                == int(before['failed']) + 1)
    assert "'jp2'" in dict_of(tester.status[-1])['last error']
    assert tester.status[-1].level == b'\x02'
    good = images.encode(picture(), 'rgb8', tester.header(), Image())
    assert tester.send(good).width == 160
    # A camera whose clock is broken: its frames are as good as others.
    before = tester.values()
    good.header.stamp.sec = -5
    assert tester.send(good).width == 160
    tester.spin(lambda: int(dict_of(tester.status[-1])['processed']) > int(before['processed']))
    assert int(dict_of(tester.status[-1])['failed']) == int(before['failed'])
    log = tester.process.log.read_text()
    assert 'jp2' in log and "unknown parameter 'overlay_alfa'" in log and "'overlay_alpha'" in log


def dict_of(status):
    return {v.key: v.value for v in status.values}


def test_a_clock_that_is_not_the_camera_s_is_a_warning(tester):
    def send_until(words, age_s=0):
        end = time.monotonic() + 30
        while not (tester.status and tester.status[-1].level == b'\1' and words in tester.status[-1].message):
            assert time.monotonic() < end, tester.status[-1:]
            header = tester.header()
            header.stamp.sec -= age_s
            tester.send(images.encode(picture(), 'rgb8', header, Image()))

    send_until('s ahead of this one: synchronise the clocks', -5)
    send_until('s behind this one: for a recording', 3600)
    assert float(dict_of(tester.status[-1])['age max (ms)']) < 60e3
    switch = ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=True)
    assert set_parameter(tester, 'use_sim_time', switch).successful
    send_until('use_sim_time is true, but nothing publishes /clock')
    switch.bool_value = False
    assert set_parameter(tester, 'use_sim_time', switch).successful


def test_best_effort_publishers_connect_too(process):
    tester = Peer(process, qos=BEST_EFFORT)  # waits for a first label
    assert tester.got['label'][0].encoding == 'mono8'
    tester.close()


def test_overlay_and_confidence_only_while_subscribed(tester, reference):
    frame = picture()
    tester.send(images.encode(frame, 'rgb8', tester.header(), Image()))
    assert tester.node.count_publishers('/segmentation/overlay') == 1
    subscriptions = [tester.subscribe('overlay'), tester.subscribe('confidence')]
    deadline = time.monotonic() + 20
    while not (tester.got['overlay'] and tester.got['confidence']):
        assert time.monotonic() < deadline
        tester.send(images.encode(frame, 'rgb8', tester.header(), Image()))
        for _ in range(5):
            rclpy.spin_once(tester.node, timeout_sec=0.05)
    overlay, confidence = tester.got['overlay'][-1], tester.got['confidence'][-1]
    expected = reference([frame], overlay=True, confidence=True)[0]
    assert (overlay.encoding, overlay.step) == ('rgb8', 480)
    assert (confidence.encoding, confidence.step) == ('mono8', 160)
    difference = images.decode(overlay).astype(int) - expected.overlay
    assert (abs(difference).max(2) <= 1).mean() > 0.999
    assert abs(images.decode(confidence)[..., 0].astype(int) - expected.confidence).mean() < 1
    for subscription in subscriptions:
        tester.node.destroy_subscription(subscription)


def test_labels_do_not_wait_for_what_takes_longer(tester):
    """At 1080p the confidence takes many milliseconds; the label is here before they have begun."""
    arrived = {'label': {}, 'confidence': {}}

    def note(kind):
        def on_message(msg):
            arrived[kind].setdefault(Time.from_msg(msg.header.stamp).nanoseconds, time.monotonic())
        return tester.node.create_subscription(Image, f'/{tester.name}/{kind}', on_message, RELIABLE)

    subscriptions = [note(kind) for kind in arrived]
    frame = images.encode(picture(1080, 1920), 'rgb8', tester.header(), Image())
    while len(arrived['confidence']) < 12:
        frame.header = tester.header()
        tester.publisher.publish(frame)
        seen = len(arrived['confidence'])
        end = time.monotonic() + 2
        while len(arrived['confidence']) == seen and time.monotonic() < end:
            rclpy.spin_once(tester.node, timeout_sec=0.02)
        tester.process.check()
    rest_ms = float(tester.values()['rest p50 (ms)'])
    gaps_ms = sorted(1e3 * (at - arrived['label'][stamp]) for stamp, at in arrived['confidence'].items())
    gap_ms = gaps_ms[len(gaps_ms) // 2]
    print(f'confidence {gap_ms:.1f} ms after the label; the node took {rest_ms:.1f} ms for it')
    assert gap_ms > 0.25 * rest_ms and gaps_ms[0] > 0
    for subscription in subscriptions:
        tester.node.destroy_subscription(subscription)


def set_parameter(tester, name, value):
    client = tester.node.create_client(SetParameters, f'/{tester.name}/set_parameters')
    assert client.wait_for_service(10)
    future = client.call_async(SetParameters.Request(parameters=[Parameter(name=name, value=value)]))
    tester.spin(future.done, 300)  # a cold network on a busy machine
    return future.result().results[0]


def double(value):
    return ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)


def test_parameters_are_live_and_validated_or_read_only(tester):
    assert set_parameter(tester, 'overlay_alpha', double(1.0)).successful
    frame = picture()
    subscription = tester.subscribe('overlay')
    deadline = time.monotonic() + 20
    while not tester.got['overlay']:
        assert time.monotonic() < deadline
        label = tester.send(images.encode(frame, 'rgb8', tester.header(), Image()))
        tester.spin(lambda: True)
        for _ in range(5):
            rclpy.spin_once(tester.node, timeout_sec=0.05)
    overlay = tester.got['overlay'][-1]
    # At 1.0 the overlay is the class's colour alone.
    palette = labels.load('camvid').palette()
    assert (images.decode(overlay) == palette[images.decode(label)[..., 0]]).all()
    tester.node.destroy_subscription(subscription)
    assert not set_parameter(tester, 'overlay_alpha', double(1.5)).successful
    loaded = tester.process.log.read_text().count('loading')
    assert not set_parameter(tester, 'device', text('cpu')).successful
    assert tester.process.log.read_text().count('loading') == loaded, 'refused before anything is loaded'
    assert set_parameter(tester, 'overlay_alpha', double(0.5)).successful


def test_integers_for_floats_and_numbers_for_texts(tester):
    """What YAML makes of `ros2 param set /segmentation max_rate 5`; it reads back as the declared type."""
    def integer(value):
        return ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)

    client = tester.node.create_client(GetParameters, f'/{tester.name}/get_parameters')
    assert client.wait_for_service(10)
    for name, value, stored in (
            ('max_rate', integer(5), double(5.0)), ('max_rate', integer(0), double(0.0)),
            ('overlay_alpha', integer(1), double(1.0)), ('overlay_alpha', double(0.5), double(0.5)),
            ('max_pixels', double(2.0 ** 26), integer(2 ** 26)), ('rotation', integer(180), text('180')),
            ('rotation', integer(0), text('0'))):
        assert set_parameter(tester, name, value).successful, name
        future = client.call_async(GetParameters.Request(names=[name]))
        tester.spin(future.done)
        assert future.result().values == [stored]
    for name, value, words in (('roi', integer(12), "roi is '12'; expected WIDTHxHEIGHT+X+Y"),
                               ('max_rate', integer(1001), "'max_rate' is 1001.0; expected 0.0 to 1000.0"),
                               ('max_rate', text('x'), "'max_rate' is a str; expected float"),
                               ('max_rat', double(1.0), "'max_rat'; did you mean 'max_rate'?"),
                               ('roi', text('='), "roi is '='; expected WIDTHxHEIGHT+X+Y"),
                               ('rotation', double(45.5), "rotation is '45.5'; expected one of 0, 90")):
        refused = set_parameter(tester, name, value)
        assert not refused.successful and words in refused.reason
    tester.send(images.encode(picture(), 'rgb8', tester.header(), Image()))


def test_labels_are_smoothed(tester, reference):
    """Over the images of a camera, while the parameter says so; another rotation starts anew."""
    frames, smoother = [picture(seed=seed) for seed in range(30, 34)], segmenter.Smoother(0.6)

    def labels_of(i):
        # Stamps of a camera: on a busy machine the next image is sent too late to belong to the last one.
        header = Header(stamp=Time(nanoseconds=10 ** 18 + i * 10 ** 8).to_msg(), frame_id=f'{i}')
        return images.decode(tester.send(images.encode(frames[i], 'rgb8', header, Image())))[..., 0]

    assert set_parameter(tester, 'smoothing', double(0.6)).successful
    for i, frame in enumerate(frames):
        if i == 3:
            assert set_parameter(tester, 'rotation', text('180')).successful
            frame = frame[::-1, ::-1]
            smoother.forget()
        plain, smooth = (reference(frame, **options).labels for options in ({}, {'smoothers': [smoother]}))
        found = labels_of(i)[::-1, ::-1] if i == 3 else labels_of(i)
        assert (found == smooth).mean() > 0.999
        assert ((plain == smooth).mean() < 0.99) == (i in (1, 2))
    assert tester.values()['smoothing'] == '0.6'
    assert set_parameter(tester, 'rotation', text('0')).successful
    assert set_parameter(tester, 'smoothing', double(0.0)).successful
    for i in range(2):
        tester.got['label'].clear()
        assert (labels_of(i) == reference(frames[i]).labels).mean() > 0.999


def test_the_range_of_a_16_bit_camera(tester, reference, process):
    """Counts of a thermal camera: the node says once that it sees little; with a range it sees all."""
    grey = picture()[..., 0]
    counts = (7000 + 2000 / 255 * grey.astype(float)).round().astype(np.uint16)
    for _ in range(2):
        dark = images.decode(tester.send(images.encode(counts, 'mono16', tester.header(), Image())))[..., 0]
    tester.spin(lambda: 'values span' in process.log.read_text())  # a log may be later than a label
    said = process.log.read_text()
    assert said.count('mono16 values span') == 1 and 'of 256 grey levels; parameter value_range' in said
    assert set_parameter(tester, 'value_range', text('7000:9000')).successful
    label = images.decode(tester.send(images.encode(counts, 'mono16', tester.header(), Image())))[..., 0]
    expected = reference([np.repeat(grey[..., None], 3, 2)])[0].labels
    assert (label == expected).mean() > 0.99 > (dark == expected).mean()
    refused = set_parameter(tester, 'value_range', text('9000:7000'))
    assert not refused.successful and "'full', 'auto' or MIN:MAX" in refused.reason
    assert set_parameter(tester, 'value_range', text('full')).successful


def text(value):
    return ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(value))


def test_another_network_while_it_runs(tester, reference, random_weights, tmp_path):
    """Weights with other classes, and back; what fails is refused with a reason and changes nothing."""
    import torch

    from lightseg_ros import networks, weights
    two = labels.LabelSet('two', ('floor', 'rest'), ((1, 2, 3), (250, 0, 0)))
    torch.manual_seed(1)
    weights.save(tmp_path / 'two.safetensors', networks.build('affnet', 2), weights.Card(
        'affnet', two, (100.0,) * 3, (60.0,) * 3, (128, 96)))
    frame, classes = picture(), []
    if announcements.LabelInfo is None:
        tester.node.create_subscription(String, '/segmentation/label_info_json', lambda m: classes.append(
            labels.LabelSet.from_dict(json.loads(m.data)).names), LATCHED)
    else:
        tester.node.create_subscription(
            announcements.LabelInfo, '/segmentation/label_info',
            lambda m: classes.append(tuple(c.class_name for c in m.class_map)), LATCHED)
    tester.spin(lambda: classes)

    def seen():
        label = tester.send(images.encode(frame, 'rgb8', tester.header(), Image()))
        return images.decode(label)[..., 0]

    assert set_parameter(tester, 'weights', text(tmp_path / 'two.safetensors')).successful
    other = segmenter.load(tmp_path / 'two.safetensors', resolution='128x96')
    assert (seen() == other([frame])[0].labels).mean() > 0.999
    tester.spin(lambda: classes[-1] == two.names)
    assert tester.values()['model'] == 'affnet'
    for name, value, words in (('weights', tmp_path / 'none.safetensors', 'none.safetensors'),
                               ('resolution', '12x', "resolution is '12x'; expected WIDTHxHEIGHT")):
        refused = set_parameter(tester, name, text(value))
        assert not refused.successful
        assert words in refused.reason and 'affnet stays in force' in refused.reason
    assert set_parameter(tester, 'model', text('elanet')).successful  # for when there are no weights
    assert "takes precedence until it is ''" in tester.process.log.read_text()
    assert (seen() == other([frame])[0].labels).mean() > 0.999

    assert set_parameter(tester, 'resolution', text('64x64')).successful
    assert 'two.safetensors at 64x64; affnet goes on meanwhile' in tester.process.log.read_text()
    small = segmenter.load(tmp_path / 'two.safetensors', resolution='64x64')
    assert (seen() == small([frame])[0].labels).mean() > 0.999
    # A file that was written anew is another network.
    torch.manual_seed(2)
    weights.save(tmp_path / 'two.safetensors', networks.build('lrnnet', 11), weights.Card(
        'lrnnet', labels.load('camvid'), (100.0,) * 3, (60.0,) * 3, (64, 64)))
    assert set_parameter(tester, 'weights', text(tmp_path / 'two.safetensors')).successful
    assert tester.values()['model'] == 'lrnnet'
    tester.spin(lambda: classes[-1] == labels.load('camvid').names)
    assert set_parameter(tester, 'resolution', text('128x96')).successful
    assert set_parameter(tester, 'weights', text(random_weights)).successful
    assert (seen() == reference([frame])[0].labels).mean() > 0.999


def test_nothing_that_is_asked_for_ends_the_node(tester, reference, random_weights, tmp_path):
    """Each of these once ended it, or left half of what was asked for in force."""
    from safetensors.torch import load_file, save_file

    from lightseg_ros import weights
    card = json.loads(weights.read_card(random_weights).to_json())
    card['labels']['classes'][0]['name'] = '\ud800'
    save_file(load_file(random_weights), tmp_path / 'surrogate.safetensors',
              {'format': weights.FORMAT, 'card': json.dumps(card)})
    (tmp_path / 'file').write_text('')
    for value in ('x' * 300, f'/{"x" * 300}.safetensors', 'y' * 200_000 + '.safetensors',
                  tmp_path / 'file' / 'x.safetensors', tmp_path / 'surrogate.safetensors'):
        refused = set_parameter(tester, 'weights', text(value))
        assert not refused.successful and len(refused.reason) < 2000
        assert 'laanet stays in force' in refused.reason
    assert not set_parameter(tester, 'weights', ParameterValue(type=200)).successful
    # As `ros2 param delete` and `ros2 param set ... true` send them; there once was no answer.
    for value in (ParameterValue(), ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=True),
                  ParameterValue(type=ParameterType.PARAMETER_DOUBLE_ARRAY, double_array_value=[1.0])):
        assert not set_parameter(tester, 'model', value).successful
    # Bytes that are no UTF-8 where a text should be; rclpy raises when it takes the message.
    msg = images.encode(picture(), 'rgb8', tester.header(), Image())
    msg.encoding = 'bad!'
    tester.publisher.publish(serialize_message(msg).replace(b'bad!', b'\xff\xfe\xff\xff'))
    msg.encoding = 'x' * 5_000_000
    tester.publisher.publish(msg)
    tester.spin(lambda: any('unknown encoding' in v.value for s in tester.status for v in s.values))
    assert max(len(v.value) for s in tester.status for v in s.values) < 2000
    frame = picture()
    label = tester.send(images.encode(frame, 'rgb8', tester.header(), Image()))
    assert (images.decode(label)[..., 0] == reference([frame])[0].labels).mean() > 0.999
    log = tester.process.log.read_text()
    assert 'Traceback' not in log and max(map(len, log.splitlines())) < 2000


def test_the_security_policy_allows_what_the_node_does(tester):
    """SROS 2 would refuse every topic and service that config/segmentation.policy.xml does not name."""
    profile = ElementTree.parse(ROOT / 'config' / 'segmentation.policy.xml').find('.//profile')
    node, name = tester.node, ('segmentation', '/')
    for rule, found in (('topics[@publish]/topic', node.get_publisher_names_and_types_by_node(*name)),
                        ('topics[@subscribe]/topic', node.get_subscriber_names_and_types_by_node(*name)),
                        ('services[@reply]/service', node.get_service_names_and_types_by_node(*name))):
        allowed = {entry.text for entry in profile.findall(rule)}
        assert found and {topic for topic, _ in found} <= allowed


def test_at_rest_it_leaves_images_alone(tester):
    def boolean(value):
        return ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=value)

    message = images.encode(picture(), 'rgb8', tester.header(), Image())
    tester.send(message)
    assert set_parameter(tester, 'enabled', boolean(False)).successful
    before = tester.values()
    for _ in range(5):
        tester.publisher.publish(message)
    after = tester.values()
    assert after['received'] == before['received'] and after['processed'] == before['processed']
    assert tester.status[-1].level == b'\0' and 'at rest' in tester.status[-1].message
    assert set_parameter(tester, 'enabled', boolean(True)).successful
    tester.send(images.encode(picture(), 'rgb8', tester.header(), Image()))


def test_classes_are_latched(tester):
    try:
        from vision_msgs.msg import LabelInfo
    except ImportError:
        got = []
        tester.node.create_subscription(String, '/segmentation/label_info_json', got.append, LATCHED)
        tester.spin(lambda: got)
        assert labels.LabelSet.from_dict(json.loads(got[0].data)) == labels.load('camvid')
    else:
        got = []
        tester.node.create_subscription(LabelInfo, '/segmentation/label_info', got.append, LATCHED)
        tester.spin(lambda: got)
        assert tuple(c.class_name for c in got[0].class_map) == labels.load('camvid').names


def test_diagnostics(tester):
    tester.send(images.encode(picture(), 'rgb8', tester.header(), Image()))
    values = tester.values()
    for key in ('fps in', 'fps out', 'received', 'processed', 'dropped', 'failed', 'age p50 (ms)',
                'network p95 (ms)', 'decode max (ms)', 'publish p50 (ms)', 'memory (MB)'):
        assert float(values[key]) >= 0, key
    assert values['model'] == 'laanet' and values['device'] == 'CPU'
    assert 0 < float(values['network p50 (ms)']) <= float(values['age max (ms)'])


def test_newest_frame_wins_and_every_drop_is_counted(ros, random_weights, tmp_path):
    """A network far slower than the camera: what is not segmented is counted, the last one is segmented."""
    parameters = {'weights': str(random_weights), 'resolution': '960x720', 'diagnostics_rate': 10.0,
                  # Reliable and deep, so that what is sent is received and the counts must be equal.
                  'qos_overrides./slow/image.subscription.reliability': 'reliable',
                  'qos_overrides./slow/image.subscription.depth': 100}
    with nodes(own('slow', tmp_path, parameters)) as (process,):
        tester = Peer(process, 'slow', topic='/slow/image', qos=DEEP)
        before = settled(tester)
        tester.got['label'].clear()
        frame = picture(48, 64)
        stamps = []
        for _ in range(60):
            header = tester.header()
            stamps.append(Time.from_msg(header.stamp).nanoseconds)
            tester.publisher.publish(images.encode(frame, 'rgb8', header, Image()))
            rclpy.spin_once(tester.node, timeout_sec=0.01)
        tester.spin(lambda: tester.got['label']
                    and Time.from_msg(tester.got['label'][-1].header.stamp).nanoseconds == stamps[-1])
        after = settled(tester)
        seen = [Time.from_msg(m.header.stamp).nanoseconds for m in tester.got['label']]
        tester.close()
    assert seen == sorted(seen) and len(seen) < 60
    assert {k: after[k] - before[k] for k in after} == {
        'received': 60, 'processed': len(seen), 'dropped': 60 - len(seen), 'failed': 0}


def settled(tester):
    """Return the counters once every received frame is accounted for."""
    while True:
        values = tester.values()
        counts = {k: int(values[k]) for k in ('received', 'processed', 'dropped', 'failed')}
        if counts['received'] == counts['processed'] + counts['dropped'] + counts['failed']:
            return counts


def test_several_cameras(ros, random_weights, reference, tmp_path, monkeypatch):
    """Topics, headers, sizes and counts of their own; what is wrong with one camera is not the other's."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))  # nothing is compiled yet
    with nodes(own('many', tmp_path, {'weights': str(random_weights), 'resolution': '128x96',
                                      'diagnostics_rate': 10.0, 'cameras': 'front left'})) as (process,):
        front, left = (Peer(process, 'many', topic=f'/{name}/image', camera=name)
                       for name in ('front', 'left'))
        # The network is compiled for a new size of one camera while the other one goes on.
        pictures = [picture(seed=5), picture(90, 200, seed=6)]
        sent = images.encode(pictures[1], 'rgb8', left.header('new'), Image())
        began, took = time.monotonic(), []
        left.publisher.publish(sent)
        while not any(label.header == sent.header for label in left.got['label']):
            assert time.monotonic() < began + 100, process.log.read_text()
            asked = time.monotonic()
            front.send(images.encode(pictures[0], 'rgb8', front.header(), Image()))
            took.append(time.monotonic() - asked)
            rclpy.spin_once(left.node, timeout_sec=0)
        print(f'{len(took)} labels in {sum(took):.1f} s, the slowest after {max(took):.2f} s')
        assert len(took) > 5 and sum(took) > 1 and max(took) < max(1.0, sum(took) / 3)
        before = settled(front), settled(left)
        for i in range(3):
            sent = [images.encode(frame, 'rgb8', peer.header(f'{peer.name} {i}'), Image())
                    for frame, peer in zip(pictures, (front, left))]
            front.publisher.publish(sent[0])
            labels_of = [left.send(sent[1])]
            front.spin(lambda: front.got['label'][-1].header == sent[0].header)  # noqa: B023
            labels_of.insert(0, front.got['label'][-1])
            for label, frame, msg in zip(labels_of, pictures, sent):
                assert label.header == msg.header and (label.height, label.width) == frame.shape[:2]
                assert (images.decode(label)[..., 0] == reference([frame])[0].labels).mean() > 0.999
        left.publisher.publish(Image(header=left.header(), height=10, width=10, encoding='jp2', step=30))
        left.spin(lambda: left.status and left.status[-1].level == b'\x02')
        # Diagnostics from before have queued up here.
        front.spin(lambda: front.status
                   and int(dict_of(front.status[-1])['received']) == before[0]['received'] + 3)
        counts = [{k: v - b[k] for k, v in settled(peer).items()} for peer, b in zip((front, left), before)]
        front.close()
        left.close()
    assert counts == [{'received': 3, 'processed': 3, 'dropped': 0, 'failed': 0},
                      {'received': 4, 'processed': 3, 'dropped': 0, 'failed': 1}]
    assert 'left frame failed' in process.log.read_text()


def test_a_new_region_is_prepared_beside_the_one_in_force(ros, random_weights, tmp_path, monkeypatch):
    """Labels of the old framing go on while the network is compiled for the new one, which then holds."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))  # nothing is compiled yet
    (tmp_path / 'mask.png').write_bytes(bytes(images.encode(
        np.full((120, 160), 255, np.uint8), 'png', Header(), CompressedImage()).data))
    with nodes(own('framed', tmp_path, {'weights': str(random_weights), 'resolution': '320x240',
                                        'image_size': '160x120'})) as (process,):
        tester = Peer(process, 'framed', topic='/framed/image')
        client = tester.node.create_client(SetParameters, '/framed/set_parameters')
        for name, value in (('roi', '160x60+0+60'), ('mask', str(tmp_path / 'mask.png'))):
            future = client.call_async(SetParameters.Request(parameters=[
                Parameter(name=name, value=text(value))]))
            began, times, wholes = time.monotonic(), [], []
            end = float('inf')
            while time.monotonic() < end:
                tester.got['label'].clear()
                header = tester.header()
                tester.publisher.publish(images.encode(picture(), 'rgb8', header, Image()))
                for _ in range(3):
                    rclpy.spin_once(tester.node, timeout_sec=0.03)
                if tester.got['label']:
                    times.append(time.monotonic())
                    wholes.append((images.decode(tester.got['label'][-1])[:60] != 255).any())
                if future.done() and end == float('inf'):
                    took, end = time.monotonic() - began, time.monotonic() + 1
                process.check()
                assert time.monotonic() < began + 300
            assert future.result().results[0].successful
            longest = max(np.diff([began, *times]))
            print(f'{name}: answered after {took:.1f} s, longest time without a label {longest:.2f} s')
            assert longest < max(1.0, took / 3)
            if name == 'roi':
                assert took > 1, 'nothing was compiled'
                # The old framing, then the new one, and never back.
                assert wholes[0] and not wholes[-1] and wholes == sorted(wholes, reverse=True)
        tester.close()
    log = process.log.read_text()
    assert 'preparing laanet for images of 160x60; the size in force goes on' in log
    assert 'preparing the network for images of' not in log, 'frames had to wait'


def test_images_that_do_not_arrive_are_a_hint(ros, random_weights, tmp_path):
    """A camera is connected and sends camera_info, but its images are too large for the middleware."""
    with nodes(own('huge', tmp_path, {'weights': str(random_weights), 'resolution': '64x64',
                                      'diagnostics_rate': 5, 'backend': 'torch'})) as (process,):
        tester = Peer(process, 'huge', topic='/huge/image')  # a first image arrives
        info = tester.node.create_publisher(CameraInfo, '/camera_info', RELIABLE)

        def said(words):
            info.publish(CameraInfo(width=8192, height=4096))
            return tester.status and words in tester.status[-1].message

        tester.spin(lambda: said('camera_info arrives, but no image on /huge/image: 8192x4096 in three '
                                 'colours is 100.7 MB'), 60)
        tester.spin(lambda: 'segment_size of Fast DDS' in process.log.read_text())
        tester.send(images.encode(picture(), 'rgb8', tester.header(), Image()))
        tester.spin(lambda: tester.status[-1].message and not said('no image on'))
        tester.close()
    assert process.log.read_text().count('segment_size of Fast DDS') == 1


def test_compressed_transport(ros, random_weights, tmp_path):
    with nodes(own('packed', tmp_path, {'weights': str(random_weights), 'resolution': '128x96',
                                        'image_transport': 'compressed'})) as (process,):
        tester = Peer(process, 'packed', CompressedImage, '/packed/image/compressed')
        sent = images.encode(picture(), 'png', tester.header(), CompressedImage())
        label = tester.send(sent)
        tester.close()
    assert label.header == sent.header and (label.height, label.width) == (120, 160)


@pytest.mark.parametrize('numbers', [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)])
def test_clean_exit(ros, random_weights, tmp_path, numbers):
    """Twice as well: a terminal and ros2 launch both send it, and the second meets a frame under way."""
    process = own('short', tmp_path, {'weights': str(random_weights), 'resolution': '960x720'})
    with nodes(process):
        tester = Peer(process, 'short', topic='/short/image')
        for _ in range(20):
            tester.publisher.publish(images.encode(picture(), 'rgb8', tester.header(), Image()))
            rclpy.spin_once(tester.node, timeout_sec=0.01)
        tester.close()
        for number in numbers:
            process.process.send_signal(number)
            time.sleep(0.03)
        assert process.process.wait(15) == 0
    assert 'Traceback' not in process.log.read_text()


@pytest.mark.parametrize(('module', 'ready'), [('segmentation', 'active'), ('camera', 'publishing')])
def test_nothing_stays_in_shared_memory(random_weights, tmp_path, module, ready):
    """
    Each end of the segmentation node once left 70 MB there.

    Ports are not looked at: they belong to all processes, and the next one takes them over.
    """
    with nodes(NodeProcess(module, tmp_path / 'log.txt', {
            'weights': str(random_weights), 'resolution': '128x96'} if module == 'segmentation' else {})) as (
            process,):
        end = time.monotonic() + 60
        while ready not in process.log.read_text():
            assert time.monotonic() < end
            time.sleep(0.1)
        # Whoever has made a segment keeps its lock open; those of others are mapped too.
        locks = [file.readlink() for file in Path(f'/proc/{process.process.pid}/fd').iterdir()]
        segments = [lock.with_name(lock.name.removesuffix('_el')) for lock in locks
                    if re.fullmatch('fastdds_[0-9a-f]{16}_el', lock.name)]
        assert segments and all(path.exists() for path in segments)
        assert process.stop() == 0
    assert not [path for path in segments if path.exists()]


@pytest.mark.parametrize(('parameter', 'message'), [
    ('model:=segnet', "no packaged weights for 'segnet'; packaged:"),
    ('resolution:=big', "resolution is 'big'; expected WIDTHxHEIGHT"),
    ('overlay_alpha:=2.0', "'overlay_alpha' is 2.0; expected 0.0 to 1.0"),
    ('cameras:="front,front"', "'cameras' is 'front,front'; expected different names"),
    ('image_size:=big', "parameter 'image_size': size is 'big'; expected WIDTHxHEIGHT"),
    ('value_range:=wide', "parameter 'value_range': range of 16-bit images is 'wide'; expected 'full'"),
    ('weights:=~/nothing.safetensors', 'nothing.safetensors: no such file'),
    ('qos_overrides./image.subscription.reliability:=relaible',
     "'qos_overrides./image.subscription.reliability' is 'relaible'; expected reliable or best_effort"),
    ('cameras:="front front"', "'cameras' is 'front front'; expected different names"),
])
def test_a_wrong_parameter_is_one_line_and_exit_code_1(random_weights, parameter, message):
    weights = [] if parameter.startswith(('model', 'weights')) else ['-p', f'weights:={random_weights}']
    done = subprocess.run([sys.executable, '-m', 'lightseg_ros.nodes.segmentation', '--ros-args', *weights,
                           '-p', parameter], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    error, = (line for line in done.stderr.splitlines() if line.startswith('ERROR: '))
    assert message in error and 'Traceback' not in done.stderr


@pytest.mark.parametrize('node, example', [('segmentation', '-r image:=/camera/image_raw'),
                                           ('camera', '-p source:=images/')])
def test_help_starts_nothing(node, example):
    done = subprocess.run([sys.executable, '-m', f'lightseg_ros.nodes.{node}', '--help'],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr
    assert example in done.stdout and 'docs/node.md' in done.stdout and '\n  image_transport (' in done.stdout


def test_a_parameter_file_that_cannot_be_parsed_is_one_line(tmp_path):
    (tmp_path / 'p.yaml').write_text('segmentation: [')
    done = subprocess.run([sys.executable, '-m', 'lightseg_ros.nodes.segmentation', '--ros-args',
                           '--params-file', str(tmp_path / 'p.yaml')], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert "ERROR: failed to initialize rcl: Couldn't parse params file" in done.stderr


def test_qos_overrides_of_other_names_are_reported(ros, random_weights, tmp_path):
    with nodes(own('qos', tmp_path, {
            'weights': str(random_weights), 'resolution': '64x64',
            'qos_overrides./qos/imgae.subscription.reliability': 'reliable',
            'qos_overrides./qos/image.subscription.reliability': 'reliable'})) as (process,):
        Peer(process, 'qos', topic='/qos/image').close()
        log = process.log.read_text()
    assert ('qos_overrides./qos/imgae.subscription.reliability is ignored; did you mean '
            'qos_overrides./qos/image.subscription.reliability?') in log
    assert log.count('is ignored') == 1
