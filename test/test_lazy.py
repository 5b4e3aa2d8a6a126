# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A node that is left on a robot: idle without listeners, and responsive while networks are exchanged."""
import json
import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')

from rcl_interfaces.msg import ParameterType  # noqa: E402
from rcl_interfaces.srv import GetParameters  # noqa: E402
from rclpy.qos import QoSDurabilityPolicy, QoSProfile  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402
from test_lifecycle import Manager, start  # noqa: E402, F401

from lightseg_ros import images, labels, networks, weights  # noqa: E402

LATCHED = QoSProfile(depth=5, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
# Structured, so that an untrained network finds several classes.
FRAME = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8),
                np.ones((16, 16, 1), np.uint8))


def silent(manager):
    """Take away the label's only subscriber."""
    manager.node.destroy_subscription(manager.label_subscription)
    manager.spin(lambda: 'idle' in manager.latest().message)


def listen(manager):
    manager.label_subscription = manager.node.create_subscription(
        Image, f'/{manager.name}/label', manager.labels.append, QoSProfile(depth=10))


def received(manager):
    return int({v.key: v.value for v in manager.latest().values}['received'])


def send(manager, count, frame=FRAME, rate_hz=30.0):
    """Publish frames at a rate, spinning in between."""
    began = time.monotonic()
    for i in range(count):
        header = Header(stamp=manager.node.get_clock().now().to_msg())
        manager.camera.publish(images.encode(frame, 'rgb8', header, Image()))
        while time.monotonic() < began + (i + 1) / rate_hz:
            rclpy.spin_once(manager.node, timeout_sec=0.005)


def test_without_a_listener_images_are_ignored(start):  # noqa: F811
    m = start('lazy', autostart=True)
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    m.spin(lambda: m.play(3) > 0)
    silent(m)
    before = received(m)
    send(m, 10)
    assert received(m) == before and m.latest().level == b'\0'
    listen(m)
    m.spin(lambda: m.node.count_subscribers('/lazy/label') == 1)
    m.spin(lambda: m.play(1) == 1, 5)
    silent(m)
    # The parameter takes booleans too, which is how YAML reads true and false.
    assert m.set_parameter('lazy', type=ParameterType.PARAMETER_BOOL, bool_value=False).successful
    before = received(m)
    m.spin(lambda: m.play(1) or received(m) > before)
    assert not m.set_parameter('lazy', type=ParameterType.PARAMETER_STRING, string_value='maybe').successful


def test_lazy_subscription_leaves_the_camera(start):  # noqa: F811
    m = start('leaver', autostart=True, lazy='subscription')
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    m.spin(lambda: m.play(3) > 0)
    for _ in range(3):
        silent(m)
        m.spin(lambda: m.camera.get_subscription_count() == 0, 5)
        listen(m)
        m.spin(lambda: m.camera.get_subscription_count() == 1, 5)
        m.spin(lambda: m.play(1) > 0, 5)


def test_the_first_image_of_a_size_is_announced(start):  # noqa: F811
    m = start('sized', autostart=True, image_size='128x96', resolution='native')
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    m.spin(lambda: m.play(3) > 0)
    assert 'preparing' not in m.process.log.read_text()
    m.status.clear()
    frame = np.zeros((1088, 1920, 3), np.uint8)
    m.labels.clear()
    send(m, 1, frame)
    m.spin(lambda: any(label.width == 1920 for label in m.labels))
    log = m.process.log.read_text()
    assert 'preparing the network for images of 1920x1088' in log and 'ready for images of 1920x1088' in log
    assert any(s.message == 'preparing 1920x1088' and s.level == b'\0' for s in m.status)


def test_a_network_is_exchanged_beside_the_running_one(start, tmp_path):  # noqa: F811
    """Labels go on, services answer, and each label is of the set that label_info announced before it."""
    import torch
    two = labels.LabelSet('two', ('floor', 'rest'), ((1, 2, 3), (250, 0, 0)))
    torch.manual_seed(1)
    path = tmp_path / 'two.safetensors'
    weights.save(path, networks.build('affnet', 2), weights.Card('affnet', two, (100.0,) * 3, (60.0,) * 3,
                                                                 (64, 64)))
    m = start('swapped', autostart=True)
    announced, seen = [], []
    m.node.create_subscription(String, '/swapped/label_info_json', lambda msg: announced.append(
        labels.LabelSet.from_dict(json.loads(msg.data)).names), LATCHED)
    m.node.create_subscription(Image, '/swapped/label', lambda msg: seen.append(
        (time.monotonic(), max(msg.data), len(announced[-1]))), QoSProfile(depth=10))
    m.spin(lambda: announced and m.camera.get_subscription_count() == 1)
    m.spin(lambda: m.play(3) > 0)
    m.spin(lambda: m.play(10) == 10)
    assert max(m.labels[-1].data) > 1, 'the first network must be told from the second by its labels'
    seen.clear()
    client = m.node.create_client(GetParameters, '/swapped/get_parameters')
    assert client.wait_for_service(10)
    from rcl_interfaces.msg import Parameter, ParameterValue
    from rcl_interfaces.srv import SetParameters
    setter = m.node.create_client(SetParameters, '/swapped/set_parameters')
    assert setter.wait_for_service(10)
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(path))
    change = setter.call_async(SetParameters.Request(parameters=[Parameter(name='weights', value=value)]))
    answers, began = [], time.monotonic()
    while not change.done():
        asked = time.monotonic()
        answer = client.call_async(GetParameters.Request(names=['model']))
        send(m, 1)
        m.spin(answer.done)
        answers.append(time.monotonic() - asked)
        m.process.check()
    took = time.monotonic() - began
    assert change.result().results[0].successful
    send(m, 30)
    of_old, of_new = [s for s in seen if s[1] > 1], [s for s in seen if s[1] <= 1]
    assert len(of_old) > 5 and len(of_new) > 5
    assert seen == of_old + of_new
    # A label beyond the two classes must not follow the announcement of two classes, nor the other way round.
    # Labels that waited in the subscriber's queue may be delivered after an announcement that came later.
    assert all(count == 2 for _, _, count in of_new)
    assert sum(count == 2 for _, _, count in of_old) <= 2
    gaps = np.diff([at for at, _, _ in seen])
    print(f'exchange took {took:.1f} s; longest gap between labels {1e3 * gaps.max():.0f} ms; '
          f'service p95 {1e3 * np.percentile(answers, 95):.0f} ms of {len(answers)}')
    assert gaps.max() < max(0.5, took / 2)
    assert 'affnet' in {v.key: v.value for v in m.latest().values}['model']
