# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Weights files: safetensors whose metadata (the card) says everything that is needed to run them."""
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
import hashlib
import json
import os
from pathlib import Path
import stat
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as serialized
import torch
from torch import nn

from . import files, networks, share_dir
from .labels import LabelError, LabelSet
from .sizes import LARGEST, SMALLEST
from .texts import one_line

FORMAT = 'lightseg-1'
# Limits of what a card may hold: characters in all, and the largest of mean and std (8-bit scale).
MAX_CARD = 1 << 20
MAX_STATISTIC = 1e5
MAX_HEAD = 8 << 20  # bytes of a file before its tensors: the card, and a line for each of them
KINDS: dict[str, type] = {'network': str, 'dataset': str, 'split': str, 'license': str, 'source': str,
                          'options': dict, 'recipe': dict, 'metrics': dict, 'calibration': dict}
TEMPERATURES = (0.05, 20.0)  # the lowest and the highest that a card may hold


class WeightsError(ValueError):
    """A weights file that can't be found, read or trusted; the text says what does not fit."""


@dataclass(frozen=True)
class Card:
    """
    What a weights file says about itself.

    `network`, `options`: arguments of `networks.build`. `mean`, `std`: RGB order, 0-255 scale; the network's
    input is (rgb - mean) / std. `resolution`: (width, height) in pixels that it was trained for. `dataset`,
    `split`: trained on. `recipe`: how. `metrics`: what was measured, `miou` in percent, with `command`.
    `license`: of the data. `calibration`: empty, or the `temperature` of the confidence, where it comes from
    and what it changed.
    """

    network: str
    labels: LabelSet
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)
    dataset: str = ''
    split: str = ''
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    license: str = ''
    source: str = ''
    calibration: dict[str, Any] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax; 1 without a calibration."""
        return float(self.calibration.get('temperature', 1.0))

    def to_json(self) -> str:
        d = asdict(self)
        if not self.calibration:
            del d['calibration']  # older versions know no such key
        d['labels'] = self.labels.to_dict()
        d['channel_order'] = 'rgb'
        return json.dumps(d, indent=1)

    @classmethod
    def from_json(cls, text: str) -> 'Card':
        """Parse and check a card; `WeightsError` says what does not fit."""
        try:
            if len(text) > MAX_CARD:
                raise WeightsError(f'{len(text)} characters; expected {MAX_CARD} at most')
            d = json.loads(text)
            json.dumps(d, ensure_ascii=False).encode()  # a lone surrogate, which no message can carry
            for key, kind in KINDS.items():
                if not isinstance(d.get(key, kind()), kind):
                    raise WeightsError(f'{key} is a {type(d[key]).__name__}; expected a {kind.__name__}')
                if kind is str and not d.get(key, '').isprintable():
                    raise WeightsError(f'{key} holds characters that can not be printed')
            if d.pop('channel_order') != 'rgb':
                raise WeightsError('channel_order is not rgb, the only one that this version reads')
            mean, std = _three(d, 'mean'), _three(d, 'std')
            if min(std) <= 0:
                raise WeightsError(f'std is {std}; expected three positive numbers')
            width, height = d['resolution']
            if not all(type(v) is int and SMALLEST <= v <= LARGEST for v in (width, height)):
                raise WeightsError(f'resolution is {one_line(width, 40)} x {one_line(height, 40)}; expected '
                                   f'whole numbers from {SMALLEST} to {LARGEST}')
            temperature, (low, high) = d.get('calibration', {}).get('temperature', 1.0), TEMPERATURES
            if not (type(temperature) in (int, float) and low <= temperature <= high):
                raise WeightsError(f'temperature is {one_line(temperature, 40)}; expected a number from '
                                   f'{low} to {high}')
            d.update(labels=LabelSet.from_dict(d['labels']), mean=mean, std=std,
                     resolution=(width, height))
            return cls(**d)
        except LabelError as e:
            raise WeightsError(f'its card: {e}') from e
        except WeightsError as e:
            raise WeightsError(f'its card: {e}') from e
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
            raise WeightsError(f'its card is not one of ours: {one_line(repr(e), 300)}') from e


def _three(d: dict, key: str) -> tuple[float, float, float]:
    values = d[key]
    if not (isinstance(values, (list, tuple)) and len(values) == 3 and all(
            type(v) in (int, float) and abs(v) <= MAX_STATISTIC for v in values)):  # not so with nan
        raise WeightsError(f'{key} is {one_line(values, 80)}; expected three numbers of at most '
                           f'{MAX_STATISTIC:g}')
    r, g, b = map(float, values)
    return r, g, b


def save(path: str | Path, network: nn.Module, card: Card) -> None:
    """
    Write a network (fp32) and its card; the file appears whole or not at all.

    `WeightsError` if the network is not the one that the card describes.
    """
    state = {k: v.detach().to('cpu', torch.float32 if v.is_floating_point() else v.dtype)
             .contiguous().clone() for k, v in network.state_dict().items()}
    _check_state(state, _built(card).state_dict())
    text = card.to_json()
    Card.from_json(text)  # nobody could load what does not pass
    files.write_whole(path, serialized(state, metadata={'format': FORMAT, 'card': text}))


def load(path: str | Path) -> tuple[nn.Module, Card]:
    """
    Read a weights file: the network in eval mode on the CPU (fp32), and its card.

    Everything is checked before anything is returned; `WeightsError` names the file and what is wrong.
    """
    try:
        card = _read(path, tensors=False)[0]
        network = _built(card)
        # What the network has not is refused by its size, before memory is taken for it. Twice: as float64.
        most = 2 * sum(t.nbytes for t in network.state_dict().values()) + MAX_HEAD
        if (size := os.path.getsize(path)) > most:
            raise WeightsError(f'{size / 1e6:.0f} MB; the network of its card has {most / 1e6:.0f} at most')
        card, state = _read(path)
        _check_state(state, network.state_dict())
    except WeightsError as e:
        raise WeightsError(f'{one_line(path, 300)}: {e}') from e
    network.load_state_dict(state)
    return network.eval(), card


def read_card(path: str | Path) -> Card:
    """Read only the card."""
    try:
        return _read(path, tensors=False)[0]
    except WeightsError as e:
        raise WeightsError(f'{one_line(path, 300)}: {e}') from e


def find(name: str, dataset: str = 'camvid') -> Path:
    """
    Find a packaged weights file: by network ('laanet', with `dataset`) or by stem ('laanet-camvid').

    `WeightsError` lists the packaged ones.
    """
    packaged = {p.stem: p for p in (share_dir() / 'weights').glob('*.safetensors')}
    for stem in (f'{name}-{dataset}', name):
        if stem in packaged:
            return packaged[stem]
    known = ', '.join(sorted(packaged)) or 'none'
    shown = one_line(name, 300)  # it may be a path
    near = get_close_matches(name[:300].lower(), [stem.rsplit('-', 1)[0] for stem in packaged], 1, 0.75)
    meant = f'; did you mean {near[0]!r}?' if near else ';'
    raise WeightsError(f'no packaged weights for {shown!r}{meant} packaged: {known}. Give the path of a '
                       f'weights file, or train: lightseg train --model {shown} --data camvid')


def resolve(model: str | Path) -> Path:
    """
    Return the path of a weights file from what a user wrote: a path, or a packaged network's name.

    A `Path`, and what ends in '.safetensors' or holds a '/', is a path, in which a leading '~' is expanded;
    anything else is a name for `find`. The file need not exist; `load` says so.
    """
    if is_path(model):
        return Path(os.path.expanduser(model))  # Path.expanduser raises where there is no such user
    return find(str(model))


def is_path(model: str | Path) -> bool:
    """Return whether a user wrote a path and not a packaged network's name; see `resolve`."""
    return isinstance(model, Path) or model.endswith('.safetensors') or '/' in model


def digest(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _read(path: str | Path, tensors: bool = True) -> tuple[Card, dict[str, torch.Tensor]]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise WeightsError('not a regular file')
        with open(path, 'rb') as file:
            head = int.from_bytes(file.read(8), 'little')
    except (OSError, ValueError) as e:
        why = 'no such file' if isinstance(e, FileNotFoundError) else getattr(e, 'strerror', '') or e
        raise WeightsError(f'{why}; packaged weights are found by name, see "lightseg info"') from e
    if MAX_HEAD < head <= os.path.getsize(path):
        raise WeightsError(f'its head has {head} bytes; expected {MAX_HEAD} at most')
    try:
        with safe_open(path, framework='pt', device='cpu') as f:
            metadata = f.metadata() or {}
            names = f.keys() if tensors else ()
            state = {k: f.get_tensor(k) for k in names}
    except Exception as e:  # safetensors and torch have their own errors for damaged files
        size = Path(path).stat().st_size
        raise WeightsError(f'not a whole safetensors file ({e}; {size} bytes): cut short, or of another '
                           'format; copy it again or train anew') from e
    if metadata.get('format') != FORMAT or 'card' not in metadata:
        found = one_line(metadata.get('format'), 80)
        raise WeightsError(f'a safetensors file, but not one of ours: format {found!r}, '
                           f'expected {FORMAT!r} with a card in the metadata')
    return Card.from_json(metadata['card']), state


def _built(card: Card) -> nn.Module:
    try:
        return networks.build(card.network, len(card.labels), **card.options)
    except networks.NetworkError as e:
        raise WeightsError(f'its card does not name a network that we can build: {e}') from e


def _check_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise WeightsError(f'{len(missing)} tensors are missing ({", ".join(missing[:3]) or "none"}) and '
                           f"{len(extra)} are not the network's "
                           f'({one_line(", ".join(extra[:3]), 200) or "none"})')
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape or found[key].dtype != tensor.dtype:
            raise WeightsError(
                f'{key} is {found[key].dtype} {tuple(found[key].shape)}; the network of its card has '
                f'{tensor.dtype} {tuple(tensor.shape)}')
        if found[key].is_floating_point() and not torch.isfinite(found[key]).all():
            raise WeightsError(f'{key} holds values that are not finite')
        if key.endswith('running_var') and (found[key] < 0).any():
            raise WeightsError(f'{key} holds negative variances')
