# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Image folders and video files as recordings: the frames of each place, whole and damaged files."""
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from lightseg_ros import footage, images, labels  # noqa: E402
from lightseg_ros.bags import BagError, NS, Recorded  # noqa: E402
from lightseg_ros.evaluation import recordings  # noqa: E402
from lightseg_ros.evaluation.recordings import GroundTruthSource, Selection  # noqa: E402

COUNT = 60


def write_video(path, codec, rate=20, gap=None, **options):
    """Frame n is of grey level 4 n, with noise, so that each one takes some bytes; key frames every 12."""
    av = pytest.importorskip('av', reason='PyAV is not installed')
    noise = np.random.default_rng(0)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, 'yuv420p', 12
        stream.bit_rate = 2_000_000
        for i in range(COUNT):
            grey = np.clip(4 * i + noise.integers(-3, 4, (64, 96, 1)), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(grey.repeat(3, 2), format='rgb24')
            frame.pts = i if gap is None or i < gap else i + 10
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(recording, start_ns=None):
    """(stamp, frame number as its grey level tells, or None for a frame that does not decode)."""
    out = []
    for message in recording.messages('/any', start_ns=start_ns):
        try:
            mean = images.decode(message.read()).astype(float).mean()
        except BagError as e:
            assert 'does not decode' in str(e)
            out.append((message.stamp_ns(), None))
        else:
            out.append((message.stamp_ns(), round(mean / 4)))
    return out


@pytest.mark.parametrize('name, codec, options', [
    ('h264.mp4', 'libx264', {'bf': '2'}), ('mpeg4.avi', 'mpeg4', {}), ('vp8.webm', 'libvpx', {}),
    ('h264.mkv', 'libx264', {}), ('h264.ts', 'libx264', {'bf': '2'})])
def test_video(tmp_path, name, codec, options):
    """Every frame, in order, from the start and from any other place."""
    path = write_video(tmp_path / name, codec, **options)
    expected = [(NS + i * NS // 20, i) for i in range(COUNT)]
    with footage.open_recording(path) as video:
        assert video.times == [t for t, _ in expected] and video.topics['/camera/image_raw'].count == COUNT
        assert levels(video) == expected
        for first in (1, 11, 12, 13, 37, 59):
            assert levels(video, expected[first][0]) == expected[first:]


def test_a_video_that_pauses(tmp_path):
    with footage.open_recording(write_video(tmp_path / 'v.mp4', 'libx264', gap=30)) as video:
        assert video.times[29:31] == [NS + 29 * NS // 20, NS + 40 * NS // 20]
        assert [n for _, n in levels(video)] == list(range(COUNT))


def test_pixels_that_are_not_square(tmp_path):
    av = pytest.importorskip('av', reason='PyAV is not installed')
    for aspect in (1, Fraction(4, 3)):
        with av.open(str(tmp_path / 'v.mp4'), 'w') as container:
            stream = container.add_stream('mpeg4', rate=20)
            stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
            stream.codec_context.sample_aspect_ratio = aspect
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8))))
            container.mux(stream.encode())
        notes = recordings.index_bag(tmp_path / 'v.mp4').notes
        assert len(notes) == (aspect != 1)
    assert 'v.mp4: its pixels are not square, and players show its 96x64 as 128x64; its frames' in notes[0]
    assert recordings.kind_of(notes[0]) == 'bags_noted'


@pytest.mark.parametrize('first, shift', [(0, 0), (1, 0), (2, 2)])
def test_labels_that_are_numbered_as_ffmpeg_does(tmp_path, first, shift):
    """Files 1 to n of n frames belong to frames 0 to n - 1, at whatever rate; others go by their numbers."""
    write_video(tmp_path / 'v.mp4', 'libx264')
    (tmp_path / 'labels').mkdir()
    for i in range(COUNT):
        cv2.imwrite(str(tmp_path / 'labels' / f'out{first + i}.png'), np.zeros((64, 96), np.uint8))
    truth = GroundTruthSource(folder=tmp_path / 'labels', rate=20.0 if shift else 30.0)
    recording = recordings.index_bag(tmp_path / 'v.mp4', truth=truth)
    numbers = [p and int(Path(p).stem[3:]) for p in recording.partners]
    assert numbers == (shift * [None] + list(range(shift, COUNT)) if shift else
                       list(range(first, COUNT + first)))
    assert [recordings.kind_of(n) for n in recording.notes] == ['bags_noted'] * (first == 1)


@pytest.mark.parametrize('first, shift', [(0, 0), (1, 1), (2, 0), (5, 0)])
def test_labels_of_every_tenth_frame(tmp_path, first, shift):
    """Of ffmpeg's files, these are 1, 11, 21, ...: they belong to frames 0, 10, 20."""
    write_video(tmp_path / 'v.mp4', 'libx264')
    (tmp_path / 'labels').mkdir()
    for i in range(first, COUNT, 10):
        cv2.imwrite(str(tmp_path / 'labels' / f'out{i:04d}.png'), np.zeros((64, 96), np.uint8))
    truth = GroundTruthSource(folder=tmp_path / 'labels', rate=20.0)
    recording = recordings.index_bag(tmp_path / 'v.mp4', truth=truth)
    partners = {i: int(Path(p).stem[3:]) for i, p in enumerate(recording.partners) if p}
    assert partners == {i - shift: i for i in range(first, COUNT, 10)}
    assert [recordings.kind_of(n) for n in recording.notes] == ['bags_noted'] * shift


def test_a_damaged_video(tmp_path):
    """Bytes in the middle are lost: frames there are missing, all others are in their places."""
    path = write_video(tmp_path / 'v.mkv', 'libx264', bf='0')
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third:third + 1500] = bytes(1500)
    path.write_bytes(data)
    with footage.open_recording(path) as video:
        found = levels(video)
    numbers = [n for _, n in found]
    assert 0 < numbers.count(None) < 30 or len(numbers) < COUNT, 'nothing is lost: the test damages nothing'
    for stamp, number in found:
        assert number is None or stamp == NS + number * NS // 20


def test_frames_that_refer_to_a_damaged_one_fail(tmp_path):
    """FFmpeg would paint them with the frame before; up to the next key frame none is whole."""
    av = pytest.importorskip('av', reason='PyAV is not installed')
    path = write_video(tmp_path / 'v.mp4', 'libx264', bf='2')
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data, (at, size) = bytearray(path.read_bytes()), packets[27]
    data[at + size // 2:at + size // 2 + 12] = bytes(12)
    path.write_bytes(data)
    with footage.open_recording(path) as video:
        numbers = [n for _, n in levels(video)]
    assert 0 < numbers.count(None) <= 12 and all(n in (i, None) for i, n in enumerate(numbers))


def test_played_as_it_is_evaluated(tmp_path):
    """What a replay publishes is the frame that an evaluation segments."""
    with footage.open_recording(write_video(tmp_path / 'v.mp4', 'libx264')) as video:
        for message in video.messages('/any', start_ns=video.times[57]):
            sent = Recorded('/any', message.type, 0, message.cdr())
            assert sent.stamp_ns() == message.stamp_ns()
            np.testing.assert_array_equal(images.decode(sent.read()), images.decode(message.read()))


def test_not_a_video(tmp_path):
    (tmp_path / 'v.mp4').write_bytes(b'text' * 100)
    with pytest.raises(BagError, match='v.mp4 does not open as a video'):
        footage.open_recording(tmp_path / 'v.mp4')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BagError, match='empty is neither a bag nor a folder of images'):
        footage.open_recording(tmp_path / 'empty')
    with pytest.raises(BagError):
        footage.open_recording(tmp_path / 'missing')


def test_folder(tmp_path):
    """Named by frame numbers, with labels of the same names; a broken file is one frame that fails."""
    for name in ('images', 'labels'):
        (tmp_path / name).mkdir()
    for i in range(8):
        cv2.imwrite(str(tmp_path / 'images' / f'{10 * i:04d}.png'), np.full((24, 32, 3), 30 * i, np.uint8))
        cv2.imwrite(str(tmp_path / 'labels' / f'{10 * i:04d}.png'), np.full((24, 32), i, np.uint8))
    (tmp_path / 'images' / '0030.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    cv2.imwrite(str(tmp_path / 'images' / '0050.png'), np.full((24, 32), 40000, np.uint16))
    truth = GroundTruthSource(folder=tmp_path / 'labels', source_ids=True, rate=20.0)
    recording = recordings.index_bag(tmp_path / 'images', truth=truth, selection=Selection(every_ns=NS // 2))
    assert recording.times == [NS + i * NS // 2 for i in range(8)] == recording.stamps
    assert recording.describe()['image_topic'] is None
    for size in (3, 8):
        items = [item for task in recording.tasks(size, (0, 50000)) for item in recordings.read(
            task, labels.load('camvid')) if item.counted]
        failed = items.pop(3)
        assert 'images frame 3: 0030.png is not a readable image' in failed.reason
        assert [(f.index, int(f.rgb[0, 0, 0]), int(f.truth[0, 0])) for f in items] == [
            (i, 30 * i if i != 5 else 204, i) for i in range(8) if i != 3]
    with pytest.raises(BagError, match='images has no topics: give its labels as a folder, --label-dir'):
        recordings.index_bag(tmp_path / 'images', truth=GroundTruthSource(topic='/label'))
