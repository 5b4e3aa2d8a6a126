# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the node takes from a camera, and what it knows of the images that did not arrive."""
import time

import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from lightseg_ros.nodes.inputs import Images  # noqa: E402


class Camera:
    """A publisher and our subscription, in one process; images are told apart by their width."""

    def __init__(self, name, **overrides):
        self.node = rclpy.create_node(name, parameter_overrides=[
            Parameter(f'qos_overrides./{name}/image.subscription.{key}', value=value)
            for key, value in overrides.items()])
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.got, self.lost = [], []
        self.topic = f'/{name}/image'
        self.images = Images(self.node, self.lost.append)
        self.images.subscribe(Image, self.topic, lambda msg: self.got.append(msg.width))
        self.publishers = []
        self.publisher()

    def publisher(self):
        self.publishers.append(self.node.create_publisher(Image, self.topic, QoSProfile(depth=100)))
        self.spin(lambda: self.publishers[-1].get_subscription_count() == 1)
        return self.publishers[-1]

    def spin(self, until=lambda: False, timeout_s=20.0):
        end = time.monotonic() + timeout_s
        while not until() and time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)
        return until()

    def publish(self, *widths, to=0):
        for width in widths:
            self.publishers[to].publish(Image(width=width))
            time.sleep(0.05)  # best effort: let the middleware put it into the queue


@pytest.fixture
def camera(ros):
    made = []

    def make(name, **overrides):
        made.append(Camera(name, **overrides))
        return made[-1]

    yield make
    for camera in made:
        camera.executor.shutdown()
        camera.node.destroy_node()


def test_what_nobody_wants_is_neither_taken_nor_kept_nor_lost(camera):
    c = camera('unwanted')
    c.publish(1)
    assert c.spin(lambda: c.got == [1])
    c.images.take(False)
    c.publish(2, 3, 4)
    c.spin(timeout_s=0.5)
    assert c.got == [1]
    c.images.take(True)
    c.spin(timeout_s=0.3)
    assert c.got == [1], 'an image from before somebody listened'
    c.publish(5)
    assert c.spin(lambda: c.got == [1, 5]) and not c.lost


def test_what_nobody_wants_does_not_wake_the_executor(camera):
    c = camera('asleep')
    c.images.take(False)
    c.publish(1)
    group, asked = c.images._group, []
    is_wanted = type(group).can_execute
    group.can_execute = lambda entity: asked.append(entity) or is_wanted(group, entity)
    c.spin(timeout_s=1.0)  # waits 50 times
    assert len(asked) < 1000, 'it spins'


def test_a_queue_without_a_limit_is_emptied(camera):
    c = camera('unlimited', history='keep_all')
    c.images.take(False)
    c.publish(1, 2)
    assert c.spin(lambda: c.got == [1, 2])


def test_images_that_are_replaced_in_the_queue_are_counted(camera):
    c = camera('lossy')
    c.publish(1)
    assert c.spin(lambda: c.got == [1])
    c.publish(2, 3, 4, 5)  # nobody spins, and the queue holds one
    assert c.spin(lambda: c.got[-1] == 5)
    assert len(c.got) < 5 and len(c.got) + sum(c.lost) == 5


def test_publishers_are_counted_apart(camera):
    c = camera('both')
    c.publisher()
    for width in range(5):
        c.publish(width)
        assert c.spin(lambda: len(c.got) == width + 1)  # noqa: B023
    c.publish(10, to=1)
    assert c.spin(lambda: c.got[-1] == 10)
    c.publish(11)
    assert c.spin(lambda: c.got[-1] == 11)
    c.publish(12, to=1)
    assert c.spin(lambda: c.got[-1] == 12) and not c.lost


def test_an_override_is_for_its_topic_alone(camera):
    """An override changes the profile that rclpy is given, which both share here."""
    c = camera('own', depth=7)
    other = Images(c.node, print)
    other.subscribe(Image, '/other/image', print)
    assert [images._subscription.qos_profile.depth for images in (c.images, other)] == [7, 1]
