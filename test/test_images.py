# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every encoding against a reference that is worked out here by hand, with padded rows and odd sizes."""
from array import array
import struct
from types import SimpleNamespace
import zlib

import cv2
import numpy as np
import pytest

from lightseg_ros import images
from lightseg_ros.images import ImageError

SIZES = [(6, 8), (5, 7)]
RNG = np.random.default_rng(7)


def message(encoding, rows, width, padding=0, big=0, kind=array):
    """Make an Image message of rows (H, bytes) uint8, each followed by `padding` bytes of 0xAB."""
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAB)
    data = {array: lambda: array('B', rows.tobytes()), np.ndarray: rows.reshape, bytes: rows.tobytes}[kind]
    return SimpleNamespace(header='h', height=rows.shape[0], width=width, encoding=encoding, is_bigendian=big,
                           step=rows.shape[1], data=data(-1) if kind is np.ndarray else data())


def random_rgb(height, width):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('kind', [array, np.ndarray, bytes], ids=['rclpy', 'rosbags', 'bytes'])
@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('height, width', [*SIZES, (1, 1)])
@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', '8UC3', '8UC4', 'mono8', '8UC1'])
def test_8_bit(encoding, height, width, padding, kind):
    rgb = random_rgb(height, width)
    red, green, blue = (rgb[..., i] for i in range(3))
    alpha = np.full_like(red, 99)
    channels = {'rgb8': (red, green, blue), 'bgr8': (blue, green, red), 'rgba8': (red, green, blue, alpha),
                'bgra8': (blue, green, red, alpha), '8UC3': (blue, green, red),
                '8UC4': (blue, green, red, alpha), 'mono8': (green,), '8UC1': (green,)}[encoding]
    if len(channels) == 1:
        rgb = np.stack((green,) * 3, 2)
    msg = message(encoding, np.stack(channels, 2).reshape(height, -1), width, padding, kind=kind)
    decoded = images.decode(msg)
    np.testing.assert_array_equal(decoded, rgb)
    assert decoded.dtype == np.uint8
    assert np.shares_memory(decoded, np.frombuffer(msg.data, np.uint8)), 'a copy was made'


def test_bgr_is_a_reversed_view():
    decoded = images.decode(message('bgr8', random_rgb(4, 6).reshape(4, -1), 6, 2))
    assert decoded.strides == (20, 3, -1)


@pytest.mark.parametrize('big', [0, 1])
@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('encoding', ['mono16', '16UC1', 'rgb16', 'bgr16', 'rgba16', 'bgra16'])
def test_16_bit(encoding, padding, big):
    channels = {'m': 1, '1': 1}.get(encoding[0], 4 if 'a' in encoding else 3)
    pixels = RNG.integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    pixels[0, :3, 0] = (0, 65535, 128)
    rows = pixels.astype('>u2' if big else '<u2').view(np.uint8).reshape(5, -1)
    expected = np.rint(pixels.astype(np.float64) / 257).astype(np.uint8)[..., :3]
    expected = expected[..., ::-1] if encoding.startswith('bgr') else expected
    decoded = images.decode(message(encoding, rows, 7, padding, big))
    np.testing.assert_array_equal(decoded, np.broadcast_to(expected, (5, 7, 3)))


def demosaic(mosaic, pattern):
    """Bilinear: a missing colour is the mean of its nearest samples; the border repeats what is inside."""
    height, width = mosaic.shape
    out = np.zeros((height, width, 3))
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], float)
    for channel, letter in enumerate('rgb'):
        mask = np.zeros((height, width))
        for i, at in enumerate(pattern):
            if at == letter:
                mask[i // 2::2, i % 2::2] = 1
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                window = mask[y - 1:y + 2, x - 1:x + 2] * kernel
                if mask[y, x]:
                    window *= np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
                out[y, x, channel] = (mosaic[y - 1:y + 2, x - 1:x + 2] * window).sum() / window.sum()
    return np.pad(out[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0)), 'edge')


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('height, width', SIZES)
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer(pattern, height, width, padding):
    mosaic = RNG.integers(0, 256, (height, width), dtype=np.uint8)
    decoded = images.decode(message(f'bayer_{pattern}8', mosaic, width, padding))
    assert np.abs(decoded - demosaic(mosaic, pattern)).max() <= 1


@pytest.mark.parametrize('big', [0, 1])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_16_bit(pattern, big):
    """12 bits, as many cameras have them; `value_range` spreads them."""
    mosaic = RNG.integers(0, 4096, (5, 7), dtype=np.uint16)
    mosaic[0, :2] = 0, 4095
    rows = mosaic.astype('>u2' if big else '<u2').view(np.uint8).reshape(5, -1)
    msg = message(f'bayer_{pattern}16', rows, 7, 3, big)
    expected = demosaic(mosaic, pattern)
    assert np.abs(images.decode(msg, (0, 4095)) - expected / 4095 * 255).max() <= 1
    assert np.abs(images.decode(msg) - expected / 257).max() <= 1
    assert images.narrow_range(msg).startswith(f'bayer_{pattern}16 values span ')


def yuv_to_rgb(y, u, v):
    """BT.601, limited range."""
    y, u, v = 255 / 219 * (y - 16.0), u - 128.0, v - 128.0
    rgb = (y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u)
    return np.clip(np.stack(rgb, 2), 0, 255)


def random_yuv(height, width, rows):
    """Luma a pixel and chroma for two columns and `rows` rows; chroma (.., .., 2) as U, V, rounded up."""
    luma = RNG.integers(16, 236, (height, width), dtype=np.uint8)
    chroma = RNG.integers(90, 166, (-(-height // rows), (width + 1) // 2, 2), dtype=np.uint8)
    full = chroma.repeat(rows, 0).repeat(2, 1)[:height, :width]
    return luma, chroma, yuv_to_rgb(luma, full[..., 0], full[..., 1])


@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize('height, width', [*SIZES, (3, 1)])
@pytest.mark.parametrize('encoding', ['yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'])
def test_yuv422(encoding, height, width, padding):
    luma, chroma, expected = random_yuv(height, width, 1)
    even = width + width % 2
    pixels = np.stack((chroma.reshape(height, even), np.pad(luma, ((0, 0), (0, even - width)))), 2)
    if encoding in ('yuv422_yuy2', 'yuyv'):
        pixels = pixels[..., ::-1]
    # Rows that hold the odd last pixel's V as well: whole pairs.
    decoded = images.decode(message(encoding, pixels.reshape(height, -1), width, padding))
    assert decoded.shape == (height, width, 3)
    assert np.abs(decoded - expected).max() <= 2
    if width % 2:
        # Rows that end at the last pixel: its V is that of the pair before.
        rows = pixels.reshape(height, -1)[:, :2 * width]
        u, v = chroma[:, -1, 0], chroma[:, -2, 1] if width > 1 else np.full(height, 128)
        expected[:, -1] = yuv_to_rgb(luma[:, -1:], u[:, None], v[:, None])[:, 0]
        assert np.abs(images.decode(message(encoding, rows, width)) - expected).max() <= 2


@pytest.mark.parametrize('padding', [0, 1, 6])
@pytest.mark.parametrize('height, width', [*SIZES, (6, 7), (5, 8), (1, 1)])
@pytest.mark.parametrize('encoding', ['nv12', 'nv21'])
def test_yuv420(encoding, height, width, padding):
    luma, chroma, expected = random_yuv(height, width, 2)
    pairs = (chroma[..., ::-1] if encoding == 'nv21' else chroma).reshape(len(chroma), -1)
    step = width + padding
    data = b''.join(row.tobytes().ljust(step, b'\xab') for row in luma)
    data += b''.join(row.tobytes().ljust(max(step, pairs.shape[1]), b'\xab') for row in pairs)
    msg = SimpleNamespace(height=height, width=width, encoding=encoding, is_bigendian=0, step=step,
                          data=array('B', data))
    decoded = images.decode(msg)
    assert decoded.shape == (height, width, 3)
    assert np.abs(decoded - expected).max() <= 2


@pytest.mark.parametrize('padding', [0, 2, 6])
@pytest.mark.parametrize('height, width', [*SIZES, (6, 7), (5, 8), (1, 1)])
@pytest.mark.parametrize('encoding', ['i420', 'yv12'])
def test_planar(encoding, height, width, padding):
    luma, chroma, expected = random_yuv(height, width, 2)
    step = width + padding
    data = b''.join(row.tobytes().ljust(step, b'\xab') for row in luma)
    for i in (0, 1) if encoding == 'i420' else (1, 0):
        data += b''.join(row.tobytes().ljust((step + 1) // 2, b'\xab') for row in chroma[..., i])
    msg = SimpleNamespace(height=height, width=width, encoding=encoding, is_bigendian=0, step=step,
                          data=array('B', data))
    assert images.decode(msg).shape == (height, width, 3)
    assert np.abs(images.decode(msg) - expected).max() <= 2
    msg.data = msg.data[:-(padding // 2 + 1)]
    with pytest.raises(ImageError, match='expected at least'):
        images.decode(msg)


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('height, width', [*SIZES, (1, 1)])
def test_nv24(height, width, padding):
    luma = RNG.integers(16, 236, (height, width), dtype=np.uint8)
    chroma = RNG.integers(90, 166, (height, width, 2), dtype=np.uint8)
    step = width + padding
    data = b''.join(row.tobytes().ljust(step, b'\xab') for row in luma)
    data += b''.join(row.tobytes().ljust(2 * step, b'\xab') for row in chroma)
    msg = SimpleNamespace(height=height, width=width, encoding='nv24', is_bigendian=0, step=step,
                          data=array('B', data))
    assert np.abs(images.decode(msg) - yuv_to_rgb(luma, chroma[..., 0], chroma[..., 1])).max() <= 2


def rvl(depth):
    """RVL, a number at a time: the counts of zeros and of others, then these' differences, zigzag."""
    numbers, pixels, previous, at = [], depth.ravel().astype(int).tolist(), 0, 0
    while at < len(pixels):
        begin = at
        while at < len(pixels) and not pixels[at]:
            at += 1
        numbers.append(at - begin)
        begin = at
        while at < len(pixels) and pixels[at]:
            at += 1
        numbers.append(at - begin)
        for value in pixels[begin:at]:
            delta, previous = value - previous, value
            numbers.append(2 * delta if delta >= 0 else -2 * delta - 1)
    nibbles = []
    for number in numbers:
        while number > 7:
            nibbles.append(number & 7 | 8)
            number >>= 3
        nibbles.append(number)
    nibbles += [0] * (-len(nibbles) % 8)
    words = [int(''.join(f'{n:x}' for n in nibbles[i:i + 8]), 16) for i in range(0, len(nibbles), 8)]
    return struct.pack(f'<II{len(words)}I', depth.shape[1], depth.shape[0], *words)


@pytest.mark.filterwarnings('error')
def test_any_nan_in_depth_is_no_warning():
    """A signalling NaN raises a floating-point exception when something is computed with it."""
    data = np.array([[0x7F800001, 0x7FC00000], [0xFF800000, 0x3FC00000]], np.uint32).view(np.float32)
    depth = images.decode_depth(message('32FC1', data.view(np.uint8), 2))
    assert np.isnan(depth.ravel()[:3]).all() and depth[1, 1] == 1.5


@pytest.mark.parametrize('kind', ['png', 'rvl', ''])
def test_compressed_depth(kind):
    millimetres = RNG.integers(0, 65536, (24, 31), dtype=np.uint16)
    millimetres[RNG.random((24, 31)) < 0.3] = 0
    millimetres[3:5] = 1500
    data = rvl(millimetres) if kind == 'rvl' else png(millimetres)
    msg = compressed(struct.pack('<iff', 0, 0, 0) + data, f'16UC1; compressedDepth {kind}'.rstrip())
    expected = np.where(millimetres == 0, np.nan, millimetres / 1000)
    np.testing.assert_allclose(images.decode_depth(msg), expected, rtol=1e-6)
    # Metres, quantised by their inverse: n = a / depth + b.
    msg = compressed(struct.pack('<iff', 0, 4000.0, -80.0) + data, f'32FC1; compressedDepth {kind}'.rstrip())
    expected = np.where(millimetres == 0, np.nan, 4000 / (millimetres + 80.0))
    np.testing.assert_allclose(images.decode_depth(msg), expected, rtol=1e-6)


@pytest.mark.parametrize('data, format, text', [
    (b'', '16UC1; compressedDepth png', '0 bytes of format'),
    (bytes(40), 'rgb8; jpeg compressed bgr8', 'expected compressedDepth of 16UC1'),
    (bytes(40), '16UC1; compressedDepth png', 'no PNG follows its header'),
    (struct.pack('<iff', 0, float('nan'), 0) + rvl(np.full((9, 9), 7, np.uint16)),
     '32FC1; compressedDepth rvl', 'its quantisation is nan, 0; expected finite'),
    (bytes(12) + rvl(np.full((9, 9), 7, np.uint16))[:-8], '16UC1; compressedDepth rvl', 'RVL of 9x9 is'),
    (bytes(12) + rvl(np.zeros((9, 9), np.uint16))[:8], '16UC1; compressedDepth rvl', 'cut short after 0'),
    (bytes(12) + b'\xff' * 80, '16UC1; compressedDepth rvl', 'RVL of 4294967295x'),
    (bytes(14), '16UC1; compressedDepth rvl', 'RVL of 2 bytes')])
def test_broken_compressed_depth(data, format, text):
    with pytest.raises(ImageError, match=text):
        images.decode_depth(compressed(data, format))


@pytest.mark.parametrize('suffix', ['.tiff', '.webp', '.bmp'])
def test_other_pictures_in_a_compressed_image(suffix):
    rgb = smooth()
    parameters = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == '.webp' else []
    data = cv2.imencode(suffix, rgb[..., ::-1], parameters)[1].tobytes()
    np.testing.assert_array_equal(images.decode(compressed(data, suffix[1:])), rgb)


def png(pixels):
    """A PNG file, written by hand: (H, W, 3) or (H, W), uint8 or uint16."""
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder('>')).view(np.uint8).reshape(height, -1)
    color = 2 if pixels.ndim == 3 else 0
    return (b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8 * pixels.itemsize, color, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows)))
            + chunk(b'IEND', b''))


def compressed(data, format):
    return SimpleNamespace(header='h', format=format, data=array('B', data))


def smooth(height=40, width=56):
    """Colour gradients without an axis of symmetry, which a JPEG keeps to a few levels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((40 + 3 * x, 20 + 4 * y, 200 - 2 * x - y), 2).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize('format', ['png', 'rgb8; png compressed bgr8', 'bgr8; png compressed bgr8'])
def test_png(format):
    rgb = random_rgb(5, 7)
    np.testing.assert_array_equal(images.decode(compressed(png(rgb), format)), rgb)
    gray = images.decode(compressed(png(rgb[..., 0].copy()), 'mono8; png compressed '))
    np.testing.assert_array_equal(gray, rgb[..., :1].repeat(3, 2))


def test_png_with_swapped_channels():
    rgb = random_rgb(5, 7)
    msg = compressed(png(np.ascontiguousarray(rgb[..., ::-1])), 'rgb8; png compressed rgb8')
    np.testing.assert_array_equal(images.decode(msg), rgb)


def test_png_16_bit():
    pixels = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    decoded = images.decode(compressed(png(pixels), '16UC1; png compressed '))
    assert np.abs(decoded - pixels[..., None] / 257).max() <= 1


def test_narrow_range():
    """
    A thermal camera's counts, raw and as a PNG.

    Nothing is said of a picture that uses its range, or of few grey levels that all stay.
    """
    thermal = (7000 + 20 * np.arange(35, dtype=np.uint16)).reshape(5, 7)
    raw = message('mono16', thermal.view(np.uint8).reshape(5, -1), 7)
    packed = compressed(png(thermal), '16UC1; png compressed ')
    assert images.narrow_range(raw) == 'mono16 values span 7000 to 7680: 3 of 256 grey levels'
    assert images.narrow_range(packed) == '16UC1 values span 7000 to 7680: 3 of 256 grey levels'
    for msg in (message('mono16', (90 * thermal).view(np.uint8).reshape(5, -1), 7),
                compressed(png(random_rgb(5, 7)), 'bgr8; png compressed bgr8'),
                compressed(b'', '16UC1; png compressed '),
                message('mono8', np.zeros((5, 7), np.uint8), 7)):
        assert images.narrow_range(msg) == ''
    grey = 120 + (np.arange(35, dtype=np.uint16) % 15).reshape(5, 7)
    for factor, said in ((257, ''), (256, ''), (0, ''), (1, 'mono16 values span 120 to 134: 1 of 256')):
        found = images.narrow_range(message('mono16', (factor * grey).view(np.uint8).reshape(5, -1), 7))
        assert found.startswith(said) and bool(found) == bool(said), factor


@pytest.mark.parametrize('format', ['jpeg', 'rgb8; jpeg compressed bgr8', 'bgr8; jpeg compressed bgr8'])
def test_jpeg(format):
    rgb = smooth()
    data = cv2.imencode('.jpg', rgb[..., ::-1])[1].tobytes()
    assert np.abs(images.decode(compressed(data, format)).astype(int) - rgb).max() <= 8
    # A camera's buffer is often longer than its JPEG.
    assert np.abs(images.decode(compressed(data + bytes(2000), format)).astype(int) - rgb).max() <= 8


def test_jpeg_orientation_is_left_alone():
    rgb = smooth()
    data = cv2.imencode('.jpg', rgb[..., ::-1])[1].tobytes()
    tiff = b'MM\0*' + struct.pack('>IHHHIHHI', 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b'\xff\xe1' + struct.pack('>H', 8 + len(tiff)) + b'Exif\0\0' + tiff
    assert cv2.imdecode(np.frombuffer(data[:2] + exif + data[2:], np.uint8), 1).shape == (56, 40, 3)
    assert images.decode(compressed(data[:2] + exif + data[2:], 'jpeg')).shape == rgb.shape


@pytest.mark.parametrize('msg, text', [
    (message('rgb9', np.zeros((4, 12), np.uint8), 4), r"'rgb9'; supported: rgb8, bgr8.*nv21"),
    (message('rgb8', np.zeros((4, 11), np.uint8), 4), 'step 11; expected at least 12'),
    (message('mono16', np.zeros((4, 7), np.uint8), 4), 'step 7; expected at least 8'),
    (message('mono8', np.zeros((0, 4), np.uint8), 4), 'image of 4x0'),
    (message('mono8', np.zeros((4, 4), np.uint8), 0), 'image of 0x4'),
    (message('bayer_rggb8', np.zeros((2, 4), np.uint8), 4), 'expected at least 3x3'),
    (message('nv12', np.zeros((4, 4), np.uint8), 4), 'holds 16 bytes; expected at least 24'),
    (compressed(b'', 'jpeg'), "'jpeg': 0 bytes, no data"),
    (compressed(b'\0\0\0\1\x67', 'h264'), "'h264': 5 bytes that start with .*supported: JPEG, PNG"),
    (compressed(png(random_rgb(9, 9))[:-20], 'png'), 'cut short'),
    (compressed(cv2.imencode('.jpg', smooth())[1].tobytes()[:-200], 'jpeg'), 'cut short'),
    (compressed(b'\xff\xd8\xff' + bytes(500) + b'\xff\xd9', 'jpeg'), 'does not decode'),
    (compressed(png(random_rgb(9, 9))[:40] + b'\x55' * 40 + png(random_rgb(9, 9))[80:], 'png'), 'decode'),
])
def test_bad_messages(msg, text):
    with pytest.raises(ImageError, match=text):
        images.decode(msg)


def test_short_data():
    msg = message('rgb8', np.zeros((4, 16), np.uint8), 4, 2)
    msg.data = msg.data[:-6]  # only the padding of the last row
    assert images.decode(msg).shape == (4, 4, 3)
    msg.data = msg.data[:-1]
    with pytest.raises(ImageError, match='holds 65 bytes; expected at least 66'):
        images.decode(msg)


def empty(kind):
    data = array('B') if kind == 'rclpy' else np.zeros(0, np.uint8)
    return SimpleNamespace(header=None, height=0, width=0, encoding='', is_bigendian=0, step=0, data=data)


@pytest.mark.parametrize('kind', ['rclpy', 'rosbags'])
@pytest.mark.parametrize('encoding, shape', [('rgb8', (5, 7, 3)), ('mono8', (5, 7)), ('rgba8', (5, 7, 4))])
def test_encode(encoding, shape, kind):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    msg = images.encode(pixels, encoding, 'header', empty(kind))
    assert (msg.header, msg.encoding, msg.height, msg.width) == ('header', encoding, 5, 7)
    assert msg.step == 7 * int(np.prod(shape[2:])) and bytes(msg.data) == pixels.tobytes()
    assert isinstance(msg.data, array if kind == 'rclpy' else np.ndarray)
    np.testing.assert_array_equal(images.decode(msg), np.atleast_3d(pixels)[..., :3] + np.zeros(3, np.uint8))


def test_encode_bgr_and_views():
    rgb = random_rgb(5, 7)
    msg = images.encode(rgb[..., ::-1], 'bgr8', 'h', empty('rclpy'))
    np.testing.assert_array_equal(images.decode(msg), rgb)
    depth = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    msg = images.encode(depth.astype('>u2')[:, ::2], 'mono16', 'h', empty('rosbags'))
    assert bytes(msg.data) == depth[:, ::2].astype('<u2').tobytes() and msg.step == 8


def test_encode_compressed():
    rgb = smooth()
    msg = images.encode(rgb, 'png', 'h', compressed(b'', ''))
    assert msg.format == 'rgb8; png compressed bgr8'
    np.testing.assert_array_equal(images.decode(msg), rgb)
    msg = images.encode(rgb, 'jpeg', 'h', compressed(b'', ''))
    assert msg.format == 'rgb8; jpeg compressed bgr8' and len(msg.data) < rgb.size / 2
    assert np.abs(images.decode(msg).astype(int) - rgb).max() <= 8
    msg = images.encode(rgb[..., 0], 'png', 'h', compressed(b'', ''))
    assert msg.format == 'mono8; png compressed mono8'
    np.testing.assert_array_equal(images.decode(msg)[..., 2], rgb[..., 0])


@pytest.mark.parametrize('pixels, encoding', [
    (np.zeros((4, 4), np.uint8), 'rgb8'), (np.zeros((4, 4, 3), np.float32), 'rgb8'),
    (np.zeros((4, 4, 3), np.uint8), 'mono8'), (np.zeros((4, 4), np.int16), 'mono16'),
    (np.zeros((4, 4, 3), np.uint8), 'nv12'), (np.zeros((4, 4, 4), np.uint8), 'jpeg')])
def test_encode_refuses(pixels, encoding):
    with pytest.raises(ImageError, match='expected'):
        images.encode(pixels, encoding, 'h', empty('rclpy'))


def test_real_messages():
    """The Image and CompressedImage of rclpy, in both directions."""
    sensor_msgs = pytest.importorskip('sensor_msgs.msg', reason='sensor_msgs is not installed')
    from std_msgs.msg import Header
    rgb = random_rgb(5, 7)
    header = Header(frame_id='camera')
    msg = images.encode(rgb, 'rgb8', header, sensor_msgs.Image())
    assert msg.header is header
    np.testing.assert_array_equal(images.decode(msg), rgb)
    msg = images.encode(rgb, 'png', header, sensor_msgs.CompressedImage())
    np.testing.assert_array_equal(images.decode(msg), rgb)


def test_like_cv_bridge():
    """Where a ROS distribution is installed: cv_bridge reads the same from tightly packed even rows."""
    try:
        from cv_bridge import CvBridge, CvBridgeError
        from sensor_msgs.msg import Image
    except (ImportError, AttributeError) as e:
        pytest.skip(f'cv_bridge is not installed ({e}); it comes with a ROS distribution')
    compared = []
    for encoding in images.SUPPORTED:
        size = {'nv1': 1.5, 'nv2': 1.5, 'i42': 1.5, 'yv1': 1.5, 'yuv': 2, 'yuy': 2, 'uyv': 2,
                'bay': 2 if encoding.endswith('16') else 1}.get(encoding[:3])
        size = 3 if encoding == 'nv24' else size or np.prod(images.PACKED[encoding][:2])
        data = RNG.integers(16, 236, int(6 * 8 * size), dtype=np.uint8).tobytes()
        step = int(8 * (1 if size == 1.5 or encoding == 'nv24' else size))
        msg = Image(height=6, width=8, encoding=encoding, step=step, data=array('B', data))
        try:
            theirs = CvBridge().imgmsg_to_cv2(msg, 'rgb8')
        except (CvBridgeError, ValueError, TypeError):
            continue  # 8UC1 and the like have no colour for it, and an older one knows fewer encodings
        assert np.abs(images.decode(msg).astype(int) - theirs).max() <= 1, encoding
        compared.append(encoding)
    assert {'rgb8', 'bgr8', 'mono8', 'mono16', 'yuv422', 'bayer_rggb8'} <= set(compared)
