# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Label pictures keep their numbers whatever the file calls them; damaged pictures are refused."""
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest

from lightseg_ros import pictures
from lightseg_ros.pictures import GREY, GREY_ALPHA, PALETTE, PictureError, RGB, RGB_ALPHA

RNG = np.random.default_rng(0)


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png(samples, bits, color, before=b'', paeth=False):
    """A PNG written by hand from samples (H, W, channels), with palette and other chunks in `before`."""
    height, width, channels = samples.shape
    if bits == 16:
        rows = samples.astype('>u2').view(np.uint8).reshape(height, -1)
    elif bits == 8:
        rows = samples.astype(np.uint8).reshape(height, -1)
    else:
        single = np.unpackbits(samples[..., 0].astype(np.uint8)[..., None], axis=2)[..., 8 - bits:]
        rows = np.packbits(single.reshape(height, -1), axis=1)
    size = max(1, channels * bits // 8)
    out = b''
    for y, row in enumerate(rows.astype(int)):
        if paeth and y:  # filter 2, up: the difference to the row above
            out += b'\2' + ((row - rows[y - 1]) % 256).astype(np.uint8).tobytes()
        elif paeth:  # filter 1, sub: the difference to the pixel before
            out += b'\1' + ((row - np.pad(row, (size, 0))[:-size]) % 256).astype(np.uint8).tobytes()
        else:
            out += b'\0' + row.astype(np.uint8).tobytes()
    header = struct.pack('>IIBBBBB', width, height, bits, color, 0, 0, 0)
    return (pictures.PNG + chunk(b'IHDR', header) + before + chunk(b'IDAT', zlib.compress(out))
            + chunk(b'IEND', b''))


PLTE = chunk(b'PLTE', RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())


@pytest.mark.parametrize('filtered', [False, True])
@pytest.mark.parametrize('bits, color, before', [
    (1, GREY, b''), (2, GREY, b''), (4, GREY, b''), (8, GREY, b''), (16, GREY, b''),
    (8, GREY, chunk(b'tRNS', b'\0\3')), (8, GREY, chunk(b'gAMA', struct.pack('>I', 30000))),
    (1, PALETTE, PLTE[:4] + PLTE[4:]), (2, PALETTE, PLTE), (4, PALETTE, PLTE), (8, PALETTE, PLTE),
    (8, GREY_ALPHA, b''), (16, GREY_ALPHA, b''), (8, RGB, b''), (16, RGB, b''), (8, RGB_ALPHA, b'')])
def test_label_pictures_keep_their_numbers(bits, color, before, filtered):
    ids = RNG.integers(0, 1 << bits, (7, 13, 1))
    opaque = np.full_like(ids, (1 << bits) - 1)
    samples = {GREY: [ids], PALETTE: [ids], GREY_ALPHA: [ids, opaque], RGB: [ids] * 3,
               RGB_ALPHA: [ids] * 3 + [opaque]}[color]
    found = pictures.decode_labels(png(np.concatenate(samples, 2), bits, color, before, filtered))
    assert found.dtype == (np.uint16 if bits == 16 else np.uint8)
    np.testing.assert_array_equal(found, ids[..., 0])


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
def test_16_bit_grey_keeps_its_levels(suffix):
    """As thermal cameras write it."""
    grey = np.random.default_rng(0).integers(7000, 9000, (5, 6), np.uint16)
    np.testing.assert_array_equal(pictures.decode(cv2.imencode(suffix, grey)[1]), grey)


def test_a_tiff_keeps_its_numbers(tmp_path):
    for kind in (np.uint8, np.uint16):
        ids = RNG.integers(0, np.iinfo(kind).max, (5, 6), dtype=kind)
        cv2.imwrite(str(tmp_path / 'a.tiff'), ids)
        np.testing.assert_array_equal(pictures.read_labels(tmp_path / 'a.tiff'), ids)


@pytest.mark.parametrize('data, text', [
    (lambda: png(RNG.integers(0, 256, (5, 6, 3)), 8, RGB), 'a coloured PNG'),
    (lambda: png(RNG.integers(0, 200, (5, 6, 2)), 8, GREY_ALPHA), 'transparent pixels'),
    (lambda: cv2.imencode('.jpg', np.zeros((5, 6), np.uint8))[1], 'a JPEG, whose compression changes ids'),
    (lambda: cv2.imencode('.bmp', np.zeros((5, 6), np.uint8))[1], "start with b'BM"),
    (lambda: cv2.imencode('.tiff', np.zeros((5, 6, 3), np.uint8))[1], 'a TIFF of uint8'),
    (lambda: b'', '0 bytes')])
def test_what_is_no_label_picture_is_refused(data, text):
    with pytest.raises(PictureError, match=text):
        pictures.decode_labels(bytes(data()))


def photo(height=96, width=128):
    small = RNG.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.tiff', '.webp'])
def test_pictures_are_those_of_opencv(suffix):
    for bgr in (photo(), photo(101, 67), photo()[..., 0]):
        data = cv2.imencode(suffix, bgr)[1]
        expected = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(pictures.decode(data), expected)
        np.testing.assert_array_equal(pictures.decode(data.tobytes() + bytes(50)), expected)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.webp'])
def test_damaged_pictures_are_refused(suffix):
    """Cut short, and with a part of the middle missing: nothing is filled with grey."""
    if suffix == '.jpg':
        pytest.importorskip('simplejpeg', reason='simplejpeg is not installed: pip install simplejpeg')
    data = cv2.imencode(suffix, photo())[1].tobytes()
    for damaged in (data[:len(data) // 2], data[:-30], data[:len(data) // 2] + data[len(data) // 2 + 200:]):
        with pytest.raises(PictureError):
            pictures.decode(damaged)


def test_a_damaged_jpeg_with_its_end():
    pytest.importorskip('simplejpeg', reason='simplejpeg is not installed: pip install simplejpeg')
    data = cv2.imencode('.jpg', photo(480, 640))[1].tobytes()
    with pytest.raises(PictureError, match='Corrupt JPEG data'):
        pictures.decode(data[:len(data) // 2] + b'\xff\xd9')


def test_without_simplejpeg(monkeypatch, caplog):
    """OpenCV decodes, and one warning says what is missing."""
    monkeypatch.setattr(pictures, 'simplejpeg', None)
    monkeypatch.setattr(pictures, '_told', set())
    data = cv2.imencode('.jpg', photo())[1]
    for _ in range(3):
        np.testing.assert_array_equal(pictures.decode(data), cv2.imdecode(data, 1)[..., ::-1])
    assert caplog.text.count('pip install simplejpeg') == 1
    with pytest.raises(PictureError, match='cut short'):
        pictures.decode(data[:-30])


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('order', ['<', '>'])
def test_orientation(orientation, order, tmp_path):
    data = cv2.imencode('.jpg', photo())[1].tobytes()
    tiff = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(
        order + 'IHHHIHHI', 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    data = data[:2] + b'\xff\xe1' + struct.pack('>H', 8 + len(tiff)) + b'Exif\0\0' + tiff + data[2:]
    array = np.frombuffer(data, np.uint8)
    upright = cv2.imdecode(array, cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(pictures.decode(data, upright=True), upright)
    (tmp_path / 'a.jpg').write_bytes(data)
    np.testing.assert_array_equal(pictures.read(tmp_path / 'a.jpg'), upright)
    assert pictures.decode(data).shape == (96, 128, 3)


@pytest.mark.parametrize('decode', [pictures.decode, pictures.decode_labels])
def test_no_data(decode):
    with pytest.raises(PictureError, match='^0 bytes, no data$'):
        decode(b'')


def test_files_are_named(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'nonsense')
    with pytest.raises(PictureError, match=r'a\.png is not a readable image: 8 bytes that start'):
        pictures.read(tmp_path / 'a.png')
    with pytest.raises(PictureError, match=r'a\.png is not a label picture'):
        pictures.read_labels(tmp_path / 'a.png')
    with pytest.raises(PictureError, match='No such file'):
        pictures.read(tmp_path / 'missing.png')


def huge_jpeg():
    data = cv2.imencode('.jpg', np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + struct.pack('>HH', 32767, 32767) + data[at + 4:]


def jpeg_of_scans(count, size=1024):
    """A progressive JPEG whose last scan is repeated: each one makes the decoder go over all pixels again."""
    black = np.zeros((size, size), np.uint8)
    data = cv2.imencode('.jpg', black, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last = data[data.rindex(b'\xff\xda'):-2]
    return data[:-2] + count * last + b'\xff\xd9'


def huge_png(width=32767, height=32767):
    return (pictures.PNG + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, RGB, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(bytes(10 ** 6))) + chunk(b'IEND', b''))


def tiff(*tags):
    return b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(
        struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags) + bytes(100)


BOMBS = {
    'jpeg': huge_jpeg(), 'scans': jpeg_of_scans(300), 'png': huge_png(), 'thin png': huge_png(2 ** 31 - 1, 1),
    'tiff': tiff((256, 40000), (257, 40000)), 'tile': tiff((256, 64), (257, 64), (322, 40000), (323, 40000)),
    'bmp': b'BM' + struct.pack('<IIIIiiHHI', 54, 0, 54, 40, 40000, -40000, 1, 24, 0) + bytes(100),
    'webp': b'RIFFlen_WEBPVP8X' + struct.pack('<II', 10, 0) + 6 * b'\xff' + bytes(80),
    'webp lossless': b'RIFFlen_WEBPVP8Llen_\x2f' + 80 * b'\xff',
    'webp lossy': b'RIFFlen_WEBPVP8 len_' + 80 * b'\xff',
}


@pytest.mark.parametrize('bomb', BOMBS)
def test_a_small_file_does_not_ask_for_gigabytes(bomb):
    """The largest of these once took 8 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PictureError, match='expected .* at most|expected at least one pixel'):
        pictures.decode(BOMBS[bomb])
    if 'png' in bomb or 'tif' in bomb:
        with pytest.raises(PictureError, match='at most'):
            pictures.decode_labels(BOMBS[bomb])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize('kind', ['.jpg', '.png', '.bmp', '.tiff', '.webp'])
def test_every_format_states_its_size(kind):
    pixels = np.zeros((31, 50, 3), np.uint8)
    data = cv2.imencode(kind, pixels)[1].tobytes()
    assert pictures.decode(data, max_pixels=31 * 50).shape == pixels.shape
    with pytest.raises(PictureError, match='picture of 50x31 in .* expected 1549 pixels at most'):
        pictures.decode(data, max_pixels=31 * 50 - 1)
    for length in range(0, min(len(data), 200), 3):
        with pytest.raises(PictureError):
            pictures.decode(data[:length])


def test_webp_lossless_and_progressive_jpeg_are_read():
    pixels = np.full((31, 50, 3), 90, np.uint8)
    lossless = cv2.imencode('.webp', pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    assert (pictures.decode(lossless, max_pixels=31 * 50) == 90).all()
    assert pictures.decode(jpeg_of_scans(0)).shape == (1024, 1024, 3)
