# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a recording against ones worked out by hand; parts merge to the same as the whole."""
import json
import math

import cv2
import numpy as np
import pytest

from lightseg_ros import labels
from lightseg_ros.evaluation import scores
from lightseg_ros.evaluation.scores import Consistency, Scores

CAMVID = labels.load('camvid')
VOID = 255


def halves(column, height=60, width=80):
    """Class 3 left of a column, class 5 from it on."""
    ids = np.full((height, width), 5, np.uint8)
    ids[:, :column] = 3
    return ids


def texture(height=120, width=160, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize('shift, expected', [(0, 100.0), (1, 100.0), (2, 0.0), (9, 0.0)])
def test_boundary_f1(shift, expected):
    """The diagonal is 100, so a boundary that is off by one pixel (0.75 % of it) still counts."""
    counts = scores.boundary_counts(halves(40), halves(40 + shift), 11, VOID)
    assert counts[3].tolist()[::2] == counts[5].tolist()[::2] == [60, 60]
    f1 = scores.boundary_f1(counts)
    if shift == 2:
        # Of class 3 the last column moves from 39 to 41: two pixels away.
        assert f1[3] == 0
    assert f1[3] == f1[5] == expected and np.isnan(np.delete(f1, (3, 5))).all()


def test_boundary_by_precision_and_recall():
    """A prediction with a second, wrong edge: all of the truth is found, half of the prediction is right."""
    wrong = halves(40)
    wrong[:, 60:] = 3
    counts = scores.boundary_counts(halves(40), wrong, 11, VOID)
    precision, recall = counts[5, 1] / counts[5, 0], counts[5, 3] / counts[5, 2]
    assert (precision, recall) == (0.5, 1.0)
    assert scores.boundary_f1(counts)[5] == pytest.approx(100 * 2 / 3)


def test_no_boundary_at_void():
    truth = halves(40)
    truth[:, 38:42] = VOID
    assert not scores.boundary_counts(truth, halves(40), 11, VOID).any()


def test_calibration():
    """10 pixels at confidence 255, 9 right; 10 at 51 (a fifth), 2 right: half of |1 - 0.9| and of 0."""
    calibration = np.zeros((256, 2), np.int64)
    calibration[255], calibration[51] = (10, 9), (10, 2)
    assert scores.expected_calibration_error(calibration) == pytest.approx(5.0)
    low, high = scores.calibration_bins(calibration)
    assert (low['count'], low['confidence'], low['accuracy']) == (10, pytest.approx(0.2), 0.2)
    assert (high['low'], high['high'], high['accuracy']) == (pytest.approx(14 / 15), 1.0, 0.9)
    assert math.isnan(scores.expected_calibration_error(np.zeros((256, 2))))


def test_consistency_follows_the_camera():
    """The camera pans by 6 pixels: labels that move along are stable, labels that stay put are not."""
    big = texture(120, 200)
    ids = np.kron(np.random.default_rng(2).integers(0, 11, (6, 10)), np.ones((20, 20))).astype(np.uint8)
    first, second = (big[:, :160], ids[:, :160]), (big[:, 6:166], ids[:, 6:166])
    moving, fixed = Consistency(), Consistency()
    assert not moving.update(*first, 0).any() and not fixed.update(*first, 0).any()
    found = moving.update(*second, 33_000_000)
    compared, same = found.sum(0)
    for i in range(11):  # of each class, most pixels keep their label
        assert found[i, 1] > 0.9 * found[i, 0] > 0
    assert compared > 0.9 * 120 * 160 and same / compared > 0.97
    compared, still = fixed.update(second[0], first[1], 33_000_000).sum(0)
    assert still / compared < 0.85 and (first[1] == second[1]).mean() < 0.85


def test_what_is_not_compared():
    rgb, ids = texture(), halves(40, 120, 160)
    c = Consistency()
    c.update(rgb, ids, 0)
    assert c.update(rgb, ids, 100_000_000).sum(0).tolist() == [120 * 160] * 2
    assert not c.update(rgb, ids, 700_000_000).any(), 'more than half a second apart'
    assert not c.update(rgb, ids, 600_000_000).any(), 'back in time'
    assert not c.update(texture(60, 80), halves(40), 700_000_000).any(), 'another size'
    c.reset()
    assert not c.update(texture(60, 80), halves(40), 800_000_000).any()
    assert c.update(texture(60, 80), halves(40), 900_000_000).any()


def test_large_frames_are_compared_too():
    rgb, ids = texture(600, 1000), halves(500, 600, 1000)
    c = Consistency()
    c.update(rgb, ids, 0)
    compared, same = c.update(rgb, ids, 1).sum(0)
    assert compared == 600 * 1000 and same == compared


def stability(compared, kept, of=2):
    out = np.zeros((256, 2), np.int64)
    out[of] = compared, kept
    return out


def add_frames(part, numbers):
    for i in numbers:
        rng = np.random.default_rng(i)
        truth = rng.integers(0, 11, (60, 80), dtype=np.uint8)
        guess = rng.integers(0, 11, (60, 80), dtype=np.uint8)
        prediction = np.where(rng.random((60, 80)) < 0.1 * i, truth, guess)
        truth[:5] = VOID
        part.add('bag', i, i * 10 ** 8, texture(60, 80, i), prediction, truth if i != 4 else None,
                 rng.integers(0, 256, (60, 80), dtype=np.uint8), {'network': i, 'total': 2.0 * i},
                 stability(10, i), i == 3)
        part.skip('failed', f'frame {i}: broken')


def test_parts_merge_to_the_whole(tmp_path):
    whole, first, second = (Scores(CAMVID, True, 0) for _ in range(3))
    add_frames(whole, range(9))
    add_frames(first, range(5))
    add_frames(second, range(5, 9))
    first.save(tmp_path / 'part.npz')
    first = Scores.load(tmp_path / 'part.npz', CAMVID, True, 0)
    first.merge(second)
    a, b = whole.result(), first.result()
    assert a == b and json.loads(json.dumps(a, allow_nan=False)) == a
    pictures = whole.pictures()
    assert pictures == first.pictures() and [p.index for p in pictures['sampled']] == [3]
    assert [p.index for p in pictures['best']] == [8, 7, 6, 5]
    assert [p.index for p in pictures['worst']] == [0, 1, 2, 3]
    assert a['counts'] == {'segmented': 9, 'scored': 8, 'failed': 9}
    assert a['skipped'] == [{'what': 'failed', 'count': 9, 'first': 'frame 0: broken'}]
    assert a['frames'][4]['miou'] is None and a['frames'][8]['consistency'] == 80
    assert a['consistency'] == a['consistency_per_class']['pole'] == pytest.approx(100 * sum(range(9)) / 90)
    assert a['latency_ms']['total']['max'] == 16 and sum(a['shares'].values()) == pytest.approx(100)
    assert np.sum(a['confusion']) == 8 * 55 * 80


def test_without_truth():
    part = Scores(CAMVID, False)
    for i, confidence in enumerate((50, 200, 100)):
        part.add('bag', i, i, texture(60, 80), halves(40), None, np.full((60, 80), confidence, np.uint8))
    r = part.result()
    assert r['miou'] is r['ece'] is r['confusion'] is r['boundary_f1'] is r['consistency'] is None
    assert r['confidence'] == pytest.approx(100 * 350 / 3 / 255)
    assert r['confidence_per_class']['tree'] == r['confidence'] and r['confidence_per_class']['sky'] is None
    assert sum(r['confidence_shares']) == pytest.approx(100) and r['group_iou']['traversable'] is None
    picture, = part.pictures()['unsure']  # all three lie within two seconds
    assert picture.index == 0 and set(picture.tiles) == {'frame', 'overlay', 'confidence'}
    assert r['shares']['road'] == r['shares']['tree'] == 50


@pytest.mark.parametrize('sign', [1, -1])
def test_albums(sign):
    """The first frames by value, two seconds apart; in any parts the same ones."""
    rng = np.random.default_rng(0)
    frames = [scores.FrameScore('ab'[i % 2], i, i * 10 ** 8, ()) for i in range(400)]
    values = rng.permutation(400) / 4
    pictures = [scores.Picture(f.source, f.index, f.stamp_ns, float(v), {}) for f, v in zip(frames, values)]

    def album(some):
        out = scores.Album(sign, 2 * 10 ** 9)
        for p in some:
            if out.wants(frames[p.index], p.value):
                out.offer(p)
        return out

    whole = album(pictures)
    for size in (1, 7, 150):
        joined = scores.Album(sign, 2 * 10 ** 9)
        for i in range(0, 400, size):
            joined.offer(*album(pictures[i:i + size]).kept.values())
        assert joined == whole
    chosen = whole.chosen()
    assert len(chosen) == scores.PICTURES and chosen[0] == min(pictures, key=lambda p: sign * p.value)
    for i, p in enumerate(chosen):
        assert all(o.source != p.source or abs(o.stamp_ns - p.stamp_ns) >= 2 * 10 ** 9 for o in chosen[:i])
    assert max(sign * p.value for p in chosen) < np.percentile(sign * values, 5)


def test_groups():
    """A pixel of one class taken for another of the group is right for the group."""
    part = Scores(CAMVID, True)
    truth = np.array([[3, 3, 4, 4, 0, 0, 1, 1]], np.uint8).repeat(4, 0)
    guess = np.array([[4, 3, 3, 0, 3, 0, 1, 1]], np.uint8).repeat(4, 0)
    part.confusion.update(truth, guess)
    ids = (3, 4)
    assert scores.group_iou(part.confusion.counts, ids) == pytest.approx(100 * 3 / 5)
    assert scores.group_iou(part.confusion.counts, (0,)) == pytest.approx(part.confusion.iou()[0])
    assert math.isnan(scores.group_iou(part.confusion.counts, (9, 10)))


def rows(values):
    return [{'source': 'bag', 'index': i, 'stamp_ns': i, 'miou': v} for i, v in enumerate(values)]


def test_paired_difference():
    rng = np.random.default_rng(0)
    a = rng.normal(50, 10, 300)
    p = scores.paired_difference(rows(a), rows(a + rng.normal(1, 2, 300)))
    assert p['frames'] == 300 and 0.5 < p['low'] < 1 < p['high'] < 1.5
    assert p['better'] + p['worse'] == 300 and p['mean'] == pytest.approx(np.mean(p['differences']))
    same = scores.paired_difference(rows(a), rows(a))
    assert (same['mean'], same['low'], same['high'], same['better']) == (0, 0, 0, 0)
    # Frames that resemble their neighbours say less: the interval is wider than that of the same, shuffled.
    slow = np.repeat(rng.normal(0, 3, 30), 10)
    wide = scores.paired_difference(rows(a), rows(a + slow))
    narrow = scores.paired_difference(rows(a), rows(a + rng.permutation(slow)))
    assert wide['high'] - wide['low'] > 1.3 * (narrow['high'] - narrow['low'])
    some = scores.paired_difference(rows([1, None, 3]), rows([2, 2, None]))
    assert (some['frames'], some['mean']) == (1, 1)
    assert scores.paired_difference(rows([1]), [])['mean'] is None


def test_reasons_are_one_printable_line():
    """They hold names of files, whose control characters could steer a terminal."""
    found = Scores(labels.load('camvid'), truth=False)
    found.skip('failed', 'a\x1b[31m\n.mcap frame 1: broken')
    assert found.result()['skipped'][0]['first'] == r'a\x1b[31m .mcap frame 1: broken'
