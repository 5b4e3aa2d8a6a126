# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags of every format that rosbags writes, whole, cut short and broken, with the frames that went in."""
from contextlib import closing
from itertools import count
import os
import sqlite3
import struct
import tracemalloc

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('mcap', reason='mcap is not installed')

from mcap.writer import CompressionType, IndexType  # noqa: E402
from mcap.writer import Writer as McapWriter  # noqa: E402
from rosbags.rosbag1 import Writer as Writer1  # noqa: E402
from rosbags.rosbag2 import CompressionMode, StoragePlugin  # noqa: E402
from rosbags.rosbag2 import Writer as Writer2  # noqa: E402
from rosbags.rosbag2.enums import CompressionFormat  # noqa: E402

from lightseg_ros import bag_writer, bags, image_folders, images, labels  # noqa: E402
from lightseg_ros.bag_files import mcap, packed, ros1, sqlite  # noqa: E402
from lightseg_ros.bags import Bag, BagError, NS  # noqa: E402
from lightseg_ros.cli import main  # noqa: E402

IMAGE, LABEL = '/camera/image_raw', '/camera/label'


def frames(count=5, height=24, width=32):
    return list(np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def write(path, pixels, encoding='rgb8', storage='mcap', other=0):
    """A bag of frames at 10 Hz from 5 s on, recorded 1 ms late, and `other` bytes of a second topic."""
    with bag_writer.Writer(path, storage) as writer:
        for i, rgb in enumerate(pixels):
            stamp = 5 * NS + i * NS // 10
            writer.write(IMAGE, bags.image(rgb, encoding, bags.header(stamp, 'camera')), stamp + 10 ** 6)
            if other:
                noise = np.random.default_rng(i).integers(0, 256, (1, other), dtype=np.uint8)
                writer.write(LABEL, bags.image(noise, 'mono8', bags.header(stamp)), stamp)


def write_ros1(path, pixels, compression=None, chunk_size=1 << 20):
    types = bags.ROS1.types
    writer = Writer1(path)
    writer.chunk_threshold = chunk_size
    if compression:
        writer.set_compression(compression)
    with writer:
        topic = writer.add_connection(IMAGE, 'sensor_msgs/msg/Image', typestore=bags.ROS1)
        for i, rgb in enumerate(pixels):
            stamp = types['builtin_interfaces/msg/Time'](5, i * NS // 10)
            head = types['std_msgs/msg/Header'](i, stamp, 'camera')
            msg = types['sensor_msgs/msg/Image'](head, *rgb.shape[:2], 'bgr8', 0, 3 * rgb.shape[1],
                                                 np.ascontiguousarray(rgb[..., ::-1]).reshape(-1))
            raw = bags.ROS1.serialize_ros1(msg, 'sensor_msgs/msg/Image')
            writer.write(topic, 5 * NS + i * NS // 10 + 10 ** 6, raw)


def decoded(bag, topic=IMAGE):
    return [(m.stamp_ns(), m.time_ns, images.decode(m.read())) for m in bag.messages(topic)]


def same(found, pixels):
    assert len(found) == len(pixels)
    for i, (stamp, time, rgb) in enumerate(found):
        assert stamp == 5 * NS + i * NS // 10 and time == stamp + 10 ** 6
        np.testing.assert_array_equal(rgb, pixels[i])


@pytest.mark.parametrize('storage, name', [('mcap', 'folder'), ('mcap', 'file.mcap'), ('sqlite3', 'folder')])
@pytest.mark.parametrize('encoding', ['rgb8', 'png'])
def test_round_trip(tmp_path, storage, name, encoding):
    pixels = frames()
    write(tmp_path / name, pixels, encoding, storage)
    assert (tmp_path / name).is_dir() == (name == 'folder')
    with Bag(tmp_path / name) as bag:
        kind = 'sensor_msgs/msg/' + ('CompressedImage' if encoding == 'png' else 'Image')
        assert bag.topics == {IMAGE: bags.Topic(IMAGE, kind, 5)} and not bag.notes
        assert bag.image_topic().name == IMAGE
        same(decoded(bag), pixels)
        same(decoded(bag), pixels)  # again from the start
        assert bag.messages(IMAGE).__next__().read().header.frame_id == 'camera'
    assert [p.name for p in tmp_path.iterdir()] == [name], 'something temporary was left behind'


def test_ros1(tmp_path):
    pixels = frames()
    write_ros1(tmp_path / 'old.bag', pixels)
    with Bag(tmp_path / 'old.bag') as bag:
        same(decoded(bag), pixels)
        message = next(bag.messages(IMAGE))
        again = bags.ROS2.deserialize_cdr(message.cdr(), message.type)
        np.testing.assert_array_equal(images.decode(again), pixels[0])


@pytest.mark.parametrize('mode', [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_storage(tmp_path, mode):
    pixels = frames()
    writer = Writer2(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        topic = writer.add_connection(IMAGE, 'sensor_msgs/msg/Image', typestore=bags.ROS2)
        for i, rgb in enumerate(pixels):
            msg = bags.image(rgb, 'rgb8', bags.header(5 * NS + i * NS // 10))
            raw = bags.ROS2.serialize_cdr(msg, msg.__msgtype__)
            writer.write(topic, 5 * NS + i * NS // 10 + 10 ** 6, raw)
    with Bag(tmp_path / 'bag') as bag:
        same(decoded(bag), pixels)
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace('zstd', 'brotli'))
    with Bag(tmp_path / 'bag') as bag:
        assert any('compressed with brotli; only zstd can be decompressed' in n for n in bag.notes)
        same(decoded(bag), pixels)  # which it is in truth
    metadata.unlink()
    with Bag(tmp_path / 'bag') as bag:
        same(decoded(bag), pixels)
    if mode == CompressionMode.FILE:
        alone = tmp_path / 'alone.db3.zstd'
        alone.write_bytes((tmp_path / 'bag' / 'bag.db3.zstd').read_bytes())
        with Bag(alone) as bag:
            same(decoded(bag), pixels)
            assert not bag.notes


def test_no_type_definitions(tmp_path):
    """What Humble and older record: topics and messages, no definitions."""
    pixels = frames()
    write(tmp_path / 'bag', pixels, storage='sqlite3')
    with sqlite3.connect(tmp_path / 'bag' / 'bag.db3') as db:
        db.executescript('DROP TABLE message_definitions; UPDATE schema SET schema_version = 3; '
                         'ALTER TABLE topics DROP COLUMN type_description_hash')
    db.close()
    with Bag(tmp_path / 'bag') as bag:
        same(decoded(bag), pixels)


def test_image_topics(tmp_path):
    write(tmp_path / 'two', frames(), other=50)
    write(tmp_path / 'none', [])
    with Bag(tmp_path / 'two') as bag:
        text = rf'several image topics.*{LABEL} \(Image, 5 messages\).*--image-topic'
        with pytest.raises(BagError, match=text):
            bag.image_topic()
        assert bag.image_topic(exclude=[LABEL]).name == IMAGE
        assert bag.image_topic(LABEL).count == 5
        with pytest.raises(BagError, match=f'no image topic /nope; its image topics: .*{IMAGE}'):
            bag.image_topic('/nope')
    with Bag(tmp_path / 'none') as bag, pytest.raises(BagError, match='no image topic; it has no topic'):
        bag.image_topic()


def test_the_topics_that_there_are_are_named(tmp_path):
    with bag_writer.Writer(tmp_path / 'bag.mcap') as writer:
        writer.write('/status', bags.TYPES['std_msgs/msg/String']('on'), 1)
    with Bag(tmp_path / 'bag.mcap') as bag:
        text = r'no image topic; it has /status \(std_msgs/String, 1 messages\)'
        with pytest.raises(BagError, match=text):
            bag.image_topic()
        with pytest.raises(BagError, match=text.replace('topic', 'topic /status')):
            bag.image_topic('/status')


def test_depth_and_empty_topics_are_no_choice(tmp_path):
    with bag_writer.Writer(tmp_path / 'bag.mcap') as writer:
        writer.write(IMAGE, bags.image(frames(1)[0], 'rgb8', bags.header(1)), 1)
        depth = bags.image(frames(1)[0], 'png', bags.header(1))
        writer.write('/depth/image_raw/compressedDepth', depth, 1)
        writer._connections['/other'] = writer._writer.add_connection(
            '/other', 'sensor_msgs/msg/Image', typestore=bags.ROS2)
    with Bag(tmp_path / 'bag.mcap') as bag:
        assert bag.image_topic().name == IMAGE
        assert bag.image_topic('/other').count == 0


def write_mcap(path, pixels, profile='ros2', kind='sensor_msgs/msg/Image', encoding='cdr', foreign=None,
               **options):
    """An mcap file by another writer, with messages as `write` has them."""
    with open(path, 'wb') as f:
        writer = McapWriter(f, **{'chunk_size': 4000, **options})
        writer.start(profile, 'test')
        schema = writer.register_schema(kind, 'ros1msg' if encoding == 'ros1' else 'ros2msg', b'')
        channel = writer.register_channel(IMAGE, encoding, schema)
        other = foreign and writer.register_channel(
            '/extra', foreign, writer.register_schema('Extra', foreign, b''))
        for i, rgb in enumerate(pixels):
            msg = bags.image(rgb, 'rgb8', bags.header(5 * NS + i * NS // 10, 'camera'))
            raw = bytes(bags.ROS2.serialize_cdr(msg, msg.__msgtype__))
            if encoding == 'ros1':
                raw = bytes(bags.ROS1.serialize_ros1(bags.ROS1.deserialize_ros1(
                    bags.ROS2.cdr_to_ros1(raw, msg.__msgtype__), msg.__msgtype__), msg.__msgtype__))
            time = 5 * NS + i * NS // 10 + 10 ** 6
            writer.add_message(channel, time, raw, time)
            if foreign:
                writer.add_message(other, time, b'{}', time)
        writer.finish()


NO_INDEX = {'index_types': IndexType.NONE}


@pytest.mark.parametrize('options', [
    {}, {'compression': CompressionType.LZ4}, {'compression': CompressionType.NONE}, {'use_chunking': False},
    {'use_statistics': False}, NO_INDEX, {**NO_INDEX, 'use_statistics': False},
    {'index_types': IndexType.CHUNK}, {'index_types': IndexType.MESSAGE}, {'repeat_schemas': False},
    {'repeat_channels': False, 'use_summary_offsets': False},
    {**NO_INDEX, 'use_statistics': False, 'repeat_schemas': False, 'repeat_channels': False,
     'use_summary_offsets': False}])
def test_what_mcap_recorders_leave_out(tmp_path, options):
    """Message indexes, statistics, chunks and the summary are optional in mcap."""
    pixels = frames(7)
    write_mcap(tmp_path / 'a.mcap', pixels, foreign='json', **options)
    with Bag(tmp_path / 'a.mcap') as bag:
        assert bag.topics[IMAGE].count == bag.topics['/extra'].count == 7
        assert bag.image_topic().name == IMAGE
        same(decoded(bag), pixels)
        late = [m.time_ns for m in bag.messages(IMAGE, start_ns=5 * NS + 3 * NS // 10 + 10 ** 6)]
        assert late == [5 * NS + i * NS // 10 + 10 ** 6 for i in (3, 4, 5, 6)]
        assert not bag.notes


@pytest.mark.parametrize('profile', ['', 'ros1', 'ros2'])
@pytest.mark.parametrize('foreign', [None, 'json', 'protobuf', 'flatbuffer'])
def test_foreign_channels_and_profiles(tmp_path, profile, foreign):
    """The encoding of each channel decides, not the profile of the file, nor the channels beside it."""
    pixels = frames(3)
    write_mcap(tmp_path / 'a.mcap', pixels, profile, 'sensor_msgs/Image', foreign=foreign)
    with Bag(tmp_path / 'a.mcap') as bag:
        assert bag.topics[IMAGE] == bags.Topic(IMAGE, 'sensor_msgs/msg/Image', 3)
        same(decoded(bag), pixels)
    write_mcap(tmp_path / 'b.mcap', pixels, profile, 'sensor_msgs/Image', 'ros1', foreign)
    with Bag(tmp_path / 'b.mcap') as bag:
        same(decoded(bag), pixels)
        cdr = next(bag.messages(IMAGE)).cdr()
        np.testing.assert_array_equal(
            images.decode(bags.ROS2.deserialize_cdr(cdr, 'sensor_msgs/msg/Image')), pixels[0])


def test_stated_counts_are_compared(tmp_path):
    """Statistics and metadata.yaml say 40, 4 are there: what is there is read, and the difference noted."""
    pixels = frames(4)
    write_mcap(tmp_path / 'a.mcap', pixels)
    data = (tmp_path / 'a.mcap').read_bytes()
    at = data.rindex(struct.pack('<BQQ', mcap.STATISTICS, 56, 4))
    wrong = data[at:].replace(struct.pack('<Q', 4), struct.pack('<Q', 40))
    (tmp_path / 'a.mcap').write_bytes(data[:at] + wrong)
    with Bag(tmp_path / 'a.mcap') as bag:
        assert bag.topics[IMAGE].count == 40
        same(decoded(bag), pixels)
        assert bag.notes == [f'a.mcap: states 40 messages on {IMAGE}; 4 can be read']
    write(tmp_path / 'bag', pixels)
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace('message_count: 4', 'message_count: 40'))
    with Bag(tmp_path / 'bag') as bag:
        assert bag.topics[IMAGE].count == 4
        same(decoded(bag), pixels)
        assert bag.notes == [f'bag: metadata.yaml counts 40 messages on {IMAGE}; its files hold 4']


def test_a_damaged_chunk_is_left_out(tmp_path):
    """In the middle of a whole file, indexed or not; twice the same frames, and one note."""
    pixels = frames(6)
    for name, options in (('indexed.mcap', {}), ('scanned.mcap', NO_INDEX)):
        write_mcap(tmp_path / name, pixels, **options)
        data = bytearray((tmp_path / name).read_bytes())
        at = data.index(struct.pack('<QQ', 5 * NS + 2 * NS // 10 + 10 ** 6, 5 * NS + 3 * NS // 10 + 10 ** 6))
        data[at + 500:at + 600] = bytes(100)
        (tmp_path / name).write_bytes(data)
        with Bag(tmp_path / name) as bag:
            for _ in range(2):
                assert [m.stamp_ns() for m in bag.messages(IMAGE)] == [
                    5 * NS + i * NS // 10 for i in (0, 1, 4, 5)]
            assert len(bag.notes) == 2 and 'damaged' in bag.notes[0]
            assert ('states 6' if not options else 'statistics count 6') in bag.notes[1]


def split(folder, pixels, names):
    """A split recording, a frame in each part, and its metadata.yaml."""
    folder.mkdir()
    for i, name in enumerate(names):
        stamp = 5 * NS + i * NS // 10
        with bag_writer.Writer(folder / name) as writer:
            writer.write(IMAGE, bags.image(pixels[i], 'rgb8', bags.header(stamp)), stamp + 10 ** 6)
    listed = ''.join(f'    - {name}\n' for name in names)
    (folder / 'metadata.yaml').write_text(
        f'rosbag2_bagfile_information:\n  version: 99\n  relative_file_paths:\n{listed}'
        '  topics_with_message_count:\n    - topic_metadata: {name: ' + IMAGE + ', type: '
        f'sensor_msgs/msg/Image, serialization_format: cdr}}\n      message_count: {len(names)}\n')


def test_metadata_does_not_decide(tmp_path):
    """Metadata newer than we know, empty, cut or of another recording: the files that are there are read."""
    pixels, folder = frames(3), tmp_path / 'bag'
    split(folder, pixels, ['b_2.mcap', 'b_10.mcap', 'b_9.mcap'])
    metadata = (folder / 'metadata.yaml').read_text()
    with Bag(folder) as bag:
        same(decoded(bag), pixels)  # in the order that it states
        assert not bag.notes
    (folder / 'b_9.mcap').rename(folder / 'b_11.mcap')
    for text, note in (('', 'empty or broken'), (metadata[:200], 'empty or broken'),
                       (metadata, 'names b_9.mcap, which is not there; b_11.mcap is read instead')):
        (folder / 'metadata.yaml').write_text(text)
        with Bag(folder) as bag:
            same(decoded(bag), pixels)
            assert len(bag.notes) == 1 and note in bag.notes[0]
    (folder / 'b_10.mcap').unlink()
    with Bag(folder) as bag:
        assert [m.stamp_ns() for m in bag.messages(IMAGE)] == [5 * NS, 5 * NS + 2 * NS // 10]
        assert 'names b_10.mcap, b_9.mcap, which' in bag.notes[0] and 'counts 3 messages' in bag.notes[1]
    (folder / 'b_2.mcap').write_bytes(b'')
    with Bag(folder) as bag:
        assert len(decoded(bag)) == 1 and 'b_2.mcap does not open as a bag: it is empty' in bag.notes[1]


def test_a_file_that_metadata_does_not_name(tmp_path):
    """A result that was written into the bag's folder is no part of the recording."""
    write(tmp_path / 'bag', frames(2))
    write(tmp_path / 'bag' / 'out.mcap', frames(5))
    with Bag(tmp_path / 'bag') as bag:
        assert len(decoded(bag)) == 2 and 'out.mcap left out' in bag.notes[0]


def test_compressed_mcap_alone(tmp_path):
    """What `ros2 bag record --compression-mode file` leaves, whole, and cut short."""
    pixels = frames(40, 60, 80)
    write_mcap(tmp_path / 'whole.mcap', pixels, chunk_size=50_000)
    data = packed.zstd.compress((tmp_path / 'whole.mcap').read_bytes())
    (tmp_path / 'x.mcap.zstd').write_bytes(data)
    (tmp_path / 'whole.mcap').rename(tmp_path / 'of_another_name')
    for name in ('x.mcap.zstd', 'of_another_name'):
        with Bag(tmp_path / name) as bag:
            same(decoded(bag), pixels)
            assert not bag.notes
    (tmp_path / 'x.mcap.zstd').write_bytes(data[:len(data) * 2 // 3])
    with Bag(tmp_path / 'x.mcap.zstd') as bag:
        found = decoded(bag)
        assert 'then it is cut short' in bag.notes[0] and 'cut short' in bag.notes[1] and 15 < len(found) < 40
        same(found, pixels[:len(found)])


@pytest.mark.parametrize('share', [0.35, 0.7, 0.9999])
@pytest.mark.parametrize('inside', [False, True], ids=['file', 'folder'])
def test_mcap_cut_short(tmp_path, share, inside):
    """The recorder lost power: whole chunks are read, a note says how much, the bag itself is left alone."""
    pixels = frames(12, 120, 160)
    path = tmp_path / 'bag' / 'bag.mcap' if inside else tmp_path / 'bag.mcap'
    write(tmp_path / 'bag' if inside else path, pixels, other=400_000)
    data = path.read_bytes()[:int(path.stat().st_size * share)]
    path.write_bytes(data)
    with Bag(tmp_path / 'bag' if inside else path) as bag:
        found = decoded(bag)
        assert bag.topics[IMAGE].count == len(found)
        assert 'cut short, ' in bag.notes[0] and f'of its {len(data)} bytes' in bag.notes[0]
    # A chunk of 1 MiB holds three frames.
    assert len(found) == {0.35: 3, 0.7: 6, 0.9999: 12}[share]
    same(found, pixels[:len(found)])
    assert path.read_bytes() == data


def test_folder_without_metadata(tmp_path):
    """A split recording whose metadata.yaml was never written; part 10 comes after part 9."""
    pixels = frames(3)
    folder = tmp_path / 'bag'
    folder.mkdir()
    for part, i in ((8, 0), (9, 1), (10, 2)):
        stamp = 5 * NS + i * NS // 10
        with bag_writer.Writer(folder / f'bag_{part}.mcap') as writer:
            writer.write(IMAGE, bags.image(pixels[i], 'rgb8', bags.header(stamp)), stamp + 10 ** 6)
    with Bag(folder) as bag:
        assert bag.topics[IMAGE].count == 3 and 'no metadata.yaml' in bag.notes[0]
        same(decoded(bag), pixels)


@pytest.mark.parametrize('share', [0.3, 0.6, 0.95])
def test_sqlite_cut_short(tmp_path, share):
    """The messages that sqlite still reads are read, by time, and a note counts them."""
    pixels = frames(40, 60, 80)
    write(tmp_path / 'bag', pixels, storage='sqlite3')
    path = tmp_path / 'bag' / 'bag.db3'
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    for source in (tmp_path / 'bag', path):
        with Bag(source) as bag:
            found = decoded(bag)
            assert f'damaged or cut short; sqlite still reads {len(found)} messages' in bag.notes[0]
            assert bag.topics[IMAGE].count == len(found) >= int(40 * share) - 2
            same(found, pixels[:len(found)])
            assert len(list(bag.messages(IMAGE, start_ns=found[5][1]))) == len(found) - 5
    path.write_bytes(data[:3000])
    with pytest.raises(BagError, match='sqlite can not read it'):
        Bag(path)


@pytest.mark.parametrize('metadata', [True, False])
def test_messages_in_a_journal(tmp_path, metadata):
    """A killed recorder left half of the messages in its journal; the user's files stay as they are."""
    import shutil
    pixels = frames(6)
    write(tmp_path / 'live', pixels, storage='sqlite3')
    db = sqlite3.connect(tmp_path / 'live' / 'live.db3')
    rows = db.execute('SELECT * FROM messages ORDER BY id').fetchall()
    db.execute('DELETE FROM messages WHERE id > 3')
    db.commit()
    db.execute('PRAGMA journal_mode = WAL')
    db.executemany(f'INSERT INTO messages VALUES ({",".join("?" * len(rows[0]))})', rows[3:])
    db.commit()
    shutil.copytree(tmp_path / 'live', tmp_path / 'bag')
    db.close()
    path = tmp_path / 'bag' / 'live.db3'
    assert path.with_name('live.db3-wal').stat().st_size
    path.with_name('live.db3-shm').unlink()
    if not metadata:
        (tmp_path / 'bag' / 'metadata.yaml').unlink()
    before = {p.name: p.read_bytes() for p in (tmp_path / 'bag').iterdir()}
    for source in (tmp_path / 'bag', path):
        with Bag(source) as bag:
            same(decoded(bag), pixels)
            assert bag.topics[IMAGE].count == 6 and 'its recorder was killed' in bag.notes[-1]
    assert {p.name: p.read_bytes() for p in (tmp_path / 'bag').iterdir()} == before


@pytest.mark.parametrize('share', [0.5, 0.9, 1])
@pytest.mark.parametrize('compression', [None, *Writer1.CompressionFormat])
def test_unfinished_ros1(tmp_path, compression, share):
    """`.bag.active`, without index, whole or cut short: its chunks are read, as `rosbag reindex` does."""
    pixels = frames(8, 60, 80)
    write_ros1(tmp_path / 'old.bag', pixels, compression, 40_000)
    data = bytearray((tmp_path / 'old.bag').read_bytes())
    at = data.index(b'index_pos=') + 10
    index, = struct.unpack_from('<Q', data, at)
    data[at:at + 8] = bytes(8)
    path = tmp_path / 'old.bag.active'
    path.write_bytes(data[:int(index * share)])
    with Bag(path) as bag:
        found = decoded(bag)
        assert 'not finished by its recorder' in bag.notes[0] and 'rosbag reindex' in bag.notes[0]
        assert bag.topics[IMAGE].count == len(found) == {0.5: 3, 0.9: 6, 1: 8}[share]
        same(found, pixels[:len(found)])
        assert len(list(bag.messages(IMAGE, start_ns=found[1][1]))) == len(found) - 1


def test_ros1_last_chunk_open(tmp_path):
    """A recorder writes the size of an open chunk as 0, and its records after that."""
    pixels = frames(3)
    write_ros1(tmp_path / 'old.bag', pixels)
    data = (tmp_path / 'old.bag').read_bytes()
    at = data.index(b'op=\x05')
    start = data.index(b'size=', at)
    # The fields of the chunk's header end before its length, 4 bytes.
    head = data.rindex(struct.pack('<I', 9), 0, start)
    end = max(start + 9, at + 4, data.index(b'compression=none', at - 60) + 16)
    assert head and struct.unpack_from('<I', data, end)[0] > 3 * 24 * 32 * 3
    (tmp_path / 'old.bag').write_bytes(data[:end] + bytes(4) + data[end + 4:-400])
    with Bag(tmp_path / 'old.bag') as bag:
        same(decoded(bag), pixels)
        assert 'not finished' in bag.notes[0]


@pytest.mark.parametrize('name, data, text', [
    ('missing', None, 'missing does not open as a bag: .*No such file'),
    ('empty.mcap', b'', 'it is empty'), ('foreign.mcap', b'hello world' * 9, "it starts with b'hello"),
    ('foreign.bag', b'hello world' * 9, 'expected an mcap, sqlite3'),
    ('old.bag', b'#ROSBAG V1.2\n' * 9, 'expected .* ROS 1 .*version 2.0'),
    ('cut.bag', ros1.ROS1 + b'\x80', 'its first record is broken'),
    ('foreign.db3', sqlite.SQLITE + bytes(200), 'sqlite can not read it')])
def test_no_bags(tmp_path, name, data, text):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BagError, match=text):
        Bag(tmp_path / name)


def bomb(size):
    """Some KB of zstd that become `size` zeros."""
    packer = packed.zstd.ZstdCompressor()
    block = bytes(1 << 20)
    return b''.join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def record(opcode, content):
    return struct.pack('<BQ', opcode, len(content)) + content


@pytest.mark.parametrize('stated', [1 << 30, 1000])
def test_a_chunk_does_not_become_gigabytes(tmp_path, stated):
    """What a chunk says to hold is limited, and so is what it does hold."""
    pixels, packed = frames(4), bomb(1 << 30)
    write_mcap(tmp_path / 'a.mcap', pixels, **NO_INDEX)
    data = (tmp_path / 'a.mcap').read_bytes()
    chunk = record(mcap.CHUNK, struct.pack('<QQQII', 1, 2, stated, 0, 4) + b'zstd'
                   + struct.pack('<Q', len(packed)) + packed)
    at = len(mcap.MCAP) + 9
    at += struct.unpack_from('<Q', data, at - 8)[0]  # after the first record
    (tmp_path / 'a.mcap').write_bytes(data[:at] + chunk + data[at:])
    tracemalloc.start()
    try:
        with Bag(tmp_path / 'a.mcap') as bag:
            same(decoded(bag), pixels)
            assert any('damaged and left out' in note and str(1 << 30 if stated > 1000 else 1000) in note
                       for note in bag.notes)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_file_does_not_become_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, 'MAX_UNPACKED', 1 << 22)
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr('tempfile.tempdir', None)
    (tmp_path / 'a.mcap.zstd').write_bytes(bomb(1 << 26))
    with pytest.raises(BagError, match='bytes that decompress to more than'):
        Bag(tmp_path / 'a.mcap.zstd')
    assert not list((tmp_path / 'tmp').iterdir())


def test_a_view_does_not_compute_messages(tmp_path):
    with closing(sqlite3.connect(tmp_path / 'a.db3')) as db:
        db.executescript(
            'CREATE TABLE topics (id, name, type, serialization_format);'
            'CREATE VIEW messages AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) '
            'SELECT id, 1 AS topic_id, id AS timestamp, zeroblob(1000000000) AS data FROM n')
    with pytest.raises(BagError, match='no tables topics and messages'):
        Bag(tmp_path / 'a.db3')


@pytest.mark.parametrize('before, after', [
    ('message_count: 4', "message_count: 'x'"), ('message_count: 4', 'message_count: .inf'),
    ('name: ' + IMAGE, 'name: {a: b}'), ('name: ' + IMAGE, 'name: "\\e[2J"'), ('mcap', '{a: b}'),
    ('rosbag2_bagfile_information', 5000 * '['), ('version:', '#' * (1 << 24) + '\nversion:')])
def test_broken_metadata_is_not_used(tmp_path, before, after):
    pixels = frames(4)
    write(tmp_path / 'bag', pixels)
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    assert before in metadata.read_text()
    metadata.write_text(metadata.read_text().replace(before, after))
    with Bag(tmp_path / 'bag') as bag:
        same(decoded(bag), pixels)
        assert 'broken and not used' in bag.notes[0]


def test_names_that_no_message_can_carry(tmp_path):
    write(tmp_path / 'bag', frames(2), storage='sqlite3')
    path, = (tmp_path / 'bag').glob('*.db3')
    with closing(sqlite3.connect(path)) as db:
        for i, name in enumerate((b'\xff', '/a\x1b[2J')):
            db.execute('INSERT INTO topics VALUES (?, ?, ?, ?, ?, ?)',
                       (100 + i, name, 'sensor_msgs/msg/Image', 'cdr', '', ''))
        db.commit()
    with Bag(path) as bag:
        assert list(bag.topics) == [IMAGE] and 'no printable text' in bag.notes[0]


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mcap')
    os.mkfifo(tmp_path / 'a.png')
    for path in (tmp_path / 'pipe.mcap', '/dev/zero', tmp_path):
        with pytest.raises(BagError):
            Bag(path)
    with pytest.raises(BagError, match='not a regular file'):
        bag_writer.from_folder(tmp_path, tmp_path / 'out.mcap')


def test_an_mcap_file_of_nothing(tmp_path):
    (tmp_path / 'cut.mcap').write_bytes(mcap.MCAP)
    with Bag(tmp_path / 'cut.mcap') as bag, pytest.raises(BagError, match='it has no topic'):
        assert 'cut short, 8 of its 8 bytes' in bag.notes[0]
        bag.image_topic()


def test_folder_that_is_no_bag(tmp_path):
    with pytest.raises(BagError, match='is not a bag: expected metadata.yaml'):
        Bag(tmp_path)


def test_broken_message(tmp_path):
    """One message of garbage between others: the others are read."""
    pixels = frames(2)
    good = [bags.image(p, 'rgb8', bags.header(5 * NS + i * NS // 10)) for i, p in enumerate(pixels)]
    raw = [bytes(bags.ROS2.serialize_cdr(m, m.__msgtype__)) for m in good]
    with bag_writer.Writer(tmp_path / 'bag.mcap') as writer:
        for i, cdr in enumerate((raw[0], raw[0][:30], b'', b'\xff' * 40, raw[1])):
            writer.write_raw(IMAGE, 'sensor_msgs/msg/Image', cdr, 5 * NS + i)
    with Bag(tmp_path / 'bag.mcap') as bag:
        messages = list(bag.messages(IMAGE))
        assert len(messages) == 5 and messages[2].stamp_ns() == 5 * NS + 2
        for m in messages[1:4]:
            with pytest.raises(BagError, match=f'{IMAGE}: a message of .* is no sensor_msgs/msg/Image'):
                m.read()
        for m, p in zip((messages[0], messages[4]), pixels):
            np.testing.assert_array_equal(images.decode(m.read()), p)


def test_stamp_not_set(tmp_path):
    with bag_writer.Writer(tmp_path / 'bag.mcap') as writer:
        writer.write(IMAGE, bags.image(frames(1)[0], 'rgb8', bags.header(0)), 77)
    with Bag(tmp_path / 'bag.mcap') as bag:
        assert next(bag.messages(IMAGE)).stamp_ns() == 77


def test_writer_is_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), bag_writer.Writer(tmp_path / 'bag') as writer:
        writer.write(IMAGE, bags.image(frames(1)[0], 'rgb8', bags.header(1)), 1)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write(tmp_path / 'bag', frames(1))
    with pytest.raises(BagError, match='exists; no bag is overwritten'):
        bag_writer.Writer(tmp_path / 'bag')
    with pytest.raises(BagError, match='expected mcap, or sqlite3 for a folder'):
        bag_writer.Writer(tmp_path / 'a.mcap', 'sqlite3')


def test_memory_is_bounded(tmp_path):
    """Reading 300 MB of images takes little more memory than one of them."""
    pixels = np.zeros((480, 640, 3), np.uint8)
    with bag_writer.Writer(tmp_path / 'bag.mcap') as writer:
        for i in range(320):
            writer.write(IMAGE, bags.image(pixels, 'rgb8', bags.header(i + 1)), i + 1)
    tracemalloc.start()
    with Bag(tmp_path / 'bag.mcap') as bag:
        assert sum(m.read().height for m in bag.messages(IMAGE)) == 320 * 480
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6, f'{peak / 1e6:.1f} MB'


@pytest.mark.parametrize('names, rate, expected_s', [
    (['0001TP_008550', '0001TP_008580', '0001TP_008610'], 30, [286, 287, 288]),
    (['Seq_00030', 'Aeq_00060', 'Aeq_00000'], 30, [4, 3, 1]),
    (['f1', 'f2', 'f4'], 2, [1.5, 2, 3]),
    (['b', 'a'], 1, [1, 2]),
    (['1700000000123456789'], 1, [1700000000.123456789]),
    (['1700000000.500000000', '1700000001_000000001'], 1, [1700000000.5, 1700000001.000000001]),
])
def test_folder_stamps(tmp_path, names, rate, expected_s):
    stamps = image_folders.folder_stamps([tmp_path / f'{n}.png' for n in names], rate)
    np.testing.assert_allclose(stamps, np.array(expected_s) * NS, rtol=1e-15, atol=200)


def test_from_folder(tmp_path):
    camvid = labels.load('camvid')
    pixels, (left, right) = frames(3), (tmp_path / 'images', tmp_path / 'labels')
    left.mkdir()
    right.mkdir()
    ids = np.random.default_rng(1).integers(0, 12, (24, 32), dtype=np.uint8)
    for i, rgb in enumerate(pixels):
        cv2.imwrite(str(left / f'Seq_{i:03}.png'), rgb[..., ::-1])
    cv2.imwrite(str(right / 'Seq_001.png'), ids)
    out = tmp_path / 'bag'
    assert bag_writer.from_folder(left, out, truth=right, labels=camvid, rate=10, encoding='rgb8') == 3
    with Bag(out) as bag:
        assert {t.name: t.count for t in bag.topics.values()} == {
            IMAGE: 3, '/camera/camera_info': 3, LABEL: 1}
        for i, (stamp, time, rgb) in enumerate(decoded(bag)):
            assert stamp == time == NS + i * NS // 10
            np.testing.assert_array_equal(rgb, pixels[i])
        (stamp, _, truth), = decoded(bag, LABEL)
        assert stamp == NS + NS // 10
        np.testing.assert_array_equal(truth[..., 0], np.where(ids == 11, 255, ids))
        info = next(bag.messages('/camera/camera_info')).read()
        assert (info.height, info.width, info.k[0], info.header.frame_id) == (24, 32, 0, 'camera')
    bag_writer.from_folder(left, tmp_path / 'png.mcap', encoding='png')
    with Bag(tmp_path / 'png.mcap') as bag:
        assert set(bag.topics) == {IMAGE + '/compressed', '/camera/camera_info'}
        np.testing.assert_array_equal(decoded(bag, IMAGE + '/compressed')[2][2], pixels[2])


def test_from_folder_with_images_that_exif_turns(tmp_path):
    """A label that was drawn on the stored picture is refused where its size shows that, else it is noted."""
    camvid, (left, right) = labels.load('camvid'), (tmp_path / 'images', tmp_path / 'labels')
    left.mkdir()
    right.mkdir()
    cv2.imwrite(str(right / '1.png'), np.zeros((24, 32), np.uint8))
    jpeg = cv2.imencode('.jpg', np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    for orientation in (6, 3):
        exif = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0' + bytes([orientation]) + 6 * b'\0'
        block = b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif
        (left / '1.jpg').write_bytes(jpeg[:2] + block + jpeg[2:])
        if orientation == 6:
            with pytest.raises(BagError, match=r'1.png is 32x24, its image 24x32.*EXIF orientation 6 turns'):
                bag_writer.from_folder(left, tmp_path / 'bag', truth=right, labels=camvid)
            assert not (tmp_path / 'bag').exists()
    notes = []
    assert bag_writer.from_folder(left, tmp_path / 'bag', truth=right, labels=camvid, notes=notes) == 1
    assert len(notes) == 1 and '1 images were turned upright' in notes[0]


def test_from_folder_refuses(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    with pytest.raises(BagError, match='no images in'):
        bag_writer.from_folder(folder, tmp_path / 'bag')
    (folder / 'a1.png').write_bytes(b'no image')
    with pytest.raises(BagError, match='a1.png is not a readable image'):
        bag_writer.from_folder(folder, tmp_path / 'bag')
    assert not (tmp_path / 'bag').exists()
    other = tmp_path / 'labels'
    other.mkdir()
    cv2.imwrite(str(other / 'b1.png'), np.zeros((4, 4), np.uint8))
    with pytest.raises(BagError, match='has the name of an image in'):
        bag_writer.from_folder(folder, tmp_path / 'bag', truth=other, labels=labels.load('camvid'))


def test_a_folder_may_end_in_bag(tmp_path):
    """As `ros2 bag record -o drive.bag` makes it; a file of that name is one of ROS 1."""
    write(tmp_path / 'drive.bag', pixels := frames(), storage='sqlite3')
    with Bag(tmp_path / 'drive.bag') as bag:
        same(decoded(bag), pixels)


def test_a_cut_file_is_indexed_once_a_process(tmp_path, monkeypatch):
    write(tmp_path / 'whole.mcap', frames(50), other=100_000)
    cut = tmp_path / 'cut.mcap'
    cut.write_bytes((tmp_path / 'whole.mcap').read_bytes()[:-5000])
    made = count()
    real = mcap._scanned
    monkeypatch.setattr(mcap, '_scanned', lambda *a: next(made) >= 0 and real(*a))
    for _ in range(3):
        with Bag(cut) as bag:
            assert 'cut short' in bag.notes[0] and decoded(bag)
    assert next(made) == 1


def test_digest(tmp_path):
    write(tmp_path / 'a', frames(1))
    first = bags.digest(tmp_path / 'a')
    assert len(first) == 64 and first == bags.digest(tmp_path / 'a')
    with open(tmp_path / 'a' / 'metadata.yaml', 'a') as f:
        f.write(' ')
    assert bags.digest(tmp_path / 'a') != first


def test_command_line(tmp_path, capsys):
    folder = tmp_path / 'images'
    folder.mkdir()
    for i, rgb in enumerate(frames(2)):
        cv2.imwrite(str(folder / f'{i}.png'), rgb)
    out = str(tmp_path / 'bag')
    assert main(['bag', 'from-folder', str(folder), out, '--storage', 'sqlite3', '--rate', '5']) == 0
    assert main(['bag', 'info', out]) == 0
    said = capsys.readouterr().out
    assert 'bag: 2 frames' in said and f'2  sensor_msgs/msg/Image               {IMAGE}' in said
    with Bag(out) as bag:
        assert [m.stamp_ns() for m in bag.messages(IMAGE)] == [NS, NS + NS // 5]
    assert main(['bag', 'from-folder', str(folder), out]) == 1
    assert capsys.readouterr().err.count('ERROR: ') == 1
    with pytest.raises(SystemExit):
        main(['bag', 'from-folder', str(folder), out + '2', '--rate', '0'])
    assert "argument --rate: '0'; expected a number from 0.001" in capsys.readouterr().err
