# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Mutated input for everything that reads what others wrote: `make fuzz CASES=n`; the tests run a few hundred.

Each case must give a value or the error that its reader promises, within a second of processor time and
200 MB, and write nothing outside of its folder. A case depends on the seed, the reader and its number alone.
"""
import argparse
import base64
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
import copy
from dataclasses import dataclass
import io
import json
from pathlib import Path
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from safetensors.torch import load_file, save
from tqdm import tqdm
import yaml

from lightseg_ros import (
    annotations,
    bag_writer,
    bags,
    data_import,
    images,
    labels,
    networks,
    pictures,
    sizes,
    weights,
)
from lightseg_ros.training import archive

SECONDS, MEGABYTES = 1.0, 200
NUMBERS = (0, 1, -1, 127, 128, 255, 256, 32767, 65535, 65536, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1,
           2 ** 63)
VALUES = (None, True, 0, -1, 2 ** 63, 10 ** 400, 1e308, float('nan'), float('inf'), '', 'x' * 10 ** 5,
          '\ud800',
          '\x1b[2J', '../../x', [], {}, [[]], {'a': {}}, 'NaN', '1e999')


@dataclass(frozen=True)
class Reader:
    """`seeds`: valid inputs; `mutate` changes one; `read` is to raise nothing but `error`."""

    seeds: list[Any]
    mutate: Callable[[random.Random, Any], Any]
    read: Callable[[Any, Path], object]
    error: type[Exception]


def mutated_bytes(rng: random.Random, seed: bytes) -> bytes:
    """Flip bits, write numbers that mean much, cut, repeat and remove, a few times over."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        # Heads decide most: every second change is among the first bytes.
        at = min(at, rng.randrange(200)) if rng.random() < 0.5 else at
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            form = rng.choice(('<I', '>I', '<H', '>H', '<Q', '>Q'))
            number = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(form))
            data[at:at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at:at + rng.randrange(1, 100)]
        elif kind == 4:
            data[at:at] = data[at:at + rng.randrange(1, 300)] * rng.choice((1, 2, 50))
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(data)


def mutated_tree(rng: random.Random, seed: Any) -> Any:
    """Replace, remove or nest a value somewhere in a tree of lists and mappings."""
    tree = json.loads(json.dumps(seed))
    for _ in range(rng.choice((1, 1, 3))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], (dict, list)) and rng.random() < 0.7:
                node = node[key]
                continue
            if isinstance(node, dict) and rng.random() < 0.2:
                node[rng.choice(('', 'x', '\ud800', '1'))] = node.pop(key)
            elif rng.random() < 0.1:
                del node[key]
            else:
                # A copy: a later change may go into it.
                node[key] = copy.deepcopy(rng.choice((*VALUES, [node[key]], {'a': node[key]})))
            break
    return tree


def mutated_message(rng: random.Random, seed: dict[str, Any]) -> dict[str, Any]:
    """Change fields of an image message within their types, and the length of its data."""
    msg = dict(seed)
    for _ in range(rng.choice((1, 2, 4))):
        name = rng.choice(list(msg))
        if name == 'data':
            msg['data'] = mutated_bytes(rng, msg['data'])
        elif name in ('encoding', 'format'):
            msg[name] = rng.choice((*images.SUPPORTED, '', 'x' * 10 ** 6, '32FC1', 'jpeg'))
        elif name == 'is_bigendian':
            msg[name] = rng.randrange(256)
        else:
            msg[name] = rng.choice(NUMBERS) % 2 ** 32 if rng.random() < 0.5 else rng.randrange(100)
    return msg


def _messages() -> list[dict[str, Any]]:
    pixels = np.random.default_rng(0).integers(0, 256, 24 * 32 * 8, dtype=np.uint8).tobytes()
    return [{'encoding': e, 'height': 24, 'width': 32, 'step': 32 * 4, 'is_bigendian': 0, 'data': pixels}
            for e in ('rgb8', 'mono16', 'bayer_rggb8', 'nv12', 'yuv422', '32FC1')]


def _read_message(msg: dict[str, Any], folder: Path) -> None:
    """Read a message as image, labels and depth; the last error if it is none of them."""
    refusals = []
    for read in (images.decode, images.decode_labels, images.decode_depth):
        try:
            found = read(SimpleNamespace(**msg))
            assert found.size <= msg['height'] * msg['width'] * 3
        except images.ImageError as e:
            refusals.append(e)
    if len(refusals) == 3:
        raise refusals[-1]


def _bag_seeds(folder: Path) -> list[tuple[str, bytes]]:
    seeds = []
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for storage, suffix in (('mcap', '.mcap'), ('sqlite3', '.db3')):
        with bag_writer.Writer(folder / storage, storage) as writer:
            for i in range(4):
                writer.write('/image', bags.image(pixels, 'rgb8', bags.header(i)), i)
        path, = (folder / storage).glob(f'*{suffix}')
        seeds.append((f'a{suffix}', path.read_bytes()))
    return [*seeds, ('metadata.yaml', (folder / 'mcap' / 'metadata.yaml').read_bytes())]


def _read_bag(case: tuple[str, bytes], folder: Path) -> None:
    name, data = case
    (folder / name).write_bytes(data)
    with bags.Bag(folder if name == 'metadata.yaml' else folder / name) as bag:
        for message in bag.messages(*bag.topics):
            with suppress(bags.BagError, images.ImageError, AttributeError):  # of another type: no image
                images.decode(message.read())


def _read_file(read: Callable[[Path], object], name: str) -> Callable[[bytes, Path], None]:
    def write_and_read(data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)
        read(folder / name)
    return write_and_read


def _unpack(data: bytes, folder: Path) -> None:
    (folder / 'in').mkdir()
    archive.unpack(io.BytesIO(data), folder / 'in')


def _import(tree: Any, folder: Path) -> None:
    (folder / 'in').mkdir()
    cv2.imwrite(str(folder / 'in' / 'x.jpg'), np.zeros((40, 50, 3), np.uint8))
    (folder / 'in' / 'x.json').write_text(json.dumps(tree))
    data_import.convert(folder / 'in', folder / 'out')


def _annotations() -> list[dict[str, Any]]:
    """COCO and Labelme: the same image, with every kind of shape."""
    box = [[5, 5], [20, 5], [20, 20]]
    mask = base64.b64encode(cv2.imencode('.png', np.ones((4, 4), np.uint8))[1].tobytes()).decode()
    shapes = [{'label': kind, 'shape_type': kind, 'points': box[:count], 'mask': mask} for kind, count in
              (('polygon', 3), ('rectangle', 2), ('circle', 2), ('mask', 2))]
    segmentations: list[Any] = [[[5, 5, 20, 5, 20, 20]], {'size': [40, 50], 'counts': [100, 50, 1850]},
                                {'size': [40, 50], 'counts': 'T3b1ji1'}]
    return [{'imagePath': 'x.jpg', 'imageHeight': 40, 'imageWidth': 50, 'shapes': shapes},
            {'images': [{'id': 1, 'file_name': 'x.jpg', 'height': 40, 'width': 50}],
             'categories': [{'id': 3, 'name': 'road'}],
             'annotations': [{'image_id': 1, 'category_id': 3, 'segmentation': s} for s in segmentations]}]


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as tar:
        for name in ('a/b.csv', 'a/' + 'c' * 150):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
    return file.getvalue()


def readers(folder: Path) -> dict[str, Reader]:
    """Return what is fuzzed, by name."""
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8), (0, 0), 3)
    encoded = [cv2.imencode(kind, picture, options)[1].tobytes() for kind, options in (
        ('.jpg', []), ('.jpg', [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), ('.png', []), ('.bmp', []), ('.tiff', []),
        ('.webp', []), ('.webp', [cv2.IMWRITE_WEBP_QUALITY, 101]))]
    grey = [cv2.imencode(kind, picture[..., 0])[1].tobytes() for kind in ('.png', '.tiff')]
    camvid = labels.load('camvid')
    card = weights.Card('lrnnet', camvid, (105.0,) * 3, (70.0,) * 3, (480, 360), networks.options('lrnnet'))
    path = weights.find('affnet')
    state, found = load_file(path), weights.read_card(path)
    file = save(state, {'format': weights.FORMAT, 'card': found.to_json()})

    def dumped(tree: Any) -> bytes:
        return json.dumps(tree).encode()

    def read_card(tree: Any, folder: Path) -> None:
        read = weights.Card.from_json(dumped(tree).decode())
        weights._built(read)
        read.to_json().encode()

    return {
        'picture': Reader(encoded, mutated_bytes, lambda d, _: pictures.decode(d), pictures.PictureError),
        'label picture': Reader(grey, mutated_bytes, lambda d, _: pictures.decode_labels(d),
                                pictures.PictureError),
        'message': Reader(_messages(), mutated_message, _read_message, images.ImageError),
        'bag': Reader(_bag_seeds(folder), lambda rng, seed: (seed[0], mutated_bytes(rng, seed[1])), _read_bag,
                      bags.BagError),
        'card': Reader([json.loads(card.to_json())], mutated_tree, read_card, weights.WeightsError),
        'weights': Reader([file], mutated_bytes, _read_file(weights.load, 'a.safetensors'),
                          weights.WeightsError),
        'label set': Reader([camvid.to_dict()], mutated_tree,
                            lambda t, f: _read_file(labels.load, 'a.yaml')(dumped(t), f), labels.LabelError),
        'YAML': Reader([yaml.safe_dump(camvid.to_dict()).encode()], mutated_bytes,
                       _read_file(labels.load, 'a.yaml'), labels.LabelError),
        'annotations': Reader(_annotations(), mutated_tree, _import, annotations.AnnotationError),
        'archive': Reader([_tar()], mutated_bytes, _unpack, archive.ArchiveError),
        'size': Reader([b'640x480'], mutated_bytes, lambda d, _: sizes.parse_size(d.decode('latin-1')),
                       sizes.SizeError),
    }


def run(cases: int, seed: int, only: str = '', seconds: float = SECONDS) -> tuple[Counter, list[str]]:
    """Run cases of all readers in turn; returns the outcomes by reader, and what broke a promise."""
    outcomes: Counter = Counter()
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        known = readers(Path(scratch))
        names = [only] if only else list(known)
        for i in tqdm(range(cases), unit=' cases', disable=None):  # a bar in a terminal only
            name = names[i % len(names)]
            reader = known[name]
            rng = random.Random(f'{seed} {name} {i}')
            case = reader.mutate(rng, rng.choice(reader.seeds))
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            with tempfile.TemporaryDirectory() as outside:
                inside = Path(outside) / 'inside'
                inside.mkdir()
                try:
                    reader.read(case, inside)
                    outcome = 'read'
                except reader.error:
                    outcome = 'refused'
                except Exception as e:
                    outcome = f'{type(e).__name__}: {str(e)[:200]}'
                if [p.name for p in Path(outside).iterdir()] != ['inside']:
                    outcome = 'written outside'
            took = time.process_time() - began
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
            outcome = f'{took:.1f} s' if took > seconds else outcome
            outcome = f'{grown:.0f} MB' if grown > MEGABYTES else outcome
            outcomes[name, outcome if outcome in ('read', 'refused') else 'broken'] += 1
            if outcome not in ('read', 'refused'):
                broken.append(f'{name}, --seed {seed}, case {i}: {outcome}')
    return outcomes, broken


def main() -> int:
    parser = argparse.ArgumentParser(description='Fuzz everything that reads what others wrote.')
    parser.add_argument('--cases', type=int, default=3000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', default='', help='name of one reader')
    args = parser.parse_args()
    outcomes, broken = run(args.cases, args.seed, args.only)
    for name in dict.fromkeys(name for name, _ in outcomes):
        print(f'{name:14}' + '  '.join(f'{outcomes[name, kind]:6} {kind}' for kind in
                                       ('read', 'refused', 'broken')))
    print('\n'.join(broken))
    return 1 if broken else 0


if __name__ == '__main__':
    sys.exit(main())
