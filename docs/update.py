# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Rewrite the generated blocks of the documentation from the code, the weights and the measurements.

    python docs/update.py           # `make docs`

A block stands between <!-- name --> and <!-- /name -->. test/test_docs.py fails where one is out of date.
"""
import ast
import dataclasses
import json
from pathlib import Path
import re
import sys
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lightseg_ros import info, networks, weights  # noqa: E402

MEASURED = ROOT / 'bench' / 'results' / 'xeon-sapphire-rapids-2-cores.json'


def table(*rows: tuple[str, ...]) -> str:
    """Spell rows as a Markdown table; the first one is its head."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]])


def measured_cards() -> dict[str, tuple[weights.Card, dict[str, Any]]]:
    """Return of each packaged model its card, and what it says of the test split."""
    cards = {path.stem.rsplit('-', 1)[0]: card for path, card in info.packaged().items()
             if isinstance(card, weights.Card)}
    return {name: (card, card.metrics['test']) for network in networks.NETWORKS
            for name, card in cards.items() if card.network == network}


def networks_block() -> str:
    """Which network to take: parameters, accuracy, one speed per precision."""
    rows = json.loads(MEASURED.read_text())['rows']
    fps = {(r['network'], r['precision']): f'{r["fps"]:.0f}' for r in rows if r['backend'] == 'openvino'}
    return table(('model', 'parameters', 'mIoU, ours', 'worse images', 'mIoU, paper', 'fps, float32',
                  'fps, bfloat16'), *(
        (f'`{name}`', f'{info.describe(card.network, *info.CAMVID).parameters:,}', f'{test["miou"]:.1f}',
         f'{test["corrupted"]["mean"]:.1f}' if 'corrupted' in test else '–',
         f'{info.PAPERS[card.network].camvid or "–"}',
         fps[card.network, 'float32'], fps[card.network, 'bfloat16'])
        for name, (card, test) in measured_cards().items()))


def classes_block() -> str:
    """IoU of each class on CamVid's test split."""
    cards = measured_cards()
    classes = next(iter(cards.values()))[0].labels.names
    return table(('model', *classes), *(
        (f'`{name}`', *(f'{test["iou"][c]:.0f}' for c in classes)) for name, (_, test) in cards.items()))


def worse_block() -> str:
    """The mIoU of each packaged model on worse images, by strength."""
    tests = {name: test for name, (_, test) in measured_cards().items() if 'corrupted' in test}
    kinds = [kind for kind in next(iter(tests.values()))['corrupted'] if kind != 'mean']
    return table(
        ('images', *(f'`{name}`' for name in tests)),
        ('as they are', *(f'{t["miou"]:.1f}' for t in tests.values())),
        *((kind, *(', '.join(f'{v:.0f}' for v in t['corrupted'][kind]) for t in tests.values()))
          for kind in kinds),
        ('mean', *(f'{t["corrupted"]["mean"]:.1f}' for t in tests.values())))


def counts_block() -> str:
    """The networks' counts beside their papers'."""
    rows = []
    for name in networks.NETWORKS:
        large, small = info.describe(name, *info.CITYSCAPES), info.describe(name, *info.CAMVID)
        paper = info.PAPERS.get(name)
        rows.append((f'`{name}`', f'{large.parameters:,}', f'{small.parameters:,}',
                     f'{large.macs / 1e9:.3f} G', paper.parameters if paper else '–',
                     (paper and paper.macs) or '–'))
    return table(('network', 'parameters, 19 classes', '11 classes', 'MACs', "paper's parameters",
                  "paper's MACs"), *rows)


def parameters_block() -> str:
    """Parameters of the segmentation node, from its dataclass (needs rclpy)."""
    from lightseg_ros.nodes.segmentation import SegmentationParameters
    rows = []
    for field in dataclasses.fields(SegmentationParameters):
        m = field.metadata
        text = m['description']
        if m['choices']:
            text += f' One of {", ".join(m["choices"])}.'
        if m['limits']:
            text += ' {} to {}.'.format(*m['limits'])
        rows.append((f'`{field.name}`', f'`{field.default!r}`', '' if m['read_only'] else 'yes', text))
    return table(('parameter', 'default', 'live', 'what it does'), *rows)


def tree_block() -> str:
    """Every module with the first line of its docstring."""
    package = ROOT / 'lightseg_ros'
    folders = [package, *sorted(p for p in package.iterdir() if (p / '__init__.py').is_file())]
    lines = []
    for folder in folders:
        lines.append(f'    {folder.relative_to(ROOT)}/')
        for path in sorted(folder.glob('*.py')):
            if path.name not in ('__init__.py', '__main__.py'):
                lines.append(f'      {path.name:<22} {first_line(path)}')
    return '\n'.join(lines)


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ''
    return text.strip().split('\n')[0].rstrip('.')


BLOCKS = {
    ('README.md', 'networks'): networks_block,
    ('docs/networks.md', 'counts'): counts_block,
    ('docs/training.md', 'classes'): classes_block,
    ('docs/training.md', 'worse'): worse_block,
    ('docs/node.md', 'parameters'): parameters_block,
    ('CONTRIBUTING.md', 'tree'): tree_block,
}


def updated(page: str, block: str) -> tuple[str, str]:
    """Return a page as it is, and with one block made anew."""
    text = (ROOT / page).read_text()
    pattern = re.compile(f'(<!-- {block} -->\n).*?(<!-- /{block} -->)', re.DOTALL)
    assert pattern.search(text), f'{page} has no block <!-- {block} -->'
    content = BLOCKS[page, block]()
    return text, pattern.sub(lambda m: f'{m[1]}{content}\n{m[2]}', text)


if __name__ == '__main__':
    for page, block in BLOCKS:
        (ROOT / page).write_text(updated(page, block)[1])
