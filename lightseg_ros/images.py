# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Image and CompressedImage messages to uint8 arrays and back: encodings, `step` and byte order.

No other module knows these. Messages are duck-typed: those of rclpy and of rosbags both work. ROS is not
needed; where cv_bridge is installed, it decodes the encodings that are not in the tables below.
"""
from array import array as byte_array
import math
import struct
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np

from . import pictures
from .pictures import PictureError
from .texts import one_line


class ImageError(ValueError):
    """A message that is not a whole image, or has an unknown encoding; the text says what was found."""


# How 16-bit images become 8-bit: see `to_8_bits`.
Range: TypeAlias = Literal['full', 'auto'] | tuple[int, int]
RGB, BGR = slice(0, 3), slice(2, None, -1)

# encoding -> bytes of a channel, channels, and which of them are red, green, blue (None: grey).
# 8UC3 and 8UC4 are OpenCV's names for its own images, hence its order of channels.
PACKED: dict[str, tuple[int, int, slice | None]] = {
    'rgb8': (1, 3, RGB), 'bgr8': (1, 3, BGR), 'rgba8': (1, 4, RGB), 'bgra8': (1, 4, BGR),
    'rgb16': (2, 3, RGB), 'bgr16': (2, 3, BGR), 'rgba16': (2, 4, RGB), 'bgra16': (2, 4, BGR),
    '8UC3': (1, 3, BGR), '8UC4': (1, 4, BGR),
    'mono8': (1, 1, None), '8UC1': (1, 1, None), 'mono16': (2, 1, None), '16UC1': (2, 1, None),
}
# sensor_msgs names the first row, then the second; so do these codes of OpenCV.
BAYER = {
    'bayer_rggb8': cv2.COLOR_BayerRGGB2RGB, 'bayer_bggr8': cv2.COLOR_BayerBGGR2RGB,
    'bayer_gbrg8': cv2.COLOR_BayerGBRG2RGB, 'bayer_grbg8': cv2.COLOR_BayerGRBG2RGB,
}
BAYER |= {name[:-1] + '16': code for name, code in BAYER.items()}
# BT.601, limited range, as OpenCV and cv_bridge have it. sensor_msgs has two names for each of the first two.
YUV422 = {
    'yuv422': cv2.COLOR_YUV2RGB_UYVY, 'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2, 'yuyv': cv2.COLOR_YUV2RGB_YUY2,
}
YUV420 = {'nv12': cv2.COLOR_YUV2RGB_NV12, 'nv21': cv2.COLOR_YUV2RGB_NV21}
PLANAR = {'i420': cv2.COLOR_YUV2RGB_I420, 'yv12': cv2.COLOR_YUV2RGB_YV12}
SUPPORTED = (*PACKED, *BAYER, *YUV422, *YUV420, *PLANAR, 'nv24')
# Depth (REP 118): encoding -> kind of number, its bytes, metres of one.
DEPTH = {'16UC1': ('u', 2, 1e-3), 'mono16': ('u', 2, 1e-3), '32FC1': ('f', 4, 1.0)}


def decode(msg: Any, value_range: Range = 'full', max_pixels: int = pictures.MAX_PIXELS) -> np.ndarray:
    """
    Decode an Image or CompressedImage message to (H, W, 3) uint8 RGB.

    The result is a view of the message's data wherever its layout allows: strides skip the padding of rows,
    BGR becomes a reversed last axis, grey a repeated one. Copy it before writing to it, or to keep it longer
    than the message. YUV is BT.601 limited range, alpha is dropped, and a JPEG's EXIF orientation is not
    applied. 16-bit channels are scaled so that `value_range` becomes 0 to 255, see `to_8_bits`.

    `ImageError` for an unknown encoding, zero size, a `step` shorter than a row, short or broken data, and
    for a CompressedImage of more than `max_pixels` pixels.
    """
    if not hasattr(msg, 'encoding'):
        return _decompress(msg, value_range, max_pixels)
    if msg.height < 1 or msg.width < 1:
        raise ImageError(f'image of {msg.width}x{msg.height}; expected at least one pixel each way')
    if msg.encoding in PACKED:
        size, channels, order = PACKED[msg.encoding]
        pixels = _rows(msg, msg.height, msg.width, channels, size)
        if size == 2:
            pixels = to_8_bits(pixels, value_range)
        return pixels[..., order] if order else np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    if msg.encoding in BAYER:
        if msg.height < 3 or msg.width < 3:
            raise ImageError(f'{msg.encoding} of {msg.width}x{msg.height}; expected at least 3x3 pixels')
        size = _size(msg.encoding)
        pixels = _rows(msg, msg.height, msg.width, 1, size)[..., 0]
        if size == 1:
            return cv2.cvtColor(pixels, BAYER[msg.encoding])
        pixels = np.ascontiguousarray(pixels, np.uint16)
        return to_8_bits(cv2.cvtColor(pixels, BAYER[msg.encoding]), value_range)
    if msg.encoding in YUV422:
        return _yuv422(msg)
    if msg.encoding in YUV420:
        return _yuv420(msg)
    if msg.encoding in PLANAR:
        return _planar(msg)
    if msg.encoding == 'nv24':
        return _nv24(msg)
    return _cv_bridge(msg)


def parse_range(text: str) -> Range:
    """Parse 'full', 'auto' or 'MIN:MAX' (0 to 65535); `ImageError` says what is expected."""
    if text == 'full' or text == 'auto':
        return 'full' if text == 'full' else 'auto'
    low, _, high = text.partition(':')
    if not (low.isdecimal() and high.isdecimal() and int(low) < int(high) <= 65535):
        raise ImageError(f"range of 16-bit images is {text!r}; expected 'full', 'auto' or MIN:MAX with 0 <= "
                         'MIN < MAX <= 65535')
    return int(low), int(high)


def to_8_bits(pixels: np.ndarray, value_range: Range = 'full') -> np.ndarray:
    """
    Scale a 16-bit image of any shape and byte order to uint8; values outside of the range are clipped.

    'full': 0 to 65535 becomes 0 to 255. 'auto': the image's own 1st to 99th percentile. (low, high): these.
    """
    pixels = np.ascontiguousarray(pixels, np.uint16)
    if isinstance(value_range, tuple):
        low, high = map(float, value_range)
    else:
        low, high = np.percentile(pixels, (1, 99)) if value_range == 'auto' else (0.0, 65535.0)
    scale = 255 / max(high - low, 1)
    # convertScaleAbs turns negative values positive, so they are clipped first.
    clipped = np.maximum(pixels, np.uint16(np.ceil(low))) if low else pixels
    flat = clipped.reshape(clipped.shape[0], -1)
    return cv2.convertScaleAbs(flat, alpha=scale, beta=-low * scale).reshape(pixels.shape)


def is_16_bit(msg: Any) -> bool:
    """Return whether an Image or CompressedImage says that its values have 16 bits."""
    if hasattr(msg, 'encoding'):
        return _size(msg.encoding) == 2
    return msg.format.split(';')[0] in ('mono16', '16UC1')


def narrow_range(msg: Any) -> str:
    """
    Say which values a 16-bit image holds if 'full' makes 16 grey levels or fewer of many more; else ''.

    Nothing is said of an image of one value, or of 8-bit pixels in the upper byte: it loses nothing.
    """
    if not is_16_bit(msg):
        return ''
    if hasattr(msg, 'encoding'):
        encoding = msg.encoding
        pixels = _rows(msg, msg.height, msg.width, PACKED.get(encoding, (2, 1))[1], 2)
    else:
        encoding = msg.format.split(';')[0]
        try:
            pixels = pictures.decode(np.ndarray(len(msg.data), np.uint8, msg.data))
        except PictureError:
            return ''
        if pixels.dtype != np.uint16:
            return ''
    low, high = int(pixels.min()), int(pixels.max())
    levels = (high - low) // 257 + 1
    if levels > 16 or np.count_nonzero(np.bincount((pixels - low).ravel())) <= 2 * levels:
        return ''
    return f'{encoding} values span {low} to {high}: {levels} of 256 grey levels'


def _size(encoding: str) -> int:
    """Return the bytes of a channel in an encoding of whole channels; 0 for others."""
    if encoding in BAYER:
        return 2 if encoding.endswith('16') else 1
    return PACKED[encoding][0] if encoding in PACKED else 0


def decode_labels(msg: Any) -> np.ndarray:
    """
    Decode a label Image or CompressedImage to its ids as they are stored: (H, W) uint8 or uint16.

    mono8, 8UC1, mono16, 16UC1, or a PNG or TIFF that `pictures.decode_labels` takes. `ImageError` for others.
    """
    if not hasattr(msg, 'encoding'):
        try:
            return pictures.decode_labels(msg.data)
        except PictureError as e:
            raise ImageError(f'its label image is {e}') from e
    if msg.encoding not in ('mono8', '8UC1', 'mono16', '16UC1'):
        raise ImageError(f'its label image is {_short(msg.encoding)}; expected mono8, 8UC1, mono16, 16UC1 or '
                         'PNG with one class id per pixel')
    if msg.height < 1 or msg.width < 1:
        raise ImageError(f'label image of {msg.width}x{msg.height}; expected at least one pixel each way')
    ids = _rows(msg, msg.height, msg.width, 1, PACKED[msg.encoding][0])[..., 0]
    return np.ascontiguousarray(ids, ids.dtype.newbyteorder('='))


def decode_depth(msg: Any) -> np.ndarray:
    """
    Decode depth (REP 118), an Image or compressedDepth, to (H, W) float32 metres along the optical axis.

    NaN where nothing was measured (0, negative or not finite). 16UC1 and mono16 hold millimetres, 32FC1
    metres. `ImageError` as in `decode`.
    """
    if not hasattr(msg, 'encoding'):
        return _compressed_depth(msg)
    if msg.encoding not in DEPTH:
        raise ImageError(f'depth in {_short(msg.encoding)}; expected {", ".join(DEPTH)}')
    if msg.height < 1 or msg.width < 1:
        raise ImageError(f'depth of {msg.width}x{msg.height}; expected at least one pixel each way')
    kind, size, metres = DEPTH[msg.encoding]
    with np.errstate(invalid='ignore'):  # a signalling NaN is no reason for a warning
        depth = _rows(msg, msg.height, msg.width, 1, size, kind=kind)[..., 0].astype(np.float32) * metres
        return _metres(depth)


def _metres(depth: np.ndarray) -> np.ndarray:
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def _compressed_depth(msg: Any) -> np.ndarray:
    """
    Decode what compressed_depth_image_transport writes, format '16UC1; compressedDepth png' or 'rvl'.

    12 bytes come first: the kind (4 bytes), and two floats, a and b, with which 32FC1 was quantised: the
    depth of a number n is a / (n - b).
    """
    encoding, _, rest = msg.format.partition(';')
    data = np.ndarray(len(msg.data), np.uint8, msg.data).tobytes()
    if 'compressedDepth' not in rest or encoding not in DEPTH or len(data) < 12:
        raise ImageError(f'{len(data)} bytes of format {_short(msg.format)}; expected compressedDepth of '
                         f'{", ".join(DEPTH)}')
    if rest.split()[-1] == 'rvl':
        numbers = _rvl(data[12:])
    else:
        if not data[12:].startswith(pictures.PNG):
            raise ImageError(f'depth of format {_short(msg.format)}: no PNG follows its header of 12 bytes')
        try:
            numbers = pictures.decode_labels(data[12:])  # numbers as they are stored
        except PictureError as e:
            raise ImageError(f'depth of format {_short(msg.format)}: {e}') from e
    depth = numbers.astype(np.float32)
    if encoding != '32FC1':
        return _metres(depth * 1e-3)
    a, b = struct.unpack_from('<ff', data, 4)
    if not math.isfinite(a) or not math.isfinite(b):
        raise ImageError(f'depth of format {_short(msg.format)}: its quantisation is {a:g}, {b:g}; expected '
                         'finite numbers')
    with np.errstate(divide='ignore', invalid='ignore'):
        return _metres(np.where(numbers == 0, np.float32(np.nan), a / (depth - b)).astype(np.float32))


def _rvl(data: bytes) -> np.ndarray:
    """
    Decode RVL (Wilson, Fast lossless depth image compression, 2017) to (H, W) uint16.

    Width and height (4 bytes each), then numbers of 3 bits a nibble, the highest bit saying that more follow,
    eight nibbles to a little-endian word, the first one highest: a count of zeros, a count of other values,
    their differences from the one before, and so on.
    """
    if len(data) < 8:
        raise ImageError(f'RVL of {len(data)} bytes; expected at least 8')
    width, height = struct.unpack_from('<II', data)
    if not 0 < width * height <= pictures.MAX_PIXELS:
        raise ImageError(f'RVL of {width}x{height} pixels')
    words = np.frombuffer(data, '<u4', (len(data) - 8) // 4, 8)
    nibbles = (words[:, None] >> np.arange(28, -1, -4, dtype=np.uint32) & 15).ravel().astype(np.int64)
    ends = np.flatnonzero(nibbles < 8)
    nibbles = nibbles[:ends[-1] + 1] if ends.size else nibbles[:0]
    starts = np.concatenate(([0], ends[:-1] + 1)) if ends.size else ends
    places = np.arange(nibbles.size) - starts.repeat(np.diff(np.append(starts, nibbles.size)))
    numbers = np.add.reduceat((nibbles & 7) << np.minimum(3 * places, 40), starts) if ends.size else nibbles
    values, size, at, i = numbers.tolist(), width * height, 0, 0
    spans = []  # pixel, place in `numbers`, and length of each run of values that are not zero
    while at < size:
        if i + 1 >= len(values):
            raise ImageError(f'RVL of {width}x{height} is cut short after {at} pixels')
        at, count = at + values[i], values[i + 1]
        if at + count > size or i + 2 + count > len(values):
            raise ImageError(f'RVL of {width}x{height} is damaged at pixel {at}')
        spans.append((at, i + 2, count))
        at, i = at + count, i + 2 + count
    pixels, places, counts = np.array(spans, np.int64).T
    within = np.arange(counts.sum()) - (np.cumsum(counts) - counts).repeat(counts)
    changes = numbers[places.repeat(counts) + within]
    out = np.zeros(size, np.int64)
    out[pixels.repeat(counts) + within] = np.cumsum((changes >> 1) ^ -(changes & 1))  # zigzag
    return out.reshape(height, width).astype(np.uint16)


def encode(array: np.ndarray, encoding: str, header: Any, msg: Any) -> Any:
    """
    Fill an empty Image or CompressedImage message of rclpy or rosbags, and return it.

    array: (H, W, 3) or (H, W) uint8, or (H, W) uint16, as `encoding` wants it: an Image's rgb8, bgr8, mono8,
    mono16, ... (tightly packed, little endian), or a CompressedImage's 'jpeg' or 'png' (RGB or grey). The
    header is taken over as it is. `ImageError` where array and encoding don't fit.
    """
    msg.header = header
    if encoding in ('jpeg', 'png'):
        msg.format, data = _compress(array, encoding)
    else:
        size, channels, _ = PACKED.get(encoding, (0, 0, None))
        if array.itemsize != size or (array.shape[2:] or (1,)) != (channels,) or array.dtype.kind != 'u':
            raise ImageError(f'an array {array.dtype} {array.shape} as {encoding!r}; expected (H, W) or '
                             f'(H, W, channels) that fit one of {", ".join(PACKED)}, jpeg, png')
        data = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
        msg.height, msg.width = array.shape[:2]
        msg.encoding, msg.is_bigendian, msg.step = encoding, 0, array.shape[1] * channels * size
    fill(msg, data)
    return msg


def fill(msg: Any, data: np.ndarray) -> None:
    """Set the data of an empty message of rclpy or rosbags to the bytes of a contiguous array."""
    if isinstance(msg.data, np.ndarray):
        msg.data = data.reshape(-1).view(np.uint8)
    else:
        # rclpy takes an array.array as it is, but would check every element of anything else.
        filled = byte_array('B')
        filled.frombytes(data.data.cast('B'))
        msg.data = filled


def _rows(msg: Any, height: int, width: int, channels: int, size: int = 1, start: int = 0,
          step: int | None = None, kind: str = 'u') -> np.ndarray:
    """View rows of the message's data, (height, width, channels) of numbers, from byte `start` on."""
    step = msg.step if step is None else step
    row = width * channels * size
    if step < row:
        raise ImageError(f'{msg.encoding} of {msg.width}x{msg.height}, step {msg.step}; expected at least '
                         f'{row} bytes per row')
    # The padding of the last row may be missing.
    needed = start + step * (height - 1) + row
    if len(msg.data) < needed:
        raise ImageError(f'{msg.encoding} of {msg.width}x{msg.height} with step {msg.step} holds '
                         f'{len(msg.data)} bytes; expected at least {needed}')
    dtype = ('>' if msg.is_bigendian else '<') + f'{kind}{size}'
    return np.ndarray((height, width, channels), dtype, msg.data, start, (step, channels * size, size))


def _yuv422(msg: Any) -> np.ndarray:
    """Two pixels share U and V: chroma and luma for each, chroma being U at even columns, V at odd ones."""
    even = msg.width + msg.width % 2
    pixels = _rows(msg, msg.height, even if msg.step >= 2 * even else msg.width, 2)
    if pixels.shape[1] % 2:
        # An odd row that ends at its last pixel lacks that pair's V: take the pair's before it.
        last = pixels[:, -2:-1] if msg.width > 1 else np.full_like(pixels, 128)
        pixels = np.concatenate((pixels, last), 1)
    return cv2.cvtColor(pixels, YUV422[msg.encoding])[:, :msg.width]


def _yuv420(msg: Any) -> np.ndarray:
    """A plane of luma, then one of chroma pairs, half the size rounded up; rows of `step` bytes in both."""
    height, width = (msg.height + 1) // 2, (msg.width + 1) // 2
    luma = _rows(msg, msg.height, msg.width, 1)[..., 0]
    # A tightly packed odd width: a row of chroma is a byte longer than one of luma.
    chroma = _rows(msg, height, width, 2, 1, msg.height * msg.step, max(msg.step, 2 * width))
    luma = cv2.copyMakeBorder(luma, 0, msg.height % 2, 0, msg.width % 2, cv2.BORDER_REPLICATE) \
        if msg.height % 2 or msg.width % 2 else luma
    return cv2.cvtColorTwoPlane(luma, chroma, YUV420[msg.encoding])[:msg.height, :msg.width]


def _planar(msg: Any) -> np.ndarray:
    """A plane of luma, then two of chroma, half the size rounded up; chroma has rows of half of `step`."""
    height, width = (msg.height + 1) // 2, (msg.width + 1) // 2
    step, start = max((msg.step + 1) // 2, width), msg.height * msg.step
    luma = _rows(msg, msg.height, msg.width, 1)[..., 0]
    planes = [cv2.copyMakeBorder(luma, 0, msg.height % 2, 0, msg.width % 2, cv2.BORDER_REPLICATE)]
    planes += [_rows(msg, height, width, 1, 1, start + i * height * step, step) for i in range(2)]
    joined = np.concatenate([p.ravel() for p in planes]).reshape(3 * height, 2 * width)
    return cv2.cvtColor(joined, PLANAR[msg.encoding])[:msg.height, :msg.width]


def _nv24(msg: Any) -> np.ndarray:
    """A plane of luma, then one of chroma pairs of the same size, in rows of twice `step`."""
    luma = _rows(msg, msg.height, msg.width, 1)[..., 0]
    chroma = _rows(msg, msg.height, msg.width, 2, 1, msg.height * msg.step, 2 * msg.step)
    # As YUY2 of twice the width, in which each pixel stands twice: OpenCV has no code for this one.
    twice = np.empty((msg.height, 2 * msg.width, 2), np.uint8)
    twice[..., 0] = luma.repeat(2, 1)
    twice[..., 1] = chroma.reshape(msg.height, -1)
    return cv2.cvtColor(twice, cv2.COLOR_YUV2RGB_YUY2)[:, ::2]


def _decompress(msg: Any, value_range: Range, max_pixels: int) -> np.ndarray:
    try:
        pixels = pictures.decode(np.ndarray(len(msg.data), np.uint8, msg.data), max_pixels=max_pixels)
    except PictureError as e:
        raise ImageError(f'compressed image of format {_short(msg.format)}: {e}') from e
    if pixels.ndim == 2:
        return np.broadcast_to(to_8_bits(pixels, value_range)[..., None], (*pixels.shape, 3))
    # image_transport writes 'ENCODING; jpeg compressed ORDER'; in the order rgb8, rare, the file has red and
    # blue swapped.
    return pixels[..., ::-1] if 'compressed rgb' in msg.format else pixels


def _compress(array: np.ndarray, encoding: str) -> tuple[str, np.ndarray]:
    if array.dtype != np.uint8 or (array.shape[2:] or (3,)) != (3,):
        raise ImageError(f'an array {array.dtype} {array.shape} as {encoding}; expected uint8, (H, W, 3) RGB '
                         'or (H, W) grey')
    color = array.ndim == 3
    ok, data = cv2.imencode(f'.{encoding}', cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if color else array)
    if not ok:
        raise ImageError(f'OpenCV could not write an array {array.shape} as {encoding}')
    return f'rgb8; {encoding} compressed bgr8' if color else f'mono8; {encoding} compressed mono8', data


def _short(text: str) -> str:
    return repr(one_line(text, 80))


def _cv_bridge(msg: Any) -> np.ndarray:
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ImportError as e:
        raise ImageError(f'unknown encoding {_short(msg.encoding)}; supported: {", ".join(SUPPORTED)}; '
                         f'cv_bridge, which knows more, is not there ({e})') from e
    try:
        return CvBridge().imgmsg_to_cv2(msg, 'rgb8')
    except (CvBridgeError, TypeError, ValueError, KeyError, RuntimeError) as e:
        raise ImageError(f'unknown encoding {_short(msg.encoding)}, for cv_bridge too ({e}); supported: '
                         f'{", ".join(SUPPORTED)}') from e
