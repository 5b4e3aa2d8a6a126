# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import time

import pytest

from lightseg_ros.health import ERROR, Health, OK, STALE, Status, WARN, without_stale


def test_levels():
    health = Health(window_s=0.2)
    assert health.status(0, {}).level == WARN
    health.frame_received()
    health.frame_processed({'network': 10.0})
    assert health.status(0, {}).level == OK
    health.frame_received()
    health.frame_failed('encoding jp2 is unknown')
    status = health.status(0, {})
    assert status.level == ERROR and 'jp2' in status.summary
    time.sleep(0.3)
    status = health.status(0, {})
    assert status.level == STALE and status.values['last error'] == 'encoding jp2 is unknown'


def test_a_node_that_puts_nothing_out_is_an_error():
    health = Health(window_s=0.2)
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        health.frame_received()
        time.sleep(0.01)
    status = health.status(0, {})
    assert status.level == ERROR and 'no label was published' in status.summary
    health.frame_processed({'network': 10.0})
    assert health.status(0, {}).level == OK


def test_values():
    health = Health()
    for ms in (10.0, 20.0, 30.0):
        health.frame_received()
        health.frame_processed({'network': ms, 'age': 2 * ms})
    health.frame_received()
    values = health.status(1, {'model': 'laanet'}).values
    assert values['received'] == '4' and values['processed'] == '3' and values['dropped'] == '1'
    assert values['network p50 (ms)'] == '20.00' and values['age max (ms)'] == '60.00'
    assert values['model'] == 'laanet' and float(values['fps in']) > float(values['fps out']) > 0


def processed(health, count, age_ms=10.0):
    for _ in range(count):
        health.frame_received()
        health.frame_processed({'network': 5.0, 'age': age_ms})


def test_a_share_of_dropped_frames_is_a_warning_while_it_lasts():
    health = Health(window_s=0.2)
    processed(health, 8)
    health.frame_received()
    assert health.status(0, {}).level == OK
    processed(health, 7)
    for _ in range(2):
        health.frame_received()
    status = health.status(2, {})  # 2 of the last 9
    assert status.level == WARN and '22 % of the images are dropped' in status.summary
    time.sleep(0.25)
    processed(health, 9)
    health.status(2, {})
    time.sleep(0.25)
    processed(health, 9)
    assert health.status(2, {}).level == OK


def test_frames_that_the_middleware_lost_are_counted_beside_the_received():
    health = Health()
    processed(health, 1)
    assert health.status(0, {}).level == OK
    processed(health, 7)
    health.frames_lost(3)
    status = health.status(0, {})
    assert status.level == WARN and '30 % of the images are lost' in status.summary
    assert (status.values['received'], status.values['processed'], status.values['lost']) == ('8', '8', '3')


def test_frames_that_are_left_out_have_arrived():
    """A low rate that was asked for makes neither a camera silent nor a lost frame a large share."""
    health = Health(window_s=0.2)
    processed(health, 1)
    health.frames_lost(3)
    assert health.status(0, {}).level == OK
    time.sleep(0.25)
    health.frames_lost(1)
    assert health.status(0, {}, left_out=19).level == OK
    time.sleep(0.25)
    assert health.status(0, {}, left_out=38).level == OK
    time.sleep(0.25)
    health.status(0, {}, left_out=38)
    time.sleep(0.25)
    assert health.status(0, {}, left_out=38).level == STALE


def test_old_labels_are_a_warning():
    health = Health()
    processed(health, 5, 700.0)
    assert health.status(0, {}).level == OK
    status = health.status(0, {}, max_age_s=0.5)
    assert status.level == WARN and 'labels are 0.70 s old, more than max_age_warning' in status.summary
    assert health.status(0, {}, max_age_s=0.8).level == OK


@pytest.mark.parametrize(('age_ms', 'sim_time', 'words'), [
    (-300.0, False, '0.30 s ahead of this one: synchronise the clocks'),
    (-1.7e12, True, '19,676 days ahead of this one: set use_sim_time to false'),
    (3.6e6 * 7, False, '7 hours behind this one: for a recording or a simulation set use_sim_time to true'),
    (2.5e5, True, '4 minutes behind this one: the recording does not belong to this /clock')])
def test_an_impossible_age_is_no_figure(age_ms, sim_time, words):
    health = Health()
    processed(health, 3, age_ms)
    status = health.status(0, {}, max_age_s=0.5, sim_time=sim_time)
    assert status.level == WARN and words in status.summary
    assert not any(key.startswith('age') for key in status.values)
    processed(health, 4)
    status = health.status(0, {}, max_age_s=0.5, sim_time=sim_time)
    assert status.level == OK and status.values['age max (ms)'] == '10.00'


def test_a_camera_that_died_does_not_hide_the_others():
    levels = {level: Status(level, str(level), {}) for level in (OK, WARN, ERROR, STALE)}
    found = without_stale([levels[STALE], levels[OK], levels[ERROR]])
    assert [status.level for status in found] == [ERROR, OK, ERROR] and found[0].summary == str(STALE)
    assert [status.level for status in without_stale([levels[STALE]] * 2)] == [STALE, STALE]
