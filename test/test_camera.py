# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
from time import monotonic, sleep, time_ns

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='no rclpy: pip install ros-rclpy, or source a ROS 2 distribution')

from rclpy.qos import QoSProfile  # noqa: E402
from rclpy.time import Time  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402

from lightseg_ros import images  # noqa: E402

TOPICS = {'image': Image, 'image/compressed': CompressedImage, 'camera_info': CameraInfo,
          'camera/ground_truth': Image, 'depth': Image}


class Camera:
    """The node in a process of its own, with everything that it publishes, by topic, as it came."""

    def __init__(self, log, parameters):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, args=[])
        self.node = rclpy.create_node('viewer', context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.seen = {topic: [] for topic in TOPICS}
        self.arrived = []
        for topic, kind in TOPICS.items():
            self.node.create_subscription(
                kind, topic, lambda msg, t=topic: self.take(t, msg), QoSProfile(depth=100))
        command = [sys.executable, '-m', 'lightseg_ros.nodes.camera', '--ros-args']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={value}']
        self.log = log
        self.process = subprocess.Popen(command, stdout=log.open('w'), stderr=subprocess.STDOUT)

    def take(self, topic, msg):
        self.seen[topic].append(msg)
        if topic.startswith('image'):
            self.arrived.append(monotonic())

    def spin(self, until=lambda: False, seconds=20.0):
        """Spin until a condition holds; an assertion after `seconds` unless there was no condition."""
        end = monotonic() + seconds
        while not until() and monotonic() < end:
            self.executor.spin_once(0.02)
        return until()

    def close(self):
        self.process.terminate()  # one that is killed leaves 70 MB of shared memory behind
        try:
            self.process.wait(15)
        finally:
            self.process.kill()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def camera(tmp_path):
    cameras = []

    def start(**parameters):
        cameras.append(Camera(tmp_path / 'camera.log', parameters))
        return cameras[-1]

    yield start
    for c in cameras:
        c.close()


@pytest.fixture
def folder(tmp_path):
    """Four frames of one grey each, 10, 20, 30 and one that is broken, with labels of one class each."""
    for name in ('test', 'testannot'):
        (tmp_path / name).mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / 'test' / f'{i}.png'), np.full((48, 64, 3), 10 * (i + 1), np.uint8))
        cv2.imwrite(str(tmp_path / 'testannot' / f'{i}.png'), np.full((48, 64), i, np.uint8))
    (tmp_path / 'test' / '3.png').write_bytes(b'broken')
    return tmp_path / 'test'


def headers(messages):
    return [(m.header.stamp.sec, m.header.stamp.nanosec, m.header.frame_id) for m in messages]


def test_the_street_comes_with_truth_and_camera_info_under_one_header(camera):
    began_ns = time_ns()
    c = camera(width=160, height=120, rate=20, frame_id='front', encoding='bgr8', depth=True)
    assert c.spin(lambda: len(c.seen['camera/ground_truth']) > 10), c.log.read_text()
    c.spin(seconds=0.2)
    # The publishers find their subscribers one after the other, and depth 1 may skip a frame of each.
    image, info, truth, depth = (dict(zip(headers(c.seen[t]), c.seen[t]))
                                 for t in ('image', 'camera_info', 'camera/ground_truth', 'depth'))
    whole = [h for h in image if h in info and h in truth and h in depth]
    assert len(whole) > 5
    image, info, truth, depth = ([m[h] for h in whole] for m in (image, info, truth, depth))
    gaps = np.diff([Time.from_msg(m.header.stamp).nanoseconds for m in image]) / 1e6
    assert np.median(gaps) > 45, gaps
    if os.getloadavg()[0] < os.cpu_count():  # else the street is painted at the pace that other work leaves
        assert np.median(gaps) < 105, gaps
    assert image[0].header.frame_id == 'front' and image[0].encoding == 'bgr8'
    assert truth[0].encoding == 'mono8'
    assert Time.from_msg(image[0].header.stamp).nanoseconds > began_ns
    assert (info[0].width, info[0].height) == (image[0].width, image[0].height) == (160, 120)
    assert info[0].k[0] == info[0].p[0] == 0.9 * 160 and info[0].k[2] == 79.5
    assert info[0].distortion_model == 'plumb_bob' and len(info[0].d) == 5
    # The very frames of the renderer: colours in the right order, labels of this image and no other.
    from lightseg_ros.synthetic.street import Street
    street = Street(160, 120, with_depth=True)
    rendered = (street.render(i / 20) for i in range(200))
    ids = next(ids for rgb, ids in rendered if np.array_equal(rgb, images.decode(image[0])))
    metres = np.where((street.depth > 0) & (street.depth < 65.5), street.depth, np.nan)
    np.testing.assert_allclose(images.decode_depth(depth[0]), metres, atol=6e-4)
    np.testing.assert_array_equal(np.frombuffer(truth[0].data, np.uint8).reshape(120, 160), ids)


def test_a_folder_loops_with_its_truth_and_without_the_broken_image(camera, folder):
    c = camera(source=folder, rate=20, loop=True)
    assert c.spin(lambda: len(c.seen['camera/ground_truth']) > 12), c.log.read_text()
    said = c.log.read_text()
    assert '3.png is not a readable image: 6 bytes' in said and 'left out (1 of 4 so far)' in said
    truth = dict(zip(headers(c.seen['camera/ground_truth']), c.seen['camera/ground_truth']))
    pairs = [(int(images.decode(m)[0, 0, 0]), truth[h].data[0])
             for h, m in zip(headers(c.seen['image']), c.seen['image']) if h in truth]
    assert set(pairs) == {(10, 0), (20, 1), (30, 2)}
    assert not any(c.seen['camera_info'][-1].k)  # not calibrated


@pytest.mark.parametrize('parameters, count', [({}, 3), ({'loop': True, 'count': 8}, 8), ({'count': 2}, 2)])
def test_it_ends_by_itself_after_the_last_frame(camera, folder, parameters, count):
    c = camera(source=folder, rate=50, **parameters)
    assert c.process.wait(20) == 0
    assert f'{count} frames published; the source has no more' in c.log.read_text()


def test_compressed_images_of_another_size(camera, folder):
    c = camera(source=folder / '0.png', rate=20, loop=True, image_transport='compressed', width=32)
    assert c.spin(lambda: c.seen['image/compressed']), c.log.read_text()
    assert images.decode(c.seen['image/compressed'][-1]).shape == (24, 32, 3)
    assert not c.seen['image']


def test_after_a_pause_no_burst(camera, folder):
    c = camera(source=folder / '0.png', rate=50, loop=True)
    assert c.spin(lambda: len(c.seen['image']) > 5), c.log.read_text()
    c.process.send_signal(signal.SIGSTOP)
    sleep(1.0)
    c.spin(seconds=0.1)
    resumed, before = monotonic(), len(c.arrived)
    c.process.send_signal(signal.SIGCONT)
    c.spin(seconds=0.4)
    # 50 frames fell due in the pause; 20 are due since, and one may be made up for.
    assert 5 < len(c.arrived) - before <= 24
    assert sum(t - resumed < 0.1 for t in c.arrived[before:]) <= 8


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(camera, folder, number):
    c = camera(source=folder, loop=True)
    assert c.spin(lambda: c.seen['image']), c.log.read_text()
    c.process.send_signal(number)
    assert c.process.wait(10) == 0
    assert 'Traceback' not in c.log.read_text()


def test_a_source_that_is_not_there_is_one_line_and_exit_code_1(camera, tmp_path):
    c = camera(source=tmp_path / 'nowhere')
    assert c.process.wait(20) == 1
    assert 'ERROR: no source' in c.log.read_text() and 'Traceback' not in c.log.read_text()


def test_a_source_that_breaks_later_too(camera, tmp_path):
    (tmp_path / 'x.png').write_bytes(b'broken')
    c = camera(source=tmp_path, loop=True)
    assert c.process.wait(20) == 1
    assert 'ERROR: none of the 1 images' in c.log.read_text()
