# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest

from lightseg_ros import labels
from lightseg_ros.metrics import ConfusionMatrix
from lightseg_ros.synthetic.painting import BICYCLIST, CAR, POLE, ROAD, SIDEWALK, SIGN, SKY, Texture
from lightseg_ros.synthetic.street import CAMERA_HEIGHT, LEFT_KERB, RIGHT_KERB, Street


@pytest.fixture(scope='module')
def street():
    return Street(320, 240, seed=3)


def test_a_frame_depends_on_size_seed_and_time_alone(street):
    rgb, ids = street.render(2.0)
    kept = rgb.copy(), ids.copy()
    assert rgb.shape == (240, 320, 3) and ids.shape == (240, 320) and rgb.dtype == ids.dtype == np.uint8
    later = street.render(2.4)
    assert (later[0] != rgb).mean() > 0.5 and (later[1] != ids).mean() > 0.02
    np.testing.assert_array_equal(rgb, kept[0])  # drawing on leaves it alone
    again = Street(320, 240, seed=3).render(2.0)
    np.testing.assert_array_equal(again[0], kept[0])
    np.testing.assert_array_equal(again[1], kept[1])
    assert (Street(320, 240, seed=4).render(2.0)[1] != kept[1]).mean() > 0.1


def test_every_class_is_seen_and_the_mix_is_a_street(street):
    counts = sum(np.bincount(street.render(t)[1].ravel(), minlength=256) for t in np.arange(0, 32, 1.0))
    share = counts / counts.sum()
    assert share[11:].sum() == 0 and (share[:11] > 2e-4).all(), share[:11]
    assert 0.2 < share[ROAD] < 0.5 and 0.05 < share[SKY] < 0.4


def test_the_camera_is_the_pinhole_that_its_matrix_says(street, monkeypatch):
    # At t = 0 it looks straight along the street: a kerb's pixel follows from the matrix and its height.
    monkeypatch.setattr(street, '_things', [])  # nothing stands on the kerbs
    ids = street.render(0.0)[1]
    k = street.matrix
    found = 0
    for v in range(128, 240):
        z = k[1, 1] * CAMERA_HEIGHT / (v - k[1, 2])
        for x, beyond in ((LEFT_KERB, -2), (RIGHT_KERB, 2)):
            u = k[0, 2] + k[0, 0] * x / z
            inside, outside = round(u - beyond), round(u + beyond)
            if 2 <= u < 317 and {ids[v, inside], ids[v, outside]} <= {ROAD, SIDEWALK}:
                assert (ids[v, inside], ids[v, outside]) == (ROAD, SIDEWALK), (v, u)
                found += 1
    assert found > 60


class Painted(Street):
    """The street in the colours of its labels: no haze, shadows, lens or noise."""

    def __init__(self, palette):
        super().__init__(320, 240, seed=3)
        seen = set()

        def paint(thing):
            if isinstance(thing, Texture) and id(thing) not in seen:
                ids = np.full(thing.rgba.shape[:2], thing.class_id) if thing.ids is None else thing.ids
                thing.rgba[:, :, :3] = palette[ids]
                if thing.ids is not None:
                    thing.rgba[:, :, 3] = np.where(ids == 255, 0, 255)
                thing._levels.clear()
            if id(thing) in seen or isinstance(thing, (str, np.ndarray)):
                return
            seen.add(id(thing))
            for part in thing if isinstance(thing, (list, tuple)) else vars(thing).values() if hasattr(
                    thing, '__dict__') else ():
                paint(part)

        paint([self._ground, self._houses, self._verges, self._things])
        self._sky[:, :, :3] = palette[self._sky_ids]

    @staticmethod
    def _haze(z):
        return 0.0

    def _shadow(self, x0, x1, z0, z1):
        pass

    def _develop(self):
        return cv2.cvtColor(self._rgba, cv2.COLOR_RGBA2RGB)


def test_colour_and_label_come_from_the_same_mask():
    palette = labels.load('camvid').palette()
    painted = Painted(palette)
    for t in (0.0, 6.5, 13.0, 21.5):
        rgb, ids = painted.render(t)
        off = np.abs(rgb.astype(int) - palette[ids]).max(2) > 8
        assert off[np.isin(ids, (CAR, SIGN, BICYCLIST))].mean() < 2e-3, t
        # What is seen through fades over a pixel at its edges, and posts have no texture to paint.
        window = np.ones((3, 3), np.uint8)
        inside = (cv2.erode(ids, window) == cv2.dilate(ids, window)) & (ids != POLE)
        assert inside.mean() > 0.7 and off[inside].mean() < 0.01, (t, off[inside].mean())


@pytest.mark.parametrize('size', [(63, 240), (320, 5000)])
def test_a_size_out_of_range_is_an_error(size):
    with pytest.raises(ValueError, match='expected 64 to 4096'):
        Street(*size)


@pytest.mark.parametrize('size', [(64, 64), (101, 333), (400, 90)])
def test_any_shape_can_be_drawn(size):
    street = Street(*size)
    for t in (0.0, 7.3, 1e5):
        rgb, ids = street.render(t)
        assert rgb.shape == (size[1], size[0], 3) and ids.max() <= 10


def test_a_network_that_knows_real_streets_only_makes_sense_of_it(street):
    from lightseg_ros import weights
    from lightseg_ros.inference import segmenter
    try:
        laanet = segmenter.load('laanet', device='cpu')
    except weights.WeightsError as e:
        pytest.skip(f'no trained weights yet: {e}')
    matrix = ConfusionMatrix(11, 255)
    street = Street(480, 360, seed=0)
    for t in np.linspace(0, 31, 12):
        rgb, ids = street.render(t)
        matrix.update(ids, laanet([rgb])[0].labels)
    assert matrix.accuracy() > 80 and matrix.miou() > 45, (matrix.accuracy(), matrix.iou())
