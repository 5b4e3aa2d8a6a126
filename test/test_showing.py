# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a run shows: logs, worst classes, predictions, and the expected time."""
import csv

import cv2
import numpy as np

from lightseg_ros import labels
from lightseg_ros.training import showing

TWO = labels.LabelSet('two', ('road', 'sky'), ((200, 10, 30), (0, 0, 250)))


def test_logs_of_old_rows_and_of_classes_that_do_not_occur(tmp_path):
    rows = [{'epoch': 1, 'loss': 2.0, 'miou': None},
            {'epoch': 2, 'loss': 1.0, 'miou': 30.0, 'iou': [30.0, None]}]
    showing.write_logs(tmp_path, rows, TWO.names)
    with open(tmp_path / 'iou.csv', newline='') as f:
        assert list(csv.DictReader(f)) == [{'epoch': '2', 'road': '30.0', 'sky': ''}]
    with open(tmp_path / 'log.csv', newline='') as f:
        assert [(r['loss'], r['miou'], r['train_miou']) for r in csv.DictReader(f)] == \
            [('2.0', '', ''), ('1.0', '30.0', '')]
    showing.write_logs(tmp_path / 'old', rows[:1], TWO.names)
    assert not (tmp_path / 'old/iou.csv').exists()
    assert showing.worst_classes([30.2, None, 7.4, 50.0], 'abcd') == 'c 7, a 30'


def test_predictions_are_drawn_beside_image_and_truth(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)
    truth, found = np.zeros((2, 64, 80), np.uint8), np.ones((2, 64, 80), np.uint8)
    truth[1, :32] = 255
    showing.draw_predictions(tmp_path / 'p.png', images, truth, found, TWO, 'epoch 3')
    picture = cv2.imread(str(tmp_path / 'p.png'))[..., ::-1]
    assert picture.shape == (24 + 128 + 6 + 128, 3 * 160 + 2 * 6, 3)  # twice as large: the titles have room
    image, theirs, ours = (picture[24 + 128 + 6:, x:x + 160][::2, ::2] for x in (0, 166, 332))
    assert all((picture[:, x:x + 6] == 255).all() for x in (160, 326)), 'no gap between the images'
    assert (picture[24 + 128:][:6] == 255).all() and (picture[:24, -8:] == 255).all()
    assert np.array_equal(image, images[1]) and (ours == TWO.colors[1]).all()
    assert (theirs[:32] == 0).all() and (theirs[32:] == TWO.colors[0]).all()


def test_the_expected_time_in_words():
    assert [showing.duration(s) for s in (0.2, 89, 2400, 5399, 12600)] == \
        ['1 second', '89 seconds', '40 minutes', '90 minutes', '3.5 hours']
    text = showing.planned('affnet', 50, 305, 3800, 4)
    assert text.startswith('affnet: 50 epochs of 305 images, 3800 steps of 4; how long they take is said')
    text = showing.planned('affnet', 1, 1, 1, 4, 7200)
    assert text.startswith('affnet: at most 2.0 hours, or 1 epoch of 1 image, 1 step of 4')
    text = showing.expected('laanet', 2400, 96, 16, 16, 25)
    assert text.startswith('laanet: about 40 minutes for 96 epochs of 16 images: 25 s a step of 16')
    assert '12 seconds for 1 epoch of 1 image: ' in showing.expected('laanet', 12, 1, 1, 16, 25)
    assert '--budget-s' not in text and '--budget-s' in showing.expected('laanet', 9e9, 96, 16, 16, 25)
