# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from lightseg_ros.metrics import ConfusionMatrix, LatencyStats


def test_iou_by_hand():
    matrix = ConfusionMatrix(4)
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 1], [0, 255, 0, 3]], np.uint8)
    matrix.update(truth, prediction)
    # class 0: hit 1, truth 2, predicted 2 -> 1/3; class 1: 2/3; class 2: never hit -> 0; class 3: absent.
    iou = matrix.iou()
    np.testing.assert_allclose(iou[:3], [100 / 3, 200 / 3, 0])
    assert np.isnan(iou[3])
    assert matrix.miou() == pytest.approx((100 / 3 + 200 / 3 + 0) / 3)
    assert matrix.accuracy() == pytest.approx(50)


def test_a_class_that_is_only_predicted_counts_as_zero():
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 1]], np.uint8))
    assert matrix.iou().tolist() == [75.0, 0.0]


def test_nothing_counted_is_nan():
    matrix = ConfusionMatrix(2)
    matrix.update(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert np.isnan(matrix.miou()) and np.isnan(matrix.accuracy())


def test_merge_equals_serial():
    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 11, (2, 30, 40)).astype(np.uint8) for _ in range(4)]
    serial, parts = ConfusionMatrix(11), [ConfusionMatrix(11), ConfusionMatrix(11)]
    for i, (truth, prediction) in enumerate(pairs):
        serial.update(truth, prediction)
        parts[i % 2].update(truth, prediction)
    parts[0].merge(parts[1])
    assert (parts[0].counts == serial.counts).all()
    with pytest.raises(ValueError, match='do not fit'):
        serial.merge(ConfusionMatrix(12))


def test_bad_input():
    matrix = ConfusionMatrix(11)
    with pytest.raises(ValueError, match='expected one shape'):
        matrix.update(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match='truth holds id 11'):
        matrix.update(np.full((2, 2), 11, np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match='prediction holds id 12'):
        matrix.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 12, np.uint8))
    assert not matrix.counts.any()  # nothing is half counted


def test_latency():
    stats = LatencyStats()
    for ms in range(1, 102):
        stats.add(float(ms))
    s = stats.summary()
    assert (s['count'], s['p50'], s['p95'], s['p99'], s['max'], s['mean']) == (101, 51, 96, 100, 101, 51)


def test_latency_window_keeps_the_count_of_all():
    stats = LatencyStats(capacity=2)
    for ms in (100.0, 1.0, 3.0):
        stats.add(ms)
    s = stats.summary()
    assert (s['count'], s['max'], s['p50'], s['mean']) == (3, 3, 2, 2)
    assert LatencyStats().summary()['count'] == 0
