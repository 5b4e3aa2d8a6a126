# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Thresholds: which are met, which are missed, and which can't be checked."""
import pytest

from lightseg_ros import labels
from lightseg_ros.evaluation import requirements, text_report
from lightseg_ros.evaluation.requirements import RequirementError

CAMVID = labels.load('camvid')
RESULT = {'miou': 65.0, 'accuracy': None, 'ece': 4.0, 'consistency': 93.0,
          'iou': {'road': 90.0, 'pole': None},
          'group_iou': {'traversable': 91.0}, 'confidence': 80.0, 'confidence_per_class': {'road': 70.0},
          'consistency_per_class': {'road': 99.0}, 'latency_ms': {'total': {'p95': 20.0}}, 'counts': {}}


@pytest.mark.parametrize('text, met', [
    ('miou=0.65', True), ('miou=0.651', False), ('accuracy=0.1', False), ('ece=0.04', True),
    ('ece=0.039', False), ('consistency=0.95', False), ('iou.road=0.9', True), ('iou.pole=0', False),
    ('iou.traversable=0.92', False),
    ('confidence.road=0.7', True), ('consistency.road=1', False), ('p95=20', True), ('p95=19.9', False)])
def test_limits(text, met):
    requirement, = requirements.parse([text], CAMVID, True)
    found = requirement.check(RESULT)
    assert found['met'] == met and found['text'].startswith(f'{text.partition("=")[0]} ')
    assert text_report.exit_code(RESULT | {'required': [found]}) == (0 if met else 4)


@pytest.mark.parametrize('fate, code', [
    ('dropped', 0), ('failed', 3), ('not_received', 3), ('not_returned', 3)])
def test_a_replay_that_lost_frames(fate, code):
    """A frame that gave way to a newer one is not lost; one that never reached the node is."""
    live = dict.fromkeys(('dropped', 'failed', 'not_received', 'not_returned'), 0)
    assert text_report.exit_code(RESULT | {'live': live | {fate: 58}}) == code


@pytest.mark.parametrize('text, error', [
    ('miou', "the limit is ''; expected a share from 0 to 1"),
    ('miou=65', "the limit is '65'; expected a share"),
    ('iou=0.5', 'expected FIGURE=LIMIT'), ('speed=3', 'expected FIGURE=LIMIT, with one of miou, accuracy'),
    ('iou.lane=0.5', "iou of 'lane' is not measured; expected one of sky, building"),
    ('miou.road=0.5', 'write miou=LIMIT'), ('p95=fast', 'expected milliseconds'),
    ('confidence.traversable=0.5', "confidence of 'traversable' is not measured")])
def test_what_can_not_be_checked(text, error):
    with pytest.raises(RequirementError, match=error):
        requirements.parse([text], CAMVID, True)


def test_ground_truth_is_asked_for_before_anything_runs():
    with pytest.raises(RequirementError, match='miou=0.5 needs ground truth: --label-topic or --label-dir'):
        requirements.parse(['confidence=0.5', 'miou=0.5'], CAMVID, False)
