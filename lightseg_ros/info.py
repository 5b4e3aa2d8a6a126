# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What each network costs, block by block, beside its paper's figures; and the packaged weights."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import inspect
from pathlib import Path
import sys
from typing import Any

import torch
from torch import nn

from . import networks, share_dir, weights
from .texts import one_line
from .weights import Card

CITYSCAPES = (19, (1024, 512))
CAMVID = (11, (480, 360))


@dataclass(frozen=True)
class Paper:
    """A paper's own figures, None where it has none. `camvid`: test mIoU at 480x360, in per cent."""

    parameters: str
    macs: str | None
    camvid: float | None


PAPERS = {
    'laanet': Paper('0.67 M', None, 67.9),
    'fbsnet': Paper('0.62 M', '9.7 G', 68.9),
    'elanet': Paper('0.76 M', '10.34 G', None),
    'lrnnet': Paper('0.68 M', '8.58 G', 69.2),
    'affnet': Paper('1.62 M', '5.256 G', None),
}


@dataclass(frozen=True)
class Block:
    """A part of a network: its name, class, output shape (channels, height, width) and costs."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Description:
    """The costs of a network for a number of classes at a resolution (width, height)."""

    network: str
    num_classes: int
    resolution: tuple[int, int]
    parameters: int
    macs: int
    blocks: tuple[Block, ...]


def describe(name: str, num_classes: int, resolution: tuple[int, int], **options: Any) -> Description:
    """
    Count a network's parameters and multiply-accumulates; `networks.NetworkError` if it can't be built.

    Only convolutions have multiply-accumulates here; a transposed convolution has them at every pixel of its
    input. Biases, norms, activations, pooling, resizing and matrix products (LRNNet's attention, 0.5 %) are
    not counted. The network runs on torch's "meta" device: on shapes, without computing anything.
    """
    network = networks.build(name, num_classes, **options).eval().to('meta')
    image = torch.empty(1, 3, resolution[1], resolution[0], device='meta')
    macs: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(place: str, module: nn.Module) -> None:
        def after(module: nn.Module, inputs: tuple, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                shapes[place] = tuple(output.shape[1:])
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
                at = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
                macs[place] = macs.get(place, 0) + module.weight.numel() * at[0, 0].numel()
        module.register_forward_hook(after)

    for place, module in network.named_modules():
        watch(place, module)
        if isinstance(module, (nn.BatchNorm2d, nn.PReLU)):  # half of the time, for nothing that is counted
            module.forward = lambda x: x  # type: ignore[assignment]
    with torch.inference_mode():
        network(image)
    blocks = tuple(
        Block(place, type(module).__name__, shapes.get(place, ()), _parameters(module),
              sum(n for p, n in macs.items() if f'{p}.'.startswith(f'{place}.')))
        for place, module in _parts('', network) if _parameters(module))
    return Description(name, num_classes, resolution, _parameters(network), sum(macs.values()), blocks)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _parts(place: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the blocks of a network in order; a plain container is replaced by its parts."""
    out = []
    for name, child in module.named_children():
        if type(child) in (nn.Sequential, nn.ModuleList):
            out += _parts(f'{place}{name}.', child)
        else:
            out.append((f'{place}{name}', child))
    return out


def packaged() -> dict[Path, Card | str]:
    """Return the packaged weights files, each with its card, or with what is wrong with the file."""
    out: dict[Path, Card | str] = {}
    for path in sorted((share_dir() / 'weights').glob('*.safetensors')):
        try:
            out[path] = weights.read_card(path)
        except weights.WeightsError as e:
            out[path] = str(e)
    return out


def overview() -> str:
    """Return the tables of all networks and of the packaged weights."""
    cards = packaged()
    rows = [('network', 'parameters', '', 'conv MACs, G', '', 'paper', '', '', 'weights'),
            ('', '19 classes', '11 classes', '1024x512', '480x360', 'parameters', 'MACs', 'CamVid mIoU',
             'mIoU here')]
    for name in networks.NETWORKS:
        large, small = describe(name, *CITYSCAPES), describe(name, *CAMVID)
        paper = PAPERS.get(name)
        ours = [_miou(card) for card in cards.values() if isinstance(card, Card) and card.network == name]
        rows.append((
            name, f'{large.parameters:,}', f'{small.parameters:,}', f'{large.macs / 1e9:.3f}',
            f'{small.macs / 1e9:.3f}', paper.parameters if paper else '–', paper and paper.macs or '–',
            f'{paper.camvid}' if paper and paper.camvid else '–', ', '.join(ours) or '–'))
    return '\n\n'.join((
        _table(rows),
        'MACs are multiply-accumulates of convolutions, at 1024x512 with 19 classes and at 480x360 with 11.\n'
        'The papers also count norms, biases or activations, each in its own way.\n'
        '"lightseg info NAME" shows a network, its options and blocks, and where it differs from its paper.',
        _weights_table(cards)))


def page(name: str, description: Description) -> str:
    """Return the page of one network: its paper, options, blocks and packaged weights."""
    builder = networks.NETWORKS[name]
    known = networks.options(name)
    width, height = description.resolution
    rows = [('block', 'kind', 'output', 'parameters', 'conv MACs, M'), *(
        (b.name, b.kind, 'x'.join(map(str, b.shape)), f'{b.parameters:,}', f'{b.macs / 1e6:,.1f}')
        for b in description.blocks)]
    rows.append(('sum', '', '', f'{description.parameters:,}', f'{description.macs / 1e6:,.1f}'))
    mine = {p: c for p, c in packaged().items() if isinstance(c, Card) and c.network == name}
    return '\n\n'.join((
        inspect.getdoc(sys.modules[builder.__module__]) or name,
        inspect.getdoc(builder) or '',
        'options and defaults:\n' + ('\n'.join(f'  {k} = {v!r}' for k, v in known.items()) or '  none'),
        f'{description.num_classes} classes, {width}x{height} (outputs are channels x height x width):',
        _table(rows), _weights_table(mine)))


def card_page(path: Path, card: Card) -> str:
    """Return the card of a weights file as a table."""
    rows = [
        ('file', f'{path}'), ('sha256', weights.digest(path)), ('network', card.network),
        ('options', ', '.join(f'{k} = {v!r}' for k, v in card.options.items()) or 'defaults'),
        ('classes', f'{len(card.labels)} ({card.labels.name}): ' + ', '.join(card.labels.names)),
        ('resolution', 'x'.join(map(str, card.resolution))),
        ('data set', f'{card.dataset or "–"}, split {card.split or "–"}'),
        *((('average of', one_line(average, 400)),) if (average := _average(card)) else ()),
        *((f'mIoU, {split}', f'{one_line(measured["miou"], 40)} %, by: '
           f'{one_line(measured.get("command", "–"), 400)}')
          for split, measured in card.metrics.items() if isinstance(measured, dict) and 'miou' in measured),
        *((f'mIoU, {split}, worse images', f'{mean} %, mean') for split, mean in worse_images(card).items()),
        ('temperature', f'{card.temperature:g} of the confidence, from {card.calibration.get("data", "–")}'
         if card.calibration else '–'),
        ('licence', one_line(card.license, 400) or '–'), ('source', one_line(card.source, 400) or '–')]
    return _table([('weights', ''), *rows])


def _average(card: Card) -> str:
    """Say which files `lightseg average` made the weights of; empty if it did not."""
    parts = card.recipe.get('average_of')
    if not isinstance(parts, list):  # a card may be edited by hand
        return ''
    return ', '.join(f'{part.get("file")} ({share:.3g})' for part in parts if isinstance(part, dict)
                     and isinstance(share := part.get('share'), float))


def _weights_table(cards: Mapping[Path, Card | str]) -> str:
    if not cards:
        return 'No packaged weights. Train some: lightseg train --model NAME --data camvid'
    rows = [('weights', 'network', 'data set', 'trained on', 'resolution', 'mIoU', 'worse images',
             'licence of the data')]
    for path, card in cards.items():
        rows.append((path.stem, card.network, card.dataset, card.split, 'x'.join(map(str, card.resolution)),
                     _miou(card), ', '.join(map(str, worse_images(card).values())) or '–',
                     one_line(card.license, 100)) if isinstance(card, Card)
                    else (path.stem, f"can't be read: {card}", '', '', '', '', '', ''))
    return _table(rows)


def worse_images(card: Card) -> dict[str, float]:
    """Return the mean mIoU on corrupted images of each split that was scored with --corrupt, in per cent."""
    found = {split: m['corrupted'].get('mean') for split, m in card.metrics.items()
             if isinstance(m, dict) and isinstance(m.get('corrupted'), dict)}
    return {split: mean for split, mean in found.items()  # a card may be edited by hand
            if type(mean) in (int, float) and 0 <= mean <= 100}


def _miou(card: Card) -> str:
    """Return the measured mIoU of each split, in per cent."""
    found = {split: m['miou'] for split, m in card.metrics.items() if isinstance(m, dict) and 'miou' in m}
    return ', '.join(f'{split} {one_line(miou, 40)}' for split, miou in found.items()) or 'not measured'


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Align the columns: to the right where every cell below the two heads is a figure."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def is_figure(cell: str) -> bool:
        return cell.replace(',', '').replace('.', '').isdigit() or cell == '–'

    right = [all(is_figure(row[i]) for row in rows[2:]) and len(rows) > 2 for i in range(len(widths))]
    return '\n'.join('  '.join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(
        row, widths, right)).rstrip() for row in rows)
