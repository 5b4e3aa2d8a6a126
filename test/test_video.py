# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Video in bags: every packet's own picture, from wherever reading starts; nothing painted over."""
from fractions import Fraction
import json

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
av = pytest.importorskip('av', reason='av is not installed')
mcap_writer = pytest.importorskip('mcap.writer', reason='mcap is not installed')

from lightseg_ros import bag_writer, bags, images, labels, sources, video  # noqa: E402
from lightseg_ros.bags import Bag, BagError, NS  # noqa: E402
from lightseg_ros.evaluation import recordings  # noqa: E402

TOPIC = '/camera/video'
B_FRAMES = {'preset': 'medium', 'tune': 'film', 'bf': '2'}
WAYS = {'CompressedImage': 'sensor_msgs/msg/CompressedImage',
        'CompressedVideo': 'foxglove_msgs/msg/CompressedVideo',
        'FFMPEGPacket': 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket'}


def pictures(count=12):
    """Grey pictures that differ by far more than coding does, (96, 128, 3)."""
    return [np.full((96, 128, 3), 20 * (i % 12) + 10, np.uint8) for i in range(count)]


def packets(pixels, encoder='libx264', **options):
    """One packet a picture, a key frame every five; with B-frames in the order of coding."""
    context = av.CodecContext.create(encoder, 'w')
    context.height, context.width = pixels[0].shape[:2]
    context.pix_fmt, context.time_base, context.gop_size = 'yuv420p', Fraction(1, 10), 5
    context.options = {'preset': 'ultrafast', 'tune': 'zerolatency', 'x265-params': 'log-level=none',
                       **options}
    out = []
    for i, rgb in enumerate([*pixels, None]):
        frame = None
        if rgb is not None:
            frame = av.VideoFrame.from_ndarray(rgb, 'rgb24')
            frame.pts = i
        out += [(p.pts, bytes(p)) for p in context.encode(frame)]
    return out


def message(way, data, stamp, codec='h264'):
    kind, data = bags.TYPES[WAYS[way]], np.frombuffer(data, np.uint8)
    head = bags.header(stamp, 'camera')
    if way == 'CompressedImage':
        return kind(head, codec, data)
    if way == 'CompressedVideo':
        return kind(head.stamp, 'camera', data, codec)
    return kind(head, 128, 96, f'{codec};yuv420p;bgr8;bgr8', 0, 0, False, data)


def write(path, found, way='CompressedVideo', codec='h264'):
    """Frame `i` is stamped (i + 1) / 10 s; packets are recorded every 0.1 s in the order they come."""
    with bag_writer.Writer(path) as writer:
        for place, (i, data) in enumerate(found):
            writer.write(TOPIC, message(way, data, (i + 1) * NS // 10, codec), (place + 1) * NS // 10)


def seen(path, size=10 ** 6):
    """The picture's number by its grey, or what is wrong, for each frame; by tasks of `size`."""
    recording = recordings.index_bag(path)
    out = []
    for task in recording.tasks(size):
        for item in recordings.read(task, labels.load('camvid')):
            if isinstance(item, recordings.RecordedFrame):
                if item.counted:
                    assert item.rgb.shape == (96, 128, 3) and item.frame_id == 'camera'
                    grey = float(item.rgb.mean())
                    number = round((grey - 10) / 20)
                    assert abs(grey - 20 * number - 10) < 3 and item.stamp_ns == (number + 1) * NS // 10
                    out.append(number)
            elif item.what == 'failed':
                out.append(item.reason)
    return out


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('encoder, codec, options', [
    ('libx264', 'h264', {}), ('libx264', 'h264', B_FRAMES), ('libx265', 'h265', {}), ('libx265', 'hevc', {})])
def test_each_packet_gives_its_own_picture(tmp_path, way, encoder, codec, options):
    found = packets(pictures(), encoder, **options)
    write(tmp_path / 'bag.mcap', found, way, codec)
    expected = [i for i, _ in found]
    assert (expected == sorted(expected)) == (not options)
    with Bag(tmp_path / 'bag.mcap') as bag:
        topic = bag.image_topic()
        assert (topic.type, topic.count) == ('sensor_msgs/msg/Image', 12)
    assert seen(tmp_path / 'bag.mcap') == expected
    for size in (1, 3, 7):
        assert seen(tmp_path / 'bag.mcap', size) == expected


def test_pictures_that_nobody_asks_for(tmp_path):
    """Every seventh picture; what lies between key frames is decoded only where it is needed."""
    write(tmp_path / 'bag.mcap', packets(pictures()))
    with Bag(tmp_path / 'bag.mcap') as bag:
        for i, m in enumerate(bag.messages(TOPIC)):
            if i % 7 == 3:
                assert abs(float(images.decode(m.read()).mean()) - 20 * i - 10) < 3
                again = bags.ROS2.deserialize_cdr(m.cdr(), 'sensor_msgs/msg/Image')
                assert again.encoding == 'rgb8' and again.header.frame_id == 'camera'


@pytest.mark.parametrize('encoder, codec', [('libx264', 'h264'), ('libx265', 'h265')])
def test_lost_and_damaged_packets(tmp_path, encoder, codec):
    """They and the rest up to the next key frame fail; nothing is painted over."""
    good = packets(pictures(), encoder)
    write(tmp_path / 'late.mcap', good[2:], codec=codec)
    late = seen(tmp_path / 'late.mcap')
    assert late[3:] == list(range(5, 12)) and all('the recording starts after it' in t for t in late[:3])
    write(tmp_path / 'lost.mcap', good[:2] + good[3:], codec=codec)
    lost = seen(tmp_path / 'lost.mcap')
    assert lost[:2] == [0, 1] and lost[4:] == list(range(5, 12))
    assert all(isinstance(t, str) and 'packet' in t for t in lost[2:4])
    assert seen(tmp_path / 'lost.mcap', 3) == lost
    write(tmp_path / 'cut.mcap', [(i, d[:len(d) // 2] if i == 5 else d) for i, d in good], codec=codec)
    cut = seen(tmp_path / 'cut.mcap')
    assert [t for t in cut if not isinstance(t, str)] == [0, 1, 2, 3, 4, 10, 11]
    assert 'does not decode' in cut[5] or 'without a picture' in cut[5]


def test_no_packets(tmp_path):
    with bag_writer.Writer(tmp_path / 'bag.mcap') as writer:
        writer.write(TOPIC, message('CompressedVideo', b'hello', NS), NS)
        writer.write(TOPIC, message('CompressedVideo', b'', NS), NS + 1)
        writer.write(TOPIC, message('CompressedVideo', b'\0\0\1\x65', NS, 'vp9'), NS + 2)
        writer.write_raw(TOPIC, WAYS['CompressedVideo'], b'\0\1\0\0' * 3, NS + 3)
    first, _, vp9, broken = seen(tmp_path / 'bag.mcap')
    assert 'without a key frame' in first and "'vp9' in a video; expected h264 or h265" in vp9
    assert 'is no foxglove_msgs/msg/CompressedVideo' in broken


def test_without_av(tmp_path, monkeypatch):
    write(tmp_path / 'bag.mcap', packets(pictures(2)))
    monkeypatch.setattr(video, 'available', lambda: False)
    text = r'it has /camera/video \(foxglove_msgs/CompressedVideo, 2 messages\), which needs `pip install av`'
    with Bag(tmp_path / 'bag.mcap') as bag, pytest.raises(BagError, match=text):
        bag.image_topic()
    with bag_writer.Writer(tmp_path / 'both.mcap') as writer:
        writer.write(TOPIC, message('CompressedVideo', b'', NS), NS)
        writer.write('/camera/image_raw', bags.image(pictures(1)[0], 'rgb8', bags.header(1)), NS)
    with Bag(tmp_path / 'both.mcap') as bag:
        assert bag.image_topic().name == '/camera/image_raw'


def test_as_a_camera(tmp_path):
    write(tmp_path / 'bag.mcap', packets(pictures()), 'FFMPEGPacket')
    frames = list(sources.open_source(str(tmp_path / 'bag.mcap')).frames())
    assert [round((float(f.rgb.mean()) - 10) / 20) for f in frames] == list(range(12))


def field(number, value):
    """A protobuf field: an int as varint, bytes with their length."""
    def varint(n):
        out = b''
        while n >= 128:
            out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
        return out + bytes([n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def foxglove(kind, encoding, i, data, rgb):
    """A message of Foxglove's schema, stamped (i + 1) / 10 s."""
    import base64
    from struct import pack
    sec, nanosec = divmod((i + 1) * NS // 10, NS)
    if encoding == 'json':
        fields = {'timestamp': {'sec': sec, 'nsec': nanosec}, 'frame_id': 'camera',
                  'data': base64.b64encode(data).decode()}
        fields |= {'width': 128, 'height': 96, 'step': 384, 'encoding': 'rgb8'} if kind == 'RawImage' else {
            'format': rgb}
        return json.dumps(fields).encode()
    stamp = field(1, (field(1, sec) if sec else b'') + field(2, nanosec))
    if kind == 'RawImage':
        def fixed(number, value):
            return bytes([number << 3 | 5]) + pack('<I', value)
        return (stamp + fixed(2, 128) + fixed(3, 96) + field(4, b'rgb8') + fixed(5, 384) + field(6, data)
                + field(7, b'camera'))
    numbers = {'CompressedImage': (2, 3, 4), 'CompressedVideo': (3, 4, 2)}[kind]
    return stamp + b''.join(field(n, v) for n, v in zip(numbers, (data, rgb.encode(), b'camera')))


@pytest.mark.parametrize('encoding', ['protobuf', 'json'])
@pytest.mark.parametrize('kind', ['RawImage', 'CompressedImage', 'CompressedVideo'])
def test_foxglove(tmp_path, kind, encoding):
    """Schemas of Foxglove, in an mcap file of no profile, with other channels beside them."""
    pixels = pictures()
    if kind == 'CompressedVideo':
        data, form = [d for _, d in packets(pixels)], 'h264'
    elif kind == 'RawImage':
        data, form = [p.tobytes() for p in pixels], ''
    else:
        made = [bags.image(p, 'png', bags.header(1)).data for p in pixels]
        data, form = [bytes(m) for m in made], 'png'
    with open(tmp_path / 'a.mcap', 'wb') as f:
        writer = mcap_writer.Writer(f)
        writer.start('', 'test')
        schema = writer.register_schema(f'foxglove.{kind}', encoding, b'')
        channel = writer.register_channel(TOPIC, encoding, schema)
        for i, d in enumerate(data):
            writer.add_message(channel, (i + 1) * NS, foxglove(kind, encoding, i, d, form), (i + 1) * NS)
        writer.add_message(channel, 13 * NS, b'{"data": 5' if encoding == 'json' else b'\x12\xff', 13 * NS)
        writer.finish()
    *good, broken = seen(tmp_path / 'a.mcap', 5)
    assert good == list(range(12))
    assert f'is no foxglove.{kind}' in broken
    with Bag(tmp_path / 'a.mcap') as bag:
        compressed = kind == 'CompressedImage'
        topic = bag.image_topic()
        assert topic.type == f'sensor_msgs/msg/{"CompressedImage" if compressed else "Image"}'
        sent = bags.ROS2.deserialize_cdr(next(bag.messages(TOPIC)).cdr(), topic.type)
        assert abs(float(images.decode(sent).mean()) - 10) < 3


def test_protobuf_by_its_own_library(tmp_path):
    """Our reader of protobuf, held against Google's."""
    pool = pytest.importorskip('google.protobuf.descriptor_pool', reason='protobuf is not installed')
    from google.protobuf import descriptor_pb2, message_factory, timestamp_pb2
    file = descriptor_pb2.FileDescriptorProto(name='x.proto', package='foxglove', syntax='proto3')
    file.dependency.append('google/protobuf/timestamp.proto')
    kind = file.message_type.add(name='CompressedVideo')
    for number, name, of in ((1, 'timestamp', 11), (2, 'frame_id', 9), (3, 'data', 12), (4, 'format', 9)):
        made = kind.field.add(name=name, number=number, type=of, label=1)
        if of == 11:
            made.type_name = '.google.protobuf.Timestamp'
    known = pool.DescriptorPool()
    known.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    known.Add(file)
    cls = message_factory.GetMessageClass(known.FindMessageTypeByName('foxglove.CompressedVideo'))
    msg = cls(frame_id='camera', data=bytes(300), format='h264')
    msg.timestamp.seconds, msg.timestamp.nanos = 1_700_000_000, 123_456_789
    read = bags.Recorded(TOPIC, 'foxglove.CompressedVideo', 5, msg.SerializeToString(), 'protobuf')
    assert read.stamp_ns() == 1_700_000_000_123_456_789
    assert (read.read().format, len(read.read().data), read.read().header.frame_id) == ('h264', 300, 'camera')
