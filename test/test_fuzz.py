# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A few thousand mutated inputs for everything that reads what others wrote; `make fuzz` runs more."""
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

import fuzz  # noqa: E402

CASES = 3000


def test_mutated_input_is_read_or_refused():
    # No limit of time: the machine may be busy with other work.
    outcomes, broken = fuzz.run(cases=CASES, seed=0, seconds=float('inf'))
    assert not broken
    assert sum(outcomes.values()) == CASES
    assert {kind for _, kind in outcomes} == {'read', 'refused'}
    # A reader that refuses none of its damaged inputs would hide its errors.
    assert all(outcomes[name, 'refused'] for name, _ in outcomes)
