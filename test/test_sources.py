# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
from itertools import islice

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from lightseg_ros import bag_writer, bags  # noqa: E402
from lightseg_ros.sources import Calibration, open_source, SourceError  # noqa: E402


@pytest.fixture
def picture():
    """(48, 64, 3) uint8 RGB, smooth, so that lossy codecs keep it; red grows to the right, green down."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 3, y * 4, np.full_like(x, 60)], 2).astype(np.uint8)


def write(path, rgb):
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 else rgb)


@pytest.fixture
def folder(tmp_path, picture):
    """Three images, the second one broken, with CamVid's label images beside them but for the last."""
    for i in range(3):
        write(tmp_path / 'test' / f'{i}.png', np.roll(picture, i, 1))
    (tmp_path / 'test' / '1.png').write_bytes(b'\x89PNG and then nothing')
    (tmp_path / 'test' / 'notes.txt').write_text('no image')
    ids = np.zeros((48, 64), np.uint8)
    ids[20:], ids[40:] = 3, 11  # sky, road, void
    write(tmp_path / 'testannot' / '0.png', ids)
    return tmp_path / 'test'


def test_a_folder_gives_its_images_in_order_with_truth_and_leaves_out_the_broken_one(folder, picture):
    warnings = []
    source = open_source(str(folder), warn=warnings.append)
    assert source.rate == 10.0 and not source.live
    for _ in range(2):  # from the start each time
        first, last = source.frames()
        np.testing.assert_array_equal(first.rgb, picture)
        np.testing.assert_array_equal(last.rgb, np.roll(picture, 2, 1))
        assert first.truth[0, 0] == 0 and first.truth[30, 0] == 3 and first.truth[47, 0] == 255
        assert last.truth is None and first.calibration is None
    assert len(warnings) == 2 and '1.png is not a readable image' in warnings[0]


def test_wrong_labels_are_reported_and_left_out(folder):
    warnings = []
    write(folder.with_name('testannot') / '0.png', np.full((48, 64), 77, np.uint8))
    write(folder.with_name('testannot') / '2.png', np.zeros((4, 4), np.uint8))
    frames = list(open_source(str(folder), warn=warnings.append).frames())
    assert [f.truth for f in frames] == [None, None]
    assert any('ids [77]' in w for w in warnings)
    assert any('(4, 4); expected (48, 64)' in w for w in warnings)


def test_a_single_image_is_a_source(folder, picture):
    frame, = open_source(str(folder / '0.png'), rate=3).frames()
    np.testing.assert_array_equal(frame.rgb, picture)


def test_resizing_scales_truth_and_calibration(folder, tmp_path, picture):
    frame = next(open_source(str(folder), width=32).frames())
    assert frame.rgb.shape == (24, 32, 3) and frame.truth.shape == (24, 32)
    assert set(np.unique(frame.truth)) == {0, 3, 255}
    frame = next(open_source(str(folder), width=100, height=20).frames())
    assert frame.rgb.shape == (20, 100, 3)
    k = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
    c = Calibration(k, np.eye(3), np.hstack([k, np.zeros((3, 1))]), (), 'plumb_bob').scaled(0.5, 0.5)
    # The centre of the image stays its centre: 31.5 of 64 columns is 15.5 of 32.
    np.testing.assert_allclose(c.k, [[25, 0, 15.5], [0, 25, 11.5], [0, 0, 1]])
    np.testing.assert_allclose(c.p[:, :3], c.k)


def test_a_video_gives_its_frames_at_its_rate(tmp_path, picture):
    path = str(tmp_path / 'v.avi')
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*'MJPG'), 12.0, (64, 48))
    for i in range(5):
        writer.write(np.ascontiguousarray(np.roll(picture, 8 * i, 1)[..., ::-1]))
    writer.release()
    source = open_source(path)
    assert source.rate == pytest.approx(12.0)
    for _ in range(2):
        frames = list(source.frames())
        assert len(frames) == 5 and frames[2].stamp_ns == round(2e9 / 12)
        # JPEG blurs the edge where the roll wraps around.
        assert np.median(np.abs(frames[2].rgb.astype(int) - np.roll(picture, 16, 1))) < 4
    assert open_source(path, rate=50).rate == 50


@pytest.mark.parametrize('encoding, suffix', [('bgr8', ''), ('png', '/compressed')])
def test_a_bag_gives_its_image_topic_at_its_stamps_with_calibration(tmp_path, picture, encoding, suffix):
    path, zero = tmp_path / 'bag.mcap', 10 ** 9
    with bag_writer.Writer(path) as writer:
        info = bags.camera_info(48, 64, bags.header(zero))
        info.k[:], info.distortion_model = [50, 0, 31.5, 0, 50, 23.5, 0, 0, 1], 'plumb_bob'
        writer.write('/cam/camera_info', info, zero)
        for i in range(3):
            stamp = zero + i * 40_000_000
            pixels = np.roll(picture, i, 1)[..., ::-1 if encoding == 'bgr8' else 1]
            writer.write(f'/cam/image_raw{suffix}', bags.image(np.ascontiguousarray(pixels), encoding,
                                                               bags.header(stamp)), stamp)
    source = open_source(str(path))
    assert source.rate == 0.0
    frames = list(source.frames())
    assert [f.stamp_ns - zero for f in frames] == [0, 40_000_000, 80_000_000]
    np.testing.assert_array_equal(frames[1].rgb, np.roll(picture, 1, 1))
    assert frames[1].calibration.k[0, 2] == 31.5 and frames[1].calibration.model == 'plumb_bob'
    assert next(open_source(str(path), width=32).frames()).calibration.k[0, 0] == 25


def test_the_street_is_endless_and_knows_truth_and_calibration():
    source = open_source('synthetic', width=160, rate=5.0)
    first, second = islice(source.frames(), 2)
    assert first.rgb.shape == (120, 160, 3) and first.truth.shape == (120, 160)
    assert second.stamp_ns == 200_000_000 and (first.rgb != second.rgb).any()
    assert first.calibration.k[0, 0] == 0.9 * 160 and source.rate == 5.0


@pytest.mark.parametrize('make, words', [
    (lambda p: '', 'no source'),
    (lambda p: str(p / 'nowhere'), 'no such file or folder; expected'),
    (lambda p: str(p), 'which holds a.txt, empty; expected .png'),
    (lambda p: str(p / 'empty'), 'which holds nothing'),
    (lambda p: str(p / 'a.txt'), '5 bytes. does not open as a video'),
    (lambda p: '/dev/video87', '/dev/video87 does not open as a camera; devices here'),
    (lambda p: '87', 'device 87 does not open')])
def test_an_unreadable_source_says_what_was_found_and_expected(tmp_path, make, words):
    (tmp_path / 'a.txt').write_text('hello')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SourceError, match=words):
        open_source(make(tmp_path))


def test_a_source_of_broken_frames_only_is_an_error_and_no_endless_loop(tmp_path):
    (tmp_path / 'x.png').write_bytes(b'no')
    with pytest.raises(SourceError, match='none of the 1 images'):
        next(open_source(str(tmp_path), warn=lambda text: None).frames())


def test_errors_of_bags_name_the_parameter(tmp_path, picture):
    path = tmp_path / 'bag.mcap'
    with bag_writer.Writer(path) as writer:
        for topic in ('/a', '/b'):
            writer.write(topic, bags.image(picture, 'rgb8', bags.header(1)), 1)
    with pytest.raises(SourceError, match='several image topics.*camera_topic of the launch'):
        open_source(str(path))
    assert len(list(open_source(str(path), topic='/b').frames())) == 1
    (tmp_path / 'broken.mcap').write_bytes(b'nothing')
    with pytest.raises(SourceError, match='does not open as a bag'):
        open_source(str(tmp_path / 'broken.mcap'))


def test_depth_is_the_street_s_alone(tmp_path):
    with pytest.raises(SourceError, match="has no depth; only 'synthetic' has"):
        open_source(str(tmp_path), depth=True)
    frame = next(iter(open_source('synthetic', depth=True).frames()))
    assert frame.depth.shape == frame.rgb.shape[:2] and frame.depth.max() > 30
    assert next(iter(open_source('synthetic').frames())).depth is None
