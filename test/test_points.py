# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Labelled point clouds: the geometry by hand and on the street; the node's over DDS."""
from array import array
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightseg_ros import images, labels, points
from lightseg_ros.images import ImageError
from lightseg_ros.points import Pinhole, PointsError
from lightseg_ros.synthetic.painting import CAR, ROAD
from lightseg_ros.synthetic.street import CAMERA_HEIGHT, Street

PALETTE = labels.load('camvid').palette()


def info(width=640, height=480, k=(500, 0, 320, 0, 510, 240, 0, 0, 1), p=None, roi=(0, 0, 0, 0)):
    x, y, w, h = roi
    return SimpleNamespace(width=width, height=height, k=k, p=p or 12 * [0.0], binning_x=0, binning_y=0,
                           roi=SimpleNamespace(x_offset=x, y_offset=y, width=w, height=h))


def depth_message(encoding, rows, width, big=0):
    return SimpleNamespace(header='h', height=rows.shape[0], width=width, encoding=encoding, is_bigendian=big,
                           step=rows.shape[1], data=array('B', rows.tobytes()))


# ------------------------------------------------------------------------------------------------- depth

@pytest.mark.parametrize('big', [0, 1])
@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize('encoding, kind, unit', [
    ('16UC1', 'u2', 1e-3), ('mono16', 'u2', 1e-3), ('32FC1', 'f4', 1)])
def test_depth_in_metres(encoding, kind, unit, padding, big):
    values = np.array([[0, 1, 1500], [65535, 7, 2]], kind)
    rows = values.astype(('>' if big else '<') + kind).view(np.uint8).reshape(2, -1)
    found = images.decode_depth(depth_message(encoding, np.pad(rows, ((0, 0), (0, padding))), 3, big))
    assert found.dtype == np.float32 and np.isnan(found[0, 0])
    np.testing.assert_allclose(np.nan_to_num(found), values * unit, rtol=1e-6)


def test_what_was_not_measured_is_nan():
    values = np.array([[0, -1, np.nan, np.inf, -np.inf, 2]], '<f4')
    found = images.decode_depth(depth_message('32FC1', values.view(np.uint8), 6))
    assert np.isnan(found[0, :5]).all() and found[0, 5] == 2


@pytest.mark.parametrize('encoding, rows, width, text', [
    ('rgb8', np.zeros((2, 9), np.uint8), 3, "depth in 'rgb8'; expected 16UC1, mono16, 32FC1"),
    ('32FC1', np.zeros((2, 9), np.uint8), 3, 'step 9; expected at least 12 bytes per row'),
    ('16UC1', np.zeros((0, 6), np.uint8), 3, 'depth of 3x0; expected at least one pixel')])
def test_depth_that_is_none(encoding, rows, width, text):
    with pytest.raises(ImageError, match=text):
        images.decode_depth(depth_message(encoding, rows, width))


# ---------------------------------------------------------------------------------------------- geometry

def test_the_camera_is_p_where_it_is_filled_else_k():
    assert points.pinhole(info(), 480, 640) == Pinhole(500, 510, 320, 240)
    rectified = [450.0, 0, 310, 0, 0, 460.0, 230, 0, 0, 0, 1, 0]
    assert points.pinhole(info(p=rectified), 480, 640) == Pinhole(450, 460, 310, 230)


@pytest.mark.parametrize('factor', [2, 4])
def test_a_smaller_depth_image_looks_in_the_same_directions(factor):
    whole, small = points.pinhole(info(), 480, 640), points.pinhole(info(), 480 // factor, 640 // factor)
    # The centre of small pixel 10 is the centre of the `factor` pixels that it covers.
    u = factor * 10 + (factor - 1) / 2
    assert (10 - small.cx) / small.fx == pytest.approx((u - whole.cx) / whole.fx)
    assert (10 - small.cy) / small.fy == pytest.approx((u - whole.cy) / whole.fy)


def test_a_region_of_interest_shifts_the_principal_point():
    found = points.pinhole(info(roi=(100, 60, 320, 240)), 240, 320)
    assert found == Pinhole(500, 510, 220, 180)


@pytest.mark.parametrize('message, text', [
    (info(k=[500, 0, float('nan'), 0, 510, 240, 0, 0, 1]), 'camera_info of 640x480 holds NaN or infinity'),
    (info(k=9 * [0]), 'camera_info of 640x480 has no focal length: the camera is not calibrated'),
    (info(640, 360), 'camera_info is for 640x360 pixels, depth has 640x480; expected the same aspect ratio'),
    (info(0, 0), 'camera_info is for 0x0 pixels')])
def test_a_camera_that_does_not_fit(message, text):
    with pytest.raises(PointsError, match=text):
        points.pinhole(message, 480, 640)


def test_points_project_to_their_own_pixels():
    rng = np.random.default_rng(1)
    depth = rng.uniform(0.5, 20, (48, 64)).astype(np.float32)
    depth[3, 5] = np.nan
    ids, confidence = (rng.integers(0, top, (48, 64), np.uint8) for top in (11, 256))
    camera = Pinhole(50, 51, 31.5, 22)
    cloud = points.cloud(depth, camera, ids, confidence, PALETTE)
    assert cloud.shape == (48, 64) and cloud.dtype.itemsize == 24
    v, u = np.mgrid[:48, :64]
    known = np.isfinite(depth)
    assert all(np.isnan(cloud[axis][3, 5]) for axis in 'xyz') and known.sum() == 48 * 64 - 1
    np.testing.assert_array_equal(cloud['z'], depth)
    np.testing.assert_allclose((50 * cloud['x'] / cloud['z'] + 31.5)[known], u[known], atol=1e-3)
    np.testing.assert_allclose((51 * cloud['y'] / cloud['z'] + 22)[known], v[known], atol=1e-3)
    np.testing.assert_array_equal(cloud['label'], ids)
    np.testing.assert_array_equal(cloud['confidence'], confidence)
    red, green, blue = PALETTE[ids[9, 7]].tolist()
    assert cloud['rgb'][9, 7] == red << 16 | green << 8 | blue


D = {'plumb_bob': (-0.3, 0.09, 0.001, -0.002, 0.0), 'equidistant': (0.05, -0.02, 0.004, -0.001),
     'rational_polynomial': (0.4, -0.1, 0.001, -0.001, 0.01, 0.7, -0.05, 0.02)}


@pytest.mark.parametrize('model', D)
def test_points_project_through_the_lens_to_their_own_pixels(model):
    import cv2
    message = info(k=(500, 0, 330, 0, 510, 230, 0, 0, 1), p=[400.0, 0, 320, 0, 0, 400.0, 240, 0, 0, 0, 1, 0])
    message.distortion_model, message.d = model, D[model]
    camera = points.pinhole(message, 120, 160, distorted=True)
    ids = np.zeros((120, 160), np.uint8)
    depth = np.random.default_rng(1).uniform(0.5, 20, (120, 160)).astype(np.float32)
    cloud = points.cloud(depth, camera, ids, ids, PALETTE)
    xyz = np.stack([cloud[axis] for axis in 'xyz'], 2).reshape(-1, 1, 3).astype(float)
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    project = cv2.fisheye.projectPoints if model == 'equidistant' else cv2.projectPoints
    pixels = project(xyz, np.zeros(3), np.zeros(3), matrix, np.array(D[model]))[0].reshape(120, 160, 2)
    v, u = np.mgrid[:120, :160]
    np.testing.assert_allclose(pixels, np.stack([u, v], 2), atol=0.02)
    np.testing.assert_array_equal(cloud['z'], depth)
    # Without the option the image counts as rectified, and P is its camera.
    assert points.pinhole(message, 480, 640) == Pinhole(400, 400, 320, 240)


@pytest.mark.parametrize('model, d, text', [
    ('thin_prism', (0.1,) * 12, "'thin_prism' with 12 coefficients; expected plumb_bob .5., rational"),
    ('plumb_bob', (0.1,) * 4, "'plumb_bob' with 4 coefficients")])
def test_a_lens_of_another_model_is_named(model, d, text):
    message = info()
    message.distortion_model, message.d = model, d
    with pytest.raises(PointsError, match=text):
        points.pinhole(message, 480, 640, distorted=True)


@pytest.mark.parametrize('height, width', [(24, 32), (96, 128), (30, 40)])
def test_labels_of_another_size_come_from_the_nearest_pixel(height, width):
    ids = np.random.default_rng(2).integers(0, 11, (48, 64), np.uint8)
    cloud = points.cloud(np.ones((height, width), np.float32), Pinhole(50, 50, 0, 0), ids, ids, PALETTE)
    for v, u in ((0, 0), (height - 1, width - 1), (7, 11)):
        there = int((v + 0.5) * 48 / height), int((u + 0.5) * 64 / width)
        assert cloud['label'][v, u] == ids[there] == cloud['confidence'][v, u]


def test_depth_of_another_shape_is_not_registered():
    ids = np.zeros((480, 640), np.uint8)
    with pytest.raises(PointsError, match='depth has 640x360 pixels, labels have 640x480; expected depth'):
        points.cloud(np.ones((360, 640), np.float32), Pinhole(1, 1, 0, 0), ids, ids, PALETTE)


def test_the_street_s_depth_is_where_its_classes_are():
    """The road lies flat below the camera, and cars stand on it, no higher than cars are."""
    street = Street(320, 240, seed=3, with_depth=True)
    k = street.matrix
    for t in (0.0, 4.2):
        rgb, ids = street.render(t)
        depth = np.where(street.depth > 0, street.depth, np.nan)
        assert np.isnan(depth).any() and np.nanmin(depth) > 0.5
        cloud = points.cloud(depth, Pinhole(k[0, 0], k[1, 1], k[0, 2], k[1, 2]), ids, ids, PALETTE)
        near = cloud[cloud['z'] < 30]
        road, cars = near[near['label'] == ROAD], near[near['label'] == CAR]
        assert len(road) > 8000 and len(cars) > 300
        assert abs(np.median(road['y']) - CAMERA_HEIGHT) < 0.05
        assert (abs(road['y'] - CAMERA_HEIGHT) < 0.25).mean() > 0.97
        assert (cars['y'] < CAMERA_HEIGHT + 0.3).all() and (cars['y'] > CAMERA_HEIGHT - 2.2).mean() > 0.95
        plain = Street(320, 240, seed=3).render(t)
        np.testing.assert_array_equal(plain[0], rgb)


@pytest.mark.parametrize('frame_id', ['', 'c', 'ca', 'cam'])  # moves what follows in the serialized message
@pytest.mark.parametrize('width', [8, 1 << 16])
def test_the_message_reads_back(frame_id, width):
    """As long as what rclpy makes of the whole message, and the same for who reads it."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    from rclpy.serialization import deserialize_message, serialize_message
    from sensor_msgs.msg import PointCloud2, PointField
    from std_msgs.msg import Header
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 11, (6, width), np.uint8)
    cloud = points.cloud(rng.random((6, width)).astype(np.float32), Pinhole(5, 5, 3, 3), ids, ids, PALETTE)
    raw = points.serialized(cloud, Header(frame_id=frame_id), PointCloud2(), PointField, serialize_message)
    msg = deserialize_message(raw, PointCloud2)
    assert len(raw) == len(serialize_message(msg))  # of which the gaps between fields hold anything
    assert (msg.header.frame_id, msg.height, msg.width) == (frame_id, 6, width)
    assert (msg.point_step, msg.row_step, msg.is_dense) == (24, 24 * width, False)
    assert {f.name: f.offset for f in msg.fields} == {
        'x': 0, 'y': 4, 'z': 8, 'rgb': 12, 'label': 16, 'confidence': 20}
    assert np.frombuffer(msg.data, '<f4')[2::6].tolist() == cloud['z'].ravel().tolist()
    assert np.frombuffer(msg.data, '<u4')[4::6].tolist() == ids.ravel().tolist()


def test_sensor_msgs_py_reads_the_message():
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    reader = pytest.importorskip('sensor_msgs_py.point_cloud2',
                                 reason='sensor_msgs_py comes with a ROS distribution, not from PyPI')
    from rclpy.serialization import deserialize_message, serialize_message
    from sensor_msgs.msg import PointCloud2, PointField
    from std_msgs.msg import Header
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8) % 11
    depth = np.linspace(1, 2, 48, dtype=np.float32).reshape(6, 8)
    depth[2, 2] = np.nan
    cloud = points.cloud(depth, Pinhole(5, 5, 3, 3), ids, ids, PALETTE)
    raw = points.serialized(cloud, Header(frame_id='cam'), PointCloud2(), PointField, serialize_message)
    msg = deserialize_message(raw, PointCloud2)
    found = reader.read_points(msg, reshape_organized_cloud=True)
    for name in ('x', 'y', 'z', 'label', 'confidence'):
        np.testing.assert_array_equal(found[name].reshape(6, 8), cloud[name])
    assert len(reader.read_points(msg, skip_nans=True)) == 47


# ---------------------------------------------------------------------------------------------- the node

@pytest.fixture(scope='module')
def scene(ros, random_weights, tmp_path_factory):
    """A node with points, and a peer that sends images and depth, and gets points and diagnostics."""
    from diagnostic_msgs.msg import DiagnosticArray
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CameraInfo, Image, PointCloud2

    from lightseg_ros.live.probe import NodeProcess, nodes

    class Scene:
        sent = 0

        def __init__(self, process):
            self.process, self.node = process, rclpy.create_node('scene')
            self.clouds: list[Any] = []
            self.status: list[Any] = []
            qos = QoSProfile(depth=20)
            self.image, self.depth, self.info = (
                self.node.create_publisher(kind, f'/pts/{topic}', qos)
                for kind, topic in ((Image, 'image'), (Image, 'depth'), (CameraInfo, 'camera_info')))
            self.node.create_subscription(PointCloud2, '/pts/points', self.clouds.append, qos)
            self.node.create_subscription(DiagnosticArray, '/diagnostics', lambda m: self.status.extend(
                s for s in m.status if s.name == 'pts: frames'), qos)
            self.spin(lambda: all(
                p.get_subscription_count() for p in (self.image, self.depth, self.info)), 60)

        def spin(self, until, timeout_s=30.0):
            end = time.monotonic() + timeout_s
            while not until():
                assert time.monotonic() < end, self.process.log.read_text()
                self.process.check()
                rclpy.spin_once(self.node, timeout_sec=0.02)

        def values(self):
            self.status.clear()
            self.spin(lambda: len(self.status) >= 2)
            return {v.key: v.value for v in self.status[-1].values}

        def header(self, ms=0):
            """Headers a second apart, plus some milliseconds."""
            from std_msgs.msg import Header
            header = Header(frame_id='cam')
            header.stamp.sec, nanosec = divmod((1000 + self.sent) * 10 ** 9 + ms * 10 ** 6, 10 ** 9)
            header.stamp.nanosec = nanosec
            return header

        def send_image(self, height=96, width=128):
            type(self).sent += 1
            frame = np.random.default_rng(self.sent).integers(0, 256, (height, width, 3), np.uint8)
            self.image.publish(images.encode(frame, 'rgb8', self.header(), Image()))

        def send_depth(self, ms=0, encoding='16UC1', height=96, width=128):
            array = np.full((height, width), 2000, np.uint16) if encoding == '16UC1' else \
                np.zeros((height, width, 3), np.uint8)
            self.depth.publish(images.encode(array, encoding, self.header(ms), Image()))

        def send_info(self, d=(), center=64.0):
            self.info.publish(CameraInfo(height=96, width=128, d=d, distortion_model='plumb_bob',
                                         k=[100.0, 0, center, 0, 100.0, 48, 0, 0, 1]))

    with nodes(NodeProcess('segmentation', tmp_path_factory.mktemp('log') / 'node.log', {
            'weights': str(random_weights), 'resolution': '128x96', 'diagnostics_rate': 10.0,
            'publish_points': True}, {'__node': 'pts', 'image': '/pts/image', 'depth': '/pts/depth',
                                      'camera_info': '/pts/camera_info'})) as (process,):
        scene = Scene(process)
        # Both ends have to find each other; until then points may be lost.
        end = time.monotonic() + 60
        while not scene.clouds:
            assert time.monotonic() < end, process.log.read_text()
            scene.send_info()
            scene.send_image()
            scene.send_depth()
            for _ in range(10):
                rclpy.spin_once(scene.node, timeout_sec=0.03)
        yield scene
        scene.node.destroy_node()
    assert process.process.returncode == 0


@pytest.mark.parametrize('latched', [True, False])
def test_camera_info_that_was_published_once_arrives_and_so_does_one_that_is_not_kept(ros, latched):
    import rclpy
    from rclpy.event_handler import PublisherEventCallbacks
    from rclpy.qos import QoSDurabilityPolicy, QoSProfile
    from sensor_msgs.msg import CameraInfo

    from lightseg_ros.health import Health
    from lightseg_ros.nodes.points import Points
    from lightseg_ros.nodes.segmentation_parameters import SegmentationParameters
    node = rclpy.create_node('once', namespace=f'latched_{latched}')
    durability = QoSDurabilityPolicy.TRANSIENT_LOCAL if latched else QoSDurabilityPolicy.VOLATILE
    publisher = node.create_publisher(CameraInfo, 'camera_info', QoSProfile(depth=1, durability=durability))
    if latched:
        publisher.publish(CameraInfo(width=7))
    found = Points(node, '', SegmentationParameters(), Health(), PublisherEventCallbacks())
    found.subscribe()
    end = time.monotonic() + 20
    while found.info.latest is None:
        assert time.monotonic() < end
        found.info.look()
        rclpy.spin_once(node, timeout_sec=0.05)
        if not latched:
            publisher.publish(CameraInfo(width=7))
    assert found.info.latest.width == 7
    # A subscription that asks for what a publisher does not keep would be a warning in the camera's log.
    assert node.count_subscribers(found.info.topic) == 1 + latched
    found.destroy()
    node.destroy_node()


def test_distortion_is_said_once(scene):
    scene.send_info(d=[-0.3, 0.1, 0.0, 0.0, 0.0])
    published = int(scene.values()['points published'])
    for _ in range(2):
        scene.send_image()
        scene.send_depth()
        scene.spin(lambda before=published: int(scene.values()['points published']) > before)
        published = int(scene.values()['points published'])
    log = scene.process.log.read_text()
    assert log.count('/pts/camera_info describes a lens with distortion') == 1
    assert 'undistort_points' in log
    scene.send_info()


@pytest.mark.parametrize('depth_first', [True, False])
@pytest.mark.parametrize('late_ms', [0, 15])
def test_labels_meet_their_depth_whichever_comes_first(scene, depth_first, late_ms):
    before = int(scene.values()['processed'])
    scene.clouds.clear()
    if depth_first:
        type(scene).sent += 1
        scene.send_depth(late_ms)
        scene.spin(lambda: scene.values(), 5)
        type(scene).sent -= 1
    scene.send_image()
    if not depth_first:
        scene.spin(lambda: int(scene.values()['processed']) > before)
        assert not scene.clouds
        scene.send_depth(late_ms)
    scene.spin(lambda: scene.clouds)
    cloud, = scene.clouds
    assert cloud.header == scene.header(late_ms) and (cloud.height, cloud.width) == (96, 128)
    x, y, z = (np.frombuffer(cloud.data, '<f4')[i::6].reshape(96, 128) for i in range(3))
    assert (z == 2).all() and x[5, 64] == 0
    assert x[5, 84] == pytest.approx(0.4) and y[50, 0] == pytest.approx(0.04)


def test_labels_wait_for_their_own_depth_though_an_earlier_one_would_do(scene):
    """Aligned depth comes after the image; the frame before it may be within the tolerance."""
    processed = int(scene.values()['processed'])
    scene.clouds.clear()
    type(scene).sent += 1
    scene.send_depth(-10)
    scene.spin(lambda: scene.values(), 5)
    type(scene).sent -= 1
    scene.send_image()
    scene.spin(lambda: int(scene.values()['processed']) > processed)
    assert not scene.clouds
    scene.send_depth()
    scene.spin(lambda: scene.clouds)
    assert [cloud.header for cloud in scene.clouds] == [scene.header()]


def test_two_images_do_not_share_a_cloud(scene):
    values = scene.values()
    alone, published = int(values['labels without depth']), int(values['points published'])
    scene.send_image()
    scene.send_depth()
    scene.spin(lambda: int(scene.values()['points published']) > published)
    type(scene).sent -= 1
    scene.send_image()  # under the same stamp
    scene.spin(lambda: int(scene.values()['labels without depth']) > alone)
    assert int(scene.values()['points published']) == published + 1


def test_without_depth_that_is_near_enough_labels_are_counted_and_said(scene):
    values = scene.values()
    alone, published = int(values['labels without depth']), int(values['points published'])
    end, sent = time.monotonic() + 40, 0
    # It is said once ten in a row have found none.
    while 'no points: no depth on /pts/depth within 20 ms of the image' not in scene.process.log.read_text():
        assert time.monotonic() < end
        processed = int(scene.values()['processed'])
        scene.send_image()
        scene.send_depth(300)
        sent += 1
        scene.spin(lambda before=processed: int(scene.values()['processed']) > before)
    scene.spin(lambda: int(scene.values()['labels without depth']) == alone + sent)
    assert int(scene.values()['points published']) == published
    assert float(scene.values()['points p50 (ms)']) > 0


@pytest.mark.parametrize('bad, text', [
    ({'encoding': 'rgb8'}, "depth in 'rgb8'; expected 16UC1"),
    ({'width': 64}, 'camera_info is for 128x96 pixels, depth has 64x96; expected the same aspect ratio'),
    ({'center': float('nan')}, 'camera_info of 128x96 holds NaN or infinity; expected the numbers')])
def test_bad_depth_is_counted_and_labels_go_on(scene, bad, text):
    values = scene.values()
    failed, processed = int(values['points failed']), int(values['processed'])
    bad = dict(bad)
    scene.send_info(center=bad.pop('center', 64.0))
    scene.values()  # until it has arrived
    scene.send_image()
    scene.send_depth(**bad)
    scene.spin(lambda: int(scene.values()['points failed']) > failed)
    values = scene.values()
    # A planner that waits for points is told, though there are labels.
    assert scene.status[-1].level == b'\1' and f'no points: {text}' in scene.status[-1].message
    assert text in values['last points error']
    assert int(values['processed']) > processed and values['failed'] == '0'
    scene.clouds.clear()
    scene.send_info()
    scene.values()
    scene.send_image()
    scene.send_depth()
    scene.spin(lambda: scene.clouds)
    assert 'points' not in (scene.values() and scene.status[-1].message)


def test_compressed_depth_becomes_points(ros, random_weights, tmp_path):
    """As compressed_depth_image_transport writes it: 12 bytes of settings, then PNG (first broken) or RVL."""
    import cv2
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
    from std_msgs.msg import Header
    from test_images import rvl

    from lightseg_ros.live.probe import NodeProcess, nodes
    picture = cv2.imencode('.png', np.full((96, 128), 2000, np.uint16))[1].tobytes()
    depth = CompressedImage(format='16UC1; compressedDepth png', data=bytes(12) + picture[:40])
    image = images.encode(np.zeros((96, 128, 3), np.uint8), 'rgb8', Header(), Image())
    info = CameraInfo(height=96, width=128, k=[100.0, 0, 64, 0, 100.0, 48, 0, 0, 1])
    with nodes(NodeProcess('segmentation', tmp_path / 'node.log', {
            'weights': str(random_weights), 'resolution': '64x64', 'publish_points': True,
            'depth_transport': 'compressedDepth'}, {
                '__node': 'packed_depth', 'image': '/packed/image', 'camera_info': '/packed/camera_info',
                'depth/compressedDepth': '/packed/depth/compressedDepth'})) as (process,):
        node = rclpy.create_node('camera')
        clouds = []
        node.create_subscription(PointCloud2, '/packed_depth/points', clouds.append, QoSProfile(depth=5))
        publishers = [(node.create_publisher(type(msg), f'/packed/{topic}', QoSProfile(depth=5)), msg)
                      for topic, msg in (('camera_info', info), ('image', image),
                                         ('depth/compressedDepth', depth))]
        end, sent, second = time.monotonic() + 60, 0, 0
        while not second or clouds[-1].header.stamp.sec < second:
            if clouds and not second:
                depth.format, second = '16UC1; compressedDepth rvl', sent + 1
                depth.data = bytes(12) + rvl(np.full((96, 128), 3000, np.uint16))
            elif 'no points: ' in process.log.read_text() and not second:
                depth.data = bytes(12) + picture
            assert time.monotonic() < end, process.log.read_text()
            sent += 1
            for publisher, msg in publishers:
                msg.header.stamp.sec = sent
                publisher.publish(msg)
            for _ in range(5):
                rclpy.spin_once(node, timeout_sec=0.05)
        node.destroy_node()
        log = process.log.read_text()
    assert "depth of format '16UC1; compressedDepth png'" in log
    for cloud, metres in ((clouds[0], 2.0), (clouds[-1], 3.0)):
        z = np.frombuffer(cloud.data, points.POINT)['z']
        assert z.size == 96 * 128 and np.allclose(z, metres)
