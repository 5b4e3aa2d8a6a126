# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of a data set: images, their labels and a blend of both, those of rare classes first."""
from collections.abc import Sequence
from pathlib import Path
import unicodedata

import cv2
import numpy as np

from . import files
from .data_check import percent, Report
from .datasets import DataError
from .labels import LabelSet

PANE, GAP, LINE = 300, 8, 24  # pixels
INK, PAPER, GREY = (20, 20, 20), (255, 255, 255), (110, 110, 110)


def write(reports: Sequence[Report], path: Path, count: int = 12) -> None:
    """
    Write a PNG that shows `count` images of splits that were checked, in the colours of their label set.

    `DataError` if there is none to show.
    """
    chosen = _rarest_first(reports, count)
    if not chosen:
        raise DataError('no image to show')
    labels = reports[0].dataset.labels
    columns = 1 if len(chosen) < 4 else 2
    width = columns * (3 * (PANE + GAP) + GAP) + GAP
    pixels = np.sum([r.pixels for r in reports], 0)
    shares = pixels / max(1, pixels.sum())
    cells = []
    for report, index, shown in chosen:
        pair = report.pairs[index]
        image, ids = report.dataset.read(report.dataset.pairs.index(pair))
        name = pair.image.relative_to(pair.image.parents[1]).as_posix()
        cells.append(_cell(image, ids, labels, shown, f'{name}  {image.shape[1]}x{image.shape[0]}',
                           f'{labels.names[shown]} {percent(report.shares[index, shown])}'))
    void = sum(r.void for r in reports) / sum(r.total for r in reports)
    parts = [_legend(labels, [*shares, void], width)]
    for i in range(0, len(cells), columns):
        row = cells[i:i + columns]
        part = np.full((max(c.shape[0] for c in row), width, 3), PAPER, np.uint8)
        for j, cell in enumerate(row):
            x = GAP + j * (cell.shape[1] + 2 * GAP)
            part[:cell.shape[0], x:x + cell.shape[1]] = cell
        parts.append(part)
    with files.replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode('.png', np.concatenate(parts)[..., ::-1])[1].tobytes())


def _rarest_first(reports: Sequence[Report], count: int) -> list[tuple[Report, int, int]]:
    """
    Choose (report, image, class): for each class, the rarest first, the image that shows most of it.

    Goes on from the start until there are `count` images.
    """
    pixels = np.sum([r.pixels for r in reports], 0)
    order = [i for i in np.argsort(pixels) if pixels[i]]
    left = {(r, i) for r in range(len(reports)) for i in range(len(reports[r].pairs))}
    chosen: list[tuple[Report, int, int]] = []
    while left and len(chosen) < count:
        before = len(chosen)
        for c in order:
            best = max(left, key=lambda at: (reports[at[0]].shares[at[1], c], -at[0], -at[1]), default=None)
            if best and reports[best[0]].shares[best[1], c] > 0 and len(chosen) < count:
                left.remove(best)
                chosen.append((reports[best[0]], best[1], int(c)))
        if len(chosen) == before:
            break
    return chosen


def _legend(labels: LabelSet, shares: Sequence[float], width: int) -> np.ndarray:
    """Draw colour, name and share of every class, of the labelled pixels; that of void is of all pixels."""
    n, names = len(labels), (*labels.names, 'void, of all')
    widest = max(map(_width, names))
    columns = max(1, width // max(150, min(widest + LINE + 90, width // 3)))
    cell = (width - GAP) // columns
    out = np.full((-(-(n + 1) // columns) * (LINE + 4) + 2 * GAP, width, 3), PAPER, np.uint8)
    for i, name in enumerate(names):
        x, y = GAP + i % columns * cell, GAP + i // columns * (LINE + 4)
        _swatch(out[y + 2:y + LINE - 2, x:x + LINE], labels.colors[i] if i < n else None)
        x, room = x + LINE + 8, cell - LINE - 90
        _text(out, name, (x, y + 17), INK, room)
        _text(out, percent(shares[i]), (x + min(room, _width(name)) + 8, y + 17), GREY)
    return out


def _swatch(out: np.ndarray, color: tuple[int, int, int] | None) -> None:
    out[:] = _void(*out.shape[:2]) if color is None else color
    cv2.rectangle(out, (0, 0), (out.shape[1] - 1, out.shape[0] - 1), GREY, 1)


def _cell(image: np.ndarray, ids: np.ndarray, labels: LabelSet, shown: int, left: str,
          right: str) -> np.ndarray:
    """Draw an image, its labels and their blend, in which the class `shown` has an outline."""
    height, width = image.shape[:2]
    scale = PANE / max(width, height * 4 / 3)  # upright images are smaller, so that rows stay even
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)
    colored, void = labels.palette()[ids], ids == labels.ignore_id
    colored[void] = _void(*ids.shape)[void]
    blend = np.where(void[..., None], image, (image * 0.5 + colored * 0.5).astype(np.uint8))
    outline, _ = cv2.findContours((ids == shown).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(blend, outline, -1, (255, 255, 255), 1)
    out = np.full((LINE + size[1] + GAP, 3 * (PANE + GAP) - GAP, 3), PAPER, np.uint8)
    for i, pane in enumerate((image, colored, blend)):
        x = i * (PANE + GAP) + (PANE - size[0]) // 2
        out[LINE:LINE + size[1], x:x + size[0]] = pane
    x = out.shape[1] - _width(right)
    _text(out, right, (x, 17), INK)
    _swatch(out[4:LINE - 5, x - LINE + 2:x - 7], labels.colors[shown])
    _text(out, left, (0, 17), INK, x - 2 * LINE)
    return out


def _void(height: int, width: int) -> np.ndarray:
    """Draw a chequered pattern, which is no colour of a class."""
    y, x = np.indices((height, width)) // 6
    return np.where(((y + x) % 2)[..., None], np.uint8(200), np.uint8(235)).repeat(3, 2)


def _ascii(text: str) -> str:
    """OpenCV's letters are ASCII: an accent is left out, any other letter becomes a question mark."""
    plain = unicodedata.normalize('NFKD', text)
    return ''.join(c for c in plain if not unicodedata.combining(c)).encode('ascii', 'replace').decode()


def _width(text: str) -> int:
    return cv2.getTextSize(_ascii(text), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]


def _text(out: np.ndarray, text: str, at: tuple[int, int], color: tuple[int, int, int],
          room: int = 1 << 16) -> None:
    """Write a text from its lower left corner on; one that takes more than `room` pixels loses its middle."""
    text = _ascii(text)
    while _width(text) > room and len(text) > 4:
        text = f'{text[:len(text) // 2 - 1]}..{text[len(text) // 2 + 2:]}'
    cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)
