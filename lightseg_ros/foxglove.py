# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Images and video in Foxglove's own schemas, as protobuf or JSON (https://docs.foxglove.dev/docs/sdk/schemas)."""
import base64
import binascii
from collections.abc import Iterator
import json
import struct
from typing import Any

# Numbers of the fields in Foxglove's protobuf schemas.
FIELDS = {
    'RawImage': {1: 'timestamp', 2: 'width', 3: 'height', 4: 'encoding', 5: 'step', 6: 'data', 7: 'frame_id'},
    'CompressedImage': {1: 'timestamp', 2: 'data', 3: 'format', 4: 'frame_id'},
    'CompressedVideo': {1: 'timestamp', 2: 'frame_id', 3: 'data', 4: 'format'},
}
TYPES = tuple(f'foxglove.{name}' for name in FIELDS)


def parse(kind: str, encoding: str, raw: bytes) -> dict[str, Any]:
    """
    Return the fields of a message: stamp_ns, frame_id, data (bytes), and format, or encoding and sizes.

    kind: one of `TYPES`; encoding: 'protobuf' or 'json'. `ValueError` says what is wrong with the bytes.
    """
    names = FIELDS[kind.split('.')[1]]
    # Fields with the default value are not in a protobuf message.
    found: dict[str, Any] = {name: {'width': 0, 'height': 0, 'step': 0, 'data': b''}.get(name, '')
                             for name in names.values()}
    if encoding == 'json':
        try:
            given = json.loads(raw)
            found |= {name: given[name] for name in found if name in given}
            found['data'] = base64.b64decode(found['data'], validate=True)
            stamp = given.get('timestamp') or {}
            sec, nanosec = stamp.get('sec', 0), stamp.get('nsec', 0)
        except (TypeError, AttributeError, binascii.Error, UnicodeDecodeError) as e:
            raise ValueError(f'not the JSON of a {kind}: {e}') from e
    else:
        for number, value in _fields(raw):
            if number in names:
                found[names[number]] = value
        sec = nanosec = 0
        for number, value in _fields(found['timestamp'] or b''):
            sec, nanosec = (value, nanosec) if number == 1 else (sec, value)
        for name in {'encoding', 'format', 'frame_id'} & found.keys():
            found[name] = bytes(found[name] or b'').decode()
    del found['timestamp']
    for name in ('width', 'height', 'step'):
        if name in found:
            found[name] = int(found[name])
    return found | {'stamp_ns': int(sec) * 10 ** 9 + int(nanosec), 'data': bytes(found['data'])}


def _fields(raw: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """Split a protobuf message: the numbers and values of its fields."""
    view, at = memoryview(raw), 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = view[at]
            value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
            if byte < 0x80:
                return value

    try:
        while at < len(view):
            number, wire = divmod(varint(), 8)
            if wire == 0:
                yield number, varint()
            elif wire == 2:
                length = varint()
                if at + length > len(view):
                    raise ValueError(f'a protobuf field of {length} bytes in {len(view) - at}')
                yield number, view[at:at + length]
                at += length
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
                yield number, struct.unpack_from('<Q' if wire == 1 else '<I', view, at)[0]
                at += size
            else:
                raise ValueError(f'protobuf of an unknown kind ({wire})')
    except (IndexError, struct.error) as e:
        raise ValueError('a protobuf message that is cut short') from e
