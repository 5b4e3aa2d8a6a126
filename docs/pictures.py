# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Redraw the pictures of the documentation that show the packaged weights: networks.png and speed.png.

    python docs/pictures.py         # `make docs`, after new weights; about a minute
"""
import json
from pathlib import Path
import tempfile

import cv2
import numpy as np
from update import MEASURED, measured_cards, ROOT

from lightseg_ros import labels, networks
from lightseg_ros.benchmark import report
from lightseg_ros.inference.segmenter import Segmenter
from lightseg_ros.metrics import ConfusionMatrix
from lightseg_ros.synthetic.street import Street

# Seed of a street and seconds since the start of the drive there.
SHOTS = ((0, 1.0), (1, 4.0), (2, 8.0))
TILE = 320, 213
BAR = 26
DARK, LIGHT = (20, 20, 20), (255, 255, 255)


def text(out: np.ndarray, words: str, x: int, y: int) -> None:
    cv2.putText(out, words, (x, y), cv2.FONT_HERSHEY_DUPLEX, 0.5, LIGHT, 1, cv2.LINE_AA)


def strip(title: str, images: list[np.ndarray], interpolation: int = cv2.INTER_NEAREST) -> np.ndarray:
    """Return images (H, W, 3) RGB side by side, below a bar with their title."""
    sizes = [cv2.resize(image, TILE, interpolation=interpolation) for image in images]
    out = np.full((BAR + TILE[1], TILE[0] * len(images), 3), DARK, np.uint8)
    text(out, title, 8, 18)
    out[BAR:] = np.hstack(sizes)
    return out


def legend(names: tuple[str, ...], palette: np.ndarray, width: int, columns: int = 6) -> np.ndarray:
    """Return the classes' colours and names, as an image of a width."""
    rows = -(-len(names) // columns)
    out = np.full((BAR * rows + 10, width, 3), DARK, np.uint8)
    for i, name in enumerate(names):
        x, y = i % columns * width // columns + 10, i // columns * BAR + 8
        cv2.rectangle(out, (x, y), (x + 18, y + 18), palette[i].tolist(), -1)
        text(out, name, x + 25, y + 14)
    return out


def draw_networks(path: Path) -> None:
    """Draw three frames of the built-in street, their ground truth, and what the five networks make of it."""
    camvid = labels.load('camvid')
    palette = camvid.palette()
    shots = [Street(640, 426, seed).render(t)[:2] for seed, t in SHOTS]
    rows = [strip('camera', [rgb for rgb, _ in shots], cv2.INTER_AREA),
            strip('ground truth', [palette[ids] for _, ids in shots])]
    for name in networks.PAPER_NETWORKS:
        segment = Segmenter.load(name, 'cpu')
        found = [segment(rgb).labels for rgb, _ in shots]
        matrix = ConfusionMatrix(len(camvid))
        for ids, (_, truth) in zip(found, shots):
            matrix.update(truth, ids)
        miou = measured_cards()[name][1]['miou']
        rows.append(strip(f'{name}: mIoU {matrix.miou():.0f} % here, {miou:.1f} % CamVid test',
                          [palette[ids] for ids in found]))
    rows.append(legend(camvid.names, palette, rows[0].shape[1]))
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


def draw_speed(path: Path) -> None:
    """Draw the measured speeds beside what the weights reach today."""
    result = report.read(MEASURED)
    cards = measured_cards()
    for row in result['rows']:
        row['miou'] = round(cards[row['network']][1]['miou'], 1)
    with tempfile.NamedTemporaryFile('w', suffix='.json') as file:
        json.dump(result, file)
        file.flush()
        report.plot([Path(file.name)], path)


if __name__ == '__main__':
    draw_networks(ROOT / 'docs' / 'networks.png')
    draw_speed(ROOT / 'docs' / 'speed.png')
