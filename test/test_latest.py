# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import threading
import time

from lightseg_ros.latest import Latest


def test_newest_wins_and_drops_are_counted():
    mailbox: Latest[int] = Latest()
    for i in range(5):
        mailbox.put(i)
    assert mailbox.take() == {'': 4}
    assert (mailbox.received[''], mailbox.dropped['']) == (5, 4)
    assert mailbox.take(timeout_s=0.01) == {}


def test_every_sender_has_a_place_of_its_own():
    mailbox: Latest[int] = Latest()
    for item, sender in ((1, 'front'), (2, 'left'), (3, 'front')):
        mailbox.put(item, sender)
    assert mailbox.take() == {'front': 3, 'left': 2}
    assert mailbox.dropped == {'front': 1} and mailbox.received == {'front': 2, 'left': 1}


def test_items_that_were_taken_can_be_counted_as_dropped_after_all():
    mailbox: Latest[int] = Latest()
    for item, sender in ((5, 'front'), (7, 'left')):
        mailbox.put(item, sender)
    mailbox.discard(mailbox.take())
    assert mailbox.dropped == {'front': 1, 'left': 1} == mailbox.received


def test_what_is_put_back_gives_way_to_what_is_newer():
    mailbox: Latest[int] = Latest()
    mailbox.put(2, 'front')
    mailbox.put_back({'front': 1, 'left': 3})
    assert mailbox.take() == {'front': 2, 'left': 3} and mailbox.dropped == {'front': 1}
    mailbox.close()
    mailbox.put_back({'left': 3})
    assert mailbox.dropped == {'front': 1, 'left': 1}


def test_close_wakes_whoever_waits():
    mailbox: Latest[int] = Latest()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(mailbox.take()))
    thread.start()
    mailbox.close()
    thread.join(5)
    assert not thread.is_alive() and taken == [{}] and mailbox.closed


def test_after_close_everything_is_dropped():
    mailbox: Latest[int] = Latest()
    mailbox.put(1)
    mailbox.close()
    mailbox.put(2)
    assert mailbox.take() == {}
    assert (mailbox.received[''], mailbox.dropped['']) == (2, 2)


def test_no_item_is_lost_uncounted_between_threads():
    mailbox: Latest[int] = Latest()
    taken: list[int] = []

    def work():
        while items := mailbox.take():
            taken.append(items[''])
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    for i in range(1000):
        mailbox.put(i)
        time.sleep(0.0001)
    while taken[-1:] != [999]:
        time.sleep(0.001)
    mailbox.close()
    thread.join(5)
    assert taken == sorted(taken) and len(taken) + mailbox.dropped[''] == mailbox.received[''] == 1000
