# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two bags of results without ground truth: where their labels disagree, and which bags can't be compared."""
import json

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from lightseg_ros import bag_writer, bags, labels  # noqa: E402
from lightseg_ros.bags import NS  # noqa: E402
from lightseg_ros.cli import main  # noqa: E402
from lightseg_ros.evaluation import disagreement, scores, text_report  # noqa: E402
from lightseg_ros.evaluation.disagreement import DisagreementError  # noqa: E402

NAMES = labels.load('camvid').names


def write_results(path, frames):
    """Write labels and overlays as `lightseg evaluate --out` does; `frames`: (stamp, labels)."""
    with bag_writer.Writer(path) as writer:
        for stamp, ids in frames:
            head = bags.header(stamp)
            writer.write(disagreement.LABEL, bags.image(ids, 'mono8', head), stamp)
            overlay = cv2.cvtColor(20 * ids, cv2.COLOR_GRAY2RGB)
            writer.write(disagreement.OVERLAY, bags.image(overlay, 'jpeg', head), stamp)
    return path


def labelled(count, changed=0, cls=4):
    """Road, and building in the upper half; `changed`(i) of the road's rows become another class."""
    for i in range(count):
        ids = np.full((40, 60), 3, np.uint8)
        ids[:20] = 1
        ids[20:20 + (changed(i) if changed else 0)] = cls
        yield i * NS, ids


def test_shares(tmp_path):
    """Frame i differs in i of 40 rows; the first has no frame 2, which is left out."""
    first = write_results(tmp_path / 'a.mcap', [f for f in labelled(10) if f[0] != 2 * NS])
    second = write_results(tmp_path / 'b.mcap', labelled(10, lambda i: i))
    found, pictures = disagreement.disagreement(first, second, NAMES)
    rows = sum(range(10)) - 2
    assert found['frames'] == 9 and found['share'] == pytest.approx(100 * rows / 360)
    road, walk, building = (found['per_class'][n] for n in ('road', 'sidewalk', 'building'))
    assert (building['agree'], walk['agree'], found['per_class']['sky']['agree']) == (100, 0, None)
    assert road['agree'] == pytest.approx(100 * (180 - rows) / 180) and road['first'] == 50
    assert walk['second'] == pytest.approx(100 * rows / 360)
    assert found['swaps'] == [{'first': 'road', 'second': 'sidewalk',
                               'share': pytest.approx(100 * rows / 360)}]
    assert [p.stamp_ns // NS for p in pictures] == [9, 7, 5, 3] and pictures[0].value == 100 * 9 / 40
    tile = cv2.imdecode(np.frombuffer(pictures[0].tiles['difference'], np.uint8), cv2.IMREAD_COLOR)
    assert tile[24, 30, 2] > 180 > tile[35, 30, 2]


def test_two_frames_of_one_stamp(tmp_path):
    """Several recordings may share stamps: the first is compared with the first."""
    frames = [*labelled(3), *labelled(3, lambda i: 4)]
    first, second = write_results(tmp_path / 'a', frames), write_results(tmp_path / 'b', frames)
    assert disagreement.disagreement(first, second, NAMES)[0]['share'] == 0


def test_compare(tmp_path, capsys):
    """The command finds the bags by the results, also where both were moved; says so where there is none."""
    for name, changed in (('one', 0), ('two', lambda i: 2)):
        measured = scores.Scores(labels.load('camvid'), False)
        for stamp, ids in labelled(3, changed):
            measured.add('drive', 140 + stamp // NS, stamp, np.zeros((40, 60, 3), np.uint8), ids)
        write_results(tmp_path / f'{name}.mcap', labelled(3, changed))
        result = {'format': text_report.FORMAT, 'model': {'weights': 'w', 'sha256': 'x'}, 'sources': [],
                  'device': 'CPU', 'processor': 'CPU', 'cores': 1, 'load': 0.0, 'versions': {}, 'options': {},
                  'out': f'/elsewhere/{name}.mcap'} | measured.result()
        (tmp_path / f'{name}.json').write_text(json.dumps(result))
    files = [str(tmp_path / 'one.json'), str(tmp_path / 'two.json')]
    assert main(['compare', *files, '--html', str(tmp_path / 'c.html')]) == 0
    said = capsys.readouterr().out
    assert 'one and two give 5.00 % of the pixels of 3 frames different labels' in said
    assert 'road in one is sidewalk in two: 5.00 % of all pixels' in said
    page = (tmp_path / 'c.html').read_text()
    assert page.count('<img ') == 3 * 2 and 'Where two and one disagree' in page
    assert 'drive, frame 140, at 0:00.0: different labels 5.00 %' in page, 'its place in the recording'
    assert page.count('<p class="legend">') == 1, 'what the colours of the overlays mean'
    (tmp_path / 'two.mcap').unlink()
    assert main(['compare', *files]) == 0
    assert 'disagree is not known' in capsys.readouterr().out


def test_what_can_not_be_compared(tmp_path):
    first = write_results(tmp_path / 'a.mcap', labelled(3))
    later = write_results(tmp_path / 'b.mcap', [(s + NS // 2, ids) for s, ids in labelled(3)])
    with pytest.raises(DisagreementError, match='have no frame in common'):
        disagreement.disagreement(first, later, NAMES)
    small = write_results(tmp_path / 'c.mcap', [(s, ids[:20] if s else ids) for s, ids in labelled(3)])
    found, _ = disagreement.disagreement(first, small, NAMES)
    assert (found['frames'], found['sizes_differ']) == (1, 2)
    with pytest.raises(DisagreementError, match='r.json names no bag with its labels: evaluate with --out'):
        disagreement.results_bag({}, tmp_path / 'r.json')
