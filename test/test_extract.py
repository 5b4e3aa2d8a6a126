# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames written for annotation: which ones, under which names, with which labels to start with."""
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from lightseg_ros import bag_writer, bags, labels, pictures  # noqa: E402
from lightseg_ros.bags import NS  # noqa: E402
from lightseg_ros.cli import main  # noqa: E402
from lightseg_ros.evaluation import evaluate, extract, recordings  # noqa: E402
from lightseg_ros.evaluation.recordings import GroundTruthSource  # noqa: E402
from lightseg_ros.evaluation.settings import EvaluationError, ModelSpec, Run  # noqa: E402


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """32 frames at 5 Hz from second 3 on; the sixth is cut short."""
    path = tmp_path_factory.mktemp('bag') / 'drive.mcap'
    rng = np.random.default_rng(0)
    with bag_writer.Writer(path) as writer:
        for i in range(32):
            stamp = 3 * NS + i * NS // 5
            rgb = rng.integers(0, 256, (6, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            msg = bags.image(rgb, 'rgb8', bags.header(stamp))
            msg.data = msg.data[:9] if i == 5 else msg.data
            writer.write('/camera/image_raw', msg, stamp)
    return path


@pytest.fixture(scope='module')
def model(random_weights):
    return ModelSpec(str(random_weights), 'cpu', '96x64')


def test_one_a_second(bag, tmp_path, capsys):
    topic = '--image-topic /camera/image_raw'
    assert main(['bag', 'to-folder', str(bag), str(tmp_path / 'out'), *topic.split()]) == 3  # one is cut
    said = capsys.readouterr().out
    assert '6 frames' in said and 'frame 5: rgb8 of 72x48' in said
    assert f'lightseg evaluate {bag} {topic} --label-dir {tmp_path / "out" / "labels"}' in said
    files = sorted((tmp_path / 'out' / 'images').iterdir())
    assert [p.name for p in files] == [f'{s:019d}.png' for s in range(3 * NS, 10 * NS, NS) if s != 4 * NS]
    assert not (tmp_path / 'out' / 'labels').exists()
    recording = recordings.index_bag(bag)
    known = {i.stamp_ns: i.rgb for i in recordings.read(*recording.tasks(99)) if hasattr(i, 'rgb')}
    for file in files:
        np.testing.assert_array_equal(pictures.read(file), known[int(file.stem)])
    assert main(['bag', 'to-folder', str(bag), str(tmp_path / 'out')]) == 1
    assert 'is not an empty folder' in capsys.readouterr().err


def test_least_sure(bag, model, tmp_path):
    """The three frames of the lowest confidence that lie a second apart, with labels that fit to evaluate."""
    count, failed, notes = extract.to_folder(bag, tmp_path / 'out', model=model, lowest=3, apart_ns=NS,
                                      prelabel=True, quiet=True)
    assert count == 3 and len(failed) == 1 and not notes
    found = evaluate.evaluate_bags([bag], model, run=Run(quiet=True)).scores.result()['frames']
    expected = []
    for row in sorted(found, key=lambda r: r['confidence']):
        if len(expected) < 3 and all(abs(row['stamp_ns'] - s) >= NS for s in expected):
            expected.append(row['stamp_ns'])
    assert sorted(expected) == [int(p.stem) for p in sorted((tmp_path / 'out' / 'images').iterdir())]
    # Against its own labels a network is right everywhere.
    truth = GroundTruthSource(folder=tmp_path / 'out' / 'labels', source_ids=True)
    again = evaluate.evaluate_bags([bag], model, truth=truth, run=Run(quiet=True)).scores.result()
    assert again['counts']['scored'] == 3 and again['accuracy'] == 100


def test_a_harmless_note_leaves_nothing_out(tmp_path, capsys):
    (tmp_path / 'drive').mkdir()
    with bag_writer.Writer(tmp_path / 'drive' / 'drive_0.mcap') as writer:
        writer.write('/image', bags.image(np.zeros((8, 8, 3), np.uint8), 'rgb8', bags.header(NS)), NS)
    assert main(['bag', 'to-folder', str(tmp_path / 'drive'), str(tmp_path / 'out')]) == 0
    assert bags.NO_METADATA in capsys.readouterr().out


def test_source_ids():
    """Cityscapes' files have ids of their own; what came back as void stays void."""
    cityscapes = labels.load('cityscapes')
    ids = np.array([[0, 18, 255]], np.uint8)
    files = extract.source_ids(ids, cityscapes)
    assert files[0, 0] == 7 and files.dtype == np.uint8
    np.testing.assert_array_equal(cityscapes.from_source(files), ids)


def test_what_is_refused(bag, tmp_path):
    with pytest.raises(EvaluationError, match='need a model'):
        extract.to_folder(bag, tmp_path / 'out', prelabel=True)
    (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    with pytest.raises(EvaluationError, match='no frame of .* could be written: .*a.png is not a readable'):
        extract.to_folder(tmp_path, tmp_path / 'out', quiet=True)
