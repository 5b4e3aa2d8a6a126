# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Label sets: class names, colours, groups and the id that means "unlabeled", from YAML files."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from . import share_dir
from .files import read_small
from .texts import one_line

MAX_NAME = 100  # characters of a name
MAX_FILE = 1 << 20  # bytes of a file


class LabelError(ValueError):
    """A label set that is not well formed, or a label image with ids that it does not know."""


@dataclass(frozen=True)
class LabelSet:
    """
    The classes of a data set. Class i of the network is `names[i]`, its id in a label image is i.

    `colors`: RGB, 0-255. `groups`: name -> class names (what a costmap or a planner asks for).
    `ignore_id`: "unlabeled" in our label images. `source_ids[i]`: id of class i in the data set's own label
    files; `void_source_ids`: the ids there that mean "unlabeled".
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignore_id: int = 255
    source_ids: tuple[int, ...] = ()
    void_source_ids: tuple[int, ...] = ()

    def __post_init__(self):
        n = len(self.names)
        if not 1 <= n <= 255:
            raise LabelError(f'label set {self.name!r} has {n} classes; expected 1 to 255')
        if not self.source_ids:
            object.__setattr__(self, 'source_ids', tuple(range(n)))
        for text in (self.name, *self.names, *self.groups):
            if not (isinstance(text, str) and 0 < len(text) <= MAX_NAME and text.isprintable()):
                raise LabelError(f'label set {_shown(self.name)} has the name {_shown(text)}; expected a '
                                 f'text of 1 to {MAX_NAME} printable characters (in YAML, quote numbers, on, '
                                 'off, yes, no)')
        doubled = sorted({x for x in self.names if self.names.count(x) > 1})
        if doubled:
            raise LabelError(f'label set {self.name!r} names {", ".join(doubled)} more than once')
        if len(self.colors) != n or len(self.source_ids) != n:
            raise LabelError(f'label set {self.name!r} has {n} names, {len(self.colors)} colours and '
                             f'{len(self.source_ids)} source ids; expected one of each for every class')
        ids = (*self.source_ids, *self.void_source_ids, self.ignore_id)
        if not all(type(v) is int and 0 <= v < 1 << 16 for v in ids):
            raise LabelError(f'label set {self.name!r} has ids that are no numbers from 0 to 65535')
        for c in self.colors:
            if len(c) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in c):
                raise LabelError(f'label set {self.name!r}: colour {_shown(c)} is not three numbers from 0 '
                                 'to 255')
        if not n <= self.ignore_id <= 255:
            raise LabelError(f'label set {self.name!r}: ignore_id is {self.ignore_id!r}; expected a number '
                             f'from {n} to 255, no class id')
        for group, members in self.groups.items():
            unknown = [m for m in members if m not in self.names]
            if unknown:
                raise LabelError(f'label set {self.name!r}: group {group!r} holds {", ".join(unknown)}, '
                                 f'which is no class; classes: {", ".join(self.names)}')

    def __len__(self) -> int:
        return len(self.names)

    def palette(self) -> np.ndarray:
        """Colour of every id, (256, 3) uint8 RGB; black where an id is no class."""
        out = np.zeros((256, 3), np.uint8)
        out[:len(self)] = self.colors
        return out

    def group_ids(self, group: str) -> tuple[int, ...]:
        """Class ids of a group; a class name is a group of its own."""
        if group in self.groups:
            return tuple(self.names.index(m) for m in self.groups[group])
        if group in self.names:
            return (self.names.index(group),)
        raise LabelError(f'unknown group or class {group!r} in label set {self.name!r}; groups: '
                         f'{", ".join(self.groups) or "none"}; classes: {", ".join(self.names)}')

    def choose_groups(self, text: str) -> dict[str, tuple[str, ...]]:
        """
        Return groups by what a user wrote: name -> classes.

        `text`: names of groups or classes, separated by commas or, if there is no comma, by spaces; or the
        path of a YAML file that maps names to lists of classes, at its top or below the key `groups`. Empty:
        the groups of the label set, without those that share a class with an earlier one.
        """
        if Path(text).suffix in ('.yaml', '.yml'):
            return _read_groups(Path(text).expanduser())
        if text.strip():
            names = [name.strip() for name in (text.split(',') if ',' in text else text.split())]
            return {name: tuple(self.names[i] for i in self.group_ids(name)) for name in names if name}
        chosen: dict[str, tuple[str, ...]] = {}
        for name, members in self.groups.items():
            if members and not {m for others in chosen.values() for m in others} & set(members):
                chosen[name] = tuple(members)
        return chosen

    def grouped(self, groups: Mapping[str, Sequence[str]]) -> tuple['LabelSet', np.ndarray]:
        """
        Return a label set with one class for each group, and the table that turns our ids into its ids.

        The table is (256,) uint8: 255 for classes in no group and for ids that are no class. A group has the
        colour of its first class. `LabelError` if there is no group, a group is empty, or a class is unknown
        or in two groups.
        """
        table = np.full(256, 255, np.uint8)
        for i, (group, members) in enumerate(groups.items()):
            if not members:
                raise LabelError(f'group {group!r} has no classes')
            for member in members:
                if member not in self.names:
                    raise LabelError(f'group {group!r} holds {member!r}, which is no class of label set '
                                     f'{self.name!r}; classes: {", ".join(self.names)}')
                at = self.names.index(member)
                if table[at] != 255:
                    raise LabelError(f'class {member!r} is in the groups {list(groups)[table[at]]!r} and '
                                     f'{group!r}; expected each class in one group at most')
                table[at] = i
        colors = tuple(self.colors[self.names.index(members[0])] for members in groups.values())
        return LabelSet(f'{self.name} groups', tuple(groups), colors), table

    def from_source(self, ids: np.ndarray) -> np.ndarray:
        """
        Turn the data set's own ids (uint8 or uint16, any shape) into class ids, void into `ignore_id`.

        `LabelError` where an id is neither: the file belongs to another label set.
        """
        table = np.full(1 << 16, -1, np.int16)
        table[list(self.void_source_ids) + [self.ignore_id]] = self.ignore_id
        table[list(self.source_ids)] = np.arange(len(self))
        out = table[ids]
        if (out < 0).any():
            found = np.unique(ids[out < 0]).tolist()
            raise LabelError(f'ids {found[:10]} are not in label set {self.name!r}; it knows '
                             f'{sorted(self.source_ids)} and, as void, '
                             f'{sorted({*self.void_source_ids, self.ignore_id})}')
        return out.astype(np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Return the form of the YAML files and of the weights' metadata."""
        return {
            'name': self.name, 'ignore_id': self.ignore_id,
            'void_source_ids': list(self.void_source_ids),
            'classes': [{'id': i, 'source_id': s, 'name': n, 'color': list(c)} for i, (n, c, s) in
                        enumerate(zip(self.names, self.colors, self.source_ids))],
            'groups': {k: list(v) for k, v in self.groups.items()}}

    @classmethod
    def from_dict(cls, d: Any) -> 'LabelSet':
        """Build a label set from `to_dict`'s form; `LabelError` says what does not fit."""
        try:
            rows = d['classes']
            if [r['id'] for r in rows] != list(range(len(rows))):
                found = ', '.join(_shown(r['id']) for r in rows[:256])
                raise LabelError(f'label set {_shown(d["name"])}: class ids are [{found}]; expected 0 to '
                                 f'{len(rows) - 1} in order')
            return cls(
                name=d['name'], names=tuple(r['name'] for r in rows),
                colors=tuple(tuple(r['color'][:4]) for r in rows),
                groups={k: tuple(v) for k, v in (d.get('groups') or {}).items()},
                ignore_id=d.get('ignore_id', 255),
                source_ids=tuple(r.get('source_id', r['id']) for r in rows),
                void_source_ids=tuple(d.get('void_source_ids', ())))
        except (KeyError, TypeError, AttributeError) as e:
            raise LabelError(f'not a label set: {one_line(repr(e), 200)}; expected name, classes (id, name, '
                             'color), and optionally groups, ignore_id, void_source_ids') from e


def _shown(value: Any) -> str:
    """
    Spell a value from a file for an error.

    Not repr() of just anything: YAML's aliases make a text of many megabytes from a list in a short file.
    """
    return one_line(repr(value), 80) if isinstance(value, (str, int, float)) else f'a {type(value).__name__}'


def _read_groups(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        tree = yaml.safe_load(read_small(path, MAX_FILE).decode())
    except OSError as e:
        raise LabelError(f'groups file {_shown(str(path))} cannot be read: {e.strerror or e}') from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise LabelError(f'groups file {one_line(path, 300)!r} is not YAML: {one_line(e)}') from e
    groups = tree.get('groups', tree) if isinstance(tree, dict) else None
    if not isinstance(groups, dict) or not all(
            isinstance(members, list) and all(isinstance(m, str) for m in members)
            for members in groups.values()):
        raise LabelError(f'groups file {_shown(str(path))} holds no groups; expected lines such as '
                         '"traversable: [road, sidewalk]"')
    return {str(name): tuple(members) for name, members in groups.items()}


def available() -> list[str]:
    """Names of the packaged label sets."""
    return sorted(p.stem for p in (share_dir() / 'config' / 'labels').glob('*.yaml'))


def load(name: str | Path) -> LabelSet:
    """Load a packaged label set by name ('camvid'), or one's own from the path of a YAML file."""
    path = Path(name)
    if path.suffix not in ('.yaml', '.yml'):
        path = share_dir() / 'config' / 'labels' / f'{name}.yaml'
    try:
        text = read_small(path, MAX_FILE).decode()
    except (OSError, ValueError) as e:
        why = getattr(e, 'strerror', '') or e
        raise LabelError(f'no label set {one_line(name, 300)!r}: {why}; packaged: '
                         f'{", ".join(available())}, or give the path of a YAML file') from e
    try:
        return LabelSet.from_dict(yaml.safe_load(text))
    except LabelError as e:
        raise LabelError(f'{path}: {e}') from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # a date that is none is a ValueError
        raise LabelError(f'{path} is not YAML: {one_line(e)}') from e
