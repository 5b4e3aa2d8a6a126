# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What planners need of a running node: groups, threshold, rate, region, mask, rotation, smaller outputs."""
import json
import time

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rcl_interfaces.msg import ParameterType, ParameterValue  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from std_msgs.msg import Float32MultiArray, Float64, String  # noqa: E402
from test_segmentation_node import (  # noqa: E402
    double,
    LATCHED,
    own,
    Peer,
    picture,
    RELIABLE,
    set_parameter,
    text,
)

from lightseg_ros import images, labels  # noqa: E402
from lightseg_ros.inference import segmenter  # noqa: E402
from lightseg_ros.live.probe import nodes  # noqa: E402
from lightseg_ros.nodes.outputs import RateLimit  # noqa: E402

FRAME = picture()
CAMVID = labels.load('camvid')
TABLE = CAMVID.grouped(CAMVID.choose_groups(''))[1]


@pytest.fixture(scope='module')
def process(ros, random_weights, tmp_path_factory):
    parameters = {'weights': str(random_weights), 'resolution': '128x96', 'diagnostics_rate': 10.0}
    with nodes(own('planner', tmp_path_factory.mktemp('log'), parameters)) as (process,):
        yield process
    assert 'Traceback' not in process.log.read_text()


@pytest.fixture(scope='module')
def tester(process):
    tester = Peer(process, 'planner', topic='/planner/image')
    tester.info = []
    tester.node.create_subscription(String, '/planner/label_info_json', lambda m: tester.info.append(
        json.loads(m.data)), LATCHED)
    yield tester
    tester.close()


@pytest.fixture(scope='module')
def reference(random_weights):
    return segmenter.load(random_weights, resolution='128x96')


def send(tester, frame=FRAME):
    """Return the label of a frame as the node publishes it."""
    msg = tester.send(images.encode(frame, 'rgb8', tester.header(), Image()))
    return images.decode(msg)[..., 0]


def collect(tester, **kinds):
    """Send frames until each topic has a message of the same frame; returns these messages by topic."""
    got = {name: [] for name in kinds}
    subscriptions = [
        tester.node.create_subscription(kind, f'/{tester.name}/{name.replace("__", "/")}', got[name].append,
                                        RELIABLE) for name, kind in kinds.items()]
    try:
        for _ in range(20):
            for messages in got.values():
                messages.clear()
            sent = images.encode(FRAME, 'rgb8', tester.header(), Image())
            label = tester.send(sent)
            for _ in range(10):
                rclpy.spin_once(tester.node, timeout_sec=0.05)
                if all(got.values()):
                    return {'label': label} | {name: messages[-1] for name, messages in got.items()}
        raise AssertionError({name: len(messages) for name, messages in got.items()})
    finally:
        for subscription in subscriptions:
            tester.node.destroy_subscription(subscription)


def changed(tester, **parameters):
    for name, value in parameters.items():
        answer = set_parameter(tester, name, value)
        assert answer.successful, answer.reason


def test_what_is_made_of_labels(tester):
    got = collect(tester, groups=Image, class_fractions=Float32MultiArray, label__compressed=CompressedImage,
                  overlay=Image, overlay__compressed=CompressedImage, label_color=Image)
    label = images.decode(got['label'])[..., 0]
    assert len(np.unique(label)) > 1
    groups = got['groups']
    assert groups.header == got['label'].header and (groups.encoding, groups.step) == ('mono8', 160)
    assert (images.decode(groups)[..., 0] == TABLE[label]).all()
    assert got['label_color'].encoding == 'rgb8'
    assert (images.decode(got['label_color']) == CAMVID.palette()[label]).all()
    fractions = got['class_fractions']
    assert np.allclose(fractions.data, np.bincount(label.ravel(), minlength=11)[:11] / label.size)
    assert fractions.layout.dim[0].label.split(',') == list(CAMVID.names)
    for name in ('label__compressed', 'overlay__compressed'):
        assert got[name].header == got['label'].header
    assert got['label__compressed'].format == 'mono8; png compressed mono8'
    assert (images.decode_labels(got['label__compressed']) == label).all()
    assert got['overlay__compressed'].format == 'rgb8; jpeg compressed bgr8'
    overlay = images.decode(got['overlay']).astype(int)
    assert abs(images.decode(got['overlay__compressed']) - overlay).mean() < 8


def test_groups_have_a_label_info_of_their_own(tester):
    got = []
    tester.node.create_subscription(String, '/planner/groups_info_json', lambda m: got.append(
        json.loads(m.data)), LATCHED)
    tester.spin(lambda: got)
    assert [c['name'] for c in got[-1]['classes']] == ['traversable', 'static', 'dynamic']
    changed(tester, label_groups=text('road, dynamic'))
    tester.spin(lambda: len(got[-1]['classes']) == 2)
    label = collect(tester, groups=Image)
    ids = images.decode(label['label'])[..., 0]
    expected = np.where(ids == 3, 0, np.where((ids >= 8) & (ids <= 10), 1, 255))
    assert (images.decode(label['groups'])[..., 0] == expected).all()
    for value, words in (('nothing', "'label_groups': unknown group or class 'nothing'"),
                         ('dynamic, vulnerable', "'pedestrian' is in the groups 'dynamic' and 'vulnerable'")):
        answer = set_parameter(tester, 'label_groups', text(value))
        assert not answer.successful and words in answer.reason
    changed(tester, label_groups=text(''))


def test_groups_as_the_label(tester, reference):
    expected = TABLE[reference([FRAME])[0].labels]
    changed(tester, groups_as_label=boolean(True))
    tester.spin(lambda: len(tester.info[-1]['classes']) == 3)
    assert (send(tester) == expected).mean() > 0.999
    fractions = collect(tester, class_fractions=Float32MultiArray)['class_fractions']
    assert fractions.layout.dim[0].label == 'traversable,static,dynamic' and len(fractions.data) == 3
    changed(tester, groups_as_label=boolean(False))
    tester.spin(lambda: len(tester.info[-1]['classes']) == 11)
    assert (send(tester) == reference([FRAME])[0].labels).mean() > 0.999


def test_low_confidence_is_unlabeled(tester, reference):
    expected = reference([FRAME], confidence=True)[0]
    threshold = float(np.median(expected.confidence)) / 255
    changed(tester, confidence_threshold=double(threshold))
    tester.spin(lambda: abs(tester.info[-1]['threshold'] - threshold) < 1e-6)
    got = collect(tester, confidence=Image, overlay=Image)
    label, confidence = (images.decode(got[name])[..., 0] for name in ('label', 'confidence'))
    assert 0.2 < (label == 255).mean() < 0.8
    assert ((label == 255) == (confidence < round(255 * threshold))).all()
    assert (label == expected.labels)[label != 255].mean() > 0.999
    # The camera's image shows through where there is no label.
    overlay = images.decode(got['overlay'])
    assert (overlay[label == 255] == FRAME[label == 255]).all()
    assert (overlay[label != 255] != FRAME[label != 255]).any(1).mean() > 0.9
    changed(tester, confidence_threshold=double(0.0))
    tester.spin(lambda: tester.info[-1]['threshold'] == 0)


def test_rotation_region_and_mask_come_back_in_the_camera_s_image(tester, reference, tmp_path):
    mask = np.full((120, 160), 255, np.uint8)
    mask[100:] = 0
    cv2.imwrite(str(tmp_path / 'hood.png'), mask)
    whole = np.full((120, 160), 255, np.uint8)
    changed(tester, rotation=integer(180))
    ids = reference([np.ascontiguousarray(FRAME[::-1, ::-1])])[0].labels
    assert (send(tester) == ids[::-1, ::-1]).mean() > 0.999
    changed(tester, rotation=integer(270), roi=text('100x70+20+40'))
    ids = reference([np.ascontiguousarray(np.rot90(FRAME[40:110, 20:120], 1))])[0].labels
    whole[40:110, 20:120] = np.rot90(ids, -1)
    assert (send(tester) == whole).mean() > 0.999
    changed(tester, mask=text(tmp_path / 'hood.png'))
    whole[100:] = 255
    got = collect(tester, confidence=Image, overlay=Image, groups=Image)
    label = images.decode(got['label'])[..., 0]
    assert (label == whole).mean() > 0.999 and ((label == 255) == (whole == 255)).all()
    confidence, overlay = images.decode(got['confidence'])[..., 0], images.decode(got['overlay'])
    assert not confidence[whole == 255].any() and confidence[whole != 255].all()
    assert (overlay[whole == 255] == FRAME[whole == 255]).all()
    assert (images.decode(got['groups'])[..., 0] == TABLE[label]).all()

    for name, value, words in (('rotation', '45', "rotation is '45'; expected one of 0, 90, 180, 270"),
                               ('roi', '10x10', "roi is '10x10'; expected WIDTHxHEIGHT.X.Y"),
                               ('mask', 'none.png', "'none.png' cannot be read: No such file")):
        answer = set_parameter(tester, name, text(value))
        assert not answer.successful and words.replace('.X.Y', '') in answer.reason
    # What does not fit the images that arrive is refused, and labels go on.
    cv2.imwrite(str(tmp_path / 'square.png'), np.full((50, 50), 255, np.uint8))
    for name, value, words in (('roi', '100x70+100+0', 'roi 100x70+100+0 is not within the image of 160x120'),
                               ('mask', tmp_path / 'square.png', 'has 50x50 pixels, the image 160x120')):
        assert (send(tester) == whole).mean() > 0.999
        answer = set_parameter(tester, name, text(value))
        assert not answer.successful and words in answer.reason
    assert (send(tester) == whole).mean() > 0.999
    # Images become too small for the region: they fail with the reason, the node goes on.
    tester.publisher.publish(images.encode(FRAME[:60, :80], 'rgb8', tester.header(), Image()))
    tester.spin(lambda: tester.status and tester.status[-1].level == b'\2')
    assert 'roi 100x70+20+40 is not within the image of 80x60' in tester.status[-1].message
    changed(tester, roi=text(''), mask=text(''), rotation=text('0'))
    assert (send(tester) == reference([FRAME])[0].labels).mean() > 0.999


def test_times_of_each_frame(tester):
    got = collect(tester, debug__latency_ms=Float64, debug__stages_ms=DiagnosticArray)
    assert 0 < got['debug__latency_ms'].data < 60e3
    assert got['debug__stages_ms'].header == got['label'].header
    stages = {v.key: float(v.value) for v in got['debug__stages_ms'].status[0].values}
    assert {'decode', 'network', 'publish', 'total'} <= set(stages)
    assert 0 < stages['network'] < stages['total'] <= got['debug__latency_ms'].data


def test_camera_info_has_the_label_s_header(tester):
    publisher = tester.node.create_publisher(CameraInfo, '/camera_info', RELIABLE)
    info = CameraInfo(width=160, height=120, distortion_model='plumb_bob', d=[0.1] * 5)
    info.header.frame_id = 'other'
    info.k[0] = 123.0
    timer = tester.node.create_timer(0.05, lambda: publisher.publish(info))
    got = collect(tester, camera_info=CameraInfo)
    timer.cancel()
    assert got['camera_info'].header == got['label'].header
    assert (got['camera_info'].k == info.k).all() and list(got['camera_info'].d) == [0.1] * 5
    tester.spin(lambda: publisher.get_subscription_count() == 0)  # nobody listens any more


def test_what_exceeds_the_rate_is_left_alone_and_counted(tester):
    changed(tester, max_rate=double(0.01))
    send(tester)
    before = tester.values()
    tester.got['label'].clear()
    for _ in range(5):
        tester.publisher.publish(images.encode(FRAME, 'rgb8', tester.header(), Image()))
        rclpy.spin_once(tester.node, timeout_sec=0.05)
    tester.spin(lambda: int(tester.values()['left out by max_rate']) > 0)
    after = tester.values()
    assert not tester.got['label'] and after['received'] == before['received']
    changed(tester, max_rate=double(0.02))  # does not wait for what was due at the former rate
    send(tester)
    end = time.monotonic() + 8  # the camera is not silent, though none of its images is taken for 5 s
    while time.monotonic() < end:
        tester.publisher.publish(images.encode(FRAME, 'rgb8', tester.header(), Image()))
        rclpy.spin_once(tester.node, timeout_sec=0.05)
    assert tester.status[-1].level == b'\0', tester.status[-1]
    changed(tester, max_rate=double(0.0))


@pytest.mark.parametrize(('camera_hz', 'max_hz', 'expected'), [
    (30.0, 10.0, 100), (30.0, 29.0, 290), (30.0, 7.0, 70), (15.0, 20.0, 150), (30.0, 0.0, 300)])
def test_the_mean_rate_holds_for_an_unsteady_camera(camera_hz, max_hz, expected):
    limit = RateLimit()
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, round(10 * camera_hz))
    times = 1000 + (np.arange(jitter.size) + jitter) / camera_hz
    taken = [t for t in times if limit.is_due(max_hz, t)]
    assert abs(len(taken) - expected) <= 0.02 * expected and len(taken) + limit.left_out == jitter.size


def test_one_of_several_cameras_is_upside_down(ros, random_weights, reference, tmp_path):
    with nodes(own('pair', tmp_path, {
            'weights': str(random_weights), 'resolution': '128x96', 'cameras': 'front left',
            'rotation': 'left=180', 'image_size': '160x120'})) as (process,):
        front, left = (Peer(process, 'pair', topic=f'/{name}/image', camera=name)
                       for name in ('front', 'left'))
        assert (send(front) == reference([FRAME])[0].labels).mean() > 0.999
        ids = reference([np.ascontiguousarray(FRAME[::-1, ::-1])])[0].labels
        assert (send(left) == ids[::-1, ::-1]).mean() > 0.999
        assert 'preparing' not in process.log.read_text()
        front.close()
        left.close()


def boolean(value):
    return ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=value)


def integer(value):
    return ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
