# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Thresholds that a result must meet, such as `miou=0.65`, for use in a CI."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..labels import LabelSet

# Figure -> whether it needs ground truth, whether more is better, its unit; shares are given from 0 to 1.
FIGURES = {'miou': (True, True, '%'), 'accuracy': (True, True, '%'), 'boundary_f1': (True, True, '%'),
           'ece': (True, False, '%'), 'iou': (True, True, '%'), 'consistency': (False, True, '%'),
           'confidence': (False, True, '%'), 'p50': (False, False, 'ms'), 'p95': (False, False, 'ms'),
           'max': (False, False, 'ms')}
# Figures that can be asked for of one class, as iou.road; iou of a group too.
PER_CLASS = {'iou': 'iou', 'consistency': 'consistency_per_class', 'confidence': 'confidence_per_class'}


class RequirementError(ValueError):
    """A threshold that can't be checked; the text says what is expected."""


@dataclass(frozen=True)
class Requirement:
    """A figure, of one class or group where `of` is set, and its limit in percent or milliseconds."""

    figure: str
    of: str
    limit: float

    @property
    def name(self) -> str:
        return self.figure + (f'.{self.of}' if self.of else '')

    def check(self, result: dict[str, Any]) -> dict[str, Any]:
        """Compare with a result: `name`, `limit`, `value` (None: not measured), `met`, and a `text`."""
        _, more, unit = FIGURES[self.figure]
        if self.of:
            groups = result['group_iou'] if self.figure == 'iou' else {}
            value = (groups | result[PER_CLASS[self.figure]]).get(self.of)
        elif unit == 'ms':
            value = result['latency_ms'].get('total', {}).get(self.figure)
        else:
            value = result[self.figure]
        met = value is not None and (value >= self.limit if more else value <= self.limit)
        measured = 'was not measured' if value is None else f'is {value:.4g} {unit}'
        text = f'{self.name} {measured}; required: at {"least" if more else "most"} {self.limit:g} {unit}'
        return {'name': self.name, 'limit': self.limit, 'value': value, 'met': met, 'text': text}


def parse(texts: Sequence[str], labels: LabelSet, has_truth: bool) -> list[Requirement]:
    """Parse FIGURE=LIMIT or FIGURE.CLASS=LIMIT; `RequirementError` for what can't be checked."""
    return [_parse(t, labels, has_truth) for t in texts]


def _parse(text: str, labels: LabelSet, has_truth: bool) -> Requirement:
    name, _, number = text.partition('=')
    figure, _, of = name.partition('.')
    known = [f for f in FIGURES if f != 'iou']
    if figure not in FIGURES or (figure == 'iou' and not of):
        raise RequirementError(f'--require {text}: expected FIGURE=LIMIT, with one of {", ".join(known)}, or '
                               f'{", ".join(f"{f}.CLASS" for f in PER_CLASS)}')
    names = [*labels.names, *(labels.groups if figure == 'iou' else ())] if figure in PER_CLASS else []
    if of and of not in names:
        raise RequirementError(f'--require {text}: {figure} of {of!r} is not measured; '
                               + (f'expected one of {", ".join(names)}' if names else
                                  f'write {figure}=LIMIT'))
    needs_truth, _, unit = FIGURES[figure]
    try:
        limit = float(number)
    except ValueError:
        limit = -1.0
    if not 0 <= limit <= (1 if unit == '%' else float('inf')):
        expected = 'a share from 0 to 1' if unit == '%' else 'milliseconds'
        raise RequirementError(f'--require {text}: the limit is {number!r}; expected {expected}')
    if needs_truth and not has_truth:
        raise RequirementError(f'--require {text} needs ground truth: --label-topic or --label-dir')
    return Requirement(figure, of, 100 * limit if unit == '%' else limit)
