# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags of every format that rosbags writes, whole, cut short and broken, with the frames that went in."""
import tracemalloc

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from rosbags.rosbag1 import Writer as Writer1  # noqa: E402
from rosbags.rosbag2 import CompressionMode, StoragePlugin  # noqa: E402
from rosbags.rosbag2 import Writer as Writer2  # noqa: E402
from rosbags.rosbag2.enums import CompressionFormat  # noqa: E402

from lightseg_ros import bags, images, labels, mcap_repair  # noqa: E402
from lightseg_ros.bags import Bag, BagError, NS  # noqa: E402
from lightseg_ros.cli import main  # noqa: E402

IMAGE, LABEL = '/camera/image_raw', '/camera/label'


def frames(count=5, height=24, width=32):
    return list(np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def write(path, pixels, encoding='rgb8', storage='mcap', other=0):
    """A bag of frames at 10 Hz from 5 s on, recorded 1 ms late, and `other` bytes of a second topic."""
    with bags.Writer(path, storage) as writer:
        for i, rgb in enumerate(pixels):
            stamp = 5 * NS + i * NS // 10
            writer.write(IMAGE, bags.image(rgb, encoding, bags.header(stamp, 'camera')), stamp + 10 ** 6)
            if other:
                noise = np.random.default_rng(i).integers(0, 256, (1, other), dtype=np.uint8)
                writer.write(LABEL, bags.image(noise, 'mono8', bags.header(stamp)), stamp)


def write_ros1(path, pixels):
    types = bags.ROS1.types
    with Writer1(path) as writer:
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
    with pytest.raises(BagError, match='does not open as a bag: .*brotli'):
        Bag(tmp_path / 'bag')


def test_no_type_definitions(tmp_path):
    """What Humble and older record: topics and messages, no definitions."""
    import sqlite3
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
    with Bag(tmp_path / 'none') as bag, pytest.raises(BagError, match='no image topic; .* topics: none'):
        bag.image_topic()


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
        with bags.Writer(folder / f'bag_{part}.mcap') as writer:
            writer.write(IMAGE, bags.image(pixels[i], 'rgb8', bags.header(stamp)), stamp + 10 ** 6)
    with Bag(folder) as bag:
        assert bag.topics[IMAGE].count == 3 and 'no metadata.yaml' in bag.notes[0]
        same(decoded(bag), pixels)


def test_sqlite_cut_short(tmp_path):
    """What lies before the damage is read, or the error says that the database is damaged."""
    write(tmp_path / 'bag', frames(8, 120, 160), storage='sqlite3')
    path = tmp_path / 'bag' / 'bag.db3'
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(BagError, match='malformed|breaks off'), Bag(tmp_path / 'bag') as bag:
        decoded(bag)


@pytest.mark.parametrize('metadata', [True, False])
def test_messages_in_a_journal(tmp_path, metadata):
    """A killed recorder left half of the messages in its journal; the user's files stay as they are."""
    import shutil
    import sqlite3
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


def test_ros1_cut_short(tmp_path):
    write_ros1(tmp_path / 'old.bag', frames())
    data = (tmp_path / 'old.bag').read_bytes()
    (tmp_path / 'old.bag').write_bytes(data[:len(data) // 2])
    with pytest.raises(BagError, match='old.bag does not open as a bag: .*'):
        Bag(tmp_path / 'old.bag')


@pytest.mark.parametrize('name, data, text', [
    ('missing', None, 'missing does not open as a bag: .*not exist'),
    ('empty.mcap', b'', 'empty'), ('foreign.mcap', b'hello world' * 9, 'magic is invalid'),
    ('foreign.bag', b'hello world' * 9, 'magic is invalid'),
    ('foreign.db3', b'hello world' * 9, 'not a database'),
    ('foreign.txt', b'hello', "Unrecognized storage format '.txt'"),
    ('cut.mcap', mcap_repair.MAGIC, 'does not open')])
def test_no_bags(tmp_path, name, data, text):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BagError, match=text):
        Bag(tmp_path / name)


def test_folder_that_is_no_bag(tmp_path):
    with pytest.raises(BagError, match='is not a bag: expected metadata.yaml'):
        Bag(tmp_path)


def test_broken_message(tmp_path):
    """One message of garbage between others: the others are read."""
    pixels = frames(2)
    good = [bags.image(p, 'rgb8', bags.header(5 * NS + i * NS // 10)) for i, p in enumerate(pixels)]
    raw = [bytes(bags.ROS2.serialize_cdr(m, m.__msgtype__)) for m in good]
    with bags.Writer(tmp_path / 'bag.mcap') as writer:
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
    with bags.Writer(tmp_path / 'bag.mcap') as writer:
        writer.write(IMAGE, bags.image(frames(1)[0], 'rgb8', bags.header(0)), 77)
    with Bag(tmp_path / 'bag.mcap') as bag:
        assert next(bag.messages(IMAGE)).stamp_ns() == 77


def test_writer_is_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), bags.Writer(tmp_path / 'bag') as writer:
        writer.write(IMAGE, bags.image(frames(1)[0], 'rgb8', bags.header(1)), 1)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write(tmp_path / 'bag', frames(1))
    with pytest.raises(BagError, match='exists; no bag is overwritten'):
        bags.Writer(tmp_path / 'bag')
    with pytest.raises(BagError, match='expected mcap, or sqlite3 for a folder'):
        bags.Writer(tmp_path / 'a.mcap', 'sqlite3')


def test_memory_is_bounded(tmp_path):
    """Reading 300 MB of images takes little more memory than one of them."""
    pixels = np.zeros((480, 640, 3), np.uint8)
    with bags.Writer(tmp_path / 'bag.mcap') as writer:
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
    stamps = bags.folder_stamps([tmp_path / f'{n}.png' for n in names], rate)
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
    assert bags.from_folder(left, out, truth=right, labels=camvid, rate=10, encoding='rgb8') == 3
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
    bags.from_folder(left, tmp_path / 'png.mcap', encoding='png')
    with Bag(tmp_path / 'png.mcap') as bag:
        assert set(bag.topics) == {IMAGE + '/compressed', '/camera/camera_info'}
        np.testing.assert_array_equal(decoded(bag, IMAGE + '/compressed')[2][2], pixels[2])


def test_from_folder_refuses(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    with pytest.raises(BagError, match='no images in'):
        bags.from_folder(folder, tmp_path / 'bag')
    (folder / 'a1.png').write_bytes(b'no image')
    with pytest.raises(BagError, match='a1.png is not a readable image'):
        bags.from_folder(folder, tmp_path / 'bag')
    assert not (tmp_path / 'bag').exists()
    other = tmp_path / 'labels'
    other.mkdir()
    cv2.imwrite(str(other / 'b1.png'), np.zeros((4, 4), np.uint8))
    with pytest.raises(BagError, match='has the name of an image in'):
        bags.from_folder(folder, tmp_path / 'bag', truth=other, labels=labels.load('camvid'))


def test_a_folder_may_end_in_bag(tmp_path):
    """As `ros2 bag record -o drive.bag` makes it; a file of that name is one of ROS 1."""
    write(tmp_path / 'drive.bag', pixels := frames(), storage='sqlite3')
    with Bag(tmp_path / 'drive.bag') as bag:
        same(decoded(bag), pixels)


def test_a_cut_file_is_indexed_once_a_process(tmp_path, monkeypatch):
    write(tmp_path / 'whole.mcap', frames(50), other=100_000)
    cut = tmp_path / 'cut.mcap'
    cut.write_bytes((tmp_path / 'whole.mcap').read_bytes()[:-5000])
    made = []
    real = mcap_repair._reindex
    monkeypatch.setattr(mcap_repair, '_reindex', lambda path: made.append(path) or real(path))
    for _ in range(3):
        with Bag(cut) as bag:
            assert 'cut short' in bag.notes[0] and decoded(bag)
    assert len(made) == 1


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
    assert main(['bag', 'from-folder', str(folder), out + '2', '--rate', '0']) == 1
    assert capsys.readouterr().err.count('ERROR: ') == 2
