# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Picture files (JPEG, PNG, ...) to arrays, strictly: colour pictures, and label pictures with their raw ids.

OpenCV repairs damaged files in silence: what is missing becomes grey. Here such a file is an error. JPEGs are
decoded by simplejpeg, which reports damage. Where it is not installed OpenCV decodes them, and only a JPEG
without an end is recognised as damaged.

Sizes are read from a file's head before anything is decoded: a few bytes can ask for gigabytes.
"""
import logging
from pathlib import Path
import struct
import zlib

import cv2
import numpy as np

try:
    import simplejpeg
except ImportError:  # ROS distributions do not have it
    simplejpeg = None

from .files import read_small

log = logging.getLogger(__name__)
# The default limit of a picture: 8192x8192, the largest size that is taken anywhere.
MAX_PIXELS = 1 << 26
MAX_FILE = 1 << 29  # bytes
# A JPEG's scans times its pixels: what decoding it costs, at 2 to 3 ns each.
MAX_SCANNED = 1 << 28
JPEG, PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
# PNG colour types.
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
_told: set[str] = set()


class PictureError(ValueError):
    """Data that is not a whole picture, or not a label picture; the text says what was found."""


def decode(data: bytes | memoryview | np.ndarray, *, upright: bool = False,
           max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """
    Decode a picture file to (H, W, 3) uint8 RGB, or to (H, W) uint16 if it is a 16-bit grey PNG or TIFF.

    JPEG, PNG, BMP, TIFF and WebP. Alpha is dropped. `upright`: apply the orientation that EXIF data names, as
    picture viewers do. `PictureError` for other formats, for damaged files, and for those of more than
    `max_pixels` pixels, which are not decoded.
    """
    array = np.frombuffer(data, np.uint8)
    start = array[:12].tobytes()
    _check_size(array, max_pixels)
    if start.startswith(JPEG):
        return _decode_jpeg(array, upright)
    flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    if start.startswith(PNG):
        header, _ = _png_parts(array.tobytes())
        if header[2:4] == (16, GREY):
            flags = cv2.IMREAD_UNCHANGED
    elif start[:4] in (b'II*\0', b'MM\0*'):
        flags |= cv2.IMREAD_ANYDEPTH
    elif start[:2] == b'BM':
        size, = struct.unpack_from('<I', array.tobytes()[:6], 2) if array.size >= 6 else (0,)
        if size > array.size:
            raise PictureError(f'BMP is cut short: it has {array.size} of its {size} bytes')
    elif not (start[:4] == b'RIFF' and start[8:] == b'WEBP'):
        raise PictureError(f'{array.size} bytes that start with {start[:4]!r}; supported: JPEG, PNG, BMP, '
                           'TIFF, WebP')
    pixels = _opencv(array, flags)
    if pixels.ndim == 3 and pixels.dtype == np.uint16 and np.array_equal(pixels[..., :2], pixels[..., 1:]):
        pixels = pixels[..., 0].copy()  # OpenCV makes three equal channels of a grey TIFF
    if pixels.ndim == 2 and pixels.dtype == np.uint16:
        return pixels
    if pixels.dtype != np.uint8:
        raise PictureError(f'picture of {pixels.dtype} {pixels.shape}; expected 8-bit colour or 16-bit grey')
    pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else pixels
    return pixels[..., ::-1]


def decode_labels(data: bytes | memoryview | np.ndarray) -> np.ndarray:
    """
    Decode a label picture to its ids as they are stored: (H, W) uint8, or uint16 for 16-bit files.

    PNG: grey of 1, 2, 4, 8 or 16 bits, with or without opaque alpha; a palette's indices, not its colours;
    RGB where all three channels are equal. TIFF: grey of 8 or 16 bits. `PictureError` for colour pictures and
    for formats that change ids, such as JPEG.
    """
    raw = bytes(data)
    _check_size(np.frombuffer(raw, np.uint8), MAX_PIXELS)
    if raw.startswith(PNG):
        return _png_ids(raw)
    if raw[:4] in (b'II*\0', b'MM\0*'):
        ids = _opencv(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
        if ids.ndim != 2 or ids.dtype not in (np.uint8, np.uint16):
            raise PictureError(f'a TIFF of {ids.dtype} {ids.shape}; expected one channel of 8 or 16 bits')
        return ids
    kind = 'a JPEG, whose compression changes ids' if raw.startswith(JPEG) else \
        f'{len(raw)} bytes that start with {raw[:4]!r}'
    raise PictureError(f'{kind}; expected a PNG or TIFF with one class id per pixel')


def read(path: Path, *, upright: bool = True) -> np.ndarray:
    """Read a picture file as `decode` does, 16-bit grey scaled to 8 bits; `PictureError` names the file."""
    try:
        pixels = decode(read_small(path, MAX_FILE), upright=upright)
    except OSError as e:
        raise PictureError(f'{path}: {e.strerror}') from e
    except PictureError as e:
        raise PictureError(f'{path} is not a readable image: {e}') from e
    if pixels.ndim == 2:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)[..., None].repeat(3, 2)
    return np.ascontiguousarray(pixels)


def orientation_of(path: Path) -> int:
    """Return the EXIF orientation of a JPEG file, 1 to 8; 1 for all that has none or can't be read."""
    try:
        data = read_small(path, MAX_FILE)
    except OSError:
        return 1
    return orientation(data)


def read_labels(path: Path) -> np.ndarray:
    """Read a label picture as `decode_labels` does; `PictureError` names the file."""
    try:
        return decode_labels(read_small(path, MAX_FILE))
    except OSError as e:
        raise PictureError(f'{path}: {e.strerror}') from e
    except PictureError as e:
        raise PictureError(f'{path} is not a label picture: {e}') from e


def png_kind(data: bytes) -> int | None:
    """Return a PNG's colour type, GREY to RGB_ALPHA; None for other files."""
    return data[25] if data.startswith(PNG) and len(data) > 25 else None


def png_palette(data: bytes) -> np.ndarray | None:
    """Return the palette of a PNG, (N, 3) uint8 RGB; None for files without one."""
    if png_kind(data) != PALETTE:
        return None
    at = data.find(b'PLTE')
    length, = struct.unpack_from('>I', data, at - 4) if at > 3 else (0,)
    return np.frombuffer(data[at + 4:at + 4 + length // 3 * 3], np.uint8).reshape(-1, 3)


def encode_labels(ids: np.ndarray, palette: np.ndarray) -> bytes:
    """
    Encode ids (H, W) uint8 as a PNG whose palette, (N, 3) uint8 RGB, gives them colours in picture viewers.

    `decode_labels` returns the ids again.
    """
    height, width = ids.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row starts with its filter: none
    rows[:, 1:] = ids
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, PALETTE, 0, 0, 0)),
              (b'PLTE', palette.tobytes()), (b'IDAT', zlib.compress(rows.tobytes(), 9)), (b'IEND', b'')]
    return _png(chunks)


def _check_size(array: np.ndarray, max_pixels: int) -> None:
    """Raise `PictureError` where the head of a file states more pixels than that, or none."""
    data = np.ascontiguousarray(array).data
    if not len(data):
        raise PictureError('0 bytes, no data')
    try:
        size = _stated_size(data)
    except (struct.error, IndexError) as e:
        raise PictureError(f'{len(data)} bytes are cut short: the size of the picture is missing') from e
    if size is None:
        return  # no format that is read
    width, height = size
    if width < 1 or height < 1:
        raise PictureError(f'picture of {width}x{height}; expected at least one pixel each way')
    if width * height > max_pixels:
        raise PictureError(f'picture of {width}x{height} in {len(data)} bytes; expected {max_pixels} pixels '
                           'at most')
    if bytes(data[:3]) == JPEG:
        scans = bytes(data).count(b'\xff\xda')  # in compressed data ff is followed by 00
        if scans * width * height > MAX_SCANNED:
            raise PictureError(f'JPEG of {width}x{height} with {scans} scans; expected '
                               f'{MAX_SCANNED // (width * height)} at most')


def _stated_size(data: memoryview) -> tuple[int, int] | None:
    """Return (width, height) as a file's head states them; None for other formats."""
    start = bytes(data[:16])
    if start.startswith(JPEG):
        return _jpeg_size(data)
    if start.startswith(PNG):
        return struct.unpack_from('>II', data, 16)
    if start[:2] == b'BM':
        if struct.unpack_from('<I', data, 14)[0] == 12:  # OS/2
            return struct.unpack_from('<HH', data, 18)
        width, height = struct.unpack_from('<ii', data, 18)
        return width, abs(height)  # negative where the first row is the upper one
    if start[:4] in (b'II*\0', b'MM\0*'):
        return _tiff_size(data, '<' if start[:2] == b'II' else '>')
    if start[:4] == b'RIFF' and start[8:12] == b'WEBP':
        if start[12:] == b'VP8X':
            width, height = (int.from_bytes(data[at:at + 3], 'little') + 1 for at in (24, 27))
            return width, height
        if start[12:] == b'VP8L':
            bits, = struct.unpack_from('<I', data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        width, height = struct.unpack_from('<HH', data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from('>HH', data, at + 5)
            return width, height
        elif marker in (0xD9, 0xDA):
            break
        else:
            alone = marker == 1 or 0xD0 <= marker <= 0xD7  # without a length
            at += 2 if alone else 2 + struct.unpack_from('>H', data, at + 2)[0]
    raise PictureError(f'JPEG of {len(data)} bytes does not decode: its head is damaged')


def _tiff_size(data: memoryview, order: str) -> tuple[int, int]:
    """Return the larger of the picture's and its tiles' size, each way: both are allocated."""
    first, = struct.unpack_from(order + 'I', data, 4)
    count, = struct.unpack_from(order + 'H', data, first)
    found = dict.fromkeys((256, 257, 322, 323), 0)
    for at in range(first + 2, first + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + 'HH', data, at)
        if tag in found:
            found[tag], = struct.unpack_from(order + ('H' if kind == 3 else 'I'), data, at + 8)
    return max(found[256], found[322]), max(found[257], found[323])


def _opencv(array: np.ndarray, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(array, flags)
    except cv2.error as e:
        raise PictureError(f'{array.size} bytes do not decode: {e}') from e
    if pixels is None:
        raise PictureError(f'{array.size} bytes do not decode: broken data')
    return pixels


def _decode_jpeg(array: np.ndarray, upright: bool) -> np.ndarray:
    data = array.tobytes()
    if data.rfind(b'\xff\xd9') < 0:
        raise PictureError(f'JPEG of {len(data)} bytes is cut short: it has no end')
    if simplejpeg is None:
        if 'simplejpeg' not in _told:
            _told.add('simplejpeg')
            log.warning('simplejpeg is not installed (pip install simplejpeg): damaged JPEGs are decoded '
                        'with grey areas instead of being refused')
        flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
        return _opencv(array, flags)[..., ::-1]
    try:
        rgb = simplejpeg.decode_jpeg(data, 'RGB')
    except ValueError as e:
        # libjpeg does not turn CMYK into RGB; OpenCV does.
        if 'colorspace' not in str(e).lower() and 'color conversion' not in str(e).lower():
            raise PictureError(f'JPEG of {len(data)} bytes does not decode: {e}') from e
        rgb = _opencv(array, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[..., ::-1]
    return turned(rgb, orientation(data)) if upright else rgb


def orientation(jpeg: bytes) -> int:
    """Return the orientation in a JPEG's EXIF data, 1 to 8; 1 where there is none, and for other files."""
    at = 2 if jpeg.startswith(JPEG) else len(jpeg)
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] not in (0xDA, 0xD9):
        length, = struct.unpack_from('>H', jpeg, at + 2)
        block = jpeg[at + 4:at + 2 + length]
        if jpeg[at + 1] == 0xE1 and block.startswith(b'Exif\0\0'):
            tiff = block[6:]
            order = '<' if tiff[:2] == b'II' else '>'
            try:
                first, = struct.unpack_from(order + 'I', tiff, 4)
                count, = struct.unpack_from(order + 'H', tiff, first)
                for i in range(count):
                    tag, _, _, value = struct.unpack_from(order + 'HHIH', tiff, first + 2 + 12 * i)
                    if tag == 0x0112:
                        return value if 1 <= value <= 8 else 1
            except struct.error:
                return 1
        at += 2 + length
    return 1


def other_size(image: Path, label: Path, size: tuple[int, ...], label_size: tuple[int, ...]) -> str:
    """Say that an image and its label, (height, width), differ in size, and what is likely."""
    text = (f'{label} is {label_size[1]}x{label_size[0]}, its image {size[1]}x{size[0]}; '
            'expected the same size')
    turned = orientation_of(image)
    if turned >= 5 and label_size == size[::-1]:
        text += (f': EXIF orientation {turned} turns the image, and the label was drawn on it as it is '
                 'stored; "lightseg data import" turns such labels')
    return text


def keeps_size(orientation: int, height: int, width: int) -> bool:
    """Whether an EXIF orientation turns or mirrors a picture, and its size does not show that."""
    return 2 <= orientation <= 4 or orientation > 4 and height == width


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (EXIF 2.3, table 6: which row and column of the scene pixel (0, 0) is)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _png_parts(png: bytes) -> tuple[tuple[int, int, int, int, int], list[bytes]]:
    """
    Return a PNG's header (width, height, bits, colour type, interlacing) and its data chunks, checked.

    `PictureError` where the file ends early or a checksum is wrong.
    """
    at, header, data = len(PNG), None, []
    while True:
        if at + 12 > len(png):
            raise PictureError(f'PNG of {len(png)} bytes is cut short: it has no end')
        length, name = struct.unpack_from('>I4s', png, at)
        end = at + 12 + length
        if end > len(png):
            raise PictureError(f'PNG of {len(png)} bytes is cut short in its part {ascii(name)[1:]}')
        content = memoryview(png)[at + 8:end - 4]
        if zlib.crc32(content, zlib.crc32(name)) != struct.unpack_from('>I', png, end - 4)[0]:
            raise PictureError(f'PNG of {len(png)} bytes does not decode: its part {ascii(name)[1:]} is '
                               'damaged')
        if name == b'IHDR' and length == 13 and header is None:
            width, height, bits, color, _, _, interlaced = struct.unpack('>IIBBBBB', content)
            header = width, height, bits, color, interlaced
        elif name == b'IDAT':
            data.append(bytes(content))
        elif name == b'IEND':
            if header is None or not data:
                raise PictureError(f'PNG of {len(png)} bytes has no image')
            return header, data
        at = end


def _png_ids(png: bytes) -> np.ndarray:
    """
    Return the numbers that a PNG stores.

    Decoders turn them into colours: they apply the palette, stretch 1, 2 and 4 bits to 8, and mix alpha in.
    Under a header that calls the same bytes grey or RGBA, they give them as they are. This is exact, since
    PNG's filters work on bytes and know nothing of what the bytes mean.
    """
    (width, height, bits, color, interlaced), data = _png_parts(png)
    if bits < 8 and interlaced:
        raise PictureError(f'an interlaced PNG of {bits} bits; expected one that is not interlaced')
    across, as_bits, as_color = width, bits, color
    if bits < 8:
        across, as_bits, as_color = (width * bits + 7) // 8, 8, GREY
    elif color == PALETTE:
        as_color = GREY
    elif color == GREY_ALPHA:
        as_bits, as_color = (16, GREY) if bits == 8 else (8, RGB_ALPHA)
    raw = _opencv(np.frombuffer(_png_file(across, height, as_bits, as_color, interlaced, data), np.uint8),
                  cv2.IMREAD_UNCHANGED)
    ids: np.ndarray
    alpha: np.ndarray | None = None
    if bits < 8:
        per_byte = 8 // bits
        shifts = 8 - bits * np.arange(1, per_byte + 1)
        ids = (raw[..., None] >> shifts & (1 << bits) - 1).astype(np.uint8)
        return ids.reshape(height, -1)[:, :width]
    if color == GREY_ALPHA and bits == 8:
        ids, alpha = (raw >> 8).astype(np.uint8), (raw & 255).astype(np.uint8)
    elif color == GREY_ALPHA:
        blue, green, red, last = (raw[..., i].astype(np.uint16) for i in range(4))
        ids, alpha = red << 8 | green, blue << 8 | last
    elif color in (RGB, RGB_ALPHA):
        if not np.array_equal(raw[..., :2], raw[..., 1:3]):
            raise PictureError('a coloured PNG; expected one class id per pixel, as grey or as palette index')
        ids, alpha = raw[..., 0].copy(), raw[..., 3] if color == RGB_ALPHA else None
    else:
        ids = raw
    if alpha is not None and (alpha != (1 << bits) - 1).any():
        raise PictureError('a PNG with transparent pixels; expected one class id in every pixel')
    return ids


def _png_file(width: int, height: int, bits: int, color: int, interlaced: int, data: list[bytes]) -> bytes:
    header = struct.pack('>IIBBBBB', width, height, bits, color, 0, 0, interlaced)
    return _png([(b'IHDR', header), *((b'IDAT', d) for d in data), (b'IEND', b'')])


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return PNG + b''.join(struct.pack('>I', len(content)) + name + content
                          + struct.pack('>I', zlib.crc32(content, zlib.crc32(name)))
                          for name, content in chunks)
