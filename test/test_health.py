# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import time

from lightseg_ros.health import ERROR, Health, OK, STALE, WARN


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
