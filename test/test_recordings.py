# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which frame belongs to which label, whatever is wrong with the bag; tasks hold what the whole holds."""
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from lightseg_ros import bag_writer, bags, labels  # noqa: E402
from lightseg_ros.bag_files import sqlite  # noqa: E402
from lightseg_ros.bags import NS  # noqa: E402
from lightseg_ros.evaluation import recordings  # noqa: E402
from lightseg_ros.evaluation.recordings import GroundTruthSource, RecordedFrame, Selection, Skip  # noqa: E402

CAMVID = labels.load('camvid')
IMAGE, LABEL = '/camera/image_raw', '/camera/label'
TRUTH = GroundTruthSource(topic=LABEL)


def pixels(i, height=24, width=32):
    return np.full((height, width, 3), (i, 2 * i, 255 - i), np.uint8)


def ids(i, height=24, width=32):
    return np.full((height, width), i % 11, np.uint8)


class Maker:
    """Writes a bag, a message at a time; a message's recording time is its place unless given."""

    def __init__(self, path, storage='mcap'):
        self.writer = bag_writer.Writer(path, storage)
        self.count = 0

    def __enter__(self):
        self.writer.__enter__()
        return self

    def __exit__(self, *error):
        self.writer.__exit__(*error)

    def frame(self, i, stamp=None, array=None, time=None):
        array = pixels(i) if array is None else array
        self._write(IMAGE, bags.image(array, 'rgb8', self._head(i, stamp)), time)

    def label(self, i, stamp=None, array=None, encoding='mono8'):
        array = ids(i) if array is None else array
        self._write(LABEL, bags.image(array, encoding, self._head(i, stamp)), None)

    def raw(self, cdr):
        self.count += 1
        self.writer.write_raw(IMAGE, 'sensor_msgs/msg/Image', cdr, self.count * NS)

    def _head(self, i, stamp):
        return bags.header((i + 1) * NS // 10 if stamp is None else stamp, 'camera')

    def _write(self, topic, msg, time):
        self.count += 1
        self.writer.write(topic, msg, self.count * NS if time is None else time)


def read(recording, size=10 ** 6):
    return [item for task in recording.tasks(size) for item in recordings.read(task, CAMVID)]


def found(items):
    """(index, red of the frame, class id of its truth or None) of each counted frame."""
    return [(f.index, int(f.rgb[0, 0, 0]), None if f.truth is None else int(f.truth[0, 0]))
            for f in items if isinstance(f, RecordedFrame) and f.counted]


@pytest.mark.parametrize('stamps, others, tolerance, expected', [
    ([10, 20, 30], [10, 20, 30], 0, [0, 1, 2]),
    ([10, 20, 30], [31, 9, 21], 2, [1, 2, 0]),
    ([10, 20, 30], [13, 40], 2, [None, None, None]),
    ([10, 12], [11], 2, [0, None]),
    ([8, 11], [11], 5, [None, 0]),
    ([10, 10], [10, 10], 0, [0, 1]),
    ([10, 10], [10], 0, [0, None]),
    ([], [1], 5, []), ([1], [], 5, [None])])
def test_match(stamps, others, tolerance, expected):
    assert recordings.match(stamps, others, tolerance) == expected


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('order', ['before', 'after', 'all first', 'all last', 'backwards'])
def test_label_topic(tmp_path, order, storage):
    """Wherever the labels lie in the bag, each frame gets its own; every third has none."""
    labelled = [i for i in range(200) if i % 3]
    with Maker(tmp_path / 'bag', storage) as bag:
        for i in labelled if order == 'all first' else []:
            bag.label(i)
        for i in range(200):
            if order == 'before' and i in labelled:
                bag.label(i)
            bag.frame(i)
            if order == 'after' and i in labelled:
                bag.label(i)
        for i in {'all last': labelled, 'backwards': labelled[::-1]}.get(order, []):
            bag.label(i)
    recording = recordings.index_bag(tmp_path / 'bag', truth=TRUTH)
    assert recording.topic == IMAGE and recording.counts == {
        'read': 200, 'duplicate_stamps': 0, 'stamps_back': 0, 'without_truth': 67, 'truth_without_frame': 0}
    assert found(read(recording)) == [(i, i, i % 11 if i % 3 else None) for i in range(200)]


@pytest.mark.parametrize('size', [1, 3, 7, 100])
def test_tasks(tmp_path, size):
    """Tasks hold what the whole holds, and begin with the frame before their first."""
    with Maker(tmp_path / 'bag') as bag:
        for i in range(10):
            bag.frame(i, time=(1 + i // 2) * NS)  # two at a time, so that a time names no frame
            bag.label(i)
    recording = recordings.index_bag(tmp_path / 'bag', truth=TRUTH)
    tasks = recording.tasks(size)
    assert len(tasks) == -(-10 // size) and found(read(recording, size)) == found(read(recording))
    for task in tasks:
        frames = list(recordings.read(task, CAMVID))
        before = [f.index for f in frames if not f.counted]
        assert before == ([task.numbers[0] - 1] if task.numbers[0] else [])


@pytest.mark.parametrize('selection, expected', [
    (Selection(), range(40)), (Selection(start_ns=NS), range(10, 40)),
    (Selection(NS, NS), range(10, 20)), (Selection(duration_ns=NS // 2), range(5)),
    (Selection(every_ns=NS), (0, 10, 20, 30)),
    (Selection(every_ns=NS // 4), (*range(0, 40, 5), *range(3, 40, 5))),
    (Selection(NS, None, 0, 7), (10, 17, 24, 31, 38)), (Selection(start_ns=4 * NS), ())])
def test_selection(selection, expected):
    """Frames at 10 Hz; the stamps do not matter, the first one is at 100 s."""
    assert selection.of([100 * NS + i * NS // 10 for i in range(40)]) == sorted(expected)


@pytest.mark.parametrize('odd, used, said', [
    (0, 1, ' 0.000 s, is far from that of the others, 1000.100 to 1000.800 s'),
    (5000 * NS, 8, '5000.000 s, is far from'), (1000 * NS, 9, '')])
def test_one_wrong_recording_time(tmp_path, odd, used, said):
    """It is told where times decide which frames are used, with how many these are."""
    with Maker(tmp_path / 'bag.mcap') as bag:
        for i in range(9):
            bag.frame(i, time=1000 * NS + i * NS // 10 if i else odd)
    selected = recordings.index_bag(tmp_path / 'bag.mcap', selection=Selection(duration_ns=NS))
    assert len(selected.chosen) == used and len(selected.notes) == bool(said)
    if said:
        assert 'bag.mcap: the recording time of 1 of 9 frames' in selected.notes[0]
        assert said in selected.notes[0] and f'; frames used: {used}; --start' in selected.notes[0]
        assert recordings.kind_of(selected.notes[0]) == 'bags_noted'
    assert not recordings.index_bag(tmp_path / 'bag.mcap').notes


@pytest.mark.parametrize('orientation, noted', [(1, False), (3, True), (6, False)])
def test_a_picture_that_exif_turns(tmp_path, orientation, noted):
    """Its size does not tell whether its label was drawn on the turned picture: that is noted."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'labels').mkdir()
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0' + bytes([orientation]) + bytes(6)
    data = cv2.imencode('.jpg', pixels(0))[1].tobytes()
    block = b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif
    (tmp_path / 'images' / 'a.jpg').write_bytes(data[:2] + block + data[2:])
    cv2.imwrite(str(tmp_path / 'labels' / 'a.png'), ids(0).T if orientation == 6 else ids(0))
    truth = GroundTruthSource(folder=tmp_path / 'labels', source_ids=True)
    frame, = read(recordings.index_bag(tmp_path / 'images', truth=truth))
    assert frame.truth is not None and (frame.note is not None) == noted
    assert not noted or frame.note.what == 'turned' and 'exiftool -Orientation=' in frame.note.reason
    frame, = read(recordings.index_bag(tmp_path / 'images'))
    assert frame.note is None, 'without a label nothing can be wrong'


def test_chosen_frames_keep_their_numbers_and_labels(tmp_path):
    """Each third frame: its label is its own, in tasks too, and the one before a task is a chosen one."""
    with Maker(tmp_path / 'bag') as bag:
        for i in range(20):
            bag.frame(i)
            if i % 2:
                bag.label(i)
    recording = recordings.index_bag(tmp_path / 'bag', truth=TRUTH, selection=Selection(every_frames=3))
    expected = [(i, i, i % 11 if i % 2 else None) for i in range(0, 20, 3)]
    for size in (1, 2, 100):
        assert found(read(recording, size)) == expected
    assert recording.counts == {'read': 7, 'duplicate_stamps': 0, 'stamps_back': 0, 'without_truth': 4,
                                'truth_without_frame': 0}
    tasks = recording.tasks(2, first=1, last=6)
    assert [(t.before, t.numbers) for t in tasks] == [(0, (3, 6)), (6, (9, 12)), (12, (15,))]


def test_label_folder(tmp_path):
    """Files named by their stamps in ns, with the data set's own ids: CamVid's 11 is void."""
    with Maker(tmp_path / 'bag') as bag:
        for i in range(3):
            bag.frame(i, 1_700_000_000 * NS + i * NS)
    (tmp_path / 'truth').mkdir()
    for i, late in ((0, 0), (2, 4_000_000)):
        cv2.imwrite(str(tmp_path / 'truth' / f'{1_700_000_000 * NS + i * NS + late}.png'),
                    np.full((24, 32), 11 if i else 5, np.uint8))
    truth = GroundTruthSource(folder=tmp_path / 'truth', source_ids=True)
    recording = recordings.index_bag(tmp_path / 'bag', truth=truth)
    assert found(read(recording)) == [(0, 0, 5), (1, 1, None), (2, 2, 255)]
    strict = GroundTruthSource(folder=tmp_path / 'truth', source_ids=True, tolerance_ns=1_000_000)
    counts = recordings.index_bag(tmp_path / 'bag', truth=strict).counts
    assert (counts['without_truth'], counts['truth_without_frame']) == (2, 1)


def test_png_labels(tmp_path):
    with Maker(tmp_path / 'bag') as bag:
        for i in range(2):
            bag.frame(i)
            bag.label(i, array=ids(i) if i else pixels(i), encoding='png')
    skip, *frames = read(recordings.index_bag(tmp_path / 'bag', IMAGE, TRUTH))
    assert skip.what == 'truth_failed' and 'coloured PNG' in skip.reason
    assert found(frames) == [(0, 0, None), (1, 1, 1)]


@pytest.mark.parametrize('array, encoding, text', [
    (ids(0, 12, 16), 'mono8', r'its label image is uint8 \(12, 16\); expected \(24, 32\)'),
    (ids(0) + 40, 'mono8', r'holds ids \[40\]; expected class ids 0 to 10 or 255; --label-ids source'),
    (pixels(0), 'rgb8', "its label image is 'rgb8'; expected mono8"),
    (pixels(0), 'jpeg', 'its label image is a JPEG, whose compression changes ids; expected a PNG'),
    (ids(0).astype(np.uint16) + 256, 'mono16', r'holds ids \[256\]; expected class ids')])
def test_labels_of_no_use(tmp_path, array, encoding, text):
    """The frame is read, its label is not; what was wrong is said."""
    with Maker(tmp_path / 'bag') as bag:
        bag.frame(0)
        bag.label(0, array=array, encoding=encoding)
    skip, frame = read(recordings.index_bag(tmp_path / 'bag', IMAGE, TRUTH))
    assert isinstance(skip, Skip) and skip.what == 'truth_failed' and frame.truth is None
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(skip.reason)


def test_corrupt_images_in_the_middle(tmp_path):
    with Maker(tmp_path / 'bag') as bag:
        bag.frame(0)
        bag.raw(b'\xff' * 50)
        msg = bags.image(pixels(1), 'rgb8', bags.header(NS, 'camera'))
        msg.height = 99
        bag._write(IMAGE, msg, None)
        bag.frame(3)
    recording = recordings.index_bag(tmp_path / 'bag')
    items = read(recording)
    assert found(items) == [(0, 0, None), (3, 3, None)]
    first, second = (i for i in items if isinstance(i, Skip))
    assert first.what == second.what == 'failed'
    assert 'bag frame 1: /camera/image_raw: a message of 50 bytes is no' in first.reason
    assert 'bag frame 2: rgb8 of 32x99' in second.reason and 'expected at least' in second.reason
    # Cut behind a broken frame, the next task begins after it without counting it twice.
    kinds = [i.what for i in read(recording, 2) if isinstance(i, Skip)]
    assert kinds == ['failed', 'before', 'failed']


def test_odd_stamps(tmp_path):
    """Stamps that jump back, come twice or are not set; a resolution that changes."""
    with Maker(tmp_path / 'bag') as bag:
        for i, stamp in enumerate((5 * NS, 6 * NS, 6 * NS, 3 * NS, 0)):
            bag.frame(i, stamp, pixels(i, 24, 32 + 8 * i))
            bag.label(i, stamp, ids(i, 24, 32 + 8 * i))
    recording = recordings.index_bag(tmp_path / 'bag', truth=TRUTH)
    assert recording.stamps == [5 * NS, 6 * NS, 6 * NS, 3 * NS, 9 * NS], 'not set: when it was recorded'
    # The label of the last has another recording time, and so is another stamp's.
    assert recording.counts == {'read': 5, 'duplicate_stamps': 1, 'stamps_back': 1, 'without_truth': 1,
                                'truth_without_frame': 1}
    assert found(read(recording)) == [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, None)]


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    with Maker(tmp_path / 'drive') as bag:
        bag.frame(0)
    monkeypatch.chdir(tmp_path / 'drive')
    recording = recordings.index_bag('.')
    assert recording.describe()['name'] == 'drive' and read(recording)[0].source == 'drive'


def test_zero_frames(tmp_path):
    with Maker(tmp_path / 'bag') as bag:
        bag.writer._connections[IMAGE] = bag.writer._writer.add_connection(
            IMAGE, 'sensor_msgs/msg/Image', typestore=bags.ROS2)
    recording = recordings.index_bag(tmp_path / 'bag')
    assert recording.counts['read'] == 0 and recording.tasks(10) == []


def test_recorded_out_of_order(tmp_path):
    """Two parts of a recording that overlap in time: read in the order of the parts, tasks too."""
    folder: Path = tmp_path / 'bag'
    folder.mkdir()
    for part, first in ((0, 5), (1, 0)):
        with Maker(folder / f'bag_{part}.mcap') as bag:
            for i in range(first, first + 5):
                bag.frame(i, time=(i + 1) * NS)
                bag.label(i)
    recording = recordings.index_bag(folder, truth=TRUTH)
    assert 'no metadata.yaml' in recording.notes[0]
    assert [recordings.kind_of(note) for note in recording.notes] == ['bags_noted']  # nothing was lost
    assert recordings.kind_of('bag_0.mcap: cut short') == 'bags_damaged'
    assert recordings.kind_of(f'bag_0.db3: {sqlite.JOURNAL}') == 'bags_noted'  # all of it was read
    order = [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert found(read(recording)) == [(k, i, i) for k, i in enumerate(order)]
    assert found(read(recording, 3)) == found(read(recording))


def test_cut_short(tmp_path):
    with Maker(tmp_path / 'bag.mcap') as bag:
        for i in range(12):
            noise = np.random.default_rng(i).integers(0, 256, (300, 400, 3), dtype=np.uint8)
            noise[0, 0, 0] = i
            bag.frame(i, array=noise)
            bag.label(i, array=ids(i, 300, 400))
    data = (tmp_path / 'bag.mcap').read_bytes()
    (tmp_path / 'bag.mcap').write_bytes(data[:len(data) * 2 // 3])
    recording = recordings.index_bag(tmp_path / 'bag.mcap', truth=TRUTH)
    count = recording.counts['read']
    assert 'cut short' in recording.notes[0] and 4 <= count < 9
    # The last frame's label may be lost.
    labelled = count - recording.counts['without_truth']
    assert labelled in (count - 1, count)
    assert found(read(recording, 3)) == [(i, i, i if i < labelled else None) for i in range(count)]


@pytest.mark.parametrize('images, labelled, expected', [
    (['a_0', 'a_9', 'b_0', 'b_5'], ['a_0', 'b_5'], [0, None, None, 1]),
    (['a_0', 'a_9', 'b_0', 'b_9'], ['b_0', 'b_9'], [None, None, 0, 1]),
    (['apple', 'fig', 'pear'], ['fig', 'pear'], [None, 0, 1]),
    (['00', '10', '20', '30'], ['10', '20', 'legend'], [None, 0, 1, None]),
    (['00', '10', '20', '30'], ['00', '._00', '20'], [0, None, 1, None]),
    (['a_0', 'a_9', 'b_0'], ['a_0_mask', 'b_0_mask'], [0, None, 1])])
def test_label_files_of_a_folder(tmp_path, images, labelled, expected):
    """An image gets the label of its name, although others have none and other files lie there, too."""
    for folder, names in (('images', images), ('labels', labelled)):
        (tmp_path / folder).mkdir()
        for name in names:
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), ids(0))
    truth = GroundTruthSource(folder=tmp_path / 'labels', source_ids=True)
    recording = recordings.index_bag(tmp_path / 'images', truth=truth)
    visible = [name for name in labelled if name != '._00']
    assert [p and visible.index(Path(p).stem) for p in recording.partners] == expected
    assert recording.counts['truth_without_frame'] == len(visible) - sum(m is not None for m in expected)


def test_label_files_of_a_bag(tmp_path):
    """A bag has no names of files: what their numbers can't tell is said, or refused."""
    for folder, names in (('images', ['a_0', 'a_9', 'b_0', 'b_9']), ('labels', ['a_0', 'b_0', 'b_9'])):
        (tmp_path / folder).mkdir()
        for name in names:
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), ids(0))
    bag_writer.from_folder(tmp_path / 'images', tmp_path / 'bag')
    truth = GroundTruthSource(folder=tmp_path / 'labels', source_ids=True)
    note, = recordings.index_bag(tmp_path / 'bag', truth=truth).notes
    assert 'labels of 2 recordings' in note and recordings.kind_of(note) == 'bags_damaged'
    cv2.imwrite(str(tmp_path / 'labels' / 'a_9.png'), ids(0))
    assert recordings.index_bag(tmp_path / 'bag', truth=truth).notes == []
    cv2.imwrite(str(tmp_path / 'labels' / 'legend.png'), ids(0))
    with pytest.raises(bags.BagError, match=r'legend\.png has no number in its name'):
        recordings.index_bag(tmp_path / 'bag', truth=truth)


def test_label_files_have_a_digest(tmp_path):
    """It is other if a label was corrected, or two changed places: an evaluation must not go on then."""
    (tmp_path / 'images').mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / 'images' / f'{i}.png'), ids(i))
    truth = GroundTruthSource(folder=tmp_path / 'images', source_ids=True)

    def digest():
        return recordings.index_bag(tmp_path / 'images', truth=truth).describe()['labels_sha256']

    first = digest()
    (tmp_path / 'images' / '1.png').rename(tmp_path / 'images' / '2.png')
    second = digest()
    cv2.imwrite(str(tmp_path / 'images' / '2.png'), ids(5))
    assert len({first, second, digest()}) == 3
