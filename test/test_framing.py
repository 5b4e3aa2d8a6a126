# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest

from lightseg_ros.framing import Framing, FramingError, parse_region, parse_rotation, Region

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (40, 60, 3), np.uint8)
REGION = Region(10, 5, 30, 20)


@pytest.fixture
def mask(tmp_path):
    """A mask whose lower quarter is black, at half the size of FRAME."""
    pixels = np.full((20, 30), 255, np.uint8)
    pixels[15:] = 0
    cv2.imwrite(str(tmp_path / 'mask.png'), pixels)
    return str(tmp_path / 'mask.png')


@pytest.mark.parametrize(('rotation', 'turns'), [(0, 0), (90, 3), (180, 2), (270, 1)])
@pytest.mark.parametrize('region', [None, REGION])
@pytest.mark.parametrize('frame', [FRAME, FRAME[..., ::-1], np.broadcast_to(FRAME[..., :1], FRAME.shape)])
def test_what_is_seen_and_the_way_back_are_exact_inverses(rotation, turns, region, frame):
    """NumPy's rot90 turns counter-clockwise."""
    framing = Framing(rotation, region)
    part = frame[5:25, 10:40] if region else frame
    seen = framing.seen(frame)
    assert (seen == np.rot90(part, turns)).all()
    assert seen.shape[:2] == framing.seen_size(*frame.shape[:2])
    if frame.strides[2] < 0:
        assert seen.strides[2] < 0  # the segmenter swaps the channels of a view on BGR, on its device
    ids = seen[..., 0] // 2
    expected = np.full((40, 60), 255, np.uint8)
    inside = (slice(5, 25), slice(10, 40)) if region else (slice(None), slice(None))
    expected[inside] = part[..., 0] // 2
    assert (framing.labels(ids, 40, 60) == expected).all()
    expected[expected == 255] = 0
    assert (framing.confidence(ids, 40, 60) == expected).all()
    # An overlay that is the inverted picture: outside of the region the picture itself comes back.
    overlay = framing.overlay(np.ascontiguousarray(255 - seen), frame, framing.labels(ids, 40, 60))
    whole = np.array(frame)
    whole[inside] = 255 - part
    assert (overlay == whole).all()


def test_nothing_is_copied_without_need():
    ids = FRAME[..., 0]
    assert Framing().seen(FRAME) is FRAME and Framing().labels(ids, 40, 60) is ids
    assert np.shares_memory(Framing(0, REGION).seen(FRAME), FRAME)


def test_a_mask_may_have_16_bits(mask, tmp_path):
    deep = cv2.imread(mask, cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / 'deep.png'), deep)
    ids = np.zeros((40, 60), np.uint8)
    assert (Framing(0, None, str(tmp_path / 'deep.png')).labels(ids, 40, 60) ==
            Framing(0, None, mask).labels(ids, 40, 60)).all()


@pytest.mark.parametrize('rotation', [0, 90])
def test_a_mask_is_in_the_camera_s_image(mask, rotation):
    framing = Framing(rotation, None, mask)
    seen = framing.seen(FRAME)
    ids = np.full(seen.shape[:2], 7, np.uint8)
    labels = framing.labels(ids, 40, 60)
    assert (labels[:30] == 7).all() and (labels[30:] == 255).all()
    confidence = framing.confidence(ids, 40, 60)
    assert (confidence[:30] == 7).all() and not confidence[30:].any()
    overlay = framing.overlay(np.zeros_like(seen), FRAME, labels)
    assert not overlay[:30].any() and (overlay[30:] == FRAME[30:]).all()


def test_errors_say_what_is_expected(mask, tmp_path):
    with pytest.raises(FramingError, match="rotation is '45'; expected one of 0, 90, 180, 270"):
        parse_rotation('45')
    for text in ('640x480', '0x10+0+0', '1x1-1+0', 'all'):
        with pytest.raises(FramingError, match='expected WIDTHxHEIGHT'):
            parse_region(text)
    assert parse_region('') is None and parse_region('30x20+10+5') == REGION and str(REGION) == '30x20+10+5'
    with pytest.raises(FramingError, match='roi 30x20.10.5 is not within the image of 39x40'):
        Framing(0, REGION).seen(FRAME[:, :39])
    with pytest.raises(FramingError, match='has 30x20 pixels, the image 40x40; expected the same aspect'):
        Framing(0, None, mask).seen(FRAME[:, :40])
    with pytest.raises(FramingError, match="none.png' cannot be read: No such file"):
        Framing(0, None, str(tmp_path / 'none.png'))
    (tmp_path / 'text.png').write_text('no picture')
    with pytest.raises(FramingError, match="text.png' is no picture"):
        Framing(0, None, str(tmp_path / 'text.png'))
